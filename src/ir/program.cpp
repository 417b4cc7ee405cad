#include "tplimit/ir/program.hpp"

#include <algorithm>
#include <map>

#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::ir {

std::int64_t size_of(const Dims& dims) {
  std::int64_t size = 1;
  for (const auto d : dims) size *= d;
  return size;
}

const char* op_name(const Op& op) {
  return std::visit(
      overloaded{[](const Constant&) { return "constant"; },
                 [](const Scale&) { return "scale"; },
                 [](const StandardNormal&) { return "standard_normal"; },
                 [](const Map& m) { return name(m.fn); },
                 [](const Contract& c) { return c.average ? "contract_average" : "contract"; },
                 [](const Average&) { return "average"; },
                 [](const ReduceSum&) { return "reduce_sum"; },
                 [](const ReduceMax&) { return "reduce_max"; },
                 [](const LogSumExp&) { return "log_sum_exp"; },
                 [](const Gather&) { return "gather"; },
                 [](const ScatterAdd&) { return "scatter_add"; },
                 [](const Permute&) { return "permute"; },
                 [](const Reshape&) { return "reshape"; },
                 [](const Expand&) { return "expand"; },
                 [](const Concat&) { return "concat"; },
                 [](const Stop&) { return "stop"; },
                 [](const Parameter&) { return "parameter"; },
                 [](const Change&) { return "change"; },
                 [](const MatMul& m) { return m.transposed ? "matmul_transposed" : "matmul"; },
                 [](const GaussianMatrix&) { return "gaussian_matrix"; },
                 [](const ScaleMatrix&) { return "scale_matrix"; },
                 [](const UpdateMatrix&) { return "update_matrix"; },
                 [](const AddVersion&) { return "add_version"; },
                 [](const OuterSum&) { return "outer_sum"; },
                 [](const MatrixEntries&) { return "matrix_entries"; },
                 [](const AddEntries&) { return "add_entries"; },
                 [](const InnerProduct&) { return "inner_product"; },
                 [](const Cholesky&) { return "cholesky"; },
                 [](const Eigvals&) { return "eigvals"; },
                 [](const TrainingOperator&) { return "training_operator"; },
                 [](const Solve&) { return "solve"; },
                 [](const LogDet&) { return "logdet"; },
                 [](const Samples&) { return "samples"; },
                 [](const Histogram&) { return "histogram"; }},
      op);
}

bool is_update(const Op& op) {
  return std::holds_alternative<UpdateMatrix>(op) || std::holds_alternative<AddVersion>(op) ||
         std::holds_alternative<AddEntries>(op);
}

Program without_nodes(const Program& program) {
  Program out;
  out.sources = program.sources;
  out.contexts = program.contexts;
  out.width_name = program.width_name;
  out.width_units = program.width_units;
  out.variables = program.variables;
  out.has_random_scalars = program.has_random_scalars;
  return out;
}

std::vector<NodeId> outputs_of(const Program& program) {
  std::vector<NodeId> outputs;
  for (const auto& report : program.reports)
    for (const auto& entry : report.entries) outputs.push_back(entry.value);
  for (const auto& expectation : program.expectations) {
    outputs.push_back(expectation.left);
    outputs.push_back(expectation.right);
    outputs.push_back(expectation.difference);
  }
  std::sort(outputs.begin(), outputs.end());
  outputs.erase(std::unique(outputs.begin(), outputs.end()), outputs.end());
  return outputs;
}

namespace {

Dims broadcast(const Dims& a, const Dims& b) {
  Dims out(std::max(a.size(), b.size()), 1);
  for (const Dims* dims : {&a, &b})
    for (std::size_t k = 0; k < dims->size(); ++k) {
      auto& to = out[out.size() - 1 - k];
      const auto from = (*dims)[dims->size() - 1 - k];
      TPLIMIT_CHECK(to == from || to == 1 || from == 1, "finite axes that broadcast, got {} and {}",
                    to, from);
      if (to == 1) to = from;
    }
  return out;
}

Type entries_type() {
  Type type;
  type.matrix = type.entries = true;
  return type;
}

Type contract_type(const Contract& op, const Type& a, const Type& b) {
  const auto batch = static_cast<std::size_t>(op.batch),
             inner = static_cast<std::size_t>(op.contracted);
  TPLIMIT_CHECK(a.dims.size() >= batch + inner && b.dims.size() >= batch + inner,
                "enough axes to contract");
  for (std::size_t k = 0; k < batch; ++k)
    TPLIMIT_CHECK(a.dims[k] == b.dims[k], "equal batch axes in contract");
  for (std::size_t k = 1; k <= inner; ++k)
    TPLIMIT_CHECK(a.dims[a.dims.size() - k] == b.dims[b.dims.size() - k],
                  "equal contracted axes in contract");
  TPLIMIT_CHECK(!op.average || (a.width && b.width),
                "an average of a product takes two operands with a width axis");
  Type type{false, !op.average && (a.width || b.width),
            Dims(a.dims.begin(), a.dims.end() - op.contracted)};
  type.dims.insert(type.dims.end(), b.dims.begin() + op.batch, b.dims.end() - op.contracted);
  return type;
}

}  // namespace

