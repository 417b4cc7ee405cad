#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tplimit/math/normals.hpp"

/// Random small programs, as text.  The same seed gives the same program everywhere: no standard
/// distribution is used.
namespace tplimit::test {

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : key_(mix_key(0x64696365ULL, seed)) {}
  int below(int n) {
    return static_cast<int>(mix_key(key_, count_++) % static_cast<std::uint64_t>(n));
  }
  bool chance(double p) { return uniform() < p; }
  double uniform() { return static_cast<double>(mix_key(key_, count_++) >> 11) * 0x1p-53; }
  /// A number with two decimals.
  std::string number(double low, double high) {
    return fmt::format("{:.2f}", low + (high - low) * uniform());
  }
  template <class T>
  const T& pick(const std::vector<T>& items) {
    return items[static_cast<std::size_t>(below(static_cast<int>(items.size())))];
  }
  std::string pick(std::initializer_list<const char*> items) {
    return items.begin()[below(static_cast<int>(items.size()))];
  }

 private:
  std::uint64_t key_, count_ = 0;
};

/// Statements of a model body.  Values are blocks [P, n] ("features"), numbers [P] ("outputs") and
/// scalars, all of size about one at any width.  The model sees parameters U, U2 : [n, d], W, V :
/// [n, n], b, v : [n], A : [P, P], c, s : [].
class RandomModel {
 public:
  struct Allowed {
    bool averages = true;  ///< E(..), gram and v @ z enter later maps
    bool shapes = true;    ///< slices, stacks, einsum, products with finite matrices
    bool rational = true;  ///< quotients, roots, powers
    std::vector<std::string> maps{"tanh",      "sigmoid", "softplus", "silu", "gelu",
                                  "gelu_tanh", "erf",     "sin",      "cos",  "elu"};
  };

  RandomModel(Dice& dice, int samples, Allowed allowed)
      : dice_(dice), samples_(samples), allowed_(std::move(allowed)) {
    features_.push_back(line(dice_.chance(0.5) ? "U @ x" : "U @ x + b"));
    features_.push_back(line(fmt::format("{}({})", map(), features_[0])));
  }

  void grow(int statements) {
    for (int k = 0; k < statements; ++k) add_statement();
  }

  /// A matrix product of a bounded feature, then a map: one more hidden layer.
  void add_layer() {
    const std::string h = line(product() + " @ " + bounded());
    features_.push_back(line(fmt::format("{}({})", map(), dice_.chance(0.3) ? h + " + b" : h)));
  }

  std::string output() {  // [P]
    const std::string z = bounded();
    return line(dice_.pick({"v @ {} / n", "E(v * {})", "E({}) + v @ {} / n"}), z);
  }

  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] const std::string& newest() const { return features_.back(); }
  std::string line(const std::string& expression) {
    const std::string name = fmt::format("a{}", count_++);
    text_ += fmt::format("  {} = {}\n", name, expression);
    return name;
  }
  std::string line(std::string expression, const std::string& argument) {
    for (std::size_t at; (at = expression.find("{}")) != std::string::npos;)
      expression.replace(at, 2, argument);
    return line(expression);
  }
  std::string map() { return dice_.pick(allowed_.maps); }
  std::string feature() { return dice_.pick(features_); }
  /// A feature through a bounded map, so that products and exponentials stay tame.
  std::string bounded() {
    return line(fmt::format("{}({} * {})", dice_.pick({"tanh", "sin", "erf", "cos", "sigmoid"}),
                            dice_.number(0.4, 1.2), feature()));
  }
  std::string number() {
    return outputs_.empty() || dice_.chance(0.5) ? output() : dice_.pick(outputs_);
  }
  void add_output() { outputs_.push_back(number()); }

 private:
  std::string product() { return dice_.pick({"W", "W'", "V", "V'", "W", "W'"}); }

  void add_statement() {
    const auto keep = [&](const std::string& expression) { features_.push_back(line(expression)); };
    switch (dice_.below(14)) {
      case 0:
      case 1:
      case 2: return add_layer();
      case 3: return keep(fmt::format("{}({} * {})", map(), dice_.number(0.5, 1.5), feature()));
      case 4: return keep(fmt::format("{} * {}", bounded(), bounded()));
      case 5:
        return keep(fmt::format("{} {} {} * {}", feature(), dice_.pick({"+", "-"}),
                                dice_.number(0.2, 0.8), feature()));
      case 6: return keep(fmt::format("{} + {} * b", bounded(), dice_.pick({"c", "s", "0.5"})));
      case 7:
        return keep(fmt::format("exp(0.5 * {}) {} square({})", bounded(),
                                dice_.pick({"+", "-", "*"}), bounded()));
      case 8:
        if (!allowed_.averages) return add_layer();
        return keep(fmt::format("{} * {} + {}", bounded(),
                                line(fmt::format("{}({})", map(), number())), bounded()));
      case 9:
        if (!allowed_.averages) return add_layer();
        switch (dice_.below(4)) {
          case 0:
            return keep(fmt::format("einsum(\"pq,qn->pn\", gram({}), {})", bounded(), bounded()));
          case 1: return keep(fmt::format("{0} - E({0})", feature()));
          case 2: return keep(fmt::format("tanh(U2 @ (U' @ {} / n))", bounded()));
          default:
            return keep(fmt::format("(outer({}, {}) / n) @ {}", bounded(), bounded(), bounded()));
        }
      case 10:
        if (!allowed_.shapes) return add_layer();
        switch (dice_.below(4)) {
          case 0: return keep(fmt::format("einsum(\"pq,qn->pn\", A, {})", bounded()));
          case 1: {
            const std::string z = bounded();
            std::string rows;
            for (int k = 0; k < samples_; ++k)
              rows += fmt::format("{}{}[{}]", k ? ", " : "", z, dice_.below(samples_));
            return keep(fmt::format("stack({})", rows));
          }
          case 2: {
            std::string rows;
            for (int k = 0; k < samples_; ++k)
              rows += fmt::format("{}{}", k ? ", " : "", dice_.below(samples_));
            return keep(fmt::format("{}[[{}]]", bounded(), rows));
          }
          default: return keep(fmt::format("{} * mean({}, axis = 0)", bounded(), bounded()));
        }
      case 11:
        if (!allowed_.rational) return add_layer();
        switch (dice_.below(5)) {
          case 0: return keep(fmt::format("{} / (1 + {}^2)", bounded(), feature()));
          case 1: return keep(fmt::format("sqrt(1 + {}^2)", feature()));
          case 2: return keep(fmt::format("log(2 + {})", bounded()));
          case 3:
            return keep(
                fmt::format("(2 + {}) ^ tanh({})", bounded(), allowed_.averages ? number() : "c"));
          default:
            return keep(
                fmt::format("(1.5 + {})^{}", bounded(), dice_.pick({"-1", "3", "2.5", "-0.5"})));
        }
      case 12:
        if (!allowed_.shapes) return add_layer();
        return keep(fmt::format("concat({0}[1..{2}], {1}[0..1])", feature(), bounded(), samples_));
      default: return add_output();
    }
  }

  Dice& dice_;
  int samples_, count_ = 0;
  Allowed allowed_;
  std::string text_;
  std::vector<std::string> features_, outputs_;
};

