#include "tplimit/explain/formulas.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::explain {

using namespace ir;

namespace {

/// Helpers get a line of their own from this size on, if they are used twice or in any case.
constexpr std::size_t kWorthSharing = 4, kTooLong = 24;

class Derivation {
 public:
  explicit Derivation(const Program& limit) : in_(limit), c_(out_.calculus) {}

  Formulas run() {
    out_.contexts = in_.contexts;
    for (const TrainingStep& step : in_.steps) out_.step_contexts.push_back(step.context);
    find_derivatives();
    prepare();
    for (std::uint32_t k = 0; k < in_.size(); ++k) define({k});
    for (const Report& report : in_.reports)
      for (const auto& entry : report.entries) add_report(report, entry);
    return std::move(out_);
  }

 private:
  // ---- preparation
  // ---------------------------------------------------------------------------------

  /// Nodes that are the derivative of a function at some value, as gradients write it.
  void find_derivatives() {
    Program copy = in_;
    Builder b(copy);
    for (std::uint32_t k = 0; k < in_.size(); ++k) {
      const auto* map = std::get_if<Map>(&in_.nodes[k].op);
      if (!map || arity(map->fn) != 1 || map->fn == Fn::kPower) continue;
      const NodeId x = in_.nodes[k].in[0], slope = derivative_of(b, *map, x, {k});
      if (slope.value >= in_.size() || slope.value <= x.value || slope.value == k) continue;
      const Op& op = in_[slope].op;
      const auto* own = std::get_if<Map>(&op);
      if (own && arity(own->fn) == 1) continue;
      slopes_.try_emplace(slope, std::pair{*map, x});
    }
  }

  void prepare() {
    const std::size_t size = in_.size();
    uses_.assign(size, 0);
    operand_.assign(size, false);
    for (const auto& [slope, of] : slopes_) ++uses_[of.second.value];  // tanh'(x) beside tanh(x)
    for (const Node& node : in_.nodes) {
      for (const NodeId in : node.in) ++uses_[in.value];
      if (std::holds_alternative<MatMul>(node.op)) operand_[node.in[1].value] = true;
      if (std::holds_alternative<UpdateMatrix>(node.op))
        for (std::size_t k = 1; k + 2 < node.in.size(); k += 3)
          operand_[node.in[k + 1].value] = operand_[node.in[k + 2].value] = true;
    }
    defined_.assign(size, kNone);
    names_.assign(size, nullptr);
    steps_.assign(size, 0);
    std::map<std::string, int> versions;
    for (const NamedValue& named : in_.names) {
      taken_.insert(named.name);
      if (named.kind == NamedValue::Kind::kVersion) {
        ++versions[named.name];
        first_version_.try_emplace(named.name, &named);
      }
      if (!names_[named.value.value] && !in_[named.value].type.matrix)
        names_[named.value.value] = &named;
    }
    // What has no name belongs to the next value that has one.
    std::uint32_t next = in_.steps.empty() ? 0 : static_cast<std::uint32_t>(in_.steps.size());
    for (std::size_t k = size; k-- > 0;) steps_[k] = names_[k] ? next = names_[k]->step : next;
    for (const NamedValue& named : in_.names)
      if (named.kind == NamedValue::Kind::kVersion && versions[named.name] > 1)
        version_number_[&named] = version_count_[named.name]++;
    // The standard deviation of W: the factor of its first version, if all products go through it.
    out_.matrices.resize(in_.sources.size());
    for (std::size_t k = 0; k < in_.sources.size(); ++k)
      out_.matrices[k].name = in_.sources[k].name;
    first_scale_.assign(in_.sources.size(), {});
    std::vector<int> users(in_.sources.size(), 0);
    for (std::uint32_t k = 0; k < size; ++k)
      for (const NodeId in : in_.nodes[k].in)
        if (const auto* g = std::get_if<GaussianMatrix>(&in_[in].op)) {
          ++users[g->source.value];
          if (std::holds_alternative<ScaleMatrix>(in_.nodes[k].op) && constant(in_.nodes[k].in[1]))
            first_scale_[g->source.value] = {k};
        }
    for (std::size_t k = 0; k < users.size(); ++k) {
      if (users[k] != 1) first_scale_[k] = {};
      if (first_scale_[k].valid()) out_.matrices[k].scale = *constant(in_[first_scale_[k]].in[1]);
    }
  }

