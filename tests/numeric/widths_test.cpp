/// Several widths of fixed ratio.

#include <string>

#include <gtest/gtest.h>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

// W [m, n] with entries N(0, 1/n): E x'W'Wx / n = c, E |W'Wx|^2 / n = c^2 + c, E x'(W'W)^3 x / n =
// c^3 + 3 c^2 + c, c = m/n (Marchenko-Pastur).
TEST(Widths, MomentsOfRectangularMatrices) {
  for (const auto& [ratio, c] :
       {std::pair{"2 n", 2.0}, std::pair{"n / 2", 0.5}, std::pair{"3 / 2 * n", 1.5},
        std::pair{"n", 1.0}, std::pair{"5 n", 5.0}}) {
    SCOPED_TRACE(ratio);
    const std::string text = fmt::format(R"(width n, m = {}
random W : [m, n] ~ normal(0, 1 / n)
random x : [n] ~ normal(0, 1)
y = W @ x
u = W' @ y
report E(u * x), E(u^2), E(y^2), y @ y / m, E((W @ u)^2) * m / n, gram(y, 2 * y)
)",
                                         ratio);
    for (const EvaluateOptions& options : {EvaluateOptions{}, particles(512, 2)}) {
      const LimitResult limit = limit_of(text, options);
      const std::vector<double> expected{c, c * c + c, 1, 1, c * c * c + 3 * c * c + c, 2};
      for (std::size_t k = 0; k < expected.size(); ++k)
        EXPECT_NEAR(limit.reports[k].value[0], expected[k], 1e-9 * expected[k]) << k;
    }
    const SimulationResult networks = networks_of(parsed(text), 960, 64, Matrices::kDense);
    EXPECT_NEAR(networks.reports[1].value[0], c * c + c, 5 * networks.reports[1].error[0]);
  }
}

// A layer of width 2 n is two layers of width n side by side.
TEST(Widths, TrainingIsThatOfThePartsWrittenByHand) {
  const std::string whole = R"(width n, m = 2 n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 0.5), lr = n
param W : [m, n] ~ normal(0, 1 / n)
param V : [2, m, m] ~ normal(0, 1 / m)
param v : [m] ~ normal(0, 1), lr = n
for t in 0..3 {
  z = W @ (U @ X)
  for l in 0..2 { z = V[l] @ z }
  out = v @ z / m
  loss = mse(out, y)
  report out, gram(z), loss
  step sgd(loss, lr = 0.3, scale = {v: 2 * n})
}
W *= 0.5
v = v - 0.1 * grad(out @ out, v) * n
V0 = U
W += 1 / n * outer(tanh(W @ (U @ X)), U @ X)
report E((W @ (U @ X))^2), E(v^2), E(zeros(2, m) + v), E(max(v, 0) * where(v > 0, 1, 2))
)";
  const std::string parts = R"(width n
