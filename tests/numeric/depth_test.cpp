#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

// Powers of the depth, against the classification of residual networks in Tensor Programs VI:
// layers x + L^-alpha phi(W x) whose updates have size L^-gamma are stable iff alpha >= 1/2 and
// alpha + gamma >= 1, nontrivial iff alpha + gamma <= 1, faithful iff gamma >= 0.
namespace tplimit {
namespace {

using Answer = DepthVerdict::Answer;

struct Net {
  double alpha = 0.5, gamma = 0.5;
  std::string phi = "";        ///< "tanh"; empty: linear layers, which are exact
  std::string step = "sgd";    ///< or an entrywise optimiser
  std::string ends = "param";  ///< of U and v: trained, or "random"
  std::string readout = "1";   ///< variance of v
};

/// Rates that make updates of size L^-gamma: gradients carry L^-alpha, which entrywise optimisers
/// do not see.
DepthCheck measured(const Net& net, int steps = 1,
                    const std::vector<int>& depths = {8, 16, 32, 64}) {
  const bool entrywise = net.step != "sgd";
  const std::string wide = net.ends == "param" && !entrywise ? ", lr = n" : "";
  const std::string text = fmt::format(
      "width n\ndepth L = 1\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\n"
      "{} U : [n, 2] ~ normal(0, 1/2){}\nparam W : [L, n, n] ~ normal(0, 1/n), lr = L^{}\n"
      "{} v : [n] ~ normal(0, {}){}\nfor t in 0..{} {{\n  x = U @ X\n"
      "  for l in 0..L {{ x = x + L^-{} * {}(W[l] @ x) }}\n  f = v @ x / n\n  report f\n"
      "  step {}(mse(f, y), lr = 0.1)\n}}\n",
      net.ends, wide, entrywise ? -net.gamma : net.alpha - net.gamma, net.ends, net.readout, wide,
      steps, net.alpha, net.phi, net.step);
  const Source source("test.tp", text);
  std::vector<Module> modules;
  for (const int depth : depths) {
    LowerOptions set;
    set.constants = {{"L", std::to_string(depth)}};
    auto module = parse(source, set);
    if (!module) throw std::runtime_error(render(module.errors(), source));
    modules.push_back(std::move(*module));
  }
  EvaluateOptions options;
  options.particles = 1024;
  options.randomisations = 4;
  return depth_check(modules, steps, options);
}

const DepthSize& size(const DepthCheck& check, const std::string& name, int step) {
  for (const DepthSize& s : check.sizes)
    if (s.name == name && s.step == step) return s;
  throw std::runtime_error("no size " + name);
}

void expect_power(const DepthCheck& check, const std::string& name, int step, Exponent power) {
  const auto found = size(check, name, step).simple();
  ASSERT_TRUE(found) << name;
  EXPECT_EQ(to_string(*found), to_string(power)) << name << " after " << step;
}

TEST(Depth, SizesAreThoseOfTheClosedForm) {
  const DepthCheck check = measured({});
  const DepthSize& x = size(check, "x over l", 0);
  for (std::size_t k = 0; k < check.depths.size(); ++k) {
    // E x_l^2 = |X|^2 / 2 (1 + 1/L)^l for l = 1..L, the mean over two samples.
    const double L = static_cast<double>(check.depths[k]), start = (1.25 + 1.09) / 4;
    double sum = 0;
    for (int l = 1; l <= static_cast<int>(L); ++l) sum += start * std::pow(1 + 1 / L, l);
    EXPECT_NEAR(x.sizes[k]->value, std::sqrt(sum / L), 1e-12);
  }
}

TEST(Depth, DepthMupIsStableNontrivialFaithfulAndDiverse) {
  const DepthCheck check = measured({}, 2);
  const DepthVerdict v = verdict(check);
  EXPECT_EQ(v.stable, Answer::kYes);
  EXPECT_EQ(v.nontrivial, Answer::kYes);
  EXPECT_EQ(v.faithful, Answer::kYes);
  EXPECT_EQ(v.diverse, Answer::kYes);
  EXPECT_TRUE(v.advice.empty());
  expect_power(check, "step of x from layer to layer, relative", 0, {-1, 2});
  for (const int step : {1, 2}) {
    expect_power(check, "update of (W[l] @ x)", step, {-1, 2});
    expect_power(check, "change of f by W", step, 0);
    expect_power(check, "change of f by U", step, 0);
  }
}

TEST(Depth, WithoutMultiplierActivationsExplode) {
  const DepthCheck check = measured({0, 1});
  const DepthVerdict v = verdict(check);
  EXPECT_EQ(v.stable, Answer::kNo);
  EXPECT_TRUE(size(check, "x over l", 0).power->faster);
  expect_power(check, "step of x from layer to layer, relative", 0, 0);
  ASSERT_EQ(v.advice.size(), 1U);
  EXPECT_TRUE(v.advice[0].starts_with("x: what a layer adds times L^(-1/2)")) << v.advice[0];
}

TEST(Depth, StableAndNontrivialWhereTheClassificationSaysSo) {
  for (const auto& [alpha, gamma] : {std::pair(0.5, 0.5), std::pair(0.5, 1.0), std::pair(0.5, 0.0),
                                     std::pair(1.0, 0.0), std::pair(1.0, 0.5)}) {
    const DepthCheck check = measured({alpha, gamma, "", "sgd", "random"});
    const DepthVerdict v = verdict(check);
    const double both = alpha + gamma;
    EXPECT_EQ(v.stable, both >= 1 ? Answer::kYes : Answer::kNo) << alpha << " " << gamma;
    EXPECT_EQ(v.nontrivial, both <= 1 ? Answer::kYes : Answer::kNo) << alpha << " " << gamma;
    EXPECT_EQ(v.diverse, alpha == 0.5 ? Answer::kYes : Answer::kNo) << alpha << " " << gamma;
  }
}

TEST(Depth, LayersOfTooLargeMultipliersAreUnfaithful) {
  const DepthCheck check = measured({1.25, -0.25});
  const DepthVerdict v = verdict(check);
  EXPECT_EQ(v.stable, Answer::kYes);
  EXPECT_EQ(v.nontrivial, Answer::kYes);
  EXPECT_EQ(v.faithful, Answer::kNo);
  EXPECT_EQ(v.diverse, Answer::kNo);
  expect_power(check, "update of (W[l] @ x)", 1, {1, 4});
}

TEST(Depth, RatesThatAreTooSmallOrTooLargeAreCorrected) {
  const DepthVerdict slow = verdict(measured({0.5, 1}));
  EXPECT_EQ(slow.stable, Answer::kYes);
  EXPECT_EQ(slow.nontrivial, Answer::kYes);  // by U and v
  EXPECT_EQ(slow.advice, std::vector<std::string>{"param W: lr times L^(1/2)"});
  const DepthVerdict fast = verdict(measured({0.5, 0}));
  EXPECT_EQ(fast.stable, Answer::kNo);
  EXPECT_EQ(fast.advice, std::vector<std::string>{"param W: lr times L^(-1/2)"});
}

TEST(Depth, AReadoutThatStartsAtZeroIsSeenAfterTheSecondStep) {
  const DepthCheck check = measured({0.5, 1, "", "sgd", "param", "0"}, 2);
  EXPECT_EQ(size(check, "change of f by W", 1).growth(), DepthGrowth::kZero);
  // -0.50, with errors of 0.07: its sign only.
  EXPECT_EQ(size(check, "change of f by W", 2).growth(), DepthGrowth::kVanishes);
}

TEST(Depth, SampledAsWell) {
  const DepthCheck check = measured({0.5, 0.5, "tanh"}, 1, {4, 8, 16, 32});
  const DepthVerdict v = verdict(check);
  EXPECT_NE(v.stable, Answer::kNo);  // few particles may leave it open
  EXPECT_NE(v.nontrivial, Answer::kNo);
  EXPECT_EQ(v.diverse, Answer::kYes);
  expect_power(check, "step of x from layer to layer, relative", 0, {-1, 2});
  expect_power(check, "update of W[l] @ x", 1, {-1, 2});
}

TEST(Depth, NoVerdictContradictsTheClassification) {
  for (const char* ends : {"param", "random"})
    for (const double alpha : {0.5, 0.75, 1.0})
      for (const double gamma : {0.0, 0.25, 0.5}) {
        const DepthVerdict v = verdict(measured({alpha, gamma, "", "sgd", ends}));
        const double both = alpha + gamma;
        const bool trained = std::string(ends) == "param";  // U and v move outputs by order 1, too
        EXPECT_NE(v.stable, both >= 1 ? Answer::kNo : Answer::kYes) << alpha << " " << gamma;
        EXPECT_NE(v.nontrivial, both <= 1 || trained ? Answer::kNo : Answer::kYes)
            << alpha << " " << gamma;
      }
}

TEST(Depth, BetweenMultiplesOfAQuarterNothingIsClaimed) {
  // Corrections of order L^(-0.1): changes have slopes of -0.07 at these depths, and size 1.
  const DepthVerdict v = verdict(measured({0.55, 0.45}));
  EXPECT_NE(v.stable, Answer::kNo);
  EXPECT_NE(v.nontrivial, Answer::kNo);
}

TEST(Depth, WhatGrowsBesideLargerTermsIsSeenInItsShare) {
  // Slopes of the change of f are -0.03, 0.01 and 0.04: U and v move it more at these depths.
  EXPECT_NE(verdict(measured({0.75, 0})).stable, Answer::kYes);
}

TEST(Depth, SlowCorrectionsAreNoPowers) {
  // (1 + L^(-3/2))^L tends to 1 like L^(-1/2).
  const DepthCheck check = measured({0.75, 0.25});
  for (const DepthSize& s : check.sizes)
    if (s.what == DepthQuantity::kValue || s.what == DepthQuantity::kChange) {
      EXPECT_NE(s.growth(), DepthGrowth::kGrows) << s.name;
    }
  EXPECT_NE(verdict(check).stable, Answer::kNo);
  EXPECT_EQ(verdict(check).diverse, Answer::kNo);
}

TEST(Depth, WhatErrorsDoNotSettleIsUndetermined) {
  DepthSize s{"x", "", DepthQuantity::kValue};
  const std::vector<double> depths{8, 16, 32, 64};
  const auto with = [&](double error) {
    s.sizes.clear();
    for (std::size_t k = 0; k < depths.size(); ++k) s.sizes.emplace_back(Estimate{1, error});
    s.power = limiting_power(depths, {1, 1, 1, 1}, std::vector<double>(4, error));
    return s.growth();
  };
  EXPECT_EQ(with(1e-4), DepthGrowth::kBounded);
  EXPECT_EQ(with(0.05), DepthGrowth::kUndetermined);
}

}  // namespace
}  // namespace tplimit
