/// Gradients of random programs against central differences taken by the finite-width engine
/// itself: the program shifts its own parameters (theta + h d, W + h a b') and reports its value
/// again.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/property/random_program.hpp"
#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

/// TPLIMIT_MORE=10 runs ten times as many programs.
std::uint64_t more() {
  const char* factor = std::getenv("TPLIMIT_MORE");
  return factor ? std::strtoull(factor, nullptr, 10) : 1;
}
const std::uint64_t kMore = more();

constexpr int kSamples = 3;
constexpr int kWidth = 16;
constexpr double kStep = 2e-4;
constexpr double kFineStep = 1e-5;  // rarely crosses a kink
/// Relative to the sum of the sizes of the parts: h^4 f^(5) / 30 of the four-point formula with h =
/// 2e-4, and rounding 1e-16 / h, both leave a margin of three digits.
constexpr double kTolerance = 1e-6;

struct Parameter {
  const char* name;
  enum Kind { kVector, kMatrix, kFinite } kind;
  const char* shape;
  const char* law;
};
constexpr std::array<Parameter, 10> kParameters{
    {{"U", Parameter::kVector, "[n, 2]", "normal(0, 0.5)"},
     {"U2", Parameter::kVector, "[n, 2]", "normal(0, 1)"},
     {"W", Parameter::kMatrix, "[n, n]", "normal(0, 1/n)"},
     {"V", Parameter::kMatrix, "[n, n]", "normal(0.3/n, 1.5/n)"},
     {"b", Parameter::kVector, "[n]", "normal(0.1, 0.25)"},
     {"v", Parameter::kVector, "[n]", "normal(0.5, 1)"},
     {"A", Parameter::kFinite, "[3, 3]", "normal(0, 0.5)"},
     {"c", Parameter::kFinite, "[]", "normal(0, 1)"},
     {"s", Parameter::kFinite, "[]", "normal(1, 0.2)"},
     {"q", Parameter::kFinite, "[3]", "normal(0, 1)"}}};

std::string preamble(Dice& dice) {
  std::string text = "width n\nfn square(z) = z^2\n";
  const auto row = [&](int count) {
    std::string out = "[";
    for (int k = 0; k < count; ++k) out += (k ? ", " : "") + dice.number(-1.2, 1.2);
    return out + "]";
  };
  text += fmt::format("data X = [{}, {}, {}]\ndata y = {}\n", row(2), row(2), row(2), row(3));
  for (const Parameter& p : kParameters) {
    text += fmt::format("param {} : {} ~ {}{}\n", p.name, p.shape, p.law,
                        p.kind == Parameter::kVector ? ", lr = n" : "");
    // Directions: blocks of the same shape, a b'/n for matrices.
    if (p.kind == Parameter::kMatrix)
      text += fmt::format("random l{0} : [n] ~ normal(0, 1)\nrandom r{0} : [n] ~ normal(0, 1)\n",
                          p.name);
    else
      text += fmt::format("random d{} : {} ~ normal(0, 1)\n", p.name, p.shape);
  }
  return text;
}

/// `value` is an expression that gives a scalar from the parameters as they stand; `before` are
/// statements run first, at the shifted parameters.  Reports the value at 0, +-h, +-2h and the
/// inner product of gradient and direction, by parameter.
std::string with_differences(const std::string& head, const std::string& before,
                             const std::string& value, double step = kStep) {
  std::string text = head;
  for (const Parameter& p : kParameters) text += fmt::format("{0}0 = {0}\n", p.name);
  text += before + fmt::format("value = {}\n", value);
  for (const Parameter& p : kParameters) {
    text += fmt::format("g{0} = grad(value, {0}0)\n", p.name);
    switch (p.kind) {
      case Parameter::kVector:
        text += fmt::format("report D{0} = n * sum(E(g{0} * d{0}))\n", p.name);
        break;
      case Parameter::kFinite:
        text += fmt::format("report D{0} = sum(g{0} * d{0})\n", p.name);
        break;
      case Parameter::kMatrix:
        text += fmt::format("report D{0} = E(l{0} * (g{0} @ r{0}))\n", p.name);
        break;
    }
  }
  text += "report value\n";
  for (const int k : {1, -1, 2, -2}) {
    const double h = k * step;
    for (const Parameter& p : kParameters) {
      if (p.kind == Parameter::kMatrix)
        text += fmt::format("{0} = {0}0 + ({1} / n) * outer(l{0}, r{0})\n", p.name, h);
      else
        text += fmt::format("{0} = {0}0 + {1} * d{0}\n", p.name, h);
    }
    text += before + fmt::format("value = {}\nreport at{} = value\n", value,
                                 k < 0 ? fmt::format("m{}", -k) : fmt::format("p{}", k));
  }
  return text;
}

