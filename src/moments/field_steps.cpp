#include "moments/engine.hpp"

#include <algorithm>
#include <numeric>
#include <set>

#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::moments {

using namespace ir;

std::shared_ptr<MatrixVersion> MomentEngine::matrix_step(const Node& node) {
  auto v = std::make_shared<MatrixVersion>();
  if (!node.in.empty()) *v = *versions_[node.in[0].value];
  const auto scalar = [&](NodeId c) {
    const MomentValue& x = finite_[c.value];
    v->method = weaker(v->method, x.method);
    if (x.value[0] != 0) v->relative += x.error_at(0) / std::abs(x.value[0]);
    return x.value[0];
  };
  visit_version(node.op, overloaded{[](const Parameter&) {}, [](const Stop&) {},
                                    [&](const GaussianMatrix& g) { v->source = g.source.value; },
                                    [&](const ScaleMatrix&) {
                                      const double c = scalar(node.in[1]);
                                      v->scale *= c;
                                      for (auto& u : v->updates) u.c *= c;
                                    },
                                    [&](const UpdateMatrix&) {
                                      for (std::size_t k = 1; k < node.in.size(); k += 3)
                                        algebra_.append(*v, scalar(node.in[k]),
                                                        operand(node.in[k + 1]),
                                                        operand(node.in[k + 2]));
                                    },
                                    [&](const AddVersion&) {
                                      const double c = scalar(node.in[1]);
                                      const MatrixVersion& other = *versions_[node.in[2].value];
                                      v->scale += c * other.scale;
                                      v->relative = std::max(v->relative, other.relative);
                                      v->method = weaker(v->method, other.method);
                                      for (const auto& u : other.updates)
                                        algebra_.append(*v, c * u.c, *u.d, *u.x);
                                    },
                                    [](const AddEntries&) {
                                      throw Unknown{"an entrywise update has no closed form"};
                                    }});
  return v;
}

namespace {
/// An array as outer x size x inner around one axis.
struct AxisView {
  int inner, size;
  AxisView(const Dims& dims, std::int64_t axis)
      : inner(static_cast<int>(size_of({dims.begin() + axis + 1, dims.end()}))),
        size(static_cast<int>(dims[static_cast<std::size_t>(axis)])) {}
  /// Where entry j of an array lies along the axis.
  [[nodiscard]] int along(int j) const { return j / inner % size; }
  /// The entry beside entry j of this array, at k along the axis of an array of another size there.
  [[nodiscard]] int beside(int j, int other_size, int k) const {
    return (j / inner / size * other_size + k) * inner + j % inner;
  }
};
}  // namespace

/// Operations that copy columns: evaluated on column numbers.
Field MomentEngine::copied(const Node& node) const {
  const NodeId in = node.in[0];
  std::vector<double> numbers(static_cast<std::size_t>(size_of(program_[in].type.dims))),
      moved(static_cast<std::size_t>(size_of(node.type.dims)));
  std::iota(numbers.begin(), numbers.end(), 0.0);
  Node finite = node;
  finite.type.width = false;
  if (auto* e = std::get_if<Expand>(&finite.op)) e->width = false;
  const Type type{false, false, program_[in].type.dims};
  evaluate_rows(finite, {&type}, {{numbers.data(), 1, 1}}, {moved.data(), 1, 1});
  return FieldAlgebra::remap(operand(in), std::vector<int>(moved.begin(), moved.end()));
}

Field MomentEngine::summed(const ReduceSum& r, const Node& node) {
  const AxisView from(program_[node.in[0]].type.dims, r.axis);
  const int count = static_cast<int>(size_of(node.type.dims)), size = from.size;
  const Field x = operand(node.in[0]);
  const auto source = [&](int j, int k) {
    return (j / from.inner * size + k) * from.inner + j % from.inner;
  };
  if (algebra_.one_product(x, size)) {
    Matrix ones = Matrix::Zero(count, x.columns);
    for (int k = 0; k < size; ++k)
      for (int j = 0; j < count; ++j) ones(j, source(j, k)) = 1;
    return algebra_.combine(ones, x);
  }
  Field out{count, {}};
  for (int k = 0; k < size; ++k) {
    std::vector<int> index;
    for (int j = 0; j < count; ++j) index.push_back(source(j, k));
    out = algebra_.add(std::move(out), FieldAlgebra::remap(x, index), 1);
  }
  return out;
}

