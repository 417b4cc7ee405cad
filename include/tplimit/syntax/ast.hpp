#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tplimit/support/source.hpp"

/// The abstract syntax of a .tp file (docs/language.md).  Data only; spans point into the source
/// text.
namespace tplimit::ast {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Identifier {
  std::string name;
  Span span;
};

// ---- expressions
// ----------------------------------------------------------------------------------

struct Number {
  double value;
};
struct String {
  std::string value;
};
struct Boolean {
  bool value;
};  ///< `true`, `false`
struct Name {
  std::string name;
};
struct Negate {
  ExprPtr operand;
};
struct Transpose {
  ExprPtr operand;
};  ///< postfix '

enum class BinaryOp {
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kMatMul,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kEqual,
  kNotEqual
};
struct Binary {
  BinaryOp op;
  ExprPtr left, right;
  Span op_span;
};
struct Range {
  ExprPtr begin, end, step;
};  ///< a..b or a..b by c, half-open; only in `for`, slices and arguments.  `step` may be null
struct Index {
  ExprPtr base;
  std::vector<ExprPtr> items;
};  ///< base[item, ..]; an item may be a Range
struct NamedArgument {
  Identifier name;
  ExprPtr value;
};  ///< lr = eta
struct Call {
  Identifier callee;
  std::vector<ExprPtr> args;
  std::vector<NamedArgument> named;
};
struct List {
  std::vector<ExprPtr> items;
};  ///< [a, b, ..]
struct Tuple {
  std::vector<ExprPtr> items;
};  ///< (a, b, ..), at least two items, or (a,)
struct MapEntry {
  ExprPtr key, value;
};
struct Map {
  std::vector<MapEntry> entries;
};  ///< {W: n^2, U: n}

struct Expr {
  std::variant<Number, String, Boolean, Name, Negate, Transpose, Binary, Range, Index, Call, List,
               Tuple, Map>
      node;
  Span span;
};

// ---- statements
// -----------------------------------------------------------------------------------

struct Stmt;

struct Width {
  struct Item {
    Identifier name;
    ExprPtr value;
  };
  std::vector<Item> items;
};  ///< width n [= ..], ..
/// const T = 20, or depth L = 8: a constant that `check` takes to infinity.
struct Const {
  Identifier name;
  ExprPtr value;
  bool depth = false;
};
struct Data {
  std::vector<Identifier> names;
  ExprPtr value;
};
/// param U : [role] [n, 64] ~ normal(0, 1/64), lr = n.  `trained` is false for `random`.
struct Param {
  bool trained;
  Identifier name;
  std::vector<ExprPtr> axes;
  Span axes_span;
  std::vector<Identifier> role;  ///< empty or one identifier
  ExprPtr law;                   ///< a Call; null if the `~` part is missing
  std::vector<NamedArgument> options;
};
struct Assign {
  std::vector<Identifier> targets;
  std::vector<ExprPtr> values;
};
struct Argument {
  Identifier name;
  ExprPtr otherwise;  ///< its value where a call gives none; null if every call must
};
/// model f(x, c = 1) { .. return .. }, and `fn` alike; fn phi(z) = expr is fn phi(z) { return expr
/// }.
struct Function {
  Identifier name;
  std::vector<Argument> params;
  std::vector<Stmt> body;
  std::string
      space{};  ///< "lib." if it is of a file imported as lib: where its names are looked up
};
struct Return {
  std::vector<ExprPtr> values;
};
struct For {
  Identifier variable;
  ExprPtr range;
  std::vector<Stmt> body;
};
struct If {
  struct Branch {
    ExprPtr condition;  ///< null: else
    std::vector<Stmt> body;
  };
  std::vector<Branch> branches;
};  ///< if c { .. } else if d { .. } else { .. }
struct Assert {
  ExprPtr condition, text;
};  ///< assert c, "text"; `text` may be null
struct Step {
  std::vector<ExprPtr> updates;
};  ///< each a Call: sgd(loss, lr = ..)
enum class UpdateOp { kAdd, kSub, kMul };
struct Update {
  ExprPtr target;
  UpdateOp op;
  ExprPtr value;
};  ///< W += c * outer(d, x), W *= c
struct ReportItem {
  std::vector<Identifier> name;
  ExprPtr value;
};  ///< name: empty or one identifier
struct Report {
  std::vector<ReportItem> items;
};
struct Expect {
  ExprPtr left, right, within;
};
struct Parametrization {
  ExprPtr value;
};  ///< parametrization mup | abc(a = .., ..)

/// import "PATH" [as name]: the declarations of another file, `x` under the name `name.x`.
struct Import {
  String path;
  Span path_span;
  std::string space;  ///< "name.", behind that of the file itself
  std::vector<Stmt> statements;
};

struct Stmt {
  std::variant<Width, Const, Data, Param, Assign, Function, Return, For, If, Step, Update, Report,
               Expect, Assert, Parametrization, Import>
      node;
  Span span;
};

struct Program {
  std::vector<Stmt> statements;
};

}  // namespace tplimit::ast
