#include "tplimit/explain/closed_forms.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace tplimit::explain {

using ir::Fn;
using std::numbers::pi;

namespace {

struct Entry {
  Fn fn;
  int order;
  const char *text, *latex;
  double (*value)(double, double, double);
};

double correlation(double a, double b, double c) {
  return std::clamp(c / std::sqrt(a * b), -1.0, 1.0);
}

/// E f(a) f(b).
constexpr std::array kPairs{
    Entry{Fn::kStep, 0, "1/4 + asin(r) / (2 pi)", "\\tfrac14 + \\tfrac{1}{2\\pi} \\arcsin r",
          [](double a, double b, double c) {
            return 0.25 + std::asin(correlation(a, b, c)) / (2 * pi);
          }},
    Entry{Fn::kSign, 0, "(2/pi) asin(r)", "\\tfrac{2}{\\pi} \\arcsin r",
          [](double a, double b, double c) { return 2 / pi * std::asin(correlation(a, b, c)); }},
    Entry{Fn::kRelu, 0, "sqrt(A B) (sqrt(1 - r^2) + (pi - acos(r)) r) / (2 pi)",
          "\\tfrac{1}{2\\pi} \\sqrt{AB} \\left(\\sqrt{1-r^2} + (\\pi - \\arccos r) r\\right)",
          [](double a, double b, double c) {
            const double r = correlation(a, b, c);
            return std::sqrt(a * b) * (std::sqrt(1 - r * r) + (pi - std::acos(r)) * r) / (2 * pi);
          }},
    Entry{Fn::kAbs, 0, "(2/pi) sqrt(A B) (sqrt(1 - r^2) + r asin(r))",
          "\\tfrac{2}{\\pi} \\sqrt{AB} \\left(\\sqrt{1-r^2} + r \\arcsin r\\right)",
          [](double a, double b, double c) {
            const double r = correlation(a, b, c);
            return 2 / pi * std::sqrt(a * b) * (std::sqrt(1 - r * r) + r * std::asin(r));
          }},
    Entry{Fn::kErf, 0, "(2/pi) asin(2 C / sqrt((1 + 2 A)(1 + 2 B)))",
          "\\tfrac{2}{\\pi} \\arcsin \\frac{2C}{\\sqrt{(1+2A)(1+2B)}}",
          [](double a, double b, double c) {
            return 2 / pi * std::asin(2 * c / std::sqrt((1 + 2 * a) * (1 + 2 * b)));
          }},
    Entry{Fn::kErf, 1, "(4/pi) / sqrt((1 + 2 A)(1 + 2 B) - 4 C^2)",
          "\\tfrac{4}{\\pi} \\left((1+2A)(1+2B) - 4C^2\\right)^{-1/2}",
          [](double a, double b, double c) {
            return 4 / pi / std::sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c);
          }},
    Entry{Fn::kSin, 0, "exp(-(A + B)/2) sinh(C)", "e^{-(A+B)/2} \\sinh C",
          [](double a, double b, double c) { return std::exp(-(a + b) / 2) * std::sinh(c); }},
    Entry{Fn::kCos, 0, "exp(-(A + B)/2) cosh(C)", "e^{-(A+B)/2} \\cosh C",
          [](double a, double b, double c) { return std::exp(-(a + b) / 2) * std::cosh(c); }},
    Entry{Fn::kExp, 0, "exp((A + B)/2 + C)", "e^{(A+B)/2 + C}",
          [](double a, double b, double c) { return std::exp((a + b) / 2 + c); }},
};

