#include "engines/moment_engine.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <set>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/math/gaussian_quadrature.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {
constexpr std::size_t kMostTerms = 512, kFewTerms = 8;
constexpr double kLooseError = 1e-9;
constexpr std::uint64_t kDisturbedRuns = 4;
constexpr double kClosedFormError = 1e-14;  ///< of dual_kernel, relative to sqrt(K(a,a) K(b,b))

MomentMethod weaker(MomentMethod a, MomentMethod b) { return std::max(a, b); }
std::size_t at(int i) { return static_cast<std::size_t>(i); }
}  // namespace

// ---- polynomials in up to 16 independent standard normals: exponents packed into bytes, coefficients by exponent ----------

namespace {
using Monomial = std::array<std::uint64_t, 2>;
using Sparse = std::vector<std::pair<Monomial, double>>;
constexpr int kMostSymbols = 16;
constexpr std::size_t kMostProducts = 30'000'000;

std::uint64_t exponent(const Monomial& m, int k) { return m[at(k / 8)] >> (8 * (k % 8)) & 0xff; }

/// The product of two monomials; a degree above 255 does not fit.
Monomial multiplied(const Monomial& a, const Monomial& b, bool& fits) {
  constexpr std::uint64_t kLow = 0x7f7f7f7f7f7f7f7fULL;
  // Exponents below 128 cannot carry into the next byte.
  for (const std::size_t h : {0u, 1u}) fits = fits && ((a[h] | b[h]) & ~kLow) == 0;
  return {a[0] + b[0], a[1] + b[1]};
}

/// E of a monomial: prod (e - 1)!! over even exponents, 0 if one is odd.
double expectation(const Monomial& m) {
  static const std::vector<double> table = [] {
    std::vector<double> t(256, 0.0);
    t[0] = 1;
    for (std::size_t e = 2; e < t.size(); e += 2) t[e] = t[e - 2] * static_cast<double>(e - 1);
    return t;
  }();
  constexpr std::uint64_t kOdd = 0x0101010101010101ULL;
  if (((m[0] | m[1]) & kOdd) != 0) return 0;
  double out = 1;
  for (int k = 0; k < kMostSymbols; ++k) out *= table[exponent(m, k)];
  return out;
}

Sparse collected(Sparse terms) {
  std::sort(terms.begin(), terms.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < terms.size(); ++kept) {
    terms[kept] = terms[i];
    for (++i; i < terms.size() && terms[i].first == terms[kept].first; ++i) terms[kept].second += terms[i].second;
    if (terms[kept].second == 0) --kept;
  }
  terms.resize(kept);
  return terms;
}

/// Empty optional: too large.
std::optional<Sparse> product(const Sparse& a, const Sparse& b) {
  if (a.size() * b.size() > kMostProducts) return std::nullopt;
  bool fits = true;
  Sparse out;
  out.reserve(a.size() * b.size());
  for (const auto& [m, c] : a)
    for (const auto& [n, d] : b) out.emplace_back(multiplied(m, n, fits), c * d);
  if (!fits) return std::nullopt;
  return collected(std::move(out));
}
}  // namespace

/// Rows of an affine block over one family: row i is scale[i] times member index[i], or row i of `dense`.
struct MomentEngine::Part {
  int family;
  std::vector<int> index;
  Eigen::VectorXd scale;
  Matrix dense;  ///< rows x family size; empty for a selection
  [[nodiscard]] bool selection() const { return dense.size() == 0; }
};
struct MomentEngine::Affine {
  int rows = 0;
  Eigen::VectorXd mean;  ///< empty: 0
  std::vector<Part> parts;
};
/// Jointly Gaussian variables: the columns of a StandardNormal, or hatZ^{Wx} for the columns of a field x.
struct MomentEngine::Family {
  int size = 0;
  int matrix = -1;          ///< source of the matrix; -1: independent standard normals
  bool transposed = false;
  std::shared_ptr<const Field> x;
};
struct MomentEngine::Factor {
  FunctionTable::Id f = FunctionTable::kIdentity;
  int affine = 0;
  Columns columns;
  [[nodiscard]] int column(int i) const { return columns ? (*columns)[at(i)] : i; }
};
struct MomentEngine::Term {
  std::vector<double> coefficient;  ///< one for all columns, or one each
  std::vector<Factor> factors;
  [[nodiscard]] double at_column(int i) const { return coefficient.size() == 1 ? coefficient[0] : coefficient[at(i)]; }
};
/// columns[i] = sum over terms of coefficient[i] prod_f f(affine[column(i)]), or a polynomial in independent standard normals.
struct MomentEngine::Field {
  int columns = 0;
  std::vector<Term> terms;
  double relative = 0;  ///< error of the coefficients, relative to the field
  MomentMethod method = MomentMethod::kExact;
  std::shared_ptr<const Polynomials> polynomials{};  ///< then there are no terms
  [[nodiscard]] bool constant() const { return !polynomials && std::all_of(terms.begin(), terms.end(), [](const Term& t) { return t.factors.empty(); }); }
};
/// scale W + sum_k c_k sum_p D_k[p] X_k[p]' / n.
struct MomentEngine::Version {
  std::uint32_t source = 0;
  double scale = 1;
  struct Update { double c; std::shared_ptr<const Field> d, x; };
  std::vector<Update> updates;
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};
struct MomentEngine::Covariance {
  std::shared_ptr<const Matrix> value;  ///< null: 0
  bool identity = false;                ///< I, not stored
  double relative = 0;
  MomentMethod method = MomentMethod::kExact;
};
struct MomentEngine::Moment {
  Matrix value;       ///< rows x columns; 1 where it does not depend on one of them
  double error = 0;   ///< absolute, largest
  MomentMethod method = MomentMethod::kExact;
};
struct MomentEngine::Unknown {
  std::string why;
  NodeId culprit{};
};

MomentEngine::MomentEngine(const Program& program, const std::vector<NodeId>& outputs, const Executor& executor)
    : program_(program), outputs_(outputs), needed_(program.size(), false), kept_(program.size(), false), executor_(executor), finite_(program.size()), fields_(program.size()), versions_(program.size()) {
  for (const NodeId id : outputs) needed_[id.value] = kept_[id.value] = true;
  for (std::size_t k = program.size(); k-- > 0;)
    if (needed_[k])
      for (const NodeId in : program.nodes[k].in) needed_[in.value] = true;
}
MomentEngine::~MomentEngine() = default;

void MomentEngine::run() {
  evaluate();
  measure_errors();
}

void MomentEngine::measure_errors() {
  const auto largest = [](const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0, [](double a, double x) { return std::max(a, std::abs(x)); }); };
  std::vector<NodeId> loose;
  for (const NodeId id : outputs_) {
    const MomentValue& v = finite_[id.value];
    if (v.known() && largest(v.error) > kLooseError * largest(v.value)) loose.push_back(id);
  }
  if (loose.empty() || not_finite_.valid()) return;
  std::vector<double> change(loose.size(), 0.0);
  for (std::uint64_t k = 1; k <= kDisturbedRuns; ++k) {
    MomentEngine other(program_, loose, executor_);
    other.disturbance_ = k;
    other.evaluate();
    for (std::size_t i = 0; i < loose.size(); ++i) {
      const MomentValue &a = finite_[loose[i].value], &b = other[loose[i]];
      if (!b.known()) return;  // the bounds stand
      for (std::size_t j = 0; j < a.value.size(); ++j) change[i] = std::max(change[i], std::abs(a.value[j] - b.value[j]));
    }
  }
  for (std::size_t i = 0; i < loose.size(); ++i)
    for (double& e : finite_[loose[i].value].error) e = std::min(e, 4 * change[i]);
}

/// Moves values by +-error.
void MomentEngine::disturb(Matrix& values, double error) {
  if (disturbance_ == 0) return;
  for (double& x : values.reshaped()) {
    std::uint64_t z = disturbance_ += 0x9e3779b97f4a7c15ULL;  // SplitMix64
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    x += ((z >> 40) & 1) != 0 ? error : -error;
  }
}

void MomentEngine::evaluate() {
  const std::vector<std::uint32_t> last = last_uses(program_);
  for (std::uint32_t k = 0; k < program_.size(); ++k)
    if (needed_[k]) {
      step({k});
      for (const NodeId in : program_.nodes[k].in) {
        if (last[in.value] != k) continue;
        fields_[in.value] = nullptr;  // families keep what they need
        if (!kept_[in.value]) finite_[in.value].value = finite_[in.value].error = std::vector<double>();  // {} would keep the memory
      }
    }
}

void MomentEngine::step(NodeId id) {
  const Node& node = program_[id];
  MomentValue& out = finite_[id.value];
  for (const NodeId in : node.in)
    if (!finite_[in.value].known()) {
      out.why = finite_[in.value].why;
      out.culprit = finite_[in.value].culprit;
      return;
    }
  try {
    if (node.type.matrix) {
      auto v = std::make_shared<Version>();
      if (!node.in.empty()) *v = *versions_[node.in[0].value];
      const auto scalar = [&](NodeId c) {
        const MomentValue& x = finite_[c.value];
        v->method = weaker(v->method, x.method);
        if (x.value[0] != 0) v->relative += x.error_at(0) / std::abs(x.value[0]);
        return x.value[0];
      };
      if (const auto* g = std::get_if<GaussianMatrix>(&node.op)) v->source = g->source.value;
      if (std::holds_alternative<ScaleMatrix>(node.op)) {
        const double c = scalar(node.in[1]);
        v->scale *= c;
        for (auto& u : v->updates) u.c *= c;
      }
      if (std::holds_alternative<UpdateMatrix>(node.op))
        for (std::size_t k = 1; k < node.in.size(); k += 3)
          v->updates.push_back({scalar(node.in[k]), std::make_shared<Field>(operand(node.in[k + 1])), std::make_shared<Field>(operand(node.in[k + 2]))});
      versions_[id.value] = std::move(v);
    } else if (is_average(node.op)) {
      out = average(node);
    } else if (node.type.width) {
      fields_[id.value] = std::make_shared<Field>(simplified(field_step(id, node)));
    } else {
      finite_step(id, node);
    }
    // Infinite constants may be meant, as in max(x, -inf).
    if (!not_finite_.valid() && !std::holds_alternative<Constant>(node.op) && !std::all_of(out.value.begin(), out.value.end(), [](double x) { return std::isfinite(x); })) not_finite_ = id;
  } catch (const Unknown& unknown) {
    out.why = unknown.why;
    out.culprit = unknown.culprit.valid() ? unknown.culprit : id;
  }
}

