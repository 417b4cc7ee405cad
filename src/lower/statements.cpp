#include <algorithm>
#include <cmath>

#include <Eigen/Core>

#include "lower/lowerer.hpp"
#include "tplimit/data/table.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/math/symmetric_eigen.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"
#include "tplimit/support/stopped.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lowering {

using ir::Fn;

namespace {
constexpr std::size_t kMaxErrors = 20;
constexpr std::size_t kMaxNodes =
    50'000'000;  // about 10 GB of nodes: a runaway loop, not a program
constexpr std::size_t kMaxWork =
    10'000'000;  // iterations and calls; shared nodes do not show in kMaxNodes
constexpr std::int64_t kMaxMatrices = 10'000;  // of one array
const std::uint64_t kRandomScalarKey = mix_key(0x7363616c6172ULL, 1);
}  // namespace

Lowerer::Lowerer(const Source& source, const LowerOptions& options,
                 std::set<std::uint32_t> differentiated)
    : source_(source),
      options_(options),
      builder_(program_),
      opaque_names_(std::move(differentiated)) {}

namespace {

/// Declared values without a width axis, as they were drawn from the seed.
std::vector<NodeId> random_scalars(const ir::Program& program) {
  std::vector<NodeId> out;
  for (const ir::Variable& variable : program.variables) {
    const auto first =
        std::find_if(program.names.begin(), program.names.end(), [&](const ir::NamedValue& named) {
          return named.kind == ir::NamedValue::Kind::kVersion && named.name == variable.name;
        });
    if (first == program.names.end() || variable.variance_factor == 0) continue;
    const ir::Type& type = program[first->value].type;
    if (!type.width && !type.matrix) out.push_back(first->value);
  }
  return out;
}

/// What --data names cannot be read: its paths are not relative to the program.
Diagnostic of_replacement(Diagnostic error) {
  if (error.code == "E5101")
    error.help =
        "--data names a file (.npy, .csv, .idx) relative to the current folder, not values";
  return error;
}

/// Of a file that replaces another, by the ending of its name.
std::string reader_of(const std::filesystem::path& path, std::string otherwise) {
  const std::string ending = path.extension().string();
  return ending == ".csv" || ending == ".npy" ? ending.substr(1)
         : ending == ".idx" || path.string().find("ubyte") != std::string::npos
             ? "idx"
             : std::move(otherwise);
}

Result<DataSet> read_file(const std::string& reader, const std::filesystem::path& path,
                          const DataOptions& options) {
  return reader == "csv"   ? read_csv(path, options)
         : reader == "npy" ? read_npy(path, options)
                           : read_idx(path, options);
}

}  // namespace

Result<Lowered> Lowerer::run(const ast::Program& program) {
  for (const auto& stmt : program.statements)
    if (const auto* f = std::get_if<ast::Function>(&stmt.node)) defined_.insert(f->name.name);
  // Files that are imported first may declare matrices: they know the width.
  const auto& all = program.statements;
  const auto is_width = [](const ast::Stmt& s) {
    return std::holds_alternative<ast::Width>(s.node);
  };
  const auto width = std::find_if(all.begin(), all.end(), is_width);
  const bool early = width != all.end() && std::any_of(all.begin(), width, [](const ast::Stmt& s) {
                       return std::holds_alternative<ast::Import>(s.node);
                     });
  if (early) statement(*width);
  for (auto stmt = all.begin(); stmt != all.end(); ++stmt) {
    if (!early || stmt != width) statement(*stmt);
    if (errors_.size() >= kMaxErrors) break;
    if (met_) return errors_;
  }
  for (const auto& [name, value] : options_.constants)
    if (!used_constants_.contains(name) && errors_.empty())
      errors_.push_back(
          name == "parametrization"
              ? Diagnostic::error("E2114", "--set parametrization: the program chooses none")
                    .with_help("write for example: parametrization mup, above the first parameter, "
                               "and a role for every parameter")
              : Diagnostic::error(
                    "E2114", fmt::format("--set {}: the program has no constant '{}'", name, name))
                    .with_help(names_of(Kind::kConst, "its constants: ")));
  for (const auto& [name, value] : options_.data_files)
    if (!used_data_.contains(name) && errors_.empty())
      errors_.push_back(
          Diagnostic::error("E2115",
                            fmt::format("--data {}: the program has no data '{}'", name, name))
              .with_help(names_of(Kind::kData, "its data: ")));
  for (const auto& [name, array] : options_.data_arrays)
    if (!used_data_.contains(name) && errors_.empty())
      errors_.push_back(
          Diagnostic::error(
              "E2115",
              fmt::format("an array is given for '{}', but the program has no such data", name))
              .with_help(names_of(Kind::kData, "its data: ")));
  if (errors_.empty()) finish_reports();
  if (errors_.empty() && program_.reports.empty() && program_.expectations.empty())
    errors_.push_back(Diagnostic::error("E2601", "the program reports nothing")
                          .with_help(empty_loop_.empty()
                                         ? "add a line such as: report E(x)"
                                         : fmt::format("the loop over '{}' has no iterations, "
                                                       "and what it would report is not there",
                                                       empty_loop_)));
  if (!errors_.empty()) return errors_;
  program_.has_random_scalars =
      depends_on(builder_, ir::outputs_of(program_), random_scalars(program_));
  return Lowered{std::move(program_), std::move(warnings_), std::move(depth_),
                 std::move(free_widths_)};
}

void Lowerer::count_work(Span span) {
  if (work_ > kMaxWork) throw Rejection{{}, true};
  if (++work_ > kMaxWork)
    fail("E2604", "the unrolled program is too long", span,
         fmt::format("more than {} iterations and calls", kMaxWork));
  if (program_.size() > kMaxNodes)
    fail("E2604", "the unrolled program is too long", span,
         fmt::format("more than {} instructions", kMaxNodes));
  if (options_.memory_bytes > 0 && bytes_so_far() > options_.memory_bytes)
    fail("E4202", "the unrolled program does not fit into memory", span,
         fmt::format("it needs more than the {:.1f} MB that may be used",
                     options_.memory_bytes / 1e6),
         "fewer iterations, fewer names inside loops, or a larger --memory");
}

/// Of what has been unrolled, with the copies that passes make of it and what engines keep for each
/// instruction (measured).  Counted, not asked of the system: all ranks must agree.
double Lowerer::bytes_so_far() {
  constexpr double kCopies = 7, kAllocation = 32;
  double more = 0;
  for (; counted_.nodes < program_.size(); ++counted_.nodes) {
    const ir::Node& node = program_.nodes[counted_.nodes];
    more += sizeof(ir::Node) + 4 * sizeof(NodeId) + (node.in.empty() ? 0 : kAllocation) +
            (node.type.dims.empty() ? 0 : kAllocation);
    if (const auto* c = std::get_if<ir::Constant>(&node.op))
      more += 8 * static_cast<double>(c->values->size()) + 2 * kAllocation;
  }
  for (; counted_.names < program_.names.size(); ++counted_.names)
    more += sizeof(ir::NamedValue) + kAllocation;
  for (; counted_.contexts < program_.contexts.size(); ++counted_.contexts)
    more += sizeof(std::string) + kAllocation;
  for (; counted_.steps < program_.steps.size(); ++counted_.steps)
    more += sizeof(ir::TrainingStep) + kAllocation;
  return counted_.bytes += kCopies * more;
}

void Lowerer::statement(const ast::Stmt& stmt) {
  if (options_.stop && options_.stop->load(std::memory_order_relaxed)) throw Stopped{};
  const auto run = [&] { std::visit([&](const auto& s) { on(s, stmt.span); }, stmt.node); };
  if (call_depth_ > 0) {
    if (!returned_) run();
    return;
  }
  try {
    run();
  } catch (const Rejection& r) {
    record(r, stmt.span);
    poison_targets(stmt);
  }
}

void Lowerer::record(const Rejection& r, Span span) {
  if (r.silent) return;
  // An unrolled loop meets the same mistake in every iteration: say it once.
  if (std::any_of(errors_.begin(), errors_.end(), [&](const Diagnostic& d) {
        return d.span == r.diagnostic.span && d.code == r.diagnostic.code;
      }))
    return;
  errors_.push_back(r.diagnostic);
  if (!loops_.empty())
    errors_.back().notes.push_back({"in the iteration " + program_.contexts[context_], span});
}

void Lowerer::block(const std::vector<ast::Stmt>& body) {
  for (const auto& stmt : body) {
    statement(stmt);
    if ((returned_ && call_depth_ > 0) || met_) return;
    if (errors_.size() >= kMaxErrors) return;
  }
}

