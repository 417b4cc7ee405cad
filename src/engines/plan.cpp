#include "engines/plan.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include <fmt/ranges.h>

#include "tplimit/ir/functions.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/check.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;
using Where = Plan::Place::Where;

std::vector<NodeId> Plan::Sweep::nodes() const {
  std::vector<NodeId> out;
  out.reserve(operations.size());
  for (const Operation& operation : operations) out.push_back(operation.node);
  return out;
}

bool Plan::Step::frees_node(NodeId id) const {
  return std::find(frees.begin(), frees.end(), id) != frees.end();
}

NodeId Plan::Step::last() const {
  return std::visit(overloaded{[](const Sweep& sweep) { return sweep.operations.back().node; },
                               [](const EntrySweep& sweep) { return sweep.operations.back().node; },
                               [](const auto& single) { return single.node; }},
                    action);
}

const std::vector<Plan::Sweep::Operation>* Plan::Step::operations() const {
  if (const auto* sweep = std::get_if<Sweep>(&action)) return &sweep->operations;
  if (const auto* sweep = std::get_if<EntrySweep>(&action)) return &sweep->operations;
  return nullptr;
}

namespace {

enum class Grouping { kSweeps, kOneByOne };

/// Consecutive row-by-row operations and averages form a group, one sweep.  A group ends where
/// something is needed that it only computes: an average, or all rows of a vector.
class Planner {
 public:
  Planner(const Schedule& schedule, Grouping grouping)
      : s_(schedule),
        program_(*schedule.program),
        grouping_(grouping),
        is_pending_(program_.size(), false),
        source_(program_.size()) {}

  Plan plan() {
    for (std::uint32_t k = 0; k < program_.size(); ++k) {
      if (!s_.needed[k] || std::holds_alternative<Constant>(program_.nodes[k].op)) continue;
      if (pending_.empty() && entries_pending_.empty()) next_ = NodeId{k};
      visit({k});
      if (grouping_ == Grouping::kOneByOne) flush();
    }
    flush();
    return std::move(plan_);
  }

 private:
  [[nodiscard]] const Type& type(NodeId id) const { return program_[id].type; }

  void visit(NodeId id) {
    const Node& node = program_[id];
    const auto rowwise = [&] {
      node.type.entries ? pend_entries(id) : node.type.width ? pend(id) : finite(id);
    };
    const auto identity = [&] { TPLIMIT_CHECK(false, "{} has been erased", op_name(node.op)); };
    std::visit(overloaded{[&](const Constant&) { TPLIMIT_CHECK(false, "constants are no steps"); },
                          [&](const Scale&) { rowwise(); },
                          [&](const StandardNormal&) { alone(Plan::Draw{id}); },
                          [&](const Map&) { rowwise(); },
                          [&](const Contract& c) { c.average ? pend(id) : rowwise(); },
                          [&](const Average&) { pend(id); },
                          [&](const ReduceSum&) { rowwise(); },
                          [&](const ReduceMax&) { rowwise(); },
                          [&](const LogSumExp&) { rowwise(); },
                          [&](const Gather&) { rowwise(); },
                          [&](const ScatterAdd&) { rowwise(); },
                          [&](const Permute&) { rowwise(); },
                          [&](const Reshape&) { rowwise(); },
                          [&](const Expand&) { rowwise(); },
                          [&](const Concat&) { rowwise(); },
                          [&](const Stop&) { rowwise(); },
                          [&](const Parameter&) { identity(); },
                          [&](const Change&) { identity(); },
                          [&](const MatMul&) {
                            alone(Plan::Product{id, source_[node.in[0].value]});
                          },
                          [&](const GaussianMatrix& w) {
                            source_[id.value] = w.source;
                            alone(Plan::Initialise{id, w.source});
                          },
                          [&](const ScaleMatrix&) {
                            alone(Plan::Rescale{id, inherited(id)});
                          },
                          [&](const UpdateMatrix&) {
                            alone(Plan::Update{id, inherited(id)});
                          },
                          [&](const AddVersion&) {
                            alone(Plan::Combine{id, inherited(id)});
                          },
                          [&](const OuterSum&) { pend_entries(id); },
                          [&](const MatrixEntries&) {
                            alone(Plan::CopyEntries{id, source_[node.in[0].value]});
                          },
                          [&](const AddEntries&) {
                            inherited(id);
                            pend_entries(id);
                          },
                          [&](const InnerProduct&) {
                            alone(Plan::InnerProduct{id, source_[node.in[0].value]});
                          },
                          [&](const Cholesky&) { rowwise(); },
                          [&](const Eigvals&) { rowwise(); },
                          [&](const TrainingOperator&) { rowwise(); },
                          [&](const Solve&) { rowwise(); },
                          [&](const LogDet&) { rowwise(); },
                          [&](const Samples&) { alone(Plan::TakeSamples{id}); },
                          [&](const Histogram&) { pend(id); }},
               node.op);
  }

