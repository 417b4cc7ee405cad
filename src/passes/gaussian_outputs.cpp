#include <algorithm>
#include <functional>
#include <map>

#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/matrix_algebra.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// How every value from the first of `sources` on depends on them, by structure: 0 not at all, 1 as
/// an affine function, 2 in another way.  What is constant almost everywhere, sign(source), is no
/// constant: a derivative that holds almost everywhere proves nothing.
std::vector<std::uint8_t> degrees(const Program& program, const std::vector<NodeId>& sources,
                                  NodeId last) {
  const NodeId source = *std::min_element(sources.begin(), sources.end());
  if (last < source) return {0};
  std::vector<std::uint8_t> out(last.value + 1 - source.value, 0);
  for (const NodeId id : sources)
    if (!(last < id)) out[id.value - source.value] = 1;
  for (std::uint32_t k = source.value + 1; k <= last.value; ++k) {
    const Node& node = program[{k}];
    std::uint8_t& own = out[k - source.value];
    if (own == 1) continue;  // a source
    const auto of = [&](std::size_t j) -> std::uint8_t {
      return node.in[j] < source ? std::uint8_t{0} : out[node.in[j].value - source.value];
    };
    std::uint8_t largest = 0;
    for (std::size_t j = 0; j < node.in.size(); ++j) largest = std::max(largest, of(j));
    if (largest == 0) continue;
    const auto times = [](int x, int y) { return static_cast<std::uint8_t>(std::min(2, x + y)); };
    const auto outer = [&](std::size_t first) {
      std::uint8_t most = 0;
      for (std::size_t j = first; j < node.in.size(); j += 3)
        most = std::max(most, times(times(of(j), of(j + 1)), of(j + 2)));
      return most;
    };
    own = std::visit(
        overloaded{
            [&](const Map& m) -> std::uint8_t {
              if (m.fn == Fn::kAdd || m.fn == Fn::kSub) return largest;
              if (m.fn == Fn::kMul) return times(of(0), of(1));
              if (m.fn == Fn::kDiv) return of(1) == 0 ? of(0) : 2;
              if (m.fn == Fn::kWhere) return of(0) == 0 ? largest : 2;
              return 2;
            },
            [&](const Contract&) { return times(of(0), of(1)); },
            [&](const MatMul&) { return times(of(0), of(1)); },
            [&](const InnerProduct&) { return times(of(0), of(1)); },
            [&](const ScaleMatrix&) { return times(of(0), of(1)); },
            [&](const UpdateMatrix&) { return std::max(of(0), outer(1)); },
            [&](const OuterSum&) { return outer(0); }, [&](const MatrixEntries&) { return of(0); },
            [&](const AddVersion&) { return std::max(of(0), times(of(1), of(2))); },
            [&](const AddEntries&) { return std::max(of(0), times(of(1), of(2))); },
            [&](const Stop&) -> std::uint8_t {
              return 2;
            },  // its slope is not what `gradient` finds
            // Copies and sums.
            [&](const Reshape&) { return largest; }, [&](const Permute&) { return largest; },
            [&](const Gather&) { return largest; }, [&](const ScatterAdd&) { return largest; },
            [&](const Expand&) { return largest; }, [&](const Concat&) { return largest; },
            [&](const Parameter&) { return largest; }, [&](const Change&) { return largest; },
            [&](const Scale&) { return largest; }, [&](const Average&) { return largest; },
            [&](const ReduceSum&) { return largest; },
            // Sources are not reached.
            [](const Constant&) -> std::uint8_t { return 2; },
            [](const StandardNormal&) -> std::uint8_t { return 2; },
            [](const GaussianMatrix&) -> std::uint8_t { return 2; },
            [](const ReduceMax&) -> std::uint8_t { return 2; },
            [](const LogSumExp&) -> std::uint8_t { return 2; },
            [](const Cholesky&) -> std::uint8_t { return 2; },
            [](const Eigvals&) -> std::uint8_t { return 2; },
            [](const TrainingOperator&) -> std::uint8_t { return 2; },
            [&](const Solve&) -> std::uint8_t { return of(0) == 0 ? of(1) : 2; },
            [](const LogDet&) -> std::uint8_t { return 2; },
            [](const Samples&) -> std::uint8_t { return 2; },
            [](const Histogram&) -> std::uint8_t { return 2; }},
        node.op);
  }
  return out;
}

bool is_source(const Op& op) {
  return std::holds_alternative<StandardNormal>(op) || std::holds_alternative<GaussianMatrix>(op);
}

NodeId zero_of(Builder& b, NodeId source) {
  const Type type = b.type(source);
  return type.matrix ? b.add(ScaleMatrix{}, {source, b.constant(0)})
                     : b.zeros(type.width, type.dims);
}

