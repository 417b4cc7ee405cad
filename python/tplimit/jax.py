"""JAX: functions of a pytree of parameters, of Flax or of one's own, to programs; a linter for their parametrisation.

    def build(width, seed=0):
        params = ..                                         # any pytree of arrays, Flax's variables or nnx state
        return params, apply, SGD(0.1)                      # apply(params, x)

    t = from_jax(build, X, y, loss="mse", steps=10)         # a Translation: a Program with text, graph, files
    print(lint(build, X, y))

`build` is called at three widths, and jax.make_jaxpr shows what apply computes and how parameters are drawn.  This file
makes the traced form (_traced/form.py); _traced/emit.py makes text of it, and needs no jax.
"""

import inspect
import math
import re
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from ._traced import laws as law_of
from ._traced.form import Refused, join
from ._traced.lint import lint_graph
from ._traced.measure import measure
from ._traced.translation import Translation, with_gradient_powers

__all__ = ["from_jax", "lint", "trace", "train", "named", "SGD", "Adam", "AdamW", "Refused", "Translation"]


def from_jax(
    build,
    X,
    y,
    loss="mse",
    steps=10,
    widths=(64, 96, 160),
    features=(),
    schedule=None,
    name="net",
    laws=None,
):
    """The :class:`tplimit.Program` of `steps` full-batch steps of training; see docs/jax.md.

    build(width) or build(width, seed) returns (params, apply, optimiser) or (params, apply, optimiser, loss); the
    optimiser is SGD, Adam or AdamW of this module, loss a function (out, y) or one of "mse", "cross_entropy".  laws:
    initial laws by the beginning of a parameter's name, ("normal", std), ("uniform", low, high), ("constant", value) or
    "normal", where how they are drawn cannot be seen.  features: names of modules (named scopes) whose Gram matrix is
    reported.  schedule: factors of the rate, one a step.
    """
    graph = with_gradient_powers(trace(build, X, y, loss, widths, laws))
    return Translation(graph, steps=steps, features=features, schedule=schedule, name=name)


def lint(build, X, y, loss="mse", steps=2, widths=(64, 96, 160), base=None, laws=None):
    """What `tplimit check` finds in the parametrisation, in the names of the parameters."""
    return lint_graph(trace(build, X, y, loss, widths, laws), steps=steps, base=base)


def trace(build, X, y, loss="mse", widths=(64, 96, 160), laws=None):
    """The traced form (a JSON object) of a build function."""
    if len(set(widths)) < 3:
        raise ValueError("three widths at least: two fit a power, the third tests it")
    graphs = [_graph_at(build, X, y, loss, width, laws or {}) for width in widths]
    graph = join(graphs) | {"widths": list(widths)}
    for p in graph["parameters"]:
        _settle(p, graph)
    return graph


def train(build, X, y, loss="mse", steps=10, widths=(64, 256, 1024), seeds=8, folder=".", schedule=None):
    """The same training by JAX and optax: networks of several widths and seeds, recorded in folder/WIDTH.npz."""
    import jax
    import jax.numpy as jnp
    import optax

    if not _takes_seed(build):
        raise ValueError("train needs build(width, seed)")
    data, target = jnp.asarray(np.asarray(X)), jnp.asarray(np.asarray(y))
    recorder = measure(folder)
    for width in widths:
        for seed in range(seeds):
            params, apply, optimiser, loss_of = _built(build, width, loss, seed)
            transformation = optimiser.optax(params, schedule)

            def value_and_out(p):
                out = apply(p, data)
                return _loss_function(loss_of)(out, target), out

            @jax.jit
            def step(p, state):
                (value, out), gradient = jax.value_and_grad(value_and_out, has_aux=True)(p)
                change, state = transformation.update(gradient, state, p)
                return optax.apply_updates(p, change), state, value, out

            state = transformation.init(params)
            with recorder.network(width, seed) as record:
                for _ in range(steps):
                    params, state, value, out = step(params, state)
                    record(loss=np.asarray(value), out=np.asarray(out))
    return recorder.files


# ---- optimisers


@dataclass
class _Optimiser:
    """lr, weight_decay and eps: a number, or numbers by the beginning of a parameter's name; "" is all others.

    A parameter whose lr is None is not trained."""

    def group(self, name):
        values = {k: _by_name(v, name, k) for k, v in vars(self).items()}
        group = {k: v for k, v in values.items() if k not in ("b1", "b2")}
        return group | ({"betas": [float(values["b1"]), float(values["b2"])]} if "b1" in values else {})

    def optax(self, params, schedule=None):
        """The same as an optax transformation."""
        import jax
        import jax.numpy as jnp
        import optax

        paths, tree = jax.tree_util.tree_flatten_with_path(params)
        names = _names([path for path, _ in paths])
        factors = None if schedule is None else jnp.asarray(schedule)
        chains = {}
        for name in names:
            g = self.group(name)
            if g["lr"] is None:
                chains[name] = optax.set_to_zero()
            else:
                rate = g["lr"] if schedule is None else (lambda t, lr=g["lr"]: lr * factors[t])
                chains[name] = self.chain(optax, g, rate)
        return optax.multi_transform(chains, jax.tree_util.tree_unflatten(tree, names))


@dataclass
class SGD(_Optimiser):
    lr: object
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: object = 0.0
    kind = "sgd"

    def chain(self, optax, g, rate):
        return optax.chain(
            optax.add_decayed_weights(g["weight_decay"]), optax.sgd(rate, g["momentum"] or None, g["nesterov"])
        )


@dataclass
class Adam(_Optimiser):
    lr: object
    b1: float = 0.9
    b2: float = 0.999
    eps: object = 1e-8
    weight_decay: object = 0.0
    kind = "adam"

    def chain(self, optax, g, rate):
        return optax.chain(optax.add_decayed_weights(g["weight_decay"]), optax.adam(rate, *g["betas"], g["eps"]))


@dataclass
class AdamW(Adam):
    weight_decay: object = 1e-4  # optax's
    kind = "adamw"

    def chain(self, optax, g, rate):
        return optax.adamw(rate, *g["betas"], g["eps"], weight_decay=g["weight_decay"])


def _by_name(value, name, what):
    """The entry of the longest beginning of the name, at whole parts of it."""
    if not isinstance(value, dict):
        return value
    found = [k for k in value if k == "" or name == k or name.startswith(k.rstrip("/") + "/")]
    if not found:
        raise ValueError(f"{what} has no entry for '{name}', and none for '' (all others)")
    return value[max(found, key=len)]


# ---- one width


