#include "lsp/names.hpp"

#include <algorithm>
#include <cctype>
#include <unordered_map>
#include <utility>

#include "tplimit/support/overloaded.hpp"

namespace tplimit::lsp {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

class Walk {
 public:
  Walk(const Source& source, Names& out) : source_(source), out_(out) {}

  void run(const ast::Program& program) {
    for (const ast::Stmt& stmt : program.statements) declare(stmt);
    body(program.statements);
    // A file that is imported twice, under two names, is one text: its places count once.
    std::ranges::stable_sort(out_.occurrences, {},
                             [](const Occurrence& o) { return std::pair(o.name.begin, !o.binds); });
    const auto again =
        std::ranges::unique(out_.occurrences, {}, [](const Occurrence& o) { return o.name.begin; });
    out_.occurrences.erase(again.begin(), again.end());
  }

 private:
  using Table = std::unordered_map<std::string, std::size_t>;
  struct Scope {
    std::size_t function;
    Table bound;  ///< so far in the text
    Table all;    ///< anywhere in it
  };

  // ---- declarations

  std::size_t symbol(SymbolKind kind, const ast::Identifier& name, Span statement,
                     std::optional<std::size_t> function = {}) {
    const auto [it, fresh] = by_place_.try_emplace(name.span.begin, out_.symbols.size());
    if (fresh) {
      const std::size_t dot = name.name.rfind('.') + 1;  // npos + 1 is 0
      out_.symbols.push_back({kind, name.name.substr(dot), name.name.substr(0, dot), name.span,
                              statement, function, nullptr});
      last_.push_back(name.span);
    }
    return it->second;
  }

  void declare_global(SymbolKind kind, const ast::Identifier& name, Span statement) {
    if (name.name.empty() || globals_.contains(name.name)) return;
    globals_[name.name] = symbol(kind, name, statement);
  }

  /// What a statement at top level declares, also within loops and choices.
  void declare(const ast::Stmt& stmt) {
    const auto all = [&](const std::vector<ast::Stmt>& statements) {
      for (const ast::Stmt& inner : statements) declare(inner);
    };
    std::visit(overloaded{[&](const ast::Width& s) {
                            for (const auto& item : s.items)
                              declare_global(SymbolKind::kWidth, item.name, stmt.span);
                          },
                          [&](const ast::Const& s) {
                            declare_global(SymbolKind::kConst, s.name, stmt.span);
                          },
                          [&](const ast::Data& s) {
                            for (const auto& name : s.names)
                              declare_global(SymbolKind::kData, name, stmt.span);
                          },
                          [&](const ast::Param& s) {
                            declare_global(s.trained ? SymbolKind::kParam : SymbolKind::kRandom,
                                           s.name, stmt.span);
                          },
                          [&](const ast::Assign& s) {
                            for (const auto& name : s.targets)
                              declare_global(SymbolKind::kValue, name, stmt.span);
                          },
                          [&](const ast::For& s) {
                            declare_global(SymbolKind::kLoop, s.variable, stmt.span);
                            all(s.body);
                          },
                          [&](const ast::If& s) {
                            for (const auto& branch : s.branches) all(branch.body);
                          },
                          [&](const ast::Function& s) { declare_function(s, stmt.span); },
                          [&](const ast::Import& s) { all(s.statements); }, [](const auto&) {}},
               stmt.node);
  }

  void declare_function(const ast::Function& f, Span statement) {
    const bool model = source_.text(statement).starts_with("model");
    declare_global(model ? SymbolKind::kModel : SymbolKind::kFunction, f.name, statement);
    const auto it = by_place_.find(f.name.span.begin);
    if (it == by_place_.end()) return;
    out_.symbols[it->second].text = &f;
    Table& arguments = arguments_[it->second];
    for (const ast::Argument& argument : f.params)
      arguments.try_emplace(argument.name.name, symbol(SymbolKind::kArgument, argument.name,
                                                       argument.name.span, it->second));
  }

  /// Names that statements inside a function bind.
  void declare_local(const std::vector<ast::Stmt>& statements, Scope& scope) {
    const auto add = [&](SymbolKind kind, const ast::Identifier& name, Span statement) {
      if (!name.name.empty() && !scope.all.contains(name.name))
        scope.all[name.name] = symbol(kind, name, statement, scope.function);
    };
    for (const ast::Stmt& stmt : statements)
      std::visit(overloaded{[&](const ast::Assign& s) {
                              for (const auto& name : s.targets)
                                add(SymbolKind::kValue, name, stmt.span);
                            },
                            [&](const ast::For& s) {
                              add(SymbolKind::kLoop, s.variable, stmt.span);
                              declare_local(s.body, scope);
                            },
                            [&](const ast::If& s) {
                              for (const auto& branch : s.branches)
                                declare_local(branch.body, scope);
                            },
                            [](const auto&) {}},
                 stmt.node);
  }

