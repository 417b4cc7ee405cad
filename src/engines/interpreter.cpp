#include "engines/interpreter.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>

#include "engines/entry_sweep.hpp"
#include "engines/realisation.hpp"
#include "engines/term_watch.hpp"
#include "tplimit/ir/kernels.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;
using Where = Plan::Place::Where;

namespace {

/// Executes the plan of a schedule.
class Run {
 public:
  Run(const Schedule& schedule, const RunSettings& settings, const Executor& executor)
      : s_(schedule),
        program_(*schedule.program),
        settings_(settings),
        executor_(executor),
        own_(share_of(executor.ranks(), settings.rows)),
        realisation_(make_realisation(program_, schedule.spaces, settings, executor)),
        watching_(realisation_->estimates_means() && !settings.trace),
        blocks_(program_.size()),
        versions_(program_.size()) {
    if (watching_) rounding_.emplace(program_, s_.needed);
    if (settings.trace) traced_ = one_by_one(schedule);
    operations_before_ = executor_.operations();
    for (std::uint32_t k = 0; k < program_.size(); ++k)
      if (const auto* constant = std::get_if<Constant>(&program_.nodes[k].op);
          constant && s_.needed[k])
        set_constant({k}, *constant);
  }

  std::variant<RunResult, RunFailure> run(RunState* state) {
    try {
      const std::vector<Plan::Step>& steps = (traced_ ? *traced_ : s_.plan).steps;
      std::size_t first = 0;
      if (state) state->resume([&](Reader& in) { first = step_at(steps, load(in)); });
      for (std::size_t k = first; k < steps.size(); ++k) {
        const Plan::Step& step = steps[k];
        current_ = step.last();
        if (state && k > first && step.next) save_if_asked(*state, *step.next);
        executor_.poll();
        execute(step);
        if (traced_) check_everything(current_);
      }
      for (const NodeId id : s_.wanted) {
        current_ = id;
        check_everything(id);  // what is computed from averages is checked nowhere else
      }
    } catch (EvaluationStop& stop) {
      return RunFailure{std::move(stop), current_};
    } catch (const Stopped&) {
      return RunFailure{interrupted(), current_};
    }
    RunResult result;
    for (const NodeId id : s_.wanted) {
      const Block& b = blocks_[id.value];
      result.values.emplace_back(b.chunk(0), b.chunk(0) + b.columns());
    }
    for (const NodeId id : s_.wanted) result.terms.push_back(std::move(terms_[id.value]));
    for (const NodeId id : s_.wanted) terms_.erase(id.value);
    result.inner = std::move(terms_);
    if (rounding_) result.by_rounding = rounding_->decided(executor_.ranks());
    result.matching_stopped = realisation_->matching_stopped();
    result.ranks = realisation_->ranks();
    result.largest_dropped = realisation_->largest_dropped();
    result.stored = realisation_->stored_matrices();
    return result;
  }

 private:
  [[nodiscard]] const Type& type(NodeId id) const { return program_[id].type; }

  void execute(const Plan::Step& step) {
    std::visit(
        overloaded{[&](const Plan::Sweep& a) { sweep(a); },
                   [&](const Plan::EntrySweep& a) {
                     if (realisation_->entries_in_single_precision())
                       sweep_entries_of<float>(a, step);
                     else
                       sweep_entries_of<double>(a, step);
                   },
                   [&](const Plan::Draw& a) { blocks_[a.node.value] = realisation_->draw(a.node); },
                   [&](const Plan::Initialise& a) {
                     versions_[a.node.value] = realisation_->matrix(a.matrix).initial();
                   },
                   [&](const Plan::Product& a) { multiply(a); },
                   [&](const Plan::Rescale& a) { rescale(a, step); },
                   [&](const Plan::Update& a) { update(a, step); },
                   [&](const Plan::Combine& a) { combine(a, step); },
                   [&](const Plan::CopyEntries& a) {
                     if (realisation_->entries_in_single_precision())
                       copy_entries<float>(a);
                     else
                       copy_entries<double>(a);
                   },
                   [&](const Plan::InnerProduct& a) {
                     const Node& node = program_[a.node];
                     blocks_[a.node.value] = Block(1, 1);
                     blocks_[a.node.value].chunk(0)[0] =
                         realisation_->matrix(a.matrix).inner_product(versions_[node.in[0].value],
                                                                      versions_[node.in[1].value]);
                   },
                   [&](const Plan::TakeSamples& a) { take_samples(a.node); },
                   [&](const Plan::FiniteStep& a) { finite_step(a.node); }},
        step.action);
    for (const NodeId id : step.frees) release(id);
  }

