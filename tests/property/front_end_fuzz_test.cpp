#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "syntax/lexer.hpp"
#include "tplimit/driver/driver.hpp"

/// Programs that are almost right: every one must be accepted or rejected with located diagnostics,
/// never end in an exception.  The syntax alone is tested by syntax_fuzz_test.cpp; here mutations
/// keep tokens whole, so that most mutants reach names, shapes, unrolling, gradients and powers of
/// the width.
namespace tplimit {
namespace {

constexpr auto kCorpus = std::to_array<std::string_view>({
    R"(width n
const depth = 3
data X = [[1, 2], [0, 1], [2, -1], [1, 1]]
param U : [n, 2] ~ normal(0, 1/2), lr = n
param W : [3, n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
half = depth / 2
fn normed(x, eps = 1e-5, centred = true) {
  if centred { x = x - E(x) }
  return x / sqrt(E(x^2) + eps)
}
fn block(x, phi, c = half) = normed(x, centred = false) + c * phi(x)
model net(x, act = tanh) {
  h = U @ x
  for l in depth - 1..-1 by -1 {
    if l == 0 { h = act(W[l] @ h) } else if mod(l, 2) == 1 { h = block(W[l] @ h, act) } else { h = block(W[l] @ h, relu, c = 2) }
  }
  return v @ h / n, h
}
assert depth > 1, "too shallow"
for lr in [0.5, 0.1] {
  for t in 0..4 by 2 {
    out, h = net(X[t..t + 2])
    if t > 0 { report out, E(h[0]^2) }
    step sgd(mse(out, [1, -1]), lr = lr, only = (W[0], W[1..], U))
  }
}
for M in W { report E((M @ v)^2) }
for row in X { report row }
report X[.. by -1], X[0..4 by 3]
)",
    R"(width n
const T = 3
const eta = 0.5
data X = [[1, 2, 3], [0, 1, -1], [2, 0, 1], [1, 1, 1]]
data y = [1, -1, 0.5, -0.5]
param U : [n, 3] ~ normal(0, 1/3), lr = n
param W : [2, n, n] ~ normal(0, 1/n)
param v : [n] ~ normal(0, 1), lr = n
model f(x) {
  h = U @ x
  z = tanh(h)
  for l in 0..2 { z = tanh(W[l] @ z) }
  return v @ z / n, z
}
for t in 0..T {
  out, z = f(X)
  loss = mse(out, y)
  report loss, out, gram(z), min_eig(gram(z))
  step sgd(loss, lr = eta)
}
)",
    R"(width n
random W : [n, n] ~ normal(0, 1/n)
random x : [n] ~ normal(0, 1)
y = W @ x
u = W' @ tanh(y)
report E(u * x), E(u^2), K = gram(u, y)
expect E(u * x) == E(1 - tanh(y)^2) within 1e-3
)",
    R"(width n
data X = [[1, 2], [3, 4], [5, 6], [7, 8]]
data Y = [[1, 0], [0, 1], [1, 1], [0, 0]]
param U : [n, 2] ~ normal(0, 1/2), lr = n
param b : [n] ~ normal(0, 0.25), lr = n
param W : [n, n] ~ normal(0.5/n, 2/n), lr = 1
param V : [2, n] ~ normal(0, 1), lr = n
param c : [2] ~ normal(0, 0)
param s : [] ~ normal(1, 0.1)
model f(x, W) {
  z = relu(U @ x + b)
  z = s * gelu(W @ z) + W' @ elu(z, 0.5)
  return V @ z / n + c
}
for t in 0..4 {
  i = mod(2 * t, 4)
  out = f(X[i..i + 2], W)
  loss = mse(out, Y[i..i + 2])
  report loss, out
  step sgd(loss, lr = 0.1, only = (U, V, W), scale = {W: 2, V: n})
}
W *= 0.9
W += 0.1 * outer(b, V[0]) - outer(b, b) / n
report E(W @ b), norm(c)
)",
    R"(width n
random x : [3, n] ~ normal(0, [[1, 0.5, 0], [0.5, 1, 0.2], [0, 0.2, 1]])
random A : [3, 3] ~ normal(0, 1)
random g : [3, 4] ~ normal([1, 2, 3, 4], 0.5)
K = gram(x)
report K, eigvals(K), trace(K), norm(K), min_eig(K), A @ A', A[0], A[.., 1], A[0..2, 1..]
report samples(x[0], 5), hist(x[1], low = -3, high = 3, bins = 6)
report einsum("ij,jk->ik", A, g), einsum("ij,ij->", A, K), mean(A), mean(g, axis = 1), sum(A, axis = -1), max(A), max(g, axis = 0), min(A, 0)
expect trace(K) == sum(einsum("ij,ij->i", K, ones(3, 3) * one_hot([0, 1, 2], 3))) within 1e-6
)",
    R"(width n