  // ---- occurrences

  void add(std::size_t symbol, Span whole, bool binds) {
    if (binds) last_[symbol] = whole;
    const auto length = static_cast<std::uint32_t>(out_.symbols[symbol].name.size());
    if (whole.end - whole.begin < length) return;
    out_.occurrences.push_back(
        {whole, {whole.end - length, whole.end}, symbol, binds, last_[symbol]});
  }

  [[nodiscard]] std::size_t global(const std::string& name) const {
    if (!space_.empty())
      if (const auto it = globals_.find(space_ + name); it != globals_.end()) return it->second;
    const auto it = globals_.find(name);
    return it == globals_.end() ? kNone : it->second;
  }

  [[nodiscard]] std::size_t resolve(const std::string& name) const {
    if (scope_) {
      if (const auto it = scope_->bound.find(name); it != scope_->bound.end()) return it->second;
      if (const std::size_t found = global(name); found != kNone) return found;
      const auto it = scope_->all.find(name);  // bound further down, in an earlier iteration
      return it == scope_->all.end() ? kNone : it->second;
    }
    return global(name);
  }

  void refer(const std::string& name, Span span) {
    if (const std::size_t found = resolve(name); found != kNone) add(found, span, false);
  }

  void bind(const ast::Identifier& name) {
    std::size_t found = kNone;
    if (scope_) {
      const auto it = scope_->all.find(name.name);
      if (it != scope_->all.end()) found = scope_->bound[name.name] = it->second;
    } else if (const auto it = globals_.find(name.name); it != globals_.end()) {
      found = it->second;  // of imported files: with their name in front
    }
    if (found != kNone) add(found, name.span, true);
  }

  /// Of a name, without the brackets and signs that its expression may have around it.
  [[nodiscard]] Span bare(const std::string& name, Span span) const {
    const std::string_view text = source_.text();
    std::size_t at = span.begin;
    for (; at < span.end; ++at) {
      const auto c = static_cast<unsigned char>(text[at]);
      if (c == '#')
        at = std::min<std::size_t>(text.find('\n', at), span.end);
      else if (std::isalnum(c) || c == '_')
        break;
    }
    if (text.substr(at, name.size()) != name) return {span.begin, span.begin};
    return {static_cast<std::uint32_t>(at), static_cast<std::uint32_t>(at + name.size())};
  }

  // ---- expressions

  void walk(const ast::ExprPtr& e) {
    if (e) walk(*e);
  }
  void walk(const std::vector<ast::ExprPtr>& all) {
    for (const auto& e : all) walk(e);
  }
  void walk(const ast::Expr& e) {
    std::visit(
        overloaded{[](const ast::Number&) {}, [](const ast::String&) {}, [](const ast::Boolean&) {},
                   [&](const ast::Name& x) { refer(x.name, bare(x.name, e.span)); },
                   [&](const ast::Negate& x) { walk(x.operand); },
                   [&](const ast::Transpose& x) { walk(x.operand); },
                   [&](const ast::Binary& x) {
                     walk(x.left);
                     walk(x.right);
                   },
                   [&](const ast::Range& x) {
                     walk(x.begin);
                     walk(x.end);
                     walk(x.step);
                   },
                   [&](const ast::Index& x) {
                     walk(x.base);
                     walk(x.items);
                   },
                   [&](const ast::Call& x) { call(x); }, [&](const ast::List& x) { walk(x.items); },
                   [&](const ast::Tuple& x) { walk(x.items); },
                   [&](const ast::Map& x) {
                     for (const auto& entry : x.entries) {
                       walk(entry.key);
                       walk(entry.value);
                     }
                   }},
        e.node);
  }

  void call(const ast::Call& call) {
    const std::size_t callee = resolve(call.callee.name);
    if (callee != kNone) add(callee, call.callee.span, false);
    walk(call.args);
    const auto arguments = arguments_.find(callee);
    for (const ast::NamedArgument& named : call.named) {
      if (arguments != arguments_.end())
        if (const auto it = arguments->second.find(named.name.name); it != arguments->second.end())
          add(it->second, named.name.span, false);
      walk(named.value);
    }
  }

  /// The arguments of a call whose callee is a word of the language: a law, a reader, an optimiser.
  void inside(const ast::ExprPtr& e) {
    const auto* call = e ? std::get_if<ast::Call>(&e->node) : nullptr;
    if (!call) return;
    walk(call->args);
    for (const ast::NamedArgument& named : call->named) {
      if (!named.value) continue;
      if (named.name.name == "average")
        inside(named.value);
      else if (named.name.name == "groups")
        groups(*named.value);
      else
        walk(named.value);
    }
  }

  /// {W: {lr: a}}: the inner keys are options.
  void groups(const ast::Expr& e) {
    const auto* map = std::get_if<ast::Map>(&e.node);
    if (!map) return walk(e);
    for (const auto& entry : map->entries) {
      walk(entry.key);
      const auto* options = entry.value ? std::get_if<ast::Map>(&entry.value->node) : nullptr;
      if (!options)
        walk(entry.value);
      else
        for (const auto& option : options->entries) walk(option.value);
    }
  }

