/// Optimisers other than plain descent: the limit against published values, by hand against by
/// name, networks against arithmetic written out.

#include <array>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

/// A tanh network in muP, four samples in R^3, and one more sample that is not trained on.
std::string network(const std::string& step, int steps, int layers = 2,
                    const std::string& activation = "tanh") {
  std::string weights, hidden;
  for (int l = 1; l < layers; ++l) {
    weights += fmt::format("param W{} : hidden [n, n] ~ normal(0, 1)\n", l);
    hidden += fmt::format("  h = W{} @ {}(h)\n", l, activation);
  }
  return fmt::format(R"(width n
data X = [[-0.99, -0.37, 1.29], [0.19, 0.92, 0.58], [-0.64, 0.54, -0.32], [-0.32, 0.1, -1.53]]
data y = [1, -1, 0.5, -0.5]
data Z = [[0.5, -0.5, 0.5]]
parametrization mup
param U : input [n, 3] ~ normal(0, 1/3)
{}param v : output [n] ~ normal(0, 1)
model f(x) {{
  h = U @ x
{}  return v @ {}(h)
}}
for t in 0..{} {{ step {} }}
report trained = f(X), other = f(Z)
)",
                     weights, hidden, activation, steps, step);
}

std::vector<double> outputs(const LimitResult& r) {
  std::vector<double> out = report(r, "trained").value;
  out.push_back(report(r, "other").value[0]);
  return out;
}
std::vector<double> errors(const LimitResult& r) {
  std::vector<double> out = report(r, "trained").error;
  out.push_back(report(r, "other").error[0]);
  return out;
}

struct Reference {
  const char* step;
  int layers, steps;
  std::array<double, 5> value, error;
};

// Outputs after the last step: particles of another program (two numbers of particles, 28 runs),
// which agree with dense networks of width 512 to 2,048 extrapolated in 1/n.
const std::vector<Reference> kReferences{
    {"adam(mse(f(X), y), lr = 0.1, eps = 0.01)",
     2,
     10,
     {0.95756, -0.76574, 0.23595, -0.37013, 0.00891},
     {0.000134, 0.000208, 0.000151, 0.000138, 0.000136}},
    {"signsgd(mse(f(X), y), lr = 0.1, eps = 0.01)",
     2,
     6,
     {0.76356, -0.53989, 0.11725, -0.3029, 0.03765},
     {0.000179, 0.000164, 0.000127, 0.000297, 0.00017}},
    {"adamw(mse(f(X), y), lr = 0.05, eps = 0.01, weight_decay = 0.5)",
     3,
     6,
     {0.27654, -0.13811, 0.00257, -0.12422, 0.04482},
     {4.3e-05, 3e-05, 2.3e-05, 4e-05, 2.9e-05}},
};

TEST(Optimisers, AgreeWithPublishedValues) {
  for (const Reference& known : kReferences) {
    const LimitResult r = limit_of(network(known.step, known.steps, known.layers), particles(1024));
    const std::vector<double> value = outputs(r), error = errors(r);
    for (std::size_t k = 0; k < 5; ++k) {
      EXPECT_GT(error[k], 0);
      EXPECT_LT(error[k], 5e-3) << "an error bar that says nothing";
      EXPECT_NEAR(value[k], known.value[k], 4 * std::hypot(error[k], known.error[k]) + 2e-5)
          << known.step << ", output " << k;
    }
  }
}

/// Some steps of a network of one sample, and its output after them.
std::string of_one_sample(int steps, const std::string& step) {
  return fmt::format(R"(width n
data x = [1, -0.5]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1)
model f(x) {{ return v @ tanh(W @ tanh(U @ x)) / n }}
for t in 0..{} {{
{}}}
report out = f(x)
)",
                     steps, step);
}

// psi = sign of one outer product is the outer product of signs: no entries are needed.
TEST(Optimisers, SignDescentOfOneSampleHasRankOne) {
  const LimitResult by_name = limit_of(
      of_one_sample(3, "  step signsgd((f(x) - 1)^2, lr = 0.2, only = (W), scale = {W: 1 / n})\n"),
      particles(512));
  const LimitResult by_hand =
      limit_of(of_one_sample(3,
                             "  d = v * (1 - tanh(W @ tanh(U @ x))^2) * (f(x) - 1)\n"
                             "  W -= 0.2 * outer(sign(d), sign(tanh(U @ x))) / n\n"),
               particles(512));
  // Entries are stored in single precision; the lazy matrix has other directions by hand.
  EXPECT_NEAR(report(by_name, "out").value[0], report(by_hand, "out").value[0],
              4 * std::hypot(report(by_name, "out").error[0], report(by_hand, "out").error[0]));
  EXPECT_LT(report(by_name, "out").error[0], 0.02);
}

