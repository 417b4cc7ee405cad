#pragma once

#include <string>

/// Numbers and counts in words of documents.
namespace tplimit {

/// A number known exactly: up to 12 significant digits.
std::string format_number(double value);

/// "0.904039(36)": two digits of `error` (one standard error, in units of the last digits shown)
/// and no digit of `value` beyond them; "12.3(1.5)" where they span the decimal point;
/// "1.2345(67)e-07" for very small and large numbers. An error below 1e-12 |value| is shown as
/// none, the value then as exact.
std::string format_number(double value, double error);

}  // namespace tplimit
