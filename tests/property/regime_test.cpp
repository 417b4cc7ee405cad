#include <algorithm>
#include <array>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "tplimit/driver/driver.hpp"

// Counting against the classification of abc-parametrisations [TP4, section 3], over random
// exponents.
namespace tplimit {
namespace {

struct Exponents {
  Exponent a, b, c, d{};
};

std::string list(const std::vector<Exponents>& layers, Exponent Exponents::*member) {
  // One role for all hidden layers.
  const std::size_t last = layers.size() - 1, middle = std::min<std::size_t>(1, last);
  const auto text = [&](std::size_t k) {
    return fmt::format("({})", to_string(layers[k].*member));
  };
  return fmt::format("({}, {}, {})", text(0), text(middle), text(last));
}

/// A tanh network with `hidden` hidden layers, `steps` steps on two samples.
std::string network(const std::string& parametrization, int hidden, int steps,
                    const std::string& optimiser = "sgd") {
  std::string out = "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\nparametrization " +
                    parametrization + "\nparam U : input [n, 2] ~ normal(0, 1)\n";
  std::string last = "h1";
  for (int l = 2; l <= hidden; ++l)
    out += fmt::format("param W{} : hidden [n, n] ~ normal(0, 1)\n", l);
  out += "param v : output [n] ~ normal(0, 1)\n";
  out += fmt::format("for t in 0..{} {{\n  h1 = U @ X\n", steps + 1);
  for (int l = 2; l <= hidden; ++l) out += fmt::format("  h{} = W{} @ tanh(h{})\n", l, l, l - 1);
  out += fmt::format(
      "  f = v @ tanh(h{})\n  loss = mse(f, y)\n  report loss\n  step {}(loss, {} = 0.1)\n}}\n",
      hidden, optimiser, optimiser == "flow" ? "dt" : "lr");
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
  const bool stable =
      v.a + v.b >= Exponent(1, 2) && r >= 0 && 2 * v.a + v.c >= 1 && v.a + v.b + r >= 1;
  if (!stable) return Regime::kUnstable;
  if (v.a + v.b + r != 1 && 2 * v.a + v.c != 1) return Regime::kTrivial;
  return r == 0 ? Regime::kFeatures : Regime::kKernel;
}

TEST(Counting, AgreesWithTheClassificationOnRandomExponents) {
  std::mt19937 random(7);
  const auto quarter = [&](int low, int high) {
    return Exponent(std::uniform_int_distribution<int>(low, high)(random), 4);
  };
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
      if (!output && trial % 8 < 4)
        w[l].c = (l == 0 ? Exponent(-1) : Exponent(0)) + Exponent(1, 2) * Exponent(trial % 3) -
                 2 * w[l].a;
    }
    if (hidden > 2)
      for (std::size_t l = 2; l + 1 < w.size(); ++l) w[l] = w[1];
    const std::string text = fmt::format("abc(a = {}, b = {}, c = {})", list(w, &Exponents::a),
                                         list(w, &Exponents::b), list(w, &Exponents::c));
    const Regime expected = by_formula(w), found = counted(network(text, hidden, 2)).regime;
    ++seen[expected];
    ASSERT_EQ(to_string(found), std::string(to_string(expected)))
        << text << ", hidden layers: " << hidden;
    if (trial % 5 == 0) {
      ASSERT_EQ(to_string(counted(network(text, hidden, 1, "flow")).regime),
                std::string(to_string(expected)))
          << text << ", by gradient flow";
    }
    // The symmetry leaves the verdict unchanged, layer by layer.
    for (std::size_t l = 0; l < w.size(); ++l) {
      const Exponent t = l == 0              ? Exponent(1, 4)
                         : l + 1 == w.size() ? Exponent(-1, 2)
                                             : Exponent(3, 4);
      w[l] = {w[l].a + t, w[l].b - t, w[l].c - 2 * t};
    }
    const std::string other = fmt::format("abc(a = {}, b = {}, c = {})", list(w, &Exponents::a),
                                          list(w, &Exponents::b), list(w, &Exponents::c));
    ASSERT_EQ(to_string(counted(network(other, hidden, 2)).regime),
              std::string(to_string(expected)))
        << other;
  }
  for (const Regime regime :
       {Regime::kUnstable, Regime::kTrivial, Regime::kKernel, Regime::kFeatures})
    EXPECT_GT(seen[regime], 30) << to_string(regime);
}

