#include "tplimit/passes/regime.hpp"

#include <algorithm>
#include <set>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/passes/powers.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

const char* to_string(Regime regime) {
  switch (regime) {
    case Regime::kUntrained: return "untrained";
    case Regime::kUnstable: return "unstable";
    case Regime::kTrivial: return "trivial";
    case Regime::kKernel: return "kernel regime";
    case Regime::kFeatures: return "feature learning";
  }
  return "";
}

namespace {

using Sum = PartSums::Id;

std::optional<Exponent> smaller(std::optional<Exponent> a, std::optional<Exponent> b) {
  return !a || !b ? std::nullopt : std::optional(std::min(*a, *b));
}

constexpr std::uint64_t kWatched = PartSums::kWatched, kOthers = 2;

/// Which nodes are versions of variables: Parameter nodes, matrix updates above them, and sums with
/// a Change.
struct Versions {
  std::vector<bool> declared;  ///< matrices made by the declaration: below the first Parameter
                               ///< node; those above by training
  std::map<NodeId, std::uint32_t> of;
  std::map<std::string, std::uint32_t> variable_of_name;

  explicit Versions(const Program& program) : declared(program.size(), false) {
    for (std::uint32_t v = 0; v < program.variables.size(); ++v)
      variable_of_name.emplace(program.variables[v].name, v);
    for (std::size_t k = 0; k < program.size(); ++k) {
      const Node& node = program.nodes[k];
      declared[k] = node.type.matrix && !node.type.entries &&
                    !std::holds_alternative<Parameter>(node.op) &&
                    (node.in.empty() || declared[node.in[0].value]);
    }
    const auto variable_of = [&](SourceId source) {
      const auto it = variable_of_name.find(program.sources[source.value].name);
      return it == variable_of_name.end() ? 0xffffffff : it->second;
    };
    for (std::uint32_t k = 0; k < program.size(); ++k) {
      const Node& node = program.nodes[k];
      const NodeId id{k};
      if (std::holds_alternative<Parameter>(node.op)) {
        // The source below it, if there is one.
        if (const auto it = of.find(node.in[0]); it != of.end()) {  // assigned by the script
          of[id] = it->second;
          continue;
        }
        NodeId below = node.in[0];
        std::vector<NodeId> stack{below};
        std::set<NodeId> seen;
        while (!stack.empty()) {
          below = stack.back();
          stack.pop_back();
          if (!seen.insert(below).second) continue;
          std::optional<SourceId> source;
          if (const auto* s = std::get_if<StandardNormal>(&program[below].op)) source = s->source;
          if (const auto* g = std::get_if<GaussianMatrix>(&program[below].op)) source = g->source;
          if (source && variable_of(*source) != 0xffffffff) of[id] = variable_of(*source);
          for (const NodeId in : program[below].in) stack.push_back(in);
        }
      } else if (node.type.matrix && !node.type.entries && !node.in.empty() && !declared[k]) {
        if (const auto it = of.find(node.in[0]); it != of.end()) of[id] = it->second;
      } else if (std::holds_alternative<Map>(node.op)) {
        for (const NodeId in : node.in)
          if (const auto* c = std::get_if<Change>(&program[in].op)) of[id] = c->variable;
      }
    }
  }
};

/// Shares of single variables, of which there are many, are counted with fewer symmetries.
constexpr PartSums::Limits kSizes{8, 4}, kShares{3, 2};

/// Which updates a part needs is followed for one variable at a time, against all others, or for
/// all variables as one: sets of causes are as many as there are subsets of the variables, and the
/// sizes asked for do not need them.
class Counting {
 public:
  Counting(const Program& program, const Versions& versions, const Adjustment& adjustment,
           std::vector<bool> watched = {})
      : in_(program),
        versions_(versions),
        adjust_(adjustment),
        watched_(std::move(watched)),
        initial_program_(without_nodes(program)),
        start_(initial_program_),
        parts_(watched_.empty() ? kSizes : kShares) {
    choose_flips();
    for (const TrainingStep& step : program.steps) trained_ = trained_ || !step.losses.empty();
    sums_.assign(program.size(), 0);
    initial_.assign(program.size(), NodeId{});
    for (std::uint32_t k = 0; k < program.size(); ++k) {
      const NodeId id{k};
      find_initial(id);
      if (in_[id].type.entries) entries_.emplace(id, entries(in_[id]));
      if (in_[id].type.matrix) continue;
      Sum own = visit(id);
      // A difference of equal initial values is none: z_t - z_0.
      if (start_.is_zero(initial_[k])) own = parts_.changed(own);
      sums_[k] = own;
    }
  }

  RegimeReport report();
  [[nodiscard]] std::optional<Exponent> size(NodeId id) const {
    return parts_.size(sums_[id.value]);
  }
  /// What grows first, unless it is large at the start.
  [[nodiscard]] NodeId grown_by_updates() const {
    if (!growing_.valid()) return {};
    const auto start = parts_.size_caused_by(sums_[growing_.value], 0, true);
    return start && *start > 0 ? NodeId{} : growing_;
  }
  [[nodiscard]] const std::map<std::uint32_t, MaybeExponent>& decays() const { return decay_; }
  /// Of the part that the updates of the watched variables are needed for.
  [[nodiscard]] std::optional<Exponent> size_by_watched(NodeId id) const {
    return parts_.size_caused_by(sums_[id.value], kWatched, false);
  }

 private:
  [[nodiscard]] std::uint64_t bit(std::uint32_t variable) const {
    const bool others = !watched_.empty() && (variable >= watched_.size() || !watched_[variable]);
    return others ? kOthers : kWatched;
  }
  /// A flip for each Gaussian vector, then for each matrix; those that are left flip together,
  /// which is a symmetry too.
  void choose_flips() {
    std::vector<bool> matrix(in_.sources.size(), false);
    for (const Node& node : in_.nodes)
      if (const auto* g = std::get_if<GaussianMatrix>(&node.op)) matrix[g->source.value] = true;
    flip_.resize(in_.sources.size());
    std::uint32_t next = 0;
    for (const bool matrices : {false, true})
      for (std::size_t k = 0; k < flip_.size(); ++k)
        if (matrix[k] == matrices) flip_[k] = std::min(next++, 63u);
  }
  Sum flipped(Sum x, SourceId source) { return parts_.flipped(x, flip_[source.value]); }