  [[nodiscard]] std::optional<double> constant(NodeId id) const {
    const auto* c = std::get_if<Constant>(&in_[id].op);
    if (!c || c->values->empty()) return std::nullopt;
    for (const double v : *c->values)
      if (v != c->values->front()) return std::nullopt;
    return c->values->front();
  }

  // ---- definitions
  // ---------------------------------------------------------------------------------

  static constexpr std::uint32_t kNone = 0xffffffff;

  static Indices as_indices(const std::vector<Symbol>& symbols) {
    Indices out;
    for (const Symbol& s : symbols) out.emplace_back(s);
    return out;
  }

  std::string unused(const std::string& base) {
    std::string name;
    do name = fmt::format("{}{}", base, ++helpers_[base]);
    while (taken_.contains(name));
    return name;
  }

  std::vector<std::string> iteration_of(std::uint32_t context) const {
    std::vector<std::string> out;
    const std::string& text = in_.contexts[context];
    for (std::size_t at = text.find(" = "); at != std::string::npos; at = text.find(" = ", at)) {
      at += 3;
      out.push_back(text.substr(at, text.find(',', at) - at));
    }
    return out;
  }

  /// Fills in what the text calls it.
  void give_name(Definition& d, NodeId id) {
    const NamedValue* named = names_[id.value];
    d.step = steps_[id.value];
    d.context = in_[id].context;
    if (!named) return;
    d.step = named->step;
    d.context = named->context;
    d.order = named->order;
    d.name = named->name;
    d.iteration = iteration_of(named->context);
    d.role = Definition::Role::kForward;
    if (named->kind == NamedValue::Kind::kVersion) {
      d.role = Definition::Role::kVersion;
      d.iteration.clear();
      d.initial = first_version_.at(named->name) == named;
      if (const auto it = version_number_.find(named); it != version_number_.end())
        d.iteration.push_back(fmt::format("{}", it->second));
    }
    if (named->kind == NamedValue::Kind::kGradient) {
      d.role = Definition::Role::kGradient;
      const std::uint32_t of = defined_[named->of.value];
      if (of != kNone && !definition(of).in_line) d.gradient_of = of;
      if (d.gradient_of && definition(of).name.empty()) return;  // d[W x]
      d.name = d.gradient_of ? "d" + definition(of).name : unused("d");
      if (d.gradient_of) d.iteration = definition(of).iteration;
    }
    // Another value of the same name in the same iteration.
    const std::string base = d.name;
    for (int copy = 2; !full_names_.insert({d.name, d.iteration}).second; ++copy)
      d.name = fmt::format("{}#{}", base, copy);
  }

  Definition& definition(std::uint32_t k) { return c_.definitions[k]; }

  std::uint32_t push(Definition d) {
    if (d.value) {
      d.width = d.value->width;
      d.families = c_.families(d.value);
    }
    c_.definitions.push_back(std::move(d));
    return static_cast<std::uint32_t>(c_.definitions.size() - 1);
  }

  /// tanh(y) can stand in brackets as it is.
  [[nodiscard]] bool is_label(const Expr& e) {
    const Expr& x = e->kind == Kind::kFunction ? e->args[0] : e;
    return x->kind == Kind::kRef && !definition(x->ref).name.empty() && e->kind != Kind::kNumber;
  }