// Versions of a matrix are a vector space: what momentum remembers is one, whether the text says so
// or the optimiser.
TEST(Optimisers, MomentumIsWhatItIsByHand) {
  const std::string by_hand = R"(width n
data X = [[-0.99, -0.37], [0.19, 0.92]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1)
model f(x) { return v @ tanh(W @ tanh(U @ x)) / n }
B = 0 * W
for t in 0..6 {
  loss = mse(f(X), y)
  g = grad(loss, W)
  d = g + 0.1 * W
  B = 0.9 * B + d
  W -= 0.3 * B
}
report trained = f(X)
)";
  std::string by_name = by_hand;
  by_name.erase(by_name.find("B = 0 * W\n"), 10);
  const std::size_t from = by_name.find("  g = grad"), to = by_name.find("}\nreport");
  by_name.replace(from, to - from,
                  "  step sgd(loss, lr = 0.3, momentum = 0.9, weight_decay = 0.1, only = (W))\n");
  const LimitResult a = limit_of(by_hand, particles(512)), b = limit_of(by_name, particles(512));
  for (std::size_t k = 0; k < 2; ++k)
    EXPECT_NEAR(report(a, "trained").value[k], report(b, "trained").value[k], 1e-9);
}

/// A network without hidden matrix, of three coordinates, whose every step is written out here.
struct Small {
  std::array<double, 3> u, v;
  [[nodiscard]] double f(double x) const {
    double out = 0;
    for (std::size_t i = 0; i < 3; ++i) out += v[i] * std::tanh(u[i] * x);
    return out / 3;
  }
};

