#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "tplimit/support/check.hpp"
#include "tplimit/support/diagnostic.hpp"
#include "tplimit/support/exponent.hpp"

/// The typed, flat form of a program: loops unrolled, models inlined, every value computed by one
/// node from earlier ones.
///
/// A tensor is a *block*: an array with finite axes `dims` (row-major) and, if `width` is set, one
/// more axis over the n coordinates (at infinite width: over the particles).  Where the width axis
/// stood in the source text is the front end's business.  Matrices with two width axes are values
/// of their own, used only through products and low-rank updates.
namespace tplimit::ir {

using Dims = std::vector<std::int64_t>;

[[nodiscard]] std::int64_t size_of(const Dims& dims);

struct Type {
  bool matrix = false;  ///< two width axes: an n x n Gaussian matrix in one of its versions, or
                        ///< `entries`; then `width` and `dims` are unused
  bool width = false;
  Dims dims;
  bool entries = false;  ///< a number for each pair of an output and an input coordinate: what
                         ///< coordinatewise functions make of sums of outer products
  /// Its numbers are random along coordinates, or pairs of them.
  [[nodiscard]] bool random() const { return width || entries; }
  friend bool operator==(const Type&, const Type&) = default;
};

/// Index of a node in its program; operands of a node have smaller ids.
struct NodeId {
  std::uint32_t value = std::numeric_limits<std::uint32_t>::max();
  [[nodiscard]] bool valid() const { return value != std::numeric_limits<std::uint32_t>::max(); }
  friend auto operator<=>(const NodeId&, const NodeId&) = default;
};

/// A family of Gaussians given by the user: one `param` or `random` with a width axis.
struct SourceId {
  std::uint32_t value = 0;
  friend auto operator<=>(const SourceId&, const SourceId&) = default;
};

/// Coordinatewise functions: places in the table of functions.hpp, where they are described.  Only
/// those that some code names need an enumerator.
enum class Fn : std::uint8_t {
  kAbs,
  kSign,
  kStep,
  kRelu,
  kLeakyRelu,
  kElu,
  kTanh,
  kSigmoid,
  kSoftplus,
  kSilu,
  kGelu,
  kGeluTanh,
  kErf,
  kSin,
  kCos,
  kExp,
  kLog,
  kSqrt,
  kPower,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kMin,
  kMax,
  kMod,
  kLess,
  kLessEqual,
  kEqual,
  kNotEqual,
  kWhere,
};
[[nodiscard]] int arity(Fn fn);
[[nodiscard]] const char* name(Fn fn);

// ---- operations: payloads, no behaviour
// ------------------------------------------------------------

/// What analyses ask of an operation.
struct OpTraits {
  bool rowwise = false;  ///< a row of the result depends only on the same row of the operands (and
                         ///< on finite operands)
  bool average = false;  ///< a sum over rows, divided by their number at the end
  bool linear = false;   ///< in its operands taken together; Map, by its function, is not asked
};

/// Numbers that programs share, compared by content.
template <class T>
struct Shared : std::shared_ptr<const std::vector<T>> {
  using std::shared_ptr<const std::vector<T>>::shared_ptr;
  Shared(std::shared_ptr<const std::vector<T>> values)  // NOLINT: implicit on purpose
      : std::shared_ptr<const std::vector<T>>(std::move(values)) {}
  friend bool operator==(const Shared& a, const Shared& b) {
    return a.get() == b.get() || *a == *b;
  }
};

/// Each lists its fields once: equality, hashing and printing follow the list.

/// A finite tensor.
struct Constant {
  Shared<double> values;
  [[nodiscard]] auto fields() const { return std::tie(values); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const Constant&, const Constant&) = default;
};
/// Factor n^power x.
struct Scale {
  double factor;
  Exponent power;
  [[nodiscard]] auto fields() const { return std::tie(factor, power); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Scale&, const Scale&) = default;
};
/// I.i.d. N(0, 1) coordinates.
struct StandardNormal {
  SourceId source;
  [[nodiscard]] auto fields() const { return std::tie(source); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const StandardNormal&, const StandardNormal&) = default;
};
/// Coordinatewise, finite axes broadcast from the right.
struct Map {
  Fn fn;
  double parameter;
  [[nodiscard]] auto fields() const { return std::tie(fn, parameter); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const Map&, const Map&) = default;
};
/// a [B.., I.., K..], b [B.., J.., K..] -> [B.., I.., J..], summed over the last `contracted` axes,
/// the first `batch` axes in common.  If one or both have a width axis so has the result, unless
/// `average`: then the mean over coordinates is taken as well (needs a width axis on both).
struct Contract {
  std::int32_t batch;
  std::int32_t contracted;
  bool average;
  [[nodiscard]] auto fields() const { return std::tie(batch, contracted, average); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = !average, .average = average}; }
  friend bool operator==(const Contract&, const Contract&) = default;
};
/// E: mean over the coordinates.
struct Average {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.average = true, .linear = true}; }
  friend bool operator==(const Average&, const Average&) = default;
};
struct ReduceSum {
  std::int32_t axis;
  [[nodiscard]] auto fields() const { return std::tie(axis); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const ReduceSum&, const ReduceSum&) = default;
};
struct ReduceMax {
  std::int32_t axis;
  [[nodiscard]] auto fields() const { return std::tie(axis); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const ReduceMax&, const ReduceMax&) = default;
};
/// log sum exp along a finite axis.
struct LogSumExp {
  std::int32_t axis;
  [[nodiscard]] auto fields() const { return std::tie(axis); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const LogSumExp&, const LogSumExp&) = default;
};
struct Gather {
  std::int32_t axis;
  Shared<std::int64_t> indices;
  [[nodiscard]] auto fields() const { return std::tie(axis, indices); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Gather&, const Gather&) = default;
};
/// Adjoint of Gather.
struct ScatterAdd {
  std::int32_t axis;
  std::int64_t size;
  Shared<std::int64_t> indices;
  [[nodiscard]] auto fields() const { return std::tie(axis, size, indices); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const ScatterAdd&, const ScatterAdd&) = default;
};
/// Result axis i is operand axis axes[i].
struct Permute {
  std::vector<std::int32_t> axes;
  [[nodiscard]] auto fields() const { return std::tie(axes); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Permute&, const Permute&) = default;
};
struct Reshape {
  Dims dims;
  [[nodiscard]] auto fields() const { return std::tie(dims); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Reshape&, const Reshape&) = default;
};
/// Broadcast to these axes.
struct Expand {
  bool width;
  Dims dims;
  [[nodiscard]] auto fields() const { return std::tie(width, dims); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Expand&, const Expand&) = default;
};
struct Concat {
  std::int32_t axis;
  [[nodiscard]] auto fields() const { return std::tie(axis); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Concat&, const Concat&) = default;
};
/// Identity whose derivative is 0, also of matrices.
struct Stop {
  static constexpr bool kMakesVersion = true;
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true, .linear = true}; }
  friend bool operator==(const Stop&, const Stop&) = default;
};
/// Identity that is never shared or folded, so that what is equal stays distinct: initial values,
/// kernels of outputs.
struct Parameter {
  static constexpr bool kMakesVersion = true;
  std::uint32_t index;
  [[nodiscard]] auto fields() const { return std::tie(index); }
  [[nodiscard]] OpTraits traits() const { return {.linear = true}; }
  friend bool operator==(const Parameter&, const Parameter&) = default;
};
///< variables
/// Identity around what an update adds to Program::variables[variable].
struct Change {
  std::uint32_t variable;
  [[nodiscard]] auto fields() const { return std::tie(variable); }
  [[nodiscard]] OpTraits traits() const { return {.linear = true}; }
  friend bool operator==(const Change&, const Change&) = default;
};
/// (W, x) -> W x or W' x, on every finite index.
struct MatMul {
  bool transposed;
  [[nodiscard]] auto fields() const { return std::tie(transposed); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const MatMul&, const MatMul&) = default;
};
/// I.i.d. N(0, 1/n) entries.
struct GaussianMatrix {
  static constexpr bool kMakesVersion = true;
  SourceId source;
  [[nodiscard]] auto fields() const { return std::tie(source); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const GaussianMatrix&, const GaussianMatrix&) = default;
};
/// (W, c) -> c W.
struct ScaleMatrix {
  static constexpr bool kMakesVersion = true;
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const ScaleMatrix&, const ScaleMatrix&) = default;
};
/// (W, c_1, D_1, X_1, c_2, ..) -> W + sum_k c_k sum_p D_k[p] X_k[p]' / n, p over all finite
/// indices.
struct UpdateMatrix {
  static constexpr bool kMakesVersion = true;
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const UpdateMatrix&, const UpdateMatrix&) = default;
};
/// (c_1, D_1, X_1, c_2, ..) -> sum_k c_k sum_p D_k[p] X_k[p]', a number for each pair of
/// coordinates, which Map takes as it takes vectors.
struct OuterSum {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const OuterSum&, const OuterSum&) = default;
};
/// W -> its entries, of size n^(-1/2): in networks only, limits are refused unless they vanish
/// beside what they are added to.
struct MatrixEntries {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const MatrixEntries&, const MatrixEntries&) = default;
};
/// (W, c, B) -> W + c B, versions of one Gaussian matrix.
struct AddVersion {
  static constexpr bool kMakesVersion = true;
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const AddVersion&, const AddVersion&) = default;
};
/// (W, c, A) -> W + c A / n, A a matrix of entries, or one number for all of them.
struct AddEntries {
  static constexpr bool kMakesVersion = true;
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const AddEntries&, const AddEntries&) = default;
};
/// (A, B) -> sum over all entries of A B / n, two matrices of the same shape; of a Gaussian matrix
/// with itself it is 1 + O(1/n).
struct InnerProduct {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const InnerProduct&, const InnerProduct&) = default;
};
/// Positive semidefinite [k, k] -> lower triangular L, L L' = K, in the order of rows; a row that
/// depends on earlier ones has 0 on the diagonal.
struct Cholesky {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const Cholesky&, const Cholesky&) = default;
};
/// Symmetric [.., k, k] -> [.., k], ascending.
struct Eigvals {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const Eigvals&, const Eigvals&) = default;
};
/// (Theta [p, p], Theta_x [q, p]) -> Theta_x h(Theta + ridge tr(Theta)/p I) [q, p], h(z) = (1 -
/// g(z)) / z with g(z) = (1 - rate z)^time (descent) or exp(-rate time z) (flow), 1/z for time =
/// inf: the outputs learned from targets under a fixed kernel.
struct TrainingOperator {
  double rate, time, ridge;
  bool flow;
  [[nodiscard]] auto fields() const { return std::tie(rate, time, ridge, flow); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const TrainingOperator&, const TrainingOperator&) = default;
};
/// (A [.., k, k], Y [.., k, m]) -> A^-1 Y, equal leading axes; NaN where A is singular, up to
/// rounding.
struct Solve {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const Solve&, const Solve&) = default;
};
/// A [.., k, k] -> log det A [..]; NaN where A is singular, up to rounding, or det A < 0.
struct LogDet {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {.rowwise = true}; }
  friend bool operator==(const LogDet&, const LogDet&) = default;
};
/// The first `count` coordinates, as a last axis.
struct Samples {
  std::int64_t count;
  [[nodiscard]] auto fields() const { return std::tie(count); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const Samples&, const Samples&) = default;
};
/// Fractions of coordinates per bin, as a last axis.
struct Histogram {
  double low, high;
  std::int64_t bins;
  [[nodiscard]] auto fields() const { return std::tie(low, high, bins); }
  [[nodiscard]] OpTraits traits() const { return {.average = true}; }
  friend bool operator==(const Histogram&, const Histogram&) = default;
};