// [TP4b]: r_l = c_l + a_l - 1(l > 1), r = min over l <= L.
TEST(Counting, AgreesWithTheClassificationForEntrywiseOptimisers) {
  std::mt19937 random(11);
  const auto quarter = [&](int low, int high) {
    return Exponent(std::uniform_int_distribution<int>(low, high)(random), 4);
  };
  const auto least = [](Exponent x, Exponent y) { return x < y ? x : y; };
  std::map<Regime, int> seen;
  for (int trial = 0; trial < 600; ++trial) {
    const int hidden = 1 + trial % 3;
    const std::size_t last = static_cast<std::size_t>(hidden);
    std::vector<Exponents> w(last + 1);
    for (std::size_t l = 0; l <= last; ++l) {
      w[l].a = quarter(-2, 4);
      w[l].b = (l == 0 ? Exponent(0) : l == last ? quarter(2, 6) : Exponent(1, 2)) - w[l].a;
      const Exponent r = trial % 4 == 0 ? quarter(-1, 3) : quarter(0, 2);
      w[l].c = (trial % 3 && l == last ? Exponent(0) : r) - w[l].a + (l > 0 ? 1 : 0);
    }
    for (std::size_t l = 2; l < last; ++l) w[l] = w[1];
    for (std::size_t l = 0; l <= last; ++l)
      w[l].d = l == last ? w[l].a : w[l].a + w[last].a + w[last].b;
    Exponent r = w[0].c + w[0].a, all = r;
    for (std::size_t l = 1; l <= last; ++l) {
      const Exponent own = w[l].c + w[l].a - 1;
      all = least(all, own);
      if (l < last) r = least(r, own);
    }
    const Exponent start = w[last].a + w[last].b;
    if (w[last].b > w[last].c) continue;  // outside of the classification
    const bool stable = all >= 0 && start + r >= 1 && start >= Exponent(1, 2);
    const bool trivial = w[last].a + w[last].c != 1 && start + r != 1;
    const Regime expected = !stable   ? Regime::kUnstable
                            : trivial ? Regime::kTrivial
                            : r == 0  ? Regime::kFeatures
                                      : Regime::kKernel;
    ++seen[expected];
    const std::string text =
        fmt::format("abcd(a = {}, b = {}, c = {}, d = {})", list(w, &Exponents::a),
                    list(w, &Exponents::b), list(w, &Exponents::c), list(w, &Exponents::d));
    ASSERT_EQ(to_string(counted(network(text, hidden, 2, "signsgd")).regime),
              std::string(to_string(expected)))
        << text << ", hidden layers: " << hidden;
  }
  for (const Regime regime :
       {Regime::kUnstable, Regime::kTrivial, Regime::kKernel, Regime::kFeatures})
    EXPECT_GT(seen[regime], 20) << to_string(regime);
  EXPECT_EQ(counted(network("mup", 2, 2, "signsgd")).regime, Regime::kFeatures);
  EXPECT_TRUE(counted(network("mup", 2, 2, "signsgd")).maximal);
  EXPECT_EQ(counted(network("ntk", 2, 2, "signsgd")).regime, Regime::kKernel);
  // Standard with rate 1/n: features move by order 1 for two hidden layers and more, and the output
  // by n^(1/2).
  EXPECT_EQ(counted(network("standard", 2, 2, "signsgd")).unstable->label,
            "of size n^(1/2) after 1 step");
  EXPECT_EQ(counted(network("standard", 1, 2, "signsgd")).regime, Regime::kKernel);
}