  // ---- counting
  /// The same value with no update made, in a program where equal values are one node.
  void find_initial(NodeId id) {
    const Node& node = in_[id];
    std::vector<NodeId> in;
    for (const NodeId k : node.in) in.push_back(initial_[k.value]);
    NodeId out;
    if (std::holds_alternative<Change>(node.op))
      out = start_.zeros(node.type.width, node.type.dims);
    else if (node.type.matrix && !versions_.declared[id.value] &&
             (is_update(node.op) || std::holds_alternative<ScaleMatrix>(node.op)))
      out = in[0];
    else if (const auto* c = std::get_if<Constant>(&node.op))
      out = start_.constant(*c, node.type.dims);
    else
      out = start_.add(node.op, std::move(in));
    if (!node.type.matrix && start_.type(out) != node.type)
      out = start_.expand(out, node.type.width, node.type.dims);
    initial_[id.value] = out;
  }

  [[nodiscard]] Sum of(NodeId id) const { return sums_[id.value]; }
  [[nodiscard]] Sum of(const Node& node, std::size_t k) const { return sums_[node.in[k].value]; }
  [[nodiscard]] Exponent factor(const std::map<std::uint32_t, Exponent>& factors,
                                std::uint32_t variable) const {
    const auto it = factors.find(variable);
    return it == factors.end() ? Exponent(0) : it->second;
  }
  [[nodiscard]] std::uint32_t variable_of(SourceId source) const {
    const auto it = versions_.variable_of_name.find(in_.sources[source.value].name);
    return it == versions_.variable_of_name.end() ? 0xffffffff : it->second;
  }
  Exponent initial_factor(SourceId source) const {
    return factor(adjust_.initial, variable_of(source));
  }

  /// What is added to a matrix: terms c d x' / n, each a sum of parts caused by `causes`.
  struct Term {
    std::uint64_t causes;
    Sum c, d, x;
    friend auto operator<=>(const Term&, const Term&) = default;
  };
  struct Matrix {
    Sum scale = 0;  ///< of the Gaussian matrix, its change by weight decay included
    SourceId source;
    std::set<Term> terms;
  };
  const Matrix& matrix(NodeId id) {
    // Versions follow each other: what is asked for was mostly found before.
    if (const auto it = matrices_.find(id); it != matrices_.end()) return it->second;
    std::vector<NodeId> chain{id};
    while (!matrices_.contains(chain.back()) && !in_[chain.back()].in.empty())
      chain.push_back(in_[chain.back()].in[0]);
    for (std::size_t k = chain.size(); k-- > 0;) {
      if (matrices_.contains(chain[k])) continue;
      const Node& node = in_[chain[k]];
      matrices_.emplace(chain[k], version(chain[k], node));
    }
    return matrices_.at(id);
  }

  Matrix version(NodeId id, const Node& node) {
    Matrix m;
    if (!node.in.empty()) m = matrices_.at(node.in[0]);
    const std::uint32_t variable = node.in.empty() ? 0 : variable_of(m.source);
    const bool declared = versions_.declared[id.value];
    const std::uint64_t causes = declared ? 0 : bit(variable);
    visit_version(
        node.op,
        overloaded{
            [](const Parameter&) {},
            [](const Stop&) {},
            [&](const GaussianMatrix& g) {
              m.source = g.source;
              m.scale = parts_.one({}, initial_factor(g.source));
            },
            [&](const ScaleMatrix&) {
              if (!declared) note_decay(variable, node.in[1]);
              if (!declared && !adjust_.decay && of(node, 1) != 0) return;
              const Sum c = of(node, 1), scaled = parts_.times(m.scale, c);
              m.scale = declared || scaled == 0
                            ? scaled
                            : parts_.plus(m.scale, parts_.caused_by(scaled, causes));
              std::set<Term> terms;
              for (Term t : m.terms) {
                t.c = parts_.times(t.c, c);
                terms.insert(t);
              }
              m.terms = std::move(terms);
            },
            [&](const UpdateMatrix&) {
              for (std::size_t j = 1; j + 2 < node.in.size(); j += 3) {
                const Sum c =
                    parts_.shifted(of(node, j), declared ? initial_factor(m.source)
                                                         : factor(adjust_.rate, variable));
                m.terms.insert({causes, parts_.caused_by(c, 0),
                                parts_.caused_by(of(node, j + 1), 0),
                                parts_.caused_by(of(node, j + 2), 0)});
              }
            },
            [&](const AddVersion&) {
              const Matrix other = matrix(node.in[2]);  // a copy: more matrices may be found
              const Sum c = of(node, 1);
              if (other.scale != 0) note_decay(variable, node.in[1]);
              if (adjust_.decay)
                m.scale =
                    parts_.plus(m.scale, parts_.caused_by(parts_.times(other.scale, c), causes));
              for (Term t : other.terms) {
                t.c = parts_.times(t.c, parts_.caused_by(c, 0));
                m.terms.insert(t);
              }
            },
            [&](const AddEntries&) {
              const Entries a = entries_of(node.in[2]);
              const auto size = parts_.size(a.value);
              if (!size) return;
              const Sum c =
                  parts_.shifted(parts_.caused_by(of(node, 1), 0), factor(adjust_.rate, variable));
              m.terms.insert({causes, parts_.shifted(c, *size), a.d, a.x});
            },
        });
    return m;
  }

  /// W x or W' x; `updates` only: the part that its updates make.
  Sum apply(const Matrix& w, Sum x, bool transposed, bool updates_only = false) {
    Sum out = updates_only ? 0 : parts_.times(w.scale, flipped(x, w.source));
    for (const Term& t : w.terms) {
      if (updates_only && t.causes == 0) continue;
      const Sum mean = parts_.average(parts_.times(transposed ? t.d : t.x, x));
      const Sum product = parts_.times(parts_.times(t.c, transposed ? t.x : t.d), mean);
      out = parts_.plus(out, t.causes ? parts_.times(product, cause(t.causes)) : product);
    }
    return out;
  }
  /// sum over all entries of A B / n.
  Sum inner_product(const Matrix& a, const Matrix& b) {
    Sum out = parts_.shifted(parts_.times(a.scale, b.scale), a.source == b.source ? 0 : -1);
    const auto updates = [&](const Matrix& of, const Matrix& other) {
      for (const Term& t : of.terms) {
        const Sum mean = parts_.average(parts_.times(t.d, apply(other, t.x, false)));
        const Sum product = parts_.shifted(parts_.times(t.c, mean), -1);
        out = parts_.plus(out, t.causes ? parts_.times(product, cause(t.causes)) : product);
      }
    };
    updates(a, b);
    Matrix gaussian = a;
    gaussian.terms.clear();
    updates(b, gaussian);
    return out;
  }
  /// 1 with causes, which a product inherits.
  Sum cause(std::uint64_t causes) { return parts_.caused_by(parts_.one(), causes); }

