#pragma once

#include <functional>

#include "engines/state_file.hpp"

namespace tplimit::engines {

/// Keeps the state of one run for a later process.
class RunState {
 public:
  enum class Request { kGoOn, kSave, kSaveAndStop };

  virtual ~RunState() = default;
  /// Calls `load` if an earlier process left a state.
  virtual void resume(const std::function<void(Reader&)>& load) = 0;
  /// Asked wherever the run could be saved, often.
  virtual Request request() = 0;
  virtual void save(const std::function<void(Writer&)>& write) = 0;
};

}  // namespace tplimit::engines
