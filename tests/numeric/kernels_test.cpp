/// NNGP and NTK kernels with their errors against recursions in 50 digits: equal, parallel and
/// nearly parallel inputs, great depth.

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <boost/math/constants/constants.hpp>
#include <boost/multiprecision/cpp_bin_float.hpp>

#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

using Real = boost::multiprecision::cpp_bin_float_50;
using Inputs = std::vector<std::vector<double>>;

const Real kPi = boost::math::constants::pi<Real>();

/// A net of hidden layers phi(sqrt(weight / fan-in) W z + bias b), and E phi(u) phi(v), E phi'(u)
/// phi'(v).
struct Net {
  std::string phi;
  double weight, bias;
  int depth;
  Real (*kernel)(const Real& a, const Real& b, const Real& c);
  Real (*slope)(const Real& a, const Real& b, const Real& c);
};

template <int kBelow, int kAbove>  // in tenths
struct Slopes {
  static Real phi(const Real& a, const Real& b, const Real& c) {  // pi - acos(rho)
    const Real D = a * b - c * c;
    return atan2(D > 0 ? Real(sqrt(D)) : Real(0), Real(-c));
  }
  static Real below() { return kBelow == 0 ? Real(0) : Real(kBelow / 10.0); }
  static Real above() { return kAbove == 0 ? Real(0) : Real(kAbove / 10.0); }
  static Real kernel(const Real& a, const Real& b, const Real& c) {
    if (a == 0 || b == 0) return 0;
    const Real D = a * b - c * c, jump = above() - below();
    return jump * jump * ((D > 0 ? Real(sqrt(D)) : Real(0)) + c * phi(a, b, c)) / (2 * kPi) +
           below() * above() * c;
  }
  static Real slope(const Real& a, const Real& b, const Real& c) {
    const Real jump = above() - below();
    return jump * jump * phi(a, b, c) / (2 * kPi) + below() * above();
  }
};
Real erf_kernel(const Real& a, const Real& b, const Real& c) {
  return 2 / kPi * atan2(Real(2 * c), Real(sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c)));
}
Real erf_slope(const Real& a, const Real& b, const Real& c) {
  return 4 / kPi / sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c);
}

struct Kernels {
  std::vector<Real> nngp, ntk;
};

Kernels reference(const Net& net, const Inputs& X) {
  const std::size_t P = X.size();
  const Real weight = net.weight, bias = Real(net.bias) * Real(net.bias);
  Kernels out{std::vector<Real>(P * P), {}};
  for (std::size_t i = 0; i < P; ++i)
    for (std::size_t j = 0; j < P; ++j) {
      Real sum = 0;
      for (std::size_t k = 0; k < X[i].size(); ++k) sum += Real(X[i][k]) * Real(X[j][k]);
      out.nngp[i * P + j] = sum * weight / Real(X[i].size()) + bias;
    }
  out.ntk = out.nngp;
  for (int l = 0; l < net.depth; ++l) {
    const auto c = out.nngp;
    const bool last = l + 1 == net.depth;  // the readout has variance 1 and no bias
    const Real w = last ? Real(1) : weight, b = last ? Real(0) : bias;
    for (std::size_t i = 0; i < P; ++i)
      for (std::size_t j = 0; j < P; ++j) {
        const std::size_t e = i * P + j;
        const Real &a = c[i * P + i], &d = c[j * P + j];
        out.nngp[e] = w * net.kernel(a, d, c[e]) + b;
        out.ntk[e] = (a == 0 || d == 0 ? Real(0) : Real(out.ntk[e] * w * net.slope(a, d, c[e]))) +
                     out.nngp[e];
      }
  }
  return out;
}

std::string program(const Net& net, const Inputs& X, const std::string& reports) {
  std::string rows;
  for (const auto& x : X) {
    rows += rows.empty() ? "[" : ", [";
    for (std::size_t k = 0; k < x.size(); ++k) rows += fmt::format("{}{}", k > 0 ? ", " : "", x[k]);
    rows += "]";
  }
  const bool biased = net.bias != 0;
  const std::string bias = biased ? fmt::format(" + {} * b[{{}}]", net.bias) : "";
  return fmt::format(R"(width n
data X = [{0}]
fn phi(z) = {1}
param U : [n, {2}] ~ normal(0, 1)
param W : [{3}, n, n] ~ normal(0, 1)
param v : [n] ~ normal(0, 1)
{4}
model f(x) {{
  z = phi(sqrt({5} / {2}) * (U @ x){6})
  for l in 0..{7} {{ z = phi(sqrt({5} / n) * (W[l] @ z){8}) }}
  return v @ z / sqrt(n)
}}
{9}
)",
                     rows, net.phi, X[0].size(), std::max(1, net.depth - 1),
                     biased ? fmt::format("param b : [{}, n] ~ normal(0, 1)", net.depth) : "",
                     net.weight, biased ? fmt::format(" + {} * b[0]", net.bias) : "", net.depth - 1,
                     biased ? fmt::format(" + {} * b[l + 1]", net.bias) : "", reports);
}