// The order of operations is torch.optim's; networks are arithmetic, so 12 digits are equal.
TEST(Optimisers, OfNetworksDoWhatTorchDoes) {
  struct Case {
    const char* step;
    std::function<double(double g, double theta, int t, std::array<double, 2>& memory)> change;
  };
  const auto adam = [](double g, int t, std::array<double, 2>& m, double b1, double b2,
                       double eps) {
    m[0] = b1 * m[0] + (1 - b1) * g;
    m[1] = b2 * m[1] + (1 - b2) * g * g;
    return m[0] / (1 - std::pow(b1, t)) / (std::sqrt(m[1] / (1 - std::pow(b2, t))) + eps);
  };
  const std::vector<Case> cases{
      {"sgd(loss, lr = 0.1, momentum = 0.9, dampening = 0.3, nesterov = true, weight_decay = 0.2)",
       [](double g, double theta, int t, std::array<double, 2>& m) {
         const double d = g + 0.2 * theta;
         m[0] = t == 1 ? d : 0.9 * m[0] + 0.7 * d;
         return -0.1 * (d + 0.9 * m[0]);
       }},
      {"adam(loss, lr = 0.1, betas = (0.8, 0.95), eps = 1e-3, weight_decay = 0.2)",
       [&](double g, double theta, int t, std::array<double, 2>& m) {
         return -0.1 * adam(g + 0.2 * theta, t, m, 0.8, 0.95, 1e-3);
       }},
      {"adamw(loss, lr = 0.1, weight_decay = 0.2, eps = {U: 1e-2, v: 1e-2})",
       [&](double g, double theta, int t, std::array<double, 2>& m) {
         return -0.1 * 0.2 * theta - 0.1 * adam(g, t, m, 0.9, 0.999, 1e-2);
       }},
      {"nadam(loss, lr = 0.1, betas = (0.8, 0.95), eps = 1e-3, weight_decay = 0.2)",
       [](double g, double theta, int t, std::array<double, 2>& m) {
         const double d = g + 0.2 * theta;
         m[0] = 0.8 * m[0] + 0.2 * d;
         m[1] = 0.95 * m[1] + 0.05 * d * d;
         const double ahead =
             0.8 * m[0] / (1 - std::pow(0.8, t + 1)) + 0.2 * d / (1 - std::pow(0.8, t));
         return -0.1 * ahead / (std::sqrt(m[1] / (1 - std::pow(0.95, t))) + 1e-3);
       }},
      {"rmsprop(loss, lr = 0.1, alpha = 0.9, eps = 1e-2, momentum = 0.5)",
       [](double g, double, int, std::array<double, 2>& m) {
         m[1] = 0.9 * m[1] + 0.1 * g * g;
         m[0] = 0.5 * m[0] + g / (std::sqrt(m[1]) + 1e-2);
         return -0.1 * m[0];
       }},
      {"lion(loss, lr = 0.1, weight_decay = 0.2)",
       [](double g, double theta, int, std::array<double, 2>& m) {
         const double c = 0.9 * m[0] + 0.1 * g;
         m[0] = 0.99 * m[0] + 0.01 * g;
         return -0.1 * 0.2 * theta - 0.1 * (c > 0 ? 1 : c < 0 ? -1 : 0);
       }},
  };
  for (const Case& c : cases) {
    const std::string text = fmt::format(R"(width n
param U : [n] ~ normal(0.2, 1)
param v : [n] ~ normal(0.1, 1)
report u0 = samples(U, 3), v0 = samples(v, 3)
for t in 0..5 {{
  loss = (v @ tanh(U * 0.7) / n - 1)^2
  step {}
}}
report u1 = samples(U, 3), v1 = samples(v, 3)
)",
                                         c.step);
    SimulateOptions options;
    options.width = 3;
    const Result<SimulationResult> r = simulate(parsed(text), options);
    ASSERT_TRUE(r) << c.step;
    const auto values = [&](std::size_t k) {
      return std::array{r->runs[k][0][0], r->runs[k][0][1], r->runs[k][0][2]};
    };
    Small net{values(0), values(1)};
    std::array<std::array<double, 2>, 6> memory{};
    for (int t = 1; t <= 5; ++t) {
      const double slope = 2 * (net.f(0.7) - 1) / 3;
      Small next = net;
      for (std::size_t i = 0; i < 3; ++i) {
        const double z = std::tanh(net.u[i] * 0.7), gu = slope * net.v[i] * (1 - z * z) * 0.7,
                     gv = slope * z;
        next.u[i] += c.change(gu, net.u[i], t, memory[i]);
        next.v[i] += c.change(gv, net.v[i], t, memory[3 + i]);
      }
      net = next;
    }
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(values(2)[i], net.u[i], 1e-12) << c.step;
      EXPECT_NEAR(values(3)[i], net.v[i], 1e-12) << c.step;
    }
  }
}

// One singular value: Newton and Schulz act on the number 1.
TEST(Optimisers, MuonOfOneSampleIsWhatItIsByHand) {
  double s = 1;
  for (int k = 0; k < 3; ++k) s = 3.4445 * s - 4.775 * s * s * s + 2.0315 * s * s * s * s * s;
  const std::string name = of_one_sample(
      4,
      "  step muon((f(x) - 1)^2, lr = 0.2, only = (W), momentum = 0, nesterov = false, "
      "ns_steps = 3, weight_decay = 0.1)\n");
  const std::string hand = of_one_sample(
      4, fmt::format("  z = tanh(U @ x)\n  d = v * (1 - tanh(W @ z)^2) * (f(x) - 1)\n"
                     "  W = 0.98 * W - {} * outer(d, z) / (n * sqrt(E(d^2) * E(z^2)))\n",
                     0.2 * s));
  const LimitResult a = limit_of(name, particles(512)), b = limit_of(hand, particles(512));
  EXPECT_NEAR(report(a, "out").value[0], report(b, "out").value[0], 1e-9);
  for (const std::string* text : {&name, &hand}) {
    SimulateOptions options;
    options.width = 60;
    options.matrices = text == &name ? Matrices::kLazy : Matrices::kDense;
    EXPECT_TRUE(simulate(parsed(*text), options));
  }
}

// Several samples, momentum: the limit and networks, which are compared elsewhere by their laws.
TEST(Optimisers, OfNetworksTendToTheirLimits) {
  for (const char* step :
       {"muon(mse(f(X), y), lr = 0.1, only = (W1)), adamw(mse(f(X), y), lr = 0.05, only = (U, v))",
        "nadam(mse(f(X), y), lr = 0.05, eps = 0.01)"}) {
    const std::string text = network(step, 4);
    const LimitResult limit = limit_of(text, particles(1024));
    SimulateOptions options;
    options.width = 1024;
    options.seeds = 24;
    const auto networks = simulate(parsed(text), options);
    ASSERT_TRUE(networks) << step;
    for (std::size_t k = 0; k < 4; ++k) {
      const double error =
          std::hypot(networks->reports[0].error[k], report(limit, "trained").error[k]);
      EXPECT_NEAR(networks->reports[0].value[k], report(limit, "trained").value[k],
                  4 * error + 4.0 / 1024)
          << step;
      EXPECT_LT(error, 0.02) << step;
    }
  }
}

