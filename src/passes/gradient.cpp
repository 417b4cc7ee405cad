#include "tplimit/passes/gradient.hpp"

#include <algorithm>
#include <numeric>

#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/matrix_algebra.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit {

using namespace ir;

namespace {

/// Repeats a value along a removed axis.
NodeId spread(Builder& b, NodeId x, int axis, const Dims& dims) {
  Dims with_one = dims;
  with_one[static_cast<std::size_t>(axis)] = 1;
  const NodeId shaped = b.reshape(x, with_one);
  return b.expand(shaped, b.type(shaped).width, dims);
}

/// A subgradient of y = max of x along an axis: equal shares for the largest entries, so that they
/// add up to 1 at ties too.
NodeId shares_of_maximum(Builder& b, NodeId x, NodeId y, int axis) {
  const Dims dims = b.type(x).dims;
  const NodeId largest = b.map(Fn::kEqual, {x, spread(b, y, axis, dims)});
  return b.map(Fn::kDiv, {largest, spread(b, b.sum(largest, axis), axis, dims)});
}

/// A number for each matrix [.., k, k] beside it.
NodeId beside_matrices(Builder& b, NodeId x) {
  Dims dims = b.type(x).dims;
  dims.insert(dims.end(), 2, 1);
  return b.reshape(x, dims);
}

Diagnostic not_differentiable(const Node& node, const char* what) {
  return Diagnostic::error("E2501", fmt::format("{} has no derivative here", what))
      .at(node.span)
      .with_label("the loss depends on a parameter through this")
      .with_help("wrap it in stop(..) if it is meant as a constant");
}

class Reverse {
 public:
  Reverse(Builder& builder, NodeId loss, const std::vector<NodeId>& targets,
          const std::vector<NodeId>& fixed)
      : b_(builder),
        targets_(targets),
        first_(std::min(*std::min_element(targets.begin(), targets.end()), loss)),
        last_(loss),
        fixed_(last_.value - first_.value + 1, false) {
    for (const NodeId id : fixed)
      if (id >= first_ && id <= last_) fixed_[id.value - first_.value] = true;
  }

  Result<std::vector<Derivative>> run() {
    find_active();
    cotangents_.resize(active_.size());
    if (active(last_)) slot(last_).tensor = b_.constant(1);
    for (std::uint32_t id = last_.value + 1; id-- > first_.value;) {
      const NodeId node{id};
      if (!active(node) || fixed_[id - first_.value]) continue;
      if (!slot(node).tensor.valid() && slot(node).outer.empty() && slot(node).versions.empty())
        continue;
      if (auto error = propagate(node)) return *error;
    }
    std::vector<Derivative> out;
    for (const NodeId t : targets_) {
      Derivative d = t <= last_ && active(t) ? slot(t) : Derivative{};
      const Type& type = b_.type(t);
      // A cotangent that is constant over coordinates, or not reached at all, is widened to the
      // target's type.
      if (!type.matrix)
        d.tensor = d.tensor.valid() ? b_.expand(d.tensor, type.width, type.dims)
                                    : b_.zeros(type.width, type.dims);
      out.push_back(std::move(d));
    }
    return out;
  }

  /// After run(): what was found for the tensors with a width axis.
  [[nodiscard]] std::vector<std::pair<NodeId, NodeId>> cotangents() const {
    std::vector<std::pair<NodeId, NodeId>> out;
    for (std::size_t k = 0; k < cotangents_.size(); ++k) {
      const NodeId id{first_.value + static_cast<std::uint32_t>(k)};
      if (active_[k] && cotangents_[k].tensor.valid() && b_.type(id).width)
        out.emplace_back(id, cotangents_[k].tensor);
    }
    return out;
  }

