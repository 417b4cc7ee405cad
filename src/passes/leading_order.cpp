#include <algorithm>
#include <array>
#include <optional>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/faults.hpp"
#include "tplimit/passes/limit_outputs.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/passes/powers.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

using MaybeExponent = std::optional<Exponent>;  // empty: minus infinity, nothing there

MaybeExponent sum(MaybeExponent a, MaybeExponent b) {
  if (!a || !b) return std::nullopt;
  return *a + *b;
}

/// Numbers that the leading term of a coordinate may be with positive probability, and whether
/// dropped terms then remain.
struct Atoms {
  bool zero = false, zero_moves = false;    ///< 0
  bool other = false, other_moves = false;  ///< other numbers
};

/// One value as a leading term n^lead and a bound n^dropped on everything left out.
struct Order : Atoms {
  MaybeExponent lead;     ///< empty: the leading term is proved zero
  MaybeExponent dropped;  ///< empty: nothing was left out
  MaybeExponent spike;    ///< of a rest of functions that jump, where it is not 0 (rms_of_spikes);
                          ///< empty: there is none
  NodeId culprit;         ///< in the input program: where the largest dropped term was left out
  // Behaviour under flipping the sign of one Gaussian family at a time (the first 64 families):
  std::uint64_t odd = 0;    ///< bit set: changes sign
  std::uint64_t mixed = 0;  ///< bit set: neither even nor odd, `odd` then means nothing
  bool positive = false;    ///< > 0 almost everywhere
  NodeId out;               ///< the leading coefficient in the limit program

  [[nodiscard]] MaybeExponent size() const { return larger(lead, dropped); }
  /// Of the largest coordinates.
  [[nodiscard]] MaybeExponent most() const { return larger(size(), spike); }
  /// n^.. of (E rest^2)^(1/2).
  [[nodiscard]] MaybeExponent rms() const {
    return spike && dropped ? larger(dropped, rms_of_spikes(*dropped, *spike)) : dropped;
  }
};

/// What stands in texts as eps; above, a constant is meant to be seen.
constexpr double kSmallConstant = 1e-2;

class Analysis {
 public:
  explicit Analysis(const Program& program)
      : in_(program), out_(without_nodes(program)), builder_(out_) {}

  LeadingOrderResult run(bool keep_names) {
    visit_all();
    if (error_) return Refusal<NoLeadingOrder>{reason_, {*error_}};
    return finish(keep_names);
  }
  std::vector<bool> fluctuating_reports() {
    visit_all();
    std::vector<bool> out(in_.reports.size(), false);
    for (std::size_t k = 0; k < out.size() && !error_; ++k)
      out[k] = std::any_of(in_.reports[k].entries.begin(), in_.reports[k].entries.end(),
                           [&](const Report::Entry& e) { return fluctuates(order(e.value)); });
    return out;
  }

