"""Traced graphs (graphs/*.json, made by torch_models.py) to programs; needs no torch.

The texts are recorded in graphs/*.tp: TPLIMIT_RECORD=1 writes them anew.
"""

import copy
import json
import os
import pickle

import numpy as np
import pytest

import tplimit
from tplimit._traced.form import Power, Refused, fit, join, number, power_text
from tplimit._traced.lint import lint_graph
from tplimit._traced.measure import measure
from tplimit._traced.translation import Translation, with_gradient_powers

HERE = os.path.dirname(os.path.abspath(__file__))
pytestmark = pytest.mark.filterwarnings("ignore::tplimit.ProgramWarning")
NAMES = sorted(f[:-5] for f in os.listdir(os.path.join(HERE, "graphs")) if f.endswith(".json"))


def graph(name):
    with open(os.path.join(HERE, "graphs", f"{name}.json"), encoding="utf-8") as f:
        return json.load(f)


@pytest.mark.parametrize("name", NAMES)
def test_text(name):
    text = Translation(graph(name), steps=3, name=name).text
    path = os.path.join(HERE, "graphs", f"{name}.tp")
    if os.environ.get("TPLIMIT_RECORD"):
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
    with open(path, encoding="utf-8") as f:
        assert text == f.read()


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("mlp", "cnn", "residual"))])
def test_check_finds_feature_learning(name):
    found = Translation(graph(name), steps=2).check().to_dict()
    assert (found["regime"], found["maximal"]) == ("feature learning", True)


def check_limit_agrees_with_networks(translation):
    limit = translation.run(particles=1024)["loss"].value
    runs = translation.simulate(512, 4)["loss"].runs
    error = runs.std(0, ddof=1) / len(runs) ** 0.5 + 0.02
    assert np.all(np.abs(runs.mean(0) - limit) < 4 * error)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("decoder_adam", "residual_adam")])  # minutes
def test_limit_agrees_with_networks(name):
    """The tool's networks of the program; those of torch: test_torch.py."""
    check_limit_agrees_with_networks(Translation(graph(name), steps=2))


def test_is_a_program(tmp_path):
    """With arrays that are files of the saved one."""
    g = graph("mlp_sgd")
    for key, width in (("x", 3), ("y", 1)):
        rows = np.linspace(-0.1, 0.1, 70 * width).reshape(70, width).tolist()
        g["inputs"][key] |= {"shape": [70, width], "value": rows}
    t = Translation(g, steps=2, name="wide")
    assert sorted(t.files) == ["wide_X.npy", "wide_y.npy"]
    options = dict(particles=64, progress=False)
    values = [
        p.run(**options)["loss"].value.tolist()
        for p in (t, pickle.loads(pickle.dumps(t)), tplimit.Program(t.save(tmp_path)))
    ]
    assert values[0] == values[1] == values[2]
    assert str(t) == t.text == (tmp_path / "wide.tp").read_text()


# ---- the linter


def with_rates(g, rate):
    """The same network, every group with the rate that rate(widths, parameter) says."""
    g = copy.deepcopy(g)
    for p in g["parameters"]:
        g["optimiser"]["groups"][p["group"]]["lr"] = rate(p)
    return g


def test_lint_names_nothing_where_all_is_well():
    found = lint_graph(graph("mlp_adam"))
    assert found.good and found.findings == [] and "feature learning" in str(found)


def test_lint_hidden_rate_of_adam_not_scaled():
    found = lint_graph(with_rates(graph("mlp_adam"), lambda p: 0.01))
    assert found.regime == "unstable"
    (finding,) = found.findings
    assert (finding.parameter, finding.problem, finding.rate) == ("fc2.weight", "explodes", -1)
    assert "fc2.weight" in str(found) and "(64 / width)" in str(found)
    assert "fc2" in found.unstable


def test_lint_rates_of_sgd_not_scaled():
    found = lint_graph(with_rates(graph("mlp_sgd"), lambda p: 0.1))
    rates = {f.parameter: f.rate for f in found.findings}
    assert rates == {"fc1.weight": 1, "fc1.bias": 1, "fc2.bias": 1, "readout.weight": 1}
    assert all(f.problem == "vanishes" for f in found.findings)


def test_lint_readout_without_factor():
    """Divided by sqrt(n) instead of n: the updates of all layers explode at the rates of muP."""
    g = graph("mlp_sgd")
    for node in g["nodes"]:
        if node["op"] == "div":
            node["args"][1] = {"per_width": [w**0.5 for w in g["widths"]]}
    found = lint_graph(g)
    assert found.regime == "unstable"
    by_name = {f.parameter: f for f in found.findings}
    assert by_name["readout.weight"].problem == "explodes" and by_name["readout.weight"].std == -0.5


