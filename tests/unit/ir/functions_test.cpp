/// Each record of the table of functions: what it says of a function is true of its values.

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tplimit/ir/functions.hpp"

namespace tplimit::ir {
namespace {

/// Each function with the parameters that its record treats differently.
std::vector<Map> maps(int arity) {
  std::vector<Map> out;
  for (const Function& f : functions()) {
    if (f.arity != arity) continue;
    if (f.default_parameter)
      for (const double a : {*f.default_parameter, 0.3, -0.7}) out.push_back({f.fn, a});
    else if (f.fn == Fn::kPower)
      for (const double a : {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0, -2.0, 0.5, 1.5})
        out.push_back({f.fn, a});
    else
      out.push_back({f.fn, 0});
  }
  return out;
}

std::string label(const Map& m) { return formula_name(m, false) + std::to_string(m.parameter); }

/// Constants are folded: nodes are numbers.
struct Numbers {
  Program program;
  Builder b{program};

  NodeId operator()(double x) { return b.constant(x); }
  double operator()(NodeId id) {
    const auto* values = b.constant_values(id);
    EXPECT_NE(values, nullptr) << to_text(program);
    return values ? values->front() : std::nan("");
  }
};

double value(const Map& m, const std::vector<double>& x) {
  Numbers n;
  std::vector<NodeId> in;
  for (const double v : x) in.push_back(n(v));
  return n(n.b.map(m.fn, in, m.parameter));
}
double value(const Map& m, double x) { return value(m, std::vector<double>{x}); }
double derivative(const Map& m, double x) {
  Numbers n;
  const NodeId at = n(x);
  return n(derivative_of(n.b, m, at, n.b.map(m.fn, {at}, m.parameter)));
}
/// Fourth order in h.
template <class F>
double difference(F f, double x, double h = 1e-3) {
  return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h);
}

const std::vector<double> kPositive{0.3, 0.9, 1.7, 2.6};
std::vector<double> points(const Map& m) {
  std::vector<double> out = kPositive;
  if (std::isfinite(value(m, -1.7)))
    for (const double x : kPositive) out.push_back(-x);
  return out;
}

TEST(Functions, HaveNamesAndSpellings) {
  std::set<std::string> names;
  for (const Function& f : functions()) {
    EXPECT_TRUE(names.insert(f.name).second) << f.name;
    EXPECT_EQ(&function(f.fn), &f) << f.name;
    EXPECT_EQ(arity(f.fn), f.arity) << f.name;
    ASSERT_NE(f.latex, nullptr) << f.name;
    EXPECT_NE(*f.latex, '\0') << f.name;
    EXPECT_EQ(f.values != nullptr, f.arity == 1) << f.name;
    EXPECT_EQ(f.values_of_several != nullptr, f.arity != 1) << f.name;
    EXPECT_EQ(find_function(f.name), f.in_language ? &f : nullptr) << f.name;
    EXPECT_EQ(f.default_parameter.has_value(), f.parameter_name != nullptr) << f.name;
    EXPECT_EQ(f.default_parameter.has_value(), f.form != nullptr) << f.name;
    EXPECT_TRUE(f.fn <= Fn::kWhere || f.definition) << f.name << ": quadrature does not know it";
  }
  EXPECT_EQ(formula_name({Fn::kElu, 0.5}, true), "\\operatorname{elu[0.5]}");
  EXPECT_EQ(formula_name({Fn::kElu, 1}, true), "\\operatorname{elu}");
}

TEST(Functions, KeepNotANumber) {
  for (const Map& m : maps(1))
    if (m.fn != Fn::kSign && !(m.fn == Fn::kPower && m.parameter == 0)) {
      EXPECT_TRUE(std::isnan(value(m, std::nan("")))) << label(m);
    }
}

TEST(Functions, DerivativesAreThoseOfTheValues) {
  for (const Map& m : maps(1))
    for (const double x : points(m)) {
      const double expected = difference([&](double t) { return value(m, t); }, x);
      EXPECT_NEAR(derivative(m, x), expected, 1e-8 * (1 + std::abs(expected))) << label(m) << x;
    }
}

TEST(Functions, PartialDerivativesAreThoseOfTheValues) {
  for (const int arity : {2, 3})
    for (const Map& m : maps(arity))
      for (const std::vector<double>& at :
           {std::vector<double>{1.3, 0.8, 2.2}, std::vector<double>{0.4, 1.1, -0.6}}) {
        const std::vector<double> x(at.begin(), at.begin() + arity);
        for (std::size_t k = 0; k < x.size(); ++k) {
          Numbers n;
          std::vector<NodeId> in;
          for (const double v : x) in.push_back(n(v));
          const NodeId y = n.b.map(m.fn, in), slope = times_partial(n.b, m, in, y, k, n(2.0));
          const double expected = difference(
              [&](double t) {
                std::vector<double> moved = x;
                moved[k] = t;
                return value(m, moved);
              },
              x[k]);
          EXPECT_NEAR(slope.valid() ? n(slope) : 0.0, 2 * expected, 1e-8) << label(m) << k;
        }
      }
}

TEST(Functions, SlopesOfFormulasAreDerivatives) {
  for (const Map& m : maps(1)) {
    const Function& f = function(m.fn);
    if (f.traits.derivative_is_itself) {
      for (const double x : points(m)) EXPECT_DOUBLE_EQ(derivative(m, x), value(m, x)) << label(m);
    }
    if (!f.slope) continue;
    const Slope s = f.slope(m.parameter);
    for (const double x : points(m)) {
      const double of = s.order == 0 ? value(s.of, x) : derivative(s.of, x);
      EXPECT_NEAR(s.constant + s.factor * of, derivative(m, x), 1e-12) << label(m) << x;
    }
  }
}

TEST(Functions, DefinitionsHaveTheSameValues) {
  for (const Map& m : maps(1))
    if (const auto definition = function(m.fn).definition)
      for (const double x : points(m)) {
        Numbers n;
        EXPECT_DOUBLE_EQ(n(definition(n.b, m.parameter, n(x))), value(m, x)) << label(m) << x;
      }
}

TEST(Functions, SymmetriesAndDegreesAreThoseOfTheValues) {
  for (const Map& m : maps(1)) {
    const FunctionTraits t = traits_of(m);
    for (const double x : points(m)) {
      const double y = value(m, x);
      if (t.parity == FunctionTraits::Parity::kOdd) {
        EXPECT_DOUBLE_EQ(value(m, -x), -y) << label(m) << x;
      }
      if (t.parity == FunctionTraits::Parity::kEven) {
        EXPECT_DOUBLE_EQ(value(m, -x), y) << label(m) << x;
      }
      if (t.odd_up_to_constant) {
        EXPECT_NEAR(value(m, x) + value(m, -x), value(m, 1.0) + value(m, -1.0), 1e-14) << label(m);
      }
      if (t.degree) {
        for (const double c : {0.5, 3.0})
          EXPECT_NEAR(value(m, c * x), std::pow(c, to_double(*t.degree)) * y,
                      1e-13 * std::abs(value(m, c * x)))
              << label(m) << x;
      }
      if (t.positive) {
        EXPECT_GT(y, 0) << label(m) << x;
      }
      if (t.bounded) {
        EXPECT_LE(std::abs(value(m, 1e3 * x)), 1) << label(m) << x;
      }
    }
  }
}

TEST(Functions, AtZeroAreWhatTheRecordSays) {
  for (const Map& m : maps(1)) {
    const FunctionTraits t = traits_of(m);
    if (t.degree && *t.degree < 0) continue;
    EXPECT_EQ(t.finite_everywhere, std::isfinite(value(m, 0.0))) << label(m);
    if (!t.finite_everywhere) continue;
    EXPECT_DOUBLE_EQ(value(m, 0.0), t.at_zero) << label(m);
    if (!t.degree) {  // phi(0) + phi'(0) x is asked for only where no degree tells more
      EXPECT_NEAR(difference([&](double x) { return value(m, x); }, 0.0, 1e-4), t.slope_at_zero,
                  t.first_delta == 2 ? 1
                  : t.first_delta    ? 1e-4
                                     : 1e-6)
          << label(m);
    }
  }
}

/// leading_order, graded, determinacy and the engines' ranges of samples name these functions:
/// another one that jumps or has a kink must be told to them, or given a trait they ask.
TEST(Functions, ThatBreakAreThoseThatAnalysesName) {
  std::set<Fn> jumps, kinks, other;
  for (const Map& m : maps(1)) {
    const FunctionTraits t = traits_of(m);
    if (t.first_delta == 1) jumps.insert(m.fn);
    if (t.first_delta == 2) (t.degree ? kinks : other).insert(m.fn);
  }
  EXPECT_EQ(jumps, (std::set{Fn::kSign, Fn::kStep}));
  EXPECT_EQ(kinks, (std::set{Fn::kAbs, Fn::kRelu, Fn::kLeakyRelu}));
  EXPECT_EQ(other, (std::set{Fn::kElu}));
}

/// Values, slopes and slopes of slopes on both sides of 0.
TEST(Functions, BreakWhereTheRecordSays) {
  for (const Map& m : maps(1)) {
    const FunctionTraits t = traits_of(m);
    if (!t.smooth_on_pieces || !t.finite_everywhere) continue;
    const double h = 1e-6;
    const auto second = [&](double x) { return (derivative(m, 2 * x) - derivative(m, x)) / x; };
    const double jumps[] = {std::abs(value(m, h) - value(m, -h)),
                            std::abs(derivative(m, h) - derivative(m, -h)),
                            std::abs(second(h) - second(-h))};
    for (int k = 0; k < 3; ++k) {
      if (t.first_delta && k + 1 > *t.first_delta) break;
      const bool jump = jumps[k] > 1e-3;
      EXPECT_EQ(jump, t.first_delta == k + 1) << label(m) << " " << k << " " << jumps[k];
      if (jump != (t.first_delta == k + 1)) break;
    }
    if (t.constant_on_pieces) {
      for (const double x : points(m)) EXPECT_EQ(derivative(m, x), 0) << label(m);
    }
  }
}

TEST(Functions, OfTwoArgumentsBreakWhereTheRecordSays) {
  for (const Map& m : maps(2)) {
    const FunctionTraits t = traits_of(m);
    if (!t.smooth_on_pieces || m.fn == Fn::kDiv) continue;
    const double c = 0.7, h = 1e-6;
    const auto f = [&](double x) { return value(m, {x, c}); };
    const double jump = std::abs(f(c + h) - f(c - h)),
                 kink = std::abs((f(c + 2 * h) - f(c + h)) - (f(c - h) - f(c - 2 * h))) / h;
    EXPECT_EQ(jump > 1e-3, t.first_delta == 1) << label(m);
    if (t.first_delta != 1) {
      EXPECT_EQ(kink > 1e-3, t.first_delta == 2) << label(m);
    }
    EXPECT_EQ(t.constant_on_pieces, f(c + 0.1) == f(c + 0.2) && f(c - 0.1) == f(c - 0.2))
        << label(m);
  }
}

}  // namespace
}  // namespace tplimit::ir
