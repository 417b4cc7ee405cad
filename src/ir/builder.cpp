#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/ir/program.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::ir {
namespace {

class Hash {
 public:
  void word(std::uint64_t w) {
    state_ ^= w + 0x9e3779b97f4a7c15ULL + (state_ << 6) + (state_ >> 2);
    state_ *= 0xff51afd7ed558ccdULL;
    state_ ^= state_ >> 32;
  }
  void number(std::int64_t i) { word(static_cast<std::uint64_t>(i)); }
  void real(double x) { word(std::bit_cast<std::uint64_t>(x)); }
  void exponent(const Exponent& e) {
    number(e.numerator());
    number(e.denominator());
  }
  template <class T>
  void numbers(const std::vector<T>& values) {
    word(values.size());
    for (const T v : values) number(static_cast<std::int64_t>(v));
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x243f6a8885a308d3ULL;
};

/// Fields of payloads.
void add(Hash& h, bool x) { h.word(x); }
void add(Hash& h, std::int32_t x) { h.number(x); }
void add(Hash& h, std::uint32_t x) { h.word(x); }
void add(Hash& h, std::int64_t x) { h.number(x); }
void add(Hash& h, double x) { h.real(x); }
void add(Hash& h, const Exponent& x) { h.exponent(x); }
void add(Hash& h, SourceId x) { h.word(x.value); }
void add(Hash& h, Fn x) { h.word(static_cast<std::uint64_t>(x)); }
template <class T>
void add(Hash& h, const std::vector<T>& x) {
  h.numbers(x);
}
void add(Hash& h, const Shared<std::int64_t>& x) { h.numbers(*x); }

/// `whole`: of all entries of a large constant, not of some.
std::uint64_t hash_of(const Op& op, const Type& type, const std::vector<NodeId>& in,
                      bool whole = false) {
  constexpr std::size_t kSome = 4096;
  Hash h;
  h.word(op.index());
  for (const NodeId id : in) h.word(id.value);
  if (const auto* c = std::get_if<Constant>(&op)) {
    h.numbers(type.dims);
    const std::size_t stride = whole ? 1 : c->values->size() / kSome + 1;
    for (std::size_t j = 0; j < c->values->size(); j += stride) h.real((*c->values)[j]);
    return h.value();
  }
  std::visit(
      [&](const auto& own) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(own)>, Constant>)
          std::apply([&](const auto&... field) { (add(h, field), ...); }, own.fields());
      },
      op);
  return h.value();
}

/// The values of a constant that may have been expanded, else null.
const std::vector<double>* known(const Builder& b, NodeId id) {
  while (std::holds_alternative<Expand>(b.node(id).op)) id = b.node(id).in[0];
  return b.constant_values(id);
}

/// 0 times such a value is not 0.
bool holds_not_finite(const Builder& b, NodeId id) {
  const auto* values = known(b, id);
  return values &&
         std::any_of(values->begin(), values->end(), [](double v) { return !std::isfinite(v); });
}

/// A quotient, negative power or logarithm that is not known, up to multiples and rearrangements:
/// it may be infinite, and then 0 times it is not 0.  What it is certain to be, passes/known_values
/// tells.
bool may_be_singular(const Builder& b, NodeId id) {
  for (;;) {
    const Node& node = b.node(id);
    if (const auto* m = std::get_if<Map>(&node.op)) {
      if (m->fn == Fn::kLog || m->fn == Fn::kPow || (m->fn == Fn::kPower && m->parameter < 0))
        return true;
      if (m->fn != Fn::kDiv) return false;
      const auto* divisor = known(b, node.in[1]);
      return !divisor || std::any_of(divisor->begin(), divisor->end(),
                                     [](double v) { return v == 0 || std::isnan(v); });
    }
    const bool linear =
        std::holds_alternative<Scale>(node.op) || std::holds_alternative<Expand>(node.op) ||
        std::holds_alternative<Reshape>(node.op) || std::holds_alternative<Permute>(node.op) ||
        std::holds_alternative<Gather>(node.op) || std::holds_alternative<ReduceSum>(node.op) ||
        std::holds_alternative<Average>(node.op) || std::holds_alternative<Stop>(node.op);
    if (!linear) return holds_not_finite(b, id);
    id = node.in[0];
  }
}

