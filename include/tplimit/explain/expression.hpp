#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tplimit/ir/program.hpp"

/// Formulas in index notation: what `explain` shows, differentiates and evaluates.
namespace tplimit::explain {

/// A letter that runs over 0..size.
struct Symbol {
  std::uint32_t id = 0;
  std::int64_t size = 1;
  friend bool operator==(const Symbol&, const Symbol&) = default;
  friend auto operator<=>(const Symbol&, const Symbol&) = default;
};

/// One place of a tensor's index list: a number, a letter, or a function of letters given by a
/// table.
class Index {
 public:
  Index() = default;  ///< the number 0
  explicit Index(Symbol symbol) {
    if (symbol.size != 1) symbols_ = {symbol};
  }
  static Index number(std::int64_t value);
  /// table[row-major position of the symbols]
  static Index table(std::vector<Symbol> symbols, std::vector<std::int64_t> values);

  [[nodiscard]] const std::vector<Symbol>& symbols() const { return symbols_; }
  [[nodiscard]] bool is_symbol() const { return symbols_.size() == 1 && !table_; }
  [[nodiscard]] bool is_number() const { return symbols_.empty(); }
  [[nodiscard]] bool contains(Symbol symbol) const;
  /// Its value when the symbols have these values.
  [[nodiscard]] std::int64_t at(const std::map<std::uint32_t, std::int64_t>& values) const;
  [[nodiscard]] std::int64_t number() const { return table_ ? table_->front() : 0; }
  /// All values, symbols row-major.
  [[nodiscard]] std::vector<std::int64_t> values() const;
  friend bool operator==(const Index& a, const Index& b);

 private:
  std::vector<Symbol> symbols_;
  std::shared_ptr<const std::vector<std::int64_t>> table_;  ///< null: the symbol itself, or 0
};
using Indices = std::vector<Index>;
using Substitution = std::map<std::uint32_t, Index>;  ///< symbol id -> what stands in its place

Index substitute(const Index& index, const Substitution& by);
/// Rows of a table of 0..n in row-major order of `dims` at these indices, as one index.
Index flatten(const Indices& indices, const ir::Dims& dims);
Indices unflatten(const Index& flat, const ir::Dims& dims);

struct Term;
using Expr = std::shared_ptr<const Term>;

enum class Kind : std::uint8_t {
  kNumber,  ///< number
  kRef,     ///< definition `ref` at `indices`
  kDelta,   ///< Kronecker: 1 if the two indices agree
  kAdd,
  kMul,
  kPower,     ///< args[0] ^ number
  kFunction,  ///< the derivative of `order` of fn, at args[0]; distributions where fn has kinks or
              ///< jumps
  kCall,      ///< fn of several arguments
  kSum,
  kMax,   ///< over the symbol `bound` of args[0]
  kMean,  ///< E args[0]
  kJump,  ///< the distribution that differentiating a discontinuous args[0] leaves
};

/// Immutable node of a formula; made by Calculus only, which keeps sums and products flat and
/// simple.
struct Term {
  Kind kind = Kind::kNumber;
  double number = 0;
  std::uint32_t ref = 0;
  Indices indices;
  std::vector<Expr> args;
  Symbol bound;
  ir::Map map{};
  int order = 0;
  bool width = false;               ///< a random variable; else a number
  std::set<std::uint32_t> symbols;  ///< free ones
};

/// What a formula's letter stands for.
struct Definition {
  enum class Kind : std::uint8_t {
    kSource,    ///< i.i.d. N(0, 1), one family per source
    kGaussian,  ///< Gaussian part of a product W x: family (source, side), covariance scale^2 E[x_i
                ///< x_j]
    kData,      ///< constants
    kFormula,   ///< `value`
    kCoefficient,  ///< `value`: of a correction term
    kResponse,     ///< `value`: derivative of one vector with respect to a Gaussian
    kOperation,    ///< `operation` of `operands`, on whole tensors
  };
  /// Why it has a line of its own.
  enum class Role : std::uint8_t { kForward, kGradient, kVersion, kReport, kHelper };

