"""The traced form: what a front end (pytorch.py) hands to emit.py.  Plain JSON, no framework needed to read it.

    {"form": 1,
     "from": "torch 2.9.1",
     "widths": [64, 96, 160],
     "inputs": {"x": {"shape": [4, 2], "integer": false, "value": [[..], ..]}, "y": ..},
     "constants": {"mask": nested lists},             # the same at every width
     "parameters": [{"name": "fc1.weight", "shape": [N, 2], "group": 0 or null (not trained),
                     "law": {"kind": "normal", "mean": 0, "std": 0.7}}],  # uniform: low, high; constant: value;
                                                      # other: mean, std, what;  unseen: why
                    # of Adam also "gradient_power": an entry of the gradient is of size n^this
     "optimiser": {"kind": "sgd" | "adam" | "adamw" | "rmsprop" | "muon",     # of groups without a "kind" of their own
                   "groups": [{"lr": .., "momentum": ..}]},
     "nodes": [{"name": "tanh_1", "op": "tanh", "args": ["fc1"], "attrs": {}, "shape": [4, N], "module": "act",
                "line": "net.py:12"}],
     "outputs": {"out": "fc2", "loss": "mse"}}

A number that changes with the width is {"per_width": [a, b, c]}, one value for each of "widths".  Arguments of nodes are
names (of inputs, constants, parameters, nodes) or numbers.  Operations: emit.py, `Emitter.op_*`.
"""

import math
from dataclasses import dataclass
from fractions import Fraction


class Refused(ValueError):
    """What has no limit of this kind, or none that this translation can write; the message says where and why."""


def join(values, where="the graph"):
    """One graph for each width to one graph: numbers that differ become {"per_width": [..]}."""
    first = values[0]
    if isinstance(first, dict):
        if any(not isinstance(v, dict) or list(v) != list(first) for v in values):
            raise Refused(f"{where} changes with the width: {_short(values)}")
        return {k: join([v[k] for v in values], _inside(where, first, k)) for k in first}
    if isinstance(first, (list, tuple)):
        if any(not isinstance(v, (list, tuple)) or len(v) != len(first) for v in values):
            raise Refused(f"{where} changes with the width: {_short(values)}")
        return [join(list(v), _inside(where, v[0], i)) for i, v in enumerate(zip(*values))]
    if all(v == first and type(v) is type(first) for v in values):
        return first
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return {"per_width": list(values)}
    raise Refused(f"{where} changes with the width: {_short(values)}")


def _inside(where, item, key):
    if isinstance(item, dict) and "name" in item:
        return f"'{item['name']}'"
    return f"{where}, {key}" if isinstance(key, str) else where


def _short(values):
    texts = [str(v) for v in values]
    return ", ".join(t if len(t) < 60 else t[:57] + ".." for t in texts)


@dataclass(frozen=True)
class Power:
    """c n^p."""

    c: float
    p: Fraction = Fraction(0)

    def __mul__(self, other):
        return Power(self.c * other.c, self.p + other.p)

    def __truediv__(self, other):
        return Power(self.c / other.c, self.p - other.p)

    def __pow__(self, k):
        return Power(self.c**k, self.p * k)

    def at(self, n):
        return self.c * n ** float(self.p)


def fit(value, widths, what):
    """The c n^p that a number of the form follows at all widths; p is a multiple of 1/4."""
    if not isinstance(value, dict):
        return Power(float(value))
    v = [float(x) for x in value["per_width"]]
    no_power = Refused(
        f"{what} is {', '.join(map(_digits, v))} at widths {', '.join(map(str, widths))}: no power of the width"
    )
    if 0 in v or min(v) < 0 < max(v):
        raise no_power
    p = Fraction(round(4 * math.log(v[-1] / v[0]) / math.log(widths[-1] / widths[0])), 4)
    c = [x / w ** float(p) for x, w in zip(v, widths)]
    if max(abs(x - c[0]) for x in c) > 1e-6 * abs(c[0]):
        raise no_power
    return Power(float(f"{c[0]:.15g}"), p)


def fit_leading(value, widths, what):
    """The power, or the leading one of sqrt(n^k / (a n + b)), as laws that count inputs and outputs have it; and whether it is
    only that."""
    try:
        return fit(value, widths, what), False
    except Refused:
        v = [float(x) for x in value["per_width"]]
        for k in (0, 1, 2, -1) if min(v) > 0 or max(v) < 0 else ():
            u = [w**k / x**2 for w, x in zip(widths, v)]
            slopes = [(u[i + 1] - u[i]) / (widths[i + 1] - widths[i]) for i in range(len(u) - 1)]
            if min(slopes) > 0 and max(slopes) - min(slopes) < 1e-6 * max(slopes):
                return Power(math.copysign(float(f"{slopes[0] ** -0.5:.12g}"), v[0]), Fraction(k - 1, 2)), True
        raise


def _digits(x):
    return f"{x:.6g}"


def number(c):
    """A number as the language writes it: a fraction where it is one."""
    if abs(c - round(c)) <= 1e-12 * abs(c) and abs(c) < 1e15:
        return str(round(c))
    f = Fraction(c).limit_denominator(4096)
    short = repr(float(f"{c:.12g}"))
    if abs(float(f) - c) <= 1e-12 * abs(c) and len(f"{f.numerator} / {f.denominator}") < len(short):
        return f"{f.numerator} / {f.denominator}"
    return short


def power_text(x, symbol="n"):
    """c n^p; a sum never, so a product needs no parentheses around it, a quotient does."""

    def raised(p):
        if p == 1:
            return symbol
        if p == Fraction(1, 2):
            return f"sqrt({symbol})"
        return f"{symbol}^{p}" if p.denominator == 1 else f"{symbol}^({p})"

    if x.p == 0 or x.c == 0:
        return number(x.c)
    if x.p > 0:
        if x.c == 1:
            return raised(x.p)
        inverse = 1 / x.c
        if abs(inverse - round(inverse)) < 1e-9 * abs(inverse):
            sign = "-" if inverse < 0 else ""
            return (
                f"{sign}{raised(x.p)} / {abs(round(inverse))}" if abs(round(inverse)) != 1 else f"{sign}{raised(x.p)}"
            )
        return f"{number(x.c)} * {raised(x.p)}"
    c = number(x.c)
    if " / " in c:
        above, below = c.split(" / ")
        return f"{above} / ({below} * {raised(-x.p)})"
    return f"{c} / {raised(-x.p)}"
