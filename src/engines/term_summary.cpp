#include "engines/term_summary.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace tplimit::engines {

using namespace ir;

namespace {

const double* column(const View& x, std::int64_t j) { return x.data + j * x.ld; }

/// Largest of both vectors of all ranks: each rank's part stands alone in a sum.
template <class Keep>
void gather(const Communicator& ranks, const std::vector<double>& own, Keep keep) {
  std::vector<double> all(own.size() * static_cast<std::size_t>(ranks.size()), -0.0);
  std::copy(own.begin(), own.end(),
            all.begin() + static_cast<std::ptrdiff_t>(own.size()) * ranks.rank());
  ranks.sum(all);
  for (std::size_t k = 0; k < all.size(); ++k) keep(k % own.size(), all[k]);
}

}  // namespace

// All fields are named: a new one does not compile until it is kept.
void save(Writer& out, const TermSummary& terms) {
  const auto& [largest, low, high, mean, apart, unseen] = terms;
  for (const auto* values : {&largest, &low, &high, &apart, &unseen}) out.values(*values);
  out.value(mean);
}

TermSummary load_terms(Reader& in) {
  TermSummary terms;
  auto& [largest, low, high, mean, apart, unseen] = terms;
  for (auto* values : {&largest, &low, &high, &apart, &unseen}) *values = in.values<double>();
  mean = in.value<double>();
  return terms;
}

void ColumnRanges::include(const View& x) {
  for (std::size_t j = 0; j < low.size(); ++j) {
    const Eigen::Map<const Eigen::VectorXd> values(column(x, static_cast<std::int64_t>(j)), x.rows);
    low[j] = std::min(low[j], values.minCoeff());
    high[j] = std::max(high[j], values.maxCoeff());
  }
}

void ColumnRanges::merge(const ColumnRanges& other) {
  for (std::size_t j = 0; j < other.low.size(); ++j) {
    low[j] = std::min(low[j], other.low[j]);
    high[j] = std::max(high[j], other.high[j]);
  }
}

void ColumnRanges::share(const Communicator& ranks) {
  if (ranks.size() == 1) return;
  gather(ranks, std::vector(low), [&](std::size_t j, double x) { low[j] = std::min(low[j], x); });
  gather(ranks, std::vector(high),
         [&](std::size_t j, double x) { high[j] = std::max(high[j], x); });
}

void term_sizes(const Node& node, const std::vector<const Type*>& types,
                const std::vector<View>& in, double* sizes) {
  const std::int64_t rows = in[0].rows;
  Eigen::Map<Eigen::ArrayXd> out(sizes, rows);
  const auto values = [&](std::size_t operand, std::int64_t j) {
    return Eigen::Map<const Eigen::ArrayXd>(column(in[operand], j), rows);
  };
  const std::int64_t a = size_of(types[0]->dims);
  out.setZero();
  if (std::holds_alternative<Contract>(node.op)) {
    const std::int64_t b = size_of(types[1]->dims);
    Eigen::ArrayXd other = Eigen::ArrayXd::Zero(rows);
    for (std::int64_t j = 0; j < a; ++j) out += values(0, j).square();
    for (std::int64_t j = 0; j < b; ++j) other += values(1, j).square();
    out = out.sqrt() * other.sqrt();
  } else {
    for (std::int64_t j = 0; j < a; ++j) out = out.max(values(0, j).abs());
  }
}

void bound_terms(const Node& node, const std::vector<const Type*>& types,
                 const std::vector<const ColumnRanges*>& in, TermSummary& out) {
  const auto columns = static_cast<std::size_t>(size_of(node.type.dims));
  if (std::holds_alternative<Histogram>(node.op)) {
    out.low.assign(columns, 0.0);
    out.high.assign(columns, 1.0);
    return;
  }
  const auto* op = std::get_if<Contract>(&node.op);
  if (!op) {
    out.low = in[0]->low;
    out.high = in[0]->high;
    return;
  }
  const ContractSizes n(*op, types[0]->dims, types[1]->dims);
  const bool same = node.in[0] == node.in[1];
  out.low.assign(columns, 0.0);
  out.high.assign(columns, 0.0);
  std::size_t entry = 0;
  for (std::int64_t p = 0; p < n.batch; ++p)
    for (std::int64_t i = 0; i < n.left; ++i)
      for (std::int64_t j = 0; j < n.right; ++j, ++entry)
        for (std::int64_t k = 0; k < n.inner; ++k) {
          const auto x = static_cast<std::size_t>((p * n.left + i) * n.inner + k),
                     y = static_cast<std::size_t>((p * n.right + j) * n.inner + k);
          const double corners[] = {in[0]->low[x] * in[1]->low[y], in[0]->low[x] * in[1]->high[y],
                                    in[0]->high[x] * in[1]->low[y],
                                    in[0]->high[x] * in[1]->high[y]};
          const auto [least, most] = std::minmax_element(std::begin(corners), std::end(corners));
          out.low[entry] += same && x == y ? std::max(0.0, *least) : *least;
          out.high[entry] += *most;
        }
}

