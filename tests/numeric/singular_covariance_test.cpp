/// Gaussians of variance 0, and independence: what holds almost everywhere need not hold where an
/// argument is a constant.

#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numbers>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/property/random_program.hpp"
#include "tests/support/run.hpp"
#include "tplimit/math/normals.hpp"

namespace tplimit::test {
namespace {

EvaluateOptions engine(Engine name) {
  EvaluateOptions options = particles(4096, 4);
  options.engine = name;
  return options;
}

struct Case {
  std::string expression;
  double value;
};

/// Functions of d, which is the number 0.
const std::vector<Case>& of_zero() {
  static const std::vector<Case> cases{
      {"sign(d)^2", 0},
      {"step(d) * step(d)", 0},
      {"step(d) + step(-d)", 0},
      {"sign(d) * sign(3 * d)", 0},
      {"sign(d)^2 + cos(d)", 1},
      {"where(d > 0, 2, 3)", 3},
      {"where(d >= 0, 2, 3)", 2},
      {"d == 0", 1},
      {"abs(d)", 0},
      {"relu(d + 1) + step(d)", 1},
      {"step(d - 1) + step(1 - d)", 1},
      {"step(1 + d - 1)", 0},
      {"y^2 * sign(d)^2", 0},
      {"relu(y) * step(-d)", 0},
      {"abs(y) * (1 - sign(d)^2)", std::sqrt(2 / std::numbers::pi)},
      {"tanh(y) * (y + sign(d)^2) - tanh(y) * y", 0},
      {"erf(d) + sign(d)^2 * exp(y)", 0}};
  return cases;
}

void expect_zero(const std::string& head, std::initializer_list<Engine> engines,
                 const std::vector<Case>& cases = of_zero()) {
  std::string text = "width n\nrandom y : [n] ~ normal(0, 1)\n" + head + "\n";
  for (std::size_t k = 0; k < cases.size(); ++k)
    text += fmt::format("report r{} = E({})\n", k, cases[k].expression);
  for (const Engine name : engines) {
    const auto result = limit_of(text, engine(name));
    for (std::size_t k = 0; k < cases.size(); ++k) {
      const auto& r = result.reports[k];
      const double tolerance =
          name == Engine::kMoments ? 1e-12 : 1e-12 + 6 * (r.error.empty() ? 0 : r.error[0]);
      EXPECT_NEAR(r.value[0], cases[k].value, tolerance)
          << head << "\n"
          << cases[k].expression << " by engine " << static_cast<int>(name);
    }
  }
}

TEST(VarianceZero, EqualAndOppositeVariables) {
  const auto all = {Engine::kMoments, Engine::kAuto, Engine::kParticles};
  expect_zero("random x : [2, n] ~ normal(0, [[1, 1], [1, 1]])\nd = x[0] - x[1]", all);
  expect_zero("random x : [2, n] ~ normal(0, [[3, -3], [-3, 3]])\nd = x[0] + x[1]", all);
  expect_zero(
      "random x : [3, n] ~ normal(0, [[0.7, 0.2, 0.7], [0.2, 0.9, 0.2], [0.7, 0.2, 0.7]])\nd = "
      "x[2] - x[0]",
      all);
  expect_zero("random x : [2, n] ~ normal(0, [[0, 0], [0, 1]])\nd = x[0]", all);
}
TEST(VarianceZero, InputsThatRepeatOrVanish) {
  const auto all = {Engine::kMoments, Engine::kAuto, Engine::kParticles},
             symbolic = {Engine::kMoments, Engine::kAuto};
  expect_zero(
      "data X = [[0.3, 0.7], [1, 2], [0.3, 0.7], [0, 0]]\nrandom U : [n, 2] ~ normal(0, 1/3)\nh = "
      "U @ X\nd = h[0] - h[2]",
      all);
  expect_zero(
      "data X = [[0.3, 0.7], [1, 2], [0.3, 0.7], [0, 0]]\nrandom U : [n, 2] ~ normal(0, 1/3)\nh = "
      "U @ X\nd = h[3]",
      all);
  expect_zero(
      "data X = [[0.3, 0.7], [1, 2], [0.3, 0.7], [0, 0]]\nrandom U : [n, 2] ~ normal(0, "
      "1/3)\nrandom W : [n, n] ~ normal(0, 1/n)\nh = W @ tanh(U @ X)\nd = h[2] - h[0]",
      symbolic);
  expect_zero(
      "data X = [[0.3, 0.7], [1, 2], [0.3, 0.7], [0, 0]]\nrandom U : [n, 2] ~ normal(0, "
      "1/3)\nrandom W : [n, n] ~ normal(0, 1/n)\nh = W @ relu(U @ X)\nd = h[3]",
      all);
}
TEST(VarianceZero, ParametersThatStartAtZero) {
  expect_zero("param d : [n] ~ normal(0, 0), lr = n",
              {Engine::kMoments, Engine::kAuto, Engine::kParticles});
  expect_zero("param b : [n] ~ normal(0, 0), lr = n\nrandom U : [n] ~ normal(0, 1)\nd = b * U",
              {Engine::kMoments, Engine::kAuto, Engine::kParticles});
}
TEST(VarianceZero, LinearDependence) {
  const auto symbolic = {Engine::kMoments, Engine::kAuto};
  expect_zero(
      "random x : [3, n] ~ normal(0, [[1, 0.5, 1.5], [0.5, 1, 1.5], [1.5, 1.5, 3]])\nd = x[2] - "
      "x[0] - x[1]",
      symbolic);
  expect_zero("random x : [2, n] ~ normal(0, [[0.1, 0.3], [0.3, 0.9]])\nd = x[1] - 3 * x[0]",
              symbolic);
  expect_zero("random x : [2, n] ~ normal(0, 1)\nd = 0.1 * x[0] + 0.2 * x[0] - 0.3 * x[0]",
              symbolic);
  expect_zero(
      "data A = [[0.1, 0.2], [0.3, 0.1], [0.4, 0.3]]\nrandom x : [2, n] ~ normal(0, 1)\nh = "
      "einsum(\"pk,kn->pn\", A, x)\nd = h[2] - h[1] - h[0]",
      symbolic);
}
TEST(VarianceZero, NumericallySmallIsNotZero) {
  // A deviation of 1e-7 is a deviation.
  const auto result = limit_of(
      "width n\nrandom x : [2, n] ~ normal(0, 1)\nd = x[0] + 1e-7 * x[1] - x[0]\nreport a = "
      "E(sign(d)^2), b = E(step(d)), c = E(d^2)\n",
      engine(Engine::kMoments));
  EXPECT_EQ(result.reports[0].value[0], 1);
  EXPECT_NEAR(result.reports[1].value[0], 0.5, 1e-13);
  EXPECT_NEAR(result.reports[2].value[0], 1e-14, 1e-28);
}
TEST(VarianceZero, MixedColumns) {  // some constant, some not, in one array
  const auto result = limit_of(R"(width n
data X = [[0, 0], [1, 2], [0, 0], [2, -1]]
random U : [n, 2] ~ normal(0, 1)
h = U @ X
report a = E(sign(h)^2), b = gram(sign(h)), c = gram(relu(h)), e = gram(sign(h)^2 * erf(h))
)",
                               engine(Engine::kMoments));
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(result.reports[0].value[i], i % 2);
    for (std::size_t j = 0; j < 4; ++j) {
      const bool on = i % 2 == 1 && j % 2 == 1;
      EXPECT_NEAR(result.reports[1].value[4 * i + j], on && i == j ? 1 : 0, 1e-13);
      EXPECT_NEAR(result.reports[2].value[4 * i + j],
                  !on      ? 0
                  : i == j ? 2.5
                           : 5 / (2 * std::numbers::pi),
                  1e-13);
      EXPECT_NEAR(result.reports[3].value[4 * i + j],
                  !on || i != j ? 0 : 2 / std::numbers::pi * std::asin(10.0 / 11), 1e-13);
    }
  }
}