// Where eps dwarfs the gradient, g / sqrt(g^2 + eps^2) = g / eps: descent with weight decay.
TEST(Optimisers, AddDecayToTheEntriesOfMatricesOfNetworks) {
  const auto text = [](const char* step) {
    return fmt::format(
        R"(width n
data X = [[1, 0.5], [-0.3, 1]]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1)
for t in 0..3 {{ step {} }}
report v @ tanh(W @ tanh(U @ X)) / n
)",
        fmt::format(fmt::runtime(step), "mean((v @ tanh(W @ tanh(U @ X)) / n - 1)^2)"));
  };
  const auto outputs_of = [&](const char* step) {
    return networks_of(text(step), 37, 1, Matrices::kDense, 0).reports[0].value;
  };
  const auto by_entries =
                 outputs_of("signsgd({}, lr = 2e6, eps = 1e7, weight_decay = 0.4, only = (W))"),
             by_versions = outputs_of("sgd({}, lr = 0.2, weight_decay = 0.4, only = (W))"),
             without = outputs_of("sgd({}, lr = 0.2, only = (W))");
  for (std::size_t k = 0; k < 2; ++k) {
    EXPECT_NEAR(by_entries[k], by_versions[k], 1e-10);
    EXPECT_GT(std::abs(by_versions[k] - without[k]), 1e-4);
  }
}

// Initial entries have size n^(-1/2), those of n^d g size 1.
TEST(Optimisers, HaveLimitsWhereDecayOfEntriesVanishes) {
  const auto text = [](const char* decay) {
    return network(fmt::format("adam(mse(f(X), y), lr = 0.05, eps = 0.01{})", decay), 3);
  };
  const LimitResult with = limit_of(text(", weight_decay = {W1: 0.3}"), particles(256)),
                    without = limit_of(text(""), particles(256));
  EXPECT_EQ(outputs(with), outputs(without));
  EXPECT_TRUE(std::any_of(with.warnings.begin(), with.warnings.end(),
                          [](const Diagnostic& d) { return d.code == "W5304"; }));
  for (const char* decay :
       {", weight_decay = {W1: 0.3 * sqrt(n)}", ", weight_decay = {W1: 0.3 * n}"}) {
    const auto refused = evaluate(parsed(text(decay)), particles(256));
    ASSERT_FALSE(refused) << decay;
    EXPECT_EQ(refused.errors()[0].code, "E3109") << decay;
  }
}

// m / (sqrt(v) + eps) is bounded: behind it products of gates have the errors that runs show.
TEST(Optimisers, BringNoHeavyTails) {
  const std::string text = R"(width n
data X = [[1, 0.5, -1], [-0.3, 1, 0.4], [0.7, -0.6, 0.1]]
parametrization mup
param U : input [n, 1] ~ normal(0, 1)
param W : hidden [2, n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
model f(x) {
  h = tanh(U @ x[.., 0][.., None])
  for s in 0..2 {
    z = sigmoid(W[0] @ h)
    h = (1 - z) * tanh(z * (W[1] @ h)) + z * h
  }
  return v @ h
}
for t in 0..3 { step adam(mse(f(X), [-2, 0.7, -0.6]), lr = 0.05) }
report mse(f(X), [-2, 0.7, -0.6])
)";
  double sum = 0, squares = 0, claimed = 0;
  for (const std::uint64_t seed : {1u, 2u, 3u, 4u}) {
    EvaluateOptions options = particles(512);
    options.seed = seed;
    const LimitResult r = limit_of(text, options);
    sum += r.reports[0].value[0] / 4;
    squares += r.reports[0].value[0] * r.reports[0].value[0] / 4;
    claimed = std::max(claimed, r.reports[0].error[0]);
  }
  EXPECT_LT(claimed, 15 * std::sqrt(squares - sum * sum));
}

