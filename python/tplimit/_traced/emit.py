"""The traced form (form.py) to the text of a program.

Finite axes of a value of the language stand before its width axis, whatever their order was; so a traced axis is a list of
axes of the value ("atoms"), and view, transpose, flatten, unsqueeze write nothing until an operation needs its axes in order.
Axes that are split (the heads of attention, the positions of a flattened convolution) are split where they come
from, in the shape of the parameter: the emitter notes which, and begins again.
"""

import itertools
import math
import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from .form import Power, Refused, fit, fit_leading, number, power_text

LITERAL = 64  # larger arrays are files

RESERVED = set(
    (
        "tanh relu abs sign step erf gelu gelu_tanh silu sigmoid softplus softsign mish sin cos exp log sqrt "
        "leaky_relu elu E gram mean sum max min clip where mod floor mse size zeros ones stack concat stop "
        "averaged eigvals min_eig trace norm samples hist outer einsum grad permutation one_hot predict_gd "
        "predict_gd_covariance largest_rate logsumexp softmax log_softmax cross_entropy logistic hinge huber "
        "accuracy argmax reshape transpose permute zeros_like ones_like eye cumsum solve inverse logdet layernorm "
        "rmsnorm attention masked_softmax causal_mask positions conv1d conv2d avg_pool max_pool take pad ndim "
        "window2d import align ntk nngp pi width const data param random parametrization fn model for in by if "
        "else assert report expect within return import true false None sgd adam adamw nadam rmsprop lion signsgd "
        "muon flow ema input hidden output bias normal uniform csv npy idx loss out net heads join_heads "
    ).split()
)

DEFAULTS = {  # of the options of the language's optimisers
    "sgd": {"momentum": 0, "dampening": 0, "nesterov": False, "weight_decay": 0.0},
    "adam": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
    "rmsprop": {"alpha": 0.99, "momentum": 0, "eps": 1e-8, "weight_decay": 0.0},
    "muon": {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 0.1},
}

UNARY = set(
    "tanh relu abs sign erf gelu gelu_tanh silu sigmoid softplus softsign mish sin cos exp log sqrt floor stop".split()
)


@dataclass(frozen=True)
class Wide:
    """A width axis: ratio times n.  origins: the atoms of parameters' axes that it came from."""

    ratio: Fraction
    origins: frozenset = field(default=frozenset(), compare=False)


def _coefficient(size):
    return (size.ratio, 1) if isinstance(size, Wide) else (Fraction(size), 0)


def _product(sizes):
    c, p = Fraction(1), 0
    for s in sizes:
        ci, pi = _coefficient(s)
        c, p = c * ci, p + pi
    return c, p


@dataclass
class Value:
    """Axes of the language, finite ones first; groups[i]: which of them the traced axis i consists of, [] where it has size 1."""

    text: str
    axes: list
    groups: list
    known: bool = False  # before the run
    mask: "Value" = None  # scores that are -infinity where this is 0

    def atoms(self, i):
        return [self.axes[k] for k in self.groups[i]]

    @property
    def wide(self):
        return next((k for k, s in enumerate(self.axes) if isinstance(s, Wide)), None)

    def axis_of(self, k):
        """The traced axis that holds axis k."""
        return next(i for i, g in enumerate(self.groups) if k in g)


@dataclass
class Parameter:
    name: str  # the module's own
    ident: str
    atoms: list  # one list of sizes for each traced axis
    spec: dict
    layout: list = None  # (axis, atom) in the order of the language, fixed by the first use


class _Split(Exception):
    """Begin again with this axis of a parameter split."""

    def __init__(self, origins, factors):
        self.origins, self.factors = origins, factors


def _plain(factors):
    return [Wide(f.ratio) if isinstance(f, Wide) else f for f in factors]


def emit(graph, steps=10, features=(), schedule=None, name="net", gradients=False):
    """The program as text, file and array of data that is no literal by name, and what modules and parameters are called in it.

    gradients: reports the norm of every gradient, as gradient_NAME."""
    splits = {}
    for _ in range(100):
        emitter = Emitter(graph, splits, steps, features, schedule, name, gradients)
        try:
            return emitter.program()
        except _Split as s:
            for key in sorted(s.origins, key=lambda k: -k[2]):
                parameter, axis, atom = key
                atoms = splits.setdefault((parameter, axis), [emitter.whole(parameter, axis)])
                atoms[atom : atom + 1] = _plain(s.factors)
    raise Refused("the axes of this graph are split in ways that do not fit together")


