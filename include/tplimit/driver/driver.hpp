#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <iosfwd>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tplimit/driver/checkpoint.hpp"
#include "tplimit/explain/writing.hpp"
#include "tplimit/lower/lower.hpp"
#include "tplimit/parallel/communicator.hpp"
#include "tplimit/passes/ablations.hpp"
#include "tplimit/passes/graded.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/passes/regime.hpp"
#include "tplimit/report/comparison.hpp"
#include "tplimit/report/coordinates.hpp"
#include "tplimit/report/depth.hpp"
#include "tplimit/report/program_info.hpp"
#include "tplimit/report/results.hpp"

/// tplimit as a library: parse, evaluate, simulate.  Nothing here prints, exits or reads the
/// environment.
namespace tplimit {

/// A checked program, ready to be evaluated any number of times.
struct Module {
  Source source;
  std::string sha256;                                          ///< of the text
  std::vector<std::pair<std::string, std::string>> constants;  ///< what --set changed
  ir::Program program;                                         ///< at any width, dead code removed
  std::shared_ptr<const ir::Program>
      written;  ///< as lowered, with all that the text names: for counting
  Diagnostics warnings;
  Ablations ablations;  ///< what was changed in it
  /// `written` with kernels of outputs marked; null: there are none, or the program was changed.
  std::shared_ptr<const ir::Program> marked{};
  std::optional<Depth> depth{};
  /// `width n, m`, the ratio of m to n left open: 1 in `program`.  The same with other ratios.
  std::vector<FreeWidth> free_widths{};
  std::shared_ptr<const ir::Program> other_ratios{};
};

/// A pass that has just ended, with the program that it made (null: none).
struct StageSeen {
  std::string_view name;
  const ir::Program* program;
  double seconds;
};
/// Called after each pass of the pipeline, in order.
using Observer = std::function<void(const StageSeen&)>;

/// The text with those of the files that it imports, and that they import, behind it.  Paths are
/// relative to the file that imports, those of the program to `folder`.  A file that cannot be read
/// is left out, which `parse` reports (E1035).
Source with_imports(Source source, const std::filesystem::path& folder);
/// Reads and checks a program, `with_imports` if it has any: syntax, names, shapes, data files.
/// `options.base_directory` is where data paths start; `options.stop` ends it with E5207.
Result<Module> parse(Source source, const LowerOptions& options = {},
                     const Ablations& ablations = {}, const Observer& observer = {});
/// The text of a program; E5001 if the file cannot be read.
Result<Source> read_source(const std::filesystem::path& file);
/// The same of an open stream, which errors call `name`.
Result<Source> read_source(std::istream& in, std::string name);
/// Both in one call.  The base directory is the file's.
Result<Module> parse_file(const std::filesystem::path& file, LowerOptions options = {});

/// Equal for equal texts and equal data: ranks must have read the same.
std::string fingerprint(const Module& module);

/// Called with the fraction of the work done, from the calling thread or a worker, never
/// concurrently.
using Progress = std::function<void(double)>;

/// How strong a method a report must get.
enum class Engine {
  kAuto,       ///< the strongest that applies, report by report
  kExact,      ///< exact algebra only; else E4301
  kMoments,    ///< exact algebra, closed forms or quadrature; else E4301
  kParticles,  ///< particles for everything random
};

/// How n x n matrices are kept.
enum class Matrices {
  kAuto,   ///< what costs least; what is stored must fit
  kDense,  ///< all entries in memory
  kLazy,   ///< revealed product by product; of the limit, E4201 where that takes more than half as
           ///< many directions as there are particles
};

inline constexpr std::int64_t kDefaultParticles = 16384;
/// Where entrywise optimisers make matrices of all pairs of particles.
inline constexpr std::int64_t kDefaultParticlesOfEntries = 2048;

struct EvaluateOptions {
  Engine engine = Engine::kAuto;
  std::optional<std::int64_t> particles{};  ///< unset: 16384, or where a tolerance is given as many
                                            ///< as it needs, from 2048 on
  int randomisations = 8;
  std::optional<double> tolerance;          ///< more particles and directions until every error, of
                                            ///< sampling and truncation together, is below this
  std::vector<std::string> tolerance_on{};  ///< names of the reports that the tolerance is for;
                                            ///< empty: all.  E2701 if there is none of that name
  std::uint64_t seed = 0;
  std::uint64_t draw = 0;                       ///< which draw of random outputs
  std::optional<GradedOptions::Given> given{};  ///< a random output with this value instead
  int threads = 0;                              ///< 0: all cores
  Matrices matrices = Matrices::kAuto;          ///< in the limit
  std::optional<double> rank_tol{};  ///< directions shorter than this times their vector are
                                     ///< dropped; unset: 1e-6, or what the tolerance allows
  bool single_precision =
      false;  ///< bases and normals in single precision: half the memory, errors of about 1e-6
  double merge_rows = 1e-12;  ///< without sampling: rows of a sum over f(row) closer in direction
                              ///< than this become one
  double memory_bytes =
      0;  ///< of each rank: refuse to use more; 0: 80 % of its share of the machine's memory
  const Communicator* ranks = &single_process();  ///< over which particles are spread; all call
                                                  ///< with the same module and options
  Checkpoint* checkpoint = nullptr;               ///< keeps what has been done
  const std::atomic<bool>* stop = nullptr;  ///< true: ends soon with E5207, or with a checkpoint,
                                            ///< once that is written, E5206; of one process only
  Progress progress;
  Observer observe;
};

/// The infinite-width limit: each report by exact algebra, closed forms or quadrature where these
/// apply, else by particles.
///
/// By particles, every number is computed from averages pooled over `randomisations` independent
/// runs; its error is one standard error by jackknife over them.  Where directions were dropped
/// (rank_tol above 1e-5), the same randomisations are repeated with three times the rank_tol, and
/// half of the difference is added in squares.  So is what the runs cannot show: rare events, heavy
/// tails, rounding.  Reproducible: the same seed gives the same bits for any number of threads, and
/// on every rank; another number of ranks gives the same up to rounding, powers of two that divide
/// the particles into equal chunks the same bits. Errors: E3.. where the limit does not exist or is
/// not carried by this engine; E4101 a number is not finite; E4102 a mean is infinite or not
/// resolved; E4201 too few particles; E4202 not enough memory; E4301 the asked engine cannot do a
/// report. Cost: O(randomisations * instructions * particles * rank).
Result<LimitResult> evaluate(const Module& module, const EvaluateOptions& options = {});

/// How `evaluate` would find each report, in order.  Evaluates what needs no sampling.
Result<std::vector<ReportMethod>> methods(const Module& module,
                                          const EvaluateOptions& options = {});

struct SimulateOptions {
  std::int64_t width = 0;
  int seeds = 1;
  std::uint64_t seed = 0;
  int threads = 0;
  Matrices matrices =
      Matrices::kAuto;  ///< lazy: exact in law, O(width rank) memory; dense: O(width^2)
  bool single_precision =
      false;  ///< dense matrices of float: half the memory and time; docs/decisions/0009
  double memory_bytes = 0;
  const Communicator* ranks = &single_process();  ///< over which networks are spread
  Checkpoint* checkpoint = nullptr;
  const std::atomic<bool>* stop = nullptr;
  Progress progress;
  Observer observe;
};

/// Finite networks of one width.  Errors: E4101, E4202.
Result<SimulationResult> simulate(const Module& module, const SimulateOptions& options);
/// Of several widths, instead of `options.width`: one result for each.  Ranks wait for each other
/// only at the end.
Result<std::vector<SimulationResult>> simulate(const Module& module, const SimulateOptions& options,
                                               const std::vector<std::int64_t>& widths);

/// Evaluations of draws 0, 1, .. of what is random in the limit; one where nothing is.  `drawn(k)`:
/// the module of draw k, which differ in random scalars.  Errors: those of evaluate.
Result<std::vector<LimitResult>> evaluate_draws(
    const std::function<Result<Module>(std::uint64_t draw)>& drawn, EvaluateOptions options,
    int draws);

struct CompareOptions {
  EvaluateOptions evaluate;
  SimulateOptions simulate{.seeds = 8};  ///< `width` is ignored
  std::vector<std::int64_t> widths;
  int draws = 64;                      ///< of random outputs, over which the limit is averaged
  std::optional<LimitResult> limit{};  ///< known already
  std::optional<std::vector<SimulationResult>> networks{};  ///< instead of own ones
};
/// The limit, networks, and whether they belong together.  Errors: those of evaluate and simulate.
Result<Comparison> compare(const Module& module, const CompareOptions& options);
/// The rough part of the limit in the work of `compare`, for bars.
double share_of_limit(const CompareOptions& options);

/// Widths where none are named: `about` these, up to what the ratios of several widths need.
std::vector<std::int64_t> usual_widths(const Module& module,
                                       std::vector<std::int64_t> about = {128, 512, 2048});

/// `CompareOptions::limit` from the JSON of `run --out` (docs/json.md), or why it cannot stand for
/// the limit that `compare` would find with these options.
std::variant<LimitResult, std::string> known_limit(const std::string& json, const Module& module,
                                                   const CompareOptions& options);

/// What results are written with.
ProgramInfo program_info(const Module& module, const EvaluateOptions& options = {});

/// The module whose networks report what `evaluate` does: where the limit of a report f is
/// Gaussian, (f - mean) (f - mean)' instead of f; its average over networks tends to the
/// covariance.  Reports that are linear in kernels nngp(f, X) likewise, with f(X) f(X)' for the
/// kernel; what is not linear in them keeps the kernel's formula at finite width.
Module comparable(Module module);
/// The module whose networks are conditional on the given value of a random output f = J r + f_0, r
/// ~ N(0, 1): with r + J' (J J')^+ (g - f) for r, which at every width is exactly the law of r
/// given f = g, for J and f_0 do not depend on r.  Errors: E3107 if the value is not of this form.
Result<Module> conditioned(Module module, const GradedOptions::Given& given);

/// Exponents of the reports and what would be refused, without computing numbers.
Result<LeadingOrder> check(const Module& module, const Observer& observer = {});

/// Sizes of all values in powers of n, and the regime that follows; `every_share`: see
/// count_powers.
RegimeReport regime(const Module& module, bool every_share = true);

/// Sizes of all named values over the first `steps` steps: of networks of these widths, as counted,
/// and in the limit, where values stay bounded and have one.  Steps after which networks are no
/// longer finite are left out.  Errors: E4202; E4101 where not even the start is finite.
Result<CoordinateCheck> coordinate_check(const Module& module, int steps,
                                         const std::vector<std::int64_t>& widths,
                                         const SimulateOptions& networks,
                                         const EvaluateOptions& limit = {});

/// Sizes of all named values, of the updates of layers and of the shares of parameters in outputs,
/// over the first `steps` steps and at several depths, in the limit of infinite width; and the
/// powers of the depth that they follow.  `modules`: one text at rising depths (places are offsets
/// in it), three or more. What has no limit at some depth is left without a power.
DepthCheck depth_check(const std::vector<Module>& modules, int steps,
                       const EvaluateOptions& options = {});

/// The limit of a program, value by value, as formulas.
struct LimitFormulas {
  explain::Formulas formulas;
  ir::Program limit;
  bool random_outputs = false;  ///< conditional on random outputs drawn from the seed
};
/// Errors: those of `evaluate` where there is no limit.
Result<LimitFormulas> limit_formulas(const Module& module, const EvaluateOptions& options = {});
/// Reports of the program computed by its formulas alone, then one for each wanted formula;
/// `possible` (if given) says of which. Errors and cost: those of `evaluate`; coefficients cost
/// O(particles P P') for blocks of P and P' vectors.
Result<LimitResult> evaluate_formulas(LimitFormulas& formulas,
                                      const std::vector<explain::Expr>& wanted,
                                      const EvaluateOptions& options = {},
                                      std::vector<bool>* possible = nullptr);
/// The same for the wanted formulas only.
Result<std::vector<explain::Number>> numbers_of(LimitFormulas& formulas,
                                                const std::vector<explain::Expr>& wanted,
                                                const EvaluateOptions& options = {});

}  // namespace tplimit
