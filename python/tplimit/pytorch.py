"""PyTorch: modules and optimisers to programs, a linter for their parametrisation, a recorder of their training.

    def build(width):
        module = ..
        return module, torch.optim.SGD(module.parameters(), lr = 0.1)

    t = from_torch(build, X, y, loss = "mse", steps = 10)   # a Translation: text, graph, files
    print(lint(build, X, y))

`build` is called at three widths, and torch.export shows what its module computes; no part of it needs to be marked.  This
file and _traced/aten.py make the traced form (_traced/form.py); _traced/emit.py makes text of it, and needs no torch.
"""

import contextlib

from ._traced.aten import decimal, nodes_of
from ._traced.form import Refused, join
from ._traced.laws import constant as _constant
from ._traced.laws import moved as _moved
from ._traced.laws import normal as _normal
from ._traced.laws import scaled as _scaled
from ._traced.laws import truncated as _truncated
from ._traced.laws import uniform as _uniform
from ._traced.laws import unseen as _unseen
from ._traced.lint import lint_graph
from ._traced.measure import measure
from ._traced.translation import Translation, with_gradient_powers

__all__ = ["from_torch", "lint", "measure", "train", "trace", "Refused", "Translation"]


def from_torch(build, X, y, loss="mse", steps=10, widths=(64, 96, 160), features=(), schedule=None, name="net"):
    """The :class:`tplimit.Program` of `steps` full-batch steps of training; see docs/pytorch.md.

    build(width) returns (module, optimiser) or (module, optimiser, loss), where optimiser may be several, in a list; loss is
    a function (out, y) or one of "mse", "cross_entropy".  features: names of modules whose Gram matrix is reported.  schedule: factors of the rate, one a step.
    """
    if steps < 1 or (schedule is not None and len(schedule) < steps):
        raise ValueError("steps is at least 1, and a schedule has a factor for each of them")
    graph = with_gradient_powers(trace(build, X, y, loss, widths))
    return Translation(graph, steps=steps, features=features, schedule=schedule, name=name)


def lint(build, X, y, loss="mse", steps=2, widths=(64, 96, 160), base=None):
    """What `tplimit check` finds in the parametrisation, in the module's own names."""
    return lint_graph(trace(build, X, y, loss, widths), steps=steps, base=base)


def trace(build, X, y, loss="mse", widths=(64, 96, 160)):
    """The traced form (a JSON object) of a build function."""
    if len(set(widths)) < 3:
        raise ValueError("three widths at least: two fit a power, the third tests it")
    import torch

    graphs = []
    for width in widths:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            graphs.append(_graph_at(build, X, y, loss, width))
    for name in graphs[0]["constants"]:
        values = [g["constants"].get(name) for g in graphs]
        if any(v != values[0] for v in values):
            raise Refused(
                f"the array '{name}' (a buffer, or a constant in the code) changes with the width: arrays that are known before the "
                "run have no axis that grows. Let it be a parameter with an initial law that is not trained, or of fixed size"
            )
    return join(graphs) | {"widths": list(widths)}


def train(build, X, y, loss="mse", steps=10, widths=(64, 256, 1024), seeds=8, folder=".", schedule=None, features=()):
    """The same training by torch itself: networks of several widths and seeds, recorded in folder/WIDTH.npz."""
    import torch

    data, target = _tensor(X), _tensor(y, "y")
    recorder = measure(folder)
    for width in widths:
        for seed in range(seeds):
            torch.manual_seed(seed)
            module, optimisers, loss_of = _built(build, width, loss)
            groups = [g for optimiser in optimisers for g in optimiser.param_groups]
            rates = [g["lr"] for g in groups]
            grams = {}
            handles = [module.get_submodule(f).register_forward_hook(_gram_into(grams, f)) for f in features]
            with recorder.network(width, seed) as record:
                for t in range(steps):
                    out = module(data)
                    value = loss_of(out, target)
                    record(loss=value, out=_reported(out), **grams)
                    for g, rate in zip(groups, rates):
                        g["lr"] = rate * (schedule[t] if schedule is not None else 1)
                    for optimiser in optimisers:
                        optimiser.zero_grad()
                    value.backward()
                    for optimiser in optimisers:
                        optimiser.step()
            for handle in handles:
                handle.remove()
    return recorder.files