class Emitter:
    def __init__(self, graph, splits, steps, features, schedule, name, gradients):
        self.graph, self.splits, self.steps, self.features = graph, splits, steps, tuple(features)
        self.schedule, self.file, self.gradients = schedule, name, gradients
        self.widths = graph["widths"]
        self.names = set()  # taken
        self.symbols = {Fraction(1): "n"}
        self.lines, self.helpers, self.files = [], [], {}
        self.notes = list(graph.get("notes", []))
        self.module_values = {}
        self.env, self.parameters = {}, {}
        self.arrays = {}  # constants that operations declare
        self.transposes = {}  # of parameters
        self.rows = {}  # parts of parameters: name, first and last block of rows
        self.node = None

    # ---- names and numbers

    def ident(self, text):
        """A name that is free, as near to the text as may be."""
        base = re.sub(r"\W+", "_", text).strip("_") or "z"
        if base[0].isdigit():
            base = "l" + base
        if base in RESERVED or base in ("n", "m", "k", "T", "t", "X", "x", "y"):
            base += "_"
        found, i = base, 2
        while found in self.names:
            found, i = f"{base}_{i}", i + 1
        self.names.add(found)
        return found

    def size(self, value, what):
        if not isinstance(value, dict):
            return int(value)
        s = fit(value, self.widths, what)
        if s.p != 1:
            raise Refused(f"{what} is {value['per_width']} at widths {self.widths}: a size is c n")
        return Wide(Fraction(s.c).limit_denominator(1024))

    def symbol(self, ratio):
        if ratio not in self.symbols:
            taken = set(self.symbols.values())
            self.symbols[ratio] = next(s for s in ("m", "k", "m2", "m3", "m4", "m5", "m6", "m7") if s not in taken)
        return self.symbols[ratio]

    def power(self, value, what):
        return fit(value, self.widths, what)

    def sizes_text(self, axes):
        return ", ".join(self.symbol(s.ratio) if isinstance(s, Wide) else str(s) for s in axes)

    def whole(self, parameter, axis):
        spec = next(p for p in self.graph["parameters"] if p["name"] == parameter)
        return self.size(spec["shape"][axis], f"axis {axis} of {parameter}")

    def refuse(self, why):
        node = self.node
        if not node:
            raise Refused(why)
        place = node.get("module") or ""
        where = " ".join(
            x for x in (f"in {place}" if place else "", f"({node['line']})" if node.get("line") else "") if x
        )
        raise Refused(f"{node['op']} {where}: {why}" if where else f"{node['op']}: {why}")

    # ---- the program

    def program(self):
        g = self.graph
        for spec in g["parameters"]:
            atoms = []
            for axis in range(len(spec["shape"])):
                own = self.splits.get((spec["name"], axis)) or [self.whole(spec["name"], axis)]
                atoms.append(
                    [
                        Wide(s.ratio, frozenset({(spec["name"], axis, k)})) if isinstance(s, Wide) else s
                        for k, s in enumerate(own)
                    ]
                )
            self.parameters[spec["name"]] = Parameter(spec["name"], self.ident(spec["name"]), atoms, spec)
        data = self.declare_data()
        body, after = self.partition()
        for node in body:
            self.emit_node(node)
        body_lines, self.lines = self.lines, []
        out = self.env[g["outputs"]["out"]]
        returned = [out.text]
        kept = sorted(
            {a for node in after for a in node["args"] if isinstance(a, str) and a in {b["name"] for b in body}}
            - {g["outputs"]["out"]}
        )
        self.env[g["outputs"]["out"]] = replace(out, text="out")
        for name in kept:
            returned.append(self.env[name].text)
        reports = self.feature_reports(returned)
        for node in after:
            self.emit_node(node)
        self.node = None
        loss = self.env[g["outputs"]["loss"]]
        if loss.axes:
            raise Refused("the loss is no number")
        shown = self.in_order(replace(out, text="out"))
        reports.insert(0, "out" if shown.text == "out" else f"out = {shown.text}")
        if not self.lines or self.lines[-1][0] != loss.text:
            self.lines.append(("loss", loss.text))
        else:
            self.lines[-1] = ("loss", self.lines[-1][1])
        declarations, step = self.training()
        data += [self.array(name, [len(v)], v, "const") for name, v in self.arrays.items()]
        widths = ", ".join(["n"] + [f"{s} = {_ratio(r)}" for r, s in self.symbols.items() if r != 1])
        text = [f"# {line}" for line in [f"Translated from {g['from']}."] + self.notes]
        text += [f"width {widths}", f"const T = {self.steps}"] + data + [""] + declarations + [""]
        for helper in self.helpers:
            text += [helper, ""]
        text += (
            ["model net(x) {"] + [f"  {a} = {b}" for a, b in body_lines] + [f"  return {', '.join(returned)}", "}", ""]
        )
        text += ["for t in 0..T {", f"  {', '.join(['out'] + returned[1:])} = net(X)"] + [
            f"  {a} = {b}" for a, b in self.lines
        ]
        if self.gradients:
            reports = []
            for p in self.parameters.values():
                if p.layout is not None and p.spec["group"] is not None:
                    wide = sum(isinstance(p.atoms[i][k], Wide) for i, k in p.layout)
                    one = [0] * (len(p.layout) - 2) if wide == 2 else []  # of an array of matrices the first
                    reports.append(f"gradient_{p.ident} = norm({_indexed(f'grad(loss, {p.ident})', one)})")
        text += [f"  report loss, {', '.join(reports)}"] + [f"  {s}" for s in step] + ["}"]
        return (
            "\n".join(text) + "\n",
            self.files,
            {"modules": self.module_values, "parameters": {p.ident: p.name for p in self.parameters.values()}},
        )

    def declare_data(self):
        lines = []
        for key, name in (("x", "X"), ("y", "y")):
            spec = self.graph["inputs"].get(key)
            if not spec:
                continue
            shape = [self.size(s, f"axis {i} of {name}") for i, s in enumerate(spec["shape"])]
            if any(isinstance(s, Wide) for s in shape):
                raise Refused(f"{name} has an axis that grows with the width")
            lines.append(self.array(name, shape, spec.get("value"), "data"))
            self.env[key] = Value("x" if key == "x" else "y", shape, [[i] for i in range(len(shape))], known=True)
            self.names |= {name, key}
        for name, value in self.graph.get("constants", {}).items():
            shape = _shape(value)
            text = _known_constant(value, shape)
            if text:
                self.env[name] = Value(text, shape, [[i] for i in range(len(shape))], known=True)
                continue
            ident = self.ident(name)
            lines.append(self.array(ident, shape, value, "const"))
            self.env[name] = Value(ident, shape, [[i] for i in range(len(shape))], known=True)
        return lines

    def array(self, name, shape, value, word):
        if value is not None and math.prod(shape) <= LITERAL:
            return f"{word} {name} = {_literal(value)}"
        file = f"{self.file}_{name}.npy"
        self.files[name] = file, value
        return f'data {name} = npy("{file}")'

    def partition(self):
        """Nodes of the output, and those of the loss after it."""
        nodes = {node["name"]: node for node in self.graph["nodes"]}
        needed, stack = set(), [self.graph["outputs"]["out"]]
        while stack:
            name = stack.pop()
            if name in nodes and name not in needed:
                needed.add(name)
                stack += [a for a in nodes[name]["args"] if isinstance(a, str)]
        behind, stack = set(), [self.graph["outputs"]["loss"]]
        while stack:
            name = stack.pop()
            if name in nodes and name not in behind and name not in needed:
                behind.add(name)
                stack += [a for a in nodes[name]["args"] if isinstance(a, str)]
        if "y" in needed:
            raise Refused("the output depends on y")
        self.counts = {}
        for name in needed | behind:
            module = nodes[name].get("module")
            if module and nodes[name]["op"] not in ("reshape", "permute", "expand"):
                self.counts[module] = self.counts.get(module, 0) + 1
        return [n for n in self.graph["nodes"] if n["name"] in needed], [
            n for n in self.graph["nodes"] if n["name"] in behind
        ]

    def emit_node(self, node):
        self.node = node
        if node["op"] == "permute" and node["attrs"]["order"] == [1, 0] and node["args"][0] in self.parameters:
            self.transposes[node["name"]] = node["args"][0]
            return
        if node["op"] == "slice" and self.is_matrix(node["args"][0]) and node["attrs"]["axis"] == 0:
            self.note_rows(node)
            return
        masked = [a for a in node["args"] if isinstance(a, str) and a in self.env and self.env[a].mask is not None]
        if masked and node["op"] not in ("softmax", "masked_fill"):  # they would be taken for what they were before
            self.refuse("scores that are -infinity are used other than in a softmax: mask them right before it")
        operation = getattr(self, "op_" + node["op"], None)
        attrs = node.get("attrs", {})
        if node["op"] in UNARY:
            value = self.unary(node["op"], self.value(node["args"][0]))
        elif operation is None:
            self.refuse("the translation does not know this operation")
        else:
            value = operation(*node["args"], **attrs)
        if isinstance(value, str):
            raise AssertionError(node)
        self.env[node["name"]] = value
        if node.get("module"):
            self.module_values[node["module"]] = value.text

    def is_matrix(self, arg):
        p = self.parameters.get(arg)
        return p is not None and len(p.atoms) == 2 and all(any(isinstance(s, Wide) for s in a) for a in p.atoms)

    def note_rows(self, node):
        """Blocks of rows of a matrix, as of fused projections, which are split apart where it is declared."""
        name, attrs = node["args"][0], node["attrs"]
        first, last = self.size(attrs["start"], "the start of a slice"), self.size(attrs["stop"], "the end of a slice")
        atoms = self.parameters[name].atoms[0]
        if attrs.get("step", 1) != 1 or not isinstance(last, Wide) or (first and not isinstance(first, Wide)):
            self.refuse(f"rows of {name} that are no parts of the width")
        self.rows[node["name"]] = (name, *self.blocks(atoms, first, last, f"rows of {name}"))

    def blocks(self, atoms, first, last, what):
        """Which blocks of an axis a slice takes, once it is split into them."""
        first, last, total = _coefficient(first)[0], _coefficient(last)[0], _product(atoms)[0]
        unit = total
        for length in (first, last):
            while length:  # the largest common part
                unit, length = length, unit % length
        if len(atoms) > 1 and not isinstance(atoms[0], Wide):  # split already: in finer blocks of equal number
            unit = total / atoms[0] if (unit / (total / atoms[0])).denominator == 1 else unit
        if atoms[0] != int(total / unit) and total != unit:
            self.unify(atoms, [int(total / unit), Wide(unit)], what)
        return int(first / unit), int(last / unit)

    def assign(self, text):
        """A statement of the model, named after the module."""
        module = (self.node or {}).get("module") or ""
        if module and self.counts.get(module) == 1:
            name = self.ident(module)
        else:
            i = 1
            while f"z{i}" in self.names:
                i += 1
            name = self.ident(f"z{i}")
        self.lines.append((name, text))
        return name

    def make(self, text, axes, groups, **more):
        return Value(self.assign(text), axes, groups, **more)

    def feature_reports(self, returned):
        reports = []
        for module in self.features:
            last = next((n["name"] for n in reversed(self.graph["nodes"]) if n.get("module") == module), None)
            if last not in self.env:
                raise Refused(f"features: there is no module '{module}' behind the output")
            v = self.env[last]
            if v.wide is None or not v.axes[:-1]:
                raise Refused(f"features: the output of '{module}' is no batch of wide vectors")
            ident = self.ident(f"{module}_gram")
            if v.text not in returned:
                returned.append(v.text)
            reports.append(f"{ident} = gram({v.text})")
        return reports

    # ---- values

    def value(self, arg):
        """A value, a number as a Power, or a parameter used as a value."""
        if isinstance(arg, (int, float, dict)):
            return self.power(arg, "a constant")
        if arg in self.env:
            return self.env[arg]
        if arg in self.transposes:
            return self.turned(self.value(self.transposes[arg]))
        p = self.parameters[arg]
        order = [(i, k) for i, atoms in enumerate(p.atoms) for k in range(len(atoms))]
        wide = [x for x in order if isinstance(p.atoms[x[0]][x[1]], Wide)]
        if len(wide) > 1:
            self.refuse(f"the matrix {arg} is used other than in a product")
        layout = self.lay_out(p, [x for x in order if x not in wide] + wide)
        axes = [p.atoms[i][k] for i, k in layout]
        groups = [[layout.index((i, k)) for k in range(len(atoms))] for i, atoms in enumerate(p.atoms)]
        return Value(p.ident, axes, groups)

    def lay_out(self, p, layout):
        if p.layout is None:
            p.layout = layout
        if p.layout != layout:
            self.refuse(f"{p.name} is used in two ways that need its axes in different orders")
        return p.layout

    def unify(self, a, b, what):
        """Equal lists of atoms, or the order to split the coarser one."""
        if len(a) == len(b) and all(x == y for x, y in zip(a, b)):
            return
        i = j = 0
        while i < len(a) and j < len(b):
            if a[i] == b[j]:
                i, j = i + 1, j + 1
                continue
            for coarse, fine, at in ((a[i], b, j), (b[j], a, i)):
                for end in range(at + 2, len(fine) + 1):
                    if _product(fine[at:end]) == _coefficient(coarse):
                        self.split(coarse, fine[at:end], what)
            break
        self.refuse(f"{what}: sizes {self.sizes_text(a)} and {self.sizes_text(b)} do not fit")

    def split(self, atom, factors, what):
        if isinstance(atom, Wide) and atom.origins:
            raise _Split(atom.origins, factors)
        self.refuse(
            f"{what}: an axis of size {self.sizes_text([atom])} cannot be split into {self.sizes_text(factors)}"
        )

    def permuted(self, v, order):
        """Its axes in this order."""
        if order == list(range(len(v.axes))):
            return v
        if any(isinstance(v.axes[k], Wide) for k in order[:-1]):
            self.refuse("the width would have to stand before a finite axis")
        place = {k: i for i, k in enumerate(order)}
        text = f"transpose({v.text}, {', '.join(map(str, order))})"
        return replace(
            v, text=text, axes=[v.axes[k] for k in order], groups=[[place[k] for k in g] for g in v.groups], mask=None
        )

    def without_ones(self, v, i):
        """The traced axis i, of size 1, without an axis in the language."""
        for k in sorted(v.groups[i], reverse=True):
            v = self.without_axis(v, k)
        return v

    def without_axis(self, v, k, index=0):
        """Axis k of the language at one index."""
        at = ", ".join([".."] * k + [str(index)])
        return replace(
            v,
            text=f"{v.text}[{at}]",
            axes=v.axes[:k] + v.axes[k + 1 :],
            groups=[[x - (x > k) for x in g if x != k] for g in v.groups],
        )

    def with_axis(self, v, i):
        """The traced axis i, which has none in the language, as its first."""
        groups = [[k + 1 for k in g] for g in v.groups]
        groups[i] = [0]
        return replace(v, text=f"{v.text}[None]", axes=[1] + v.axes, groups=groups)

    def split_finite(self, v, k, factors):
        axes = v.axes[:k] + list(factors) + v.axes[k + 1 :]
        more = len(factors) - 1
        groups = [
            [y for x in g for y in (range(k, k + more + 1) if x == k else [x + more * (x > k)])] for g in v.groups
        ]
        return replace(
            v, text=f"reshape({v.text}, {self.sizes_text(axes)})", axes=axes, groups=[list(g) for g in groups]
        )

    def merged(self, v, i):
        """The finite atoms of the traced axis i as one axis."""
        group = v.groups[i]
        if len(group) <= 1:
            return v
        rest = [k for k in range(len(v.axes)) if k not in group and not isinstance(v.axes[k], Wide)]
        wide = [k for k in range(len(v.axes)) if isinstance(v.axes[k], Wide)]
        v = self.permuted(v, rest + list(group) + wide)
        first = len(rest)
        size = math.prod(v.axes[first : first + len(group)])
        axes = v.axes[:first] + [size] + v.axes[first + len(group) :]
        more = len(group) - 1
        groups = [[first] if j == i else [x - more * (x > first) for x in g] for j, g in enumerate(v.groups)]
        return replace(v, text=f"reshape({v.text}, {self.sizes_text(axes)})", axes=axes, groups=groups)

    def in_order(self, v):
        """Traced axes one by one, as the framework has them; finite values."""
        if v.wide is not None:
            return v
        for i in range(len(v.groups)):
            v = self.merged(v, i)
        v = self.permuted(v, [k for g in v.groups for k in g])
        if any(not g for g in v.groups):
            shape = [math.prod(v.atoms(i)) for i in range(len(v.groups))]
            v = replace(
                v,
                text=f"reshape({v.text}, {', '.join(map(str, shape))})" if shape else v.text,
                axes=shape,
                groups=[[i] for i in range(len(shape))],
            )
        return v

    def alike(self, values, i):
        """The traced axis i as one axis where it is finite and consists of other parts in some of them."""
        present = [v.atoms(i) for v in values if v.groups[i]]
        if all(a == present[0] for a in present) or any(isinstance(s, Wide) for a in present for s in a):
            return values
        return [self.merged(v, i) if v.groups[i] else v for v in values]

    def align(self, values):
        """Texts that may stand in one coordinatewise expression, and the axes and groups of its value."""
        rank = max(len(v.groups) for v in values)
        values = [
            replace(v, groups=[[] for _ in range(rank - len(v.groups))] + [list(g) for g in v.groups]) for v in values
        ]
        for i in range(rank):
            ones = [all(s == 1 for s in v.atoms(i)) for v in values]
            if not all(ones):
                values = [self.without_ones(v, i) if one and v.groups[i] else v for v, one in zip(values, ones)]
            values = self.alike(values, i)
            present = [v for v in values if v.groups[i]]
            for v in present[1:]:
                self.unify(present[0].atoms(i), v.atoms(i), "operands")
        slot = lambda v, k: (v.axis_of(k), v.groups[v.axis_of(k)].index(k))
        slots = {}  # (traced axis, atom) -> size
        for v in sorted(values, key=lambda v: -len(v.axes)):
            for k, s in enumerate(v.axes):
                old = slots.get(slot(v, k))
                if isinstance(s, Wide) and isinstance(old, Wide):
                    s = Wide(s.ratio, s.origins | old.origins)
                slots[slot(v, k)] = s
        lead = max(values, key=lambda v: len(v.axes))
        order = [slot(lead, k) for k in range(len(lead.axes))]
        if len(order) < len(slots):
            order = sorted(slots)
        wide = [s for s in order if isinstance(slots[s], Wide)]
        if len(wide) > 1:
            self.refuse("the result has two width axes")
        finite = [s for s in order if s not in wide]
        texts = []
        for v in values:
            own = {slot(v, k): k for k in range(len(v.axes))}
            v = self.permuted(v, [own[s] for s in finite + wide if s in own])
            here = [s in own for s in finite]
            text = v.text
            if True in here:
                items = [".." if h else "None" for h in here[here.index(True) :]]
                if "None" in items:
                    text += f"[{', '.join(items)}]"
            texts.append(text)
        order = finite + wide
        groups = [[order.index((i, j)) for j in range(sum(s[0] == i for s in order))] for i in range(rank)]
        return texts, [slots[s] for s in order], groups

    def unary(self, function, v):
        if isinstance(v, Power):
            self.refuse("of a number")
        return self.make(f"{function}({v.text})", v.axes, v.groups, known=v.known)

    def binary(self, symbol, a, b):
        a, b = self.value(a), self.value(b)
        if isinstance(a, Power) and isinstance(b, Power):
            self.refuse("of two numbers")
        if isinstance(b, Power):
            if (symbol in "*/" and b == Power(1)) or (symbol in "+-" and b.c == 0):
                return a
            return self.make(f"{a.text} {symbol} {_factor(b, symbol)}", a.axes, a.groups, known=a.known)
        if isinstance(a, Power):
            if (symbol == "*" and a == Power(1)) or (symbol == "+" and a.c == 0):
                return b
            return self.make(f"{_factor(a, '*')} {symbol} {b.text}", b.axes, b.groups, known=b.known)
        texts, axes, groups = self.align([a, b])
        return self.make(f"{texts[0]} {symbol} {texts[1]}", axes, groups, known=a.known and b.known)

    # ---- operations of the form: arithmetic

    def op_add(self, a, b):
        return self.binary("+", a, b)

    def op_sub(self, a, b):
        return self.binary("-", a, b)

    def op_mul(self, a, b):
        return self.binary("*", a, b)

    def op_div(self, a, b):
        return self.binary("/", a, b)

    def op_pow(self, a, exponent):
        v, e = self.value(a), self.power(exponent, "an exponent")
        if e.p != 0 or isinstance(v, Power):
            self.refuse("the exponent changes with the width")
        if e.c == 1:
            return v
        text = {0.5: f"sqrt({v.text})", -0.5: f"1 / sqrt({v.text})", -1.0: f"1 / {v.text}"}.get(e.c)
        e_text = number(e.c) if e.c == int(e.c) and e.c > 0 else f"({number(e.c)})"
        return self.make(text or f"{v.text}^{e_text}", v.axes, v.groups)

    def op_compare(self, a, b, relation):
        return self.binary(relation, a, b)

    def call(self, function, *args):
        args = [self.value(a) for a in args]
        values = [a for a in args if isinstance(a, Value)]
        texts, axes, groups = self.align(values)
        texts = iter(texts)
        out = [next(texts) if isinstance(a, Value) else power_text(a) for a in args]
        return self.make(f"{function}({', '.join(out)})", axes, groups, known=all(v.known for v in values))

    def op_maximum(self, a, b):
        return self.call("max", a, b)

    def op_minimum(self, a, b):
        return self.call("min", a, b)

    def op_where(self, c, a, b):
        return self.call("where", c, a, b)

    def op_clip(self, a, low=None, high=None):
        if low is None:
            return self.call("min", a, high)
        return self.call("max", a, low) if high is None else self.call("clip", a, low, high)

    def op_leaky_relu(self, a, slope=0.01):
        return self.call("leaky_relu", a, slope)

    def op_elu(self, a, alpha=1.0):
        return self.call("elu", a, alpha)

    def op_neg(self, a):
        v = self.value(a)
        return self.make(f"-{v.text}", v.axes, v.groups, known=v.known)

    def op_dropout(self, a, p):
        self.refuse(f"dropout of p = {p} draws another mask at every step; call eval() on it, or train with p = 0")

    def op_masked_fill(self, a, mask, value):
        v, m = self.value(a), self.value(mask)
        if value == -math.inf or value == "-inf":
            if not m.known:
                self.refuse("the mask is not known before the run")
            negated = re.fullmatch(r"\(1 - (.*)\)", m.text)
            free = replace(m, text=negated[1] if negated else f"(1 - {m.text})")
            if v.mask is not None:  # masked before
                texts, axes, groups = self.align([v.mask, free])
                free = Value(f"({texts[0]} * {texts[1]})", axes, groups, known=True)
            return replace(v, mask=free)
        texts, axes, groups = self.align([m, v])
        return self.make(f"where({texts[0]}, {power_text(self.power(value, 'a constant'))}, {texts[1]})", axes, groups)

    # ---- products

    def op_linear(self, x, w, b=None):
        if w in self.parameters:
            y = self.contract(self.value(x), w, 0, 1)
        elif w in self.transposes:
            y = self.contract(self.value(x), self.transposes[w], 1, 0)
        elif w in self.rows:
            name, *part = self.rows[w]
            y = self.contract(self.value(x), name, 0, 1, part)
        else:
            y = self.op_matmul_values(self.value(x), self.turned(self.value(w)))
        if b is None:
            return self.named(y)
        texts, axes, groups = self.align([y, self.value(b)])
        return self.make(f"{texts[0]} + {texts[1]}", axes, groups)

    def named(self, v):
        return replace(v, text=self.assign(v.text))

    def contract(self, x, w, out_axis, in_axis, part=None):
        """Not yet assigned: sum over x's last traced axis with that of the parameter, of which `part` are the first blocks of the
        result, from and to."""
        p = self.parameters[w]
        if len(p.atoms) == 1:
            self.refuse("product with a vector")
        last = len(x.groups) - 1
        if not x.groups[last]:
            self.refuse("product over an axis of size 1 that was made by a view")
        if not any(isinstance(s, Wide) for s in x.atoms(last) + p.atoms[in_axis]):
            x = self.merged(x, last)
        self.unify(p.atoms[in_axis], x.atoms(last), f"the input of {w}")
        inner, outer = p.atoms[in_axis], p.atoms[out_axis]
        main_in, main_out = _main(inner), _main(outer)
        extra_in = [k for k in range(len(inner)) if k != main_in]
        extra_out = [k for k in range(len(outer)) if k != main_out]
        turned = out_axis > in_axis and not (extra_in or extra_out)  # with heads it is declared the other way round
        mains = [(out_axis, main_out), (in_axis, main_in)]
        self.lay_out(
            p,
            [(out_axis, k) for k in extra_out] + [(in_axis, k) for k in extra_in] + (mains[::-1] if turned else mains),
        )
        group = x.groups[last]
        contracted = group[main_in]
        between = x.wide is not None and not isinstance(x.axes[contracted], Wide)  # mixes positions of wide vectors
        if between and isinstance(outer[main_out], Wide):
            self.refuse("the result has two width axes")
        order = [group[k] for k in extra_in]
        order += [k for k in range(len(x.axes)) if k not in group and not isinstance(x.axes[k], Wide)]
        order += [contracted] + ([x.wide] if between else [])
        x = self.permuted(x, order)
        matrix = p.ident + ("'" if turned else "")
        count = len(extra_in)
        if count > 1 and not x.text.isidentifier():
            x = self.named(x)

        span = {k: (0, outer[k]) for k in extra_out}
        if part:
            span[extra_out[0]] = tuple(part)
        kept = [k for k in extra_out if not part or k != extra_out[0] or part[1] - part[0] > 1]

        def product(index, depth):
            """W[index] @ x, stacked over what is left of extra_out, summed over extra_in."""
            if depth < len(extra_out):
                k = extra_out[depth]
                if k not in kept:
                    return product(index + [span[k][0]], depth + 1)
                if depth == len(extra_out) - 1 and not count:
                    self.need("heads")
                    own = index + ([f"{span[k][0]}..{span[k][1]}"] if span[k] != (0, outer[k]) else [])
                    return f"heads({_indexed(matrix, own)}, {x.text})"
                return f"stack({', '.join(product(index + [h], depth + 1) for h in range(*span[k]))})"
            if not count:
                return f"{_indexed(matrix, index)} @ {x.text}"
            if count == 1:
                self.need("join_heads")
                return f"join_heads({_indexed(matrix, index)}, {x.text})"
            terms = [[]]
            for k in extra_in:
                terms = [t + [h] for t in terms for h in range(inner[k])]
            return " + ".join(f"{_indexed(matrix, index + t)} @ {_indexed(x.text, t)}" for t in terms)

        text = product([], 0)
        lead = len(kept)
        rest = x.axes[count : len(x.axes) - 1 - between]
        axes = [span[k][1] - span[k][0] for k in kept] + rest + [outer[main_out]] + ([x.axes[-1]] if between else [])
        groups = [[k - count + lead for k in g] for g in x.groups[:last]]
        position = lead + len(rest)
        groups.append(
            [kept.index(k) if k in kept else position for k in range(len(outer)) if k in kept or k == main_out]
        )
        return Value(text, axes, groups)

    def need(self, helper):
        text = {
            "heads": "fn heads(W, x) {  # W[h] @ x for each h, along a new first axis\n  y = (W[0] @ x)[None]\n"
            "  for h in 1..size(W, 0) { y = concat(y, (W[h] @ x)[None]) }\n  return y\n}",
            "join_heads": "fn join_heads(W, x) {  # the sum of W[h] @ x[h]\n  y = W[0] @ x[0]\n"
            "  for h in 1..size(W, 0) { y = y + W[h] @ x[h] }\n  return y\n}",
        }[helper]
        if text not in self.helpers:
            self.helpers.append(text)

    def turned(self, v):
        return replace(v, groups=v.groups[:-2] + [v.groups[-1], v.groups[-2]])

    def op_matmul(self, a, b):
        if b in self.transposes or (b in self.parameters and len(self.parameters[b].atoms) == 2):
            w, axes = (self.transposes[b], (0, 1)) if b in self.transposes else (b, (1, 0))
            return self.named(self.contract(self.value(a), w, *axes))
        if a in self.transposes or (a in self.parameters and len(self.parameters[a].atoms) == 2):
            w, axes = (self.transposes[a], (1, 0)) if a in self.transposes else (a, (0, 1))
            return self.named(self.turned(self.contract(self.turned(self.value(b)), w, *axes)))
        return self.named(self.op_matmul_values(self.value(a), self.value(b)))

    def op_matmul_values(self, a, b):
        """[.., S, c] and [.., c, T], not yet assigned."""
        if min(len(a.groups), len(b.groups)) < 2:
            self.refuse("product with a vector")
        wide_rows, wide_columns = (any(isinstance(s, Wide) for s in atoms) for atoms in (a.atoms(-2), b.atoms(-1)))
        if wide_rows and wide_columns:
            self.refuse("the result has two width axes")
        if wide_rows:  # the width is the last axis of the transpose
            return self.turned(self.op_matmul_values(self.turned(b), self.turned(a)))
        a, b = self.same_batch(a, b)
        lead = [x for x in self.lead_order(a) if b.groups[x[0]]]
        batch_a, batch_b = ([v.groups[i][j] for i, j in lead] for v in (a, b))
        rows, columns, inner_a, inner_b = a.groups[-2], b.groups[-1], a.groups[-1], b.groups[-2]
        if (
            any(len(g) != 1 for g in (rows, columns, inner_a))
            or any(isinstance(a.axes[k], Wide) for k in batch_a)
            or any(bool(x) != bool(y) for x, y in zip(a.groups[:-2], b.groups[:-2]))
        ):
            return self.product_of_many(a, b, batch_a, batch_b)
        lead_a = replace(a, groups=a.groups[:-2])
        a = self.permuted(a, batch_a + rows + inner_a)
        count = len(batch_a)
        groups = [[batch_a.index(k) for k in g] for g in lead_a.groups] + [[count], [count + 1]]
        if inner_a and isinstance(a.axes[-1], Wide):
            b = self.permuted(b, batch_b + columns + inner_b)
            s = self.symbol(a.axes[-1].ratio)
            return Value(f"{s} * gram({a.text}, {b.text})", a.axes[:-1] + [b.axes[count]], groups)
        b = self.permuted(b, batch_b + inner_b + columns)
        axes = a.axes[:-1] + [b.axes[-1]]
        if columns and isinstance(b.axes[-1], Wide):
            return Value(f"{a.text} @ {b.text}", axes, groups)
        letters = "abcdefg"[:count]
        return Value(f'einsum("{letters}ij,{letters}jk->{letters}ik", {a.text}, {b.text})', axes, groups)

    def same_batch(self, a, b):
        """Of equal rank, batch axes and what is summed split alike; one that is stretched to the other's has none of the language."""
        rank = max(len(a.groups), len(b.groups))
        a, b = (replace(v, groups=[[] for _ in range(rank - len(v.groups))] + v.groups) for v in (a, b))
        for i, j in [*((i, i) for i in range(rank - 2)), (rank - 1, rank - 2)]:
            one_a, one_b = (bool(v.groups[k]) and all(s == 1 for s in v.atoms(k)) for v, k in ((a, i), (b, j)))
            if one_a and not one_b:
                a = self.without_ones(a, i)
            if one_b and not one_a:
                b = self.without_ones(b, j)
            if a.groups[i] and b.groups[j]:
                self.unify(a.atoms(i), b.atoms(j), "the axes of the product")
        return a, b

    def product_of_many(self, a, b, batch_a, batch_b):
        """Where rows, columns, what is summed or what one factor is stretched along are several axes, or there is a product for
        each unit of the width."""
        letter = {}  # of each axis of the two
        names = iter("abcdefghijklmopqrstuvwxyz")
        for k, s in enumerate(a.axes):
            letter["a", k] = "n" if isinstance(s, Wide) else next(names)
        for of_a, of_b in [*zip(batch_a, batch_b), *zip(a.groups[-1], b.groups[-2])]:
            letter["b", of_b] = letter["a", of_a]
        for k, s in enumerate(b.axes):
            letter.setdefault(("b", k), "n" if isinstance(s, Wide) else next(names))
        traced = [
            [("a", k) for k in x] or [("b", k) for k in y] for x, y in zip(a.groups[:-1], b.groups[:-2] + [[]])
        ] + [[("b", k) for k in b.groups[-1]]]
        out = sorted((x for g in traced for x in g), key=lambda x: letter[x] == "n")
        if sum(letter[x] == "n" for x in out) > 1:
            self.refuse("the result has two width axes")
        words = ["".join(letter[v, k] for k in range(len(x.axes))) for v, x in (("a", a), ("b", b))]
        text = f'einsum("{words[0]},{words[1]}->{"".join(letter[x] for x in out)}", {a.text}, {b.text})'
        sizes = {"a": a.axes, "b": b.axes}
        return Value(text, [sizes[v][k] for v, k in out], [[out.index(x) for x in g] for g in traced])

    def op_embedding(self, w, ids):
        rows, v = self.value(ids), self.value(w)
        if not rows.known:
            self.refuse("indices are not known before the run")
        if len(v.groups[0]) != 1 or isinstance(v.atoms(0)[0], Wide):
            self.refuse("the number of rows grows with the width")
        first = v.groups[0][0]
        if first:
            self.refuse("rows are not the first axis")
        count = len(rows.axes)
        if rows.text == f"positions({v.axes[0]})":  # every row, in order
            return v
        groups = [list(g) for g in rows.groups] + [[k - 1 + count for k in v.groups[1]]]
        return self.make(f"{v.text}[{rows.text}]", rows.axes + v.axes[1:], groups)

    def op_one_hot(self, ids, count):
        v = self.value(ids)
        if not v.known:
            self.refuse("indices are not known before the run")
        axes, groups = v.axes + [count], [list(g) for g in v.groups] + [[len(v.axes)]]
        return self.make(f"one_hot({v.text}, {count})", axes, groups, known=True)

    def op_conv(self, x, w, b=None, stride=(1,), padding=(0,), dilation=None, depthwise=False):
        v, p = self.value(x), self.parameters.get(w)
        count = len(stride)
        dilation = dilation or [1] * count
        if p is None or count > 2:
            self.refuse("only conv1d and conv2d with weights that are parameters are written")
        if len(v.groups) != count + 2:
            self.refuse("the input has no batch axis")
        if any(len(g) != 1 for g in v.groups[2:]):
            self.refuse("positions are merged axes")
        if len(v.groups[0]) > 1:
            v = self.merged(v, 0)
        kernel = [a[0] for a in p.atoms[2:]]
        sizes = [v.axes[g[0]] for g in v.groups[2:]]
        out = [
            (s + 2 * q - d * (k - 1) - 1) // t + 1 for s, k, t, q, d in zip(sizes, kernel, stride, padding, dilation)
        ]
        plain = len(set(stride)) == len(set(padding)) == len(set(dilation)) == dilation[0] == 1 and not depthwise
        options = (f", stride = {stride[0]}" if stride[0] != 1 else "") + (
            f", padding = {padding[0]}" if padding[0] else ""
        )

        def convolved(x_text, weight, first, index=()):
            """Of x [.., positions from axis `first`, c] and the weight at these indices."""
            if plain:
                return f"conv{count}d({x_text}, {_indexed(weight, list(index))}{options})"
            for i in range(count):
                if padding[i]:
                    x_text = f"pad({x_text}, {padding[i]}, axis = {first + i})"
            x_text = x_text if x_text.isidentifier() else self.assign(x_text)
            terms = []
            for at in itertools.product(*map(range, kernel)):
                starts = [a * d for a, d in zip(at, dilation)]
                parts = [
                    f"{a}..{a + (o - 1) * t + 1}" + (f" by {t}" if t != 1 else "")
                    for a, o, t in zip(starts, out, stride)
                ]
                own = _indexed(weight, [*index, *at] + ([0] if depthwise else []))
                terms.append(f"{own} {'*' if depthwise else '@'} {x_text}[{', '.join(['..'] * first + parts)}]")
            return " + ".join(terms)

        if depthwise:
            self.unify(p.atoms[0], v.atoms(1), f"the channels of {w}")
            if len(p.atoms[0]) != 1:
                self.refuse("the channels are split")
            self.lay_out(p, [(2 + i, 0) for i in range(count)] + [(1, 0), (0, 0)])
            v = self.permuted(v, v.groups[0] + [g[0] for g in v.groups[2:]] + v.groups[1])
            text = convolved(v.text, p.ident, len(v.groups[0]))
            axes = v.axes[: len(v.groups[0])] + out + [p.atoms[0][0]]
            extra_out = []
            channels, first, batch = [len(axes) - 1], 0, len(v.groups[0])
        else:
            if not any(isinstance(a, Wide) for a in v.atoms(1) + p.atoms[1]):
                v = self.merged(v, 1)
            self.unify(p.atoms[1], v.atoms(1), f"the input of {w}")
            outer, inner = p.atoms[0], p.atoms[1]
            main_out, main_in = _main(outer), _main(inner)
            extra_out = [k for k in range(len(outer)) if k != main_out]  # groups of channels
            extra_in = [k for k in range(len(inner)) if k != main_in]
            self.lay_out(
                p,
                [(0, k) for k in extra_out] + [(1, k) for k in extra_in] + [(2 + i, 0) for i in range(count)]
                + [(0, main_out), (1, main_in)],
            )  # fmt: skip
            batch, lead, first = len(v.groups[0]), len(extra_in), len(extra_out)
            positions = [g[0] for g in v.groups[2:]]
            v = self.permuted(v, [v.groups[1][k] for k in extra_in] + v.groups[0] + positions + [v.groups[1][main_in]])
            if (extra_in or extra_out) and not v.text.isidentifier():
                v = self.named(v)

            def product(index):
                if len(index) < len(extra_out):
                    return f"stack({', '.join(product(index + [h]) for h in range(outer[extra_out[len(index)]]))})"
                places = itertools.product(*(range(inner[k]) for k in extra_in))
                return " + ".join(convolved(_indexed(v.text, list(g)), p.ident, batch, index + list(g)) for g in places)

            text = product([])
            axes = [outer[k] for k in extra_out] + v.axes[lead : lead + batch] + out + [outer[main_out]]
            channels = [extra_out.index(k) if k != main_out else len(axes) - 1 for k in range(len(outer))]
        groups = [[first + k for k in range(batch)], channels] + [[first + batch + i] for i in range(count)]
        y = Value(text, axes, groups)
        if b is None:
            return self.named(y)
        bias = self.value(b)
        bias = replace(bias, groups=bias.groups + [[] for _ in range(count)])
        if extra_out or not plain:
            y = self.named(y)
        texts, axes, groups = self.align([y, bias])
        return self.make(f"{texts[0]} + {texts[1]}", axes, groups)

    def op_avg_pool(self, x, window, stride):
        return self.pool("avg_pool", x, window, stride)

    def op_max_pool(self, x, window, stride):
        return self.pool("max_pool", x, window, stride)

    def pool(self, function, x, window, stride):
        v, count = self.value(x), len(window)
        for i in range(count):
            k = v.groups[len(v.groups) - count + i]
            if len(k) != 1 or isinstance(v.axes[k[0]], Wide):
                self.refuse("over merged axes")
            if k[0] > 1:
                v = self.permuted(v, k + [j for j in range(len(v.axes)) if j != k[0]])
                k = v.groups[len(v.groups) - count + i]
            options = (f", stride = {stride[i]}" if stride[i] != window[i] else "") + (
                f", axis = {k[0]}" if k[0] else ""
            )
            axes = list(v.axes)
            axes[k[0]] = (v.axes[k[0]] - window[i]) // stride[i] + 1
            v = self.make(f"{function}({v.text}, {window[i]}{options})", axes, v.groups)
        return v

    # ---- normalisation, attention

    def op_layer_norm(self, x, w=None, b=None, eps=1e-5):
        v = self.value(x)
        if len(v.groups[-1]) != 1:
            self.refuse("over an axis that is split")
        if isinstance(v.atoms(-1)[0], Wide):
            y = f"layernorm({v.text}{self.option('eps', eps, 1e-5)})"
        else:
            k = v.groups[-1][0]
            c = self.assign(f"{v.text} - mean({v.text}, axis = {k}, keepdims = true)")
            y = f"{c} / sqrt(mean({c}^2, axis = {k}, keepdims = true) + {power_text(self.power(eps, 'eps'))})"
        return self.affine(replace(v, text=y, mask=None), w, b)

    def op_rms_norm(self, x, w=None, eps=1e-6):
        v = self.value(x)
        if len(v.groups[-1]) != 1:
            self.refuse("over an axis that is split")
        if isinstance(v.atoms(-1)[0], Wide):
            y = f"rmsnorm({v.text}{self.option('eps', eps, 1e-6)})"
        else:
            y = f"{v.text} / sqrt(mean({v.text}^2, axis = {v.groups[-1][0]}, keepdims = true) + {power_text(self.power(eps, 'eps'))})"
        return self.affine(replace(v, text=y, mask=None), w, None)

    def affine(self, v, w, b):
        if w is not None:
            if not v.text.endswith(")") or " / " in v.text:
                v = self.named(v)
            texts, axes, groups = self.align([v, self.value(w)])
            v = Value(f"{texts[1]} * {texts[0]}", axes, groups)
        if b is not None:
            texts, axes, groups = self.align([v, self.value(b)])
            v = Value(f"{texts[0]} + {texts[1]}", axes, groups)
        return self.named(v)

    def option(self, name, value, default):
        p = self.power(value, name)
        return "" if p == Power(default) else f", {name} = {power_text(p)}"

    def op_attention(self, q, k, v, mask=None, scale=None, causal=False):
        q, k, v = self.value(q), self.value(k), self.value(v)
        for other in (k, v):
            if len(other.groups) != len(q.groups):
                self.refuse("queries, keys and values differ in their number of axes")
            for i in range(len(q.groups) - 2):
                self.unify(q.atoms(i), other.atoms(i), "batch axes")
        self.unify(q.atoms(-1), k.atoms(-1), "queries and keys")
        if any(len(x.groups[-1]) != 1 or len(x.groups[-2]) != 1 for x in (q, k, v)):
            self.refuse("over an axis that is split")
        rows, columns = q.atoms(-2)[0], k.atoms(-2)[0]
        if mask is not None:
            m = self.value(mask)
            if not m.known or len(m.axes) != 2:
                self.refuse("only masks [S, T] that are known before the run are written")
            allowed = m.text
        elif causal:
            if rows != columns:
                self.refuse("is_causal with as many queries as keys only")
            allowed = f"causal_mask({rows})"
        else:
            allowed = None
        s = self.power(scale, "the scale of attention")
        if isinstance(q.atoms(-1)[0], Wide):  # attention divides by the width of a head
            lead = self.lead_order(q)
            q, k, v = (
                self.permuted(x, [x.groups[i][j] for i, j in lead] + x.groups[-2] + x.groups[-1]) for x in (q, k, v)
            )
            s = s * Power(float(q.atoms(-1)[0].ratio), Fraction(1))
            more = "" if s == Power(1) else f", scale = {power_text(s)}"
            allowed = allowed or f"ones({rows}, {columns})"
            text = f"attention({q.text}, {k.text}, {v.text}, {allowed}{more})"
            return self.make(text, q.axes[:-1] + [v.axes[-1]], q.groups)
        scores = self.op_matmul_values(q, self.turned(k))
        text = self.assign(scores.text if s == Power(1) else f"{_factor(s, '*')} * {scores.text}")
        axis = "" if scores.wide is None else f", axis = {scores.groups[-1][0]}"
        weights = f"masked_softmax({text}, {allowed}{axis})" if allowed else f"softmax({text}{axis})"
        return self.named(self.op_matmul_values(replace(scores, text=self.assign(weights)), v))

    def lead_order(self, v):
        """The axes before the last two traced ones, (traced axis, atom), in the order that the value has."""
        rank = len(v.groups)
        found = [(i, j) for i in range(rank - 2) for j in range(len(v.groups[i]))]
        return sorted(found, key=lambda s: v.groups[s[0]][s[1]])

    def op_softmax(self, x, axis):
        v = self.value(x)
        k = self.finite_axis(v, axis)
        if v.mask is not None:
            axis %= len(v.groups)
            order = [j for g in v.groups[:axis] + v.groups[axis + 1 :] for j in g if j != v.wide] + [k]
            mask, v = v.mask, self.permuted(v, order + [v.wide] * (v.wide is not None))
            # The mask has axes of its own: those of the scores it varies along.
            texts, axes, groups = self.align([v, mask])
            along = "" if v.wide is None else f", axis = {len(axes) - 2}"
            return self.make(f"masked_softmax({texts[0]}, {texts[1]}{along})", axes, groups)
        last = k == len(v.axes) - 1
        return self.make(f"softmax({v.text})" if last else f"softmax({v.text}, axis = {k})", v.axes, v.groups)

    def op_log_softmax(self, x, axis):
        v = self.value(x)
        return self.make(f"log_softmax({v.text}, axis = {self.finite_axis(v, axis)})", v.axes, v.groups)

    def finite_axis(self, v, axis):
        group = v.groups[axis]
        if len(group) != 1 or isinstance(v.axes[group[0]], Wide):
            self.refuse("over the width, or over an axis that is split")
        return group[0]

    # ---- sums

    def reduce(self, x, axes, keepdims, word):
        return self.reduce_value(self.value(x), axes, keepdims, word)

    def reduce_value(self, v, axes, keepdims, word):
        axes = sorted((a % len(v.groups) for a in axes) if axes is not None else range(len(v.groups)), reverse=True)
        text = v.text
        if word in ("mean", "sum") and v.wide is None and len(axes) == len(v.groups) and not keepdims:
            return self.make(f"{word}({text})", [], [])
        for i in axes:
            for k in sorted(v.groups[i], reverse=True):
                if isinstance(v.axes[k], Wide):
                    if word not in ("mean", "sum"):
                        self.refuse("over the width")
                    text = f"E({text})" if word == "mean" else f"{self.symbol(v.axes[k].ratio)} * E({text})"
                else:
                    text = f"{word}({text}, axis = {k})"
                v = replace(
                    v, axes=v.axes[:k] + v.axes[k + 1 :], groups=[[x - (x > k) for x in g if x != k] for g in v.groups]
                )
            if not keepdims:
                v = replace(v, groups=v.groups[:i] + v.groups[i + 1 :])
        return self.named(replace(v, text=text, mask=None))

    def op_mean(self, x, axes=None, keepdims=False):
        return self.reduce(x, axes, keepdims, "mean")

    def op_sum(self, x, axes=None, keepdims=False):
        return self.reduce(x, axes, keepdims, "sum")

    def op_amax(self, x, axes=None, keepdims=False):
        return self.reduce(x, axes, keepdims, "max")

    def op_amin(self, x, axes=None, keepdims=False):
        return self.reduce(x, axes, keepdims, "min")

    def op_logsumexp(self, x, axes=None, keepdims=False):
        return self.reduce(x, axes, keepdims, "logsumexp")

    def op_var(self, x, axes=None, keepdims=False, correction=0):
        v = self.value(x)
        axes = sorted(a % len(v.groups) for a in axes) if axes is not None else list(range(len(v.groups)))
        sizes = [s for i in axes for s in v.atoms(i)]
        mean = self.reduce_value(v, axes, True, "mean")
        texts, all_axes, groups = self.align([v, mean])
        centred = self.make(f"{texts[0]} - {texts[1]}", all_axes, groups)
        y = self.reduce_value(replace(centred, text=f"{centred.text}^2"), axes, keepdims, "mean")
        if not correction:
            return y
        if any(isinstance(s, Wide) for s in sizes):  # n / (n - 1) is no power of n
            note = f"A variance over the width is divided by n, where torch divides by n - {correction:g}."
            if note not in self.notes:
                self.notes.append(note)
            return y
        count = math.prod(sizes)
        return self.make(f"{number(count / (count - correction))} * {y.text}", y.axes, y.groups)

    def op_cumsum(self, x, axis):
        v = self.value(x)
        return self.make(f"cumsum({v.text}, axis = {self.finite_axis(v, axis)})", v.axes, v.groups)

    # ---- shapes

    def op_reshape(self, x):
        v = self.value(x)
        want = [self.size(s, "a size of a view") for s in self.node["shape"]]
        atoms = [k for g in v.groups for k in g]
        groups, at = [], 0
        for s in want:
            group = []
            target = _coefficient(s)
            if s == 1 and at < len(atoms) and v.axes[atoms[at]] == 1:
                group.append(atoms[at])
                at += 1
            while _product([v.axes[k] for k in group]) != target:
                if at == len(atoms):
                    self.refuse("the view does not fit")
                have = _product([v.axes[k] for k in group + [atoms[at]]])
                if have == target or _divides(have, target):
                    group.append(atoms[at])
                    at += 1
                    continue
                part = _quotient(target, _product([v.axes[k] for k in group]))
                k = atoms[at]
                rest = _quotient(_coefficient(v.axes[k]), _coefficient(part)) if part is not None else None
                if rest is None:
                    self.refuse(f"an axis of size {self.sizes_text([v.axes[k]])} is cut at {self.sizes_text([s])}")
                if isinstance(v.axes[k], Wide):
                    self.split(v.axes[k], [part, rest], "a view")
                v = self.split_finite(v, k, [part, rest])
                groups = [[j + (j > k) for j in g] for g in groups]
                group = [j + (j > k) for j in group] + [k]
                atoms = [j + (j > k) for j in atoms[:at]] + [k, k + 1] + [j + (j > k) for j in atoms[at + 1 :]]
                at += 1
            groups.append(group)
        while at < len(atoms):  # axes of size 1 at the end
            if v.axes[atoms[at]] != 1:
                self.refuse("the view does not fit")
            if groups:
                groups[-1] = groups[-1] + [atoms[at]]
            at += 1
        v = replace(v, groups=groups, mask=None)
        for i in range(len(groups)):  # of axes that are merged, those of size 1 say nothing
            for k in sorted(v.groups[i], reverse=True):
                if len(v.groups[i]) > 1 and v.axes[k] == 1:
                    v = self.without_axis(v, k)
        return v if v.text == self.value(x).text else self.named(v)

    def op_permute(self, x, order):
        v = self.value(x)
        return replace(v, groups=[v.groups[i] for i in order])

    def op_expand(self, x):
        v, shape = self.value(x), self.node["shape"]
        groups = [[] for _ in range(len(shape) - len(v.groups))] + v.groups
        v = replace(v, groups=groups)
        for i, s in enumerate(shape):
            if s != 1 and v.groups[i] and all(a == 1 for a in v.atoms(i)):
                v = self.without_ones(v, i)
        new = [i for i, s in enumerate(shape) if s != 1 and not v.groups[i]]
        if not new:
            return v
        sizes = [self.size(shape[i], "a size") for i in new]
        stretched = Value("", sizes, [[new.index(i)] if i in new else [] for i in range(len(shape))])
        texts, axes, groups = self.align([v, stretched])
        return self.make(f"{texts[0]} + zeros({self.sizes_text(axes)})", axes, groups, known=v.known)

    def op_unsqueeze(self, x, axis):
        v = self.value(x)
        axis %= len(v.groups) + 1
        return replace(v, groups=v.groups[:axis] + [[]] + v.groups[axis:])

    def op_squeeze(self, x, axes):
        v = self.value(x)
        for i in sorted((a % len(v.groups) for a in axes), reverse=True):
            if any(s != 1 for s in v.atoms(i)):
                continue
            if v.groups[i]:
                v = self.named(self.without_ones(v, i))
            v = replace(v, groups=v.groups[:i] + v.groups[i + 1 :])
        return v

    def op_select(self, x, axis, index):
        v = self.value(x)
        i = axis % len(v.groups)
        k = self.finite_axis(v, i)
        v = self.named(self.without_axis(v, k, index))
        return replace(v, groups=v.groups[:i] + v.groups[i + 1 :])

    def op_slice(self, x, axis, start, stop, step=1):
        v = self.value(x)
        i = axis % len(v.groups)
        first, last = self.size(start, "the start of a slice"), self.size(stop, "the end of a slice")
        atoms = v.atoms(i)
        if first == 0 and _coefficient(last) == _product(atoms) and step == 1:
            return v
        if any(isinstance(a, Wide) for a in atoms):
            if not isinstance(last, Wide) or step != 1 or (first and not isinstance(first, Wide)):
                self.refuse("a slice of the width that is no part of it")
            start, stop = self.blocks(atoms, first, last, "a slice")
            k = v.groups[i][0]
            if stop - start == 1:
                return self.named(self.without_axis(v, k, start))
            text = f"{v.text}[{', '.join(['..'] * k + [f'{start}..{stop}'])}]"
            return self.make(text, v.axes[:k] + [stop - start] + v.axes[k + 1 :], v.groups)
        v = self.merged(v, i)
        k = self.finite_axis(v, i)
        by = f" by {step}" if step != 1 else ""
        text = f"{v.text}[{', '.join(['..'] * k + [f'{first}..{last}{by}'])}]"
        axes = list(v.axes)
        axes[k] = -(-(last - first) // step)
        return self.make(text, axes, v.groups, known=v.known)

    def op_concat(self, *args, axis):
        values = [self.value(a) for a in args]
        rank = len(values[0].groups)
        axis %= rank
        for v in values[1:]:
            for i in range(rank):
                if i != axis:
                    self.unify(values[0].atoms(i), v.atoms(i), "parts")
        if any(isinstance(s, Wide) for v in values for s in v.atoms(axis)):
            for v in values[1:]:
                self.unify(values[0].atoms(axis), v.atoms(axis), "parts of a wide axis, which must be equal")
            values = [
                self.permuted(v, [k for i, g in enumerate(v.groups) if i != axis for k in g] + v.groups[axis])
                for v in values
            ]
            axes = [len(values)] + values[0].axes
            groups = [[k + 1 for k in g] for g in values[0].groups]
            groups[axis] = [0] + groups[axis]
            return self.make(f"stack({', '.join(v.text for v in values)})", axes, groups)
        values = [self.merged(v, axis) for v in values]
        values = [v if v.groups[axis] else self.with_axis(v, axis) for v in values]
        values = [
            self.permuted(
                v,
                v.groups[axis]
                + [k for i, g in enumerate(v.groups) if i != axis for k in g if not isinstance(v.axes[k], Wide)]
                + ([v.wide] if v.wide is not None else []),
            )
            for v in values
        ]
        axes = [sum(v.axes[0] for v in values)] + values[0].axes[1:]
        return self.make(
            f"concat({', '.join(v.text for v in values)})", axes, values[0].groups, known=all(v.known for v in values)
        )

    def op_take(self, x, axis, at):
        v = self.value(x)
        i = axis % len(v.groups)
        v = self.merged(v, i)
        k = self.finite_axis(v, i)
        if at == list(reversed(range(v.axes[k]))):
            index = ".. by -1"
        else:
            index = self.constant_array("at", at)
        axes = v.axes[:k] + [len(at)] + v.axes[k + 1 :]
        return self.make(f"{v.text}[{', '.join(['..'] * k + [index])}]", axes, v.groups, known=v.known)

    def constant_array(self, name, value):
        """The name of a declared constant."""
        if not any(v == value for v in self.arrays.values()):
            self.arrays[self.ident(name)] = value
        return next(k for k, v in self.arrays.items() if v == value)

    def op_full(self, value):
        sizes = [self.size(s, "a size") for s in self.node["shape"]]
        wide = [i for i, s in enumerate(sizes) if isinstance(s, Wide)]
        if len(wide) > 1:
            self.refuse("the result has two width axes")
        order = [i for i in range(len(sizes)) if i not in wide] + wide
        axes = [sizes[i] for i in order]
        text = f"zeros({self.sizes_text(axes)})" if value == 0 else f"{number(value)} * ones({self.sizes_text(axes)})"
        return Value(text, axes, [[order.index(i)] for i in range(len(sizes))], known=not wide)

    # ---- losses

    def op_mse(self, out, target, reduction="mean"):
        a, b = self.value(out), self.value(target)
        texts, axes, groups = self.align([a, b])
        if a.axes == b.axes and a.groups == b.groups and len(a.axes) in (1, 2) and reduction == "mean":
            k = a.axes[1] if len(a.axes) == 2 else 1
            factor = power_text(Power(2 / k))
            return self.make(f"{'' if factor == '1' else factor + ' * '}mse({texts[0]}, {texts[1]})", [], [])
        return self.reduced(reduction, f"({texts[0]} - {texts[1]})^2", axes, groups)

    def op_cross_entropy(self, logits, labels, smoothing=0.0, reduction="mean"):
        f, y = self.value(logits), self.value(labels)
        classes = 1 if len(f.groups) > 1 else 0
        k = self.finite_axis(f, classes)
        samples = [g for i, g in enumerate(f.groups) if i != classes]
        f = self.permuted(f, [j for g in samples for j in g] + [k])
        count = math.prod(f.axes[:-1])
        if len(y.groups) == len(f.groups):  # probabilities
            y = self.permuted(y, [j for i, g in enumerate(y.groups) if i != classes for j in g] + y.groups[classes])
            if y.axes != f.axes:
                self.refuse("labels and logits differ in shape")
            target = y.text
        else:
            if [f.axes[j] for g in samples for j in range(len(g))] and [
                a for i in range(len(y.groups)) for a in y.atoms(i)
            ] != f.axes[:-1]:
                self.refuse("labels and logits differ in shape")
            y = self.permuted(y, [j for g in y.groups for j in g])
            target = y.text if not smoothing else f"one_hot({y.text}, {f.axes[-1]})"
        if smoothing:
            target = f"{number(1 - smoothing)} * {target} + {number(smoothing / f.axes[-1])}"
        factor = f"{count} * " if reduction == "sum" and count != 1 else ""
        return self.make(f"{factor}cross_entropy({f.text}, {target})", [], [])

    def op_bce_logits(self, f, y, reduction="mean"):
        return self.entrywise_loss(f, y, reduction, lambda a, b: f"softplus({a}) - {b} * {a}")

    def op_soft_margin(self, f, y, reduction="mean"):
        return self.entrywise_loss(f, y, reduction, lambda a, b: f"softplus(-{b} * {a})")

    def op_huber(self, f, y, delta=1.0, reduction="mean"):
        texts, axes, groups = self.align([self.value(f), self.value(y)])
        if len(axes) == 1 and reduction == "mean":
            return self.make(f"huber({texts[0]}, {texts[1]}, delta = {number(delta)})", [], [])
        r = self.make(f"abs({texts[0]} - {texts[1]})", axes, groups).text
        d = number(delta)
        text = f"where({r} < {d}, {r}^2 / 2, {d} * {r} - {number(delta**2 / 2)})"
        return self.reduced(reduction, text, axes, groups)

    def reduced(self, reduction, text, axes, groups):
        return self.make(text, axes, groups) if reduction == "none" else self.make(f"{reduction}({text})", [], [])

    def entrywise_loss(self, f, y, reduction, term):
        texts, axes, groups = self.align([self.value(f), self.value(y)])
        return self.reduced(reduction, term(*texts), axes, groups)

    # ---- parameters and their training

    def training(self):
        groups, kind = self.graph["optimiser"]["groups"], self.graph["optimiser"]["kind"]
        groups = [{"kind": kind} | g for g in groups]
        used = [p for p in self.parameters.values() if p.layout is not None]
        for p in self.parameters.values():
            if p.layout is None:
                self.notes.append(f"{p.name} does not reach the loss.")
        rates = {
            p.name: self.power(groups[p.spec["group"]]["lr"], f"the learning rate of {p.name}")
            for p in used
            if p.spec["group"] is not None
        }
        if not rates:
            raise Refused("the optimiser trains no parameter that the loss depends on")
        constants = [r.c for r in rates.values()]
        eta = max(constants, key=lambda c: (constants.count(c), c != 0))
        if eta == 0:
            eta = 1.0
        declarations = []
        for p in used:
            law, comment = self.law(p)
            shape = self.sizes_text([p.atoms[i][k] for i, k in p.layout])
            line = f"{'param' if p.name in rates else 'random'} {p.ident} : [{shape}] ~ {law}"
            if p.name in rates:
                own = rates[p.name] / Power(eta)
                own = Power(1.0 if abs(own.c - 1) < 1e-12 else own.c, own.p)
                line += "" if own == Power(1) else f", lr = {power_text(own)}"
            declarations.append(line + (f"  # {comment}" if comment else ""))
        trained = [p for p in used if p.name in rates]
        by_options = {}
        for p in trained:
            options = {k: v for k, v in groups[p.spec["group"]].items() if k not in ("lr", "weight_decay", "eps")}
            if options["kind"] == "muon" and len(p.layout) != 2:
                raise Refused(f"{p.name}: Muon orthogonalises it as one matrix, and the program splits it")
            by_options.setdefault(str(options), (options, []))[1].append(p)
        steps = []
        rate = number(eta) + (" * schedule[t]" if self.schedule is not None else "")
        for options, members in by_options.values():
            kind = options.pop("kind")
            parts = [f"lr = {rate}"] + self.step_options(kind, options)
            parts += self.varying("eps", kind, groups, members) + self.varying("weight_decay", kind, groups, members)
            if len(by_options) > 1:
                parts.append(f"only = ({', '.join(p.ident for p in members)})")
            steps.append(f"{kind}(loss, {', '.join(parts)})")
        if self.schedule is not None:
            declarations.insert(0, f"const schedule = {_literal([float(s) for s in self.schedule])}")
        return declarations, ["step " + ", ".join(steps)]

    def step_options(self, kind, options):
        known = DEFAULTS[kind]
        parts = []
        for name, value in options.items():
            if name not in known:
                raise Refused(f"the optimiser's option {name} = {value} is not written")
            if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value)):
                raise Refused(f"the optimiser's {name} changes with the width")
            if value == known[name] or (name == "betas" and list(value) == known[name]):
                continue
            text = (
                f"({', '.join(number(v) for v in value)})"
                if name == "betas"
                else str(value).lower() if isinstance(value, bool) else number(value)
            )
            parts.append(f"{name} = {text}")
        return parts

    def varying(self, name, kind, groups, members):
        if name not in DEFAULTS[kind]:
            return []
        default = Power(DEFAULTS[kind][name])
        values = {p.ident: self.power(groups[p.spec["group"]].get(name, 0.0), f"{name} of {p.name}") for p in members}
        if name == "eps":
            values = {p.ident: self.eps_beside_gradient(values[p.ident], p) for p in members}
        distinct = set(values.values())
        if len(distinct) == 1:
            only = distinct.pop()
            return [] if only == default else [f"{name} = {power_text(only)}"]
        return [f"{name} = {{{', '.join(f'{k}: {power_text(v)}' for k, v in values.items())}}}"]

    def eps_beside_gradient(self, eps, p):
        """A fixed eps would outweigh gradients that shrink, at widths that no one trains: it follows them."""
        if eps.p != 0 or eps.c == 0:
            return eps
        q = p.spec.get("gradient_power")
        if q is None:
            note = f"eps = {eps.c:g} is left out: how it compares with the gradients could not be counted."
            eps = Power(0.0)
        elif q == 0:
            return eps
        else:
            width = self.widths[-1]
            note = f"eps is {eps.c:g} at width {width} and follows the size of the gradients; a fixed one would outweigh them in the limit."
            eps = Power(float(f"{eps.c / width**q:.6g}"), Fraction(q).limit_denominator(8))
        if note not in self.notes:
            self.notes.append(note)
        return eps

    def law(self, p):
        law, what = p.spec["law"], p.name
        wide = sum(isinstance(p.atoms[i][k], Wide) for i, k in p.layout)
        kind = law["kind"]

        def number_of(key):
            value, leading = fit_leading(law[key], self.widths, f"{key} of the initial law of {what}")
            if leading:
                note = (
                    f"The initial law of {what} counts inputs and outputs; of the width its leading power is written."
                )
                if note not in self.notes:
                    self.notes.append(note)
            return value

        if kind == "unseen":
            raise Refused(f"{what}: {law['why']}")
        if kind == "constant":
            return f"normal({power_text(number_of('value'))}, 0)", None
        if kind in ("normal", "other"):
            std, mean = number_of("std"), number_of("mean")
            if kind == "other" and (wide < 2 or mean.c):
                raise Refused(
                    f"{what}: {law['what']} is no law of the language for vectors and finite values; of n x n matrices "
                    "of mean 0 only the variance matters" + (f"; {law['advice']}" if "advice" in law else "")
                )
            comment = (
                f"{law['what']}: of an n x n matrix the limit knows the variance only" if kind == "other" else None
            )
            if wide == 0 and std.c:
                comment = "random at every width: drawn once, from --seed"
            return f"normal({power_text(mean)}, {power_text(std**2)})", comment
        low, high = number_of("low"), number_of("high")
        if wide < 2:
            return f"uniform({power_text(low)}, {power_text(high)})", (
                "random at every width: drawn once, from --seed" if wide == 0 else None
            )
        if low.p != high.p or abs(low.c + high.c) > 1e-9 * abs(high.c):
            raise Refused(f"{what}: a uniform law of an n x n matrix must have mean 0")
        return (
            f"normal(0, {power_text(Power(high.c**2 / 3, 2 * high.p))})",
            "uniform: of an n x n matrix the limit knows the variance only",
        )


