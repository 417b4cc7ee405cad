#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "lower/value.hpp"
#include "tplimit/lower/language.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/lower/parametrization.hpp"
#include "tplimit/passes/gradient.hpp"
#include "tplimit/support/similar.hpp"

namespace tplimit::lowering {

/// Thrown inside this module only, caught at the statement that it ends.
struct Rejection {
  Diagnostic diagnostic;
  bool silent = false;     ///< follows from an error already reported
  bool undefined = false;  ///< a number that does not exist, and need not where it is not taken
};

/// A `fn` or `model` of the program.
struct Definition {
  const ast::Function* text;
  bool library = false;  ///< of the standard library
};

/// Interprets the AST once, appending IR nodes: loops are run, models and functions inlined.
class Lowerer {
 public:
  /// `differentiated`: places of names whose values `grad` is taken by, and which the builder may
  /// not see through.
  Lowerer(const Source& source, const LowerOptions& options,
          std::set<std::uint32_t> differentiated);
  Result<Lowered> run(const ast::Program& program);
  /// Of a name that grad met and that is not among those; then the program has to be lowered again.
  [[nodiscard]] std::optional<std::uint32_t> met() const { return met_; }
  static std::vector<LanguageWord> function_words();
  static std::vector<LanguageWord> optimiser_words();

 private:
  enum class Kind { kLocal, kLoop, kConst, kData, kParam };
  struct Binding {
    Kind kind = Kind::kLocal;
    Value value;
    Span span;
  };
  using Scope = std::unordered_map<std::string, Binding>;

  /// A `param` or `random` and its versions.
  struct Variable {
    ast::Identifier name;
    bool trained = false;
    Axes axes;
    Value rate;  ///< lr of the declaration: Number or Tensor
    std::set<NodeId> old_versions;
    std::uint32_t index = 0;  ///< in Program::variables
    std::optional<Role> role{};
    std::optional<std::pair<std::string, std::size_t>>
        part_of{};                      ///< of a value of several widths: its name, which part
    std::optional<NodeId> deviation{};  ///< without a width axis: standard deviation of its
                                        ///< entries, if they are independent
  };

  // ---- errors
  [[noreturn]] void fail(const char* code, std::string message, Span span, std::string label = "",
                         std::string help = "") const;
  [[noreturn]] static void divided_by_zero(Span span, std::string label = "");  ///< E2401
  [[noreturn]] static void not_finite(std::string message, Span span, std::string label = "",
                                      std::string help = "");  ///< E2404
  [[noreturn]] void unknown_option(std::string_view of, const ast::Identifier& option,
                                   std::string help) const;                ///< E2112
  [[noreturn]] void array_not_indexed(Span span, std::string help) const;  ///< E2311
  /// E2602 for what is declared in a loop or model.
  void check_top_level(const char* what, Span span, const char* instead = "") const;
  void check_data(const std::vector<double>& values, const Dims& dims, Span span,
                  std::string_view of) const;  ///< E2124: NaN, infinite
  [[nodiscard]] static Rejection declared_twice(const ast::Identifier& name, Span first);
  static Rejection not_differentiable(Diagnostic d, Span span);
  void warn(const char* code, std::string message, Span span, std::string help = "");
  [[nodiscard]] std::string describe(const Value& value) const;
  [[nodiscard]] std::string text(const Axes& axes) const {
    return to_text(axes, shown_width_.empty() ? program_.width_name : shown_width_);
  }
  void check_size(const Dims& dims,
                  Span span) const;  ///< E2215 if a value would have more than 10^8 entries
  void count_work(Span span);  ///< E2604 once loops and calls run away, E4202 once the program
                               ///< outgrows the memory
  double bytes_so_far();

