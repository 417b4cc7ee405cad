#!/usr/bin/env python3
"""Kernels of rnn.tp, transformer.tp, cnn.tp and batchnorm.tp at initialisation, in 40 digits from
published formulas and not from tplimit; writes kernels.json.

  pip install mpmath numpy; ./kernels.py [--check]

relu: arc-cosine kernels (Cho and Saul 2009). erf: Williams 1997. gelu: E(x y 1(u > 0) 1(v > 0)) of
Gaussians u = x - z, v = y - z' (as Tsuchida et al. 2020), here by regression on (u, v).
RNN: Yang 2019, arXiv 1910.12478 (NNGP); Alemohammad et al. 2020, arXiv 2006.10246 (NTK).
CNN: Novak et al. 2018, arXiv 1810.05148 (NNGP); Arora et al. 2019, arXiv 1904.11955 (NTK).
Batch normalisation: Yang et al. 2019, arXiv 1902.08129: 1 / q as the integral of exp(-s q) leaves a
Gaussian expectation under the integral. --check compares the formulas with brute quadrature."""
import itertools
import json
import math
import pathlib
import sys

import mpmath as mp
import numpy
from mpmath import mpf

mp.mp.dps = 40
HERE = pathlib.Path(__file__).resolve().parent


# ---- E phi(x) phi(y) and E phi'(x) phi'(y) under the covariance [[a, c], [c, b]]

def root(x):
    return mp.sqrt(x) if x > 0 else mpf(0)


def angle(a, b, c):  # pi - acos(correlation)
    return mp.atan2(root(a * b - c * c), -c)


def relu(a, b, c):
    return (root(a * b - c * c) + c * angle(a, b, c)) / (2 * mp.pi)


def relu_slope(a, b, c):
    return mpf(0) if a == 0 or b == 0 else angle(a, b, c) / (2 * mp.pi)


def erf(a, b, c):
    return 2 / mp.pi * mp.asin(2 * c / mp.sqrt((1 + 2 * a) * (1 + 2 * b)))


def erf_slope(a, b, c):
    return 4 / mp.pi / mp.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c)


def gelu(a, b, c):
    s, t = mp.sqrt(1 + a), mp.sqrt(1 + b)
    rho = c / (s * t)
    rest = mp.sqrt(1 - rho * rho)
    both = mpf(1) / 4 + mp.asin(rho) / (2 * mp.pi)  # P(u > 0, v > 0)
    T = mp.matrix([[s * s * (both + rho * rest / (2 * mp.pi)), 0],
                   [0, t * t * (both + rho * rest / (2 * mp.pi))]])
    T[0, 1] = T[1, 0] = s * t * (rest / (2 * mp.pi) + rho * both)  # E(u v 1 1)
    M = mp.matrix([[a, c], [c, b]]) * mp.matrix([[1 + a, c], [c, 1 + b]])**-1
    # (x, y) = M (u, v) + r, with Cov r = M as Cov(u, v) - Cov(x, y) = 1
    return M[0, 1] * both + (M * T * M.T)[0, 1]


def through(kernel, K):
    return table(len(K), lambda i, j: kernel(K[i][i], K[j][j], K[i][j]))


def table(n, f):
    return [[f(i, j) for j in range(n)] for i in range(n)]


def flat(K):
    return [float(x) for row in K for x in row]


def numbers(x):
    return [numbers(y) for y in x] if isinstance(x, list) else mpf(str(x))


# ---- recurrent network