/// where(c, a, b) with a condition that is known and the same everywhere.
std::optional<NodeId> decided(Builder& b, const std::vector<NodeId>& in) {
  if (const auto* s = std::get_if<Scale>(&b.node(in[0]).op); s && s->factor != 0) {
    const NodeId condition = b.node(in[0]).in[0];
    return b.map(Fn::kWhere, {condition, in[1], in[2]});
  }
  const auto* values = known(b, in[0]);
  if (!values) return std::nullopt;
  const auto zeros = static_cast<std::size_t>(std::count(values->begin(), values->end(), 0.0));
  if (zeros != 0 && zeros != values->size()) return std::nullopt;
  const Type type =
      infer_type(Map{Fn::kWhere, 0}, {&b.type(in[0]), &b.type(in[1]), &b.type(in[2])});
  return b.expand(in[zeros == 0 ? 1 : 2], type.width, type.dims);
}

/// A known value that is the same on every coordinate, as one without coordinates.
NodeId without_width(Builder& b, NodeId id) {
  const Type type = b.type(id);
  if (!type.width) return id;
  const NodeId inner = b.node(id).in[0];
  return b.expand(without_width(b, inner), false, type.dims);
}

/// Operations on such values are done at once, too: otherwise 0/0 would be one more 0 over
/// something.
std::optional<NodeId> same_everywhere(Builder& b, const Op& op, const std::vector<NodeId>& in,
                                      const Type& type) {
  const auto* contract = std::get_if<Contract>(&op);
  const bool average = std::holds_alternative<Average>(op) || (contract && contract->average);
  if (type.matrix || std::holds_alternative<Expand>(op) || !(average || is_rowwise(op)))
    return std::nullopt;
  if (std::none_of(in.begin(), in.end(), [&](NodeId id) { return b.type(id).width; }))
    return std::nullopt;
  if (!std::all_of(in.begin(), in.end(), [&](NodeId id) { return known(b, id) != nullptr; }))
    return std::nullopt;
  std::vector<NodeId> finite;
  for (const NodeId id : in) finite.push_back(without_width(b, id));
  if (std::holds_alternative<Average>(op)) return finite[0];
  const NodeId out =
      contract ? b.contract(finite[0], finite[1], contract->batch, contract->contracted, false)
               : b.add(op, finite);
  return b.expand(out, type.width, type.dims);
}

bool is_constant(const Builder& b, NodeId id, double value) {
  const Node& node = b.node(id);
  if (std::holds_alternative<Expand>(node.op)) return is_constant(b, node.in[0], value);
  const auto* c = std::get_if<Constant>(&node.op);
  return c &&
         std::all_of(c->values->begin(), c->values->end(), [&](double v) { return v == value; });
}

}  // namespace

Builder::Builder(Program& program) : program_(program) {
  if (program_.contexts.empty()) program_.contexts.emplace_back();
  for (std::size_t k = 0; k < program_.nodes.size(); ++k) {
    const Node& node = program_.nodes[k];
    remember(hash_of(node.op, node.type, node.in), {static_cast<std::uint32_t>(k)});
  }
}

void Builder::remember(std::uint64_t hash, NodeId node) {
  if (2 * (taken_ + 1) > table_.size()) grow_table();
  const std::size_t mask = table_.size() - 1;
  std::size_t at = static_cast<std::size_t>(hash) & mask;
  while (table_[at].node.valid()) at = (at + 1) & mask;
  table_[at] = {hash, node};
  ++taken_;
}

void Builder::grow_table() {
  const std::vector<Slot> old =
      std::exchange(table_, std::vector<Slot>(std::max<std::size_t>(256, 4 * table_.size())));
  taken_ = 0;
  for (const Slot& slot : old)
    if (slot.node.valid()) remember(slot.hash, slot.node);
}

const std::vector<double>* Builder::constant_values(NodeId id) const {
  const auto* c = std::get_if<Constant>(&node(id).op);
  return c ? c->values.get() : nullptr;
}

std::optional<double> Builder::uniform(NodeId id) const {
  const auto* values = constant_values(id);
  return values && !values->empty() && is_constant(*this, id, values->front())
             ? std::optional(values->front())
             : std::nullopt;
}

bool Builder::is_zero(NodeId id) const { return is_constant(*this, id, 0); }

NodeId Builder::append(Op op, Type type, std::vector<NodeId> in) {
  const std::uint64_t hash = hash_of(op, type, in);
  if (!table_.empty()) {
    const std::size_t mask = table_.size() - 1;
    for (std::size_t at = static_cast<std::size_t>(hash) & mask; table_[at].node.valid();
         at = (at + 1) & mask) {
      if (table_[at].hash != hash) continue;
      const Node& other = program_[table_[at].node];
      if (other.in == in && other.type == type && op == other.op) return table_[at].node;
    }
  }
  const NodeId id{static_cast<std::uint32_t>(program_.nodes.size())};
  program_.nodes.push_back({std::move(op), std::move(type), std::move(in), span_, context_});
  remember(hash, id);
  return id;
}