/// Finite operations: first-order propagation of errors, operand by operand.
void MomentEngine::finite_step(NodeId id, const Node& node) {
  MomentValue& out = finite_[id.value];
  if (const auto* c = std::get_if<Constant>(&node.op)) {
    out.value = *c->values;
    out.error = {0.0};
    return;
  }
  if (std::holds_alternative<Samples>(node.op)) throw Unknown{"samples are drawn by the particle engine", {}};
  std::vector<const Type*> types;
  std::vector<View> given;
  for (const NodeId k : node.in) {
    types.push_back(&program_[k].type);
    given.push_back({finite_[k.value].value.data(), 1, 1});
    out.method = weaker(out.method, finite_[k.value].method);
  }
  const auto evaluate_at = [&](const std::vector<View>& views) {
    std::vector<double> result(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(node, types, views, {result.data(), 1, 1});
    return result;
  };
  out.value = evaluate_at(given);
  if (out.method == MomentMethod::kExact) {
    out.error = {0.0};
    return;
  }
  // Cheap for what large kernels go through: copies, multiples, sums and products of equal shapes.
  const auto* m = std::get_if<Map>(&node.op);
  const auto error_of = [&](std::size_t k) -> const std::vector<double>& { return finite_[node.in[k].value].error; };
  const auto value_of = [&](std::size_t k) -> const std::vector<double>& { return finite_[node.in[k].value].value; };
  if (node.in.size() == 1 && !m && !std::holds_alternative<ReduceMax>(node.op) && !std::holds_alternative<Eigvals>(node.op)) {
    if (error_of(0).size() == 1 && !std::holds_alternative<ScatterAdd>(node.op)) {
      const auto* s = std::get_if<Scale>(&node.op);
      const double copies = std::holds_alternative<ReduceSum>(node.op) ? static_cast<double>(value_of(0).size()) / static_cast<double>(std::max<std::size_t>(1, std::min(value_of(0).size(), out.value.size()))) : 1;
      out.error = {error_of(0)[0] * (s ? std::abs(s->factor) : copies)};
      return;
    }
    const std::vector<double> errors = error_of(0).size() == 1 ? std::vector<double>(value_of(0).size(), error_of(0)[0]) : error_of(0);
    out.error = evaluate_at({{errors.data(), 1, 1}});
    for (double& e : out.error) e = std::abs(e);
    return;
  }
  if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub || m->fn == Fn::kMul) && value_of(0).size() == out.value.size() && value_of(1).size() == out.value.size()) {
    if (error_of(0).size() == 1 && error_of(1).size() == 1) {
      const auto largest = [](const std::vector<double>& v) { return std::accumulate(v.begin(), v.end(), 0.0, [](double a, double x) { return std::max(a, std::abs(x)); }); };
      const double a = error_of(0)[0], b = error_of(1)[0];
      out.error = {m->fn == Fn::kMul ? (b > 0 ? largest(value_of(0)) * b : 0) + (a > 0 ? largest(value_of(1)) * a : 0) : a + b};
      return;
    }
    out.error.resize(out.value.size());
    for (std::size_t j = 0; j < out.error.size(); ++j)
      out.error[j] = m->fn == Fn::kMul ? std::abs(value_of(0)[j]) * finite_[node.in[1].value].error_at(j) + std::abs(value_of(1)[j]) * finite_[node.in[0].value].error_at(j)
                                          : finite_[node.in[0].value].error_at(j) + finite_[node.in[1].value].error_at(j);
    return;
  }
  if (std::holds_alternative<TrainingOperator>(node.op)) {  // no useful bound for nearly singular kernels: measured
    out.error = {std::numeric_limits<double>::infinity()};
    return;
  }
  out.error.assign(out.value.size(), 0.0);
  std::vector<std::vector<double>> in;
  for (const NodeId k : node.in) in.push_back(finite_[k.value].value);
  const auto evaluate = [&] {
    std::vector<View> views;
    for (const auto& v : in) views.push_back({v.data(), 1, 1});
    return evaluate_at(views);
  };
  const bool bilinear = std::holds_alternative<Contract>(node.op);
  if (bilinear)
    for (auto& v : in)
      for (double& x : v) x = std::abs(x);
  const std::vector<double> base = bilinear ? evaluate() : out.value;
  for (std::size_t k = 0; k < in.size(); ++k) {
    const auto saved = in[k];
    for (std::size_t j = 0; j < saved.size(); ++j) in[k][j] += finite_[node.in[k].value].error_at(j);
    const auto moved = evaluate();
    for (std::size_t j = 0; j < base.size(); ++j) out.error[j] += std::abs(moved[j] - base[j]);
    in[k] = saved;
  }
}

// ---- algebra of fields ------------------------------------------------------------------------------

MomentEngine::Field MomentEngine::operand(NodeId id) const {
  if (program_[id].type.width) return *fields_[id.value];
  const MomentValue& v = finite_[id.value];
  Field out = constant(v.value);
  out.method = v.method;
  for (std::size_t j = 0; j < v.value.size(); ++j)
    if (v.value[j] != 0) out.relative = std::max(out.relative, v.error_at(j) / std::abs(v.value[j]));
  return out;
}

MomentEngine::Field MomentEngine::constant(std::vector<double> values) const {
  const int columns = static_cast<int>(values.size());
  if (std::all_of(values.begin(), values.end(), [&](double x) { return x == values[0]; })) values.resize(1);
  if (values.size() == 1 && values[0] == 0) return {columns, {}};
  return {columns, {{std::move(values), {}}}};
}

MomentEngine::Field MomentEngine::of_affine(int affine) const { return {affines_[at(affine)].rows, {{{1.0}, {{FunctionTable::kIdentity, affine, nullptr}}}}}; }

MomentEngine::Field MomentEngine::remap(const Field& x, const std::vector<int>& index) {
  Field out{static_cast<int>(index.size()), {}, x.relative, x.method};
  if (x.polynomials) {
    Polynomials columns;
    for (const int i : index) columns.push_back(i < 0 ? Sparse{} : (*x.polynomials)[at(i)]);
    out.polynomials = std::make_shared<const Polynomials>(std::move(columns));
    return out;
  }
  const bool zeros = std::find(index.begin(), index.end(), -1) != index.end();
  bool in_order = static_cast<int>(index.size()) == x.columns;
  for (std::size_t i = 0; i < index.size() && in_order; ++i) in_order = index[i] == static_cast<int>(i);
  if (in_order) return x;
  std::map<const std::vector<int>*, Columns> maps;  // factors that shared a map share the new one
  for (const Term& t : x.terms) {
    Term u;
    if (t.coefficient.size() == 1 && !zeros) u.coefficient = t.coefficient;
    else for (const int i : index) u.coefficient.push_back(i < 0 ? 0.0 : t.at_column(i));
    for (const Factor& f : t.factors) {
      Columns& columns = maps[f.columns.get()];
      if (!columns) {
        std::vector<int> own;
        for (const int i : index) own.push_back(f.column(std::max(i, 0)));
        columns = std::make_shared<const std::vector<int>>(std::move(own));
      }
      u.factors.push_back({f.f, f.affine, columns});
    }
    out.terms.push_back(std::move(u));
  }
  return out;
}

bool MomentEngine::linear(const Field& x) const {
  return !x.polynomials && std::all_of(x.terms.begin(), x.terms.end(), [](const Term& t) { return t.factors.empty() || (t.factors.size() == 1 && t.factors[0].f == FunctionTable::kIdentity); });
}

/// A block of Gaussians equal to a linear field.
int MomentEngine::affine_of(const Field& x) {
  if (x.terms.size() == 1 && x.terms[0].coefficient == std::vector<double>{1.0} && x.terms[0].factors.size() == 1 && !x.terms[0].factors[0].columns) return x.terms[0].factors[0].affine;
  Affine out;
  out.rows = x.columns;
  const auto dense = [&](Part& p) {
    if (!p.selection()) return;
    p.dense = Matrix::Zero(x.columns, families_[at(p.family)].size);
    for (int i = 0; i < x.columns; ++i) p.dense(i, p.index[at(i)]) += p.scale(i);
  };
  for (const Term& t : x.terms) {
    Eigen::VectorXd c(x.columns);
    for (int i = 0; i < x.columns; ++i) c(i) = t.at_column(i);
    if (t.factors.empty()) {
      if (out.mean.size() == 0) out.mean = Eigen::VectorXd::Zero(x.columns);
      out.mean += c;
      continue;
    }
    const Factor& f = t.factors[0];
    const Affine& from = affines_[at(f.affine)];
    if (from.mean.size() > 0) {
      if (out.mean.size() == 0) out.mean = Eigen::VectorXd::Zero(x.columns);
      for (int i = 0; i < x.columns; ++i) out.mean(i) += c(i) * from.mean(f.column(i));
    }
    for (const Part& p : from.parts) {
      Part q{p.family, {}, {}, {}};
      if (p.selection()) {
        q.scale.resize(x.columns);
        for (int i = 0; i < x.columns; ++i) {
          q.index.push_back(p.index[at(f.column(i))]);
          q.scale(i) = c(i) * p.scale(f.column(i));
        }
      } else {
        q.dense.resize(x.columns, p.dense.cols());
        for (int i = 0; i < x.columns; ++i) q.dense.row(i) = c(i) * p.dense.row(f.column(i));
      }
      const auto same = std::find_if(out.parts.begin(), out.parts.end(), [&](const Part& o) { return o.family == q.family; });
      if (same == out.parts.end()) {
        out.parts.push_back(std::move(q));
      } else if (same->selection() && q.selection() && same->index == q.index) {
        same->scale += q.scale;
      } else {
        dense(*same);
        dense(q);
        same->dense += q.dense;
      }
    }
  }
  affines_.push_back(std::move(out));
  return static_cast<int>(affines_.size() - 1);
}