// ---- independence, entry by entry
// ----------------------------------------------------------------------

struct Twin {
  std::string rows, apart;  ///< the same law, as rows of arrays and as variables of their own
};

TEST(Independence, RowsOfArraysAreSeparateVariables) {
  const std::string head = "width n\ndata X = [[1, 0.5, 2], [0.3, -1, 1], [1, 1, 0], [0, 0, 0]]\n";
  const std::vector<Twin> twins{
      {"random U : [2, n, 3] ~ normal(0, 1/3)\nh = relu(U[0] @ X) * erf(U[1] @ X)",
       "random A : [n, 3] ~ normal(0, 1/3)\nrandom B : [n, 3] ~ normal(0, 1/3)\nh = relu(A @ X) * "
       "erf(B @ X)"},
      {"random g : [2, n] ~ normal(0, 1)\nrandom U : [n, 3] ~ normal(0, 1/3)\nh = step(g[0]) * "
       "relu(U @ X) * tanh(g[1])^2",
       "random a : [n] ~ normal(0, 1)\nrandom b : [n] ~ normal(0, 1)\nrandom U : [n, 3] ~ "
       "normal(0, 1/3)\nh = step(a) * relu(U @ X) * tanh(b)^2"},
      {"random W : [2, n, n] ~ normal(0, 1/n)\nrandom U : [n, 3] ~ normal(0, 1/3)\nz = tanh(U @ "
       "X)\nh = relu(W[0] @ z) * erf(W[1] @ z)",
       "random A : [n, n] ~ normal(0, 1/n)\nrandom B : [n, n] ~ normal(0, 1/n)\nrandom U : [n, 3] "
       "~ normal(0, 1/3)\nz = tanh(U @ X)\nh = relu(A @ z) * erf(B @ z)"},
      {"random g : [4, n] ~ normal(0, [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 2, 0.1], [0, 0, 0.1, "
       "1]])\nh = relu(g[0..2]) * erf(g[2..4])",
       "random a : [2, n] ~ normal(0, [[1, 0.5], [0.5, 1]])\nrandom b : [2, n] ~ normal(0, [[2, "
       "0.1], [0.1, 1]])\nh = relu(a) * erf(b)"},
      {"random U : [3, n, 3] ~ normal(0, 1/3)\na = stack(relu(U[0] @ X), step(U[1] @ X))\nb = "
       "stack(erf(U[1] @ X), erf(U[2] @ X))\nh = a * b",
       "random A : [n, 3] ~ normal(0, 1/3)\nrandom B : [n, 3] ~ normal(0, 1/3)\nrandom C : [n, 3] "
       "~ normal(0, 1/3)\nh = stack(relu(A @ X) * erf(B @ X), step(B @ X) * erf(C @ X))"}};
  for (const auto& [rows, apart] : twins) {
    const std::string reports = "\nreport E(h), E(h^2)\n";
    const auto a = limit_of(head + rows + reports, engine(Engine::kMoments)),
               b = limit_of(head + apart + reports, engine(Engine::kMoments));
    for (std::size_t k = 0; k < a.reports.size(); ++k) {
      EXPECT_EQ(a.reports[k].method, b.reports[k].method) << rows;
      EXPECT_LE(a.reports[k].method, Method::kQuadrature) << rows;
      for (std::size_t j = 0; j < a.reports[k].value.size(); ++j)
        EXPECT_NEAR(a.reports[k].value[j], b.reports[k].value[j], 1e-12) << rows;
    }
  }
}