  Kind kind = Kind::kFormula;
  Role role = Role::kHelper;
  std::string name;  ///< as in the text; for helpers made up
  std::vector<std::string>
      iteration;  ///< values of the loop variables, or number of updates of a version
  std::vector<Symbol> axes;
  Expr value;
  bool width = false;
  bool initial = false;              ///< a version as declared
  bool in_line = false;              ///< has no name: stands as its value in brackets
  std::set<std::uint32_t> families;  ///< of Gaussians it is made of
  std::uint32_t step = 0, context = 0;
  Exponent order;  ///< the value in the text is n^order times this
  std::optional<std::uint32_t>
      gradient_of{};  ///< kGradient: with respect to this vector, whose name it takes

  // kGaussian: W x, scale W's initial standard deviation; kSource: family only.
  std::uint32_t family = 0, operand = 0;
  std::string matrix;
  bool transposed = false;
  double scale = 1;
  // kResponse, kCoefficient: derivative of `operand` with respect to the Gaussian `gaussian`.
  std::uint32_t gaussian = 0;
  bool kinked = false;  ///< contains derivatives of discontinuous functions: no plain mean
  // kData
  std::vector<double> values;
  // kOperation
  std::optional<ir::Op> operation;
  std::vector<std::uint32_t> operands;
};

/// Builds formulas over a list of definitions, simplifying as far as means and sums allow:
/// Sum_j delta_ij A_j = A_i, means of independent factors factor, means of odd functions vanish,
/// E[G_i G_j] is the covariance.
class Calculus {
 public:
  std::vector<Definition> definitions;

  Symbol fresh(std::int64_t size) { return {next_symbol_++, size}; }
  std::vector<Symbol> fresh(const ir::Dims& dims);

  Expr number(double value);
  Expr ref(std::uint32_t definition,
           Indices indices);  ///< its value, if that is a number or stands in line
  Expr delta(const Index& a, const Index& b);
  Expr add(std::vector<Expr> terms);
  Expr mul(std::vector<Expr> factors);
  Expr power(Expr base, double exponent);
  Expr function(const ir::Map& map, int order, Expr x);
  Expr call(const ir::Map& map, std::vector<Expr> args);
  Expr sum(Symbol symbol, const Expr& e);
  Expr maximum(Symbol symbol, const Expr& e);
  Expr mean(const Expr& e);
  Expr substitute(const Expr& e, const Substitution& by);
  /// d e / d (Gaussian at `at`), e a random variable.
  Expr derivative(const Expr& e, std::uint32_t gaussian, const Indices& at);
  /// d definition_I / d gaussian_J as a formula in these symbols.
  Expr response(std::uint32_t definition, std::uint32_t gaussian, const Indices& own,
                const Indices& at);

  /// E[a b] if both are linear in Gaussians of mean 0, with numbers as coefficients.
  std::optional<Expr> gaussian_covariance(const Expr& a, const Expr& b);

  [[nodiscard]] const std::set<std::uint32_t>& families(const Expr& e);
  [[nodiscard]] static bool is_zero(const Expr& e) {
    return e->kind == Kind::kNumber && e->number == 0;
  }
  [[nodiscard]] static bool is_one(const Expr& e) {
    return e->kind == Kind::kNumber && e->number == 1;
  }
  /// Equal texts mean equal formulas; bound symbols by order of appearance.  `rename`: free ones
  /// too.
  [[nodiscard]] static std::string key(const Expr& e, bool rename = false);
  [[nodiscard]] static std::size_t weight(const Expr& e);  ///< leaves
  [[nodiscard]] static bool kinked(const Expr& e);

 private:
  enum class Parity : std::uint8_t { kEven, kOdd, kNone };
  Expr make(Term term);
  Expr mean_of_product(const std::vector<Expr>& factors);
  std::vector<std::vector<Expr>> independent_groups(const std::vector<Expr>& random);
  std::optional<Expr> covariance(const Expr& a, const Expr& b);
  Expr spread(const Expr& factor);
  Parity parity(const Expr& e, const std::set<std::uint32_t>& flipped);
  Expr refresh(const Expr& e);
  std::size_t gaussian_terms(const Expr& e);
  std::size_t second_moment_terms(std::uint32_t definition);

  std::uint32_t next_symbol_ = 0;
  std::map<std::uint32_t, std::size_t> gaussian_terms_;
  std::map<std::pair<std::uint32_t, std::set<std::uint32_t>>, Parity> parities_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::pair<std::vector<Symbol>, Expr>>
      responses_;  ///< symbols: own, then the Gaussian's
  std::map<const Term*, std::pair<Expr, std::set<std::uint32_t>>> family_cache_;
};

}  // namespace tplimit::explain
