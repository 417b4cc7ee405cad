#include "tplimit/explain/writing.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <tuple>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "tplimit/explain/closed_forms.hpp"
#include "tplimit/explain/page.hpp"
#include "tplimit/ir/functions.hpp"
#include "tplimit/report/document.hpp"
#include "tplimit/report/json.hpp"
#include "tplimit/report/text.hpp"
#include "tplimit/support/check.hpp"

namespace tplimit::explain {

using ir::Fn;

namespace {

enum class Style : std::uint8_t { kText, kLatex };

/// Names of indices within one formula.
class Letters {
 public:
  void declare(const std::vector<Symbol>& free) {
    static constexpr std::array kFree{"i", "j", "k", "l", "m", "o", "w", "x", "y", "z"};
    std::size_t next = 0;
    for (const Symbol& s : free)
      if (s.size > 1)
        names_[s.id] = next < kFree.size() ? kFree[next++] : fmt::format("i{}", next++);
  }
  std::string bind(const Symbol& s) {
    static constexpr std::array kBound{"p", "q", "r", "s", "t", "u", "a", "b", "c", "d"};
    const std::size_t depth = bound_++;
    return names_[s.id] = depth < kBound.size() ? kBound[depth] : fmt::format("p{}", depth);
  }
  void release() { --bound_; }
  [[nodiscard]] std::string operator[](const Symbol& s) const {
    const auto it = names_.find(s.id);
    return it == names_.end() ? fmt::format("i{}", s.id) : it->second;
  }

 private:
  std::map<std::uint32_t, std::string> names_;
  std::size_t bound_ = 0;
};

/// p/q with a small q, if the value is one.
std::optional<std::pair<std::int64_t, std::int64_t>> fraction(double x) {
  for (std::int64_t q = 1; q <= 1024; ++q) {
    const double p = std::round(x * static_cast<double>(q));
    if (std::abs(p) > 1e9) break;
    if (std::abs(p / static_cast<double>(q) - x) <= 1e-15 * std::abs(x))
      return std::pair{static_cast<std::int64_t>(p), q};
  }
  return std::nullopt;
}

class Writer {
 public:
  Writer(const Formulas& formulas, Style style)
      : f_(formulas), definitions_(formulas.calculus.definitions), style_(style) {}

  [[nodiscard]] bool latex() const { return style_ == Style::kLatex; }

  // ---- names
  // ---------------------------------------------------------------------------------------

  [[nodiscard]] std::string letters_of_name(const std::string& name) const {
    if (!latex()) return name;
    static const std::set<std::string> greek{"alpha", "beta",  "gamma", "delta",  "epsilon", "zeta",
                                             "eta",   "theta", "kappa", "lambda", "mu",      "nu",
                                             "xi",    "pi",    "rho",   "sigma",  "tau",     "phi",
                                             "chi",   "psi",   "omega"};
    std::string letters, digits;
    for (const char c : name) {
      if (c >= '0' && c <= '9' && !letters.empty())
        digits += c;
      else if (digits.empty())
        letters += c;
      else
        return plain(name);
    }
    if (greek.contains(letters))
      letters = "\\" + letters;
    else if (letters.size() > 1)
      return plain(name);
    return digits.empty() ? letters : fmt::format("{{{}_{{{}}}}}", letters, digits);
  }
  [[nodiscard]] static std::string plain(const std::string& name) {
    return "\\mathrm{" + escaped(name) + "}";
  }
  [[nodiscard]] static std::string escaped(const std::string& name) {
    std::string out;
    for (const char c : name) {
      if (c == '_' || c == '%' || c == '#' || c == '&' || c == '$' || c == '{' || c == '}')
        out += '\\';
      if (c == '^')
        out += "\\hat{}";
      else if (c == '~' || c == '\\')
        out += ' ';
      else
        out += c;
    }
    return out;
  }

  /// The name without its finite indices: h(0), dh(0), [W z(0)], G[W z(0)].
  std::string label(std::uint32_t k) {
    const Definition& d = definitions_[k];
    switch (d.kind) {
      case Definition::Kind::kGaussian:
        return latex() ? fmt::format("\\hat{{Z}}^{{{}}}", product(d))
                       : fmt::format("G[{}]", product(d));
      case Definition::Kind::kResponse:
        return fmt::format(fmt::runtime(latex() ? "\\partial {}/\\partial {}" : "∂{}/∂{}"),
                           label(d.operand), label(d.gaussian));
      default: break;
    }
    if (d.in_line) return label_of_value(d);
    const std::string bare = bare_name(d);
    return latex() && d.width ? fmt::format("Z^{{{}}}", bare) : bare;
  }
  /// h(0), [W z(0)], dh(0), d[W z(0)]
  std::string bare_name(const Definition& d) {
    if (d.gradient_of && (latex() || d.name.empty())) {
      const Definition& of = definitions_[*d.gradient_of];
      return fmt::format("{}{}", latex() ? "\\mathrm{d}" : "d",
                         of.name.empty() ? bracketed_product(of) : bare_name(of));
    }
    if (d.name.empty()) return bracketed_product(d);
    if (!latex())
      return d.iteration.empty() ? d.name
                                 : fmt::format("{}({})", d.name, fmt::join(d.iteration, ","));
    const std::string name = letters_of_name(d.name);
    return d.iteration.empty() ? name
                               : fmt::format("{}^{{({})}}", name, fmt::join(d.iteration, ","));
  }
  std::string bracketed_product(const Definition& d) {
    return latex() ? fmt::format("({})", product(d)) : fmt::format("[{}]", product(d));
  }
  std::string product(const Definition& d) {
    const Definition& x = definitions_[d.operand];
    const std::string operand = x.in_line ? label_of_value(x) : bare_name(x);
    std::string matrix = d.matrix;
    if (latex()) {
      const auto bracket = matrix.find('[');
      matrix = bracket == std::string::npos
                   ? letters_of_name(matrix)
                   : fmt::format("{}_{{{}}}", letters_of_name(matrix.substr(0, bracket)),
                                 matrix.substr(bracket + 1, matrix.size() - bracket - 2));
    }
    return matrix + (d.transposed ? latex() ? "^{\\top}" : "'" : "") + (latex() ? "\\, " : " ") +
           operand;
  }
  std::string label_of_value(const Definition& d) {
    Letters letters;
    letters.declare(d.axes);
    hide_indices_ = true;
    std::string out = write(d.value, letters, 2);
    hide_indices_ = false;
    return out;
  }

