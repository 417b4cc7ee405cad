#include "engines/realisation.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engines/dense_matrix.hpp"
#include "engines/lazy_matrix.hpp"
#include "tplimit/math/normals.hpp"
#include "tplimit/passes/direct_uses.hpp"

namespace tplimit::engines {

using namespace ir;

namespace {

// Purposes of random numbers, so that no two share any.
constexpr std::uint64_t kSourceWord = 0x736f75726365ULL, kSpaceWord = 0x7370616365ULL,
                        kMatrixWord = 0x6d6174726978ULL, kSampleWord = 0x73616d706c65ULL;

// What rounding leaves of a vector in the span of earlier ones; networks are not truncated beyond
// that.
constexpr double kRounding = 1e-13, kRoundingSingle = 1e-6;

}  // namespace

// ---- what all realisations keep

Realisation::Realisation(const Program& program, const ProbabilitySpaces& spaces,
                         const RunSettings& settings, const Executor& executor)
    : program_(program),
      of_program_(spaces),
      settings_(settings),
      executor_(executor),
      matrices_(program.sources.size()) {}

WidthMatrix& Realisation::matrix(SourceId source) {
  auto& m = matrices_[source.value];
  if (!m) m = make_matrix(source);
  return *m;
}

void Realisation::make_spaces(NormalLaw law) {
  for (std::uint32_t k = 0; k < of_program_.count; ++k)
    spaces_.emplace_back(executor_, settings_.rows, law, keys_of_space(k));
}

std::vector<std::uint64_t> Realisation::keys_of_space(std::uint32_t number) const {
  std::vector<std::uint64_t> out;
  for (const std::uint64_t key : settings_.keys)
    out.push_back(mix_key(mix_key(key, kSpaceWord), number));
  return out;
}

std::unique_ptr<WidthMatrix> Realisation::make_lazy(SourceId source, const LazySettings& lazy,
                                                    const Apart& apart) {
  const std::array common{of_program_.output_of_source[source.value],
                          of_program_.input_of_source[source.value]};
  const auto space = [&](std::uint32_t side) -> NormalSpace& {
    if (!apart.normals[side]) return spaces_[common[side]];
    return apart_
        .try_emplace(2 * source.value + side, executor_, settings_.rows, lazy.law,
                     keys_of_space(common[side]))
        .first->second;
  };
  auto out = std::make_unique<LazyMatrix>(executor_, settings_.rows, lazy, space(1), space(0),
                                          of_program_.directions[source.value]);
  for (const std::uint32_t side : {0u, 1u})
    if (apart.normals[side] && !apart.directions[side])
      spaces_[common[side]].watch(out->directions(1 - side));
  return out;
}

std::uint64_t Realisation::key_of(SourceId source, std::uint64_t purpose) const {
  const std::string& name = program_.sources[source.value].name;
  return mix_key(mix_key(settings_.keys.front(), purpose), hash_text(name.data(), name.size()));
}

void Realisation::forget(NodeId node) {
  for (const auto& m : matrices_)
    if (m) m->forget(node.value);
}

bool Realisation::matching_stopped() const {
  return std::any_of(spaces_.begin(), spaces_.end(),
                     [](const NormalSpace& space) { return space.matching_stopped(); }) ||
         std::any_of(apart_.begin(), apart_.end(),
                     [](const auto& apart) { return apart.second.matching_stopped(); });
}

std::vector<std::array<std::int64_t, 2>> Realisation::ranks() const {
  std::vector<std::array<std::int64_t, 2>> out;
  for (const auto& m : matrices_) out.push_back(m ? m->ranks() : std::array<std::int64_t, 2>{});
  return out;
}

std::int64_t Realisation::stored_matrices() const {
  return std::count_if(matrices_.begin(), matrices_.end(),
                       [](const auto& m) { return m && m->is_stored(); });
}

double Realisation::largest_dropped() const {
  double out = 0;
  for (const auto& m : matrices_)
    if (m) out = std::max(out, m->largest_dropped());
  return out;
}

void Realisation::save(Writer& out) const {
  out.value<std::uint64_t>(drawn_.size());
  for (const Panel& columns : drawn_) columns.save(out);
  for (const auto& m : matrices_) {
    out.value(m != nullptr);
    if (m) m->save(out);
  }
  const std::vector<const Panel*> known = panels();
  for (const NormalSpace& space : spaces_) space.save(out, known);
  for (const auto& [side, space] : apart_) space.save(out, known);
}

void Realisation::load(Reader& in) {
  for (auto left = in.value<std::uint64_t>(); left > 0; --left) drawn_.push_back(Panel::load(in));
  for (std::uint32_t s = 0; s < matrices_.size(); ++s)
    if (in.value<bool>()) matrix({s}).load(in);
  const std::vector<const Panel*> known = panels();
  for (NormalSpace& space : spaces_) space.load(in, known);
  for (auto& [side, space] : apart_) space.load(in, known);
}

std::vector<const Panel*> Realisation::panels() const {
  std::vector<const Panel*> out;
  for (const NormalSpace& space : spaces_) out.push_back(&space.ones());
  for (const auto& [side, space] : apart_) out.push_back(&space.ones());
  for (const Panel& columns : drawn_) out.push_back(&columns);
  for (const auto& m : matrices_)
    if (m)
      for (const Panel* panel : m->panels()) out.push_back(panel);
  return out;
}

// ---- infinite width

ParticleLimit::ParticleLimit(const Program& program, const ProbabilitySpaces& spaces,
                             const RunSettings& settings, const Executor& executor)
    : Realisation(program, spaces, settings, executor) {
  make_spaces(NormalLaw::kMatched);
  apart_sides_ = choose_apart();
}

/// Matching all normals of a space with each other costs the square of their number, and a residual
/// stream is one space for all layers.  Where many matrices share a space, normals that nothing but
/// functions like tanh receive are matched within their own matrix and side.  Errors are then up to
/// 1.8 times as large: a bargain for 16 residual blocks and more, below it was not measured
/// (docs/decisions/0019).
std::vector<Realisation::Apart> ParticleLimit::choose_apart() const {
  constexpr std::int64_t kMostSides = 24;  // of matrices, that share a space as a whole
  const auto sources = static_cast<std::uint32_t>(program_.sources.size());
  std::vector<Apart> out(sources);
  std::vector<std::int64_t> sides(of_program_.count, 0);
  for (std::uint32_t s = 0; s < sources; ++s)
    if (program_.sources[s].matrix)
      ++sides[of_program_.input_of_source[s]], ++sides[of_program_.output_of_source[s]];
  const DirectUses uses = direct_uses(program_);
  for (std::uint32_t s = 0; s < sources; ++s) {
    if (!program_.sources[s].matrix) continue;
    const std::array space{of_program_.output_of_source[s], of_program_.input_of_source[s]};
    for (const std::size_t side : {0u, 1u}) {
      out[s].normals[side] = sides[space[side]] > kMostSides && !uses.products[s][side];
      out[s].directions[side] = !uses.operands[s][1 - side];
    }
  }
  return out;
}

Block ParticleLimit::draw(NodeId normal) {
  const auto& columns = of_program_.columns[normal.value][0];
  // The space keeps its columns to match later ones against: they live as long as the run.
  drawn_.emplace_back(share_of(executor_.ranks(), settings_.rows).count,
                      static_cast<std::int64_t>(columns.count), settings_.single_precision);
  std::vector<std::uint64_t> dimensions(columns.count);
  std::iota(dimensions.begin(), dimensions.end(), columns.first);
  return spaces_[of_program_.of_node[normal.value]].draw(drawn_.back(), dimensions, nullptr);
}

/// In a random order, since particles are quasi-random points; the same for all samples of a run;
/// from the start again where particles are fewer.
std::vector<std::int64_t> ParticleLimit::sampled_rows(std::int64_t count) const {
  std::vector<std::int64_t> out, rows(static_cast<std::size_t>(settings_.rows));
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  std::uint64_t key = mix_key(settings_.keys.front(), kSampleWord);
  for (std::int64_t i = 0; i < count; ++i) {
    // Fisher and Yates; the remainder's bias is rows / 2^64.
    const auto place = static_cast<std::size_t>(i % settings_.rows);
    key = mix_key(key, place);
    if (i < settings_.rows) std::swap(rows[place], rows[place + key % (rows.size() - place)]);
    out.push_back(rows[place]);
  }
  return out;
}

std::unique_ptr<WidthMatrix> ParticleLimit::make_matrix(SourceId source) {
  using Matrices = RunSettings::Matrices;
  return make_lazy(source,
                   {NormalLaw::kMatched, settings_.rank_tol, settings_.single_precision,
                    key_of(source, kMatrixWord), settings_.matrices == Matrices::kStored ? 0 : 0.5,
                    settings_.matrices != Matrices::kLazy},
                   apart_sides_[source.value]);
}

// ---- networks

Network::Network(const Program& program, const ProbabilitySpaces& spaces,
                 const RunSettings& settings, const Executor& executor)
    : Realisation(program, spaces, settings, executor) {
  TPLIMIT_CHECK(executor.ranks().size() == 1, "a network is run by one rank");
}

Block Network::draw(NodeId normal) {
  Block block(settings_.rows,
              static_cast<std::int64_t>(of_program_.columns[normal.value][0].count));
  const std::uint64_t key =
      key_of(std::get<StandardNormal>(program_[normal].op).source, kSourceWord);
  executor_.parallel(block.chunks(), [&](std::int64_t c) {
    for (std::int64_t j = 0; j < block.columns(); ++j)
      plain_normals(
          mix_key(key, static_cast<std::uint64_t>(j)), static_cast<std::uint64_t>(c * kChunkRows),
          {block.chunk(c) + j * block.ld(), static_cast<std::size_t>(block.chunk_rows(c))});
  });
  return block;
}

/// Evenly spaced.
std::vector<std::int64_t> Network::sampled_rows(std::int64_t count) const {
  if (count > settings_.rows)
    throw EvaluationStop{"E4203",
                         fmt::format("{} samples are asked for, but there are {} coordinates",
                                     count, settings_.rows),
                         "ask for fewer samples, or use more particles or a larger width"};
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(i * (settings_.rows / count));
  return out;
}

RevealedNetwork::RevealedNetwork(const Program& program, const ProbabilitySpaces& spaces,
                                 const RunSettings& settings, const Executor& executor)
    : Network(program, spaces, settings, executor) {
  make_spaces(NormalLaw::kExact);
}

std::unique_ptr<WidthMatrix> RevealedNetwork::make_matrix(SourceId source) {
  if (const GaussianSource& own = program_.sources[source.value]; own.law != EntryLaw::kNormal)
    throw EvaluationStop{"E4204", "entries that are not normal need stored matrices",
                         "'" + own.name +
                             "' is not normal, and only a normal matrix can be revealed product by "
                             "product"};
  return make_lazy(source,
                   {NormalLaw::kExact, settings_.single_precision ? kRoundingSingle : kRounding,
                    settings_.single_precision, 0, INFINITY},
                   {});
}

StoredNetwork::StoredNetwork(const Program& program, const ProbabilitySpaces& spaces,
                             const RunSettings& settings, const Executor& executor)
    : Network(program, spaces, settings, executor) {}

std::unique_ptr<WidthMatrix> StoredNetwork::make_matrix(SourceId source) {
  const std::uint64_t key = key_of(source, kMatrixWord);
  const EntryLaw law = program_.sources[source.value].law;
  if (settings_.single_precision)
    return std::make_unique<DenseMatrix<float>>(executor_, settings_.rows, key, law);
  return std::make_unique<DenseMatrix<double>>(executor_, settings_.rows, key, law);
}

std::unique_ptr<Realisation> make_realisation(const Program& program,
                                              const ProbabilitySpaces& spaces,
                                              const RunSettings& settings,
                                              const Executor& executor) {
  switch (settings.realisation) {
    case RealisationKind::kParticleLimit:
      return std::make_unique<ParticleLimit>(program, spaces, settings, executor);
    case RealisationKind::kRevealedNetwork:
      return std::make_unique<RevealedNetwork>(program, spaces, settings, executor);
    case RealisationKind::kStoredNetwork:
      return std::make_unique<StoredNetwork>(program, spaces, settings, executor);
  }
  TPLIMIT_CHECK(false, "a kind of realisation");
}

}  // namespace tplimit::engines