struct Outcome {
  double gradient = 0, difference = 0, uncertainty = 0, size = 0;
  bool usable = true;
};

Outcome measure(const std::string& text, bool kinks = false, double step = kStep) {
  const SimulationResult r = networks_of(text, kWidth, 1, Matrices::kDense);
  const auto value = [&](const std::string& name) { return report(r, name).value[0]; };
  Outcome out;
  for (const Parameter& p : kParameters) {
    const double part = value(std::string("D") + p.name);
    out.gradient += part;
    out.size += std::abs(part);
  }
  const double narrow = (value("atp1") - value("atm1")) / (2 * step),
               wide = (value("atp2") - value("atm2")) / (4 * step);
  out.difference = (4 * narrow - wide) / 3;
  // A kink between the points spoils the fourth order: the two differences then say by how much.
  // Rounding: 1e-15 |value| / h.
  out.uncertainty =
      (kinks ? 1.0 : 1e-3) * std::abs(narrow - wide) + 2e-15 / step * std::abs(value("value"));
  out.usable = std::isfinite(out.gradient) && out.size < 1e4 && out.size > 1e-6;
  return out;
}

void expect_agreement(const Outcome& o, const std::string& text) {
  EXPECT_LE(std::abs(o.gradient - o.difference), kTolerance * o.size + o.uncertainty)
      << "gradient " << o.gradient << " difference " << o.difference << "\n"
      << text;
}

std::string random_loss(Dice& dice, RandomModel& model) {
  switch (dice.below(5)) {
    case 0: return fmt::format("mse({}, y)", model.number());
    case 1: return fmt::format("mean(tanh({}) * q)", model.number());
    case 2: return fmt::format("mse({} + q, y) + 0.3 * mean({}^2)", model.number(), model.number());
    case 3:
      return fmt::format("sum(E({0} * {1})) + trace(gram({1}))", model.newest(), model.bounded());
    default:
      return fmt::format("norm(A @ {}) + sum(einsum(\"pq,q->p\", gram({}), q)^2)", model.number(),
                         model.bounded());
  }
}

/// `smooth`: second derivatives exist everywhere too.
std::string random_model(Dice& dice, const char* name, int statements, bool smooth = false) {
  RandomModel::Allowed allowed;
  if (smooth) std::erase(allowed.maps, "elu");
  RandomModel model(dice, kSamples, allowed);
  model.grow(statements);
  const std::string loss = model.line(random_loss(dice, model));
  return fmt::format("model {}(x) {{\n{}  return {}\n}}\n", name, model.text(), loss);
}

TEST(Gradient, AgreesWithCentralDifferencesOnRandomPrograms) {
  std::uint64_t used = 0;
  for (std::uint64_t seed = 0; seed < 2000 * kMore; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "loss", 4 + dice.below(8));
    const std::string text = with_differences(head, "", "loss(X)");
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text, text.find(" elu(") != std::string::npos);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 1800 * kMore);
}

TEST(Gradient, AgreesThroughTrainingSteps) {
  // The value after two steps as a function of the parameters before them: derivatives of updates
  // and of gradients.
  std::uint64_t used = 0;
  for (std::uint64_t seed = 10000; seed < 10000 + 300 * kMore; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "first", 2 + dice.below(4), true) +
                             random_model(dice, "second", 2 + dice.below(4), true);
    const std::string steps =
        fmt::format("step sgd(first(X), lr = {})\n{}step sgd(second(X), lr = 0.05){}\n",
                    dice.number(0.05, 0.1), dice.chance(0.5) ? "W *= 0.9 + 0.1 * tanh(s)\n" : "",
                    dice.chance(0.5) ? ", sgd(first(X), lr = 0.03)" : "");
    const std::string text =
        with_differences(head, steps, dice.pick({"first(X)", "second(X)", "first(X) * second(X)"}));
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 240 * kMore);
}