def rnn():
    X = numbers([[1, 0.5, -1, 0.2], [-0.3, 1, 0.4, -1], [0.7, -0.6, 0.1, 0.9]])
    u, b, w, P, S = mpf('0.5'), mpf('0.2'), mpf('1.5'), 3, 4
    found = {}
    for name, kernel, slope in (('erf', erf, erf_slope), ('relu', relu, relu_slope)):
        # One matrix at all times: preactivations of all (time, sequence) are jointly Gaussian.
        states = list(itertools.product(range(S), range(P)))
        Z, H = {}, {}  # of preactivations and of states, time by time
        for level in range(S):
            pairs = [(s, t) for s in range(level + 1) for t in range(level + 1)
                     if max(s, t) == level]
            for s, t in pairs:
                for i, j in itertools.product(range(P), range(P)):
                    past = w * H[s - 1, i, t - 1, j] if s > 0 and t > 0 else 0
                    Z[s, i, t, j] = past + u * X[i][s] * X[j][t] + b
            for s, t in pairs:
                for i, j in itertools.product(range(P), range(P)):
                    H[s, i, t, j] = kernel(Z[s, i, s, i], Z[t, j, t, j], Z[s, i, t, j])
        found[name + '_states'] = flat([[H[p + q] for q in states] for p in states])
        last = table(P, lambda i, j: H[S - 1, i, S - 1, j])
        found[name + '_nngp'] = flat(last)

        def ntk(i, j):
            # back = E dz dz'; gradients of different times are uncorrelated.
            total, back = last[i][j], mpf(1)
            for s in reversed(range(S)):
                back *= slope(Z[s, i, s, i], Z[s, j, s, j], Z[s, i, s, j])
                total += back * (X[i][s] * X[j][s] + 1 + (H[s - 1, i, s - 1, j] if s > 0 else 0))
                back *= w
            return total
        found[name + '_ntk'] = flat(table(P, ntk))
    return found


# ---- transformer

def transformer():
    text, labels, S = [0, 1, 2, 0, 1, 3], [1, 2, 0, 1, 3, 0], 6
    eps = mpf('1e-5')

    def norm(K):
        return table(S, lambda i, j: K[i][j] / mp.sqrt((K[i][i] + eps) * (K[j][j] + eps)))

    def mix(weights, K):
        return table(S, lambda i, j: sum(weights[i][k] * weights[j][l] * K[k][l]
                                         for k in range(i + 1) for l in range(j + 1)))

    def plus(K, factor, L):
        return table(S, lambda i, j: K[i][j] + factor * L[i][j])

    def scaled(factor, K):
        return [[factor * x for x in row] for row in K]

    def causal_softmax(scores):
        rows = [[mp.exp(scores[i][j]) if j <= i else mpf(0) for j in range(S)] for i in range(S)]
        return [[x / sum(row) for x in row] for row in rows]

    found = {}
    K = table(S, lambda i, j: (text[i] == text[j]) + (mpf('0.5') if i == j else mpf(0)))
    K = plus(K, 1, mix(causal_softmax(table(S, lambda i, j: mpf(0))), norm(K)))
    K = plus(K, 1, through(gelu, scaled(2, norm(K))))
    found['first'] = flat(K)
    h = norm(K)
    K = plus(K, mpf('0.7'), mix(causal_softmax(scaled(mpf('0.8') * mpf('1.5'), h)), h))
    K = plus(K, 1, through(relu, scaled(2, norm(K))))
    found['second'] = flat(K)
    logits = [[(text[i] == c) / mp.sqrt(K[i][i] + eps) for c in range(4)] for i in range(S)]
    found['logits'] = flat(logits)
    found['loss'] = [float(sum(mp.log(sum(mp.exp(x) for x in logits[i])) - logits[i][labels[i]]
                               for i in range(S)) / S)]
    found['mean(outputs)'] = [0.0] * S
    found['cov(outputs)'] = flat(norm(K))
    return found


# ---- convolutional network

def cnn():
    X = numbers([[[0.3, -0.7, 1.1, 0], [0.5, 0.2, -0.4, 0.9],
                  [-1.2, 0.8, 0.1, -0.6], [0, 0.4, -0.3, 1]],
                 [[1, 0.1, -0.2, 0.6], [-0.5, 0.7, 0.3, -0.8],
                  [0.2, -0.1, 0.9, 0.4], [-0.6, 1.2, 0, -0.3]]])

    def grid(n):
        return list(itertools.product(range(n), range(n)))

    def conv(K, taps, out):  # sum over taps of K shifted, zeros outside; padding 1
        return {(i, p, j, q): sum(K.get((i, (p[0] + k - 1, p[1] + l - 1),
                                         j, (q[0] + k - 1, q[1] + l - 1)), mpf(0))
                                  for k, l in grid(taps))
                for i in range(2) for j in range(2) for p in grid(out) for q in grid(out)}

    def pool(K):
        def window(p):
            return [(2 * p[0] + k, 2 * p[1] + l) for k, l in grid(2)]
        return {(i, p, j, q): sum(K[i, r, j, s] for r in window(p) for s in window(q)) / 16
                for i in range(2) for j in range(2) for p in grid(2) for q in grid(2)}

    found = {}
    for name, kernel, slope in (('relu', relu, relu_slope), ('erf', erf, erf_slope)):
        def act(K, f):
            return {(i, p, j, q): f(K[i, p, i, p], K[j, q, j, q], K[i, p, j, q])
                    for i, p, j, q in K}

        def times(K, L, factor=1):
            return {e: factor * K[e] * L[e] for e in K}

        K = {(i, p, j, q): X[i][p[0]][p[1]] * X[j][q[0]][q[1]]
             for i in range(2) for j in range(2) for p in grid(4) for q in grid(4)}
        T = conv(K, 3, 4)  # of the rate 1 of K1
        K = {e: mpf(2) / 9 * x for e, x in T.items()}
        T = times(T, act(K, slope))
        K, T = pool(act(K, kernel)), pool(T)
        K, T = conv(K, 2, 3), conv(T, 2, 3)
        T = {e: mpf(2) / 4 * T[e] + K[e] for e in T}  # rate 1 / n of K2
        K = {e: mpf(2) / 4 * x for e, x in K.items()}
        T = times(T, act(K, slope))
        K = act(K, kernel)

        def mean(K):
            return table(2, lambda i, j: sum(K[i, p, j, q] for p in grid(3) for q in grid(3)) / 81)
        K, T = mean(K), mean(T)
        found[name + '_nngp'] = flat(K)
        found[name + '_ntk'] = flat(table(2, lambda i, j: K[i][j] + T[i][j]))
    return found