 private:
  /// Nodes that depend on a target: the only ones whose cotangents matter.
  void find_active() {
    active_.assign(last_.value - first_.value + 1, false);
    for (const NodeId t : targets_)
      if (t <= last_) active_[t.value - first_.value] = true;
    for (std::uint32_t id = first_.value; id <= last_.value; ++id) {
      if (active_[id - first_.value] || fixed_[id - first_.value]) continue;
      const Node& node = b_.node({id});
      if (std::holds_alternative<Stop>(node.op)) continue;
      active_[id - first_.value] =
          std::any_of(node.in.begin(), node.in.end(), [&](NodeId in) { return active(in); });
    }
  }
  [[nodiscard]] bool active(NodeId id) const {
    return id >= first_ && active_[id.value - first_.value];
  }
  Derivative& slot(NodeId id) { return cotangents_[id.value - first_.value]; }

  void accumulate(NodeId id, NodeId cotangent) {
    if (!active(id) || b_.is_zero(cotangent)) return;
    auto& tensor = slot(id).tensor;
    tensor = tensor.valid() ? b_.plus(tensor, cotangent) : cotangent;
  }
  void accumulate_outer(NodeId id, OuterTerm term) {
    if (active(id)) slot(id).outer.push_back(term);
  }
  void accumulate_version(NodeId id, VersionTerm term) {
    if (active(id)) slot(id).versions.push_back(term);
  }
  void pass_on(NodeId id, const Derivative& g) {
    for (const OuterTerm& t : g.outer) accumulate_outer(id, t);
    for (const VersionTerm& t : g.versions) accumulate_version(id, t);
  }
  /// Sum over all entries of A B.
  NodeId of_matrices(NodeId a, NodeId b) { return b_.scale(1, 1, b_.add(InnerProduct{}, {a, b})); }

  NodeId widen(NodeId x, const Dims& dims) { return b_.expand(x, true, dims); }

  /// Sum over all coordinates and finite axes, both of the same type: n E(a b) or the finite sum.
  NodeId inner_product(NodeId a, NodeId c) {
    NodeId product = b_.times(a, c);
    if (b_.type(product).width) product = b_.scale(1, 1, b_.average(product));
    while (!b_.type(product).dims.empty()) product = b_.sum(product, 0);
    return product;
  }

  /// Sums a cotangent over the axes along which `type` was broadcast.
  NodeId unbroadcast(NodeId g,
                     const Type type) {  // by value: the types of the program move as it grows
    if (b_.type(g).width && !type.width) g = b_.scale(1, 1, b_.average(g));
    while (b_.type(g).dims.size() > type.dims.size()) g = b_.sum(g, 0);
    for (std::size_t k = 0; k < type.dims.size(); ++k) {
      if (type.dims[k] == 1 && b_.type(g).dims[k] != 1) {
        g = b_.sum(g, static_cast<int>(k));
        Dims dims = b_.type(g).dims;
        dims.insert(dims.begin() + static_cast<std::ptrdiff_t>(k), 1);
        g = b_.reshape(g, dims);
      }
    }
    return g;
  }

