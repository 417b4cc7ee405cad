#include "engines/term_watch.hpp"

#include <algorithm>
#include <array>
#include <cmath>
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

namespace {

std::vector<double> mean_squares(const Block& x, const Communicator& ranks, std::int64_t rows) {
  std::vector<double> out(static_cast<std::size_t>(x.columns()), 0.0);
  for (std::int64_t c = 0; c < x.chunks(); ++c)
    Eigen::Map<Eigen::RowVectorXd>(out.data(), x.columns()) +=
        all_columns(x, c).colwise().squaredNorm();
  ranks.sum(out);
  for (double& s : out) s /= static_cast<double>(rows);
  return out;
}

}  // namespace

TermWatch::TermWatch(const Schedule& schedule, const Plan::Sweep& sweep, std::int64_t rows)
    : program_(*schedule.program), sweep_(sweep), rows_(rows) {
  const std::vector<NodeId> group = sweep.nodes();
  const auto columns = [&](NodeId id) { return static_cast<std::size_t>(size_of(type(id).dims)); };
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
    const bool vector = schedule.multiplied[id->value];
    if (vector) vectors_.insert(id->value);
    if (!wanted && !vector && !behind.contains(*id)) continue;
    if (is_piecewise_constant(node.op) || has_flat_side(node.op) || product(*id)) {
      jumps_.push_back(*id);
      ranges_.try_emplace(id->value, columns(*id));
    }
    behind.insert(node.in.begin(), node.in.end());
    for (std::size_t k = 0; wanted && k < node.in.size(); ++k)
      if (!ranges_.contains(node.in[k].value)) {
        ranges_.try_emplace(node.in[k].value, columns(node.in[k]));
        first_.insert({id->value, k});
      }
  }
  std::reverse(jumps_.begin(), jumps_.end());
  for (const NodeId id : jumps_)
    if (product(id))
      for (const std::size_t k : {0u, 1u})
        factors_.try_emplace({id.value, k}, columns(program_[id].in[k]));
  // A jump that is an operand of an average is seen as a jump.
  for (auto pair = first_.begin(); pair != first_.end();)
    pair = std::binary_search(jumps_.begin(), jumps_.end(),
                              program_[NodeId{pair->first}].in[pair->second])
               ? first_.erase(pair)
               : std::next(pair);
}

bool TermWatch::product(NodeId id) const {
  const auto* map = std::get_if<Map>(&program_[id].op);
  return map && map->fn == Fn::kMul;
}

void TermWatch::include(ColumnRanges& to, const View& x) {
  ColumnRanges own(to.low.size());
  own.include(x);
  const std::scoped_lock lock(mutex_);
  to.merge(own);
}

void TermWatch::average(const Plan::Sweep::Operation& operation, const std::vector<View>& in,
                        std::int64_t row) {
  const auto own = sizes_.find(operation.node.value);
  if (own == sizes_.end()) return;
  const Node& node = program_[operation.node];
  term_sizes(node, operation.types, in, own->second.data() + row);
  for (std::size_t k = 0; k < node.in.size(); ++k)
    if (first_.contains({operation.node.value, k})) include(ranges_.at(node.in[k].value), in[k]);
}

void TermWatch::value(const Plan::Sweep::Operation& operation, const std::vector<View>& in,
                      const View& x) {
  if (!std::binary_search(jumps_.begin(), jumps_.end(), operation.node)) return;
  include(ranges_.at(operation.node.value), x);
  for (std::size_t k = 0; product(operation.node) && k < in.size(); ++k)
    include(factors_.at({operation.node.value, k}), in[k]);
}

std::vector<double> TermWatch::largest_product(NodeId id) const {
  const Node& node = program_[id];
  std::array<std::vector<double>, 2> sizes;
  std::vector<Type> types;
  for (const std::size_t k : {0u, 1u}) {
    const ColumnRanges& seen = factors_.at({id.value, k});
    const bool number = !type(node.in[k]).width;
    for (std::size_t j = 0; j < seen.low.size(); ++j)
      sizes[k].push_back(number || seen.low[j] != seen.high[j]
                             ? std::max(std::abs(seen.low[j]), std::abs(seen.high[j]))
                             : 0.0);
    types.push_back({false, false, type(node.in[k]).dims});
  }
  std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
  const Node plain{node.op, {false, false, node.type.dims}, {}, {}, 0};
  evaluate_rows(plain, {&types[0], &types[1]}, {{sizes[0].data(), 1, 1}, {sizes[1].data(), 1, 1}},
                {out.data(), 1, 1});
  return out;
}