// The penalty is the entries' own, and so is its decay: for matrices, vectors, and arrays of both.
TEST(Optimisers, PenaltiesOfTheLossAreWeightDecay) {
  const auto text = [](const char* loss, const char* options) {
    return fmt::format(R"(width n
param U : [n, 2] ~ normal(0, 1)
param W : [2, n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1 / n^2)
X = [[1, 0.5], [-0.3, 1]]
W0 = W[0]
for t in 0..4 {{
  out = tanh(W[1] @ tanh(W[0] @ tanh(U @ X))) @ v
  fit = mse(out, [1, -1])
  report out, norm(W) / sqrt(n), sum(W[0] * W0) / n
  step sgd({}, lr = 0.3, only = (W), momentum = 0.5{})
  step sgd(fit, lr = 0.3, only = (U, v), scale = {{U: n, v: 1 / n}})
}}
)",
                       loss, options);
  };
  const std::string penalty = text("fit + 0.1 * sum(W^2)", ""),
                    decay = text("fit", ", weight_decay = 0.2");
  const LimitResult a = limit_of(penalty, particles(1024, 2)),
                    b = limit_of(decay, particles(1024, 2));
  ASSERT_EQ(a.reports.size(), 3u);
  for (std::size_t k = 0; k < a.reports.size(); ++k)
    for (std::size_t j = 0; j < a.reports[k].value.size(); ++j)
      EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j], 1e-12) << k << ' ' << j;
  EXPECT_LT(a.reports[1].value.back(), a.reports[1].value.front() - 0.1);
  // Networks too, where the stored entries themselves are multiplied.
  const SimulationResult c = networks_of(parsed(penalty), 96, 2, Matrices::kDense),
                         d = networks_of(parsed(decay), 96, 2, Matrices::kDense);
  for (std::size_t k = 0; k < c.reports.size(); ++k)
    for (std::size_t j = 0; j < c.reports[k].value.size(); ++j)
      EXPECT_NEAR(c.reports[k].value[j], d.reports[k].value[j], 1e-11) << k << ' ' << j;
}