void Lowerer::poison_targets(const ast::Stmt& stmt) {
  const auto poison = [&](const ast::Identifier& name, Kind kind) {
    if (!globals_.contains(name.name))
      globals_[name.name] = {kind, {Poison{}}, name.span};
    else if (globals_[name.name].kind == Kind::kLocal)
      globals_[name.name].value = {Poison{}};
  };
  std::visit(overloaded{[&](const ast::Const& s) { poison(s.name, Kind::kConst); },
                        [&](const ast::Data& s) {
                          for (const auto& n : s.names) poison(n, Kind::kData);
                        },
                        [&](const ast::Param& s) { poison(s.name, Kind::kParam); },
                        [&](const ast::Assign& s) {
                          for (const auto& n : s.targets) poison(n, Kind::kLocal);
                        },
                        [&](const ast::For& s) {
                          for (const auto& inner : s.body) poison_targets(inner);
                        },
                        [&](const ast::If& s) {
                          for (const auto& branch : s.branches)
                            for (const auto& inner : branch.body) poison_targets(inner);
                        },
                        [](const auto&) {}},
             stmt.node);
}

std::string Lowerer::names_of(Kind kind, const char* before) const {
  std::vector<std::string> names;
  for (const auto& [name, binding] : globals_)
    if (binding.kind == kind) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names.empty() ? "" : before + fmt::format("{}", fmt::join(names, ", "));
}

void Lowerer::bind(const ast::Identifier& name, Value value, Kind kind) {
  const bool own = !library_call_;  // names of the library meet none of the program
  if (own && std::any_of(widths_.begin(), widths_.end(),
                         [&](const Width& w) { return w.name == name.name; }))
    fail("E2116", fmt::format("'{}' is the width and has no value", name.name), name.span, "",
         "choose another name; finite networks get their width on the command line");
  if (own && (functions_.contains(name.name) || reserved(name.name)))
    fail("E2117", fmt::format("'{}' is a function already", name.name), name.span, "",
         "choose another name");
  Scope& scope = locals_ ? *locals_ : globals_;
  if (const auto it = scope.find(name.name); it != scope.end() && !it->second.value.as<Poison>() &&
                                             kind != Kind::kLocal && kind != Kind::kLoop)
    throw declared_twice(name, it->second.span);
  if (kind == Kind::kData) record_name(name.name, value, name.span, ir::NamedValue::Kind::kData);
  if (kind == Kind::kParam)
    record_name(name.name, value, name.span, ir::NamedValue::Kind::kVersion);
  tell(name.span, value);
  scope[name.name] = {kind, named(std::move(value), name.span), name.span};
}

void Lowerer::tell(Span name, const Value& value) {
  if (!options_.names || library_call_ || value.as<Poison>() || !told_of_.insert(name.begin).second)
    return;
  options_.names->push_back({name, describe(value)});
}

/// A value under its name. What the builder would fold or merge into later operations, it may not
/// where `grad` asks for the derivative by it.
Value Lowerer::named(Value value, Span name) {
  if (library_call_ || !opaque_names_.contains(name.begin)) return value;
  if (const auto* m = value.as<Matrix>()) value = {materialise(*m, name)};
  return value.as<Tensor>() || value.as<Matrix>() ? opaque(std::move(value)) : value;
}

/// For those who read the program later: this is what the text calls the value.
void Lowerer::record_name(const std::string& name, const Value& value, Span span,
                          ir::NamedValue::Kind kind) {
  if (const auto* blocks = value.as<Blocks>(); blocks && kind == ir::NamedValue::Kind::kValue)
    for (std::size_t k = 0; k < blocks->parts.size(); ++k)
      record_name(fmt::format("{}.{}", name, k + 1), blocks->parts[k], span, kind);
  const auto* t = value.as<Tensor>();
  if (!t) return;
  program_.names.push_back({name, t->node, 0, library_call_.value_or(span), context_,
                            static_cast<std::uint32_t>(program_.steps.size()), kind});
  if (kind != ir::NamedValue::Kind::kData) named_.insert(t->node);
}

void Lowerer::rebind(const ast::Identifier& name, Value value, Span span) {
  Scope& scope = locals_ ? *locals_ : globals_;
  tell(name.span, value);
  const auto it = scope.find(name.name);
  if (it != scope.end()) {
    switch (it->second.kind) {
      case Kind::kConst:
        fail("E2119", fmt::format("'{}' is a constant and cannot be assigned", name.name),
             name.span, "", "use another name for the new value");
      case Kind::kData:
        fail("E2119", fmt::format("'{}' is data and cannot be assigned", name.name), name.span, "",
             "use another name for the new value");
      case Kind::kLoop:
        fail("E2119", fmt::format("'{}' is a loop variable and cannot be assigned", name.name),
             name.span);
      case Kind::kParam: {
        if (it->second.value.as<Poison>() || value.as<Poison>()) throw Rejection{{}, true};
        if (const auto* whole = it->second.value.as<Blocks>()) {
          const auto* next = value.as<Blocks>();
          if (!next || next->widths != whole->widths)
            fail("E2120", fmt::format("a new version of '{}' has another shape", name.name), span,
                 "this is " + describe(value));
          const std::vector<std::string> names = variables_named(name.name);
          for (std::size_t k = 0; k < names.size(); ++k)
            rebind({names[k], name.span}, next->parts[k], span);
          return;
        }
        const auto other_shape = [&](std::string label) {
          fail("E2120", fmt::format("a new version of '{}' has another shape", name.name), span,
               std::move(label));
        };
        Value next = value;
        if (next.as<Number>() || next.as<List>()) next = {tensor(next, span)};
        if (next.v.index() != it->second.value.v.index()) other_shape("this is " + describe(value));
        if (const auto* m = next.as<Matrix>()) next = {materialise(*m, span)};
        if (const auto* t = next.as<Tensor>(); t && t->axes != variables_.at(name.name).axes)
          other_shape(
              fmt::format("{} instead of {}", text(t->axes), text(variables_.at(name.name).axes)));
        if (const auto* a = next.as<MatrixArray>()) {
          if (a->dims != it->second.value.as<MatrixArray>()->dims)
            other_shape("the number of matrices differs");
          MatrixArray whole{a->dims, {}};
          for (const Matrix& m : a->items) whole.items.push_back(materialise(m, span));
          next = {std::move(whole)};
        }
        if (const auto* t = next.as<Tensor>())
          next = {Tensor{marked_change(name.name, it->second.value.as<Tensor>()->node, t->node),
                         t->axes}};
        // The new version is a variable of its own, even where its value is that of another node.
        if (version_nodes(next) != version_nodes(it->second.value)) next = opaque(std::move(next));
        set_version(name.name, std::move(next));
        return;
      }
      case Kind::kLocal: it->second.value = named(std::move(value), it->second.span); return;
    }
  }
  bind(name, std::move(value), Kind::kLocal);
}

// ---- declarations
// ----------------------------------------------------------------------------------

/// What --set gives in place of what the program says; `place`: where it says that.
std::optional<Lowerer::SetValue> Lowerer::set_on_command_line(const std::string& name, Span place) {
  const auto set = std::find_if(options_.constants.rbegin(), options_.constants.rend(),
                                [&](const auto& c) { return c.first == name; });
  if (set == options_.constants.rend()) return std::nullopt;
  used_constants_.insert(name);
  const Source given("--set", "const value = " + set->second);
  auto parsed = parse_syntax(given);
  if (!parsed || parsed->statements.size() != 1)
    fail("E2121", fmt::format("--set {}={} is not an expression", name, set->second), place,
         "this is set on the command line");
  return SetValue{fmt::format("--set {}={}", name, set->second),
                  std::move(std::get<ast::Const>(parsed->statements[0].node).value)};
}

/// A fault of what --set gives is shown at the place in the program.
void Lowerer::blame(Rejection& rejection, const SetValue& set, Span place) {
  rejection.diagnostic.span = place;
  rejection.diagnostic.message = fmt::format("{}: {}", set.text, rejection.diagnostic.message);
}