def _takes_seed(build):
    try:
        return len(inspect.signature(build).parameters) > 1
    except ValueError:
        return False


def _built(build, width, loss, seed=0):
    made = build(width, seed) if _takes_seed(build) else build(width)
    if not isinstance(made, tuple) or len(made) not in (3, 4):
        raise ValueError("build(width) returns (params, apply, optimiser) or (params, apply, optimiser, loss)")
    if not isinstance(made[2], _Optimiser):
        raise ValueError(
            f"the optimiser is {type(made[2]).__name__}: describe it by tplimit.jax.SGD, Adam or AdamW, as the "
            "numbers inside an optax transformation cannot be read; its method optax(params) makes one of it"
        )
    loss_of = made[3] if len(made) == 4 else loss
    if isinstance(loss_of, str) and loss_of not in ("mse", "cross_entropy"):
        raise ValueError("loss is a function (out, y) or one of mse, cross_entropy")
    return made[0], made[1], made[2], loss_of


def _loss_function(loss):
    if not isinstance(loss, str):
        return loss
    import jax
    import jax.numpy as jnp

    def cross_entropy(out, y):
        labels = y if y.ndim == out.ndim else jax.nn.one_hot(y, out.shape[-1])
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(out), -1))

    return cross_entropy if loss == "cross_entropy" else lambda out, y: jnp.mean((out - y) ** 2)


def named(params):
    """The parameters by the names that programs, rates and laws call them."""
    import jax

    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return dict(zip(_names([path for path, _ in paths]), [leaf for _, leaf in paths]))


def _names(paths):
    """Dense_0/kernel; `params` of Flax's variables and `value` of nnx's are left out."""
    parts = []
    for path in paths:
        keys = [str(next(getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a))) for k in path]
        parts.append(keys[:-1] if len(keys) > 1 and keys[-1] == "value" else keys)
    if all(len(p) > 1 and p[0] == "params" for p in parts):
        parts = [p[1:] for p in parts]
    return ["/".join(p) or "w" for p in parts]


def _x64():
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64()


def _graph_at(build, X, y, loss, width, laws):
    import jax
    import jax.numpy as jnp

    params, apply, optimiser, loss_of = _built(build, width, loss)
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = _names([path for path, _ in paths])
    if len(set(names)) < len(names):
        raise Refused("two parameters have the same name")
    arrays = {name: leaf for name, (_, leaf) in zip(names, paths)}
    for name, leaf in arrays.items():
        if not jnp.issubdtype(getattr(leaf, "dtype", np.asarray(leaf).dtype), jnp.floating):
            raise Refused(
                f"{name} is no array of floating point numbers; params has trained values only (of nnx: nnx.Param)"
            )
    seen = _initial_laws(build, width)
    with _x64():  # 1 / 3 in 64 bits, so that numbers can be fitted
        data, target = _array(X), _array(y)
        wide = [jnp.asarray(np.asarray(leaf, dtype=np.float64)) for leaf in arrays.values()]
        traced = jax.make_jaxpr(lambda leaves, x: apply(jax.tree_util.tree_unflatten(tree, leaves), x))(
            wide, jnp.asarray(data)
        )
        if len(traced.out_avals) != 1:
            raise Refused("apply returns more than one array")
        walk = _Walk(arrays, data, target)
        (out,) = walk.run(traced, [_View(name, tuple(range(np.ndim(a)))) for name, a in arrays.items()] + [walk.x])
        out = walk.realised(out, traced.out_avals[0].shape)
        walk.outs = tuple(traced.out_avals[0].shape)
        if isinstance(loss_of, str):
            value = walk.named_loss(loss_of, out)
        else:
            of = jax.make_jaxpr(loss_of)(jnp.zeros(walk.outs), jnp.asarray(target))
            (value,) = walk.run(of, [out, walk.y])
            value = walk.realised(value, ())
    parameters = []
    for i, (name, leaf) in enumerate(arrays.items()):
        group = optimiser.group(name)
        given = [k for k in laws if k == "" or name == k or name.startswith(k.rstrip("/") + "/")]
        law = seen.get(name) or _law_of_array(np.asarray(leaf, dtype=np.float64))
        if given:
            law = _given_law(laws[max(given, key=len)], law, name)
        parameters.append({
            "name": name, "shape": walk.form_shape(name), "law": law, "group": None if group["lr"] is None else i,
        })  # fmt: skip
    groups = [optimiser.group(name) for name in arrays]
    plain = lambda v: v if isinstance(v, (bool, int, list)) else float(0.0 if v is None else v)
    return {
        "form": 1,
        "from": f"JAX {jax.__version__}",
        "inputs": {"x": _input(X, data), "y": _input(y, target)},
        "constants": walk.constants,
        "parameters": parameters,
        "optimiser": {"kind": optimiser.kind, "groups": [{k: plain(v) for k, v in g.items()} for g in groups]},
        "nodes": walk.finished(),
        "outputs": {"out": out, "loss": value},
    }


def _array(values):
    a = np.asarray(values)
    return _shortest(a) if a.dtype.kind == "f" else a.astype(np.int64)


def _shortest(a):
    """0.1, not 0.10000000149011612."""
    if a.dtype.itemsize < 8:
        return np.array([float(str(v)) for v in a.ravel()]).reshape(a.shape)
    return a.astype(np.float64)


def _input(values, array):
    return {"shape": list(array.shape), "integer": array.dtype.kind != "f", "value": array.tolist()}


# ---- initial laws


class _Drawn:
    """An array of independent draws of a law; key: what they were drawn from."""

    def __init__(self, law, key=None):
        self.law, self.key = law, key


def _initial_laws(build, width):
    """The laws of all parameters by name, from the jaxpr of build; {} where it cannot be traced."""
    import jax

    def parameters():
        return _built(build, width, "mse")[0]

    try:
        traced = jax.make_jaxpr(parameters)()
        paths, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(parameters))
    except Refused:
        raise
    except Exception:  # numpy's random numbers, values that depend on values: the arrays say what they can
        return {}
    found, keys = {}, {}
    drawn = _draws(traced.jaxpr, traced.consts, [])
    for name, value in zip(_names([path for path, _ in paths]), drawn):
        if isinstance(value, _Drawn):
            if value.key is not None and value.key in keys:
                raise Refused(f"{keys[value.key]} and {name} are drawn with the same key, and are not independent")
            keys[value.key] = name
            found[name] = value.law
            if value.law["kind"] == "other":
                advice = (
                    f"initialise it by normal(..), or take one of this variance for it: laws={{'{name}': 'normal'}}"
                )
                found[name] = value.law | {"advice": advice}
        elif value is not None:
            found[name] = _law_of_array(np.asarray(value, dtype=np.float64))
    return found