  /// The source of a new version: that of the old one.
  SourceId inherited(NodeId id) { return source_[id.value] = source_[program_[id].in[0].value]; }

  void pend(NodeId id) {
    flush_entries();
    finish_finite_operands(id);
    pending_.push_back(id);
    is_pending_[id.value] = true;
  }

  /// Consecutive operations on entries form a group, too.  It ends where a matrix is needed that it
  /// computes, or changes already: an old version is handed over once.
  void pend_entries(NodeId id) {
    flush_rows();
    const auto is_version = [&](NodeId k) { return type(k).matrix && !type(k).entries; };
    const auto clashes = [&](NodeId other) {
      const NodeId old = program_[id].in[0];
      return other == old || (is_version(other) && program_[other].in[0] == old);
    };
    if (is_version(id) && std::any_of(entries_pending_.begin(), entries_pending_.end(), clashes))
      flush_entries();
    entries_pending_.push_back(id);
  }

  /// Needs no rows, and so may come before the pending operations.
  void finite(NodeId id) {
    finish_finite_operands(id);
    emit(Plan::FiniteStep{id}, {id});
  }

  /// A finite operand still being summed has to be finished first.
  void finish_finite_operands(NodeId id) {
    for (const NodeId in : program_[id].in)
      if (!type(in).width && is_pending_[in.value]) flush();
  }

  /// What reads all rows at once, or a matrix; pending operations may still read what it frees.
  template <class Single>
  void alone(Single action) {
    flush();
    emit(action, {action.node});
  }

  void flush() {
    flush_rows();
    flush_entries();
  }

  void flush_entries() {
    if (entries_pending_.empty()) return;
    const std::vector<NodeId> group = std::exchange(entries_pending_, {});
    emit(entry_sweep(group), group);
  }

  void flush_rows() {
    if (pending_.empty()) return;
    const std::vector<NodeId> group = std::exchange(pending_, {});
    for (const NodeId id : group) is_pending_[id.value] = false;
    emit(sweep(group), group);
  }

  /// Columns of scratch memory, used again when what they hold has died.
  class ScratchColumns {
   public:
    explicit ScratchColumns(std::int64_t& most) : most_(most) {}
    std::int64_t take(std::int64_t columns) {
      auto& free = free_[columns];
      if (free.empty()) return std::exchange(most_, most_ + columns);
      const std::int64_t offset = free.back();
      free.pop_back();
      return offset;
    }
    void give_back(const Plan::Place& place) { free_[place.columns].push_back(place.offset); }

   private:
    std::int64_t& most_;
    std::map<std::int64_t, std::vector<std::int64_t>> free_;  ///< offsets of so many columns
  };
  [[nodiscard]] bool dies_inside(NodeId id, const std::vector<NodeId>& group) const {
    return std::binary_search(group.begin(), group.end(), NodeId{s_.last_use[id.value]});
  }

  /// Averages live in partial sums, values used later in blocks, the others in scratch columns.
  Plan::Sweep sweep(const std::vector<NodeId>& group) {
    Plan::Sweep out;
    std::unordered_map<std::uint32_t, Plan::Place> places;  // of what the group computes
    ScratchColumns scratch(out.scratch_columns);
    for (const NodeId id : group) {
      const Node& node = program_[id];
      Plan::Sweep::Operation operation{id, {}, {}, {}};
      for (const NodeId in : node.in) {
        const auto own = places.find(in.value);
        operation.types.push_back(&type(in));
        operation.in.push_back(own != places.end() ? own->second : place_outside(in));
      }
      Plan::Place& place = operation.out;
      place.columns = size_of(node.type.dims);
      if (is_average(node.op)) {
        place.where = Where::kSum;
        place.offset = std::exchange(out.sums, out.sums + place.columns);
      } else if (dies_inside(id, group)) {
        place.where = Where::kScratch;
        place.offset = scratch.take(place.columns);
      }
      // Scratch of operands that die here can be used again, by later results only.
      for (const NodeId in : operands_that_die(id))
        if (const auto own = places.find(in.value);
            own != places.end() && own->second.where == Where::kScratch)
          scratch.give_back(own->second);
      places.emplace(id.value, place);
      out.operations.push_back(std::move(operation));
    }
    return out;
  }