  // ---- weight decay

  /// A change of a variable: c theta, c of size n^decay, and everything else.
  struct Moved {
    Sum gradient = 0, shrinking = 0;
    MaybeExponent decay;
  };
  /// Sums are taken apart as far as factors are numbers; functions of theta, as the steps of Adam
  /// with a decay inside, are none of these.
  Moved moved_by(std::uint32_t variable, NodeId id) {
    if (const auto it = versions_.of.find(id); it != versions_.of.end() && it->second == variable)
      return {0, of(id), Exponent(0)};
    const auto key = std::pair(variable, id);
    if (const auto it = moved_.find(key); it != moved_.end()) return it->second;
    const Node& node = in_[id];
    Moved out{of(id), 0, {}};
    const auto* m = std::get_if<Map>(&node.op);
    const auto scaled = [&](Moved x, Sum by) {
      x.gradient = parts_.times(x.gradient, by);
      x.shrinking = parts_.times(x.shrinking, by);
      if (x.decay && by != 0) *x.decay += *parts_.size(by);
      return x;
    };
    if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) {
      const Moved a = moved_by(variable, node.in[0]), b = moved_by(variable, node.in[1]);
      if (a.decay || b.decay)
        out = {parts_.plus(a.gradient, b.gradient), parts_.plus(a.shrinking, b.shrinking),
               larger(a.decay, b.decay)};
    } else if (m && m->fn == Fn::kMul) {
      for (const std::size_t k : {std::size_t{0}, std::size_t{1}})
        if (!in_[node.in[1 - k]].type.width)
          if (const Moved x = moved_by(variable, node.in[k]); x.decay && !out.decay)
            out = scaled(x, of(node.in[1 - k]));
    } else if (const auto* c = std::get_if<Scale>(&node.op); c && c->factor != 0) {
      if (const Moved x = moved_by(variable, node.in[0]); x.decay)
        out = scaled(x, parts_.one({}, c->power));
    } else if (std::holds_alternative<Expand>(node.op)) {
      if (const Moved x = moved_by(variable, node.in[0]); x.decay) out = x;
    }
    return moved_.emplace(key, out).first->second;
  }
  [[nodiscard]] MaybeExponent decay(std::uint32_t variable) const {
    const auto it = decay_.find(variable);
    return it == decay_.end() ? std::nullopt : it->second;
  }
  /// A matrix becomes c W: of size n^p where c is 1 + n^p or a number.
  void note_decay(std::uint32_t variable, NodeId c) {
    const Node& node = in_[c];
    const auto* m = std::get_if<Map>(&node.op);
    const auto is_number = [&](NodeId id) { return std::holds_alternative<Constant>(in_[id].op); };
    Sum size = of(c);
    if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub))
      for (const std::size_t k : {std::size_t{0}, std::size_t{1}})
        if (is_number(node.in[k])) size = of(node.in[1 - k]);
    decay_[variable] = larger(decay(variable), parts_.size(size));
  }

  Sum visit(NodeId id) {
    const Node& node = in_[id];
    return std::visit(
        overloaded{
            [&](const Constant& c) -> Sum {
              return std::any_of(c.values->begin(), c.values->end(),
                                 [](double x) { return x != 0; })
                         ? parts_.one()
                         : 0;
            },
            [&](const StandardNormal& s) { return flipped(parts_.one(), s.source); },
            [&](const Scale& s) {
              return s.factor == 0 ? Sum{0} : parts_.shifted(of(node, 0), s.power);
            },
            [&](const Map& m) { return map(m, node.in, [&](NodeId in) { return of(in); }); },
            [&](const Contract& c) {
              const Sum product = parts_.times(of(node, 0), of(node, 1));
              return c.average ? parts_.average(product) : product;
            },
            [&](const Average&) { return parts_.average(of(node, 0)); },
            [&](const Change& c) {
              const Moved moved = moved_by(c.variable, node.in[0]);
              if (moved.decay) decay_[c.variable] = larger(decay(c.variable), moved.decay);
              const Sum gradient = parts_.shifted(moved.gradient, factor(adjust_.rate, c.variable));
              const Sum x = adjust_.decay ? parts_.plus(gradient, moved.shrinking) : gradient;
              return parts_.caused_by(x, bit(c.variable));
            },
            [&](const MatMul& m) { return apply(matrix(node.in[0]), of(node, 1), m.transposed); },
            [&](const Concat&) {
              Sum out = 0;
              for (std::size_t k = 0; k < node.in.size(); ++k) out = parts_.plus(out, of(node, k));
              return out;
            },
            [&](const ReduceMax&) { return parts_.without_parity(of(node, 0)); },
            // log(1 + e^x) of as many: the same sizes and symmetries.
            [&](const LogSumExp&) {
              return parts_.map({Fn::kSoftplus, 0}, of(node, 0));
            },
            [&](const Eigvals&) { return parts_.without_parity(of(node, 0)); },
            [&](const TrainingOperator&) {
              return parts_.general({of(node, 0), of(node, 1)});
            },
            [&](const Solve&) { return parts_.times(of(node, 1), parts_.inverse(of(node, 0))); },
            [&](const LogDet&) {
              return parts_.map({Fn::kLog, 0}, of(node, 0));
            },
            [&](const Samples&) { return parts_.without_parity(of(node, 0)); },
            [&](const Histogram&) { return parts_.comparison(of(node, 0), 0); },
            [&](const GaussianMatrix&) -> Sum { return 0; },
            [&](const ScaleMatrix&) -> Sum { return 0; },
            [&](const UpdateMatrix&) -> Sum { return 0; },
            [&](const AddVersion&) -> Sum { return 0; },
            [&](const OuterSum&) -> Sum { return 0; },
            [&](const MatrixEntries&) -> Sum { return 0; },
            [&](const AddEntries&) -> Sum { return 0; },
            [&](const InnerProduct&) {
              return inner_product(matrix(node.in[0]), matrix(node.in[1]));
            },
            [&](const Cholesky&) { return of(node, 0); },
            [&](const Stop&) { return of(node, 0); },
            // The declaration's value, whatever function of a Gaussian it is, times a power.
            [&](const Parameter&) {
              const auto it = versions_.of.find(id);
              return it == versions_.of.end() || versions_.of.contains(node.in[0])
                         ? of(node, 0)
                         : parts_.shifted(of(node, 0), factor(adjust_.initial, it->second));
            },
            // Entries moved along finite axes, or summed.
            [&](const ReduceSum&) { return of(node, 0); },
            [&](const Gather&) { return of(node, 0); },
            [&](const ScatterAdd&) { return of(node, 0); },
            [&](const Permute&) { return of(node, 0); },
            [&](const Reshape&) { return of(node, 0); },
            [&](const Expand&) { return of(node, 0); },
        },
        node.op);
  }

  /// sum a_k g_k / sqrt(sum c_k g_k^2 ..), the steps of Adam: of size 1 at most (Cauchy-Schwarz),
  /// while parts know only that the denominator may be as small as each of its own.
  [[nodiscard]] bool is_normalised(NodeId above, NodeId below) const {
    const auto* root = std::get_if<Map>(&in_[below].op);
    if (root && root->fn == Fn::kAdd)  // eps
      for (const NodeId id : in_[below].in)
        if (const auto* m = std::get_if<Map>(&in_[id].op); m && m->fn == Fn::kSqrt)
          return is_normalised(above, id);
    if (!root || root->fn != Fn::kSqrt) return false;
    std::set<NodeId> terms, squares;
    collect_terms(above, terms);
    collect_terms(in_[below].in[0], squares);
    return std::all_of(terms.begin(), terms.end(), [&](NodeId g) {
      return std::any_of(squares.begin(), squares.end(), [&](NodeId id) {
        const auto* m = std::get_if<Map>(&in_[id].op);
        return m && m->fn == Fn::kPower && m->parameter == 2 && in_[id].in[0] == g;
      });
    });
  }
  /// Of a sum with numbers as coefficients.
  void collect_terms(NodeId id, std::set<NodeId>& out) const {
    const Node& node = in_[id];
    const auto* m = std::get_if<Map>(&node.op);
    const auto* s = std::get_if<Scale>(&node.op);
    const auto is_number = [&](NodeId k) { return std::holds_alternative<Constant>(in_[k].op); };
    if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) {
      for (const NodeId k : node.in) collect_terms(k, out);
    } else if (s && s->power == 0) {
      collect_terms(node.in[0], out);
    } else if (m && m->fn == Fn::kMul && (is_number(node.in[0]) || is_number(node.in[1]))) {
      collect_terms(node.in[is_number(node.in[0]) ? 1 : 0], out);
    } else if (m && m->fn == Fn::kDiv && is_number(node.in[1])) {
      collect_terms(node.in[0], out);
    } else {
      out.insert(id);
    }
  }

  template <class Of>
  Sum map(const Map& m, const std::vector<NodeId>& in, Of of) {
    if (in.size() == 1) return parts_.map(m, of(in[0]));
    switch (m.fn) {
      case Fn::kAdd:
      case Fn::kSub: return parts_.plus(of(in[0]), of(in[1]));
      case Fn::kMul: return parts_.times(of(in[0]), of(in[1]));
      case Fn::kDiv: {
        const Sum ratio = parts_.times(of(in[0]), parts_.inverse(of(in[1])));
        return is_normalised(in[0], in[1]) ? parts_.at_most(ratio, 0) : ratio;
      }
      case Fn::kLess:
      case Fn::kLessEqual:
      case Fn::kEqual:
      case Fn::kNotEqual: return parts_.comparison(of(in[0]), of(in[1]));
      default: break;
    }
    std::vector<Sum> values;
    for (std::size_t k = m.fn == Fn::kWhere ? 1 : 0; k < in.size(); ++k)
      values.push_back(of(in[k]));
    return parts_.general(values);
  }

  // ---- matrices of entries
  /// f(sum c d x') has a size, and the symmetries of f in d and in x: it is counted as that size
  /// times an outer product of size 1.
  struct Entries {
    Sum value, d, x;
  };
  [[nodiscard]] Entries entries_of(NodeId id) {
    if (const auto it = entries_.find(id); it != entries_.end()) return it->second;
    return {of(id), parts_.one(), parts_.one()};  // one number for all
  }
  Entries entries(const Node& node) {
    Entries out{0, 0, 0};
    if (std::holds_alternative<OuterSum>(node.op)) {
      for (std::size_t j = 0; j < node.in.size(); j += 3) {
        const Sum d = of(node, j + 1), x = of(node, j + 2);
        out.value = parts_.plus(out.value, parts_.times(of(node, j), parts_.times(d, x)));
        out.d = parts_.plus(out.d, parts_.caused_by(d, 0));
        out.x = parts_.plus(out.x, parts_.caused_by(x, 0));
      }
    } else if (std::holds_alternative<MatrixEntries>(node.op)) {
      // Initial entries have size n^(-1/2), those of updates are divided by n.
      const Matrix w = matrix(node.in[0]);
      out.value = parts_.shifted(w.scale, Exponent(-1, 2));
      for (const Term& t : w.terms)
        out.value = parts_.plus(
            out.value, parts_.shifted(parts_.times(t.c, parts_.times(t.d, t.x)), Exponent(-1)));
      out.d = out.x = parts_.one();
    } else if (const auto* scale = std::get_if<Scale>(&node.op)) {
      out = entries_of(node.in[0]);
      out.value = scale->factor == 0 ? Sum{0} : parts_.shifted(out.value, scale->power);
    } else {
      const auto* m = std::get_if<Map>(&node.op);
      TPLIMIT_CHECK(m, "an operation on entries, got {}", op_name(node.op));
      out.value = map(*m, node.in, [&](NodeId in) { return entries_of(in).value; });
      out.d = map(*m, node.in, [&](NodeId in) { return entries_of(in).d; });
      out.x = map(*m, node.in, [&](NodeId in) { return entries_of(in).x; });
    }
    out.d = parts_.leading(out.d);
    out.x = parts_.leading(out.x);
    return out;
  }

  // ---- what is reported
  static constexpr std::uint32_t kNoStep = 0xffffffff;
  struct Step {  ///< the forward pass between two steps
    std::vector<NodeId> predictions, losses;
    std::vector<bool>
        forward;  ///< what the predictions are computed from, back to the versions of the variables
  };
  void find_forward_passes();
  void find_effects();
  [[nodiscard]] StepSize sizes(NodeId id) const;
  std::vector<Feature> features() const;
  void find_growth();
  [[nodiscard]] std::optional<Diagnostic> growth() const;
  [[nodiscard]] bool is_output(std::uint32_t k) const;  ///< of a forward pass
  /// What comes later has powers that mean nothing.
  [[nodiscard]] bool counts(std::uint32_t step) const { return step <= last_step_; }

  const Program& in_;
  const Versions& versions_;
  const Adjustment& adjust_;
  std::vector<bool> watched_;        ///< of each variable; empty: all
  std::vector<std::uint32_t> flip_;  ///< of each source
  bool trained_ = false;
  Program initial_program_;
  Builder start_;
  PartSums parts_;
  std::vector<Sum> sums_;
  std::vector<NodeId> initial_;
  std::map<NodeId, Matrix> matrices_;
  std::map<NodeId, Entries> entries_;
  std::map<std::pair<std::uint32_t, NodeId>, Moved> moved_;
  std::map<std::uint32_t, MaybeExponent> decay_;  ///< of each variable: it shrinks by n^this

  std::vector<std::uint32_t> step_of_;  ///< first forward pass a node takes part in; none: kNoStep
  std::vector<bool> feature_;
  std::vector<std::vector<NodeId>> outputs_;  ///< predictions by step
  std::vector<VariableEffect> effects_;
  NodeId growing_;                     ///< the first that grows with n
  std::uint32_t last_step_ = kNoStep;  ///< with which stability ends
};