data X = [[1, 0.5], [-0.3, 1]]
data y = [1, -1]
param U : [n, 2] ~ normal(0, 0.5), lr = n
param W1 : [n, n] ~ normal(0, 1 / n)
param W2 : [n, n] ~ normal(0, 1 / n)
param V11 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V12 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V21 : [2, n, n] ~ normal(0, 1 / (2 * n))
param V22 : [2, n, n] ~ normal(0, 1 / (2 * n))
param v1 : [n] ~ normal(0, 1), lr = n
param v2 : [n] ~ normal(0, 1), lr = n
for t in 0..3 {
  z1 = W1 @ (U @ X)
  z2 = W2 @ (U @ X)
  for l in 0..2 {
    a = V11[l] @ z1 + V12[l] @ z2
    z2 = V21[l] @ z1 + V22[l] @ z2
    z1 = a
  }
  out = (v1 @ z1 + v2 @ z2) / (2 * n)
  loss = mse(out, y)
  report out, (gram(z1) + gram(z2)) / 2, loss
  step sgd(loss, lr = 0.3, scale = {v1: 2 * n, v2: 2 * n})
}
W1 *= 0.5
W2 *= 0.5
d1 = grad(out @ out, v1)
d2 = grad(out @ out, v2)
v1 = v1 - 0.1 * d1 * n
v2 = v2 - 0.1 * d2 * n
h1 = tanh(W1 @ (U @ X))
h2 = tanh(W2 @ (U @ X))
W1 += 1 / n * outer(h1, U @ X)
W2 += 1 / n * outer(h2, U @ X)
report (E((W1 @ (U @ X))^2) + E((W2 @ (U @ X))^2)) / 2, (E(v1^2) + E(v2^2)) / 2, (E(zeros(2, n) + v1) + E(zeros(2, n) + v2)) / 2, (E(max(v1, 0) * where(v1 > 0, 1, 2)) + E(max(v2, 0) * where(v2 > 0, 1, 2))) / 2
)";
  const LimitResult a = limit_of(whole, particles(4096, 8)),
                    b = limit_of(parts, particles(4096, 8));
  ASSERT_EQ(a.reports.size(), b.reports.size());
  for (std::size_t k = 0; k < a.reports.size(); ++k) {
    ASSERT_EQ(a.reports[k].value.size(), b.reports[k].value.size()) << a.reports[k].name;
    for (std::size_t j = 0; j < a.reports[k].value.size(); ++j)
      EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j],
                  1e-9 + 6 * std::hypot(a.reports[k].error[j], b.reports[k].error[j]))
          << a.reports[k].name << ' ' << j;
  }
}

// Four heads cut from one matrix are four matrices of a head each.
TEST(Widths, HeadsByReshapeAreHeadsByHand) {
  const std::string head = R"(width d, n = 4 d
random x : [3, n] ~ normal(0, 1)
random Q : [{0}] ~ normal(0, 1 / n)
random K : [{0}] ~ normal(0, 1 / n)
fn split(x) {{ return transpose(reshape(x, 3, -1, d), 1, 0, 2) }}
fn join(x) {{ return reshape(transpose(x, 1, 0, 2), 3, n) }}
fn heads(A) {{ return {1} }}
q = tanh(heads(Q)) + 1
z = softmax(2 * gram(q, heads(K) + 1)) @ q
report gram(z), gram(join(z)), E(join(z) * join(q)), E(split(join(z)) - z)
)";
  const LimitResult cut = limit_of(fmt::format(fmt::runtime(head), "n, n", "split(A @ x)"), {}),
                    whole = limit_of(fmt::format(fmt::runtime(head), "4, d, n",
                                                 "stack(A[0] @ x, A[1] @ x, A[2] @ x, A[3] @ x)"),
                                     {});
  ASSERT_EQ(cut.reports.size(), 4u);
  for (std::size_t k = 0; k < 4; ++k)
    for (std::size_t j = 0; j < cut.reports[k].value.size(); ++j)
      EXPECT_NEAR(cut.reports[k].value[j], whole.reports[k].value[j],
                  1e-12 + 6 * std::hypot(cut.reports[k].error[j], whole.reports[k].error[j]))
          << k << ' ' << j;
}

