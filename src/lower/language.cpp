#include "tplimit/lower/language.hpp"

#include <algorithm>
#include <iterator>

#include "lower/lowerer.hpp"

namespace tplimit {

const std::vector<LanguageWord>& language_words() {
  static const std::vector<LanguageWord> words = [] {
    using enum LanguageWord::Kind;
    std::vector<LanguageWord> out = lowering::Lowerer::function_words();
    std::ranges::move(lowering::Lowerer::optimiser_words(), std::back_inserter(out));
    // What statements read by themselves (statements.cpp, tangent_kernels.cpp).
    const std::vector<LanguageWord> others{
        {kFunction, "ntk", "ntk(f, X) or ntk(f, X, X2)"},
        {kFunction, "nngp", "nngp(f, X) or nngp(f, X, X2)"},
        {kLaw, "normal", "normal(mean, variance)"},
        {kLaw, "uniform", "uniform(low, high)"},
        {kLaw, "sign", "sign()"},
        {kReader,
         "csv",
         "csv(\"FILE\", target = \"NAME\")",
         {"rows", "target", "columns", "standardize", "standardize_target"}},
        {kReader, "npy", "npy(\"FILE\")", {"rows", "standardize", "flatten"}},
        {kReader, "idx", "idx(\"FILE\")", {"rows", "standardize", "flatten"}},
        {kParametrization, "abc", "abc(a = (0, 1/2, 1/2), b = 0, c = 0)", {"a", "b", "c"}},
        {kParametrization,
         "abcd",
         "abcd(a = (0, 0, 1), b = (0, 1/2, 0), c = (0, 1, 0), d = 1)",
         {"a", "b", "c", "d"}},
        {kConstant, "pi", "pi"},
        {kConstant, "inf", "inf"},
        {kConstant, "None", "x[.., None]"},
    };
    out.insert(out.end(), others.begin(), others.end());
    for (const std::string& name : known_parametrizations())
      out.push_back({kParametrization, name, "parametrization " + name});
    for (const Role role : {Role::kInput, Role::kHidden, Role::kOutput, Role::kBias})
      out.push_back(
          {kRole, to_string(role), std::string("param W : ") + to_string(role) + " [..]"});
    std::ranges::sort(out, {}, [](const LanguageWord& w) { return std::pair(w.kind, w.name); });
    return out;
  }();
  return words;
}

}  // namespace tplimit
