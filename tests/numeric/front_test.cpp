#include <gtest/gtest.h>

#include "tests/support/run.hpp"
#include "tplimit/passes/theory_checks.hpp"

// What the front end makes of programs: derivatives, conditions known before the run, kernels of
// models.
namespace tplimit {
namespace {

using test::parsed;
using test::report;

LimitResult limit_of(const std::string& text, bool lazy = false) {
  const Source source("test.tp", text);
  Ablations ablations;
  ablations.lazy = lazy;
  auto module = parse(source, {}, ablations);
  if (!module) throw std::runtime_error(render(module.errors(), source));
  EvaluateOptions options;
  options.particles = 2048;
  options.randomisations = 4;
  return test::limit_of(*module, options);
}
std::vector<double> values(const LimitResult& result, const std::string& name) {
  return report(result, name).value;
}
double value(const std::string& text, const std::string& name = "r") {
  return values(limit_of(text), name)[0];
}
std::string error_of(const std::string& text, bool lazy = false) {
  const Source source("test.tp", text);
  Ablations ablations;
  ablations.lazy = lazy;
  const auto module = parse(source, {}, ablations);
  return module ? "" : render(module.errors(), source);
}
void expect_equal(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t k = 0; k < a.size(); ++k)
    EXPECT_NEAR(a[k], b[k], tolerance * (1 + std::abs(b[k]))) << "entry " << k;
}

// ---- lazy training

std::string lazy_network(const std::string& phi, const std::string& after) {
  return fmt::format(R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
data X2 = [[0.3, 0.3], [1, -1]]
parametrization mup
param U : input [n, 2] ~ normal(0, 1)
param W : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
param c : bias [] ~ normal(0, 0)
fn phi(z) = {}
model f(x) {{ return v @ phi(W @ phi(U @ x)) + c }}
for t in 0..3 {{
  out = f(X)
  report out
  step sgd(mse(out, y), lr = 0.3)
}}
report r = f(X2)
{}
)",
                     phi, after);
}

TEST(Lazy, ConditionsAreAnyNumbers) {
  const auto leaky = limit_of(lazy_network("leaky_relu(z, 0.1)", ""), true);
  for (const char* phi : {"where(2 * step(z), z, 0.1 * z)", "where(-0.5 * (z > 0), z, 0.1 * z)",
                          "max(z, 0.1 * z)", "-min(-z, -0.1 * z)", "relu(z) - 0.1 * relu(-z)"}) {
    const auto same = limit_of(lazy_network(phi, ""), true);
    SCOPED_TRACE(phi);
    expect_equal(values(same, "out"), values(leaky, "out"), 1e-9);
    expect_equal(values(same, "r"), values(leaky, "r"), 1e-9);
  }
}

TEST(Lazy, OutputsWrittenOnceMoreAreOutputs) {
  const auto result =
      limit_of(lazy_network("tanh(z)",
                            "report a = v @ tanh(W @ tanh(U @ X2)) + c\nreport b = 3 * f(X2) - 2 * "
                            "f(X2), moved = c\nz = tanh(W @ tanh(U @ X2))\nreport d = E(v * z) * n "
                            "+ c, e = f(X2[..1])[0], g = stack(f(X2)[0], f(X2)[1])"),
               true);
  const auto r = values(result, "r");
  EXPECT_GT(std::abs(r[0]), 1e-3);
  for (const char* name : {"a", "b", "d", "g"}) expect_equal(values(result, name), r, 1e-9);
  EXPECT_NEAR(values(result, "e")[0], r[0], 1e-9);
  EXPECT_GT(std::abs(values(result, "moved")[0]), 1e-3);
}

TEST(Lazy, WhatMayBeAnOutputIsRefused) {
  EXPECT_NE(error_of(lazy_network("tanh(z)", "report v @ tanh(U @ X2)"), true).find("E2149"),
            std::string::npos);
  EXPECT_EQ(error_of(lazy_network("tanh(z)", "report E(tanh(U @ X2)^2), E(v^2)"), true), "");
}

