#include "tplimit/passes/graded.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/faults.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/passes/limit_outputs.hpp"
#include "tplimit/passes/matrix_algebra.hpp"
#include "tplimit/passes/powers.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

using Sum = PartSums::Id;
const std::uint64_t kOutputWord = mix_key(0x6f7574707574ULL, 1);

/// n^order times a coefficient of the limit program.
struct Term {
  Exponent order;
  NodeId out;
  Parity scalar, vector;
  // Initial vectors (the first 64) that its coordinates hold, and those in which it is linear and
  // homogeneous: only their means can be random numbers that are drawn.
  std::uint64_t holds = 0, linear = 0;
  [[nodiscard]] Part part() const { return {order, 0, scalar, vector}; }
};

/// A value as a short series and a bound on the rest.
struct Series {
  std::vector<Term> terms;  ///< orders descend
  Sum dropped = 0;
  NodeId culprit;  ///< in the input program: where the largest dropped part was left out
  MaybeExponent
      spike{};  ///< of a rest of functions that jump (rms_of_spikes); empty: there is none
};

class Grading {
 public:
  Grading(const Program& program, const GradedOptions& options)
      : in_(program), options_(options), out_(without_nodes(program)), b_(out_) {}

  Result<LeadingOrder> run() {
    series_.resize(in_.size());
    find_given();
    for (const NodeId source : readout_candidates(in_))
      readout_sources_.push_back(source_at(in_[source].op));
    // What is given comes before all else that is random.
    for (const bool first : {true, false})
      for (std::uint32_t k = 0; k < in_.size() && !error_; ++k) {
        if (first != (target_.valid() && behind_target_[k])) continue;
        current_ = {k};
        const Node& node = in_.nodes[k];
        b_.set_origin(node.span, node.context);
        if (node.type.matrix)
          matrix_step(node);
        else
          series_[k] =
              spiked(node, std::visit([&](const auto& op) { return visit(op, node); }, node.op));
        if (current_ == target_ && !error_) check_given();
      }
    if (error_) return *error_;
    return finish();
  }

  /// What the given value has beside the random number: a constant.  To be taken off before the
  /// number is set.
  [[nodiscard]] const std::optional<std::vector<double>>& beside() const { return beside_; }

 private:
  // ---- given values
  void refuse_given(std::string message, Span span, bool located = true) {
    if (!error_) error_ = faults::cannot_be_given(std::move(message)).at_if(located, span);
  }
  void find_given() {
    if (!options_.given) return;
    for (const NamedValue& named : in_.names)
      if (named.name == options_.given->name && named.kind == NamedValue::Kind::kValue &&
          (!target_.valid() || named.value < target_))
        target_ = named.value;
    if (!target_.valid())
      return refuse_given(fmt::format("no value '{}' reaches a report", options_.given->name), {},
                          false);
    behind_target_.assign(in_.size(), false);
    behind_target_[target_.value] = true;
    for (std::size_t k = in_.size(); k-- > 0;)
      if (behind_target_[k])
        for (const NodeId in : in_.nodes[k].in) behind_target_[in.value] = true;
  }
  /// Stands for the random number that the target is.
  NodeId given_number(const Type& type) {
    const auto size = static_cast<std::size_t>(size_of(type.dims));
    std::vector<double> values = options_.given->values;
    if (values.size() == 1) values.assign(size, values[0]);
    if (values.size() != size) {
      refuse_given(fmt::format("'{}' has {} entries, given are {}", options_.given->name, size,
                               values.size()),
                   in_[target_].span);
      values.assign(size, 0);
    }
    return given_ = b_.add(Parameter{0}, {b_.constant(std::move(values), type.dims)});
  }
  void check_given() {
    const Series& x = series_[target_.value];
    const NodeId out = x.terms.empty() ? NodeId{} : x.terms[0].out;
    if (!given_.valid() || !out.valid() || x.terms[0].order != 0)
      return refuse_given(fmt::format("'{}' is not random in the limit", options_.given->name),
                          in_[target_].span);
    if (out == given_) return;
    const auto* map = std::get_if<Map>(&b_.node(out).op);
    if (map && map->fn == Fn::kAdd)
      for (const std::size_t k : {0u, 1u})
        if (b_.node(out).in[k] == given_)
          if (const auto* values = b_.constant_values(b_.node(out).in[1 - k])) {
            beside_ = *values;
            return;
          }
    refuse_given(fmt::format("'{}' is not one random output plus a constant", options_.given->name),
                 in_[target_].span);
  }

  // ---- series
  [[nodiscard]] const Series& operand(const Node& node, std::size_t k) const {
    return series_[node.in[k].value];
  }
  [[nodiscard]] Sum kept(const Series& s, std::size_t first = 0) {
    Sum out = 0;
    for (std::size_t k = first; k < s.terms.size(); ++k)
      out = parts_.plus(out, parts_.one(s.terms[k].part()));
    return out;
  }
  [[nodiscard]] Sum all(const Series& s) { return parts_.plus(kept(s), s.dropped); }
  /// Of the largest coordinates.
  [[nodiscard]] std::optional<Exponent> most(const Series& s) {
    return larger(parts_.size(all(s)), s.spike);
  }
  /// Of no symmetry.
  [[nodiscard]] Sum anything(Exponent size) {
    const std::uint64_t any = ~std::uint64_t{0};
    return parts_.without_parity(parts_.one({size, 0, {0, any}, {0, any}}));
  }
  /// What multiplies the rest of x: where that is large, s may be as large as it gets.
  [[nodiscard]] Sum times_rest_of(const Series& x, const Series& s) {
    return s.spike && x.spike ? parts_.plus(all(s), anything(*s.spike)) : all(s);
  }
  // Of a rest with spikes: a moment, n^(dropped + more), and n^power times its root mean square.
  void drop_spikes(Series& to, const Series& x, Exponent more) {
    if (const auto size = parts_.size(x.dropped); x.spike && size)
      drop(to, anything(*size + more), x.culprit);
  }
  void drop_rms(Series& to, const Series& x, Exponent power) {
    if (const auto size = parts_.size(x.dropped); x.spike && size)
      drop(to, anything(rms_of_spikes(*size, *x.spike) + power), x.culprit);
  }
  /// Its spikes, where the operation has not said: those of its operands, and its own jumps.
  Series spiked(const Node& node, Series out) {
    if (!node.type.width || out.dropped == 0) {
      out.spike.reset();
      return out;
    }
    const auto* map = std::get_if<Map>(&node.op);
    const bool said = std::holds_alternative<MatMul>(node.op) ||
                      std::holds_alternative<Scale>(node.op) ||
                      std::holds_alternative<Contract>(node.op) ||
                      (map && (node.in.size() == 1 || map->fn == Fn::kMul));
    // Where the branches meet, nothing jumps.
    const bool where = map && map->fn == Fn::kWhere, meets = where && branches_meet(node);
    std::optional<Exponent> height = where ? std::nullopt : std::optional<Exponent>(0);
    for (std::size_t k = where ? 1 : 0; k < node.in.size(); ++k) {
      if (!said) out.spike = larger(out.spike, operand(node, k).spike);
      if (where) height = larger(height, most(operand(node, k)));
    }
    if (is_jump(node) && !meets) out.spike = larger(out.spike, height);
    return out;
  }
  void drop(Series& to, Sum parts, NodeId culprit) {
    if (parts == 0) return;
    const auto before = parts_.size(to.dropped), now = parts_.size(parts);
    if (!before || *now > *before) to.culprit = culprit;
    to.dropped = parts_.plus(to.dropped, parts);
  }
  void inherit(Series& to, const Series& from, Sum factor) {
    drop(to, parts_.times(from.dropped, factor), from.culprit);
  }

  NodeId shaped(NodeId out, const Type& type) {
    return b_.type(out) == type ? out : b_.expand(out, type.width, type.dims);
  }

