#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "tplimit/explain/formulas.hpp"
#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::explain {

using namespace ir;

namespace {

void collect_symbols(const Expr& e, std::vector<std::uint32_t>& bound, std::vector<Symbol>& out) {
  for (const Index& i : e->indices)
    for (const Symbol& s : i.symbols())
      if (std::find(bound.begin(), bound.end(), s.id) == bound.end() &&
          std::find(out.begin(), out.end(), s) == out.end())
        out.push_back(s);
  const bool binds = e->kind == Kind::kSum || e->kind == Kind::kMax;
  if (binds) bound.push_back(e->bound.id);
  for (const Expr& a : e->args) collect_symbols(a, bound, out);
  if (binds) bound.pop_back();
}

class Compiler {
 public:
  Compiler(Formulas& formulas, const Program& limit)
      : f_(formulas), c_(formulas.calculus), in_(limit), out_(without_nodes(limit)), b_(out_) {}

  Evaluable run(const std::vector<Expr>& wanted) {
    Evaluable out;
    std::size_t next = 0;
    for (const Report& report : in_.reports) {
      Report copy = report;
      for (auto& entry : copy.entries) entry.value = definition_node(f_.reports[next++].definition);
      out_.reports.push_back(std::move(copy));
    }
    for (const Expr& e : wanted) {
      out.possible.push_back(!behind_kink(e));
      Report report;
      NodeId value = b_.constant(0);
      if (out.possible.back()) value = shaped(compile(e), free_symbols(e));
      TPLIMIT_CHECK(!b_.type(value).width, "a number");
      report.entries.push_back({{}, value});
      out_.reports.push_back(std::move(report));
    }
    // Derivatives of means brought powers of n that cancel.
    out.program = at_width(erase_identities(out_), 1);
    return out;
  }

 private:
  struct Block {
    NodeId node;
    std::vector<Symbol> axes;  ///< of the node, in order
  };

  /// A mean of something with deltas; coefficients as a whole are found otherwise.
  bool behind_kink(const Expr& e) {
    if (e->kind == Kind::kRef) {
      const Definition& d = c_.definitions[e->ref];
      return d.kind == Definition::Kind::kResponse && d.kinked;
    }
    if (e->kind == Kind::kFunction && Calculus::kinked(e)) return true;
    if (e->kind == Kind::kJump) return true;
    return std::any_of(e->args.begin(), e->args.end(),
                       [&](const Expr& a) { return behind_kink(a); });
  }

  NodeId definition_node(std::uint32_t k) {
    if (const auto it = nodes_.find(k); it != nodes_.end()) return it->second;
    const Definition d = c_.definitions[k];  // a copy: the list may grow
    NodeId node;
    switch (d.kind) {
      case Definition::Kind::kSource:
        node = b_.scale(d.scale, 0, b_.add(std::get<StandardNormal>(in_[{d.operand}].op), {}));
        break;
      case Definition::Kind::kGaussian: {
        const NodeId operand = definition_node(d.operand);
        node = b_.scale(d.scale, 0,
                        b_.matmul(own_matrix(d), b_.expand(operand, true, b_.type(operand).dims),
                                  d.transposed));
        break;
      }
      case Definition::Kind::kData: node = b_.constant(d.values, dims_of(d.axes)); break;
      case Definition::Kind::kOperation: {
        std::vector<NodeId> operands;
        for (const std::uint32_t o : d.operands) operands.push_back(definition_node(o));
        node = b_.add(*d.operation, std::move(operands));
        break;
      }
      case Definition::Kind::kCoefficient:
        if (d.kinked) {
          node = by_stein(d);
          break;
        }
        [[fallthrough]];
      case Definition::Kind::kFormula:
      case Definition::Kind::kResponse: node = shaped(compile(d.value), d.axes); break;
    }
    nodes_[k] = node;
    return node;
  }

  static Dims dims_of(const std::vector<Symbol>& axes) {
    Dims out;
    for (const Symbol& s : axes) out.push_back(s.size);
    return out;
  }

  /// One matrix per family: it is only multiplied from one side, so its products have no
  /// corrections.
  NodeId own_matrix(const Definition& d) {
    auto [it, fresh] = matrices_.try_emplace(d.family, NodeId{});
    if (fresh) {
      out_.sources.push_back({d.matrix + (d.transposed ? "'" : ""), true, {}, {}});
      it->second =
          b_.add(GaussianMatrix{SourceId{static_cast<std::uint32_t>(out_.sources.size() - 1)}}, {});
    }
    return it->second;
  }