// A width of several units is one width: whatever contracts it sums over all of its parts, and what
// does not contract it acts on each.  Values of a program do not depend on further widths that it
// declares.
TEST(Widths, OtherWidthsChangeNothing) {
  const std::string text = R"(
random x : [3, n] ~ normal(0, 1)
random u : [n] ~ normal(0, 1)
random y : [2, 3, n] ~ normal(0, 1)
random W : [n, n] ~ normal(0, 1 / n)
h = tanh(W @ x) + 0.3 * x
s = x @ x' / n
report s, gram(h, x), h @ h' / n, h @ u / n, u @ h' / n, (h' @ ones(3)) @ u / n
report E((s @ x)^2), E((gram(x) @ h)^2), softmax(h @ (h + x)' / n), min_eig(h @ h' / n)
report einsum("pn,qn->pq", x, h) / n, einsum("pn,n->p", h, u) / n, E(einsum("pn,n->pn", h, u)^2)
report E(einsum("bpn,qn,pq->bn", y, x, s)^2), ndim(x), ndim(W), size(y, 0), norm(x) / sqrt(n)
report hist(u, bins = 4), mean(W^2) * n, sum(W * W) / n
report gram(max(h, x)), gram(concat(x, h)), gram(stack(x, h)), gram(sum(y, axis = 0)), trace(s)
)";
  const LimitResult alone = limit_of("width n" + text, {});
  const SimulationResult network = networks_of(parsed("width n" + text), 96, 64, Matrices::kDense);
  for (const char* others : {", m = 2 n", ", m = n / 2", ", m = n / 3, k = 3 / 2 * n", ", m"}) {
    SCOPED_TRACE(others);
    const LimitResult own = limit_of("width n" + std::string(others) + text, {});
    ASSERT_EQ(own.reports.size(), alone.reports.size());
    const SimulationResult networks =
        networks_of(parsed("width n" + std::string(others) + text), 96, 64, Matrices::kDense);
    for (std::size_t k = 0; k < own.reports.size(); ++k) {
      ASSERT_EQ(own.reports[k].value.size(), alone.reports[k].value.size());
      for (std::size_t j = 0; j < own.reports[k].value.size(); ++j) {
        EXPECT_NEAR(own.reports[k].value[j], alone.reports[k].value[j],
                    1e-9 + 6 * std::hypot(own.reports[k].error[j], alone.reports[k].error[j]))
            << own.reports[k].name << ' ' << j;
        EXPECT_NEAR(
            networks.reports[k].value[j], network.reports[k].value[j],
            1e-9 + 5.5 * std::hypot(networks.reports[k].error[j], network.reports[k].error[j]))
            << "networks " << own.reports[k].name << ' ' << j;
      }
    }
  }
}

// Roles, laws and rates are powers of the first width, for every optimiser.
TEST(Widths, OtherWidthsChangeNoParametrization) {
  const auto text = [](const char* widths, const char* parametrization, const char* step) {
    return fmt::format(R"(width n{}
data X = [[1, 0.5], [-0.3, 1]]
parametrization {}
param U : input [n, 2] ~ normal(0, 1)
param b : bias [n] ~ normal(0, 0.1)
param W : hidden [n, n] ~ normal(0, 2)
param v : output [n] ~ normal(0, 1)
for t in 0..3 {{
  h = tanh(W @ tanh(U @ X) + b)
  report gram(h), E(U^2)
  f = v @ h
  step {}
}}
)",
                       widths, parametrization, step);
  };
  for (const auto& [parametrization, step] :
       {std::pair("mup", "sgd(mse(f, [1, -1]), lr = 0.3, clip_norm = 2)"),
        std::pair("mup", "sgd(mse(f, [1, -1]), lr = 0.3, momentum = 0.5, weight_decay = 0.1)"),
        std::pair("ntk", "sgd(mse(f, [1, -1]), lr = 0.3)"),
        std::pair("mup", "adamw(mse(f, [1, -1]), lr = 0.1)")}) {
    SCOPED_TRACE(step);
    const bool entries = std::string(step).starts_with("adam");
    const EvaluateOptions options = particles(entries ? 256 : 1024, 8);
    const LimitResult alone = limit_of(text("", parametrization, step), options);
    for (const char* widths : {", m = n / 2", ", m = 2 n"}) {
      if (entries && widths[6] == 'n') continue;  // four times the pairs
      SCOPED_TRACE(widths);
      const LimitResult own = limit_of(text(widths, parametrization, step), options);
      for (std::size_t k = 0; k < own.reports.size(); ++k)
        for (std::size_t j = 0; j < own.reports[k].value.size(); ++j)
          EXPECT_NEAR(own.reports[k].value[j], alone.reports[k].value[j],
                      1e-9 + 6 * std::hypot(own.reports[k].error[j], alone.reports[k].error[j]))
              << own.reports[k].name << ' ' << j;
    }
  }
}

