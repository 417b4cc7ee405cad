#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tplimit/report/convergence.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/extrapolation.hpp"
#include "tplimit/support/exponent.hpp"

/// Powers of the depth, measured in the limit of infinite width at several depths, and what they
/// say in the sense of Tensor Programs VI (docs/theory.md, "Powers of the depth").
namespace tplimit {

/// What the size is of.  Sizes are root mean squares over coordinates, samples and layers.
enum class DepthQuantity {
  kValue,   ///< x at the start
  kChange,  ///< x - x at the start
  kUpdate,  ///< (W - W at the start) x, where W x stands
  kShare,  ///< the part of the change of an output that the updates of one parameter are needed for
  kBlock,  ///< at the start, the step of a residual stream from layer to layer over its size
  kAlong,  ///< at the start, the difference between the last and the first layer of a stream
};

enum class DepthGrowth { kZero, kVanishes, kBounded, kGrows, kUndetermined };

struct DepthSize {
  std::string name;
  std::string subject;  ///< the parameter of kShare and kUpdate, the stream of kBlock and kAlong
  DepthQuantity what = DepthQuantity::kValue;
  bool output = false;  ///< of a prediction
  int step = 0;
  std::vector<std::optional<Estimate>> sizes{};  ///< by depth; empty where there is no limit
  std::optional<LimitingPower> power{};          ///< where sizes are positive at all depths

  /// The multiple of 1/4 next to the power, if the errors leave no other: it is within two errors
  /// and 0.02, and these are less than half of 1/4.
  [[nodiscard]] std::optional<Exponent> simple() const;
  /// By that power; where there is none, by its sign if these leave nothing between -1/8 and 1/8.
  [[nodiscard]] DepthGrowth growth() const;
};

struct DepthCheck {
  std::string depth;  ///< its name
  std::vector<std::int64_t> depths;
  int steps = 0;
  std::vector<DepthSize> sizes;
  std::string missing;  ///< why some sizes are not there; empty: all are
};

struct DepthVerdict {
  enum class Answer { kNo, kYes, kOpen };
  Answer stable = Answer::kOpen;       ///< no value, change or share grows with the depth
  std::optional<Answer> nontrivial{};  ///< outputs change by order 1; none: nothing is trained
  std::optional<Answer>
      faithful{};  ///< what layers compute stays of order 1; none: no layer is updated
  std::optional<Answer> diverse{};  ///< streams differ from layer to layer; none: there are none
  std::vector<std::string> advice;
};
DepthVerdict verdict(const DepthCheck& check);

/// "yes", "no", "undetermined"
[[nodiscard]] const char* to_string(DepthVerdict::Answer answer);
[[nodiscard]] const char* to_string(DepthGrowth growth);  ///< "zero", "grows", ..

document::Document document_of(const DepthCheck& check);

}  // namespace tplimit