  void define(NodeId id) {
    const Node& node = in_[id];
    if (node.type.matrix) return;
    if (std::holds_alternative<StandardNormal>(node.op)) return define_source(id, id, 1);
    if (const auto* s = std::get_if<Scale>(&node.op);
        s && names_[id.value] && std::holds_alternative<StandardNormal>(in_[node.in[0]].op) &&
        uses_[node.in[0].value] == 1)
      return define_source(id, node.in[0], s->factor);
    if (const auto* c = std::get_if<Constant>(&node.op)) {
      if (!constant(id)) define_data(id, *c->values);
      return;
    }
    Definition d;
    d.axes = c_.fresh(node.type.dims);
    if (is_operation(node.op)) {
      give_name(d, id);
      if (d.name.empty()) d.name = unused("s");
      d.kind = Definition::Kind::kOperation;
      d.operation = node.op;
      d.width = node.type.width;
      for (const NodeId in : node.in) d.operands.push_back(whole(in));
      defined_[id.value] = push(std::move(d));
      return;
    }
    const Indices indices = as_indices(d.axes);
    const auto* product = std::get_if<MatMul>(&node.op);
    d.value = product ? product_formula(node, indices) : formula(id, indices);
    const bool named = names_[id.value] != nullptr;
    const bool is_reference = d.value->kind == Kind::kRef && d.value->indices == indices;
    if (is_reference && !named) {
      defined_[id.value] = d.value->ref;
      return;
    }
    const std::size_t weight = Calculus::weight(d.value);
    const bool wanted = named || product || operand_[id.value] || weight > kTooLong ||
                        (uses_[id.value] > 1 && weight >= kWorthSharing);
    if (!wanted || (!named && d.value->kind == Kind::kNumber)) return;
    give_name(d, id);
    if (!named && product) {
      const std::uint32_t operand = defined_[node.in[1].value];
      d.matrix = in_.sources[source_of(in_, node.in[0]).value].name;
      d.transposed = product->transposed;
      d.operand = operand;
      d.role = definition(operand).role == Definition::Role::kGradient ? Definition::Role::kGradient
                                                                       : Definition::Role::kForward;
      if (operand == kNone ||
          !products_named_.insert({source_of(in_, node.in[0]), product->transposed, operand})
               .second)
        d.name = unused("x");
    } else if (!named) {
      if (operand_[id.value] && is_label(d.value))
        d.in_line = true;
      else
        d.name = unused(d.value->width ? "x" : "s");
    }
    if (const auto* s = std::get_if<Scale>(&node.op);
        named && s && defined_[node.in[0].value] == kNone)
      scaled_.try_emplace(node.in[0], std::pair{id, s->factor});
    defined_[id.value] = push(std::move(d));
  }

  void define_source(NodeId id, NodeId normal, double scale) {
    if (scale == 1 && !names_[id.value] &&
        uses_[id.value] == 1) {  // its only user, a named multiple, stands for it
      for (std::uint32_t k = id.value + 1; k < in_.size(); ++k)
        if (!in_.nodes[k].in.empty() && in_.nodes[k].in[0] == id &&
            std::holds_alternative<Scale>(in_.nodes[k].op) && names_[k])
          return;
    }
    Definition d;
    d.kind = Definition::Kind::kSource;
    d.axes = c_.fresh(in_[id].type.dims);
    d.width = true;
    d.scale = scale;
    const SourceId source = std::get<StandardNormal>(in_[normal].op).source;
    d.family = 2 * source.value;
    d.families = {d.family};
    give_name(d, id);
    if (d.name.empty()) {
      const std::string& name = in_.sources[source.value].name;
      d.name = taken_.contains(name) ? unused("g") : name;
      d.role = Definition::Role::kVersion;
    }
    d.operand = normal.value;
    defined_[id.value] = push(std::move(d));
  }

  void define_data(NodeId id, const std::vector<double>& values) {
    const Dims& dims = in_[id].type.dims;
    if (!names_[id.value] && rows_of_data(id, values)) return;
    Definition d;
    d.kind = Definition::Kind::kData;
    d.axes = c_.fresh(dims);
    d.values = values;
    give_name(d, id);
    if (d.name.empty()) d.name = unused("A");
    d.iteration.clear();
    defined_[id.value] = push(std::move(d));
    data_.push_back(id);
  }

  /// Rows, multiples and transposes of data that has a name: X[batch], -y / P.
  struct FromData {
    NodeId data;
    double factor = 1;
    bool transposed = false;
    std::vector<std::int64_t> rows;        ///< of the data, or of its transpose
    std::optional<std::int64_t> single{};  ///< one row of the data, or of its transpose
  };

  bool rows_of_data(NodeId id, const std::vector<double>& values) {
    const Dims& dims = in_[id].type.dims;
    if (dims.empty()) return false;
    for (const NodeId from : data_)
      for (const bool transposed : {false, true}) {
        Dims theirs = in_[from].type.dims;
        std::vector<double> all = *std::get<Constant>(in_[from].op).values;
        if (transposed) {
          if (theirs.size() != 2) continue;
          std::vector<double> turned;
          for (std::int64_t c = 0; c < theirs[1]; ++c)
            for (std::int64_t r = 0; r < theirs[0]; ++r)
              turned.push_back(all[static_cast<std::size_t>(r * theirs[1] + c)]);
          all = std::move(turned);
          std::swap(theirs[0], theirs[1]);
        }
        if (theirs.size() == 2 && dims.size() == 1 && theirs[1] == dims[0]) {
          if (const auto found = rows_of(values, 1, all, theirs[0])) {
            data_rows_[id] = {from, found->first, transposed, {}, found->second[0]};
            return true;
          }
        }
        if (theirs.size() != dims.size() ||
            !std::equal(dims.begin() + 1, dims.end(), theirs.begin() + 1))
          continue;
        if (auto found = rows_of(values, dims[0], all, theirs[0])) {
          data_rows_[id] = {from, found->first, transposed, std::move(found->second), {}};
          return true;
        }
      }
    return false;
  }