random x : [n] ~ normal(0, 1)
random y : [2, n] ~ normal(0, 1)
fn phi(z) = where(z >= 0, z, 0.1 * z) + clip(z, -1, 1)
fn psi(a, b) = min(a, b) - max(a, abs(b)) + sign(a) * sin(b) * cos(a)
z = stack(x, phi(x), psi(x, y[0]))
w = concat(z, y, axis = 0)
report gram(w), E(w), mean(E(w)), E(mean(w)), E(stop(x)^2), E(sqrt(abs(x))), E(exp(-x^2 / 2)), E(log(1 + x^2))
report E(sigmoid(x) * softplus(x)), E(silu(x)), E(gelu_tanh(x)), E(erf(x)), E(leaky_relu(x, 0.2)), E(x^3), E(abs(x)^0.5)
expect E(x) == 0 within 0.1
)",
    R"(width n
const k = 4
param W : [n, n] ~ normal(0, 1/n)
param V : [k, n, n] ~ normal(0, 1/n)
random x : [2, n] ~ normal(0, 1)
h = x
for t in 0..k {
  h = tanh(W @ h + V[t] @ x + 0.5 * V[k - 1 - t]' @ h)
  for s in 0..2 { report q = E(h[s]^2), gram(h) }
}
loss = E(h[0] * h[1])
G = grad(loss, W)
report E((G @ h)^2), E(G' @ x * h) / n
W0 = W
step sgd(loss, lr = 0.1, only = W)
report E((W @ x - W0 @ x)^2)
)",
    R"(width n
param w : [n] ~ normal(1, 0), lr = n
param a : [] ~ normal(2, 0)
random e : [n] ~ normal(0, 1)
loss = (a * w @ e / n - 1)^2 / 2
other = E(w^2) / 2
step sgd(loss, lr = 0.1), sgd(other, lr = 0.01, only = (w,))
g = grad(E(tanh(w * e)), w)
report a, E(w), E(g * n), E((w - e) / (1 + w^2))
w = w + 0.5 * e
w *= 2
a -= 1
report a, E(w^2), pi * inf^-1
)",
    R"(width m
data P = [[1, 2, 3], [4, 5, 6]]
order = permutation(6, 1)
random z : [6, m] ~ normal(0, 1)
for e in 0..2 {
  for i in 0..3 {
    batch = order[2 * i..2 * i + 2]
    Z = z[batch]
    report E(Z), P[e, i], P'[i], (P @ P)[e]
  }
}
Q = z[[0, 2, 4]]
report gram(Q), gram(Q, z[..3]), Q[0] @ Q[1] / m, E(Q[-1]), mod(P, 2), P^2 / 2, (P <= 3) * P
)",
    R"(width n