  // ---- statements
  void statement(const ast::Stmt& stmt);
  void record(const Rejection& r, Span span);
  void block(const std::vector<ast::Stmt>& body);
  void on(const ast::Width& s, Span span);
  void on(const ast::Const& s, Span span);
  void declare_depth(const ast::Const& s, const Value& value);
  void on(const ast::Data& s, Span span);
  void on(const ast::Param& s, Span span);
  void on(const ast::Assign& s, Span span);
  void on(const ast::Function& s, Span span);
  void on(const ast::Return& s, Span span);
  void on(const ast::For& s, Span span);
  void on(const ast::If& s, Span span);
  void on(const ast::Assert& s, Span span);
  bool holds(const ast::Expr& condition, const char* what, const char* help);  ///< E2331
  /// What a loop runs over.
  struct Items {
    std::size_t count;
    std::function<Value(std::size_t)> value;
    std::function<std::int64_t(std::size_t)> index;  ///< of reports
    bool positions =
        false;  ///< the index is the position, for values that are no distinct integers
  };
  Items items_of(const Value& range, Span span);
  void on(const ast::Step& s, Span span);
  void on(const ast::Update& s, Span span);
  void on(const ast::Report& s, Span span);
  void on(const ast::Expect& s, Span span);
  void on(const ast::Parametrization& s, Span span);
  void on(const ast::Import& s, Span span);
  void poison_targets(const ast::Stmt& stmt);
  [[nodiscard]] std::string names_of(Kind kind, const char* before) const;
  void bind(const ast::Identifier& name, Value value, Kind kind);
  void rebind(const ast::Identifier& name, Value value, Span span);
  [[nodiscard]] bool outside_models() const { return call_depth_ == 0; }
  [[nodiscard]] std::string unused_report_name(const std::string& name) const;
  void finish_reports();
  void check_new_function(const ast::Identifier& name) const;
  void check_arguments(const std::vector<ast::Argument>& arguments) const;
  void check_defined(const Tensor& t, Span span) const;

  // ---- declarations
  NodeId standard_normal(const std::string& name, Span name_span, const Axes& axes, Span span);
  Value of_other_law(const ast::Call& law, const std::string& name, Span name_span,
                     const Axes& axes, Span span);
  Value width_matrix(const std::string& name, Span span, const Axes& axes, Number mean,
                     Number variance, ir::EntryLaw law);
  Value variance_of(const ast::Call& law);
  Value initial_value(const ast::Param& s, const std::string& name, const Axes& axes, Span span);
  Value declare(const ast::Param& s, const ast::Identifier& name, const Axes& axes,
                const Value& rate, std::optional<Role> role, Span span);
  std::vector<Value> read_data(const ast::Call& call, const ast::Data& s);
  Value read_literal(const ast::Data& s, Span span);
  Value data_of(Array array, Span span, std::string_view of);
  Value opaque(Value value);
  Value named(Value value, Span name);
  struct SetValue {
    std::string text;  ///< as on the command line
    ast::ExprPtr value;
  };
  std::optional<SetValue> set_on_command_line(const std::string& name, Span place);
  static void blame(Rejection& rejection, const SetValue& set, Span place);
  void choose_parametrization(const ast::Expr& value);
  void tell(Span name, const Value& value);
  std::optional<Role> role_of(const ast::Param& s, const Axes& axes, const Value& rate);
  [[nodiscard]] Number power_of_first_width(Exponent power) const;
  [[nodiscard]] Abc effective(Role role, bool has_width, bool first, bool entrywise) const;
  Value rate_of(const Variable& variable, Span span, bool entrywise = false);
  Value scaled(const Value& value, Number factor, Span span);
  NodeId change_of(const std::string& name, NodeId value);
  NodeId marked_change(const std::string& name, NodeId old, NodeId now);