void Lowerer::on(const ast::Const& s, Span span) {
  check_top_level("constants are declared", span, ", or write an assignment without 'const'");
  Value value;
  if (const auto set = set_on_command_line(s.name.name, s.name.span)) {
    try {
      value = evaluate(*set->value);
    } catch (Rejection& r) {
      blame(r, *set, s.name.span);
      throw;
    }
  } else {
    value = evaluate(*s.value);
  }
  if (value.as<Matrix>() || value.as<MatrixArray>() || value.as<Interval>() || value.as<List>())
    fail("E2122", "a constant is a number or an array of numbers", s.value->span,
         "this is " + describe(value));
  if (const auto* t = value.as<Tensor>(); t && !builder_.constant_values(t->node))
    fail("E2122", "a constant is a number or an array of numbers", s.value->span,
         "this depends on random values, parameters or the width", "use an assignment instead");
  if (s.depth) declare_depth(s, value);
  bind(s.name, std::move(value), Kind::kConst);
}

void Lowerer::declare_depth(const ast::Const& s, const Value& value) {
  if (depth_) {
    Rejection second{Diagnostic::error("E2154", "a program has one depth").at(s.name.span)};
    second.diagnostic.notes.push_back({fmt::format("'{}' is it", depth_->name), depth_->span});
    throw second;
  }
  const std::int64_t depth = integer(value, s.value->span, "a depth");
  if (depth < 1)
    fail("E2154", "a depth is 1 or more", s.value->span, fmt::format("this is {}", depth));
  depth_ = {s.name.name, depth, s.name.span};
}

void Lowerer::on(const ast::Data& s, Span span) {
  check_top_level("data are declared", span);
  const auto array_of = [&](const ast::Identifier& name) -> const Array* {
    const auto it = options_.data_arrays.find(name.name);
    return it == options_.data_arrays.end() ? nullptr : &it->second;
  };
  const bool all_given = std::all_of(s.names.begin(), s.names.end(),
                                     [&](const auto& name) { return array_of(name) != nullptr; });
  const auto bind_data = [&](const ast::Identifier& name, const auto& otherwise) {
    const Array* given = array_of(name);
    if (given) used_data_.insert(name.name);
    bind(name, given ? data_of(*given, name.span, "the array that is given") : otherwise(),
         Kind::kData);
  };
  if (all_given) {  // no file is read
    for (const auto& name : s.names) bind_data(name, [] { return Value{}; });
    return;
  }
  if (const auto* call = std::get_if<ast::Call>(&s.value->node)) {
    if (call->callee.name == "csv" || call->callee.name == "npy" || call->callee.name == "idx" ||
        call->callee.name == "npz") {
      std::vector<Value> values = read_data(*call, s);
      for (std::size_t k = 0; k < s.names.size(); ++k)
        bind_data(s.names[k], [&] { return std::move(values[k]); });
      return;
    }
  }
  if (s.names.size() != 1)
    fail("E2123", "a literal gives one value", span, "", "write one data statement per name");
  bind(s.names[0], read_literal(s, span), Kind::kData);
}

/// Of what stands in the program, or in the file that --data names instead.
Value Lowerer::read_literal(const ast::Data& s, Span span) {
  const Tensor t = tensor(evaluate(*s.value), s.value->span);
  if (!builder_.constant_values(t.node))
    fail("E2122", "data are numbers", s.value->span,
         "this depends on random values, parameters or the width");
  check_data(*builder_.constant_values(t.node), builder_.type(t.node).dims, s.value->span, "this");
  const auto file = std::find_if(options_.data_files.begin(), options_.data_files.end(),
                                 [&](const auto& own) { return own.first == s.names[0].name; });
  if (file == options_.data_files.end()) return {t};
  used_data_.insert(file->first);
  const std::filesystem::path path = file->second;
  Result<DataSet> read = read_file(reader_of(path, "npy"), path, {});
  if (!read) throw Rejection{of_replacement(read.errors()[0]).at(s.value->span), false};
  Array& array = read->features;
  // A csv file of one column, for a list.
  if (t.axes.size() == 1 && array.shape.size() == 2 && array.shape[1] == 1) array.shape.pop_back();
  return data_of(std::move(array), span, "the file that is read instead");
}

Value Lowerer::data_of(Array array, Span span, std::string_view of) {
  std::size_t count = 1;
  for (const std::int64_t extent : array.shape) {
    if (extent < 1)
      fail("E2124", "data without values", span, fmt::format("{} has an axis of extent 0", of));
    count *= static_cast<std::size_t>(extent);
  }
  TPLIMIT_CHECK(count == array.values.size(), "an array of {} values has shape for {}",
                array.values.size(), count);
  const Dims dims(array.shape.begin(), array.shape.end());
  check_data(array.values, dims, span, of);
  return {Tensor{build(span).constant(std::move(array.values), dims), finite_axes(dims)}};
}

std::vector<Value> Lowerer::read_data(const ast::Call& call, const ast::Data& s) {
  const Span span = call.callee.span.to(call.args.empty() ? call.callee.span : call.args[0]->span);
  if (call.args.size() != 1)
    fail("E2109", fmt::format("'{}' takes one file name", call.callee.name), span);
  const Value file_value = evaluate(*call.args[0]);
  const auto* file = file_value.as<Text>();
  if (!file) fail("E2317", "a file name is a text in double quotes", call.args[0]->span);

  DataOptions options;
  const auto flag = [&](const ast::NamedArgument& arg) {
    const Value v = evaluate(*arg.value);
    if (!v.as<Flag>())
      fail("E2318", fmt::format("'{}' is true or false", arg.name.name), arg.value->span);
    return v.as<Flag>()->value;
  };
  const auto texts = [&](const ast::NamedArgument& arg) {
    const Value v = evaluate(*arg.value);
    std::vector<std::string> out;
    if (v.as<Text>()) out.push_back(v.as<Text>()->value);
    if (const auto* l = v.as<List>())
      for (const Value& item : l->items)
        if (item.as<Text>()) out.push_back(item.as<Text>()->value);
    if (out.empty())
      fail("E2319", fmt::format("'{}' is a column name or a list of them", arg.name.name),
           arg.value->span, "", "for instance target = \"price\"");
    return out;
  };
  const bool csv = call.callee.name == "csv";
  check_once(call.named);
  for (const auto& arg : call.named) {
    const std::string& name = arg.name.name;
    if (name == "rows") {
      const Value v = evaluate(*arg.value);
      if (!v.as<Interval>())
        fail("E2320", "'rows' is a range", arg.value->span, "", "for instance rows = 0..32");
      const auto [begin, step, count] = *v.as<Interval>();
      if (step != 1)
        fail("E2320", "'rows' is a range without 'by'", arg.value->span, "",
             "read all rows, then select: X[0..32 by 2]");
      options.rows = {begin, begin + count};
    } else if (name == "standardize")
      options.standardize = flag(arg);
    else if (name == "flatten" && !csv)
      options.flatten = flag(arg);
    else if (name == "standardize_target" && csv)
      options.standardize_target = flag(arg);
    else if (name == "target" && csv)
      options.targets = texts(arg);
    else if (name == "columns" && csv)
      options.columns = texts(arg);
    else
      unknown_option(call.callee.name, arg.name,
                     csv ? "its options: rows, target, columns, standardize, standardize_target"
                         : "its options: rows, standardize, flatten");
  }
  const std::size_t expected = options.targets.empty() ? 1 : 2;
  if (s.names.size() != expected)
    fail("E2123",
         fmt::format("this data statement gives {} value{}, but {} name{} stand{} on the left",
                     expected, expected == 1 ? "" : "s", s.names.size(),
                     s.names.size() == 1 ? "" : "s", s.names.size() == 1 ? "s" : ""),
         call.callee.span, "",
         expected == 1 ? "name the target column: target = \"..\"" : "write: data X, y = ..");

  // Of an imported file, relative to it.
  const Source::Part& part = source_.part_at(call.callee.span.begin);
  const bool imported = &part != source_.parts().data();
  std::filesystem::path path =
      (imported ? std::filesystem::path(part.name).parent_path() : options_.base_directory) /
      file->value;
  std::string reader = call.callee.name;
  bool replaced = false;
  for (const auto& [name, replacement] : options_.data_files)
    for (const auto& own : s.names)
      if (own.name == name) {
        path = replacement;
        replaced = true;
        used_data_.insert(name);
        reader = reader_of(path, reader);
      }
  if (reader == "npz")
    fail("E2105", "npz archives are not available in this version", call.callee.span, "",
         "save one array per file with numpy.save and read it with npy(..)");
  Result<DataSet> read = read_file(reader, path, options);
  const auto located = [&](Diagnostic d) {
    d.span = call.args[0]->span;
    d.located = true;
    return d;
  };
  if (!read) {
    const Diagnostic& error = read.errors()[0];
    throw Rejection{located(replaced ? of_replacement(error) : error), false};
  }
  for (const auto& w : read->warnings) warnings_.push_back(located(w));
  std::vector<Value> out;
  out.push_back(data_of(std::move(read->features), span, "the file"));
  if (read->target) out.push_back(data_of(std::move(*read->target), span, "the file"));
  TPLIMIT_CHECK(out.size() == expected, "a data reader returns the target that was asked for");
  return out;
}