// relu has no closed form beside tanh, but its odd part x / 2 has one.
TEST(Independence, OddAndEvenFunctionsBesideKinks) {
  const std::string head = "width n\nrandom x : [2, n] ~ normal(0, [[1.3, 0.6], [0.6, 0.8]])\n";
  const auto result = limit_of(
      head +
          R"(report a = E(relu(x[0]) * tanh(x[1])), b = E(x[0] * tanh(x[1])), c = E(step(x[0]) * cos(3 * x[1])), d = E(cos(3 * x[1]))
report e = E(leaky_relu(x[0], 0.1) * erf(x[1])), f = E(x[0] * erf(x[1]))
report g = E(abs(x[0]) * tanh(x[1])), h = E(cos(x[0]) * tanh(x[1]))
)",
      engine(Engine::kMoments));
  const auto value = [&](const char* name) { return report(result, name).value[0]; };
  EXPECT_NEAR(value("a"), value("b") / 2, 1e-13);
  EXPECT_NEAR(value("c"), value("d") / 2, 1e-13);
  EXPECT_NEAR(value("e"), 0.55 * value("f"), 1e-13);
  EXPECT_EQ(report(result, "e").method, report(result, "f").method);
  EXPECT_EQ(value("g"), 0);
  EXPECT_EQ(value("h"), 0);
  // E x0 tanh(x1) = c E tanh'(x1), by a sum over a grid.
  double sum = 0;
  for (int i = -4000; i <= 4000; ++i) {
    const double u = i / 400.0;
    sum += std::exp(-u * u / 1.6) / std::sqrt(1.6 * std::numbers::pi) *
           (1 - std::tanh(u) * std::tanh(u)) / 400;
  }
  EXPECT_NEAR(value("a"), 0.3 * sum, 1e-12);
}