  /// s^2 E[d x_i / d G_j] = s^2 sum_k E[x_i G_k] (C^+)_kj with C = s^2 E[y y'], over all G of the
  /// family that x depends on.
  NodeId by_stein(const Definition& d) {
    const auto slot = std::pair{d.operand, c_.definitions[d.gaussian].family};
    auto it = solved_.find(slot);
    if (it == solved_.end()) {
      Solved own;
      std::vector<NodeId> ys, gs;
      std::int64_t offset = 0;
      for (std::uint32_t g = 0; g < c_.definitions.size(); ++g) {
        if (c_.definitions[g].kind != Definition::Kind::kGaussian ||
            c_.definitions[g].family != slot.second)
          continue;
        Indices here, at;
        for (const Symbol& s : std::vector<Symbol>(c_.definitions[d.operand].axes))
          here.emplace_back(s);
        for (const Symbol& s : std::vector<Symbol>(c_.definitions[g].axes))
          at.emplace_back(c_.fresh(s.size));
        if (Calculus::is_zero(c_.derivative(c_.ref(d.operand, here), g, at))) continue;
        const std::int64_t size = size_of(dims_of(c_.definitions[g].axes));
        own.offsets[g] = offset;
        offset += size;
        ys.push_back(b_.reshape(definition_node(c_.definitions[g].operand), {size}));
        gs.push_back(b_.reshape(definition_node(g), {size}));
      }
      const double square = c_.definitions[d.gaussian].scale * c_.definitions[d.gaussian].scale;
      const NodeId y = ys.size() == 1 ? ys[0] : b_.add(Concat{0}, ys),
                   g = gs.size() == 1 ? gs[0] : b_.add(Concat{0}, gs);
      const NodeId x = b_.reshape(definition_node(d.operand),
                                  {size_of(dims_of(c_.definitions[d.operand].axes))});
      const NodeId covariance = b_.scale(square, 0, b_.contract(y, y, 0, 0, true));
      const NodeId slopes =
          b_.add(TrainingOperator{1, std::numeric_limits<double>::infinity(), 0, false},
                 {covariance, b_.contract(x, g, 0, 0, true)});
      own.all = b_.scale(square, 0, slopes);
      it = solved_.emplace(slot, std::move(own)).first;
    }
    const std::int64_t size = size_of(dims_of(c_.definitions[d.gaussian].axes));
    std::vector<std::int64_t> columns(static_cast<std::size_t>(size));
    std::iota(columns.begin(), columns.end(), it->second.offsets.at(d.gaussian));
    return b_.reshape(b_.gather(it->second.all, 1, std::move(columns)), dims_of(d.axes));
  }

  // ---- expressions
  // ---------------------------------------------------------------------------------

  /// The block with exactly these axes, in this order.
  NodeId shaped(const Block& x, const std::vector<Symbol>& axes) {
    const NodeId node = aligned(x, axes);
    return b_.expand(node, b_.type(node).width, dims_of(axes));
  }

  /// The block with these axes in this order, extent 1 where it has none of the kind.
  NodeId aligned(const Block& x, const std::vector<Symbol>& axes) {
    std::vector<std::int32_t> order;
    Dims dims;
    for (const Symbol& s : axes) {
      const auto it = std::find(x.axes.begin(), x.axes.end(), s);
      dims.push_back(it == x.axes.end() ? 1 : s.size);
      if (it != x.axes.end()) order.push_back(static_cast<std::int32_t>(it - x.axes.begin()));
    }
    TPLIMIT_CHECK(order.size() == x.axes.size(), "the axes of a block are among those asked for");
    return b_.reshape(b_.permute(x.node, order), dims);
  }

  static std::vector<Symbol> joined(const std::vector<Block>& blocks) {
    std::vector<Symbol> out;
    for (const Block& x : blocks)
      for (const Symbol& s : x.axes)
        if (std::find(out.begin(), out.end(), s) == out.end()) out.push_back(s);
    return out;
  }

  Block pointwise(const Map& map, const std::vector<Block>& args) {
    const std::vector<Symbol> axes = joined(args);
    std::vector<NodeId> in;
    for (const Block& x : args) in.push_back(aligned(x, axes));
    return {b_.map(map.fn, std::move(in), map.parameter), axes};
  }

  Block folded(Fn fn, const std::vector<Expr>& args) {
    Block out = compile(args[0]);
    for (std::size_t k = 1; k < args.size(); ++k) out = pointwise({fn, 0}, {out, compile(args[k])});
    return out;
  }