/// Two hidden layers whose laws and rates carry these powers of n, with biases that start at 0.
struct Written {
  std::array<Exponent, 3> variance, rate;
  Exponent decay = 0;
  bool uniform = false, zero_readout = false, nested = false;
  std::string optimiser = "sgd";
  [[nodiscard]] std::string text() const {
    const auto law = [&](std::size_t k, bool matrix) {
      if (zero_readout && k == 2) return std::string("normal(0, 0)");
      if (uniform && !matrix)
        return fmt::format("uniform(-n^({0}), n^({0}))", to_string(variance[k] / 2));
      return fmt::format("normal(0, n^({}))", to_string(variance[k]));
    };
    std::string out = fmt::format(
        "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\n"
        "param U : [n, 2] ~ {}, lr = n^({})\nparam b : [n] ~ normal(0, 0), lr = n^({})\n"
        "param W : [n, n] ~ {}, lr = n^({})\nparam v : [n] ~ {}, lr = n^({})\n",
        law(0, false), to_string(rate[0]), to_string(rate[0]), law(1, true), to_string(rate[1]),
        law(2, false), to_string(rate[2]));
    out += nested ? "model f(x) { return v @ tanh(W @ tanh(U @ x + b)) }\n"
                  : "model f(x) {\n  h = U @ x + b\n  g = W @ tanh(h)\n  return v @ tanh(g)\n}\n";
    out += "for t in 0..3 {\n  out = f(X)\n  loss = mse(out, y)\n  report loss\n";
    const std::string more = decay == Exponent(-9)
                                 ? ""
                                 : fmt::format(", weight_decay = 0.01 * n^({})", to_string(decay));
    return out + fmt::format("  step {}(loss, lr = 0.1{}{})\n}}\n", optimiser,
                             optimiser == "sgd" ? "" : ", eps = 0", more);
  }
};

std::vector<Written> drawn_networks(int count) {
  std::mt19937 random(5);
  const auto half = [&](int low, int high) {
    return Exponent(std::uniform_int_distribution<int>(low, high)(random), 2);
  };
  const char* optimisers[] = {"sgd", "adam", "adamw", "rmsprop"};
  std::vector<Written> out;
  for (int trial = 0; trial < count; ++trial) {
    Written w;
    w.variance = {half(-2, 1), half(-3, -1), half(-4, -1)};
    w.rate = {half(-2, 3), half(-2, 2), half(-3, 3)};
    w.uniform = trial % 2 == 0;
    w.zero_readout = trial % 5 == 0;
    w.nested = trial % 3 == 0;
    w.optimiser = optimisers[trial % 4];
    // A decay that Adam adds to the gradient is a gradient of its own.
    w.decay = w.optimiser == "sgd" || w.optimiser == "adamw" ? half(-2, 2) : Exponent(-9);
    out.push_back(w);
  }
  return out;
}

TEST(Counting, WhatIsAdvisedMakesEveryUpdateMaximal) {
  int advised = 0;
  for (Written w : drawn_networks(240)) {
    const RegimeReport before = counted(w.text());
    if (before.maximal) continue;
    ASSERT_FALSE(before.fixes.empty()) << w.text();
    ++advised;
    const std::map<std::string, std::size_t> places{{"U", 0}, {"W", 1}, {"v", 2}};
    auto module = parse(Source("test.tp", w.text()));
    Exponent decay = 0;
    for (const Fix& fix : before.fixes) {
      decay = std::min(decay, fix.decay);
      const auto at = places.find(module->written->variables[fix.variable].name);
      if (at == places.end()) continue;  // the bias has the rate of U
      w.variance[at->second] += 2 * fix.initial;
      w.rate[at->second] += fix.rate;
    }
    w.decay += decay;
    const RegimeReport after = counted(w.text());
    EXPECT_TRUE(after.maximal) << w.text();
  }
  EXPECT_GT(advised, 200);
}

TEST(Counting, WeightDecayIsNoUpdate) {
  for (Written w : drawn_networks(120)) {
    if (w.decay == Exponent(-9)) continue;
    const RegimeReport with = counted(w.text());
    w.decay = Exponent(-9);
    if (w.optimiser == "adamw") w.optimiser = "adam";
    const RegimeReport without = counted(w.text());
    ASSERT_EQ(with.effects.size(), without.effects.size());
    for (std::size_t k = 0; k < with.effects.size(); ++k) {
      EXPECT_EQ(with.effects[k].update, without.effects[k].update) << w.text();
    }
  }
}

// Adam's second step from a gradient that was 0 at first: m / sqrt(v) has size 1.
TEST(Counting, ReadoutsThatStartAtZero) {
  for (const char* optimiser : {"adam", "rmsprop", "adamw", "signsgd"}) {
    Written w{.variance = {0, -1, -2}, .rate = {0, -1, -1}};
    w.zero_readout = true;
    w.optimiser = optimiser;
    w.decay = w.optimiser == "adamw" ? Exponent(0) : Exponent(-9);
    const RegimeReport found = counted(w.text());
    EXPECT_TRUE(found.maximal) << optimiser;
    EXPECT_FALSE(found.unstable) << optimiser;
  }
}