def _gram_into(grams, name):
    def hook(module, inputs, out):
        h = out.detach()
        grams[name.replace(".", "_") + "_gram"] = h @ h.mT / h.shape[-1]

    return hook


# ---- one width


def _tensor(array, name="X"):
    import torch

    if array is None or isinstance(array, (tuple, dict)):
        what = "None" if array is None else f"a {type(array).__name__}"
        raise ValueError(
            f"{name} is one tensor or array, not {what}; a module of several inputs takes them as parts of one tensor"
        )
    t = torch.as_tensor(array)
    if not torch.isfinite(t).all():
        raise ValueError(f"{name} has entries that are not finite")
    return (t.to(torch.get_default_dtype()) if t.is_floating_point() else t).contiguous()


def _built(build, width, loss):
    import torch.nn.functional as F

    made = build(width)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ValueError("build(width) returns (module, optimiser) or (module, optimiser, loss)")
    optimisers = list(made[1]) if isinstance(made[1], (list, tuple)) else [made[1]]
    loss_of = made[2] if len(made) == 3 else loss
    if isinstance(loss_of, str):
        known = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
        if loss_of not in known:
            raise ValueError(f"loss is a function (out, y) or one of {', '.join(known)}")
        loss_of = known[loss_of]
    return made[0], optimisers, loss_of


def _reported(out):
    """Of modules that return several tensors the first."""
    while not _is_tensor(out):
        out = next(iter(out.values())) if isinstance(out, dict) else out[0]
    return out


