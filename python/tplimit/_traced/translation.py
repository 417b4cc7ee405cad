"""A traced graph and the program that it becomes."""

import json
import os
import tempfile

import numpy as np

from .emit import emit
from .run import command


class Translation:
    """text: the program; files: the arrays that it reads, by name; names: what the value of each module is called in it."""

    def __init__(self, graph, steps=10, features=(), schedule=None, name="net", gradients=False):
        self.graph = graph
        self.text, self.files, self.names = emit(graph, steps, features, schedule, name, gradients)
        self.name = name

    def __str__(self):
        return self.text

    def save(self, folder="."):
        """Writes NAME.tp and its arrays; the path of the program."""
        os.makedirs(folder, exist_ok=True)
        for file, value in self.files.items():
            np.save(os.path.join(folder, file), np.asarray(value, dtype=float))
        path = os.path.join(folder, f"{self.name}.tp")
        with open(path, "w", encoding="utf-8") as f:
            f.write(self.text)
        return path

    def save_graph(self, path):
        """The traced form, from which `Translation(json.load(..))` is made again without torch."""
        with open(path, "w", encoding="utf-8") as f:
            json.dump(self.graph, f, separators=(",", ":"))

    def tool(self, verb, *options, binary=None):
        """`tplimit VERB` of this program with --out: exit code, JSON or None, what it printed, its messages."""
        with tempfile.TemporaryDirectory() as folder:
            out = os.path.join(folder, "out.json")
            code, printed, messages = command([verb, self.save(folder), "--out", out, *map(str, options)], binary)
            result = None
            if os.path.exists(out):
                with open(out, encoding="utf-8") as f:
                    result = json.load(f)
        return code, result, printed, messages


def without_eps(graph):
    """The same training by Adam without eps, as powers of the width are counted: gradients divided by their own size."""
    groups = [{k: 0.0 if k == "eps" else v for k, v in g.items()} for g in graph["optimiser"]["groups"]]
    return graph | {"optimiser": graph["optimiser"] | {"groups": groups}}


def with_gradient_powers(graph, binary=None):
    """For Adam and RMSprop, counted by `tplimit check`: the power of the width of an entry of each gradient, beside which eps stands."""
    if not any(g.get("eps") for g in graph["optimiser"]["groups"]):
        return graph
    # Of two steps: what starts at 0 has no gradient before.  Where these explode the first gradient counts.
    for steps in (2, 1):
        counted = Translation(without_eps(graph), steps=steps, gradients=True)
        try:
            _, found, _, _ = counted.tool("check", binary=binary)
        except FileNotFoundError:
            return graph
        if found and found["regime"] != "unstable":
            break
    orders = {r["name"]: r["order"] for r in (found or {"reports": []})["reports"]}
    parameters = []
    for spec in graph["parameters"]:
        ident = next((i for i, name in counted.names["parameters"].items() if name == spec["name"]), None)
        order = orders.get(f"gradient_{ident}")
        if order is not None:
            wide = sum(isinstance(s, dict) for s in spec["shape"])
            spec = spec | {"gradient_power": order - wide / 2}
        parameters.append(spec)
    return graph | {"parameters": parameters}