  std::optional<Diagnostic> propagate(NodeId id) {
    const Node node = b_.node(id);  // a copy: the program grows below
    const Derivative g = slot(id);
    if (!node.type.matrix && b_.type(g.tensor).dims != node.type.dims)
      slot(id).tensor = b_.expand(g.tensor, b_.type(g.tensor).width, node.type.dims);
    const NodeId dy = slot(id).tensor;
    std::optional<Diagnostic> error;
    const auto refuse = [&](const char* what) { error = not_differentiable(node, what); };
    std::visit(
        overloaded{
            [&](const Constant&) {},
            [&](const StandardNormal&) {},
            [&](const GaussianMatrix&) {},
            [&](const Stop&) {},
            [&](const Parameter&) {
              if (node.type.matrix)
                pass_on(node.in[0], g);
              else
                accumulate(node.in[0], dy);
            },
            [&](const Change&) { accumulate(node.in[0], dy); },
            [&](const Scale& s) { accumulate(node.in[0], b_.scale(s.factor, s.power, dy)); },
            [&](const Map& m) { propagate_map(m, node, id, dy); },
            [&](const Contract& c) { propagate_contract(c, node, dy); },
            [&](const Average&) { accumulate(node.in[0], b_.scale(1, -1, dy)); },
            [&](const ReduceSum& r) {
              accumulate(node.in[0], spread(b_, dy, r.axis, Dims(b_.type(node.in[0]).dims)));
            },
            [&](const ReduceMax& r) {
              const Dims dims = b_.type(node.in[0]).dims;
              accumulate(node.in[0], b_.times(shares_of_maximum(b_, node.in[0], id, r.axis),
                                              spread(b_, dy, r.axis, dims)));
            },
            [&](const LogSumExp& r) {
              const Dims dims = b_.type(node.in[0]).dims;
              accumulate(node.in[0], b_.times(shares_of_exponentials(b_, node.in[0], id, r.axis),
                                              spread(b_, dy, r.axis, dims)));
            },
            [&](const Gather& gather) {
              const std::int64_t size =
                  b_.type(node.in[0]).dims[static_cast<std::size_t>(gather.axis)];
              accumulate(node.in[0], b_.add(ScatterAdd{gather.axis, size, gather.indices}, {dy}));
            },
            [&](const ScatterAdd& s) {
              accumulate(node.in[0], b_.add(Gather{s.axis, s.indices}, {dy}));
            },
            [&](const Permute& p) {
              std::vector<std::int32_t> inverse(p.axes.size());
              for (std::size_t k = 0; k < p.axes.size(); ++k)
                inverse[static_cast<std::size_t>(p.axes[k])] = static_cast<std::int32_t>(k);
              accumulate(node.in[0], b_.permute(dy, inverse));
            },
            [&](const Reshape&) {
              accumulate(node.in[0], b_.reshape(dy, b_.type(node.in[0]).dims));
            },
            [&](const Expand&) {
              accumulate(node.in[0], unbroadcast(b_.expand(dy, node.type.width, node.type.dims),
                                                 b_.type(node.in[0])));
            },
            [&](const Concat& c) {
              std::int64_t offset = 0;
              for (const NodeId in : node.in) {
                const Type type = b_.type(in);
                const std::int64_t size = type.dims[static_cast<std::size_t>(c.axis)];
                std::vector<std::int64_t> indices(static_cast<std::size_t>(size));
                std::iota(indices.begin(), indices.end(), offset);
                offset += size;
                if (active(in))
                  accumulate(in, unbroadcast(widen_if(node.type.width && !type.width,
                                                      b_.gather(dy, c.axis, indices)),
                                             type));
              }
            },
            [&](const MatMul& m) {
              const NodeId w = node.in[0], x = node.in[1];
              const NodeId wide = widen(dy, node.type.dims);
              if (active(x)) accumulate(x, b_.matmul(w, wide, !m.transposed));
              accumulate_outer(w, m.transposed ? OuterTerm{b_.constant(1), x, wide}
                                               : OuterTerm{b_.constant(1), wide, x});
            },
            [&](const ScaleMatrix&) {
              const NodeId w = node.in[0], c = node.in[1];
              for (const OuterTerm& t : g.outer) {
                accumulate_outer(w, {b_.times(t.coefficient, c), t.d, t.x});
                if (active(c))
                  accumulate(c,
                             b_.times(t.coefficient, inner_product(t.d, b_.matmul(w, t.x, false))));
              }
              for (const VersionTerm& t : g.versions) {
                accumulate_version(w, {b_.times(t.coefficient, c), t.w});
                if (active(c)) accumulate(c, b_.times(t.coefficient, of_matrices(t.w, w)));
              }
            },
            [&](const UpdateMatrix&) {
              propagate_update(node, g.outer);
              propagate_update(node, g.versions);
            },
            [&](const AddVersion&) {
              const NodeId c = node.in[1], other = node.in[2];
              for (const OuterTerm& t : g.outer) {
                accumulate_outer(node.in[0], t);
                accumulate_outer(other, {b_.times(t.coefficient, c), t.d, t.x});
                if (active(c))
                  accumulate(
                      c, b_.times(t.coefficient, inner_product(t.d, b_.matmul(other, t.x, false))));
              }
              for (const VersionTerm& t : g.versions) {
                accumulate_version(node.in[0], t);
                accumulate_version(other, {b_.times(t.coefficient, c), t.w});
                if (active(c)) accumulate(c, b_.times(t.coefficient, of_matrices(t.w, other)));
              }
            },
            [&](const InnerProduct&) {
              const NodeId each = b_.scale(1, -1, dy);
              accumulate_version(node.in[0], {each, node.in[1]});
              accumulate_version(node.in[1], {each, node.in[0]});
            },
            [&](const AddEntries&) {
              pass_on(node.in[0], g);
              if (active(node.in[1]) || active(node.in[2])) refuse("an entrywise update");
            },
            [&](const OuterSum&) { refuse("an entrywise update"); },
            [&](const MatrixEntries&) { refuse("an entrywise update"); },
            [&](const Cholesky&) { refuse("a random output"); },
            [&](const Eigvals&) { refuse("eigvals"); },
            [&](const TrainingOperator&) { refuse("predict_gd"); },
            [&](const Solve& s) {  // dY = A^-T dX, dA = -dY X'
              const NodeId back = b_.add(s, {transposed(b_, node.in[0]), dy});
              accumulate(node.in[1], back);
              if (active(node.in[0]))
                accumulate(node.in[0], b_.negate(matrix_product(b_, back, transposed(b_, id))));
            },
            [&](const LogDet&) {
              accumulate(node.in[0], b_.times(beside_matrices(b_, dy),
                                              transposed(b_, matrix_inverse(b_, node.in[0]))));
            },
            [&](const Samples&) { refuse("samples"); },
            [&](const Histogram&) { refuse("hist"); },
        },
        node.op);
    return error;
  }