  /// values = factor * rows of `all`: a run of them with any factor, or any rows as they are, if
  /// only one choice fits.
  static std::optional<std::pair<double, std::vector<std::int64_t>>> rows_of(
      const std::vector<double>& values, std::int64_t rows, const std::vector<double>& all,
      std::int64_t count) {
    const std::size_t length = values.size() / static_cast<std::size_t>(rows);
    const auto at = [&](std::int64_t row, std::size_t k) {
      return all[static_cast<std::size_t>(row) * length + k];
    };
    for (std::int64_t first = 0; first + rows <= count; ++first) {
      const auto pivot = static_cast<std::size_t>(
          std::find_if(values.begin(), values.end(), [](double v) { return v != 0; }) -
          values.begin());
      const double below = at(first, pivot);
      if (below == 0) continue;
      const double factor = values[pivot] / below;
      bool same = true;
      for (std::size_t k = 0; k < values.size() && same; ++k)
        same = std::abs(values[k] - factor * at(first, k)) <= 1e-15 * std::abs(values[k]);
      if (!same) continue;
      std::vector<std::int64_t> out(static_cast<std::size_t>(rows));
      std::iota(out.begin(), out.end(), first);
      return std::pair{factor, std::move(out)};
    }
    std::vector<std::int64_t> out;
    for (std::size_t row = 0; row < static_cast<std::size_t>(rows); ++row) {
      std::optional<std::int64_t> match;
      for (std::int64_t other = 0; other < count; ++other) {
        bool same = true;
        for (std::size_t k = 0; k < length && same; ++k)
          same = values[row * length + k] == at(other, k);
        if (same && match) return std::nullopt;
        if (same) match = other;
      }
      if (!match) return std::nullopt;
      out.push_back(*match);
    }
    return std::pair{1.0, std::move(out)};
  }

  static bool is_operation(const Op& op) {
    return std::holds_alternative<Eigvals>(op) || std::holds_alternative<TrainingOperator>(op) ||
           std::holds_alternative<Cholesky>(op) || std::holds_alternative<Solve>(op) ||
           std::holds_alternative<LogDet>(op) || std::holds_alternative<Samples>(op) ||
           std::holds_alternative<Histogram>(op);
  }

  /// The definition that is this node with its own axes.
  std::uint32_t whole(NodeId id) {
    if (defined_[id.value] != kNone) return defined_[id.value];
    Definition d;
    d.axes = c_.fresh(in_[id].type.dims);
    d.value = formula(id, as_indices(d.axes));
    d.step = steps_[id.value];
    d.context = in_[id].context;
    if (is_label(d.value))
      d.in_line = true;
    else
      d.name = unused(d.value->width ? "x" : "s");
    return defined_[id.value] = push(std::move(d));
  }

  void add_report(const Report& report, const Report::Entry& entry) {
    const std::uint32_t known = defined_[entry.value.value];
    const bool same =
        known != kNone && !definition(known).in_line && definition(known).name == report.name;
    std::uint32_t own = known;
    if (!same) {
      Definition d;
      d.role = Definition::Role::kReport;
      d.name = report.name;
      for (const std::int64_t i : entry.index) d.iteration.push_back(fmt::format("{}", i));
      d.axes = c_.fresh(in_[entry.value].type.dims);
      d.value = formula(entry.value, as_indices(d.axes));
      d.step = steps_[entry.value.value];
      d.context = in_[entry.value].context;
      for (std::uint32_t s = 0; s < in_.steps.size(); ++s)  // a constant has no place of its own
        if (!d.iteration.empty() && iteration_of(in_.steps[s].context) == d.iteration)
          d.step = s, d.context = in_.steps[s].context;
      own = push(std::move(d));
    }
    out_.reports.push_back({report.name, entry.index, own});
  }