NodeId Builder::add(Op op, std::vector<NodeId> in) {
  // Commutative operands in one order, so that a + b and b + a are one node.
  if (const auto* m = std::get_if<Map>(&op);
      m && (m->fn == Fn::kAdd || m->fn == Fn::kMul) && in[1] < in[0])
    std::swap(in[0], in[1]);
  if (const auto simple = simplify(op, in)) return *simple;
  if (const auto* s = std::get_if<StandardNormal>(&op)) {
    Type type{false, true, program_.sources[s->source.value].dims};
    return append(std::move(op), std::move(type), {});
  }
  std::vector<const Type*> types;
  types.reserve(in.size());
  for (const NodeId id : in) types.push_back(&type(id));
  Type type = infer_type(op, types);
  if (const auto folded = fold(op, in, type)) return *folded;
  if (const auto same = same_everywhere(*this, op, in, type)) return *same;
  return append(std::move(op), std::move(type), std::move(in));
}

/// Neutral and absorbing operands.  Exact identities only: results do not move by a rounding error.
/// Averages of products of arrays that were stacked from few parts, part by part: the scores of
/// several heads, whose matrices are independent.
std::optional<NodeId> Builder::heads_apart(const Contract& c, const std::vector<NodeId>& in) {
  constexpr std::size_t kFew = 16;
  if (!c.average || c.batch < 1) return std::nullopt;
  for (const NodeId x : in) {
    const auto* stacked = std::get_if<Concat>(&node(x).op);
    if (!stacked || stacked->axis != 0 || node(x).in.size() > kFew) return std::nullopt;
  }
  const std::vector<NodeId> left = node(in[0]).in, right = node(in[1]).in;
  if (left.size() != right.size()) return std::nullopt;
  for (std::size_t k = 0; k < left.size(); ++k)
    if (type(left[k]).dims[0] != type(right[k]).dims[0]) return std::nullopt;
  std::vector<NodeId> parts;
  for (std::size_t k = 0; k < left.size(); ++k) parts.push_back(add(c, {left[k], right[k]}));
  return add(Concat{0}, std::move(parts));
}

/// What one part of a concatenation is asked for.
std::optional<NodeId> Builder::gathered_part(const Gather& g, NodeId x) {
  const auto* whole = std::get_if<Concat>(&node(x).op);
  if (!whole || whole->axis != g.axis || g.indices->empty()) return std::nullopt;
  const auto axis = static_cast<std::size_t>(g.axis);
  std::int64_t first = 0;
  const std::vector<NodeId> parts = node(x).in;
  for (const NodeId part : parts) {
    const std::int64_t end = first + type(part).dims[axis];
    if (std::all_of(g.indices->begin(), g.indices->end(),
                    [&](std::int64_t i) { return i >= first && i < end; })) {
      std::vector<std::int64_t> own = *g.indices;
      for (std::int64_t& i : own) i -= first;
      return gather(part, g.axis, std::move(own));
    }
    first = end;
  }
  return std::nullopt;
}

