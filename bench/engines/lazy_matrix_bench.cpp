// The lazy Gaussian matrix and its normals: from an empty basis to full rank, and products within a
// known span.  Rates count the floating-point operations that the engine itself counts
// (product_flops of the JSON).

#include <array>
#include <memory>

#include <fmt/format.h>

#include "bench/bench.hpp"
#include "engines/lazy_matrix.hpp"

namespace tplimit::bench {
namespace {

using namespace engines;

constexpr std::int64_t kParticles = 16384, kColumns = 16;
constexpr double kTolerance = 1e-11;  // sums of 16,384 products, of numbers of order one

Block random_block(std::uint64_t key) {
  Block out(kParticles, kColumns);
  for (std::int64_t c = 0; c < out.chunks(); ++c)
    for (std::int64_t j = 0; j < kColumns; ++j)
      plain_normals(mix_key(key, static_cast<std::uint64_t>(j)),
                    static_cast<std::uint64_t>(c * kChunkRows),
                    {out.chunk(c) + j * out.ld(), static_cast<std::size_t>(out.chunk_rows(c))});
  return out;
}

Matrix inner(const Block& a, const Block& b) {
  Matrix sum = Matrix::Zero(a.columns(), b.columns());
  for (std::int64_t c = 0; c < a.chunks(); ++c)
    sum += all_columns(a, c).transpose() * all_columns(b, c);
  return sum / static_cast<double>(a.rows());
}

/// <q, q> for all columns of a basis.
Matrix inner(const Panel& q) {
  Matrix sum = Matrix::Zero(q.columns(), q.columns());
  Matrix chunk(q.ld(), q.columns());
  for (std::int64_t c = 0; c < q.chunks(); ++c) {
    q.read(c, 0, q.columns(), chunk.data());
    sum.noalias() += chunk.transpose() * chunk;
  }
  return sum / static_cast<double>(q.rows());
}

/// Draws normals, kColumns at a time, until there are `rank`.
void draw_normals(benchmark::State& state, std::int64_t rank, bool single) {
  const Executor executor(1);
  const auto draw_all = [&] {
    NormalSpace space(executor, kParticles, NormalLaw::kMatched, {5});
    auto basis = std::make_unique<Panel>(kParticles, rank, single);
    for (std::int64_t first = 0; first < rank; first += kColumns) {
      std::vector<std::uint64_t> dimensions;
      for (std::int64_t j = first; j < first + kColumns; ++j)
        dimensions.push_back(static_cast<std::uint64_t>(j));
      (void)space.draw(*basis, dimensions, nullptr);
    }
    return basis;
  };
  const std::unique_ptr<Panel> basis = draw_all();
  if (!((inner(*basis) - Matrix::Identity(rank, rank)).cwiseAbs().maxCoeff() <=
        (single ? 1e-5 : kTolerance)))
    return state.SkipWithError("wrong answer");
  const double before = executor.operations();
  for (auto _ : state) benchmark::DoNotOptimize(draw_all());
  set_rate(state, "flops",
           (executor.operations() - before) /
               static_cast<double>(std::max<std::int64_t>(1, state.iterations())));
}

/// A matrix, to which blocks of vectors were shown, W x and W' d in turn.
class Revealed {
 public:
  Revealed(const Executor& executor, std::int64_t rank, const std::vector<Block>& x)
      : input_(executor, kParticles, NormalLaw::kMatched, {1}),
        output_(executor, kParticles, NormalLaw::kMatched, {2}),
        matrix_(executor, kParticles, LazySettings{NormalLaw::kMatched, 1e-6, false}, input_,
                output_, {rank, rank}) {
    for (std::size_t k = 0; k < x.size(); ++k) {
      products_.emplace_back(kParticles, kColumns);
      apply(k % 2 == 1, x[k], static_cast<std::uint32_t>(k), products_.back());
    }
  }
  void apply(bool transposed, const Block& x, std::uint32_t node, Block& y) {
    matrix_.apply(version_, transposed, x, node, std::uint64_t{kColumns} * node, y);
  }
  void forget(std::uint32_t node) { matrix_.forget(node); }
  [[nodiscard]] std::array<std::int64_t, 2> ranks() const { return matrix_.ranks(); }
  [[nodiscard]] const Block& product(std::size_t k) const { return products_[k]; }

