#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "engines/normal_space.hpp"
#include "engines/width_matrix.hpp"
#include "tplimit/ir/program.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::engines {

enum class RealisationKind {
  kParticleLimit,    ///< infinite width: particles, samples of the law of a coordinate
  kRevealedNetwork,  ///< width n; matrices are revealed product by product, exactly in law
  kStoredNetwork,    ///< width n; all n^2 entries of the matrices are in memory
};

/// One run: M particles of the limit, or one network of width n.
struct RunSettings {
  RealisationKind realisation = RealisationKind::kParticleLimit;
  std::int64_t rows = 0;            ///< particles, of all ranks, or width
  std::vector<std::uint64_t> keys;  ///< of all random numbers of this run; several: the particles
                                    ///< of as many runs joined, in equal parts
  double rank_tol = 1e-6;           ///< of the limit
  /// Of the limit: matrices that get more directions than half of the particles are stored (auto),
  /// refused (lazy), or all are stored from the start.
  enum class Matrices { kAuto, kLazy, kStored } matrices = Matrices::kAuto;
  bool single_precision =
      false;  ///< bases, normals and dense matrices are stored in single precision
  bool trace =
      false;  ///< check every value of every node, to find where the first bad number appears
};

struct LazySettings;

/// What stands for the n coordinates.  The interpreter is the same for all; nothing else asks which
/// it is.  Keeps what outlives a single value: matrices, bases, normals.
class Realisation {
 public:
  virtual ~Realisation() = default;
  Realisation(const Realisation&) = delete;  // matrices and spaces point to each other
  Realisation& operator=(const Realisation&) = delete;

  /// The coordinates, of this rank, of a StandardNormal.
  [[nodiscard]] virtual Block draw(ir::NodeId normal) = 0;
  /// The Gaussian matrix of a source, made when it is first asked for.
  WidthMatrix& matrix(ir::SourceId source);
  /// The coordinates that `samples` shows, among those of all ranks.  E4203: there are fewer.
  [[nodiscard]] virtual std::vector<std::int64_t> sampled_rows(std::int64_t count) const = 0;
  /// Averages over its coordinates estimate means of a law: what they cannot resolve is watched.
  /// (Those of a network are what they are.)
  [[nodiscard]] virtual bool estimates_means() const = 0;

  /// How arrays of entries are stored.
  [[nodiscard]] virtual bool entries_in_single_precision() const = 0;

  /// The value of this node will not be used again.
  void forget(ir::NodeId node);
  [[nodiscard]] bool matching_stopped() const;
  /// Directions kept for W and W', per source.
  [[nodiscard]] std::vector<std::array<std::int64_t, 2>> ranks() const;
  /// Lazy matrices that are stored by now.
  [[nodiscard]] std::int64_t stored_matrices() const;
  /// Largest |rest| / |x| of a direction that was dropped.
  [[nodiscard]] double largest_dropped() const;

  /// `load` restores what `save` wrote in a realisation made in the same way.
  void save(Writer& out) const;
  void load(Reader& in);

 protected:
  Realisation(const ir::Program& program, const ProbabilitySpaces& spaces,
              const RunSettings& settings, const Executor& executor);

  [[nodiscard]] virtual std::unique_ptr<WidthMatrix> make_matrix(ir::SourceId source) = 0;

  /// One space of normals with this law per probability space of the program.
  void make_spaces(NormalLaw law);
  /// Which normals of a matrix are matched among themselves and with the opposite basis alone.
  struct Apart {
    std::array<bool, 2> normals{};     ///< those of W x, of W' d
    std::array<bool, 2> directions{};  ///< the basis opposite to such normals, Qd, Qx, as well
  };
  [[nodiscard]] std::unique_ptr<WidthMatrix> make_lazy(ir::SourceId source,
                                                       const LazySettings& lazy,
                                                       const Apart& apart);
  /// Of the space with this number.
  [[nodiscard]] std::vector<std::uint64_t> keys_of_space(std::uint32_t number) const;
  /// Of the random numbers of a source: by its name.
  [[nodiscard]] std::uint64_t key_of(ir::SourceId source, std::uint64_t purpose) const;

  const ir::Program& program_;
  const ProbabilitySpaces& of_program_;
  const RunSettings& settings_;
  const Executor& executor_;
  std::deque<NormalSpace> spaces_;              ///< per probability space
  std::map<std::uint32_t, NormalSpace> apart_;  ///< 2 source + side -> normals of that alone
  std::deque<Panel> drawn_;                     ///< columns that `spaces_` match later ones against

 private:
  /// All that normal spaces may refer to, in an order that does not depend on when it came.
  [[nodiscard]] std::vector<const Panel*> panels() const;

  std::vector<std::unique_ptr<WidthMatrix>> matrices_;  ///< per source; null: not asked for
};

/// Infinite width: scrambled Sobol points with matched moments, which vectors and fresh normals of
/// lazy matrices share.
class ParticleLimit final : public Realisation {
 public:
  ParticleLimit(const ir::Program& program, const ProbabilitySpaces& spaces,
                const RunSettings& settings, const Executor& executor);
  [[nodiscard]] Block draw(ir::NodeId normal) override;
  [[nodiscard]] std::vector<std::int64_t> sampled_rows(std::int64_t count) const override;
  [[nodiscard]] bool estimates_means() const override { return true; }
  /// Their rounding is far below what particles leave.
  [[nodiscard]] bool entries_in_single_precision() const override { return true; }

 private:
  [[nodiscard]] std::unique_ptr<WidthMatrix> make_matrix(ir::SourceId source) override;
  [[nodiscard]] std::vector<Apart> choose_apart() const;

  std::vector<Apart> apart_sides_;  ///< per source
};

/// One network, on one rank.  Its vectors are the same whatever its matrices are kept as.
class Network : public Realisation {
 public:
  [[nodiscard]] Block draw(ir::NodeId normal) override;
  [[nodiscard]] std::vector<std::int64_t> sampled_rows(std::int64_t count) const override;
  [[nodiscard]] bool estimates_means() const override { return false; }
  [[nodiscard]] bool entries_in_single_precision() const override {
    return settings_.single_precision;
  }

 protected:
  Network(const ir::Program& program, const ProbabilitySpaces& spaces, const RunSettings& settings,
          const Executor& executor);
};

class RevealedNetwork final : public Network {
 public:
  RevealedNetwork(const ir::Program& program, const ProbabilitySpaces& spaces,
                  const RunSettings& settings, const Executor& executor);

 private:
  [[nodiscard]] std::unique_ptr<WidthMatrix> make_matrix(ir::SourceId source) override;
};

class StoredNetwork final : public Network {
 public:
  StoredNetwork(const ir::Program& program, const ProbabilitySpaces& spaces,
                const RunSettings& settings, const Executor& executor);

 private:
  [[nodiscard]] std::unique_ptr<WidthMatrix> make_matrix(ir::SourceId source) override;
};

/// The realisation that the settings name.  All arguments must outlive it.
[[nodiscard]] std::unique_ptr<Realisation> make_realisation(const ir::Program& program,
                                                            const ProbabilitySpaces& spaces,
                                                            const RunSettings& settings,
                                                            const Executor& executor);

}  // namespace tplimit::engines