TEST(Gradient, IsTheOneSidedDerivativeBesideAKink) {
  int sharp = 0;
  const std::vector<std::string> kinked{"relu(z)",
                                        "leaky_relu(z)",
                                        "leaky_relu(z, 0.3)",
                                        "elu(z, 0.5)",
                                        "abs(z)",
                                        "max(z, tanh(w))",
                                        "min(z, w * z)",
                                        "clip(z, -0.5, s)",
                                        "where(z < w, z^2, w)",
                                        "where(w >= 0.1, z, w) * z",
                                        "max(z, axis = 0) * w",
                                        "min(z, axis = 0) + w",
                                        "mod(z, 0.7 + w^2)",
                                        "sign(z) * w + step(w) * z",
                                        "max(E(z * w)) * z",
                                        "(z > 0) * z * w",
                                        "max(min(z, w), axis = 0) + abs(w)^1.5"};
  for (std::uint64_t seed = 0; seed < 2 * kinked.size(); ++seed) {
    Dice dice(40000 + seed);
    RandomModel model(dice, kSamples, {});
    model.grow(3);
    const std::string z = model.line("U @ x + 0.5 * b"), w = model.line("W @ tanh(V' @ " + z + ")");
    std::string expression = kinked[seed / 2];
    for (const auto& [from, to] : {std::pair{"w", w}, std::pair{"z", z}})
      for (std::size_t at = 0; (at = expression.find(from, at)) != std::string::npos;
           at += to.size()) {
        const auto letter = [&](std::size_t k) {
          return k < expression.size() && std::isalpha(static_cast<unsigned char>(expression[k]));
        };
        if (letter(at - 1) || letter(at + 1))
          at += 1 - to.size();
        else
          expression.replace(at, 1, to);
      }
    const std::string k = model.line(expression);
    const std::string loss =
        model.line(fmt::format("mean(E({} * {})) + mse(v @ {} / n, y)", k, model.bounded(), k));
    const std::string head =
        preamble(dice) + fmt::format("model loss(x) {{\n{}  return {}\n}}\n", model.text(), loss);
    const std::string text = with_differences(head, "", "loss(X)", kFineStep);
    SCOPED_TRACE(fmt::format("seed {}: {}", seed, kinked[seed / 2]));
    const Outcome o = measure(text, true, kFineStep);
    EXPECT_TRUE(o.usable);
    expect_agreement(o, text);
    sharp += o.uncertainty < 1e-6 * o.size;
    if (HasFailure()) return;
  }
  EXPECT_GE(sharp, static_cast<int>(kinked.size()));
}

TEST(Gradient, TakesWhatIsStoppedForAConstant) {
  for (std::uint64_t seed = 30000; seed < 30000 + 100 * kMore; ++seed) {
    Dice dice(seed);
    const auto features = [&](const char* name) {
      RandomModel::Allowed allowed;
      std::erase(allowed.maps, "elu");
      RandomModel model(dice, kSamples, allowed);
      model.grow(4);
      const std::string z = model.bounded(), f = model.number();
      return fmt::format("model {}(x) {{\n{}  return {}, {}\n}}\n", name, model.text(), z, f);
    };
    const std::string head = preamble(dice) + features("one") + features("two") +
                             "model both(x, z, f) {\n  z2, f2 = two(x)\n  return mean(E(z * z2) * "
                             "f2 + f * tanh(f2)^2 + E(z^2))\n}\n";
    const std::string text = with_differences(head, "", "both(X, z, f)");
    // At the base point z and f depend on the parameters, but are stopped; in the differences they
    // keep their values.
    const std::string base = "z, f = one(X)\nz = stop(z)\nf = stop(f)\nvalue = both";
    std::string with_base = text;
    with_base.replace(with_base.find("value = both"), std::string("value = both").size(), base);
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(with_base);
    EXPECT_TRUE(o.usable);
    expect_agreement(o, with_base);
    if (HasFailure()) return;
  }
}

TEST(Gradient, OfAGradientAgreesToo) {
  std::uint64_t used = 0;
  for (std::uint64_t seed = 20000; seed < 20000 + 300 * kMore; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "loss", 2 + dice.below(5), true);
    const std::string scalar = dice.pick(
        {"n * E(grad(l, v)^2)", "sum(E(tanh(n * grad(l, U))))", "E(lW * (grad(l, W) @ tanh(b)))",
         "sum(grad(l, A)^2) + grad(l, c) * s", "E((grad(l, V)' @ lV) * (grad(l, W) @ v)) * n",
         "mean(E(n * grad(l, b) * grad(l, v)))", "n * sum(E(grad(l, U)^2)) + sum(q * grad(l, q))"});
    const std::string text = with_differences(
        head + fmt::format("model twice(x) {{\n  l = loss(x)\n  return {}\n}}\n", scalar), "",
        "twice(X)");
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 150 * kMore);
}

}  // namespace
}  // namespace tplimit::test
