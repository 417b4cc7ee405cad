#include "tplimit/driver/checkpoint.hpp"

#include "driver/run_store.hpp"
#include "tplimit/report/json.hpp"

namespace tplimit {

Checkpoint::Checkpoint(std::unique_ptr<RunStore> runs) : runs_(std::move(runs)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Result<Checkpoint> Checkpoint::open(CheckpointOptions options) {
  auto runs = RunStore::open({std::move(options.folder), options.interval_s, version(),
                              std::move(options.identity), std::move(options.warn), options.ranks});
  if (!runs) return runs.errors();
  return Checkpoint(std::move(*runs));
}

Checkpoint::Found Checkpoint::found() const {
  const auto [finished, in_progress] = runs_->found();
  return {finished, in_progress};
}

bool Checkpoint::flush() { return runs_->flush(); }
void Checkpoint::remove() { runs_->remove(); }

void Checkpoint::close(const Diagnostics& errors) {
  if (any_of(errors, {"E5206", "E4202"}))
    (void)flush();
  else
    remove();
}

}  // namespace tplimit