void include_changes(const Node& node, const std::vector<const Type*>& types,
                     const std::vector<View>& in, const std::vector<View>& changed,
                     std::vector<double>& unseen) {
  const std::int64_t rows = in[0].rows, columns = size_of(node.type.dims);
  unseen.resize(static_cast<std::size_t>(columns), 0.0);
  const auto values = [&](const View& x, std::int64_t j) {
    return Eigen::Map<const Eigen::ArrayXd>(column(x, j), rows);
  };
  const auto raise = [&](std::size_t entry, const Eigen::ArrayXd& change) {
    unseen[entry] = std::max(unseen[entry], change.isFinite().select(change.abs(), 0.0).maxCoeff());
  };
  if (const auto* op = std::get_if<Contract>(&node.op)) {
    const ContractSizes n(*op, types[0]->dims, types[1]->dims);
    std::size_t entry = 0;
    for (std::int64_t p = 0; p < n.batch; ++p)
      for (std::int64_t i = 0; i < n.left; ++i)
        for (std::int64_t j = 0; j < n.right; ++j, ++entry) {
          Eigen::ArrayXd change = Eigen::ArrayXd::Zero(rows);
          for (std::int64_t k = 0; k < n.inner; ++k) {
            const std::int64_t x = (p * n.left + i) * n.inner + k,
                               y = (p * n.right + j) * n.inner + k;
            change +=
                values(changed[0], x) * values(changed[1], y) - values(in[0], x) * values(in[1], y);
          }
          raise(entry, change);
        }
  } else if (std::holds_alternative<Average>(node.op)) {
    for (std::int64_t j = 0; j < columns; ++j)
      raise(static_cast<std::size_t>(j), values(changed[0], j) - values(in[0], j));
  }
}

std::vector<double> largest_of(std::vector<double> sizes, const Communicator& ranks) {
  const auto keep = [&](std::vector<double>& values) {
    const auto count = static_cast<std::size_t>(kLargestTerms);
    if (values.size() > count)
      std::nth_element(values.begin(), values.begin() + kLargestTerms - 1, values.end(),
                       std::greater<>());
    values.resize(count, 0.0);
    values.shrink_to_fit();  // results are kept until all runs have ended
    std::sort(values.begin(), values.end(), std::greater<>());
  };
  keep(sizes);
  if (ranks.size() == 1) return sizes;
  std::vector<double> all;
  gather(ranks, sizes, [&](std::size_t, double x) { all.push_back(x); });
  keep(all);
  return all;
}

bool has_flat_side(const Op& op) {
  const auto* map = std::get_if<Map>(&op);
  return map && (map->fn == Fn::kRelu || map->fn == Fn::kMax || map->fn == Fn::kMin);
}

void cross(const Op& op, const std::vector<const Type*>& types, const std::vector<View>& in,
           std::int64_t j, std::span<double> values) {
  const Fn fn = std::get<Map>(op).fn;
  const auto argument = [&](std::size_t k, std::size_t i) {
    if (k >= in.size()) return 0.0;
    const std::int64_t columns = size_of(types[k]->dims);
    return column(in[k], columns == 1 ? 0 : j % columns)[types[k]->width ? i : 0];
  };
  double nearest = std::numeric_limits<double>::infinity(), low = nearest, high = -nearest;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double difference = argument(0, i) - argument(1, i);
    nearest = std::min(nearest, std::abs(difference));
    low = std::min(low, difference);
    high = std::max(high, difference);
  }
  if (low == high) return;  // no random number
  for (double& x : values) {
    if (has_flat_side(op))
      x += fn == Fn::kMin ? -nearest : nearest;
    else
      x = fn != Fn::kSign ? 1 - x : x == 0 ? 1 : -x;
  }
}

}  // namespace tplimit::engines