/// Linear fields become one Gaussian block; equal factors of several terms are collected.
MomentEngine::Field MomentEngine::simplified(Field x) {
  std::erase_if(x.terms, [](const Term& t) { return std::all_of(t.coefficient.begin(), t.coefficient.end(), [](double c) { return c == 0; }); });
  if (x.terms.size() > 1 && linear(x)) {
    const int affine = affine_of(x);
    const double relative = x.relative;
    const MomentMethod method = x.method;
    x = of_affine(affine);
    x.relative = relative;
    x.method = method;
  }
  if (x.terms.size() > kMostTerms) throw Unknown{fmt::format("more than {} terms", kMostTerms), {}};
  return x;
}

std::shared_ptr<const MomentEngine::Polynomials> MomentEngine::polynomials(const Field& x) {
  if (x.polynomials) return x.polynomials;
  for (const Term& t : x.terms)
    for (const Factor& f : t.factors) {
      if (!functions_.polynomial(f.f)) return nullptr;
      for (const Part& p : affines_[at(f.affine)].parts) {
        if (families_[at(p.family)].matrix >= 0 || families_[at(p.family)].size > kMostSymbols) return nullptr;
        for (int k = 0; k < families_[at(p.family)].size; ++k)
          if (static_cast<int>(symbols_.size()) < kMostSymbols || symbols_.contains({p.family, k})) symbols_.try_emplace({p.family, k}, static_cast<int>(symbols_.size()));
          else return nullptr;
      }
    }
  Polynomials columns(at(x.columns));
  for (int i = 0; i < x.columns; ++i)
    for (const Term& t : x.terms) {
      Sparse whole{{Monomial{}, t.at_column(i)}};
      for (const Factor& f : t.factors) {
        const Affine& affine = affines_[at(f.affine)];
        const int row = f.column(i);
        Sparse g;
        if (affine.mean.size() > 0) g.push_back({Monomial{}, affine.mean(row)});
        for (const Part& p : affine.parts)
          for (int k = 0; k < families_[at(p.family)].size; ++k) {
            const double c = p.selection() ? (p.index[at(row)] == k ? p.scale(row) : 0.0) : p.dense(row, k);
            const int symbol = symbols_.at({p.family, k});
            Monomial m{};
            m[at(symbol / 8)] = std::uint64_t{1} << (8 * (symbol % 8));
            if (c != 0) g.push_back({m, c});
          }
        g = collected(std::move(g));
        // Horner's rule
        const std::vector<double>& c = *functions_.polynomial(f.f);
        Sparse value;
        for (std::size_t j = c.size(); j-- > 0;) {
          auto next = product(value, g);
          if (!next) return nullptr;
          next->push_back({Monomial{}, c[j]});
          value = collected(std::move(*next));
        }
        auto next = product(whole, value);
        if (!next) return nullptr;
        whole = std::move(*next);
      }
      columns[at(i)].insert(columns[at(i)].end(), whole.begin(), whole.end());
    }
  for (Sparse& column : columns) column = collected(std::move(column));
  return std::make_shared<const Polynomials>(std::move(columns));
}

MomentEngine::Field MomentEngine::of_polynomials(Polynomials columns, const Field& x, const Field& y) const {
  Field out{static_cast<int>(columns.size()), {}, x.relative + y.relative, weaker(x.method, y.method)};
  out.polynomials = std::make_shared<const Polynomials>(std::move(columns));
  return out;
}

MomentEngine::Field MomentEngine::add(Field x, const Field& y, double sign) {
  if (x.polynomials || y.polynomials) {
    const auto p = polynomials(x), q = polynomials(y);
    if (!p || !q) throw Unknown{"a polynomial beside another function of several Gaussians", {}};
    Polynomials columns = *p;
    for (std::size_t i = 0; i < columns.size(); ++i) {
      for (const auto& [m, c] : (*q)[i]) columns[i].emplace_back(m, sign * c);
      columns[i] = collected(std::move(columns[i]));
    }
    Field out = of_polynomials(std::move(columns), x, y);
    out.relative = std::max(x.relative, y.relative);
    return out;
  }
  for (Term t : y.terms) {
    if (sign != 1) for (double& c : t.coefficient) c *= sign;
    const auto same = std::find_if(x.terms.begin(), x.terms.end(), [&](const Term& o) {
      return o.factors.size() == t.factors.size() && std::equal(o.factors.begin(), o.factors.end(), t.factors.begin(), [](const Factor& a, const Factor& b) {
               return a.f == b.f && a.affine == b.affine && (a.columns == b.columns || (a.columns && b.columns && *a.columns == *b.columns));
             });
    });
    if (same == x.terms.end()) {
      x.terms.push_back(std::move(t));
      continue;
    }
    if (same->coefficient.size() < t.coefficient.size()) same->coefficient.resize(t.coefficient.size(), same->coefficient[0]);
    for (std::size_t i = 0; i < same->coefficient.size(); ++i) same->coefficient[i] += t.at_column(static_cast<int>(i));
  }
  x.relative = std::max(x.relative, y.relative);
  x.method = weaker(x.method, y.method);
  return simplified(std::move(x));
}

MomentEngine::Field MomentEngine::times(const Field& x, const Field& y) {
  // Sums of products are kept as they are while they are short: other functions may still multiply them.
  const bool brief = x.constant() || y.constant() || x.terms.size() * y.terms.size() <= kFewTerms;
  if (const auto p = brief && !x.polynomials && !y.polynomials ? nullptr : polynomials(x))
    if (const auto q = polynomials(y)) {
      Polynomials columns;
      for (std::size_t i = 0; i < p->size(); ++i) {
        auto own = product((*p)[i], (*q)[i]);
        if (!own) throw Unknown{"a polynomial of too high a degree or with too many terms", {}};
        columns.push_back(std::move(*own));
      }
      return of_polynomials(std::move(columns), x, y);
    }
  if (x.polynomials || y.polynomials) throw Unknown{"a polynomial times another function of several Gaussians", {}};
  Field out{x.columns, {}, x.relative + y.relative, weaker(x.method, y.method)};
  if (x.terms.size() * y.terms.size() > kMostTerms) throw Unknown{"a product of sums with too many terms", {}};
  for (const Term& s : x.terms)
    for (const Term& t : y.terms) {
      Term u{s.coefficient, s.factors};
      if (t.coefficient.size() > u.coefficient.size()) u.coefficient.resize(t.coefficient.size(), u.coefficient[0]);
      for (std::size_t i = 0; i < u.coefficient.size(); ++i) u.coefficient[i] *= t.at_column(static_cast<int>(i));
      for (const Factor& f : t.factors) {
        const auto same = std::find_if(u.factors.begin(), u.factors.end(), [&](const Factor& o) {
          return o.affine == f.affine && (o.columns == f.columns || (o.columns && f.columns && *o.columns == *f.columns));
        });
        if (same == u.factors.end()) u.factors.push_back(f);
        else same->f = functions_.times(same->f, f.f);
      }
      std::sort(u.factors.begin(), u.factors.end(), [](const Factor& a, const Factor& b) { return std::tie(a.affine, a.f) < std::tie(b.affine, b.f); });
      out = add(std::move(out), {x.columns, {std::move(u)}, out.relative, out.method}, 1);
    }
  return out;
}

MomentEngine::Field MomentEngine::combine(const Matrix& weights, const Field& y) {
  const int rows = static_cast<int>(weights.rows());
  Field out{rows, {}, y.relative, y.method};
  if (linear(y)) {
    const Affine from = affines_[at(affine_of(y))];  // a copy: the list grows
    Affine to;
    to.rows = rows;
    if (from.mean.size() > 0) to.mean = weights * from.mean;
    for (const Part& p : from.parts) {
      Part q{p.family, {}, {}, Matrix::Zero(rows, families_[at(p.family)].size)};
      if (p.selection()) for (int s = 0; s < y.columns; ++s) q.dense.col(p.index[at(s)]) += p.scale(s) * weights.col(s);
      else q.dense = weights * p.dense;
      to.parts.push_back(std::move(q));
    }
    affines_.push_back(std::move(to));
    const Field sum = of_affine(static_cast<int>(affines_.size() - 1));
    out.terms = sum.terms;
    return out;
  }
  for (int s = 0; s < y.columns; ++s) {
    if ((weights.col(s).array() == 0).all()) continue;
    Field one = remap(y, std::vector<int>(static_cast<std::size_t>(rows), s));
    out = add(std::move(out), times(one, constant({weights.col(s).data(), weights.col(s).data() + rows})), 1);
  }
  return out;
}