  Block reduced(Block x, const Symbol& s) {
    const auto it = std::find(x.axes.begin(), x.axes.end(), s);
    TPLIMIT_CHECK(it != x.axes.end(), "a sum over an axis");
    x.node = b_.sum(x.node, static_cast<int>(it - x.axes.begin()));
    x.axes.erase(it);
    return x;
  }

  /// An operation along the axis of a bound symbol.
  template <class T>
  Block along(T op, const Symbol& s, Block x) {
    const auto it = std::find(x.axes.begin(), x.axes.end(), s);
    TPLIMIT_CHECK(it != x.axes.end(), "an operation along an axis");
    op.axis = static_cast<std::int32_t>(it - x.axes.begin());
    x.node = b_.add(op, {x.node});
    x.axes.erase(it);
    return x;
  }

  static bool is_function(const Expr& e, Fn fn) {
    return e->kind == Kind::kFunction && e->order == 0 && e->map.fn == fn;
  }

  /// sum over `summed`, and the mean if asked for, of a b: one product of matrices.
  Block contraction(Block a, Block c, const std::vector<Symbol>& summed, bool average) {
    const auto has = [](const std::vector<Symbol>& in, const Symbol& s) {
      return std::find(in.begin(), in.end(), s) != in.end();
    };
    for (const Symbol& s : summed) {
      if (has(a.axes, s) && !has(c.axes, s))
        a = reduced(a, s);
      else if (has(c.axes, s) && !has(a.axes, s))
        c = reduced(c, s);
    }
    std::vector<Symbol> batch, left, right, both;
    for (const Symbol& s : a.axes)
      (has(c.axes, s) ? has(summed, s) ? both : batch : left).push_back(s);
    for (const Symbol& s : c.axes)
      if (!has(a.axes, s)) right.push_back(s);
    const auto ordered = [&](const Block& x, const std::vector<Symbol>& own) {
      std::vector<Symbol> axes = batch;
      axes.insert(axes.end(), own.begin(), own.end());
      axes.insert(axes.end(), both.begin(), both.end());
      return aligned(x, axes);
    };
    Block out{b_.contract(ordered(a, left), ordered(c, right), static_cast<int>(batch.size()),
                          static_cast<int>(both.size()), average),
              batch};
    out.axes.insert(out.axes.end(), left.begin(), left.end());
    out.axes.insert(out.axes.end(), right.begin(), right.end());
    return out;
  }

  Block compile(const Expr& e) {
    if (const auto it = compiled_.find(e.get()); it != compiled_.end()) return it->second;
    Block out = compile_new(e);
    compiled_.emplace(e.get(), out);
    kept_.push_back(e);
    return out;
  }

  Block compile_new(const Expr& e) {
    switch (e->kind) {
      case Kind::kNumber: return {b_.constant(e->number), {}};
      case Kind::kRef: return indexed(e);
      case Kind::kDelta: {
        const Index both = flatten(e->indices, {largest(e->indices), largest(e->indices)});
        std::vector<double> values;
        for (const std::int64_t v : both.values())
          values.push_back(v / largest(e->indices) == v % largest(e->indices) ? 1 : 0);
        return {b_.constant(std::move(values), dims_of(both.symbols())), both.symbols()};
      }
      case Kind::kAdd: return folded(Fn::kAdd, e->args);
      case Kind::kMul: return folded(Fn::kMul, e->args);
      case Kind::kPower: return pointwise({Fn::kPower, e->number}, {compile(e->args[0])});
      case Kind::kFunction:
        if (const Expr& sum = e->args[0]; is_function(e, Fn::kLog) && sum->kind == Kind::kSum &&
                                          is_function(sum->args[0], Fn::kExp))
          return along(LogSumExp{}, sum->bound, compile(sum->args[0]->args[0]));
        return function(e->map, e->order, compile(e->args[0]));
      case Kind::kCall: {
        std::vector<Block> args;
        for (const Expr& a : e->args) args.push_back(compile(a));
        return pointwise(e->map, args);
      }
      case Kind::kMax: return along(ReduceMax{}, e->bound, compile(e->args[0]));
      case Kind::kSum: {
        std::vector<Symbol> summed{e->bound};
        Expr body = e->args[0];
        while (body->kind == Kind::kSum) {
          summed.push_back(body->bound);
          body = body->args[0];
        }
        std::vector<Expr> factors = body->kind == Kind::kMul ? body->args : std::vector{body};
        std::vector<Expr> finite, random;
        for (const Expr& f : factors) (f->width ? random : finite).push_back(f);
        if (finite.empty()) finite.push_back(c_.number(1));
        if (random.empty()) {
          random.push_back(finite.back());
          finite.back() = c_.number(1);
        }
        return contraction(folded(Fn::kMul, finite), folded(Fn::kMul, random), summed, false);
      }
      case Kind::kMean: {
        const Expr& body = e->args[0];
        if (body->kind == Kind::kMul && body->args.size() > 1 &&
            body->args[body->args.size() - 2]->width) {
          const std::vector<Expr> first(body->args.begin(), body->args.end() - 1);
          return contraction(folded(Fn::kMul, first), compile(body->args.back()), {}, true);
        }
        const Block x = compile(body);
        return {b_.average(x.node), x.axes};
      }
      case Kind::kJump: break;
    }
    TPLIMIT_CHECK(false, "a formula without deltas");
    return {};
  }