_SHAPES = {"reshape", "transpose", "convert_element_type", "squeeze", "copy", "copy_p", "expand_dims", "stop_gradient"}


def _draws(jaxpr, consts, args):
    """Its results: arrays, _Drawn, or None where not even the array is known."""
    env = dict(zip(jaxpr.constvars, consts)) | dict(zip(jaxpr.invars, args))
    read = lambda v: v.val if hasattr(v, "val") else env[v]
    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        name, inner = eqn.primitive.name, _inner(eqn)
        label = str(eqn.params.get("name", "")).lstrip("_")
        law = None
        if inner is not None and label in ("normal", "uniform", "truncated_normal"):
            ends = [float(v) for v in values[1:] if not isinstance(v, _Drawn) and v is not None]
            if label == "normal":
                law = law_of.normal(0.0, 1.0)
            elif len(ends) == 2:
                law = law_of.uniform(*ends) if label == "uniform" else law_of.truncated(0.0, 1.0, *ends)
        if law is not None:
            out = [_Drawn(law, None if values[0] is None else _key(values[0]))]
        elif inner is not None:
            out = _draws(inner.jaxpr, inner.consts, values)
        elif any(v is None for v in values):
            out = [None] * len(eqn.outvars)
        elif any(isinstance(v, _Drawn) for v in values):
            out = [_law_after(name, values, eqn)] * len(eqn.outvars)
        elif sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars) > 1 << 24:
            out = [None] * len(eqn.outvars)
        else:
            out = eqn.primitive.bind(*values, **eqn.params)
            out = list(out) if eqn.primitive.multiple_results else [out]
        env.update(zip(eqn.outvars, out))
    return [read(v) for v in jaxpr.outvars]


def _key(value):
    import jax

    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()


def _law_after(name, values, eqn):
    drawn = next(v for v in values if isinstance(v, _Drawn))
    if name in _SHAPES or (name == "broadcast_in_dim" and eqn.invars[0].aval.size == eqn.outvars[0].aval.size):
        return drawn
    if name == "neg":
        return _Drawn(law_of.scaled(drawn.law, -1.0), drawn.key)
    if name in ("mul", "div", "add", "sub") and sum(isinstance(v, _Drawn) for v in values) == 1:
        first = values[0] is drawn
        c = np.asarray(values[1 if first else 0])
        if c.size and np.all(c == c.flat[0]) and (first or name != "div"):
            c = float(_shortest(c.ravel()[:1])[0]) if c.dtype.kind == "f" else float(c.flat[0])
            if name in ("mul", "div"):
                return _Drawn(law_of.scaled(drawn.law, c if name == "mul" else 1 / c), drawn.key)
            law = drawn.law if first or name == "add" else law_of.scaled(drawn.law, -1.0)
            return _Drawn(law_of.moved(law, c if not first or name == "add" else -c), drawn.key)
    return _Drawn(
        law_of.unseen(
            f"its initial values come from {name}, which makes no independent entries of a law that is known here"
        ),
        drawn.key,
    )


def _law_of_array(a):
    """From the entries: a constant, or mean and standard deviation of a law that they may have come from."""
    if a.size == 0:
        return law_of.unseen("it has no entries")
    if np.all(a == a.flat[0]):
        return law_of.constant(
            float(_shortest(np.float32(a.ravel()[:1]))[0] if a.flat[0] == np.float32(a.flat[0]) else a.flat[0])
        )
    mean, std = float(a.mean()), float(a.std())
    z = (a - mean) / std
    kurtosis, extreme = float((z**4).mean()), float(np.abs(z).max())
    if a.size < 32:
        return law_of.unseen("its initial values were not seen to be drawn, and are too few to tell a law from")
    if extreme < 1.05 * 3**0.5 and kurtosis < 2.1:
        kind = "uniform"
    elif abs(kurtosis - 3) < 5 * (24 / a.size) ** 0.5 + 0.1:
        kind = "normal"
    else:
        return law_of.unseen(
            "its initial values were not seen to be drawn, and are those of no normal and no uniform law"
        )
    return {"kind": kind, "sample": [mean, std, int(a.size)]}


def _given_law(given, law, name):
    if given == "normal":
        if law["kind"] in ("normal", "other", "uniform"):
            if "sample" in law or law["kind"] != "uniform":
                return {k: v for k, v in law.items() if k not in ("what", "advice")} | {"kind": "normal"}
            return law_of.normal((law["low"] + law["high"]) / 2, (law["high"] - law["low"]) / 12**0.5)
    elif isinstance(given, (tuple, list)) and len(given) == {"normal": 2, "uniform": 3, "constant": 2}.get(given[0]):
        if given[0] == "normal":
            return law_of.normal(0.0, float(given[1]))
        return (
            law_of.uniform(float(given[1]), float(given[2]))
            if given[0] == "uniform"
            else law_of.constant(float(given[1]))
        )
    raise ValueError(
        f"laws: '{name}' has {given}; known are ('normal', std), ('uniform', low, high), ('constant', value), 'normal'"
    )


def _settle(parameter, graph):
    """Laws that are numbers of 32 bits, or estimates, become powers of the width with the constant that is meant."""
    law, widths = parameter["law"], graph["widths"]
    per_width = lambda v: v["per_width"] if isinstance(v, dict) else [v] * len(widths)
    if "sample" in law:
        mean, std, size = (per_width(v) for v in law.pop("sample"))
        c, p, near = _power_of_samples(std, size, widths)
        if any(abs(m) > 5 * s / k**0.5 for m, s, k in zip(mean, std, size)):
            law.clear()
            law.update(
                law_of.unseen("its initial values were not seen to be drawn, and their mean is not 0; give laws")
            )
            return
        values = [c * w ** float(p) for w in widths]
        found = (
            {"mean": 0.0, "std": {"per_width": values}}
            if law["kind"] == "normal"
            else {
                "low": {"per_width": [-(3**0.5) * v for v in values]},
                "high": {"per_width": [3**0.5 * v for v in values]},
            }
        )
        law.update({k: v["per_width"][0] if isinstance(v, dict) and p == 0 else v for k, v in found.items()})
        graph.setdefault("notes", []).append(
            f"{parameter['name']}: {law['kind']}, of variance {near}, from its entries; it was not seen to be drawn."
        )
        return
    for key in ("std", "low", "high", "value"):
        if key in law:
            values = [_meant(v) for v in per_width(law[key])]
            law[key] = {"per_width": values} if isinstance(law[key], dict) else values[0]