std::optional<MomentEngine::Unary> MomentEngine::as_unary(const Field& x) {
  std::optional<Unary> out;
  if (x.polynomials) return out;
  FunctionTable::Id sum = -1;
  double shift = 0;
  for (const Term& t : x.terms) {
    if (t.coefficient.size() != 1 || t.factors.size() > 1) return std::nullopt;
    if (t.factors.empty()) {
      shift += t.coefficient[0];
      continue;
    }
    const Factor& f = t.factors[0];
    if (out && (out->affine != f.affine || !(out->columns == f.columns || (out->columns && f.columns && *out->columns == *f.columns)))) return std::nullopt;
    const auto scaled = t.coefficient[0] == 1 ? f.f : functions_.scaled(t.coefficient[0], f.f);
    sum = out ? functions_.compose({Fn::kAdd, 0}, {sum, scaled}) : scaled;
    out = Unary{sum, f.affine, f.columns};
  }
  if (!out) return std::nullopt;
  out->f = shift == 0 ? sum : functions_.compose({Fn::kAdd, 0}, {sum, shift});
  return out;
}

// ---- nodes with coordinates -------------------------------------------------------------------------

MomentEngine::Field MomentEngine::field_step(NodeId id, const Node& node) {
  const auto count = static_cast<int>(size_of(node.type.dims));
  // Operations that copy columns: evaluated on column numbers.
  const auto copied = [&](NodeId in) {
    std::vector<double> numbers(static_cast<std::size_t>(size_of(program_[in].type.dims))), moved(static_cast<std::size_t>(count));
    std::iota(numbers.begin(), numbers.end(), 0.0);
    Node finite = node;
    finite.type.width = false;
    if (auto* e = std::get_if<Expand>(&finite.op)) e->width = false;
    const Type type{false, false, program_[in].type.dims};
    evaluate_rows(finite, {&type}, {{numbers.data(), 1, 1}}, {moved.data(), 1, 1});
    return remap(operand(in), std::vector<int>(moved.begin(), moved.end()));
  };
  return std::visit(
      overloaded{
          [&](const StandardNormal&) -> Field {
            Family family;
            family.size = count;
            families_.push_back(std::move(family));
            std::vector<int> all(static_cast<std::size_t>(count));
            std::iota(all.begin(), all.end(), 0);
            affines_.push_back({count, {}, {{static_cast<int>(families_.size() - 1), std::move(all), Eigen::VectorXd::Ones(count), {}}}});
            return of_affine(static_cast<int>(affines_.size() - 1));
          },
          [&](const Scale& s) { return times(operand(node.in[0]), constant(std::vector<double>(static_cast<std::size_t>(count), s.factor))); },
          [&](const Map& m) { return map(m, node); },
          [&](const Contract& c) { return contract(c, node); },
          [&](const Gather&) { return copied(node.in[0]); },
          [&](const Permute&) { return copied(node.in[0]); },
          [&](const Reshape&) { return copied(node.in[0]); },
          [&](const Expand&) { return copied(node.in[0]); },
          [&](const ReduceSum& r) {
            const Dims& dims = program_[node.in[0]].type.dims;
            const auto axis = static_cast<std::size_t>(r.axis);
            const auto inner = static_cast<int>(size_of({dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1, dims.end()})), size = static_cast<int>(dims[axis]);
            Field out{count, {}};
            for (int k = 0; k < size; ++k) {
              std::vector<int> index;
              for (int j = 0; j < count; ++j) index.push_back((j / inner * size + k) * inner + j % inner);
              out = add(std::move(out), remap(operand(node.in[0]), index), 1);
            }
            return out;
          },
          [&](const Concat& c) {
            const auto axis = static_cast<std::size_t>(c.axis);
            const auto inner = static_cast<int>(size_of({node.type.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1, node.type.dims.end()})), whole = static_cast<int>(node.type.dims[axis]);
            Field out{count, {}};
            int offset = 0;
            for (const NodeId in : node.in) {
              const auto size = static_cast<int>(program_[in].type.dims[axis]);
              std::vector<int> index;
              for (int j = 0; j < count; ++j) {
                const int k = j / inner % whole - offset;
                index.push_back(k < 0 || k >= size ? -1 : (j / inner / whole * size + k) * inner + j % inner);
              }
              out = add(std::move(out), remap(operand(in), index), 1);
              offset += size;
            }
            return out;
          },
          [&](const ScatterAdd& s) {
            const auto axis = static_cast<std::size_t>(s.axis);
            const auto inner = static_cast<int>(size_of({node.type.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1, node.type.dims.end()})), size = static_cast<int>(s.size);
            const auto slices = static_cast<int>(s.indices->size());
            Field out{count, {}};
            // Slices that go to different places are moved together.
            std::vector<bool> done(static_cast<std::size_t>(slices), false);
            for (int left = slices; left > 0;) {
              std::vector<int> from(static_cast<std::size_t>(size), -1), index;
              for (int i = 0; i < slices; ++i) {
                int& slot = from[static_cast<std::size_t>((*s.indices)[at(i)])];
                if (done[at(i)] || slot >= 0) continue;
                slot = i;
                done[at(i)] = true;
                --left;
              }
              for (int j = 0; j < count; ++j) {
                const int k = from[at(j / inner % size)];
                index.push_back(k < 0 ? -1 : (j / inner / size * slices + k) * inner + j % inner);
              }
              out = add(std::move(out), remap(operand(node.in[0]), index), 1);
            }
            return out;
          },
          [&](const MatMul& m) { return multiply(*versions_[node.in[0].value], node.in[1], m.transposed); },
          [&](const auto&) -> Field { throw Unknown{fmt::format("'{}' of values with coordinates", op_name(node.op)), id}; }},
      node.op);
}

MomentEngine::Field MomentEngine::map(const Map& m, const Node& node) {
  std::vector<Field> in;
  for (const NodeId k : node.in) {
    // Finite axes align from the right.
    const Dims& own = program_[k].type.dims;
    std::vector<int> index;
    for (std::int64_t j = 0; j < size_of(node.type.dims); ++j) {
      std::int64_t rest = j, from = 0, stride = 1;
      for (std::size_t a = 0; a < node.type.dims.size(); ++a) {
        const std::int64_t size = node.type.dims[node.type.dims.size() - 1 - a], i = rest % size;
        rest /= size;
        if (a >= own.size()) continue;
        const std::int64_t mine = own[own.size() - 1 - a];
        if (mine != 1) from += i * stride;
        stride *= mine;
      }
      index.push_back(static_cast<int>(from));
    }
    in.push_back(remap(operand(k), index));
  }
  Field quality{in[0].columns, {}};
  for (const Field& x : in) {
    quality.relative = std::max(quality.relative, x.relative);
    quality.method = weaker(quality.method, x.method);
  }
  // All operands functions of one Gaussian block, or constants: one new function.
  const auto compose = [&]() -> std::optional<Field> {
    std::vector<std::variant<FunctionTable::Id, double>> operands;
    std::optional<Unary> of;
    for (Field& x : in) {
      if (x.terms.empty() && !x.polynomials) {
        operands.emplace_back(0.0);
      } else if (x.terms.size() == 1 && x.terms[0].factors.empty() && x.terms[0].coefficient.size() == 1) {
        operands.emplace_back(x.terms[0].coefficient[0]);
      } else {
        if (!as_unary(x) && linear(x) && m.fn != Fn::kAdd && m.fn != Fn::kSub && m.fn != Fn::kMul && m.fn != Fn::kDiv) x.terms = of_affine(affine_of(x)).terms;
        const auto u = as_unary(x);
        if (!u || (of && (of->affine != u->affine || !(of->columns == u->columns || (of->columns && u->columns && *of->columns == *u->columns))))) return std::nullopt;
        of = u;
        operands.emplace_back(u->f);
      }
    }
    if (!of) return std::nullopt;
    Field out = quality;
    out.terms = {{{1.0}, {{functions_.compose(m, operands), of->affine, of->columns}}}};
    return out;
  };
  switch (m.fn) {
    case Fn::kAdd: case Fn::kSub:
      if (linear(in[0]) && linear(in[1])) return add(in[0], in[1], m.fn == Fn::kAdd ? 1 : -1);
      break;
    case Fn::kMul:
      for (const std::size_t k : {0u, 1u})
        if (in[k].constant()) return times(in[1 - k], in[k]);
      break;
    case Fn::kDiv: {
      if (in[1].terms.size() == 1 && in[1].terms[0].factors.empty()) {
        Field inverse = in[1];
        for (double& c : inverse.terms[0].coefficient) c = 1 / c;
        return times(in[0], inverse);
      }
      break;
    }
    default: break;
  }
  if (auto composed = compose()) return *composed;
  switch (m.fn) {
    case Fn::kAdd: return add(in[0], in[1], 1);
    case Fn::kSub: return add(in[0], in[1], -1);
    case Fn::kMul: return times(in[0], in[1]);
    case Fn::kPower:
      if (m.parameter == 2 || m.parameter == 3) {
        Field out = times(in[0], in[0]);
        return m.parameter == 2 ? out : times(out, in[0]);
      }
      break;
    case Fn::kWhere:  // 1[c] a + (1 - 1[c]) b
      if (const auto u = as_unary(in[0])) {
        const auto indicator = functions_.compose({Fn::kNotEqual, 0}, {u->f, 0.0});
        Field yes = quality, no = quality;
        yes.terms = {{{1.0}, {{indicator, u->affine, u->columns}}}};
        no.terms = {{{1.0}, {{functions_.compose({Fn::kSub, 0}, {1.0, indicator}), u->affine, u->columns}}}};
        return add(times(yes, in[1]), times(no, in[2]), 1);
      }
      break;
    case Fn::kDiv:
      if (const auto u = as_unary(in[1])) {
        Field inverse = quality;
        inverse.terms = {{{1.0}, {{functions_.compose({Fn::kPower, -1}, {u->f}), u->affine, u->columns}}}};
        return times(in[0], inverse);
      }
      break;
    default: break;
  }
  const bool finite = std::all_of(in.begin(), in.end(), [](const Field& x) { return x.constant(); });
  if (finite) {  // constant over the coordinates
    std::vector<std::vector<double>> values;
    std::vector<View> views;
    std::vector<Type> types(in.size(), Type{false, false, node.type.dims});
    std::vector<const Type*> pointers;
    for (const Field& x : in) {
      values.emplace_back(static_cast<std::size_t>(x.columns), 0.0);
      for (const Term& t : x.terms)
        for (int j = 0; j < x.columns; ++j) values.back()[at(j)] += t.at_column(j);
    }
    for (std::size_t k = 0; k < in.size(); ++k) {
      views.push_back({values[k].data(), 1, 1});
      pointers.push_back(&types[k]);
    }
    Node finite_node = node;
    finite_node.type.width = false;
    std::vector<double> result(static_cast<std::size_t>(in[0].columns));
    evaluate_rows(finite_node, pointers, views, {result.data(), 1, 1});
    Field out = constant(std::move(result));
    out.relative = quality.relative;
    out.method = quality.method;
    return out;
  }
  throw Unknown{fmt::format("'{}' of more than one Gaussian", name(m.fn)), {}};
}

