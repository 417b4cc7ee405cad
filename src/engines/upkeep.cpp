#include "engines/upkeep.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "engines/stored_entries.hpp"
#include "tplimit/support/overloaded.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {

using Ranks = std::vector<std::array<std::int64_t, 2>>;

// ---- lazy matrices

/// Q and F of both sides of every matrix: `most` columns each at most, as far as `ranks` are known.
double bases_and_normals(const Schedule& schedule, const Ranks* ranks, double most,
                         double bytes_per_column) {
  double bytes = 0;
  for (std::size_t s = 0; s < schedule.program->sources.size(); ++s)
    for (const std::size_t side : {0u, 1u}) {
      double columns = std::min(static_cast<double>(schedule.spaces.directions[s][side]), most);
      if (ranks) columns = std::min(static_cast<double>((*ranks)[s][side]), columns);
      bytes += 2 * columns * bytes_per_column;
    }
  return bytes;
}

/// What has no coordinates: coefficients of matrix versions, factors of normal spaces (of matched
/// ones only), partial sums of their sweeps.  With the copies that growing makes.
double small_matrices(const Schedule& schedule, std::int64_t rows, NormalLaw law,
                      const Ranks* ranks) {
  const Program& program = *schedule.program;
  std::vector<double> normals(schedule.spaces.count, 1), directions(schedule.spaces.count, 0);
  double bytes = 0, columns = 0;
  for (const Node& node : program.nodes)
    if (std::holds_alternative<MatMul>(node.op))
      columns = std::max(columns, static_cast<double>(size_of(node.type.dims)));
  for (std::size_t s = 0; s < program.sources.size(); ++s) {
    const auto& most = ranks ? (*ranks)[s] : schedule.spaces.directions[s];
    const double w = static_cast<double>(std::min(most[0], rows)),
                 wt = static_cast<double>(std::min(most[1], rows));
    if (!program.sources[s].matrix) continue;
    bytes += 2 * w * wt * 8;
    normals[schedule.spaces.output_of_source[s]] += w;
    normals[schedule.spaces.input_of_source[s]] += wt;
    directions[schedule.spaces.input_of_source[s]] += w;
    directions[schedule.spaces.output_of_source[s]] += wt;
  }
  double sweep = 0;
  for (std::size_t k = 0; k < normals.size() && law == NormalLaw::kMatched; ++k) {
    bytes += 2 * directions[k] * (normals[k] + directions[k]) * 8;
    sweep = std::max(sweep, (normals[k] + directions[k]) * 2 * columns);
  }
  return bytes + std::max(std::min(64 * sweep, 1048576.0), 16 * sweep) * 8;
}

/// A product projects a copy of its vectors; so does an update, one vector after the other.
std::vector<double> projected_copies(const Schedule& schedule, double rows) {
  const Program& program = *schedule.program;
  std::vector<double> out;
  for (const Plan::Step& step : schedule.plan.steps) {
    const auto largest_operand = [&](NodeId id) {
      std::int64_t columns = 0;
      for (const NodeId in : program[id].in)
        if (program[in].type.width) columns = std::max(columns, size_of(program[in].type.dims));
      return static_cast<double>(columns) * rows * 8;
    };
    out.push_back(std::visit(
        overloaded{
            [](const Plan::Sweep&) { return 0.0; }, [](const Plan::EntrySweep&) { return 0.0; },
            [](const Plan::Draw&) { return 0.0; }, [](const Plan::Initialise&) { return 0.0; },
            [&](const Plan::Product& a) { return largest_operand(a.node); },
            [](const Plan::Rescale&) { return 0.0; },
            [&](const Plan::Update& a) { return largest_operand(a.node); },
            [](const Plan::Combine&) { return 0.0; }, [](const Plan::CopyEntries&) { return 0.0; },
            [](const Plan::InnerProduct&) { return 0.0; },
            [](const Plan::TakeSamples&) { return 0.0; },
            [](const Plan::FiniteStep&) { return 0.0; }},
        step.action));
  }
  return out;
}

/// Arrays of n^2 entries during each step, those of matrices and others: versions share one until
/// an update finds it shared.  `drawn`: matrices have one from the start, not only for what
/// entrywise updates add.
std::vector<int> arrays_alive(const Schedule& schedule, bool drawn) {
  const Program& program = *schedule.program;
  std::vector<int> out, versions;                           // versions: that an array holds
  std::unordered_map<std::uint32_t, std::size_t> array_of;  // of a version
  int alive = 0;
  for (const Plan::Step& step : schedule.plan.steps) {
    int reused = 0;
    const auto make = [&](NodeId id) {
      array_of[id.value] = versions.size();
      versions.push_back(1);
      ++alive;
    };
    const auto share = [&](NodeId id) {
      const auto of = array_of.find(program[id].in[0].value);
      if (of == array_of.end()) return;
      array_of[id.value] = of->second;
      ++versions[of->second];
    };
    const auto change = [&](NodeId id) {
      const NodeId old = program[id].in[0];
      const auto of = array_of.find(old.value);
      if (of == array_of.end() || versions[of->second] > 1 || !step.frees_node(old))
        make(id);
      else
        share(id);  // in place
    };
    std::visit(
        overloaded{
            [](const Plan::Sweep&) {},
            [&](const Plan::EntrySweep& a) {
              const auto free =
                  std::count_if(a.loads.begin(), a.loads.end(),
                                [&](const auto& load) { return step.frees_node(load.node); });
              for (const auto& store : a.stores) make(store.node);
              // Results take the place of freed arrays.
              reused = std::min(static_cast<int>(free), static_cast<int>(a.stores.size()));
              for (const auto& operation : a.operations)
                if (operation.out.where == Plan::Place::Where::kVersion) change(operation.node);
            },
            [](const Plan::Draw&) {},
            [&](const Plan::Initialise& a) {
              if (drawn) make(a.node);
            },
            [](const Plan::Product&) {}, [&](const Plan::Rescale& a) { share(a.node); },
            [&](const Plan::Update& a) {
              if (drawn)
                change(a.node);
              else
                share(a.node);
            },
            [&](const Plan::Combine& a) {
              if (drawn || array_of.contains(program[a.node].in[2].value))
                change(a.node);
              else
                share(a.node);
            },
            [&](const Plan::CopyEntries& a) { make(a.node); }, [](const Plan::InnerProduct&) {},
            [](const Plan::TakeSamples&) {}, [](const Plan::FiniteStep&) {}},
        step.action);
    out.push_back(alive - reused);
    for (const NodeId id : step.frees)
      if (const auto of = array_of.find(id.value);
          of != array_of.end() && --versions[of->second] == 0)
        --alive;
  }
  return out;
}