/// A sum of the operands, each with zeros where the others are.
Field MomentEngine::concatenated(const Concat& c, const Node& node) {
  const AxisView to(node.type.dims, c.axis);
  const int count = static_cast<int>(size_of(node.type.dims));
  Field out{count, {}};
  int offset = 0;
  for (const NodeId in : node.in) {
    const auto size = static_cast<int>(program_[in].type.dims[static_cast<std::size_t>(c.axis)]);
    std::vector<int> index;
    for (int j = 0; j < count; ++j) {
      const int k = to.along(j) - offset;
      index.push_back(k < 0 || k >= size ? -1 : to.beside(j, size, k));
    }
    out = algebra_.add(std::move(out), FieldAlgebra::remap(operand(in), index), 1);
    offset += size;
  }
  return out;
}

/// Slices that go to different places are moved together.
Field MomentEngine::scattered(const ScatterAdd& s, const Node& node) {
  const AxisView to(node.type.dims, s.axis);
  const int count = static_cast<int>(size_of(node.type.dims)),
            slices = static_cast<int>(s.indices->size());
  Field out{count, {}};
  std::vector<bool> done(static_cast<std::size_t>(slices), false);
  for (int left = slices; left > 0;) {
    std::vector<int> from(at(to.size), -1), index;  // the slice that goes to each place
    for (int i = 0; i < slices; ++i) {
      int& slot = from[static_cast<std::size_t>((*s.indices)[at(i)])];
      if (done[at(i)] || slot >= 0) continue;
      slot = i;
      done[at(i)] = true;
      --left;
    }
    for (int j = 0; j < count; ++j) {
      const int k = from[at(to.along(j))];
      index.push_back(k < 0 ? -1 : to.beside(j, slices, k));
    }
    out = algebra_.add(std::move(out), FieldAlgebra::remap(operand(node.in[0]), index), 1);
  }
  return out;
}

Field MomentEngine::field_step(NodeId id, const Node& node) {
  const auto count = static_cast<int>(size_of(node.type.dims));
  const auto unknown = [&]() -> Field {
    throw Unknown{fmt::format("'{}' of values with coordinates", op_name(node.op)), id};
  };
  return std::visit(
      overloaded{[&](const StandardNormal&) -> Field {
                   GaussianFamily family;
                   family.size = count;
                   std::vector<int> all(static_cast<std::size_t>(count));
                   std::iota(all.begin(), all.end(), 0);
                   return algebra_.of_block(store_.insert({count,
                                                           {},
                                                           {{store_.add_family(std::move(family)),
                                                             std::move(all),
                                                             Eigen::VectorXd::Ones(count),
                                                             {}}}}));
                 },
                 [&](const Scale& s) {
                   return algebra_.times(operand(node.in[0]), algebra_.constant(std::vector<double>(
                                                                  at(count), s.factor)));
                 },
                 [&](const Map& m) { return map(m, node); },
                 [&](const Contract& c) { return contract(c, node); },
                 [&](const Gather&) { return copied(node); },
                 [&](const Permute&) { return copied(node); },
                 [&](const Reshape&) { return copied(node); },
                 [&](const Expand&) { return copied(node); },
                 [&](const ReduceSum& r) { return summed(r, node); },
                 [&](const Concat& c) { return concatenated(c, node); },
                 [&](const ScatterAdd& s) { return scattered(s, node); },
                 [&](const MatMul& m) {
                   return multiply(*versions_[node.in[0].value], node.in[1], m.transposed);
                 },
                 [&](const Constant&) { return unknown(); },
                 [&](const Average&) { return unknown(); },
                 [&](const ReduceMax&) { return unknown(); },
                 [&](const LogSumExp&) { return unknown(); },
                 [&](const Stop&) { return unknown(); },
                 [&](const Parameter&) { return unknown(); },
                 [&](const Change&) { return unknown(); },
                 [&](const GaussianMatrix&) { return unknown(); },
                 [&](const ScaleMatrix&) { return unknown(); },
                 [&](const UpdateMatrix&) { return unknown(); },
                 [&](const AddVersion&) { return unknown(); },
                 [&](const OuterSum&) { return unknown(); },
                 [&](const MatrixEntries&) { return unknown(); },
                 [&](const AddEntries&) { return unknown(); },
                 [&](const InnerProduct&) { return unknown(); },
                 [&](const Cholesky&) { return unknown(); },
                 [&](const Eigvals&) { return unknown(); },
                 [&](const TrainingOperator&) { return unknown(); },
                 [&](const Solve&) { return unknown(); },
                 [&](const LogDet&) { return unknown(); },
                 [&](const Samples&) { return unknown(); },
                 [&](const Histogram&) { return unknown(); }},
      node.op);
}

