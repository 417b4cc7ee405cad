#include "engines/term_watch.hpp"

#include <algorithm>
#include <limits>
#include <numeric>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"

namespace tplimit::engines {

using namespace ir;

void summarise_sizes(std::vector<double> sizes, const Communicator& ranks, std::int64_t rows,
                     TermSummary& out) {
  out.mean = std::accumulate(sizes.begin(), sizes.end(), 0.0);
  ranks.sum({&out.mean, 1});
  out.mean /= static_cast<double>(rows);
  out.largest = largest_of(std::move(sizes), ranks);
}

TermWatch::TermWatch(const Schedule& schedule, const Plan::Sweep& sweep, std::int64_t rows)
    : program_(*schedule.program), sweep_(sweep), rows_(rows) {
  const std::vector<NodeId> group = sweep.nodes();
  const auto unknown = [&](NodeId id) {
    const auto columns = static_cast<std::size_t>(size_of(type(id).dims));
    ranges_.try_emplace(
        id.value, ColumnRanges{std::vector(columns, std::numeric_limits<double>::infinity()),
                               std::vector(columns, -std::numeric_limits<double>::infinity())});
  };
  std::set<NodeId> behind;
  for (auto id = group.rbegin(); id != group.rend(); ++id) {
    const Node& node = program_[*id];
    const bool wanted =
        is_average(node.op) &&
        std::find(schedule.wanted.begin(), schedule.wanted.end(), *id) != schedule.wanted.end();
    const bool inner = !wanted && is_average(node.op) &&
                       std::any_of(node.in.begin(), node.in.end(),
                                   [&](NodeId in) { return schedule.heavy[in.value]; });
    if (wanted || inner) sizes_[id->value].resize(static_cast<std::size_t>(rows));
    if (inner) inner_.insert(id->value);
    if (!wanted && !behind.contains(*id)) continue;
    if (is_piecewise_constant(node.op) || has_flat_side(node.op)) {
      jumps_.push_back(*id);
      unknown(*id);
    }
    behind.insert(node.in.begin(), node.in.end());
    for (std::size_t k = 0; wanted && k < node.in.size(); ++k)
      if (!ranges_.contains(node.in[k].value)) {
        unknown(node.in[k]);
        first_.insert({id->value, k});
      }
  }
  std::reverse(jumps_.begin(), jumps_.end());
  // A jump that is an operand of an average is seen as a jump.
  for (auto pair = first_.begin(); pair != first_.end();)
    pair = std::binary_search(jumps_.begin(), jumps_.end(),
                              program_[NodeId{pair->first}].in[pair->second])
               ? first_.erase(pair)
               : std::next(pair);
}

void TermWatch::include(NodeId id, const View& x, std::int64_t columns) {
  ColumnRanges own;
  own.include(x, columns);
  const std::scoped_lock lock(mutex_);
  ranges_.at(id.value).merge(own);
}

void TermWatch::average(const Plan::Sweep::Operation& operation, const std::vector<View>& in,
                        std::int64_t row) {
  const auto own = sizes_.find(operation.node.value);
  if (own == sizes_.end()) return;
  const Node& node = program_[operation.node];
  term_sizes(node, operation.types, in, own->second.data() + row);
  for (std::size_t k = 0; k < node.in.size(); ++k)
    if (first_.contains({operation.node.value, k}))
      include(node.in[k], in[k], operation.in[k].columns);
}

void TermWatch::value(const Plan::Sweep::Operation& operation, const View& x) {
  if (std::binary_search(jumps_.begin(), jumps_.end(), operation.node))
    include(operation.node, x, operation.out.columns);
}

void TermWatch::summarise(const Executor& executor, std::int64_t rows,
                          const std::vector<Block>& blocks,
                          std::map<std::uint32_t, TermSummary>& terms) {
  for (auto& [id, ranges] : ranges_) ranges.share(executor.ranks());
  for (auto& [id, sizes] : sizes_) {
    const Node& node = program_.nodes[id];
    if (inner_.contains(id)) {
      summarise_sizes(std::move(sizes), executor.ranks(), rows, terms[id]);
      continue;
    }
    std::vector<const Type*> types;
    std::vector<const ColumnRanges*> in;
    for (const NodeId operand : node.in) {
      types.push_back(&type(operand));
      in.push_back(&ranges_.at(operand.value));
    }
    TermSummary& own = terms[id];
    bound_terms(node, types, in, own);
    own.unseen.assign(own.low.size(), std::holds_alternative<Histogram>(node.op) ? 1.0 : 0.0);
    own.largest = largest_of(std::move(sizes), executor.ranks());
  }
  for (const NodeId jump : jumps_) {
    const ColumnRanges& seen = ranges_.at(jump.value);
    std::vector<bool> one_sided;
    for (std::size_t j = 0; j < seen.low.size(); ++j)
      one_sided.push_back(seen.low[j] == seen.high[j]);
    if (std::find(one_sided.begin(), one_sided.end(), true) != one_sided.end())
      cross_jump(jump, one_sided, executor, blocks, terms);
  }
}

/// What would change in the averages of the group, term by term, if these columns of the jump
/// were on its other side.
void TermWatch::cross_jump(NodeId jump, const std::vector<bool>& columns, const Executor& executor,
                           const std::vector<Block>& blocks,
                           std::map<std::uint32_t, TermSummary>& terms) {
  const std::vector<NodeId> group = sweep_.nodes();
  std::set<NodeId> after{jump}, needed;
  for (const NodeId id : group)
    for (const NodeId in : program_[id].in)
      if (after.contains(in)) after.insert(id);
  for (auto id = group.rbegin(); id != group.rend(); ++id)
    if (needed.contains(*id) || (after.contains(*id) && wanted(*id)))
      needed.insert(program_[*id].in.begin(), program_[*id].in.end());
  std::map<std::uint32_t, std::vector<double>> change;
  for (const NodeId id : group)
    if (after.contains(id) && wanted(id))
      change[id.value].assign(static_cast<std::size_t>(size_of(type(id).dims)), 0.0);
  if (change.empty()) return;
  std::mutex mutex;
  const std::int64_t rows = rows_, chunk = std::min(rows, kChunkRows),
                     chunks = rows == 0 ? 0 : (rows + kChunkRows - 1) / kChunkRows;
  executor.parallel(chunks, [&](std::int64_t c) {
    const std::int64_t r = std::min(chunk, rows - c * chunk);
    std::map<std::uint32_t, std::vector<double>> as_is, crossed;
    const auto views = [&](const Node& node, bool cross) {
      std::vector<View> in;
      for (const NodeId operand : node.in) {
        const auto other = crossed.find(operand.value), same = as_is.find(operand.value);
        if (cross && other != crossed.end())
          in.push_back({other->second.data(), r, r});
        else if (same != as_is.end())
          in.push_back({same->second.data(), r, r});
        else
          in.push_back(blocks[operand.value].view(type(operand).width ? c : 0));
      }
      return in;
    };
    for (const NodeId id : group) {
      const Node& node = program_[id];
      std::vector<const Type*> types;
      for (const NodeId operand : node.in) types.push_back(&type(operand));
      if (const auto own = change.find(id.value); own != change.end()) {
        std::vector<double> largest;
        include_changes(node, types, views(node, false), views(node, true), largest);
        const std::scoped_lock lock(mutex);
        for (std::size_t j = 0; j < largest.size(); ++j)
          own->second[j] = std::max(own->second[j], largest[j]);
      }
      if (is_average(node.op) || !needed.contains(id)) continue;
      const auto size = static_cast<std::size_t>(size_of(node.type.dims) * r);
      std::vector<double>& same = as_is[id.value];
      same.assign(size, 0.0);
      evaluate_rows(node, types, views(node, false), {same.data(), r, r});
      if (!after.contains(id)) continue;
      std::vector<double>& other = crossed[id.value];
      other.assign(size, 0.0);
      if (id != jump) {
        evaluate_rows(node, types, views(node, true), {other.data(), r, r});
        continue;
      }
      other = same;
      for (std::size_t j = 0; j < columns.size(); ++j)
        if (columns[j])
          cross(node.op, types, views(node, false), static_cast<std::int64_t>(j),
                {other.data() + j * static_cast<std::size_t>(r), static_cast<std::size_t>(r)});
    }
  });
  for (auto& [id, largest] : change) {
    ColumnRanges all{largest, largest};
    all.share(executor.ranks());
    std::vector<double>& unseen = terms[id].unseen;
    for (std::size_t j = 0; j < unseen.size(); ++j) unseen[j] += all.high[j];
  }
}

}  // namespace tplimit::engines
