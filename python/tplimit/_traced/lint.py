"""What `tplimit check` counts in a traced program, in the names of its module."""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache

from .form import fit, fit_leading, number
from .translation import Translation, with_gradient_powers, without_eps


@dataclass
class Finding:
    parameter: str  # the module's own name
    problem: str  # "vanishes", "explodes", or "" where only other parameters are to blame
    update: float = None  # power of the width of what its update does where it is used; None: it never moves
    rate: float = 0.0  # powers of the width to multiply rate, initial standard deviation and weight decay by
    std: float = 0.0
    decay: float = 0.0
    advice: list = field(default_factory=list)

    def _summary(self):
        moved = "does not move it" if self.update is None else f"moves its layer by {_power('width', self.update)}"
        return f"its update {self.problem}: it {moved}" if self.problem else f"its update {moved}"

    def __str__(self):
        return "\n".join([f"{self.parameter}: {self._summary()}"] + [f"    {a}" for a in self.advice])


class OtherFinding(Finding):
    """Of something else than the size of an update, which `problem` says."""

    def _summary(self):
        return self.problem


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
        return self._learns() and not self.findings

    def _learns(self):
        return self.regime == "feature learning" and self.maximal

    def __str__(self):
        lines = [f"regime: {self.regime}" + (", every update is maximal" if self._learns() else "")]
        if self.unstable:
            lines.append(f"unstable: {self.unstable}")
        lines += map(str, self.findings)
        return "\n".join(lines)


def lint_graph(graph, steps=2, base=None):
    """base: the width at which the numbers of the advice are today's; default: the smallest traced one."""
    translation = Translation(without_eps(graph), steps=steps)
    found = translation.check().to_dict()
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
        if not problem and not any(fix.get(k) for k in ("rate", "variance", "weight_decay")):
            continue
        finding = Finding(name, problem, update, fix["rate"], fix["variance"] / 2)
        if finding.std:
            finding.advice.append(f"initial standard deviation: times {_ratio(finding.std, base)}")
        if finding.rate and name in specs:
            now = fit(groups[specs[name]["group"]]["lr"], graph["widths"], "lr").at(base)
            finding.advice.append(
                f"learning rate: times {_ratio(finding.rate, base)}; it is {number(float(f'{now:.6g}'))} at width {base}"
            )
        if fix.get("weight_decay"):
            finding.decay = fix["weight_decay"]
            finding.advice.append(f"weight decay: times {_ratio(finding.decay, base)}")
        findings.append(finding)
    findings += _scores(graph) + _decay_inside(graph)
    unstable = found["unstable"]
    message = ""
    if unstable:
        message = ": ".join(x for x in (unstable["message"], unstable["label"]) if x)
        lines = translation.text.splitlines()
        line = lines[unstable["line"] - 1].strip()
        value = line.split(" = ")[0]
        module = next((m for m, v in translation.names["modules"].items() if v == value), None)
        if unstable["line"] > lines.index("model net(x) {"):  # not inside a function that the translation brings
            message += f" ({'in ' + module + ': ' if module else ''}{line})"
    return Lint(found["regime"], found["maximal"], message, findings, translation, found)


# Operations behind which a factor is still one.
_LINEAR = set("add sub neg where masked_fill reshape permute expand unsqueeze squeeze select slice concat take".split())


