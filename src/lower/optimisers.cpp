#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>
#include <unordered_map>

#include "lower/lowerer.hpp"
#include "tplimit/passes/batch.hpp"
#include "tplimit/passes/matrix_algebra.hpp"
#include "tplimit/syntax/parser.hpp"

// The optimisers of `step`: a table, the reading of their options, and what they do.
namespace tplimit::lowering {

using ir::Fn;

namespace {

enum class Moves {
  kAlongDirection,  ///< theta - rate d, d a sum of gradients and of theta
  kEntryByEntry,    ///< theta - rate psi, psi made of each entry of the gradients by itself
  kOrthogonalised,  ///< W - rate O, O near the orthogonal factor of a sum of gradients
  kAlongFlow,       ///< all variables together, in substeps
};

/// What an option takes.
enum class Takes {
  kFraction,  ///< a number in [0, 1)
  kPair,      ///< two of them: the options beta1 and beta2
  kSize,      ///< 0 or more, times a power of the width; one for all parameters, or one for each
  kBound,     ///< a positive number, times a power of the width
  kFlag,
  kCount,    ///< a positive integer
  kAverage,  ///< ema(0.99)
};

/// The entries of one gradient in one step, and what the optimiser remembers of them.  Matrices of
/// entries and vectors alike.
struct Entries {
  ir::Builder& b;
  const std::map<std::string, double>& numbers;
  NodeId gradient;
  NodeId eps;  ///< invalid: 0
  std::int64_t step;
  std::map<std::string, NodeId>& memory;

  [[nodiscard]] double number(const char* name) const { return numbers.at(name); }
  [[nodiscard]] NodeId times(double c, NodeId x) const { return b.times(b.constant(c), x); }
  [[nodiscard]] NodeId square(NodeId x) const { return b.map(Fn::kPower, {x}, 2); }
  [[nodiscard]] NodeId recall(const char* name) const {
    const auto it = memory.find(name);
    return it == memory.end() ? b.constant(0) : it->second;
  }
  /// beta x_old + (1 - beta) x.
  NodeId average(const char* name, double beta, NodeId x) const {
    return memory[name] = b.plus(times(beta, recall(name)), times(1 - beta, x));
  }
  /// x / (sqrt(v) + eps), or with eps inside, x / sqrt(v + eps^2); 0 where both are 0 and eps is.
  [[nodiscard]] NodeId ratio(NodeId x, NodeId v, bool inside) const {
    if (!eps.valid()) {
      const NodeId none = b.map(Fn::kEqual, {v, b.constant(0)});
      return b.map(Fn::kWhere, {none, b.constant(0), b.map(Fn::kDiv, {x, b.map(Fn::kSqrt, {v})})});
    }
    return b.map(Fn::kDiv, {x, inside ? b.map(Fn::kSqrt, {b.plus(v, square(eps))})
                                      : b.plus(b.map(Fn::kSqrt, {v}), eps)});
  }
};

// ---- psi of each entrywise optimiser, as torch.optim has it

/// g / sqrt(g^2 + eps^2).
NodeId sign_descent(Entries& e) {
  return e.eps.valid() ? e.ratio(e.gradient, e.square(e.gradient), true)
                       : e.b.map(Fn::kSign, {e.gradient});
}
/// m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps), m and v averages of g and g^2 (Kingma, Ba
/// 2015).
NodeId adam(Entries& e) {
  const double beta1 = e.number("beta1"), beta2 = e.number("beta2"),
               t = static_cast<double>(e.step);
  const NodeId m = e.average("m", beta1, e.gradient),
               v = e.average("v", beta2, e.square(e.gradient));
  return e.ratio(e.times(1 / (1 - std::pow(beta1, t)), m), e.times(1 / (1 - std::pow(beta2, t)), v),
                 e.number("eps_inside") != 0);
}
/// adam with beta1 m / (1 - beta1^(t + 1)) + (1 - beta1) g / (1 - beta1^t) in the place of
/// m / (1 - beta1^t): Nesterov's momentum (Dozat 2016), without torch's schedule of beta1.
NodeId nadam(Entries& e) {
  const double beta1 = e.number("beta1"), beta2 = e.number("beta2"),
               t = static_cast<double>(e.step);
  const NodeId m = e.average("m", beta1, e.gradient),
               v = e.average("v", beta2, e.square(e.gradient)),
               ahead = e.b.plus(e.times(beta1 / (1 - std::pow(beta1, t + 1)), m),
                                e.times((1 - beta1) / (1 - std::pow(beta1, t)), e.gradient));
  return e.ratio(ahead, e.times(1 / (1 - std::pow(beta2, t)), v), e.number("eps_inside") != 0);
}
/// g / (sqrt(v) + eps), v an average of g^2; with momentum, b = momentum b + that.
NodeId rmsprop(Entries& e) {
  const NodeId v = e.average("v", e.number("alpha"), e.square(e.gradient)),
               psi = e.ratio(e.gradient, v, e.number("eps_inside") != 0);
  const double momentum = e.number("momentum");
  if (momentum == 0) return psi;
  return e.memory["b"] = e.b.plus(e.times(momentum, e.recall("b")), psi);
}
/// sign(beta1 m + (1 - beta1) g), then m = beta2 m + (1 - beta2) g (Chen et al. 2023).
NodeId lion(Entries& e) {
  const double beta1 = e.number("beta1");
  const NodeId mixed = e.b.plus(e.times(beta1, e.recall("m")), e.times(1 - beta1, e.gradient));
  e.average("m", e.number("beta2"), e.gradient);
  return e.b.map(Fn::kSign, {mixed});
}

}  // namespace

struct Lowerer::Optimiser {
  struct Option {
    const char* name;
    Takes takes;
    double otherwise = 0;  ///< if it is not given
  };
  const char* name;
  const char* rate;     ///< the option
  const char* rate_is;  ///< what it is
  Moves moves;
  std::vector<Option> options;  ///< beside the rate, `only` and `scale`
  NodeId (*psi)(Entries&) = nullptr;
  bool decoupled = false;  ///< weight decay multiplies theta, and is not added to the gradient