def _graph_at(build, X, y, loss, width):
    import torch

    log = _InitialLaws()
    with log.mode, log.truncated_normals():
        module, optimisers, loss_of = _built(build, width, loss)
    data, target = _tensor(X), _tensor(y, "y").clone()  # two inputs, even if they are one tensor
    _freeze_width_mult(module)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x, y):
            out = self.net(x)
            return _reported(out), loss_of(out, y)

    laws = {name: log.law(p) for name, p in module.named_parameters()}
    optimiser, group_of = _optimiser(optimisers)
    parameters = [
        {
            "name": name,
            "shape": list(p.shape),
            "law": laws[name],
            "group": group_of.get(id(p)) if p.requires_grad else None,
        }
        for name, p in module.named_parameters()
    ]
    names = {id(p): name for name, p in module.named_parameters()}
    aliases = {name: names[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}
    try:
        program = torch.export.export(Step(), (data, target), strict=False)
    except Refused:
        raise
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise Refused(
            f"torch.export cannot trace this module and loss ({type(error).__name__}: {said[0][:300]}). Values may not decide what "
            "is computed (if, .item()), packed sequences and autocast have no graph"
        ) from error
    found = nodes_of(program, aliases, data, target)
    for p in parameters:  # a row of padding that is 0 is no part of the law
        before = p["law"].pop("before", None)
        if before and p["name"] in found.zero_rows:
            p["law"] = before
    return {
        "form": 1,
        "from": f"PyTorch {torch.__version__.split('+')[0]}",
        "inputs": {"x": _input(X, data), "y": _input(y, target)},
        "constants": found.constants,
        "parameters": parameters,
        "optimiser": optimiser,
        "nodes": found.nodes,
        "outputs": found.outputs,
    }


def _input(array, tensor):
    return {"shape": list(tensor.shape), "integer": not tensor.is_floating_point(), "value": decimal(array)}


def _freeze_width_mult(module):
    """mup's readout asks its weight for the multiplier, and torch.export replaces weights."""
    for m in module.modules():
        if callable(getattr(m, "width_mult", None)):
            m.width_mult = (lambda value: lambda: value)(m.width_mult())


_OPTIMISERS = {  # name of the class -> kind of the form, options that are kept
    "SGD": ("sgd", ["lr", "momentum", "dampening", "nesterov", "weight_decay"]),
    "Adam": ("adam", ["lr", "betas", "eps", "weight_decay"]),
    "AdamW": ("adamw", ["lr", "betas", "eps", "weight_decay"]),
    "RMSprop": ("rmsprop", ["lr", "alpha", "eps", "momentum", "weight_decay"]),
    "Muon": ("muon", ["lr", "momentum", "nesterov", "ns_steps", "weight_decay"]),
}


def _optimiser(optimisers):
    """The groups of all of them, and the kind of each; with the group of every parameter."""
    groups, group_of = [], {}
    for optimiser in optimisers:
        name = type(optimiser).__name__
        own = {"MuAdam": "Adam", "MuAdamW": "AdamW", "MuSGD": "SGD"}.get(name) or next(
            (c.__name__ for c in type(optimiser).__mro__ if c.__name__ in _OPTIMISERS), None
        )
        if own is None:
            raise Refused(f"the optimiser {name}: known are {', '.join(_OPTIMISERS)}")
        kind, keep = _OPTIMISERS[own]
        for g in optimiser.param_groups:
            for flag in ("amsgrad", "maximize", "centered"):
                if g.get(flag):
                    raise Refused(f"the optimiser's option {flag}")
            decoupled = kind == "adam" and g.get("decoupled_weight_decay")
            options = {"kind": "adamw" if decoupled else kind} | {k: _plain(g[k]) for k in keep if k in g}
            for part in [[p] for p in g["params"]] if kind == "muon" else [g["params"]]:
                for p in part:
                    if id(p) in group_of:
                        raise Refused("two optimisers train the same parameter")
                    group_of[id(p)] = len(groups)
                groups.append(_muon(options, g, part[0]) if kind == "muon" else dict(options))
    kinds = {g.pop("kind") for g in groups} if len({g["kind"] for g in groups}) == 1 else {groups[0]["kind"]}
    return {"kind": kinds.pop(), "groups": groups}, group_of


def _muon(options, group, p):
    """Its rate follows the shape of the matrix; the decay does not."""
    from torch.optim import _muon as source

    coefficients = [round(c, 6) for c in group["ns_coefficients"]]
    if coefficients != [source.DEFAULT_A, source.DEFAULT_B, source.DEFAULT_C]:
        raise Refused(f"Newton-Schulz steps with the coefficients {coefficients}")
    rate = float(source._adjust_lr(group["lr"], group["adjust_lr_fn"], p.shape))
    decay = group["weight_decay"] * group["lr"] / rate if rate else 0.0
    return options | {"lr": rate, "weight_decay": decay}


def _plain(value):
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (bool, int)) else float(value)


# ---- initial laws