  void set_constant(NodeId id, const Constant& constant) {
    Block b(1, static_cast<std::int64_t>(constant.values->size()));
    std::copy(constant.values->begin(), constant.values->end(), b.chunk(0));
    blocks_[id.value] = std::move(b);
  }

  void release(NodeId id) {
    versions_[id.value] = {};
    blocks_[id.value] = {};
    if (rounding_) rounding_->forget(id);
    realisation_->forget(id);
  }

  // ---- groups of row-by-row operations
  void sweep(const Plan::Sweep& plan) {
    const std::int64_t rows = own_.count, chunk = std::min(rows, kChunkRows),
                       chunks = (rows + kChunkRows - 1) / kChunkRows;
    for (const auto& operation : plan.operations)
      if (operation.out.where == Where::kBlock)
        blocks_[operation.node.value] = Block(rows, operation.out.columns);
    std::optional<TermWatch> watch;
    if (watching_) watch.emplace(s_, plan, rows);
    const auto sweep_chunk = [&](std::int64_t c, double* sums) {
      const Buffer scratch(plan.scratch_columns * chunk);
      sweep_rows(plan, c, {scratch.data(), std::min(chunk, rows - c * chunk), chunk}, sums,
                 watch ? &*watch : nullptr);
    };
    Matrix total;  // all averages of the group together
    if (plan.sums > 0)
      total = sum_over_chunks(executor_, chunks, plan.sums, 1,
                              [&](std::int64_t c, Matrix& part) { sweep_chunk(c, part.data()); });
    else
      executor_.parallel(chunks, [&](std::int64_t c) { sweep_chunk(c, nullptr); });
    for (const auto& operation : plan.operations)
      if (operation.out.where == Where::kSum) finish_average(operation, total);
    if (watch) watch->summarise(executor_, settings_.rows, blocks_, terms_);
    for (const auto& operation : plan.operations)
      if (rounding_ && operation.out.where == Where::kScratch) rounding_->forget(operation.node);
  }

  /// One chunk of rows.  `scratch`: as many rows of the scratch columns.
  void sweep_rows(const Plan::Sweep& plan, std::int64_t c, const MutableView& scratch, double* sums,
                  TermWatch* watch) {
    const auto in_scratch = [&](const Plan::Place& place) {
      return MutableView{scratch.data + place.offset * scratch.ld, scratch.rows, scratch.ld};
    };
    std::vector<View> in;
    for (const auto& operation : plan.operations) {
      const auto& [id, types, operands, place] = operation;
      const Node& node = program_[id];
      in.clear();
      for (std::size_t k = 0; k < operands.size(); ++k) {
        const Block& block = blocks_[node.in[k].value];
        switch (operands[k].where) {
          case Where::kScratch: in.push_back(as_view(in_scratch(operands[k]))); break;
          case Where::kBlock: in.push_back(block.view(c)); break;
          case Where::kFinite: in.push_back(block.view(0)); break;
          case Where::kSum: TPLIMIT_CHECK(false, "an average is read after its sweep");
          case Where::kEntries:
          case Where::kVersion: TPLIMIT_CHECK(false, "matrices have sweeps of their own");
        }
      }
      if (place.where == Where::kSum) {
        accumulate_average(node, types, in, sums + place.offset);
        if (watch) watch->average(operation, in, c * kChunkRows);
        continue;
      }
      const MutableView out =
          place.where == Where::kScratch ? in_scratch(place) : blocks_[id.value].mutable_view(c);
      evaluate_rows(node, types, in, out);
      if (watch) watch->value(operation, in, as_view(out));
      if (rounding_ && c == 0) rounding_->value(id, types, in, as_view(out));
    }
  }

  /// Results take the place of arrays that the step frees.
  template <class T>
  void sweep_entries_of(const Plan::EntrySweep& plan, const Plan::Step& step) {
    const StoredEntries<T> arrays(executor_, settings_.rows);
    std::map<std::uint32_t, Block> gathered;
    std::vector<std::shared_ptr<Slabs>> free;
    for (const auto& load : plan.loads)
      if (step.frees_node(load.node)) free.push_back(versions_[load.node.value].entries);
    for (const auto& store : plan.stores) {
      versions_[store.node.value].entries = free.empty() ? arrays.uninitialised() : free.back();
      if (!free.empty()) free.pop_back();
    }
    for (const auto& operation : plan.operations)
      if (operation.out.where == Where::kVersion)
        versions_[operation.node.value] = realisation_->matrix(source_of(program_, operation.node))
                                              .with_own_entries(old_version(operation.node, step));
    sweep_entries<T>(executor_, arrays, program_, plan,
                     {[&](NodeId id) -> const Block& {
                        return all_rows(executor_, blocks_[id.value], settings_.rows,
                                        gathered[id.value]);
                      },
                      [&](NodeId id) { return scalar(id); },
                      [&](NodeId id) -> Slabs& { return *versions_[id.value].entries; }});
  }