struct Worst {
  double error = 0, stated = 0, size = 0;  ///< largest true error, stated error and entry
  double nngp_error = 0, nngp_stated = 0;
};

/// Every entry is within its stated error.
Worst check(const Net& net, const Inputs& X) {
  const LimitResult result = limit_of(program(net, X, "report nngp(f, X), ntk(f, X)"), {});
  const Kernels expected = reference(net, X);
  Worst worst;
  for (std::size_t r = 0; r < 2; ++r) {
    const ReportResult& report = result.reports[r];
    EXPECT_EQ(report.method, Method::kClosedForm);
    for (std::size_t e = 0; e < report.value.size(); ++e) {
      const Real& value = r == 0 ? expected.nngp[e] : expected.ntk[e];
      const double error = std::abs(static_cast<double>(Real(report.value[e]) - value));
      EXPECT_LE(error, report.error[e] + 1e-300)
          << net.phi << " depth " << net.depth << " bias " << net.bias
          << (r == 0 ? " nngp " : " ntk ") << e / X.size() << ' ' << e % X.size();
      worst.error = std::max(worst.error, error);
      worst.stated = std::max(worst.stated, report.error[e]);
      worst.size = std::max(worst.size, std::abs(report.value[e]));
    }
    if (r == 0) worst.nngp_error = worst.error, worst.nngp_stated = worst.stated;
  }
  return worst;
}

const Net kRelu{"relu(z)", 2, 0, 2, Slopes<0, 10>::kernel, Slopes<0, 10>::slope};
const std::vector<Net> kKinked{
    kRelu,
    {"relu(z)", 2, 0.3, 3, Slopes<0, 10>::kernel, Slopes<0, 10>::slope},
    {"abs(z)", 1, 0, 3, Slopes<-10, 10>::kernel, Slopes<-10, 10>::slope},
    {"abs(z)", 1, 0.5, 2, Slopes<-10, 10>::kernel, Slopes<-10, 10>::slope},
    {"leaky_relu(z, 0.2)", 1.5, 0, 4, Slopes<2, 10>::kernel, Slopes<2, 10>::slope}};

/// Random inputs with copies, multiples, negatives and neighbours of each other.
Inputs random_inputs(std::mt19937_64& random, std::size_t dims, std::size_t count) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  Inputs X;
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<double> x(dims);
    for (double& u : x) u = normal(random);
    if (i > 0) {
      const auto& other = X[static_cast<std::size_t>(uniform(random) * static_cast<double>(i))];
      const double kind = uniform(random), scale = std::exp(normal(random));
      if (kind < 0.15)
        x = other;
      else if (kind < 0.3)
        for (std::size_t k = 0; k < dims; ++k) x[k] = scale * other[k];
      else if (kind < 0.4)
        for (std::size_t k = 0; k < dims; ++k) x[k] = -other[k];
      else if (kind < 0.5)
        for (std::size_t k = 0; k < dims; ++k) x[k] = -scale * other[k];
      else if (kind < 0.8) {
        const double distance = std::pow(10, -4 - 8 * uniform(random));
        for (std::size_t k = 0; k < dims; ++k)
          x[k] = (kind < 0.7 ? 1 : scale) * (other[k] + distance * x[k]);
      }
    }
    X.push_back(std::move(x));
  }
  return X;
}

TEST(Kernels, TheDiagonalOfReluIsExact) {
  const Inputs X{{0.4, 0.3, 0.5}, {-0.3, 1.2, -0.3}, {-1.5, 0.8, 1.9}, {-1, -0.1, -0.7}};
  const auto result =
      limit_of(program({"relu(z)", 1, 0, 2, nullptr, nullptr}, X, "report 3 * ntk(f, X)"), {});
  for (std::size_t i = 0; i < 4; ++i) {  // 3/4 |x|^2, with a variance of 1/3
    double square = 0;
    for (const double x : X[i]) square += x * x;
    EXPECT_NEAR(result.reports[0].value[5 * i], 0.75 * square, 4e-15);
  }
}

TEST(Kernels, OfKinkedFunctionsForRandomSetsOfInputs) {
  std::mt19937_64 random(1);
  for (int set = 0; set < 1500; ++set) {
    const Net& net = kKinked[static_cast<std::size_t>(set) % kKinked.size()];
    const Inputs X = random_inputs(random, 2 + static_cast<std::size_t>(set) % 6, 5);
    const Worst worst = check(net, X);
    double size = 1;
    for (const auto& x : X)
      for (const double u : x) size = std::max(size, u * u);
    EXPECT_LE(worst.stated, 1e-12 * size) << set;
    if (HasFailure()) return;
  }
}

TEST(Kernels, OfManyInputsAtOnce) {
  std::mt19937_64 random(2);
  for (const Net& net : kKinked) {
    const Worst worst = check(net, random_inputs(random, 3, 70));
    EXPECT_LE(worst.stated, 1e-13 * worst.size);
  }
}

