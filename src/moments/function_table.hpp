#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/math/dual_kernels.hpp"

namespace tplimit::moments {

inline constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// factor * g(scale x) with g of a closed form.
struct Recognised {
  DualFunction g;
  double factor = 1, scale = 1;
};

/// E f(u) g(v) = factor * kernel(scale_f^2 a, scale_g^2 b, scale_f scale_g c).
struct PairForm {
  double scale_f = 1, scale_g = 1, factor = 1;
  std::function<MomentStatus(std::span<const double> a, std::span<const double> b,
                             std::span<const double> c, std::span<double> K)>
      kernel;
  const DualFunction* both =
      nullptr;             ///< g, where f and g are one function up to factors and scales
  bool symmetric = false;  ///< f and g are the same
};

/// f(x) = exp(constant + linear x + quadratic x^2) rest(x).
struct Exponential {
  double constant = 0, linear = 0, quadratic = 0;
  int rest = 0;
  [[nodiscard]] bool trivial() const { return linear == 0 && quadratic == 0; }
};

/// Functions of one number, composed from the coordinatewise functions of the IR; equal
/// compositions get equal numbers.
class FunctionTable {
 public:
  using Id = int;
  static constexpr Id kIdentity = 0;

  FunctionTable();

  /// x -> map(operands), each operand a function of x or a constant.
  Id compose(const ir::Map& map, const std::vector<std::variant<Id, double>>& operands);
  Id times(Id a, Id b) { return compose({ir::Fn::kMul, 0}, {a, b}); }
  Id scaled(double factor, Id f) { return compose({ir::Fn::kMul, 0}, {factor, f}); }
  /// x -> f(scale x + shift).
  Id shifted(Id f, double scale, double shift);
  /// Almost everywhere.
  Id derivative(Id f);

  /// The exponential of a quadratic polynomial that f contains as a factor.
  const Exponential& exponential(Id f);

  /// y[i] = f(x[i]).  Thread-safe.
  void evaluate(Id f, std::int64_t count, const double* x, double* y) const;
  /// Elementary functions evaluated so far, a call as much as kCall of them.
  [[nodiscard]] double evaluations() const { return static_cast<double>(evaluations_); }

  /// f as a program of coordinatewise functions whose node 0 is x.
  [[nodiscard]] const ir::Program& program(Id f) const {
    return functions_[static_cast<std::size_t>(f)].program;
  }
  [[nodiscard]] ir::NodeId output(Id f) const {
    return functions_[static_cast<std::size_t>(f)].out;
  }
  /// Values of the nodes of such a program up to `out`, at count points.
  static void run(const ir::Program& program, std::int64_t count, const double* x,
                  std::vector<std::vector<double>>& values, ir::NodeId out);

  /// The closed form of f's Gaussian moments, also if f was written by hand: x (1 + erf(x /
  /// sqrt(2))) / 2 is gelu.
  [[nodiscard]] const std::optional<Recognised>& closed_form(Id f) const {
    return functions_[static_cast<std::size_t>(f)].closed;
  }
  /// Pieces of f if they are polynomials that meet at 0.
  [[nodiscard]] const std::optional<PiecewisePolynomial>& piecewise(Id f) const {
    return functions_[static_cast<std::size_t>(f)].piecewise;
  }
  /// The closed form of E f(u) g(v); refers to the table.
  [[nodiscard]] std::optional<PairForm> pair_form(Id f, Id g) const;
  /// c_0, c_1, .. if f is a polynomial.
  [[nodiscard]] const std::optional<std::vector<double>>& polynomial(Id f) const {
    return functions_[static_cast<std::size_t>(f)].polynomial;
  }
  /// 1 if f(-x) = f(x), -1 if f(-x) = -f(x), as far as its composition shows; else 0.
  [[nodiscard]] int parity(Id f) const;
  /// Where f or a derivative jumps.
  [[nodiscard]] const std::vector<double>& kinks(Id f) const {
    return functions_[static_cast<std::size_t>(f)].kinks;
  }
  /// (position, height) where f itself jumps; heights to 1e-13.
  [[nodiscard]] std::vector<std::pair<double, double>> jumps(Id f) const;
  /// Whether f is 0 almost everywhere, as x == c is.
  [[nodiscard]] bool null(Id f) const {
    const auto& own = functions_[static_cast<std::size_t>(f)];
    const auto zero = [](double c) { return c == 0; };
    return own.null ||
           (own.piecewise &&
            std::all_of(own.piecewise->above.begin(), own.piecewise->above.end(), zero) &&
            std::all_of(own.piecewise->below.begin(), own.piecewise->below.end(), zero));
  }
  /// False if f has more kinks or poles than quadrature can split at.
  [[nodiscard]] bool integrable(Id f) const {
    return functions_[static_cast<std::size_t>(f)].integrable;
  }

 private:
  struct Function {
    ir::Program program;  ///< node 0 is x
    ir::NodeId out;
    std::optional<Recognised> closed;
    std::optional<PiecewisePolynomial> piecewise;
    std::optional<std::vector<double>> polynomial;
    std::vector<double> kinks;
    bool integrable = true;
    Id derivative = -1;
    std::optional<Exponential> exponential{};
    bool null = false;  ///< 0 but at points
  };
  Id intern(ir::Program program, ir::NodeId out);
  static void recognise(Function& f);
  static void find_kinks(Function& f);

  static constexpr std::int64_t kCall = 16;
  mutable std::atomic<std::int64_t> evaluations_ = 0;
  std::deque<Function> functions_;  // references stay good
  std::unordered_map<std::string, Id> known_;
};

}  // namespace tplimit::moments