  // ---- products
  // ------------------------------------------------------------------------------------

  struct Product {
    std::uint32_t gaussian;
    std::vector<Symbol> axes;
    Expr corrections;
  };

  Expr product_formula(const Node& node, const Indices& indices) {
    const std::uint32_t operand = whole(node.in[1]);
    return version_formula(node.in[0], std::get<MatMul>(node.op).transposed, operand, indices);
  }

  Expr version_formula(NodeId version, bool transposed, std::uint32_t operand,
                       const Indices& indices) {
    const Node& node = in_[version];
    const auto before = [&] { return version_formula(node.in[0], transposed, operand, indices); };
    return visit_version(
        node.op,
        overloaded{
            [&](const Parameter&) { return before(); },
            [&](const Stop&) { return before(); },
            [&](const GaussianMatrix& g) {
              return initial_product(g.source, transposed, operand, indices);
            },
            [&](const ScaleMatrix&) {
              const SourceId source = source_of(in_, version);
              if (first_scale_[source.value] == version)
                return initial_product(source, transposed, operand, indices);
              return c_.mul({formula(node.in[1], {}), before()});
            },
            [&](const AddVersion&) {
              return c_.add(
                  {before(), c_.mul({formula(node.in[1], {}),
                                     version_formula(node.in[2], transposed, operand, indices)})});
            },
            [&](const AddEntries&) -> Expr {
              TPLIMIT_CHECK(false, "entrywise updates have no formulas");
              return {};
            },
            [&](const UpdateMatrix&) {
              std::vector<Expr> terms{before()};
              const Expr x = c_.ref(operand, indices);
              for (std::size_t k = 1; k + 2 < node.in.size(); k += 3) {
                const NodeId left = node.in[transposed ? k + 2 : k + 1],
                             right = node.in[transposed ? k + 1 : k + 2];
                const std::vector<Symbol> symbols = c_.fresh(in_[left].type.dims);
                const Indices p = as_indices(symbols);
                Expr term = c_.mul({formula(node.in[k], {}), formula(left, p),
                                    c_.mean(c_.mul({formula(right, p), x}))});
                for (std::size_t s = symbols.size(); s-- > 0;) term = c_.sum(symbols[s], term);
                terms.push_back(std::move(term));
              }
              return c_.add(std::move(terms));
            },
        });
  }

  /// Of the matrix as drawn: G and the corrections of all earlier products with its transpose.
  Expr initial_product(SourceId source, bool transposed, std::uint32_t operand,
                       const Indices& indices) {
    const auto slot = std::tuple{source, transposed, operand};
    auto it = products_.find(slot);
    if (it == products_.end()) {
      MatrixFamily& matrix = out_.matrices[source.value];
      matrix.used[transposed ? 1 : 0] = true;
      Product product;
      product.axes = definition(operand).axes;
      std::vector<Expr> terms;
      for (const std::uint32_t other : gaussians_[{source, !transposed}]) {
        const std::vector<Symbol> theirs = c_.fresh([&] {
          Dims dims;
          for (const Symbol& s : definition(other).axes) dims.push_back(s.size);
          return dims;
        }());
        const Indices at = as_indices(theirs);
        const Expr slope = c_.derivative(c_.ref(operand, as_indices(product.axes)), other, at);
        Expr coefficient = c_.mul({c_.number(matrix.scale * matrix.scale), c_.mean(slope)});
        if (Calculus::is_zero(coefficient)) continue;
        const bool kinked = this->kinked(slope);
        const bool simple = coefficient->kind != Kind::kAdd && Calculus::weight(coefficient) <= 10;
        if (kinked || !simple) {
          Definition d;
          d.kind = Definition::Kind::kCoefficient;
          d.name = unused("theta");
          d.axes = product.axes;
          d.axes.insert(d.axes.end(), theirs.begin(), theirs.end());
          d.value = coefficient;
          d.kinked = kinked;
          d.operand = operand;
          d.gaussian = other;
          d.step = definition(operand).step;
          d.context = definition(operand).context;
          const Indices all = as_indices(d.axes);
          coefficient = c_.ref(push(std::move(d)), all);
        }
        const std::uint32_t y = definition(other).operand;
        Expr term = c_.mul({coefficient, c_.ref(y, at)});
        for (std::size_t s = theirs.size(); s-- > 0;) term = c_.sum(theirs[s], term);
        terms.push_back(std::move(term));
      }
      product.corrections = c_.add(std::move(terms));
      Definition g;
      g.kind = Definition::Kind::kGaussian;
      g.axes = product.axes;
      g.width = true;
      g.family = 2 * source.value + (transposed ? 1 : 0);
      g.families = {g.family};
      g.operand = operand;
      g.matrix = matrix.name;
      g.transposed = transposed;
      g.scale = matrix.scale;
      g.step = definition(operand).step;
      g.context = definition(operand).context;
      product.gaussian = push(std::move(g));
      gaussians_[{source, transposed}].push_back(product.gaussian);
      it = products_.emplace(slot, std::move(product)).first;
    }
    Substitution by;
    for (std::size_t k = 0; k < it->second.axes.size(); ++k)
      by.emplace(it->second.axes[k].id, indices[k]);
    return c_.add(
        {c_.ref(it->second.gaussian, indices), c_.substitute(it->second.corrections, by)});
  }