std::optional<NodeId> Builder::simplify(const Op& op, const std::vector<NodeId>& in) {
  if (const auto* s = std::get_if<Scale>(&op)) {
    if (s->factor == 1 && s->power == 0) return in[0];
    if (s->factor == 0 && !holds_not_finite(*this, in[0]))
      return zeros(type(in[0]).width, type(in[0]).dims);
    if (is_zero(in[0]) && std::isfinite(s->factor)) return in[0];
    const Node& x = node(in[0]);
    if (const auto* inner = std::get_if<Scale>(&x.op)) {
      const NodeId operand = x.in[0];
      return scale(s->factor * inner->factor, s->power + inner->power, operand);
    }
    if (const auto* values = constant_values(in[0]); values && s->factor != 1) {
      std::vector<double> scaled = *values;
      for (double& v : scaled) v *= s->factor;
      const Dims dims = x.type.dims;
      return scale(1, s->power, constant(std::move(scaled), dims));
    }
    return std::nullopt;
  }
  if (const auto* m = std::get_if<Map>(&op)) {
    if (m->fn == Fn::kWhere) return decided(*this, in);
    if (in.size() != 2) return std::nullopt;
    const Type &a = type(in[0]), &b = type(in[1]);
    const auto covers = [](const Type& big, const Type& small) {  // big + small has the type of big
      if ((small.width && !big.width) || (small.entries && !big.entries)) return false;
      if (small.dims.size() > big.dims.size()) return false;
      for (std::size_t k = 1; k <= small.dims.size(); ++k)
        if (small.dims[small.dims.size() - k] != 1 &&
            small.dims[small.dims.size() - k] != big.dims[big.dims.size() - k])
          return false;
      return true;
    };
    const auto zero_result = [&] {
      const Type type = infer_type(op, {&a, &b});
      return zeros(type.width, type.dims);
    };
    switch (m->fn) {
      case Fn::kAdd:
        if (is_zero(in[0]) && covers(b, a)) return in[1];
        if (is_zero(in[1]) && covers(a, b)) return in[0];
        for (const std::size_t k : {0u, 1u})  // x + (-1) x
          if (const auto* s = std::get_if<Scale>(&node(in[k]).op);
              s && s->factor == -1 && s->power == 0 && node(in[k]).in[0] == in[1 - k] &&
              !holds_not_finite(*this, in[1 - k]))
            return zeros(a.width, Dims(a.dims));
        break;
      case Fn::kSub:
        if (in[0] == in[1] && !holds_not_finite(*this, in[0])) return zeros(a.width, Dims(a.dims));
        if (is_zero(in[1]) && covers(a, b)) return in[0];
        if (is_zero(in[0]) && covers(b, a)) return negate(in[1]);
        break;
      case Fn::kMul:
        if ((is_zero(in[0]) && !may_be_singular(*this, in[1])) ||
            (is_zero(in[1]) && !may_be_singular(*this, in[0])))
          return zero_result();
        for (const int k : {0, 1}) {
          const NodeId x = in[static_cast<std::size_t>(k)], y = in[static_cast<std::size_t>(1 - k)];
          if (const auto* ones = known(*this, x);
              ones && std::all_of(ones->begin(), ones->end(), [](double v) { return v == 1; }) &&
              covers(type(y), type(x)))
            return y;
          if (const auto* values = constant_values(x);
              values && type(x).dims.empty() && !constant_values(y) && (*values)[0] != 0)
            return scale((*values)[0], 0, y);
          // Powers of n move outwards, where they meet and cancel.
          if (const auto* s = std::get_if<Scale>(&node(x).op); s && s->power != 0) {
            const Scale factor = *s;
            return scale(factor.factor, factor.power, times(node(x).in[0], y));
          }
        }
        break;
      case Fn::kDiv:
        if (is_zero(in[0]))
          if (const auto* values = known(*this, in[1]);
              values && std::none_of(values->begin(), values->end(),
                                     [](double v) { return v == 0 || std::isnan(v); }))
            return zero_result();
        if (is_constant(*this, in[1], 1) && covers(a, b)) return in[0];
        if (const auto* s = std::get_if<Scale>(&node(in[1]).op); s && s->power != 0) {
          const Scale factor = *s;
          return scale(1 / factor.factor, -factor.power, map(Fn::kDiv, {in[0], node(in[1]).in[0]}));
        }
        if (const auto* s = std::get_if<Scale>(&node(in[0]).op); s && s->power != 0) {
          const Scale factor = *s;
          return scale(factor.factor, factor.power, map(Fn::kDiv, {node(in[0]).in[0], in[1]}));
        }
        break;
      default: break;
    }
    return std::nullopt;
  }
  if (const auto* c = std::get_if<Contract>(&op)) {
    if ((is_zero(in[0]) && !may_be_singular(*this, in[1])) ||
        (is_zero(in[1]) && !may_be_singular(*this, in[0]))) {
      const Type type = infer_type(*c, {&this->type(in[0]), &this->type(in[1])});
      return zeros(type.width, type.dims);
    }
    for (const std::size_t k : {0u, 1u})
      if (const auto* s = std::get_if<Scale>(&node(in[k]).op); s && s->power != 0) {
        const Scale factor = *s;
        std::vector<NodeId> operands = in;
        operands[k] = node(in[k]).in[0];
        return scale(factor.factor, factor.power, add(*c, std::move(operands)));
      }
    return heads_apart(*c, in);
  }
  if (std::holds_alternative<Average>(op)) {
    if (!type(in[0]).width) return in[0];
    if (is_zero(in[0])) return zeros(false, type(in[0]).dims);
    return std::nullopt;
  }
  if (const auto* r = std::get_if<Reshape>(&op)) {
    if (r->dims == type(in[0]).dims) return in[0];
    if (is_zero(in[0])) return zeros(type(in[0]).width, r->dims);
    if (std::holds_alternative<Reshape>(node(in[0]).op)) {
      const NodeId operand = node(in[0]).in[0];
      return reshape(operand, r->dims);
    }
    return std::nullopt;
  }
  if (const auto* e = std::get_if<Expand>(&op)) {
    if (e->dims == type(in[0]).dims && e->width == type(in[0]).width) return in[0];
    return std::nullopt;
  }
  if (const auto* p = std::get_if<Permute>(&op)) {
    if (std::is_sorted(p->axes.begin(), p->axes.end())) return in[0];
    if (is_zero(in[0])) return zeros(type(in[0]).width, infer_type(op, {&type(in[0])}).dims);
    return std::nullopt;
  }
  if (const auto* g = std::get_if<Gather>(&op)) {
    const auto& dims = type(in[0]).dims;
    if (static_cast<std::int64_t>(g->indices->size()) == dims[static_cast<std::size_t>(g->axis)]) {
      std::int64_t expected = 0;
      if (std::all_of(g->indices->begin(), g->indices->end(),
                      [&](auto i) { return i == expected++; }))
        return in[0];
    }
    if (is_zero(in[0])) return zeros(type(in[0]).width, infer_type(op, {&type(in[0])}).dims);
    if (const auto* inner = std::get_if<Gather>(&node(in[0]).op); inner && inner->axis == g->axis) {
      std::vector<std::int64_t> both;
      for (const std::int64_t i : *g->indices)
        both.push_back((*inner->indices)[static_cast<std::size_t>(i)]);
      const NodeId operand = node(in[0]).in[0];
      return gather(operand, g->axis, std::move(both));
    }
    return gathered_part(*g, in[0]);
  }
  if (std::holds_alternative<Concat>(op))
    return in.size() == 1 ? std::optional(in[0]) : std::nullopt;
  if (const auto* r = std::get_if<ReduceSum>(&op))
    if (const auto* s = std::get_if<Scale>(&node(in[0]).op); s && s->factor == -1 && s->power == 0)
      return negate(sum(node(in[0]).in[0], r->axis));
  if (std::holds_alternative<ReduceSum>(op) || std::holds_alternative<ScatterAdd>(op)) {
    if (!is_zero(in[0])) return std::nullopt;
    const Type type = infer_type(op, {&this->type(in[0])});
    return zeros(type.width, type.dims);
  }
  if (const auto* l = std::get_if<LogSumExp>(&op)) {
    const std::int64_t count = type(in[0]).dims[static_cast<std::size_t>(l->axis)];
    if (count > 1 && !is_zero(in[0])) return std::nullopt;
    const Type out = infer_type(op, {&type(in[0])});
    if (count == 1) return reshape(in[0], out.dims);
    return expand(constant(std::log(static_cast<double>(count)), out.dims), out.width, out.dims);
  }
  if (std::holds_alternative<MatMul>(op)) {
    if (is_zero(in[1])) return in[1];
    for (NodeId w = in[0]; std::holds_alternative<ScaleMatrix>(node(w).op); w = node(w).in[0])
      if (is_zero(node(w).in[1])) return zeros(true, type(in[1]).dims);
    return std::nullopt;
  }
  if (std::holds_alternative<ScaleMatrix>(op))
    return is_constant(*this, in[1], 1) ? std::optional(in[0]) : std::nullopt;
  if (std::holds_alternative<AddVersion>(op))
    return is_zero(in[1]) ? std::optional(in[0]) : std::nullopt;
  if (std::holds_alternative<AddEntries>(op))
    return is_zero(in[1]) || is_zero(in[2]) ? std::optional(in[0]) : std::nullopt;
  const bool update = std::holds_alternative<UpdateMatrix>(op);
  if (update || std::holds_alternative<OuterSum>(op)) {
    std::vector<NodeId> kept;
    if (update) kept.push_back(in[0]);
    for (std::size_t k = kept.size(); k + 2 < in.size(); k += 3)
      if (!is_zero(in[k]) && !is_zero(in[k + 1]) && !is_zero(in[k + 2]))
        kept.insert(kept.end(), in.begin() + static_cast<std::ptrdiff_t>(k),
                    in.begin() + static_cast<std::ptrdiff_t>(k + 3));
    if (update && kept.size() == 1) return in[0];
    if (kept.empty()) return constant(0);
    if (kept.size() < in.size()) return add(op, std::move(kept));
  }
  return std::nullopt;
}

