#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tplimit/ir/program.hpp"
#include "tplimit/passes/passes.hpp"

namespace tplimit::engines {

/// What a run does, step by step, decided before it: which row-by-row operations share a sweep over
/// the rows, where each result lives, and what each step frees.  Running is executing it, and the
/// price of a run is a fold over it.  Constants are there before the first step.
struct Plan {
  /// Where a sweep reads or writes a value.
  struct Place {
    enum class Where {
      kFinite,   ///< a block of one row
      kBlock,    ///< a block of all rows, kept for later steps
      kScratch,  ///< memory of one chunk of rows: nobody outside the sweep needs the value
      kSum,      ///< an average: partial sums of the chunks
      kEntries,  ///< an array of entries, kept for later steps
      kVersion,  ///< a matrix
    };
    Where where = Where::kBlock;
    std::int64_t columns = 0;
    std::int64_t offset = 0;  ///< of its first column in the scratch memory, or in the sums
  };
  /// Row-by-row operations and averages, chunk by chunk in one sweep over the rows.
  struct Sweep {
    struct Operation {
      ir::NodeId node;
      std::vector<const ir::Type*> types;  ///< of the operands
      std::vector<Place> in;
      Place out;
    };
    std::vector<Operation> operations;
    std::int64_t scratch_columns = 0;
    std::int64_t sums = 0;
    [[nodiscard]] std::vector<ir::NodeId> nodes() const;
  };
  /// Operations on matrices of entries, and their addition to matrices, piece by piece in one sweep
  /// over the entries.  A scratch column holds one number for each entry of a piece; what lives in
  /// an array has one, too, so that arrays are read before anything is written.
  struct EntrySweep {
    std::vector<Sweep::Operation> operations;
    struct Array {
      ir::NodeId node;
      std::int64_t column;
    };
    std::vector<Array> loads, stores;
    std::int64_t scratch_columns = 0;
  };
  /// Standard normals.
  struct Draw {
    ir::NodeId node;
  };
  /// W as it was drawn.
  struct Initialise {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// W x or W' x.
  struct Product {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// c W.
  struct Rescale {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// W + sum_k c_k D_k X_k' / n.
  struct Update {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// W + c B.
  struct Combine {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// The entries of W, as an array of its own.
  struct CopyEntries {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  /// The sum of the products of all entries of two matrices, / n.
  struct InnerProduct {
    ir::NodeId node;
    ir::SourceId matrix;
  };
  struct TakeSamples {
    ir::NodeId node;
  };
  /// A value without coordinates, from others.
  struct FiniteStep {
    ir::NodeId node;
  };
  using Action = std::variant<Sweep, EntrySweep, Draw, Initialise, Product, Rescale, Update,
                              Combine, CopyEntries, InnerProduct, TakeSamples, FiniteStep>;

  struct Step {
    Action action;
    /// Blocks of all rows, arrays of entries and versions of matrices that no later step reads,
    /// each once.
    std::vector<ir::NodeId> frees;
    /// Set where the run can be saved before the step: the nodes before this one have been
    /// evaluated, and no other.
    std::optional<ir::NodeId> next;

    [[nodiscard]] bool frees_node(ir::NodeId id) const;
    /// The last node that the step evaluates.
    [[nodiscard]] ir::NodeId last() const;
    /// For each operation of a sweep, of rows or of entries.
    [[nodiscard]] const std::vector<Sweep::Operation>* operations() const;
  };
  std::vector<Step> steps;
};

/// What does not change from run to run: the program, which nodes are wanted, and the plan.
struct Schedule {
  const ir::Program* program = nullptr;
  std::vector<ir::NodeId> wanted;       ///< finite nodes whose values are returned
  std::vector<bool> needed;             ///< nodes to evaluate: ancestors of wanted
  std::vector<std::uint32_t> last_use;  ///< among needed nodes; wanted ones are kept anyway
  std::vector<bool> heavy;              ///< values that may have heavy tails
  std::vector<bool> multiplied;         ///< by a matrix
  ProbabilitySpaces spaces;
  Plan plan;
};
/// `program` must outlive the schedule.  Cost: O(nodes).
Schedule make_schedule(const ir::Program& program, std::vector<ir::NodeId> wanted);

/// The same values with one operation per sweep and every result in a block, so that each can be
/// looked at.
[[nodiscard]] Plan one_by_one(const Schedule& schedule);

/// One line per step, and one per operation of a sweep.
[[nodiscard]] std::string to_text(const Plan& plan, const ir::Program& program);

}  // namespace tplimit::engines