  // ---- steps
  struct Optimiser;  ///< optimisers.cpp
  /// One optimiser of a `step`; it moves a variable theta along -rate own(theta) dloss/dtheta.
  struct Descent {
    const Optimiser* optimiser;
    Span span;  ///< of the loss
    NodeId loss{};
    Value rate{};  ///< lr; of flow: dt
    std::vector<std::string> names{};
    /// Of arrays that the step moves a part of: whether it moves each entry of the finite axes.
    std::map<std::string, std::vector<bool>> entries{};
    [[nodiscard]] bool moves(const std::string& name, std::size_t entry) const {
      const auto it = entries.find(name);
      return it == entries.end() || it->second[entry];
    }
    std::map<std::string, Value> scales{};
    std::map<std::string, Value> rates{};  ///< by parameter, instead of `rate`
    [[nodiscard]] const Value& rate_of(const std::string& name) const {
      const auto it = rates.find(name);
      return it == rates.end() ? rate : it->second;
    }
    std::map<std::string, double> numbers{};  ///< options that are plain numbers
    /// Options with a power of the width, by parameter; "": of the others.
    std::map<std::string, std::map<std::string, Number>> sizes{};
    [[nodiscard]] std::int64_t substeps() const {  ///< of gradient flow
      const auto it = numbers.find("steps");
      return it == numbers.end() ? 1 : static_cast<std::int64_t>(it->second);
    }
  };
  /// Something for each of some variables: a version, a gradient (of matrices: outer products), a
  /// change.
  using Parts = std::vector<std::pair<std::string, Value>>;
  Descent read_descent(const ast::Call& call, Span span);
  /// "step sgd(loss, lr = ..)"; empty if there is no optimiser of this name.
  static std::string optimiser_form(const std::string& name);
  const Optimiser& optimiser_named(const ast::Identifier& name) const;
  static Number size_of_option(const Descent& d, const char* option, const std::string& name);
  void read_groups(Descent& d, const ast::Expr& value, std::vector<const ast::MapEntry*>& entries);
  void read_scales(Descent& d, const ast::Expr& value, std::vector<const ast::MapEntry*>& entries);
  std::vector<std::string> trained_variables(const ast::Expr& name, const char* help) const;
  void choose_variables(Descent& d, const std::optional<std::vector<const ast::Expr*>>& only);
  void choose_entries(Descent& d, const ast::Index& index, const std::string& name);
  Value restricted(const Descent& d, const std::string& name, const Value& change);
  Value own_rate(const Descent& d, const std::string& name, Span span);
  NodeId factor_of(const Descent& d, const std::string& name, Span span);
  NodeId decay_of(const Descent& d, const std::string& name, Span span);
  /// What one optimiser remembers of one parameter.
  struct Memory {
    std::int64_t step = 0;  ///< from 1
    std::string settings;
    std::optional<Value> velocity;                       ///< of sgd
    std::vector<std::map<std::string, NodeId>> entries;  ///< of each matrix of an array
    std::vector<std::vector<MatrixTerm>> sums;           ///< of muon: the average of gradients
  };
  std::map<std::pair<std::string, std::string>, Memory> memories_;  ///< by optimiser and parameter
  std::map<std::string, Value> averages_;                           ///< of parameters
  void keep_average(const Descent& d);
  Memory& memory_of(const Descent& d, const std::string& name, Span span);
  Parts versions_of(const std::vector<std::string>& names) const;
  Parts gradients(NodeId loss, const Parts& at, Span span, bool name_them);
  void clip(const Descent& d, Parts& gradients);
  Value direction(const Descent& d, const std::string& name, Value gradient, Span span);
  Value entrywise_update(const Descent& d, const std::string& name, const Value& now,
                         const Value& gradient, Span span);
  Value orthogonalised_update(const Descent& d, const std::string& name, const Value& now,
                              const Value& gradient, Span span);
  Value weighted(const Value& part, NodeId factor);
  Value sum(const Value& a, const Value& b);
  Matrix merged(const Matrix& m);
  [[nodiscard]] bool sums_to_zero(NodeId id) const;
  using GaussianPart = std::map<NodeId, NodeId>;     ///< factors of Gaussian matrices
  std::map<NodeId, GaussianPart> gaussian_parts_{};  ///< of versions
  GaussianPart gaussian_part(NodeId w);
  GaussianPart gaussian_part(const std::vector<std::pair<NodeId, NodeId>>& versions);
  NodeId product_of_entries(const Matrix& x, const Matrix& y, Span span);
  NodeId inner_product(const Matrix& x, const Matrix& y, Span span);
  NodeId inner_product(const Value& a, const Value& b, Span span);
  [[nodiscard]] bool is_zero(const Value& v) const;
  std::optional<EntryProducts> entry_products(ast::BinaryOp op, const Value& a, const Value& b,
                                              Span span);
  std::pair<Parts, NodeId> flow(const std::vector<Descent>& descents, Span span);
  void report_flow_error(const ast::Step& s, const std::vector<Descent>& descents, NodeId error,
                         Span span);
  [[nodiscard]] std::vector<NodeId> current_versions() const;
  /// Nodes behind a loss, up to current versions of parameters and what stop(..) holds fixed: those
  /// are included, what they were computed from is not.
  [[nodiscard]] std::unordered_set<std::uint32_t> behind(NodeId loss) const;
  bool depends_on_current(NodeId loss, const std::unordered_set<std::uint32_t>& behind,
                          const std::string& name, Span span) const;
  void check_once(
      const std::vector<ast::NamedArgument>& options) const;  ///< E2113 if an option is given twice
  void record_name(const std::string& name, const Value& value, Span span,
                   ir::NamedValue::Kind kind);
  void set_version(const std::string& name, Value value);
  Value updated(const Value& current, const Value& change, Span span);  ///< current + change
  Matrix materialise(const Matrix& m, Span span);
  std::vector<NodeId> version_nodes(const Value& value) const;
  static Value as_value(
      const Value& target,
      const Derivative* derivatives);  ///< derivatives with respect to version_nodes(target)