/// Marks what an update adds to a variable; a change of 0 stays plain, so that the version stays
/// the same.
NodeId Lowerer::change_of(const std::string& name, NodeId value) {
  return builder_.is_zero(value) ? value
                                 : builder_.add(ir::Change{variables_.at(name).index}, {value});
}

/// v + c or v - c as a new version of v.
NodeId Lowerer::marked_change(const std::string& name, NodeId old, NodeId now) {
  const ir::Node node = builder_.node(now);
  const auto* map = std::get_if<ir::Map>(&node.op);
  if (!map || (map->fn != Fn::kAdd && map->fn != Fn::kSub) || node.in[0] != old) return now;
  return builder_.map(map->fn, {old, change_of(name, node.in[1])});
}

/// Wraps a value in a node that is never shared, so that it stays a variable of its own for `grad`.
Value Lowerer::opaque(Value value) {
  const auto wrap = [&](NodeId id) {
    return builder_.add(ir::Parameter{parameter_count_++}, {id});
  };
  if (const auto* t = value.as<Tensor>()) return {Tensor{wrap(t->node), t->axes}};
  const auto wrap_matrix = [&](Matrix m) {
    m.terms[0].w = wrap(m.terms[0].w);
    return m;
  };
  if (const auto* m = value.as<Matrix>()) return {wrap_matrix(*m)};
  MatrixArray array = *value.as<MatrixArray>();
  for (Matrix& m : array.items) m = wrap_matrix(m);
  return {array};
}

namespace {
/// True if a value of shape `own` broadcasts to `axes` without changing them.
bool fits(const Axes& own, const Axes& axes) {
  const Dims from = finite_dims(own), to = finite_dims(axes);
  if (has_width(own) && (!has_width(axes) || axes_after_width(own) != axes_after_width(axes)))
    return false;
  if (from.size() > to.size()) return false;
  for (std::size_t k = 1; k <= from.size(); ++k)
    if (from[from.size() - k] != 1 && from[from.size() - k] != to[to.size() - k]) return false;
  return true;
}
}  // namespace

/// Of vectors; finite random values are drawn here.
NodeId Lowerer::standard_normal(const std::string& name, Span name_span, const Axes& axes,
                                Span span) {
  ir::Builder& b = build(span);
  const Dims dims = finite_dims(axes);
  if (has_width(axes)) {
    program_.sources.push_back({name, false, dims, name_span});
    return b.add(ir::StandardNormal{{static_cast<std::uint32_t>(program_.sources.size() - 1)}}, {});
  }
  std::vector<double> values(static_cast<std::size_t>(ir::size_of(dims)));
  std::uint64_t key = mix_key(mix_key(kRandomScalarKey, options_.seed), options_.draw);
  key = mix_key(key, hash_text(name.data(), name.size()));
  plain_normals(key, 0, values);
  return b.constant(std::move(values), dims);
}

/// Functions of a standard normal z: erf(z / sqrt(2)) is uniform between -1 and 1.
/// A matrix, or an array of them, by mean and variance of its entries.
Value Lowerer::width_matrix(const std::string& name, Span span, const Axes& axes, Number mean,
                            Number variance, ir::EntryLaw law) {
  ir::Builder& b = builder_;
  const Dims dims = finite_dims(axes);
  // sigma^2 = c n^p: entries of size sqrt(c) n^((p+1)/2) times those of N(0, 1/n).
  const NodeId size = b.scale(1, (variance.power + 1) / 2, b.constant(std::sqrt(variance.value)));
  const auto one = [&](const std::string& own) {
    program_.sources.push_back({own, true, {}, span, law});
    NodeId w =
        b.add(ir::GaussianMatrix{{static_cast<std::uint32_t>(program_.sources.size() - 1)}}, {});
    w = b.add(ir::ScaleMatrix{}, {w, size});
    if (mean.value != 0) {  // mean m = (m n) 1 1' / n
      const NodeId ones = b.expand(b.constant(1), true, {});
      w = b.add(ir::UpdateMatrix{},
                {w, b.scale(1, mean.power + 1, b.constant(mean.value)), ones, ones});
    }
    return Matrix{{MatrixTerm{b.constant(1), w, false, {}, {}}}};
  };
  if (dims.empty()) return {one(name)};
  if (ir::size_of(dims) > kMaxMatrices)
    fail("E2215", "too many matrices in one array", span,
         fmt::format("{} of them, at most {}", ir::size_of(dims), kMaxMatrices));
  MatrixArray array{dims, {}};
  for (std::int64_t k = 0; k < ir::size_of(dims); ++k)
    array.items.push_back(one(fmt::format("{}[{}]", name, k)));
  return {array};
}

Value Lowerer::of_other_law(const ast::Call& law, const std::string& name, Span name_span,
                            const Axes& axes, Span span) {
  const bool uniform = law.callee.name == "uniform";
  if (law.args.size() != (uniform ? 2 : 0) || !law.named.empty())
    fail("E2125", uniform ? "uniform takes its bounds" : "sign takes nothing", law.callee.span, "",
         uniform ? "write: ~ uniform(low, high)" : "write: ~ sign(), which is -1 or 1");
  ir::Builder& b = build(span);
  if (std::count_if(axes.begin(), axes.end(), [](const Axis& a) { return a.width; }) == 2) {
    if (!uniform) return width_matrix(name, name_span, axes, {0, 0}, {1, 0}, ir::EntryLaw::kSign);
    const Number least = number(evaluate(*law.args[0]), law.args[0]->span, "a bound"),
                 most = number(evaluate(*law.args[1]), law.args[1]->span, "a bound");
    if (least.value != 0 && most.value != 0 && least.power != most.power)
      fail("E2126", "the bounds of a uniform law are multiples of different powers of the width",
           span, "", "uniform(-c / sqrt(n), c / sqrt(n)) has the variance c^2 / (3 n)");
    if (least.value > most.value)
      fail("E2126", "the bounds of a uniform law stand in the wrong order", law.args[0]->span);
    const double range = most.value - least.value;
    const Exponent power = most.value != 0 ? most.power : least.power;
    return width_matrix(name, name_span, axes, {(least.value + most.value) / 2, power},
                        {range * range / 12, 2 * power}, ir::EntryLaw::kUniform);
  }
  const NodeId z = standard_normal(name, name_span, axes, span);
  if (!uniform) return {Tensor{b.map(Fn::kSign, {z}), axes}};
  const Value low = evaluate(*law.args[0]), high = evaluate(*law.args[1]);
  const auto *least = low.as<Number>(), *most = high.as<Number>();
  if (least && most && least->power == most->power && least->value > most->value)
    fail("E2126", "the bounds of a uniform law stand in the wrong order", law.args[0]->span);
  const auto half = [&](ast::BinaryOp op) {
    const Tensor out = tensor(
        arithmetic(ast::BinaryOp::kMul, arithmetic(op, high, low, span), {Number{0.5, 0}}, span),
        law.args[0]->span);
    if (!fits(out.axes, axes))
      fail("E2128", "the bounds do not fit the shape", law.args[0]->span,
           fmt::format("shape {} for {}", text(out.axes), text(axes)));
    return out;
  };
  const Tensor unit{b.map(Fn::kErf, {b.times(b.constant(std::sqrt(0.5)), z)}), axes};
  return {combine(
      Fn::kAdd,
      {half(ast::BinaryOp::kAdd), combine(Fn::kMul, {half(ast::BinaryOp::kSub), unit}, span)},
      span)};
}

/// Of a law that initial_value has read.
Value Lowerer::variance_of(const ast::Call& law) {
  if (law.callee.name == "sign") return {Number{1, 0}};
  const Value last = evaluate(*law.args[1]);
  if (law.callee.name == "normal") return last;
  const Span span = law.callee.span;
  const Value range = arithmetic(ast::BinaryOp::kSub, last, evaluate(*law.args[0]), span);
  return arithmetic(ast::BinaryOp::kDiv, arithmetic(ast::BinaryOp::kMul, range, range, span),
                    {Number{12, 0}}, span);
}