// Tangents and cotangents by one rule: f_0 + <df, -lr (f_0 - 1) df> after one step, for every
// operation.
TEST(Lazy, TangentsAreThoseOfTheGradient) {
  for (const char* f : {"sum(abs(c))",
                        "sum(relu(c) + sign(c) * step(c))",
                        "sum(leaky_relu(c, 0.3))",
                        "sum(elu(c, 2))",
                        "sum(tanh(c) * sigmoid(c))",
                        "sum(softplus(c) / (1 + silu(c)^2))",
                        "sum(gelu(c) - gelu_tanh(c) * erf(c))",
                        "sum(sin(c) * cos(c))",
                        "sum(exp(c)^c)",
                        "sum(log(1 + c^2))",
                        "norm(c)",
                        "sum((2 + c)^-3)",
                        "max(c)",
                        "min(c)",
                        "sum(max(c, 0.1 * c[0]))",
                        "sum(min(c, c[1]))",
                        "sum(mod(c, 0.7))",
                        "sum(mod(1, 0.3 + c^2))",
                        "sum(where(c, c^2, 3 * c))",
                        "sum(where(2 * step(c), c, 0.1 * c))",
                        "sum(where(-c, c^3, c))",
                        "sum(c[0..2] * c[1..3])",
                        "einsum(\"i,i,j->\", c, c, c)",
                        "sum(max(stack(c, c^2, 1 - c), axis = 0))",
                        "sum(stack(c, 2 * c)')",
                        "sum(concat(c, c * c[2])^2)",
                        "c @ (stack(c, c^2)' @ [1, 2])",
                        "clip(c[0], -0.1, 0.1) + c[1] * (c[2] > 0)",
                        "E(tanh(c[0] * u) * u * c[1])",
                        "sum(E(u * c + u^2)) + E((c[2] * W @ (c[1] * u))^2)"}) {
    const std::string text = fmt::format(
        "width n\nparam c : [3] ~ normal(0.2, 1)\nrandom u : [n] ~ normal(0, 1)\nrandom W : [n, n] "
        "~ normal(0, 1 / n)\nf = {0}\ng = grad(f, c)\nreport expected = f - 0.1 * (f - 1) * "
        "sum(g^2)\nstep sgd(mse([f], [1]), lr = 0.1)\nreport r = {0}\n",
        f);
    SCOPED_TRACE(f);
    const auto result = limit_of(text, true);
    EXPECT_NEAR(
        values(result, "r")[0], values(result, "expected")[0],
        1e-9 * (1 + std::abs(values(result, "expected")[0])) + 4 * report(result, "r").error[0]);
  }
}

// ---- conditions known before the run

TEST(Where, ConditionsKnownBeforeTheRunAreDecided) {
  const std::string head =
      "width n\ndata X = [[1, 0.5], [-0.3, 1]]\nconst act = 0\nparam U : [n, 2] ~ normal(0, "
      "1)\nparam W : [n, n] ~ normal(0, 1)\nparam v : [n] ~ normal(0, 1)\n";
  const std::string model =
      "model f(x) { return v @ phi(W @ phi(U @ x) / sqrt(n)) / sqrt(n) }\nreport r = ntk(f, X)\n";
  const auto tanh = limit_of(head + "fn phi(z) = tanh(z)\n" + model);
  for (const char* phi :
       {"where(act == 0, tanh(z), relu(z))", "where([act == 1], exp(n * z), tanh(z))",
        "where(zeros(n), 1 / z, tanh(z))", "where(n, tanh(z), relu(z))"}) {
    SCOPED_TRACE(phi);
    const auto same = limit_of(head + "fn phi(z) = " + phi + "\n" + model);
    EXPECT_EQ(values(same, "r"), values(tanh, "r"));
  }
}

// ---- functions with kinks

