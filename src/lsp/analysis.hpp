#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lsp/names.hpp"
#include "lsp/positions.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/syntax/editing.hpp"

namespace tplimit::lsp {

/// What is known of one text of a program; each part is found when it is first asked for.
class Analysis {
 public:
  /// Imports and data are looked for in `folder`.
  Analysis(std::string name, std::string text, std::filesystem::path folder);

  [[nodiscard]] const Source& source() const { return source_; }
  [[nodiscard]] const ast::Program& program() const { return recovered_.program; }
  [[nodiscard]] const Names& names() const { return names_; }
  /// Of the part at an offset; its own offsets start at 0.
  [[nodiscard]] const Positions& positions(const Source::Part& part) const;

  /// Errors and warnings.  Never evaluates anything; long programs are lowered up to a limit.
  const Diagnostics& diagnostics();
  /// "a value of shape [4, n]" of the name that is bound at this offset; empty: not known.
  std::string what_is(std::size_t begin_of_name);
  /// Sizes in powers of n; null where the program has errors or is too long for it.
  const RegimeReport* sizes();
  /// As lowered; null where the program has errors.
  const ir::Program* written();

  /// Longer programs are not counted.
  static constexpr std::size_t kMostCounted = 20'000;

 private:
  void lower();

  std::filesystem::path folder_;
  Source source_;
  Recovered recovered_;
  Names names_;
  std::vector<Positions> positions_;
  std::optional<Diagnostics> diagnostics_;
  std::optional<Module> module_;
  std::optional<std::map<std::uint32_t, std::string>> what_;
  std::optional<RegimeReport> sizes_;
};

}  // namespace tplimit::lsp