  /// The left side of its formula.
  std::string head(std::uint32_t k, Letters& letters) {
    Term t;
    t.kind = Kind::kRef;
    t.ref = k;
    t.width = definitions_[k].width;
    for (const Symbol& s : definitions_[k].axes) t.indices.emplace_back(s);
    return reference(std::make_shared<const Term>(std::move(t)), letters);
  }

  std::string indices(const Indices& list, const std::vector<Symbol>& axes, Letters& letters) {
    if (hide_indices_) return "";
    std::vector<std::string> parts;
    for (std::size_t k = 0; k < list.size(); ++k)
      if (axes[k].size > 1) parts.push_back(index(list[k], letters));
    return subscript(parts);
  }
  [[nodiscard]] std::string subscript(const std::vector<std::string>& parts) const {
    if (parts.empty()) return "";
    const bool short_ones =
        std::all_of(parts.begin(), parts.end(), [](const std::string& p) { return p.size() == 1; });
    if (latex()) return fmt::format("_{{{}}}", fmt::join(parts, short_ones ? "" : ","));
    return short_ones ? fmt::format("_{}", fmt::join(parts, ""))
           : parts.size() == 1 && parts[0].size() <= 2
               ? "_" + parts[0]
               : fmt::format("_{{{}}}", fmt::join(parts, ","));
  }

  /// i, 3, i+4, (2p+1), or a table that the legend lists.
  std::string index(const Index& i, const Letters& letters) {
    if (i.is_number()) return fmt::format("{}", i.number());
    if (i.is_symbol()) return letters[i.symbols()[0]];
    const std::vector<std::int64_t> values = i.values();
    if (i.symbols().size() == 1) {
      const std::int64_t first = values[0], stride = values[1] - values[0];
      bool arithmetic = true;
      for (std::size_t k = 1; k < values.size(); ++k)
        arithmetic = arithmetic && values[k] - values[k - 1] == stride;
      if (arithmetic && stride != 0) {
        const std::string s = letters[i.symbols()[0]];
        const std::string line = stride == 1    ? s
                                 : stride == -1 ? "-" + s
                                                : fmt::format("{}{}", stride, s);
        if (first == 0) return line;
        return stride == -1 ? fmt::format("{}-{}", first, s)
               : first > 0  ? fmt::format("{}+{}", line, first)
                            : line + fmt::format("{}", first);
      }
    }
    const auto [it, fresh] = tables_.try_emplace(values, tables_.size() + 1);
    std::vector<std::string> names;
    for (const Symbol& s : i.symbols()) names.push_back(letters[s]);
    return fmt::format(fmt::runtime(latex() ? "\\pi_{{{}}}({})" : "pi{}({})"), it->second,
                       fmt::join(names, ","));
  }

  [[nodiscard]] const std::map<std::vector<std::int64_t>, std::size_t>& tables() const {
    return tables_;
  }

  // ---- expressions
  // ---------------------------------------------------------------------------------

  std::string number(double x) const {
    if (x < 0) return "-" + number(-x);
    const auto q = fraction(x);
    if (q && q->second == 1) return fmt::format("{}", q->first);
    if (latex() && q) return fmt::format("\\tfrac{{{}}}{{{}}}", q->first, q->second);
    if (std::string decimal = fmt::format("{:.6g}", x);
        std::abs(std::stod(decimal) - x) <= 1e-15 * x && decimal.find('e') == std::string::npos)
      return decimal;
    if (q) return fmt::format("({}/{})", q->first, q->second);
    if (const auto square = fraction(x * x);
        square && square->second <= 64 && square->first <= 4096) {
      const auto root = [&](std::int64_t v) {
        return v == 1 ? std::string("1")
                      : fmt::format(fmt::runtime(latex() ? "\\sqrt{{{}}}" : "sqrt({})"), v);
      };
      if (square->second == 1) return root(square->first);
      return fmt::format(fmt::runtime(latex() ? "\\sqrt{{{}/{}}}" : "sqrt({}/{})"), square->first,
                         square->second);
    }
    const std::string text = fmt::format("{:.12g}", x);
    if (const auto e = text.find('e'); latex() && e != std::string::npos)
      return fmt::format("{}\\cdot 10^{{{}}}", text.substr(0, e), std::stoi(text.substr(e + 1)));
    return text;
  }

