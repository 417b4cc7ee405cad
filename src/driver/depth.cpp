#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include <fmt/format.h>

#include "driver/value_sizes.hpp"
#include "tplimit/driver/driver.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/syntax/parser.hpp"

// Powers of the depth: the same sizes in the limit at several depths.
namespace tplimit {

using namespace ir;

namespace {

/// Where the text names a value, and whether as a prediction.
using Place = std::tuple<std::uint32_t, std::uint32_t, bool>;

/// One depth: what is counted of it, and where the text names which values.
struct Unrolled {
  const Module& module;
  RegimeReport counted;
  Program followed;
  std::map<Place, std::vector<const Feature*>> places;
  std::vector<Place> order;  ///< of the text

  explicit Unrolled(const Module& own)
      : module(own), counted(regime(own, false)), followed(with_last_pass(*own.written)) {
    for (const Feature& f : counted.features) {
      const Place key{f.span.begin, f.span.end, f.prediction};
      if (!places.contains(key)) order.push_back(key);
      places[key].push_back(&f);
    }
  }
};

std::string name_of_all(const std::string& variable) {
  return variable.substr(0, variable.find('['));
}

/// Reports of the sizes of one depth.
class Sizes {
 public:
  Program program;
  std::vector<DepthSize> rows;  ///< one for each report, without numbers

  Sizes(const Unrolled& own, const std::set<Place>& layers, int steps)
      : program(own.followed), own_(own), steps_(std::min(steps, own.counted.steps)), b_(program) {
    program.reports.clear();
    program.expectations.clear();
    for (const auto& key : own.order) {
      const auto& features = own.places.at(key);
      if (layers.contains(key)) {
        const std::string& name = features[0]->name;
        const std::size_t comma = name.find(", "), equal = name.find(" = ", comma);
        const std::string base = name.substr(0, comma);
        const std::string loop =
            comma == std::string::npos ? "layers" : name.substr(comma + 2, equal - comma - 2);
        value(fmt::format("{} over {}", base, loop), features);
        stream(base, features);
      } else {
        for (const Feature* f : features) value(f->name, {f});
      }
    }
    updates();
    shares();
  }

 private:
  void add(DepthSize row, NodeId size, Span span) {
    program.reports.push_back({fmt::format("{}", rows.size()), {}, {{{}, size}}, span});
    rows.push_back(std::move(row));
  }
  [[nodiscard]] static NodeId at(const Feature& f, int step) {
    const auto k = static_cast<std::size_t>(step);
    return k < f.steps.size() ? f.steps[k].node : NodeId{};
  }

  void value(const std::string& name, const std::vector<const Feature*>& features) {
    const Span span = features[0]->span;
    const bool output = features[0]->prediction;
    for (int step = 0; step <= steps_; ++step) {
      std::vector<NodeId> nodes;
      for (const Feature* f : features) {
        const NodeId now = at(*f, step), start = at(*f, 0);
        if (!now.valid() || !start.valid() || b_.type(now) != b_.type(start)) return;
        nodes.push_back(step == 0 ? now : b_.minus(now, start));
      }
      add({step == 0 ? name : "change of " + name, "",
           step == 0 ? DepthQuantity::kValue : DepthQuantity::kChange, output, step},
          root_mean_square(b_, nodes), span);
    }
  }

  /// A sum that `next` is has `previous` among its terms.
  [[nodiscard]] bool adds_to(NodeId next, NodeId previous) const {
    std::vector<NodeId> stack{next};
    std::set<NodeId> seen;
    while (!stack.empty()) {
      const NodeId id = stack.back();
      stack.pop_back();
      if (id == previous) return true;
      if (id < previous || !seen.insert(id).second) continue;
      const auto* m = std::get_if<Map>(&program[id].op);
      if (m && (m->fn == Fn::kAdd || m->fn == Fn::kSub))
        stack.insert(stack.end(), program[id].in.begin(), program[id].in.end());
    }
    return false;
  }

  /// At the start, if each layer adds to the one before.
  void stream(const std::string& name, const std::vector<const Feature*>& layers) {
    NodeId ratios;
    for (std::size_t l = 1; l < layers.size(); ++l) {
      const NodeId before = at(*layers[l - 1], 0), now = at(*layers[l], 0);
      if (!before.valid() || !now.valid() || b_.type(before) != b_.type(now) ||
          !adds_to(now, before))
        return;
      const NodeId ratio =
          b_.map(Fn::kDiv, {mean_square(b_, b_.minus(now, before)), mean_square(b_, before)});
      ratios = ratios.valid() ? b_.plus(ratios, ratio) : ratio;
    }
    if (!ratios.valid()) return;
    const double count = static_cast<double>(layers.size() - 1);
    add({fmt::format("step of {} from layer to layer, relative", name), name,
         DepthQuantity::kBlock},
        b_.map(Fn::kSqrt, {b_.scale(1 / count, 0, ratios)}), layers[0]->span);
    add({fmt::format("{} from the first layer to the last", name), name, DepthQuantity::kAlong},
        root_mean_square(b_, {b_.minus(at(*layers.back(), 0), at(*layers[0], 0))}),
        layers[0]->span);
  }