  /// What is used later lives in arrays.
  Plan::EntrySweep entry_sweep(const std::vector<NodeId>& group) {
    Plan::EntrySweep out;
    std::unordered_map<std::uint32_t, Plan::Place> places;
    ScratchColumns scratch(out.scratch_columns);
    for (const NodeId id : group)
      for (const NodeId in : program_[id].in)
        if (type(in).entries && !std::binary_search(group.begin(), group.end(), in) &&
            !places.contains(in.value)) {
          out.loads.push_back({in, scratch.take(1)});
          places.emplace(in.value, Plan::Place{Where::kScratch, 1, out.loads.back().column});
        }
    for (const NodeId id : group) {
      const Node& node = program_[id];
      Plan::Sweep::Operation operation{id, {}, {}, {}};
      for (const NodeId in : node.in) {
        operation.types.push_back(&type(in));
        operation.in.push_back(type(in).entries  ? places.at(in.value)
                               : type(in).matrix ? Plan::Place{Where::kVersion, 0, 0}
                                                 : place_outside(in));
      }
      operation.out = {Where::kVersion, 0, 0};
      if (type(id).entries) {
        operation.out = {Where::kScratch, 1, scratch.take(1)};
        if (!dies_inside(id, group)) {
          operation.out.where = Where::kEntries;
          out.stores.push_back({id, operation.out.offset});
        }
      }
      for (const NodeId in : operands_that_die(id))
        if (const auto own = places.find(in.value);
            own != places.end() && own->second.where == Where::kScratch)
          scratch.give_back(own->second);
      places.emplace(id.value, operation.out);
      out.operations.push_back(std::move(operation));
    }
    return out;
  }

  [[nodiscard]] Plan::Place place_outside(NodeId id) const {
    return {type(id).width ? Where::kBlock : Where::kFinite, size_of(type(id).dims), 0};
  }

  /// In their order, each once.
  [[nodiscard]] std::vector<NodeId> operands_that_die(NodeId id) const {
    std::vector<NodeId> out;
    for (const NodeId in : program_[id].in)
      if (s_.last_use[in.value] == id.value && std::find(out.begin(), out.end(), in) == out.end())
        out.push_back(in);
    return out;
  }

  void emit(Plan::Action action, const std::vector<NodeId>& nodes) {
    Plan::Step step{std::move(action), {}, std::exchange(next_, std::nullopt)};
    const std::vector<Plan::Sweep::Operation>* operations = step.operations();
    const auto in_scratch = [&](NodeId id) {
      const auto at = operations ? std::lower_bound(nodes.begin(), nodes.end(), id) : nodes.end();
      return at != nodes.end() && *at == id &&
             (*operations)[static_cast<std::size_t>(at - nodes.begin())].out.where ==
                 Where::kScratch;
    };
    for (const NodeId id : nodes)
      for (const NodeId in : operands_that_die(id))
        if ((type(in).matrix || type(in).width) && !in_scratch(in)) step.frees.push_back(in);
    plan_.steps.push_back(std::move(step));
  }