/// f without a source that it is linear in.  Zero times what is not known to be finite is zero
/// here: the slope has the same factor, and is evaluated.
NodeId at_zero(Builder& b, NodeId f, NodeId source) {
  for (std::map<NodeId, NodeId> zeros{{source, zero_of(b, source)}};;) {
    const auto first = static_cast<std::uint32_t>(b.program().size());
    f = substituted(b, f, zeros);
    zeros.clear();
    for (std::uint32_t k = first; k < b.program().size(); ++k) {
      const Node& node = b.node({k});
      const auto* m = std::get_if<Map>(&node.op);
      const auto zero = [&](std::size_t j) { return b.is_zero(node.in[j]); };
      const bool product = (m && m->fn == Fn::kMul) || std::holds_alternative<Contract>(node.op);
      const bool from_left = product || (m && m->fn == Fn::kDiv),
                 from_right = product || std::holds_alternative<MatMul>(node.op);
      if ((from_left && zero(0)) || (from_right && zero(1))) zeros.emplace(NodeId{k}, NodeId{});
    }
    if (zeros.empty()) return f;
    for (auto& [product, zero] : zeros) {
      const Type type = b.type(product);
      zero = b.zeros(type.width, type.dims);
    }
  }
}

}  // namespace

std::vector<NodeId> readout_candidates(const Program& program) {
  std::vector<std::pair<std::uint32_t, NodeId>> found;  // the first value that is not affine in it
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    if (!is_source(program[{k}].op)) continue;
    const auto degree =
        degrees(program, {NodeId{k}}, {static_cast<std::uint32_t>(program.size() - 1)});
    found.emplace_back(
        k + static_cast<std::uint32_t>(std::find(degree.begin(), degree.end(), 2) - degree.begin()),
        NodeId{k});
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  std::vector<NodeId> out;
  for (const bool matrices : {false, true})
    for (const auto& [first, id] : found)
      if (program[id].type.matrix == matrices) out.push_back(id);
  return out;
}

bool linear_in(const Builder& b, NodeId f, const std::vector<NodeId>& sources) {
  return degrees(b.program(), sources, f).back() == 1;
}

std::optional<LinearPart> linear_part(Builder& b, NodeId f, NodeId source) {
  if (!linear_in(b, f, {source})) return std::nullopt;
  Result<std::vector<Derivative>> d = gradient(b, f, {source});
  if (!d) return std::nullopt;
  const Derivative& slope = (*d)[0];
  const auto constant = [&](NodeId id) { return id.valid() && !depends_on(b, {id}, {source}); };
  const bool matrix = b.type(source).matrix;
  if (!slope.versions.empty()) return std::nullopt;
  if (matrix ? slope.outer.empty() || !std::all_of(slope.outer.begin(), slope.outer.end(),
                                                   [&](const OuterTerm& t) {
                                                     return constant(t.coefficient) &&
                                                            constant(t.d) && constant(t.x);
                                                   })
             : !constant(slope.tensor))
    return std::nullopt;
  return LinearPart{std::move((*d)[0]), at_zero(b, f, source)};
}

std::optional<ReadoutParts> readouts_of(Builder& b, NodeId f,
                                        const std::vector<NodeId>& candidates) {
  const Dims dims = b.type(f).dims;
  const std::int64_t size = size_of(dims);
  // One row of the Jacobian is the gradient of f[k]; batched over the unit vectors it is all rows.
  const auto weight = b.add(Parameter{0}, {b.constant(1, dims)});
  NodeId scalar = b.sum(b.reshape(b.times(weight, f), {size}), 0);
  ReadoutParts out{{}, f};
  std::vector<LinearPart> parts;
  for (const NodeId source : candidates) {
    auto part = linear_part(b, scalar, source);
    if (!part) continue;
    scalar = part->at_zero;
    out.rest = at_zero(b, out.rest, source);
    out.slopes.push_back({source, size, {}});
    parts.push_back(std::move(*part));
  }
  if (parts.empty()) return std::nullopt;
  Dims rows = dims;
  rows.insert(rows.begin(), size);
  const NodeId units = b.reshape(identity_matrix(b, size), rows);
  const auto row_by_row = [&](NodeId x) {
    const std::int64_t each = size_of(b.type(x).dims);
    return b.reshape(batched(b, {x}, size, {{weight, units}})[0], {size, each});
  };
  for (std::size_t k = 0; k < parts.size(); ++k) {
    const Derivative& slope = parts[k].slope;
    std::vector<SourceSlope::Term>& terms = out.slopes[k].terms;
    if (slope.tensor.valid()) terms.push_back({row_by_row(slope.tensor)});
    for (const OuterTerm& t : slope.outer) {
      const bool own = depends_on(b, {t.x}, {weight});
      terms.push_back({row_by_row(b.times(t.coefficient, t.d)),
                       own ? row_by_row(t.x) : b.reshape(t.x, {size_of(b.type(t.x).dims)}), own});
    }
  }
  return out;
}