  NodeId widen_if(bool yes, NodeId x) { return yes ? widen(x, b_.type(x).dims) : x; }

  void propagate_map(const Map& m, const Node& node, NodeId id, NodeId dy) {
    const auto& in = node.in;
    for (std::size_t k = 0; k < in.size(); ++k) {
      if (!active(in[k])) continue;
      const Type type = b_.type(in[k]);
      NodeId cotangent = times_partial(b_, m, in, id, k, dy);
      if (!cotangent.valid()) continue;
      // dy may be constant over coordinates although the node is not; a sum over coordinates needs
      // the axis.
      if (node.type.width && !type.width) cotangent = widen(cotangent, b_.type(cotangent).dims);
      if (b_.type(cotangent).dims.size() < node.type.dims.size() ||
          b_.type(cotangent).dims != node.type.dims)
        cotangent = b_.expand(cotangent, b_.type(cotangent).width, node.type.dims);
      accumulate(in[k], unbroadcast(cotangent, type));
    }
  }

  void propagate_contract(const Contract& c, const Node& node, NodeId dy) {
    const Type ta = b_.type(node.in[0]), tb = b_.type(node.in[1]);
    // c[B, I, J] = sum_K a[B, I, K] b[B, J, K]:  da[B, I, K] = sum_J dc[B, I, J] b'[B, K, J], db[B,
    // J, K] = sum_I dc'[B, J, I] a'[B, K, I].
    const auto rank_inner = [&](const Type& t) {
      return static_cast<int>(t.dims.size()) - c.batch - c.contracted;
    };
    const int left = rank_inner(ta), right = rank_inner(tb);
    const auto swap_tail = [&](NodeId x, int middle, int tail) {  // [B, M, T] -> [B, T, M]
      std::vector<std::int32_t> axes(static_cast<std::size_t>(c.batch + middle + tail));
      std::iota(axes.begin(), axes.begin() + c.batch, 0);
      std::iota(axes.begin() + c.batch, axes.begin() + c.batch + tail, c.batch + middle);
      std::iota(axes.begin() + c.batch + tail, axes.end(), c.batch);
      return b_.permute(x, axes);
    };
    const auto pass = [&](std::size_t k) {
      const NodeId to = node.in[k], other = node.in[1 - k];
      if (!active(to)) return;
      const Type &own = k == 0 ? ta : tb, &their = k == 0 ? tb : ta;
      const int mine = k == 0 ? left : right, others = k == 0 ? right : left;
      NodeId g = k == 0 ? dy : swap_tail(dy, left, right);
      if (node.type.width && !own.width) g = widen(g, b_.type(g).dims);
      // A finite operand met a width operand: its derivative sums over the coordinates, n times an
      // average.
      const bool sum_over_width = !own.width && node.type.width;
      NodeId wide = other;
      if (sum_over_width && !their.width) wide = widen(other, their.dims);
      NodeId out =
          b_.contract(g, swap_tail(wide, others, c.contracted), c.batch, others, sum_over_width);
      if (sum_over_width) out = b_.scale(1, 1, out);
      if (c.average) out = b_.scale(1, -1, out);
      (void)mine;
      accumulate(to, out);
    };
    pass(0);
    pass(1);
  }