  /// Of matrices, where they are used; those of an array together.
  void updates() {
    std::vector<std::pair<Span, std::vector<const VariableEffect*>>> uses;
    for (const VariableEffect& e : own_.counted.effects) {
      if (!own_.followed.variables[e.variable].trained || e.products.empty()) continue;
      if (uses.empty() || uses.back().first != e.span) uses.push_back({e.span, {}});
      uses.back().second.push_back(&e);
    }
    for (const auto& [span, effects] : uses)
      for (int step = 1; step <= steps_; ++step) {
        std::vector<NodeId> moved;
        for (const VariableEffect* e : effects)
          for (const auto& [when, product] : e->products) {
            if (std::cmp_not_equal(when, step)) continue;
            const Node node = program[product];
            moved.push_back(b_.minus(product, b_.add(node.op, {e->start, node.in[1]})));
          }
        if (moved.empty()) continue;
        add({fmt::format("update of {}", canonical_text(own_.module.source, span)),
             name_of_all(own_.followed.variables[effects[0]->variable].name),
             DepthQuantity::kUpdate, false, step},
            root_mean_square(b_, moved), span);
      }
  }

  void shares() {
    std::vector<std::string> names;
    for (const Variable& v : program.variables)
      if (v.trained && std::find(names.begin(), names.end(), name_of_all(v.name)) == names.end())
        names.push_back(name_of_all(v.name));
    if (names.size() < 2 || std::cmp_greater(names.size(), kFewVariables)) return;
    for (const std::string& name : names) {
      std::vector<bool> others;
      for (const Variable& v : program.variables) others.push_back(name_of_all(v.name) != name);
      for (const Feature& f : own_.counted.features) {
        if (!f.prediction) continue;
        for (int step = 1; step <= steps_; ++step) {
          const NodeId now = at(f, step);
          if (!now.valid()) continue;
          add({fmt::format("change of {} by {}", f.name, name), name, DepthQuantity::kShare, true,
               step},
              root_mean_square(b_, {b_.minus(now, with_updates_of(b_, now, others))}), f.span);
        }
      }
    }
  }

  const Unrolled& own_;
  int steps_;
  Builder b_;
};

}  // namespace

DepthCheck depth_check(const std::vector<Module>& modules, int steps,
                       const EvaluateOptions& options) {
  DepthCheck out;
  std::vector<Unrolled> all;
  all.reserve(modules.size());
  for (const Module& module : modules) {
    all.emplace_back(module);
    out.depth = module.depth->name;
    out.depths.push_back(module.depth->value);
    steps = std::min(steps, all.back().counted.steps);
  }
  out.steps = steps;
  // Values that are named more often where the network is deeper.
  std::set<Place> layers;
  for (const Unrolled& own : all)
    for (const auto& [place, features] : own.places)
      if (const auto it = all[0].places.find(place);
          it != all[0].places.end() && it->second.size() != features.size())
        layers.insert(place);
  std::vector<double> depths;
  for (const std::int64_t d : out.depths) depths.push_back(static_cast<double>(d));
  for (std::size_t k = 0; k < all.size(); ++k) {
    Sizes sizes(all[k], layers, steps);
    std::vector<std::size_t> wanted;
    for (std::size_t j = 0; j < sizes.rows.size(); ++j) wanted.push_back(j);
    const LimitsOfReports limits = limits_where_any(modules[k], sizes.program, wanted, options);
    if (!limits.missing.empty()) out.missing = limits.missing;
    if (k == 0) out.sizes = sizes.rows;
    for (DepthSize& row : out.sizes) {
      const auto same = std::find_if(sizes.rows.begin(), sizes.rows.end(), [&](const DepthSize& r) {
        return r.name == row.name && r.step == row.step;
      });
      std::optional<Estimate> size;
      if (same != sizes.rows.end())
        if (const auto& r = limits.reports[static_cast<std::size_t>(same - sizes.rows.begin())];
            r && std::isfinite(r->value[0]))
          size = Estimate{r->value[0], r->error.empty() ? 0 : r->error[0]};
      row.sizes.push_back(size);
    }
  }
  for (DepthSize& row : out.sizes) {
    std::vector<double> values, errors;
    for (const auto& e : row.sizes)
      if (e) {
        values.push_back(e->value);
        errors.push_back(e->error);
      }
    if (values.size() == depths.size()) row.power = limiting_power(depths, values, errors);
  }
  return out;
}

}  // namespace tplimit