Type infer_type(const Op& op, const std::vector<const Type*>& in) {
  const auto tensor = [&](std::size_t k) -> const Type& {
    TPLIMIT_CHECK(k < in.size() && !in[k]->matrix, "operand {} of {} is a tensor", k, op_name(op));
    return *in[k];
  };
  const auto square = [&](std::size_t k) -> const Type& {  // [.., k, k]
    const Type& type = tensor(k);
    TPLIMIT_CHECK(
        !type.width && type.dims.size() >= 2 && type.dims.back() == type.dims[type.dims.size() - 2],
        "operand {} of {} is a finite square matrix", k, op_name(op));
    return type;
  };
  const auto matrix = [&]() -> Type {
    TPLIMIT_CHECK(!in.empty() && in[0]->matrix && !in[0]->entries,
                  "the first operand of {} is a matrix", op_name(op));
    return *in[0];
  };
  const auto outer_products = [&](std::size_t first) {
    TPLIMIT_CHECK(in.size() % 3 == first, "{} has terms of three operands", op_name(op));
    for (std::size_t k = first; k < in.size(); k += 3)
      TPLIMIT_CHECK(tensor(k) == Type{} && tensor(k + 1) == tensor(k + 2) && in[k + 1]->width,
                    "terms of {} are (scalar, block, block of the same type)", op_name(op));
  };
  const auto axis_in = [&](std::int32_t axis, const Dims& dims) {
    TPLIMIT_CHECK(axis >= 0 && static_cast<std::size_t>(axis) < dims.size(), "axis {} of {} exists",
                  axis, op_name(op));
    return static_cast<std::ptrdiff_t>(axis);
  };
  const auto reduced = [&](std::int32_t axis) {
    Type type = tensor(0);
    type.dims.erase(type.dims.begin() + axis_in(axis, type.dims));
    return type;
  };
  return std::visit(
      overloaded{
          [&](const Constant&) -> Type {
            TPLIMIT_CHECK(false, "constants carry their own type");
            return {};
          },
          [&](const Scale&) { return in.at(0)->entries ? *in[0] : tensor(0); },
          [&](const StandardNormal&) -> Type {
            TPLIMIT_CHECK(false, "sources carry their own type");
            return {};
          },
          [&](const Map& m) {
            TPLIMIT_CHECK(static_cast<int>(in.size()) == arity(m.fn), "{} takes {} operands",
                          name(m.fn), arity(m.fn));
            if (std::any_of(in.begin(), in.end(), [](const Type* t) { return t->entries; })) {
              for (const Type* t : in)
                TPLIMIT_CHECK(t->entries || *t == Type{}, "{} of entries and numbers", name(m.fn));
              return entries_type();
            }
            Type type = tensor(0);
            for (std::size_t k = 1; k < in.size(); ++k) {
              type.width = type.width || tensor(k).width;
              type.dims = broadcast(type.dims, in[k]->dims);
            }
            return type;
          },
          [&](const Contract& c) { return contract_type(c, tensor(0), tensor(1)); },
          [&](const Average&) {
            TPLIMIT_CHECK(tensor(0).width, "an average is over a width axis");
            return Type{false, false, in[0]->dims};
          },
          [&](const ReduceSum& r) { return reduced(r.axis); },
          [&](const ReduceMax& r) { return reduced(r.axis); },
          [&](const LogSumExp& r) { return reduced(r.axis); },
          [&](const Gather& g) {
            Type type = tensor(0);
            auto& size = type.dims[static_cast<std::size_t>(axis_in(g.axis, type.dims))];
            for (const auto i : *g.indices)
              TPLIMIT_CHECK(0 <= i && i < size, "index {} is below {}", i, size);
            size = static_cast<std::int64_t>(g.indices->size());
            return type;
          },
          [&](const ScatterAdd& s) {
            Type type = tensor(0);
            auto& size = type.dims[static_cast<std::size_t>(axis_in(s.axis, type.dims))];
            TPLIMIT_CHECK(size == static_cast<std::int64_t>(s.indices->size()),
                          "one index per slice");
            size = s.size;
            return type;
          },
          [&](const Permute& p) {
            Type type = tensor(0);
            TPLIMIT_CHECK(p.axes.size() == type.dims.size(), "a permutation of all axes");
            for (std::size_t k = 0; k < p.axes.size(); ++k)
              type.dims[k] = in[0]->dims[static_cast<std::size_t>(axis_in(p.axes[k], in[0]->dims))];
            return type;
          },
          [&](const Reshape& r) {
            TPLIMIT_CHECK(size_of(r.dims) == size_of(tensor(0).dims),
                          "a reshape keeps the number of entries");
            return Type{false, in[0]->width, r.dims};
          },
          [&](const Expand& e) {
            TPLIMIT_CHECK(broadcast(tensor(0).dims, e.dims) == e.dims && (e.width || !in[0]->width),
                          "an expansion only adds axes");
            return Type{false, e.width, e.dims};
          },
          [&](const Concat& c) {
            Type type = tensor(0);
            const auto axis = static_cast<std::size_t>(axis_in(c.axis, type.dims));
            for (std::size_t k = 1; k < in.size(); ++k) {
              type.width = type.width || tensor(k).width;
              Dims rest = in[k]->dims;
              type.dims[axis] += rest.at(axis);
              rest[axis] = type.dims[axis];
              TPLIMIT_CHECK(rest == type.dims, "equal other axes in concat");
            }
            return type;
          },
          [&](const Stop&) { return *in.at(0); },
          [&](const Parameter&) { return *in.at(0); },
          [&](const Change&) { return *in.at(0); },
          [&](const MatMul&) {
            (void)matrix();
            TPLIMIT_CHECK(tensor(1).width, "a width matrix multiplies values with a width axis");
            return tensor(1);
          },
          [&](const GaussianMatrix&) {
            return Type{true, false, {}};
          },
          [&](const ScaleMatrix&) {
            TPLIMIT_CHECK(tensor(1) == Type{}, "a matrix is scaled by a scalar");
            return matrix();
          },
          [&](const UpdateMatrix&) {
            outer_products(1);
            return matrix();
          },
          [&](const AddVersion&) {
            TPLIMIT_CHECK(in.size() == 3 && tensor(1) == Type{} && *in[2] == matrix(),
                          "a multiple of a version is added");
            return matrix();
          },
          [&](const OuterSum&) {
            outer_products(0);
            return entries_type();
          },
          [&](const MatrixEntries&) {
            (void)matrix();
            return entries_type();
          },
          [&](const AddEntries&) {
            TPLIMIT_CHECK(
                in.size() == 3 && tensor(1) == Type{} && (in[2]->entries || *in[2] == Type{}),
                "a multiple of entries, or of one number, is added");
            return matrix();
          },
          [&](const InnerProduct&) {
            TPLIMIT_CHECK(in.size() == 2 && *in[1] == matrix(), "two width matrices");
            return Type{};
          },
          [&](const Cholesky&) {
            TPLIMIT_CHECK(!tensor(0).width && tensor(0).dims.size() == 2 &&
                              tensor(0).dims[0] == tensor(0).dims[1],
                          "a finite square matrix");
            return tensor(0);
          },
          [&](const Eigvals&) {
            Type type = square(0);
            type.dims.pop_back();
            return type;
          },
          [&](const TrainingOperator&) {
            const Type kernel = tensor(0), across = tensor(1);
            TPLIMIT_CHECK(!kernel.width && !across.width && kernel.dims.size() == 2 &&
                              across.dims.size() == 2 && kernel.dims[0] == kernel.dims[1] &&
                              across.dims[1] == kernel.dims[0],
                          "a kernel of the training samples, and one of other samples with these");
            return across;
          },
          [&](const Solve&) {
            const Type a = square(0), y = tensor(1);
            TPLIMIT_CHECK(!y.width && y.dims.size() == a.dims.size() &&
                              std::equal(a.dims.begin(), a.dims.end() - 1, y.dims.begin()),
                          "right sides of a finite square matrix");
            return y;
          },
          [&](const LogDet&) {
            Type type = square(0);
            type.dims.resize(type.dims.size() - 2);
            return type;
          },
          [&](const Samples& s) {
            Type type = tensor(0);
            TPLIMIT_CHECK(type.width, "samples of coordinates");
            type.width = false;
            type.dims.push_back(s.count);
            return type;
          },
          [&](const Histogram& h) {
            Type type = tensor(0);
            TPLIMIT_CHECK(type.width && h.bins > 0 && h.low < h.high,
                          "a histogram over coordinates");
            type.width = false;
            type.dims.push_back(h.bins);
            return type;
          },
      },
      op);
}

