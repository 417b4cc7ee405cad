#pragma once

#include <string>
#include <string_view>

namespace tplimit {

/// `text` with <, >, & and quotes as entities.
std::string html_escaped(std::string_view text);

/// MathML of the LaTeX that formulas are written in: letters, numbers, scripts, primes, fractions,
/// roots, accents, brackets.  A command that it does not know is shown by its name, upright, as
/// \tanh is.
std::string mathml(std::string_view latex);

/// A text with formulas between $.
std::string html_with_math(std::string_view text);

}  // namespace tplimit