#ifdef TPLIMIT_UNKNOWN_OPERATION
/// No analysis knows it, and so none compiles with it: tests/compile_fail defines the macro.
struct UnknownOperation {
  [[nodiscard]] auto fields() const { return std::tie(); }
  [[nodiscard]] OpTraits traits() const { return {}; }
  friend bool operator==(const UnknownOperation&, const UnknownOperation&) = default;
};
#endif

using Op = std::variant<Constant, Scale, StandardNormal, Map, Contract, Average, ReduceSum,
                        ReduceMax, LogSumExp, Gather, ScatterAdd, Permute, Reshape, Expand, Concat,
                        Stop, Parameter, Change, MatMul, GaussianMatrix, ScaleMatrix, UpdateMatrix,
                        AddVersion, OuterSum, MatrixEntries, AddEntries, InnerProduct, Cholesky,
                        Eigvals, TrainingOperator, Solve, LogDet, Samples, Histogram
#ifdef TPLIMIT_UNKNOWN_OPERATION
                        ,
                        UnknownOperation
#endif
                        >;

[[nodiscard]] const char* op_name(const Op& op);
/// What makes a new version of a matrix by adding something to an old one.
[[nodiscard]] bool is_update(const Op& op);
/// f(payload) of the operation that makes a version of a Gaussian matrix.  It does not compile with
/// an f that does not know all of them.
template <class F>
auto visit_version(const Op& op, F&& f) {
  using Result = std::invoke_result_t<F&, const GaussianMatrix&>;
  return std::visit(
      [&]<class Own>(const Own& own) -> Result {
        if constexpr (requires { Own::kMakesVersion; })
          return f(own);
        else
          throw InternalError(std::string("a version of a matrix, got ") + op_name(op));
      },
      op);
}