TEST(Kinks, OneTableForAllWaysToWriteThem) {
  const auto kinks = [](const std::string& phi) {
    const auto module = parsed(
        "width n\nconst act = 0\nrandom x : [2, n] ~ normal(0, 1)\nparam W : [n, n] ~ normal(0, 1 "
        "/ n)\ny = W @ x\nreport E((W' @ (" +
        phi + "))^2)\n");
    return theory_checks(module.program).size();
  };
  for (const char* phi : {"relu(y)", "where(y > 0, y, 0)", "where(0 >= y, 0, y)", "max(y, 0)",
                          "y * (y > 0)", "abs(y)", "mod(y, 1)", "floor(y)", "elu(y, 2)",
                          "max(y, axis = 0)", "clip(y, -10, 20 + 0 * y)"})
    EXPECT_GE(kinks(phi), 1u) << phi;
  for (const char* phi : {"tanh(y)", "elu(y)", "where(act == 0, tanh(y), relu(y))", "y^2"})
    EXPECT_EQ(kinks(phi), 0u) << phi;
}

// ---- subgradients

TEST(Gradient, SubgradientsOfMaximaHaveWeightsOfSumOne) {
  const std::string head =
      "width n\nparam c : [3] ~ normal(0, 0)\nparam d : [2, 3] ~ normal(0, 0)\n";
  for (const char* loss :
       {"max(c)", "min(c)", "max(c[0..2])", "max(c[0], c[1])", "min(c[1], c[2])",
        "max(stack(c, c))", "max(max(stack(c, c), axis = 0))", "max(concat(c, [-1, 0]))"}) {
    const double share = std::string(loss).find("[-1, 0]") != std::string::npos
                             ? 0.75
                             : 1;  // a constant has a share of its own
    EXPECT_DOUBLE_EQ(value(head + "report r = sum(grad(" + loss + ", c))\n"), share) << loss;
  }
  EXPECT_DOUBLE_EQ(value(head + "report r = sum(grad(sum(max(d, axis = 1)), d))\n"), 2);
  EXPECT_DOUBLE_EQ(value(head + "report r = sum(grad(sum(min(d, axis = 0)), d))\n"), 3);
}

TEST(Gradient, ByValuesThatTheBuilderMayFold) {
  const std::string head = "width n\ndata X = [[1, 2], [3, 4]]\nrandom u : [2, n] ~ normal(0, 1)\n";
  EXPECT_DOUBLE_EQ(value(head + "x = 1 * X\nreport r = sum(grad(sum(x^2), x))\n"), 20);
  EXPECT_DOUBLE_EQ(value(head + "report r = sum(grad(sum(X^3), X))\n"), 3 * 30);
  EXPECT_DOUBLE_EQ(
      value(
          head +
          "y = 2 * u\nreport r = E(sum(grad(n * E(sum(3 * y * u, axis = 0)), y) * u, axis = 0))\n"),
      6);
  EXPECT_DOUBLE_EQ(value(head + "z = zeros(2, n)\nreport r = E(sum(grad(n * E(sum(u * (1 + z), "
                                "axis = 0)), z) * u, axis = 0))\n"),
                   2);
  EXPECT_DOUBLE_EQ(
      value(head + "model g(a) { return sum(grad(sum(a^2), a)) }\nreport r = g([1, 2])\n"), 6);
  EXPECT_DOUBLE_EQ(
      value(head +
            "x = 1 * X\nfor t in 0..2 { x = x - 0.25 * grad(sum(x^2), x) }\nreport r = sum(x)\n"),
      2.5);
}

// ---- kernels of models

const char* const kNetwork = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.7]]
data Z = [[0.6, 0.1], [0.4, -1]]
param U : [n, 2] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
model g(x) { return v @ erf(U @ x) / sqrt(n) }
)";