  [[nodiscard]] std::string form(const char* value = "..") const {
    return fmt::format("{}(loss, {} = {})", name, rate, value);
  }
  [[nodiscard]] const Option* option(const std::string& wanted) const {
    const auto it = std::find_if(options.begin(), options.end(),
                                 [&](const Option& o) { return o.name == wanted; });
    return it == options.end() ? nullptr : &*it;
  }
  [[nodiscard]] std::string options_text() const {
    std::string out = fmt::format("its options: {}", rate);
    for (const Option& o : options) out += fmt::format(", {}", o.name);
    return out + ", only, scale, groups";
  }
  static const std::vector<Optimiser>& all();
  /// E2113, E2146, E2151.
  static void read(Lowerer& l, Descent& d, const Option& option, const ast::Expr& value);
  /// 0 (if it may be), or a positive number times a power of the width.  E2146.
  static Number size(Lowerer& l, const char* name, const Value& value, Span span, bool zero = true);
};

const std::vector<Lowerer::Optimiser>& Lowerer::Optimiser::all() {
  using Option = Optimiser::Option;
  const Option decay{"weight_decay", Takes::kSize}, clip{"clip_norm", Takes::kBound},
      average{"average", Takes::kAverage}, inside{"eps_inside", Takes::kFlag};
  const auto betas = [](double beta1, double beta2) {
    return std::vector<Option>{{"betas", Takes::kPair},
                               {"beta1", Takes::kFraction, beta1},
                               {"beta2", Takes::kFraction, beta2}};
  };
  const auto with = [](std::vector<Option> first, const std::vector<Option>& more) {
    first.insert(first.end(), more.begin(), more.end());
    return first;
  };
  const Option small{"eps", Takes::kSize, 1e-8};
  static const std::vector<Optimiser> table{
      {"sgd",
       "lr",
       "learning rate",
       Moves::kAlongDirection,
       {{"momentum", Takes::kFraction},
        {"dampening", Takes::kFraction},
        {"nesterov", Takes::kFlag},
        decay,
        clip,
        average}},
      {"signsgd",
       "lr",
       "learning rate",
       Moves::kEntryByEntry,
       {{"eps", Takes::kSize}, decay, clip, average},
       sign_descent},
      {"adam", "lr", "learning rate", Moves::kEntryByEntry,
       with(betas(0.9, 0.999), {small, inside, decay, clip, average}), adam},
      {"adamw", "lr", "learning rate", Moves::kEntryByEntry,
       with(betas(0.9, 0.999),
            {small, inside, {"weight_decay", Takes::kSize, 0.01}, clip, average}),
       adam, true},
      {"nadam", "lr", "learning rate", Moves::kEntryByEntry,
       with(betas(0.9, 0.999), {small, inside, decay, clip, average}), nadam},
      {"rmsprop",
       "lr",
       "learning rate",
       Moves::kEntryByEntry,
       {{"alpha", Takes::kFraction, 0.99},
        small,
        inside,
        {"momentum", Takes::kFraction},
        decay,
        clip,
        average},
       rmsprop},
      {"lion", "lr", "learning rate", Moves::kEntryByEntry,
       with(betas(0.9, 0.99), {decay, clip, average}), lion, true},
      {"muon",
       "lr",
       "learning rate",
       Moves::kOrthogonalised,
       {{"momentum", Takes::kFraction, 0.95},
        {"nesterov", Takes::kFlag, 1},
        {"ns_steps", Takes::kCount, 5},
        {"weight_decay", Takes::kSize, 0.1},
        clip,
        average},
       nullptr,
       true},
      {"flow", "dt", "time step", Moves::kAlongFlow, {{"steps", Takes::kCount, 1}}}};
  return table;
}

std::vector<LanguageWord> Lowerer::optimiser_words() {
  std::vector<LanguageWord> out;
  for (const Optimiser& o : Optimiser::all()) {
    out.push_back({LanguageWord::Kind::kOptimiser, o.name, "step " + o.form(), {o.rate}});
    for (const Optimiser::Option& option : o.options) out.back().options.emplace_back(option.name);
    for (const char* option : {"only", "scale", "groups"}) out.back().options.emplace_back(option);
  }
  return out;
}

std::string Lowerer::optimiser_form(const std::string& name) {
  for (const Optimiser& o : Optimiser::all())
    if (o.name == name) return "step " + o.form();
  return "";
}

const Lowerer::Optimiser& Lowerer::optimiser_named(const ast::Identifier& name) const {
  std::vector<std::string> names;
  for (const Optimiser& o : Optimiser::all()) {
    if (o.name == name.name) return o;
    names.push_back(o.name);
  }
  static const std::unordered_map<std::string, const char*> idioms{
      {"momentum", "write: step sgd(loss, lr = .., momentum = 0.9)"},
      {"sgdm", "write: step sgd(loss, lr = .., momentum = 0.9)"},
      {"nesterov", "write: step sgd(loss, lr = .., momentum = 0.9, nesterov = true)"},
      {"gd", "write: step sgd(loss, lr = ..): the loss says which samples it is of"},
      {"signum", "write: step lion(loss, lr = .., betas = (0.9, 0.9)), or signsgd"},
      {"adagrad",
       "entrywise optimisers with averages: adam, rmsprop; a sum of all squares is not there"},
  };
  std::string help = did_you_mean(name.name, names);
  if (const auto idiom = idioms.find(name.name); idiom != idioms.end()) help = idiom->second;
  if (help.empty())
    help = fmt::format("write: step {}; there are {}", Optimiser::all()[0].form(),
                       fmt::join(names, ", "));
  fail("E2324", fmt::format("unknown optimiser '{}'", name.name), name.span, "", std::move(help));
}

// ---- options
// ---------------------------------------------------------------------------------------

Number Lowerer::Optimiser::size(Lowerer& l, const char* name, const Value& value, Span span,
                                bool zero) {
  const Number x = l.number(value, span, name);
  if (!(x.value >= 0 && std::isfinite(x.value)) || (x.value == 0 && !zero))
    l.fail("E2146",
           fmt::format("'{}' {}", name,
                       zero ? "is negative or not finite" : "is not positive and finite"),
           span, fmt::format("this is {}", x.value));
  return x;
}

void Lowerer::Optimiser::read(Lowerer& l, Descent& d, const Option& option,
                              const ast::Expr& value) {
  const std::string name = option.name;
  const auto fraction = [&](const ast::Expr& e) {
    const double x = l.plain_number(l.evaluate(e), e.span, name.c_str());
    if (!(x >= 0 && x < 1))
      l.fail("E2146", fmt::format("'{}' lies in [0, 1)", name), e.span,
             fmt::format("this is {}", x));
    return x;
  };
  const auto size = [&](const ast::Expr& e, bool zero = true) {
    return Optimiser::size(l, option.name, l.evaluate(e), e.span, zero);
  };
  switch (option.takes) {
    case Takes::kFraction: d.numbers[name] = fraction(value); return;
    case Takes::kPair: {
      const auto* tuple = std::get_if<ast::Tuple>(&value.node);
      if (!tuple || tuple->items.size() != 2)
        l.fail("E2146", fmt::format("'{}' is a pair of numbers", name), value.span, "",
               "for instance betas = (0.9, 0.999)");
      for (const std::size_t k : {0u, 1u})
        d.numbers[k == 0 ? "beta1" : "beta2"] = fraction(*tuple->items[k]);
      return;
    }
    case Takes::kSize:
      if (const auto* map = std::get_if<ast::Map>(&value.node)) {
        for (const auto& entry : map->entries) {
          const Number x = size(*entry.value);
          for (const std::string& own : l.trained_variables(
                   *entry.key, "a map names parameters: {U: 1e-8 / n, W: 1e-8 / n}"))
            if (!d.sizes[name].try_emplace(own, x).second)
              l.fail("E2113", fmt::format("'{}' is given twice", own), entry.key->span);
        }
        return;
      }
      d.sizes[name][""] = size(value);
      return;
    case Takes::kBound: d.sizes[name][""] = size(value, false); return;
    case Takes::kFlag: {
      const Value v = l.evaluate(value);
      if (!v.as<Flag>())
        l.fail("E2146", fmt::format("'{}' is true or false", name), value.span,
               "this is " + l.describe(v));
      d.numbers[name] = v.as<Flag>()->value ? 1 : 0;
      return;
    }
    case Takes::kCount: {
      const std::int64_t k = l.integer(l.evaluate(value), value.span, "a number of steps");
      if (k < 1)
        l.fail("E2151", fmt::format("'{}' is 1 or more", name), value.span,
               fmt::format("this is {}", k));
      d.numbers[name] = static_cast<double>(k);
      return;
    }
    case Takes::kAverage: {
      const auto* call = std::get_if<ast::Call>(&value.node);
      if (!call || call->callee.name != "ema" || call->args.size() != 1 || !call->named.empty())
        l.fail("E2146", fmt::format("'{}' is an exponential moving average", name), value.span, "",
               "for instance average = ema(0.99)");
      d.numbers[name] = fraction(*call->args[0]);
      return;
    }
  }
}

/// eps or weight_decay of a parameter.
Number Lowerer::size_of_option(const Descent& d, const char* option, const std::string& name) {
  const auto sizes = d.sizes.find(option);
  if (sizes == d.sizes.end()) return {};
  for (const std::string& key : {name, std::string()})
    if (const auto it = sizes->second.find(key); it != sizes->second.end()) return it->second;
  const Optimiser::Option* own = d.optimiser->option(option);
  return {own ? own->otherwise : 0.0};
}

/// The variables of a name in `only` or `scale`: one, or its parts of several widths.
std::vector<std::string> Lowerer::trained_variables(const ast::Expr& e, const char* help) const {
  const auto* name = std::get_if<ast::Name>(&e.node);
  std::vector<std::string> out = name ? variables_named(name->name) : std::vector<std::string>{};
  if (out.empty()) fail("E2326", "this is not a parameter", e.span, "", help);
  if (!variables_.at(out[0]).trained)
    fail("E2326", fmt::format("'{}' is random, not trained", name->name), e.span, "",
         "declare it with param");
  return out;
}

/// `entries`: what was read, in order.
void Lowerer::read_scales(Descent& d, const ast::Expr& value,
                          std::vector<const ast::MapEntry*>& entries) {
  const auto* map = std::get_if<ast::Map>(&value.node);
  if (!map)
    fail("E2325", "'scale' maps parameters to rates", value.span, "",
         "for instance scale = {W: n^2, v: 1}");
  for (const auto& entry : map->entries) {
    const std::vector<std::string> names =
        trained_variables(*entry.key, "scale = {..} maps names of parameters to rates");
    if (d.scales.contains(names[0]))
      fail("E2113", fmt::format("'{}' is scaled twice", std::get<ast::Name>(entry.key->node).name),
           entry.key->span);
    entries.push_back(&entry);
    Value rate = evaluate(*entry.value);
    (void)scalar(rate, entry.value->span, "a learning rate");
    for (const std::string& own : names) d.scales[own] = rate;
  }
}

/// groups = {W: {lr: 0.1, weight_decay: 0}}: options of some parameters.
void Lowerer::read_groups(Descent& d, const ast::Expr& value,
                          std::vector<const ast::MapEntry*>& entries) {
  const char* form = "for instance groups = {W: {lr: 0.1, weight_decay: 0}}";
  const auto* groups = std::get_if<ast::Map>(&value.node);
  if (!groups) fail("E2325", "'groups' maps parameters to options", value.span, "", form);
  for (const auto& entry : groups->entries) {
    const std::vector<std::string> names = trained_variables(*entry.key, form);
    entries.push_back(&entry);
    const auto* options = std::get_if<ast::Map>(&entry.value->node);
    if (!options) fail("E2325", "'groups' maps parameters to options", entry.value->span, "", form);
    for (const auto& option : options->entries) {
      const auto* name = std::get_if<ast::Name>(&option.key->node);
      const bool rate = name && name->name == d.optimiser->rate;
      const Optimiser::Option* own = name ? d.optimiser->option(name->name) : nullptr;
      if (!rate && (!own || own->takes != Takes::kSize))
        fail("E2112", "a group has no such option", option.key->span, "",
             fmt::format("options that may differ by parameter: {}, eps, weight_decay",
                         d.optimiser->rate));
      const Value x = evaluate(*option.value);
      if (rate) (void)scalar(x, option.value->span, "a learning rate");
      const Number size =
          rate ? Number{} : Optimiser::size(*this, own->name, x, option.value->span);
      for (const std::string& parameter : names)
        if (rate ? !d.rates.try_emplace(parameter, x).second
                 : !d.sizes[own->name].try_emplace(parameter, size).second)
          fail("E2113", fmt::format("'{}' of '{}' is given twice", name->name, parameter),
               option.key->span);
    }
  }
}

/// What the step moves: what the loss depends on, or a part of it.
void Lowerer::choose_variables(Descent& d,
                               const std::optional<std::vector<const ast::Expr*>>& only) {
  const auto reached = behind(d.loss);
  if (!only) {
    for (const auto& name : variable_order_)
      if (variables_.at(name).trained && depends_on_current(d.loss, reached, name, d.span))
        d.names.push_back(name);
    if (d.names.empty())
      fail("E2328", "the loss depends on no parameter", d.span, "",
           "a value that is trained is declared with param");
    return;
  }
  for (const ast::Expr* e : *only) {
    const auto* index = std::get_if<ast::Index>(&e->node);
    const ast::Expr& base = index ? *index->base : *e;
    const std::vector<std::string> names = trained_variables(
        base, "only = (..) lists names of parameters, or entries of arrays of them: W[0]");
    const std::string& name = std::get<ast::Name>(base.node).name;
    const bool known = std::find(d.names.begin(), d.names.end(), names[0]) != d.names.end();
    if (known && !(index && d.entries.contains(names[0])))
      fail("E2113", fmt::format("'{}' is named twice", name), e->span);
    for (const std::string& own : names) {
      if (index) choose_entries(d, *index, own);
      if (known) continue;
      d.names.push_back(own);
      if (!depends_on_current(d.loss, reached, own, d.span))
        fail("E2328", fmt::format("the loss does not depend on '{}'", name), e->span);
    }
    if (const auto* array = globals_.at(names[0]).value.as<MatrixArray>(); array && index)
      for (std::size_t k = 0; k < array->items.size(); ++k)
        if (d.moves(names[0], k) && !reached.contains(array->items[k].terms[0].w.value))
          fail("E2328", fmt::format("the loss does not depend on '{}[{}]'", name, k), e->span);
  }
}

/// W[0], W[1..], b[0, 2]: entries along the first axes of an array of parameters.
void Lowerer::choose_entries(Descent& d, const ast::Index& index, const std::string& name) {
  const Value& whole = globals_.at(name).value;
  const auto* array = whole.as<MatrixArray>();
  const Axes axes = array ? finite_axes(array->dims) : variables_.at(name).axes;
  if (index.items.size() > axes.size() || whole.as<Matrix>())
    fail("E2211", "too many indices", index.items.back()->span,
         whole.as<Matrix>() ? describe(whole) : "this has shape " + text(axes));
  for (std::size_t k = 0; k < index.items.size(); ++k)
    if (axes[k].width)
      fail("E2210", "a width axis cannot be indexed", index.items[k]->span,
           "this has shape " + text(axes),
           "only = (..) takes entries along finite axes in front of the width axis");
  std::vector<std::size_t> chosen{0};
  const Dims dims = finite_dims(axes);
  for (std::size_t k = 0; k < dims.size(); ++k) {
    const auto size = static_cast<std::size_t>(dims[k]);
    std::vector<std::int64_t> positions;
    if (k < index.items.size()) {
      positions = selection(*index.items[k], dims[k]).positions;
    } else {
      positions.resize(size);
      std::iota(positions.begin(), positions.end(), std::int64_t{0});
    }
    std::vector<std::size_t> next;
    for (const std::size_t outer : chosen)
      for (const std::int64_t p : positions)
        next.push_back(outer * size + static_cast<std::size_t>(p));
    chosen = std::move(next);
  }
  auto [it, fresh] = d.entries.try_emplace(name);
  if (fresh) it->second.resize(static_cast<std::size_t>(ir::size_of(dims)), false);
  for (const std::size_t entry : chosen) {
    if (it->second[entry] && !fresh)
      fail("E2113", fmt::format("an entry of '{}' is named twice", name), index.base->span);
    it->second[entry] = true;
  }
}

/// Gradients and changes of the entries that the step moves; of arrays of matrices, an empty sum
/// elsewhere.
Value Lowerer::restricted(const Descent& d, const std::string& name, const Value& change) {
  const auto it = d.entries.find(name);
  if (it == d.entries.end()) return change;
  if (const auto* array = change.as<MatrixArray>()) {
    MatrixArray out = *array;
    for (std::size_t k = 0; k < out.items.size(); ++k)
      if (!it->second[k]) out.items[k] = {};
    return {std::move(out)};
  }
  const Tensor& t = *change.as<Tensor>();
  const Dims dims = finite_dims(t.axes);
  const Tensor mask{build(d.span).constant({it->second.begin(), it->second.end()}, dims),
                    finite_axes(dims)};
  return {combine(Fn::kMul, {mask, t}, d.span)};
}

Lowerer::Descent Lowerer::read_descent(const ast::Call& call, Span span) {
  const Optimiser& optimiser = optimiser_named(call.callee);
  if (call.args.size() != 1)
    fail("E2109", fmt::format("{} takes one loss, got {}", optimiser.name, call.args.size()), span,
         "", fmt::format("write: step {}", optimiser.form()));
  check_once(call.named);
  Descent out{&optimiser, call.args[0]->span};
  bool has_rate = false;
  std::optional<std::vector<const ast::Expr*>> only;
  std::vector<const ast::MapEntry*> scaled;
  for (const Optimiser::Option& option : optimiser.options)
    if (option.takes == Takes::kSize)
      out.sizes[option.name];
    else if (option.takes != Takes::kAverage && option.takes != Takes::kBound &&
             option.takes != Takes::kPair)
      out.numbers[option.name] = option.otherwise;
  for (const auto& option : call.named) {
    const auto& name = option.name.name;
    const ast::Expr& value = *option.value;
    if (name == optimiser.rate) {
      out.rate = evaluate(value);
      (void)scalar(out.rate, value.span, fmt::format("a {}", optimiser.rate_is).c_str());
      has_rate = true;
    } else if (name == "only") {
      only.emplace();
      const auto add = [&](const auto& items) {
        for (const auto& e : items) only->push_back(e.get());
      };
      if (const auto* t = std::get_if<ast::Tuple>(&value.node))
        add(t->items);
      else if (const auto* l = std::get_if<ast::List>(&value.node))
        add(l->items);
      else
        only->push_back(&value);
    } else if (name == "scale") {
      read_scales(out, value, scaled);
    } else if (name == "groups") {
      read_groups(out, value, scaled);
    } else if (const Optimiser::Option* own = optimiser.option(name)) {
      Optimiser::read(*this, out, *own, value);
    } else {
      unknown_option(optimiser.name, option.name, optimiser.options_text());
    }
  }
  if (!has_rate)
    fail("E2327", fmt::format("{} needs a {}", optimiser.name, optimiser.rate_is), span, "",
         fmt::format("write: step {}", optimiser.form("0.1")));
  out.loss = scalar({finite(evaluate(*call.args[0]), out.span, "a loss")}, out.span, "a loss");
  choose_variables(out, only);
  for (const ast::MapEntry* entry : scaled)
    if (const auto& name = std::get<ast::Name>(entry->key->node).name;
        std::find(out.names.begin(), out.names.end(), variables_named(name)[0]) == out.names.end())
      fail("E2328", fmt::format("this step does not update '{}'", name), entry->key->span, "",
           "the loss does not depend on it, or `only` leaves it out");
  return out;
}

// ---- steps
// -----------------------------------------------------------------------------------------

/// own(theta): what multiplies the rate.
Value Lowerer::own_rate(const Descent& d, const std::string& name, Span span) {
  return d.scales.contains(name)
             ? d.scales.at(name)
             : rate_of(variables_.at(name), span, d.optimiser->moves == Moves::kEntryByEntry);
}

/// -rate own(theta).
NodeId Lowerer::factor_of(const Descent& d, const std::string& name, Span span) {
  const Value rate =
      arithmetic(ast::BinaryOp::kMul, d.rate_of(name), own_rate(d, name, span), span);
  return build(span).negate(scalar(rate, span, "a learning rate"));
}

/// weight_decay of theta, in units in which theta shrinks by rate own(theta) times it.  With a
/// parametrization it shrinks by rate weight_decay, whatever the powers of n in own(theta): as the
/// mup package has it, which divides by the ratio of widths what it multiplies the rate by.
/// Invalid: none.
NodeId Lowerer::decay_of(const Descent& d, const std::string& name, Span span) {
  const Number decay = size_of_option(d, "weight_decay", name);
  if (decay.value == 0) return {};
  Value out{decay};
  if (variables_.at(name).role)
    out = arithmetic(ast::BinaryOp::kDiv, out, own_rate(d, name, span), span);
  return scalar(out, span, "a weight decay");
}

/// What the optimiser remembers of a parameter: of the pair of both, so that steps of a text that
/// alternate find their own.
Lowerer::Memory& Lowerer::memory_of(const Descent& d, const std::string& name, Span span) {
  std::string settings;
  for (const auto& [option, value] : d.numbers)
    if (option != "average")  // which is kept beside the parameters
      settings += fmt::format("{}{} = {}", settings.empty() ? "" : ", ", option, value);
  std::string own = name;
  if (const auto it = d.entries.find(name); it != d.entries.end())
    for (const bool moved : it->second) own += moved ? '1' : '0';
  Memory& memory = memories_[{d.optimiser->name, own}];
  if (memory.step++ == 0) {
    memory.settings = settings;
  } else if (memory.settings != settings) {
    fail("E2153", fmt::format("'{}' goes on with other settings", d.optimiser->name), span,
         fmt::format("{} now", settings),
         fmt::format("what it remembers of '{}' was made with {}", name, memory.settings));
  }
  return memory;
}

/// c g with c = min(1, clip_norm / |g|), |g| the root of the sum of squares of all entries of all
/// gradients.  As sqrt(clip_norm^2 / max(clip_norm^2, |g|^2)), for |g| may vanish in the limit.
void Lowerer::clip(const Descent& d, Parts& gradients) {
  const auto bound = d.sizes.find("clip_norm");
  if (bound == d.sizes.end()) return;
  ir::Builder& b = build(d.span);
  NodeId squares = b.constant(0);
  for (const auto& [name, g] : gradients) {
    // Users of mup have a readout of size 1 times 1/n, and the gradient of that.
    const Variable& variable = variables_.at(name);
    const bool readout = variable.role == Role::kOutput &&
                         (parametrization_->name == "mup" || parametrization_->name == "depth_mup");
    const Number own = power_of_first_width(readout ? -2 : 0);
    squares = b.plus(squares, b.scale(own.value, own.power, inner_product(g, g, d.span)));
  }
  const NodeId most = scalar({bound->second.at("")}, d.span, "a norm"),
               square = b.times(most, most),
               factor = b.map(Fn::kSqrt,
                              {b.map(Fn::kDiv, {square, b.map(Fn::kMax, {square, squares})})});
  for (auto& [name, g] : gradients) g = weighted(g, factor);
}

/// What `sgd` moves theta along: the gradient and, as torch.optim.SGD has it, weight decay and
/// momentum: d = g + weight_decay theta, b = momentum b + (1 - dampening) d (d itself at first),
/// and b, or d + momentum b for Nesterov's.  Matrices remain versions and outer products.
Value Lowerer::direction(const Descent& d, const std::string& name, Value gradient, Span span) {
  const Value& theta = globals_.at(name).value;
  if (const NodeId decay = decay_of(d, name, span); decay.valid())
    gradient = sum(gradient, weighted(theta, decay));
  const double momentum = d.numbers.at("momentum");
  if (momentum == 0) return gradient;
  ir::Builder& b = build(span);
  std::optional<Value>& velocity = memory_of(d, name, span).velocity;
  Value next = velocity ? sum(weighted(*velocity, b.constant(momentum)),
                              weighted(gradient, b.constant(1 - d.numbers.at("dampening"))))
                        : gradient;
  if (!next.as<Tensor>())  // one version of the matrix
    next = updated(weighted(theta, b.constant(0)), next, span);
  velocity = next;
  return d.numbers.at("nesterov") != 0 ? sum(gradient, weighted(*velocity, b.constant(momentum)))
                                       : *velocity;
}

/// theta - rate own(theta) psi(n^d g), psi acting on each entry of the gradient g.
Value Lowerer::entrywise_update(const Descent& d, const std::string& name, const Value& now,
                                const Value& gradient, Span span) {
  const Variable& variable = variables_.at(name);
  ir::Builder& b = build(span);
  const NodeId factor = factor_of(d, name, span), decay = decay_of(d, name, span);
  const Number power =
      variable.role
          ? power_of_first_width(effective(*variable.role, has_width(variable.axes), false, true).d)
          : Number{1, 0};
  Memory& memory = memory_of(d, name, span);
  const Number eps = size_of_option(d, "eps", name);
  const bool decoupled = decay.valid() && d.optimiser->decoupled;
  const auto psi = [&](NodeId g, std::size_t part) {
    memory.entries.resize(std::max(memory.entries.size(), part + 1));
    Entries entries{
        b,           d.numbers,
        g,           eps.value == 0 ? NodeId{} : b.scale(1, eps.power, b.constant(eps.value)),
        memory.step, memory.entries[part]};
    return d.optimiser->psi(entries);
  };
  // What multiplies theta beside n^d g.
  const NodeId coupled =
      decay.valid() && !decoupled
          ? scalar({size_of_option(d, "weight_decay", name)}, span, "a weight decay")
          : NodeId{};
  // 1 - rate own(theta) weight_decay.
  const auto shrunk = [&] { return b.plus(b.constant(1), b.times(factor, decay)); };
  if (const auto* t = now.as<Tensor>()) {
    NodeId g = b.scale(power.value, power.power, gradient.as<Tensor>()->node);
    if (coupled.valid()) g = b.plus(g, b.times(coupled, t->node));
    NodeId change = b.times(factor, psi(g, 0));
    if (decoupled) change = b.plus(change, b.times(b.times(factor, decay), t->node));
    change = restricted(d, name, {Tensor{change, t->axes}}).as<Tensor>()->node;
    return elementwise(Fn::kAdd, {now, {Tensor{change_of(name, change), t->axes}}}, span);
  }
  const auto one = [&](const Matrix& m, const Matrix& g, std::size_t part) {
    std::vector<NodeId> in;
    for (const MatrixTerm& t : g.terms)
      if (!t.w.valid())
        in.insert(in.end(), {b.scale(power.value, power.power, t.coefficient), t.d, t.x});
    NodeId entries = b.add(ir::OuterSum{}, std::move(in));
    for (const MatrixTerm& t : g.terms)
      if (t.w.valid())
        entries = b.plus(entries, b.times(b.scale(power.value, power.power, t.coefficient),
                                          b.add(ir::MatrixEntries{}, {t.w})));
    if (coupled.valid())
      entries = b.plus(entries, b.times(coupled, b.add(ir::MatrixEntries{}, {m.terms[0].w})));
    const NodeId change = psi(entries, part);
    NodeId w = m.terms[0].w;
    if (decoupled) w = b.add(ir::ScaleMatrix{}, {w, shrunk()});
    return Matrix{{MatrixTerm{b.constant(1),
                              b.add(ir::AddEntries{}, {w, b.scale(1, 1, factor), change}),
                              false,
                              {},
                              {}}}};
  };
  if (const auto* m = now.as<Matrix>()) return {one(*m, *gradient.as<Matrix>(), 0)};
  MatrixArray out = *now.as<MatrixArray>();
  for (std::size_t k = 0; k < out.items.size(); ++k)
    if (d.moves(name, k)) out.items[k] = one(out.items[k], gradient.as<MatrixArray>()->items[k], k);
  return {out};
}

/// W - rate O, as torch.optim.Muon has it: b = momentum b + (1 - momentum) g, and O what a few
/// steps of Newton and Schulz make of X = b / |b| (Nesterov: of (1 - momentum) g + momentum b),
///   X <- 3.4445 X - 4.775 X X' X + 2.0315 X X' X X' X,
/// which moves all singular values towards 1.  b is a sum of outer products A B', and X = A m B' /
/// n stays one: with S = E a a' and T = E b b' over the vectors of A and B,
///   X X' X = A (m T m' S m) B' / n.
Value Lowerer::orthogonalised_update(const Descent& d, const std::string& name, const Value& now,
                                     const Value& gradient, Span span) {
  if (now.as<Tensor>())
    fail("E2156", fmt::format("'muon' orthogonalises width matrices, and '{}' is none", name), span,
         "", "write only = (W), and another optimiser for the rest: step muon(..), adamw(..)");
  ir::Builder& b = build(span);
  const double momentum = d.numbers.at("momentum");
  const bool nesterov = d.numbers.at("nesterov") != 0;
  const auto steps = static_cast<int>(d.numbers.at("ns_steps"));
  const Variable& variable = variables_.at(name);
  const Value own = d.scales.contains(name) ? d.scales.at(name) : variable.rate;
  const NodeId factor = b.negate(
      scalar(arithmetic(ast::BinaryOp::kMul, d.rate_of(name), own, span), span, "a learning rate"));
  const Number decay = size_of_option(d, "weight_decay", name);
  Memory& memory = memory_of(d, name, span);
  const auto times = [&](double c, NodeId x) { return b.times(b.constant(c), x); };
  const auto flat = [&](NodeId x) { return b.reshape(x, {ir::size_of(b.type(x).dims)}); };
  const auto joined = [&](std::vector<NodeId> parts) {
    return b.add(ir::Concat{0}, std::move(parts));
  };
  const auto product = [&](NodeId x, NodeId y) { return matrix_product(b, x, y); };
  const auto one = [&](const Matrix& m, const Matrix& g, std::vector<MatrixTerm>& sum) {
    for (MatrixTerm& t : sum) t.coefficient = times(momentum, t.coefficient);
    const std::size_t old = sum.size();
    for (MatrixTerm t : g.terms) {
      if (t.w.valid())
        fail("E2156", "'muon' orthogonalises sums of outer products", span,
             fmt::format("the gradient of '{}' has a multiple of the matrix in it", name),
             "leave the penalty out of the loss, and write weight_decay");
      t.coefficient = times(1 - momentum, t.coefficient);
      sum.push_back(t);
    }
    if (sum.empty()) return m;
    std::vector<NodeId> left, right;
    for (std::size_t k = 0; k < sum.size(); ++k) {
      const double weight = !nesterov ? 1 : k < old ? momentum : 1 + momentum;
      left.push_back(flat(b.times(times(weight, sum[k].coefficient), sum[k].d)));
      right.push_back(flat(sum[k].x));
    }
    const NodeId A = joined(left), B = joined(right), S = b.contract(A, A, 0, 0, true),
                 T = b.contract(B, B, 0, 0, true);
    const auto rank = b.type(A).dims[0];
    NodeId x = b.map(Fn::kDiv, {identity_matrix(b, rank),
                                b.map(Fn::kSqrt, {b.sum(b.sum(b.times(S, T), 0), 0)})});
    for (int k = 0; k < steps; ++k) {
      const NodeId square = product(product(x, T), product(b.permute(x, {1, 0}), S)),
                   cube = product(square, x);
      x = b.plus(b.plus(times(3.4445, x), times(-4.775, cube)),
                 times(2.0315, product(square, cube)));
    }
    NodeId w = m.terms[0].w;
    if (decay.value != 0)
      w = b.add(ir::ScaleMatrix{},
                {w, b.plus(b.constant(1),
                           b.times(factor, b.scale(1, decay.power, b.constant(decay.value))))});
    const NodeId rotated = b.contract(b.permute(x, {1, 0}), A, 0, 1, false);
    return Matrix{{MatrixTerm{
        b.constant(1), b.add(ir::UpdateMatrix{}, {w, factor, rotated, B}), false, {}, {}}}};
  };
  if (const auto* m = now.as<Matrix>()) {
    memory.sums.resize(1);
    return {one(*m, *gradient.as<Matrix>(), memory.sums[0])};
  }
  MatrixArray out = *now.as<MatrixArray>();
  memory.sums.resize(out.items.size());
  for (std::size_t k = 0; k < out.items.size(); ++k)
    if (d.moves(name, k))
      out.items[k] = one(out.items[k], gradient.as<MatrixArray>()->items[k], memory.sums[k]);
  return {out};
}

/// theta' = -sum over descents of rate own(theta) dloss/dtheta from time 0 to 1: classical
/// Runge-Kutta of order 4, `substeps` times. The parameters between stages are versions like
/// others, theta + sum_k c_k g_k, so that every gradient is made of a few vectors once. Error, of
/// the loss: g_5 . (theta_4 - theta_3), g_5 the gradient at the result theta_4 and theta_3 the
/// embedded solution of order 3 that uses it (weights 1/6, 1/3, 1/3, 0, 1/6): the first gradient of
/// the next substep, so that it costs one evaluation in all.
std::pair<Lowerer::Parts, NodeId> Lowerer::flow(const std::vector<Descent>& descents, Span span) {
  std::vector<std::string> names;
  for (const Descent& d : descents)
    for (const auto& name : d.names)
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  const std::int64_t substeps = descents[0].substeps();
  std::vector<std::map<std::string, NodeId>> factors;
  std::unordered_set<std::uint32_t> reached;
  for (const Descent& d : descents) {
    factors.emplace_back();
    for (const auto& name : d.names)
      factors.back()[name] =
          build(span).scale(1 / static_cast<double>(substeps), 0, factor_of(d, name, span));
    reached.merge(behind(d.loss));
  }
  const Parts start = versions_of(names);
  // What the text names since the last step has a name at every stage, z~2, for those who read the
  // program later.
  std::vector<ir::NamedValue> named;
  for (std::size_t k = program_.names.size();
       k-- > 0 && program_.names[k].step == program_.steps.size();)
    if (program_.names[k].kind == ir::NamedValue::Kind::kValue) named.push_back(program_.names[k]);

  // The losses as functions of the parameters: what stop(..) holds, and parameters that do not
  // move, stay.
  const auto losses_at = [&](const Parts& at, std::int64_t label) {
    std::map<NodeId, NodeId> replaced;
    for (const NodeId id : current_versions()) replaced[id] = id;
    std::vector<NodeId> wanted;
    for (const Descent& d : descents) wanted.push_back(d.loss);
    for (const std::uint32_t id : reached)
      if (std::holds_alternative<ir::Stop>(builder_.node({id}).op)) replaced[{id}] = {id};
    for (std::size_t p = 0; p < at.size(); ++p) {
      const std::vector<NodeId> from = version_nodes(start[p].second),
                                to = version_nodes(at[p].second);
      for (std::size_t j = 0; j < from.size(); ++j) replaced[from[j]] = to[j];
    }
    std::vector<NodeId> losses = substituted(builder_, wanted, replaced);
    if (label == 0) return losses;
    const auto name = [&](ir::NamedValue value, NodeId node) {
      value.name += fmt::format("~{}", label);
      value.value = node;
      program_.names.push_back(std::move(value));
      named_.insert(node);
    };
    for (const auto& [variable, version] : at)
      if (const auto* t = version.as<Tensor>())
        name({variable, {}, 0, span, context_, static_cast<std::uint32_t>(program_.steps.size())},
             t->node);
    for (std::size_t k = named.size(); k-- > 0;)
      if (reached.contains(named[k].value.value))
        name(named[k], substituted(builder_, named[k].value, replaced));
    return losses;
  };
  struct Stage {
    std::vector<Parts> gradients;  // of each loss, with respect to all that moves
    Parts slope;
  };
  const auto stage = [&](const Parts& at, std::int64_t label, bool name_them = true) {
    Stage out;
    const std::vector<NodeId> losses = losses_at(at, label);
    for (std::size_t k = 0; k < descents.size(); ++k) {
      out.gradients.push_back(gradients(losses[k], at, descents[k].span, name_them));
      for (const auto& [name, g] : out.gradients.back()) {
        if (!factors[k].contains(name)) continue;
        const Value own = weighted(restricted(descents[k], name, g), factors[k].at(name));
        const auto same =
            std::find_if(out.slope.begin(), out.slope.end(),
                         [&, &wanted = name](const auto& other) { return other.first == wanted; });
        if (same == out.slope.end())
          out.slope.emplace_back(name, own);
        else
          same->second = sum(same->second, own);
      }
    }
    return out;
  };
  const auto combined = [&](const std::vector<std::pair<double, const Value*>>& terms) {
    std::optional<Value> out;
    for (const auto& [weight, term] : terms) {
      const Value own = weighted(*term, builder_.constant(weight));
      out = out ? sum(*out, own) : own;
    }
    return *out;
  };
  const auto moved = [&](const Parts& from,
                         const std::vector<std::pair<double, const Stage*>>& stages) {
    Parts out;
    for (std::size_t p = 0; p < from.size(); ++p) {
      std::vector<std::pair<double, const Value*>> terms;
      for (const auto& [weight, s] : stages) terms.emplace_back(weight, &s->slope[p].second);
      Value change = combined(terms);
      if (const auto* t = change.as<Tensor>())
        change = {Tensor{change_of(from[p].first, t->node), t->axes}};
      out.emplace_back(from[p].first, updated(from[p].second, change, span));
    }
    return out;
  };

  Parts now = start;
  Stage k1 = stage(now, 0);
  NodeId error = builder_.constant(0);
  for (std::int64_t s = 0; s < substeps; ++s) {
    count_work(span);
    const Stage k2 = stage(moved(now, {{0.5, &k1}}), 4 * s + 2);
    const Stage k3 = stage(moved(now, {{0.5, &k2}}), 4 * s + 3);
    const Stage k4 = stage(moved(now, {{1, &k3}}), 4 * s + 4);
    now = moved(now, {{1.0 / 6, &k1}, {1.0 / 3, &k2}, {1.0 / 3, &k3}, {1.0 / 6, &k4}});
    // The values at the end of the step have the names that the text gives them there.
    const bool last = s + 1 == substeps;
    Stage k5 = stage(now, last ? 0 : 4 * s + 5, !last);
    build(span);
    // Beside norms of matrices, which are n times as large, and their errors.
    const auto without_norms = [](Value gradient) {
      const auto outer = [](Matrix m) {
        std::erase_if(m.terms, [](const MatrixTerm& t) { return t.w.valid(); });
        return m;
      };
      if (const auto* m = gradient.as<Matrix>()) return Value{outer(*m)};
      if (const auto* array = gradient.as<MatrixArray>()) {
        MatrixArray out = *array;
        for (Matrix& m : out.items) m = outer(std::move(m));
        return Value{std::move(out)};
      }
      return gradient;
    };
    for (const Parts& gradient : k5.gradients) {
      NodeId change = builder_.constant(0);
      for (std::size_t p = 0; p < now.size(); ++p)
        change = builder_.plus(change, inner_product(without_norms(gradient[p].second),
                                                     combined({{1.0 / 6, &k4.slope[p].second},
                                                               {-1.0 / 6, &k5.slope[p].second}}),
                                                     span));
      error = builder_.plus(error, builder_.map(Fn::kAbs, {change}));
    }
    k1 = std::move(k5);
  }
  return {std::move(now), error};
}

/// One series for each flow statement, over the times that it was run.
void Lowerer::report_flow_error(const ast::Step& s, const std::vector<Descent>& descents,
                                NodeId error, Span span) {
  const auto [slot, fresh] = flow_error_slots_.try_emplace(&s, program_.reports.size());
  if (fresh) {
    std::vector<std::string> losses;
    for (const Descent& d : descents) losses.push_back(canonical_text(source_, d.span));
    ir::Report report;
    report.name = unused_report_name(fmt::format("flow error of {}", fmt::join(losses, ", ")));
    report.index_names = {"step"};
    report.span = span;
    program_.reports.push_back(std::move(report));
  }
  auto& entries = program_.reports[slot->second].entries;
  entries.push_back({{static_cast<std::int64_t>(entries.size())}, error});
}

/// A = beta A + (1 - beta) theta after each step; theta itself after the first.
void Lowerer::keep_average(const Descent& d) {
  const auto beta = d.numbers.find("average");
  if (beta == d.numbers.end()) return;
  ir::Builder& b = build(d.span);
  for (const std::string& name : d.names) {
    const Value& theta = globals_.at(name).value;
    const auto [known, fresh] = averages_.try_emplace(name, theta);
    if (fresh) continue;
    const Value old = weighted(known->second, b.constant(beta->second)),
                now = weighted(theta, b.constant(1 - beta->second));
    known->second = theta.as<Tensor>() ? sum(old, now) : updated(old, now, d.span);
  }
}

/// A value as it would be if parameters were their averages.
Value Lowerer::builtin_averaged(Arguments& a) {
  const Tensor x = tensor(a.positional[0], a.spans[0]);
  if (averages_.empty() && !errors_.empty()) return {Poison{}};  // the step that makes them failed
  if (averages_.empty())
    fail("E2155", "no step before this has averaged parameters", a.span, "",
         "write average = ema(0.99) in a step; the average begins with the parameters behind the "
         "first one");
  std::map<NodeId, NodeId> replaced;
  for (const auto& [name, average] : averages_) {
    const std::vector<NodeId> from = version_nodes(globals_.at(name).value),
                              to = version_nodes(average);
    for (std::size_t k = 0; k < from.size(); ++k) replaced[from[k]] = to[k];
  }
  return {Tensor{substituted(build(a.span), x.node, replaced), x.axes}};
}

void Lowerer::on(const ast::Step& s, Span span) {
  if (!outside_models())
    fail("E2605", "steps stand outside models", span, "",
         "return the loss and step in the main script");
  const auto flows = [](const Descent& d) { return d.optimiser->moves == Moves::kAlongFlow; };
  // Simultaneous: all gradients first, at the same versions, then all updates.
  std::vector<Descent> descents;
  std::vector<NodeId> losses;
  Parts changes, versions;
  for (const auto& update : s.updates) {
    const auto* call = std::get_if<ast::Call>(&update->node);
    if (!call)
      fail("E2324", "a step names an optimiser", update->span, "",
           "write: step sgd(loss, lr = ..)");
    const Descent& d = descents.emplace_back(read_descent(*call, update->span));
    losses.push_back(d.loss);
    if (flows(d) != flows(descents[0]))
      fail("E2152", "these do not step at once", update->span, "a flow beside another optimiser",
           "write two statements, one after the other");
    if (d.substeps() != descents[0].substeps())
      fail("E2152", "these do not step at once", update->span,
           fmt::format("{} and {} substeps", descents[0].substeps(), d.substeps()),
           "give both the same number: steps = k");
    if (flows(d)) continue;
    Parts found = gradients(d.loss, versions_of(d.names), update->span, true);
    for (auto& [name, g] : found) g = restricted(d, name, g);
    clip(d, found);
    for (const auto& [name, g] : found) {
      if (d.optimiser->moves != Moves::kAlongDirection) {
        const auto same =
            std::find_if(versions.begin(), versions.end(),
                         [&, &wanted = name](const auto& v) { return v.first == wanted; });
        const Value now = same == versions.end() ? globals_.at(name).value : same->second;
        Value next = d.optimiser->moves == Moves::kEntryByEntry
                         ? entrywise_update(d, name, now, g, update->span)
                         : orthogonalised_update(d, name, now, g, update->span);
        if (same == versions.end())
          versions.emplace_back(name, std::move(next));
        else
          same->second = std::move(next);
        continue;
      }
      const NodeId factor = factor_of(d, name, update->span);
      Value change = weighted(restricted(d, name, direction(d, name, g, update->span)), factor);
      if (const auto* t = change.as<Tensor>()) change = {Tensor{change_of(name, t->node), t->axes}};
      changes.emplace_back(name, std::move(change));
    }
  }
  if (flows(descents[0])) {
    NodeId error;
    std::tie(versions, error) = flow(descents, span);
    report_flow_error(s, descents, error, span);
  }
  for (auto& [name, change] : changes) {
    const auto same =
        std::find_if(versions.begin(), versions.end(),
                     [&, &wanted = name](const auto& v) { return v.first == wanted; });
    if (same == versions.end())
      versions.emplace_back(name, updated(globals_.at(name).value, change, span));
    else
      same->second = updated(same->second, change, span);
  }
  for (auto& [name, value] : versions) set_version(name, std::move(value));
  for (const Descent& d : descents) keep_average(d);
  differentiated_.clear();
  program_.steps.push_back({std::move(losses), span, context_});
}

}  // namespace tplimit::lowering