def _meant(v):
    """The number whose square is a simple fraction, if there is one within 32 bits."""
    f = Fraction(v * v).limit_denominator(20000)
    if v and f and abs(float(f) - v * v) < 6e-7 * v * v:
        return math.copysign(float(f) ** 0.5, v)
    return v


def _power_of_samples(std, size, widths):
    """c n^p and the variance in words, from standard deviations of samples at each width."""
    p = Fraction(round(2 * math.log(std[-1] / std[0]) / math.log(widths[-1] / widths[0])), 2)
    weights = np.array(size, dtype=float)
    square = np.array([s**2 * w ** (-2 * float(p)) for s, w in zip(std, widths)])
    variance = float((square * weights).sum() / weights.sum())
    error = variance * (2 / weights.sum()) ** 0.5
    fraction = next(
        f
        for k in range(1, 10**6)
        for f in [Fraction(variance).limit_denominator(k)]
        if abs(float(f) - variance) < 2.5 * error
    )
    power = "" if p == 0 else f" n^{2 * p}"
    return float(fraction) ** 0.5, p, f"{fraction}{power}"


# ---- nodes


def _inner(eqn):
    """The closed jaxpr that a call runs, or None."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        if inner is not None:
            if hasattr(inner, "jaxpr"):
                return inner
            from jax.extend.core import ClosedJaxpr

            return ClosedJaxpr(inner, ())
    return None


def _label(eqn, inner):
    """The name of the function that is called."""
    found = eqn.params.get("name") or getattr(getattr(inner.jaxpr, "debug_info", None), "func_name", "")
    return str(found).lstrip("_")


@dataclass
class _View:
    """A parameter with its axes in another order, times a number."""

    name: str
    order: tuple
    factor: float = 1.0
    lead: int = 0  # axes of size 1 before all others


_ENTRYWISE = {
    "tanh": "tanh", "exp": "exp", "log": "log", "sin": "sin", "cos": "cos", "erf": "erf", "abs": "abs", "sign": "sign",
    "sqrt": "sqrt", "floor": "floor", "logistic": "sigmoid", "neg": "neg", "stop_gradient": "stop",
}  # fmt: skip
_BINARY = {"add": "add", "add_any": "add", "sub": "sub", "mul": "mul", "div": "div", "max": "maximum", "min": "minimum"}
_RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SAME = {
    "copy",
    "copy_p",
    "reduce_precision",
    "sharding_constraint",
    "optimization_barrier",
    "pvary",
    "mesh_cast",
    "reshard",
}
_OWN_RULES = {  # functions of JAX with rules of differentiation of their own, which are those of their values
    "relu", "relu6", "logaddexp", "logaddexp2", "softmax", "silu", "logsumexp", "sinc", "xlogy", "xlog1py",
}  # fmt: skip
_SMALLEST = -1e30  # stands for -infinity, and for the smallest floating point number, in scores that are masked


class _Walk:
    """A jaxpr in the operations of the form.  Values: arrays known before the run, names of nodes, views of parameters.

    The node of a value may have size 1 where the value has more: operations of the form broadcast by themselves."""

    def __init__(self, parameters, data, target):
        self.parameters = {name: tuple(np.shape(a)) for name, a in parameters.items()}
        self.layout = {}  # name -> groups of its axes that are the axes of the form
        self.data, self.target = data, target
        self.nodes, self.constants, self.shapes, self.by_name = [], {}, {}, {}
        self.counts = {}  # name of a sum -> how many entries are summed
        self.eqn, self.scope, self.line = None, "", ""
        self.shapes["x"], self.shapes["y"] = data.shape, target.shape
        self.x = "x" if data.dtype.kind == "f" else data
        self.y = "y" if target.dtype.kind == "f" else target
        self.outs = None

    def run(self, closed, args):
        return self.walk(closed.jaxpr, closed.consts, args, "", "")

    def walk(self, jaxpr, consts, args, scope, line):
        env = {v: np.asarray(c) for v, c in zip(jaxpr.constvars, consts)} | dict(zip(jaxpr.invars, args))
        read = lambda v: np.asarray(v.val) if hasattr(v, "val") else env[v]
        for eqn in jaxpr.eqns:
            values = [read(v) for v in eqn.invars]
            out = self.equation(eqn, values, scope, line)
            env.update(zip(eqn.outvars, out if isinstance(out, list) else [out]))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn, values, scope, line):
        stack = "/".join(x for x in (scope, str(getattr(eqn.source_info, "name_stack", ""))) if x)
        self.eqn, self.scope, name = eqn, stack, eqn.primitive.name
        self.line = line = _line(eqn) or line
        if name.startswith("random_") or name in ("threefry2x32", "rng_bit_generator"):
            self.refuse(
                "draws random numbers, which are others at every step (dropout: deterministic = True, or rate 0)"
            )
        if all(isinstance(v, np.ndarray) for v in values) and name not in _SAME:
            out = eqn.primitive.bind(*values, **eqn.params)
            return [np.asarray(o) for o in (out if eqn.primitive.multiple_results else [out])]
        inner = _inner(eqn)
        if inner is not None:
            known = self.known_call(eqn, inner, values)
            if known is not None:
                return known
            if name.startswith("custom_") and _label(eqn, inner) not in _OWN_RULES:
                self.refuse(f"{_label(eqn, inner)} has a rule of differentiation of its own, which is not translated")
            return self.walk(inner.jaxpr, inner.consts, values, stack, line)
        shape = tuple(eqn.outvars[0].aval.shape)
        if name in _SAME or name == "convert_element_type":
            if name == "convert_element_type" and np.dtype(eqn.params["new_dtype"]).kind in "iub":
                if np.dtype(eqn.invars[0].aval.dtype).kind == "f":
                    self.refuse("makes whole numbers of values that are not known before the run")
            return values
        method = getattr(self, "do_" + name, None)
        if name in _ENTRYWISE:
            return self.put(_ENTRYWISE[name], values[0])
        if name in _BINARY:
            return self.binary(_BINARY[name], *values)
        if name in _RELATIONS:
            return self.compare(_RELATIONS[name], *values, shape)
        if method is None:
            self.refuse("is not translated")
        return method(*values, **(eqn.params | {"shape": shape}))

    def refuse(self, why):
        raise Refused(f"{self.eqn.primitive.name}: {why}" + (f" ({self.line})" if self.line else ""))

    def known_call(self, eqn, inner, values):
        """A call of jax.nn whose jaxpr is that function's."""
        import jax

        candidates = {
            "relu": [("relu", jax.nn.relu, {})],
            "silu": [("silu", jax.nn.silu, {})],
            "softplus": [("softplus", jax.nn.softplus, {})],
            "gelu": [
                ("gelu_tanh", lambda x: jax.nn.gelu(x, approximate=True), {}),
                ("gelu", lambda x: jax.nn.gelu(x, approximate=False), {}),
            ],
            "log_softmax": [("log_softmax", jax.nn.log_softmax, {"axis": -1})],
        }.get(_label(eqn, inner), [])
        if len(inner.jaxpr.invars) != 1 or not isinstance(values[0], (str, _View)):
            return None
        for op, function, attrs in candidates:
            aval = inner.jaxpr.invars[0].aval
            own = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
            (call,) = own.jaxpr.eqns[-1:]
            own_inner = _inner(call) if len(own.jaxpr.eqns) == 1 else None
            if own_inner is not None and str(own_inner.jaxpr) == str(inner.jaxpr):
                x = values[0] if op != "log_softmax" else self.full(values[0], aval.shape)
                return [self.put(op, x, **attrs)]
        return None

    # ---- nodes

    def put(self, op, *args, shape=None, **attrs):
        """A node; its name.  shape: where it is not that of its arguments, broadcast."""
        args = [self.argument(_thin(a) if shape is None else a) for a in args]
        if shape is None:
            shape = np.broadcast_shapes(*[self.shape_of(a) for a in args])
        name = f"v{len(self.nodes) + 1}"
        while name in self.parameters:
            name += "_"
        node = {
            "name": name, "op": op, "args": args, "attrs": attrs, "shape": [int(s) for s in shape],
            "module": self.scope, "line": self.line,
        }  # fmt: skip
        self.nodes.append(node)
        self.by_name[name], self.shapes[name] = node, tuple(int(s) for s in shape)
        return name

    def shape_of(self, a):
        if isinstance(a, str):
            return self.shapes[a] if a in self.shapes else tuple(self.form_shape(a))
        if isinstance(a, _View):
            return (1,) * a.lead + tuple(self.parameters[a.name][k] for k in a.order)
        return np.shape(a)

    def argument(self, a):
        if isinstance(a, _View):
            return self.value_of(a)
        if not isinstance(a, np.ndarray):
            return a
        a = a.astype(np.int64) if a.dtype == bool else _shortest(a) if a.dtype.kind == "f" else a
        if a.size and np.all(a == a.flat[0]):
            return _bounded(self, a.flat[0].item())
        for name, other in (("x", self.data), ("y", self.target)):
            if other.dtype.kind != "f" and a.shape == other.shape and np.array_equal(a, other):
                return name
        for name, other in self.constants.items():
            if np.shape(other) == a.shape and np.array_equal(other, a):
                return name
        name = f"constant_{len(self.constants) + 1}"
        if not np.all(np.isfinite(a)):
            self.refuse("has an array with infinite entries")
        self.constants[name], self.shapes[name] = a.tolist(), a.shape
        return name

    def value_of(self, view):
        """The parameter as a value: its axes one by one."""
        shape = self.parameters[view.name]
        groups = self.layout.setdefault(view.name, [(k,) for k in range(len(shape))])
        name = view.name
        if any(len(g) > 1 for g in groups):
            flat = [k for g in groups for k in g]
            name = self.put("reshape", name, shape=[shape[k] for k in flat])
        order = [[k for g in groups for k in g].index(k) for k in view.order]
        if order != list(range(len(order))):
            name = self.put("permute", name, shape=[shape[k] for k in view.order], order=order)
        return name if view.factor == 1 else self.put("mul", name, view.factor)

    def form_shape(self, name):
        shape = self.parameters[name]
        return [math.prod(shape[k] for k in g) for g in self.layout.get(name, [(k,) for k in range(len(shape))])]

    def full(self, a, shape):
        """A value that has this shape, not one that broadcasts to it."""
        if isinstance(a, np.ndarray):
            return np.broadcast_to(a, shape)
        shape = tuple(int(s) for s in shape)
        have = self.shape_of(a)
        if have == shape and not (isinstance(a, _View) and a.lead):
            return a
        a = self.ranked(a, len(shape))
        return a if self.shape_of(a) == shape else self.put("expand", a, shape=shape)

    def ranked(self, a, rank):
        """With axes of size 1 in front, as many as the rank asks for."""
        if isinstance(a, _View):
            a = self.value_of(a)
        for _ in range(rank - len(self.shape_of(a))):
            a = self.put("unsqueeze", a, shape=(1, *self.shape_of(a)), axis=0)
        return a

    def realised(self, a, shape):
        """The name of a node that is this value."""
        if isinstance(a, np.ndarray):
            raise Refused("the output depends on no parameter")
        a = self.argument(self.full(a, shape))
        return a if a in self.by_name else self.put("mul", a, 1.0)

    def finished(self):
        """Scopes as names of modules: without what is around all of them, and the transformations."""
        for node in self.nodes:
            node["module"] = "/".join(p for p in node["module"].split("/") if re.fullmatch(r"[\w.-]+", p))
        paths = [n["module"].split("/") for n in self.nodes if n["module"]]
        if len({p[0] for p in paths}) == 1 and any(len(p) > 1 for p in paths):
            for node in self.nodes:
                node["module"] = "/".join(node["module"].split("/")[1:])
        return self.nodes

    def named_loss(self, loss, out):
        self.scope, labels = "", self.target.shape
        if labels != (self.outs if loss == "mse" or self.target.dtype.kind == "f" else self.outs[:-1]):
            raise ValueError(f"the output has shape {self.outs}, y {labels}")
        rank = len(self.outs)
        if loss == "cross_entropy" and rank > 2:  # the form has the classes second
            order = [0, rank - 1, *range(1, rank - 1)]
            out = self.put("permute", out, shape=[self.outs[k] for k in order], order=order)
            if self.target.dtype.kind == "f":
                self.refuse("of probabilities of more than one axis of samples: reshape them")
        return self.put(loss, out, "y", shape=(), reduction="mean")

    # ---- operations

    def binary(self, op, a, b):
        for one, other in ((a, b), (b, a)):
            if isinstance(one, np.ndarray) and one.size and np.all(one == one.flat[0]):
                c = float(one.flat[0])
                if op == "maximum" and c == -math.inf or op == "minimum" and c == math.inf:
                    return other
                if isinstance(other, _View) and (op == "mul" or op == "div" and one is b):
                    if one.ndim <= len(other.order) + other.lead:
                        return replace(other, factor=other.factor * (c if op == "mul" else 1 / c))
        if op == "div":
            found = self.mean(a, b) or self.softmax(a, b)
            if found:
                return found
        if op == "add":
            for one, other in ((a, b), (b, a)):
                node = self.by_name.get(one) if isinstance(one, str) else None
                if node and node["op"] == "linear" and len(node["args"]) == 2 and self.is_bias(node, other):
                    self.scope = node["module"] or self.scope
                    return self.put("linear", *node["args"], other, shape=node["shape"])
        return self.put(op, a, b)

    def is_bias(self, node, view):
        if not isinstance(view, _View) or view.factor != 1 or node is not self.nodes[-1]:
            return False
        return view.order == (0,) and self.parameters[view.name][0] == node["shape"][-1]

    def mean(self, a, b):
        """sum / count, also where axes of size 1 came back in between."""
        shown = self.by_name.get(a) if isinstance(a, str) else None
        ones = shown and (shown["op"] == "unsqueeze" or self.only_ones(shown))
        node = self.by_name.get(shown["args"][0]) if ones else shown
        if not node or node["op"] != "sum" or not isinstance(b, np.ndarray) or b.size != 1:
            return None
        if float(b.flat[0]) != self.counts.get(node["name"]):
            return None
        found = self.put("mean", node["args"][0], shape=node["shape"], axes=node["attrs"]["axes"], keepdims=False)
        return self.put(shown["op"], found, shape=shown["shape"], **shown["attrs"]) if ones else found

    def softmax(self, a, b):
        """exp(z - max) / sum of it: as one operation, which is easier to read."""
        top, below = (self.by_name.get(v) if isinstance(v, str) else None for v in (a, b))
        below, axis = self.beneath(below), None
        if not top or not below or top["op"] != "exp" or below["op"] != "sum" or below["args"] != [a]:
            return None
        if len(below["attrs"]["axes"]) != 1:
            return None
        axis = below["attrs"]["axes"][0]
        less = self.by_name.get(top["args"][0])
        if not less or less["op"] != "sub" or not isinstance(less["args"][1], str):
            return None
        z, largest = less["args"][0], self.beneath(self.by_name.get(less["args"][1]))
        if not largest or largest["op"] != "amax" or largest["args"] != [z] or largest["attrs"]["axes"] != [axis]:
            return None
        return self.put("softmax", z, shape=self.shapes[a], axis=axis)

    def beneath(self, node):
        """What is under changes of shape by axes of size 1, and stop."""
        while node and node["op"] in ("unsqueeze", "stop") or node and self.only_ones(node):
            node = self.by_name.get(node["args"][0])
        return node

    def only_ones(self, node):
        if node["op"] != "reshape":
            return False
        return [s for s in node["shape"] if s != 1] == [s for s in self.shape_of(node["args"][0]) if s != 1]

    def compare(self, relation, a, b, shape):
        if isinstance(a, str) and isinstance(b, str) and a == b:  # tests for nan
            return np.full(shape, relation in ("==", "<=", ">="))
        return self.put("compare", a, b, relation=relation)

    def do_is_finite(self, a, shape, **_):
        return np.full(shape, True)

    def do_and(self, a, b, **_):
        return self.put("mul", a, b)

    def do_or(self, a, b, **_):
        return self.put("maximum", a, b)

    def do_not(self, a, **_):
        return self.put("sub", 1.0, a)

    def do_select_n(self, which, *cases, shape, **_):
        if len(cases) != 2:
            self.refuse("of more than two cases is not translated")
        if isinstance(which, np.ndarray) and np.all(which == which.flat[0]):
            return cases[int(which.flat[0])]
        return self.put("where", which, cases[1], cases[0])

    def do_clamp(self, low, a, high, **_):
        ends = [v for v in (low, high) if isinstance(v, np.ndarray) and np.all(v == v.flat[0])]
        if len(ends) != 2:
            self.refuse("between bounds that are not numbers is not translated")
        return self.put("clip", a, low=float(low.flat[0]), high=float(high.flat[0]))

    def do_integer_pow(self, a, y, **_):
        return self.put("pow", a, float(y))

    def do_square(self, a, **_):
        return self.put("pow", a, 2.0)

    def do_rsqrt(self, a, **_):
        return self.put("pow", a, -0.5)

    def do_cbrt(self, a, **_):
        return self.put("pow", a, 1 / 3)

    def do_pow(self, a, b, **_):
        if not isinstance(b, np.ndarray) or not np.all(b == b.flat[0]):
            self.refuse("to an exponent that is not a number is not translated")
        return self.put("pow", a, float(_shortest(b.astype(float)).flat[0]))

    def do_exp2(self, a, **_):
        return self.put("exp", self.put("mul", a, math.log(2)))

    def do_log1p(self, a, **_):
        return self.put("log", self.put("add", a, 1.0))

    def do_expm1(self, a, **_):
        return self.put("sub", self.put("exp", a), 1.0)

    def do_erfc(self, a, **_):
        return self.put("sub", 1.0, self.put("erf", a))

    def do_reduce_sum(self, a, shape, axes, **_):
        return self.reduce("sum", a, axes)

    def do_reduce_max(self, a, shape, axes, **_):
        return self.reduce("amax", a, axes)

    def do_reduce_min(self, a, shape, axes, **_):
        return self.put("neg", self.reduce("amax", self.put("neg", a), axes))

    def reduce(self, op, a, axes):
        source = tuple(self.eqn.invars[0].aval.shape)
        a = self.argument(self.ranked(a, len(source)))
        have, axes = self.shape_of(a), sorted(int(k) for k in axes)
        again = math.prod(source[k] for k in axes if have[k] != source[k])  # entries that are the same
        shape = [s for k, s in enumerate(have) if k not in axes]
        out = self.put(op, a, shape=shape, axes=axes, keepdims=False)
        self.counts[out] = math.prod(have[k] for k in axes)
        return self.put("mul", out, float(again)) if op == "sum" and again != 1 else out

    def do_broadcast_in_dim(self, a, shape, broadcast_dimensions=(), **_):
        source = self.eqn.invars[0].aval.shape
        dims = list(broadcast_dimensions)
        if isinstance(a, _View):
            if dims == list(range(len(shape) - len(dims), len(shape))):
                return replace(a, lead=a.lead + len(shape) - len(dims))
            a = self.ranked(a, len(source))
        else:
            a = self.ranked(a, len(source))
        have = list(self.shape_of(a))
        for axis in range(len(shape)):
            if axis not in dims:
                have.insert(axis, 1)
                a = self.put("unsqueeze", a, shape=have, axis=axis)
        return a

    def do_reshape(self, a, shape, dimensions=None, **_):
        if dimensions is not None:
            self.refuse("in another order of axes is not translated")
        if isinstance(a, _View):
            own = self.shape_of(a)
            if tuple(shape) == (1,) * (len(shape) - len(own)) + own:
                return replace(a, lead=a.lead + len(shape) - len(own))
        a = self.full(a, self.eqn.invars[0].aval.shape)
        return a if self.shape_of(a) == tuple(shape) and isinstance(a, str) else self.put("reshape", a, shape=shape)

    def do_expand_dims(self, a, shape, dimensions, **_):
        return self.do_reshape(a, shape)

    def do_squeeze(self, a, shape, dimensions, **_):
        a = self.argument(self.ranked(a, len(self.eqn.invars[0].aval.shape)))
        have = [s for k, s in enumerate(self.shape_of(a)) if k not in dimensions]
        return self.put("squeeze", a, shape=have, axes=[int(k) for k in dimensions])

    def do_transpose(self, a, shape, permutation, **_):
        order = [int(k) for k in permutation]
        if isinstance(a, _View) and not a.lead:
            return replace(a, order=tuple(a.order[k] for k in order))
        a = self.argument(self.ranked(a, len(order)))
        if order == list(range(len(order))):
            return a
        return self.put("permute", a, shape=[self.shape_of(a)[k] for k in order], order=order)

    def do_slice(self, a, shape, start_indices, limit_indices, strides=None, **_):
        source = self.eqn.invars[0].aval.shape
        a = self.argument(self.full(a, source))
        have = list(source)
        for k, (first, last) in enumerate(zip(start_indices, limit_indices)):
            step = int(strides[k]) if strides is not None else 1
            if (first, last, step) != (0, source[k], 1):
                have[k] = len(range(first, last, step))
                a = self.put("slice", a, shape=have, axis=k, start=int(first), stop=int(last), step=step)
        return a

    def do_dynamic_slice(self, a, *starts, shape, slice_sizes, **_):
        if not all(isinstance(s, np.ndarray) for s in starts):
            self.refuse("at places that are not known before the run is not translated")
        source = self.eqn.invars[0].aval.shape
        first = [min(max(int(s), 0), size - k) for s, size, k in zip(starts, source, slice_sizes)]
        return self.do_slice(a, shape, first, [f + k for f, k in zip(first, slice_sizes)])

    def do_split(self, a, shape, sizes, axis, **_):
        source = self.eqn.invars[0].aval.shape
        a, out, at = self.argument(self.full(a, source)), [], 0
        for size in map(int, sizes):
            have = [*source[:axis], size, *source[axis + 1 :]]
            out.append(self.put("slice", a, shape=have, axis=int(axis), start=at, stop=at + size, step=1))
            at += size
        return out

    def do_concatenate(self, *parts, shape, dimension, **_):
        parts = [self.full(a, v.aval.shape) for a, v in zip(parts, self.eqn.invars)]
        if any(isinstance(p, np.ndarray) and p.size and np.all(p == p.flat[0]) for p in parts):
            self.refuse("with arrays of one number is not translated")
        return self.put("concat", *parts, shape=shape, axis=int(dimension))

    def do_gather(self, a, ids, shape, dimension_numbers, slice_sizes, **_):
        d, source = dimension_numbers, self.eqn.invars[0].aval.shape
        if not isinstance(ids, np.ndarray):
            self.refuse("at places that are not known before the run is not translated")
        along = [int(k) for k in d.start_index_map]
        if np.any(ids < 0) or any(np.any(ids[..., j] + slice_sizes[k] > source[k]) for j, k in enumerate(along)):
            self.refuse("at places outside of the array is not translated")
        whole = all(slice_sizes[k] == source[k] for k in range(len(source)) if k not in along)
        if len(along) == 1 and whole and tuple(d.collapsed_slice_dims) == tuple(along):
            return self.rows(a, ids[..., 0], along[0], d.offset_dims, shape)
        return self.entries(a, ids, along, source, shape)

    def rows(self, a, ids, axis, offset, shape):
        """a[.., ids, ..]"""
        source = self.eqn.invars[0].aval.shape
        if ids.ndim == 0:
            a = self.argument(self.full(a, source))
            if source[axis] == 1:
                return self.put("squeeze", a, shape=shape, axes=[axis])
            rest = [s for k, s in enumerate(source) if k != axis]
            return self.put("select", a, shape=rest, axis=int(axis), index=int(ids))
        a = self.argument(self.full(a, source))
        order = [axis] + [k for k in range(len(source)) if k != axis]
        if order != list(range(len(source))):
            a = self.put("permute", a, shape=[source[k] for k in order], order=order)
        if len(source) != 2:
            a = self.put("reshape", a, shape=[source[axis], math.prod(source) // source[axis]])
        flat = [*ids.shape, math.prod(source) // source[axis]]
        a = self.put("embedding", a, self.indices(ids), shape=flat)
        rest = [source[k] for k in order[1:]]
        if len(source) != 2:
            a = self.put("reshape", a, shape=[*ids.shape, *rest])
        if tuple(offset) != tuple(range(ids.ndim, len(shape))):
            before = [k for k in range(len(shape)) if k not in offset]
            place = {**{k: i for i, k in enumerate(before)}, **{k: len(before) + i for i, k in enumerate(offset)}}
            a = self.put("permute", a, shape=shape, order=[place[k] for k in range(len(shape))])
        return a

    def indices(self, ids):
        """Indices as an argument, never as one number."""
        found = self.argument(ids)
        if isinstance(found, str):
            return found
        for name, other in (("x", self.data), ("y", self.target)):
            if other.dtype.kind != "f" and np.array_equal(ids, other):
                return name
        name = f"constant_{len(self.constants) + 1}"
        self.constants[name], self.shapes[name] = ids.tolist(), ids.shape
        return name

    def entries(self, a, ids, along, source, shape):
        """One entry along an axis for each index of the others: a sum with rows of the unit matrix."""
        places = np.arange(math.prod(source)).reshape(source)
        places = np.asarray(self.eqn.primitive.bind(places, ids, **self.eqn.params | {"fill_value": -1}))
        for axis in reversed(along):
            rest = [s for k, s in enumerate(source) if k != axis]
            if places.size != math.prod(rest):
                continue
            at = np.unravel_index(places.reshape(rest), source)
            others = [c for k, c in enumerate(at) if k != axis]
            if all(np.array_equal(c, i) for c, i in zip(others, np.indices(rest))):
                a = self.ordered(self.full(a, source), [k for k in range(len(source)) if k != axis] + [axis])
                rows = self.put("one_hot", self.indices(at[axis]), shape=(*rest, source[axis]), count=int(source[axis]))
                picked = self.put("sum", self.put("mul", a, rows), shape=rest, axes=[len(rest)], keepdims=False)
                return self.put("reshape", picked, shape=shape) if tuple(rest) != tuple(shape) else picked
        self.refuse("of these entries is not translated; take, x[ids] and take_along_axis of one entry are")

    # ---- products

    def do_dot_general(self, a, b, shape, dimension_numbers, **_):
        (in_a, in_b), (batch_a, batch_b) = [[list(map(int, v)) for v in pair] for pair in dimension_numbers]
        ranks = [len(v.aval.shape) for v in self.eqn.invars]
        free_a = [k for k in range(ranks[0]) if k not in in_a + batch_a]
        free_b = [k for k in range(ranks[1]) if k not in in_b + batch_b]
        avals = [tuple(v.aval.shape) for v in self.eqn.invars]
        if not batch_a:
            if self.matrix(b, free_b):
                return self.weighted(a, b, in_a, in_b, free_a, free_b, avals[0])
            if self.matrix(a, free_a):
                out = self.weighted(b, a, in_b, in_a, free_b, free_a, avals[1])
                order = list(range(len(free_b), len(shape))) + list(range(len(free_b)))
                return self.put("permute", out, shape=shape, order=order)
        a, b = self.full(a, avals[0]), self.full(b, avals[1])
        sizes = lambda k, ks: [avals[k][i] for i in ks]
        if len(in_a) == len(free_a) == len(free_b) == 1:
            a = self.ordered(a, batch_a + free_a + in_a)
            b = self.ordered(b, batch_b + in_b + free_b)
            return self.put("matmul", a, b, shape=shape)
        a = self.ordered(a, batch_a + free_a + in_a)  # as products that are summed
        b = self.ordered(b, batch_b + free_b + in_b)
        head = sizes(0, batch_a)
        for _ in free_b:
            have = list(self.shape_of(a))
            have.insert(len(head) + len(free_a), 1)
            a = self.put("unsqueeze", a, shape=have, axis=len(head) + len(free_a))
        for _ in free_a:
            have = list(self.shape_of(b))
            have.insert(len(head), 1)
            b = self.put("unsqueeze", b, shape=have, axis=len(head))
        product = self.put("mul", a, b)
        axes = list(range(len(shape), len(shape) + len(in_a)))
        return self.put("sum", product, shape=shape, axes=axes, keepdims=False) if axes else product

    def matrix(self, v, free):
        return isinstance(v, _View) and not v.lead and len(v.order) > 1 and bool(free)

    def ordered(self, a, order):
        if isinstance(a, np.ndarray):
            return np.transpose(a, order)
        a = self.argument(a)
        if order == list(range(len(order))):
            return a
        return self.put("permute", a, shape=[self.shape_of(a)[k] for k in order], order=order)

    def weighted(self, x, w, in_x, in_w, free_x, free_w, aval):
        """x times a parameter, in the form [.., in] and [out, in], whatever the order of the parameter's axes is."""
        out_axes, in_axes = tuple(w.order[k] for k in free_w), tuple(w.order[k] for k in in_w)
        groups = self.layout.setdefault(w.name, [out_axes, in_axes])
        if groups not in ([out_axes, in_axes], [in_axes, out_axes]):
            self.refuse(f"{w.name} is used in two ways that need its axes in different orders")
        if isinstance(x, _View):
            x = self.value_of(x)
        x = self.ordered(self.full(x, aval), free_x + in_x)
        lead, own = [aval[k] for k in free_x], self.parameters[w.name]
        if len(in_x) > 1:
            x = self.put("reshape", x, shape=[*lead, math.prod(aval[k] for k in in_x)])
        sizes = [own[k] for k in out_axes]
        if not self.scope and "/" in w.name:
            self.scope = w.name.rsplit("/", 1)[0]
        y = self.put("linear" if groups[0] == out_axes else "matmul", x, w.name, shape=[*lead, math.prod(sizes)])
        if len(sizes) > 1:
            y = self.put("reshape", y, shape=[*lead, *sizes])
        return y if w.factor == 1 else self.put("mul", y, w.factor)

    def do_conv_general_dilated(
        self, a, w, shape, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **more
    ):
        if not isinstance(w, _View) or w.factor != 1 or w.lead:
            self.refuse("with a kernel that is no parameter is not translated")
        if any(k != 1 for k in (*lhs_dilation, *rhs_dilation)) or more.get("feature_group_count", 1) != 1:
            self.refuse("with dilation or groups is not translated")
        if any(low != high for low, high in padding):
            self.refuse(f"with padding {tuple(padding)}, which is not the same on both sides, is not translated")
        d = dimension_numbers
        groups = [(w.order[k],) for k in d.rhs_spec]
        if self.layout.setdefault(w.name, groups) != groups:
            self.refuse(f"{w.name} is used in two ways that need its axes in different orders")
        x = self.ordered(self.full(a, self.eqn.invars[0].aval.shape), [int(k) for k in d.lhs_spec])
        out = [int(shape[k]) for k in d.out_spec]
        y = self.put(
            "conv", x, w.name, shape=out, stride=[int(s) for s in window_strides], padding=[int(p[0]) for p in padding]
        )
        return self.ordered(y, [d.out_spec.index(k) for k in range(len(shape))])


def _thin(a):
    """An array without the axes along which it does not change, for operations that broadcast."""
    if isinstance(a, np.ndarray) and a.size:
        for k in range(a.ndim):
            if np.array_equal(a, np.broadcast_to(a.take([0], k), a.shape)):
                a = a.take([0], k)
        a = a.reshape(a.shape[next((k for k, s in enumerate(a.shape) if s != 1), a.ndim) :])
    return a


def _bounded(walk, c):
    if isinstance(c, float):
        if math.isnan(c) or c > 1e30:
            walk.refuse(f"has the number {c}")
        return max(c, _SMALLEST)
    return c


def _line(eqn):
    """file:line of the user's code, in functions that JAX traced anew."""
    traceback = getattr(getattr(eqn, "source_info", None), "traceback", None)
    for frame in getattr(traceback, "frames", ()):
        file = frame.file_name
        if (
            "site-packages" in file
            or file == __file__
            or "/jax/_src/" in file
            or "/flax/" in file
            or file.startswith("<")
        ):
            continue
        return f"{file.split('/')[-1]}:{frame.line_num}"
    return ""