 private:
  NormalSpace input_, output_;
  LazyMatrix matrix_;
  MatrixVersion version_;
  std::vector<Block> products_;
};

/// Vectors for `rank` directions on either side.
std::vector<Block> vectors(std::int64_t rank) {
  std::vector<Block> out;
  for (std::int64_t k = 0; k < 2 * rank / kColumns; ++k)
    out.push_back(random_block(mix_key(3, static_cast<std::uint64_t>(k))));
  return out;
}

/// Products with new directions only: everything up to `rank` on both sides.
void apply_new(benchmark::State& state, std::int64_t rank) {
  const Executor executor(1);
  const std::vector<Block> x = vectors(rank);
  {
    // <d, W x> = <W' d, x>
    const Revealed w(executor, rank, x);
    if (w.ranks() != std::array<std::int64_t, 2>{rank, rank} ||
        !((inner(x.back(), w.product(0)) - inner(w.product(x.size() - 1), x.front()))
              .cwiseAbs()
              .maxCoeff() <= kTolerance))
      return state.SkipWithError("wrong answer");
  }
  const double before = executor.operations();
  for (auto _ : state) benchmark::DoNotOptimize(Revealed(executor, rank, x).ranks());
  set_rate(state, "flops",
           (executor.operations() - before) /
               static_cast<double>(std::max<std::int64_t>(1, state.iterations())));
}

/// A product whose vectors lie in the span of earlier ones.
void apply_known(benchmark::State& state, std::int64_t rank) {
  const Executor executor(1);
  const std::vector<Block> x = vectors(rank);
  Revealed w(executor, rank, x);
  Block sum(kParticles, kColumns), y(kParticles, kColumns);  // x_0 - 2 x_2
  for (std::int64_t c = 0; c < sum.chunks(); ++c)
    all_columns(sum, c) = all_columns(x[0], c) - 2 * all_columns(x[2], c);
  auto node = static_cast<std::uint32_t>(x.size());
  w.apply(false, sum, node, y);
  double error = 0;
  for (std::int64_t c = 0; c < y.chunks(); ++c)
    error = std::max(
        error, (all_columns(y, c) - all_columns(w.product(0), c) + 2 * all_columns(w.product(2), c))
                   .cwiseAbs()
                   .maxCoeff());
  if (!(error <= kTolerance) || w.ranks()[0] != rank) return state.SkipWithError("wrong answer");
  const double before = executor.operations();
  for (auto _ : state) {
    w.forget(node);
    w.apply(false, sum, ++node, y);
  }
  set_rate(state, "flops",
           (executor.operations() - before) /
               static_cast<double>(std::max<std::int64_t>(1, state.iterations())));
}

const bool registered = [] {
  for (const std::int64_t rank : {64, 320}) {
    benchmark::RegisterBenchmark(fmt::format("BM_Draw/double/r:{}/tplimit", rank).c_str(),
                                 draw_normals, rank, false)
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(fmt::format("BM_Draw/float/r:{}/tplimit", rank).c_str(),
                                 draw_normals, rank, true)
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(
        fmt::format("BM_ApplyNew/double/r:{}/P:{}/tplimit", rank, kColumns).c_str(), apply_new,
        rank)
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(
        fmt::format("BM_ApplyKnown/double/r:{}/P:{}/tplimit", rank, kColumns).c_str(), apply_known,
        rank)
        ->Unit(benchmark::kMillisecond);
  }
  return true;
}();

}  // namespace
}  // namespace tplimit::bench