  /// Terms of one order are added, zeros left out, and what lies below the depth dropped.
  Series gather(std::vector<Term> terms, const Type& type, Series rest = {}) {
    std::stable_sort(terms.begin(), terms.end(),
                     [](const Term& a, const Term& b) { return a.order > b.order; });
    for (Term& t : terms) {
      t.out = shaped(t.out, type);
      if (b_.is_zero(t.out)) continue;
      if (!rest.terms.empty() && rest.terms.back().order == t.order) {
        Term& same = rest.terms.back();
        same.out = together(same.out, t.out);
        same.scalar = joint(same.scalar, t.scalar);
        same.vector = joint(same.vector, t.vector);
        same.holds |= t.holds;
        same.linear &= t.linear;
        if (b_.is_zero(same.out)) rest.terms.pop_back();
      } else if (!rest.terms.empty() && t.order < rest.terms.front().order - options_.depth) {
        drop(rest, parts_.one(t.part()), current_);
      } else {
        rest.terms.push_back(t);
      }
    }
    return rest;
  }
  /// a + b.  Where both are one linear function of different finite values, that function of their
  /// sum: updates under a fixed kernel, c_s d x' with the same d and x in every step, stay one
  /// term.
  NodeId together(NodeId a, NodeId b) {
    tries_ = 256;  // of sums of sums all pairs would be tried
    const auto joined = b_.type(a) == b_.type(b) ? combined(a, 1, b, 1) : std::nullopt;
    return joined ? *joined : b_.plus(a, b);
  }
  /// p a + q b as such a function; both are of one type.
  std::optional<NodeId> combined(NodeId a, double p, NodeId b, double q) {
    if (tries_ == 0 || --tries_ == 0) return std::nullopt;
    for (auto [id, factor] : {std::pair{&a, &p}, std::pair{&b, &q}})
      if (const auto* s = std::get_if<Scale>(&b_.node(*id).op); s && s->power == 0) {
        *factor *= s->factor;
        *id = b_.node(*id).in[0];
      }
    if (a == b) return b_.scale(p + q, 0, a);
    const Node x = b_.node(a), y = b_.node(b);  // copies: the program grows
    if (!x.type.width) return b_.plus(b_.scale(p, 0, a), b_.scale(q, 0, b));
    const auto same_types = [&] {
      for (std::size_t k = 0; k < x.in.size(); ++k)
        if (b_.type(x.in[k]) != b_.type(y.in[k])) return false;
      return true;
    };
    const auto is = [](const Node& node, Fn fn) {
      const auto* m = std::get_if<Map>(&node.op);
      return m && m->fn == fn;
    };
    if (is(y, Fn::kAdd) && b_.type(y.in[0]) == y.type && b_.type(y.in[1]) == y.type)
      for (const std::size_t k : {0u, 1u})
        if (const auto part = combined(a, p, y.in[k], q)) {
          const auto both = combined(*part, 1, y.in[1 - k], q);
          return both ? *both : b_.plus(*part, b_.scale(q, 0, y.in[1 - k]));
        }
    if (is(x, Fn::kAdd))
      for (const std::size_t k : {1u, 0u}) {
        if (b_.type(x.in[0]) != x.type || b_.type(x.in[1]) != x.type) break;
        if (const auto part = combined(x.in[k], p, b, q))
          return b_.plus(b_.scale(p, 0, x.in[1 - k]), *part);
      }
    const auto rebuilt = [&](std::size_t k, std::optional<NodeId> part) -> std::optional<NodeId> {
      if (!part) return std::nullopt;
      std::vector<NodeId> in = x.in;
      in[k] = *part;
      return b_.add(x.op, std::move(in));
    };
    if (is(x, Fn::kMul) && is(y, Fn::kMul))
      for (const std::size_t k : {0u, 1u})
        if (x.in[k] == y.in[1 - k] && b_.type(x.in[1 - k]) == b_.type(y.in[k]))
          return rebuilt(1 - k, combined(x.in[1 - k], p, y.in[k], q));
    if (x.op.index() != y.op.index() || x.in.size() != y.in.size() || !same_types())
      return std::nullopt;
    // One operation on the same operands but one.
    for (std::size_t k = 0; k < x.in.size(); ++k) {
      std::vector<NodeId> in = y.in;
      in[k] = x.in[k];
      const bool linear =
          std::holds_alternative<Contract>(x.op) || is(x, Fn::kMul) ||
          (std::holds_alternative<MatMul>(x.op) && k == 1) ||
          std::holds_alternative<Reshape>(x.op) || std::holds_alternative<Permute>(x.op) ||
          std::holds_alternative<Gather>(x.op) || std::holds_alternative<ScatterAdd>(x.op) ||
          std::holds_alternative<Expand>(x.op) || std::holds_alternative<ReduceSum>(x.op);
      if (linear && in == x.in && b_.add(y.op, std::move(in)) == a)
        return rebuilt(k, combined(x.in[k], p, y.in[k], q));
    }
    return std::nullopt;
  }
  static Parity joint(Parity a, Parity b) {
    const std::uint64_t mixed = a.mixed | b.mixed | (a.odd ^ b.odd);
    return {a.odd & ~mixed, mixed};
  }
  static Parity product(Parity a, Parity b) {
    const std::uint64_t mixed = a.mixed | b.mixed;
    return {(a.odd ^ b.odd) & ~mixed, mixed};
  }

  void reject(const char* code, std::string message, std::string label, std::string help) {
    if (error_) return;
    const Node& node = in_[current_];
    error_ = Diagnostic::error(code, std::move(message))
                 .at(node.span)
                 .with_label(std::move(label))
                 .with_help(std::move(help));
    if (node.context)
      error_->notes.push_back({"in the iteration " + in_.contexts[node.context], node.span});
  }

  template <class Make>
  Term multiplied(const Term& x, const Term& y, Make make) {
    return {x.order + y.order,           make(x.out, y.out),
            product(x.scalar, y.scalar), product(x.vector, y.vector),
            x.holds | y.holds,           (x.linear & ~y.holds) | (y.linear & ~x.holds)};
  }
  /// All pairs of terms, `make` for each.
  template <class Make>
  Series bilinear(const Series& a, const Series& b, const Type& type, Make make) {
    std::vector<Term> terms;
    Series rest;
    for (const Term& x : a.terms)
      for (const Term& y : b.terms) terms.push_back(multiplied(x, y, make));
    inherit(rest, a, times_rest_of(a, b));
    inherit(rest, b, kept(a));
    const auto own = [&](const Series& x, const Series& y) {
      const auto size = most(y);
      return x.spike && size ? std::optional(*x.spike + *size) : std::nullopt;
    };
    rest.spike = larger(own(a, b), own(b, a));
    return gather(std::move(terms), type, std::move(rest));
  }
  template <class Make>
  Series linear(const Series& a, const Type& type, Make make) {
    std::vector<Term> terms;
    for (const Term& x : a.terms)
      terms.push_back({x.order, make(x.out), x.scalar, x.vector, x.holds, x.linear});
    Series rest;
    inherit(rest, a, parts_.one());
    rest.spike = a.spike;
    return gather(std::move(terms), type, std::move(rest));
  }

  struct Readout {
    std::vector<SourceSlope> blocks;  ///< of all random numbers so far; of a vector one
    NodeId covariance;                ///< [count, count]
    std::int64_t count = 0;
    std::int64_t given = 0;  ///< of them, the first ones
  };

  // ---- means over coordinates
  /// Means of terms, each for itself: what is odd under a sign flip has mean 0 and leaves a random
  /// number of relative size n^(-1/2).
  Series averaged(const std::vector<Term>& terms, Series rest, const Type& type) {
    std::vector<Term> means;
    std::optional<Exponent> top;  // random numbers that lie below the depth need not be found
    for (const Term& t : terms)
      if (t.vector.odd == 0 && !b_.is_zero(t.out)) top = top ? std::max(*top, t.order) : t.order;
    for (const Term& t : terms) {
      if (b_.is_zero(t.out)) continue;
      const Parity whole = product(t.scalar, t.vector);
      const Exponent fluctuation = t.order - Exponent(1, 2);
      if ((t.vector.odd) == 0) {
        means.push_back({t.order, t.out, t.scalar, {}});
        drop(rest, parts_.one({fluctuation, 0, whole, {}}), current_);
      } else if (const NodeId drawn =
                     top && fluctuation < *top - options_.depth ? NodeId{} : random_number(t);
                 drawn.valid()) {
        means.push_back({fluctuation, drawn, whole, {}});
        // Its covariance E J J' fluctuates as well.
        drop(rest, parts_.one({fluctuation - Exponent(1, 2), 0, {0, ~std::uint64_t{0}}, {}}),
             current_);
      } else {
        drop(rest, parts_.one({fluctuation, 0, whole, {}}), current_);
      }
    }
    return gather(std::move(means), type, std::move(rest));
  }