/// Finite operations on constants are done at once.
std::optional<NodeId> Builder::fold(const Op& op, const std::vector<NodeId>& in, const Type& type) {
  if (in.empty() || type.width || type.matrix || !is_rowwise(op)) return std::nullopt;
  if (const auto* s = std::get_if<Scale>(&op); s && s->power != 0) return std::nullopt;
  std::vector<View> views;
  std::vector<const Type*> types;
  // A Gram matrix of many inputs is no constant: each pass would carry it along.
  constexpr std::int64_t kLarge = 1 << 18;
  std::int64_t size = 0;
  for (const NodeId id : in) size += size_of(this->type(id).dims);
  if (size_of(type.dims) > std::max(kLarge, 2 * size)) {
    const auto* contract = std::get_if<Contract>(&op);
    const auto first = contract ? uniform(in[0]) : std::nullopt,
               second = contract ? uniform(in[1]) : std::nullopt;
    if (!first || !second) return std::nullopt;
    const double terms = static_cast<double>(
        ContractSizes(*contract, this->type(in[0]).dims, this->type(in[1]).dims).inner);
    return expand(constant(terms * *first * *second), false, type.dims);
  }
  for (const NodeId id : in) {
    const auto* values = constant_values(id);
    if (!values) return std::nullopt;
    views.push_back({values->data(), 1, 1});
    types.push_back(&this->type(id));
  }
  std::vector<double> out(static_cast<std::size_t>(size_of(type.dims)));
  Node node{op, type, in, span_, context_};
  evaluate_rows(node, types, views, {out.data(), 1, 1});
  // A singular matrix stays, so that errors can name it.
  if ((std::holds_alternative<Solve>(op) || std::holds_alternative<LogDet>(op)) &&
      std::any_of(out.begin(), out.end(), [](double x) { return std::isnan(x); }))
    return std::nullopt;
  return constant(std::move(out), type.dims);
}