NodeId covariance(Builder& b, const SourceSlope& a, const SourceSlope& c) {
  NodeId out;
  const auto add = [&](NodeId term) { out = out.valid() ? b.plus(out, term) : term; };
  for (const SourceSlope::Term& s : a.terms)
    for (const SourceSlope::Term& t : c.terms) {
      if (!s.x.valid()) {
        add(b.contract(s.d, t.d, 0, 1, true));
        continue;
      }
      // sum over m, l of E(d_m d_l) E(x_m x_l)
      const std::int64_t m = b.type(s.d).dims[1], l = b.type(t.d).dims[1];
      const auto lined_up = [&](NodeId x, bool own, std::int64_t size) {
        return b.reshape(x, {own ? size_of(b.type(x).dims) : size});
      };
      const NodeId d = b.reshape(
                       b.contract(lined_up(s.d, true, m), lined_up(t.d, true, l), 0, 0, true),
                       {a.size, m, c.size, l}),
                   x = b.reshape(
                       b.contract(lined_up(s.x, s.own, m), lined_up(t.x, t.own, l), 0, 0, true),
                       {s.own ? a.size : 1, m, t.own ? c.size : 1, l});
      add(b.sum(b.sum(b.times(d, x), 3), 1));
    }
  return out;
}

namespace {

/// A value of size N with a Gaussian limit.
struct GaussianOutput {
  NodeId covariance;  ///< [N, N]: sum over readouts r of <df/dr, df/dr'>, r ~ N(0, 1)
  NodeId mean;        ///< f at r = 0, of f's shape
};

std::optional<GaussianOutput> split(Builder& b, NodeId f, const std::vector<NodeId>& candidates) {
  const auto parts = readouts_of(b, f, candidates);
  if (!parts) return std::nullopt;
  GaussianOutput out{{}, parts->rest};
  for (const SourceSlope& slope : parts->slopes) {
    const NodeId own = b.scale(1, 1, covariance(b, slope, slope));  // a sum over n coordinates
    out.covariance = out.covariance.valid() ? b.plus(out.covariance, own) : own;
  }
  return out;
}

}  // namespace

GaussianOutputs gaussian_outputs(const Program& program, const std::vector<bool>& reports) {
  GaussianOutputs out{program, program, {}};
  out.limit.reports.clear();
  out.networks.reports.clear();
  Builder b(out.limit);
  const std::vector<NodeId> candidates = readout_candidates(program);
  std::vector<Report> limit, networks;
  for (std::size_t k = 0; k < program.reports.size(); ++k) {
    const Report& report = program.reports[k];
    Report covariance = report, mean = report, square = report;
    bool convertible = reports[k], centred = true;
    for (std::size_t j = 0; j < report.entries.size() && convertible; ++j) {
      const NodeId f = report.entries[j].value;
      b.set_origin(report.span, program[f].context);
      const auto parts = split(b, f, candidates);
      convertible = parts.has_value();
      if (!parts) break;
      Dims twice = program[f].type.dims;
      twice.insert(twice.end(), program[f].type.dims.begin(), program[f].type.dims.end());
      const NodeId deviation = b.reshape(b.minus(f, parts->mean), {size_of(program[f].type.dims)});
      covariance.entries[j].value = b.reshape(parts->covariance, twice);
      mean.entries[j].value = parts->mean;
      square.entries[j].value = b.reshape(b.contract(deviation, deviation, 0, 0, false), twice);
      centred = centred && b.is_zero(parts->mean);
    }
    if (!convertible) {
      limit.push_back(report);
      networks.push_back(report);
      continue;
    }
    covariance.random = square.random = true;
    covariance.name = square.name = "cov(" + report.name + ")";
    mean.name = "mean(" + report.name + ")";
    limit.push_back(covariance);
    networks.push_back(square);
    if (!centred) {
      limit.push_back(mean);
      networks.push_back(mean);
    }
    out.notes.push_back(
        Diagnostic::warning(
            "W5302",
            fmt::format("report '{}' tends to a Gaussian, not to a number: its covariance is "
                        "reported",
                        report.name))
            .at(report.span));
  }
  out.networks = out.limit;  // both meanings share one program text; dead code is dropped below
  out.limit.reports = std::move(limit);
  out.networks.reports = std::move(networks);
  out.limit = erase_identities(out.limit);
  out.networks = erase_identities(out.networks);
  return out;
}

}  // namespace tplimit