Field MomentEngine::map(const Map& m, const Node& node) {
  std::vector<Field> in;
  for (const NodeId k : node.in) {
    // Finite axes align from the right.
    const Dims& own = program_[k].type.dims;
    std::vector<int> index;
    for (std::int64_t j = 0; j < size_of(node.type.dims); ++j) {
      std::int64_t rest = j, from = 0, stride = 1;
      for (std::size_t a = 0; a < node.type.dims.size(); ++a) {
        const std::int64_t size = node.type.dims[node.type.dims.size() - 1 - a], i = rest % size;
        rest /= size;
        if (a >= own.size()) continue;
        const std::int64_t mine = own[own.size() - 1 - a];
        if (mine != 1) from += i * stride;
        stride *= mine;
      }
      index.push_back(static_cast<int>(from));
    }
    in.push_back(FieldAlgebra::remap(operand(k), index));
  }
  if (std::any_of(node.in.begin(), node.in.end(), [&](NodeId k) { return averages_[k.value]; }) &&
      algebra_.lies_on_a_jump(m, node, in))
    throw Unknown{fmt::format("coordinates lie on a jump of '{}' where averages have their limits: "
                              "their fluctuations decide",
                              name(m.fn)),
                  {}};
  return algebra_.apply(m, node, std::move(in));
}

Field MomentEngine::contract(const Contract& c, const Node& node) {
  const ContractSizes sizes(c, program_[node.in[0]].type.dims, program_[node.in[1]].type.dims);
  const auto batch = static_cast<int>(sizes.batch), rows = static_cast<int>(sizes.left),
             columns = static_cast<int>(sizes.right), depth = static_cast<int>(sizes.inner);
  const int count = batch * rows * columns;
  // A block times numbers: one matrix product.
  for (const std::size_t k : {0u, 1u}) {
    const NodeId wide = node.in[k], narrow = node.in[1 - k];
    if (program_[narrow].type.width || depth == 1) continue;
    const Field x = operand(wide);
    if (!algebra_.one_product(x, depth)) continue;
    const auto& numbers = finite_[narrow.value].value;
    Matrix weights = Matrix::Zero(count, x.columns);
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j)
          for (int l = 0; l < depth; ++l) {
            const int left = (p * rows + i) * depth + l, right = (p * columns + j) * depth + l;
            weights((p * rows + i) * columns + j, k == 0 ? left : right) =
                numbers[at(k == 0 ? right : left)];
          }
    Field out = algebra_.combine(weights, x);
    const Field quality = operand(narrow);
    out.relative += quality.relative;
    out.method = weaker(out.method, quality.method);
    return out;
  }
  if (depth > 256) throw Unknown{"a sum over many products", {}};
  const Field x = operand(node.in[0]), y = operand(node.in[1]);
  Field out{count, {}};
  for (int l = 0; l < depth; ++l) {
    std::vector<int> left, right;
    for (int p = 0; p < batch; ++p)
      for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) {
          left.push_back((p * rows + i) * depth + l);
          right.push_back((p * columns + j) * depth + l);
        }
    out = algebra_.add(std::move(out),
                       algebra_.times(FieldAlgebra::remap(x, left), FieldAlgebra::remap(y, right)),
                       1);
  }
  return out;
}

/// W x = scale (hatZ + sum_s y_s E dx/dg_s) + updates: g_s the Gaussian of W' y_s, made before x
/// (docs/theory.md, "The limit of a Tensor Program": Z = hatZ + dotZ).
Field MomentEngine::multiply(const MatrixVersion& w, NodeId x_node, bool transposed) {
  const auto x = std::make_shared<const Field>(operand(x_node));
  Field out{x->columns, {}};
  if (w.scale != 0) out = gaussian_part(w, x_node, x, transposed);
  for (const auto& u : w.updates) {
    const Field &onto = transposed ? *u.x : *u.d, &with = transposed ? *u.d : *u.x;
    const Moment m = expectations_.cross(*x, with);
    Field change = algebra_.combine(u.c * m.value, onto);
    change.method = weaker(change.method, m.method);
    change.relative += m.error / std::max(m.value.cwiseAbs().maxCoeff(), 1e-300);
    out = algebra_.add(std::move(out), change, 1);
  }
  out.relative = std::max(out.relative, x->relative) + w.relative;
  out.method = weaker(weaker(out.method, x->method), w.method);
  return out;
}