random U : [n, 3] ~ normal(0, 1)
random v : [n] ~ normal(0, 1)
data X = [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]]
h = U @ X
report gram(h), E(h), v @ h / n, U' @ v / n, einsum("abi,i->ab", X, [1, 2, 3]), E(U), (v @ U') / n, sum(v @ h) / n
s = einsum("abn,n->abn", h, v)
t = einsum("abn,acn->bcn", h, s)
report E(s), E(t), mean(X, axis = 0), E(max(h, axis = 0)), E(sum(h))
)",
    R"(width n
random W : [n, n] ~ normal(0, 1)
random x : [n] ~ normal(0, n)
y = W @ x / n
z = tanh(y) * n^(1/2) / sqrt(n)
c = 1 / n
report E(z^2), E(x^2) * c, E(y * x) * c^2 * n, n * c, E(relu(x * n^-0.5)), E(x / sqrt(n) * z)
expect n * c == 1 within 0
)",
    R"(width n
param u : [n] ~ normal(0, 1), lr = n
param v : [n] ~ normal(0, 1), lr = n
random x : [n] ~ normal(0, 1)
for t in 0..2 {
  f = E(v * tanh(u + x))
  loss = (f - 1)^2 / 2
  gu = grad(loss, u)
  gv = grad(loss, v)
  penalty = E((gu * n)^2) + E((gv * n)^2)
  report loss, penalty
  step sgd(loss + 0.1 * penalty, lr = 0.2)
}
)",
    R"(width n
random a : [4, n] ~ normal(0, 1)
model attend(q, k, v) {
  s = gram(q, k)
  w = exp(s - stop(max(s)))
  w = w / sum(w)
  return w @ v', w
}
model twice(x) {
  y, w = attend(x, x, x)
  return y' + x
}
report gram(a)
b = einsum("ij,jn->in", gram(a), a)
report gram(b), einsum("ij,jn->in", gram(a) / trace(gram(a)), b)[0] @ a[1] / n
)",
    "width n; random x : [n] ~ normal(0, 1); y = x; for i in 0..3 { y = y + i * x } ; report E(y * "
    "x), y @ x / n\n",
    R"(width n
param M : [2, 2, n, n] ~ normal(0, 1/n)
random x : [2, n] ~ normal(0, 1)
y = M[0, 1] @ x + M[1, 0]' @ tanh(M[1, 1] @ x) - (M[0, 0] + 2 * M[0, 1]) @ x / 3
loss = E(y[0] * y[1])
step sgd(loss, lr = 0.1)
N = M[0]
N2 = stack(M[0, 0], M[0, 1])
report loss, E((N[1] @ x)^2), E((N2[0] @ x)^2)
M[0, 0] *= 0.5
M[0, 1] += outer(x[0], x[1])
report E((M[0, 0] @ x)^2)
)",
    R"(width n
param A : [n, 2] ~ normal(0, [1, 4]), lr = n
param B : [2, n] ~ normal(0, 1), lr = n
random W : [n, n] ~ normal(0, 1/n)
random x : [n] ~ normal(0, 1)
low = A @ (B @ x / n)
z = tanh(W @ x + low)
loss = E(z * x)^2
step sgd(loss, lr = 0.01, only = [B])
A += 0.1 * outer(z, B @ z / n)
B -= outer(B @ x / n, x) * 0.5
report loss, E(A), A' @ A' / n, B @ B / n
)",
    R"(const a = [1, 2, 3]
const b = [[1, 2], [3, 4]]
c = b @ [1, 1]
data d = a * 2
report a + d, c, b', b @ b, sum(a), max(a, 2), a[1..], a[[0, 2]], -a, a^2, a / d, a < 2, where(a != 2, a, 0), norm(a), outer(a, d), zeros(2, 3), concat(a, d)
expect sum(a) == 6 within 0
)"});