  // ---- expressions
  Value evaluate(const ast::Expr& e);
  Value evaluate_name(const std::string& name, Span span);
  Value evaluate_index(const ast::Index& index, Span span);
  Value evaluate_binary(const ast::Binary& b, Span span);
  Value evaluate_call(const ast::Call& call, Span span);
  std::vector<Value> evaluate_many(
      const ast::Expr& e);  ///< several values if `e` calls a model that returns several
  [[nodiscard]] static bool of_the_language(const std::string& name);
  static const Source& library_source();
  static const std::unordered_map<std::string, Definition>& library();
  /// The function that `name` stands for here, if it stands for one.
  std::optional<Callable> callable(const std::string& name);
  [[noreturn]] void unknown_function(const std::string& name, Span span);  ///< E2105 to E2107
  std::vector<Value> inline_call(const Callable& f, const ast::Call& call, Span span);
  /// The results of a function of the program; arguments that are not given have their defaults.
  std::vector<Value> call_with(const Callable& f, std::vector<std::optional<Value>> args,
                               Span span);
  [[nodiscard]] std::string form_of(const Callable& f) const;  ///< "its form: f(x, c = 1)"
  Value transpose(const Value& v, Span span);
  Value matmul(const Value& a, const Value& x, Span span, Span a_span, Span x_span);
  Value apply_matrix(const Matrix& w, const Tensor& x, Span span);
  Value arithmetic(ast::BinaryOp op, const Value& a, const Value& b, Span span);
  Number checked(Number n, Span span);  ///< E2403 if the power of the width is out of range
  Value elementwise(ir::Fn fn, const std::vector<Value>& in, Span span, double parameter = 0);
  void warn_of_axis_beside_width(const std::vector<Tensor>& in, const Axes& result, Span span);
  Tensor combine(ir::Fn fn, const std::vector<Tensor>& in, Span span, double parameter = 0);
  Value scaled_matrix(const Matrix& m, NodeId factor);
  /// What `name` stands for among declarations: that of the file at hand, else the program's.
  template <class Map>
  auto declared(Map& map, const std::string& name) const {
    if (!space_.empty())
      if (const auto it = map.find(space_ + name); it != map.end()) return it;
    return map.find(name);
  }
  Binding* find_or_null(const std::string& name);
  [[nodiscard]] bool known_before_run(const Value& v) const;

