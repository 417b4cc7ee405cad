#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "lower/lowerer.hpp"

// What is said in more than one place, and how it is thrown.
namespace tplimit::lowering {

void Lowerer::fail(const char* code, std::string message, Span span, std::string label,
                   std::string help) const {
  throw Rejection{Diagnostic::error(code, std::move(message))
                      .at(span)
                      .with_label(std::move(label))
                      .with_help(std::move(help))};
}

void Lowerer::divided_by_zero(Span span, std::string label) {
  throw Rejection{
      .diagnostic =
          Diagnostic::error("E2401", "division by zero").at(span).with_label(std::move(label)),
      .undefined = true};
}

void Lowerer::not_finite(std::string message, Span span, std::string label, std::string help) {
  throw Rejection{.diagnostic = Diagnostic::error("E2404", std::move(message))
                                    .at(span)
                                    .with_label(std::move(label))
                                    .with_help(std::move(help)),
                  .undefined = true};
}

Rejection Lowerer::declared_twice(const ast::Identifier& name, Span first) {
  return {Diagnostic::error("E2118", fmt::format("'{}' is declared twice", name.name))
              .at(name.span)
              .with_help("choose another name")
              .with_note("first declared here", first)};
}

void Lowerer::warn(const char* code, std::string message, Span span, std::string help) {
  const Span place = library_call_.value_or(span);
  if (std::any_of(warnings_.begin(), warnings_.end(), [&](const Diagnostic& known) {
        return known.code == code && known.span == place;
      }))
    return;  // in another iteration
  warnings_.push_back(
      Diagnostic::warning(code, std::move(message)).at(place).with_help(std::move(help)));
}

Rejection Lowerer::not_differentiable(Diagnostic d, Span span) {
  return {std::move(d).with_note("the gradient is taken here", span)};
}

void Lowerer::unknown_option(std::string_view of, const ast::Identifier& option,
                             std::string help) const {
  fail("E2112", fmt::format("'{}' has no option '{}'", of, option.name), option.span, "",
       std::move(help));
}

void Lowerer::array_not_indexed(Span span, std::string help) const {
  fail("E2311", "an array of width matrices must be indexed first", span, "", std::move(help));
}

void Lowerer::check_top_level(const char* what, Span span, const char* instead) const {
  if (!outside_models() || !loops_.empty())
    fail("E2602", fmt::format("{} at top level", what), span, "",
         fmt::format("move it in front of the loop or model{}", instead));
}

void Lowerer::check_data(const std::vector<double>& values, const Dims& dims, Span span,
                         std::string_view of) const {
  const auto wrong =
      std::find_if(values.begin(), values.end(), [](double x) { return !std::isfinite(x); });
  if (wrong == values.end()) return;
  std::vector<std::int64_t> at;
  std::int64_t place = wrong - values.begin();
  for (std::size_t k = dims.size(); k-- > 0; place /= dims[k])
    at.insert(at.begin(), place % dims[k]);
  fail("E2124", "data must be finite numbers", span,
       at.empty() ? fmt::format("{} is {}", of, *wrong)
                  : fmt::format("entry [{}] of {} is {}", fmt::join(at, ", "), of, *wrong));
}

}  // namespace tplimit::lowering