NodeId Builder::constant(double value, Dims dims) {
  const auto size = static_cast<std::size_t>(size_of(dims));
  return constant(std::vector<double>(size, value), std::move(dims));
}

NodeId Builder::constant(std::vector<double> values, Dims dims) {
  return constant(Constant{std::make_shared<const std::vector<double>>(std::move(values))},
                  std::move(dims));
}

NodeId Builder::constant(const Constant& values, Dims dims) {
  TPLIMIT_CHECK(static_cast<std::int64_t>(values.values->size()) == size_of(dims),
                "one value per entry of a constant");
  return append(values, {false, false, std::move(dims)}, {});
}

NodeId Builder::zeros(bool width, Dims dims) {
  const NodeId zero = constant(0.0, dims);
  return width ? expand(zero, true, std::move(dims)) : zero;
}

NodeId Builder::scale(double factor, Exponent power, NodeId x) {
  return add(Scale{factor, power}, {x});
}
NodeId Builder::map(Fn fn, std::vector<NodeId> in, double parameter) {
  return add(Map{fn, parameter}, std::move(in));
}
NodeId Builder::average(NodeId x) { return add(Average{}, {x}); }
NodeId Builder::reshape(NodeId x, Dims dims) { return add(Reshape{std::move(dims)}, {x}); }
NodeId Builder::expand(NodeId x, bool width, Dims dims) {
  return add(Expand{width, std::move(dims)}, {x});
}
NodeId Builder::permute(NodeId x, std::vector<std::int32_t> axes) {
  return add(Permute{std::move(axes)}, {x});
}
NodeId Builder::gather(NodeId x, int axis, std::vector<std::int64_t> indices) {
  return add(Gather{axis, std::make_shared<const std::vector<std::int64_t>>(std::move(indices))},
             {x});
}

std::uint64_t fingerprint(const Program& program) {
  Hash h;
  for (const Node& node : program.nodes) h.word(hash_of(node.op, node.type, node.in, true));
  for (const GaussianSource& source : program.sources) {
    h.word(hash_text(source.name.data(), source.name.size()));
    h.word(source.matrix);
    if (source.law != EntryLaw::kNormal) h.word(static_cast<std::uint64_t>(source.law));
    h.numbers(source.dims);
  }
  return h.value();
}

}  // namespace tplimit::ir