  // ---- several widths (several_widths.cpp)
  struct Width {
    std::string name;
    std::int64_t units;  ///< how many times the unit of width
  };
  [[nodiscard]] std::optional<std::size_t> width_of(
      const Value& v) const;  ///< n, m as numbers: which width
  [[nodiscard]] bool several_widths() const;
  [[nodiscard]] std::string shape_text(const Blocks& b) const;
  [[nodiscard]] Value joined(std::vector<std::size_t> widths, std::vector<Value> parts) const;
  std::vector<Value> parts_of(const Value& v, std::size_t width, Span span) const;
  using PartFunction = std::function<Value(const std::vector<Value>&)>;
  std::optional<Value> part_by_part(const std::vector<Value>& args, Span span,
                                    const PartFunction& f);
  Value block_product(const Value& a, const Value& x, Span span, Span a_span, Span x_span);
  Value block_transpose(const Blocks& b, Span span);
  std::optional<Value> block_call(const ast::Call& call, const std::string& name, Span span);
  Exponent ratio_of(const ast::Width::Item& item, const std::string& first);
  std::optional<Value> joined_widths(const ast::Call& call, const std::vector<Value>& values,
                                     Span span);
  std::optional<Value> reshaped_width(const std::vector<Value>& values, Span span);
  Value block_outer(const Value& d, const Value& x, Span span, const PartFunction& f);
  Value declare_blocks(const ast::Param& s, const Axes& axes,
                       const std::vector<std::size_t>& widths, const Value& rate,
                       std::optional<Role> role, Span span);
  std::vector<std::string> variables_named(
      const std::string& name) const;  ///< itself, its parts, or none
  /// An item selects positions along one axis; a single number removes the axis.
  struct Selection {
    std::vector<std::int64_t> positions;
    bool single;
    Dims shape;  ///< what stands in the place of the axis
  };
  Selection selection(const ast::Expr& item, std::int64_t size);
  std::int64_t step_of(const ast::Range& range);  ///< E2332
  bool is_new_axis(const ast::Expr& item);
  Value index_value(Value base, const ast::Index& index, Span span);

  // ---- conversions (each fails with a message that says what was expected)
  Tensor tensor(const Value& v, Span span);
  Tensor finite(const Value& v, Span span, const char* what);
  NodeId scalar(const Value& v, Span span, const char* what);
  Number number(const Value& v, Span span, const char* what);
  double plain_number(const Value& v, Span span, const char* what);
  std::int64_t integer(const Value& v, Span span, const char* what);
  /// `shape`: receives that of the list, which may then have any number of axes.
  std::vector<std::int64_t> integers(const Value& v, Span span, const char* what,
                                     Dims* shape = nullptr);
  Tensor list_tensor(const List& list, Span span, const std::vector<Span>& items = {});
  [[nodiscard]] bool computed(const Value& v) const;  ///< not known before the run