// The first gradient of queries and keys is n^(-1/2) times the second: no step of Adam is larger
// than its rate for that.
TEST(Counting, StepsOfAdamAreNoLargerThanTheirRate) {
  const char* network = R"(width n
data X = [[1, 0.5], [-0.3, 1], [0.2, -0.4]]
param U : [n, 2] ~ normal(0, 1)
param Q : [n, n] ~ normal(0, 1 / n), lr = 1 / n
param K : [n, n] ~ normal(0, 1 / n), lr = 1 / n
param V : [n, n] ~ normal(0, 1 / n), lr = 1 / n
param v : [n] ~ normal(0, 1)
for t in 0..3 {
  x = U @ X
  out = v @ mean(attention(Q @ x, K @ x, V @ x, ones(3, 3)), axis = 0) / n
  loss = (out - 1)^2
  report loss
  step )";
  for (const char* step :
       {"adam(loss, lr = 0.1, eps = 0)", "rmsprop(loss, lr = 0.1, eps = 0)",
        "adam(loss, lr = 0.1, eps = 0, beta1 = 0, beta2 = 0)", "adamw(loss, lr = 0.1, eps = 0)"}) {
    const RegimeReport found = counted(network + std::string(step) + "\n}\n");
    EXPECT_FALSE(found.unstable) << step;
    EXPECT_TRUE(found.maximal) << step;
  }
}

const Feature& feature(const RegimeReport& report, const std::string& name) {
  const auto it = std::find_if(report.features.begin(), report.features.end(),
                               [&](const Feature& f) { return f.name == name; });
  EXPECT_NE(it, report.features.end()) << name;
  return *it;
}

TEST(Counting, NamedParametrisations) {
  const auto found = [](const char* name, int hidden) {
    return std::string(to_string(counted(network(name, hidden, 2)).regime));
  };
  for (int hidden = 1; hidden <= 4; ++hidden) {
    EXPECT_EQ(found("mup", hidden), "feature learning");
    EXPECT_TRUE(counted(network("mup", hidden, 2)).maximal);
    EXPECT_EQ(found("ntk", hidden), "kernel regime");
    EXPECT_EQ(found("standard", hidden), "kernel regime");
    EXPECT_EQ(found("ip", hidden), hidden < 3 ? "feature learning" : "trivial");
    EXPECT_EQ(found("ip_llr", hidden), "feature learning");
  }
  EXPECT_EQ(found("mean_field", 1), "feature learning");
}

// [IP]: h^l_0 ~ n^(-(l-1)/2); first change from W^l ~ n^(-(L-l)/2-(l-2)), from W^1 ~ n^(-(L-1)/2),
// from the readout ~ n^(-(L-1)); of the output n^(-(L-2)) for L >= 2.
TEST(Counting, IntegrableParametrisationLayerByLayer) {
  for (int L = 2; L <= 5; ++L) {
    const RegimeReport r = counted(network("ip", L, 2));
    for (int l = 1; l <= L; ++l) {
      const StepSize start = feature(r, fmt::format("h{}", l)).steps[0],
                     first = feature(r, fmt::format("h{}", l)).steps[1];
      EXPECT_EQ(start.value, -Exponent(l - 1, 2)) << L << " " << l;
      const Exponent own = l == 1 ? -Exponent(L - 1, 2) : -Exponent(L - l, 2) - (l - 2);
      EXPECT_EQ(first.by_variable[static_cast<std::size_t>(l - 1)], own) << L << " " << l;
      EXPECT_EQ(first.change, own) << L << " " << l;
    }
    const StepSize output = feature(r, "f").steps[1];
    EXPECT_EQ(output.change, Exponent(2 - L)) << L;
    EXPECT_EQ(output.by_variable.back(), -Exponent(L - 1)) << L;
  }
}