Value Lowerer::initial_value(const ast::Param& s, const std::string& name, const Axes& axes,
                             Span span) {
  const auto* law = s.law ? std::get_if<ast::Call>(&s.law->node) : nullptr;
  constexpr const char* kLaws = "write: ~ normal(mean, variance), uniform(low, high) or sign()";
  if (!law) fail("E2125", fmt::format("'{}' has no law", s.name.name), s.name.span, "", kLaws);
  if (law->callee.name == "uniform" || law->callee.name == "sign")
    return of_other_law(*law, name, s.name.span, axes, span);
  if (law->callee.name != "normal")
    fail("E2125", fmt::format("unknown law '{}'", law->callee.name), law->callee.span, "", kLaws);
  if (law->args.size() != 2 || !law->named.empty())
    fail("E2125", "normal takes a mean and a variance", s.law->span, "",
         "write: ~ normal(mean, variance)");
  const Value mean = evaluate(*law->args[0]), variance = evaluate(*law->args[1]);
  const Span mean_span = law->args[0]->span, variance_span = law->args[1]->span;
  ir::Builder& b = build(span);
  const Dims dims = finite_dims(axes);
  const auto widths =
      std::count_if(axes.begin(), axes.end(), [](const Axis& a) { return a.width; });
  if (const auto* v = variance.as<Number>(); v && !(v->value >= 0 && std::isfinite(v->value)))
    fail("E2126",
         std::isfinite(v->value) ? "the variance is negative" : "the variance is not finite",
         variance_span, "this is " + describe(variance),
         "normal(mean, variance) takes the variance, not the standard deviation");

  if (widths == 2) {
    if (computed(variance))
      fail("E2127", "a variance must be known before the run", variance_span,
           "this is computed by the run", "draw with variance 1/n and multiply");
    const Number v = number(variance, variance_span, "the variance of a width matrix");
    const Number m = number(mean, mean_span, "the mean of a width matrix");
    return width_matrix(name, s.name.span, axes, m, v, ir::EntryLaw::kNormal);
  }

  // Vectors, and finite random values: mean + deviation * z.
  const NodeId z = standard_normal(name, s.name.span, axes, span);
  NodeId deviated;
  if (const auto* v = variance.as<Number>()) {
    deviated = b.scale(1, v->power / 2, b.times(b.constant(std::sqrt(v->value)), z));
  } else {
    const Tensor sigma = finite(variance, variance_span, "a variance");
    const auto* values = builder_.constant_values(sigma.node);
    if (!values)
      fail("E2127", "a variance must be known before the run", variance_span,
           "this is computed by the run", "draw with variance 1 and multiply");
    const auto k = dims.empty() ? 0 : dims.back();
    if (sigma.axes.size() == 2 && !dims.empty() && finite_dims(sigma.axes) == Dims{k, k} &&
        finite_dims(sigma.axes) != dims) {
      const Eigen::Map<const Eigen::MatrixXd> covariance(values->data(), k, k);
      for (const double x : *values)
        if (!std::isfinite(x))
          fail("E2126", "a covariance is not finite", variance_span,
               fmt::format("one of them is {}", x));
      for (std::int64_t i = 0; i < k; ++i)
        for (std::int64_t j = 0; j < i; ++j)
          if (std::abs(covariance(i, j) - covariance(j, i)) >
              1e-12 * std::max(std::abs(covariance(i, j)), std::abs(covariance(j, i))))
            fail("E2126", "the covariance is not symmetric", variance_span,
                 fmt::format("entries [{0}, {1}] and [{1}, {0}] are {2} and {3}", i, j,
                             covariance(j, i), covariance(i, j)));
      const Eigen::VectorXd eigenvalues = symmetric_eigenvalues(covariance);
      const double least = eigenvalues.minCoeff(), greatest = eigenvalues.cwiseAbs().maxCoeff();
      if (least < -1e-12 * greatest)
        fail("E2126", "the covariance is not positive semidefinite", variance_span,
             fmt::format("its smallest eigenvalue is {:.6g}", least));
      const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> root =
          covariance_root(covariance);
      deviated = b.contract(
          z, b.constant(std::vector<double>(root.data(), root.data() + root.size()), {k, k}), 0, 1,
          false);
    } else {
      for (const double x : *values)
        if (!(x >= 0 && std::isfinite(x)))
          fail("E2126", x < 0 ? "a variance is negative" : "a variance is not finite",
               variance_span, fmt::format("one of them is {}", x));
      if (!fits(sigma.axes, axes))
        fail("E2128", "the variances do not fit the shape", variance_span,
             fmt::format("shape {} for {}", text(sigma.axes), text(axes)),
             "give one variance, one for each entry along the last finite axes, or a covariance "
             "matrix of the last finite axis");
      const Tensor product =
          combine(Fn::kMul, {Tensor{b.map(Fn::kSqrt, {sigma.node}), sigma.axes}, Tensor{z, axes}},
                  variance_span);
      deviated = product.node;
    }
  }
  const Tensor center = tensor(mean, mean_span);
  if (!fits(center.axes, axes))
    fail("E2128", "the mean does not fit the shape", mean_span,
         fmt::format("shape {} for {}", text(center.axes), text(axes)),
         "finite axes align from the right and must be equal or 1");
  return {combine(Fn::kAdd, {center, Tensor{deviated, axes}}, span)};
}

void Lowerer::on(const ast::Param& s, Span span) {
  const char* what = s.trained ? "param" : "random";
  if (!outside_models() || !loops_.empty())
    fail("E2603", fmt::format("'{}' stands outside models and loops", what), span,
         "it is drawn once", "declare it above and use it here");
  Axes axes;
  std::vector<std::size_t> own_widths;
  for (const auto& axis : s.axes) {
    const Value v = evaluate(*axis);
    if (const auto width = width_of(v)) {
      axes.push_back({true, 0});
      own_widths.push_back(*width);
    } else {
      const std::int64_t size = integer(v, axis->span, "an axis");
      if (size < 1)
        fail("E2215", "an axis has at least one entry", axis->span,
             fmt::format("this is {}", size));
      axes.push_back({false, size});
    }
  }
  const auto widths =
      std::count_if(axes.begin(), axes.end(), [](const Axis& a) { return a.width; });
  if (widths > 2) fail("E2207", "a value has at most two width axes", s.axes_span);
  if (widths == 2 && !(axes.back().width && axes[axes.size() - 2].width))
    fail("E2207", "the two width axes of a matrix come last", s.axes_span, "",
         fmt::format("write [.., {0}, {0}]", program_.width_name));
  check_size(finite_dims(axes), s.axes_span);
  Value rate{Number{1, 0}};
  check_once(s.options);
  for (const auto& option : s.options) {
    if (option.name.name != "lr" || !s.trained)
      unknown_option(
          what, option.name,
          s.trained ? "its option: lr" : "random values are not trained; param declares what is");
    rate = evaluate(*option.value);
    (void)scalar(rate, option.value->span, "a learning rate");
  }
  const std::optional<Role> role = role_of(s, axes, rate);
  if (std::any_of(own_widths.begin(), own_widths.end(),
                  [&](std::size_t w) { return widths_[w].units > 1; }))
    (void)declare_blocks(s, axes, own_widths, rate, role, span);
  else
    (void)declare(s, s.name, axes, rate, role, span);
}

/// One variable whose width axes are one unit long.
Value Lowerer::declare(const ast::Param& s, const ast::Identifier& name, const Axes& axes,
                       const Value& rate, std::optional<Role> role, Span span) {
  const auto widths =
      std::count_if(axes.begin(), axes.end(), [](const Axis& a) { return a.width; });
  Value initial = initial_value(s, name.name, axes, span);
  Variable variable{name, s.trained, axes, rate, {}};
  variable.role = role;
  variable.index = static_cast<std::uint32_t>(program_.variables.size());
  ir::Variable known{name.name, s.trained, s.name.span, role ? to_string(*role) : "", {}, {}, 1, 1};
  if (const auto* r = rate.as<Number>()) {
    known.rate = r->power;
    known.rate_factor = r->value;
  }
  const Value variance = variance_of(std::get<ast::Call>(s.law->node));
  if (const auto* v = variance.as<Number>()) {
    known.variance = v->power;
    known.variance_factor = v->value;
  }
  if (role) {
    const Abc x = effective(*role, widths > 0, false, parametrization_->entrywise);
    if (x.b != 0) initial = scaled(initial, power_of_first_width(-x.b), span);
    if (known.variance) {
      *known.variance += -2 * x.b;
      known.variance_factor *= power_of_first_width(-2 * x.b).value;
    }
    if (known.rate) {
      *known.rate += -x.c;
      known.rate_factor *= power_of_first_width(-x.c).value;
    }
  }
  Value value = opaque(initial);
  bind(name, value, Kind::kParam);
  if (const auto* array = value.as<MatrixArray>()) {
    for (std::size_t k = 0; k < array->items.size(); ++k) {
      program_.variables.push_back(known);
      program_.variables.back().name = fmt::format("{}[{}]", name.name, k);
    }
  } else {
    program_.variables.push_back(known);
  }
  if (widths == 0) {
    const Tensor own = tensor(variance, span);
    if (fits(own.axes, axes)) variable.deviation = build(span).map(Fn::kSqrt, {own.node});
  }
  variables_[name.name] = std::move(variable);
  variable_order_.push_back(name.name);
  return value;
}