/// Values that predictions are computed from, step by step, ending at versions of variables.
void Counting::find_forward_passes() {
  outputs_.assign(in_.steps.size() + 1, {});
  for (const NamedValue& p : in_.predictions) outputs_[p.step].push_back(p.value);
  // Losses that are written without mse: what they compute from averages.
  for (std::uint32_t s = 0; s < in_.steps.size(); ++s)
    if (outputs_[s].empty()) outputs_[s] = in_.steps[s].losses;
  step_of_.assign(in_.size(), kNoStep);
  feature_.assign(in_.size(), false);
  for (std::uint32_t s = 0; s < outputs_.size(); ++s) {
    std::vector<NodeId> stack = outputs_[s];
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (versions_.of.contains(id) || step_of_[id.value] != kNoStep) continue;
      step_of_[id.value] = s;
      const Node& node = in_[id];
      const auto* m = std::get_if<Map>(&node.op);
      const auto* c = std::get_if<Contract>(&node.op);
      const bool nonlinear = m && node.in.size() == 1;
      const bool contracts = (c && c->average) || std::holds_alternative<Average>(node.op) ||
                             std::holds_alternative<MatMul>(node.op);
      for (const NodeId in : node.in) {
        // Features: what nonlinear maps, matrices and readouts act on, but not the readout's own
        // weights.
        if (in_[in].type.width && (nonlinear || contracts)) {
          NodeId source = in;
          while (!versions_.of.contains(source) && in_[source].in.size() == 1 &&
                 !std::holds_alternative<Map>(in_[source].op))
            source = in_[source].in[0];
          if (!versions_.of.contains(source)) feature_[in.value] = true;
        }
        stack.push_back(in);
      }
    }
  }
}