// What check advises makes the program maximal.
TEST(Counting, FixesLeadToMaximalUpdates) {
  const auto written = [](const std::string& u, const std::string& w, const std::string& v,
                          const std::string& f) {
    return "width n\ndata X = [[1, 0.5], [-0.3, 1]]\ndata y = [1, -1]\nparam U : [n, 2] ~ "
           "normal(0, 1)" +
           u + "\nparam W : [n, n] ~ normal(0, " + w + "\nparam v : [n] ~ normal(0, " + v +
           "\nfor t in 0..3 {\n  loss = mse(" + f +
           ", y)\n  report loss\n  step sgd(loss, lr = 0.1)\n}\n";
  };
  const RegimeReport right =
      counted(written(", lr = n", "1/n)", "1), lr = n", "v @ tanh(W @ tanh(U @ X)) / n"));
  EXPECT_TRUE(right.maximal);
  EXPECT_TRUE(right.fixes.empty());
  const RegimeReport rate =
      counted(written(", lr = n", "1/n)", "1)", "v @ tanh(W @ tanh(U @ X)) / n"));
  EXPECT_EQ(rate.regime, Regime::kFeatures);
  EXPECT_FALSE(rate.maximal);
  ASSERT_EQ(rate.fixes.size(), 1u);
  EXPECT_EQ(rate.fixes[0].variable, 2u);
  EXPECT_EQ(rate.fixes[0].rate, Exponent(1));
  EXPECT_EQ(rate.fixes[0].initial, Exponent(0));
  const RegimeReport ntk =
      counted(written("", "1)", "1)", "v @ tanh(W @ tanh(U @ X) / sqrt(n)) / sqrt(n)"));
  EXPECT_EQ(ntk.regime, Regime::kKernel);
  EXPECT_TRUE(ntk.gaussian_start);
  std::map<std::uint32_t, std::pair<Exponent, Exponent>> fixes;
  for (const Fix& fix : ntk.fixes) fixes[fix.variable] = {fix.initial, fix.rate};
  EXPECT_EQ(fixes, (std::map<std::uint32_t, std::pair<Exponent, Exponent>>{
                       {0, {0, 1}}, {1, {0, 1}}, {2, {Exponent(-1, 2), 0}}}));
  // Where sizes explode, and where a readout starts at 0.
  const RegimeReport products =
      counted(written("", "1/n)", "1), lr = n", "v @ (relu(W @ tanh(U @ X)) * (U @ X))"));
  EXPECT_EQ(products.regime, Regime::kUnstable);
  fixes.clear();
  for (const Fix& fix : products.fixes) fixes[fix.variable] = {fix.initial, fix.rate};
  EXPECT_EQ(fixes,
            (std::map<std::uint32_t, std::pair<Exponent, Exponent>>{{0, {0, 1}}, {2, {-1, -2}}}));
  const RegimeReport zero = counted(written("", "1/n)", "0)", "v @ tanh(W @ tanh(U @ X)) / n"));
  fixes.clear();
  for (const Fix& fix : zero.fixes) fixes[fix.variable] = {fix.initial, fix.rate};
  EXPECT_EQ(fixes,
            (std::map<std::uint32_t, std::pair<Exponent, Exponent>>{{0, {0, 1}}, {2, {0, 1}}}));
}

// Updates written by hand, weight decay, and a readout that starts at 0.
TEST(Counting, FollowsUpdatesWrittenByHand) {
  const RegimeReport r = counted(R"(width n
data x = [1, 0.5]
param U : [n, 2] ~ normal(0, 1)
param W : [n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 0)
for t in 0..3 {
  h = U @ x
  f = v @ tanh(W @ tanh(h)) / n
  loss = (f - 1)^2 / 2
  report loss
  step sgd(loss, lr = 0.1, only = (W, v), scale = {v: n})
  U -= n * 0.1 * grad(loss, U)
  W *= 0.9
}
)");
  EXPECT_EQ(r.regime, Regime::kFeatures);
  EXPECT_TRUE(r.maximal);
  EXPECT_EQ(r.effects.size(), 3u);
  for (const VariableEffect& e : r.effects) EXPECT_EQ(e.update, Exponent(0)) << e.variable;
}

TEST(Counting, SaysWhereItBecomesUnstable) {
  const RegimeReport large = counted(network("abc(a = (0, 0, 0), b = (0, 1/2, 1/2), c = 0)", 2,
                                             2));  // standard with a constant rate
  EXPECT_EQ(large.regime, Regime::kUnstable);
  ASSERT_TRUE(large.unstable);
  EXPECT_EQ(large.unstable->label, "of size n^(1/2) after 1 step");
  EXPECT_EQ(counted(network("abc(a = (0, 0, 1), b = (0, 0, 0), c = 0)", 2, 2)).unstable->label,
            "of size n^(1/2) at the start");
}