void Lowerer::on(const ast::Function& s, Span span) {
  check_top_level("functions and models are declared", span);
  check_new_function(s.name);
  check_arguments(s.params);
  functions_[s.name.name] = {&s};
}

void Lowerer::on(const ast::Import& s, Span span) {
  check_top_level("files are imported", span);
  for (const ast::Stmt& stmt : s.statements)
    if (const auto* f = std::get_if<ast::Function>(&stmt.node)) defined_.insert(f->name.name);
  std::string outer = std::exchange(space_, s.space);
  for (const ast::Stmt& stmt : s.statements) {
    statement(stmt);
    if (errors_.size() >= kMaxErrors || met_) break;
  }
  space_ = std::move(outer);
}

void Lowerer::check_new_function(const ast::Identifier& name) const {
  if (functions_.contains(name.name) || reserved(name.name) || globals_.contains(name.name) ||
      std::any_of(widths_.begin(), widths_.end(),
                  [&](const Width& w) { return w.name == name.name; }))
    fail("E2117", fmt::format("'{}' is defined already", name.name), name.span, "",
         "choose another name");
}

void Lowerer::check_arguments(const std::vector<ast::Argument>& arguments) const {
  for (std::size_t k = 0; k < arguments.size(); ++k)
    for (std::size_t j = 0; j < k; ++j)
      if (const auto& name = arguments[k].name; arguments[j].name.name == name.name)
        fail("E2118", fmt::format("two arguments are named '{}'", name.name), name.span, "",
             "choose another name");
}

void Lowerer::check_once(const std::vector<ast::NamedArgument>& options) const {
  for (std::size_t k = 0; k < options.size(); ++k)
    for (std::size_t j = 0; j < k; ++j)
      if (options[j].name.name == options[k].name.name)
        fail("E2113", fmt::format("option '{}' is given twice", options[k].name.name),
             options[k].name.span);
}

// ---- control
// ---------------------------------------------------------------------------------------

void Lowerer::on(const ast::Assign& s, Span whole) {
  std::vector<Value> values;
  for (const auto& e : s.values)
    for (Value& v : evaluate_many(*e)) values.push_back(std::move(v));
  if (values.size() != s.targets.size())
    fail("E2129",
         fmt::format("{} value{} for {} name{}", values.size(), values.size() == 1 ? "" : "s",
                     s.targets.size(), s.targets.size() == 1 ? "" : "s"),
         s.values.front()->span.to(s.values.back()->span), "",
         values.size() > s.targets.size() ? "name every value that the model returns"
                                          : "write as many names as there are values");
  // New versions of parameters, written out: one step.
  if (!locals_ &&
      std::any_of(s.targets.begin(), s.targets.end(), [&](const ast::Identifier& target) {
        return !variables_named(target.name).empty();
      }))
    program_.steps.push_back({std::exchange(differentiated_, {}), whole, context_});
  for (std::size_t k = 0; k < values.size(); ++k) {
    const Span span = s.values[std::min(k, s.values.size() - 1)]->span;
    record_name(s.targets[k].name, values[k], span, ir::NamedValue::Kind::kValue);
    rebind(s.targets[k], std::move(values[k]), span);
  }
}

void Lowerer::on(const ast::Return& s, Span) {
  std::vector<Value> values;
  for (const auto& e : s.values)
    for (Value& v : evaluate_many(*e)) values.push_back(std::move(v));
  returned_ = std::move(values);
}

void Lowerer::on(const ast::For& s, Span) {
  const Items items = items_of(evaluate(*s.range), s.range->span);
  Scope& scope = locals_ ? *locals_ : globals_;
  if (const auto it = scope.find(s.variable.name);
      it != scope.end() && it->second.kind != Kind::kLocal)
    fail("E2119",
         it->second.kind == Kind::kLoop
             ? fmt::format("'{}' is the variable of a loop around this one", s.variable.name)
             : fmt::format("'{}' is declared already and cannot be a loop variable",
                           s.variable.name),
         s.variable.span, "", "choose another name");
  if (items.count > kMaxWork)
    fail("E2604", "the loop is too long", s.range->span,
         fmt::format("{} iterations, at most {} are unrolled", items.count, kMaxWork));
  const std::uint32_t outer_context = context_;
  if (items.count == 0) empty_loop_ = s.variable.name;
  for (std::size_t i = 0; i < items.count; ++i) {
    count_work(s.range->span);
    build(s.range->span);
    Value value = items.value(i);
    const auto* number = value.as<Number>();
    const std::string shown = number && number->power == 0 ? fmt::format("{}", number->value)
                                                           : fmt::format("{}", items.index(i));
    bind(s.variable, std::move(value), Kind::kLoop);
    loops_.emplace_back(s.variable.name + (items.positions ? " index" : ""), items.index(i));
    const std::string outer = program_.contexts[outer_context];
    program_.contexts.push_back(outer + (outer.empty() ? "" : ", ") +
                                fmt::format("{} = {}", s.variable.name, shown));
    context_ = static_cast<std::uint32_t>(program_.contexts.size() - 1);
    block(s.body);
    loops_.pop_back();
    if (errors_.size() >= kMaxErrors || (returned_ && call_depth_ > 0) || met_) break;
  }
  context_ = outer_context;
  if (const auto it = scope.find(s.variable.name); it != scope.end())
    it->second.kind = Kind::kLocal;  // free to be used again
}

/// A range; or a list, an array of matrices or any other array, along its first axis.
Lowerer::Items Lowerer::items_of(const Value& range, Span span) {
  if (range.as<Poison>()) throw Rejection{{}, true};
  if (const auto* interval = range.as<Interval>()) {
    const auto at = [in = *interval](std::size_t i) {
      return in.begin + in.step * static_cast<std::int64_t>(i);
    };
    return {static_cast<std::size_t>(interval->count),
            [at](std::size_t i) {
              return Value{Number{static_cast<double>(at(i)), 0}};
            },
            at};
  }
  std::vector<Value> values;
  if (const auto* list = range.as<List>()) {
    values = list->items;
  } else if (const auto* array = range.as<MatrixArray>()) {
    const auto count = static_cast<std::size_t>(array->dims[0]), own = array->items.size() / count;
    for (std::size_t i = 0; i < count; ++i) {
      if (array->dims.size() == 1) {
        values.push_back({array->items[i]});
        continue;
      }
      const auto first = array->items.begin() + static_cast<std::ptrdiff_t>(i * own);
      values.push_back({MatrixArray{{array->dims.begin() + 1, array->dims.end()},
                                    {first, first + static_cast<std::ptrdiff_t>(own)}}});
    }
  } else if (const auto* t = range.as<Tensor>(); t && !t->axes.empty() && !t->axes[0].width) {
    const Axes inner(t->axes.begin() + 1, t->axes.end());
    for (std::int64_t i = 0; i < t->axes[0].size; ++i) {
      const NodeId item = build(span).reshape(builder_.gather(t->node, 0, {i}), finite_dims(inner));
      const auto* known = inner.empty() ? builder_.constant_values(item) : nullptr;
      values.push_back(known ? Value{Number{(*known)[0], 0}} : Value{Tensor{item, inner}});
    }
  } else {
    fail("E2321", "a loop runs over a range or an array", span, "this is " + describe(range),
         "write: for t in 0..10 { .. }, or for x in [0.1, 0.2] { .. }");
  }
  // Integers that tell the iterations apart number them; else their positions do.
  std::set<std::int64_t> integers;
  for (const Value& v : values)
    if (const auto* x = v.as<Number>();
        x && x->power == 0 && x->value == std::round(x->value) && std::abs(x->value) < 1e15)
      integers.insert(static_cast<std::int64_t>(x->value));
  const bool positions = integers.size() != values.size();
  const std::size_t count = values.size();
  const auto items = std::make_shared<const std::vector<Value>>(std::move(values));
  return {count, [items](std::size_t i) { return (*items)[i]; },
          [items, positions](std::size_t i) {
            return positions ? static_cast<std::int64_t>(i)
                             : static_cast<std::int64_t>((*items)[i].as<Number>()->value);
          },
          positions};
}