void Counting::find_effects() {
  std::map<std::uint32_t, VariableEffect> effects;
  // Users of each node within forward passes, to follow n^-1 behind a product.
  std::vector<std::vector<NodeId>> users(in_.size());
  for (std::uint32_t k = 0; k < in_.size(); ++k)
    if (step_of_[k] != kNoStep && counts(step_of_[k]))
      for (const NodeId in : in_.nodes[k].in) users[in.value].push_back({k});
  // Scales, selections, sums of entries, and behind these what powers may have been moved past:
  // sums with other terms, products with finite layers and with constants.
  const auto passes = [&](NodeId user, bool alone) {
    const Node& node = in_[user];
    const auto* m = std::get_if<Map>(&node.op);
    const auto* c = std::get_if<Contract>(&node.op);
    if (node.in.size() == 1) return alone && !m && !std::holds_alternative<Average>(node.op);
    const auto constant = [&](NodeId in) {
      const Node& x = in_[std::holds_alternative<Expand>(in_[in].op) ? in_[in].in[0] : in];
      return std::holds_alternative<Constant>(x.op);
    };
    return !alone && ((m && (m->fn == Fn::kAdd || m->fn == Fn::kSub)) || (c && !c->average) ||
                      (m && m->fn == Fn::kMul && (constant(node.in[0]) || constant(node.in[1]))));
  };
  const auto behind = [&](NodeId id) {
    Exponent power = 0;
    for (;;) {
      NodeId next;
      for (const bool alone : {false, true})
        for (const NodeId user : users[id.value])
          if (passes(user, alone)) next = user;
      if (!next.valid()) return power;
      if (const auto* s = std::get_if<Scale>(&in_[next].op)) power += s->power;
      id = next;
    }
  };
  for (const auto& [version, variable] : versions_.of) {
    const std::uint64_t own = bit(variable);
    // Scaled or selected first, as in v / n @ z.
    std::vector<std::pair<NodeId, Exponent>> stack{{version, 0}};
    while (!stack.empty()) {
      const auto [id, before] = stack.back();
      stack.pop_back();
      for (const NodeId user : users[id.value]) {
        const Node& node = in_[user];
        if (node.in.size() == 1 && !std::holds_alternative<Map>(node.op) &&
            !std::holds_alternative<Average>(node.op)) {
          const auto* s = std::get_if<Scale>(&node.op);
          stack.emplace_back(user, before + (s ? s->power : Exponent(0)));
          continue;
        }
        auto [it, fresh] = effects.try_emplace(variable);
        VariableEffect& effect = it->second;
        if (fresh) effect = {variable, node.span, !node.type.width, {}, {}, {}, version, user};
        // Sizes before cancellation: of the product, term by term.
        std::optional<Exponent> initial, update;
        const Exponent after = before + behind(user);
        const auto* m = std::get_if<MatMul>(&node.op);
        if (m && node.in[1] == id) {  // an embedding that a matrix acts on
          Matrix w = matrix(node.in[0]);
          std::erase_if(w.terms, [](const Term& t) { return t.causes != 0; });
          w.scale = parts_.initial(w.scale);
          const Sum x = sums_[id.value];
          initial = parts_.size(apply(w, parts_.initial(x), m->transposed));
          update = parts_.size(apply(w, parts_.changed(x), m->transposed));
        } else if (m) {
          const Matrix& w = matrix(node.in[0]);
          const Sum x = sums_[node.in[1].value];
          effect.products.emplace_back(step_of_[user.value], user);
          initial = parts_.size_caused_by(apply(w, parts_.initial(x), m->transposed), 0, true);
          update = parts_.size(apply(w, x, m->transposed, true));
        } else if (const auto* c = std::get_if<Contract>(&node.op); c && c->average) {
          const Sum v = sums_[id.value];
          const Sum z = sums_[(node.in[0] == id ? node.in[1] : node.in[0]).value];
          const auto vi = parts_.size_caused_by(v, 0, true),
                     zi = larger(parts_.size_caused_by(z, 0, true), parts_.size(z));
          if (vi && zi) initial = *vi + *zi;
          update = parts_.size_caused_by(parts_.average(parts_.times(v, parts_.caused_by(z, 0))),
                                         own, true);
        } else {
          // The variable's own part only: a bias beside other terms.
          Sum own_part = sums_[id.value];
          if (std::holds_alternative<Contract>(node.op) ||
              (std::holds_alternative<Map>(node.op) && std::get<Map>(node.op).fn == Fn::kMul))
            own_part = parts_.times(
                own_part,
                parts_.caused_by(sums_[(node.in[0] == id ? node.in[1] : node.in[0]).value], 0));
          initial = parts_.size_caused_by(own_part, 0, true);
          update = parts_.size_caused_by(own_part, own, true);
        }
        // `before` is part of the operand's own size already.
        const Exponent power = after - before;
        if (initial) effect.initial = larger(effect.initial, *initial + power);
        if (update) effect.update = larger(effect.update, *update + power);
      }
    }
  }
  for (std::uint32_t k = 0; k < in_.size(); ++k) {
    const Node& node = in_.nodes[k];
    if (const auto* c = std::get_if<Change>(&node.op)) {
      if (const auto it = effects.find(c->variable); it != effects.end())
        it->second.entry = larger(it->second.entry, parts_.size(sums_[k]));
    } else if (is_update(node.op) && !versions_.declared[k]) {
      const Matrix& w = matrix({k});
      const auto it = effects.find(variable_of(w.source));
      if (it == effects.end()) continue;
      for (const Term& t : w.terms)
        if (const auto size = parts_.size(parts_.times(t.c, parts_.times(t.d, t.x)));
            size && t.causes)
          it->second.entry = larger(it->second.entry, *size - 1);
    }
  }
  for (auto& [variable, effect] : effects) effects_.push_back(effect);
}