/// A network of random depth and maps, W and W' used again and again, trained for up to three steps
/// (of a flow: two), some matrices updated by hand.
inline std::string random_training(Dice& dice, bool flow = false) {
  constexpr int kSamples = 3;
  RandomModel::Allowed allowed;
  for (const char* kinked : {"relu", "abs", "leaky_relu", "relu"})
    allowed.maps.emplace_back(kinked);
  const auto row = [&](int count) {
    std::string out = "[";
    for (int k = 0; k < count; ++k) out += (k ? ", " : "") + dice.number(-1.2, 1.2);
    return out + "]";
  };
  std::string text =
      fmt::format("width n\nfn square(z) = z^2\ndata X = [{}, {}, {}]\ndata y = {}\n", row(2),
                  row(2), row(2), row(3));
  text += fmt::format(
      "param U : [n, 2] ~ normal(0, 0.5), lr = n\nparam U2 : [n, 2] ~ normal(0.2, 1), lr = "
      "n\nparam W : [n, n] ~ normal(0, {}/n)\n",
      dice.number(0.5, 1.5));
  text += fmt::format(
      "param V : [n, n] ~ normal({}/n, 1/n)\nparam b : [n] ~ normal(0.1, 0.25), lr = n\nparam v : "
      "[n] ~ normal({}, 1), lr = n\n",
      dice.pick({"0", "0.3"}), dice.pick({"0", "0.5"}));
  text +=
      "param A : [3, 3] ~ normal(0, 0.3)\nparam c : [] ~ normal(0, 1)\nparam s : [] ~ normal(1, "
      "0.2)\n";
  RandomModel model(dice, kSamples, allowed);
  for (int layers = dice.below(3); layers > 0; --layers) model.add_layer();
  model.grow(1 + dice.below(5));
  const std::string z = model.bounded();
  text +=
      fmt::format("model f(x) {{\n{}  return {}, {}\n}}\n", model.text(), "v @ " + z + " / n", z);
  const int steps = flow ? 1 + dice.below(2) : dice.below(4);
  const std::string decay = dice.chance(0.3) ? "  W *= 0.9\n" : "", rate = dice.number(0.2, 0.8);
  text += fmt::format("for t in 0..{} {{\n  out, z = f(X)\n  step {}(mse(out, y), {} = {})\n{}}}\n",
                      steps, flow ? "flow" : "sgd", flow ? "dt" : "lr", rate, decay);
  if (dice.chance(0.3)) text += "a, z = f(X)\nW += 0.5 / n * outer(z, tanh(W @ z))\n";
  text +=
      "out, z = f(X)\nreport out, mse(out, y), gram(z), E(z^3), last = E(sin(W' @ z) * (V @ tanh(W "
      "@ z)))\n";
  return text;
}

}  // namespace tplimit::test