constexpr auto kFragments = std::to_array<std::string_view>({"0",
                                                             "1",
                                                             "2",
                                                             "3",
                                                             "-1",
                                                             "0.5",
                                                             "1e300",
                                                             "1e-300",
                                                             "1000",
                                                             "1e9",
                                                             "7",
                                                             "n",
                                                             "x",
                                                             "y",
                                                             "W",
                                                             "X",
                                                             "inf",
                                                             "pi",
                                                             "0/0",
                                                             "[]",
                                                             "[1]",
                                                             "[0, 1]",
                                                             "[[1, 2], [3, 4]]",
                                                             "\"ij,jk->ik\"",
                                                             "true",
                                                             "+",
                                                             "-",
                                                             "*",
                                                             "/",
                                                             "^",
                                                             "@",
                                                             "'",
                                                             "==",
                                                             "<",
                                                             "..",
                                                             "0..2",
                                                             "1..1",
                                                             "[0]",
                                                             "[..]",
                                                             "[-1]",
                                                             "[0..1]",
                                                             "[..1, 0]",
                                                             "(",
                                                             ")",
                                                             ",",
                                                             "E(x)",
                                                             "E",
                                                             "gram",
                                                             "stack",
                                                             "concat",
                                                             "sum",
                                                             "max",
                                                             "mean",
                                                             "eigvals",
                                                             "trace",
                                                             "norm",
                                                             "samples",
                                                             "hist",
                                                             "outer",
                                                             "grad",
                                                             "stop",
                                                             "einsum",
                                                             "one_hot",
                                                             "zeros",
                                                             "ones",
                                                             "permutation",
                                                             "tanh",
                                                             "log",
                                                             "sqrt",
                                                             "relu",
                                                             "axis = 0",
                                                             "axis = -1",
                                                             "n^(1/2)",
                                                             "n^-1",
                                                             "sqrt(n)",
                                                             "grad(loss, W)",
                                                             "outer(x, x)",
                                                             "zeros(n)",
                                                             "ones(2, n)"});

class Mutator {
 public:
  explicit Mutator(std::uint32_t seed) : random_(seed) {}

  std::string mutated_program() {
    std::string text(kCorpus[below(kCorpus.size())]);
    for (std::size_t k = 1 + below(2); k > 0; --k) text = mutated(text);
    return text;
  }

 private:
  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(random_()) % bound; }

  /// Tokens that carry meaning: newlines and comments stay where they are.
  std::vector<Span> tokens(const std::string& text) const {
    std::vector<Span> out;
    for (const auto& token : syntax::lex(text).tokens)
      if (token.kind != syntax::TokenKind::kEnd && !syntax::is_layout(token.kind))
        out.push_back(token.span);
    return out;
  }

  std::string mutated(const std::string& text) {
    const std::vector<Span> all = tokens(text);
    if (all.size() < 4) return text;
    const auto cut = [&](Span s) { return text.substr(s.begin, s.end - s.begin); };
    const auto replaced = [&](Span s, const std::string& by) {
      return text.substr(0, s.begin) + by + text.substr(s.end);
    };
    const Span one = all[below(all.size())], two = all[below(all.size())];
    const auto kind = [&](Span s) { return syntax::lex(cut(s)).tokens[0].kind; };
    switch (below(9)) {
      case 0: {  // two tokens change places
        if (one.end > two.begin) return text;
        return text.substr(0, one.begin) + cut(two) + text.substr(one.end, two.begin - one.end) +
               cut(one) + text.substr(two.end);
      }
      case 1: return replaced(one, cut(two));
      case 2: return replaced(one, "");
      case 3: return replaced(one, " " + std::string(kFragments[below(kFragments.size())]) + " ");
      case 4:
        return replaced({one.end, one.end},
                        " " + std::string(kFragments[below(kFragments.size())]) + " ");
      case 5: {  // a token by another one of its kind
        const auto wanted = kind(one);
        std::vector<Span> same;
        for (const Span s : all)
          if (kind(s) == wanted) same.push_back(s);
        return replaced(one, cut(same[below(same.size())]));
      }
      case 6: {  // an axis or argument and its comma go
        for (std::size_t k = below(all.size()); k + 1 < all.size(); ++k)
          if (cut(all[k]) == ",") return text.substr(0, all[k].begin) + text.substr(all[k + 1].end);
        return text;
      }
      case 7: {  // a line is repeated elsewhere
        const auto line = [&](Span s) {
          const std::size_t begin = text.rfind('\n', s.begin), end = text.find('\n', s.begin);
          return text.substr(begin == std::string::npos ? 0 : begin + 1,
                             (end == std::string::npos ? text.size() : end) -
                                 (begin == std::string::npos ? 0 : begin + 1));
        };
        const std::size_t at = text.find('\n', two.begin);
        return at == std::string::npos ? text
                                       : text.substr(0, at) + "\n" + line(one) + text.substr(at);
      }
      default: {  // a name or number in a call, indexed or transposed
        const std::array<std::pair<const char*, const char*>, 8> wraps{{{"E(", ")"},
                                                                        {"stop(", ")"},
                                                                        {"", "'"},
                                                                        {"", "[0]"},
                                                                        {"stack(", ")"},
                                                                        {"(", ", 1)"},
                                                                        {"-", ""},
                                                                        {"", " / n"}}};
        const auto [before, after] = wraps[below(wraps.size())];
        return replaced(one, before + cut(one) + after);
      }
    }
  }

  std::mt19937 random_;
};

