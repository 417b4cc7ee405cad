#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/passes/determinacy.hpp"
#include "tplimit/support/refusal.hpp"

namespace tplimit {

/// Drops Stop, Parameter and Change nodes (derivatives have been taken) and everything no report or
/// expectation needs; the operands of what folds on the way (a Stop stood between two gathers) go
/// the next time. Keeps: every output at every width; names of what is left, or with `keep_names`
/// all values that have names.  Cost: O(nodes).
ir::Program erase_identities(const ir::Program& program, bool keep_names = false);

/// The same, with some nodes made anew from their new operands; what that leaves unused stays.
/// kAll: identities and what nothing needs are kept, too.
using Rewrite = std::function<std::optional<ir::NodeId>(ir::Builder&, const ir::Node&,
                                                        const std::vector<ir::NodeId>& in)>;
enum class Keep : std::uint8_t { kOutputs, kNames, kAll };
ir::Program rebuilt(const ir::Program& program, Keep keep, const Rewrite& rewrite);

/// The kernels of outputs are their limits, at every width.  Keeps: all else.  Cost: O(nodes).
ir::Program without_output_kernels(const ir::Program& program);

/// Sums and sides of comparisons in which equal terms cancel lose them, so that what is left leads;
/// so do whole numbers in mod(.., 1). Keeps: every output at every width, up to rounding.  Cost:
/// O(nodes).
ir::Program cancel_terms(const ir::Program& program);

/// The program at one width: powers of n become numbers.  Needs: erase_identities.  Cost: O(nodes).
ir::Program at_width(const ir::Program& program, double width);

/// How a report behaves as the width grows: n^order times a limit.
struct ReportOrder {
  std::string name;
  Span span;
  Exponent order;            ///< largest over the entries of the report that are not exactly zero
  bool proved_zero = false;  ///< every entry is exactly 0 in the limit
};

struct LeadingOrder {
  ir::Program program;  ///< the limit: no Scale with a power is left
  std::vector<ReportOrder> reports;
  bool random_outputs = false;  ///< conditional on numbers that graded_limit drew
  Diagnostics warnings;
  std::shared_ptr<const ir::Program>
      source{};  ///< what `decisions` are about; its reports are those of `program`
  std::vector<Decision> decisions{};  ///< jumps whose limits may lie on them: engines find out
  bool undecided = false;             ///< at one of them leading orders vanish
  bool undecided_moves = false;       ///< and coordinates are computed from it
  Diagnostics vanishing{};            ///< W5301: reports that vanish; warnings to come last
};

/// Why leading orders give no limit.
enum class NoLeadingOrder {
  kOther,
  kDroppedTerms,  ///< E3102: other limits follow more terms
  kJump,          ///< E3108: where it jumps, more terms do not help
};
using LeadingOrderResult = RefusableResult<LeadingOrder, NoLeadingOrder>;

/// Keep the operands of decisions through the clean-up of a limit program, as a last report; then
/// `limit` has them.
void hold_decisions(ir::Program& program, std::vector<Decision>& decisions);
void release_decisions(LeadingOrder& limit, const ir::Program& source,
                       std::vector<Decision> decisions);

/// The leading order of every value in powers of the width, DESIGN section 4 of docs/theory.md:
/// each value is n^e (Z + dropped terms), coordinates of Z of size 1.  Sums keep their largest
/// terms; every dropped term (smaller summands, fluctuations n^(-1/2) of averages, higher terms of
/// smooth maps with vanishing argument) is followed as an exponent.  An average of a value odd
/// under the sign flip of one Gaussian family is proved zero and becomes the constant 0.
/// Needs: erase_identities.  Keeps: the limit of every output.
/// Errors: E3101 an output explodes; E3102 a dropped term may still reach an output; E3103 the
/// argument of a map explodes; E3104 division by something that vanishes; E3105 not homogeneous in
/// its operands' orders; E3108 a jump at a value that coordinates have with positive probability,
/// up to dropped terms.  The reason is that of the first error. Cost: O(nodes).
LeadingOrderResult leading_order(const ir::Program& program, bool keep_names = false);
/// Which reports are refused with E3102 because fluctuations of averages reach them at size exactly
/// 1: their limits may be Gaussian.
std::vector<bool> fluctuating_reports(const ir::Program& program);

/// Which probability space each value lives in: two values share one if a coordinatewise map or an
/// average joins them. Distinct spaces are independent given the finite values, so their normals
/// may use the same quasi-random dimensions.
struct ProbabilitySpaces {
  static constexpr std::uint32_t kNone = 0xffffffff;
  std::vector<std::uint32_t> of_node;          ///< kNone for finite values and matrices
  std::vector<std::uint32_t> input_of_source;  ///< of matrix sources: the space it acts on
  std::vector<std::uint32_t> output_of_source;
  std::uint32_t count = 0;

  /// Quasi-random dimensions: a fresh standard normal column is identified by its place in the
  /// program, never by a running count.  first_dimension[node] is for StandardNormal and MatMul
  /// nodes; for UpdateMatrix nodes operand k has first_dimension[node] + operand_offset.  Columns
  /// of vectors that were applied before need none.
  struct Columns {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
  };
  std::vector<std::vector<Columns>> columns;  ///< per node, per drawing operand
  std::vector<std::uint64_t> dimensions;      ///< per space: how many normals at most
  /// Per matrix source and side (0: W x, 1: W' d): at most this many directions.
  std::vector<std::array<std::int64_t, 2>> directions;
};
ProbabilitySpaces probability_spaces(const ir::Program& program);

/// For every node the last node that uses it (itself if none).
std::vector<std::uint32_t> last_uses(const ir::Program& program);

/// The matrix source behind a matrix node.
ir::SourceId source_of(const ir::Program& program, ir::NodeId matrix);

}  // namespace tplimit