// ---- random programs of Gaussians with singular covariances, against plain Monte Carlo
// ---------------------------

/// A linear form of the variables x = A g and a constant, all numbers dyadic: a form that vanishes
/// does so exactly.
struct Linear {
  std::vector<double> of_x;
  double constant = 0;
};
struct Node {
  std::string text;
  std::function<double(const std::vector<double>& g)> value;
};

class Programs {
 public:
  explicit Programs(std::uint64_t seed) : dice_(seed) {
    k_ = 2 + dice_.below(3);
    rank_ = 1 + dice_.below(std::min(3, k_));
    a_.assign(static_cast<std::size_t>(k_),
              std::vector<double>(static_cast<std::size_t>(rank_), 0.0));
    for (auto& row : a_)
      for (double& v : row) v = dice_.pick(std::vector<double>{-1, -0.5, 0, 0.5, 1, 1});
  }
  int rank() const { return rank_; }
  std::string head() const {
    std::string rows;
    for (int i = 0; i < k_; ++i) {
      std::string row;
      for (int j = 0; j < k_; ++j) {
        double c = 0;
        for (int l = 0; l < rank_; ++l) c += a(i, l) * a(j, l);
        row += fmt::format("{}{}", j ? ", " : "", c);
      }
      rows += fmt::format("{}[{}]", i ? ", " : "", row);
    }
    return fmt::format("width n\nrandom x : [{}, n] ~ normal(0, [{}])\n", k_, rows);
  }
  Node expression(int depth) {
    if (depth == 0) return linear();
    const int kind = dice_.below(10);
    if (kind < 5) {
      const Node x = depth == 1 || dice_.chance(0.8) ? linear() : expression(depth - 1);
      static const std::vector<std::pair<std::string, double (*)(double)>> maps{
          {"sign({})",
           [](double t) { return static_cast<double>(t > 0) - static_cast<double>(t < 0); }},
          {"step({})", [](double t) { return t > 0 ? 1.0 : 0.0; }},
          {"relu({})", [](double t) { return t > 0 ? t : 0.0; }},
          {"abs({})", [](double t) { return std::abs(t); }},
          {"tanh({})", [](double t) { return std::tanh(t); }},
          {"erf({})", [](double t) { return std::erf(t); }},
          {"({} > 0.5)", [](double t) { return t > 0.5 ? 1.0 : 0.0; }},
          {"({} >= 0)", [](double t) { return t >= 0 ? 1.0 : 0.0; }},
          {"({} == 0)", [](double t) { return t == 0 ? 1.0 : 0.0; }},
          {"(1 - sign({})^2)", [](double t) { return t == 0 ? 1.0 : 0.0; }},
          {"clip({}, -1, 0.5)", [](double t) { return std::min(std::max(t, -1.0), 0.5); }}};
      const auto& [name, f] = dice_.pick(maps);
      return {fmt::format(fmt::runtime(name), x.text),
              [f = f, v = x.value](const auto& g) { return f(v(g)); }};
    }
    const Node x = expression(depth - 1), y = expression(depth - 1);
    if (kind < 8)
      return {fmt::format("({}) * ({})", x.text, y.text),
              [u = x.value, v = y.value](const auto& g) { return u(g) * v(g); }};
    if (kind == 8)
      return {fmt::format("({}) - 0.5 * ({})", x.text, y.text),
              [u = x.value, v = y.value](const auto& g) { return u(g) - 0.5 * v(g); }};
    const Node c = linear();
    return {
        fmt::format("where({} > 0, {}, {})", c.text, x.text, y.text),
        [w = c.value, u = x.value, v = y.value](const auto& g) { return w(g) > 0 ? u(g) : v(g); }};
  }