/// Root mean squares of features and output at the start and of their changes after one and two
/// steps, as reports.
std::string measured_network(const std::string& parametrization, int hidden,
                             const std::string& optimiser) {
  std::string text = network(parametrization, hidden, 2);
  const std::size_t loop = text.find("for t");
  std::string forward, reports;
  for (int l = 1; l <= hidden; ++l)
    forward += l == 1 ? "h1T = U @ X\n" : fmt::format("h{0}T = W{0} @ tanh(h{1}T)\n", l, l - 1);
  forward += fmt::format("fT = v @ tanh(h{}T)\n", hidden);
  const auto at = [&](const std::string& tag) {
    std::string out = forward;
    for (std::size_t k; (k = out.find('T')) != std::string::npos;) out.replace(k, 1, tag);
    return out;
  };
  for (int l = 1; l <= hidden; ++l) {
    reports += fmt::format("report start{0} = sqrt(mean(E(h{0}a^2)))\n", l);
    for (const char* t : {"b", "c"})
      reports += fmt::format("report change{0}{1} = sqrt(mean(E((h{0}{1} - h{0}a)^2)))\n", l, t);
  }
  reports +=
      "report start_f = sqrt(mean(fa^2)), change_fb = sqrt(mean((fb - fa)^2)), change_fc = "
      "sqrt(mean((fc - fa)^2))\n";
  const std::string step = "step " + optimiser +
                           "(mse(f{}, y), lr = 1)\n";  // a large rate: terms that lead by one power
                                                       // of n are not hidden by small factors
  return text.substr(0, loop) + at("a") + fmt::format(fmt::runtime(step), "a") + at("b") +
         fmt::format(fmt::runtime(step), "b") + at("c") + reports;
}

TEST(Counting, AgreesWithSlopesOfNetworks) {
  struct Case {
    std::string name;
    int hidden;
    std::string optimiser;
    std::vector<std::int64_t> widths;
    int seeds;
  };
  const std::vector<std::int64_t> wide{64, 256, 1024, 4096}, stored{64, 128, 256, 512};
  const std::vector<Case> cases{
      {"mup", 2, "sgd", wide, 200},      {"ntk", 2, "sgd", wide, 200},
      {"standard", 2, "sgd", wide, 200}, {"mean_field", 1, "sgd", wide, 200},
      {"ip", 2, "sgd", wide, 200},       {"ip", 3, "sgd", wide, 200},
      {"ip_llr", 2, "sgd", wide, 200},   {"mup", 2, "signsgd", stored, 60}};
  for (const auto& [name, hidden, optimiser, widths, seeds] : cases) {
    const std::string text = measured_network(name, hidden, optimiser);
    auto module = parse(Source("test.tp", text));
    ASSERT_TRUE(module) << render(module.errors(), Source("test.tp", text));
    const RegimeReport counted = regime(*module);
    const std::size_t reports = counted.reports.size();
    std::vector<std::vector<double>> size(reports);  // log of the root mean square over networks
    for (const std::int64_t width : widths) {
      SimulateOptions options;
      options.width = width;
      options.seeds = seeds;
      const auto networks = simulate(*module, options);
      ASSERT_TRUE(networks) << networks.errors()[0].message;
      for (std::size_t r = 0; r < reports; ++r) {
        double square = 0;
        for (const auto& run : networks->runs[r]) square += run[0] * run[0] / options.seeds;
        size[r].push_back(0.5 * std::log(square));
      }
    }
    for (std::size_t r = 0; r < reports; ++r) {
      double x = 0, y = 0, xx = 0, xy = 0;
      const double count = static_cast<double>(widths.size());
      for (std::size_t k = 0; k < widths.size(); ++k) {
        const double log_width = std::log(static_cast<double>(widths[k]));
        x += log_width / count;
        y += size[r][k] / count;
        xx += log_width * log_width / count;
        xy += log_width * size[r][k] / count;
      }
      ASSERT_TRUE(counted.reports[r]);
      EXPECT_NEAR((xy - x * y) / (xx - x * x), to_double(*counted.reports[r]), 0.1)
          << name << ", " << optimiser << ", hidden layers: " << hidden << ", "
          << module->program.reports[r].name;
    }
  }
}

}  // namespace
}  // namespace tplimit
