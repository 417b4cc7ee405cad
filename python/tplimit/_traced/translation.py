"""A traced graph and the program that it becomes."""

import json
import os
from functools import cached_property

import numpy as np

from .._errors import Error
from .._program import Program
from .emit import emit


class Translation(Program):
    """A program with where it comes from: its text is there at once, to be read even if it is refused as it is first used.

    files: the arrays that the text reads, by name; names: what the value of each module, and each parameter, is called in it.
    """

    def __init__(self, graph, steps=10, features=(), schedule=None, name="net", gradients=False):
        self.graph, self.name = graph, name
        self._text, arrays, self.names = emit(graph, steps, features, schedule, name, gradients)
        self._arrays = {own: np.asarray(value, dtype=float) for own, (_, value) in arrays.items()}
        self.files = {file: self._arrays[own] for own, (file, _) in arrays.items()}

    @cached_property
    def _core(self):
        return Program(self._text, data=self._arrays, name=f"{self.name}.tp")._core

    @property
    def text(self):
        return self._text

    def __str__(self):
        return self._text

    def __repr__(self):
        return f"<Translation {self.name}: {len(self._text.splitlines())} lines, from {self.graph['from']}>"

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != "_core"}

    def __setstate__(self, state):
        self.__dict__.update(state)

    def save(self, folder="."):
        """Writes NAME.tp and its arrays; the path of the program."""
        os.makedirs(folder, exist_ok=True)
        for file, value in self.files.items():
            np.save(os.path.join(folder, file), value)
        path = os.path.join(folder, f"{self.name}.tp")
        with open(path, "w", encoding="utf-8") as f:
            f.write(self._text)
        return path

    def save_graph(self, path):
        """The traced form, from which `Translation(json.load(..))` is made again without torch."""
        with open(path, "w", encoding="utf-8") as f:
            json.dump(self.graph, f, separators=(",", ":"))


def without_eps(graph):
    """The same training by Adam without eps, as powers of the width are counted: gradients divided by their own size."""
    groups = [{k: 0.0 if k == "eps" else v for k, v in g.items()} for g in graph["optimiser"]["groups"]]
    return graph | {"optimiser": graph["optimiser"] | {"groups": groups}}


def with_gradient_powers(graph):
    """For Adam and RMSprop, counted as by `tplimit check`: the power of the width of an entry of each gradient, beside which eps stands."""
    if not any(g.get("eps") for g in graph["optimiser"]["groups"]):
        return graph
    # Of two steps: what starts at 0 has no gradient before.  Where these explode the first gradient counts.
    found = None
    for steps in (2, 1):
        counted = Translation(without_eps(graph), steps=steps, gradients=True)
        try:
            found = counted.check().to_dict()
        except Error:  # where there are no gradients to count
            continue
        if found["regime"] != "unstable":
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