 private:
  double a(int i, int l) const {
    return a_[static_cast<std::size_t>(i)][static_cast<std::size_t>(l)];
  }
  Node linear() {
    std::vector<double> of_g(static_cast<std::size_t>(rank_), 0.0);
    double constant = 0;
    std::string text;
    const int terms = 1 + dice_.below(3);
    for (int t = 0; t < terms; ++t) {
      const int i = dice_.below(k_);
      const double c = dice_.pick(std::vector<double>{1, -1, 0.5, 1, -1});
      text += fmt::format("{}{} * x[{}]", t ? " + " : "", c, i);
      for (int l = 0; l < rank_; ++l) of_g[static_cast<std::size_t>(l)] += c * a(i, l);
    }
    if (dice_.chance(0.15))
      text += fmt::format(" + {}", constant = dice_.pick(std::vector<double>{0.5, -0.25}));
    return {"(" + text + ")", [of_g, constant](const auto& g) {
              double sum = 0;
              for (std::size_t l = 0; l < of_g.size(); ++l) sum += of_g[l] * g[l];
              return sum + constant;
            }};
  }
  Dice dice_;
  int k_, rank_;
  std::vector<std::vector<double>> a_;
};

TEST(SingularCovariances, RandomProgramsAgreeWithMonteCarlo) {
  const char* more = std::getenv("TPLIMIT_RANDOM_PROGRAMS");
  const int programs = more ? std::atoi(more) : 40;
  constexpr std::int64_t kDraws = 200'000;
  int known = 0, all = 0;
  for (int p = 0; p < programs; ++p) {
    Programs program(static_cast<std::uint64_t>(p));
    std::vector<double> normals(static_cast<std::size_t>(kDraws * program.rank()));
    plain_normals(mix_key(0x73696eULL, static_cast<std::uint64_t>(p)), 0, normals);
    for (int r = 0; r < 4; ++r) {
      const Node e = program.expression(1 + r % 3);
      const std::string text = program.head() + "report E(" + e.text + ")\n";
      ++all;
      double value = 0, error = 0;
      try {
        const auto result = limit_of(text, engine(Engine::kMoments));
        value = result.reports[0].value[0];
        error = result.reports[0].error.empty() ? 0 : result.reports[0].error[0];
      } catch (const std::exception& refused) {
        EXPECT_NE(std::string(refused.what()).find("E4301"), std::string::npos) << refused.what();
        continue;
      }
      ++known;
      double sum = 0, squares = 0;
      std::vector<double> g(static_cast<std::size_t>(program.rank()));
      for (std::int64_t i = 0; i < kDraws; ++i) {
        for (std::size_t l = 0; l < g.size(); ++l)
          g[l] = normals[static_cast<std::size_t>(i) * g.size() + l];
        const double v = e.value(g);
        sum += v;
        squares += v * v;
      }
      const double mean = sum / kDraws,
                   se = std::sqrt(std::max(0.0, squares / kDraws - mean * mean) / kDraws);
      // Events that no draw met have a probability below 20 / draws.
      EXPECT_LT(std::abs(value - mean),
                6 * std::hypot(se, error) + 1e-12 * (1 + std::abs(mean)) + 20.0 / kDraws)
          << text << "value " << value << " +- " << error << ", Monte Carlo " << mean << " +- "
          << se;
    }
  }
  EXPECT_GT(known, 2 * all / 3) << "of " << all;
}