  /// Deltas may also stand in responses that have a name.
  bool kinked(const Expr& e) {
    if (Calculus::kinked(e)) return true;
    const std::function<bool(const Expr&)> behind = [&](const Expr& x) {
      return (x->kind == Kind::kRef && definition(x->ref).kinked) ||
             std::any_of(x->args.begin(), x->args.end(), behind);
    };
    return behind(e);
  }

  // ---- formulas
  // ------------------------------------------------------------------------------------

  /// What is known without its operation: constants, values with a name, rows of data, slopes; else
  /// null.
  Expr known_formula(NodeId id, const Indices& indices) {
    if (const auto value = constant(id)) return c_.number(*value);
    const std::uint32_t known = defined_[id.value];
    if (known != kNone) return c_.ref(known, indices);
    if (const auto it = data_rows_.find(id); it != data_rows_.end()) {
      Indices at = indices;
      if (it->second.single)
        at.insert(at.begin(), Index::number(*it->second.single));
      else
        at[0] = composed(at[0], it->second.rows);
      if (it->second.transposed) std::swap(at[0], at[1]);
      return c_.mul(
          {c_.number(it->second.factor), c_.ref(defined_[it->second.data.value], std::move(at))});
    }
    if (const auto it = slopes_.find(id); it != slopes_.end())
      return c_.function(it->second.first, 1, broadcast(it->second.second, indices));
    return {};
  }

