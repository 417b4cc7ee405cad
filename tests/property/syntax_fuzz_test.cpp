#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "syntax/lexer.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {
namespace {

constexpr std::array<std::string_view, 5> kSeeds = {
    R"(# a three-hidden-layer tanh MLP in muP
width n
const T = 20
data X, y = csv("data/digits8x8.csv", rows = 0..32, target = "target", standardize = true)

param U : [n, 64]   ~ normal(0, 1/64),  lr = n        # init law
param W : hidden [2, n, n] ~ normal(0, 1/n)           # two matrices
param v : [n]       ~ normal(0, 1),     lr = n

model f(x) {                    # leading axes are batch axes
  h = U @ x
  z = tanh(h)
  for l in 0..2 { z = tanh(W[l] @ z) }
  return v @ z / n, z
}

for t in 0..T {
  out, z = f(X)
  loss = mse(out, y)
  report loss, out,
    K = gram(z), min_eig(gram(z))
  step sgd(loss, lr = 0.5, only = (U, v), scale = {W: n^2, U: n})
}
)",
    R"(fn f(x, c = 1, p = (1, 2)) {
  # chosen before the run
  if c == 1 { return x } else if c < 0 { return -x }
  else {
    y = phi(x)
    return y
  }
}
model g(x, act = tanh) { assert x > 0, "text"; return act(x) }
for i in 9..-1 by -2 { report f(i, c = 2), X[.. by -1], X[0..4 by 2, ..5 by 3] }
for x in [1, 2] { if x > 1 { report x } }
if a { b = 1 }

else { b = 2 }
)",
    R"(width n; random W : [n, n] ~ normal(0, 1/n)
random x : [n] ~ normal(0, 1)
y = W @ x
u = W' @ tanh(y)   # limit
report E(u * x), E(u^2)
expect E(u * x) == E(1 - tanh(y)^2) within 1e-3
)",
    R"(width n, m = 2 * n
parametrization abc(a = (0, 1/2), b = -.5)
fn phi(z) = where(z >= 0, z, 0.1 * z^2^-1) - -z
data Z = [
  [1, -2e3],  # first
  [3, 4],
]
A = Z[.., 0..1]'
for i in 0..n-1 { for j in i..3 {
    W[i] *= 1 - A[i, j..] ; W -= outer(x, x)
  } # done
}
)",
    "\r\nmodel g(a, b,) { return (a,), [b, [\"s\\n\\\"\", true]] }\r\nK = g(\r\n  1,\r\n\r\n  2 # "
    "two\r\n)[0]\r\n",
};

constexpr std::array<std::string_view, 44> kFragments = {
    "if a { ",
    "} else ",
    " by -1",
    "assert ",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "{\n",
    "}\n",
    "\n",
    "\r\n",
    ";",
    ",",
    ",\n",
    " ",
    "'",
    "..",
    "...",
    ".5",
    "1.",
    "1e5",
    "^-",
    "- ",
    "+",
    "@",
    " = ",
    "==",
    "+=",
    "~",
    ":",
    "# note\n",
    "#",
    "\"",
    "\\",
    "for i in 0..2 {",
    "model f(x) {",
    "return ",
    "report ",
    "param W : hidden [n] ~ normal(0, 1)",
    "\xC3\xA9",
    "\xFF",
};

class Mutator {
 public:
  explicit Mutator(std::uint32_t seed) : random_(seed) {}

  std::string random_bytes() {
    std::string text(below(200), '\0');
    for (char& c : text) c = static_cast<char>(below(256));
    return text;
  }

  std::string random_fragments() {
    std::string text;
    for (std::size_t i = below(60); i > 0; --i) text += fragment();
    return text;
  }

  std::string mutated_program() {
    std::string text(kSeeds[below(kSeeds.size())]);
    for (std::size_t i = 1 + below(4); i > 0; --i) mutate(text);
    return text;
  }

 private:
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(random_()) % bound; }
  std::string_view fragment() { return kFragments[below(kFragments.size())]; }

  /// A piece of `text` of at most `longest` bytes: offset and length.
  std::pair<std::size_t, std::size_t> piece(const std::string& text, std::size_t longest) {
    const std::size_t offset = below(text.size() + 1);
    return {offset, std::min(below(longest + 1), text.size() - offset)};
  }

  void mutate(std::string& text) {
    const auto [offset, length] = piece(text, 20);
    switch (below(6)) {
      case 0: text.erase(offset, length); break;
      case 1: text.insert(offset, text.substr(offset, length)); break;
      case 2: text.insert(offset, fragment()); break;
      case 3: text.replace(offset, length, fragment()); break;
      case 4: splice(text, offset); break;
      default:
        if (length > 0) text[offset] = static_cast<char>(below(256));
    }
  }

  void splice(std::string& text, std::size_t offset) {
    const std::string other(kSeeds[below(kSeeds.size())]);
    const auto [from, length] = piece(other, 200);
    text.insert(offset, other, from, length);
  }

  std::mt19937 random_;
};