TEST(Kernels, DerivativesByInputs) {
  for (const char* kernel : {"nngp", "ntk"}) {
    const std::string k = kernel;
    const auto at = [&](double h) {
      return value(fmt::format("{}x = X + [[{}, 0], [0, 0], [0, 0]]\nreport r = {}(g, x)[0, 1]\n",
                               kNetwork, h, k));
    };
    const double slope = (at(1e-4) - at(-1e-4)) / 2e-4;
    EXPECT_NEAR(
        value(kNetwork + fmt::format("x = 1 * X\nreport r = grad({}(g, x)[0, 1], x)[0, 0]\n", k)),
        slope, 1e-6)
        << k;
    EXPECT_NEAR(value(kNetwork + fmt::format("report r = grad({}(g, X)[0, 1], X)[0, 0]\n", k)),
                slope, 1e-6)
        << k;
    EXPECT_NEAR(
        value(kNetwork +
              fmt::format("x = 1 * X\nreport r = grad({}(g, Z, x)[1, 0], x)[0, 0]\n", k)),
        (value(kNetwork +
               fmt::format("x = X + [[0.0001, 0], [0, 0], [0, 0]]\nreport r = {}(g, Z, x)[1, 0]\n",
                           k)) -
         value(kNetwork +
               fmt::format("x = X - [[0.0001, 0], [0, 0], [0, 0]]\nreport r = {}(g, Z, x)[1, 0]\n",
                           k))) /
            2e-4,
        1e-6)
        << k;
  }
  for (const char* loss :
       {"largest_rate(ntk(g, x))", "sum(predict_gd(ntk(g, x), ntk(g, Z, x), [1, 2, 3]))"})
    EXPECT_NE(
        error_of(kNetwork + fmt::format("x = 1 * X\nreport grad({}, x)\n", loss)).find("E2501"),
        std::string::npos)
        << loss;
}

TEST(Kernels, SamplesThatAreParametersAreNoneOfTheModel) {
  for (const char* kernel : {"nngp", "ntk"}) {
    const auto of = [&](const std::string& samples) {
      return values(
          limit_of(kNetwork + fmt::format("param x : [3, 2] ~ normal(0, 1)\nreport r = {}(g, {})\n",
                                          kernel, samples)),
          "r");
    };
    EXPECT_EQ(of("x"), of("stop(x)"));
    EXPECT_EQ(of("2 * x"), of("stop(2 * x)"));
  }
}

TEST(Kernels, ModelsThatMixSamples) {
  const std::string head = std::string(kNetwork) +
                           "fn normed(h) = h - 0.5 * mean(h, axis = 0)\nmodel b(x) { return v @ "
                           "erf(normed(U @ x)) / sqrt(n) }\n";
  expect_equal(values(limit_of(head + "report r = nngp(b, X)\n"), "r"),
               values(limit_of(head + "report r = gram(erf(normed(U @ X)))\n"), "r"), 1e-9);
  expect_equal(
      values(limit_of(head + "report r = nngp(b, Z, X)\n"), "r"),
      values(limit_of(head + "report r = gram(erf(normed(U @ Z)), erf(normed(U @ X)))\n"), "r"),
      1e-9);
  expect_equal(
      values(limit_of(head + "report r = nngp(b, X[0..1], X)\n"), "r"),
      values(limit_of(head + "report r = gram(erf(normed(U @ X[0..1])), erf(normed(U @ X)))\n"),
             "r"),
      1e-9);
  // <df_p/dtheta, df_q/dtheta>, written out.
  const std::string rows =
      "f = b(X)\nreport r = stack(n * E(grad(f[0], v) * grad(f[1], v)) + n * sum(E(grad(f[0], U)' "
      "* grad(f[1], U)')), n * E(grad(f[2], v)^2) + n * sum(E((grad(f[2], U)')^2)))\n";
  const auto kernel = values(limit_of(head + "report r = ntk(b, X)\n"), "r"),
             expected = values(limit_of(head + rows), "r");
  EXPECT_NEAR(kernel[1], expected[0], 1e-9);
  EXPECT_NEAR(kernel[8], expected[1], 1e-9);
  // Per sample: a norm over its own features, whatever stands around it.
  const std::string own =
      std::string(kNetwork) +
      "model o(x) { s = sqrt(sum(x^2, axis = 1))\n  return v @ erf((U @ x) / s) / sqrt(n) }\n";
  expect_equal(
      values(limit_of(own + "report r = nngp(o, X)\n"), "r"),
      values(limit_of(own + "s = sqrt(sum(X^2, axis = 1))\nreport r = gram(erf((U @ X) / s))\n"),
             "r"),
      1e-9);
}