  static std::int64_t largest(const Indices& indices) {
    std::int64_t out = 1;
    for (const Index& i : indices)
      for (const std::int64_t v : i.values()) out = std::max(out, v + 1);
    return out;
  }

  Block indexed(const Expr& e) {
    const NodeId base = definition_node(e->ref);
    const Dims dims = b_.type(base).dims;
    std::vector<Symbol> axes;
    bool plain = true;
    for (std::size_t k = 0; k < dims.size(); ++k) {
      const Index& i = e->indices[k];
      plain = plain && ((dims[k] == 1 && i.is_number()) ||
                        (i.is_symbol() && i.symbols()[0].size == dims[k] &&
                         std::find(axes.begin(), axes.end(), i.symbols()[0]) == axes.end()));
      if (i.is_symbol()) axes.push_back(i.symbols()[0]);
    }
    if (plain) return {b_.reshape(base, dims_of(axes)), axes};
    const Index flat = flatten(e->indices, dims);
    const NodeId rows = b_.gather(b_.reshape(base, {size_of(dims)}), 0, flat.values());
    return {b_.reshape(rows, dims_of(flat.symbols())), flat.symbols()};
  }

  Block function(const Map& map, int order, const Block& x) {
    if (order == 0) return {b_.map(map.fn, {x.node}, map.parameter), x.axes};
    const auto slot = std::tuple{map.fn, map.parameter, x.node};
    auto& [variable, known] = derivatives_[slot];
    if (known.empty()) {
      // A variable of its own: multiples of multiples are merged, past x.
      variable = b_.add(Parameter{parameters_++}, {x.node});
      known.push_back(b_.map(map.fn, {variable}, map.parameter));
    }
    while (static_cast<int>(known.size()) <= order) {
      if (known.size() == 1) {
        known.push_back(derivative_of(b_, map, variable, known[0]));
        continue;
      }
      const bool width = b_.type(x.node).width;
      NodeId total = known.back();
      if (b_.type(total).width) total = b_.average(total);
      while (!b_.type(total).dims.empty()) total = b_.sum(total, 0);
      auto slope = gradient(b_, total, {variable});
      TPLIMIT_CHECK(slope.ok(), "coordinatewise functions have derivatives");
      NodeId next = (*slope)[0].tensor;
      if (width) next = b_.scale(1, 1, next);
      known.push_back(next);
    }
    return {known[static_cast<std::size_t>(order)], x.axes};
  }

  struct Solved {
    NodeId all;
    std::map<std::uint32_t, std::int64_t> offsets;  ///< of each Gaussian's columns
  };

  Formulas& f_;
  Calculus& c_;
  const Program& in_;
  Program out_;
  Builder b_;
  std::map<std::uint32_t, NodeId> nodes_, matrices_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Solved> solved_;
  std::map<const Term*, Block> compiled_;
  std::vector<Expr> kept_;
  std::map<std::tuple<Fn, double, NodeId>, std::pair<NodeId, std::vector<NodeId>>>
      derivatives_;  ///< variable, f, f', ..
  std::uint32_t parameters_ = 0;
};

}  // namespace

std::vector<Symbol> free_symbols(const Expr& e) {
  std::vector<std::uint32_t> bound;
  std::vector<Symbol> out;
  collect_symbols(e, bound, out);
  return out;
}

Evaluable evaluable(Formulas& formulas, const Program& limit, const std::vector<Expr>& wanted) {
  return Compiler(formulas, limit).run(wanted);
}

}  // namespace tplimit::explain