StepSize Counting::sizes(NodeId id) const {
  StepSize out;
  const Sum s = sums_[id.value];
  out.value = parts_.size(s);
  for (const Part& p : parts_[s])
    if (p.causes) out.change = larger(out.change, p.order);
  return out;
}

/// Named values by the place in the text and, between two steps, by occurrence.
std::vector<Feature> Counting::features() const {
  std::vector<Feature> out;
  std::map<std::tuple<std::uint32_t, std::uint32_t, std::size_t, bool>, std::size_t> slot;
  std::map<std::tuple<std::uint32_t, std::uint32_t, bool, std::uint32_t>, std::size_t> occurrences;
  std::vector<std::vector<std::uint32_t>> contexts;
  const auto add = [&](const NamedValue& named, bool prediction) {
    const Node& node = in_[named.value];
    if (node.type.matrix || (!prediction && !node.type.width) || !counts(named.step) ||
        (trained_ && step_of_[named.value.value] == kNoStep))
      return;
    const std::size_t occurrence =
        occurrences[{named.span.begin, named.span.end, prediction, named.step}]++;
    const auto [it, fresh] =
        slot.try_emplace({named.span.begin, named.span.end, occurrence, prediction}, out.size());
    if (fresh) {
      // After training the same network is often evaluated again: it was named before.
      if (named.step > 0 && std::any_of(out.begin(), out.end(),
                                        [&](const Feature& f) { return f.name == named.name; })) {
        slot.erase(it);
        return;
      }
      out.push_back({named.name, named.span, prediction, {}});
      contexts.emplace_back();
    }
    Feature& feature = out[it->second];
    if (feature.steps.size() > named.step) return;
    while (feature.steps.size() < named.step)
      feature.steps.push_back(feature.steps.empty() ? StepSize{} : feature.steps.back());
    feature.steps.push_back(sizes(named.value));
    feature.steps.back().node = named.value;
    contexts[it->second].push_back(named.context);
  };
  std::set<std::tuple<std::string, NodeId, std::uint32_t>>
      seen;  // a model's value, named the same where it is returned
  for (const NamedValue& named : in_.names)
    if (named.kind == NamedValue::Kind::kValue &&
        seen.emplace(named.name, named.value, named.step).second)
      add(named, false);
  std::set<std::pair<std::string, NodeId>> predicted;  // reported and trained on: one output
  for (const NamedValue& named : in_.predictions)
    if (!named.name.empty() && predicted.emplace(named.name, named.value).second) add(named, true);
  // "l = 1": the loop variables that stay the same from step to step.
  for (std::size_t k = 0; k < out.size(); ++k) {
    const auto fields = [&](std::uint32_t context) {
      std::vector<std::string> parts;
      const std::string& text = in_.contexts[context];
      for (std::size_t from = 0; from < text.size();) {
        const std::size_t to = std::min(text.find(", ", from), text.size());
        parts.push_back(text.substr(from, to - from));
        from = to + 2;
      }
      return parts;
    };
    if (contexts[k].empty()) continue;
    std::vector<std::string> common = fields(contexts[k][0]);
    for (const std::uint32_t context : contexts[k]) {
      const std::vector<std::string> other = fields(context);
      std::erase_if(common, [&](const std::string& field) {
        return std::find(other.begin(), other.end(), field) == other.end();
      });
    }
    if (contexts[k].size() == 1 && in_.steps.size() > 1) common.clear();
    const bool again = std::any_of(out.begin(), out.end(), [&](const Feature& f) {
      return &f != &out[k] && f.span == out[k].span && f.prediction == out[k].prediction;
    });
    if (again && !common.empty()) out[k].name += ", " + common.back();
  }
  return out;
}