  /// `level`: 0 a sum may stand bare, 1 a product, 2 an atom is needed.
  std::string write(const Expr& e, Letters& letters, int level = 0) {
    const auto bracketed = [&](bool needed, std::string text) {
      if (!needed) return text;
      return latex() ? "\\left(" + text + "\\right)" : "(" + text + ")";
    };
    switch (e->kind) {
      case Kind::kNumber: return bracketed(e->number < 0 && level > 1, number(e->number));
      case Kind::kRef: return reference(e, letters);
      case Kind::kDelta: {
        const std::string a = index(e->indices[0], letters), b = index(e->indices[1], letters);
        return latex() ? fmt::format("\\delta_{{{}\\,{}}}", a, b) : fmt::format("[{}={}]", a, b);
      }
      case Kind::kAdd: {
        std::string out;
        for (const std::string& t : terms(e, letters))
          out += out.empty() ? t[0] == '+' ? t.substr(2) : "-" + t.substr(2) : " " + t;
        return bracketed(level > 0, out);
      }
      case Kind::kMul: return bracketed(level > 1, product_text(e->args, letters));
      case Kind::kPower: {
        if (e->number < 0) return bracketed(level > 1, product_text({e}, letters));
        if (e->number == 0.5)
          return latex() ? fmt::format("\\sqrt{{{}}}", write(e->args[0], letters))
                         : fmt::format("sqrt({})", write(e->args[0], letters));
        const Kind inner = e->args[0]->kind;
        const bool atom =
            inner == Kind::kMean || inner == Kind::kFunction || (inner == Kind::kRef && !latex());
        const std::string base =
            atom ? write(e->args[0], letters, 2) : bracketed(true, write(e->args[0], letters));
        const std::string exponent = latex() ? number(e->number) : number(e->number);
        return latex() ? fmt::format("{}^{{{}}}", base, exponent) : base + "^" + exponent;
      }
      case Kind::kFunction: return function(e, letters);
      case Kind::kCall: {
        const auto arg = [&](std::size_t k, int own) { return write(e->args[k], letters, own); };
        const auto relation = [&](const char* sign) {
          return fmt::format("[{} {} {}]", arg(0, 0), sign, arg(1, 0));
        };
        switch (e->map.fn) {
          case Fn::kPow:
            return latex() ? fmt::format("{}^{{{}}}", bracketed(true, arg(0, 0)), arg(1, 0))
                           : fmt::format("{}^{}", arg(0, 2), arg(1, 2));
          default: break;
        }
        const ir::Function& f = ir::function(e->map.fn);
        if (f.sign) return relation(latex() ? f.latex : f.sign);
        std::vector<std::string> args;
        for (std::size_t k = 0; k < e->args.size(); ++k) args.push_back(arg(k, 0));
        return fmt::format(
            "{}({})",
            latex() ? "\\operatorname{" + escaped(ir::name(e->map.fn)) + "}" : ir::name(e->map.fn),
            fmt::join(args, ", "));
      }
      case Kind::kSum:
      case Kind::kMax: {
        const std::string letter = letters.bind(e->bound);
        const bool sum = e->kind == Kind::kSum;
        std::string out = latex() ? fmt::format("{}_{{{}}} ", sum ? "\\sum" : "\\max", letter)
                                  : fmt::format("{}_{} ", sum ? "Σ" : "max", letter);
        out += write(e->args[0], letters, 1);
        letters.release();
        return bracketed(level > 1, out);
      }
      case Kind::kMean:
        return (latex() ? "\\mathbb{E}\\left[" : "E[") + write(e->args[0], letters) +
               (latex() ? "\\right]" : "]");
      case Kind::kJump:
        return fmt::format(fmt::runtime(latex() ? "\\partial[{}]" : "∂[{}]"),
                           write(e->args[0], letters));
    }
    return "";
  }

  /// Each with its sign in front: "+ x", "- y".
  std::vector<std::string> terms(const Expr& e, Letters& letters) {
    std::vector<std::string> out;
    for (const Expr& t : e->kind == Kind::kAdd ? e->args : std::vector{e}) {
      const std::string text = write(t, letters, 0);
      out.push_back(text[0] == '-' ? "- " + text.substr(1) : "+ " + text);
    }
    return out;
  }

 private:
  std::string reference(const Expr& e, Letters& letters) {
    const Definition& d = definitions_[e->ref];
    if (d.kind == Definition::Kind::kResponse) {
      const auto split = static_cast<std::ptrdiff_t>(definitions_[d.operand].axes.size());
      const std::string top =
          label(d.operand) + indices(Indices(e->indices.begin(), e->indices.begin() + split),
                                     definitions_[d.operand].axes, letters);
      const std::string bottom =
          label(d.gaussian) + indices(Indices(e->indices.begin() + split, e->indices.end()),
                                      definitions_[d.gaussian].axes, letters);
      return latex() ? fmt::format("\\frac{{\\partial {}}}{{\\partial {}}}", top, bottom)
                     : fmt::format("∂{}/∂{}", top, bottom);
    }
    // Z^{h_i}: the indices belong to the vector.
    const std::string below = indices(e->indices, d.axes, letters);
    if (latex() && d.width && d.kind != Definition::Kind::kGaussian)
      return fmt::format("Z^{{{}{}}}", bare_name(d), below);
    return label(e->ref) + below;
  }

  std::string function(const Expr& e, Letters& letters) {
    const std::string argument = write(e->args[0], letters);
    int order = e->order;
    std::string name;
    if (e->map.fn == Fn::kStep && order > 0) {
      name = latex() ? "\\delta" : "δ";
      --order;
    } else {
      name = ir::formula_name(e->map, latex());
    }
    const std::string primes =
        order <= 3 ? std::string(static_cast<std::size_t>(order), '\'')
                   : fmt::format(fmt::runtime(latex() ? "^{{({})}}" : "^({})"), order);
    return name + primes + (latex() ? "\\left(" : "(") + argument + (latex() ? "\\right)" : ")");
  }