void verify(const Program& program) {
  for (std::size_t k = 0; k < program.nodes.size(); ++k) {
    const Node& node = program.nodes[k];
    std::vector<const Type*> in;
    for (const NodeId id : node.in) {
      TPLIMIT_CHECK(id.value < k, "operands of node {} come before it", k);
      in.push_back(&program[id].type);
    }
    TPLIMIT_CHECK(node.context < program.contexts.size(), "node {} has a context", k);
    if (const auto* constant = std::get_if<Constant>(&node.op)) {
      TPLIMIT_CHECK(
          static_cast<std::int64_t>(constant->values->size()) == size_of(node.type.dims) &&
              !node.type.width,
          "a constant has one value per entry");
    } else if (const auto* normal = std::get_if<StandardNormal>(&node.op)) {
      TPLIMIT_CHECK(normal->source.value < program.sources.size(), "a declared source");
    } else {
      TPLIMIT_CHECK(infer_type(node.op, in) == node.type, "node {} ({}) has its inferred type", k,
                    op_name(node.op));
    }
  }
  for (const NodeId id : outputs_of(program))
    TPLIMIT_CHECK(id.value < program.size() && !program[id].type.width && !program[id].type.matrix,
                  "outputs are finite");
}

namespace {

// Fields of payloads, as programs are printed; what op_name or the type tells already, parameters
// that are 0 and what is not so are empty.
std::string text(double x, const Program&) { return x == 0 ? "" : fmt::format("{}", x); }
std::string text(bool x, const Program&) { return x ? "yes" : ""; }
std::string text(std::int32_t x, const Program&) { return fmt::format("{}", x); }
std::string text(std::uint32_t x, const Program&) { return fmt::format("{}", x); }
std::string text(std::int64_t x, const Program&) { return fmt::format("{}", x); }
std::string text(Fn, const Program&) { return ""; }
std::string text(Exponent e, const Program&) { return power_of_width(e); }
std::string text(SourceId s, const Program& program) { return program.sources[s.value].name; }
template <class T>
std::string text(const std::vector<T>& values, const Program&) {
  // Large constants and lists of indices are not read by anybody.
  return values.size() <= 16 ? fmt::format("{{{}}}", fmt::join(values, ", "))
                             : fmt::format("{{{} numbers}}", values.size());
}
template <class T>
std::string text(const Shared<T>& values, const Program& program) {
  return text(*values, program);
}

/// Names of fields that do not speak for themselves, in their order.
const std::vector<const char*>& labels_of(const std::string& operation) {
  static const std::map<std::string, std::vector<const char*>> all{
      {"contract", {"batch=", "contracted="}},
      {"contract_average", {"batch=", "contracted=", nullptr}},
      {"matmul_transposed", {nullptr}},
      {"reduce_sum", {"axis="}},
      {"reduce_max", {"axis="}},
      {"gather", {"axis=", ""}},
      {"scatter_add", {"axis=", "", "size="}},
      {"concat", {"axis="}},
      {"training_operator", {"rate=", "time=", "ridge=", "flow="}},
      {"histogram", {"low=", "high=", "bins="}}};
  static const std::vector<const char*> none;
  const auto it = all.find(operation);
  return it == all.end() ? none : it->second;
}

}  // namespace