  /// W1 = W + sum_k c_k sum_p D_k[p] X_k[p]' / n with cotangent sum_q e g[q] y[q]'.
  void propagate_update(const Node& node, const std::vector<OuterTerm>& cotangent) {
    for (const OuterTerm& t : cotangent) {
      accumulate_outer(node.in[0], t);
      for (std::size_t k = 1; k < node.in.size(); k += 3) {
        const NodeId c = node.in[k], d = node.in[k + 1], x = node.in[k + 2];
        if (!active(c) && !active(d) && !active(x)) continue;
        const auto flat = [&](NodeId v) { return b_.reshape(v, {size_of(b_.type(v).dims)}); };
        const NodeId fd = flat(d), fx = flat(x), fg = flat(t.d), fy = flat(t.x);
        const NodeId gd = b_.contract(fg, fd, 0, 0, true);  // E(g_q D_p) [q, p]
        const NodeId yx = b_.contract(fy, fx, 0, 0, true);
        const NodeId e = t.coefficient;
        NodeId both = b_.times(gd, yx);
        both = b_.sum(b_.sum(both, 0), 0);
        accumulate(c, b_.times(e, b_.scale(1, 1, both)));  // n E n E / n
        const NodeId ec = b_.times(e, c);
        const auto spread_back = [&](NodeId weights, NodeId block,
                                     NodeId like) {  // sum_q block[q] weights[q, p]
          return b_.times(ec,
                          b_.reshape(b_.contract(block, b_.permute(weights, {1, 0}), 0, 1, false),
                                     b_.type(like).dims));
        };
        if (active(d)) accumulate(d, spread_back(yx, fg, d));
        if (active(x)) accumulate(x, spread_back(gd, fy, x));
      }
    }
  }

  /// W1 = W + sum_k c_k sum_p D_k[p] X_k[p]' / n with cotangent e V.
  void propagate_update(const Node& node, const std::vector<VersionTerm>& cotangent) {
    for (const VersionTerm& t : cotangent) {
      accumulate_version(node.in[0], t);
      for (std::size_t k = 1; k < node.in.size(); k += 3) {
        const NodeId c = node.in[k], d = node.in[k + 1], x = node.in[k + 2];
        const NodeId each = b_.scale(1, -1, b_.times(t.coefficient, c));
        if (active(c))
          accumulate(
              c,
              b_.scale(1, -1, b_.times(t.coefficient, inner_product(d, b_.matmul(t.w, x, false)))));
        if (active(d)) accumulate(d, b_.times(each, b_.matmul(t.w, x, false)));
        if (active(x)) accumulate(x, b_.times(each, b_.matmul(t.w, d, true)));
      }
    }
  }

  Builder& b_;
  const std::vector<NodeId>& targets_;
  NodeId first_, last_;
  std::vector<bool> fixed_, active_;
  std::vector<Derivative> cotangents_;
};

}  // namespace

NodeId shares_of_exponentials(Builder& b, NodeId x, NodeId y, int axis) {
  return b.map(Fn::kExp, {b.minus(x, spread(b, y, axis, Dims(b.type(x).dims)))});
}

