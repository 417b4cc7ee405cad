#include <numeric>
#include <set>
#include <unordered_map>

#include "tplimit/passes/passes.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

class UnionFind {
 public:
  explicit UnionFind(std::size_t size) : parent_(size) {
    std::iota(parent_.begin(), parent_.end(), std::size_t{0});
  }
  std::size_t find(std::size_t x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }
  void join(std::size_t a, std::size_t b) {
    a = find(a);
    b = find(b);
    parent_[std::max(a, b)] = std::min(a, b);
  }

 private:
  std::vector<std::size_t> parent_;
};

}  // namespace

ProbabilitySpaces probability_spaces(const Program& program) {
  const std::size_t nodes = program.size(), sources = program.sources.size();
  // Elements: one per node, of entries for their output coordinate; then input and output side of
  // every source; then the input coordinate of entries.
  UnionFind sets(2 * nodes + 2 * sources);
  const auto input = [&](SourceId s) { return nodes + 2 * s.value; };
  const auto output = [&](SourceId s) { return nodes + 2 * s.value + 1; };
  const auto second = [&](std::size_t entries) { return nodes + 2 * sources + entries; };
  std::vector<SourceId> source(
      nodes);  // of matrix nodes, without walking chains of versions again and again
  for (std::size_t k = 0; k < nodes; ++k) {
    const Node& node = program.nodes[k];
    if (const auto* g = std::get_if<GaussianMatrix>(&node.op))
      source[k] = g->source;
    else if (node.type.matrix && !node.type.entries)
      source[k] = source[node.in[0].value];
    // Operands and result have their coordinates in common.
    const auto joined = [&] {
      if (node.type.entries)  // along both axes
        for (const NodeId in : node.in)
          if (program[in].type.entries) {
            sets.join(k, in.value);
            sets.join(second(k), second(in.value));
          }
      if (node.type.matrix) return;
      std::size_t first = node.type.width ? k : nodes;
      for (const NodeId in : node.in)
        if (program[in].type.width) {
          if (first == nodes) first = in.value;
          sets.join(first, in.value);
        }
    };
    std::visit(overloaded{
                   [&](const MatMul& m) {
                     const SourceId s = source[node.in[0].value];
                     sets.join(node.in[1].value, m.transposed ? output(s) : input(s));
                     sets.join(k, m.transposed ? input(s) : output(s));
                   },
                   [&](const UpdateMatrix&) {
                     for (std::size_t t = 1; t + 2 < node.in.size(); t += 3) {
                       sets.join(node.in[t + 1].value, output(source[k]));
                       sets.join(node.in[t + 2].value, input(source[k]));
                     }
                   },
                   [&](const OuterSum&) {
                     for (std::size_t t = 0; t + 2 < node.in.size(); t += 3) {
                       sets.join(node.in[t + 1].value, k);
                       sets.join(node.in[t + 2].value, second(k));
                     }
                   },
                   [&](const MatrixEntries&) {
                     sets.join(k, output(source[node.in[0].value]));
                     sets.join(second(k), input(source[node.in[0].value]));
                   },
                   [&](const AddEntries&) {
                     if (!program[node.in[2]].type.entries) return;
                     sets.join(node.in[2].value, output(source[k]));
                     sets.join(second(node.in[2].value), input(source[k]));
                   },
                   [](const GaussianMatrix&) {},
                   [](const ScaleMatrix&) {},
                   [](const AddVersion&) {},
                   [](const InnerProduct&) {},
                   [&](const Constant&) { joined(); },
                   [&](const Scale&) { joined(); },
                   [&](const StandardNormal&) { joined(); },
                   [&](const Map&) { joined(); },
                   [&](const Contract&) { joined(); },
                   [&](const Average&) { joined(); },
                   [&](const ReduceSum&) { joined(); },
                   [&](const ReduceMax&) { joined(); },
                   [&](const LogSumExp&) { joined(); },
                   [&](const Gather&) { joined(); },
                   [&](const ScatterAdd&) { joined(); },
                   [&](const Permute&) { joined(); },
                   [&](const Reshape&) { joined(); },
                   [&](const Expand&) { joined(); },
                   [&](const Concat&) { joined(); },
                   [&](const Stop&) { joined(); },
                   [&](const Parameter&) { joined(); },
                   [&](const Change&) { joined(); },
                   [&](const Cholesky&) { joined(); },
                   [&](const Eigvals&) { joined(); },
                   [&](const TrainingOperator&) { joined(); },
                   [&](const Solve&) { joined(); },
                   [&](const LogDet&) { joined(); },
                   [&](const Samples&) { joined(); },
                   [&](const Histogram&) { joined(); },
               },
               node.op);
  }

  ProbabilitySpaces out;
  std::unordered_map<std::size_t, std::uint32_t> numbers;
  const auto number = [&](std::size_t element) {
    return numbers.try_emplace(sets.find(element), static_cast<std::uint32_t>(numbers.size()))
        .first->second;
  };
  out.of_node.assign(nodes, ProbabilitySpaces::kNone);
  out.columns.resize(nodes);
  out.directions.assign(sources, {0, 0});
  for (std::size_t k = 0; k < nodes; ++k)
    if (program.nodes[k].type.width) out.of_node[k] = number(k);
  for (std::uint32_t s = 0; s < sources; ++s) {
    out.input_of_source.push_back(program.sources[s].matrix ? number(input({s}))
                                                            : ProbabilitySpaces::kNone);
    out.output_of_source.push_back(program.sources[s].matrix ? number(output({s}))
                                                             : ProbabilitySpaces::kNone);
  }
  out.count = static_cast<std::uint32_t>(numbers.size());
  out.dimensions.assign(out.count, 0);

  std::set<std::pair<std::uint64_t, std::uint32_t>> seen;  // (source and side, vector)
  const auto allocate = [&](std::size_t node, SourceId s, int side, NodeId x) {
    ProbabilitySpaces::Columns columns;
    if (seen.emplace(2 * std::uint64_t{s.value} + static_cast<std::uint64_t>(side), x.value)
            .second) {
      const std::uint32_t space =
          side == 0 ? out.output_of_source[s.value] : out.input_of_source[s.value];
      columns.first = out.dimensions[space];
      columns.count = static_cast<std::uint64_t>(size_of(program[x].type.dims));
      out.dimensions[space] += columns.count;
      out.directions[s.value][static_cast<std::size_t>(side)] +=
          static_cast<std::int64_t>(columns.count);
    }
    out.columns[node].push_back(columns);
  };
  for (std::size_t k = 0; k < nodes; ++k) {
    const Node& node = program.nodes[k];
    if (std::holds_alternative<StandardNormal>(node.op)) {
      auto& next = out.dimensions[out.of_node[k]];
      const auto count = static_cast<std::uint64_t>(size_of(node.type.dims));
      out.columns[k].push_back({next, count});
      next += count;
    } else if (const auto* m = std::get_if<MatMul>(&node.op)) {
      allocate(k, source[node.in[0].value], m->transposed ? 1 : 0, node.in[1]);
    } else if (std::holds_alternative<UpdateMatrix>(node.op)) {
      for (std::size_t t = 1; t + 2 < node.in.size(); t += 3) {
        allocate(k, source[k], 1, node.in[t + 1]);
        allocate(k, source[k], 0, node.in[t + 2]);
      }
    }
  }
  return out;
}

}  // namespace tplimit