TEST(VarianceZero, ComparisonsAreOfTheDifference) {
  // x[2] = x[0] + x[1] with probability 1.
  const std::string head =
      "width n\nrandom x : [3, n] ~ normal(0, [[1, 0.5, 1.5], [0.5, 1, 1.5], [1.5, 1.5, "
      "3]])\nrandom y : [n] ~ normal(0, 1)\n";
  for (const Case& c :
       std::vector<Case>{{"x[2] == x[0] + x[1]", 1},
                         {"x[2] > x[0] + x[1]", 0},
                         {"x[2] >= x[0] + x[1]", 1},
                         {"x[0] > x[1]", 0.5},
                         {"max(x[0], x[1])", std::sqrt(0.5 / std::numbers::pi)},
                         {"max(x[2], x[0] + x[1]) - x[2]", 0},
                         {"min(x[0], x[1]) * x[2]", 1.5},
                         {"max(y, y * (1 + 1e-14))", 0},
                         {"max(y, y * E(x[0]^2)) * y", 1},
                         {"min(max(y, y * E(x[0]^2)), y) * y", 1},
                         {"clip(y, y * E(x[0]^2), y) * y", 1},
                         {"(x[2] == x[0] + x[1]) * abs(y)", std::sqrt(2 / std::numbers::pi)}}) {
    const LimitResult limit =
        limit_of(head + "report E(" + c.expression + ")\n", engine(Engine::kMoments));
    EXPECT_NEAR(limit.reports[0].value[0], c.value, 1e-14) << c.expression;
  }
}

// c -> (2 / pi) arcsin c, layer by layer: pairs far apart do not have the errors of those nearby.
TEST(VarianceZero, DeepJumpsKeepTheirDigits) {
  for (const double c : {0.6, 0.0, -0.8, 0.999}) {
    const std::string text = fmt::format(
        "width n\ndata X = [[1, 0], [{}, {}], [1, 1e-9]]\nparam U : [n, 2] ~ normal(0, 1)\nparam W "
        ": [24, n, n] ~ normal(0, 1 / n)\nz = sign(U @ X)\nfor l in 0..24 {{ z = sign(W[l] @ z) "
        "}}\n"
        "report gram(z)\n",
        c, std::sqrt(1 - c * c));
    const LimitResult limit = limit_of(text, engine(Engine::kMoments));
    double right = c;
    for (int l = 0; l <= 24; ++l) right = 2 / std::numbers::pi * std::asin(right);
    EXPECT_NEAR(limit.reports[0].value[1], right, limit.reports[0].error[1] + 1e-15) << c;
    EXPECT_LE(limit.reports[0].error[1], 1e-11) << c;
  }
}

// P(u > 0, v > 0) = arctan(c) / 2 pi for v = -u - c w: what is left of 1 + correlation is rounding.
TEST(VarianceZero, OppositeSidesOfJumps) {
  for (double c = 1e-2; c > 1e-10; c /= 10)
    for (const auto& [text, right] : std::vector<std::pair<std::string, double>>{
             {"step(y) * step(-y - {} * z)", std::atan(c) / (2 * std::numbers::pi)},
             {"step(y) * step(y - {} * z)", 0.5 - std::atan(c) / (2 * std::numbers::pi)},
             {"sign(y) * sign(-y - {} * z)", -1 + 2 * std::atan(c) / std::numbers::pi}}) {
      const LimitResult limit = limit_of(
          "width n\nrandom y : [n] ~ normal(0, 1)\nrandom z : [n] ~ normal(0, 1)\nreport E(" +
              fmt::format(fmt::runtime(text), c) + ")\n",
          engine(Engine::kMoments));
      const double error = limit.reports[0].error.empty() ? 0 : limit.reports[0].error[0];
      EXPECT_NEAR(limit.reports[0].value[0], right, error + 1e-15) << text << " " << c;
      EXPECT_LE(error, 1e-7);
    }
}

}  // namespace
}  // namespace tplimit::test