/// A condition of the text, which must be known before the run.
bool Lowerer::holds(const ast::Expr& condition, const char* what, const char* help) {
  const Value v = evaluate(condition);
  if (v.as<Poison>()) throw Rejection{{}, true};
  if (const auto* flag = v.as<Flag>()) return flag->value;
  if (const auto* x = v.as<Number>(); x && x->power == 0) return x->value != 0;
  const Tensor t = tensor(v, condition.span);
  const auto* values = builder_.constant_values(t.node);
  if (!values)
    fail("E2331", fmt::format("{} must be known before the run", what), condition.span,
         "this depends on random values, parameters or the width", help);
  if (values->size() != 1)
    fail("E2331", fmt::format("{} is one number", what), condition.span,
         "this has shape " + text(t.axes),
         "all of them: min(..) of the comparison, any of them: max(..)");
  return (*values)[0] != 0;
}

void Lowerer::on(const ast::If& s, Span) {
  for (const auto& [condition, body] : s.branches)
    if (!condition ||
        holds(*condition, "the condition of 'if'",
              "a choice by a value of the run is an expression: where(condition, a, b)"))
      return block(body);
}

void Lowerer::on(const ast::Assert& s, Span) {
  if (holds(*s.condition, "what 'assert' checks",
            "values of the run are checked by: expect a == b within tolerance"))
    return;
  std::string message = "the assertion does not hold", label;
  if (s.text) {
    const Value v = evaluate(*s.text);
    if (!v.as<Text>())
      fail("E2304", "the message of 'assert' is a text", s.text->span, "this is " + describe(v),
           "for instance: assert T > 0, \"there are no steps\"");
    message = v.as<Text>()->value;
  }
  if (const auto* comparison = std::get_if<ast::Binary>(&s.condition->node))
    label = fmt::format("{} and {}", describe(evaluate(*comparison->left)),
                        describe(evaluate(*comparison->right)));
  fail("E2608", std::move(message), s.condition->span, std::move(label));
}

// ---- parametrisations
// ------------------------------------------------------------------------------

namespace {
constexpr const char* kAbcForm =
    "for instance abc(a = (0, 1/2, 1/2), b = 0, c = 0): input, hidden and output weights, or one "
    "number for all";
}

void Lowerer::on(const ast::Parametrization& s, Span span) {
  check_top_level("a parametrization is chosen", span);
  if (parametrization_)
    fail("E2140", "a program has one parametrization", span, "",
         fmt::format("'{}' was chosen before", parametrization_->name));
  const auto parameter =
      std::find_if(variable_order_.begin(), variable_order_.end(),
                   [&](const std::string& name) { return variables_.at(name).trained; });
  if (parameter != variable_order_.end())
    fail("E2140", "the parametrization stands before the first parameter", span,
         fmt::format("'{}' is declared above", *parameter), "move this line up");
  const auto set = set_on_command_line("parametrization", s.value->span);
  if (!set) {
    choose_parametrization(*s.value);
    return;
  }
  try {
    choose_parametrization(*set->value);
  } catch (Rejection& r) {
    blame(r, *set, s.value->span);
    throw;
  }
}

void Lowerer::choose_parametrization(const ast::Expr& value) {
  const auto known = [&] {
    return fmt::format("known: {}, or abc(a = .., b = .., c = ..), abcd(.., d = ..)",
                       fmt::join(known_parametrizations(), ", "));
  };
  if (const auto* name = std::get_if<ast::Name>(&value.node)) {
    parametrization_ = known_parametrization(name->name, false);
    if (!parametrization_) {
      std::string help = did_you_mean(name->name, known_parametrizations());
      fail("E2141", fmt::format("unknown parametrization '{}'", name->name), value.span, "",
           help.empty() ? known() : help);
    }
    return;
  }
  if (!std::holds_alternative<ast::Call>(value.node))
    fail("E2141", "a parametrization is a name or a call", value.span, "", known());
  const auto& call = std::get<ast::Call>(value.node);
  const bool entrywise = call.callee.name == "abcd";
  const char* letters = entrywise ? "abcd" : "abc";
  const char* form = entrywise ? "for instance abcd(a = (0, 0, 1), b = (0, 1/2, 0), c = (0, 1, 0), "
                                 "d = 1), for entrywise optimisers"
                               : kAbcForm;
  if (call.callee.name != "abc" && !entrywise)
    fail("E2141", fmt::format("unknown parametrization '{}'", call.callee.name), call.callee.span,
         "", known());
  if (!call.args.empty()) fail("E2142", "exponents are named", call.args[0]->span, "", form);
  check_once(call.named);
  Parametrization out{letters, entrywise, {}};
  std::set<std::string> given;
  for (const auto& option : call.named) {
    const std::string& name = option.name.name;
    if (name.size() != 1 || std::string(letters).find(name) == std::string::npos)
      unknown_option(letters, option.name, form);
    given.insert(name);
    std::vector<const ast::Expr*> items;
    if (const auto* t = std::get_if<ast::Tuple>(&option.value->node))
      for (const auto& e : t->items) items.push_back(e.get());
    else if (const auto* l = std::get_if<ast::List>(&option.value->node))
      for (const auto& e : l->items) items.push_back(e.get());
    else
      items.assign(3, option.value.get());
    if (items.size() != 3)
      fail("E2142", fmt::format("'{}' has {} exponents", name, items.size()), option.value->span,
           "three are needed: input, hidden, output", form);
    for (std::size_t k = 0; k < 3; ++k) {
      const Value v = evaluate(*items[k]);
      const auto* number = v.as<Number>();
      if (!number || number->power != 0)
        fail("E2142", "an exponent is a number", items[k]->span, "this is " + describe(v), form);
      const auto exponent = exponent_from_double(number->value);
      if (!exponent)
        fail("E2142", "an exponent is a fraction with a small denominator", items[k]->span,
             fmt::format("this is {}", number->value), "denominators go up to 48");
      (name == "a"   ? out.weights[k].a
       : name == "b" ? out.weights[k].b
       : name == "c" ? out.weights[k].c
                     : out.weights[k].d) = *exponent;
    }
  }
  if (given.size() != std::string(letters).size())
    fail("E2142", entrywise ? "abcd needs a, b, c and d" : "abc needs a, b and c", value.span, "",
         form);
  parametrization_ = out;
}

/// The role of a parameter, checked against its shape.
std::optional<Role> Lowerer::role_of(const ast::Param& s, const Axes& axes, const Value& rate) {
  if (s.role.empty()) {
    if (parametrization_ && s.trained && has_width(axes))  // a temperature is as it is written
      fail("E2143",
           fmt::format("'{}' has no role in the parametrization '{}'", s.name.name,
                       parametrization_->name),
           s.name.span, "",
           fmt::format("write: param {} : input, hidden, output or bias before its shape",
                       s.name.name));
    return std::nullopt;
  }
  const ast::Identifier& name = s.role[0];
  const std::optional<Role> role = role_from(name.name);
  if (!role)
    fail("E2143", fmt::format("unknown role '{}'", name.name), name.span, "",
         "roles: input, hidden, output, bias");
  if (!parametrization_)
    fail("E2143", "a role needs a parametrization", name.span, "",
         "write for example: parametrization mup, above the first parameter");
  const auto widths =
      std::count_if(axes.begin(), axes.end(), [](const Axis& a) { return a.width; });
  const bool fits_shape = *role == Role::kHidden ? widths == 2
                          : *role == Role::kBias ? widths <= 1
                                                 : widths == 1;
  if (!fits_shape)
    fail("E2144", fmt::format("the role '{}' does not fit the shape {}", name.name, text(axes)),
         name.span, "",
         fmt::format("input: [{0}, d]; hidden: [{0}, {0}]; output: [{0}] or [k, {0}]; bias: [{0}], "
                     "or finite after the readout",
                     program_.width_name));
  if (parametrization_->name == "mean_field" && *role == Role::kHidden)
    fail("E2144", "mean_field is for one hidden layer", name.span,
         "this is a matrix between hidden layers",
         "deeper networks of this kind: ip; with features that move: mup");
  const auto no_power = [&](const Value& v, Span span, const char* what) {
    if (const auto* number = v.as<Number>(); number && number->power != 0)
      fail("E2145", fmt::format("{} contains a power of the width, and so does the role", what),
           span, "", "give the constant factor only, or leave the role out and write all powers");
  };
  no_power(rate, s.options.empty() ? s.name.span : s.options[0].value->span, "the rate");
  if (const auto* law = s.law ? std::get_if<ast::Call>(&s.law->node) : nullptr)
    for (const auto& argument : law->args) no_power(evaluate(*argument), argument->span, "the law");
  return role;
}