struct Node {
  Op op;
  Type type;
  std::vector<NodeId> in;
  Span span;  ///< where in the source text; no part of a node's identity
  std::uint32_t context =
      0;  ///< which loop iteration (Program::contexts); no part of a node's identity
};

/// Of the entries of a matrix, which have mean 0 and variance 1/n.  Limits are those of every law;
/// finite networks draw this one.
enum class EntryLaw : std::uint8_t { kNormal, kUniform, kSign };

struct GaussianSource {
  std::string name;
  bool matrix = false;
  Dims dims;
  Span span;
  EntryLaw law = EntryLaw::kNormal;
};

/// One `report` item; inside loops it has one entry per iteration.
struct Report {
  struct Entry {
    std::vector<std::int64_t> index;  ///< values of the loop variables
    NodeId value;
  };
  std::string name;
  std::vector<std::string> index_names;  ///< loop variables, outermost first
  std::vector<Entry> entries;
  Span span;
  bool random = false;  ///< networks: the value stays random as the width grows, and the limit is
                        ///< that of its mean
};

/// `expect left == right within tolerance`, entrywise; both sides have one shape.
struct Expectation {
  NodeId left, right;
  NodeId difference;  ///< left - right, a node of its own so that its error is known
  double tolerance;
  Span span;
  std::uint32_t context = 0;
};