  std::string product_text(const std::vector<Expr>& factors, Letters& letters) {
    std::string sign;
    std::vector<Expr> above, below;
    double c = 1;
    for (const Expr& f : factors) {
      if (f->kind == Kind::kNumber)
        c *= f->number;
      else if (f->kind == Kind::kPower && f->number < 0)
        below.push_back(const_cast<Formulas&>(f_).calculus.power(f->args[0], -f->number));
      else
        above.push_back(f);
    }
    if (c < 0) {
      sign = "-";
      c = -c;
    }
    std::vector<std::string> parts;
    if (c != 1 || above.empty()) parts.push_back(number(c));
    for (std::size_t k = 0; k < above.size(); ++k) {
      const bool last = k + 1 == above.size() && below.empty();
      const bool sum = above[k]->kind == Kind::kSum || above[k]->kind == Kind::kMax;
      parts.push_back(write(above[k], letters, sum && last ? 1 : sum ? 2 : 1));
    }
    const std::string gap = latex() ? "\\, " : " ";
    std::string out = fmt::format("{}", fmt::join(parts, gap));
    if (!below.empty()) {
      std::vector<std::string> denominators;
      for (const Expr& f : below)
        denominators.push_back(write(f, letters,
                                     latex() && below.size() == 1 ? 0
                                     : below.size() == 1          ? 2
                                                                  : 1));
      const std::string bottom = fmt::format("{}", fmt::join(denominators, gap));
      out = latex() ? fmt::format("\\frac{{{}}}{{{}}}", out, bottom)
                    : fmt::format("{} / {}", out, below.size() > 1 ? "(" + bottom + ")" : bottom);
    }
    return sign + out;
  }

  const Formulas& f_;
  const std::vector<Definition>& definitions_;
  Style style_;
  bool hide_indices_ = false;
  std::map<std::vector<std::int64_t>, std::size_t> tables_;
};

// ---- lines
// -----------------------------------------------------------------------------------------

/// The relation is "=" or "~".
using Line = document::Formula;

Indices own_indices(const Definition& d) {
  Indices out;
  for (const Symbol& s : d.axes) out.emplace_back(s);
  return out;
}

Expr reference_to(Formulas& f, std::uint32_t k) {
  return f.calculus.ref(k, own_indices(f.calculus.definitions[k]));
}

/// A block of lines under one heading.
struct Section {
  std::string heading, part;  ///< "step 0 (t = 0)", "forward"
  std::vector<Line> lines;
  bool notes_are_latex = false;
  std::uint32_t step = 0;
};

class Composition {
 public:
  Composition(Formulas& formulas, const View& view, Style style)
      : f_(formulas), view_(view), w_(formulas, style) {}

  Writer& writer() { return w_; }

  std::vector<Section> sections() {
    std::vector<Section> out;
    std::vector<std::uint32_t> covariances;
    const auto section = [&](const std::string& heading, const std::string& part,
                             std::uint32_t step = 0) -> Section& {
      for (Section& s : out)
        if (s.heading == heading && s.part == part) return s;
      out.push_back({heading, part, {}, false, step});
      return out.back();
    };
    for (const std::uint32_t k : view_.definitions) {
      const Definition d = f_.calculus.definitions[k];
      const bool start = d.kind == Definition::Kind::kSource || d.kind == Definition::Kind::kData;
      if (start || d.initial)
        section("start", "").lines.push_back(start ? start_line(k) : formula_line(k));
    }
    for (const std::uint32_t k : view_.definitions) {
      const Definition d = f_.calculus.definitions[k];
      if (d.kind == Definition::Kind::kSource || d.kind == Definition::Kind::kData || d.initial)
        continue;
      if (d.kind == Definition::Kind::kGaussian) {
        covariances.push_back(k);
        continue;
      }
      section(heading(d), part_of(d), d.step).lines.push_back(formula_line(k));
    }
    for (const std::uint32_t k : covariances)
      for (Line& line : covariance_lines(k))
        section(heading(f_.calculus.definitions[k]), "covariances", f_.calculus.definitions[k].step)
            .lines.push_back(std::move(line));
    // Parts of a step stay together, in the order of training.
    const auto place = [](const std::string& part) {
      return part == "forward"    ? 0
             : part == "backward" ? 1
             : part == "update"   ? 2
             : part.empty()       ? 0
                                  : 3;
    };
    const auto rank = [&](const Section& s) {
      return std::tuple{s.heading != "start", s.step, place(s.part)};
    };
    std::stable_sort(out.begin(), out.end(),
                     [&](const Section& a, const Section& b) { return rank(a) < rank(b); });
    if (auto forms = closed_forms(); !forms.empty())
      out.push_back({"closed forms", "", std::move(forms), true, 0});
    return out;
  }

  /// Means with a closed form, each once.
  std::vector<Line> closed_forms() {
    std::vector<Line> out;
    for (const Expr& mean : view_.means) {
      const auto form = closed_form(f_.calculus, mean);
      if (!form) continue;
      Letters letters;
      letters.declare(free_symbols(mean));
      const auto moment = [&](const char* name, const Expr& value) {
        return fmt::format(fmt::runtime(w_.latex() ? "${} = {}$" : "{} = {}"), name,
                           w_.write(value, letters));
      };
      Line line{w_.write(mean, letters),
                "=",
                {std::string("+ ") + (w_.latex() ? form->latex : form->text)},
                ""};
      if (form->pair) {
        const auto a = f_.calculus.gaussian_covariance(form->a, form->a),
                   b = f_.calculus.gaussian_covariance(form->b, form->b);
        line.note = fmt::format("{}, {}, {}", moment("A", *a), moment("B", *b),
                                moment("C", form->covariance));
        if (form->text.find("r") != std::string::npos && form->text.find("(r") != std::string::npos)
          line.note += w_.latex() ? ", $r = C/\\sqrt{AB}$" : ", r = C / sqrt(A B)";
      } else if (form->text.find('C') != std::string::npos) {
        line.note = moment("C", form->covariance);
      }
      out.push_back(std::move(line));
    }
    return out;
  }

