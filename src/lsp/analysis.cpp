#include "lsp/analysis.hpp"

#include "tplimit/lower/language.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit::lsp {
namespace {

/// As lowering counts: about 20,000 instructions, which take some 50 ms.
constexpr double kMemory = 64e6;

LowerOptions options_in(const std::filesystem::path& folder) {
  LowerOptions out;
  out.base_directory = folder;
  out.memory_bytes = kMemory;
  return out;
}

}  // namespace

Analysis::Analysis(std::string name, std::string text, std::filesystem::path folder)
    : folder_(std::move(folder)),
      source_(with_imports(Source(std::move(name), std::move(text)), folder_)),
      recovered_(parse_recovered(source_)),
      names_(names_of(recovered_.program, source_)) {
  for (const Source::Part& part : source_.parts()) positions_.emplace_back(source_.text(part));
}

const Positions& Analysis::positions(const Source::Part& part) const {
  return positions_[static_cast<std::size_t>(&part - source_.parts().data())];
}

void Analysis::lower() {
  if (diagnostics_) return;
  if (!recovered_.errors.empty()) {
    diagnostics_ = recovered_.errors;
    return;
  }
  Result<Module> module = parse(source_, options_in(folder_));
  diagnostics_ = module ? module->warnings : module.errors();
  if (module) module_ = std::move(*module);
}

const Diagnostics& Analysis::diagnostics() {
  lower();
  return *diagnostics_;
}

std::string Analysis::what_is(std::size_t begin_of_name) {
  if (!what_) {
    what_.emplace();
    if (recovered_.errors.empty())
      for (BoundName& bound : bound_names(recovered_.program, source_, options_in(folder_)))
        what_->emplace(bound.name.begin, std::move(bound.what));
  }
  const auto it = what_->find(static_cast<std::uint32_t>(begin_of_name));
  return it == what_->end() ? "" : it->second;
}

const ir::Program* Analysis::written() {
  lower();
  return module_ ? module_->written.get() : nullptr;
}

const RegimeReport* Analysis::sizes() {
  const ir::Program* program = written();
  if (!program || program->size() > kMostCounted) return nullptr;
  if (!sizes_) sizes_ = regime(*module_, false);
  return &*sizes_;
}

}  // namespace tplimit::lsp