/// A value that the program text names.
struct NamedValue {
  enum class Kind : std::uint8_t {
    kValue,    ///< assigned in the text
    kVersion,  ///< of a param or random: as declared, or after a step
    kData,
    kGradient,  ///< of the loss of a step with respect to `of`; its name is empty
  };
  std::string name;
  NodeId value;    ///< times n^order
  Exponent order;  ///< 0 before leading_order
  Span span;       ///< of the expression
  std::uint32_t context = 0;
  std::uint32_t step = 0;  ///< steps and updates made before
  Kind kind = Kind::kValue;
  NodeId of{};
};

/// A param or random; each matrix of an array is one of its own.
struct Variable {
  std::string name;
  bool trained = false;
  Span span;
  std::string role;  ///< of a parametrization; else empty
  std::optional<Exponent> rate{},
      variance{};  ///< powers of n of the declared rate and variance, where they are numbers
  double rate_factor = 1, variance_factor = 1;  ///< rate_factor n^rate, variance_factor n^variance
};

/// A covariance kernel nngp(f, X, X2), a Parameter node, and (f(X) - mean) (f(X2) - mean)' of one
/// network, whose mean over networks tends to it.
struct OutputKernel {
  NodeId kernel, product;
};

/// A `step` or update statement.
struct TrainingStep {
  std::vector<NodeId> losses;  ///< of W += ..: what was differentiated for it, if anything
  Span span;
  std::uint32_t context = 0;
};

struct Program {
  std::vector<Node> nodes;
  std::vector<GaussianSource> sources;
  std::vector<Report> reports;
  std::vector<Expectation> expectations;
  std::vector<std::string> contexts;  ///< "", "t = 3", "t = 3, l = 0": innermost last
  std::string width_name = "n";
  std::int64_t width_units =
      1;  ///< of the width that width_name names: the width axes here are n / width_units long
  // What analyses need to know of the text; nothing here keeps a node alive.
  std::vector<NamedValue> names;             ///< in the order of the text
  std::vector<NamedValue> predictions;       ///< first arguments of mse; name: their text
  std::vector<OutputKernel> output_kernels;  ///< as lowered; see without_output_kernels
  std::vector<TrainingStep> steps;
  std::vector<Variable> variables;  ///< in the order of declaration; W[2, n, n] is W[0], W[1]
  bool has_random_scalars =
      false;  ///< some finite values were drawn from the seed: results are conditional on them

  [[nodiscard]] const Node& operator[](NodeId id) const { return nodes[id.value]; }
  [[nodiscard]] std::size_t size() const { return nodes.size(); }
};

/// What a program that is built anew from another takes over: Gaussian sources, contexts, the
/// width, variables, whether scalars were drawn.
[[nodiscard]] Program without_nodes(const Program& program);