/// Roles count powers of the first width, which is some units long.
Number Lowerer::power_of_first_width(Exponent power) const {
  return {std::pow(static_cast<double>(program_.width_units), to_double(power)), power};
}

/// The form with a = 0, in which n^-a w is the variable: `first` for the rate of the first step.
Abc Lowerer::effective(Role role, bool has_width, bool first, bool entrywise) const {
  const Parametrization own =
      entrywise == parametrization_->entrywise
          ? *parametrization_
          : known_parametrization(parametrization_->name, entrywise).value_or(*parametrization_);
  Abc x = own.of(role, has_width);
  if (first) {
    std::int64_t layers = 1;
    for (const ir::Variable& v : program_.variables)
      layers += v.role == to_string(Role::kHidden) ? 1 : 0;
    x.c = own.first_rate(role, has_width, layers);
  }
  return shifted(x, -x.a, own.entrywise);
}

/// The rate of a variable at the next step: what its declaration says, times n^-c of its role.
Value Lowerer::rate_of(const Variable& variable, Span span, bool entrywise) {
  if (!variable.role) return variable.rate;
  if (entrywise != parametrization_->entrywise &&
      !known_parametrization(parametrization_->name, entrywise))
    fail("E2147",
         fmt::format("the parametrization '{}' is not for this optimiser", parametrization_->name),
         span, "",
         entrywise ? "for entrywise optimisers: mup, ntk, standard, depth_mup, abcd(a = .., b = "
                     ".., c = .., d = ..)"
                   : "for sgd: a known name, or abc(a = .., b = .., c = ..)");
  const bool first = std::all_of(program_.steps.begin(), program_.steps.end(),
                                 [](const ir::TrainingStep& t) { return t.losses.empty(); });
  return arithmetic(ast::BinaryOp::kMul, variable.rate,
                    {power_of_first_width(
                        -effective(*variable.role, has_width(variable.axes), first, entrywise).c)},
                    span);
}

/// factor * value, matrices as one version each.
Value Lowerer::scaled(const Value& value, Number factor, Span span) {
  if (const auto* m = value.as<Matrix>())
    return {materialise(*arithmetic(ast::BinaryOp::kMul, {*m}, {factor}, span).as<Matrix>(), span)};
  if (const auto* array = value.as<MatrixArray>()) {
    MatrixArray out{array->dims, {}};
    for (const Matrix& m : array->items)
      out.items.push_back(*scaled({m}, factor, span).as<Matrix>());
    return {out};
  }
  return arithmetic(ast::BinaryOp::kMul, value, {factor}, span);
}

// ---- results
// ---------------------------------------------------------------------------------------

std::string Lowerer::unused_report_name(const std::string& name) const {
  std::string out = name;
  for (int copy = 2; std::any_of(program_.reports.begin(), program_.reports.end(),
                                 [&](const auto& r) { return r.name == out; });
       ++copy)
    out = fmt::format("{} #{}", name, copy);
  return out;
}

void Lowerer::on(const ast::Report& s, Span span) {
  if (!outside_models())
    fail("E2605", "reports stand outside models", span, "",
         "return the value and report it in the main script");
  for (std::size_t k = 0; k < s.items.size(); ++k) {
    const auto& item = s.items[k];
    Tensor t;
    try {
      t = finite(evaluate(*item.value), item.value->span, "a report");
      check_defined(t, item.value->span);
    } catch (const Rejection& r) {  // the other items may have mistakes of their own
      record(r, span);
      continue;
    }
    auto [slot, fresh] = report_slots_.try_emplace({&s, k}, program_.reports.size());
    if (fresh) {
      ir::Report report;
      report.name = unused_report_name(item.name.empty() ? canonical_text(source_, item.value->span)
                                                         : item.name[0].name);
      for (const auto& [variable, value] : loops_) report.index_names.push_back(variable);
      report.span = item.value->span;
      program_.reports.push_back(std::move(report));
    }
    ir::Report& report = program_.reports[slot->second];
    if (!report.entries.empty() &&
        builder_.type(report.entries[0].value).dims != builder_.type(t.node).dims)
      fail("E2606", "a report in a loop must keep its shape", item.value->span,
           fmt::format("{} after {}", text(t.axes),
                       text(finite_axes(builder_.type(report.entries[0].value).dims))),
           "report values of different shapes by separate statements");
    ir::Report::Entry entry;
    for (const auto& [variable, value] : loops_) entry.index.push_back(value);
    entry.value = t.node;
    report.entries.push_back(std::move(entry));
  }
}

void Lowerer::on(const ast::Expect& s, Span span) {
  if (!outside_models())
    fail("E2605", "expectations stand outside models", span, "",
         "return the value and expect it in the main script");
  const Tensor left = finite(evaluate(*s.left), s.left->span, "expect"),
               right = finite(evaluate(*s.right), s.right->span, "expect");
  check_defined(left, s.left->span);
  check_defined(right, s.right->span);
  const double tolerance = plain_number(evaluate(*s.within), s.within->span, "a tolerance");
  if (!(tolerance >= 0))
    fail("E2330", "a tolerance may not be negative", s.within->span,
         fmt::format("this is {}", tolerance));
  const Dims dims = finite_dims(combine(Fn::kSub, {left, right}, span).axes);
  const NodeId a = build(span).expand(left.node, false, dims),
               b = builder_.expand(right.node, false, dims);
  program_.expectations.push_back({a, b, builder_.minus(a, b), tolerance, span, context_});
}

/// What is known already must be finite: NaN and infinity are no results.
void Lowerer::check_defined(const Tensor& t, Span span) const {
  const auto* values = builder_.constant_values(t.node);
  if (!values) return;
  const auto bad =
      std::find_if(values->begin(), values->end(), [](double x) { return !std::isfinite(x); });
  if (bad == values->end()) return;
  std::string label = std::isnan(*bad) ? "this is not a number" : "this is infinite";
  if (values->size() > 1)
    label = fmt::format("entry {} {}", bad - values->begin(),
                        std::isnan(*bad) ? "is not a number" : "is infinite");
  not_finite("the value is not finite", span, std::move(label),
             "look for a division by zero, an overflow, or a log or sqrt of a negative number");
}

/// Reports of nested loops must fill a rectangular index set.
void Lowerer::finish_reports() {
  for (const auto& report : program_.reports) {
    std::size_t product = 1;
    std::vector<std::vector<std::int64_t>> orders;  // of first appearance
    for (std::size_t k = 0; k < report.index_names.size(); ++k) {
      std::set<std::int64_t> seen;
      orders.emplace_back();
      for (const auto& entry : report.entries)
        if (seen.insert(entry.index[k]).second) orders.back().push_back(entry.index[k]);
      product *= seen.size();
    }
    bool in_order = true;  // the same inner order in each outer iteration
    for (std::size_t e = 0; e < report.entries.size() && product == report.entries.size(); ++e) {
      std::size_t rest = e;
      for (std::size_t k = orders.size(); k-- > 0; rest /= orders[k].size())
        in_order = in_order && report.entries[e].index[k] == orders[k][rest % orders[k].size()];
    }
    if (!in_order)
      errors_.push_back(
          Diagnostic::error("E2607", "a report in nested loops needs one order of the inner loop")
              .at(report.span)
              .with_help("let the inner loop run over the same values in the same order"));
    if (!report.index_names.empty() && product != report.entries.size())
      errors_.push_back(
          Diagnostic::error("E2607", "a report in nested loops needs a rectangular index set")
              .at(report.span)
              .with_label(fmt::format("{} values for {} index combinations", report.entries.size(),
                                      product))
              .with_help("let the inner bounds not depend on the outer variable"));
  }
}

}  // namespace tplimit::lowering

namespace tplimit {

Result<Lowered> lower(const ast::Program& program, const Source& source,
                      const LowerOptions& options) {
  // Which values are differentiated by shows when `grad` is met: then once more, with these kept
  // apart.
  std::set<std::uint32_t> differentiated;
  for (;;) {
    if (options.names) options.names->clear();
    lowering::Lowerer lowerer(source, options, differentiated);
    auto lowered = lowerer.run(program);
    if (!lowerer.met()) return lowered;
    differentiated.insert(*lowerer.met());
  }
}

}  // namespace tplimit
