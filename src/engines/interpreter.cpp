#include "engines/interpreter.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <mutex>
#include <numeric>
#include <set>

#include "engines/dense_matrix.hpp"
#include "tplimit/ir/function_traits.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;

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
  return s;
}

namespace {

constexpr std::uint64_t kSourceWord = 0x736f75726365ULL, kSpaceWord = 0x7370616365ULL,
                        kMatrixWord = 0x6d6174726978ULL, kSampleWord = 0x73616d706c65ULL;

/// Consecutive row-by-row operations form a group that is evaluated chunk by chunk in one parallel
/// sweep; averages close a sweep.  Values that nobody outside the group needs live in scratch
/// memory of one chunk.
class Run {
 public:
  Run(const Schedule& schedule, const RunSettings& settings, const Executor& executor)
      : s_(schedule),
        program_(*schedule.program),
        settings_(settings),
        executor_(executor),
        own_(share_of(executor.ranks(), settings.rows)),
        blocks_(program_.size()),
        versions_(program_.size()) {
    TPLIMIT_CHECK(settings_.limit || executor_.ranks().size() == 1, "a network is run by one rank");
    const auto& spaces = s_.spaces;
    if (settings_.limit || !settings_.dense) {
      const NormalLaw law = settings_.limit ? NormalLaw::kMatched : NormalLaw::kExact;
      for (std::uint32_t k = 0; k < spaces.count; ++k) {
        std::vector<std::uint64_t> keys;
        for (const std::uint64_t key : settings_.keys)
          keys.push_back(mix_key(mix_key(key, kSpaceWord), k));
        spaces_.emplace_back(executor_, settings_.rows, law, std::move(keys));
      }
    }
    if (settings_.limit && !settings_.trace) rounding_.emplace(program_, s_.needed);
    operations_before_ = executor_.operations();
    matrices_.resize(program_.sources.size());
    source_.resize(program_.size());
    for (std::uint32_t k = 0; k < program_.size(); ++k)
      if (const Node& node = program_.nodes[k]; node.type.matrix)
        source_[k] =
            node.in.empty() ? std::get<GaussianMatrix>(node.op).source : source_[node.in[0].value];
  }