  Expr formula(NodeId id, const Indices& indices) {
    if (Expr known = known_formula(id, indices)) return known;
    const Node& node = in_[id];
    const auto operand = [&](std::size_t k) { return node.in[k]; };
    const auto defined = [&]() -> Expr {
      TPLIMIT_CHECK(false, "{} has a definition", op_name(node.op));
      return {};
    };
    return std::visit(
        overloaded{
            [&](const Scale& s) {
              TPLIMIT_CHECK(s.power == 0, "a limit program has no powers of the width");
              // A multiple of a value without a name, of which another multiple has one.
              if (const auto it = scaled_.find(operand(0));
                  it != scaled_.end() && it->second.first != id)
                return c_.mul(
                    {c_.number(s.factor / it->second.second), formula(it->second.first, indices)});
              return c_.mul({c_.number(s.factor), formula(operand(0), indices)});
            },
            [&](const Map& m) {
              if (arity(m.fn) == 1) return c_.function(m, 0, broadcast(operand(0), indices));
              std::vector<Expr> args;
              for (const NodeId in : node.in) args.push_back(broadcast(in, indices));
              return c_.call(m, std::move(args));
            },
            [&](const Contract& c) { return contraction(c, node, indices); },
            [&](const Average&) { return c_.mean(formula(operand(0), indices)); },
            [&](const ReduceSum& r) {
              const Symbol s =
                  c_.fresh(in_[operand(0)].type.dims[static_cast<std::size_t>(r.axis)]);
              return c_.sum(s, formula(operand(0), inserted(indices, r.axis, s)));
            },
            [&](const ReduceMax& r) {
              const Symbol s =
                  c_.fresh(in_[operand(0)].type.dims[static_cast<std::size_t>(r.axis)]);
              return c_.maximum(s, formula(operand(0), inserted(indices, r.axis, s)));
            },
            [&](const LogSumExp& r) {
              const Symbol s =
                  c_.fresh(in_[operand(0)].type.dims[static_cast<std::size_t>(r.axis)]);
              const Expr x = formula(operand(0), inserted(indices, r.axis, s));
              return c_.function({Fn::kLog, 0}, 0, c_.sum(s, c_.function({Fn::kExp, 0}, 0, x)));
            },
            [&](const Gather& g) {
              Indices at = indices;
              auto& own = at[static_cast<std::size_t>(g.axis)];
              own = composed(own, *g.indices);
              return formula(operand(0), at);
            },
            [&](const ScatterAdd& g) {
              const Symbol s =
                  c_.fresh(in_[operand(0)].type.dims[static_cast<std::size_t>(g.axis)]);
              Indices at = indices;
              const Index target = std::exchange(at[static_cast<std::size_t>(g.axis)], Index(s));
              return c_.sum(s, c_.mul({c_.delta(target, composed(Index(s), *g.indices)),
                                       formula(operand(0), at)}));
            },
            [&](const Permute& p) {
              Indices at(indices.size());
              for (std::size_t k = 0; k < p.axes.size(); ++k)
                at[static_cast<std::size_t>(p.axes[k])] = indices[k];
              return formula(operand(0), at);
            },
            [&](const Reshape&) {
              return formula(operand(0),
                             reshaped(indices, node.type.dims, in_[operand(0)].type.dims));
            },
            [&](const Expand&) { return broadcast(operand(0), indices); },
            [&](const Concat& c) { return joined(c, node, indices); },
            [&](const Stop&) { return formula(operand(0), indices); },
            [&](const Parameter&) { return formula(operand(0), indices); },
            [&](const Change&) { return formula(operand(0), indices); },
            [&](const MatMul&) { return product_formula(node, indices); },
            [&](const Constant&) { return defined(); },
            [&](const StandardNormal&) { return defined(); },
            [&](const GaussianMatrix&) { return defined(); },
            [&](const ScaleMatrix&) { return defined(); },
            [&](const UpdateMatrix&) { return defined(); },
            [&](const AddVersion&) { return defined(); },
            [&](const OuterSum&) { return defined(); },
            [&](const MatrixEntries&) { return defined(); },
            [&](const AddEntries&) { return defined(); },
            [&](const InnerProduct&) { return defined(); },
            [&](const Cholesky&) { return defined(); },
            [&](const Eigvals&) { return defined(); },
            [&](const TrainingOperator&) { return defined(); },
            [&](const Solve&) { return defined(); },
            [&](const LogDet&) { return defined(); },
            [&](const Samples&) { return defined(); },
            [&](const Histogram&) { return defined(); },
        },
        node.op);
  }

  /// Finite axes align from the right; axes of extent 1 repeat.
  Expr broadcast(NodeId id, const Indices& indices) {
    const Dims& dims = in_[id].type.dims;
    Indices own(indices.end() - static_cast<std::ptrdiff_t>(dims.size()), indices.end());
    for (std::size_t k = 0; k < dims.size(); ++k)
      if (dims[k] == 1) own[k] = Index();
    return formula(id, own);
  }

  static Indices inserted(Indices indices, std::int32_t axis, Symbol s) {
    indices.insert(indices.begin() + axis, Index(s));
    return indices;
  }

  static Index composed(const Index& index, const std::vector<std::int64_t>& table) {
    std::vector<std::int64_t> values = index.values();
    for (std::int64_t& v : values) v = table[static_cast<std::size_t>(v)];
    return Index::table(index.symbols(), std::move(values));
  }

  /// Indices of the operand of a reshape from those of the result: axes are matched in groups of
  /// equal size.
  static Indices reshaped(const Indices& indices, const Dims& to, const Dims& from) {
    Indices out;
    std::size_t i = 0, j = 0;
    while (j < from.size()) {
      std::size_t i_end = i, j_end = j + 1;
      std::int64_t a = 1, b = from[j];
      while (a != b) {
        if (a < b && i_end < to.size())
          a *= to[i_end++];
        else
          b *= from[j_end++];
      }
      if (a == 1) {  // an axis of extent 1
        out.emplace_back();
        ++j;
        continue;
      }
      std::size_t first = i;
      while (to[first] == 1) ++first;  // the group may begin with axes of extent 1
      if (i_end - first == 1 && j_end - j == 1) {
        out.push_back(indices[first]);
      } else {
        const Index flat = flatten(Indices(indices.begin() + static_cast<std::ptrdiff_t>(i),
                                           indices.begin() + static_cast<std::ptrdiff_t>(i_end)),
                                   Dims(to.begin() + static_cast<std::ptrdiff_t>(i),
                                        to.begin() + static_cast<std::ptrdiff_t>(i_end)));
        for (Index& index :
             unflatten(flat, Dims(from.begin() + static_cast<std::ptrdiff_t>(j),
                                  from.begin() + static_cast<std::ptrdiff_t>(j_end))))
          out.push_back(std::move(index));
      }
      i = i_end;
      j = j_end;
    }
    return out;
  }