/// The family hatZ^{Wx}; member: which of its variables belongs to each column of x.
int MomentEngine::family_of(const MatrixVersion& w, NodeId x_node,
                            const std::shared_ptr<const Field>& x, bool transposed,
                            std::vector<int>& member) {
  const auto [it, fresh] =
      hats_.try_emplace({w.source, transposed, x_node.value}, store_.families());
  const int family = it->second;
  // Equal columns have equal products, not only up to rounding.
  const std::vector<int> first = algebra_.distinct_columns(*x);
  std::vector<int> kept;
  member.resize(first.size());
  for (std::size_t i = 0; i < first.size(); ++i) {
    if (first[i] == static_cast<int>(i)) kept.push_back(first[i]);
    member[i] =
        first[i] == static_cast<int>(i) ? static_cast<int>(kept.size() - 1) : member[at(first[i])];
  }
  if (fresh)
    store_.add_family({static_cast<int>(kept.size()), static_cast<int>(w.source), transposed,
                       kept.size() == first.size()
                           ? x
                           : std::make_shared<const Field>(FieldAlgebra::remap(*x, kept))});
  return family;
}

/// scale (hatZ + dotZ).
Field MomentEngine::gaussian_part(const MatrixVersion& w, NodeId x_node,
                                  const std::shared_ptr<const Field>& x, bool transposed) {
  std::vector<int> member;
  const int family = family_of(w, x_node, x, transposed, member);
  Field hat = algebra_.of_block(store_.insert(
      {x->columns, {}, {{family, std::move(member), Eigen::VectorXd::Ones(x->columns), {}}}}));
  return algebra_.times(
      correction(w, *x, transposed, std::move(hat)),
      algebra_.constant(std::vector<double>(static_cast<std::size_t>(x->columns), w.scale)));
}

/// hatZ + dotZ^{Wx}, dotZ = sum_s y_s E dx/dg_s over all earlier products g = W' y (docs/theory.md,
/// "The limit of a Tensor Program").  x depends on g through blocks u = L g + ..: with the mean
/// derivative by u of each term of x, E dx/dg = sum_terms c E[dt/du] L.
Field MomentEngine::correction(const MatrixVersion& w, const Field& x, bool transposed, Field hat) {
  const auto opposes = [&](int g) {
    return store_.family(g).matrix == static_cast<int>(w.source) &&
           store_.family(g).transposed != transposed;
  };
  std::vector<std::pair<const Term*, ExpectedDerivative>> all;
  for (const Term& t : x.terms)
    for (ExpectedDerivative& one : expectations_.slopes(t, x.columns, [&](const Factor&f, bool) {
           return std::any_of(store_.block(f.block).parts.begin(),
                              store_.block(f.block).parts.end(),
                              [&](const LinearPart& p) { return opposes(p.family); });
         }))
      all.emplace_back(&t, std::move(one));
  std::set<int> opposites;
  for (const auto& [t, one] : all)
    for (const LinearPart& p : store_.block(one.u.block).parts)
      if (opposes(p.family)) opposites.insert(p.family);
  for (const int g : opposites) {
    const GaussianFamily opposite = store_.family(g);
    Matrix derivative;  // as large as a kernel, and often 0
    MomentMethod method = MomentMethod::kExact;
    double error = 0;
    for (const auto& [t, one] : all) {
      const auto& [u, m] = one;
      for (const LinearPart& p : store_.block(u.block).parts) {
        if (p.family != g) continue;
        method = weaker(method, m.method);
        error = std::max(error, m.error);
        if ((m.value.array() == 0).all()) continue;
        if (derivative.size() == 0) derivative = Matrix::Zero(x.columns, opposite.size);
        for (int j = 0; j < x.columns; ++j) {
          const double e = m.entry(j, 0) * t->at_column(j);
          const int column = u.column(j);
          if (p.selection())
            derivative(j, p.index[at(column)]) += e * p.scale(column);
          else
            derivative.row(j) += e * p.dense.row(column);
        }
      }
    }
    if (derivative.size() == 0 || (derivative.array() == 0).all()) continue;
    Field dot = algebra_.combine(derivative, *opposite.x);
    dot.method = weaker(dot.method, method);
    dot.relative += error / derivative.cwiseAbs().maxCoeff();
    hat = algebra_.add(std::move(hat), dot, 1);
  }
  return hat;
}

}  // namespace tplimit::moments
