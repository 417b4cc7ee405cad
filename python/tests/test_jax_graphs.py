"""Graphs traced from JAX (graphs/jax/*.json, made by jax_models.py) to programs; needs no jax.

The texts are recorded in graphs/jax/*.tp: TPLIMIT_RECORD=1 writes them anew.
"""

import copy
import json
import os

import pytest
import test_torch_graphs as shared

from tplimit._traced.lint import lint_graph
from tplimit._traced.translation import Translation

pytestmark = pytest.mark.filterwarnings("ignore::tplimit.ProgramWarning")
FOLDER = os.path.join(shared.HERE, "graphs", "jax")
NAMES = sorted(f[:-5] for f in os.listdir(FOLDER) if f.endswith(".json"))


def graph(name):
    with open(os.path.join(FOLDER, f"{name}.json"), encoding="utf-8") as f:
        return json.load(f)


@pytest.mark.parametrize("name", NAMES)
def test_text(name):
    text = Translation(graph(name), steps=3, name=name).text
    path = os.path.join(FOLDER, f"{name}.tp")
    if os.environ.get("TPLIMIT_RECORD"):
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
    with open(path, encoding="utf-8") as f:
        assert text == f.read()


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_feature_learning(name):
    found = Translation(graph(name), steps=2).check().to_dict()
    assert (found["regime"], found["maximal"]) == ("feature learning", True)


@pytest.mark.parametrize("name", ["mlp_sgd", "mlp_adam", "residual_sgd", "attention_sgd", "classifier_sgd"])
def test_limit_agrees_with_networks(name):
    """The tool's networks of the program; those of JAX: test_jax.py."""
    shared.check_limit_agrees_with_networks(Translation(graph(name), steps=2))


# ---- three mistakes


def with_rates(g, rate):
    g = copy.deepcopy(g)
    for p in g["parameters"]:
        g["optimiser"]["groups"][p["group"]]["lr"] = rate
    return g


def test_lint_hidden_rates_of_adam_not_scaled():
    found = lint_graph(with_rates(graph("residual_adam"), 0.01))
    rates = {f.parameter: f.rate for f in found.findings if f.rate}
    assert found.regime == "unstable"
    assert rates == dict.fromkeys(("up0/kernel", "down0/kernel", "up1/kernel", "down1/kernel"), -1)
    assert "(64 / width)" in str(found)


def test_lint_rates_of_sgd_not_scaled():
    found = lint_graph(with_rates(graph("mlp_sgd"), 0.3))
    rates = {f.parameter: f.rate for f in found.findings}
    assert rates == {"W1": 1, "b1": 1, "b2": 1, "v": 1}
    assert all(f.problem == "vanishes" for f in found.findings)


def test_lint_standard_parametrisation():
    """A readout of variance 1 / n, not divided by n, and one rate for Adam."""
    g = with_rates(graph("mlp_adam"), 0.02)
    next(node for node in g["nodes"] if node["op"] == "div")["args"][1] = 1.0
    next(p for p in g["parameters"] if p["name"] == "v")["law"]["std"] = {"per_width": [w**-0.5 for w in g["widths"]]}
    found = lint_graph(g)
    by_name = {f.parameter: f for f in found.findings}
    assert found.regime == "unstable"
    assert (by_name["W2"].problem, by_name["W2"].rate) == ("explodes", -1)
    assert (by_name["v"].rate, by_name["v"].std) == (-1, -0.5)