 private:
  void visit_all() {
    orders_.reserve(in_.size());
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      current_ = {k};
      const Node& node = in_.nodes[k];
      builder_.set_origin(node.span, node.context);
      Order order = std::visit([&](const auto& op) { return visit(op, node); }, node.op);
      for (const MaybeExponent& size : {order.lead, order.dropped})
        if (size && !in_range(*size))
          reject("E3105", "a power of the width is out of range", "",
                 "exponents lie between -10^6 and 10^6 with denominators that divide 40320; fewer "
                 "nested roots and powers help");
      if (error_) return;
      if ((!node.type.matrix || node.type.entries) && builder_.is_zero(order.out))
        order.lead.reset();
      find_atoms(node, order);
      orders_.push_back(order);
    }
  }

  static constexpr const char* kLargeMatrix =
      "the entries of this matrix exceed size n^(-1/2), so that its products grow";
  /// Sums, products and comparisons of such exponents do not overflow.
  static bool in_range(Exponent e) {
    constexpr std::int64_t kCommonDenominator =
        40320;  // 8!: half of every exponent that the language allows
    return kCommonDenominator % e.denominator() == 0 && std::abs(to_double(e)) < 1e6;
  }

  [[nodiscard]] std::string power(Exponent e) const { return power_of_width(e, in_.width_name); }
  const Order& order(NodeId id) const { return orders_[id.value]; }
  const Order& operand(const Node& node, std::size_t k) const { return orders_[node.in[k].value]; }

  /// `cause`: an operand to point at as well.
  void reject(const char* code, std::string message, std::string label, std::string help,
              NodeId cause = {}, const char* note = "") {
    if (error_) return;
    const Node& node = in_[current_];
    error_ = Diagnostic::error(code, std::move(message))
                 .at(node.span)
                 .with_label(std::move(label))
                 .with_help(std::move(help));
    if (cause.valid() && in_[cause].span != node.span)
      error_->notes.push_back({in_[cause].type.matrix ? kLargeMatrix : note, in_[cause].span});
    if (node.context)
      error_->notes.push_back({"in the iteration " + in_.contexts[node.context], node.span});
  }

  // ---- dropped terms
  void drop(Order& to, MaybeExponent size, NodeId culprit) const {
    if (size && (!to.dropped || *size > *to.dropped)) {
      to.dropped = size;
      to.culprit = culprit;
    }
  }
  void inherit(Order& to, const Order& from, MaybeExponent factor) const {
    drop(to, sum(from.dropped, factor), from.culprit);
    to.spike = larger(to.spike, sum(from.spike, factor));
  }
  /// The function of this node jumps, by steps of size n^height, where what is dropped moves its
  /// argument.
  void spikes(Order& to, const Node& node, MaybeExponent height) const {
    if (node.type.random() && to.dropped) to.spike = larger(to.spike, height);
  }

  static void join_parity(Order& to, const Order& other) {
    to.mixed |= other.mixed | (to.odd ^ other.odd);
    to.odd &= ~to.mixed;
  }
  static void multiply_parity(Order& to, const Order& other) {
    to.mixed |= other.mixed;
    to.odd = (to.odd ^ other.odd) & ~to.mixed;
  }
  static void no_parity(Order& to) {  // a general function keeps evenness only
    to.mixed |= to.odd;
    to.odd = 0;
  }

  /// How fast a node grows, as a power of the Gaussians behind it.
  struct Growth {
    int degree = 0;
    bool above = true, below = true;  ///< what may be large: values > 0, values < 0
  };
  static constexpr int kFast = 8;
  const Growth& growth(NodeId id) {
    growth_.resize(in_.size());
    if (growth_[id.value]) return *growth_[id.value];
    const Node& node = in_[id];
    Growth out;
    // A number that is computed, or a matrix, which is asked for by products only.
    if (!node.type.random() && !std::holds_alternative<Constant>(node.op))
      return *(growth_[id.value] = out);
    const auto of = [&](std::size_t k) { return growth(node.in[k]); };
    const auto join = [&](const Growth& a) {
      out = {std::max(out.degree, a.degree), out.above || a.above, out.below || a.below};
    };
    const auto product = [&](std::size_t k, std::size_t l) {
      const Growth a = of(k), b = of(l);
      return Growth{std::min(kFast, a.degree + b.degree),
                    (a.above && b.above) || (a.below && b.below),
                    node.in[k] != node.in[l] && ((a.above && b.below) || (a.below && b.above))};
    };
    const auto any_operand = [&] {
      out = {0, false, false};
      for (std::size_t k = 0; k < node.in.size(); ++k) join(of(k));
    };
    const auto number = [&] { out.degree = 0; };
    const auto gaussian = [&] { out.degree = 1; };
    std::visit(overloaded{
                   [&](const Constant& c) {
                     const auto [low, high] =
                         std::minmax_element(c.values->begin(), c.values->end());
                     out = {0, *high > 0, *low < 0};
                   },
                   [&](const StandardNormal&) { gaussian(); },
                   [&](const MatMul&) { gaussian(); },
                   [&](const MatrixEntries&) { gaussian(); },
                   [&](const Scale& s) {
                     out = of(0);
                     if (s.factor < 0) std::swap(out.above, out.below);
                   },
                   [&](const Map& m) {
                     if (m.fn == Fn::kMul) {
                       out = product(0, 1);
                     } else if (m.fn == Fn::kPower && m.parameter > 0) {
                       out.degree =
                           std::min(kFast, static_cast<int>(std::ceil(m.parameter * of(0).degree)));
                       out.below = std::fmod(m.parameter, 2) != 0 && of(0).below;
                     } else if (m.fn == Fn::kExp) {
                       const Growth a = of(0);
                       out = {a.degree > 0 && a.above ? kFast : 0, true, false};
                     } else if (traits_of(m).bounded && !is_piecewise_constant(node.op)) {
                       out.degree = 0;
                     } else {
                       out = {0, false, false};
                       for (std::size_t k = 0; k < node.in.size(); ++k) {
                         Growth a = of(k);
                         if (m.fn == Fn::kSub && k == 1) std::swap(a.above, a.below);
                         join(a);
                       }
                       if (m.fn == Fn::kAbs || m.fn == Fn::kRelu)
                         out = {out.degree, true, false};
                       else if (m.fn != Fn::kAdd && m.fn != Fn::kSub)
                         out.above = out.below = true;
                     }
                   },
                   [&](const Contract&) { out = product(0, 1); },
                   [&](const OuterSum&) {
                     out = {0, false, false};
                     for (std::size_t k = 0; k < node.in.size(); k += 3) {
                       Growth term = product(k + 1, k + 2);
                       term.above = term.below = true;  // the number may have either sign
                       join(term);
                     }
                   },
                   // Sums, copies and other orders of what they have.
                   [&](const ReduceSum&) { any_operand(); },
                   [&](const ReduceMax&) { any_operand(); },
                   [&](const LogSumExp&) { any_operand(); },
                   [&](const Gather&) { any_operand(); },
                   [&](const ScatterAdd&) { any_operand(); },
                   [&](const Permute&) { any_operand(); },
                   [&](const Reshape&) { any_operand(); },
                   [&](const Expand&) { any_operand(); },
                   [&](const Concat&) { any_operand(); },
                   [&](const Stop&) { any_operand(); },
                   [&](const Parameter&) { any_operand(); },
                   [&](const Change&) { any_operand(); },
                   // Numbers, and matrices, which are asked for by products only.
                   [&](const Average&) { number(); },
                   [&](const Cholesky&) { number(); },
                   [&](const Eigvals&) { number(); },
                   [&](const TrainingOperator&) { number(); },
                   [&](const Solve&) { number(); },
                   [&](const LogDet&) { number(); },
                   [&](const Samples&) { number(); },
                   [&](const Histogram&) { number(); },
                   [&](const GaussianMatrix&) { number(); },
                   [&](const ScaleMatrix&) { number(); },
                   [&](const UpdateMatrix&) { number(); },
                   [&](const AddVersion&) { number(); },
                   [&](const AddEntries&) { number(); },
                   [&](const InnerProduct&) { number(); },
               },
               node.op);
    return *(growth_[id.value] = out);
  }
  /// Of even symmetry, and 0 where a Gaussian is.
  bool vanishes_somewhere(NodeId id) {
    const Node* node = &in_[id];
    while (std::holds_alternative<Scale>(node->op)) node = &in_[node->in[0]];
    const auto* m = std::get_if<Map>(&node->op);
    if (!m || !(m->fn == Fn::kAbs || (m->fn == Fn::kPower && m->parameter > 0) ||
                (m->fn == Fn::kMul && node->in[0] == node->in[1])))
      return false;
    const Order& x = order(node->in[0]);
    return (x.odd & ~x.mixed) != 0 || vanishes_somewhere(node->in[0]);
  }
  /// The average of a product with it need not exist: symmetry proves nothing.
  static void no_symmetry(Order& to) {
    to.mixed = ~std::uint64_t{0};
    to.odd = 0;
  }

  /// Of entries: a number.
  NodeId zero_like(const Type& type) { return builder_.zeros(type.width, type.dims); }

  /// Operands of a sum: the largest orders stay, the others become zero and count as dropped.
  /// Returns their new nodes.
  std::vector<NodeId> keep_largest(Order& to, const Node& node, std::size_t first = 0) {
    for (std::size_t k = first; k < node.in.size(); ++k)
      to.lead = larger(to.lead, operand(node, k).lead);
    bool fresh = true;
    std::vector<NodeId> kept;
    for (std::size_t k = first; k < node.in.size(); ++k) {
      const Order& x = operand(node, k);
      inherit(to, x, Exponent(0));
      if (x.lead && *x.lead == *to.lead) {
        kept.push_back(x.out);
        if (fresh) {
          to.odd = x.odd;
          to.mixed = x.mixed;
          fresh = false;
        } else {
          join_parity(to, x);
        }
      } else {
        drop(to, x.lead, current_);
        kept.push_back(zero_like(in_[node.in[k]].type));
      }
    }
    return kept;
  }

  Order product(const Order& a, const Order& b) {
    Order to;
    to.lead = sum(a.lead, b.lead);
    // Where a function has jumped, the other factor may be as large as it gets there.
    inherit(to, a, a.spike ? b.most() : b.size());
    inherit(to, b, b.spike ? a.most() : a.lead);
    to.spike = larger(sum(a.spike, b.most()), sum(b.spike, a.most()));
    to.odd = a.odd;
    to.mixed = a.mixed;
    multiply_parity(to, b);
    to.positive = a.positive && b.positive;
    return to;
  }

  void averaged(Order& to) {
    // Averages over coordinates fluctuate by n^(-1/2) around their limit.
    const MaybeExponent fluctuation = sum(to.lead, Exponent(-1, 2));
    if ((to.odd & ~to.mixed) != 0) to.out = zero_like(builder_.type(to.out));
    drop(to, fluctuation, current_);
    if (to.spike) drop(to, sum(to.rms(), Exponent(-1, 2)), to.culprit);
    to.spike.reset();
    to.odd = to.mixed = 0;  // a number in the limit
  }

  // ---- operations
  Order visit(const Constant& op, const Node& node) {
    Order to{.lead = Exponent(0)};
    to.out = builder_.constant(op, node.type.dims);
    to.positive = std::all_of(op.values->begin(), op.values->end(), [](double x) { return x > 0; });
    return to;
  }
  Order visit(const Scale& op, const Node& node) {
    Order to = operand(node, 0);
    if (to.lead) *to.lead += op.power;
    if (to.dropped) *to.dropped += op.power;
    if (to.spike) *to.spike += op.power;
    to.positive = to.positive && op.factor > 0;
    to.out = builder_.scale(op.factor, 0, to.out);
    return to;
  }
  Order visit(const StandardNormal& op, const Node&) {
    Order to{.lead = Exponent(0)};
    family(to, op.source);
    to.out = builder_.add(op, {});
    return to;
  }
  static void family(Order& to, SourceId source) {
    if (source.value < 64) to.odd = std::uint64_t{1} << source.value;
    // Families beyond the 64th are followed by nobody: treat them as even, which proves no zero
    // from them.
  }

  /// Of 1/b, b not 0.
  static Order inverse(const Order& b) {
    Order out = b;
    out.lead = -*b.lead;
    if (b.dropped) out.dropped = *b.dropped - 2 * *b.lead;
    if (b.spike) out.spike = std::min(*b.spike - 2 * *b.lead, -*b.lead);
    return out;
  }

  Order visit(const Map& op, const Node& node) {
    if (node.in.size() == 1) return unary(op, node);
    switch (op.fn) {
      case Fn::kAdd:
      case Fn::kSub: {
        Order to;
        const auto kept = keep_largest(to, node);
        to.positive = op.fn == Fn::kAdd && operand(node, 0).positive && operand(node, 1).positive;
        if (is_floor(node)) to.dropped.reset();  // whole numbers, where it is determined
        to.out = builder_.map(op.fn, kept);
        to.out = builder_.expand(to.out, node.type.width, node.type.dims);
        return to;
      }
      case Fn::kMul: {
        const Order &a = operand(node, 0), &b = operand(node, 1);
        Order to = product(a, b);
        if (node.in[0] == node.in[1]) to.positive = a.lead.has_value();
        if (!node.type.random())
          for (const std::size_t k : {0u, 1u})
            if (jumps_ && is_indicator(in_, node.in[k]) && !is_indicator(in_, node.in[1 - k])) {
              follow({operand(node, 1 - k).out}, operand(node, 1 - k).out);
              break;
            }
        to.out = builder_.expand(builder_.times(a.out, b.out), node.type.width, node.type.dims);
        return to;
      }
      case Fn::kDiv: {
        const Order &a = operand(node, 0), &b = operand(node, 1);
        if (!b.lead) {
          reject("E3104", "the divisor vanishes in the limit", "the limit divides by 0 here",
                 "the theory covers divisors with a nonzero limit only", node.in[1],
                 "this is 0 in the limit");
          return {};
        }
        Order to = product(a, inverse(b));
        // An odd divisor passes through 0: the average of a/b need not exist, and symmetry proves
        // nothing about it.
        if (b.odd & ~b.mixed) no_parity(to);
        if (vanishes_somewhere(node.in[1])) no_symmetry(to);
        to.out = builder_.expand(builder_.map(Fn::kDiv, {a.out, b.out}), node.type.width,
                                 node.type.dims);
        return to;
      }
      case Fn::kMin:
      case Fn::kMax: {
        Order to;
        const auto kept = keep_largest(to, node);
        no_parity(to);
        if (!node.type.random() && to.dropped) follow(kept, builder_.minus(kept[0], kept[1]));
        to.out = builder_.expand(kept[0] == kept[1] ? kept[0] : builder_.map(op.fn, kept),
                                 node.type.width, node.type.dims);
        return to;
      }
      case Fn::kLess:
      case Fn::kLessEqual:
      case Fn::kEqual:
      case Fn::kNotEqual: {
        Order to;
        const auto kept = keep_largest(to, node);
        no_parity(to);
        // Sides that are one value in the limit: what is dropped decides everywhere.
        const NodeId difference = builder_.minus(kept[0], kept[1]);
        if (node.type.random() && to.dropped &&
            (builder_.is_zero(difference) || sum_of_atoms(node, true).zero_moves))
          return reject_jump(op);
        if (decidable(to, node)) decide(to, kept, difference);
        // A dropped term moves the comparison by its size relative to what is compared.
        if (to.dropped) to.dropped = to.lead ? *to.dropped - *to.lead : Exponent(0);
        to.lead = Exponent(0);
        to.spike.reset();
        spikes(to, node, to.lead);
        to.out = builder_.expand(builder_.map(op.fn, kept), node.type.width, node.type.dims);
        return to;
      }
      case Fn::kWhere: {
        Order to;
        Order c = operand(node, 0);
        auto kept = keep_largest(to, node, 1);
        kept.insert(kept.begin(), c.out);
        if (in_[node.in[0]].type.random() && c.zero_moves) return reject_jump(op);
        if (!in_[node.in[0]].type.random() && decidable(c, in_[node.in[0]]))
          decide(c, {c.out}, c.out);
        const MaybeExponent most = larger(operand(node, 1).most(), operand(node, 2).most());
        inherit(to, c, c.spike ? most : to.lead);
        if (!c.lead && c.dropped) drop(to, to.lead, c.culprit);
        if (c.dropped) spikes(to, node, most);
        join_parity(to, c);
        no_parity(to);
        to.out = builder_.expand(builder_.map(op.fn, kept), node.type.width, node.type.dims);
        return to;
      }
      case Fn::kPow:
      case Fn::kMod: {
        Order to;
        if (op.fn == Fn::kMod && vanishes(operand(node, 0))) return small_mod(node);
        for (std::size_t k = 0; k < 2; ++k) {
          const Order& x = operand(node, k);
          if (x.lead && *x.lead != 0) {
            reject("E3105", fmt::format("'{}' needs operands of size 1", written(op.fn)),
                   fmt::format("operand {} has size {}", k + 1, power(*x.lead)),
                   op.fn == Fn::kPow
                       ? "take the power of the width out: (n x)^k = n^k x^k with a number k"
                       : "scale the operands by powers of the width first");
            return {};
          }
          inherit(to, x, Exponent(0));
          to.mixed |= x.mixed | x.odd;
        }
        if (op.fn == Fn::kMod && node.type.random() &&
            (operand(node, 0).zero_moves || operand(node, 0).other_moves ||
             (operand(node, 0).other && operand(node, 1).other_moves)))
          return reject_jump(op);
        if (op.fn == Fn::kMod && !node.type.random() && to.dropped)
          follow({operand(node, 0).out, operand(node, 1).out}, {});
        to.lead = Exponent(0);
        if (op.fn == Fn::kMod) spikes(to, node, to.lead);
        to.out = builder_.expand(builder_.map(op.fn, {operand(node, 0).out, operand(node, 1).out}),
                                 node.type.width, node.type.dims);
        return to;
      }
      default: break;
    }
    TPLIMIT_CHECK(false, "a known function, got {}", name(op.fn));
    return {};
  }

  // ---- jumps
  /// Numbers fluctuate less than their leading terms: all but their values on the jump itself is
  /// certain.
  bool decidable(const Order& x, const Node& node) const {
    return !node.type.random() && x.dropped && (!x.lead || *x.dropped < *x.lead);
  }
  void follow(std::vector<NodeId> operands, NodeId margin) {
    decisions_.push_back({current_, std::move(operands), margin, is_jump(in_[current_])});
    jumps_ = jumps_ || decisions_.back().jump;
  }
  void decide(Order& to, std::vector<NodeId> operands, NodeId margin) {
    if (const auto* values = builder_.constant_values(margin);
        values && std::find(values->begin(), values->end(), 0.0) != values->end())
      undecided_.push_back(current_);
    follow(std::move(operands), margin);
    to.dropped.reset();
  }
  Order reject_jump(const Map& op) {
    if (!error_) reason_ = NoLeadingOrder::kJump;
    reject("E3108", fmt::format("'{}' jumps where dropped terms decide", written(op.fn)),
           "some coordinates lie on the jump up to terms that vanish",
           "the limit engine does not follow such terms: compare what decides, multiplied by a "
           "power of the width");
    return {};
  }
  static bool vanishes(const Order& x) { return x.lead ? *x.lead < 0 : x.dropped.has_value(); }
  /// mod(u, y) for u that vanishes: y where u / y < 0, else 0.
  Order small_mod(const Node& node) {
    const Order &u = operand(node, 0), &y = operand(node, 1);
    Order to;
    if (!y.lead || *y.lead != 0) {
      reject("E3105", "'mod' needs operands of size 1", "operand 2",
             "scale the operands by powers of the width first");
      return to;
    }
    if (node.type.random() && u.zero_moves) return reject_jump(Map{Fn::kMod, 0});
    to.lead = Exponent(0);
    inherit(to, y, Exponent(0));
    to.mixed = u.mixed | u.odd | y.mixed | y.odd;
    if (node.type.random()) {
      if (u.dropped) drop(to, *u.dropped - *u.lead, u.culprit);
    } else if (u.dropped) {
      Order decided = u;
      decide(decided, {u.out, y.out}, u.out);
    }
    drop(to, u.size(), current_);
    spikes(to, node, to.lead);
    to.out = builder_.expand(
        builder_.map(Fn::kWhere,
                     {builder_.map(Fn::kLess, {builder_.times(u.out, y.out), builder_.constant(0)}),
                      y.out, builder_.constant(0)}),
        node.type.width, node.type.dims);
    return to;
  }
  /// x - mod(x, y), y a constant.
  bool is_floor(const Node& node) const {
    const auto* m = std::get_if<Map>(&node.op);
    if (!m || m->fn != Fn::kSub || node.type.random()) return false;
    const Node& fraction = in_[node.in[1]];
    const auto* mod = std::get_if<Map>(&fraction.op);
    return mod && mod->fn == Fn::kMod && fraction.in[0] == node.in[0] &&
           !order(fraction.in[1]).dropped;
  }

  /// Of a sum of operands.  An average equals none of the other numbers; what is a number up to
  /// terms that vanish, 1 + f, may where it is `compared`, and in sums is not expected to.
  Atoms sum_of_atoms(const Node& node, bool compared = false) const {
    MaybeExponent lead;
    for (const NodeId id : node.in) lead = larger(lead, order(id).lead);
    Atoms to;
    to.zero = to.other = true;
    bool moves = false, zeros = true, generic = false;
    const Order* only = nullptr;
    std::size_t count = 0;
    for (const NodeId id : node.in) {
      const Order& x = order(id);
      if (x.lead && x.lead == lead) {
        generic = generic || (!in_[id].type.random() && x.dropped &&
                              !(compared && builder_.constant_values(x.out)));
        if (!x.zero && !x.other) to.zero = to.other = false;  // continuous, and so is the sum
        zeros = zeros && !x.other;
        only = &x;
        ++count;
        moves = moves || x.zero_moves || x.other_moves;
      } else {
        moves = moves || x.size().has_value();
      }
    }
    if (zeros) to.other = false;
    if (count == 1) to.zero = to.zero && only->zero;
    if (generic) to.zero = to.other = false;
    to.zero_moves = to.zero && moves;
    to.other_moves = to.other && moves;
    return to;
  }
  Atoms product_of_atoms(const Node& node) const {
    Atoms to;
    for (const std::size_t k : {0u, 1u}) {
      const Order *x = &operand(node, k), *y = &operand(node, 1 - k);
      if (!in_[node.in[k]].type.random()) continue;
      to.zero = to.zero || x->zero;
      to.zero_moves = to.zero_moves || x->zero_moves;
      const bool constant = x->other && y->other;
      to.other = to.other || constant;
      to.other_moves = to.other_moves || (constant && (x->other_moves || y->other_moves));
    }
    return to;
  }
  /// Of sum c d x'.
  Atoms atoms_of_outer_products(const Node& node, MaybeExponent lead) const {
    Atoms to;
    to.zero = true;
    bool others = true, moves = false;
    for (std::size_t k = 0; k < node.in.size(); k += 3) {
      const Order &c = operand(node, k), &d = operand(node, k + 1), &x = operand(node, k + 2);
      if (sum(c.lead, sum(d.lead, x.lead)) != lead) {
        moves = true;
        continue;
      }
      to.zero = to.zero && (d.zero || x.zero);
      others = others && (d.zero || d.other) && (x.zero || x.other);
      to.other = to.other || (d.other && x.other);
      moves = moves || d.zero_moves || x.zero_moves || d.other_moves || x.other_moves;
    }
    to.other = to.other && others;
    to.zero_moves = to.zero && moves;
    to.other_moves = to.other && moves;
    return to;
  }
  /// Numbers that coordinates take with positive probability.
  void find_atoms(const Node& node, Order& order_of_node) const {
    Atoms& to = order_of_node;
    const auto &lead = order_of_node.lead, &dropped = order_of_node.dropped;
    if (node.type.matrix && !node.type.entries) return;
    if (!node.type.random()) {
      // An average that leads equals no other number but by chance; a number does, and 1 + f with
      // an f that vanishes is beside it.
      const auto* values = builder_.constant_values(order_of_node.out);
      const bool known = lead && (!dropped || values);
      to.other = known;
      to.other_moves = known && dropped;
      to.zero = lead ? known && (!values ||
                                 std::find(values->begin(), values->end(), 0.0) != values->end())
                     : true;
      to.zero_moves = dropped && to.zero;
      return;
    }
    const auto any = [&](bool Atoms::*flag) {
      return std::any_of(node.in.begin(), node.in.end(),
                         [&](NodeId id) { return order(id).*flag; });
    };
    static constexpr std::array kFlags{&Atoms::zero, &Atoms::zero_moves, &Atoms::other,
                                       &Atoms::other_moves};
    const auto copy_all = [&] {
      for (const auto flag : kFlags) to.*flag = any(flag);
    };
    const auto none = [] {};  // continuous
    std::visit(overloaded{
                   [&](const StandardNormal&) { none(); },
                   [&](const MatMul&) { none(); },
                   [&](const Contract&) { to = product_of_atoms(node); },
                   [&](const OuterSum&) { to = atoms_of_outer_products(node, lead); },
                   [&](const MatrixEntries&) { none(); },
                   [&](const Map& m) {
                     switch (m.fn) {
                       case Fn::kAdd:
                       case Fn::kSub: to = sum_of_atoms(node); break;
                       case Fn::kMul:
                       case Fn::kDiv: to = product_of_atoms(node); break;
                       case Fn::kStep:
                       case Fn::kSign:
                       case Fn::kLess:
                       case Fn::kLessEqual:
                       case Fn::kEqual:
                       case Fn::kNotEqual: to.zero = to.other = true; break;
                       case Fn::kMod: copy_all(); break;
                       case Fn::kWhere:
                         for (const auto flag : kFlags)
                           to.*flag = operand(node, 1).*flag || operand(node, 2).*flag;
                         break;
                       default:
                         copy_all();
                         if (m.fn == Fn::kRelu) to.zero = true;
                         if (node.in.size() == 1 && m.fn != Fn::kPower &&
                             traits_of(m).at_zero != 0 && (to.zero || to.other)) {
                           to.zero = to.other = true;
                           to.zero_moves = to.other_moves = to.zero_moves || to.other_moves;
                         }
                     }
                   },
                   [&](const Concat&) {
                     copy_all();
                     for (const NodeId id : node.in)
                       if (order(id).size() && order(id).lead != lead)
                         to.zero = to.zero_moves = true;  // these columns are 0 beside the others
                   },
                   [&](const LogSumExp&) {  // of zeros: log k
                     to.zero = to.other = any(&Atoms::zero) || any(&Atoms::other);
                     to.zero_moves = to.other_moves =
                         any(&Atoms::zero_moves) || any(&Atoms::other_moves);
                   },
                   // Sums, copies and other orders.
                   [&](const Scale&) { copy_all(); },
                   [&](const ReduceSum&) { copy_all(); },
                   [&](const ReduceMax&) { copy_all(); },
                   [&](const Gather&) { copy_all(); },
                   [&](const ScatterAdd&) { copy_all(); },
                   [&](const Permute&) { copy_all(); },
                   [&](const Reshape&) { copy_all(); },
                   [&](const Expand&) { copy_all(); },
                   [&](const Stop&) { copy_all(); },
                   [&](const Parameter&) { copy_all(); },
                   [&](const Change&) { copy_all(); },
                   // No coordinates.
                   [&](const Constant&) { none(); },
                   [&](const Average&) { none(); },
                   [&](const Cholesky&) { none(); },
                   [&](const Eigvals&) { none(); },
                   [&](const TrainingOperator&) { none(); },
                   [&](const Solve&) { none(); },
                   [&](const LogDet&) { none(); },
                   [&](const Samples&) { none(); },
                   [&](const Histogram&) { none(); },
                   [&](const GaussianMatrix&) { none(); },
                   [&](const ScaleMatrix&) { none(); },
                   [&](const UpdateMatrix&) { none(); },
                   [&](const AddVersion&) { none(); },
                   [&](const AddEntries&) { none(); },
                   [&](const InnerProduct&) { none(); },
               },
               node.op);
    if (!lead && dropped)
      to.zero = to.zero_moves = true;  // all coordinates, as where leading parts cancel
  }

  Order unary(const Map& op, const Node& node) {
    const Order& x = operand(node, 0);
    const FunctionTraits traits = traits_of(op);
    const bool jump = op.fn == Fn::kStep || op.fn == Fn::kSign;
    if (jump && node.type.random() && x.zero_moves) return reject_jump(op);
    if (!node.type.random() && x.dropped &&
        (op.fn == Fn::kRelu || op.fn == Fn::kLeakyRelu || op.fn == Fn::kAbs))
      follow({x.out}, x.out);
    if (jump && decidable(x, node)) {
      Order to;
      decide(to, {x.out}, x.out);
      to.lead = Exponent(0);
      to.out = builder_.map(op.fn, {x.out}, op.parameter);
      return to;
    }
    Order to;
    to.odd = x.odd;
    to.mixed = x.mixed;
    if (traits.parity == FunctionTraits::Parity::kEven) to.odd = 0;
    // Odd and singular at 0 (1/x): the average need not exist, so symmetry does not prove it zero.
    if (traits.parity == FunctionTraits::Parity::kNone || (traits.degree && *traits.degree < 0))
      no_parity(to);
    if (op.fn == Fn::kExp && growth(node.in[0]).degree > 1 && growth(node.in[0]).above)
      no_symmetry(to);  // of a Gaussian squared, or more
    if (traits.degree && *traits.degree < 0 && vanishes_somewhere(node.in[0])) no_symmetry(to);
    to.positive = traits.positive && x.lead.has_value();
    const auto apply = [&] { return builder_.map(op.fn, {x.out}, op.parameter); };
    const auto constant = [&](double value) {
      return builder_.expand(builder_.constant(value, node.type.dims), node.type.width,
                             node.type.dims);
    };

    if (traits.degree) {
      const Exponent degree = *traits.degree;
      if (x.lead) {
        to.lead = degree * *x.lead;
        if (x.dropped) {
          drop(to, *to.lead + (*x.dropped - *x.lead), x.culprit);
          if (degree > 1 && *x.dropped > *x.lead) drop(to, degree * *x.dropped, x.culprit);
        }
        if (x.spike) {
          const Exponent most = std::max(*x.spike, *x.lead);
          drop(to, *x.dropped + (degree - 1) * most, x.culprit);
          to.spike = *x.spike + (degree - 1) * most;
        }
        if (jump) to.spike.reset(), spikes(to, node, to.lead);
        to.out = apply();
        return to;
      }
      if (degree < 0) {
        reject("E3104", "a negative power of something that vanishes in the limit",
               "the limit divides by 0 here",
               "the theory covers divisors with a nonzero limit only", node.in[0],
               "this is 0 in the limit");
        return {};
      }
      // Nothing but dropped terms: their sign decides a function of degree 0.
      if (x.dropped) drop(to, degree * *x.dropped, x.culprit);
      if (x.spike) {
        drop(to, *x.dropped + (degree - 1) * *x.spike, x.culprit);
        to.spike = degree * *x.spike;
      }
      to.lead = Exponent(0);
      if (jump) to.spike.reset(), spikes(to, node, to.lead);
      to.out = apply();
      return to;
    }
    // On the coordinates of a large rest, a bounded function is bounded; others may be anything.
    const auto inherit_spike = [&] {
      if (!x.spike) return;
      if (is_bounded(op)) {
        to.spike = std::min(*x.spike, Exponent(0));
      } else {
        to.spike = x.spike;
        if (*x.spike > 0 && op.fn == Fn::kExp) drop(to, Exponent(0), x.culprit);
      }
    };
    if (!traits.finite_everywhere) {
      if (!x.lead || *x.lead != 0) {
        reject("E3105", fmt::format("'{}' needs an argument of size 1", written(op.fn)),
               x.lead ? fmt::format("the argument has size {}", power(*x.lead))
                      : "the argument vanishes in the limit",
               "scale the argument by a power of the width first");
        return {};
      }
    }
    if (x.lead && *x.lead > 0) {
      reject(
          "E3103", fmt::format("the argument of '{}' explodes", name(op.fn)),
          fmt::format("it grows like {}", power(*x.lead)),
          "scale the initial variance, the multiplier or the learning rate by a power of the width",
          growth_of(node.in[0]), "it exceeds size 1 here");
      return {};
    }
    if (x.dropped && *x.dropped > 0 && !is_bounded(op)) {
      if (!error_) reason_ = NoLeadingOrder::kDroppedTerms;
      reject("E3102", fmt::format("the argument of '{}' may explode", name(op.fn)),
             fmt::format("a term dropped on the way may have size {} here", power(*x.dropped)),
             "the limit engine carries leading orders only", node.in[0],
             "the argument, of which terms were dropped");
      return {};
    }
    if (x.lead && *x.lead == 0) {
      to.lead = Exponent(0);
      inherit(to, x, Exponent(0));
      inherit_spike();
      to.out = apply();
      return to;
    }
    // The argument vanishes: phi(n^e h) = phi(0) + n^e phi'(0) h + ..
    if (traits.at_zero != 0 || !x.lead) {
      to.lead = Exponent(0);
      to.odd = to.mixed = 0;
      drop(to, x.size(), x.lead ? current_ : x.culprit);
      inherit_spike();
      to.out = constant(traits.at_zero);
      return to;
    }
    to.lead = x.lead;
    inherit(to, x, Exponent(0));
    inherit_spike();
    drop(to, 2 * *x.lead, current_);
    to.odd = x.odd;
    to.mixed = x.mixed;
    // elu is linear on either side only
    to.out = op.fn == Fn::kElu && op.parameter != 1
                 ? builder_.map(Fn::kLeakyRelu, {x.out}, op.parameter)
                 : builder_.scale(traits.slope_at_zero, 0, x.out);
    if (op.fn == Fn::kElu && op.parameter != 1) no_parity(to);
    return to;
  }

  Order visit(const Contract& op, const Node& node) {
    const Order &a = operand(node, 0), &b = operand(node, 1);
    Order to = product(a, b);
    if (node.in[0] == node.in[1]) to.positive = false;
    to.out = builder_.add(op, {a.out, b.out});
    if (op.average) averaged(to);
    return to;
  }
  Order visit(const Average& op, const Node& node) {
    Order to = operand(node, 0);
    to.out = builder_.add(op, {to.out});
    averaged(to);
    return to;
  }
  Order same_size(const Op& op, const Node& node) {
    Order to = operand(node, 0);
    to.out = builder_.add(op, {to.out});
    return to;
  }
  Order visit(const ReduceSum& op, const Node& node) { return same_size(op, node); }
  Order visit(const ReduceMax& op, const Node& node) {
    Order to = same_size(op, node);
    if (!node.type.width && to.dropped) follow({operand(node, 0).out}, {});
    no_parity(to);
    to.positive = false;
    return to;
  }
  /// Smooth, and moved by no more than its argument: what is left out stays of its size.
  Order visit(const LogSumExp& op, const Node& node) {
    const Order& x = operand(node, 0);
    if (x.lead && *x.lead > 0) {
      reject("E3103", "the argument of 'logsumexp' or 'softmax' explodes",
             fmt::format("it grows like {}", power(*x.lead)),
             "scale the initial variance, the multiplier or the learning rate by a power of the "
             "width",
             growth_of(node.in[0]), "it exceeds size 1 here");
      return {};
    }
    Order to{.lead = Exponent(0)};
    inherit(to, x, Exponent(0));
    to.spike = x.spike;
    if (x.lead && *x.lead == 0) {
      to.odd = x.odd;
      to.mixed = x.mixed;
      no_parity(to);
      to.out = builder_.add(op, {x.out});
    } else {
      drop(to, x.lead, current_);
      to.out = builder_.add(op, {zero_like(in_[node.in[0]].type)});
    }
    return to;
  }
  Order visit(const Gather& op, const Node& node) { return same_size(op, node); }
  Order visit(const ScatterAdd& op, const Node& node) {
    Order to = same_size(op, node);
    to.positive = false;
    return to;
  }
  Order visit(const Permute& op, const Node& node) { return same_size(op, node); }
  Order visit(const Reshape& op, const Node& node) { return same_size(op, node); }
  Order visit(const Expand& op, const Node& node) { return same_size(op, node); }
  Order visit(const Stop& op, const Node& node) { return same_size(op, node); }
  Order visit(const Parameter& op, const Node& node) { return same_size(op, node); }
  Order visit(const Change& op, const Node& node) { return same_size(op, node); }
  Order visit(const Concat& op, const Node& node) {
    Order to;
    const auto kept = keep_largest(to, node);
    to.out = builder_.add(op, kept);
    if (to.out.valid() && builder_.type(to.out) != node.type)
      to.out = builder_.expand(to.out, node.type.width, node.type.dims);
    return to;
  }
  Order visit(const MatMul& op, const Node& node) {
    const Order& w = operand(node, 0);
    Order x = operand(node, 1);
    x.dropped = x.rms();  // the product is Gaussian, of variance E x^2
    x.spike.reset();
    Order to = product(w, x);
    to.positive = false;
    drop(to, sum(to.lead, Exponent(-1, 2)), current_);  // its inner averages fluctuate
    to.out = w.lead ? builder_.add(op, {w.out, x.out}) : zero_like(node.type);
    return to;
  }
  Order visit(const GaussianMatrix& op, const Node&) {
    Order to{.lead = Exponent(0)};
    family(to, op.source);
    to.out = builder_.add(op, {});
    return to;
  }
  Order visit(const ScaleMatrix& op, const Node& node) {
    const Order &w = operand(node, 0), &c = operand(node, 1);
    Order to = product(w, c);
    to.positive = false;
    to.out = builder_.add(op, {w.out, c.out});
    return to;
  }
  /// c d x', as the leading coefficients of the terms with the largest order; the operands of those
  /// are appended to `in`.
  std::vector<Order> outer_products(const Node& node, std::size_t first) {
    std::vector<Order> terms;
    for (std::size_t k = first; k < node.in.size(); k += 3)
      terms.push_back(
          product(product(operand(node, k), operand(node, k + 1)), operand(node, k + 2)));
    return terms;
  }
  /// to + terms; the operands of those that lead are appended to `in`.  fresh: nothing of `to`
  /// leads.
  void add_outer_products(Order& to, bool fresh, const std::vector<Order>& terms, const Node& node,
                          std::size_t first, std::vector<NodeId>& in) const {
    for (std::size_t k = 0; k < terms.size(); ++k) {
      const Order& term = terms[k];
      inherit(to, term, Exponent(0));
      if (!term.lead || *term.lead != *to.lead) {
        drop(to, term.lead, current_);
        continue;
      }
      for (std::size_t j = 0; j < 3; ++j) in.push_back(operand(node, 3 * k + first + j).out);
      if (std::exchange(fresh, false)) {
        to.odd = term.odd;
        to.mixed = term.mixed;
      } else {
        join_parity(to, term);
      }
    }
  }
  Order visit(const UpdateMatrix& op, const Node& node) {
    const Order& w = operand(node, 0);
    // Entries of c d x'/n beside entries of size n^(-1/2) of W: relative to W's order 0, a term has
    // the order of c d x.
    const std::vector<Order> terms = outer_products(node, 1);
    Order to = w;
    for (const Order& term : terms) to.lead = larger(to.lead, term.lead);
    std::vector<NodeId> in{w.out};
    const bool fresh = leads_alone(to, w, in[0]);
    add_outer_products(to, fresh, terms, node, 1, in);
    to.out = builder_.add(op, std::move(in));
    return to;
  }
  Order visit(const OuterSum& op, const Node& node) {
    const std::vector<Order> terms = outer_products(node, 0);
    Order to;
    for (const Order& term : terms) to.lead = larger(to.lead, term.lead);
    std::vector<NodeId> in;
    add_outer_products(to, true, terms, node, 0, in);
    to.out = builder_.add(op, std::move(in));
    return to;
  }
  /// Order 0 of a matrix stands for entries of size n^(-1/2).
  Order visit(const MatrixEntries& op, const Node& node) {
    const Order& w = operand(node, 0);
    Order to = w;
    to.lead = sum(w.lead, Exponent(-1, 2));
    to.positive = false;
    to.out = builder_.add(op, {w.out});
    return to;
  }
  /// Of one Gaussian matrix with itself 1, of others, as expand_inner_products leaves them, no more
  /// than what is dropped.
  Order visit(const InnerProduct&, const Node& node) {
    const Order &a = operand(node, 0), &b = operand(node, 1);
    Order to;
    const MaybeExponent size = sum(a.most(), b.most());
    if (node.in[0] == node.in[1] && std::holds_alternative<GaussianMatrix>(in_[node.in[0]].op)) {
      to.lead = Exponent(0);
      to.positive = true;
    }
    drop(to, sum(size, Exponent(-1)), current_);
    to.out = builder_.constant(to.lead ? 1 : 0);
    return to;
  }
  Order visit(const AddEntries& op, const Node& node) {
    Order term = product(operand(node, 1), operand(node, 2));
    term.dropped = term.rms();  // products average over its entries
    term.spike.reset();
    return added(op, node, term);
  }
  Order visit(const AddVersion& op, const Node& node) {
    return added(op, node, product(operand(node, 1), operand(node, 2)));
  }
  /// W + term, the product of the other operands.
  Order added(const Op& op, const Node& node, const Order& term) {
    const Order& w = operand(node, 0);
    Order to = w;
    to.positive = false;
    to.lead = larger(to.lead, term.lead);
    std::vector<NodeId> in{w.out};
    const bool fresh = leads_alone(to, w, in[0]);
    inherit(to, term, Exponent(0));
    if (!term.lead || *term.lead != *to.lead) {
      drop(to, term.lead, current_);
      to.out = in[0];
      return to;
    }
    in.insert(in.end(), {operand(node, 1).out, operand(node, 2).out});
    if (fresh) {
      to.odd = term.odd;
      to.mixed = term.mixed;
    } else {
      join_parity(to, term);
    }
    to.out = builder_.add(op, std::move(in));
    return to;
  }
  /// W is negligible beside an update that has made the order of `to`.
  bool leads_alone(Order& to, const Order& w, NodeId& out) {
    if (w.lead == to.lead) return false;
    drop(to, w.lead, current_);
    out = builder_.add(ScaleMatrix{}, {w.out, builder_.constant(0)});
    return true;
  }
  Order visit(const Cholesky&, const Node&) {
    TPLIMIT_CHECK(false, "factors stand in limit programs only");
    return {};
  }
  Order visit(const Eigvals& op, const Node& node) { return same_size(op, node); }
  Order visit(const TrainingOperator& op, const Node& node) {
    Order to;
    const auto kept = keep_largest(to, node);
    if (to.lead && *to.lead > 0) {
      reject("E3103", "a kernel of 'predict_gd' explodes",
             fmt::format("it grows like {}", power(*to.lead)),
             "scale the kernel by a power of the width first");
      return {};
    }
    no_parity(to);
    to.positive = false;
    to.out = builder_.add(op, kept);
    return to;
  }
  Order visit(const Solve& op, const Node& node) {
    const Order &a = operand(node, 0), &y = operand(node, 1);
    if (!a.lead) {
      reject("E3104", "a matrix of linear equations vanishes in the limit",
             "the limit has no solution here",
             "the theory covers matrices with a limit that can be inverted", node.in[0],
             "this is 0 in the limit");
      return {};
    }
    Order to = product(y, inverse(a));
    to.positive = false;
    to.out = builder_.add(op, {a.out, y.out});
    return to;
  }
  Order visit(const LogDet& op, const Node& node) {
    Order to = operand(node, 0);
    if (!to.lead || *to.lead != 0) {
      reject("E3105", "'logdet' needs a matrix of size 1",
             to.lead ? fmt::format("it has size {}", power(*to.lead)) : "it is 0 in the limit",
             "scale the matrix by a power of the width first");
      return {};
    }
    no_parity(to);
    to.positive = false;
    to.out = builder_.add(op, {to.out});
    return to;
  }
  Order visit(const Samples& op, const Node& node) {
    Order to = same_size(op, node);
    to.odd = to.mixed = 0;
    to.positive = false;
    return to;
  }
  Order visit(const Histogram& op, const Node& node) {
    const Order& x = operand(node, 0);
    if (x.lead && *x.lead > 0) {
      reject("E3103", "the argument of 'hist' explodes",
             fmt::format("it grows like {}", power(*x.lead)),
             "scale the argument by a power of the width first");
      return {};
    }
    Order to{.lead = Exponent(0)};
    const bool vanishes = !x.lead || *x.lead < 0;
    inherit(to, x, Exponent(0));
    if (vanishes) drop(to, x.lead, current_);
    drop(to, Exponent(-1, 2), current_);
    to.out = builder_.add(
        op, {vanishes ? builder_.expand(builder_.constant(0, in_[node.in[0]].type.dims), true,
                                        in_[node.in[0]].type.dims)
                      : x.out});
    return to;
  }

  // ---- outputs
  /// Where the size of an output first exceeds 1, walking back along the largest operand.
  NodeId growth_of(NodeId id) const {
    for (;;) {
      const Node& node = in_[id];
      // The initial size of a matrix is the matrix's own.
      if (std::holds_alternative<ScaleMatrix>(node.op) &&
          std::holds_alternative<GaussianMatrix>(in_[node.in[0]].op))
        return id;
      NodeId next;
      for (const NodeId in : node.in) {
        const Order& x = order(in);
        if (x.lead && *x.lead > 0 && (!next.valid() || *x.lead > *order(next).lead)) next = in;
      }
      if (!next.valid()) return id;
      id = next;
    }
  }

  static bool explodes(const Order& x) { return x.lead && *x.lead > 0; }

  std::optional<Diagnostic> check_output(NodeId id, Span span, const std::string& what,
                                         const std::string& iteration) const {
    const Order& x = order(id);
    const auto where = [&](NodeId culprit) {
      const Node& node = in_[culprit];
      return node.context ? fmt::format(" (in the iteration {})", in_.contexts[node.context])
                          : std::string();
    };
    if (explodes(x)) {
      Diagnostic d = faults::explodes(
          what, span,
          fmt::format("of size {}{}{}", power(*x.lead),
                      x.positive ? "" : " unless its leading coefficient happens to vanish",
                      iteration));
      const NodeId culprit = growth_of(id);
      if (in_[culprit].span != span)
        d.notes.push_back(
            {(in_[culprit].type.matrix ? kLargeMatrix : "it exceeds size 1 here") + where(culprit),
             in_[culprit].span});
      return d;
    }
    if (x.dropped && *x.dropped >= 0) {
      const Node& culprit = in_[x.culprit];
      const bool fluctuation = is_output_of_average(culprit);
      const bool gaussian = fluctuates(x);
      Diagnostic d = faults::depends_on_dropped(
          what, span, power(*x.dropped), iteration,
          gaussian ? "its limit is random. Where it is linear in a Gaussian readout, report "
                     "the output itself: its covariance is shown; its training: ntk, predict_gd"
                   : "the limit engine carries leading orders only; fluctuations and "
                     "corrections of relative size n^(-1/2) are not followed");
      d.notes.push_back({(fluctuation ? "dropped here: the fluctuation of an average, n^(-1/2) "
                                        "times the size of its terms"
                                      : "dropped here: a term smaller than the one beside it") +
                             where(x.culprit),
                         culprit.span});
      return d;
    }
    return std::nullopt;
  }
  /// n^(-1/2) times a centred sum is all that is missing.
  [[nodiscard]] bool fluctuates(const Order& x) const {
    return x.dropped && *x.dropped == 0 && (!x.lead || *x.lead <= 0) &&
           is_output_of_average(in_[x.culprit]);
  }
  static bool is_output_of_average(const Node& node) {
    const auto* c = std::get_if<Contract>(&node.op);
    return std::holds_alternative<Average>(node.op) || std::holds_alternative<MatMul>(node.op) ||
           std::holds_alternative<Histogram>(node.op) || (c && c->average);
  }

  /// The limit of an output: its leading coefficient if its size is 1, else 0.
  NodeId limit_of(NodeId id) {
    const Order& x = order(id);
    return x.lead && *x.lead == 0 ? x.out : zero_like(in_[id].type);
  }

  /// The first node behind the roots of which `is(node)` holds.
  template <class Is>
  static const Node* first_behind(const Program& program, const std::vector<NodeId>& roots, Is is) {
    std::vector<bool> needed(program.size(), false);
    for (const NodeId id : roots) needed[id.value] = true;
    const Node* first = nullptr;
    for (std::size_t k = program.size(); k-- > 0;) {
      if (!needed[k]) continue;
      const Node& node = program.nodes[k];
      if (is(node)) first = &node;
      for (const NodeId in : node.in) needed[in.value] = true;
    }
    return first;
  }
  /// One whose value is the entries of a matrix.
  static const Node* entries_of_matrices(const Program& program, const std::vector<NodeId>& roots) {
    return first_behind(program, roots, [](const Node& node) {
      return std::holds_alternative<MatrixEntries>(node.op);
    });
  }
  /// sqrt(v) + eps of an entrywise optimiser, where eps alone is left.
  const Node* lonely_eps(const std::vector<NodeId>& roots) {
    return first_behind(in_, roots, [&](const Node& node) {
      const auto* sum = std::get_if<Map>(&node.op);
      if (!sum || sum->fn != Fn::kAdd) return false;
      const std::size_t eps = is_scaled_constant(node.in[0]) ? 0 : 1;
      const auto* root = std::get_if<Map>(&in_[node.in[1 - eps]].op);
      const auto a = order(node.in[1 - eps]).size(), &b = order(node.in[eps]).lead;
      return root && root->fn == Fn::kSqrt && is_scaled_constant(node.in[eps]) && a && b && *a < *b;
    });
  }
  [[nodiscard]] bool is_scaled_constant(NodeId id) const {
    while (std::holds_alternative<Scale>(in_[id].op)) id = in_[id].in[0];
    return std::holds_alternative<Constant>(in_[id].op);
  }
  Diagnostic eps_decides(const Node& node) {
    Diagnostic out =
        Diagnostic::warning("W5305", "'eps' alone is left of sqrt(v) + eps in the limit")
            .at(node.span);
    const Order& gradient = order(node.in[is_scaled_constant(node.in[0]) ? 1 : 0]);
    if (!gradient.lead)  // leading parts cancel, as those of outputs that are 0 at first
      return std::move(out)
          .with_label(fmt::format("gradients that are 0 in the limit, and of size {} in networks",
                                  power(*gradient.dropped)))
          .with_help(
              "networks of all widths that can be run divide by these gradients, not by eps, and "
              "move as by signsgd: they are far from this limit until gradients fall below eps");
    return std::move(out)
        .with_label(fmt::format("gradients of size {} vanish beside eps of size {}",
                                power(std::min(*order(node.in[0]).lead, *order(node.in[1]).lead)),
                                power(std::max(*order(node.in[0]).lead, *order(node.in[1]).lead))))
        .with_help(
            "as written, updates become those of plain descent with rate lr / eps; give eps the "
            "power of the gradient, eps = 1e-8 / n or eps = {U: 1e-8 / n}, and the rate of each "
            "`param` that of its entries, or write `parametrization mup`");
  }
  /// x + c under a root, a power or a fraction, where the small constant c alone is left: networks
  /// know nothing of it before x falls below.
  const Node* small_constant_left(const std::vector<NodeId>& roots) const {
    const auto is_left = [&](NodeId id) {
      const auto* sum = std::get_if<Map>(&in_[id].op);
      if (!sum || sum->fn != Fn::kAdd) return false;
      const std::size_t c = largest_constant(in_[id].in[0]) ? 0 : 1;
      const auto constant = largest_constant(in_[id].in[c]);
      const auto x = order(in_[id].in[1 - c]).size();
      return constant && *constant > 0 && *constant <= kSmallConstant && x && *x < 0;
    };
    return first_behind(in_, roots, [&](const Node& node) {
      const auto* map = std::get_if<Map>(&node.op);
      if (!map) return false;
      const bool fraction = map->fn == Fn::kDiv;
      const bool steep = map->fn == Fn::kSqrt || map->fn == Fn::kLog ||
                         (map->fn == Fn::kPower && map->parameter < 1);
      return (fraction || steep) && is_left(node.in[fraction ? 1 : 0]);
    });
  }
  /// |c| of a constant c, or of c n^0.
  [[nodiscard]] std::optional<double> largest_constant(NodeId id) const {
    double factor = 1;
    while (const auto* scale = std::get_if<Scale>(&in_[id].op)) {
      if (scale->power != 0) return std::nullopt;
      factor *= std::abs(scale->factor);
      id = in_[id].in[0];
    }
    const auto* constant = std::get_if<Constant>(&in_[id].op);
    if (!constant) return std::nullopt;
    double largest = 0;
    for (const double x : *constant->values) largest = std::max(largest, std::abs(x));
    return factor * largest;
  }
  [[nodiscard]] Diagnostic constant_decides(const Node& node) const {
    const Node& sum = in_[node.in[std::get<Map>(node.op).fn == Fn::kDiv ? 1 : 0]];
    const std::size_t c = largest_constant(sum.in[0]) ? 0 : 1;
    Diagnostic out =
        Diagnostic::warning("W5307", fmt::format("of x + {:g} the constant alone is left in the "
                                                 "limit",
                                                 *largest_constant(sum.in[c])))
            .at(node.span)
            .with_label(fmt::format("x is 0 in the limit, and of size {} in networks",
                                    power(*order(sum.in[1 - c]).size())))
            .with_help(
                "networks come near this limit only where x falls below the constant; a larger "
                "constant, or values that do not vanish at the start, is seen by both");
    if (node.context)
      out.notes.push_back({"in the iteration " + in_.contexts[node.context], node.span});
    return out;
  }
  /// In a limit, entries of a Gaussian matrix are no function of its products.
  static Diagnostic entries_stay(const Program& limit, const Node& node) {
    Diagnostic error =
        Diagnostic::error("E3109",
                          "the entries of a matrix, of size n^(-1/2), do not vanish beside those "
                          "of its gradient")
            .at(node.span)
            .with_label("'weight_decay', or a norm of the matrix in the loss, adds them")
            .with_help(
                "write adamw, which shrinks the matrix, a decay that falls faster with the width, "
                "or weight_decay = {..} for other parameters");
    if (node.context)
      error.notes.push_back({"in the iteration " + limit.contexts[node.context], node.span});
    return error;
  }
  static Diagnostic entries_vanish(const Node& node) {
    return Diagnostic::warning(
               "W5304",
               "a multiple of a width matrix, added to its gradient, vanishes in the limit")
        .at(node.span)
        .with_label(
            "entries of size n^(-1/2), of 'weight_decay' or of a norm in the loss, vanish beside "
            "those of the gradient")
        .with_help("the decay of adamw shrinks the matrix itself, in the limit as well");
  }

  /// Coordinates or matrices are computed from one of these numbers.
  [[nodiscard]] bool reaches_coordinates(const std::vector<NodeId>& from) const {
    if (from.empty()) return false;
    std::vector<bool> reached(in_.size(), false);
    for (const NodeId id : from) reached[id.value] = true;
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const Node& node = in_.nodes[k];
      reached[k] = reached[k] || std::any_of(node.in.begin(), node.in.end(),
                                             [&](NodeId in) { return reached[in.value]; });
      if (reached[k] && (node.type.random() || node.type.matrix)) return true;
    }
    return false;
  }
  LeadingOrderResult finish(bool keep_names) {
    LeadingOrder result;
    Diagnostics errors;
    const std::vector<NodeId> wanted = outputs_of(in_);
    std::vector<NodeId> limits;
    for (const NodeId id : wanted) limits.push_back(order(id).out);
    if (const Node* node = entries_of_matrices(out_, limits))
      return Refusal<NoLeadingOrder>{NoLeadingOrder::kOther, {entries_stay(in_, *node)}};
    if (const Node* node = entries_of_matrices(in_, wanted))
      result.warnings.push_back(entries_vanish(*node));
    if (const Node* node = lonely_eps(wanted))
      result.warnings.push_back(eps_decides(*node));
    else if (const Node* found = small_constant_left(wanted))
      result.warnings.push_back(constant_decides(*found));
    const KnownLimits known{[this](auto&&... output) { return check_output(output...); },
                            [this](NodeId id) { return order(id).lead; },
                            [this](NodeId id) { return limit_of(id); }};
    for (auto& [id, error] : limit_outputs(in_, out_, builder_, known, result)) {
      if (errors.empty())
        reason_ = explodes(order(id)) ? NoLeadingOrder::kOther : NoLeadingOrder::kDroppedTerms;
      errors.push_back(std::move(error));
    }
    if (!errors.empty()) return Refusal<NoLeadingOrder>{reason_, std::move(errors)};
    out_.steps = in_.steps;
    for (TrainingStep& step : out_.steps)
      for (NodeId& loss : step.losses) loss = order(loss).out;
    const auto keep = [&](const std::vector<NamedValue>& from, std::vector<NamedValue>& to) {
      for (NamedValue value : from) {
        const Order& x = order(value.value);
        if (x.lead && x.dropped && *x.dropped >= *x.lead) continue;  // its limit is not known
        if (x.lead) value.order = *x.lead;
        value.value = x.out;
        if (value.of.valid()) value.of = order(value.of).out;
        to.push_back(std::move(value));
      }
    };
    keep(in_.names, out_.names);
    keep(in_.predictions, out_.predictions);
    hold_decisions(out_, decisions_);
    result.program =
        erase_identities(out_, keep_names);  // what was replaced by zeros is needed no more
    release_decisions(result, in_, std::move(decisions_));
    result.undecided = !undecided_.empty();
    result.undecided_moves = reaches_coordinates(undecided_);
    return result;
  }

  const Program& in_;
  std::vector<std::optional<Growth>> growth_;  ///< by node
  Program out_;
  Builder builder_;
  std::vector<Order> orders_;
  std::vector<Decision> decisions_;
  std::vector<NodeId> undecided_;
  bool jumps_ = false;  ///< one of the decisions is about a jump
  std::optional<Diagnostic> error_;
  NoLeadingOrder reason_ = NoLeadingOrder::kOther;  ///< of the first error
  NodeId current_;
};

}  // namespace

LeadingOrderResult leading_order(const Program& program, bool keep_names) {
  return Analysis(program).run(keep_names);
}
std::vector<bool> fluctuating_reports(const Program& program) {
  return Analysis(program).fluctuating_reports();
}

}  // namespace tplimit