  const Schedule& s_;
  const Program& program_;
  Grouping grouping_;
  Plan plan_;
  std::vector<NodeId> pending_;  ///< the group so far
  std::vector<bool> is_pending_;
  std::vector<NodeId> entries_pending_;  ///< a group of operations on entries
  std::vector<SourceId> source_;         ///< of versions of matrices
  std::optional<NodeId> next_;  ///< nothing was pending at this node, and no step came since
};

std::string text_of(const Plan::Place& place) {
  switch (place.where) {
    case Where::kFinite: return "finite";
    case Where::kBlock: return fmt::format("block of {}", place.columns);
    case Where::kScratch:
      return fmt::format("scratch {}..{}", place.offset, place.offset + place.columns);
    case Where::kSum: return fmt::format("sums {}..{}", place.offset, place.offset + place.columns);
    case Where::kEntries: return "array of entries";
    case Where::kVersion: return "matrix";
  }
  TPLIMIT_CHECK(false, "a place");
}

std::string names_of(const std::vector<NodeId>& ids) {
  std::string out;
  for (const NodeId id : ids) out += fmt::format("{}%{}", out.empty() ? "" : " ", id.value);
  return out;
}

/// %7 = map(%3 %5)
std::string text_of(const Program& program, NodeId id) {
  const Node& node = program[id];
  return fmt::format("%{} = {}({})", id.value, op_name(node.op), names_of(node.in));
}

}  // namespace

Schedule make_schedule(const Program& program, std::vector<NodeId> wanted) {
  Schedule s;
  s.program = &program;
  s.wanted = std::move(wanted);
  s.needed.assign(program.size(), false);
  for (const NodeId id : s.wanted) s.needed[id.value] = true;
  for (std::size_t k = program.size(); k-- > 0;)
    if (s.needed[k])
      for (const NodeId in : program.nodes[k].in) s.needed[in.value] = true;
  s.last_use.resize(program.size());
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    s.last_use[k] = k;
    if (s.needed[k])
      for (const NodeId in : program.nodes[k].in) s.last_use[in.value] = k;
  }
  s.multiplied.assign(program.size(), false);
  for (std::size_t k = 0; k < program.size(); ++k)
    if (s.needed[k] && std::holds_alternative<MatMul>(program.nodes[k].op))
      s.multiplied[program.nodes[k].in[1].value] = true;
  s.heavy.assign(program.size(), false);
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (!s.needed[k] || !node.type.width || std::holds_alternative<MatMul>(node.op) ||
        is_bounded(node.op))
      continue;
    s.heavy[k] =
        may_have_heavy_tails(program, node) ||
        std::any_of(node.in.begin(), node.in.end(), [&](NodeId in) { return s.heavy[in.value]; });
  }
  s.spaces = probability_spaces(program);
  s.plan = Planner(s, Grouping::kSweeps).plan();
  return s;
}

Plan one_by_one(const Schedule& schedule) { return Planner(schedule, Grouping::kOneByOne).plan(); }

std::string to_text(const Plan& plan, const Program& program) {
  std::string out;
  for (const Plan::Step& step : plan.steps) {
    const auto line = [&](const char* verb, NodeId node) {
      out += fmt::format("{:<10} {}", verb, text_of(program, node));
      if (program[node].type.width)
        out += fmt::format(" -> block of {}", size_of(program[node].type.dims));
    };
    std::visit(
        overloaded{[&](const Plan::Sweep& sweep) {
                     out += fmt::format("sweep      {} scratch columns, {} sums",
                                        sweep.scratch_columns, sweep.sums);
                     for (const auto& operation : sweep.operations)
                       out += fmt::format("\n             {} -> {}",
                                          text_of(program, operation.node), text_of(operation.out));
                   },
                   [&](const Plan::EntrySweep& sweep) {
                     out += fmt::format("entries    {} scratch columns", sweep.scratch_columns);
                     for (const auto& operation : sweep.operations)
                       out += fmt::format("\n             {} -> {}",
                                          text_of(program, operation.node), text_of(operation.out));
                   },
                   [&](const Plan::Draw& a) { line("draw", a.node); },
                   [&](const Plan::Initialise& a) { line("matrix", a.node); },
                   [&](const Plan::Product& a) { line("product", a.node); },
                   [&](const Plan::Rescale& a) { line("scale", a.node); },
                   [&](const Plan::Update& a) { line("update", a.node); },
                   [&](const Plan::Combine& a) { line("combine", a.node); },
                   [&](const Plan::CopyEntries& a) { line("entries", a.node); },
                   [&](const Plan::InnerProduct& a) { line("inner", a.node); },
                   [&](const Plan::TakeSamples& a) { line("samples", a.node); },
                   [&](const Plan::FiniteStep& a) { line("finite", a.node); }},
        step.action);
    if (!step.frees.empty()) out += fmt::format("\n  free     {}", names_of(step.frees));
    out += '\n';
  }
  return out;
}

}  // namespace tplimit::engines