MomentEngine::Field MomentEngine::contract(const Contract& c, const Node& node) {
  const Dims &a = program_[node.in[0]].type.dims, &b = program_[node.in[1]].type.dims;
  const auto split = [&](const Dims& d) {
    return std::array<int, 3>{static_cast<int>(size_of({d.begin(), d.begin() + c.batch})), static_cast<int>(size_of({d.begin() + c.batch, d.end() - c.contracted})),
                              static_cast<int>(size_of({d.end() - c.contracted, d.end()}))};
  };
  const auto [batch, rows, depth] = split(a);
  const int columns = split(b)[1];
  const int count = batch * rows * columns;
  // A linear block times numbers: one matrix product.
  for (const std::size_t k : {0u, 1u}) {
    const NodeId wide = node.in[k], narrow = node.in[1 - k];
    if (program_[narrow].type.width || depth == 1) continue;
    const Field x = operand(wide);
    if (!linear(x)) continue;
    const auto& numbers = finite_[narrow.value].value;
    Matrix weights = Matrix::Zero(count, x.columns);
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
          for (int l = 0; l < depth; ++l) {
            const int left = (p * rows + i) * depth + l, right = (p * columns + j) * depth + l;
            weights((p * rows + i) * columns + j, k == 0 ? left : right) = numbers[at(k == 0 ? right : left)];
          }
    Field out = combine(weights, x);
    const Field quality = operand(narrow);
    out.relative += quality.relative;
    out.method = weaker(out.method, quality.method);
    return out;
  }
  if (depth > 256) throw Unknown{"a sum over many products", {}};
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  Field out{count, {}};
  for (int l = 0; l < depth; ++l) {
    std::vector<int> left, right;
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          left.push_back((p * rows + i) * depth + l);
          right.push_back((p * columns + j) * depth + l);
        }
    out = add(std::move(out), times(remap(x, left), remap(y, right)), 1);
  }
  return out;
}

/// W x = scale (hatZ + sum_s y_s E dx/dg_s) + updates: g_s the Gaussian of W' y_s, made before x (THEORY: Z = hatZ + dotZ).
MomentEngine::Field MomentEngine::multiply(const Version& w, NodeId x_node, bool transposed) {
  const auto x = std::make_shared<const Field>(operand(x_node));
  const auto [it, fresh] = hats_.try_emplace({w.source, transposed, x_node.value}, static_cast<int>(families_.size()));
  const int family = it->second;
  if (fresh) families_.push_back({x->columns, static_cast<int>(w.source), transposed, x});
  std::vector<int> all(static_cast<std::size_t>(x->columns));
  std::iota(all.begin(), all.end(), 0);
  affines_.push_back({x->columns, {}, {{family, std::move(all), Eigen::VectorXd::Ones(x->columns), {}}}});
  Field out = of_affine(static_cast<int>(affines_.size() - 1));
  for (int g = 0; g < static_cast<int>(families_.size()); ++g) {
    const Family opposite = families_[at(g)];
    if (opposite.matrix != static_cast<int>(w.source) || opposite.transposed == transposed) continue;
    Matrix derivative = Matrix::Zero(x->columns, opposite.size);
    MomentMethod method = MomentMethod::kExact;
    double error = 0;
    for (const Term& t : x->terms)
      for (std::size_t k = 0; k < t.factors.size(); ++k) {
        const Affine block = affines_[at(t.factors[k].affine)];  // a copy: the list grows
        std::optional<Moment> m;
        for (const Part& p : block.parts) {
          if (p.family != g) continue;
          if (!m) m = slope(t.factors, k, x->columns);
          method = weaker(method, m->method);
          error = std::max(error, m->error);
          for (int j = 0; j < x->columns; ++j) {
            const double e = m->value(m->value.rows() == 1 ? 0 : j, 0) * t.at_column(j);
            const int column = t.factors[k].column(j);
            if (p.selection()) derivative(j, p.index[at(column)]) += e * p.scale(column);
            else derivative.row(j) += e * p.dense.row(column);
          }
        }
      }
    if ((derivative.array() == 0).all()) continue;
    Field correction = combine(derivative, *opposite.x);
    correction.method = weaker(correction.method, method);
    correction.relative += error / derivative.cwiseAbs().maxCoeff();
    out = add(std::move(out), correction, 1);
  }
  out = times(out, constant(std::vector<double>(static_cast<std::size_t>(x->columns), w.scale)));
  for (const auto& u : w.updates) {
    const Field &onto = transposed ? *u.x : *u.d, &with = transposed ? *u.d : *u.x;
    const Moment m = cross(*x, with);
    Field change = combine(u.c * m.value, onto);
    change.method = weaker(change.method, m.method);
    change.relative += m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300);
    out = add(std::move(out), change, 1);
  }
  out.relative = std::max(out.relative, x->relative) + w.relative;
  out.method = weaker(weaker(out.method, x->method), w.method);
  return out;
}

// ---- moments ----------------------------------------------------------------------------------------

MomentValue MomentEngine::average(const Node& node) {
  MomentValue out;
  out.value.assign(static_cast<std::size_t>(size_of(node.type.dims)), 0.0);
  if (std::holds_alternative<Average>(node.op)) {
    const Moment m = mean_of(operand(node.in[0]));
    for (std::size_t j = 0; j < out.value.size(); ++j) out.value[j] = m.value(static_cast<Eigen::Index>(j), 0);
    out.error = {m.error};
    out.method = m.method;
    return out;
  }
  const auto* c = std::get_if<Contract>(&node.op);
  if (!c) throw Unknown{"histograms are drawn by the particle engine", {}};
  const Dims &a = program_[node.in[0]].type.dims, &b = program_[node.in[1]].type.dims;
  const auto batch = static_cast<int>(size_of({a.begin(), a.begin() + c->batch})), depth = static_cast<int>(size_of({a.end() - c->contracted, a.end()}));
  const auto rows = static_cast<int>(size_of(a)) / batch / depth, columns = static_cast<int>(size_of(b)) / batch / depth;
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  std::vector<double> error(at(batch), 0.0);
  for (int p = 0; p < batch; ++p)
    for (int l = 0; l < depth; ++l) {
      std::vector<int> left, right;
      for (int i = 0; i < rows; ++i) left.push_back((p * rows + i) * depth + l);
      for (int j = 0; j < columns; ++j) right.push_back((p * columns + j) * depth + l);
      const Moment m = cross(remap(x, left), remap(y, right));
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          out.value[at((p * rows + i) * columns + j)] += m.value(i, j);
        }
      error[at(p)] += m.error;
      out.method = weaker(out.method, m.method);
    }
  out.error = {*std::max_element(error.begin(), error.end())};
  return out;
}

bool MomentEngine::related(int p, int q) const {
  for (const Part& a : affines_[at(p)].parts)
    for (const Part& b : affines_[at(q)].parts) {
      const Family &f = families_[at(a.family)], &g = families_[at(b.family)];
      if (a.family == b.family || (f.matrix >= 0 && f.matrix == g.matrix && f.transposed == g.transposed)) return true;
    }
  return false;
}

const MomentEngine::Covariance& MomentEngine::family_covariance(int f, int g) {
  const auto known = family_covariances_.find({f, g});
  if (known != family_covariances_.end()) return known->second;
  Covariance out;
  const Family a = families_[at(f)], b = families_[at(g)];
  if (a.matrix < 0) {
    out.identity = f == g;
  } else if (a.matrix == b.matrix && a.transposed == b.transposed) {
    if (const auto other = family_covariances_.find({g, f}); other != family_covariances_.end()) {
      out = other->second;
      out.value = std::make_shared<const Matrix>(out.value->transpose());
    } else {
      Moment m = cross(*a.x, *b.x);
      if (f == g) m.value = (0.5 * (m.value + m.value.transpose())).eval();
      out.method = m.method;
      const double size = m.value.cwiseAbs().maxCoeff();
      out.relative = size > 0 ? m.error / size : 0;
      out.value = std::make_shared<const Matrix>(std::move(m.value));
    }
  }
  return family_covariances_.emplace(std::pair{f, g}, std::move(out)).first->second;
}

