#include "engines/width_matrix.hpp"

#include <unordered_map>

#include <fmt/format.h>

namespace tplimit::engines {

using Why = EvaluationStop::Why;

EvaluationStop not_finite() { return {"E4101", "a number is not finite", "", Why::kNotFinite}; }

EvaluationStop interrupted() { return {"E5206", "interrupted", "", Why::kInterrupted}; }

EvaluationStop on_another_rank() { return {"", "", "", Why::kOnAnotherRank}; }

EvaluationStop too_many_directions(std::int64_t directions, std::int64_t particles,
                                   std::string help) {
  return {"E4201",
          fmt::format("{} directions of one matrix are too many for {} particles", directions,
                      particles),
          std::move(help), Why::kTooManyDirections};
}

void save(Writer& out, const std::vector<MatrixVersion*>& versions) {
  constexpr std::uint64_t kNone = 0;
  std::unordered_map<const Slabs*, std::uint64_t> place;  // from 1, in the order of first use
  for (const MatrixVersion* w : versions) {
    out.value(w->scale);
    out.value(w->entries_scale);
    out.matrix(w->coefficients);
    if (!w->entries) {
      out.value(kNone);
      continue;
    }
    const auto [known, fresh] = place.emplace(w->entries.get(), place.size() + 1);
    out.value(known->second);
    if (fresh) save(out, *w->entries);
  }
}

void load(Reader& in, const std::vector<MatrixVersion*>& versions) {
  std::vector<std::shared_ptr<Slabs>> entries;
  for (MatrixVersion* w : versions) {
    w->scale = in.value<double>();
    w->entries_scale = in.value<double>();
    w->coefficients = in.matrix();
    const auto place = in.value<std::uint64_t>();
    if (place == 0) continue;
    if (place > entries.size()) entries.push_back(load_entries(in));
    w->entries = entries.at(place - 1);
  }
}

}  // namespace tplimit::engines
