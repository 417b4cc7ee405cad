#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/report/shapes.hpp"
#include "tplimit/support/diagnostic.hpp"

namespace tplimit::measurements {

using shapes::Shape;
using Runs = std::vector<std::vector<double>>;  ///< [seed][entry]

/// A report under which name files hold it, and what becomes of its values.
struct Wanted {
  std::string name;
  Shape shape;
  std::size_t report;    ///< of the networks
  bool squared = false;  ///< values f are replaced by f f'
};

/// What one file holds of one width.
struct Part {
  std::int64_t width = 0;
  std::map<std::size_t, Runs> runs;  ///< by place in the list of what is wanted
};

Diagnostic fault(const char* code, std::string message, std::string help = "");
/// For the help of errors: what files may hold.
std::string names_of(const std::vector<Wanted>& wanted);

/// Reads files of measurements, one after another.
class Files {
 public:
  explicit Files(std::vector<Wanted> wanted) : wanted_(std::move(wanted)) {}

  std::optional<Diagnostics> read(const std::filesystem::path& path);
  [[nodiscard]] const std::vector<Wanted>& wanted() const { return wanted_; }
  /// What the files held, in the order in which they were read.
  std::vector<Part> take() { return std::move(parts_); }

 private:
  using MaybeErrors = std::optional<Diagnostics>;

  [[nodiscard]] std::optional<std::size_t> find(const std::string& name) const;
  [[nodiscard]] Diagnostic unknown(const std::string& name) const;
  [[nodiscard]] Diagnostic wrong_shape(const std::string& name, const std::string& seen,
                                       std::size_t w, const char* first = nullptr) const;
  [[nodiscard]] MaybeErrors width_from(double value, std::int64_t& width) const;
  [[nodiscard]] std::size_t size_of(std::size_t w) const {
    return shapes::product(wanted_[w].shape);
  }
  [[nodiscard]] std::vector<std::string> columns_of(std::size_t w) const;
  MaybeErrors read_json(const std::filesystem::path& path);
  MaybeErrors read_arrays(const std::filesystem::path& path);
  MaybeErrors read_table(const std::filesystem::path& path);

  std::vector<Wanted> wanted_;
  std::string file_;
  std::vector<Part> parts_;
  std::set<std::pair<std::int64_t, double>> seeds_;  ///< of tables
};

}  // namespace tplimit::measurements