bool Counting::is_output(std::uint32_t k) const {
  const auto& outputs = outputs_[step_of_[k]];
  return std::find(outputs.begin(), outputs.end(), NodeId{k}) != outputs.end();
}

/// Where stability ends first: an argument of a function or matrix, or a prediction, that grows
/// with n.
void Counting::find_growth() {
  for (std::uint32_t k = 0; k < in_.size(); ++k) {
    if (step_of_[k] == kNoStep || !(feature_[k] || is_output(k))) continue;
    const auto size = parts_.size(sums_[k]);
    if (!size || *size <= 0) continue;
    growing_ = {k};
    last_step_ = std::max(step_of_[k], 1u);
    return;
  }
}

std::optional<Diagnostic> Counting::growth() const {
  if (!growing_.valid()) return std::nullopt;
  const std::uint32_t k = growing_.value, s = step_of_[k];
  const std::string when =
      s == 0 ? " at the start" : fmt::format(" after {} step{}", s, s == 1 ? "" : "s");
  return Diagnostic::warning("W5310", is_output(k) ? "the output grows with the width"
                                                   : "features grow with the width")
      .at(in_[growing_].span)
      .with_label(fmt::format("of size {}{}",
                              power_of_width(*parts_.size(sums_[k]), in_.width_name), when));
}

bool all_maximal(const std::vector<VariableEffect>& effects, const Program& program) {
  return std::all_of(effects.begin(), effects.end(), [&](const VariableEffect& e) {
    return !program.variables[e.variable].trained || e.maximal();
  });
}

RegimeReport Counting::report() {
  find_forward_passes();
  find_growth();
  find_effects();
  RegimeReport out;
  out.steps = static_cast<int>(std::min<std::size_t>(in_.steps.size(), last_step_));
  out.features = features();
  out.effects = effects_;
  for (const Report& report : in_.reports) {
    std::optional<Exponent> size;
    for (const auto& entry : report.entries) size = larger(size, parts_.size(of(entry.value)));
    out.reports.push_back(size);
  }
  out.unstable = growth();
  for (const NodeId id : outputs_[0])
    for (const Part& p : parts_[of(id)])
      if (p.order == 0 && (p.scalar.odd | p.scalar.mixed)) out.gaussian_start = true;
  if (!trained_) return out;
  std::optional<Exponent> output_change, feature_change;
  for (std::uint32_t k = 0; k < in_.size(); ++k) {
    if (step_of_[k] == kNoStep || !counts(step_of_[k])) continue;
    const bool output = is_output(k);
    if (!output && !feature_[k]) continue;
    for (const Part& p : parts_[sums_[k]])
      if (p.causes)
        (output ? output_change : feature_change) =
            larger(output ? output_change : feature_change, p.order);
  }
  const auto moves = [](std::optional<Exponent> change) { return change && *change >= 0; };
  out.regime = out.unstable            ? Regime::kUnstable
               : !moves(output_change) ? Regime::kTrivial
               : moves(feature_change) ? Regime::kFeatures
                                       : Regime::kKernel;
  out.maximal = out.regime == Regime::kFeatures && all_maximal(out.effects, in_);
  return out;
}

/// W of W[2], of an array, and of W.3, a block of a width 2 n.
std::string_view declaration(const Program& program, std::uint32_t variable) {
  const std::string_view name = program.variables[variable].name;
  return name.substr(0, name.find_first_of("[."));
}

/// Initial values so that preactivations have size 1 and readouts n^-1 per term, then rates so that
/// every update moves its layer by order 1.
std::vector<Fix> find_fixes(const Program& program, const Versions& versions,
                            const RegimeReport& first,
                            const std::map<std::uint32_t, MaybeExponent>& decays) {
  if (first.regime == Regime::kUntrained) return {};
  // Counted with rates so small that no update adds to another: where one explodes, all sizes do.
  const Exponent kFrozen = -1000;
  Adjustment adjustment{.initial = {}, .rate = {}, .decay = false};
  RegimeReport now;
  const auto recount = [&] { now = Counting(program, versions, adjustment).report(); };
  recount();
  const bool right = now.maximal;
  if (!right) {
    for (const VariableEffect& e : first.effects)
      if (program.variables[e.variable].trained) adjustment.rate[e.variable] = kFrozen;
    recount();
  }
  // In the order of the network: a layer's input must be right before the layer is.
  std::vector<VariableEffect> order = first.effects;
  std::sort(order.begin(), order.end(),
            [](const VariableEffect& a, const VariableEffect& b) { return a.user < b.user; });
  for (const VariableEffect& e : order) {
    if (right) break;
    const auto current =
        std::find_if(now.effects.begin(), now.effects.end(),
                     [&](const VariableEffect& x) { return x.variable == e.variable; });
    // A readout that starts smaller does no harm; a bias may start at 0.
    if (current == now.effects.end() || !current->initial || *current->initial == 0 ||
        (current->readout && *current->initial < 0))
      continue;
    if (!program.variables[e.variable].variance) continue;
    // Parts of one declaration that start alike are set together.
    const Exponent initial = *current->initial;
    for (const VariableEffect& x : now.effects)
      if (x.initial == initial && x.readout == current->readout &&
          declaration(program, x.variable) == declaration(program, e.variable))
        adjustment.initial[x.variable] = -initial;
    recount();
  }
  for (int round = 0; round < 4 && !now.maximal; ++round) {
    // A layer behind one that starts at 0 moves by the product of two updates: the first of them is
    // set first.
    std::optional<Exponent> largest;
    for (const VariableEffect& e : now.effects)
      if (program.variables[e.variable].trained && e.update && *e.update != 0)
        largest = larger(largest, e.update);
    if (!largest) break;
    for (const VariableEffect& e : now.effects)
      if (program.variables[e.variable].trained && e.update && *e.update != 0 &&
          *e.update > *largest + kFrozen / 2)
        adjustment.rate[e.variable] += -*e.update;
    recount();
  }
  if (!now.maximal) return {};
  std::vector<Fix> out;
  for (std::uint32_t v = 0; v < program.variables.size(); ++v) {
    Fix fix{v, 0, 0};
    if (adjustment.initial.contains(v)) fix.initial = adjustment.initial[v];
    if (adjustment.rate.contains(v)) fix.rate = adjustment.rate[v];
    // A variable may shrink by order 1 in a step, and no faster.
    if (const auto it = decays.find(v); it != decays.end() && it->second)
      fix.decay = std::min(Exponent(0), -(*it->second + fix.rate));
    if (fix.initial != 0 || fix.rate != 0 || fix.decay != 0) out.push_back(fix);
  }
  return out;
}

}  // namespace