TEST(Kernels, ModelsThatPredict) {
  const std::string head = std::string(kNetwork) +
                           "data G = [[2, 0.3, 0], [0.3, 1, 0.1], [0, 0.1, 1.5]]\ndata t = [1, -1, "
                           "0.5]\nmodel m(x) { return predict_gd(G, X @ x, t) }\n";
  const auto product =
      values(limit_of(head + "model p(x) { return m(x) * g(x) }\nreport r = nngp(p, Z)\n"), "r");
  expect_equal(
      product,
      values(limit_of(head + "f = m(Z)\nreport r = nngp(g, Z) * einsum(\"p,q->pq\", f, f)\n"), "r"),
      1e-10);
}

TEST(Widths, RejectedDeclarationsOfSeveralUnits) {
  for (const char* law : {"uniform(0, 1)", "normal(0)", "normal(0, -1)"})
    EXPECT_EQ(
        error_of(
            fmt::format("width n, m = 2 n\nrandom y : [m] ~ {}\nreport mse(y, y), E(y), norm(y)\n",
                        law))
            .substr(0, 8),
        "test.tp:")
        << law;
}

TEST(Widths, CallsWithoutArguments) {
  for (const char* call : {"norm()", "E()", "mse()", "stack()", "tanh()"})
    EXPECT_NE(
        error_of(
            fmt::format("width n, m = 2 n\nrandom y : [m] ~ normal(0, 1)\nreport {}, E(y)\n", call))
            .find("E2109"),
        std::string::npos)
        << call;
}

// ---- what is not finite

TEST(Finite, WhatCancelsInTheLimitMayLeaveZeroByZero) {
  const std::string head =
      "width n\nrandom W : [n, n] ~ normal(0, 1 / n)\nrandom x : [2, n] ~ normal(0, 1)\nd = x[0] + "
      "x[1] - x[0] - x[1]\nw = W @ (x[0] + x[1]) - W @ x[0] - W @ x[1]\n";
  for (const char* value :
       {"E(d / sqrt(E(d^2)))", "E(d / abs(d))", "E(w / sqrt(E(w^2)))", "E(d * x[0]) / E(d^2)"})
    for (const Engine engine : {Engine::kAuto, Engine::kMoments}) {
      EvaluateOptions options;
      options.engine = engine;
      options.particles = 1024;
      const auto result = evaluate(test::parsed(head + "report " + value + "\n"), options);
      ASSERT_FALSE(result) << value;
      EXPECT_EQ(result.errors()[0].code, "E4101") << value;
    }
}

TEST(Finite, ZeroTimesWhatIsNotFiniteIsNotZero) {
  const std::string head =
      "width n\ndata X = [[1, 0.5], [0, 0]]\ndata o = [0, 0]\nrandom U : [n, 2] ~ normal(0, "
      "1)\nrandom W : [n, n] ~ normal(0, 1 / n)\nh = U @ X\ns = sqrt(E(h^2))\ng = U @ o\n";
  for (const char* value :
       {"E(h / s)", "gram(h / s)[0]", "E(h * E(h^2)^-1)", "E(h^3 / E(h^2)^2)", "E(log(E(h^2)) * h)",
        "E((W @ (h / s))^3)", "E(relu(h) / E(relu(h)))", "E(where(s > 0, h, h / s))",
        "0 * (1 / norm(E(h^2)[1..2]))", "0 * log(E(h^2))", "0 * (2 * E(h^2)^-1)[1]",
        "E(0 * (h / s))", "0 / E(h^2)", "zeros(2) @ (1 / E(h^2))", "max(E(h / s))", "sum(E(h / s))",
        "E(concat(h / s, h))"})
    EXPECT_NE(error_of(head + "report " + value + "\n").find("E4101"), std::string::npos) << value;
  EXPECT_NE(error_of(head + "report E(g / sqrt(E(g^2)))\n").find("E2404"),
            std::string::npos);  // known as written
  for (const char* value :
       {"E(where(s > 0, h / s, 0))", "E(h / (s + 1e-3))", "E(h[0] / s[0])", "E(h / s)[0]", "E(h)",
        "E(exp(-1 / (s + 1)) * h)", "0 * norm(E(h^2))", "0 * (1 / E(h[0]^2))", "0 / E(h[0]^2)"})
    EXPECT_EQ(error_of(head + "report " + value + "\n"), "") << value;
}

