#include "engines/rounding.hpp"

#include <algorithm>
#include <cmath>

#include "tplimit/ir/functions.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/determinacy.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {

constexpr double kUnit = 0x1p-48;  // 32 units of rounding
constexpr double kStep = 0x1p-30;  // of shadows, and of derivatives

View rows_of(const View& x, std::int64_t rows) { return {x.data, std::min(rows, x.rows), x.ld}; }

/// One column after the other.
std::vector<double> dense(const View& x, std::int64_t columns) {
  std::vector<double> out;
  for (std::int64_t j = 0; j < columns; ++j)
    out.insert(out.end(), x.data + j * x.ld, x.data + j * x.ld + x.rows);
  return out;
}

/// The operand or the condition, or both operands, set against each other.
std::size_t deciding_operands(const Node& jump) {
  return std::get<Map>(jump.op).fn == Fn::kWhere ? 1 : jump.in.size();
}

/// 1 or -1.
double sign_of(NodeId id, std::size_t entry) {
  return (mix_key(id.value, entry) & 1) != 0 ? 1 : -1;
}

}  // namespace

RoundingWatch::RoundingWatch(const Program& program, const std::vector<bool>& needed)
    : program_(program), watched_(program.size(), false), leaves_(program.size()) {
  const auto is_vector = [](const Node& node) { return node.type.width && !node.type.matrix; };
  for (std::size_t k = program.size(); k-- > 0;) {
    const Node& node = program.nodes[k];
    if (!needed[k]) continue;
    const auto leaves =
        std::holds_alternative<UpdateMatrix>(node.op) ? Leaves::kUpdate : Leaves::kNumber;
    if (!is_vector(node)) {
      for (const NodeId in : node.in) leaves_[in.value] = std::max(leaves_[in.value], leaves);
      continue;
    }
    const bool jump = is_jump(node);
    if (jump)
      decided_[static_cast<std::uint32_t>(k)].assign(
          static_cast<std::size_t>(size_of(node.type.dims)), 0.0);
    if (jump || watched_[k])
      for (const NodeId in : node.in) watched_[in.value] = true;
  }
  for (std::size_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (needed[k] && is_vector(node))
      watched_[k] = watched_[k] || is_jump(node) ||
                    std::any_of(node.in.begin(), node.in.end(), [&](NodeId in) {
                      return is_vector(program[in]) && watched_[in.value];
                    });
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
                                            const std::vector<Rows>& scales, const Rows& value,
                                            std::int64_t rows) const {
  Rows out(value.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::abs(value[i]);
  for (std::size_t k = 0; k < in.size(); ++k) {
    if (!types[k]->width) continue;
    Rows moved = dense(in[k], size_of(types[k]->dims));
    for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += kStep * scales[k][i];
    std::vector<View> other = in;
    other[k] = {moved.data(), rows, rows};
    const Rows there = evaluate(node, types, other, rows);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] += std::abs(there[i] - value[i]) / kStep;
  }
  return out;
}

const RoundingWatch::Rows* RoundingWatch::shadow(NodeId id) const {
  const auto it = shadows_.find(id.value);
  return it == shadows_.end() ? nullptr : &it->second;
}

RoundingWatch::Rows RoundingWatch::shadow_of(NodeId id, const std::vector<const Type*>& types,
                                             const std::vector<View>& in, std::int64_t rows,
                                             const std::vector<std::size_t>& on_the_jump) const {
  const Node& node = program_[id];
  const auto* jump = is_jump(node) ? &std::get<Map>(node.op) : nullptr;
  // What decides is as it is: which side the shadow would be on says nothing.
  std::vector<View> moved = in;
  for (std::size_t k = jump ? deciding_operands(node) : 0; k < in.size(); ++k)
    if (const Rows* own = shadow(node.in[k])) moved[k] = {own->data(), rows, rows};
  Rows decides;
  const std::size_t first = types[0]->width ? 0 : 1;
  const Rows* condition = jump && jump->fn == Fn::kWhere ? shadow(node.in[0]) : nullptr;
  if (!on_the_jump.empty() || condition) {
    decides = dense(in[first], size_of(types[first]->dims));
    moved[first] = {decides.data(), rows, rows};
  }
  if (condition)  // a comparison that rounding has decided
    for (std::size_t i = 0; i < decides.size(); ++i)
      if (std::abs((*condition)[i] - decides[i]) > 0.5) decides[i] = (*condition)[i];
  for (const std::size_t i : on_the_jump) {
    double& x = decides[i];
    const auto against = [&] {
      const View& y = in[1 - first];
      const auto row = static_cast<std::int64_t>(i) % rows,
                 column = static_cast<std::int64_t>(i) / rows;
      return y.data[column * y.ld + (types[1 - first]->width ? row : 0)];
    };
    if (jump->fn == Fn::kMod)
      x = std::nearbyint(x / against()) * against();
    else
      x = jump->fn == Fn::kWhere || in.size() == 1 ? 0 : against();
  }
  Rows out = evaluate(node, types, moved, rows);
  if (jump && is_piecewise_constant(node.op)) return out;
  if (jump && jump->fn == Fn::kMod) {  // x - floor(x / m) m
    if (const Rows* own = shadow(node.in[0])) {
      const Rows x = dense(in[0], size_of(types[0]->dims));
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += (*own)[i] - x[i];
    }
  }
  for (std::size_t i = 0; i < out.size(); ++i) out[i] *= 1 + kStep * sign_of(id, i);
  return out;
}

std::vector<std::size_t> RoundingWatch::by_rounding(const Node& jump,
                                                    const std::vector<const Type*>& types,
                                                    const std::vector<View>& in,
                                                    std::int64_t rows) const {
  // What decides is set against 0: the operand or the condition, the difference of both operands,
  // a quotient's distance from a whole number.
  const Fn fn = std::get<Map>(jump.op).fn;
  const auto operands = static_cast<std::ptrdiff_t>(deciding_operands(jump));
  Node margin = jump;
  if (operands == 2)
    margin.op = Map{fn == Fn::kMod ? Fn::kDiv : Fn::kSub, 0};
  else
    margin = {Scale{1, 0}, *types[0], {jump.in[0]}, jump.span, jump.context};
  const std::vector<const Type*> own_types(types.begin(), types.begin() + operands);
  const std::vector<View> own(in.begin(), in.begin() + operands);
  std::vector<std::size_t> out;
  if (std::none_of(own_types.begin(), own_types.end(), [](const Type* t) { return t->width; }))
    return out;
  std::vector<Rows> scales;
  for (std::size_t k = 0; k < own.size(); ++k) {
    scales.push_back(own_types[k]->width ? dense(own[k], size_of(own_types[k]->dims)) : Rows());
    const Rows* other = shadow(jump.in[k]);
    for (std::size_t i = 0; i < scales[k].size(); ++i) {
      double& x = scales[k][i];
      x = std::abs(x) + (other ? std::abs((*other)[i] - x) / kStep : 0);
    }
  }
  const Rows value = evaluate(margin, own_types, own, rows),
             scale = scale_of(margin, own_types, own, scales, value, rows);
  for (std::size_t i = 0; i < value.size(); ++i) {
    const double distance = fn == Fn::kMod ? value[i] - std::nearbyint(value[i]) : value[i];
    if (distance != 0 && std::abs(distance) < kUnit * scale[i]) out.push_back(i);
  }
  return out;
}

/// Whether what rounding has decided shows in what leaves the coordinates:
/// numbers have any size, matrices are of size 1 and vectors that are added to them as a rule, too.
void RoundingWatch::keep(NodeId id, const Rows& value, Rows shadow, std::int64_t rows) {
  constexpr double kNumber = 1e-6, kUpdate = 1e-8;
  const Leaves leaves = leaves_[id.value];
  if (any_decided_ && !matters_ && leaves != Leaves::kNothing)
    for (std::size_t first = 0; first < value.size(); first += static_cast<std::size_t>(rows)) {
      double size = 0, moved = 0;
      for (std::size_t i = first; i < first + static_cast<std::size_t>(rows); ++i) {
        size += value[i] * value[i];
        moved += (shadow[i] - value[i]) * (shadow[i] - value[i]);
      }
      const double allowed = leaves == Leaves::kNumber
                                 ? kNumber * std::sqrt(size)
                                 : kUpdate * std::sqrt(static_cast<double>(rows));
      matters_ = matters_ || std::sqrt(moved) > allowed;
    }
  shadows_[id.value] = std::move(shadow);
}

void RoundingWatch::value(NodeId id, const std::vector<const Type*>& types,
                          const std::vector<View>& in, const View& out) {
  if (!watched_[id.value]) return;
  const Node& node = program_[id];
  const std::int64_t rows = std::min(kRows, out.rows);
  std::vector<View> first;
  for (std::size_t k = 0; k < in.size(); ++k)
    first.push_back(types[k]->width ? rows_of(in[k], rows) : in[k]);
  std::vector<std::size_t> on_the_jump;
  if (const auto jump = decided_.find(id.value); jump != decided_.end()) {
    on_the_jump = by_rounding(node, types, first, rows);
    any_decided_ = any_decided_ || !on_the_jump.empty();
    const bool each = size_of(types[types[0]->width ? 0 : 1]->dims) == size_of(node.type.dims);
    for (const std::size_t i : on_the_jump)
      if (each)
        jump->second[i / static_cast<std::size_t>(rows)] = 1;
      else  // a condition with fewer entries than what it chooses
        std::fill(jump->second.begin(), jump->second.end(), 1.0);
  }
  keep(id, dense(rows_of(out, rows), size_of(node.type.dims)),
       shadow_of(id, types, first, rows, on_the_jump), rows);
}

/// Rows of W (shadow - x) are like those of W x, of which they have the share that they have of x.
void RoundingWatch::product(NodeId id, const View& x, const View& y) {
  const Rows* own = shadow(program_[id].in[1]);
  if (!watched_[id.value] || !own) return;
  const std::int64_t rows = std::min(kRows, y.rows), columns = size_of(program_[id].type.dims);
  const Rows value = dense(rows_of(y, rows), columns);
  Rows out = value;
  for (std::int64_t j = 0; j < columns; ++j) {
    double size = 0, moved = 0;
    for (std::int64_t i = 0; i < std::min(rows, x.rows); ++i) {
      const double at = x.data[j * x.ld + i];
      size += at * at;
      moved += std::pow((*own)[static_cast<std::size_t>(j * rows + i)] - at, 2);
    }
    const double share = std::max(size > 0 ? std::sqrt(moved / size) : 0, kStep);
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto k = static_cast<std::size_t>(j * rows + i);
      out[k] *= 1 + share * sign_of(id, k);
    }
  }
  keep(id, value, std::move(out), rows);
}