TEST(Kernels, OfDeepReluNetsAtCorrelationOne) {
  const Inputs X{{0.6, -0.8, 0.1}, {0.6, -0.8, 0.1}, {1.8, -2.4, 0.3}, {0.6, -0.8, 0.1 + 1e-9}};
  Net net = kRelu;
  net.depth = 300;
  const Worst worst = check(net, X);
  EXPECT_LE(worst.stated, 1e4 * worst.error);
  EXPECT_LE(worst.error, 1e-9);
}

// The distance of nearby inputs grows from layer to layer, and with it the error.
TEST(Kernels, ErrorsOfDeepErfNetsAreCarried) {
  for (const double distance : {1e-4, 1e-6}) {
    const Worst worst = check({"erf(z)", 9, 0, 30, erf_kernel, erf_slope},
                              {{0.5, 0.2}, {0.5, 0.2 + distance}, {-0.3, 0.9}});
    // From 1e-4 the distance saturates and errors shrink again, which the first-order bound does
    // not see.
    if (distance == 1e-6) {
      EXPECT_LE(worst.nngp_stated, 1e3 * worst.nngp_error);
    }
  }
  for (const double weight : {0.5, 2.0, 9.0})
    for (const int depth : {1, 3, 10})
      (void)check({"erf(z)", weight, 0.2, depth, erf_kernel, erf_slope},
                  {{0.5, 0.2}, {0.5, 0.2001}, {-0.3, 0.9}, {2, 3}});
}

// A chain of layers is evaluated tile by tile, and tiles are longer than the rows that there are:
// with layers reported, and so evaluated one by one, nothing is beyond the rows.
TEST(Kernels, DeepChainsOfFewInputsAreThoseOfTheirLayers) {
  for (const std::string phi :
       {"relu(z)", "gelu(z)", "abs(z)", "erf(z)", "sin(z)", "step(z)", "z^2"})
    for (const std::string inputs : {"[[1]]", "[[1], [0.5]]", "[[0], [10]]", "[[48.4], [0], [-3]]",
                                     "[[1], [2], [3], [4], [5], [6], [7], [8], [100]]"})
      for (const double weight : {0.5, 3.0}) {
        const auto text = [&](const char* where) {
          return fmt::format(
              "width n\ndata X = {}\nrandom U : [n, 1] ~ normal(0, 1)\nrandom W : [6, n, n] ~ "
              "normal(0, {} / n)\nrandom b : [6, n] ~ normal(0, 0.1)\nfn phi(z) = {}\nz = phi(U @ "
              "X)\nfor l in 0..{} {{\n  z = phi(W[l] @ z + b[l])\n{}}}\nreport last = gram(z)\n",
              inputs, weight, phi, phi == "z^2" ? 2 : 6, where);
        };
        EvaluateOptions moments;
        moments.engine = Engine::kMoments;
        const LimitResult chain = limit_of(text(""), moments),
                          layers = limit_of(text("  report gram(z)\n"), moments);
        const std::vector<double>&a = chain.reports.back().value, &b = layers.reports.back().value;
        ASSERT_EQ(a.size(), b.size());
        for (std::size_t k = 0; k < a.size(); ++k)
          EXPECT_NEAR(a[k], b[k], 1e-12 * std::abs(b[k]) + chain.reports.back().error[k])
              << phi << ", " << inputs << ", " << weight;
      }
}

// Errors of nearly parallel inputs grow by orders of magnitude in chaotic nets; those of a variance
// do not.
TEST(Kernels, DiagonalsOfChaoticNetsKeepTheirErrors) {
  for (const std::string phi : {"erf(z)", "sin(z)", "cos(2 * z)"}) {
    const LimitResult limit = limit_of(
        "width n\ndata X = [[1, 0.5], [1.000001, 0.5], [0.2, -1]]\nrandom U : [n, 2] ~ normal(0, 9 "
        "/ 2)\nrandom W : [59, n, n] ~ normal(0, 9 / n)\nfn phi(z) = " +
            phi +
            "\nz = phi(U @ X)\nfor l in 0..59 { z = phi(W[l] @ z) }\nreport gram(z), E(z^2)\n",
        {});
    const ReportResult &gram = limit.reports[0], &squares = limit.reports[1];
    EXPECT_EQ(gram.method, Method::kClosedForm);
    for (std::size_t k = 0; k < 3; ++k) {
      EXPECT_LT(gram.error[4 * k], 1e-13) << phi;
      EXPECT_NEAR(gram.value[4 * k], squares.value[k], 1e-13) << phi;
    }
  }
}

TEST(Kernels, WithAZeroInputAreExact) {
  const Net net{"relu(z)", 1, 0, 2, Slopes<0, 10>::kernel, Slopes<0, 10>::slope};
  (void)check(net, {{1, 0.5}, {0, 0}, {-1, 2}});
}

}  // namespace
}  // namespace tplimit::test