namespace {

/// What `outputs` are computed from once more, with these versions of the variables: for each node
/// that which stands for it.
std::vector<NodeId> forward_pass(Builder& builder, const Versions& versions,
                                 const std::vector<NodeId>& outputs,
                                 const std::map<std::uint32_t, NodeId>& chosen) {
  const Program& program = builder.program();
  std::vector<NodeId> now(program.size());
  std::vector<bool> needed(program.size(), false);
  for (const NodeId id : outputs) needed[id.value] = true;
  for (auto k = static_cast<std::uint32_t>(program.size()); k-- > 0;)
    if (needed[k] && !versions.of.contains({k}))
      for (const NodeId in : program.nodes[k].in) needed[in.value] = true;
  for (std::uint32_t k = 0; k < now.size(); ++k) {
    now[k] = {k};
    if (!needed[k]) continue;
    const Node node = program.nodes[k];
    if (const auto it = versions.of.find({k}); it != versions.of.end()) {
      const auto version = chosen.find(it->second);
      if (version != chosen.end() && program[version->second].type == node.type)
        now[k] = version->second;
      continue;
    }
    std::vector<NodeId> in;
    for (const NodeId id : node.in) in.push_back(now[id.value]);
    if (in == node.in) continue;
    builder.set_origin(node.span, node.context);
    now[k] = builder.add(node.op, std::move(in));
    if (!node.type.matrix && builder.type(now[k]) != node.type)
      now[k] = builder.expand(now[k], node.type.width, node.type.dims);
  }
  return now;
}

}  // namespace

NodeId with_updates_of(Builder& builder, NodeId value, const std::vector<bool>& variables) {
  const Versions versions(builder.program());
  std::map<std::uint32_t, NodeId> first;
  for (const auto& [id, variable] : versions.of)
    if (variable < variables.size() && !variables[variable]) first.emplace(variable, id);
  return forward_pass(builder, versions, {value}, first)[value.value];
}

Program with_last_pass(Program program) {
  if (program.steps.empty()) return program;
  const auto steps = static_cast<std::uint32_t>(program.steps.size());
  const Versions versions(program);
  std::map<std::uint32_t, NodeId> newest;
  for (const auto& [id, variable] : versions.of) newest[variable] = id;
  std::uint32_t last = 0;
  std::vector<NodeId> outputs, losses;
  for (const NamedValue& p : program.predictions)
    if (p.step < steps) last = std::max(last, p.step);
  for (const NamedValue& p : program.predictions)
    if (p.step < steps && p.step == last) outputs.push_back(p.value);
  if (outputs.empty())
    for (std::uint32_t s = 0; s < steps; ++s)
      if (!program.steps[s].losses.empty()) {
        last = s;
        losses = program.steps[s].losses;
      }
  outputs.insert(outputs.end(), losses.begin(), losses.end());
  Builder builder(program);
  const std::vector<NodeId> now = forward_pass(builder, versions, outputs, newest);
  const auto repeat = [&](std::vector<NamedValue>& values) {
    std::set<std::pair<std::uint32_t, std::uint32_t>> known;
    for (const NamedValue& v : values)
      if (v.step == steps) known.emplace(v.span.begin, v.span.end);
    for (std::size_t k = 0, count = values.size(); k < count; ++k) {
      NamedValue named = values[k];
      if (named.step != last || now[named.value.value] == named.value ||
          versions.of.contains(named.value) || known.contains({named.span.begin, named.span.end}))
        continue;
      named.value = now[named.value.value];
      named.step = steps;
      values.push_back(std::move(named));
    }
  };
  repeat(program.names);
  repeat(program.predictions);
  for (const NodeId loss : losses)
    program.predictions.push_back({"", now[loss.value], 0, {}, 0, steps});
  return program;
}

RegimeReport count_powers(const Program& written, bool every_share) {
  const Program program = with_last_pass(written);
  const Versions versions(program);
  Counting all(program, versions, {});
  RegimeReport out = all.report();
  const NodeId grown = all.grown_by_updates();
  const auto trained = std::count_if(program.variables.begin(), program.variables.end(),
                                     [](const Variable& v) { return v.trained; });
  const bool shares = every_share || trained <= kFewVariables;
  // Of many variables, as heads of a fixed size make them, the parts of a declaration together.
  const bool alone = trained <= kManyVariables;
  const auto count = static_cast<std::uint32_t>(program.variables.size());
  if (shares)
    for (Feature& f : out.features)
      for (StepSize& s : f.steps) s.by_variable.resize(count);
  std::vector<bool> done(count);
  for (std::uint32_t v = 0; v < count; ++v) {
    if (done[v]) continue;
    if (!shares && (!grown.valid() || !out.unstable->notes.empty())) break;
    std::vector<bool> watched(count);
    for (std::uint32_t u = v; u < count; ++u)
      watched[u] = u == v || (!alone && declaration(program, u) == declaration(program, v));
    const Counting one(program, versions, {}, watched);
    for (std::uint32_t u = v; u < count; ++u) {
      if (!watched[u]) continue;
      done[u] = true;
      if (!shares) continue;
      for (Feature& f : out.features)
        for (StepSize& s : f.steps)
          if (s.node.valid()) s.by_variable[u] = smaller(one.size_by_watched(s.node), s.change);
    }
    if (grown.valid() && out.unstable->notes.empty() &&
        one.size_by_watched(grown) == all.size(grown))
      out.unstable->notes.push_back(
          {fmt::format("through the updates of '{}'",
                       alone ? program.variables[v].name : std::string(declaration(program, v))),
           program.variables[v].span});
  }
  if (!all.decays().empty()) {
    const Adjustment undecayed{.initial = {}, .rate = {}, .decay = false};
    out.effects = Counting(program, versions, undecayed).report().effects;
    out.maximal = out.regime == Regime::kFeatures && all_maximal(out.effects, program);
  }
  if (!out.maximal) out.fixes = find_fixes(program, versions, out, all.decays());
  return out;
}

}  // namespace tplimit