const MomentEngine::Covariance& MomentEngine::covariance(int p, int q) {
  if (const auto known = covariances_.find({p, q}); known != covariances_.end()) return known->second;
  Covariance out;
  Matrix sum;
  const Affine x = affines_[at(p)], y = affines_[at(q)];
  for (const Part& a : x.parts)
    for (const Part& b : y.parts) {
      const Covariance& c = family_covariance(a.family, b.family);
      if (!c.identity && !c.value) continue;
      out.relative = std::max(out.relative, c.relative);
      out.method = weaker(out.method, c.method);
      const auto whole = [](const Part& s) {
        for (std::size_t i = 0; i < s.index.size(); ++i) if (s.index[i] != static_cast<int>(i) || s.scale(static_cast<Eigen::Index>(i)) != 1) return false;
        return s.selection();
      };
      if (x.parts.size() == 1 && y.parts.size() == 1 && c.value && whole(a) && whole(b) && c.value->rows() == x.rows && c.value->cols() == y.rows) {
        out.value = c.value;  // the matrix itself, no copy
        continue;
      }
      Matrix left;  // a C
      const auto size = families_[at(b.family)].size;
      if (a.selection()) {
        left = Matrix::Zero(x.rows, size);
        for (int i = 0; i < x.rows; ++i) {
          if (c.identity) left(i, a.index[at(i)]) = a.scale(i);
          else left.row(i) = a.scale(i) * c.value->row(a.index[at(i)]);
        }
      } else {
        left = c.identity ? a.dense : Matrix(a.dense * *c.value);
      }
      Matrix product(x.rows, y.rows);
      if (b.selection()) for (int j = 0; j < y.rows; ++j) product.col(j) = b.scale(j) * left.col(b.index[at(j)]);
      else product.noalias() = left * b.dense.transpose();
      if (sum.size() == 0) sum = std::move(product);
      else sum += product;
    }
  if (!out.value && sum.size() > 0) out.value = std::make_shared<const Matrix>(std::move(sum));
  return covariances_.emplace(std::pair{p, q}, std::move(out)).first->second;
}

MomentEngine::Moment MomentEngine::mean_of(const Field& x) { return cross(x, {1, {{{1.0}, {}}}}); }

MomentEngine::Moment MomentEngine::cross(const Field& x, const Field& y) {
  Moment out;
  if (x.polynomials || y.polynomials) {
    out.value.setZero(x.columns, y.columns);
    const auto p = polynomials(x), q = polynomials(y);
    if (!p || !q) throw Unknown{"a moment of a polynomial with another function of several Gaussians", {}};
    for (int j = 0; j < y.columns; ++j)
      for (int i = 0; i < x.columns; ++i) {
        const Sparse &a = (*p)[at(i)], &b = (*q)[at(j)];
        if (a.size() * b.size() > 20 * kMostProducts) throw Unknown{"a polynomial with too many terms", {}};
        bool fits = true;
        long double sum = 0;  // terms of high degree cancel
        for (const auto& [m, c] : a)
          for (const auto& [n, d] : b) sum += static_cast<long double>(c * d) * expectation(multiplied(m, n, fits));
        if (!fits) throw Unknown{"a polynomial of too high a degree", {}};
        out.value(i, j) = static_cast<double>(sum);
      }
    out.method = weaker(x.method, y.method);
    out.error = out.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
    return out;
  }
  double size = 0;
  if (x.terms.size() == 1 && y.terms.size() == 1 && x.terms[0].coefficient.size() == 1 && y.terms[0].coefficient.size() == 1) {
    Moment m = term_moment(x.terms[0], x.columns, y.terms[0], y.columns);
    const double c = x.terms[0].coefficient[0] * y.terms[0].coefficient[0];
    if (c != 1) m.value *= c;
    if (m.value.rows() == 1 && x.columns > 1) m.value = m.value.replicate(x.columns, 1).eval();
    if (m.value.cols() == 1 && y.columns > 1) m.value = m.value.replicate(1, y.columns).eval();
    m.error = std::abs(c) * m.error + m.value.cwiseAbs().maxCoeff() * (x.relative + y.relative);
    m.method = weaker(m.method, weaker(x.method, y.method));
    return m;
  }
  out.value.setZero(x.columns, y.columns);
  for (const Term& s : x.terms)
    for (const Term& t : y.terms) {
      const Moment m = term_moment(s, x.columns, t, y.columns);
      double largest = 0;
      for (int j = 0; j < y.columns; ++j) {
        const double cj = t.at_column(j);
        for (int i = 0; i < x.columns; ++i) {
          const double c = cj * s.at_column(i);
          out.value(i, j) += c * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
          largest = std::max(largest, std::abs(c));
        }
      }
      out.error += largest * m.error;
      size += largest * m.value.cwiseAbs().maxCoeff();
      out.method = weaker(out.method, m.method);
    }
  out.error += size * (x.relative + y.relative);
  out.method = weaker(out.method, weaker(x.method, y.method));
  return out;
}

/// Factors of both sides in independent groups; the moment is the product of the groups'.
MomentEngine::Moment MomentEngine::term_moment(const Term& s, int rows, const Term& t, int columns) {
  std::vector<std::pair<int, Factor>> factors;  // (side, factor)
  for (const Factor& f : s.factors) factors.emplace_back(0, f);
  for (const Factor& f : t.factors) factors.emplace_back(1, f);
  std::vector<std::size_t> group(factors.size());
  std::iota(group.begin(), group.end(), std::size_t{0});
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < factors.size(); ++i)
      for (std::size_t j = 0; j < i; ++j)
        if (group[i] != group[j] && related(factors[i].second.affine, factors[j].second.affine)) {
          group[i] = group[j] = std::min(group[i], group[j]);
          changed = true;
        }
  }
  std::vector<Moment> parts;
  for (std::size_t g = 0; g < factors.size(); ++g) {
    std::vector<std::pair<int, Factor>> own;
    for (std::size_t i = 0; i < factors.size(); ++i)
      if (group[i] == g) own.push_back(factors[i]);
    if (own.empty()) continue;
    if (own.size() == 1) {
      Moment m = mean(own[0].second, own[0].first == 0 ? rows : columns);
      if (own[0].first == 1) m.value.transposeInPlace();
      parts.push_back(std::move(m));
    } else if (own.size() == 2 && own[0].first != own[1].first) {
      parts.push_back(pair(own[0].second, rows, own[1].second, columns));
    } else {
      std::optional<Moment> closed;
      if (own.size() == 2) closed = same_side(own[0].second, own[1].second, own[0].first == 0 ? rows : columns);
      if (closed && own[0].first == 1) closed->value.transposeInPlace();
      if (!closed) closed = polynomial_moment(own, rows, columns);
      if (!closed) closed = stein(own, rows, columns);
      parts.push_back(closed ? std::move(*closed) : single_entries(own, rows, columns));
    }
    if (parts.back().method == MomentMethod::kExact && (parts.back().value.array() == 0).all()) return {Matrix::Zero(1, 1)};
  }
  if (parts.empty()) return {Matrix::Ones(1, 1)};
  std::sort(parts.begin(), parts.end(), [](const Moment& a, const Moment& b) { return a.value.size() > b.value.size(); });
  Moment out = std::move(parts[0]);
  for (std::size_t k = 1; k < parts.size(); ++k) {
    const Moment& m = parts[k];
    const double old_size = out.value.cwiseAbs().maxCoeff(), size = m.value.cwiseAbs().maxCoeff();
    out.method = weaker(out.method, m.method);
    if (m.value.size() == 1) {
      out.error = out.error * size + m.error * old_size;
      out.value *= m.value(0, 0);
      continue;
    }
    Matrix next(std::max(out.value.rows(), m.value.rows()), std::max(out.value.cols(), m.value.cols()));
    for (Eigen::Index j = 0; j < next.cols(); ++j)
      for (Eigen::Index i = 0; i < next.rows(); ++i)
        next(i, j) = out.value(out.value.rows() == 1 ? 0 : i, out.value.cols() == 1 ? 0 : j) * m.value(m.value.rows() == 1 ? 0 : i, m.value.cols() == 1 ? 0 : j);
    out.error = out.error * size + m.error * old_size;
    out.value = std::move(next);
  }
  return out;
}

void MomentEngine::note(const MomentStatus& status) {
  excess_ = std::max(excess_, status.largest_excess);
  if (status.bad_index != kNoIndex) throw Unknown{"a covariance is not positive semidefinite", {}};
  if (status.overflow) throw Unknown{"a moment overflows", {}};
}

/// d log E f(u)^2 / d log Var u: how relative errors of variances grow.
double MomentEngine::amplification(FunctionTable::Id f, const Eigen::VectorXd& variances) {
  if (f == FunctionTable::kIdentity) return 1;
  const auto& closed = functions_.closed_form(f);
  if (!closed) return 2;
  constexpr double kShift = 1e-6;
  const std::size_t count = static_cast<std::size_t>(std::min<Eigen::Index>(variances.size(), 16));
  double largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double a = variances(static_cast<Eigen::Index>(i * static_cast<std::size_t>(variances.size()) / count)) * closed->scale * closed->scale;
    if (!(a > 0)) continue;
    const std::array<double, 2> v{a, a * (1 + kShift)};
    std::array<double, 2> k{};
    (void)dual_kernel(closed->g, v, v, v, k);
    if (k[0] > 0) largest = std::max(largest, std::abs(k[1] / k[0] - 1) / kShift);
  }
  return largest;
}

/// The moment of factors that are all polynomials in independent normals.
std::optional<MomentEngine::Moment> MomentEngine::polynomial_moment(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  std::array<Field, 2> sides{Field{1, {{{1.0}, {}}}}, Field{1, {{{1.0}, {}}}}};
  for (const auto& [side, f] : factors) {
    Field& field = sides[at(side)];
    field.columns = side == 0 ? rows : columns;
    field.terms[0].factors.push_back(f);
  }
  for (Field& field : sides) {
    field.polynomials = polynomials(field);
    if (!field.polynomials) return std::nullopt;
    field.terms.clear();
  }
  return cross(sides[0], sides[1]);
}