std::string to_text(const Program& program) {
  std::string out;
  for (std::size_t k = 0; k < program.nodes.size(); ++k) {
    const Node& node = program.nodes[k];
    std::vector<std::string> axes;
    for (const auto d : node.type.dims) axes.push_back(fmt::format("{}", d));
    if (node.type.width) axes.push_back(program.width_name);
    const std::string type = node.type.entries  ? "entries"
                             : node.type.matrix ? "matrix"
                                                : fmt::format("[{}]", fmt::join(axes, ", "));
    std::string args;
    for (const NodeId id : node.in) args += fmt::format(" %{}", id.value);
    const std::string operation = op_name(node.op);
    const std::vector<const char*>& labels = labels_of(operation);
    std::string payload;
    std::size_t field_number = 0;
    const auto append = [&](const std::string& field) {
      const char* label = field_number < labels.size() ? labels[field_number] : "";
      ++field_number;
      if (label && !field.empty()) payload += fmt::format(" {}{}", label, field);
    };
    std::visit(
        [&](const auto& op) {
          std::apply([&](const auto&... field) { (append(text(field, program)), ...); },
                     op.fields());
        },
        node.op);
    out += fmt::format("%{} {} = {}{}{}\n", k, type, operation, payload, args);
  }
  for (const auto& report : program.reports)
    for (const auto& entry : report.entries) {
      std::string index;
      for (const auto i : entry.index) index += fmt::format("[{}]", i);
      out += fmt::format("report {}{} = %{}\n", report.name, index, entry.value.value);
    }
  return out;
}

}  // namespace tplimit::ir
