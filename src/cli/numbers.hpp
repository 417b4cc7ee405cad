#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// Numbers as people write them on a command line.  All throw CLI::ValidationError with the name of
/// the option.
namespace tplimit::cli {

/// A whole number in [least, most]: "65536", "64k" (k, M, G, T: powers of 1024), "1e5".
std::int64_t parse_count(const std::string& option, const std::string& text, std::int64_t least,
                         std::int64_t most);

/// Different whole numbers from 1 to 2^40, separated by commas: "128,512,2048".
std::vector<std::int64_t> parse_widths(const std::string& option, const std::string& text);

/// Bytes: "4G", "500M", "2e9".
double parse_bytes(const std::string& option, const std::string& text);

/// A number in [least, most], most 1 - 2^-52 (below 1) or the largest that there is.
double parse_real(const std::string& option, const std::string& text, double least, double most);

/// 0 .. 2^64 - 1.
std::uint64_t parse_seed(const std::string& option, const std::string& text);

/// "NAME=VALUE"; both not empty.
std::pair<std::string, std::string> parse_assignment(const std::string& option,
                                                     const std::string& text);

/// "NAME=VALUE,VALUE,.."; commas within brackets separate no values.
std::pair<std::string, std::vector<std::string>> parse_values(const std::string& option,
                                                              const std::string& text);

}  // namespace tplimit::cli