std::map<std::uint32_t, std::vector<double>> RoundingWatch::decided(
    const Communicator& ranks) const {
  auto out = decided_;
  std::vector<double> matters{matters_ ? 1.0 : 0.0};
  if (ranks.size() > 1) {
    for (auto& [id, entries] : out) ranks.sum(entries);
    ranks.sum(matters);
  }
  if (matters[0] == 0) return {};
  for (auto it = out.begin(); it != out.end();)
    it = std::all_of(it->second.begin(), it->second.end(), [](double x) { return x == 0; })
             ? out.erase(it)
             : std::next(it);
  return out;
}

void RoundingWatch::save(Writer& out) const {
  for (const auto& [id, entries] : decided_) out.values(entries);
  out.value(any_decided_);
  out.value(matters_);
  const std::map<std::uint32_t, Rows> sorted(shadows_.begin(), shadows_.end());
  out.value<std::uint64_t>(sorted.size());
  for (const auto& [id, rows] : sorted) {
    out.value(id);
    out.values(rows);
  }
}

void RoundingWatch::load(Reader& in) {
  for (auto& [id, entries] : decided_) entries = in.values<double>();
  any_decided_ = in.value<bool>();
  matters_ = in.value<bool>();
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
    const auto id = in.value<std::uint32_t>();
    shadows_[id] = in.values<double>();
  }
}

}  // namespace tplimit::engines