  // ---- builtins
  struct Arguments {
    const ast::Call& call;
    std::string name;  ///< of the builtin, which the call may know by another one
    Span span;
    const char* form;  ///< that of the builtin
    std::vector<Value> positional;
    std::vector<Span> spans;
    std::map<std::string, std::pair<Value, Span>> named;
    [[nodiscard]] std::string form_help() const {
      return "its form: " + (form ? form : name + "(x)");
    }
  };
  /// A function of the language whose arguments are values.
  struct Builtin {
    static constexpr std::size_t kAny = 100000;
    const char* form;         ///< "sum(x) or sum(x, axis = k)"; null: "NAME(x)"
    std::size_t least, most;  ///< how many arguments
    std::vector<const char*> options;
    Value (Lowerer::*lower)(Arguments&);
    bool replaceable =
        false;  ///< what the language can write: a definition of the program goes first
  };
  static const std::unordered_map<std::string, Builtin>& builtins();
  [[nodiscard]] static bool reserved(const std::string& name);  ///< no value or model may have it
  static const std::unordered_map<std::string, ir::Fn>& unary_functions();
  std::vector<Value> positional_values(const ast::Call& call, const std::string& name);
  Arguments arguments(const ast::Call& call, const std::string& name, Span span,
                      const Builtin& builtin);
  std::optional<std::size_t> axis_argument(Arguments& a, const Tensor& x);
  std::size_t axis_or_last(Arguments& a, const Tensor& x);
  [[nodiscard]] bool flag(const Arguments& a, const char* name, bool otherwise) const;
  Tensor keeping(Arguments& a, const Tensor& x, std::optional<std::size_t> axis, Tensor reduced);
  void separate_operands(Arguments& a);
  Value coordinatewise(Arguments& a, ir::Fn fn);
  Value builtin_unary(const ast::Call& call, const std::string& name, Span span, ir::Fn fn);
  Value builtin_average(Arguments& a);
  Value builtin_gram(Arguments& a);
  Value builtin_mean(Arguments& a);
  std::optional<NodeId> sum_of_entries(Arguments& a);
  Value builtin_sum(Arguments& a);
  Value builtin_max(Arguments& a);
  Value builtin_min(Arguments& a);
  Value builtin_clip(Arguments& a);
  Value builtin_where(Arguments& a);
  Value builtin_mod(Arguments& a);
  Value builtin_floor(Arguments& a);
  std::pair<Tensor, Tensor> compared(Arguments& a);
  Value builtin_mse(Arguments& a);
  std::pair<Axes, std::vector<std::size_t>> axes_of(const Value& x, Span span);
  Value builtin_ndim(Arguments& a);
  Value builtin_size(Arguments& a);
  Value builtin_logsumexp(Arguments& a);
  Value builtin_softmax(Arguments& a);
  Value builtin_log_softmax(Arguments& a);
  Value builtin_cross_entropy(Arguments& a);
  Value builtin_logistic(Arguments& a);
  Value builtin_hinge(Arguments& a);
  Value builtin_huber(Arguments& a);
  Value builtin_accuracy(Arguments& a);
  Value builtin_argmax(Arguments& a);
  Value builtin_reshape(Arguments& a);
  Value builtin_transpose(Arguments& a);
  Value builtin_zeros_like(Arguments& a);
  Value builtin_ones_like(Arguments& a);
  Value builtin_eye(Arguments& a);
  Value builtin_cumsum(Arguments& a);
  Value builtin_zeros(Arguments& a);
  Value builtin_ones(Arguments& a);
  Value filled(Arguments& a, double value);
  Value builtin_stack(Arguments& a);
  Value builtin_concat(Arguments& a);
  Value builtin_stop(Arguments& a);
  Value builtin_averaged(Arguments& a);
  Value builtin_permutation(Arguments& a);
  Value builtin_one_hot(Arguments& a);
  Value builtin_solve(Arguments& a);
  Value builtin_inverse(Arguments& a);
  Value builtin_logdet(Arguments& a);
  Value builtin_eigvals(Arguments& a);
  Value builtin_min_eig(Arguments& a);
  Value builtin_trace(Arguments& a);
  std::optional<Matrix> as_outer_products(const Matrix& m);
  Value builtin_norm(Arguments& a);
  Value builtin_samples(Arguments& a);
  Value builtin_hist(Arguments& a);
  Value builtin_outer(Arguments& a);
  Value builtin_einsum(Arguments& a);
  Value builtin_grad(Arguments& a);

