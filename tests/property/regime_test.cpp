#include <random>

#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

// Counting against the classification of abc-parametrisations [TP4, section 3], over random exponents.
namespace tplimit {
namespace {

struct Exponents {
  Exponent a, b, c;
};

std::string list(const std::vector<Exponents>& layers, Exponent Exponents::* member) {
  // One role for all hidden layers.
  const std::size_t last = layers.size() - 1, middle = std::min<std::size_t>(1, last);
  const auto text = [&](std::size_t k) { return fmt::format("({})", to_string(layers[k].*member)); };
  return fmt::format("({}, {}, {})", text(0), text(middle), text(last));
}

/// A tanh network with `hidden` hidden layers, `steps` steps on two samples.
std::string network(const std::string& parametrization, int hidden, int steps) {
  std::string out = "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\nparametrization " + parametrization + "\nparam U : input [n, 2] ~ normal(0, 1)\n";
  std::string last = "h1";
  for (int l = 2; l <= hidden; ++l) out += fmt::format("param W{} : hidden [n, n] ~ normal(0, 1)\n", l);
  out += "param v : output [n] ~ normal(0, 1)\n";
  out += fmt::format("for t in 0..{} {{\n  h1 = U @ X\n", steps + 1);
  for (int l = 2; l <= hidden; ++l) out += fmt::format("  h{} = W{} @ tanh(h{})\n", l, l, l - 1);
  out += fmt::format("  f = v @ tanh(h{})\n  loss = mse(f, y)\n  report loss\n  step sgd(loss, lr = 0.1)\n}}\n", hidden);
  return out;
}

RegimeReport counted(const std::string& program) {
  auto module = parse(Source("test.tp", program));
  if (!module) ADD_FAILURE() << render(module.errors(), Source("test.tp", program));
  return regime(*module);
}

/// Layers 1..L+1: input, hidden .., output.
Regime by_formula(const std::vector<Exponents>& w) {
  const std::size_t last = w.size() - 1;
  const Exponents& v = w[last];
  const auto least = [](Exponent x, Exponent y) { return x < y ? x : y; };
  Exponent inner = 2 * w[0].a + w[0].c + 1;
  for (std::size_t l = 1; l < last; ++l) inner = least(inner, 2 * w[l].a + w[l].c);
  const Exponent r = least(v.a + v.b, 2 * v.a + v.c) - 1 + inner;
  const bool stable = v.a + v.b >= Exponent(1, 2) && r >= 0 && 2 * v.a + v.c >= 1 && v.a + v.b + r >= 1;
  if (!stable) return Regime::kUnstable;
  if (v.a + v.b + r != 1 && 2 * v.a + v.c != 1) return Regime::kTrivial;
  return r == 0 ? Regime::kFeatures : Regime::kKernel;
}

TEST(Counting, AgreesWithTheClassificationOnRandomExponents) {
  std::mt19937 random(7);
  const auto quarter = [&](int low, int high) { return Exponent(std::uniform_int_distribution<int>(low, high)(random), 4); };
  std::map<Regime, int> seen;
  for (int trial = 0; trial < 1000; ++trial) {
    const int hidden = 1 + trial % 3;
    std::vector<Exponents> w(static_cast<std::size_t>(hidden) + 1);
    const bool one_rate = trial % 2 == 0;
    const Exponent c = quarter(-4, 8);
    const Exponent middle_a = quarter(-2, 4), middle_c = quarter(-4, 8);
    for (std::size_t l = 0; l < w.size(); ++l) {
      const bool output = l + 1 == w.size();
      w[l].a = output || l == 0 ? quarter(-4, 4) : middle_a;
      // The conditions at the start hold; the output's b is free.
      const Exponent start = l == 0 ? Exponent(0) : output ? quarter(1, 6) : Exponent(1, 2);
      w[l].b = start - w[l].a;
      w[l].c = one_rate ? c : output || l == 0 ? quarter(-4, 8) : middle_c;
      // Half of the time near the edge, where the regimes meet.
      if (output && trial % 4 < 2) w[l].c = 1 - 2 * w[l].a;
      if (!output && trial % 8 < 4) w[l].c = (l == 0 ? Exponent(-1) : Exponent(0)) + Exponent(1, 2) * Exponent(trial % 3) - 2 * w[l].a;
    }
    if (hidden > 2)
      for (std::size_t l = 2; l + 1 < w.size(); ++l) w[l] = w[1];
    const std::string text = fmt::format("abc(a = {}, b = {}, c = {})", list(w, &Exponents::a), list(w, &Exponents::b), list(w, &Exponents::c));
    const Regime expected = by_formula(w), found = counted(network(text, hidden, 2)).regime;
    ++seen[expected];
    ASSERT_EQ(to_string(found), std::string(to_string(expected))) << text << ", hidden layers: " << hidden;
    // The symmetry leaves the verdict unchanged, layer by layer.
    for (std::size_t l = 0; l < w.size(); ++l) {
      const Exponent t = l == 0 ? Exponent(1, 4) : l + 1 == w.size() ? Exponent(-1, 2) : Exponent(3, 4);
      w[l] = {w[l].a + t, w[l].b - t, w[l].c - 2 * t};
    }
    const std::string other = fmt::format("abc(a = {}, b = {}, c = {})", list(w, &Exponents::a), list(w, &Exponents::b), list(w, &Exponents::c));
    ASSERT_EQ(to_string(counted(network(other, hidden, 2)).regime), std::string(to_string(expected))) << other;
  }
  for (const Regime regime : {Regime::kUnstable, Regime::kTrivial, Regime::kKernel, Regime::kFeatures}) EXPECT_GT(seen[regime], 30) << to_string(regime);
}

}  // namespace
}  // namespace tplimit