// Sums of gradients in another order are the same matrix; changes of a norm over several steps, of
// matrices of several units, flows and entries of other laws.
TEST(Optimisers, NormsWithoutRounding) {
  const LimitResult limit = limit_of(R"(width n, m = 2 n
param U : [m, n] ~ normal(0, 1 / n)
param v : [m] ~ normal(0, 1)
random x : [2, n] ~ normal(0, 1)
random S : [n, n] ~ sign()
U0 = U
a = zeros(m, n)
b = zeros(m, n)
for k in 0..2 { a += grad(mse(v @ tanh(U @ x)[k] / m, 1), U) }
for k in 0..2 { b += grad(mse(v @ tanh(U @ x)[1 - k] / m, 1), U) }
for t in 0..2 { U += outer(v, (U' @ v)) / n }
report same = norm(a - b), change = sum(U^2) - sum(U0^2), one = sum(S^2) / n^2
step flow(mse(v @ tanh(U @ x) / m, [1, -1]) + 0.1 * sum(U^2), dt = 0.5, only = (U))
report shrunk = norm(U)^2 / norm(U0)^2
)",
                                     particles(1024, 4));
  EXPECT_EQ(limit.reports[0].value[0], 0);
  // With w = U0'v, E w^2 = 2: first 2 E w^2 + 2 E w^2, then 2 E (3 w)^2 + 2 E (3 w)^2.
  EXPECT_NEAR(limit.reports[1].value[0], 80, 6 * limit.reports[1].error[0] + 1e-9);
  EXPECT_EQ(limit.reports[2].value[0], 1);
  EXPECT_LT(test::report(limit, "shrunk").value[0], 1);
}

// norm(W - W0) and sum((W - W0)^2) are one function, with one gradient: of a matrix that moves, the
// changes of W are no constants.
TEST(Optimisers, PenaltiesOfChanges) {
  const auto text = [](const char* penalty, const char* lazy = "") {
    return fmt::format(R"(width n
parametrization mup
param U : input [n, 2] ~ normal(0, 1 / 2)
param W : hidden [n, n] ~ normal(0, 1)
param v : output [n] ~ normal(0, 1)
data X = [[1, 0.5], [-0.3, 1]]
W0 = W
model f(x) = v @ tanh(W @ tanh(U @ x))
for t in 0..4 {{
  report out = f(X), moved = norm(W - W0), squared = sum((W - W0)^2)
  step sgd(mse(f(X), [1, -1]) + {}, lr = 0.1)
}}
{})",
                       penalty, lazy);
  };
  const auto values = [&](const char* penalty) {
    return test::report(limit_of(text(penalty), particles(1024, 4)), "moved").value;
  };
  const std::vector<double> none = values("0"), squares = values("2 * sum((W - W0) * (W - W0))");
  EXPECT_LT(squares[3], none[3] - 0.01);
  for (const char* same : {"2 * norm(W - W0)^2", "2 * sum((W - W0)^2)",
                           "2 * (sum(W * (W - W0)) - sum(W0 * (W - W0)))"}) {
    const std::vector<double> own = values(same);
    for (std::size_t t = 0; t < own.size(); ++t) EXPECT_NEAR(own[t], squares[t], 1e-9) << same;
  }
  const SimulationResult networks =
      networks_of(parsed(text("2 * norm(W - W0)^2")), 1024, 8, Matrices::kDense);
  for (std::size_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(networks.reports[1].value[t], squares[t], 5 * networks.reports[1].error[t] + 3e-3);
    EXPECT_NEAR(networks.reports[2].value[t], squares[t] * squares[t], 2e-3);
  }
}

// Adam of a penalty, weight normalisation, and the change of a norm.
TEST(Optimisers, NormsOfMatricesTendToTheirLimits) {
  const std::string text = R"(width n
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0, 1 / n^2)
X = [[1, 0.5], [-0.3, 1]]
W0 = W
for t in 0..4 {
  out = tanh(sqrt(n) * (W @ tanh(U @ X)) / norm(W)) @ v
  report out, norm(W - 0.5 * W0) / sqrt(n)
  step sgd(mse(out, [1, -1]), lr = 0.5, scale = {U: n, W: 1, v: 1 / n})
}
W1 = W + 1 / n * outer(ones(n), W @ ones(n))
report sum(W1^2) - sum(W^2)
step adam(mean(W^2) + E((W @ ones(n))^2), lr = 1 / n, eps = 1e-3 / n, only = (W))
report norm(W) / sqrt(n), E((W @ ones(n))^2)
)";
  const LimitResult limit = limit_of(text, {});
  const SimulationResult networks = networks_of(parsed(text), 1024, 16, Matrices::kDense);
  ASSERT_EQ(limit.reports.size(), networks.reports.size());
  for (std::size_t k = 0; k < limit.reports.size(); ++k)
    for (std::size_t j = 0; j < limit.reports[k].value.size(); ++j)
      EXPECT_NEAR(limit.reports[k].value[j], networks.reports[k].value[j],
                  5 * networks.reports[k].error[j] + 5 / 1024.0)
          << limit.reports[k].name << ' ' << j;
}

TEST(Optimisers, ClipByTheNormOfAllGradients) {
  const auto text = [](const std::string& option) {
    return fmt::format(R"(width n
param U : [n] ~ normal(0.2, 1)
param W : [n, n] ~ normal(0, 1 / n)
param v : [n] ~ normal(0.1, 1)
loss = (v @ tanh(W @ tanh(U)) / n - 1)^2
gU = grad(loss, U)
h = tanh(U)
z = tanh(W @ h)
d = v * (1 - z^2)
c = 2 * (v @ z / n - 1)
report norm = sqrt(n * E(gU^2) + n * E((c * z / n)^2) + (c / n)^2 * n^2 * E(d^2) * E(h^2))
u0 = U
step sgd(loss, lr = 1{})
report moved = sqrt(n * E((U - u0)^2) / (n * E(gU^2)))
)",
                       option);
  };
  SimulateOptions options;
  options.width = 40;
  for (const double bound : {0.01, 100.0}) {
    const auto r = simulate(parsed(text(fmt::format(", clip_norm = {}", bound))), options);
    ASSERT_TRUE(r);
    EXPECT_NEAR(r->runs[1][0][0], std::min(1.0, bound / r->runs[0][0][0]), 1e-12);
  }
}

