#pragma once

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/support/exponent.hpp"

/// What an expression of the language stands for while it is lowered.
namespace tplimit::lowering {

using ir::Dims;
using ir::NodeId;

/// A number known before anything runs: constants, loop variables, powers of n.
struct Number {
  double value = 0;
  Exponent power = 0;
};

/// One axis of a value as the user sees it.
struct Axis {
  bool width = false;
  std::int64_t size = 0;
  friend bool operator==(const Axis&, const Axis&) = default;
};
using Axes = std::vector<Axis>;

/// A tensor with at most one width axis.  The node's dims are the finite axes in order.
struct Tensor {
  NodeId node;
  Axes axes;
};

/// coefficient * W, coefficient * W', or coefficient * sum_p d[p] x[p]'.
struct MatrixTerm {
  NodeId coefficient;  ///< finite scalar
  NodeId w;            ///< a matrix version, or invalid for an outer product
  bool transposed = false;
  NodeId d, x;
};
/// A matrix with two width axes: a sum of terms, never formed.
struct Matrix {
  std::vector<MatrixTerm> terms;
};
/// [a, b, .., n, n]: an array of matrices, to be indexed.
struct MatrixArray {
  Dims dims;
  std::vector<Matrix> items;
};

/// sum of coefficient * a * b, entry by entry: to be summed over all entries.
struct EntryProducts {
  struct Term {
    NodeId coefficient;  ///< finite scalar
    Matrix a, b;
  };
  std::vector<Term> terms;
};

struct Text {
  std::string value;
};
struct Flag {
  bool value;
};
/// begin, begin + step, .., `count` of them.
struct Interval {
  std::int64_t begin, step, count;
};
struct Value;
struct List {
  std::vector<Value> items;
};
/// A value of one or two widths that are multiples of the unit of width (lower/several_widths.cpp):
/// widths[0] (x widths[1]) parts, row-major, each a value of the ordinary kind whose width axis is
/// one unit.
struct Blocks {
  std::vector<std::size_t> widths;
  std::vector<Value> parts;
};
struct Definition;
/// A function or model as a value: of the program, or of the language if `definition` is null.
struct Callable {
  std::string name;
  const Definition* definition = nullptr;
};
/// A name whose definition failed: errors that follow from it are not reported again.
struct Poison {};

struct Value {
  std::variant<Number, Tensor, Matrix, MatrixArray, EntryProducts, Text, Flag, Interval, List,
               Blocks, Callable, Poison>
      v;
  template <class T>
  [[nodiscard]] const T* as() const {
    return std::get_if<T>(&v);
  }
};

[[nodiscard]] inline Dims finite_dims(const Axes& axes) {
  Dims dims;
  for (const Axis& a : axes)
    if (!a.width) dims.push_back(a.size);
  return dims;
}
[[nodiscard]] inline bool has_width(const Axes& axes) {
  for (const Axis& a : axes)
    if (a.width) return true;
  return false;
}
/// Number of finite axes after the width axis.
[[nodiscard]] inline std::size_t axes_after_width(const Axes& axes) {
  for (std::size_t k = axes.size(); k-- > 0;)
    if (axes[k].width) return axes.size() - 1 - k;
  return 0;
}
[[nodiscard]] inline Axes finite_axes(const Dims& dims) {
  Axes axes;
  for (const auto d : dims) axes.push_back({false, d});
  return axes;
}
[[nodiscard]] inline std::string to_text(const Axes& axes, const std::string& width) {
  std::string out = "[";
  for (std::size_t k = 0; k < axes.size(); ++k)
    out += (k ? ", " : "") + (axes[k].width ? width : std::to_string(axes[k].size));
  return out + "]";
}

}  // namespace tplimit::lowering