void TermWatch::summarise(const Executor& executor, std::int64_t rows,
                          const std::vector<Block>& blocks,
                          std::map<std::uint32_t, TermSummary>& terms) {
  for (auto& [id, ranges] : ranges_) ranges.share(executor.ranks());
  for (auto& [factor, ranges] : factors_) ranges.share(executor.ranks());
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
    own.apart.assign(own.low.size(), 0.0);
    own.largest = largest_of(std::move(sizes), executor.ranks());
  }
  for (const std::uint32_t id : vectors_) {
    terms[id].unseen.assign(static_cast<std::size_t>(size_of(type({id}).dims)), 0.0);
    terms[id].apart = terms[id].unseen;
  }
  for (const NodeId jump : jumps_) {
    const ColumnRanges& seen = ranges_.at(jump.value);
    const std::vector<double> largest =
        product(jump) ? largest_product(jump) : std::vector<double>{};
    std::vector<bool> one_sided;
    for (std::size_t j = 0; j < seen.low.size(); ++j)
      one_sided.push_back(seen.low[j] == seen.high[j] &&
                          (largest.empty() || (seen.low[j] == 0 && largest[j] > 0)));
    if (std::find(one_sided.begin(), one_sided.end(), true) != one_sided.end())
      cross_jump(jump, one_sided, largest, executor, rows, blocks, terms);
  }
}

/// What would change in the averages of the group, term by term, if these columns of the jump
/// were on its other side; in vectors that matrices multiply, squared and in units of the mean
/// square.
void TermWatch::cross_jump(NodeId jump, const std::vector<bool>& columns,
                           const std::vector<double>& largest, const Executor& executor,
                           std::int64_t rows_of_all, const std::vector<Block>& blocks,
                           std::map<std::uint32_t, TermSummary>& terms) {
  const std::vector<NodeId> group = sweep_.nodes();
  std::set<NodeId> after{jump}, needed;
  for (const NodeId id : group)
    for (const NodeId in : program_[id].in)
      if (after.contains(in)) after.insert(id);
  for (auto id = group.rbegin(); id != group.rend(); ++id)
    if (needed.contains(*id) ||
        (after.contains(*id) && (wanted(*id) || vectors_.contains(id->value)))) {
      if (vectors_.contains(id->value)) needed.insert(*id);
      needed.insert(program_[*id].in.begin(), program_[*id].in.end());
    }
  std::map<std::uint32_t, std::vector<double>> change;
  for (const NodeId id : group)
    if (after.contains(id) && (wanted(id) || vectors_.contains(id.value)))
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
      const auto own = change.find(id.value);
      const auto raise = [&](const std::vector<double>& changes) {
        const std::scoped_lock lock(mutex);
        for (std::size_t j = 0; j < changes.size(); ++j)
          own->second[j] = std::max(own->second[j], changes[j]);
      };
      if (own != change.end() && is_average(node.op)) {
        std::vector<double> changes;
        include_changes(node, types, views(node, false), views(node, true), changes);
        raise(changes);
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
      } else {
        other = same;
        for (std::size_t j = 0; j < columns.size(); ++j) {
          if (!columns[j]) continue;
          const std::span<double> values(other.data() + j * static_cast<std::size_t>(r),
                                         static_cast<std::size_t>(r));
          if (largest.empty())
            cross(node.op, types, views(node, false), static_cast<std::int64_t>(j), values);
          else
            std::fill(values.begin(), values.end(), largest[j]);
        }
      }
      if (own == change.end()) continue;
      std::vector<double> changes(own->second.size(), 0.0);
      for (std::size_t i = 0; i < size; ++i) {
        double& most = changes[i / static_cast<std::size_t>(r)];
        most = std::max(most, std::pow(other[i] - same[i], 2));
      }
      raise(changes);
    }
  });
  for (auto& [id, changes] : change) {
    ColumnRanges all(changes.size());
    all.low = all.high = changes;
    all.share(executor.ranks());
    if (vectors_.contains(id)) {
      const std::vector<double> mean = mean_squares(blocks[id], executor.ranks(), rows_of_all);
      for (std::size_t j = 0; j < mean.size(); ++j)
        if (all.high[j] > 0) all.high[j] /= mean[j];
    }
    std::vector<double>& to = largest.empty() ? terms[id].unseen : terms[id].apart;
    for (std::size_t j = 0; j < to.size(); ++j) to[j] += all.high[j];
  }
}

}  // namespace tplimit::engines