def _scores(graph):
    """Attention that divides its scores by the root of a width: they grow once queries and keys align."""
    nodes = {n["name"]: n for n in graph["nodes"]}
    widths, found = graph["widths"], {}

    def multiplied(node):
        """The power of the width of a number that multiplies or divides a value, and that value; None: there is none."""
        a, b = node["args"]
        if isinstance(a, str) == isinstance(b, str) or (node["op"] == "div" and isinstance(b, str)):
            return None
        value, other = (a, b) if isinstance(a, str) else (b, a)
        p = fit(other, widths, "a factor").p
        return p if node["op"] == "mul" else -p, value

    @cache
    def scale(name):
        """The power of the width that numbers multiply a value by, since the last product, function or norm."""
        node = nodes.get(name)
        if node is None:
            return Fraction(0)
        own = [a for a in node["args"] if isinstance(a, str) and a in nodes and nodes[a]["op"] != "compare"]
        if node["op"] in ("mul", "div"):
            if found := multiplied(node):
                return found[0] + scale(found[1])
            return sum((scale(a) for a in own), Fraction(0)) if node["op"] == "mul" else Fraction(0)
        return max(map(scale, own), default=Fraction(0)) if node["op"] in _LINEAR else Fraction(0)

    @cache
    def factor(name):
        """The power of the width that multiplies a product over a width on the way to a softmax; None: there is none."""
        node = nodes.get(name)
        if node is None:
            return None
        if node["op"] == "matmul":
            left, right = node["args"]
            wide = left in nodes and isinstance(nodes[left]["shape"][-1], dict)
            return scale(left) + scale(right) if wide else None
        if node["op"] in ("mul", "div"):
            found = multiplied(node)
            inside = factor(found[1]) if found else None
            return None if inside is None else inside + found[0]
        inside = [factor(a) for a in node["args"] if isinstance(a, str)] if node["op"] in _LINEAR else []
        return max((p for p in inside if p is not None), default=None)

    for node in graph["nodes"]:
        power = None
        if node["op"] == "attention":
            q, k = node["args"][:2]
            if q in nodes and isinstance(nodes[q]["shape"][-1], dict):
                power = fit(node["attrs"]["scale"], widths, "the scale of attention").p + scale(q) + scale(k)
        elif node["op"] == "softmax":
            power = factor(node["args"][0])
        if power is not None and power > -1:
            found.setdefault(node.get("module") or "attention", (power, node.get("line")))
    out = []
    for module, (power, line) in found.items():
        grown = _power("width", power + 1)
        finding = OtherFinding(module, f"scores of attention grow like {grown} once queries and keys align")
        where = f" ({line})" if line else ""
        finding.advice.append(f"divide them by the width of a head, not by its root: scale = 1 / d{where}")
        out.append(finding)
    return out


def _decay_inside(graph):
    """Weight decay that Adam adds to gradients which shrink: it outweighs them."""
    optimiser, out = graph["optimiser"], []
    if not any(g.get("weight_decay") and g.get("kind", optimiser["kind"]) == "adam" for g in optimiser["groups"]):
        return out
    counted = {p["name"]: p for p in with_gradient_powers(_with_eps(graph))["parameters"]}
    for p in graph["parameters"]:
        group = optimiser["groups"][p["group"]] if p["group"] is not None else {}
        size = counted[p["name"]].get("gradient_power")
        if not group.get("weight_decay") or group.get("kind", optimiser["kind"]) != "adam" or size is None:
            continue
        decay = fit(group["weight_decay"], graph["widths"], "a weight decay").p
        beside = decay + _size_of_entries(p, graph["widths"])
        if beside > size:
            finding = OtherFinding(p["name"], "weight decay outweighs the gradient, to which Adam adds it")
            finding.decay = float(size - beside)
            finding.advice.append("torch.optim.AdamW, whose decay is no part of the gradient, or")
            finding.advice.append(f"weight decay: times {_ratio(finding.decay, min(graph['widths']))}")
            out.append(finding)
    return out


def _with_eps(graph):
    """A gradient's size is counted where eps asks for it."""
    groups = [dict(g, eps=1e-8, weight_decay=0.0) for g in graph["optimiser"]["groups"]]
    return graph | {"optimiser": graph["optimiser"] | {"groups": groups}}


def _size_of_entries(parameter, widths):
    law = parameter["law"]
    key = {"constant": "value", "uniform": "high"}.get(law["kind"], "std")
    value = law.get(key, 0.0)
    return fit_leading(value, widths, "an initial law")[0].p if value else Fraction(0)


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