/// Kind and text of every token that is not a line end; comments without the blanks behind them.
std::vector<std::pair<syntax::TokenKind, std::string>> meaning(std::string_view text) {
  std::vector<std::pair<syntax::TokenKind, std::string>> out;
  for (const syntax::Token& token : syntax::lex(text).tokens) {
    if (token.kind == syntax::TokenKind::kNewline) continue;
    std::string_view spelled = text.substr(token.span.begin, token.span.end - token.span.begin);
    spelled = spelled.substr(0, spelled.find_last_not_of(" \t") + 1);
    out.emplace_back(token.kind, spelled);
  }
  return out;
}

void expect_printable(const std::string& text) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = code_point_length(text, i);
    ASSERT_GT(length, 0u) << "invalid UTF-8";
    ASSERT_TRUE(length > 1 || text[i] >= ' ' || text[i] == '\t' || text[i] == '\n')
        << "control character";
    i += length;
  }
}

void check_errors(const Diagnostics& errors, const Source& source) {
  EXPECT_GE(errors.size(), 1u);
  EXPECT_LE(errors.size(), 20u);
  for (const Diagnostic& error : errors) {
    EXPECT_EQ(error.code.substr(0, 2), "E1");
    EXPECT_FALSE(error.message.empty());
    EXPECT_LE(error.span.begin, error.span.end);
    EXPECT_LE(error.span.end, source.text().size());
  }
  expect_printable(render(errors, source));
}

std::vector<std::string> statement_texts(const ast::Program& program, const Source& source) {
  std::vector<std::string> texts;
  for (const ast::Stmt& statement : program.statements)
    texts.push_back(canonical_text(source, statement.span));
  return texts;
}

void check_layout(const std::string& formatted, const ast::Program& program, const Source& source) {
  EXPECT_EQ(meaning(formatted), meaning(source.text()));
  EXPECT_EQ(formatted.find(" \n"), std::string::npos);
  EXPECT_EQ(formatted.find("\n\n\n"), std::string::npos);
  EXPECT_TRUE(formatted.empty() || formatted.ends_with('\n'));
  const Source formatted_source("formatted.tp", formatted);
  const auto again = format_source(formatted_source);
  ASSERT_TRUE(again.ok()) << render(again.errors(), formatted_source);
  EXPECT_EQ(*again, formatted);
  EXPECT_EQ(statement_texts(*parse_syntax(formatted_source), formatted_source),
            statement_texts(program, source));
}

/// Whatever the text: no crash, sound errors, and a layout that keeps the tokens.  Returns whether
/// it is a program.
bool check(const std::string& text) {
  const Source source("fuzz.tp", text);
  const auto program = parse_syntax(source);
  const auto formatted = format_source(source);
  EXPECT_EQ(program.ok(), formatted.ok());
  if (!program) {
    check_errors(program.errors(), source);
  } else if (formatted) {
    check_layout(*formatted, *program, source);
  }
  return program.ok();
}

/// Runs `cases` texts and returns how many were programs; stops at the first that breaks a promise.
template <class Next>
int run(int cases, Next next) {
  int programs = 0;
  for (int i = 0; i < cases; ++i) {
    const std::string text = next();
    programs += check(text) ? 1 : 0;
    if (testing::Test::HasFailure()) {
      ADD_FAILURE() << "case " << i << ":\n" << text;
      break;
    }
  }
  return programs;
}

TEST(SyntaxFuzz, SeedsAreProgramsAndKeepTheirTokens) {
  for (const std::string_view seed : kSeeds) {
    const Source source("seed.tp", std::string(seed));
    EXPECT_TRUE(check(source.text())) << render(parse_syntax(source).errors(), source);
  }
}

TEST(SyntaxFuzz, SurvivesRandomBytes) {
  Mutator mutator(1);
  run(4000, [&] { return mutator.random_bytes(); });
}

TEST(SyntaxFuzz, SurvivesRandomFragments) {
  Mutator mutator(2);
  run(6000, [&] { return mutator.random_fragments(); });
}

TEST(SyntaxFuzz, SurvivesMutatedPrograms) {
  Mutator mutator(3);
  const int programs = run(10000, [&] { return mutator.mutated_program(); });
  EXPECT_GT(programs, 500) << "mutations must leave enough programs to format";
}

TEST(SyntaxFuzz, SurvivesEveryPrefixOfAProgram) {
  for (const std::string_view seed : kSeeds) {
    std::size_t length = 0;
    run(static_cast<int>(seed.size()), [&] { return std::string(seed.substr(0, length++)); });
  }
}

}  // namespace
}  // namespace tplimit