def _main(atoms):
    wide = [k for k, s in enumerate(atoms) if isinstance(s, Wide)]
    return wide[0] if wide else len(atoms) - 1


def _indexed(text, index):
    return f"{text}[{', '.join(map(str, index))}]" if index else text


def _factor(p, symbol):
    text = power_text(p)
    return f"({text})" if " " in text or (text.startswith("-") and symbol != "*") else text


def _ratio(r):
    c = f"{r.numerator} n" if r.numerator != 1 else "n"
    return c if r.denominator == 1 else f"{c} / {r.denominator}"


def _divides(have, target):
    """target = have times a size."""
    c, p = target[0] / have[0], target[1] - have[1]
    return p in (0, 1) and (p == 1 or c.denominator == 1)


def _quotient(a, b):
    """The size a / b, or None."""
    c, p = a[0] / b[0], a[1] - b[1]
    if p == 1:
        return Wide(c)
    return int(c) if p == 0 and c.denominator == 1 else None


def _shape(value):
    shape = []
    while isinstance(value, (list, tuple)):
        shape.append(len(value))
        value = value[0]
    return shape


def _known_constant(value, shape):
    """Arrays that have names."""
    if len(shape) == 1 and value == list(range(shape[0])):
        return f"positions({shape[0]})"
    if len(shape) == 2 and shape[0] == shape[1] > 1:
        for text, rule in (("causal_mask({})", lambda i, j: j <= i), ("(1 - causal_mask({}))", lambda i, j: j > i)):
            if all(x == rule(i, j) for i, row in enumerate(value) for j, x in enumerate(row)):
                return text.format(shape[0])
    return None


def _literal(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, bool):
        return str(int(value))
    return number(value) if value == int(value) else repr(float(f"{value:.17g}"))