  Expr contraction(const Contract& c, const Node& node, const Indices& indices) {
    const auto &a = in_[node.in[0]].type.dims, &b = in_[node.in[1]].type.dims;
    const auto batch = static_cast<std::size_t>(c.batch),
               contracted = static_cast<std::size_t>(c.contracted);
    const std::size_t left = a.size() - batch - contracted;
    const std::vector<Symbol> symbols =
        c_.fresh(Dims(a.end() - static_cast<std::ptrdiff_t>(contracted), a.end()));
    const Indices k = as_indices(symbols);
    const auto part = [&](std::size_t from, std::size_t to) {
      return Indices(indices.begin() + static_cast<std::ptrdiff_t>(from),
                     indices.begin() + static_cast<std::ptrdiff_t>(to));
    };
    Indices ia = part(0, batch + left), ib = part(0, batch);
    const Indices rest = part(batch + left, indices.size());
    ib.insert(ib.end(), rest.begin(), rest.end());
    ia.insert(ia.end(), k.begin(), k.end());
    ib.insert(ib.end(), k.begin(), k.end());
    (void)b;
    Expr out = c_.mul({formula(node.in[0], ia), formula(node.in[1], ib)});
    if (c.average) out = c_.mean(out);
    for (std::size_t s = symbols.size(); s-- > 0;) out = c_.sum(symbols[s], out);
    return out;
  }

  Expr joined(const Concat& c, const Node& node, const Indices& indices) {
    const auto axis = static_cast<std::size_t>(c.axis);
    std::vector<Expr> terms;
    std::int64_t offset = 0;
    for (const NodeId in : node.in) {
      const std::int64_t size = in_[in].type.dims[axis];
      Indices at = indices;
      if (indices[axis].is_number()) {
        const std::int64_t own = indices[axis].number() - offset;
        if (own >= 0 && own < size) {
          at[axis] = Index::number(own);
          return formula(in, at);
        }
      } else {
        const Symbol s = c_.fresh(size);
        std::vector<std::int64_t> places(static_cast<std::size_t>(size));
        std::iota(places.begin(), places.end(), offset);
        at[axis] = Index(s);
        if (size == 1) at[axis] = Index();
        terms.push_back(
            c_.sum(s, c_.mul({c_.delta(indices[axis], Index::table({s}, std::move(places))),
                              formula(in, at)})));
      }
      offset += size;
    }
    return c_.add(std::move(terms));
  }

  const Program& in_;
  Formulas out_;
  Calculus& c_;
  std::map<NodeId, std::pair<Map, NodeId>> slopes_;
  std::vector<int> uses_;
  std::vector<bool> operand_;
  std::vector<std::uint32_t> defined_;
  std::vector<const NamedValue*> names_;
  std::vector<std::uint32_t> steps_;
  std::map<const NamedValue*, int> version_number_;
  std::map<std::string, const NamedValue*> first_version_;
  std::map<std::string, int> version_count_, helpers_;
  std::set<std::string> taken_;
  std::set<std::pair<std::string, std::vector<std::string>>> full_names_;
  std::set<std::tuple<SourceId, bool, std::uint32_t>> products_named_;
  std::vector<NodeId> first_scale_, data_;
  std::map<NodeId, std::pair<NodeId, double>>
      scaled_;  ///< value without a name -> a named multiple of it, the factor
  std::map<NodeId, FromData> data_rows_;
  std::map<std::tuple<SourceId, bool, std::uint32_t>, Product> products_;
  std::map<std::pair<SourceId, bool>, std::vector<std::uint32_t>> gaussians_;
};

}  // namespace

Formulas formulas_of(const Program& limit) { return Derivation(limit).run(); }

}  // namespace tplimit::explain