/// E f(a), and E f(a)^2 where it is shorter than the pair.
constexpr std::array kSingles{
    Entry{Fn::kRelu, 0, "sqrt(C / (2 pi))", "\\sqrt{C/2\\pi}",
          [](double, double, double c) { return std::sqrt(c / (2 * pi)); }},
    Entry{Fn::kAbs, 0, "sqrt(2 C / pi)", "\\sqrt{2C/\\pi}",
          [](double, double, double c) { return std::sqrt(2 * c / pi); }},
    Entry{Fn::kExp, 0, "exp(C/2)", "e^{C/2}",
          [](double, double, double c) { return std::exp(c / 2); }},
    Entry{Fn::kCos, 0, "exp(-C/2)", "e^{-C/2}",
          [](double, double, double c) { return std::exp(-c / 2); }},
    Entry{Fn::kErf, 1, "2 / sqrt(pi (1 + 2 C))", "2 \\left(\\pi(1+2C)\\right)^{-1/2}",
          [](double, double, double c) { return 2 / std::sqrt(pi * (1 + 2 * c)); }},
    Entry{Fn::kStep, 1, "1 / sqrt(2 pi C)", "(2\\pi C)^{-1/2}",
          [](double, double, double c) { return 1 / std::sqrt(2 * pi * c); }},
    Entry{Fn::kGelu, 0, "C / sqrt(2 pi (1 + C))", "C \\left(2\\pi(1+C)\\right)^{-1/2}",
          [](double, double, double c) { return c / std::sqrt(2 * pi * (1 + c)); }},
    Entry{Fn::kGelu, 1, "1/2", "\\tfrac12", [](double, double, double) { return 0.5; }},
    Entry{Fn::kSigmoid, 0, "1/2", "\\tfrac12", [](double, double, double) { return 0.5; }},
};
constexpr std::array kSquares{
    Entry{Fn::kRelu, 0, "C/2", "C/2", [](double, double, double c) { return c / 2; }},
    Entry{Fn::kErf, 1, "(4/pi) / sqrt(1 + 4 C)", "\\tfrac{4}{\\pi} (1+4C)^{-1/2}",
          [](double, double, double c) { return 4 / pi / std::sqrt(1 + 4 * c); }},
    Entry{Fn::kErf, 0, "(2/pi) asin(2 C / (1 + 2 C))", "\\tfrac{2}{\\pi} \\arcsin \\frac{2C}{1+2C}",
          [](double, double, double c) { return 2 / pi * std::asin(2 * c / (1 + 2 * c)); }},
    Entry{Fn::kSin, 0, "(1 - exp(-2 C)) / 2", "\\tfrac12 (1 - e^{-2C})",
          [](double, double, double c) { return (1 - std::exp(-2 * c)) / 2; }},
    Entry{Fn::kCos, 0, "(1 + exp(-2 C)) / 2", "\\tfrac12 (1 + e^{-2C})",
          [](double, double, double c) { return (1 + std::exp(-2 * c)) / 2; }},
};

template <class Table>
const Entry* find(const Table& table, const Term& f) {
  for (const Entry& e : table)
    if (e.fn == f.map.fn && e.order == f.order) return &e;
  return nullptr;
}

/// f(a) behind a factor: itself, or what a vector of that name is.
std::optional<Expr> as_function(Calculus& c, const Expr& e) {
  if (e->kind == Kind::kFunction) return e;
  if (e->kind != Kind::kRef) return std::nullopt;
  const Definition& d = c.definitions[e->ref];
  if (!d.value || d.value->kind != Kind::kFunction) return std::nullopt;
  Substitution by;
  for (std::size_t k = 0; k < d.axes.size(); ++k) by.emplace(d.axes[k].id, e->indices[k]);
  const Expr value = d.value;
  return c.substitute(value, by);
}

}  // namespace

std::optional<ClosedForm> closed_form(Calculus& c, const Expr& mean) {
  const Expr& body = mean->args[0];
  const bool square = body->kind == Kind::kPower && body->number == 2;
  std::vector<Expr> factors =
      body->kind == Kind::kMul ? body->args : std::vector{square ? body->args[0] : body};
  if (factors.size() > 2) return std::nullopt;
  std::vector<Expr> functions;
  for (const Expr& f : factors) {
    const auto own = as_function(c, f);
    if (!own || (*own)->kind != Kind::kFunction) return std::nullopt;
    functions.push_back(*own);
  }
  const Term &first = *functions.front(), &last = *functions.back();
  if (first.map.fn != last.map.fn || first.order != last.order ||
      first.map.parameter != last.map.parameter)
    return std::nullopt;
  const bool pair = functions.size() == 2;
  const Entry* entry = pair     ? find(kPairs, first)
                       : square ? find(kSquares, first)
                                : find(kSingles, first);
  if (!entry) return std::nullopt;
  const auto covariance = c.gaussian_covariance(first.args[0], last.args[0]);
  if (!covariance) return std::nullopt;
  return ClosedForm{entry->text,   entry->latex, entry->value, pair,
                    first.args[0], last.args[0], *covariance};
}

}  // namespace tplimit::explain