// ---- several files

TEST(Imports, AreTheSameProgramAsTheirText) {
  const std::string body = R"(data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1 / 2), lr = n
param v : [n] ~ normal(0, 1), lr = n
fn phi(x, a = slope) = where(x > 0, x, a * x)
model f(x) = v @ phi(U @ x) / n
)";
  const auto run = [](const std::string& u, const std::string& f) {
    return fmt::format(
        "for t in 0..3 {{\n  out = {1}({0}X)\n  report out\n"
        "  step sgd(mse(out, [1, -1]), lr = 0.3, only = ({0}U, {0}v))\n}}\n"
        "report norm({0}U) / sqrt(n), {0}slope\n",
        u, f);
  };
  const std::string plain = "width n\nconst slope = 0.1\n" + body + run("", "f");
  // phi is found where it is defined, and so is slope; the program's own slope is another one.
  Source source("test.tp", "width n\nconst slope = 7\nimport \"net.tp\" as a\n" + run("a.", "a.f"));
  source.link(0, "net.tp",
              source.append("net.tp",
                            "width n\nimport \"lib/slope.tp\"\nconst slope = "
                            "slope.slope\n" +
                                body));
  source.link(1, "lib/slope.tp", source.append("lib/slope.tp", "const slope = 0.1\n"));
  const auto imported = parse(source, {});
  ASSERT_TRUE(imported) << render(imported.errors(), source);
  EvaluateOptions options;
  options.particles = 2048;
  options.randomisations = 4;
  const LimitResult a = test::limit_of(*imported, options), b = limit_of(plain);
  ASSERT_EQ(a.reports.size(), b.reports.size());
  for (std::size_t k = 0; k < a.reports.size(); ++k)
    expect_equal(a.reports[k].value, b.reports[k].value, 1e-12);
  // Constants of imported files can be set.
  LowerOptions set;
  set.constants = {{"a.slope", "0.5"}};
  const auto changed = parse(source, set);
  ASSERT_TRUE(changed) << render(changed.errors(), source);
  EXPECT_EQ(values(test::limit_of(*changed, options), "a.slope"), std::vector<double>{0.5});
}

// ---- matrices as values

const std::string kMatrices =
    "width n\nparam U : [n, 2] ~ normal(0, 1 / 2)\nparam W : [n, n] ~ normal(0, 1 / n)\n"
    "param v : [n] ~ normal(0, 1)\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\n";

TEST(Matrices, GradientsByMultiplesAreByTheValueThatIsNamed) {
  const LimitResult r = limit_of(kMatrices +
                                 "V = 0.5 * W\nloss = mse(v @ tanh(V @ tanh(U @ X)) / n, y)\n"
                                 "other = mse(v @ tanh(0.5 * W @ tanh(U @ X)) / n, y)\n"
                                 "report a = norm(grad(loss, V)), b = 2 * norm(grad(other, W))\n"
                                 "S = W - 0.1 * grad(other, W)\n"
                                 "deep = mse(v @ tanh(S @ tanh(U @ X)) / n, y)\n"
                                 "report c = norm(grad(deep, S))\n");
  expect_equal(values(r, "a"), values(r, "b"), 1e-9);
  EXPECT_GT(values(r, "c")[0], 0);
}

// X is what the network was trained on, Z the same numbers that it was not: parameters are
// constants for both, as in automatic differentiation after a step.
TEST(Gradient, ByDataKeepsTrainedParametersFixed) {
  const std::string text =
      kMatrices +
      "data Z = [[1, 0.5], [-0.3, 1]]\nmodel f(x) = v @ tanh(W @ tanh(U @ x)) / n\n"
      "for t in 0..3 {\n"
      "  report at_x = grad(sum(f(X)), X), at_z = grad(sum(f(Z)), Z)\n"
      "  report all = grad(sum(f(X)), X, through = true)\n"
      "  step sgd(mse(f(X), y), lr = 0.5, scale = {U: n, v: n})\n}\n"
      "param eta : [] ~ normal(0.1, 0)\ntheta = v - eta * n * grad(mse(f(X), y), v)\n"
      "report rate = grad(mse(theta @ tanh(W @ tanh(U @ X)) / n, y), eta)\n";
  const LimitResult r = limit_of(text);
  expect_equal(values(r, "at_x"), values(r, "at_z"), 1e-12);
  const std::vector<double> fixed = values(r, "at_x"), all = values(r, "all");
  EXPECT_NEAR(all[1], fixed[1], 1e-12) << "before the first step there is nothing else";
  EXPECT_GT(std::abs(all[all.size() - 1] - fixed[fixed.size() - 1]), 1e-3);
  EXPECT_LT(values(r, "rate")[0], 0);
}