/// Every node that a report or an expectation names, without repetition, ascending.
[[nodiscard]] std::vector<NodeId> outputs_of(const Program& program);

/// Type of `op` applied to operands of these types.  Throws InternalError if they do not fit: the
/// front end has checked.
[[nodiscard]] Type infer_type(const Op& op, const std::vector<const Type*>& in);

/// Checks ids, types and payloads of every node (after lowering and after every pass).  Throws
/// InternalError.
void verify(const Program& program);

/// Equal for programs that compute the same: operations, operands, constants bit by bit, names of
/// Gaussians; not what is reported. Cost: O(nodes and constants).
[[nodiscard]] std::uint64_t fingerprint(const Program& program);

/// One line per node, for golden tests and `--dump`.
[[nodiscard]] std::string to_text(const Program& program);

/// Appends nodes to a program: equal nodes are shared, constants folded, neutral operations
/// dropped.
class Builder {
 public:
  explicit Builder(Program& program);

  NodeId add(Op op, std::vector<NodeId> in);

  [[nodiscard]] const Node& node(NodeId id) const { return program_.nodes[id.value]; }
  [[nodiscard]] const Type& type(NodeId id) const { return node(id).type; }
  [[nodiscard]] Program& program() { return program_; }
  [[nodiscard]] const Program& program() const { return program_; }
  /// The values if the node is a Constant, else null.
  [[nodiscard]] const std::vector<double>* constant_values(NodeId id) const;
  [[nodiscard]] bool is_zero(NodeId id) const;
  /// The value that all entries of a constant have.
  [[nodiscard]] std::optional<double> uniform(NodeId id) const;

  /// Place and iteration recorded in the nodes added from now on.
  void set_origin(Span span, std::uint32_t context) {
    span_ = span;
    context_ = context;
  }
  [[nodiscard]] Span span() const { return span_; }

  // Short names for common nodes.
  NodeId constant(double value, Dims dims = {});
  NodeId constant(std::vector<double> values, Dims dims);
  NodeId constant(const Constant& values, Dims dims);
  NodeId zeros(bool width, Dims dims);
  NodeId scale(double factor, Exponent power, NodeId x);
  NodeId map(Fn fn, std::vector<NodeId> in, double parameter = 0);
  NodeId plus(NodeId a, NodeId b) { return map(Fn::kAdd, {a, b}); }
  NodeId minus(NodeId a, NodeId b) { return map(Fn::kSub, {a, b}); }
  NodeId times(NodeId a, NodeId b) { return map(Fn::kMul, {a, b}); }
  NodeId negate(NodeId a) { return scale(-1, 0, a); }
  NodeId average(NodeId x);
  NodeId sum(NodeId x, int axis) { return add(ReduceSum{axis}, {x}); }
  NodeId reshape(NodeId x, Dims dims);
  NodeId expand(NodeId x, bool width, Dims dims);
  NodeId permute(NodeId x, std::vector<std::int32_t> axes);
  NodeId gather(NodeId x, int axis, std::vector<std::int64_t> indices);
  NodeId contract(NodeId a, NodeId b, int batch, int contracted, bool average) {
    return add(Contract{batch, contracted, average}, {a, b});
  }
  NodeId matmul(NodeId w, NodeId x, bool transposed) { return add(MatMul{transposed}, {w, x}); }

 private:
  [[nodiscard]] std::optional<NodeId> simplify(const Op& op, const std::vector<NodeId>& in);
  [[nodiscard]] std::optional<NodeId> heads_apart(const Contract& c, const std::vector<NodeId>& in);
  [[nodiscard]] std::optional<NodeId> gathered_part(const Gather& g, NodeId x);
  [[nodiscard]] std::optional<NodeId> fold(const Op& op, const std::vector<NodeId>& in,
                                           const Type& type);
  NodeId append(Op op, Type type, std::vector<NodeId> in);

  /// Hash table of the nodes by content, with open addressing: one probe is one cache line, where a
  /// chained table allocates and chases a pointer per node.
  struct Slot {
    std::uint64_t hash = 0;
    NodeId node;  ///< invalid: free
  };
  void remember(std::uint64_t hash, NodeId node);
  void grow_table();

  Program& program_;
  std::vector<Slot> table_;  ///< a power of two of slots, at most half of them taken
  std::size_t taken_ = 0;
  Span span_;
  std::uint32_t context_ = 0;
};

}  // namespace tplimit::ir