/// E f(u_i) g(v_i), g a multiple of f, for two Gaussians behind each column, if there is a closed form.
std::optional<MomentEngine::Moment> MomentEngine::same_side(const Factor& s, const Factor& t, int rows) {
  const auto &closed = functions_.closed_form(s.f), &other = functions_.closed_form(t.f);
  if (!closed || !other || !(closed->g == other->g) || affines_[at(s.affine)].mean.size() > 0 || affines_[at(t.affine)].mean.size() > 0) return std::nullopt;
  std::array<std::vector<double>, 3> arrays;  // a, b, c
  Moment out{Matrix(rows, 1)};
  double relative = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    const Factor &p = k == 1 ? t : s, &q = k == 0 ? s : t;
    const Covariance& c = covariance(p.affine, q.affine);
    const double scale = (k == 1 ? other : closed)->scale * (k == 0 ? closed : other)->scale;
    for (int i = 0; i < rows; ++i) arrays[k].push_back(c.value ? scale * (*c.value)(p.column(i), q.column(i)) : 0.0);
    relative = std::max(relative, c.relative);
    out.method = weaker(out.method, c.method);
  }
  std::vector<double> value(at(rows));
  note(dual_kernel(closed->g, arrays[0], arrays[1], arrays[2], value));
  for (int i = 0; i < rows; ++i) out.value(i, 0) = closed->factor * other->factor * value[at(i)];
  const bool exact = functions_.polynomial(s.f) && functions_.polynomial(t.f);
  if (!exact) out.method = weaker(out.method, MomentMethod::kClosedForm);
  if (!exact) disturb(out.value, kClosedFormError * out.value.cwiseAbs().maxCoeff());
  out.error = ((exact ? 0 : kClosedFormError) + relative * amplification(s.f, Eigen::Map<const Eigen::VectorXd>(arrays[0].data(), rows) / (closed->scale * closed->scale))) * out.value.cwiseAbs().maxCoeff();
  return out;
}

MomentEngine::Moment MomentEngine::mean(const Factor& s, int rows) {
  const Affine& affine = affines_[at(s.affine)];
  if (s.f == FunctionTable::kIdentity) {
    Moment out{Matrix::Zero(rows, 1)};
    if (affine.mean.size() > 0)
      for (int i = 0; i < rows; ++i) out.value(i, 0) = affine.mean(s.column(i));
    return out;
  }
  const auto& closed = functions_.closed_form(s.f);
  if (affine.mean.size() > 0 || !closed) return single_entries({{0, s}}, rows, 1);
  const Covariance& c = covariance(s.affine, s.affine);
  std::vector<double> variance(static_cast<std::size_t>(rows), 0.0), value(static_cast<std::size_t>(rows));
  for (int i = 0; i < rows; ++i)
    if (c.value) variance[at(i)] = (*c.value)(s.column(i), s.column(i)) * closed->scale * closed->scale;
  note(gaussian_mean(closed->g, variance, value));
  Moment out{Matrix(rows, 1), 0, c.method};
  for (int i = 0; i < rows; ++i) out.value(i, 0) = closed->factor * value[at(i)];
  if (!functions_.polynomial(s.f)) {
    out.method = weaker(out.method, MomentMethod::kClosedForm);
    out.error = kClosedFormError * out.value.cwiseAbs().maxCoeff();
    disturb(out.value, out.error);
  }
  const Eigen::VectorXd all = Eigen::Map<const Eigen::VectorXd>(variance.data(), rows);
  out.error += c.relative * amplification(s.f, all) * out.value.cwiseAbs().maxCoeff();
  return out;
}

MomentEngine::Moment MomentEngine::pair(const Factor& s, int rows, const Factor& t, int columns) {
  const Affine &x = affines_[at(s.affine)], &y = affines_[at(t.affine)];
  const auto entry = [](const Covariance& c, int i, int j) { return c.value ? (*c.value)(i, j) : 0.0; };
  const Covariance c = covariance(s.affine, t.affine);
  const bool identities = s.f == FunctionTable::kIdentity && t.f == FunctionTable::kIdentity;
  if (!identities && (x.mean.size() > 0 || y.mean.size() > 0)) {
    const std::vector<std::pair<int, Factor>> both{{0, s}, {1, t}};
    const auto reduced = stein(both, rows, columns);
    return reduced ? *reduced : single_entries(both, rows, columns);
  }
  Moment out{Matrix(rows, columns), 0, c.method};
  const auto gather = [&] {
    if (c.value && !s.columns && !t.columns && c.value->rows() == rows && c.value->cols() == columns) {
      out.value = *c.value;
      return;
    }
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i) out.value(i, j) = entry(c, s.column(i), t.column(j));
  };
  gather();
  if (identities) {
    out.error = c.relative * out.value.cwiseAbs().maxCoeff();
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < rows; ++i)
        if (x.mean.size() > 0 && y.mean.size() > 0) out.value(i, j) += x.mean(s.column(i)) * y.mean(t.column(j));
    return out;
  }
  const auto &p = functions_.polynomial(s.f), &q = functions_.polynomial(t.f);
  if (!(p && q) && (s.f == FunctionTable::kIdentity || t.f == FunctionTable::kIdentity)) return *stein({{0, s}, {1, t}}, rows, columns);
  const Covariance cx = covariance(s.affine, s.affine), cy = covariance(t.affine, t.affine);
  Eigen::VectorXd a(rows), b(columns);
  for (int i = 0; i < rows; ++i) a(i) = entry(cx, s.column(i), s.column(i));
  for (int j = 0; j < columns; ++j) b(j) = entry(cy, t.column(j), t.column(j));
  const double relative = std::max({c.relative, cx.relative, cy.relative});
  out.method = weaker(out.method, weaker(cx.method, cy.method));

  if (p && q) {  // E f(u) g(v) = sum_l c^l / l! E f^(l)(u) E g^(l)(v)
    Matrix sum = Matrix::Zero(rows, columns), power = Matrix::Ones(rows, columns);
    FunctionTable::Id f = s.f, g = t.f;
    double factorial = 1;
    for (std::size_t l = 0; l < std::min(p->size(), q->size()); ++l) {
      const Moment u = mean({f, s.affine, s.columns}, rows), v = mean({g, t.affine, t.columns}, columns);
      if (l > 0) factorial *= static_cast<double>(l);
      sum += (power.array() * (u.value * v.value.transpose()).array()).matrix() / factorial;
      power = (power.array() * out.value.array()).matrix().eval();
      f = functions_.derivative(f);
      g = functions_.derivative(g);
    }
    out.value = std::move(sum);
    out.error = relative * static_cast<double>(p->size() + q->size() - 2) * out.value.cwiseAbs().maxCoeff();
    return out;
  }
  if (const auto &closed = functions_.closed_form(s.f), &other = functions_.closed_form(t.f); closed && other && closed->g == other->g) {
    const double scale = closed->scale * other->scale, factor = closed->factor * other->factor;
    if (scale != 1) out.value *= scale;
    const Eigen::VectorXd av = a * (closed->scale * closed->scale);
    std::vector<MomentStatus> status(static_cast<std::size_t>(columns));
    executor_.parallel(columns, [&](std::int64_t j) {
      const double bj = b(j) * other->scale * other->scale;
      const std::span<double> column(out.value.col(j).data(), static_cast<std::size_t>(rows));
      status[static_cast<std::size_t>(j)] = dual_kernel(closed->g, {av.data(), static_cast<std::size_t>(rows)}, {&bj, 1}, column, column);
    });
    for (const MomentStatus& one : status) note(one);
    if (factor != 1) out.value *= factor;
    const double largest = out.value.cwiseAbs().maxCoeff();
    out.method = weaker(out.method, MomentMethod::kClosedForm);
    disturb(out.value, kClosedFormError * largest);
    out.error = (kClosedFormError + relative * amplification(s.f, a)) * largest;
    return out;
  }
  if (functions_.kinks(s.f).empty() && functions_.kinks(t.f).empty() && functions_.integrable(s.f) && functions_.integrable(t.f)) {
    GramInput input;
    input.rows = rows;
    input.columns = columns;
    input.covariance = out.value.data();
    input.leading = rows;
    input.row_variances = {a.data(), static_cast<std::size_t>(rows)};
    input.column_variances = {b.data(), static_cast<std::size_t>(columns)};
    input.symmetric = s.f == t.f && s.affine == t.affine && s.columns == t.columns;
    const auto evaluate = [this](FunctionTable::Id id) {
      return [this, id](std::int64_t count, const double* points, double* values) { functions_.evaluate(id, count, points, values); };
    };
    Matrix value(rows, columns);
    const GramResult r = gram_quadrature(input, evaluate(s.f), s.f == t.f ? UnaryFunctions{} : UnaryFunctions{evaluate(t.f)}, 1, {value.data(), static_cast<std::size_t>(value.size())},
                                         [this](std::int64_t count, const std::function<void(std::int64_t)>& body) { executor_.parallel(count, body); });
    note(r.status);
    if (!r.converged) throw Unknown{"quadrature does not converge", {}};
    out.value = std::move(value);
    const double largest = out.value.cwiseAbs().maxCoeff();
    out.method = MomentMethod::kQuadrature;
    disturb(out.value, r.largest_error * largest);
    out.error = (r.largest_error + relative * 2) * largest;
    return out;
  }
  return single_entries({{0, s}, {1, t}}, rows, columns);
}

