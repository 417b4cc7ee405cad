#include "lsp/analysis.hpp"

#include <utility>

#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

using std::chrono::milliseconds;

/// As lowering counts: about 20,000 instructions, which take some 50 ms.
constexpr double kMemory = 64e6;

template <class T>
bool ready(const std::shared_future<T>& future, milliseconds patience = milliseconds(0)) {
  return future.valid() && future.wait_for(patience) == std::future_status::ready;
}

/// What `what` will return, when `later` has run it.
template <class F>
auto promised(const Later& later, F what) {
  const auto task = std::make_shared<std::packaged_task<decltype(what())()>>(std::move(what));
  auto out = task->get_future().share();
  later([task] { (*task)(); });
  return out;
}

}  // namespace

Analysis::Reading::Reading(std::string name, std::string text, std::filesystem::path where)
    : folder(std::move(where)),
      source(with_imports(Source(std::move(name), std::move(text)), folder)),
      recovered(parse_recovered(source)),
      names(names_of(recovered.program, source)) {
  for (const Source::Part& part : source.parts()) positions.emplace_back(source.text(part));
}

Analysis::Analysis(std::string name, std::string text, std::filesystem::path folder, Later later)
    : reading_(
          std::make_shared<const Reading>(std::move(name), std::move(text), std::move(folder))),
      later_(std::move(later)) {}

Analysis::~Analysis() { *stop_ = true; }

const Positions& Analysis::positions(const Source::Part& part) const {
  return reading_->positions[static_cast<std::size_t>(&part - source().parts().data())];
}

Analysis::Checked Analysis::check(const Reading& reading, const std::atomic<bool>& stop) {
  std::vector<BoundName> names;
  LowerOptions options;
  options.base_directory = reading.folder;
  options.memory_bytes = kMemory;
  options.stop = &stop;
  options.names = &names;
  Checked out;
  Result<Module> module = parse(reading.source, options);
  out.diagnostics = module ? module->warnings : module.errors();
  if (module) out.module = std::move(*module);
  for (BoundName& bound : names) out.what.emplace(bound.name.begin, std::move(bound.what));
  return out;
}

void Analysis::begin() {
  if (checked_.valid() || !reading_->recovered.errors.empty()) return;
  checked_ =
      promised(later_, [reading = reading_, stop = stop_] { return check(*reading, *stop); });
  counted_ = promised(later_, [checked = checked_, stop = stop_]() -> std::optional<RegimeReport> {
    const std::optional<Module>& module = checked.get().module;
    if (*stop || !module || module->written->size() > kMostCounted) return std::nullopt;
    return regime(*module, false);
  });
}

bool Analysis::checked() const { return !reading_->recovered.errors.empty() || ready(checked_); }

bool Analysis::counted(milliseconds patience) const {
  return !reading_->recovered.errors.empty() || ready(counted_, patience);
}

const Analysis::Checked* Analysis::known() const {
  return ready(checked_) ? &checked_.get() : nullptr;
}

const Diagnostics& Analysis::diagnostics() const {
  const Checked* checked = known();
  return checked ? checked->diagnostics : reading_->recovered.errors;
}

std::string Analysis::what_is(std::size_t begin_of_name) const {
  const Checked* checked = known();
  if (!checked) return "";
  const auto it = checked->what.find(static_cast<std::uint32_t>(begin_of_name));
  return it == checked->what.end() ? "" : it->second;
}

const ir::Program* Analysis::written() const {
  const Checked* checked = known();
  return checked && checked->module ? checked->module->written.get() : nullptr;
}

const RegimeReport* Analysis::sizes() const {
  if (!ready(counted_)) return nullptr;
  const std::optional<RegimeReport>& sizes = counted_.get();
  return sizes ? &*sizes : nullptr;
}

}  // namespace tplimit::lsp