TEST(Matrices, AveragesOfGradientsMayBeParameters) {
  const std::string by_hand =
      kMatrices +
      "param m : [n, n] ~ normal(0, 0)\nfor t in 0..4 {\n  f = v @ tanh(W @ tanh(U @ X)) / n\n"
      "  report f\n  g = grad(mse(f, y), W)\n  m = 0.9 * m + g\n  W = W - 3 * m\n}\n";
  const std::string as_optimiser =
      kMatrices +
      "for t in 0..4 {\n  f = v @ tanh(W @ tanh(U @ X)) / n\n  report f\n"
      "  step sgd(mse(f, y), lr = 3, momentum = 0.9, only = (W))\n}\n";
  expect_equal(values(limit_of(by_hand), "f"), values(limit_of(as_optimiser), "f"), 1e-9);
}

const std::string kTrained = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param W : [n, n] ~ normal(0, 1 / n)
random U : [n, 2] ~ normal(0, 1)
random v : [n] ~ normal(0, 1)
fn net(x, W) = v @ tanh(W @ tanh(U @ x)) / n
)";

// SAM: the ascent is a constant of the descent, also where it is a matrix.
TEST(Matrices, MayBeStopped) {
  const LimitResult stopped = limit_of(kTrained + R"(for t in 0..3 {
  g = grad(mse(net(X, W), [1, -1]), W)
  sharp = mse(net(X, W + stop(0.3 * g / norm(g))), [1, -1])
  report sharp
  step sgd(sharp, lr = 1)
}
report norm(grad(mse(net(X, stop(W)), [1, -1]), W)), E(tanh(stop(W) @ v)^2) - E(tanh(W @ v)^2)
)"),
                    moved = limit_of(kTrained + R"(for t in 0..3 {
  W0 = W
  g = grad(mse(net(X, W), [1, -1]), W)
  W += 0.3 * g / norm(g)
  sharp = mse(net(X, W), [1, -1])
  report sharp
  g2 = grad(sharp, W)
  W = W0
  W -= g2
}
)");
  expect_equal(values(stopped, "sharp"), values(moved, "sharp"), 1e-9);
  EXPECT_EQ(stopped.reports[1].value[0], 0);
  EXPECT_EQ(stopped.reports[2].value[0], 0);
}

// Sums of gradients that begin at 0, whatever 0 is written as.
TEST(Matrices, AccumulatorsBeginAtZero) {
  const auto text = [](const std::string& begin, const std::string& add) {
    return kTrained + "for t in 0..2 {\n  gW = " + begin +
           "\n  for b in 0..2 {\n    l = mse(net(X[b..b + 1], W), [1 - 2 * b])\n    " + add +
           "\n  }\n  report out = net(X, W)\n  W -= gW / 2\n}\n";
  };
  const std::vector<double> expected = values(
      limit_of(kTrained +
               "for t in 0..2 {\n  report out = net(X, W)\n  step sgd(mse(net(X, W), [1, -1]), lr "
               "= 1)\n}\n"),
      "out");
  for (const char* begin : {"0", "zeros(n, n)", "zeros_like(W)"})
    for (const char* add : {"gW = gW + grad(l, W)", "gW += grad(l, W)", "gW = grad(l, W) + gW"}) {
      SCOPED_TRACE(std::string(begin) + ", " + add);
      expect_equal(values(limit_of(text(begin, add)), "out"), expected, 1e-9);
    }
}