def test_lint_standard_parametrisation():
    """Variance 1 / n and no factor behind the readout, one rate for Adam."""
    g = with_rates(graph("mlp_adam"), lambda p: 0.01)
    last = next(node for node in g["nodes"] if node["op"] == "div")
    last["args"][1] = 1.0
    for p in g["parameters"]:
        if p["name"] == "readout.weight":
            p["law"]["std"] = {"per_width": [w**-0.5 for w in g["widths"]]}
    found = lint_graph(g)
    by_name = {f.parameter: f for f in found.findings}
    assert found.regime == "unstable"
    assert (by_name["fc2.weight"].problem, by_name["fc2.weight"].rate) == ("explodes", -1)
    assert (by_name["readout.weight"].rate, by_name["readout.weight"].std) == (-1, -0.5)


def test_powers_of_gradients_are_counted():
    g = graph("mlp_adam")
    for p in g["parameters"]:
        del p["gradient_power"]
    assert "left out" in Translation(g).text
    counted = with_gradient_powers(g)
    assert all(p["gradient_power"] == -1 for p in counted["parameters"])


# ---- what is refused, with its reason


def small(nodes, parameters=(), **more):
    """A graph of one linear layer, with other nodes."""
    N = {"per_width": [64, 96, 160]}
    normal = lambda std: {"kind": "normal", "mean": 0.0, "std": std}
    own = [
        {"name": "a", "shape": [N, 2], "law": normal(1.0), "group": 0},
        {"name": "b", "shape": [1, N], "law": normal(1.0), "group": 0},
    ]
    return {
        "form": 1, "from": "a test", "widths": [64, 96, 160],
        "inputs": {"x": {"shape": [2, 2], "integer": False, "value": [[1, 2], [3, 4]]}, "y": {"shape": [2, 1], "integer": False, "value": [[1], [2]]}},
        "constants": {}, "parameters": own + list(parameters),
        "optimiser": {"kind": "sgd", "groups": [{"lr": 0.1}]},
        "nodes": [{"name": "h", "op": "linear", "args": ["x", "a"], "attrs": {}, "shape": [2, N], "module": "first", "line": "net.py:3"}] + nodes + [
            {"name": "o", "op": "linear", "args": [nodes[-1]["name"] if nodes else "h", "b"], "attrs": {}, "shape": [2, 1], "module": "last", "line": ""},
            {"name": "l", "op": "mse", "args": ["o", "y"], "attrs": {}, "shape": [], "module": "", "line": ""}],
        "outputs": {"out": "o", "loss": "l"},
    } | more  # fmt: skip


def node(op, args, shape=None, **attrs):
    return {
        "name": "z",
        "op": op,
        "args": args,
        "attrs": attrs,
        "shape": shape or [2, {"per_width": [64, 96, 160]}],
        "module": "mid",
        "line": "net.py:7",
    }


@pytest.mark.parametrize(
    "g, reason",
    [
        (small([node("dropout", ["h"], p=0.1)]), r"dropout in mid \(net.py:7\): .* another mask at every step"),
        (small([node("fft", ["h"])]), "does not know this operation"),
        (small([node("softmax", ["h"], axis=1)]), "over the width"),
        (
            small([node("mul", ["h", {"per_width": [1.0, 2.0, 5.0]}])]),
            "a constant is 1, 2, 5 at widths 64, 96, 160: no power of the width",
        ),
        (small([node("reshape", ["h"], [2, {"per_width": [16, 24, 40]}, 4])]), "do not fit"),
        (
            small([], optimiser={"kind": "sgd", "groups": [{"lr": {"per_width": [0.1, 0.1, 0.3]}}]}),
            "learning rate of a is 0.1, 0.1, 0.3",
        ),
        (
            small([], optimiser={"kind": "sgd", "groups": [{"lr": 0.1, "momentum": {"per_width": [0.1, 0.2, 0.3]}}]}),
            "momentum changes with the width",
        ),
    ],
)
def test_refused(g, reason):
    with pytest.raises(Refused, match=reason):
        Translation(g)


def test_sizes_that_are_no_multiple_of_the_width():
    g = small([])
    g["parameters"][0]["shape"][0] = {"per_width": [65, 97, 161]}
    with pytest.raises(Refused, match="axis 0 of a is 65, 97, 161"):
        Translation(g)