  // ---- kernels of models (tangent_kernels.cpp)
  struct SampleModel;
  SampleModel sample_model(const ast::Call& call, Span span);
  Tensor placeholder(const Axes& axes);
  bool joint_model(const Callable& model, const std::vector<Tensor>& sides, Span span,
                   SampleModel& out);
  std::vector<NodeId> gradient_kernels(const SampleModel& f,
                                       const std::vector<Derivative>& derivatives);
  Value builtin_ntk(const ast::Call& call, Span span);
  Value builtin_nngp(const ast::Call& call, Span span);
  NodeId output_kernel(NodeId average, NodeId product);
  Tensor recorded(Tensor kernel);
  bool differentiates_kernel(NodeId loss, const std::vector<NodeId>& targets,
                             const std::vector<NodeId>& fixed, Span span) const;
  NodeId with_noise(Arguments& a, const Tensor& kernel);
  Tensor training_operator(Arguments& a, Tensor& kernel, Tensor& across);
  Value builtin_predict_gd(Arguments& a);
  Value builtin_predict_gd_covariance(Arguments& a);
  Value builtin_largest_rate(Arguments& a);
  Tensor square_matrix(Arguments& a);
  /// ReduceSum, ReduceMax or LogSumExp along an axis; of the first two, along all finite axes.
  enum class Reduction { kSum, kMax, kLogSumExp };
  Tensor reduce(const Tensor& x, std::optional<std::size_t> axis, Reduction how);
  Tensor reduce_axis(const Tensor& x, std::size_t axis, Reduction how);
  [[nodiscard]] static std::int32_t finite_position(const Axes& axes, std::size_t axis);
  NodeId along(const Tensor& reduced, const Tensor& x, std::size_t axis);
  Tensor log_softmax(const Tensor& x, std::size_t axis);
  Tensor largest(const Tensor& x, std::size_t axis);
  Tensor targets(Arguments& a, const Tensor& logits);
  Value mean_over_samples(Arguments& a, const Tensor& f, NodeId terms, double factor = 1,
                          bool classes = false);
  Tensor margin(Arguments& a);
  Tensor filled_like(Arguments& a, double value);
  NodeId ones_up_to_diagonal(std::int64_t size);
  Tensor contract_axis(NodeId matrix, const Tensor& x, std::size_t axis);

  ir::Builder& build(Span span) {
    builder_.set_origin(library_call_.value_or(span), context_);
    return builder_;
  }

  const Source& source_;
  const LowerOptions& options_;
  ir::Program program_;
  ir::Builder builder_;
  Diagnostics errors_, warnings_;
  std::optional<Depth> depth_;
  std::vector<FreeWidth> free_widths_;

  Scope globals_;
  Scope* locals_ = nullptr;  ///< scope of the model being inlined; null outside
  std::unordered_map<std::string, Definition> functions_;
  std::set<std::string> defined_;  ///< functions and models anywhere in the text
  std::unordered_map<std::string, Variable> variables_;
  std::vector<std::string> variable_order_;
  std::vector<std::pair<std::string, std::int64_t>> loops_;  ///< of reports: names, indices
  std::string empty_loop_;  ///< variable of a loop without iterations
  std::uint32_t context_ = 0;
  std::unordered_set<std::uint32_t> told_of_;  ///< begins of names
  std::set<NodeId> named_;  ///< values and versions that the text has named so far
  std::string space_;       ///< "lib." within a file that is imported as lib
  int call_depth_ = 0;
  /// The call that led into the standard library: all that happens there, happens at this place.
  std::optional<Span> library_call_;
  int nesting_ = 0;       ///< of expressions, through calls
  std::size_t work_ = 0;  ///< iterations and calls so far
  struct {
    std::size_t nodes = 0, names = 0, contexts = 0, steps = 0;
    double bytes = 0;
  } counted_;
  std::uint32_t parameter_count_ = 0;
  std::optional<std::vector<Value>> returned_;
  std::map<std::pair<const ast::Report*, std::size_t>, std::size_t> report_slots_;
  std::map<const ast::Step*, std::size_t> flow_error_slots_;  ///< in Program::reports
  std::set<std::string> used_constants_, used_data_;
  bool width_declared_ = false;
  const std::set<std::uint32_t> opaque_names_;
  std::optional<std::uint32_t> met_;
  std::vector<Width> widths_;
  std::string shown_width_;                  ///< of the value that is worked on part by part
  std::map<const ast::Expr*, Value> given_;  ///< arguments of a call that is made part by part
  std::optional<Parametrization> parametrization_;
  std::vector<NodeId>
      differentiated_;  ///< by grad since the last step: losses of updates written by hand
  std::vector<NodeId> kernel_nodes_;  ///< what ntk and nngp returned, and derivatives of it
};

}  // namespace tplimit::lowering