// Gradients whose norm vanishes in the limit are not clipped: of readouts that start at 0, of
// networks without hidden matrices.
TEST(Optimisers, ClipNothingWhereNormsVanish) {
  for (const char* parametrised : {"", "parametrization mup\n"})
    for (const char* optimiser : {"sgd", "adam"})
      for (const bool zero : {true, false})
        for (const bool hidden : {true, false}) {
          const bool mup = *parametrised != 0;
          if (!mup && *optimiser == 'a') continue;  // eps would decide
          const auto text = [&](const char* option) {
            const auto param = [&](const char* name, const char* role, const char* shape,
                                   const char* law) {
              return fmt::format("param {} : {} {} ~ {}{}\n", name, mup ? role : "", shape, law,
                                 mup || *role == 'h' ? "" : ", lr = n");
            };
            return "width n\n" + std::string(parametrised) +
                   param("U", "input", "[n]", "normal(0, 1)") +
                   param("W", "hidden", "[n, n]", mup ? "normal(0, 1)" : "normal(0, 1 / n)") +
                   param("v", "output", "[n]", zero ? "normal(0, 0)" : "normal(0, 1)") +
                   fmt::format(
                       "for t in 0..3 {{\n  f = v @ tanh({}){}\n  report f\n  step "
                       "{}((f - 1)^2, lr = 0.1{}{})\n}}\n",
                       hidden ? "W @ tanh(U)" : "U", mup ? "" : " / n", optimiser, option,
                       hidden ? "" : ", only = (U, v)");
          };
          if (hidden && !zero) continue;  // the norm is that of W's gradient
          const LimitResult clipped = limit_of(text(", clip_norm = 0.5"), particles(1024, 2)),
                            plain = limit_of(text(""), particles(1024, 2));
          for (std::size_t t = 0; t < 3; ++t)
            EXPECT_NEAR(clipped.reports[0].value[t], plain.reports[0].value[t], 1e-6)
                << text(", clip_norm = 0.5");
        }
}

TEST(Optimisers, GroupsHaveOptionsOfTheirOwn) {
  const auto last = [](const std::string& option) {
    SimulateOptions options;
    options.width = 20;
    const auto r =
        simulate(parsed(network("adamw(mse(f(X), y), lr = 0.1, " + option + ")", 3)), options);
    EXPECT_TRUE(r) << option;
    return r->runs[0][0];
  };
  const auto all = last("weight_decay = 0.3");
  EXPECT_EQ(last("weight_decay = 0.1, groups = {U: {weight_decay: 0.3}, W1: {weight_decay: 0.3}, "
                 "v: {weight_decay: 0.3, lr: 0.1}}"),
            all);
  EXPECT_NE(last("weight_decay = 0.3, groups = {W1: {lr: 0.05}}"), all);
}

TEST(Optimisers, AveragesAreOfParameters) {
  const std::string text = R"(width n
param v : [n] ~ normal(1, 1)
A = v
for t in 0..4 {
  step sgd(E(v^2) * n, lr = 0.2, average = ema(0.6))
  A = where(t == 0, v, 0.6 * A + 0.4 * v)
}
report averaged(E(v^2)), E(A^2)
)";
  const LimitResult r = limit_of(text, {});
  EXPECT_NEAR(r.reports[0].value[0], r.reports[1].value[0], 1e-12);
}

TEST(Optimisers, DoNotDependOnTheNumberOfThreads) {
  const auto run = [](int threads) {
    EvaluateOptions options = particles(300, 2);
    options.threads = threads;
    return outputs(limit_of(network("adam(mse(f(X), y), lr = 0.1)", 3), options));
  };
  EXPECT_EQ(run(1), run(2));
}

// More directions than half of the particles: the matrix is stored, and there is a limit.
TEST(StoredMatrices, AgreeWithLazyOnes) {
  const std::string text = network("sgd(mse(f(X), y), lr = 0.5)", 12, 3);
  const LimitResult lazy = limit_of(text, particles(4096));
  for (const Matrices matrices : {Matrices::kAuto, Matrices::kDense}) {
    EvaluateOptions options = particles(64, 64);  // up to 100 directions
    if (matrices == Matrices::kDense) options.particles = 512, options.randomisations = 16;
    options.matrices = matrices;
    const LimitResult stored = limit_of(text, options);
    for (std::size_t k = 0; k < 5; ++k)
      EXPECT_NEAR(outputs(stored)[k], outputs(lazy)[k],
                  4 * std::hypot(errors(stored)[k], errors(lazy)[k]))
          << k;
  }
  EvaluateOptions options = particles(64);
  options.matrices = Matrices::kLazy;
  const auto refused = evaluate(parsed(text), options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.errors()[0].code, "E4201");
}

}  // namespace
}  // namespace tplimit::test
