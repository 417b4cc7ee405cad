#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lsp/names.hpp"
#include "lsp/positions.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/lsp/server.hpp"
#include "tplimit/syntax/editing.hpp"

namespace tplimit::lsp {

/// What is known of one text of a program: at once what can be read from it; its errors, its shapes
/// and its sizes once they have been found elsewhere (`Later`).  All calls come from one thread;
/// what runs elsewhere shares nothing with it but constants and futures.
class Analysis {
 public:
  /// Imports and data are looked for in `folder`.
  Analysis(std::string name, std::string text, std::filesystem::path folder, Later later);
  /// What still runs elsewhere ends soon, and nobody hears of it.
  ~Analysis();
  Analysis(const Analysis&) = delete;
  Analysis& operator=(const Analysis&) = delete;

  [[nodiscard]] const Source& source() const { return reading_->source; }
  [[nodiscard]] const ast::Program& program() const { return reading_->recovered.program; }
  [[nodiscard]] const Names& names() const { return reading_->names; }
  /// Of the part at an offset; its own offsets start at 0.
  [[nodiscard]] const Positions& positions(const Source::Part& part) const;

  /// Begins what takes longer, unless it has begun or the text cannot be read without errors.
  void begin();
  /// Whether the errors are known; and the sizes, waiting so long for them.
  [[nodiscard]] bool checked() const;
  [[nodiscard]] bool counted(std::chrono::milliseconds patience) const;

  /// Errors and warnings; before they are known, those of the syntax.  Never evaluates anything;
  /// long programs are lowered up to a limit.
  [[nodiscard]] const Diagnostics& diagnostics() const;
  /// "a value of shape [4, n]" of the name that is bound at this offset; empty: not known.
  [[nodiscard]] std::string what_is(std::size_t begin_of_name) const;
  /// Sizes in powers of n; null where the program has errors, is too long for it, or is not counted
  /// yet.
  [[nodiscard]] const RegimeReport* sizes() const;
  /// As lowered; null where the program has errors or is not lowered yet.
  [[nodiscard]] const ir::Program* written() const;

  /// Longer programs are not counted.
  static constexpr std::size_t kMostCounted = 20'000;

 private:
  struct Reading {
    Reading(std::string name, std::string text, std::filesystem::path where);
    std::filesystem::path folder;
    Source source;
    Recovered recovered;
    Names names;
    std::vector<Positions> positions;
  };
  struct Checked {
    Diagnostics diagnostics;
    std::map<std::uint32_t, std::string> what;  ///< by the begin of a name
    std::optional<Module> module;
  };
  static Checked check(const Reading& reading, const std::atomic<bool>& stop);
  [[nodiscard]] const Checked* known() const;

  std::shared_ptr<const Reading> reading_;
  Later later_;
  std::shared_ptr<std::atomic<bool>> stop_ = std::make_shared<std::atomic<bool>>(false);
  std::shared_future<Checked> checked_;                      // invalid: not begun
  std::shared_future<std::optional<RegimeReport>> counted_;  // so, too
};

}  // namespace tplimit::lsp