# ---- batch normalisation

def batchnorm(K, kernel, eps, step=mpf('0.14')):
    """E phi(y) phi(y)', y = z / sqrt(|z|^2 / B + eps), z = G h, h ~ N(0, K), phi of degree 1."""
    B = len(K)
    G = mp.eye(B) - mp.ones(B) / B
    C = G * mp.matrix(K) * G
    values, vectors = mp.eigsy(C)
    values = [v if v > mpf('1e-30') else mpf(0) for v in values]  # 0: of (1, .., 1)
    total = table(B, lambda i, j: mpf(0))
    t = mpf(-95)
    while t < 140:  # s = e^t; the trapezoidal rule converges geometrically
        s = mp.exp(t)
        weight = s * mp.exp(-s * eps) * step
        for v in values:
            weight /= mp.sqrt(1 + 2 * s * v / B)
        if weight > mpf('1e-45'):
            tilted = [v / (1 + 2 * s * v / B) for v in values]
            L = vectors * mp.diag(tilted) * vectors.T
            for i in range(B):
                for j in range(B):
                    total[i][j] += weight * kernel(L[i, i], L[j, j], L[i, j])
        t += step
    return total


def identity(a, b, c):
    return c


def gram(X, variance):
    X = numbers(X)
    return table(len(X), lambda i, j: variance * sum(x * y for x, y in zip(X[i], X[j])))


def batchnorms():
    K2 = gram([[1], [-0.4]], mpf(1))
    K3 = gram([[1, 0.5], [-0.3, 1], [0.7, -1.2]], mpf(1) / 2)
    K4 = gram([[1, 0.5, -0.2], [-0.3, 1, 0.4], [0.7, -1.2, 0.1], [0.2, 0.3, -0.9]], mpf(1) / 3)
    K8 = gram([[1, 0.5, -0.2, 0.3], [-0.3, 1, 0.4, 0.8], [0.7, -1.2, 0.1, 0.2],
               [0.2, 0.3, -0.9, 1], [-1, 0.4, 0.6, -0.5], [0.1, -0.8, 1.1, 0.9],
               [0.5, 0.6, 0.3, -1.3], [1, 0.5, -0.2, 0.3]], mpf(1) / 4)
    eps, small, zero = mpf('0.1'), mpf('1e-5'), mpf(0)
    found = {}
    for suffix, K, e in (('2', K2, eps), ('3', K3, eps), ('3_small', K3, small), ('4', K4, eps),
                         ('8', K8, small), ('2_zero', K2, zero), ('3_zero', K3, zero),
                         ('8_zero', K8, zero)):
        found['linear' + suffix] = flat(batchnorm(K, identity, e))
        found['relu' + suffix] = flat(batchnorm(K, relu, e))

    def second(K, kernel, e):
        once = batchnorm(K, kernel, e)
        return flat(batchnorm([[2 * x for x in row] for row in once], kernel, e))
    for name, K, kernel, e in (('deep3', K3, relu, eps), ('deep3_linear', K3, identity, eps),
                               ('deep2_zero', K2, relu, zero), ('deep4_small', K4, relu, small),
                               ('deep8', K8, relu, small), ('deep8_zero', K8, relu, zero),
                               ('deep8_linear', K8, identity, zero)):
        found[name] = second(K, kernel, e)
    return found