  static View as_view(const MutableView& x) { return {x.data, x.rows, x.ld}; }

  /// The mean over the rows of all ranks.  E4101: it is not finite.
  void finish_average(const Plan::Sweep::Operation& operation, const Matrix& total) {
    Block b(1, operation.out.columns);
    for (std::int64_t j = 0; j < b.columns(); ++j) {
      b.chunk(0)[j] = total(operation.out.offset + j, 0) / static_cast<double>(settings_.rows);
      if (!std::isfinite(b.chunk(0)[j]) && !settings_.trace) {
        current_ = operation.node;
        throw not_finite();
      }
    }
    blocks_[operation.node.value] = std::move(b);
  }

  // ---- single operations
  void finite_step(NodeId id) {
    const Node& node = program_[id];
    std::vector<View> in;
    std::vector<const Type*> types;
    for (const NodeId operand : node.in) {
      in.push_back(blocks_[operand.value].view(0));
      types.push_back(&type(operand));
    }
    Block out(1, size_of(node.type.dims));
    evaluate_rows(node, types, in, out.mutable_view(0));
    blocks_[id.value] = std::move(out);
  }

  void take_samples(NodeId id) {
    const Node& node = program_[id];
    const std::int64_t count = std::get<Samples>(node.op).count;
    const std::vector<std::int64_t> rows = realisation_->sampled_rows(count);
    const Block& x = blocks_[node.in[0].value];
    Block out(1, x.columns() * count);
    const std::span<double> values(out.chunk(0), static_cast<std::size_t>(out.columns()));
    std::fill(values.begin(), values.end(), -0.0);  // what changes nothing in a sum
    for (std::int64_t j = 0; j < x.columns(); ++j)
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = rows[static_cast<std::size_t>(i)] - own_.first;
        if (row >= 0 && row < own_.count)
          out.chunk(0)[j * count + i] = x.chunk(row / kChunkRows)[j * x.ld() + row % kChunkRows];
      }
    executor_.ranks().sum(values);
    blocks_[id.value] = std::move(out);
  }

  void multiply(const Plan::Product& a) {
    const NodeId id = a.node;
    const Node& node = program_[id];
    const Block& x = blocks_[node.in[1].value];
    if (watching_ && s_.heavy[node.in[1].value]) {
      std::vector<double> sizes(static_cast<std::size_t>(own_.count));
      for (std::int64_t c = 0; c < x.chunks(); ++c)
        Eigen::Map<Eigen::VectorXd>(sizes.data() + c * kChunkRows, x.chunk_rows(c)) =
            all_columns(x, c).rowwise().squaredNorm();
      summarise_sizes(std::move(sizes), executor_.ranks(), settings_.rows, terms_[id.value]);
    }
    Block y(own_.count, x.columns());
    realisation_->matrix(a.matrix).apply(versions_[node.in[0].value],
                                         std::get<MatMul>(node.op).transposed, x, node.in[1].value,
                                         s_.spaces.columns[id.value][0].first, y);
    if (rounding_ && own_.count > 0) rounding_->product(id, x.view(0), y.view(0));
    blocks_[id.value] = std::move(y);
  }

  double scalar(NodeId id) const { return blocks_[id.value].chunk(0)[0]; }

  /// The old version, handed over if no later step reads it.
  MatrixVersion old_version(NodeId of, const Plan::Step& step) {
    const NodeId old = program_[of].in[0];
    return step.frees_node(old) ? std::move(versions_[old.value]) : versions_[old.value];
  }

  void rescale(const Plan::Rescale& a, const Plan::Step& step) {
    versions_[a.node.value] = realisation_->matrix(a.matrix).scaled(old_version(a.node, step),
                                                                    scalar(program_[a.node].in[1]));
  }

  void combine(const Plan::Combine& a, const Plan::Step& step) {
    const double c = scalar(program_[a.node].in[1]);
    if (!std::isfinite(c)) throw not_finite();
    const MatrixVersion other = versions_[program_[a.node].in[2].value];  // may be W itself
    versions_[a.node.value] =
        realisation_->matrix(a.matrix).combined(old_version(a.node, step), c, other);
  }

  template <class T>
  void copy_entries(const Plan::CopyEntries& a) {
    const StoredEntries<T> arrays(executor_, settings_.rows);
    MatrixVersion own =
        realisation_->matrix(a.matrix).with_own_entries(versions_[program_[a.node].in[0].value]);
    versions_[a.node.value].entries = arrays.owned(std::move(own.entries));
  }

