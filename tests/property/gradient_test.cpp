/// Gradients of random programs against central differences taken by the finite-width engine itself: the program shifts
/// its own parameters (theta + h d, W + h a b') and reports its value again.

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/property/random_program.hpp"
#include "tests/support/run.hpp"

namespace tplimit::test {
namespace {

constexpr int kSamples = 3;
constexpr int kWidth = 16;
constexpr double kStep = 1e-3;
/// Relative to the sum of the sizes of the parts: h^4 f^(5) / 30 of the four-point formula with h = 1e-3, and rounding
/// 1e-16 / h, both leave a margin of three digits.
constexpr double kTolerance = 1e-6;

struct Parameter {
  const char* name;
  enum Kind { kVector, kMatrix, kFinite } kind;
  const char* shape;
  const char* law;
};
constexpr std::array<Parameter, 10> kParameters{{{"U", Parameter::kVector, "[n, 2]", "normal(0, 0.5)"},
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
    text += fmt::format("param {} : {} ~ {}{}\n", p.name, p.shape, p.law, p.kind == Parameter::kVector ? ", lr = n" : "");
    // Directions: blocks of the same shape, a b'/n for matrices.
    if (p.kind == Parameter::kMatrix) text += fmt::format("random l{0} : [n] ~ normal(0, 1)\nrandom r{0} : [n] ~ normal(0, 1)\n", p.name);
    else text += fmt::format("random d{} : {} ~ normal(0, 1)\n", p.name, p.shape);
  }
  return text;
}

/// `value` is a call that gives a scalar from the parameters as they stand; `before` are statements run first, at the
/// shifted parameters.  Reports the value at 0, +-h, +-2h and the inner product of gradient and direction, by parameter.
std::string with_differences(const std::string& head, const std::string& before, const std::string& value) {
  std::string text = head;
  for (const Parameter& p : kParameters) text += fmt::format("{0}0 = {0}\n", p.name);
  text += before + fmt::format("value = {}\n", value);
  for (const Parameter& p : kParameters) {
    text += fmt::format("g{0} = grad(value, {0}0)\n", p.name);
    switch (p.kind) {
      case Parameter::kVector: text += fmt::format("report D{0} = n * sum(E(g{0} * d{0}))\n", p.name); break;
      case Parameter::kFinite: text += fmt::format("report D{0} = sum(g{0} * d{0})\n", p.name); break;
      case Parameter::kMatrix: text += fmt::format("report D{0} = E(l{0} * (g{0} @ r{0}))\n", p.name); break;
    }
  }
  text += "report value\n";
  for (const int k : {1, -1, 2, -2}) {
    const double h = k * kStep;
    for (const Parameter& p : kParameters) {
      if (p.kind == Parameter::kMatrix) text += fmt::format("{0} = {0}0 + ({1} / n) * outer(l{0}, r{0})\n", p.name, h);
      else text += fmt::format("{0} = {0}0 + {1} * d{0}\n", p.name, h);
    }
    text += before + fmt::format("value = {}\nreport at{} = value\n", value, k < 0 ? fmt::format("m{}", -k) : fmt::format("p{}", k));
  }
  return text;
}

struct Outcome {
  double gradient = 0, difference = 0, uncertainty = 0, size = 0;
  bool usable = true;
};

Outcome measure(const std::string& text, int width = kWidth) {
  const SimulationResult r = networks_of(text, width, 1, Matrices::kDense);
  const auto value = [&](const std::string& name) { return report(r, name).value[0]; };
  Outcome out;
  for (const Parameter& p : kParameters) {
    const double part = value(std::string("D") + p.name);
    out.gradient += part;
    out.size += std::abs(part);
  }
  const double narrow = (value("atp1") - value("atm1")) / (2 * kStep), wide = (value("atp2") - value("atm2")) / (4 * kStep);
  out.difference = (4 * narrow - wide) / 3;
  // A jump of the second derivative (elu) between the points spoils the fourth order; rounding: 1e-15 |value| / h.
  out.uncertainty = 1e-3 * std::abs(narrow - wide) + 1e-12 * std::abs(value("value"));
  out.usable = std::isfinite(out.gradient) && out.size < 1e4 && out.size > 1e-6;
  return out;
}

void expect_agreement(const Outcome& o, const std::string& text) {
  EXPECT_LE(std::abs(o.gradient - o.difference), kTolerance * o.size + o.uncertainty) << "gradient " << o.gradient << " difference " << o.difference << "\n" << text;
}

std::string random_loss(Dice& dice, RandomModel& model) {
  switch (dice.below(5)) {
    case 0: return fmt::format("mse({}, y)", model.number());
    case 1: return fmt::format("mean(tanh({}) * q)", model.number());
    case 2: return fmt::format("mse({} + q, y) + 0.3 * mean({}^2)", model.number(), model.number());
    case 3: return fmt::format("sum(E({0} * {1})) + trace(gram({1}))", model.newest(), model.bounded());
    default: return fmt::format("norm(A @ {}) + sum(einsum(\"pq,q->p\", gram({}), q)^2)", model.number(), model.bounded());
  }
}

std::string random_model(Dice& dice, const char* name, int statements) {
  RandomModel model(dice, kSamples, {});
  model.grow(statements);
  const std::string loss = model.line(random_loss(dice, model));
  return fmt::format("model {}(x) {{\n{}  return {}\n}}\n", name, model.text(), loss);
}

TEST(Gradient, AgreesWithCentralDifferencesOnRandomPrograms) {
  int used = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "loss", 4 + dice.below(8));
    const std::string text = with_differences(head, "", "loss(X)");
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 180);
}