// What is joined along the width is what was cut from it.
TEST(Widths, ConcatAlongTheWidth) {
  const SimulationResult networks = networks_of(parsed(R"(width n, m = 2 n, k = 3 n
random x : [2, n] ~ normal(0, 1)
random y : [2, m] ~ normal(0, 1)
random u : [n] ~ normal(0, 1)
z = concat(x, y, axis = 1)
report norm(z)^2 - norm(x)^2 - norm(y)^2, norm(concat(u, u))^2 - 2 * norm(u)^2
report norm(concat(x, x, axis = -1) - reshape(transpose(stack(x, x), 1, 0, 2), 2, m))
report norm(gram(concat(x, y, axis = 0 + 1)) * 3 - gram(x) - 2 * gram(y))
)"),
                                                12, 2, Matrices::kDense);
  for (const ReportResult& report : networks.reports)
    EXPECT_NEAR(report.value[0], 0, 1e-12) << report.name;
}

// In networks coordinates have places: what is cut and joined again is the same.
TEST(Widths, ReshapedWidthsKeepTheirOrder) {
  const SimulationResult networks = networks_of(parsed(R"(width d, n = 6 d, m = 3 d
random x : [2, n] ~ normal(0, 1)
random y : [2, 3, m] ~ normal(0, 1)
halves = reshape(x, 4, m)
report norm(reshape(halves, 2, n) - x), norm(reshape(reshape(y, 1, 18, d), 2, 3, m) - y)
report norm(reshape(halves, 2, 2, m) - reshape(reshape(x, 2, 6, d), 2, 2, m))
)"),
                                                12, 2, Matrices::kDense);
  for (const ReportResult& report : networks.reports) EXPECT_EQ(report.value[0], 0);
}

// A width without a ratio is as large as the first; a limit that depends on it is said to.
TEST(Widths, WithoutRatio) {
  const auto text = [](const char* variance) {
    return fmt::format(R"(width n, m
param U : [m, n] ~ normal(0, 1 / {})
random x : [n] ~ normal(0, 1)
report second = E(tanh(U @ x)^2), fourth = E(tanh(U' @ (U @ x))^2)
)",
                       variance);
  };
  const auto warnings = [](const LimitResult& limit) {
    std::string out;
    for (const Diagnostic& d : limit.warnings) out += d.code + ": " + d.message + "\n";
    return out;
  };
  EXPECT_EQ(warnings(limit_of(text("n"), {})),
            "W5306: the limit depends on the ratio of widths: 'fourth' has another value at m = 2 "
            "n\n");
  EXPECT_EQ(warnings(limit_of("width n, m\nrandom U : [m, n] ~ normal(0, 1 / n)\nrandom x : [n] ~ "
                              "normal(0, 1)\nreport gram(relu(U @ x))\n",
                              {})),
            "");
  LowerOptions twice;
  twice.constants = {{"m", "2"}};
  const LimitResult given = limit_of(parsed(text("n"), twice), {});
  EXPECT_EQ(warnings(given), "");
  std::string written = text("n");
  written.replace(written.find("m"), 1, "m = 2 n");
  EXPECT_EQ(given.reports[1].value, limit_of(written, {}).reports[1].value);
}

TEST(Widths, NetworksHaveTheDeclaredWidths) {
  const std::string text =
      "width n, m = n / 3\nrandom x : [n] ~ normal(0, 1)\nrandom y : [m] ~ normal(0, 1)\nreport 1 "
      "/ n, 1 / m, samples(y, 3), hist(y), x @ x / n\n";
  const SimulationResult networks = networks_of(parsed(text), 300, 8, Matrices::kAuto);
  EXPECT_DOUBLE_EQ(networks.reports[0].value[0], 1.0 / 300);
  EXPECT_DOUBLE_EQ(networks.reports[1].value[0], 1.0 / 100);
  EXPECT_EQ(networks.reports[2].value.size(), 3u);
  EXPECT_NEAR(networks.reports[4].value[0], 1, 0.2);
  SimulateOptions odd;
  odd.width = 100;
  const auto refused = simulate(parsed(text), odd);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.errors()[0].code, "E2701");
}

}  // namespace
}  // namespace tplimit::test
