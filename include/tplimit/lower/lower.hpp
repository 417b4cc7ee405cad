#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/data/table.hpp"
#include "tplimit/ir/program.hpp"
#include "tplimit/support/diagnostic.hpp"
#include "tplimit/syntax/ast.hpp"

namespace tplimit {

/// What a name stands for.
struct BoundName {
  Span name;         ///< where it is bound
  std::string what;  ///< "a value of shape [4, n]"
};

struct LowerOptions {
  std::filesystem::path base_directory;                         ///< data paths are relative to this
  std::vector<std::pair<std::string, std::string>> constants;   ///< --set NAME=VALUE
  std::vector<std::pair<std::string, std::string>> data_files;  ///< --data NAME=FILE
  std::map<std::string, Array> data_arrays{};  ///< instead of the data of these names, as they are
  std::uint64_t seed = 0;                      ///< of random scalars and permutations' own seeds
  std::uint64_t draw = 0;                      ///< which draw of the random scalars
  double memory_bytes = 0;  ///< for the unrolled program; 0: 80 % of the machine's memory
  std::vector<BoundName>* names = nullptr;  ///< gets what each name stands for where it is bound,
                                            ///< the first time that the place is reached: names in
                                            ///< functions have the values of the first call.  Also
                                            ///< of programs with errors, as far as they go
  const std::atomic<bool>* stop = nullptr;  ///< true: throws Stopped before the next statement
};

/// `depth L = 8`, or what --set makes of it.
struct Depth {
  std::string name;
  std::int64_t value = 0;
  Span span;
};

/// `width n, m`: a width whose ratio to the first one is left open.
struct FreeWidth {
  std::string name;
  Span span;
};

struct Lowered {
  ir::Program program;
  Diagnostics warnings;
  std::optional<Depth> depth;
  std::vector<FreeWidth> free_widths{};  ///< that --set has left open: they are as the first one
};

/// AST to IR: names, shapes and types, loops unrolled, models inlined, gradients taken at each
/// `grad` and `step`. Errors: E2.. with the place in `source`; E51.. for data files.  Cost:
/// O(instructions of the unrolled program).
Result<Lowered> lower(const ast::Program& program, const Source& source,
                      const LowerOptions& options);

}  // namespace tplimit
