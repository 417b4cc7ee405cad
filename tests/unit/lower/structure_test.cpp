/// What structures programs: functions and their arguments, `if`, loops over lists, `assert`,
/// entries of arrays in steps.  Each says the same as a longer program without it.

#include <algorithm>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "tplimit/lower/lower.hpp"
#include "tplimit/passes/passes.hpp"
#include "tplimit/syntax/parser.hpp"

namespace tplimit {
namespace {

Result<Lowered> lowered(const Source& source) {
  const auto ast = parse_syntax(source);
  if (!ast) return ast.errors();
  return lower(*ast, source, {});
}

/// Instructions and reports, or what is wrong.
std::string ir_of(const std::string& text) {
  const Source source("test.tp", text);
  const auto found = lowered(source);
  return found ? to_text(erase_identities(found->program)) : render(found.errors(), source);
}

const std::string kStart =
    "width n\n"
    "data X = [[1, 2], [0, 1], [3, -1]]\n"
    "param U : [n, 2] ~ normal(0, 1/2), lr = n\n"
    "param W : [3, n, n] ~ normal(0, 1/n)\n"
    "param b : [3, n] ~ normal(0, 1), lr = n\n"
    "param v : [n] ~ normal(0, 1), lr = n\n";

/// The instructions without their numbers, sorted: programs that differ in their order are equal.
std::string unordered(const std::string& ir) {
  std::vector<std::string> lines;
  std::istringstream in(ir);
  for (std::string line; std::getline(in, line);)
    lines.push_back(std::regex_replace(line, std::regex("%[0-9]+"), "%"));
  std::sort(lines.begin(), lines.end());
  return fmt::format("{}", fmt::join(lines, "\n"));
}

void expect_same(const std::string& short_form, const std::string& long_form) {
  const std::string expected = ir_of(kStart + long_form);
  ASSERT_EQ(expected.find("error"), std::string::npos) << expected;
  EXPECT_EQ(ir_of(kStart + short_form), expected) << short_form;
}

TEST(Structure, AFunctionMayHaveStatementsAndDefaults) {
  expect_same(
      "fn f(x, c = 2, phi = tanh) {\n  h = U @ x\n  z = phi(c * h)\n  return z, h\n}\n"
      "z, h = f(X)\nw, g = f(X, phi = relu, c = 3)\nreport p = gram(z, h), q = gram(w, g)\n",
      "h = U @ X\nz = tanh(2 * h)\nw = relu(3 * h)\nreport p = gram(z, h), q = gram(w, h)\n");
}

TEST(Structure, ADefaultMayNameAnArgumentBeforeIt) {
  expect_same("fn f(x, a = 2, c = a + 1) = c * x\nreport p = f(X), q = f(X, 5), r = f(X, c = 1)\n",
              "report p = 3 * X, q = 6 * X, r = X\n");
}

TEST(Structure, FunctionsAreArguments) {
  expect_same(
      "fn twice(x, phi) = phi(phi(x))\nfn psi(x) = x^2\nfn apply(x, f, g) = f(x, g)\n"
      "h = U @ X\nact = erf\n"
      "report p = E(twice(h, tanh)), q = E(twice(h, psi)), r = E(apply(h, twice, act))\n",
      "h = U @ X\nreport p = E(tanh(tanh(h))), q = E((h^2)^2), r = E(erf(erf(h)))\n");
}

TEST(Structure, AModelSeesWhatIsKnownBeforeTheRun) {
  expect_same(
      "const a = 3\nN = a + 1\nX2 = X / N\nmodel f() { return t * E((U @ X2)^2 / N) }\n"
      "for t in 0..2 { report r = f() }\n",
      "for t in 0..2 { report r = t * E((U @ (X / 4))^2 / 4) }\n");
}

TEST(Structure, BranchesAreChosenBeforeTheRun) {
  expect_same(
      "h = U @ X\n"
      "for l in 0..3 {\n  if l == 0 { h = tanh(h) }\n  else if l < 2 { h = h + W[l] @ h }\n"
      "  else { h = W[l] @ h }\n}\n"
      "fn f(x, norm = true) {\n  if norm { return x / sqrt(E(x^2)) }\n  return x\n}\n"
      "report p = gram(f(h)), q = gram(f(h, norm = false))\n",
      "h = tanh(U @ X)\nh = h + W[1] @ h\nh = W[2] @ h\n"
      "report p = gram(h / sqrt(E(h^2))), q = gram(h)\n");
}

TEST(Structure, LoopsRunOverListsAndStrides) {
  expect_same(
      "s = 0\nfor c in [2, 0.5] { s = s + c * X }\nfor row in X { s = s + row }\n"
      "for k in 2..-1 by -2 { s = s + k }\nfor f in (tanh, relu) { s = s + f(X) }\n"
      "h = U @ X\nfor M in W { h = M @ h }\nreport s, gram(h), p = X[0..3 by 2], q = X[.. by -1]\n",
      "s = 0 + 2 * X + 0.5 * X + X[0] + X[1] + X[2] + 2 + 0 + tanh(X) + relu(X)\n"
      "h = W[2] @ W[1] @ W[0] @ (U @ X)\nreport s, gram(h), p = X[[0, 2]], q = X[[2, 1, 0]]\n");
}

TEST(Structure, ReportsInLoopsAreNumberedByValuesOrPositions) {
  const auto indices = [](const std::string& loop) {
    const auto found = lowered(Source("test.tp", loop + " { report r = 1 }\nreport 1\n"));
    std::string out;
    if (!found) return render(found.errors(), Source("test.tp", loop));
    const ir::Report& report = found->program.reports.at(0);
    out = report.index_names.at(0) + ":";
    for (const auto& entry : report.entries) out += fmt::format(" {}", entry.index.at(0));
    return out;
  };
  EXPECT_EQ(indices("for t in 0..7 by 3"), "t: 0 3 6");
  EXPECT_EQ(indices("for t in 5..0 by -2"), "t: 5 3 1");
  EXPECT_EQ(indices("for t in [4, 1, 8]"), "t: 4 1 8");
  EXPECT_EQ(indices("for t in [0.5, 1]"), "t index: 0 1");
  EXPECT_EQ(indices("for t in [1, 1]"), "t index: 0 1");
}

TEST(Structure, StepsMoveEntriesOfArrays) {
  const std::string model =
      "h = tanh(U @ X)\nfor l in 0..3 { h = tanh(W[l] @ h + b[l]) }\nloss = E(h[0] * h[1])\n";
  for (const std::string form : {"sgd(loss, lr = 0.1{})", "sgd(loss, lr = 0.1, momentum = 0.9{})",
                                 "adam(loss, lr = 0.1{})", "muon(loss, lr = 0.1{})"}) {
    const auto with = [&](const std::string& only) {
      return fmt::format(fmt::runtime(form), ", only = " + only);
    };
    // One entry by itself moves as it does beside others, and the others stay.
    const std::string all = ir_of(kStart + model + "V = W\nstep " + with("W") +
                                  "\nx = tanh(U @ X)\nreport gram(W[1] @ x), r = gram(V[0] @ x)\n");
    const std::string one = ir_of(kStart + model + "step " + with("(W[1],)") +
                                  "\nx = tanh(U @ X)\nreport gram(W[1] @ x), r = gram(W[0] @ x)\n");
    EXPECT_EQ(one.find("error"), std::string::npos) << one;
    EXPECT_EQ(unordered(one), unordered(all)) << form;
  }
}

TEST(StandardLibrary, IsWhatItsFormulasSay) {
  expect_same("h = U @ X\nreport p = gram(layernorm(h)), q = gram(rmsnorm(h, eps = 0))\n",
              "h = U @ X\nc = h - E(h)\n"
              "report p = gram(c / sqrt(E(c^2) + 1e-5)), q = gram(h / sqrt(E(h^2)))\n");
  expect_same("report r = positions(3), p = causal_mask(3), q = avg_pool(X, 2, stride = 1)\n",
              "report r = [0, 1, 2], p = [[1, 0, 0], [1, 1, 0], [1, 1, 1]], "
              "q = (X[0..2] + X[1..3]) / 2\n");
  expect_same("h = tanh(U @ X)\nreport p = gram(attention(h, h, h, causal_mask(3)))\n",
              "h = tanh(U @ X)\nw = causal_mask(3) * softmax(gram(h, h))\n"
              "report p = gram((w / sum(w, axis = -1, keepdims = true)) @ h)\n");
}

TEST(StandardLibrary, ConvolvesWithStridePaddingAndAroundTheEdge) {
  expect_same(
      "h = U @ X\nreport p = gram(conv1d(h, W)), q = gram(conv1d(h, W, circular = true, "
      "padding = 1))\n",
      "h = U @ X\nreport p = gram(W[0] @ h[[0]] + W[1] @ h[[1]] + W[2] @ h[[2]]),\n"
      "q = gram(W[0] @ h[[2, 0, 1]] + W[1] @ h + W[2] @ h[[1, 2, 0]])\n");
  expect_same("report p = conv1d(X, ones(2, 1, 2), stride = 2, padding = 1)\n",
              "report p = [[3], [3]]\n");
  const std::string image =
      "data I = [[[1], [2], [3]], [[4], [5], [6]], [[7], [8], [9]]]\n"
      "data w = [[[[1]], [[0]]], [[[0]], [[10]]]]\n";
  expect_same(image +
                  "report p = conv2d(I, w)[.., .., 0], q = conv2d(I, w, padding = 1)[.., .., "
                  "0], r = conv2d(I, w, stride = 2)[.., .., 0]\n",
              image +
                  "report p = [[51, 62], [84, 95]], q = [[10, 20, 30, 0], [40, 51, 62, 3], "
                  "[70, 84, 95, 6], [0, 7, 8, 9]], r = [[51]]\n");
  expect_same(image + "report p = conv2d(I, w, padding = 1, circular = true)[0, 0, 0]\n",
              image + "report p = 9 + 10 * 1\n");
}

TEST(StandardLibrary, GivesWayToTheProgram) {
  expect_same("fn positions(k) = k\nP = 3\nreport p = positions(P), q = causal_mask(2)\n",
              "report p = 3, q = [[1, 0], [1, 1]]\n");
}

TEST(StandardLibrary, ErrorsPointAtTheCall) {
  const std::string text = "report conv1d([[1], [2]], ones(3, 1, 1))\n";
  EXPECT_EQ(ir_of(text),
            "test.tp:1:8: error[E2608]: the kernel of conv1d is longer than its input\n"
            "   1 | report conv1d([[1], [2]], ones(3, 1, 1))\n"
            "     |        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ the number 2 and the number 3\n"
            "test.tp:1:8: note: inside 'conv1d' of the standard library: tplimit std conv1d\n");
}

TEST(StructureErrors, NameWhatIsWrong) {
  const auto code = [](const std::string& text) {
    const auto found = lowered(Source("test.tp", kStart + text));
    return found ? std::string("none") : found.errors().at(0).code;
  };
  EXPECT_EQ(code("if E(v) > 0 { report 1 }"), "E2331");
  EXPECT_EQ(code("if X > 0 { report 1 }"), "E2331");
  EXPECT_EQ(code("assert E(v) > 0"), "E2331");
  EXPECT_EQ(code("assert 1 > 2, \"one is less\""), "E2608");
  EXPECT_EQ(code("for i in 0..3 by 0 { report i }"), "E2332");
  EXPECT_EQ(code("for i in v { report 1 }"), "E2321");
  EXPECT_EQ(code("fn f(x) = x\nreport f(x = 1, x = 2)"), "E2113");
  EXPECT_EQ(code("fn f(x) = x\nreport f(1, x = 2)"), "E2113");
  EXPECT_EQ(code("fn f(x) = x\nreport f(y = 2)"), "E2108");
  EXPECT_EQ(code("fn f(x, y = 1) = x\nreport f()"), "E2109");
  EXPECT_EQ(code("fn f(x = 1, y) = x"), "E1033");
  EXPECT_EQ(code("c = 3\nreport c(2)"), "E2107");
  EXPECT_EQ(code("loss = E(v^2)\nstep sgd(loss, lr = 1, only = (W[0], v))"), "E2328");
  EXPECT_EQ(code("loss = E((W[0] @ v)^2)\nstep sgd(loss, lr = 1, only = (W[1],))"), "E2328");
  EXPECT_EQ(code("loss = E(v^2)\nstep sgd(loss, lr = 1, only = (v[0],))"), "E2210");
  EXPECT_EQ(code("for i in 0..2 { for j in 0..2 { if i == j { report i } } }"), "E2607");
}

}  // namespace
}  // namespace tplimit