Upkeep of_particle_limit(const Schedule& schedule, const RunSettings& settings, double rows,
                         const Ranks* ranks) {
  using Matrices = RunSettings::Matrices;
  const double column = rows * (settings.single_precision ? 4 : 8),
               array = StoredEntries<float>::bytes(settings.rows);
  Upkeep out;
  // A matrix that gets more directions than half of the particles is stored, and so are its
  // versions; as many as there is room for are kept.
  Ranks kept = ranks ? *ranks : schedule.spaces.directions;
  bool stores = false;
  for (std::size_t k = 0; k < kept.size(); ++k) {
    const std::int64_t sum = kept[k][0] + kept[k][1],
                       room = settings.matrices == Matrices::kStored ? 0 : settings.rows / 2;
    if (!schedule.program->sources[k].matrix || settings.matrices == Matrices::kLazy || sum <= room)
      continue;
    for (std::int64_t& side : kept[k])
      side = static_cast<std::int64_t>(static_cast<double>(side) * static_cast<double>(room) /
                                       static_cast<double>(sum));
    out.always += array;
    stores = true;
  }
  out.always += bases_and_normals(schedule, &kept, static_cast<double>(settings.rows) / 2, column) +
                small_matrices(schedule, settings.rows, NormalLaw::kMatched, &kept);
  // Spaces match later normals against vectors that were drawn, and against 1.
  for (const auto& source : schedule.program->sources)
    if (!source.matrix) out.always += static_cast<double>(size_of(source.dims)) * column;
  out.always += schedule.spaces.count * rows * 8;
  out.during = projected_copies(schedule, rows);
  const std::vector<int> arrays = arrays_alive(schedule, stores);
  for (std::size_t k = 0; k < arrays.size(); ++k) out.during[k] += arrays[k] * array;
  return out;
}

Upkeep of_revealed_network(const Schedule& schedule, const RunSettings& settings, double rows,
                           const Ranks* ranks) {
  Upkeep out;
  out.always =
      bases_and_normals(schedule, ranks, rows, rows * (settings.single_precision ? 4 : 8)) +
      small_matrices(schedule, settings.rows, NormalLaw::kExact, ranks);
  out.during = projected_copies(schedule, rows);
  return out;
}

// ---- dense matrices

/// Vectors packed for a product, and updates that wait for one, at their largest.
template <class T>
double packed_bytes(const Schedule& schedule, std::int64_t rows) {
  const Program& program = *schedule.program;
  const auto vectors = [&](NodeId id) { return size_of(program[id].type.dims); };
  double product = 0;
  std::map<SourceId, double> waiting;  // per matrix: its largest update
  for (const Plan::Step& step : schedule.plan.steps) {
    if (const auto* a = std::get_if<Plan::Product>(&step.action))
      product =
          std::max(product, StoredEntries<T>::packed_bytes(rows, vectors(program[a->node].in[1])));
    if (const auto* a = std::get_if<Plan::Update>(&step.action)) {
      const auto& in = program[a->node].in;
      std::int64_t rank = 0;
      for (std::size_t j = 1; j + 2 < in.size(); j += 3) rank += vectors(in[j + 1]);
      double& own = waiting[a->matrix];
      own = std::max(own, 2 * StoredEntries<T>::packed_bytes(rows, rank));
    }
  }
  for (const auto& [matrix, bytes] : waiting) product += bytes;
  return product;
}

template <class T>
Upkeep of_stored_network(const Schedule& schedule, std::int64_t width) {
  Upkeep out;
  out.always = packed_bytes<T>(schedule, width);
  for (const int arrays : arrays_alive(schedule, true))
    out.during.push_back(arrays * StoredEntries<T>::bytes(width));
  return out;
}

}  // namespace

Upkeep upkeep_of(const Schedule& schedule, const RunSettings& settings, double rows,
                 const Ranks* ranks) {
  switch (settings.realisation) {
    case RealisationKind::kParticleLimit: return of_particle_limit(schedule, settings, rows, ranks);
    case RealisationKind::kRevealedNetwork:
      return of_revealed_network(schedule, settings, rows, ranks);
    case RealisationKind::kStoredNetwork:
      return settings.single_precision ? of_stored_network<float>(schedule, settings.rows)
                                       : of_stored_network<double>(schedule, settings.rows);
  }
  TPLIMIT_CHECK(false, "a kind of realisation");
}

}  // namespace tplimit::engines