/// How far a program came; exceptions are failures.
enum class Reached { kRejected, kLowered, kLimit };

Reached check_program(const std::string& text) {
  const Source source("mutant.tp", text);
  const auto show = [&](const Diagnostics& errors) {
    EXPECT_FALSE(errors.empty());
    for (const Diagnostic& d : errors) {
      EXPECT_FALSE(d.code.empty()) << text;
      EXPECT_FALSE(d.message.empty()) << text;
      EXPECT_LE(d.span.end, text.size()) << d.code << text;
      // Only what has no place in the text may be unlocated.
      EXPECT_TRUE(d.located || d.code == "E2601") << d.code << '\n' << text;
    }
    EXPECT_FALSE(render(errors, source).empty());
  };
  auto module = parse(source);
  if (!module) {
    show(module.errors());
    return Reached::kRejected;
  }
  const auto limit = check(*module);
  if (!limit) {
    show(limit.errors());
    return Reached::kLowered;
  }
  ir::verify(limit->program);
  return Reached::kLimit;
}

TEST(FrontEnd, AcceptsTheCorpus) {
  for (const std::string_view text : kCorpus) {
    const Source source("corpus.tp", std::string(text));
    auto module = parse(source);
    EXPECT_TRUE(module.ok()) << text << render(module.errors(), source);
    if (!module) continue;
    EXPECT_NO_THROW((void)check(*module)) << text;
  }
}

TEST(FrontEnd, NeverThrowsOnMutatedPrograms) {
  const char* asked =
      std::getenv("TPLIMIT_FUZZ_PROGRAMS");  // more than the default, to search longer
  const int programs = asked ? std::atoi(asked) : 20000;
  int counts[3] = {0, 0, 0};
  for (int k = 0; k < programs; ++k) {
    const auto seed = static_cast<std::uint32_t>(k);
    const std::string text = Mutator(seed).mutated_program();
    const auto start = std::chrono::steady_clock::now();
    try {
      ++counts[static_cast<int>(check_program(text))];
      const double seconds =
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      EXPECT_LT(seconds, 10) << "seed " << seed << "\n---\n" << text;
    } catch (const std::exception& error) {
      FAIL() << "seed " << seed << ": " << error.what() << "\n---\n" << text;
    }
  }
  // The mutations are mild enough to get behind the parser.
  EXPECT_GT(counts[1] + counts[2], programs / 10);
  EXPECT_GT(counts[2], programs / 20);
}

}  // namespace
}  // namespace tplimit