  // ---- statements

  void body(const std::vector<ast::Stmt>& statements) {
    for (const ast::Stmt& stmt : statements)
      std::visit([&](const auto& s) { on(s, stmt.span); }, stmt.node);
  }
  void on(const ast::Width& s, Span) {
    for (const auto& item : s.items) {
      walk(item.value);
      if (const auto it = globals_.find(item.name.name); it != globals_.end())
        add(it->second, item.name.span, space_.empty());  // imported files repeat it
    }
  }
  void on(const ast::Const& s, Span) {
    walk(s.value);
    bind(s.name);
  }
  void on(const ast::Data& s, Span) {
    if (s.value && std::holds_alternative<ast::Call>(s.value->node) &&
        resolve(std::get<ast::Call>(s.value->node).callee.name) == kNone)
      inside(s.value);
    else
      walk(s.value);
    for (const auto& name : s.names) bind(name);
  }
  void on(const ast::Param& s, Span) {
    walk(s.axes);
    inside(s.law);
    for (const auto& option : s.options) walk(option.value);
    bind(s.name);
  }
  void on(const ast::Assign& s, Span) {
    walk(s.values);
    for (std::size_t k = 0; k < s.targets.size(); ++k) {
      bind(s.targets[k]);
      if (!s.values.empty())
        if (const auto& value = s.values[std::min(k, s.values.size() - 1)])
          out_.values[s.targets[k].span.begin] = value->span;
    }
  }
  void on(const ast::Function& s, Span) {
    const auto it = by_place_.find(s.name.span.begin);
    if (it == by_place_.end()) return;
    add(it->second, s.name.span, true);
    Scope scope{it->second, {}, arguments_[it->second]};
    declare_local(s.body, scope);
    Scope* const outer = std::exchange(scope_, &scope);
    std::string outer_space = std::exchange(space_, s.space);
    for (const ast::Argument& argument : s.params) {
      walk(argument.otherwise);
      bind(argument.name);
    }
    body(s.body);
    scope_ = outer;
    space_ = std::move(outer_space);
  }
  void on(const ast::Return& s, Span) { walk(s.values); }
  void on(const ast::For& s, Span) {
    walk(s.range);
    bind(s.variable);
    body(s.body);
  }
  void on(const ast::If& s, Span) {
    for (const auto& branch : s.branches) {
      walk(branch.condition);
      body(branch.body);
    }
  }
  void on(const ast::Assert& s, Span) {
    walk(s.condition);
    walk(s.text);
  }
  void on(const ast::Step& s, Span) {
    for (const auto& update : s.updates) inside(update);
  }
  void on(const ast::Update& s, Span) {
    walk(s.target);
    walk(s.value);
  }
  void on(const ast::Report& s, Span) {
    for (const auto& item : s.items) walk(item.value);
  }
  void on(const ast::Expect& s, Span) {
    walk(s.left);
    walk(s.right);
    walk(s.within);
  }
  void on(const ast::Parametrization& s, Span) { inside(s.value); }
  void on(const ast::Import& s, Span) {
    std::string outer = std::exchange(space_, s.space);
    body(s.statements);
    space_ = std::move(outer);
  }

  const Source& source_;
  Names& out_;
  Table globals_;
  std::unordered_map<std::uint32_t, std::size_t> by_place_;  // symbols by where they are bound
  std::unordered_map<std::size_t, Table> arguments_;         // by function
  std::vector<Span> last_;                                   // by symbol: where it was bound last
  Scope* scope_ = nullptr;
  std::string space_;
};

}  // namespace

const char* to_string(SymbolKind kind) {
  switch (kind) {
    case SymbolKind::kWidth: return "width";
    case SymbolKind::kConst: return "constant";
    case SymbolKind::kData: return "data";
    case SymbolKind::kParam: return "parameter, trained";
    case SymbolKind::kRandom: return "random, not trained";
    case SymbolKind::kValue: return "value";
    case SymbolKind::kLoop: return "loop variable";
    case SymbolKind::kFunction: return "function";
    case SymbolKind::kModel: return "model";
    case SymbolKind::kArgument: return "argument";
  }
  return "";
}

const Occurrence* Names::at(std::size_t offset) const {
  const auto after = std::ranges::upper_bound(occurrences, offset, {},
                                              [](const Occurrence& o) { return o.whole.begin; });
  if (after == occurrences.begin()) return nullptr;
  const Occurrence& found = *std::prev(after);
  return offset <= found.whole.end ? &found : nullptr;
}

Names names_of(const ast::Program& program, const Source& source) {
  Names out;
  Walk(source, out).run(program);
  return out;
}

}  // namespace tplimit::lsp