TEST(Shapes, AnAxisBesideTheWidthIsWarnedOf) {
  const auto warnings = [](const char* product) {
    const Module module = parsed(fmt::format(
        "width n\nrandom h : [3, n] ~ normal(0, 1)\nrandom g : [3, n] ~ normal(0, 1)\na = E(g)\n"
        "for t in 0..2 {{\n  report E(({})^2)\n}}\n",
        product));
    std::string out;
    for (const Diagnostic& d : module.warnings) out += d.code + " " + d.message + "\n";
    return out;
  };
  EXPECT_EQ(warnings("a[.., None] * h"), "W2202 [3, 1] beside [3, n] makes [3, 3, n]\n");
  EXPECT_EQ(warnings("h / sqrt(E(h^2))[.., None]"), "W2202 [3, 1] beside [3, n] makes [3, 3, n]\n");
  for (const char* product : {"a * h", "[1, 2][.., None] * h", "h / sqrt(E(h^2))",
                              "a[.., None] * h[None]", "h[None] * h[.., None]", "a[None] * h"})
    EXPECT_EQ(warnings(product), "") << product;
}

// Several matrices act on the same vectors: heads of queries on one value.
TEST(Shapes, MatricesOfHeadsBesideTheWidth) {
  const LimitResult r = limit_of(R"(width n
random h : [3, n] ~ normal(0, 1)
A = [[[1, 2, 3], [0, 1, 0]], [[0, 0, 1], [2, 0, 1]]]
report a = gram(A @ h), b = gram(stack(A[0] @ h, A[1] @ h))
)");
  expect_equal(values(r, "a"), values(r, "b"), 1e-12);
}

// The route that is taken.
TEST(Shapes, LabelsMayBeComputed) {
  const LimitResult result = limit_of(
      "width n\nrandom h : [2, n] ~ normal(0, 1)\ns = [[0.1, 0.7, 0.2], [2, 1, 0]] * E(h^2)[..,"
      " None]\nreport one_hot(argmax(s), 3)\n");
  EXPECT_EQ(result.reports[0].value, (std::vector<double>{0, 1, 0, 1, 0, 0}));
}

TEST(Einsum, SumsOverCoordinates) {
  const LimitResult r =
      limit_of(kMatrices +
               "h = tanh(U @ X)\nz = tanh(W @ h)\n"
               "report a = einsum(\"pn,qn->pq\", h, z) / n, b = gram(h, z)\n"
               "report c = einsum(\"pn,pn,qn->p\", h, h, z) / n, d = E(h^2 * (z[0] + z[1]))\n"
               "report e = einsum(\"pn->\", h^2) / n, f = sum(E(h^2))\n");
  expect_equal(values(r, "a"), values(r, "b"), 1e-12);
  expect_equal(values(r, "c"), values(r, "d"), 1e-12);
  expect_equal(values(r, "e"), values(r, "f"), 1e-12);
}

TEST(Matrices, RowsTimesAMatrixOfReadouts) {
  const LimitResult r = limit_of(kMatrices +
                                 "param V : [n, 3] ~ normal(0, 1)\nh = tanh(U @ X)\n"
                                 "report a = mean((h @ V)^2) / n, b = mean((V' @ h)^2) / n\n");
  expect_equal(values(r, "a"), values(r, "b"), 0);
}

// ---- sources without end

TEST(Sources, DevicesAreNoPrograms) {
  const auto zero = read_source("/dev/zero");
  ASSERT_FALSE(zero);
  EXPECT_EQ(zero.errors()[0].code, "E5001");
  EXPECT_TRUE(read_source("/dev/null"));
  EXPECT_FALSE(read_source("/tmp"));
}

TEST(Memory, UnrolledProgramsAreCounted) {
  LowerOptions options;
  options.memory_bytes = 1e7;
  const Source source("test.tp",
                      "width n\nrandom x : [n] ~ normal(0, 1)\na = E(x^2)\nfor t in 0..1000000 { a "
                      "= 0.5 * a + 1 / (t + 1) }\nreport a\n");
  const auto module = parse(source, options);
  ASSERT_FALSE(module);
  EXPECT_EQ(module.errors()[0].code, "E4202");
}

}  // namespace
}  // namespace tplimit
