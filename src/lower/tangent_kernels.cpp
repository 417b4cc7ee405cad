#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "lower/lowerer.hpp"
#include "tplimit/ir/functions.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/gaussian_outputs.hpp"
#include "tplimit/passes/matrix_algebra.hpp"

// ntk(f, X, X2) and nngp(f, X, X2): written out as averages of gradients of one sample, batched
// over all samples.
namespace tplimit::lowering {

using ir::Fn;

namespace {

/// A summand of a gradient, sum_s left[s] (x) right[s]: s runs over all finite axes of both for
/// width matrices (`terms` of them), else over nothing.  An invalid `right` stands for 1.
struct GradientTerm {
  NodeId left, right;
  std::int64_t terms = 1;
};

/// A gradient built from products of a coordinate vector with data, d x', as those factors: their
/// Gram matrices are small, the gradients of all samples are not.  False if it is anything else.
bool factor(ir::Builder& b, NodeId id, NodeId coefficient, std::vector<GradientTerm>& out) {
  const ir::Node node = b.node(id);  // a copy: the program grows
  if (const auto* m = std::get_if<ir::Map>(&node.op);
      m && m->fn == Fn::kAdd && b.type(node.in[0]) == node.type && b.type(node.in[1]) == node.type)
    return factor(b, node.in[0], coefficient, out) && factor(b, node.in[1], coefficient, out);
  if (const auto* s = std::get_if<ir::Scale>(&node.op))
    return factor(b, node.in[0], b.scale(s->factor, s->power, coefficient), out);
  const auto* c = std::get_if<ir::Contract>(&node.op);
  if (!c || c->batch != 0 || c->average) return false;
  const ir::Dims dims = b.type(node.in[0]).dims;
  const bool outer = ir::size_of({dims.end() - c->contracted, dims.end()}) == 1;
  if (outer) out.push_back({b.times(coefficient, node.in[0]), node.in[1]});
  return outer;
}

std::vector<GradientTerm> terms_of(ir::Builder& b, const Derivative& d) {
  std::vector<GradientTerm> out;
  for (const OuterTerm& t : d.outer)
    out.push_back({b.times(t.coefficient, t.d), t.x, ir::size_of(b.type(t.d).dims)});
  if (d.tensor.valid() && !factor(b, d.tensor, b.constant(1), out)) out = {{d.tensor, {}}};
  return out;
}

/// x [P, s.., k..], y [Q, t.., k..] -> [P, s, Q, t]: sums over coordinates and the other axes.
NodeId inner_products(ir::Builder& b, NodeId x, std::int64_t s, NodeId y, std::int64_t t) {
  const auto flat = [&](NodeId v, std::int64_t terms) {
    const ir::Dims dims = b.type(v).dims;
    return b.reshape(v, {dims[0], terms, ir::size_of(dims) / dims[0] / terms});
  };
  const bool width = b.type(x).width && b.type(y).width;
  return b.scale(1, width ? 1 : 0, b.contract(flat(x, s), flat(y, t), 0, 1, width));
}

}  // namespace

/// A model's outputs, f(X)[p] and f(X2)[q], behind one scalar node.
///
/// Where an output depends on its own sample only, the scalar is the output for one sample, and a
/// side is this sample batched over X or X2.  Where a model mixes samples (batch normalisation), it
/// is sum_p w_p f(X)[p] + sum_q w_q f(X2)[q], and a side is the batch of the unit vectors w: the
/// whole Jacobian.  The samples are placeholders until then, so that samples which are parameters,
/// or computed from some, are no parameters of the model.  Of k outputs for each sample, the scalar
/// is their sum with weights, and a side is batched over the unit vectors of weights as well: row
/// p k + i is output i of sample p.
struct Lowerer::SampleModel {
  NodeId output;
  std::int64_t outputs = 1;          ///< k
  NodeId weights;                    ///< of the outputs of one sample, if k > 1
  NodeId sample;                     ///< what takes a value for each row: one sample, or w
  NodeId first, second;              ///< the values that it takes, [P, ..] and [Q, ..]
  std::map<NodeId, NodeId> samples;  ///< placeholders of all samples and these
  std::int64_t rows, columns;
  std::vector<NodeId> batch(ir::Builder& b, std::vector<NodeId> values, bool left) const {
    if (!samples.empty()) values = substituted(b, values, samples);
    if (auto error = unbatchable(b, values, {sample})) throw Rejection{*error, false};
    if (weights.valid())
      values = batched(b, values, outputs, {{weights, identity_matrix(b, outputs)}});
    values = batched(b, values, samples_of(left), {{sample, left ? first : second}});
    if (!weights.valid()) return values;
    for (NodeId& x : values) {  // [P, k, ..] -> [P k, ..]
      Dims dims = b.type(x).dims;
      dims[1] *= dims[0];
      dims.erase(dims.begin());
      x = b.reshape(x, std::move(dims));
    }
    return values;
  }
  [[nodiscard]] std::int64_t samples_of(bool left) const {
    return (left ? rows : columns) / (weights.valid() ? outputs : 1);
  }
  /// count rows of the unit matrix, from `start` on.
  static NodeId unit_vectors(ir::Builder& b, std::int64_t total, std::int64_t start,
                             std::int64_t count) {
    std::vector<double> unit(static_cast<std::size_t>(count * total), 0.0);
    for (std::int64_t k = 0; k < count; ++k)
      unit[static_cast<std::size_t>(k * total + start + k)] = 1;
    return b.constant(std::move(unit), {count, total});
  }
  /// [P k, Q k] -> [P, Q, k, k], or [P, Q].
  [[nodiscard]] Tensor kernel(ir::Builder& b, NodeId pairs) const {
    if (outputs == 1) return {pairs, {{false, rows}, {false, columns}}};
    const std::int64_t p = rows / outputs, q = columns / outputs;
    return {b.permute(b.reshape(pairs, {p, outputs, q, outputs}), {0, 2, 1, 3}),
            {{false, p}, {false, q}, {false, outputs}, {false, outputs}}};
  }
};

Lowerer::SampleModel Lowerer::sample_model(const ast::Call& call, Span span) {
  const std::string& what = call.callee.name;
  if (call.args.size() < 2 || call.args.size() > 3 || !call.named.empty())
    fail("E2109", fmt::format("'{}' takes a model and one or two arrays of samples", what), span,
         "", fmt::format("its form: {0}(f, X) or {0}(f, X, X2)", what));
  const Value given = evaluate(*call.args[0]);
  const auto* model = given.as<Callable>();
  if (!model || !model->definition)
    fail("E2131", fmt::format("the first argument of '{}' is the name of a model", what),
         call.args[0]->span, "", fmt::format("model f(x) {{ .. return .. }}, then {}(f, X)", what));
  const auto& params = model->definition->text->params;
  if (params.empty() || (params.size() > 1 && !params[1].otherwise))
    fail("E2131", fmt::format("'{}' takes a model of one argument, the samples", what),
         call.args[0]->span);
  const auto samples = [&](std::size_t k) {
    const Tensor x = finite(evaluate(*call.args[k]), call.args[k]->span, "an array of samples");
    if (x.axes.empty())
      fail("E2131", "samples stand along the first axis", call.args[k]->span,
           "this is a single number", "write X : [samples, features]");
    return x;
  };
  const Tensor x = samples(1), y = call.args.size() == 3 ? samples(2) : x;
  if (!std::equal(x.axes.begin() + 1, x.axes.end(), y.axes.begin() + 1, y.axes.end()))
    fail("E2202", "both arrays need samples of one shape", call.args[2]->span,
         fmt::format("{} and {}", text(x.axes), text(y.axes)));
  SampleModel out;
  out.rows = x.axes[0].size;
  out.columns = y.axes[0].size;
  std::vector<Tensor> sides{x};
  if (y.node != x.node) sides.push_back(y);
  if (joint_model(*model, sides, span, out)) return out;

  // One sample as a batch of one: models are written for leading batch axes.
  Axes one = x.axes;
  one[0].size = 1;
  ir::Builder& b = build(span);
  const Tensor sample = placeholder(one);
  out.sample = sample.node;
  const auto with_one = [&](const Tensor& t) {
    ir::Dims dims = b.type(t.node).dims;
    dims.insert(dims.begin() + 1, 1);
    return b.reshape(t.node, dims);
  };
  out.first = with_one(x);
  out.second = with_one(y);
  const std::vector<Value> results = [&] {
    try {
      return call_with(*model, {Value{sample}}, span);
    } catch (Rejection& r) {
      if (!r.silent && x.axes.size() == 1)
        r.diagnostic.notes.push_back(
            {fmt::format(
                 "the first axis of this is that of samples: {0} of them, without features; "
                 "one sample of {0} features is [[..]]",
                 out.rows),
             call.args[1]->span});
      throw;
    }
  }();
  const Tensor first = finite(results[0], span, "the first value of the model");
  out.outputs = ir::size_of(finite_dims(first.axes));
  build(span);
  if (out.outputs == 1) {
    out.output = b.reshape(first.node, {});
    return out;
  }
  if (first.axes.size() != 2 || first.axes[0].size != 1)
    fail("E2131", fmt::format("'{}' needs one output for each sample, or k of them", what), span,
         fmt::format("for one sample the model's first value has shape {}", text(first.axes)),
         "for samples [P, ..] it has the shape [P] or [P, k]");
  out.rows *= out.outputs;
  out.columns *= out.outputs;
  check_size({out.rows, out.columns}, span);
  out.weights = placeholder({{false, out.outputs}}).node;
  out.output = b.contract(out.weights, b.reshape(first.node, {out.outputs}), 0, 1, false);
  return out;
}

/// A finite value that nothing is known of, and that takes no room.
Tensor Lowerer::placeholder(const Axes& axes) {
  const Value one = opaque({Tensor{builder_.constant(1), {}}});
  return {builder_.expand(one.as<Tensor>()->node, false, finite_dims(axes)), axes};
}

/// Fills `out` if the model mixes samples; else leaves it and what has been recorded so far alone.
bool Lowerer::joint_model(const Callable& model, const std::vector<Tensor>& sides, Span span,
                          SampleModel& out) {
  ir::Builder& b = build(span);
  const auto names = program_.names.size(), predictions = program_.predictions.size(),
             warnings = warnings_.size();
  std::vector<NodeId> placeholders, outputs;  // [P, ..], [P k]
  std::int64_t each = 1;                      // outputs of a sample
  bool mixes = false;
  for (const Tensor& x : sides) {
    build(span);
    const Tensor all = placeholder(x.axes);
    placeholders.push_back(all.node);
    try {
      const Tensor f =
          finite(call_with(model, {Value{all}}, span)[0], span, "the first value of the model");
      const std::int64_t count = ir::size_of(finite_dims(f.axes));
      if (f.axes.empty() || f.axes.size() > 2 || f.axes[0].size != x.axes[0].size) break;
      each = count / x.axes[0].size;
      outputs.push_back(build(span).reshape(f.node, finite_dims(f.axes)));
    } catch (const Rejection&) {
      break;  // a model of one sample: it says so below
    }
    mixes = mixes || mixes_rows(b, outputs.back(), placeholders.back());
    outputs.back() = b.reshape(outputs.back(), {each * x.axes[0].size});
  }
  if (!mixes) {
    program_.names.resize(names);
    program_.predictions.resize(predictions);
    warnings_.resize(warnings);
    return false;
  }
  if (outputs.size() != sides.size())
    fail("E2131", "the model mixes samples, and does not give k outputs for each of them", span, "",
         "the first value for samples [P, ..] has the shape [P] or [P, k]");
  std::int64_t total = 0;
  for (const NodeId f : outputs) total += b.type(f).dims[0];
  check_size({total, total}, span);
  build(span);
  const NodeId weights = placeholder({{false, total}}).node;
  std::int64_t first = 0;
  for (std::size_t k = 0; k < sides.size(); ++k) {
    const std::int64_t count = each * sides[k].axes[0].size;
    std::vector<std::int64_t> own(static_cast<std::size_t>(count));
    std::iota(own.begin(), own.end(), first);
    const NodeId part = b.sum(b.times(b.gather(weights, 0, own), outputs[k]), 0);
    out.output = k == 0 ? part : b.plus(out.output, part);
    out.samples[placeholders[k]] = sides[k].node;
    (k == 0 ? out.first : out.second) = SampleModel::unit_vectors(b, total, first, count);
    first += count;
  }
  if (sides.size() == 1) out.second = out.first;
  out.sample = weights;
  out.outputs = each;
  out.rows *= each;
  out.columns *= each;
  return true;
}

/// <df(x)/dtheta, df(x')/dtheta> [P, Q] for each tensor or matrix theta; invalid if f does not
/// depend on it.  All together: what their derivatives share is evaluated for the samples once.
std::vector<NodeId> Lowerer::gradient_kernels(const SampleModel& f,
                                              const std::vector<Derivative>& derivatives) {
  ir::Builder& b = builder_;
  std::vector<std::vector<GradientTerm>> all;
  std::vector<NodeId> factors;
  for (const Derivative& d : derivatives) {
    if (!d.versions.empty())
      fail("E2131",
           "kernels of models with norms or inner products of width matrices are not known",
           b.node(f.output).span, "",
           "in the limit a norm stays what it is at the start: write its value as a number");
    all.push_back(terms_of(b, d));
    for (const GradientTerm& t : all.back()) {
      factors.push_back(t.left);
      factors.push_back(t.right.valid() ? t.right : b.constant(1));
    }
  }
  std::vector<NodeId> out(derivatives.size());
  if (factors.empty()) return out;
  const std::vector<NodeId> left = f.batch(b, factors, true), right = f.batch(b, factors, false);
  std::size_t first = 0;
  for (std::size_t k = 0; k < all.size(); first += 2 * all[k++].size()) {
    const std::vector<GradientTerm>& terms = all[k];
    for (std::size_t i = 0; i < terms.size(); ++i)
      for (std::size_t j = 0; j < terms.size(); ++j) {
        const std::int64_t s = terms[i].terms, t = terms[j].terms;
        NodeId kernel = inner_products(b, left[first + 2 * i], s, right[first + 2 * j], t);
        if (terms[i].right.valid())
          kernel = b.times(
              kernel, inner_products(b, left[first + 2 * i + 1], s, right[first + 2 * j + 1], t));
        kernel = b.sum(b.sum(kernel, 3), 1);
        out[k] = out[k].valid() ? b.plus(out[k], kernel) : kernel;
      }
  }
  return out;
}

/// sum over parameters theta of lr_theta <df(x)/dtheta, df(x')/dtheta>.
Value Lowerer::builtin_ntk(const ast::Call& call, Span span) {
  const SampleModel f = sample_model(call, span);
  ir::Builder& b = build(span);
  NodeId sum;
  const auto reached = behind(f.output);
  for (const auto& name : variable_order_) {
    const Variable& variable = variables_.at(name);
    if (!variable.trained || !depends_on_current(f.output, reached, name, span)) continue;
    Result<std::vector<Derivative>> gradients =
        gradient(b, f.output, version_nodes(globals_.at(name).value), current_versions());
    if (!gradients) throw not_differentiable(gradients.errors()[0], span);
    for (const NodeId own : gradient_kernels(f, *gradients)) {
      if (!own.valid()) continue;  // a matrix of an array that the model does not use
      const NodeId kernel = b.times(scalar(rate_of(variable, span), span, "a learning rate"), own);
      sum = sum.valid() ? b.plus(sum, kernel) : kernel;
    }
  }
  if (!sum.valid())
    fail("E2328", "the model depends on no parameter", call.args[0]->span, "",
         "a value that is trained is declared with param");
  return {recorded(f.kernel(b, sum))};
}

/// The covariance of the Gaussian limit of f(x): f is linear in centred Gaussian readouts r that
/// nothing else depends on, and the covariance is the sum over them of <df(x)/dr, df(x')/dr>, r of
/// variance 1.
Value Lowerer::builtin_nngp(const ast::Call& call, Span span) {
  const SampleModel f = sample_model(call, span);
  ir::Builder& b = build(span);
  NodeId sum, rest = f.output;
  const auto take = [&](NodeId source, std::optional<NodeId> deviation) {
    auto part = tplimit::linear_part(b, rest, source);
    if (!part) return;
    if (deviation) part->slope.tensor = b.times(part->slope.tensor, *deviation);
    const NodeId kernel = gradient_kernels(f, {part->slope})[0];
    sum = sum.valid() ? b.plus(sum, kernel) : kernel;
    rest = part->at_zero;
  };
  std::vector<NodeId> gaussians = readout_candidates(b.program());
  std::erase_if(gaussians, [&](NodeId source) { return b.type(source).matrix; });
  for (const NodeId source : gaussians) take(source, std::nullopt);
  for (const auto& [name, variable] : variables_)
    if (const Tensor* t = globals_.at(name).value.as<Tensor>();
        t && variable.deviation && variable.old_versions.empty())
      take(t->node, variable.deviation);
  if (!sum.valid())
    fail("E2132", "the output is not linear in a centred Gaussian", call.args[0]->span, "",
         "nngp needs a random readout such as v @ z / sqrt(n); the limit of v @ z / n is a number, "
         "not a Gaussian");
  if (depends_on(b, {rest}, gaussians))
    fail("E2132", "a part of the output is not linear in a centred Gaussian", call.args[0]->span,
         "", "its fluctuations are not covered by a kernel");
  try {
    const NodeId deviation = b.minus(f.output, rest);
    const NodeId left = b.reshape(f.batch(b, {deviation}, true)[0], {f.rows, 1}),
                 right = b.reshape(f.batch(b, {deviation}, false)[0], {f.columns, 1});
    sum = output_kernel(sum, b.contract(left, right, 0, 1, false));
  } catch (const Rejection&) {
    // Only the kernel can be batched: comparisons keep to it.
  }
  return {recorded(f.kernel(b, sum))};
}

/// A node of its own, for tangent kernels have the same average as a part of theirs.
NodeId Lowerer::output_kernel(NodeId average, NodeId product) {
  for (const ir::OutputKernel& k : program_.output_kernels)
    if (k.product == product && program_[k.kernel].in[0] == average) return k.kernel;
  const NodeId kernel = builder_.add(ir::Parameter{parameter_count_++}, {average});
  program_.output_kernels.push_back({kernel, product});
  return kernel;
}

Tensor Lowerer::recorded(Tensor kernel) {
  kernel_nodes_.push_back(kernel.node);
  return kernel;
}

/// Kernels stand for their limits, averages over coordinates.  By what all coordinates share, the
/// derivative of an average of a function that jumps has a part that the derivative almost
/// everywhere lacks: E2501.  Returns whether the loss depends on a target through a kernel.
bool Lowerer::differentiates_kernel(NodeId loss, const std::vector<NodeId>& targets,
                                    const std::vector<NodeId>& fixed, Span span) const {
  if (kernel_nodes_.empty()) return false;
  std::vector<char> active(loss.value + 1, 0), stops = active, used = active, inside = active;
  const auto mark = [&](std::vector<char>& marks, NodeId id) {
    if (id <= loss) marks[id.value] = 1;
  };
  for (const NodeId id : fixed) mark(stops, id);
  for (const NodeId t : targets)
    if (!builder_.type(t).width && !builder_.type(t).matrix) mark(active, t);
  for (std::uint32_t k = 0; k <= loss.value; ++k) {
    const ir::Node& node = builder_.node({k});
    if (stops[k] || std::holds_alternative<ir::Stop>(node.op)) continue;
    for (const NodeId in : node.in) active[k] |= active[in.value];
  }
  for (const NodeId id : kernel_nodes_) mark(inside, id);
  mark(used, loss);
  bool found = false;
  for (std::uint32_t k = loss.value + 1; k-- > 0;) {
    if (!used[k] || !active[k]) continue;
    const ir::Node& node = builder_.node({k});
    found = found || inside[k];
    const auto* m = std::get_if<ir::Map>(&node.op);
    if (inside[k] && node.type.width && m && ir::first_delta(*m) == 1)
      throw Rejection{
          Diagnostic::error("E2501", "the limit of a kernel has another derivative here")
              .at(span)
              .with_label(fmt::format("the kernel averages '{}', which jumps", written(m->fn)))
              .with_help("kernels of smooth activations (tanh, erf, gelu) can be differentiated, "
                         "nngp of relu once; stop(..) keeps a kernel constant"),
          false};
    for (const NodeId in : node.in) {
      used[in.value] = 1;
      inside[in.value] |= inside[k];
    }
  }
  return found;
}

// ---- training under a fixed kernel
// -------------------------------------------------------------------

/// Of targets with independent noise: its variance stands on the diagonal.
NodeId Lowerer::with_noise(Arguments& a, const Tensor& kernel) {
  const auto it = a.named.find("noise");
  if (it == a.named.end()) return kernel.node;
  const auto& [value, where] = it->second;
  if (a.named.contains("reg"))
    fail("E2133", "'reg' and 'noise' exclude each other", where, "",
         "reg = r adds r tr(Theta) / P to the diagonal, noise = v adds v");
  if (const auto* n = value.as<Number>(); n && !(n->value >= 0))
    fail("E2133", "'noise' is negative or not a number", where,
         fmt::format("this is {}", n->value));
  const NodeId variance = scalar(value, where, "the variance of noise");
  ir::Builder& b = build(a.span);
  return b.plus(kernel.node, b.times(variance, identity_matrix(b, kernel.axes[0].size)));
}

/// A_t = Theta_x Theta^-1 (1 - G_t) [Q, P]; the loss is mse, so the rate per sample is lr / P.
Tensor Lowerer::training_operator(Arguments& a, Tensor& kernel, Tensor& across) {
  kernel = square_matrix(a);
  across =
      finite(a.positional[1], a.spans[1], "a kernel of other samples with the training samples");
  if (kernel.axes.size() != 2 || across.axes.size() != 2 ||
      across.axes[1].size != kernel.axes[0].size)
    fail("E2202", "kernels of training samples do not fit together", a.span,
         fmt::format("{} and {}", text(kernel.axes), text(across.axes)),
         "the first is [P, P], as ntk(f, X), the second [Q, P], as ntk(f, X2, X)");
  const auto option = [&](const char* name, double otherwise) {
    const auto it = a.named.find(name);
    if (it == a.named.end()) return otherwise;
    const double x = plain_number(it->second.first, it->second.second, name);
    if (!(x >= 0))
      fail("E2133", fmt::format("'{}' is negative or not a number", name), it->second.second,
           fmt::format("this is {}", x));
    return x;
  };
  const double forever = std::numeric_limits<double>::infinity();
  const bool flow = a.named.contains("time");
  if (flow && a.named.contains("steps"))
    fail("E2133", "'steps' and 'time' exclude each other", a.named.at("time").second, "",
         "steps = k: gradient descent; time = t: gradient flow");
  const double time = option(flow ? "time" : "steps", forever), lr = option("lr", 0),
               ridge = option("reg", 0);
  if (!flow && std::isfinite(time) && time != std::floor(time))
    fail("E2133", "the number of steps is an integer", a.named.at("steps").second,
         fmt::format("this is {}", time));
  if (std::isfinite(time) && !a.named.contains("lr"))
    fail("E2133", "a rate is missing", a.span, "",
         "lr = rate; only the limit of long training does not depend on it");
  if (std::isinf(lr) || std::isinf(ridge))
    fail("E2133", "a rate or a regularisation is infinite", a.span);
  const NodeId theta = with_noise(a, kernel);
  return {build(a.span).add(ir::TrainingOperator{lr / static_cast<double>(kernel.axes[0].size),
                                                 time, ridge, flow},
                            {theta, across.node}),
          across.axes};
}

/// Mean of the ensemble of trained networks: A_t y.
Value Lowerer::builtin_predict_gd(Arguments& a) {
  Tensor kernel, across;
  const Tensor op = training_operator(a, kernel, across);
  const Tensor y = finite(a.positional[2], a.spans[2], "targets");
  if (y.axes.empty() || y.axes.size() > 2 || y.axes[0].size != kernel.axes[0].size)
    fail("E2202", "targets stand along the first axis, one for each training sample", a.spans[2],
         fmt::format("{} for {} samples", text(y.axes), kernel.axes[0].size));
  ir::Builder& b = build(a.span);
  Axes axes{op.axes[0]};
  if (y.axes.size() == 2) axes.push_back(y.axes[1]);
  return {Tensor{
      b.contract(op.node, y.axes.size() == 2 ? b.permute(y.node, {1, 0}) : y.node, 0, 1, false),
      axes}};
}

/// K_xx + A K A' - A K_x' - K_x A', K the covariance of the initial outputs, and of the noise that
/// each network of the ensemble has in its targets: with Theta = K, of the posterior.
Value Lowerer::builtin_predict_gd_covariance(Arguments& a) {
  Tensor kernel, across;
  const Tensor op = training_operator(a, kernel, across);
  const auto given = [&](std::size_t k, const Axes& axes) {
    const Tensor x = finite(a.positional[k], a.spans[k], "a covariance of initial outputs");
    if (x.axes != axes)
      fail("E2202", "covariances of initial outputs do not fit the kernels", a.spans[k],
           fmt::format("{}, expected {}", text(x.axes), text(axes)));
    return x.node;
  };
  const NodeId k = with_noise(a, {given(2, kernel.axes), kernel.axes}), k_x = given(3, across.axes),
               k_xx = given(4, {across.axes[0], across.axes[0]});
  ir::Builder& b = build(a.span);
  const auto product = [&](NodeId x, NodeId y) { return b.contract(x, y, 0, 1, false); };  // x y'
  const NodeId mixed = product(k_x, op.node);
  const NodeId sum = b.plus(k_xx, product(product(op.node, k), op.node));
  return {Tensor{b.minus(b.minus(sum, mixed), b.permute(mixed, {1, 0})),
                 {across.axes[0], across.axes[0]}}};
}

/// 2 P / lambda_max: beyond, full-batch descent on mse diverges.
Value Lowerer::builtin_largest_rate(Arguments& a) {
  const Tensor kernel = square_matrix(a);
  if (kernel.axes.size() != 2)
    fail("E2216", "'largest_rate' takes one kernel", a.spans[0],
         "this has shape " + text(kernel.axes));
  ir::Builder& b = build(a.span);
  const std::int64_t p = kernel.axes[0].size;
  const NodeId largest = b.reshape(b.gather(b.add(ir::Eigvals{}, {kernel.node}), 0, {p - 1}), {});
  return {Tensor{b.map(Fn::kDiv, {b.constant(2.0 * static_cast<double>(p)), largest}), {}}};
}

}  // namespace tplimit::lowering