Result<NodeId> tangent(Builder& b, const Node& node, const std::vector<NodeId>& in, NodeId y,
                       const std::vector<NodeId>& moves) {
  NodeId sum;
  std::optional<Diagnostic> error;
  const auto add = [&](NodeId term) {
    if (term.valid() && !b.is_zero(term)) sum = sum.valid() ? b.plus(sum, term) : term;
  };
  const auto linear = [&](const auto& op) {  // in its first operand, the only one
    if (moves[0].valid()) add(b.add(op, {moves[0]}));
  };
  const auto refuse = [&](const char* what) { error = not_differentiable(node, what); };
  const auto impossible = [&] {
    TPLIMIT_CHECK(false, "a tensor computed from others, got {}", op_name(node.op));
  };
  std::visit(
      overloaded{
          [&](const Map& m) {
            for (std::size_t k = 0; k < in.size(); ++k)
              if (moves[k].valid()) add(times_partial(b, m, in, y, k, moves[k]));
          },
          [&](const Contract& c) {
            if (moves[0].valid()) add(b.add(c, {moves[0], in[1]}));
            if (moves[1].valid()) add(b.add(c, {in[0], moves[1]}));
          },
          [&](const MatMul& m) {
            if (moves[0].valid()) add(b.matmul(moves[0], in[1], m.transposed));
            if (moves[1].valid()) add(b.matmul(in[0], moves[1], m.transposed));
          },
          [&](const ReduceMax& r) {
            if (moves[0].valid())
              add(b.sum(b.times(shares_of_maximum(b, in[0], y, r.axis), moves[0]), r.axis));
          },
          [&](const LogSumExp& r) {
            if (moves[0].valid())
              add(b.sum(b.times(shares_of_exponentials(b, in[0], y, r.axis), moves[0]), r.axis));
          },
          [&](const Concat& c) {
            std::vector<NodeId> parts;
            for (std::size_t k = 0; k < in.size(); ++k) {
              const Type type = b.type(in[k]);
              parts.push_back(moves[k].valid() ? moves[k] : b.zeros(type.width, type.dims));
            }
            add(b.add(c, std::move(parts)));
          },
          [&](const Parameter&) { add(moves[0]); },
          [&](const Change&) { add(moves[0]); },
          [&](const Stop&) {},
          [&](const Scale& op) { linear(op); },
          [&](const Average& op) { linear(op); },
          [&](const ReduceSum& op) { linear(op); },
          [&](const Gather& op) { linear(op); },
          [&](const ScatterAdd& op) { linear(op); },
          [&](const Permute& op) { linear(op); },
          [&](const Reshape& op) { linear(op); },
          [&](const Expand& op) { linear(op); },
          [&](const Cholesky&) { refuse("a random output"); },
          [&](const Eigvals&) { refuse("eigvals"); },
          [&](const TrainingOperator&) { refuse("predict_gd"); },
          [&](const Solve& s) {  // A^-1 (dY - dA X)
            if (moves[1].valid()) add(b.add(s, {in[0], moves[1]}));
            if (moves[0].valid()) add(b.negate(b.add(s, {in[0], matrix_product(b, moves[0], y)})));
          },
          [&](const LogDet&) {
            if (moves[0].valid()) add(log_determinant_move(b, matrix_inverse(b, in[0]), moves[0]));
          },
          [&](const Samples&) { refuse("samples"); },
          [&](const Histogram&) { refuse("hist"); },
          [&](const Constant&) { impossible(); },
          [&](const StandardNormal&) { impossible(); },
          [&](const GaussianMatrix&) { impossible(); },
          [&](const ScaleMatrix&) { impossible(); },
          [&](const UpdateMatrix&) { impossible(); },
          [&](const AddVersion&) { impossible(); },
          [&](const OuterSum&) { impossible(); },
          [&](const MatrixEntries&) { impossible(); },
          [&](const AddEntries&) { impossible(); },
          [&](const InnerProduct&) { impossible(); },
      },
      node.op);
  if (error) return *error;
  return sum;
}

Result<std::vector<Derivative>> gradient(Builder& builder, NodeId loss,
                                         const std::vector<NodeId>& targets,
                                         const std::vector<NodeId>& fixed,
                                         std::vector<std::pair<NodeId, NodeId>>* cotangents) {
  TPLIMIT_CHECK(builder.type(loss) == Type{}, "the loss is a finite scalar");
  if (targets.empty()) return std::vector<Derivative>{};
  Reverse reverse(builder, loss, targets, fixed);
  auto derivatives = reverse.run();
  if (cotangents && derivatives) *cotangents = reverse.cotangents();
  return derivatives;
}

}  // namespace tplimit