# ---- the formulas against brute quadrature

def check():
    def near(a, b, digits):
        assert abs(a - b) < mpf(10)**-digits, (a, b)

    a, b, c = 1.3, 0.6, -0.5

    def expectation(f):  # E f(x, y) by the trapezoidal rule
        step, rest, total = 0.1, math.sqrt(b - c * c / a), 0
        for u, w in itertools.product([step * k for k in range(-90, 91)], repeat=2):
            weight = step * step * math.exp(-(u * u + w * w) / 2) / (2 * math.pi)
            total += weight * f(math.sqrt(a) * u, c / math.sqrt(a) * u + rest * w)
        return total

    def cdf(x):
        return math.erfc(-x / math.sqrt(2)) / 2
    near(gelu(a, b, c), expectation(lambda x, y: x * cdf(x) * y * cdf(y)), 13)
    near(erf(a, b, c), expectation(lambda x, y: math.erf(x) * math.erf(y)), 13)
    near(erf_slope(a, b, c), expectation(lambda x, y: 4 / math.pi * math.exp(-x * x - y * y)), 13)
    # Batches of two: z = d (1, -1) / 2 with d normal, E d^2 / (d^2 + 4 eps) in closed form.
    K, eps = [[mpf(1), mpf('-0.4')], [mpf('-0.4'), mpf('0.16')]], mpf('0.1')
    x = 4 * eps / (K[0][0] + K[1][1] - 2 * K[0][1]) / 2
    exact = 1 - mp.sqrt(mp.pi * x) * mp.exp(x) * mp.erfc(mp.sqrt(x))
    near(batchnorm(K, identity, eps)[0][0], exact, 15)
    near(batchnorm(K, relu, eps)[0][0], exact / 2, 15)
    # Batches of three without eps, in the eigenbasis:
    # E z_k^2 / |z|^2 = root l_k / (root l_1 + root l_2).
    K3 = gram([[1, 0.5], [-0.3, 1], [0.7, -1.2]], mpf(1) / 2)
    G = mp.eye(3) - mp.ones(3) / 3
    values, vectors = mp.eigsy(G * mp.matrix(K3) * G)
    roots = [mp.sqrt(v) if v > mpf('1e-15') else mpf(0) for v in values]
    exact = 3 * vectors * mp.diag([r / sum(roots) for r in roots]) * vectors.T
    found = batchnorm(K3, identity, mpf(0))
    for i in range(3):
        for j in range(3):
            near(found[i][j], exact[i, j], 15)
    # relu of batches of three, by polar coordinates in the plane of centred vectors.
    eps = mpf('0.1')
    plane = [k for k in range(3) if roots[k] > 0]
    axes = [[float(roots[k] * vectors[i, k]) for k in plane] for i in range(3)]

    def product(i, j, r, phi):
        z = [r * (math.cos(phi) * x + math.sin(phi) * y) for x, y in axes]
        return max(z[i], 0) * max(z[j], 0) / (sum(x * x for x in z) / 3 + float(eps))

    def integral(f, cuts):  # Gauss-Legendre between the cuts
        nodes, weights = numpy.polynomial.legendre.leggauss(40)
        return sum((v - u) / 2 * w * f((u + v) / 2 + (v - u) / 2 * x)
                   for u, v in zip(cuts, cuts[1:]) for x, w in zip(nodes, weights))
    kinks = [math.atan2(-x, y) for x, y in axes]
    cuts = sorted({x % (2 * math.pi) for k in kinks for x in (k, k + math.pi)} | {0, 2 * math.pi})
    found = batchnorm(K3, relu, eps)
    for i, j in ((0, 0), (0, 1)):
        near(found[i][j], integral(
            lambda r: r * math.exp(-r * r / 2) / (2 * math.pi) *
            integral(lambda phi: product(i, j, r, phi), cuts), [0, 1, 3, 9]), 12)
    print('formulas hold')


def main():
    if sys.argv[1:] == ['--check']:
        return check()
    found = {'rnn': rnn(), 'transformer': transformer(), 'cnn': cnn(), 'batchnorm': batchnorms()}
    (HERE / 'kernels.json').write_text(json.dumps(found, indent=1) + '\n')


main()