class _InitialLaws:
    """The law behind every storage that build filled, from the operations that filled it."""

    def __init__(self):
        from torch.utils._python_dispatch import TorchDispatchMode

        laws = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                kwargs = kwargs or {}
                before = laws.before(func, args)
                out = func(*args, **kwargs)
                laws.note(func, args, kwargs, out, before)
                return out

        self.mode = Mode()
        self.laws = {}
        self.kept = []  # storages, so that no address is used twice

    @contextlib.contextmanager
    def truncated_normals(self):
        """trunc_normal_ draws again what lies outside: the function is watched, not its operations."""
        import torch.nn.init as init

        own = init._no_grad_trunc_normal_

        def watched(tensor, mean, std, a, b, *args, **kwargs):
            out = own(tensor, mean, std, a, b, *args, **kwargs)
            self.set(tensor, _truncated(mean, std, a, b))
            return out

        init._no_grad_trunc_normal_ = watched
        try:
            yield
        finally:
            init._no_grad_trunc_normal_ = own

    @staticmethod
    def key(tensor):
        return tensor.untyped_storage().data_ptr()

    def law(self, parameter):
        law = self.laws.get(self.key(parameter))
        if law is None and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            return _constant(decimal(parameter.flatten()[:1])[0])  # torch.tensor(2.0)
        return law or _unseen("how it is initialised was not seen")

    def before(self, func, args):
        return self.laws.get(self.key(args[0])) if args and _is_tensor(args[0]) else None

    def set(self, tensor, law):
        self.laws[self.key(tensor)] = law
        self.kept.append(tensor.untyped_storage())

    def note(self, func, args, kwargs, out, before):
        name = func._overloadpacket.__name__
        scalars = [_scalar(a) for a in args[1:]]
        numbers = [s for s in scalars if s is not None]
        if func._schema.is_mutable:
            if not args or not _is_tensor(args[0]):
                return
            t = args[0]
            if t.numel() * t.element_size() != t.untyped_storage().nbytes():
                part = {"kind": "unseen", "why": f"only a part of it is initialised by {name}"}
                return self.set(t, part | ({"before": before} if before else {}))
            if t.numel() == 0:
                return
            return self.set(t, self.written(name.rstrip("_"), before, args, numbers, kwargs))
        if not _is_tensor(out):
            return
        if args and _is_tensor(args[0]) and self.key(args[0]) == self.key(out):
            return  # a view
        made = self.made(name, args, numbers, kwargs)
        if made:
            self.set(out, made)
        elif args and _is_tensor(args[0]) and self.key(args[0]) in self.laws:
            self.set(out, self.written(name, before, args, numbers, kwargs))

    def made(self, name, args, numbers, kwargs):
        """Laws of factories."""
        if name in ("randn", "randn_like"):
            return _normal(0.0, 1.0)
        if name in ("rand", "rand_like"):
            return _uniform(0.0, 1.0)
        if name in ("zeros", "zeros_like", "new_zeros"):
            return _constant(0.0)
        if name in ("ones", "ones_like", "new_ones"):
            return _constant(1.0)
        if name in ("full", "full_like", "new_full", "scalar_tensor"):
            return _constant(_scalar(args[0] if name == "scalar_tensor" else args[-1]))
        if name == "normal" and args and not _is_tensor(args[0]):
            return _normal(float(args[0]), float(args[1]))
        return None

    def written(self, name, law, args, numbers, kwargs):
        value = numbers[0] if numbers else None
        if name == "normal":
            mean, std = (numbers + [0.0, 1.0][len(numbers) :])[:2]
            return _normal(kwargs.get("mean", mean), kwargs.get("std", std))
        if name == "uniform":
            low, high = (numbers + [0.0, 1.0][len(numbers) :])[:2]
            return _uniform(kwargs.get("from", low), kwargs.get("to", high))
        if name == "zero":
            return _constant(0.0)
        if name == "fill":
            return _constant(value)
        if name in ("copy", "_to_copy", "clone", "contiguous", "detach", "lift_fresh", "alias"):
            source = args[1] if name == "copy" else args[0]
            return self.laws.get(self.key(source)) or (
                _constant(float(source))
                if source.numel() == 1 and not source.is_meta
                else _unseen("it is copied from values that were not seen to be drawn")
            )
        if law and value is not None and name in ("mul", "div", "add", "sub", "neg"):
            if name in ("add", "sub"):
                return _moved(law, value if name == "add" else -value)
            return _scaled(law, value if name == "mul" else 1 / value)
        if law and name == "neg":
            return _scaled(law, -1.0)
        return _unseen(
            f"its initial values come from {name}, which makes no independent entries of a law that is known here"
        )


def _is_tensor(x):
    import torch

    return isinstance(x, torch.Tensor)


def _scalar(x):
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return float(x)
    if _is_tensor(x) and x.numel() == 1 and x.dim() == 0:
        return float(x)
    return None