def test_heads_that_grow_in_number():
    g = graph("decoder_sgd")
    for n in g["nodes"]:
        if n["op"] == "reshape" and len(n["shape"]) == 4:
            n["shape"] = n["shape"][:2] + [{"per_width": [32, 48, 80]}, 2]
    text = Translation(g).text
    assert "_qkv_weight : [3, 2, m, n]" in text and "width n, m = n / 2" in text
    assert " * einsum(" in text and " attention(" not in text


def test_laws():
    """Uniform laws: as they are for vectors, by their variance for n x n matrices."""
    N = {"per_width": [64, 96, 160]}
    c = {
        "kind": "uniform",
        "low": {"per_width": [-(w**-0.5) for w in (64, 96, 160)]},
        "high": {"per_width": [w**-0.5 for w in (64, 96, 160)]},
    }
    square = {"name": "c", "shape": [N, N], "law": c, "group": 0}
    text = Translation(small([node("linear", ["h", "c"])], [square])).text
    assert "param c : [n, n] ~ normal(0, 1 / (3 * n))  # uniform" in text
    vector = {"name": "c", "shape": [N], "law": c, "group": 0}
    text = Translation(small([node("add", ["h", "c"])], [vector])).text
    assert "param c : [n] ~ uniform(-1 / sqrt(n), 1 / sqrt(n))\n" in text
    vector["law"] = {"kind": "unseen", "why": "it was loaded"}
    with pytest.raises(Refused, match="c: it was loaded"):
        Translation(small([node("add", ["h", "c"])], [vector]))


# ---- numbers


def test_fit():
    widths = (64, 96, 160)
    at = lambda f: {"per_width": [f(w) for w in widths]}
    assert fit(3, widths, "x") == Power(3.0)
    assert fit(at(lambda w: 2 * w), widths, "x").p == 1
    assert fit(at(lambda w: 0.5 / w**0.5), widths, "x").p == -0.5
    with pytest.raises(Refused, match="x is 65, 97, 161"):
        fit(at(lambda w: w + 1), widths, "x")
    with pytest.raises(Refused):
        fit(at(lambda w: w - 96), widths, "x")
    assert join([{"a": [1, w]} for w in widths]) == {"a": [1, {"per_width": [64, 96, 160]}]}
    with pytest.raises(Refused, match="changes with the width"):
        join([{"a": [1] * w} for w in widths])


@pytest.mark.parametrize(
    "value, text",
    [(1, "1"), (0.5, "0.5"), (1 / 3, "1 / 3"), (3 / 640, "3 / 640"), (-1.0, "-1"), (1e-8, "1e-08"), (0.3, "0.3")],
)
def test_number(value, text):
    assert number(value) == text
    assert eval(number(value)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    "c, p, text",
    [
        (1, 1, "n"),
        (1, 0.5, "sqrt(n)"),
        (0.25, 1, "n / 4"),
        (2, -1, "2 / n"),
        (1 / 3, -1, "1 / (3 * n)"),
        (2, 1.5, "2 * n^(3/2)"),
    ],
)
def test_power_text(c, p, text):
    from fractions import Fraction

    assert power_text(Power(c, Fraction(p))) == text


# ---- the recorder


def test_measure(tmp_path):
    runs = measure(tmp_path)
    for width in (8, 16):
        for seed in range(3):
            with runs.network(width, seed) as record:
                for t in range(4):
                    record(loss=seed + t, out=np.full((2, 1), width))
                record.once(final=seed)
    assert [os.path.basename(f) for f in runs.files] == ["8.npz", "16.npz"]
    read = np.load(runs.files[1])
    assert read["width"] == 16 and read["loss"].shape == (3, 4) and read["out"].shape == (3, 4, 2, 1)
    assert read["loss"][2].tolist() == [2, 3, 4, 5] and read["final"].tolist() == [0, 1, 2]


def test_measure_keeps_whole_networks_only(tmp_path):
    runs = measure(tmp_path)
    with pytest.raises(RuntimeError):
        with runs.network(8, 0) as record:
            record(loss=1)
            raise RuntimeError
    with runs.network(8, 0) as record:
        record(loss=1)
    with pytest.raises(ValueError, match="seed 0 of width 8"):
        with runs.network(8, 0) as record:
            record(loss=1)
    with pytest.raises(ValueError, match="another shape"):
        with runs.network(8, 1) as record:
            record(loss=1)
            record(loss=1)