  std::string heading(const Definition& d) const {
    const std::size_t steps = f_.step_contexts.size();
    if (steps == 0) return "limit";
    if (d.step >= steps) return fmt::format("after {} step{}", steps, steps == 1 ? "" : "s");
    const std::string& context = f_.contexts[f_.step_contexts[d.step]];
    return fmt::format("step {}{}", d.step, context.empty() ? "" : " (" + context + ")");
  }

  /// Helpers stand with what they help.
  std::string part_of(const Definition& d) {
    if (f_.step_contexts.empty()) return "";
    switch (d.role) {
      case Definition::Role::kGradient: return last_ = "backward";
      case Definition::Role::kVersion: return last_ = "update";
      case Definition::Role::kForward:
      case Definition::Role::kReport: return last_ = "forward";
      case Definition::Role::kHelper: break;
    }
    if (d.kind == Definition::Kind::kCoefficient || d.kind == Definition::Kind::kResponse)
      switch (f_.calculus.definitions[d.operand].role) {
        case Definition::Role::kGradient: return "backward";
        case Definition::Role::kVersion: return "update";
        default: return last_part(d);
      }
    return last_part(d);
  }

  Line formula_line(std::uint32_t k) {
    const Definition d = f_.calculus.definitions[k];
    Letters letters;
    letters.declare(d.axes);
    Line line;
    line.left = w_.head(k, letters);
    line.relation = "=";
    if (d.kind == Definition::Kind::kOperation) {
      std::vector<std::string> operands;
      for (const std::uint32_t o : d.operands) operands.push_back(w_.label(o));
      const std::string name = ir::op_name(*d.operation);
      line.terms = {"+ " +
                    fmt::format("{}({})",
                                w_.latex() ? "\\operatorname{" + Writer::escaped(name) + "}" : name,
                                fmt::join(operands, ", "))};
    } else {
      line.terms = w_.terms(d.value, letters);
    }
    if (d.gradient_of)
      line.note = "gradient" + (d.order == 0 ? "" : " times " + power_of_width(-d.order));
    else if (d.order != 0)
      line.note = fmt::format("the limit of {} {}", power_of_width(-d.order), d.name);
    if (d.kinked)
      line.note +=
          std::string(line.note.empty() ? "" : "; ") + "derivatives in the sense of distributions";
    return line;
  }

  Line start_line(std::uint32_t k) {
    const Definition d = f_.calculus.definitions[k];
    Letters letters;
    letters.declare(d.axes);
    Line line{w_.head(k, letters), w_.latex() ? "\\sim" : "~", {}, ""};
    std::vector<std::string> dims;
    for (const Symbol& s : d.axes) dims.push_back(fmt::format("{}", s.size));
    if (d.kind == Definition::Kind::kData) {
      line.relation = w_.latex() ? "" : ":";
      line.terms = {"+ " + std::string(w_.latex() ? "\\text{ data }" : "data ") +
                    fmt::format("[{}]", fmt::join(dims, ", "))};
    } else {
      line.terms = {"+ " +
                    fmt::format(fmt::runtime(w_.latex() ? "\\mathcal{{N}}(0, {})" : "N(0, {})"),
                                w_.number(d.scale * d.scale))};
      if (!d.axes.empty()) line.note = "independent for each index";
    }
    return line;
  }

  /// Cov(G[W x]_i, G[W y]_j), y this product and those before.
  std::vector<Line> covariance_lines(std::uint32_t k) {
    std::vector<Line> out;
    for (std::uint32_t other = 0; other <= k; ++other) {
      const Definition a = f_.calculus.definitions[k], b = f_.calculus.definitions[other];
      if (b.kind != Definition::Kind::kGaussian || b.family != a.family ||
          (other != k && !shown(other)))
        continue;
      const auto [x, y, value] = covariance(k, other);
      Letters letters;
      letters.declare(free_symbols(f_.calculus.mul({x, y})));
      Line line;
      if (k == other && a.axes.empty())
        line.left = w_.latex() ? fmt::format("\\operatorname{{Var}}({})", w_.write(x, letters))
                               : fmt::format("Var({})", w_.write(x, letters));
      else
        line.left = w_.latex()
                        ? fmt::format("\\operatorname{{Cov}}({}, {})", w_.write(x, letters),
                                      w_.write(y, letters))
                        : fmt::format("Cov({}, {})", w_.write(x, letters), w_.write(y, letters));
      line.relation = "=";
      line.terms = w_.terms(value, letters);
      out.push_back(std::move(line));
    }
    return out;
  }

  struct Covariance {
    Expr x, y, value;
  };
  Covariance covariance(std::uint32_t k, std::uint32_t other) {
    Calculus& c = f_.calculus;
    Indices at;
    for (const Symbol& s : std::vector<Symbol>(c.definitions[other].axes))
      at.emplace_back(c.fresh(s.size));
    const Expr x = reference_to(f_, k), y = c.ref(other, at);
    return {x, y, c.mean(c.mul({x, y}))};
  }