  static SourceId source_at(const Op& op) {
    const auto* matrix = std::get_if<GaussianMatrix>(&op);
    return matrix ? matrix->source : std::get<StandardNormal>(op).source;
  }
  /// sqrt(n) times a mean that is linear in one source: of a readout r, E(J r), or of a matrix W,
  /// E(u W x), where J, or u and x, do not depend on it.  Given all else it is Gaussian, N(0, E J
  /// J') or N(0, E u u' E x x'), jointly with all others of the same source.
  NodeId random_number(const Term& t) {
    const NodeId mean = t.out;
    std::vector<NodeId> candidates;
    for (const SourceId source : readout_sources_) {
      const auto it = normals_.find(source);
      if (it == normals_.end()) continue;
      const bool odd = source.value < 64 && (t.vector.odd >> source.value & 1) != 0;
      if (b_.type(it->second).matrix ? odd : (t.linear & t.vector.odd) != 0)
        candidates.push_back(it->second);
    }
    if (candidates.empty()) return {};
    if (const auto it = drawn_.find(mean); it != drawn_.end()) return it->second;
    const Type type = b_.type(mean);
    NodeId out;
    if (const auto parts = readouts_of(b_, b_.scale(1, 1, mean), candidates);
        parts && b_.is_zero(parts->rest) && independent(parts->slopes)) {
      for (const SourceSlope& slope : parts->slopes) {
        const NodeId source = slope.source;
        const std::int64_t size = slope.size;
        Readout& readout = readouts_[source];
        const bool first = target_.valid() && behind_target_[current_.value] && !given_.valid() &&
                           readout.count == 0 && parts->slopes.size() == 1;
        append(readout, slope);
        if (first) {
          readout.given = size;
          out = given_number(type);
          continue;
        }
        random_outputs_ = true;
        std::vector<double> normals(static_cast<std::size_t>(readout.count));
        const std::string& name = out_.sources[source_at(b_.node(source).op).value].name;
        plain_normals(mix_key(mix_key(mix_key(kOutputWord, options_.seed), options_.draw),
                              hash_text(name.data(), name.size())),
                      0, normals);
        std::fill_n(normals.begin(), readout.given, 0.0);
        const NodeId factor = b_.add(Cholesky{}, {readout.covariance});
        NodeId values =
            b_.contract(factor, b_.constant(std::move(normals), {readout.count}), 0, 1, false);
        if (readout.given > 0) {
          std::vector<std::int64_t> known(static_cast<std::size_t>(readout.given));
          std::iota(known.begin(), known.end(), 0);
          const NodeId across = b_.gather(readout.covariance, 1, known),
                       among = b_.gather(across, 0, known);
          const NodeId regression =
              b_.add(TrainingOperator{1, std::numeric_limits<double>::infinity(), 0, false},
                     {among, across});
          values = b_.plus(
              values, b_.contract(regression, b_.reshape(given_, {readout.given}), 0, 1, false));
        }
        std::vector<std::int64_t> last;
        for (std::int64_t k = readout.count - size; k < readout.count; ++k) last.push_back(k);
        const NodeId own = b_.reshape(b_.gather(values, 0, std::move(last)), type.dims);
        out = out.valid() ? b_.plus(out, own) : own;
      }
    }
    drawn_[mean] = out;
    return out;
  }
  /// Numbers of different sources are independent if these have an order in which slopes depend on
  /// later ones only: given all but the first source, its numbers are Gaussian whatever the others.
  /// Numbers r1 tanh(r2) and tanh(r1) r2 have none, and are correlated.
  bool independent(const std::vector<SourceSlope>& slopes) {
    std::map<NodeId, std::set<NodeId>> behind = behind_slopes_;
    for (const SourceSlope& slope : slopes)
      for (const SourceSlope::Term& t : slope.terms)
        for (const NodeId x : {t.d, t.x})
          if (x.valid()) collect_sources(x, behind[slope.source]);
    for (const SourceSlope& slope : slopes) {
      std::vector<NodeId> stack{slope.source};
      std::set<NodeId> seen;
      while (!stack.empty()) {
        const auto it = behind.find(stack.back());
        stack.pop_back();
        if (it == behind.end()) continue;
        for (const NodeId next : it->second) {
          if (next == slope.source) return false;
          if (seen.insert(next).second) stack.push_back(next);
        }
      }
    }
    behind_slopes_ = std::move(behind);
    return true;
  }
  /// Those that the coordinates of x are computed from; what is finite is a number.
  void collect_sources(NodeId x, std::set<NodeId>& to) const {
    std::vector<NodeId> stack{x};
    std::set<NodeId> seen;
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      const Node& node = b_.node(id);
      if ((!node.type.width && !node.type.matrix) || !seen.insert(id).second) continue;
      if (std::holds_alternative<StandardNormal>(node.op) ||
          std::holds_alternative<GaussianMatrix>(node.op))
        to.insert(id);
      stack.insert(stack.end(), node.in.begin(), node.in.end());
    }
  }
  void append(Readout& readout, const SourceSlope& slope) {
    if (!slope.terms[0].x.valid()) {  // a vector: rows below each other
      const NodeId rows = slope.terms[0].d;
      if (readout.blocks.empty())
        readout.blocks = {slope};
      else
        readout.blocks[0].terms[0].d = b_.add(Concat{0}, {readout.blocks[0].terms[0].d, rows});
      readout.count += slope.size;
      readout.blocks[0].size = readout.count;
      readout.covariance = covariance(b_, readout.blocks[0], readout.blocks[0]);
      return;
    }
    readout.covariance = readout.blocks.empty() ? covariance(b_, slope, slope) : [&] {
      std::vector<NodeId> across;
      for (const SourceSlope& other : readout.blocks)
        across.push_back(covariance(b_, slope, other));
      const NodeId below = b_.add(Concat{1}, across);
      return b_.add(Concat{0}, {b_.add(Concat{1}, {readout.covariance, b_.permute(below, {1, 0})}),
                                b_.add(Concat{1}, {below, covariance(b_, slope, slope)})});
    }();
    readout.blocks.push_back(slope);
    readout.count += slope.size;
  }

  // ---- operations
  Series visit(const Constant& op, const Node& node) {
    return gather({{0, b_.constant(op, node.type.dims), {}, {}}}, node.type);
  }
  Series visit(const StandardNormal& op, const Node&) {
    Parity odd;
    if (op.source.value < 64) odd.odd = std::uint64_t{1} << op.source.value;
    const NodeId out = normals_[op.source] = b_.add(op, {});
    return {{{0, out, {}, odd, odd.odd, odd.odd}}, 0, {}};
  }
  Series visit(const Scale& op, const Node& node) {
    Series out = operand(node, 0);
    for (Term& t : out.terms) {
      t.order += op.power;
      t.out = b_.scale(op.factor, 0, t.out);
    }
    out.dropped = parts_.shifted(out.dropped, op.power);
    if (out.spike) *out.spike += op.power;
    return out;
  }
  Series visit(const Average& op, const Node& node) {
    const Series& x = operand(node, 0);
    std::vector<Term> terms;
    for (const Term& t : x.terms)
      terms.push_back({t.order, b_.add(op, {t.out}), t.scalar, t.vector, t.holds, t.linear});
    Series rest;
    drop(rest, parts_.average(x.dropped), x.culprit);
    drop_rms(rest, x, Exponent(-1, 2));
    return averaged(terms, std::move(rest), node.type);
  }
  Series visit(const Contract& op, const Node& node) {
    const Series &a = operand(node, 0), &b = operand(node, 1);
    const auto make = [&](NodeId x, NodeId y) { return b_.add(op, {x, y}); };
    if (!op.average) return bilinear(a, b, node.type, make);
    std::vector<Term> terms;
    for (const Term& x : a.terms)
      for (const Term& y : b.terms) terms.push_back(multiplied(x, y, make));
    Series rest;
    drop(rest, parts_.average(parts_.times(a.dropped, times_rest_of(a, b))), a.culprit);
    drop(rest, parts_.average(parts_.times(kept(a), b.dropped)), b.culprit);
    for (const auto& [x, y] : {std::pair{&a, &b}, std::pair{&b, &a}})
      if (const auto size = most(*y)) drop_rms(rest, *x, *size - Exponent(1, 2));
    return averaged(terms, std::move(rest), node.type);
  }
  Series visit(const Map& op, const Node& node) {
    if (!node.type.width && is_jump(node)) return finite_jump(op, node);
    if (node.in.size() == 1) {
      const Series& x = operand(node, 0);
      if (!node.type.width && !x.terms.empty() &&
          (op.fn == Fn::kRelu || op.fn == Fn::kLeakyRelu || op.fn == Fn::kAbs))
        decisions_.push_back({current_, {x.terms[0].out}, x.terms[0].out, false});
      return unary(op, x, node.type);
    }
    const Series &a = operand(node, 0), &b = operand(node, 1);
    switch (op.fn) {
      case Fn::kAdd:
      case Fn::kSub: return sum(op.fn, a, b, node.type);
      case Fn::kMul:
        return bilinear(a, b, node.type, [&](NodeId x, NodeId y) { return b_.times(x, y); });
      case Fn::kDiv: {
        Series inverse = unary(Map{Fn::kPower, -1}, b, in_[node.in[1]].type);
        return bilinear(a, inverse, node.type, [&](NodeId x, NodeId y) { return b_.times(x, y); });
      }
      // As functions of the difference, so that each argument is expanded and leading parts may
      // cancel.
      case Fn::kMax:
      case Fn::kMin:
      case Fn::kLess:
      case Fn::kLessEqual:
      case Fn::kEqual:
      case Fn::kNotEqual: {
        if (infinite(a) || infinite(b)) return leading_only(op, node);
        const bool from_right = op.fn == Fn::kLess;  // a < b: step(b - a)
        const Series difference =
            from_right ? sum(Fn::kSub, b, a, node.type) : sum(Fn::kSub, a, b, node.type);
        if (op.fn != Fn::kMax && op.fn != Fn::kMin) return comparison(op.fn, difference, node.type);
        if (!node.type.width && !difference.terms.empty())
          decisions_.push_back({current_, leading(node), difference.terms[0].out, false});
        const Series excess = unary(Map{Fn::kRelu, 0}, difference, node.type);
        return op.fn == Fn::kMax ? sum(Fn::kAdd, b, excess, node.type)
                                 : sum(Fn::kSub, a, excess, node.type);
      }
      case Fn::kWhere: return where(node);
      case Fn::kMod:
        return b.terms.size() == 1 && b.dropped == 0 && b.terms[0].order == 0
                   ? mod(a, b.terms[0], node.type)
                   : leading_only(op, node);
      default: return leading_only(op, node);
    }
  }
  Series sum(Fn fn, const Series& a, const Series& b, const Type& type) {
    std::vector<Term> terms = a.terms;
    for (Term t : b.terms) {
      if (fn == Fn::kSub) t.out = b_.negate(t.out);
      terms.push_back(t);
    }
    for (Term& t : terms) t.out = shaped(t.out, type);
    Series rest;
    inherit(rest, a, parts_.one());
    inherit(rest, b, parts_.one());
    return gather(std::move(terms), type, std::move(rest));
  }
  Series one(const Type& type) {
    return {{{0, b_.expand(b_.constant(1, type.dims), type.width, type.dims), {}, {}}}, 0, {}};
  }
  /// Holds infinite constants, of which no differences are taken.
  [[nodiscard]] bool infinite(const Series& x) const {
    return std::any_of(x.terms.begin(), x.terms.end(), [&](const Term& t) {
      NodeId id = t.out;
      while (std::holds_alternative<Expand>(b_.node(id).op)) id = b_.node(id).in[0];
      const auto* values = b_.constant_values(id);
      return values &&
             std::any_of(values->begin(), values->end(), [](double v) { return std::isinf(v); });
    });
  }
  /// Where a function jumps, a change of its argument moves its value by height x delta x change,
  /// which is bounded only: no engine carries deltas.
  void drop_jumps(Series& to, const Part& slope, const Series& argument) {
    drop(to, parts_.times(parts_.one(slope), parts_.plus(kept(argument, 1), argument.dropped)),
         current_);
  }
  /// d > 0 for kLess, not (d > 0) for kLessEqual, d = 0, d != 0.
  Series comparison(Fn fn, const Series& d, const Type& type) {
    Series out;
    if (d.terms.empty()) {
      if (fn == Fn::kLessEqual || fn == Fn::kEqual) out = one(type);
      if (d.dropped != 0)
        drop(out,
             parts_.without_parity(
                 parts_.one({0, 0, {0, ~std::uint64_t{0}}, {0, ~std::uint64_t{0}}})),
             d.culprit);
      return out;
    }
    if (fn == Fn::kEqual || fn == Fn::kNotEqual) {
      const Term& lead = d.terms[0];
      const Part value{0, 0, even(lead.scalar), even(lead.vector)};
      out.terms.push_back({0, b_.map(fn, {lead.out, b_.zeros(false, {})}), value.scalar,
                           value.vector, lead.holds, 0});
      drop_jumps(out, {-lead.order, 0, value.scalar, value.vector}, d);
      return gather(std::move(out.terms), type, {{}, out.dropped, out.culprit});
    }
    const Series positive = unary(Map{Fn::kStep, 0}, d, type);
    return fn == Fn::kLess ? positive : sum(Fn::kSub, one(type), positive, type);
  }
  /// x - y floor(x / y), y a plain number: of slope 1 in x, with jumps.
  Series mod(const Series& x, const Term& y, const Type& type) {
    if (x.terms.empty() || x.terms[0].order != 0)
      return leading_only(Map{Fn::kMod, 0}, in_[current_]);
    const Term& x0 = x.terms[0];
    const Part slope{0, 0, even(product(x0.scalar, y.scalar)), even(product(x0.vector, y.vector))};
    std::vector<Term> terms{
        {0, b_.map(Fn::kMod, {x0.out, y.out}), slope.scalar, slope.vector, x0.holds | y.holds, 0}};
    terms.insert(terms.end(), x.terms.begin() + 1, x.terms.end());
    Series out;
    inherit(out, x, parts_.one());
    drop_jumps(out, slope, x);
    return gather(std::move(terms), type, std::move(out));
  }
  /// Each branch by itself under the leading condition; where the condition changes, one branch is
  /// taken for the other.
  Series where(const Node& node) {
    const Series &c = operand(node, 0), &x = operand(node, 1), &y = operand(node, 2);
    if (c.terms.empty() && c.dropped == 0) return shaped(y, node.type);
    Series out;
    if (c.terms.empty()) {
      drop(out, parts_.without_parity(parts_.plus(all(x), all(y))), c.culprit);
      return out;
    }
    const Term& lead = c.terms[0];
    const Part taken{0, 0, even(lead.scalar), even(lead.vector)};
    std::vector<Term> terms = order_by_order(node, 1, [&](const std::vector<NodeId>& in) {
      return b_.map(Fn::kWhere, {lead.out, in[0], in[1]});
    });
    for (Term& whole : terms) {
      whole.scalar = product(whole.scalar, taken.scalar);
      whole.vector = product(whole.vector, taken.vector);
      whole.holds |= lead.holds;
      whole.linear &= ~lead.holds;
    }
    inherit(out, x, parts_.one(taken));
    inherit(out, y, parts_.one(taken));
    const Sum moved = parts_.shifted(parts_.plus(kept(c, 1), c.dropped), -lead.order),
              branches = parts_.plus(all(x), all(y));
    const Sum jump =
        parts_.times(branches_meet(node) ? parts_.times(moved, moved) : moved, branches);
    drop(out, compares(in_[node.in[0]].op) ? jump : parts_.without_parity(jump),
         c.dropped ? c.culprit : current_);
    return gather(std::move(terms), node.type, std::move(out));
  }
  /// A value of the input program as a function of one other, `variable` at t; empty if it is
  /// computed from something else.
  std::optional<double> value_at(NodeId id, NodeId variable, double t) const {
    if (id == variable) return t;
    const Node& node = in_[id];
    if (const auto* c = std::get_if<Constant>(&node.op)) {
      const bool uniform =
          !c->values->empty() && std::all_of(c->values->begin(), c->values->end(),
                                             [&](double v) { return v == c->values->front(); });
      return uniform ? std::optional(c->values->front()) : std::nullopt;
    }
    std::vector<double> in;
    for (const NodeId k : node.in) {
      const auto x = std::holds_alternative<Map>(node.op) ||
                             std::holds_alternative<Scale>(node.op) ||
                             std::holds_alternative<Expand>(node.op) ||
                             std::holds_alternative<Reshape>(node.op)
                         ? value_at(k, variable, t)
                         : std::nullopt;
      if (!x) return std::nullopt;
      in.push_back(*x);
    }
    if (const auto* s = std::get_if<Scale>(&node.op))
      return s->power == 0 ? std::optional(s->factor * in[0]) : std::nullopt;
    if (!std::holds_alternative<Map>(node.op))
      return in.empty() ? std::nullopt : std::optional(in[0]);
    const Type scalar;
    std::vector<const Type*> types(in.size(), &scalar);
    std::vector<View> views;
    for (const double& x : in) views.push_back({&x, 1, 1});
    double out = 0;
    evaluate_rows(Node{node.op, scalar, node.in, node.span, 0}, types, views, {&out, 1, 1});
    return out;
  }
  /// The branches of where(p < q, x, y) are equal where p = q: p - q is an affine function of one
  /// value, and x and y are functions of it.
  bool branches_meet(const Node& node) const {
    const Node& condition = in_[node.in[0]];
    if (!compares(condition.op)) return false;
    const auto compared = [&](NodeId variable, double t) -> std::optional<double> {
      const auto p = value_at(condition.in[0], variable, t),
                 q = condition.in.size() > 1 ? value_at(condition.in[1], variable, t)
                                             : std::optional(0.0);
      return p && q ? std::optional(*p - *q) : std::nullopt;
    };
    std::vector<NodeId> variables(
        condition.in.begin(),
        condition.in.end());  // what is compared, and what that is a function of
    for (std::size_t k = 0; k < variables.size() && k < 16; ++k) {
      const Node& v = in_[variables[k]];
      if (std::holds_alternative<Constant>(v.op)) continue;
      if (std::holds_alternative<Map>(v.op) || std::holds_alternative<Scale>(v.op) ||
          std::holds_alternative<Expand>(v.op) || std::holds_alternative<Reshape>(v.op))
        variables.insert(variables.end(), v.in.begin(), v.in.end());
      const auto u0 = compared(variables[k], 0), u1 = compared(variables[k], 1),
                 u2 = compared(variables[k], 2);
      if (!u0 || !u1 || !u2 || *u1 == *u0 ||
          std::abs(*u2 - 2 * *u1 + *u0) > 1e-12 * (std::abs(*u0) + std::abs(*u1)))
        continue;
      const double root = -*u0 / (*u1 - *u0);
      constexpr double kBeside = 1e-9;
      bool meet = true;
      for (const double t : {root, root - kBeside, root + kBeside}) {
        const auto x = value_at(node.in[1], variables[k], t),
                   y = value_at(node.in[2], variables[k], t);
        meet = meet && x && y &&
               std::abs(*x - *y) <=
                   (t == root ? 1e-12 : 1e3 * kBeside) * (1 + std::abs(*x) + std::abs(*y));
      }
      if (meet) return true;
    }
    return false;
  }
  /// Its value is 1 or 0, and changes as its condition does.
  static bool compares(const Op& op) {
    const auto* m = std::get_if<Map>(&op);
    return m && (m->fn == Fn::kLess || m->fn == Fn::kLessEqual || m->fn == Fn::kEqual ||
                 m->fn == Fn::kNotEqual || m->fn == Fn::kStep);
  }
  static Parity even(Parity p) { return {0, p.mixed | p.odd}; }
  Series shaped(Series x, const Type& type) {
    for (Term& t : x.terms) t.out = shaped(t.out, type);
    return x;
  }

  /// Numbers whose fluctuations decide on a jump (passes/determinacy): what is drawn is decided,
  /// entries that are 0 by their next term.
  Series finite_jump(const Map& op, const Node& node) {
    const bool whole = op.fn == Fn::kMod, choice = op.fn == Fn::kWhere;
    if (whole)
      if (auto out = finite_mod(operand(node, 0), operand(node, 1), node.type)) return *out;
    Series x = operand(node, 0);
    if (!whole && !choice && node.in.size() == 2) {
      std::vector<Term> terms = x.terms;
      for (Term t : operand(node, 1).terms) {
        t.out = b_.negate(t.out);
        terms.push_back(t);
      }
      Series rest;
      inherit(rest, x, parts_.one());
      inherit(rest, operand(node, 1), parts_.one());
      x = gather(std::move(terms), node.type, std::move(rest));
    }
    const bool moves = x.terms.size() > 1 || x.dropped != 0;
    const Dims dims = choice || whole ? in_[node.in[0]].type.dims : node.type.dims;
    NodeId margin = x.terms.empty() ? b_.zeros(false, dims) : x.terms[0].out;
    Exponent last = x.terms.empty() ? Exponent(0) : x.terms[0].order;
    const auto size = parts_.size(x.dropped);
    if (x.terms.size() > 1 && !whole && (!size || *size < x.terms[1].order)) {
      margin = b_.map(Fn::kWhere, {margin, margin, x.terms[1].out});
      last = x.terms[1].order;
    }
    const bool known =
        !size || (!x.terms.empty() && *size < last);  // up to what decisions find out
    if (whole || choice) {
      if (moves && known) {
        if (whole)
          decisions_.push_back(
              {current_,
               {margin, operand(node, 1).terms.empty() ? b_.zeros(false, in_[node.in[1]].type.dims)
                                                       : operand(node, 1).terms[0].out},
               {}});
        else
          decisions_.push_back({current_, {margin}, margin});
      }
      return leading_only(op, node);
    }
    Series out;
    if (moves && (known || x.terms.empty()))
      decisions_.push_back({current_, {margin}, margin});
    else if (!known)
      drop(out, parts_.one({0, 0, {0, ~std::uint64_t{0}}, {}}), x.culprit);
    const NodeId value =
        node.in.size() == 1 ? b_.map(op.fn, {margin}) : b_.map(op.fn, {margin, b_.constant(0)});
    return gather({{0, value, {0, ~std::uint64_t{0}}, {}, ~std::uint64_t{0}, 0}}, node.type,
                  std::move(out));
  }

  /// x - y floor(x / y) = r + y 1[r / y < 0] with r = x - y round(x / y): where the limit is a
  /// multiple of y, the next term of x decides.  Nothing: there is no such term, or y is no number.
  std::optional<Series> finite_mod(const Series& x, const Series& y, const Type& type) {
    if (y.terms.size() != 1 || y.dropped != 0 || y.terms[0].order != 0) return std::nullopt;
    const bool leads = !x.terms.empty() && x.terms[0].order == 0;
    const std::vector<Term> rest(x.terms.begin() + (leads ? 1 : 0), x.terms.end());
    const auto size = parts_.size(x.dropped);
    if (rest.empty() || rest[0].order > 0 || (size && *size >= rest[0].order)) return std::nullopt;
    const NodeId step = shaped(y.terms[0].out, type), half = b_.scale(0.5, 0, step),
                 remainder =
                     leads ? b_.minus(b_.map(Fn::kMod,
                                             {b_.plus(shaped(x.terms[0].out, type), half), step}),
                                      half)
                           : b_.zeros(false, type.dims),
                 margin = b_.map(Fn::kWhere, {remainder, remainder, shaped(rest[0].out, type)}),
                 below = b_.map(Fn::kLess, {b_.times(margin, step), b_.constant(0)});
    decisions_.push_back({current_, {margin}, margin});
    std::vector<Term> terms{{0,
                             b_.plus(remainder, b_.times(below, step)),
                             {0, ~std::uint64_t{0}},
                             {},
                             ~std::uint64_t{0},
                             0}};
    for (Term t : rest) {
      t.out = shaped(t.out, type);
      terms.push_back(t);
    }
    Series out;
    inherit(out, x, parts_.one());
    return gather(std::move(terms), type, std::move(out));
  }

  /// The operands' terms of the largest order.
  std::vector<NodeId> leading(const Node& node) {
    std::optional<Exponent> top;
    for (const NodeId id : node.in)
      if (const Series& x = series_[id.value]; !x.terms.empty())
        top = top ? std::max(*top, x.terms[0].order) : x.terms[0].order;
    std::vector<NodeId> out;
    for (const NodeId id : node.in) {
      const Series& x = series_[id.value];
      out.push_back(!x.terms.empty() && x.terms[0].order == *top
                        ? x.terms[0].out
                        : b_.zeros(in_[id].type.width, in_[id].type.dims));
    }
    return out;
  }
  /// Functions of which only the value at the leading terms is carried.
  Series leading_only(const Op& op, const Node& node) {
    std::vector<NodeId> in;
    std::optional<Exponent> top;
    for (const NodeId id : node.in)
      if (!series_[id.value].terms.empty())
        top = top ? std::max(*top, series_[id.value].terms[0].order)
                  : series_[id.value].terms[0].order;
    const auto* m = std::get_if<Map>(&op);
    const bool comparison = compares(op);
    const bool homogeneous = comparison || !m || m->fn == Fn::kMin || m->fn == Fn::kMax;
    if (top && *top != 0 && !homogeneous) {
      reject("E3105", "this function needs arguments of size 1 in a graded limit",
             fmt::format("an argument has size {}", power_of_width(*top, in_.width_name)),
             "scale the arguments by powers of the width first");
      return {};
    }
    Series out;
    Sum rest = 0;
    Term lead{0, {}, {}, {}};
    for (const NodeId id : node.in) {
      const Series& x = series_[id.value];
      const bool leads = !x.terms.empty() && x.terms[0].order == *top;
      if (leads) {
        lead.scalar = even(product(lead.scalar, even(x.terms[0].scalar)));
        lead.vector = even(product(lead.vector, even(x.terms[0].vector)));
        lead.holds |= x.terms[0].holds;
      }
      in.push_back(leads ? x.terms[0].out : b_.zeros(in_[id].type.width, in_[id].type.dims));
      rest = parts_.plus(rest, parts_.plus(kept(x, leads ? 1 : 0), x.dropped));
    }
    if (!node.type.width && std::holds_alternative<ReduceMax>(op))
      decisions_.push_back({current_, {in[0]}, {}, false});
    lead.order = comparison || !top ? Exponent(0) : *top;
    drop(out, parts_.without_parity(parts_.shifted(rest, comparison && top ? -*top : Exponent(0))),
         current_);
    lead.out = b_.add(op, std::move(in));
    return gather({lead}, node.type, std::move(out));
  }

  /// Of a function without a degree: bounded ones stay so; exp may make anything of a large rest.
  Exponent spike_of(const Map& op, const Series& x, Series& out) {
    if (is_bounded(op)) return std::min(*x.spike, Exponent(0));
    if (*x.spike > 0 && op.fn == Fn::kExp) drop_spikes(out, x, -*parts_.size(x.dropped));
    return *x.spike;
  }
  /// phi(n^e x0 + d) = n^(k e) (phi(x0) + phi'(x0) n^-e d + ..), y0 = phi(x0), along(d) = phi'(x0)
  /// d; without a degree k, e = 0.  Functions of matrices count as `op` does.
  template <class Along>
  Series expanded(const Map& op, const Series& x, const Type& type, NodeId y0, Along along) {
    const FunctionTraits traits = traits_of(op);
    const Exponent top = x.terms[0].order, degree = traits.degree.value_or(0), start = degree * top;
    Series out;
    const Sum image = parts_.map(op, parts_.one({top, 0, x.terms[0].scalar, x.terms[0].vector}));
    const Part value = parts_[image].empty() ? Part{start, 0, {}, {}} : parts_[image].front();
    std::vector<Term> terms{{start, y0, value.scalar, value.vector, x.terms[0].holds, 0}};
    const Part slope = PartSums::image(op, {top, 0, x.terms[0].scalar, x.terms[0].vector}, 1,
                                       start - top),
               curvature = PartSums::image(op, {top, 0, x.terms[0].scalar, x.terms[0].vector}, 2,
                                           start - top - top);
    for (std::size_t k = 1; k < x.terms.size(); ++k)
      terms.push_back({x.terms[k].order + slope.order, along(x.terms[k].out),
                       product(slope.scalar, x.terms[k].scalar),
                       product(slope.vector, x.terms[k].vector),
                       x.terms[k].holds | x.terms[0].holds, x.terms[k].linear & ~x.terms[0].holds});
    if (op.fn == Fn::kStep || op.fn == Fn::kSign) drop_jumps(out, slope, x);
    // What is dropped may cancel a term of its size: no symmetry is left.
    if (const auto size = parts_.size(x.dropped); size && *size >= top)
      drop(out, parts_.without_parity(parts_.shifted(parts_.one(value), *size - top)), x.culprit);
    drop(out, parts_.times(parts_.one(slope), x.dropped), x.culprit);
    const Sum small = parts_.plus(kept(x, 1), x.dropped);
    drop(out, parts_.times(parts_.one(curvature), parts_.times(small, small)), current_);
    if (x.spike) {  // phi(x0 + d) - phi(x0), d of any size: like d max(x0, d)^(k - 1)
      const Exponent largest = std::max(*x.spike, top);
      if (traits.degree) drop_spikes(out, x, (degree - 1) * largest);
      out.spike = traits.degree ? *x.spike + (degree - 1) * largest : spike_of(op, x, out);
    }
    return gather(std::move(terms), type, std::move(out));
  }
  Series unary(const Map& op, const Series& x, const Type& type) {
    const FunctionTraits traits = traits_of(op);
    Series out;
    if (x.terms.empty() && x.dropped != 0 && (traits.degree && *traits.degree <= 0)) {
      reject("E3104", "a function that jumps at 0 of something that vanishes in the limit",
             "its argument is 0 in the limit",
             "the theory covers arguments with a nonzero limit only");
      return {};
    }
    const auto top = x.terms.empty() ? std::optional<Exponent>() : std::optional(x.terms[0].order);
    if (!traits.degree && top && *top > 0) {
      reject("E3103", fmt::format("the argument of '{}' explodes", name(op.fn)),
             fmt::format("it grows like {}", power_of_width(*top, in_.width_name)),
             "scale the initial variance, the multiplier or the learning rate by a power of the "
             "width");
      return {};
    }
    if (!traits.finite_everywhere && !traits.degree && (!top || *top != 0)) {
      reject("E3105", fmt::format("'{}' needs an argument of size 1", name(op.fn)), "",
             "scale the argument by a power of the width first");
      return {};
    }
    if (top && (traits.degree || *top == 0)) {
      const NodeId x0 = x.terms[0].out, y0 = b_.map(op.fn, {x0}, op.parameter);
      const NodeId derivative = x.terms.size() > 1 ? derivative_of(b_, op, x0, y0) : NodeId{};
      return expanded(op, x, type, y0, [&](NodeId d) { return b_.times(derivative, d); });
    }
    // phi(0) + phi'(0) d + ..
    std::vector<Term> terms{
        {0, b_.expand(b_.constant(traits.at_zero, type.dims), type.width, type.dims), {}, {}}};
    const bool two_slopes = op.fn == Fn::kElu && op.parameter != 1;
    if (two_slopes) return unary(Map{Fn::kLeakyRelu, op.parameter}, x, type);
    for (const Term& t : x.terms)
      terms.push_back({t.order, b_.scale(traits.slope_at_zero, 0, t.out), t.scalar, t.vector,
                       t.holds, t.linear});
    const Sum whole = all(x), square = parts_.times(whole, whole);
    if (x.spike) {
      if (traits.degree)
        drop_spikes(out, x, (*traits.degree - 1) * *x.spike);
      else
        drop_spikes(out, x, *x.spike);
      out.spike = traits.degree ? *traits.degree * *x.spike : spike_of(op, x, out);
    }
    if (traits.degree)
      drop(out, parts_.map(op, x.dropped), x.culprit);
    else {
      if (traits.slope_at_zero != 0) drop(out, x.dropped, x.culprit);
      const bool odd = traits.parity == FunctionTraits::Parity::kOdd;
      // Where the second derivative jumps at 0, as of softsign, the next term is x |x|.
      drop(out,
           odd && traits.first_delta ? parts_.without_parity(square)
           : odd                     ? parts_.times(square, whole)
                                     : square,
           current_);
    }
    return gather(std::move(terms), type, std::move(out));
  }

  /// Every order by itself.
  template <class T>
  Series each_order(const T& op, const Node& node) {
    return linear(operand(node, 0), node.type, [&](NodeId x) { return b_.add(op, {x}); });
  }
  Series visit(const ReduceSum& op, const Node& node) { return each_order(op, node); }
  Series visit(const Gather& op, const Node& node) { return each_order(op, node); }
  Series visit(const ScatterAdd& op, const Node& node) { return each_order(op, node); }
  Series visit(const Permute& op, const Node& node) { return each_order(op, node); }
  Series visit(const Reshape& op, const Node& node) { return each_order(op, node); }
  Series visit(const Expand& op, const Node& node) { return each_order(op, node); }
  Series visit(const Stop& op, const Node& node) { return each_order(op, node); }
  Series visit(const Parameter& op, const Node& node) { return each_order(op, node); }
  Series visit(const Change& op, const Node& node) { return each_order(op, node); }
  Series visit(const ReduceMax& op, const Node& node) { return leading_only(op, node); }
  /// y(x0 + d) = y(x0) + p d + O(d^2), p the softmax of x0; x0 = 0 where the argument vanishes.
  Series visit(const LogSumExp& op, const Node& node) {
    const Series& x = operand(node, 0);
    if (!x.terms.empty() && x.terms[0].order > 0) {
      reject("E3103", "the argument of 'logsumexp' or 'softmax' explodes",
             fmt::format("it grows like {}", power_of_width(x.terms[0].order, in_.width_name)),
             "scale the initial variance, the multiplier or the learning rate by a power of the "
             "width");
      return {};
    }
    const bool leads = !x.terms.empty() && x.terms[0].order == 0;
    const Type& type = in_[node.in[0]].type;
    const NodeId x0 = leads ? x.terms[0].out : b_.zeros(type.width, type.dims),
                 y0 = b_.add(op, {x0});
    Term value{0, y0, {}, {}};
    if (leads) {
      value.scalar = even(x.terms[0].scalar);
      value.vector = even(x.terms[0].vector);
      value.holds = x.terms[0].holds;
    }
    const std::size_t first = leads ? 1 : 0;
    std::vector<Term> terms{value};
    const NodeId p =
        x.terms.size() > first ? shares_of_exponentials(b_, x0, y0, op.axis) : NodeId{};
    for (std::size_t k = first; k < x.terms.size(); ++k) {
      const Term& d = x.terms[k];
      terms.push_back({d.order, b_.sum(b_.times(p, d.out), op.axis),
                       product(value.scalar, d.scalar), product(value.vector, d.vector),
                       d.holds | value.holds, d.linear & ~value.holds});
    }
    Series out;
    // What is dropped may cancel a term of its size: no symmetry is left.
    if (const auto size = parts_.size(x.dropped); size && *size >= 0)
      drop(out, parts_.without_parity(x.dropped), x.culprit);
    inherit(out, x, parts_.one(value.part()));
    const Sum small = parts_.plus(kept(x, first), x.dropped);
    drop(out, parts_.times(parts_.one(value.part()), parts_.times(small, small)), current_);
    return gather(std::move(terms), node.type, std::move(out));
  }
  Series visit(const Cholesky& op, const Node& node) { return leading_only(op, node); }
  Series visit(const Eigvals& op, const Node& node) { return leading_only(op, node); }
  Series visit(const TrainingOperator& op, const Node& node) { return leading_only(op, node); }
  Series visit(const Solve&, const Node& node) {
    const Series& a = operand(node, 0);
    if (a.terms.empty()) {
      reject("E3104", "a matrix of linear equations vanishes in the limit",
             "the limit has no solution here",
             "the theory covers matrices with a limit that can be inverted");
      return {};
    }
    const NodeId inverse = matrix_inverse(b_, a.terms[0].out);
    const Series inverses =
        expanded({Fn::kPower, -1}, a, in_[node.in[0]].type, inverse, [&](NodeId d) {
          return b_.negate(matrix_product(b_, matrix_product(b_, inverse, d), inverse));
        });
    return bilinear(inverses, operand(node, 1), node.type,
                    [&](NodeId x, NodeId y) { return matrix_product(b_, x, y); });
  }
  Series visit(const LogDet& op, const Node& node) {
    const Series& a = operand(node, 0);
    if (a.terms.empty() || a.terms[0].order != 0) {
      reject("E3105", "'logdet' needs a matrix of size 1", "",
             "scale the matrix by a power of the width first");
      return {};
    }
    const NodeId a0 = a.terms[0].out;
    const NodeId inverse = a.terms.size() > 1 ? matrix_inverse(b_, a0) : NodeId{};
    return expanded({Fn::kLog, 0}, a, node.type, b_.add(op, {a0}),
                    [&](NodeId d) { return log_determinant_move(b_, inverse, d); });
  }
  Series visit(const Samples& op, const Node& node) { return leading_only(op, node); }
  Series visit(const Histogram& op, const Node& node) { return leading_only(op, node); }
  /// As in leading_order.  What it is short of 1 by is even under all flips.
  Series visit(const InnerProduct&, const Node& node) {
    Series out;
    if (node.in[0] == node.in[1] && std::holds_alternative<GaussianMatrix>(in_[node.in[0]].op))
      out = one({});
    drop(out, anything(-1), current_);
    return out;
  }
  // Matrices are followed by matrix_step.
  Series visit(const GaussianMatrix& op, const Node&) { return impossible(op); }
  Series visit(const ScaleMatrix& op, const Node&) { return impossible(op); }
  Series visit(const UpdateMatrix& op, const Node&) { return impossible(op); }
  Series visit(const AddVersion& op, const Node&) { return impossible(op); }
  Series visit(const OuterSum& op, const Node&) { return impossible(op); }
  Series visit(const MatrixEntries& op, const Node&) { return impossible(op); }
  Series visit(const AddEntries& op, const Node&) { return impossible(op); }
  Series impossible(const Op& op) {
    TPLIMIT_CHECK(false, "an operation with a tensor as its result, got {}", op_name(op));
    return {};
  }
  /// What acts on each order by itself: make(terms of the operands from `first` on, zeros for those
  /// without), for all orders.
  template <class Make>
  std::vector<Term> order_by_order(const Node& node, std::size_t first, Make make) {
    std::set<Exponent> orders;
    for (std::size_t k = first; k < node.in.size(); ++k)
      for (const Term& t : operand(node, k).terms) orders.insert(t.order);
    std::vector<Term> terms;
    for (const Exponent order : orders) {
      std::vector<NodeId> in;
      Term whole{order, {}, {}, {}};
      bool fresh = true;
      for (std::size_t k = first; k < node.in.size(); ++k) {
        const Series& x = operand(node, k);
        const auto it = std::find_if(x.terms.begin(), x.terms.end(),
                                     [&](const Term& t) { return t.order == order; });
        const Type& type = in_[node.in[k]].type;
        in.push_back(it == x.terms.end() ? b_.zeros(type.width, type.dims) : it->out);
        if (it == x.terms.end()) continue;
        whole.scalar = fresh ? it->scalar : joint(whole.scalar, it->scalar);
        whole.vector = fresh ? it->vector : joint(whole.vector, it->vector);
        whole.linear = fresh ? it->linear : whole.linear & it->linear;
        whole.holds |= it->holds;
        fresh = false;
      }
      whole.out = make(in);
      terms.push_back(whole);
    }
    return terms;
  }
  Series visit(const Concat& op, const Node& node) {
    std::vector<Term> terms =
        order_by_order(node, 0, [&](const std::vector<NodeId>& in) { return b_.add(op, in); });
    Series rest;
    for (std::size_t k = 0; k < node.in.size(); ++k) inherit(rest, operand(node, k), parts_.one());
    return gather(std::move(terms), node.type, std::move(rest));
  }

  // ---- matrices
  struct Matrix {
    NodeId out;      ///< the Gaussian matrix, scaled
    Exponent order;  ///< times n^order
    SourceId source;
    struct Update {
      Series c, d, x;
      Dims dims;
    };
    std::vector<Update> updates;  ///< + sum c d x' / n
    bool zero = false;            ///< no Gaussian matrix, only updates
    /// Sums D and X of d and x of which only bounds matter: parts of updates of relative size below
    /// n^-depth.
    std::set<std::pair<Sum, Sum>> bounds;
  };
  void matrix_step(const Node& node) {
    if (node.type.entries)
      return reject("E3106",
                    "entrywise updates of width matrices are followed in leading order only",
                    "the update is no sum of few outer products",
                    "check counts its powers of n, simulate runs networks");
    Matrix m;
    if (!node.in.empty()) m = matrices_.at(node.in[0]);
    visit_version(node.op,
                  overloaded{
                      [](const Parameter&) {},
                      [](const Stop&) {},
                      [&](const GaussianMatrix& g) {
                        m = {normals_[g.source] = b_.add(g, {}), 0, g.source, {}};
                      },
                      [&](const ScaleMatrix&) { scale(m, operand(node, 1)); },
                      [&](const UpdateMatrix&) {
                        for (std::size_t k = 1; k < node.in.size(); k += 3)
                          append(m, {operand(node, k), operand(node, k + 1), operand(node, k + 2),
                                     in_[node.in[k + 1]].type.dims});
                      },
                      [&](const AddVersion&) {
                        reject(
                            "E3106",
                            "sums of versions of a width matrix are followed in leading order only",
                            "", "check counts their powers of n, simulate runs networks");
                      },
                      [&](const AddEntries& op) { impossible(op); },
                  });
    matrices_[current_] = std::move(m);
  }
  void scale(Matrix& m, const Series& c) {
    if (c.terms.empty() && c.dropped == 0) {
      m.zero = true;
      m.updates.clear();
      m.bounds.clear();
      return;
    }
    if (c.terms.size() != 1 || c.dropped != 0)
      return reject("E3102", "a matrix is scaled by something that is no plain power of the width",
                    "", "scale by constants");
    m.order += c.terms[0].order;
    m.out = b_.add(ScaleMatrix{}, {m.out, c.terms[0].out});
    for (auto& u : m.updates)
      u.c = bilinear(u.c, c, {}, [&](NodeId x, NodeId y) { return b_.times(x, y); });
    std::set<std::pair<Sum, Sum>> bounds;
    for (const auto& [d, x] : m.bounds) bounds.insert({parts_.times(d, kept(c)), x});
    m.bounds = std::move(bounds);
  }
  /// Of an update that is n^-depth times the matrix only the leading part is carried.  Those with
  /// the same x are one.
  void append(Matrix& m, Matrix::Update u) {
    const auto leading = [](const Series& s) { return Series{{s.terms[0]}, 0, {}}; };
    if (u.c.terms.empty() || u.d.terms.empty() || u.x.terms.empty() || m.zero ||
        u.c.terms[0].order + u.d.terms[0].order + u.x.terms[0].order > m.order - options_.depth) {
      m.updates.push_back(std::move(u));
      return;
    }
    const Sum d = parts_.times(kept(leading(u.c)), kept(leading(u.d)));
    const Sum below =
        parts_.plus(parts_.times(parts_.plus(kept(u.c, 1), u.c.dropped), all(u.d)),
                    parts_.times(kept(leading(u.c)), parts_.plus(kept(u.d, 1), u.d.dropped)));
    m.bounds.insert({below, all(u.x)});
    m.bounds.insert({d, parts_.plus(kept(u.x, 1), u.x.dropped)});
    Term lead =
        multiplied(u.c.terms[0], u.d.terms[0], [&](NodeId c, NodeId v) { return b_.times(c, v); });
    for (Matrix::Update& v : m.updates) {
      if (v.x.terms.size() != 1 || v.x.dropped != 0 || v.x.terms[0].out != u.x.terms[0].out ||
          v.x.terms[0].order != u.x.terms[0].order || v.d.terms.size() != 1 || v.d.dropped != 0)
        continue;
      Term& own = v.d.terms[0];
      if (own.order != lead.order) continue;
      own.out = together(own.out, lead.out);
      own.scalar = joint(own.scalar, lead.scalar);
      own.vector = joint(own.vector, lead.vector);
      own.holds |= lead.holds;
      own.linear &= lead.linear;
      return;
    }
    m.updates.push_back({one({}), Series{{lead}, 0, {}}, leading(u.x), std::move(u.dims)});
  }
  Series visit(const MatMul& op, const Node& node) {
    const Matrix& w = matrices_.at(node.in[0]);
    const Series& x = operand(node, 1);
    Series sum;
    std::vector<Term> terms;
    for (const Term& t : x.terms) {
      if (w.zero) break;
      const Sum flipped = parts_.flipped(parts_.one(t.part()), w.source.value);
      const Part& p = parts_[flipped].front();
      terms.push_back({t.order + w.order, b_.matmul(w.out, t.out, op.transposed), p.scalar,
                       p.vector, t.holds, t.linear});
      drop(sum, parts_.one({t.order + w.order - Exponent(1, 2), 0, p.scalar, p.vector}),
           current_);  // its inner averages fluctuate
    }
    if (!w.zero) {
      drop(sum, parts_.shifted(parts_.flipped(x.dropped, w.source.value), w.order), x.culprit);
      drop_rms(sum, x, w.order);  // Gaussian, of variance E x^2
    }
    const std::int64_t columns = size_of(node.type.dims);
    const auto flat = [&](const Series& s, std::int64_t size) {
      return linear(s, {false, true, {size}}, [&](NodeId v) { return b_.reshape(v, {size}); });
    };
    const Series z = flat(x, columns);
    for (const auto& [d, x_parts] : w.bounds)
      drop(sum,
           parts_.times(op.transposed ? x_parts : d,
                        parts_.average(parts_.times(all(z), op.transposed ? d : x_parts))),
           current_);
    for (const Matrix::Update& u : w.updates) {
      const std::int64_t size = size_of(u.dims);
      const Series left = flat(op.transposed ? u.x : u.d, size),
                   right = flat(op.transposed ? u.d : u.x, size);
      // c D E(X z): [columns, size] by [size].
      std::vector<Term> products;
      for (const Term& a : z.terms)
        for (const Term& b : right.terms)
          products.push_back(
              multiplied(a, b, [&](NodeId p, NodeId q) { return b_.contract(p, q, 0, 0, true); }));
      Series rest;
      drop(rest, parts_.average(parts_.times(z.dropped, times_rest_of(z, right))), z.culprit);
      drop(rest, parts_.average(parts_.times(kept(z), right.dropped)), right.culprit);
      const Series mean = averaged(products, std::move(rest), {false, false, {columns, size}});
      const Series coefficient = bilinear(mean, u.c, {false, false, {columns, size}},
                                          [&](NodeId a, NodeId b) { return b_.times(a, b); });
      const Series term =
          bilinear(coefficient, left, {false, true, {columns}},
                   [&](NodeId a, NodeId b) { return b_.contract(a, b, 0, 1, false); });
      for (const Term& t : term.terms)
        terms.push_back(
            {t.order, b_.reshape(t.out, node.type.dims), t.scalar, t.vector, t.holds, t.linear});
      drop(sum, term.dropped, term.culprit);
      sum.spike = larger(sum.spike, term.spike);
    }
    return gather(std::move(terms), node.type, std::move(sum));
  }

  // ---- results
  std::optional<Diagnostic> fault(NodeId id, Span span, const std::string& what,
                                  const std::string& iteration) {
    const Series& x = series_[id.value];
    if (!x.terms.empty() && x.terms[0].order > 0)
      return faults::explodes(
          what, span,
          fmt::format("of size {}{}", power_of_width(x.terms[0].order, in_.width_name), iteration));
    if (const auto size = parts_.size(x.dropped); size && *size >= 0) {
      Diagnostic d = faults::depends_on_dropped(
          what, span, power_of_width(*size, in_.width_name), iteration,
          "carried are terms down to n^(-1/2) of the largest, and random numbers that are linear "
          "in a Gaussian readout or matrix; training in the kernel regime also follows ntk and "
          "predict_gd");
      const Node& culprit = in_[x.culprit];
      const auto* c = std::get_if<Contract>(&culprit.op);
      const bool fluctuation = std::holds_alternative<Average>(culprit.op) ||
                               std::holds_alternative<MatMul>(culprit.op) || (c && c->average);
      const auto* m = std::get_if<Map>(&culprit.op);
      const bool jumps = compares(culprit.op) ||
                         (m && (m->fn == Fn::kSign || m->fn == Fn::kMod || m->fn == Fn::kWhere));
      d.notes.push_back(
          {(fluctuation ? "dropped here: the fluctuation of an average, n^(-1/2) times the size of "
                          "its terms"
            : jumps ? "dropped here: what changes where the argument crosses a jump of the function"
                    : "dropped here: a term smaller than the one beside it") +
               (culprit.context
                    ? fmt::format(" (in the iteration {})", in_.contexts[culprit.context])
                    : std::string()),
           culprit.span});
      return d;
    }
    return std::nullopt;
  }
  NodeId limit_of(NodeId id) {
    const Series& x = series_[id.value];
    return !x.terms.empty() && x.terms[0].order == 0
               ? x.terms[0].out
               : b_.zeros(in_[id].type.width, in_[id].type.dims);
  }

  Result<LeadingOrder> finish() {
    LeadingOrder result;
    const KnownLimits known{[this](auto&&... output) { return fault(output...); },
                            [this](NodeId id) {
                              const std::vector<Term>& terms = series_[id.value].terms;
                              return terms.empty() ? std::nullopt : std::optional(terms[0].order);
                            },
                            [this](NodeId id) { return limit_of(id); }};
    Diagnostics errors;
    for (auto& [id, error] : limit_outputs(in_, out_, b_, known, result))
      errors.push_back(std::move(error));
    if (!errors.empty()) return errors;
    for (NamedValue named : in_.names) {
      if (in_[named.value].type.matrix) continue;
      const Series& x = series_[named.value.value];
      if (x.terms.empty()) continue;
      named.order = x.terms[0].order;
      named.value = x.terms[0].out;
      if (named.of.valid()) {
        const Series& of = series_[named.of.value];
        if (of.terms.empty()) continue;
        named.of = of.terms[0].out;
      }
      out_.names.push_back(std::move(named));
    }
    for (TrainingStep step : in_.steps) {
      step.losses.clear();
      out_.steps.push_back(std::move(step));
    }
    hold_decisions(out_, decisions_);
    // Slopes of readouts are taken of n times a mean: powers of n that cancel are left in them, and
    // vanish at n = 1.
    result.program = erase_identities(at_width(erase_identities(out_), 1));
    release_decisions(result, in_, std::move(decisions_));
    result.random_outputs = random_outputs_;
    return result;
  }

  const Program& in_;
  const GradedOptions& options_;
  Program out_;
  Builder b_;
  PartSums parts_;
  std::vector<Series> series_;
  std::map<NodeId, Matrix> matrices_;
  NodeId target_, given_;  ///< the value that is given (in_); the number that stands for it
  std::vector<bool> behind_target_;
  std::optional<std::vector<double>> beside_;
  std::vector<SourceId>
      readout_sources_;  ///< in one order for the whole program, so that outputs have a joint law
  std::map<SourceId, NodeId> normals_;
  std::map<NodeId, Readout> readouts_;                ///< by source
  std::map<NodeId, std::set<NodeId>> behind_slopes_;  ///< sources that the slopes of one depend on
  std::map<NodeId, NodeId> drawn_;
  bool random_outputs_ = false;
  std::size_t tries_ = 0;
  std::vector<Decision> decisions_;
  std::optional<Diagnostic> error_;
  NodeId current_;
};

}  // namespace

Result<LeadingOrder> graded_limit(const Program& program, const GradedOptions& options) {
  Grading grading(program, options);
  Result<LeadingOrder> limit = grading.run();
  if (!limit || !grading.beside()) return limit;
  // f = random number + constant is given: the number is the rest.
  GradedOptions shifted = options;
  const std::vector<double>& constant = *grading.beside();
  auto& values = shifted.given->values;
  if (values.size() < constant.size()) values.assign(constant.size(), values[0]);
  for (std::size_t k = 0; k < values.size(); ++k)
    values[k] -= constant[constant.size() == 1 ? 0 : k];
  return Grading(program, shifted).run();
}

}  // namespace tplimit