TEST(Gradient, AgreesThroughTrainingSteps) {
  // The value after two steps as a function of the parameters before them: derivatives of updates and of gradients.
  int used = 0;
  for (std::uint64_t seed = 1000; seed < 1030; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "first", 2 + dice.below(4)) + random_model(dice, "second", 2 + dice.below(4));
    const std::string steps = fmt::format("step sgd(first(X), lr = {})\n{}step sgd(second(X), lr = 0.05){}\n", dice.number(0.05, 0.1), dice.chance(0.5) ? "W *= 0.9 + 0.1 * tanh(s)\n" : "",
                                          dice.chance(0.5) ? ", sgd(first(X), lr = 0.03)" : "");
    const std::string text = with_differences(head, steps, dice.pick({"first(X)", "second(X)", "first(X) * second(X)"}));
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 24);
}

TEST(Gradient, OfAGradientAgreesToo) {
  int used = 0;
  for (std::uint64_t seed = 2000; seed < 2040; ++seed) {
    Dice dice(seed);
    const std::string head = preamble(dice) + random_model(dice, "loss", 2 + dice.below(5));
    const std::string scalar = dice.pick({"n * E(grad(l, v)^2)", "sum(E(tanh(n * grad(l, U))))", "E(lW * (grad(l, W) @ tanh(b)))", "sum(grad(l, A)^2) + grad(l, c) * s",
                                          "E((grad(l, V)' @ lV) * (grad(l, W) @ v)) * n", "mean(E(n * grad(l, b) * grad(l, v)))", "n * sum(E(grad(l, U)^2)) + sum(q * grad(l, q))"});
    const std::string text = with_differences(head + fmt::format("model twice(x) {{\n  l = loss(x)\n  return {}\n}}\n", scalar), "", "twice(X)");
    SCOPED_TRACE(fmt::format("seed {}", seed));
    const Outcome o = measure(text);
    if (!o.usable) continue;
    ++used;
    expect_agreement(o, text);
    if (HasFailure()) return;
  }
  EXPECT_GE(used, 28);
}

}  // namespace
}  // namespace tplimit::test