 private:
  [[nodiscard]] bool shown(std::uint32_t k) const {
    return std::find(view_.definitions.begin(), view_.definitions.end(), k) !=
           view_.definitions.end();
  }
  std::string last_part(const Definition& d) {
    if (d.step != last_step_) last_.clear();
    last_step_ = d.step;
    return last_.empty() ? "forward" : last_;
  }

  Formulas& f_;
  const View& view_;
  Writer w_;
  std::string last_;
  std::uint32_t last_step_ = 0;
};

void collect_means(const Expr& e, std::vector<Expr>& out) {
  if (e->kind == Kind::kMean) {
    out.push_back(e);
    return;
  }
  for (const Expr& a : e->args) collect_means(a, out);
}

std::string method_text(Method method) {
  std::string out = to_string(method);
  std::replace(out.begin(), out.end(), '_', ' ');
  return out;
}

std::string values_text(const Number& n) {
  const auto one = [&](std::size_t k) {
    const bool exact =
        n.method == Method::kExact || n.method == Method::kClosedForm || n.error.empty();
    return exact ? format_number(n.value[k]) : format_number(n.value[k], n.error[k]);
  };
  if (n.value.size() == 1) return one(0);
  std::vector<std::string> parts;
  const auto axes = free_symbols(n.formula);
  if (axes.size() == 2 && axes[0].size * axes[1].size <= 16) {  // a matrix, row by row
    std::string out = "[";
    const auto columns = static_cast<std::size_t>(axes[1].size);
    for (std::size_t k = 0; k < n.value.size(); ++k)
      out += (k == 0 ? "" : k % columns == 0 ? "; " : ", ") + one(k);
    return out + "]";
  }
  constexpr std::size_t kMost = 6;
  for (std::size_t k = 0; k < std::min(n.value.size(), kMost); ++k) parts.push_back(one(k));
  if (n.value.size() > kMost) parts.push_back(fmt::format(".. {} more", n.value.size() - kMost));
  return fmt::format("[{}]", fmt::join(parts, ", "));
}

}  // namespace

std::string fault_of(const Formulas& f, const Selection& selection) {
  const auto& definitions = f.calculus.definitions;
  for (const std::string& name : selection.names)
    if (std::none_of(definitions.begin(), definitions.end(),
                     [&](const Definition& d) { return !d.in_line && d.name == name; }))
      return fmt::format("no value '{}' is in the limit", name);
  const auto steps = std::ssize(f.step_contexts);
  if (selection.steps && selection.steps->first > steps)
    return fmt::format("step {} is behind the last one: the program takes {} step{}, from 0",
                       selection.steps->first, steps, steps == 1 ? "" : "s");
  return "";
}

View view_of(Formulas& f, const Selection& selection) {
  const auto& definitions = f.calculus.definitions;
  const auto in_steps = [&](const Definition& d) {
    return !selection.steps || (static_cast<std::int64_t>(d.step) >= selection.steps->first &&
                                static_cast<std::int64_t>(d.step) < selection.steps->second);
  };
  std::set<std::uint32_t> shown;
  // What stands in a shown formula without a line of its own in the text of the program comes
  // along.
  const std::function<void(std::uint32_t)> show = [&](std::uint32_t k) {
    if (!shown.insert(k).second) return;
    for (const std::uint32_t o : definitions[k].operands) show(o);
    if (!definitions[k].value) return;
    const std::function<void(const Expr&)> walk = [&](const Expr& e) {
      if (e->kind == Kind::kRef) {
        const Definition& d = definitions[e->ref];
        const bool helper =
            d.role == Definition::Role::kHelper || d.kind == Definition::Kind::kGaussian;
        if (helper && (d.kind == Definition::Kind::kGaussian || in_steps(d))) show(e->ref);
        if (d.kind == Definition::Kind::kData ||
            (d.kind == Definition::Kind::kSource && !selection.names.empty()))
          show(e->ref);
      }
      for (const Expr& a : e->args) walk(a);
    };
    walk(definitions[k].value);
  };
  for (std::uint32_t k = 0; k < definitions.size(); ++k) {
    const Definition& d = definitions[k];
    const bool named =
        std::find(selection.names.begin(), selection.names.end(), d.name) != selection.names.end();
    if (selection.names.empty()) {
      if (d.role != Definition::Role::kHelper && d.kind != Definition::Kind::kData &&
          (in_steps(d) || d.kind == Definition::Kind::kSource))
        show(k);
    } else if (named && (in_steps(d) || d.kind == Definition::Kind::kSource)) {
      show(k);
    }
  }
  View out;
  for (const std::uint32_t k : shown)
    if (!definitions[k].in_line) out.definitions.push_back(k);
  std::set<std::string> met, seen;
  const auto want = [&](const Expr& e) {
    if (e->kind != Kind::kNumber && met.insert(Calculus::key(e, true)).second)
      out.numbers.push_back(e);
  };
  Composition covariances(f, out, Style::kText);
  for (const std::uint32_t k : std::vector<std::uint32_t>(out.definitions)) {
    const Definition d = definitions[k];
    std::vector<Expr> means;
    if (d.kind == Definition::Kind::kGaussian)
      collect_means(covariances.covariance(k, k).value, means);
    if (d.value) collect_means(d.value, means);
    for (const Expr& m : means)
      if (seen.insert(Calculus::key(m, true)).second) out.means.push_back(m);
    const bool named =
        d.value && !d.width &&
        d.value->kind == Kind::kMean;  // the mean has a name: its number stands there
    for (const Expr& m : means)
      if (!named || d.kind == Definition::Kind::kGaussian) want(m);
    if (!d.width && d.kind != Definition::Kind::kData && d.kind != Definition::Kind::kGaussian &&
        !(d.kind == Definition::Kind::kResponse && d.kinked))
      want(reference_to(f, k));
  }
  return out;
}

namespace {

/// What the symbols mean.
std::vector<std::string> legend(const Formulas& f, Style style) {
  if (style == Style::kLatex)
    return {
        "$Z^x$ is the random variable that the coordinates of $x$ tend to, $\\hat{Z}^{Wx}$ the "
        "Gaussian part of $Z^{Wx}$: of mean 0, independent of the initial vectors, of those of "
        "other matrices and of $\\hat{Z}^{W^\\top y}$."};
  std::vector<std::string> out{
      "A vector's name stands for the random variable that its coordinates tend to, E for its "
      "mean."};
  const auto used = [](const MatrixFamily& m) { return m.used[0] || m.used[1]; };
  if (std::none_of(f.matrices.begin(), f.matrices.end(), used)) return out;
  out.emplace_back(
      "G[W x] is the Gaussian part of W x: mean 0, independent of the initial vectors, of the G of "
      "other matrices and of G[W' y].");
  const Writer writer(f, style);
  for (const MatrixFamily& m : f.matrices)
    if (used(m)) {
      const std::string variance = writer.number(m.scale * m.scale);
      out.push_back(fmt::format("{}: entries N(0, {}/n), Cov(G[{} x], G[{} y]) = {}E[x y]", m.name,
                                variance, m.name, m.name, m.scale == 1 ? "" : variance + " "));
    }
  return out;
}

document::Formulas numbers_block(Writer& writer, const std::vector<Number>& numbers) {
  document::Formulas out{{}, true};
  for (const Number& n : numbers) {
    Letters letters;
    letters.declare(free_symbols(n.formula));
    const std::string name = writer.write(n.formula, letters), values = values_text(n);
    if (n.possible)
      out.formulas.push_back(
          {name,
           "=",
           {"+ " + (writer.latex() ? "\\text{" + Writer::escaped(values) + "}" : values)},
           method_text(n.method)});
  }
  return out;
}

/// What is LaTeX in a document.
enum class Markup : std::uint8_t { kNothing, kFormulas, kAll };

document::Document document_of(Formulas& f, const View& view, const std::vector<Number>& numbers,
                               const std::string& title, Markup markup) {
  using namespace document;
  const bool latex = markup == Markup::kAll, formulas = markup != Markup::kNothing;
  const Style style = formulas ? Style::kLatex : Style::kText;
  const auto in_style = [&](const std::string& text) {
    return latex ? Writer::escaped(text) : text;
  };
  Composition composition(f, view, style);
  Document out;
  out.add({Heading{
      1, (latex ? "\\texttt{" + in_style(title) + "}" : title) + ": the limit of infinite width"}});
  // Titles of LaTeX keep a distance of their own.
  auto& head = latex ? out.sections.back() : out.add({});
  head.blocks.emplace_back(Paragraph{legend(f, style), Tone::kNone, formulas});
  std::string last;
  for (explain::Section& s : composition.sections()) {
    if (s.heading != last) out.add({Heading{2, in_style(last = s.heading)}});
    auto& blocks = out.sections.back().blocks;
    if (!s.part.empty()) blocks.emplace_back(Heading{3, s.part});
    blocks.emplace_back(document::Formulas{std::move(s.lines), false, s.notes_are_latex, formulas});
  }
  if (!numbers.empty()) {
    auto& blocks = (latex ? out.sections.back() : out.add({})).blocks;
    blocks.emplace_back(Heading{2, latex ? "Numbers" : "numbers"});
    blocks.emplace_back(numbers_block(composition.writer(), numbers));
    std::get<document::Formulas>(blocks.back()).latex = formulas;
    const bool partial =
        std::any_of(numbers.begin(), numbers.end(), [](const Number& n) { return !n.possible; });
    if (!latex && partial)
      blocks.emplace_back(Note{
          "means with δ are part of their coefficients theta, which are found by Stein's lemma",
          2});
  }
  Paragraph tables;
  tables.has_markup = formulas;
  for (const auto& [values, number] : composition.writer().tables())
    tables.lines.push_back(
        formulas ? fmt::format("$\\pi_{{{}}} = ({})$", number, fmt::join(values, ", "))
                 : fmt::format("pi{} = [{}]", number, fmt::join(values, ", ")));
  if (!tables.lines.empty()) out.add({std::move(tables)});
  return out;
}

// ---- LaTeX
// -----------------------------------------------------------------------------------------

std::string latex_of(const document::Formulas& block) {
  constexpr std::size_t kLong = 120;
  std::string out;
  for (const document::Formula& formula : block.formulas) {
    if (!out.empty()) out += " \\\\\n";
    const std::string whole = document::sum_of(formula.terms);
    out += fmt::format("{} &{} ", formula.left, formula.relation);
    if (whole.size() <= kLong || formula.terms.size() == 1) {
      out += whole;
    } else {
      out += document::leading_term(formula.terms[0]);
      for (std::size_t k = 1; k < formula.terms.size(); ++k)
        out += " \\\\\n  &\\quad " + formula.terms[k];
    }
    if (!formula.note.empty())
      out += fmt::format(" && \\text{{({})}}",
                         block.notes_are_markup ? formula.note : Writer::escaped(formula.note));
  }
  return "\\begin{align*}\n" + out + "\n\\end{align*}\n";
}

/// Of what document_of makes here; blocks of results have no LaTeX yet.
std::string latex_of(const document::Block& block) {
  if (const auto* heading = std::get_if<document::Heading>(&block)) {
    static constexpr std::array kCommands{"section*", "subsection*", "paragraph"};
    return fmt::format("\\{}{{{}}}\n", kCommands.at(static_cast<std::size_t>(heading->level - 1)),
                       heading->text);
  }
  if (const auto* paragraph = std::get_if<document::Paragraph>(&block))
    return fmt::format("{}\n", fmt::join(paragraph->lines, "\n\n"));
  const auto* formulas = std::get_if<document::Formulas>(&block);
  TPLIMIT_CHECK(formulas != nullptr, "a heading, paragraph or formulas, not block {}",
                block.index());
  return latex_of(*formulas);
}

}  // namespace

std::string to_text(Formulas& f, const View& view, const std::vector<Number>& numbers,
                    const std::string& title) {
  return tplimit::to_text(document_of(f, view, numbers, title, Markup::kNothing));
}

document::Document to_document(Formulas& f, const View& view, const std::vector<Number>& numbers,
                               const std::string& title) {
  return document_of(f, view, numbers, title, Markup::kFormulas);
}

std::string to_latex(Formulas& f, const View& view, const std::vector<Number>& numbers,
                     const std::string& title) {
  std::string out =
      "\\documentclass{article}\n\\usepackage[margin=2cm]{geometry}\n\\usepackage{amsmath,amssymb}"
      "\n\\allowdisplaybreaks\n\\begin{document}\n";
  const document::Document document = document_of(f, view, numbers, title, Markup::kAll);
  for (std::size_t k = 0; k < document.sections.size(); ++k) {
    if (k > 0) out += "\n";
    for (const document::Block& block : document.sections[k].blocks) out += latex_of(block);
  }
  return out + "\\end{document}\n";
}

std::string to_json(Formulas& f, const View& view, const std::vector<Number>& numbers,
                    const ProgramInfo& program) {
  Composition composition(f, view, Style::kText), latex(f, view, Style::kLatex);
  using nlohmann::ordered_json;
  ordered_json out{{"matrices", ordered_json::array()}, {"definitions", ordered_json::array()}};
  for (const MatrixFamily& m : f.matrices)
    if (m.used[0] || m.used[1])
      out["matrices"].push_back({{"name", m.name}, {"variance_times_n", m.scale * m.scale}});
  const auto shape_of = [](const std::vector<Symbol>& axes) {
    ordered_json shape = ordered_json::array();
    for (const Symbol& s : axes) shape.push_back(s.size);
    return shape;
  };
  for (const std::uint32_t k : view.definitions) {
    const Definition d = f.calculus.definitions[k];
    static constexpr std::array kKinds{"initial",     "gaussian",   "data",     "formula",
                                       "coefficient", "derivative", "operation"};
    const bool start = d.kind == Definition::Kind::kSource || d.kind == Definition::Kind::kData;
    const Line line = start ? composition.start_line(k)
                      : d.kind == Definition::Kind::kGaussian
                          ? composition.covariance_lines(k).back()
                          : composition.formula_line(k);
    const Line in_latex = start                                   ? latex.start_line(k)
                          : d.kind == Definition::Kind::kGaussian ? latex.covariance_lines(k).back()
                                                                  : latex.formula_line(k);
    ordered_json own{{"name", composition.writer().label(k)},
                     {"kind", kKinds[static_cast<std::size_t>(d.kind)]},
                     {"shape", shape_of(d.axes)},
                     {"width", d.width}};
    if (!f.step_contexts.empty() && !start) own["step"] = d.step;
    if (!f.contexts[d.context].empty()) own["iteration"] = f.contexts[d.context];
    if (d.order != 0) own["order"] = power_of_width(d.order);
    own["left"] = line.left;
    own["right"] = document::sum_of(line.terms);
    own["latex"] =
        fmt::format("{} {} {}", in_latex.left, in_latex.relation, document::sum_of(in_latex.terms));
    if (d.kinked) own["deltas"] = true;
    out["definitions"].push_back(std::move(own));
  }
  const std::vector<Line> forms = composition.closed_forms(), forms_in_latex = latex.closed_forms();
  if (!forms.empty()) out["closed_forms"] = ordered_json::array();
  for (std::size_t k = 0; k < forms.size(); ++k)
    out["closed_forms"].push_back(
        {{"left", forms[k].left},
         {"right", document::sum_of(forms[k].terms)},
         {"where", forms[k].note},
         {"latex", forms_in_latex[k].left + " = " + document::sum_of(forms_in_latex[k].terms)}});
  if (!numbers.empty()) {
    out["numbers"] = ordered_json::array();
    for (const Number& n : numbers) {
      Letters letters;
      const auto free = free_symbols(n.formula);
      letters.declare(free);
      ordered_json own{{"formula", composition.writer().write(n.formula, letters)},
                       {"latex", latex.writer().write(n.formula, letters)},
                       {"shape", shape_of(free)}};
      if (n.possible) {
        own["method"] = to_string(n.method);
        own["value"] = n.value;
        if (!n.error.empty()) own["error"] = n.error;
      } else {
        own["part_of_coefficient"] = true;
      }
      out["numbers"].push_back(std::move(own));
    }
  }
  ordered_json tables = ordered_json::object();
  for (const auto& [values, number] : composition.writer().tables())
    tables[fmt::format("pi{}", number)] = values;
  if (!tables.empty()) out["tables"] = std::move(tables);
  return with_header(program, out.dump(2) + "\n");
}

}  // namespace tplimit::explain