/// E d/du_k of a product of functions of Gaussians, column by column.  A jump of height J at c adds J E[delta(u_k - c) rest]: the
/// density of u_k at c times E[rest | u_k = c], where the other Gaussians are u_l - Cov(u_l, u_k) / Var(u_k) (u_k - c).
MomentEngine::Moment MomentEngine::slope(const std::vector<Factor>& factors, std::size_t k, int rows) {
  Term d{{1.0}, factors};
  d.factors[k].f = functions_.derivative(factors[k].f);
  const auto& polynomial = functions_.polynomial(d.factors[k].f);
  const bool flat = polynomial && std::all_of(polynomial->begin(), polynomial->end(), [](double c) { return c == 0; });
  Moment out = flat ? Moment{Matrix::Zero(1, 1)} : term_moment(d, rows, {{1.0}, {}}, 1);
  for (const auto& [position, height] : functions_.jumps(factors[k].f)) {
    const Factor u{FunctionTable::kIdentity, factors[k].affine, factors[k].columns};
    const Covariance own = covariance(u.affine, u.affine);
    const Eigen::VectorXd means = affines_[at(u.affine)].mean;
    Eigen::VectorXd density(rows), variance(rows);
    for (int i = 0; i < rows; ++i) {
      const double distance = position - (means.size() > 0 ? means(u.column(i)) : 0.0);
      variance(i) = own.value ? (*own.value)(u.column(i), u.column(i)) : own.identity ? 1.0 : 0.0;
      if (!(variance(i) > 0) && distance == 0) throw Unknown{"the derivative of a function at its jump", {}};
      density(i) = variance(i) > 0 ? std::exp(-0.5 * distance * distance / variance(i)) / std::sqrt(2 * std::numbers::pi * variance(i)) : 0.0;
    }
    Term rest{{1.0}, {}};
    double relative = own.relative;
    for (std::size_t l = 0; l < factors.size(); ++l) {
      if (l == k) continue;
      if (!related(factors[l].affine, u.affine)) {
        rest.factors.push_back(factors[l]);
        continue;
      }
      const Covariance& c = covariance(factors[l].affine, u.affine);
      relative = std::max(relative, c.relative);
      std::vector<double> onto(at(rows)), shift(at(rows));
      for (int i = 0; i < rows; ++i) {
        const double both = c.value ? (*c.value)(factors[l].column(i), u.column(i)) : 0.0;
        onto[at(i)] = variance(i) > 0 ? -both / variance(i) : 0.0;
        shift[at(i)] = -onto[at(i)] * position;
      }
      Field given{rows, {{{1.0}, {{FunctionTable::kIdentity, factors[l].affine, factors[l].columns}}}, {std::move(onto), {u}}}};
      if (position != 0) given.terms.push_back({std::move(shift), {}});
      rest.factors.push_back({factors[l].f, affine_of(given), nullptr});
    }
    const Moment conditional = term_moment(rest, rows, {{1.0}, {}}, 1);
    if (out.value.rows() == 1 && rows > 1) out.value = out.value.replicate(rows, 1).eval();
    for (int i = 0; i < rows; ++i) out.value(i, 0) += height * density(i) * conditional.value(conditional.value.rows() == 1 ? 0 : i, 0);
    const double largest = std::abs(height) * density.maxCoeff();
    out.error += largest * (conditional.error + 2 * relative * conditional.value.cwiseAbs().maxCoeff());
    out.method = weaker(weaker(out.method, own.method), weaker(conditional.method, MomentMethod::kClosedForm));
  }
  return out;
}

/// Stein's lemma: E x F(u) = E x E F(u) + sum_k Cov(x, u_k) E dF/du_k, for a Gaussian alone on its side.
std::optional<MomentEngine::Moment> MomentEngine::stein(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  for (const int side : {0, 1}) {
    std::vector<Factor> alone, others;
    for (const auto& [own, f] : factors) (own == side ? alone : others).push_back(f);
    if (alone.size() != 1 || alone[0].f != FunctionTable::kIdentity || others.empty()) continue;
    const Factor& x = alone[0];
    const int count = side == 0 ? rows : columns, other = side == 0 ? columns : rows;
    Moment out{Matrix::Zero(other, count)};  // rows: the other side
    for (std::size_t k = 0; k < others.size(); ++k) {
      if (!related(others[k].affine, x.affine)) continue;
      const Moment m = slope(others, k, other);
      const Covariance c = covariance(others[k].affine, x.affine);
      if (!c.value) continue;
      double largest = 0;
      for (int j = 0; j < count; ++j)
        for (int i = 0; i < other; ++i) {
          const double both = (*c.value)(others[k].column(i), x.column(j));
          largest = std::max(largest, std::abs(both));
          out.value(i, j) += both * m.value(m.value.rows() == 1 ? 0 : i, 0);
        }
      out.error += largest * (m.error + c.relative * m.value.cwiseAbs().maxCoeff());
      out.method = weaker(out.method, weaker(m.method, c.method));
    }
    if (const Eigen::VectorXd mean = affines_[at(x.affine)].mean; mean.size() > 0) {
      const Moment m = term_moment({{1.0}, others}, other, {{1.0}, {}}, 1);
      for (int j = 0; j < count; ++j)
        for (int i = 0; i < other; ++i) out.value(i, j) += mean(x.column(j)) * m.value(m.value.rows() == 1 ? 0 : i, 0);
      out.error += mean.cwiseAbs().maxCoeff() * m.error;
      out.method = weaker(out.method, m.method);
    }
    if (side == 0) out.value.transposeInPlace();
    return out;
  }
  return std::nullopt;
}

/// One quadrature per entry, over the different Gaussians behind the factors.
MomentEngine::Moment MomentEngine::single_entries(const std::vector<std::pair<int, Factor>>& factors, int rows, int columns) {
  bool left = false, right = false;
  double relative = 0;
  Moment out;
  out.method = MomentMethod::kQuadrature;
  for (const auto& [side, f] : factors) {
    (side == 0 ? left : right) = true;
    if (!functions_.integrable(f.f)) throw Unknown{"a function with poles or branch points", {}};
    for (const auto& other : factors) {
      const Covariance& c = covariance(f.affine, other.second.affine);
      relative = std::max(relative, c.relative);
    }
  }
  out.value = Matrix::Zero(left ? rows : 1, right ? columns : 1);
  std::vector<double> errors(static_cast<std::size_t>(out.value.size()), 0.0);
  std::vector<std::string> failures(errors.size());
  executor_.parallel(out.value.size(), [&](std::int64_t e) {
    const int i = static_cast<int>(e % out.value.rows()), j = static_cast<int>(e / out.value.rows());
    std::vector<std::pair<int, int>> variables;  // (affine, column)
    std::vector<std::pair<std::size_t, FunctionTable::Id>> functions;
    for (const auto& [side, f] : factors) {
      const std::pair<int, int> v{f.affine, f.column(side == 0 ? i : j)};
      const auto known = std::find(variables.begin(), variables.end(), v);
      functions.emplace_back(static_cast<std::size_t>(known - variables.begin()), f.f);
      if (known == variables.end()) variables.push_back(v);
    }
    const std::size_t dim = variables.size();
    std::vector<double> covariances(dim * dim, 0.0), means(dim, 0.0);
    for (std::size_t k = 0; k < dim; ++k) {
      const Affine& affine = affines_[at(variables[k].first)];
      if (affine.mean.size() > 0) means[k] = affine.mean(variables[k].second);
      for (std::size_t l = 0; l < dim; ++l)
        if (const Covariance& c = covariances_.at({variables[k].first, variables[l].first}); c.value) covariances[k + dim * l] = (*c.value)(variables[k].second, variables[l].second);
    }
    for (std::size_t k = 0; k < dim; ++k)
      for (std::size_t l = 0; l < k; ++l) covariances[k + dim * l] = covariances[l + dim * k] = 0.5 * (covariances[k + dim * l] + covariances[l + dim * k]);
    std::vector<Hyperplane> kinks;
    for (const auto& [k, f] : functions)
      for (const double offset : functions_.kinks(f)) {
        Hyperplane h{std::vector<double>(dim, 0.0), offset - means[k]};
        h.normal[k] = 1;
        kinks.push_back(std::move(h));
      }
    const auto integrand = [&](std::int64_t count, const double* points, double* values) {
      std::vector<double> x(static_cast<std::size_t>(count)), y(x.size());
      std::fill_n(values, count, 1.0);
      for (const auto& [k, f] : functions) {
        for (std::int64_t p = 0; p < count; ++p) x[static_cast<std::size_t>(p)] = points[static_cast<std::int64_t>(k) * count + p] + means[k];
        functions_.evaluate(f, count, x.data(), y.data());
        for (std::int64_t p = 0; p < count; ++p) values[p] *= y[static_cast<std::size_t>(p)];
      }
    };
    QuadratureOptions options;
    options.max_evaluations = 20'000'000;
    const QuadratureResult r = kinks.empty() ? smooth_expectation(covariances, integrand, 1, options) : kinked_expectation(covariances, integrand, 1, kinks, options);
    const auto slot = static_cast<std::size_t>(e);
    switch (r.status) {
      case QuadratureStatus::kConverged: break;
      case QuadratureStatus::kNotConverged: failures[slot] = "quadrature does not converge"; return;
      case QuadratureStatus::kRankTooLarge: failures[slot] = "a moment of more than 3 dependent Gaussians"; return;
      case QuadratureStatus::kNotACovariance: failures[slot] = "a covariance is not positive semidefinite"; return;
      case QuadratureStatus::kNotFinite: failures[slot] = "a moment overflows"; return;
    }
    out.value(i, j) = r.values[0];
    errors[slot] = r.errors[0];
  });
  for (const std::string& f : failures)
    if (!f.empty()) throw Unknown{f, {}};
  disturb(out.value, *std::max_element(errors.begin(), errors.end()));
  out.error = *std::max_element(errors.begin(), errors.end()) + 2 * relative * out.value.cwiseAbs().maxCoeff();
  return out;
}

}  // namespace tplimit::engines
