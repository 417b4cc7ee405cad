"""What `tplimit check` counts in a traced program, in the names of its module."""

import re
from dataclasses import dataclass, field
from fractions import Fraction

from .form import fit, number
from .translation import Translation, without_eps


@dataclass
class Finding:
    parameter: str  # the module's own name
    problem: str  # "vanishes", "explodes", or "" where only other parameters are to blame
    update: float  # power of the width of what its update does where it is used; None: it never moves
    rate: float = 0.0  # powers of the width to multiply rate and initial standard deviation by
    std: float = 0.0
    advice: list = field(default_factory=list)


@dataclass
class Lint:
    """regime as in docs/json.md ("feature learning", "kernel regime", "unstable", "trivial"); good: nothing to change."""

    regime: str
    maximal: bool
    unstable: str
    findings: list
    translation: Translation
    json: dict

    @property
    def good(self):
        return self.regime == "feature learning" and self.maximal

    def __str__(self):
        lines = [f"regime: {self.regime}" + (", every update is maximal" if self.good else "")]
        if self.unstable:
            lines.append(f"unstable: {self.unstable}")
        for f in self.findings:
            moved = "does not move it" if f.update is None else f"moves its layer by {_power('width', f.update)}"
            lines.append(
                f"{f.parameter}: " + (f"its update {f.problem}: it {moved}" if f.problem else f"its update {moved}")
            )
            lines += [f"    {a}" for a in f.advice]
        return "\n".join(lines)


def lint_graph(graph, steps=2, base=None, binary=None):
    """base: the width at which the numbers of the advice are today's; default: the smallest traced one."""
    translation = Translation(without_eps(graph), steps=steps)
    code, found, _, messages = translation.tool("check", binary=binary)
    if found is None:
        raise RuntimeError(f"tplimit check ended with code {code}:\n{messages}")
    base = base or min(graph["widths"])
    specs = {p["name"]: p for p in graph["parameters"]}
    groups = graph["optimiser"]["groups"]
    fixes, seen = {}, {}
    for f in found["fixes"]:
        fixes.setdefault(_name(translation, f["name"]), f)
    for p in found["parameters"]:
        if p["trained"]:
            old = seen.get(_name(translation, p["name"]))
            if old is None or (p["update"] or 0) > (old["update"] or 0):
                seen[_name(translation, p["name"])] = p
    findings = []
    for name, p in seen.items():
        update = p["update"]
        problem = (
            "vanishes" if update is not None and update < 0 else "explodes" if update is not None and update > 0 else ""
        )
        fix = fixes.get(name, {"rate": 0, "variance": 0})
        if not problem and not fix["rate"] and not fix["variance"]:
            continue
        finding = Finding(name, problem, update, fix["rate"], fix["variance"] / 2)
        if finding.std:
            finding.advice.append(f"initial standard deviation: times {_ratio(finding.std, base)}")
        if finding.rate and name in specs:
            now = fit(groups[specs[name]["group"]]["lr"], graph["widths"], "lr").at(base)
            finding.advice.append(
                f"learning rate: times {_ratio(finding.rate, base)}; it is {number(float(f'{now:.6g}'))} at width {base}"
            )
        findings.append(finding)
    unstable = found["unstable"]
    message = ""
    if unstable:
        message = ": ".join(x for x in (unstable["message"], unstable["label"]) if x)
        line = translation.text.splitlines()[unstable["line"] - 1].strip()
        value = line.split(" = ")[0]
        module = next((m for m, v in translation.names["modules"].items() if v == value), None)
        message += f" ({'in ' + module + ': ' if module else ''}{line})"
    return Lint(found["regime"], found["maximal"], message, findings, translation, found)


def _name(translation, ident):
    """W[0], of an array of matrices, and W.1, a block of a width 2 n, are parts of a parameter."""
    return translation.names["parameters"].get(re.split(r"[\[.]", ident)[0], ident)


def _power(symbol, p):
    p = Fraction(p).limit_denominator(64)
    if p == 0:
        return "order 1"
    return symbol if p == 1 else f"{symbol}^{p}" if p.denominator == 1 else f"{symbol}^({p})"


def _ratio(p, base):
    p = Fraction(p).limit_denominator(64)
    quotient = f"(width / {base})" if p > 0 else f"({base} / width)"
    return quotient if abs(p) == 1 else f"{quotient}^{abs(p)}" if p.denominator == 1 else f"{quotient}^({abs(p)})"