  void update(const Plan::Update& a, const Plan::Step& step) {
    const NodeId id = a.node;
    const Node& node = program_[id];
    std::vector<UpdateTerm> terms;
    for (std::size_t k = 1; k + 2 < node.in.size(); k += 3) {
      const std::size_t operand = 2 * ((k - 1) / 3);
      const auto& columns = s_.spaces.columns[id.value];
      terms.push_back({scalar(node.in[k]), &blocks_[node.in[k + 1].value],
                       &blocks_[node.in[k + 2].value], node.in[k + 1].value, node.in[k + 2].value,
                       columns[operand].first, columns[operand + 1].first});
      if (!std::isfinite(terms.back().c)) throw not_finite();
    }
    versions_[id.value] = realisation_->matrix(a.matrix).update(old_version(id, step), terms);
  }

  /// Throws if a value of the node is not finite.
  void check_everything(NodeId id) const {
    if (type(id).matrix || blocks_[id.value].empty()) return;
    if (std::holds_alternative<Constant>(program_[id].op))
      return;  // infinity may be meant, as in max(x, -inf)
    const Block& b = blocks_[id.value];
    double bad_chunks = 0;
    for (std::int64_t c = 0; c < b.chunks(); ++c)
      bad_chunks += all_columns(b, c).allFinite() ? 0 : 1;
    if (type(id).width) executor_.ranks().sum({&bad_chunks, 1});
    if (bad_chunks > 0) throw not_finite();
  }

  // ---- states between two steps
  void save_if_asked(RunState& state, NodeId next) {
    const RunState::Request request = state.request();
    if (request == RunState::Request::kGoOn) return;
    state.save([&](Writer& out) { save(out, next.value); });
    if (request == RunState::Request::kSaveAndStop) throw interrupted();
  }

  /// The step before which nodes from `next` on had not been evaluated.
  static std::size_t step_at(const std::vector<Plan::Step>& steps, std::uint32_t next) {
    return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(),
                                                 [&](const Plan::Step& step) {
                                                   return step.next && step.next->value >= next;
                                                 }) -
                                    steps.begin());
  }

  void save(Writer& out, std::uint32_t next) {
    out.value(next);
    out.value(executor_.operations() - operations_before_);
    std::vector<std::uint32_t> alive;
    for (std::uint32_t k = 0; k < next; ++k)
      if (!blocks_[k].empty() && !std::holds_alternative<Constant>(program_.nodes[k].op))
        alive.push_back(k);
    out.values(alive);
    for (const std::uint32_t k : alive) blocks_[k].save(out);
    engines::save(out, versions_alive(next));
    out.value<std::uint64_t>(terms_.size());
    for (const auto& [id, terms] : terms_) {
      out.value(id);
      engines::save(out, terms);
    }
    if (rounding_) rounding_->save(out);
    realisation_->save(out);
  }

  /// The node to go on with.
  std::uint32_t load(Reader& in) {
    const auto next = in.value<std::uint32_t>();
    executor_.count(in.value<double>());
    for (const std::uint32_t k : in.values<std::uint32_t>()) blocks_.at(k) = Block::load(in);
    engines::load(in, versions_alive(next));
    for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
      const auto id = in.value<std::uint32_t>();
      terms_[id] = load_terms(in);
    }
    if (rounding_) rounding_->load(in);
    realisation_->load(in);
    return next;
  }

  std::vector<MatrixVersion*> versions_alive(std::uint32_t next) {
    std::vector<MatrixVersion*> out;
    for (std::uint32_t k = 0; k < next; ++k)
      if (s_.needed[k] && type({k}).matrix && s_.last_use[k] >= next) out.push_back(&versions_[k]);
    return out;
  }

  const Schedule& s_;
  const Program& program_;
  const RunSettings& settings_;
  const Executor& executor_;
  Share own_;  ///< of the rows
  std::unique_ptr<Realisation> realisation_;
  bool watching_;  ///< what particles do not resolve
  std::vector<Block> blocks_;
  std::vector<MatrixVersion> versions_;
  std::optional<RoundingWatch> rounding_;       ///< of the limit
  std::map<std::uint32_t, TermSummary> terms_;  ///< of wanted averages
  std::optional<Plan> traced_;                  ///< instead of the schedule's
  NodeId current_;                              ///< of which a failure is reported
  double operations_before_ = 0;                ///< what the executor had counted
};

}  // namespace

std::int64_t RunResult::largest_rank() const {
  std::int64_t out = 0;
  for (const auto& r : ranks) out = std::max({out, r[0], r[1]});
  return out;
}

std::variant<RunResult, RunFailure> run_program(const Schedule& schedule,
                                                const RunSettings& settings,
                                                const Executor& executor, RunState* state) {
  return Run(schedule, settings, executor).run(state);
}

}  // namespace tplimit::engines
