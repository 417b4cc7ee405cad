#include "engines/rounding.hpp"

#include <algorithm>
#include <cmath>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/determinacy.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {

constexpr double kUnit = 0x1p-48;  // 32 units of rounding
constexpr double kStep = 0x1p-30;  // of derivatives

View rows_of(const View& x, std::int64_t rows) { return {x.data, std::min(rows, x.rows), x.ld}; }

/// One column after the other.
std::vector<double> dense(const View& x, std::int64_t columns) {
  std::vector<double> out;
  for (std::int64_t j = 0; j < columns; ++j)
    out.insert(out.end(), x.data + j * x.ld, x.data + j * x.ld + x.rows);
  return out;
}

}  // namespace

RoundingWatch::RoundingWatch(const Program& program, const std::vector<bool>& needed)
    : program_(program), before_(program.size(), false) {
  for (std::size_t k = program.size(); k-- > 0;) {
    const Node& node = program.nodes[k];
    if (!needed[k] || !node.type.width || node.type.matrix) continue;
    const bool jump = is_jump(node);
    if (jump)
      decided_[static_cast<std::uint32_t>(k)].assign(
          static_cast<std::size_t>(size_of(node.type.dims)), 0.0);
    if (jump || before_[k])
      for (const NodeId in : node.in) before_[in.value] = true;
  }
}

RoundingWatch::Rows RoundingWatch::evaluate(const Node& node, const std::vector<const Type*>& types,
                                            const std::vector<View>& in, std::int64_t rows) const {
  Rows out(static_cast<std::size_t>(rows * size_of(node.type.dims)));
  evaluate_rows(node, types, in, {out.data(), rows, rows});
  return out;
}

RoundingWatch::Rows RoundingWatch::scale_of(const Node& node, const std::vector<const Type*>& types,
                                            const std::vector<View>& in,
                                            const std::vector<const Rows*>& scales,
                                            const Rows& value, std::int64_t rows) const {
  Rows out(value.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::abs(value[i]);
  for (std::size_t k = 0; k < in.size(); ++k) {
    if (!types[k]->width) continue;
    Rows moved = dense(in[k], size_of(types[k]->dims));
    for (std::size_t i = 0; i < moved.size(); ++i)
      moved[i] += kStep * (scales[k] ? (*scales[k])[i] : std::abs(moved[i]));
    std::vector<View> other = in;
    other[k] = {moved.data(), rows, rows};
    const Rows there = evaluate(node, types, other, rows);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += std::abs(there[i] - value[i]) / kStep;
  }
  return out;
}

void RoundingWatch::value(NodeId id, const std::vector<const Type*>& types,
                          const std::vector<View>& in, const View& out) {
  const Node& node = program_[id];
  const auto jump = decided_.find(id.value);
  if (!before_[id.value] && jump == decided_.end()) return;
  const std::int64_t rows = std::min(kRows, out.rows);
  std::vector<View> first;
  std::vector<const Rows*> scales;
  for (std::size_t k = 0; k < in.size(); ++k) {
    first.push_back(types[k]->width ? rows_of(in[k], rows) : in[k]);
    const auto scale = scales_.find(node.in[k].value);
    scales.push_back(scale == scales_.end() ? nullptr : &scale->second);
  }
  if (jump != decided_.end()) {
    // What decides is set against 0: the operand or the condition, the difference of both operands,
    // a quotient's distance from a whole number.
    const Fn fn = std::get<Map>(node.op).fn;
    const std::size_t operands = fn == Fn::kWhere ? 1 : node.in.size();
    Node margin = node;
    if (operands == 2)
      margin.op = Map{fn == Fn::kMod ? Fn::kDiv : Fn::kSub, 0};
    else
      margin = {Scale{1, 0}, *types[0], {node.in[0]}, node.span, node.context};
    const std::vector<const Type*> own_types(types.begin(),
                                             types.begin() + static_cast<std::ptrdiff_t>(operands));
    const std::vector<View> own(first.begin(),
                                first.begin() + static_cast<std::ptrdiff_t>(operands));
    if (std::any_of(own_types.begin(), own_types.end(), [](const Type* t) { return t->width; })) {
      const Rows value = evaluate(margin, own_types, own, rows),
                 scale = scale_of(margin, own_types, own, scales, value, rows);
      for (std::size_t i = 0; i < value.size(); ++i) {
        const double distance = fn == Fn::kMod ? value[i] - std::nearbyint(value[i]) : value[i];
        if (distance == 0 || !(std::abs(distance) < kUnit * scale[i])) continue;
        // A condition may have fewer entries than what it chooses.
        if (value.size() == jump->second.size() * static_cast<std::size_t>(rows))
          jump->second[i / static_cast<std::size_t>(rows)] = 1;
        else
          std::fill(jump->second.begin(), jump->second.end(), 1.0);
      }
    }
  }
  if (before_[id.value])
    scales_[id.value] = scale_of(node, types, first, scales,
                                 dense(rows_of(out, rows), size_of(node.type.dims)), rows);
}

void RoundingWatch::product(NodeId id, const View& x, const View& y) {
  const auto scale = scales_.find(program_[id].in[1].value);
  if (!before_[id.value] || scale == scales_.end()) return;
  const std::int64_t rows = std::min(kRows, y.rows), columns = size_of(program_[id].type.dims);
  Rows out = dense(rows_of(y, rows), columns);
  for (std::int64_t j = 0; j < columns; ++j) {
    double size = 0, sum = 0;
    for (std::int64_t i = 0; i < std::min(rows, x.rows); ++i) {
      size += std::pow(x.data[j * x.ld + i], 2);
      sum += std::pow(scale->second[static_cast<std::size_t>(j * rows + i)], 2);
    }
    const double loss = size > 0 ? std::sqrt(sum / size) : 1;
    for (std::int64_t i = 0; i < rows; ++i) {
      double& s = out[static_cast<std::size_t>(j * rows + i)];
      s = std::abs(s) * std::max(loss, 1.0);
    }
  }
  scales_[id.value] = std::move(out);
}

std::map<std::uint32_t, std::vector<double>> RoundingWatch::decided(
    const Communicator& ranks) const {
  auto out = decided_;
  if (ranks.size() > 1)
    for (auto& [id, entries] : out) ranks.sum(entries);
  for (auto it = out.begin(); it != out.end();)
    it = std::all_of(it->second.begin(), it->second.end(), [](double x) { return x == 0; })
             ? out.erase(it)
             : std::next(it);
  return out;
}

void RoundingWatch::save(Writer& out) const {
  for (const auto& [id, entries] : decided_) out.values(entries);
  const std::map<std::uint32_t, Rows> sorted(scales_.begin(), scales_.end());
  out.value<std::uint64_t>(sorted.size());
  for (const auto& [id, rows] : sorted) {
    out.value(id);
    out.values(rows);
  }
}

void RoundingWatch::load(Reader& in) {
  for (auto& [id, entries] : decided_) entries = in.values<double>();
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto id = in.value<std::uint32_t>();
    scales_[id] = in.values<double>();
  }
}

}  // namespace tplimit::engines