  std::variant<RunResult, RunFailure> run(RunState* state) {
    try {
      std::uint32_t first = 0;
      if (state) state->resume([&](Reader& in) { first = load(in); });
      for (std::uint32_t k = first; k < program_.size(); ++k) {
        if (!s_.needed[k]) continue;
        current_ = k;
        if (state && k > first && pending_.empty()) save_if_asked(*state, k);
        step({k});
        if (settings_.trace) {
          flush();
          current_ = k;
          check_everything({k});
        }
      }
      flush();
      for (const NodeId id : s_.wanted) {
        current_ = id.value;
        check_everything(id);  // what is computed from averages is checked nowhere else
      }
    } catch (EvaluationStop& stop) {
      return RunFailure{std::move(stop), {current_}};
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
    for (const auto& space : spaces_)
      result.matching_stopped = result.matching_stopped || space.matching_stopped();
    for (const auto& m : matrices_) {
      result.ranks.push_back(m ? m->ranks() : std::array<std::int64_t, 2>{});
      if (m) result.largest_dropped = std::max(result.largest_dropped, m->largest_dropped());
    }
    return result;
  }

 private:
  [[nodiscard]] const Type& type(NodeId id) const { return program_[id].type; }
  [[nodiscard]] bool available(NodeId id) const {
    return type(id).matrix || !blocks_[id.value].empty();
  }

  void step(NodeId id) {
    const Node& node = program_[id];
    if (node.type.matrix) {
      flush();  // pending operations may still read what this one releases
      matrix_step(id, node);
      release_operands(id);
      return;
    }
    if (const auto* constant = std::get_if<Constant>(&node.op)) {
      set_constant(id, *constant);
      return;
    }
    const bool needs_coordinates = is_average(node.op) || (node.type.width && is_rowwise(node.op));
    if (needs_coordinates && !std::holds_alternative<StandardNormal>(node.op)) {
      // A finite operand still being summed has to be finished first.
      for (const NodeId in : node.in)
        if (!type(in).width && !available(in)) flush();
      pending_.push_back(id);
      return;
    }
    if (node.type.width || std::holds_alternative<Samples>(node.op))
      flush();
    else
      require_operands(node);
    if (std::holds_alternative<StandardNormal>(node.op))
      draw_source(id, node);
    else if (const auto* m = std::get_if<MatMul>(&node.op))
      multiply(id, node, m->transposed);
    else if (const auto* samples = std::get_if<Samples>(&node.op))
      take_samples(id, node, samples->count);
    else
      finite_step(id, node);
    release_operands(id);
  }

  void set_constant(NodeId id, const Constant& constant) {
    Block b(1, static_cast<std::int64_t>(constant.values->size()));
    std::copy(constant.values->begin(), constant.values->end(), b.chunk(0));
    blocks_[id.value] = std::move(b);
  }

  void require_operands(const Node& node) {
    for (const NodeId in : node.in)
      if (!available(in)) {
        flush();
        return;
      }
  }

  void release_operands(NodeId id) {
    for (const NodeId in : program_[id].in) release(in, id);
  }
  void release(NodeId in, NodeId user) {
    if (s_.last_use[in.value] != user.value) return;
    if (type(in).matrix)
      versions_[in.value] = {};
    else if (type(in).width) {
      blocks_[in.value] = {};
      if (rounding_) rounding_->forget(in);
      for (const auto& m : matrices_)
        if (m) m->forget(in.value);
    }
  }

  // ---- groups of row-by-row operations
  void flush() {
    if (pending_.empty()) return;
    const std::vector<NodeId> group = std::exchange(pending_, {});
    const std::uint32_t last = group.back().value;
    const std::int64_t rows = own_.count, chunk = std::min(rows, kChunkRows),
                       chunks = (rows + kChunkRows - 1) / kChunkRows;

    // Where each result lives: averages in partial sums, values used later in blocks, the others in
    // scratch columns.
    struct Place {
      NodeId id;
      std::vector<const Type*> types;
      bool average = false, scratch = false;
      std::int64_t columns = 0, scratch_offset = 0, sum_offset = 0;
    };
    std::vector<Place> places;
    std::unordered_map<std::uint32_t, std::size_t> place_of;
    std::map<std::int64_t, std::vector<std::int64_t>> free_scratch;
    std::int64_t scratch_columns = 0, sums = 0;
    for (const NodeId id : group) {
      const Node& node = program_[id];
      Place p;
      p.id = id;
      for (const NodeId in : node.in) p.types.push_back(&type(in));
      p.columns = size_of(node.type.dims);
      p.average = is_average(node.op);
      if (p.average) {
        p.sum_offset = sums;
        sums += p.columns;
      } else {
        p.scratch = s_.last_use[id.value] <= last && !settings_.trace &&
                    in_group(group, s_.last_use[id.value]);
        if (p.scratch) {
          auto& reusable = free_scratch[p.columns];
          if (reusable.empty()) {
            p.scratch_offset = scratch_columns;
            scratch_columns += p.columns;
          } else {
            p.scratch_offset = reusable.back();
            reusable.pop_back();
          }
        } else {
          blocks_[id.value] = Block(rows, p.columns);
        }
      }
      // Scratch of operands that die here can be used again, by later results only.
      for (std::size_t j = 0; j < node.in.size(); ++j) {
        const NodeId in = node.in[j];
        const auto it = place_of.find(in.value);
        const bool repeated =
            std::find(node.in.begin(), node.in.begin() + static_cast<std::ptrdiff_t>(j), in) !=
            node.in.begin() + static_cast<std::ptrdiff_t>(j);
        if (it != place_of.end() && places[it->second].scratch &&
            s_.last_use[in.value] == id.value && !repeated)
          free_scratch[places[it->second].columns].push_back(places[it->second].scratch_offset);
      }
      place_of[id.value] = places.size();
      places.push_back(std::move(p));
    }

    TermWatch watch = watch_terms(group);
    const auto sweep = [&](std::int64_t c, double* scratch, double* sum) {
      const std::int64_t r = std::min(chunk, rows - c * chunk);
      std::vector<View> in;
      for (const Place& p : places) {
        const Node& node = program_[p.id];
        in.clear();
        for (const NodeId operand : node.in) {
          const auto it = place_of.find(operand.value);
          if (it != place_of.end() && places[it->second].scratch)
            in.push_back({scratch + places[it->second].scratch_offset * chunk, r, chunk});
          else if (type(operand).width)
            in.push_back(blocks_[operand.value].view(c));
          else
            in.push_back(blocks_[operand.value].view(0));
        }
        if (p.average) {
          accumulate_average(node, p.types, in, sum + p.sum_offset);
          watch.average(p.id, node, p.types, in, c * chunk);
        } else if (p.scratch)
          evaluate_rows(node, p.types, in, {scratch + p.scratch_offset * chunk, r, chunk});
        else
          evaluate_rows(node, p.types, in, blocks_[p.id.value].mutable_view(c));
        if (p.average) continue;
        const View value = p.scratch ? View{scratch + p.scratch_offset * chunk, r, chunk}
                                     : blocks_[p.id.value].view(c);
        watch.value(p.id, value, p.columns);
        if (rounding_ && c == 0) rounding_->value(p.id, p.types, in, value);
      }
    };

    const auto sweep_chunk = [&](std::int64_t c, double* sum) {
      sweep(c, Buffer(scratch_columns * chunk).data(), sum);
    };
    Matrix total;  // all averages of the group together
    if (sums > 0)
      total = sum_over_chunks(executor_, chunks, sums, 1,
                              [&](std::int64_t c, Matrix& part) { sweep_chunk(c, part.data()); });
    else
      executor_.parallel(chunks, [&](std::int64_t c) { sweep_chunk(c, nullptr); });
    for (const Place& p : places) {
      if (!p.average) continue;
      Block b(1, p.columns);
      for (std::int64_t j = 0; j < p.columns; ++j) {
        b.chunk(0)[j] = total(p.sum_offset + j, 0) / static_cast<double>(settings_.rows);
        if (!std::isfinite(b.chunk(0)[j]) && !settings_.trace) {
          current_ = p.id.value;
          throw not_finite();
        }
      }
      blocks_[p.id.value] = std::move(b);
    }
    summarise_terms(watch, group);
    for (const NodeId id : group) release_operands(id);
  }

  // ---- what particles do not resolve
  /// The terms of those averages of a group that are wanted, and the jumps and flat sides behind
  /// them.
  struct TermWatch {
    std::map<std::uint32_t, std::vector<double>> sizes;  ///< of the terms of each row, per average
    std::map<std::uint32_t, ColumnRanges> ranges;        ///< of operands, and of `jumps`
    std::set<std::pair<std::uint32_t, std::size_t>>
        first;  ///< (average, operand) that adds to the operand's range
    std::set<std::uint32_t>
        inner;  ///< averages that are not wanted, with operands that may have heavy tails
    std::vector<NodeId> jumps;
    std::unique_ptr<std::mutex> mutex = std::make_unique<std::mutex>();

    [[nodiscard]] bool wanted(NodeId id) const {
      return sizes.contains(id.value) && !inner.contains(id.value);
    }
    void include(std::uint32_t id, const View& x, std::int64_t columns) {
      ColumnRanges own;
      own.include(x, columns);
      const std::scoped_lock lock(*mutex);
      ranges.at(id).merge(own);
    }
    void average(NodeId id, const Node& node, const std::vector<const Type*>& types,
                 const std::vector<View>& in, std::int64_t row) {
      const auto own = sizes.find(id.value);
      if (own == sizes.end()) return;
      term_sizes(node, types, in, own->second.data() + row);
      for (std::size_t k = 0; k < node.in.size(); ++k)
        if (first.contains({id.value, k}))
          include(node.in[k].value, in[k], size_of(types[k]->dims));
    }
    void value(NodeId id, const View& x, std::int64_t columns) {
      if (std::binary_search(jumps.begin(), jumps.end(), id)) include(id.value, x, columns);
    }
  };

  TermWatch watch_terms(const std::vector<NodeId>& group) const {
    TermWatch out;
    if (!settings_.limit || settings_.trace) return out;
    const auto unknown = [&](NodeId id) {
      const auto columns = static_cast<std::size_t>(size_of(type(id).dims));
      out.ranges.try_emplace(
          id.value, ColumnRanges{std::vector(columns, std::numeric_limits<double>::infinity()),
                                 std::vector(columns, -std::numeric_limits<double>::infinity())});
    };
    std::set<NodeId> behind;
    for (auto id = group.rbegin(); id != group.rend(); ++id) {
      const Node& node = program_[*id];
      const bool wanted = is_average(node.op) &&
                          std::find(s_.wanted.begin(), s_.wanted.end(), *id) != s_.wanted.end();
      const bool inner = !wanted && is_average(node.op) &&
                         std::any_of(node.in.begin(), node.in.end(),
                                     [&](NodeId in) { return s_.heavy[in.value]; });
      if (wanted || inner) out.sizes[id->value].resize(static_cast<std::size_t>(own_.count));
      if (inner) out.inner.insert(id->value);
      if (!wanted && !behind.contains(*id)) continue;
      if (is_piecewise_constant(node.op) || has_flat_side(node.op)) {
        out.jumps.push_back(*id);
        unknown(*id);
      }
      behind.insert(node.in.begin(), node.in.end());
      for (std::size_t k = 0; wanted && k < node.in.size(); ++k)
        if (!out.ranges.contains(node.in[k].value)) {
          unknown(node.in[k]);
          out.first.insert({id->value, k});
        }
    }
    std::reverse(out.jumps.begin(), out.jumps.end());
    // A jump that is an operand of an average is seen as a jump.
    for (auto pair = out.first.begin(); pair != out.first.end();)
      pair = std::binary_search(out.jumps.begin(), out.jumps.end(),
                                program_[NodeId{pair->first}].in[pair->second])
                 ? out.first.erase(pair)
                 : std::next(pair);
    return out;
  }

  void summarise_terms(TermWatch& watch, const std::vector<NodeId>& group) {
    for (auto& [id, ranges] : watch.ranges) ranges.share(executor_.ranks());
    for (auto& [id, sizes] : watch.sizes) {
      const Node& node = program_.nodes[id];
      if (watch.inner.contains(id)) {
        summarise_inner({id}, std::move(sizes));
        continue;
      }
      std::vector<const Type*> types;
      std::vector<const ColumnRanges*> in;
      for (const NodeId operand : node.in) {
        types.push_back(&type(operand));
        in.push_back(&watch.ranges.at(operand.value));
      }
      TermSummary& own = terms_[id];
      bound_terms(node, types, in, own);
      own.unseen.assign(own.low.size(), std::holds_alternative<Histogram>(node.op) ? 1.0 : 0.0);
      own.largest = largest_of(std::move(sizes), executor_.ranks());
    }
    for (const NodeId jump : watch.jumps) {
      const ColumnRanges& seen = watch.ranges.at(jump.value);
      std::vector<bool> one_sided;
      for (std::size_t j = 0; j < seen.low.size(); ++j)
        one_sided.push_back(seen.low[j] == seen.high[j]);
      if (std::find(one_sided.begin(), one_sided.end(), true) != one_sided.end())
        cross_jump(jump, one_sided, watch, group);
    }
  }

  void summarise_inner(NodeId id, std::vector<double> sizes) {
    TermSummary& own = terms_[id.value];
    own.mean = std::accumulate(sizes.begin(), sizes.end(), 0.0);
    executor_.ranks().sum({&own.mean, 1});
    own.mean /= static_cast<double>(settings_.rows);
    own.largest = largest_of(std::move(sizes), executor_.ranks());
  }

  /// What would change in the averages of the group, term by term, if these columns of the jump
  /// were on its other side.
  void cross_jump(NodeId jump, const std::vector<bool>& columns, const TermWatch& watch,
                  const std::vector<NodeId>& group) {
    std::set<NodeId> after{jump}, needed;
    for (const NodeId id : group)
      for (const NodeId in : program_[id].in)
        if (after.contains(in)) after.insert(id);
    for (auto id = group.rbegin(); id != group.rend(); ++id)
      if (needed.contains(*id) || (after.contains(*id) && watch.wanted(*id)))
        needed.insert(program_[*id].in.begin(), program_[*id].in.end());
    std::map<std::uint32_t, std::vector<double>> change;
    for (const NodeId id : group)
      if (after.contains(id) && watch.wanted(id))
        change[id.value].assign(static_cast<std::size_t>(size_of(type(id).dims)), 0.0);
    if (change.empty()) return;
    std::mutex mutex;
    const std::int64_t rows = own_.count, chunk = std::min(rows, kChunkRows),
                       chunks = rows == 0 ? 0 : (rows + kChunkRows - 1) / kChunkRows;
    executor_.parallel(chunks, [&](std::int64_t c) {
      const std::int64_t r = std::min(chunk, rows - c * chunk);
      std::map<std::uint32_t, std::vector<double>> as_is, crossed;
      const auto views = [&](const Node& node, bool cross) {
        std::vector<View> in;
        for (const NodeId operand : node.in) {
          const auto other = crossed.find(operand.value), same = as_is.find(operand.value);
          if (cross && other != crossed.end())
            in.push_back({other->second.data(), r, r});
          else if (same != as_is.end())
            in.push_back({same->second.data(), r, r});
          else
            in.push_back(blocks_[operand.value].view(type(operand).width ? c : 0));
        }
        return in;
      };
      for (const NodeId id : group) {
        const Node& node = program_[id];
        std::vector<const Type*> types;
        for (const NodeId operand : node.in) types.push_back(&type(operand));
        if (const auto own = change.find(id.value); own != change.end()) {
          std::vector<double> largest;
          include_changes(node, types, views(node, false), views(node, true), largest);
          const std::scoped_lock lock(mutex);
          for (std::size_t j = 0; j < largest.size(); ++j)
            own->second[j] = std::max(own->second[j], largest[j]);
        }
        if (is_average(node.op) || !needed.contains(id)) continue;
        const auto size = static_cast<std::size_t>(size_of(node.type.dims) * r);
        std::vector<double>& same = as_is[id.value];
        same.assign(size, 0.0);
        evaluate_rows(node, types, views(node, false), {same.data(), r, r});
        if (!after.contains(id)) continue;
        std::vector<double>& other = crossed[id.value];
        other.assign(size, 0.0);
        if (id != jump) {
          evaluate_rows(node, types, views(node, true), {other.data(), r, r});
          continue;
        }
        other = same;
        for (std::size_t j = 0; j < columns.size(); ++j)
          if (columns[j])
            cross(node.op, types, views(node, false), static_cast<std::int64_t>(j),
                  {other.data() + j * static_cast<std::size_t>(r), static_cast<std::size_t>(r)});
      }
    });
    for (auto& [id, largest] : change) {
      ColumnRanges all{largest, largest};
      all.share(executor_.ranks());
      std::vector<double>& unseen = terms_[id].unseen;
      for (std::size_t j = 0; j < unseen.size(); ++j) unseen[j] += all.high[j];
    }
  }

  static bool in_group(const std::vector<NodeId>& group, std::uint32_t id) {
    return std::binary_search(group.begin(), group.end(), NodeId{id});
  }

  // ---- single operations
  void finite_step(NodeId id, const Node& node) {
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

  void draw_source(NodeId id, const Node& node) {
    const auto& columns = s_.spaces.columns[id.value][0];
    const auto count = static_cast<std::int64_t>(columns.count);
    if (settings_.limit) {
      // The space keeps its columns to match later ones against: they live as long as the run.
      sources_.emplace_back(own_.count, count, settings_.single_precision);
      std::vector<std::uint64_t> dimensions;
      for (std::uint64_t j = 0; j < columns.count; ++j) dimensions.push_back(columns.first + j);
      blocks_[id.value] =
          spaces_[s_.spaces.of_node[id.value]].draw(sources_.back(), dimensions, nullptr);
      return;
    }
    // Networks are the same whatever the matrices are kept as: initial vectors follow from their
    // names.
    Block block(settings_.rows, count);
    const std::uint64_t key = source_key(std::get<StandardNormal>(node.op).source);
    executor_.parallel(block.chunks(), [&](std::int64_t c) {
      for (std::int64_t j = 0; j < block.columns(); ++j)
        plain_normals(
            mix_key(key, static_cast<std::uint64_t>(j)), static_cast<std::uint64_t>(c * kChunkRows),
            {block.chunk(c) + j * block.ld(), static_cast<std::size_t>(block.chunk_rows(c))});
    });
    blocks_[id.value] = std::move(block);
  }

  [[nodiscard]] std::uint64_t source_key(SourceId s) const {
    const std::string& name = program_.sources[s.value].name;
    return mix_key(mix_key(settings_.keys.front(), kSourceWord),
                   hash_text(name.data(), name.size()));
  }

  void take_samples(NodeId id, const Node& node, std::int64_t count) {
    const Block& x = blocks_[node.in[0].value];
    if (!settings_.limit && count > settings_.rows)
      throw EvaluationStop{"E4203",
                           fmt::format("{} samples are asked for, but there are {} coordinates",
                                       count, settings_.rows),
                           "ask for fewer samples, or use more particles or a larger width"};
    Block out(1, x.columns() * count);
    const std::span<double> values(out.chunk(0), static_cast<std::size_t>(out.columns()));
    std::fill(values.begin(), values.end(), -0.0);  // what changes nothing in a sum
    const std::vector<std::int64_t> rows = sampled_rows(count);
    for (std::int64_t j = 0; j < x.columns(); ++j)
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t row = rows[static_cast<std::size_t>(i)] - own_.first;
        if (row >= 0 && row < own_.count)
          out.chunk(0)[j * count + i] = x.chunk(row / kChunkRows)[j * x.ld() + row % kChunkRows];
      }
    executor_.ranks().sum(values);
    blocks_[id.value] = std::move(out);
  }

  /// Of particles, which are quasi-random points: in a random order, the same for all samples of a
  /// run; from the start again where they are fewer.  Of coordinates of networks, evenly spaced
  /// ones.
  [[nodiscard]] std::vector<std::int64_t> sampled_rows(std::int64_t count) const {
    std::vector<std::int64_t> out,
        rows(static_cast<std::size_t>(settings_.limit ? settings_.rows : 0));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    std::uint64_t key = mix_key(settings_.keys.front(), kSampleWord);
    for (std::int64_t i = 0; i < count; ++i) {
      if (!settings_.limit) {
        out.push_back(i * (settings_.rows / count));
        continue;
      }
      // Fisher and Yates; the remainder's bias is rows / 2^64.
      const auto place = static_cast<std::size_t>(i % settings_.rows);
      key = mix_key(key, place);
      if (i < settings_.rows) std::swap(rows[place], rows[place + key % (rows.size() - place)]);
      out.push_back(rows[place]);
    }
    return out;
  }

  WidthMatrix& matrix(SourceId source) {
    auto& m = matrices_[source.value];
    if (!m) {
      if (!settings_.limit && settings_.dense) {
        const std::string& name = program_.sources[source.value].name;
        const std::uint64_t key = mix_key(mix_key(settings_.keys.front(), kMatrixWord),
                                          hash_text(name.data(), name.size()));
        if (settings_.single_precision)
          m = std::make_unique<DenseMatrix<float>>(executor_, settings_.rows, key);
        else
          m = std::make_unique<DenseMatrix<double>>(executor_, settings_.rows, key);
      } else {
        // 1e-13: what rounding leaves of a vector in the span of earlier ones (1e-6 in single
        // precision); networks are not truncated beyond that.
        const LazySettings lazy =
            settings_.limit
                ? LazySettings{NormalLaw::kMatched, settings_.rank_tol, settings_.single_precision}
                : LazySettings{NormalLaw::kExact, settings_.single_precision ? 1e-6 : 1e-13,
                               settings_.single_precision};
        m = std::make_unique<LazyMatrix>(
            executor_, settings_.rows, lazy, spaces_[s_.spaces.input_of_source[source.value]],
            spaces_[s_.spaces.output_of_source[source.value]], s_.spaces.directions[source.value]);
      }
    }
    return *m;
  }

  void multiply(NodeId id, const Node& node, bool transposed) {
    const Block& x = blocks_[node.in[1].value];
    if (settings_.limit && !settings_.trace && s_.heavy[node.in[1].value]) {
      std::vector<double> sizes(static_cast<std::size_t>(own_.count));
      for (std::int64_t c = 0; c < x.chunks(); ++c)
        Eigen::Map<Eigen::VectorXd>(sizes.data() + c * kChunkRows, x.chunk_rows(c)) =
            all_columns(x, c).rowwise().squaredNorm();
      summarise_inner(id, std::move(sizes));
    }
    Block y(own_.count, x.columns());
    matrix(source_[node.in[0].value])
        .apply(versions_[node.in[0].value], transposed, x, node.in[1].value,
               s_.spaces.columns[id.value][0].first, y);
    if (rounding_ && own_.count > 0) rounding_->product(id, x.view(0), y.view(0));
    blocks_[id.value] = std::move(y);
  }

  double scalar(NodeId id) const { return blocks_[id.value].chunk(0)[0]; }

  void matrix_step(NodeId id, const Node& node) {
    if (std::holds_alternative<GaussianMatrix>(node.op)) {
      versions_[id.value] = matrix(source_[id.value]).initial();
      return;
    }
    // The operand's version is handed over if nobody else needs it.
    MatrixVersion old = s_.last_use[node.in[0].value] == id.value
                            ? std::move(versions_[node.in[0].value])
                            : versions_[node.in[0].value];
    if (std::holds_alternative<ScaleMatrix>(node.op)) {
      const double c = scalar(node.in[1]);
      old.scale *= c;
      old.coefficients *= c;
      versions_[id.value] = std::move(old);
      return;
    }
    std::vector<UpdateTerm> terms;
    for (std::size_t k = 1; k + 2 < node.in.size(); k += 3) {
      const std::size_t operand = 2 * ((k - 1) / 3);
      const auto& columns = s_.spaces.columns[id.value];
      terms.push_back({scalar(node.in[k]), &blocks_[node.in[k + 1].value],
                       &blocks_[node.in[k + 2].value], node.in[k + 1].value, node.in[k + 2].value,
                       columns[operand].first, columns[operand + 1].first});
      if (!std::isfinite(terms.back().c)) throw not_finite();
    }
    const auto& update = std::get<UpdateMatrix>(node.op);
    versions_[id.value] =
        update.entrywise
            ? matrix(source_[id.value])
                  .update_entrywise(std::move(old), terms, scalar(node.in.back()), update.epsilon)
            : matrix(source_[id.value]).update(std::move(old), terms);
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

  // ---- states between two instructions, when nothing is pending
  void save_if_asked(RunState& state, std::uint32_t next) {
    const RunState::Request request = state.request();
    if (request == RunState::Request::kGoOn) return;
    state.save([&](Writer& out) { save(out, next); });
    if (request == RunState::Request::kSaveAndStop)
      throw EvaluationStop{"E5206", "interrupted", ""};
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
    out.value<std::uint64_t>(sources_.size());
    for (const Panel& source : sources_) source.save(out);
    for (const auto& m : matrices_) {
      out.value(m != nullptr);
      if (m) m->save(out);
    }
    const std::vector<const Panel*> known = panels();
    for (const NormalSpace& space : spaces_) space.save(out, known);
  }

  /// The instruction to go on with.
  std::uint32_t load(Reader& in) {
    const auto next = in.value<std::uint32_t>();
    executor_.count(in.value<double>());
    for (std::uint32_t k = 0; k < next; ++k)
      if (const auto* constant = std::get_if<Constant>(&program_.nodes[k].op);
          constant && s_.needed[k])
        set_constant({k}, *constant);
    for (const std::uint32_t k : in.values<std::uint32_t>()) blocks_.at(k) = Block::load(in);
    engines::load(in, versions_alive(next));
    for (auto left = in.value<std::uint64_t>(); left > 0; --left) {
      const auto id = in.value<std::uint32_t>();
      terms_[id] = load_terms(in);
    }
    if (rounding_) rounding_->load(in);
    for (auto left = in.value<std::uint64_t>(); left > 0; --left)
      sources_.push_back(Panel::load(in));
    for (std::uint32_t s = 0; s < matrices_.size(); ++s)
      if (in.value<bool>()) matrix({s}).load(in);
    const std::vector<const Panel*> known = panels();
    for (NormalSpace& space : spaces_) space.load(in, known);
    return next;
  }

  std::vector<MatrixVersion*> versions_alive(std::uint32_t next) {
    std::vector<MatrixVersion*> out;
    for (std::uint32_t k = 0; k < next; ++k)
      if (s_.needed[k] && type({k}).matrix && s_.last_use[k] >= next) out.push_back(&versions_[k]);
    return out;
  }

  /// All that normal spaces may refer to, in an order that does not depend on when it came.
  [[nodiscard]] std::vector<const Panel*> panels() const {
    std::vector<const Panel*> out;
    for (const NormalSpace& space : spaces_) out.push_back(&space.ones());
    for (const Panel& source : sources_) out.push_back(&source);
    for (const auto& m : matrices_)
      if (m)
        for (const Panel* panel : m->panels()) out.push_back(panel);
    return out;
  }

  const Schedule& s_;
  const Program& program_;
  const RunSettings& settings_;
  const Executor& executor_;
  Share own_;  ///< of the rows
  std::vector<Block> blocks_;
  std::vector<MatrixVersion> versions_;
  std::deque<NormalSpace> spaces_;
  std::deque<Panel> sources_;
  std::vector<std::unique_ptr<WidthMatrix>> matrices_;
  std::vector<SourceId> source_;
  std::vector<NodeId> pending_;
  std::optional<RoundingWatch> rounding_;       ///< of the limit
  std::map<std::uint32_t, TermSummary> terms_;  ///< of wanted averages
  std::uint32_t current_ = 0;
  double operations_before_ = 0;  ///< what the executor had counted
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

// ---- finite tails
// -----------------------------------------------------------------------------------

FiniteEvaluator::FiniteEvaluator(const Program& program, std::vector<NodeId> given,
                                 std::vector<NodeId> wanted)
    : program_(program), given_(std::move(given)), wanted_(std::move(wanted)) {
  std::vector<bool> is_given(program.size(), false), needed(program.size(), false);
  for (const NodeId id : given_) is_given[id.value] = true;
  for (const NodeId id : wanted_) needed[id.value] = true;
  for (std::uint32_t k = static_cast<std::uint32_t>(program.size()); k-- > 0;) {
    if (!needed[k] || is_given[k]) continue;
    TPLIMIT_CHECK(!program.nodes[k].type.width && !program.nodes[k].type.matrix,
                  "a finite tail has finite operands");
    if (const auto* c = std::get_if<Constant>(&program.nodes[k].op))
      values_[k] = *c->values;
    else
      order_.push_back(k);
    for (const NodeId in : program.nodes[k].in) needed[in.value] = true;
  }
  std::reverse(order_.begin(), order_.end());
}

std::vector<std::vector<double>> FiniteEvaluator::evaluate(
    const std::vector<const double*>& given_values) {
  for (std::size_t k = 0; k < given_.size(); ++k)
    values_[given_[k].value].assign(given_values[k],
                                    given_values[k] + size_of(program_[given_[k]].type.dims));
  for (const std::uint32_t k : order_) {
    const Node& node = program_.nodes[k];
    std::vector<View> in;
    std::vector<const Type*> types;
    for (const NodeId operand : node.in) {
      in.push_back({values_.at(operand.value).data(), 1, 1});
      types.push_back(&program_[operand].type);
    }
    std::vector<double> out(static_cast<std::size_t>(size_of(node.type.dims)));
    evaluate_rows(node, types, in, {out.data(), 1, 1});
    values_[k] = std::move(out);
  }
  std::vector<std::vector<double>> out;
  for (const NodeId id : wanted_) out.push_back(values_.at(id.value));
  return out;
}

namespace {

/// What has no coordinates: coefficients of matrix versions, factors of normal spaces, partial sums
/// of their sweeps.  With the copies that growing makes.
double small_matrices(const Schedule& schedule, const RunSettings& settings,
                      const std::vector<std::array<std::int64_t, 2>>* ranks) {
  const Program& program = *schedule.program;
  std::vector<double> normals(schedule.spaces.count, 1), directions(schedule.spaces.count, 0);
  double bytes = 0, columns = 0;
  for (const Node& node : program.nodes)
    if (std::holds_alternative<MatMul>(node.op))
      columns = std::max(columns, static_cast<double>(size_of(node.type.dims)));
  for (std::size_t s = 0; s < program.sources.size(); ++s) {
    const auto& most = ranks ? (*ranks)[s] : schedule.spaces.directions[s];
    const double w = static_cast<double>(std::min(most[0], settings.rows)),
                 wt = static_cast<double>(std::min(most[1], settings.rows));
    if (!program.sources[s].matrix) continue;
    bytes += 2 * w * wt * 8;
    normals[schedule.spaces.output_of_source[s]] += w;
    normals[schedule.spaces.input_of_source[s]] += wt;
    directions[schedule.spaces.input_of_source[s]] += w;
    directions[schedule.spaces.output_of_source[s]] += wt;
  }
  double sweep = 0;
  for (std::size_t k = 0; k < normals.size() && settings.limit; ++k) {
    bytes += 2 * directions[k] * (normals[k] + directions[k]) * 8;
    sweep = std::max(sweep, (normals[k] + directions[k]) * 2 * columns);
  }
  return bytes + std::max(std::min(64 * sweep, 1048576.0), 16 * sweep) * 8;
}

/// Arrays of n^2 entries that a dense network holds while node k is evaluated: versions share one
/// until an update finds it shared.
std::vector<int> arrays_alive(const Schedule& schedule) {
  const Program& program = *schedule.program;
  std::vector<int> alive(program.size(), 0), users;  // of an array: versions that hold it
  std::vector<std::size_t> array_of(program.size());
  int now = 0;
  const auto make = [&](std::size_t k) {
    array_of[k] = users.size();
    users.push_back(1);
    ++now;
  };
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (schedule.needed[k] && node.type.matrix && node.in.empty()) make(k);
    const bool uses = schedule.needed[k] && !node.in.empty() && program[node.in[0]].type.matrix;
    const bool last = uses && schedule.last_use[node.in[0].value] == k;
    if (uses && node.type.matrix) {
      const std::size_t old = array_of[k] = array_of[node.in[0].value];
      const bool shared = users[old] > 1 || !last;
      if (std::holds_alternative<UpdateMatrix>(node.op) && shared) {
        make(k);
        users[old] -= last ? 1 : 0;
      } else {
        users[old] += last ? 0 : 1;
      }
    }
    alive[k] = now;
    if (uses && last && !node.type.matrix && --users[array_of[node.in[0].value]] == 0) --now;
  }
  return alive;
}

/// Bytes of vectors packed for a dense product, and of updates that wait for one, at their largest.
template <class T>
double packed_bytes(const Schedule& schedule, std::int64_t rows) {
  const Program& program = *schedule.program;
  const auto vectors = [&](NodeId id) { return size_of(program[id].type.dims); };
  double product = 0;
  std::map<std::uint32_t, double> waiting;  // matrix -> largest update
  std::vector<std::uint32_t> source(program.size(), 0);
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (!schedule.needed[k]) continue;
    if (node.type.matrix)
      source[k] = node.in.empty() ? std::get<GaussianMatrix>(node.op).source.value
                                  : source[node.in[0].value];
    if (std::holds_alternative<MatMul>(node.op))
      product = std::max(product, DenseMatrix<T>::packed_bytes(rows, vectors(node.in[1])));
    if (!std::holds_alternative<UpdateMatrix>(node.op)) continue;
    std::int64_t rank = 0;
    for (std::size_t j = 1; j + 2 < node.in.size(); j += 3) rank += vectors(node.in[j + 1]);
    waiting[source[k]] = std::max(waiting[source[k]], 2 * DenseMatrix<T>::packed_bytes(rows, rank));
  }
  for (const auto& [matrix, bytes] : waiting) product += bytes;
  return product;
}

}  // namespace

double estimate_memory(const Schedule& schedule, const RunSettings& settings, int processes,
                       const std::vector<std::array<std::int64_t, 2>>* ranks) {
  const Program& program = *schedule.program;
  // Blocks reserve whole chunks.
  const std::int64_t chunks = (settings.rows + kChunkRows - 1) / kChunkRows;
  const double rows = static_cast<double>(
      chunks == 1 ? settings.rows : (chunks + processes - 1) / processes * kChunkRows);
  double bytes = 0, live = 0, peak = 0, chunk_columns = 0;
  const bool dense = !settings.limit && settings.dense;
  std::vector<int> arrays(program.size(), 0);
  double array_columns = 0;
  if (dense) {
    bytes += settings.single_precision ? packed_bytes<float>(schedule, settings.rows)
                                       : packed_bytes<double>(schedule, settings.rows);
    arrays = arrays_alive(schedule);
    array_columns = (settings.single_precision ? DenseMatrix<float>::bytes(settings.rows)
                                               : DenseMatrix<double>::bytes(settings.rows)) /
                    (rows * 8);
  } else {
    const double storage = settings.single_precision ? 4 : 8;
    for (std::size_t s = 0; s < program.sources.size(); ++s)
      for (const std::size_t side : {0u, 1u}) {
        const double most =
            std::min(static_cast<double>(schedule.spaces.directions[s][side]),
                     settings.limit ? static_cast<double>(settings.rows) / 2 : rows);
        bytes += 2 * (ranks ? std::min(static_cast<double>((*ranks)[s][side]), most) : most) *
                 rows * storage;
      }
    bytes += small_matrices(schedule, settings, ranks);
    if (settings.limit)
      for (const auto& source : program.sources)
        if (!source.matrix) bytes += static_cast<double>(size_of(source.dims)) * rows * storage;
  }
  // As Run does: the results of a group of row-by-row operations are allocated before its operands
  // are released, and what only the group needs takes no block.
  std::vector<NodeId> group;
  const auto reach = [&](std::uint32_t k, double columns) {
    peak = std::max(peak, columns + arrays[k] * array_columns);
  };
  const auto size = [&](NodeId id) {
    return program[id].type.width ? static_cast<double>(size_of(program[id].type.dims)) : 0.0;
  };
  const auto release = [&](NodeId id) {
    const auto& in = program[id].in;
    for (auto operand = in.begin(); operand != in.end(); ++operand)
      if (schedule.last_use[operand->value] == id.value &&
          std::find(in.begin(), operand, *operand) == operand)
        live -= size(*operand);
  };
  const auto flush = [&] {
    double scratch = 0;
    std::set<NodeId> inside;
    for (const NodeId id : group)
      if (std::binary_search(group.begin(), group.end(), NodeId{schedule.last_use[id.value]})) {
        scratch += size(id);
        inside.insert(id);
      } else {
        live += size(id);
      }
    if (!group.empty()) reach(group.back().value, live);
    chunk_columns = std::max(chunk_columns, scratch);
    for (const NodeId id : group) release(id);
    for (const NodeId id : inside) live += size(id);  // released above, never allocated
    group.clear();
  };
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    if (!schedule.needed[k]) continue;
    const Node& node = program.nodes[k];
    if (is_average(node.op) || (node.type.width && is_rowwise(node.op) &&
                                !std::holds_alternative<StandardNormal>(node.op))) {
      group.push_back({k});
      continue;
    }
    if (!node.type.width && !node.type.matrix) continue;
    flush();
    live += size({k});
    // A lazy product projects a copy of its vector; so does an update.
    double copies = 0;
    for (const NodeId in : node.in)
      copies = std::max(
          copies,
          !dense && (node.type.matrix || std::holds_alternative<MatMul>(node.op)) ? size(in) : 0.0);
    reach(k, live + copies);
    release({k});
  }
  flush();
  const double spaces = settings.limit ? schedule.spaces.count : 0;
  bytes += (spaces * rows + chunk_columns * std::min(rows, static_cast<double>(kChunkRows))) * 8;
  return bytes + peak * rows * 8;
}

double estimate_operations(const Schedule& schedule, std::int64_t particles) {
  constexpr double kProduct = 0.5, kFunction = 4,
                   kNormal = 16;  // of a number and a direction; of a number
  const Program& program = *schedule.program;
  std::vector<double> directions(program.sources.size(), 0.0);  // of a matrix so far
  std::vector<std::uint32_t> source(program.size(), 0);
  double per_particle = 0;
  for (std::uint32_t k = 0; k < program.size(); ++k) {
    const Node& node = program.nodes[k];
    if (!schedule.needed[k]) continue;
    const auto size = [&](NodeId id) {
      return static_cast<double>(size_of(program[id].type.dims));
    };
    if (node.type.matrix)
      source[k] = node.in.empty() ? std::get<GaussianMatrix>(node.op).source.value
                                  : source[node.in[0].value];
    if (const bool product = std::holds_alternative<MatMul>(node.op);
        product || std::holds_alternative<UpdateMatrix>(node.op)) {
      double& known = directions[source[product ? node.in[0].value : k]];
      for (const auto& fresh : schedule.spaces.columns[k]) {
        known = std::min(known + static_cast<double>(fresh.count), static_cast<double>(particles));
        per_particle += static_cast<double>(fresh.count) * (kNormal + kProduct * known);
      }
      if (product) per_particle += kProduct * known * size(node.in[1]);
    } else if (std::holds_alternative<Contract>(node.op) && is_average(node.op)) {
      per_particle += 0.5 * kProduct * size({k});
    } else if (is_average(node.op)) {
      per_particle += size(node.in[0]);
    } else if (node.type.width) {
      per_particle += size({k}) * (std::holds_alternative<Map>(node.op) ? kFunction : 1);
    }
  }
  return per_particle * static_cast<double>(particles);
}

}  // namespace tplimit::engines
