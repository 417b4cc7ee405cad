"""PyTorch: modules and optimisers to programs, a linter for their parametrisation, a recorder of their training.

    def build(width):
        module = ..
        return module, torch.optim.SGD(module.parameters(), lr = 0.1)

    t = from_torch(build, X, y, loss = "mse", steps = 10)   # a Translation: text, graph, files
    print(lint(build, X, y))

`build` is called at three widths, and torch.export shows what its module computes; no part of it needs to be marked.  This
file makes the traced form (_traced/form.py); _traced/emit.py makes text of it, and needs no torch.
"""

import contextlib
import math

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


def from_torch(
    build, X, y, loss="mse", steps=10, widths=(64, 96, 160), features=(), schedule=None, name="net", binary=None
):
    """The program of `steps` full-batch steps of training; see docs/pytorch.md.

    build(width) returns (module, optimiser) or (module, optimiser, loss); loss is a function (out, y) or one of "mse",
    "cross_entropy".  features: names of modules whose Gram matrix is reported.  schedule: factors of the rate, one a step.
    """
    graph = with_gradient_powers(trace(build, X, y, loss, widths), binary)
    return Translation(graph, steps=steps, features=features, schedule=schedule, name=name)


def lint(build, X, y, loss="mse", steps=2, widths=(64, 96, 160), base=None, binary=None):
    """What `tplimit check` finds in the parametrisation, in the module's own names."""
    return lint_graph(trace(build, X, y, loss, widths), steps=steps, base=base, binary=binary)


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
    return join(graphs) | {"widths": list(widths)}


def train(build, X, y, loss="mse", steps=10, widths=(64, 256, 1024), seeds=8, folder=".", schedule=None, features=()):
    """The same training by torch itself: networks of several widths and seeds, recorded in folder/WIDTH.npz."""
    import torch

    data, target = _tensor(X), _tensor(y)
    recorder = measure(folder)
    for width in widths:
        for seed in range(seeds):
            torch.manual_seed(seed)
            module, optimiser, loss_of = _built(build, width, loss)
            rates = [g["lr"] for g in optimiser.param_groups]
            grams = {}
            handles = [module.get_submodule(f).register_forward_hook(_gram_into(grams, f)) for f in features]
            with recorder.network(width, seed) as record:
                for t in range(steps):
                    out = module(data)
                    value = loss_of(out, target)
                    record(loss=value, out=out, **grams)
                    for g, rate in zip(optimiser.param_groups, rates):
                        g["lr"] = rate * (schedule[t] if schedule is not None else 1)
                    optimiser.zero_grad()
                    value.backward()
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


def _tensor(array):
    import torch

    t = torch.as_tensor(array)
    return (t.to(torch.get_default_dtype()) if t.is_floating_point() else t).contiguous()


def _built(build, width, loss):
    import torch.nn.functional as F

    made = build(width)
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ValueError("build(width) returns (module, optimiser) or (module, optimiser, loss)")
    loss_of = made[2] if len(made) == 3 else loss
    if isinstance(loss_of, str):
        known = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
        if loss_of not in known:
            raise ValueError(f"loss is a function (out, y) or one of {', '.join(known)}")
        loss_of = known[loss_of]
    return made[0], made[1], loss_of


def _graph_at(build, X, y, loss, width):
    import torch

    log = _InitialLaws()
    with log.mode, log.truncated_normals():
        module, optimiser, loss_of = _built(build, width, loss)
    data, target = _tensor(X), _tensor(y)
    _freeze_width_mult(module)

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x, y):
            out = self.net(x)
            return out, loss_of(out, y)

    laws = {name: log.law(p) for name, p in module.named_parameters()}
    group_of = {id(p): i for i, g in enumerate(optimiser.param_groups) for p in g["params"]}
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
    program = torch.export.export(Step(), (data, target), strict=False)
    nodes, constants, outputs = _Nodes(program, aliases, data, target).walk()
    return {
        "form": 1,
        "from": f"PyTorch {torch.__version__.split('+')[0]}",
        "inputs": {"x": _input(X, data), "y": _input(y, target)},
        "constants": constants,
        "parameters": parameters,
        "optimiser": _optimiser(optimiser),
        "nodes": nodes,
        "outputs": outputs,
    }


def _input(array, tensor):
    import numpy as np

    if _is_tensor(array):
        array = array.detach().cpu().numpy()
    array = np.asarray(array)
    if array.dtype == np.float32:  # 0.1, not 0.10000000149011612
        array = np.array([float(str(v)) for v in array.ravel()]).reshape(array.shape)
    return {"shape": list(tensor.shape), "integer": not tensor.is_floating_point(), "value": array.tolist()}


def _freeze_width_mult(module):
    """mup's readout asks its weight for the multiplier, and torch.export replaces weights."""
    for m in module.modules():
        if callable(getattr(m, "width_mult", None)):
            m.width_mult = (lambda value: lambda: value)(m.width_mult())


def _optimiser(optimiser):
    kinds = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw"}
    kind = next((kinds[c.__name__] for c in type(optimiser).__mro__ if c.__name__ in kinds), None)
    if type(optimiser).__name__ in ("MuAdam", "MuAdamW", "MuSGD"):
        kind = {"MuAdam": "adam", "MuAdamW": "adamw", "MuSGD": "sgd"}[type(optimiser).__name__]
    if kind is None:
        raise Refused(f"the optimiser {type(optimiser).__name__}: known are {', '.join(kinds)}")
    keep = {
        "sgd": ["lr", "momentum", "dampening", "nesterov", "weight_decay"],
        "adam": ["lr", "betas", "eps", "weight_decay"],
    }
    groups = []
    for g in optimiser.param_groups:
        for flag in ("amsgrad", "maximize"):
            if g.get(flag):
                raise Refused(f"the optimiser's option {flag}")
        if g.get("decoupled_weight_decay"):
            kind = "adamw"
        groups.append({k: _plain(g[k]) for k in keep["sgd" if kind == "sgd" else "adam"] if k in g})
    return {"kind": kind, "groups": groups}


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
        return self.laws.get(self.key(parameter)) or {"kind": "unseen", "why": "how it is initialised was not seen"}

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
                return self.set(t, {"kind": "unseen", "why": f"only a part of it is initialised by {name}"})
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


# ---- nodes

_RENAMED = {
    "add": "add", "add_": "add", "sub": "sub", "sub_": "sub", "mul": "mul", "mul_": "mul", "div": "div", "div_": "div",
    "tanh": "tanh", "relu": "relu", "relu_": "relu", "abs": "abs", "sign": "sign", "erf": "erf", "silu": "silu", "silu_": "silu",
    "sigmoid": "sigmoid", "softplus": "softplus", "mish": "mish", "sin": "sin", "cos": "cos", "exp": "exp", "log": "log", "sqrt": "sqrt",
    "floor": "floor", "neg": "neg", "maximum": "maximum", "minimum": "minimum", "detach": "stop", "where": "where", "matmul": "matmul",
    "mm": "matmul", "bmm": "matmul", "linear": "linear", "leaky_relu": "leaky_relu", "elu": "elu", "softsign": "softsign",
}  # fmt: skip
_IDENTITY = {
    "contiguous",
    "clone",
    "alias",
    "to",
    "_to_copy",
    "lift_fresh_copy",
    "type_as",
    "float",
    "double",
    "identity",
}
_RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_REDUCTION = {0: "none", 1: "mean", 2: "sum"}


class _Nodes:
    """The nodes of an exported program in the operations of the form."""

    def __init__(self, program, aliases, data, target):
        import torch

        self.torch, self.program, self.aliases = torch, program, aliases
        signature = program.graph_signature
        self.parameters = {
            node: aliases[name.removeprefix("net.")] for node, name in signature.inputs_to_parameters.items()
        }
        state = dict(program.state_dict) | dict(program.constants)
        stored = dict(signature.inputs_to_buffers) | dict(getattr(signature, "inputs_to_lifted_tensor_constants", {}))
        self.buffers = {node: state[name] for node, name in stored.items()}
        self.user = list(signature.user_inputs)
        self.values = {}  # torch node -> name, number, or tensor known before the run
        self.nodes, self.constants = [], {}

    def walk(self):
        outputs = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in self.parameters:
                    self.values[node] = self.parameters[node.name]
                elif node.name in self.user:
                    self.values[node] = ("x", "y")[self.user.index(node.name)]
                else:
                    self.values[node] = self.buffers.get(node.name)
            elif node.op == "output":
                outputs = [self.values[n] for n in node.args[0]][-2:]
            elif node.op == "call_function":
                self.values[node] = self.call(node)
        if not all(isinstance(o, str) for o in outputs):
            raise Refused("the output depends on no input")
        return self.nodes, self.constants, {"out": outputs[0], "loss": outputs[1]}

    def call(self, node):
        args = [self.known(a) for a in node.args]
        kwargs = {k: self.known(v) for k, v in node.kwargs.items()}
        if not any(isinstance(a, str) for a in _flat(args)) and not any(
            isinstance(a, str) for a in _flat(kwargs.values())
        ):
            return node.target(*args, **kwargs)  # known before the run
        packet = getattr(node.target, "_overloadpacket", None)
        name = packet.__name__ if packet else getattr(node.target, "__name__", str(node.target))
        schema = getattr(node.target, "_schema", None)
        given = {}
        if schema:
            for i, a in enumerate(schema.arguments):
                given[a.name] = (
                    args[i] if i < len(args) else kwargs.get(a.name, a.default_value if a.has_default_value() else None)
                )
        return self.translate(node, name, args, given)

    def known(self, a):
        fx = self.torch.fx
        if isinstance(a, fx.Node):
            return self.values[a]
        if isinstance(a, (list, tuple)):
            return [self.known(x) for x in a]
        if isinstance(a, str):
            return _Text(a)
        return a

    def shape(self, node):
        value = node.meta["val"]
        return [int(s) for s in value.shape]

    def rank(self, node):
        return len(node.meta["val"].shape)

    def put(self, node, op, args, shape=None, **attrs):
        """A node of the form; its name."""
        stack = node.meta.get("nn_module_stack") or {}
        path = ""
        for value in stack.values():
            path = value[0]
        path = path.removeprefix("net").removeprefix(".") if path != "net" else ""
        name = node.name if node.name not in {n["name"] for n in self.nodes} else f"{node.name}_{len(self.nodes)}"
        while name in self.aliases or name in ("x", "y") or name in self.constants:
            name += "_"
        self.nodes.append({
            "name": name, "op": op, "args": [self.argument(a) for a in args],
            "attrs": {k: (v.item() if hasattr(v, "item") else v) for k, v in attrs.items()},
            "shape": shape if shape is not None else self.shape(node), "module": path, "line": _line(node),
        })  # fmt: skip
        return name

    def argument(self, a):
        if isinstance(a, self.torch.Tensor):
            flat = a.flatten()
            first = flat[0].item()
            if bool((flat == first).all()) and not isinstance(first, bool):
                return first
            name = f"constant_{len(self.constants) + 1}"
            value = a.to(self.torch.int64) if a.dtype == self.torch.bool else a
            self.constants[name] = value.tolist()
            return name
        if isinstance(a, bool) or a is None:
            raise Refused(f"an argument {a} of an operation")
        return a

    def refuse(self, node, why):
        stack = node.meta.get("nn_module_stack") or {}
        path = [v[0] for v in stack.values()]
        where = path[-1].removeprefix("net").removeprefix(".") if path else ""
        raise Refused(
            " ".join(x for x in (f"in {where}:" if where else "", why, f"({_line(node)})" if _line(node) else "") if x)
        )

    def translate(self, node, name, args, g):
        put = lambda op, *a, **attrs: self.put(node, op, a, **attrs)
        source = node.args[0] if node.args and isinstance(node.args[0], self.torch.fx.Node) else None
        if name == "getitem":
            return args[0][args[1]]
        if name in _IDENTITY or (
            name in ("dropout", "dropout_", "feature_dropout") and (not g["train"] or g["p"] == 0)
        ):
            return args[0]
        if name in ("dropout", "dropout_", "feature_dropout"):
            return put("dropout", args[0], p=g["p"])
        if name in ("add", "sub", "add_", "sub_") and g.get("alpha", 1) != 1:
            b = put("mul", args[1], g["alpha"], shape=self.shape(node))
            return put("add" if name.startswith("add") else "sub", args[0], b)
        if name == "rsub":
            return put("sub", args[1], args[0])
        if name in ("div", "div_") and g.get("rounding_mode"):
            self.refuse(node, "division that rounds")
        if name == "reciprocal":
            return put("div", 1.0, args[0])
        if name == "rsqrt":
            return put("pow", args[0], -0.5)
        if name == "square":
            return put("pow", args[0], 2.0)
        if name in ("pow", "pow_"):
            return put("pow", args[0], float(args[1]))
        if name == "gelu":
            return put("gelu_tanh" if str(g.get("approximate")) == "tanh" else "gelu", args[0])
        if name == "softplus" and (g["beta"] != 1):
            self.refuse(node, "softplus with beta")
        if name in ("leaky_relu", "leaky_relu_"):
            return put("leaky_relu", args[0], slope=g["negative_slope"])
        if name in ("elu", "elu_"):
            if g["scale"] != 1 or g["input_scale"] != 1:
                self.refuse(node, "elu with a scale")
            return put("elu", args[0], alpha=g["alpha"])
        if name in ("clamp", "clamp_", "hardtanh", "relu6"):
            low, high = (
                (0.0, 6.0) if name == "relu6" else (g.get("min", g.get("min_val")), g.get("max", g.get("max_val")))
            )
            return put("clip", args[0], low=low, high=high)
        if name in ("clamp_min", "clamp_max"):
            return put("maximum" if name == "clamp_min" else "minimum", args[0], args[1])
        if name in _RELATIONS:
            return put("compare", args[0], args[1], relation=_RELATIONS[name])
        if name == "linear":
            return put("linear", *[a for a in args if a is not None])
        if name in ("addmm",):
            product = put("matmul", args[1], args[2])
            return put("add", product, args[0])
        if name in _RENAMED:
            return put(_RENAMED[name], *[a for a in args if a is not None])
        if name == "embedding":
            if g["padding_idx"] is not None and g["padding_idx"] >= 0:
                self.refuse(node, "padding_idx")
            return put("embedding", args[0], args[1])
        if name in ("conv1d", "conv2d"):
            if any(d != 1 for d in g["dilation"]) or g["groups"] != 1:
                self.refuse(node, "dilation and groups of a convolution")
            if isinstance(g["padding"], str):
                self.refuse(node, "padding as a word; give its size")
            count = 1 if name == "conv1d" else 2
            full = lambda v: list(v) * count if len(v) == 1 else list(v)
            return put(
                "conv",
                *[a for a in (g["input"], g["weight"], g["bias"]) if a is not None],
                stride=full(g["stride"]),
                padding=full(g["padding"]),
            )
        if name in ("avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d"):
            if any(g["padding"]) or g["ceil_mode"] or any(d != 1 for d in g.get("dilation", [1])):
                self.refuse(node, "padding or dilation of a pool")
            window = list(g["kernel_size"]) * (2 if name.endswith("2d") and len(g["kernel_size"]) == 1 else 1)
            stride = list(g["stride"]) or window
            return put(name[:8], args[0], window=window, stride=stride * (len(window) // len(stride)))
        if name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d"):
            if any(s != 1 for s in g["output_size"]):
                self.refuse(node, "adaptive mean to more than one position")
            return put("mean", args[0], axes=[-1] if name.endswith("1d") else [-2, -1], keepdims=True)
        if name in ("layer_norm", "rms_norm"):
            if len(g["normalized_shape"]) != 1:
                self.refuse(node, "normalisation over several axes")
            extra = [a for a in (g["weight"], g.get("bias")) if a is not None]
            eps = g["eps"] if g["eps"] is not None else float(self.torch.finfo(node.meta["val"].dtype).eps)
            return put(name, args[0], *extra, eps=eps)
        if name == "scaled_dot_product_attention":
            if g["dropout_p"]:
                self.refuse(node, "dropout of attention")
            if g.get("enable_gqa"):
                self.refuse(node, "grouped queries")
            mask = g["attn_mask"]
            if mask is not None and not (isinstance(mask, self.torch.Tensor) and mask.dtype == self.torch.bool):
                self.refuse(node, "an additive mask")
            scale = g["scale"] if g["scale"] is not None else self.shape(node.args[0])[-1] ** -0.5
            return put(
                "attention",
                *args[:3],
                *([mask.squeeze()] if mask is not None else []),
                scale=float(scale),
                causal=bool(g["is_causal"]),
            )
        if name in ("softmax", "log_softmax", "_softmax", "_log_softmax"):
            return put(name.lstrip("_"), args[0], axis=g["dim"])
        if name in ("masked_fill", "masked_fill_"):
            value = float(g["value"])
            return put("masked_fill", args[0], g["mask"], value="-inf" if value == -math.inf else value)
        if name in ("mean", "sum", "amax", "logsumexp"):
            axes = g.get("dim")
            axes = axes if isinstance(axes, list) or axes is None else [axes]
            return put(name, args[0], axes=axes or None, keepdims=bool(g.get("keepdim", False)))
        if name in ("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as"):
            return put("reshape", args[0])
        if name in ("permute", "transpose", "t", "mT", "numpy_T", "swapaxes"):
            rank = self.rank(source)
            order = list(range(rank))
            if name == "permute":
                order = [d % rank for d in g["dims"]]
            else:
                a, b = (g["dim0"] % rank, g["dim1"] % rank) if name == "transpose" else (rank - 2, rank - 1)
                order[a], order[b] = order[b], order[a]
            return put("permute", args[0], order=order)
        if name in ("expand", "expand_as", "broadcast_to"):
            return put("expand", args[0])
        if name == "unsqueeze":
            return put("unsqueeze", args[0], axis=g["dim"] % (self.rank(source) + 1))
        if name == "squeeze":
            dims = g.get("dim")
            dims = list(range(self.rank(source))) if dims is None else dims if isinstance(dims, list) else [dims]
            return put("squeeze", args[0], axes=[d % self.rank(source) for d in dims if self.shape(source)[d] == 1])
        if name == "select":
            size = self.shape(source)[g["dim"]]
            return put("select", args[0], axis=g["dim"], index=g["index"] % size)
        if name == "slice":
            size = self.shape(source)[g["dim"]]
            start, stop, _ = slice(g["start"], g["end"]).indices(size)
            return put("slice", args[0], axis=g["dim"], start=start, stop=stop, step=g["step"])
        if name in ("chunk", "split", "split_with_sizes", "tensor_split", "unbind"):
            return self.parts(node, source, name, args[0], g)
        if name == "broadcast_tensors":
            return args[0]  # operations of the form broadcast by themselves
        if name == "cat":
            return put("concat", *args[0], axis=g["dim"])
        if name == "stack":
            shape = self.shape(node)
            axis = g["dim"] % len(shape)
            one = shape[:axis] + [1] + shape[axis + 1 :]
            parts = [self.put(node, "unsqueeze", [a], shape=one, axis=axis) for a in args[0]]
            return put("concat", *parts, axis=g["dim"])
        if name == "mse_loss":
            return put("mse", args[0], args[1], reduction=self.reduction(node, g))
        if name == "cross_entropy_loss":
            if g["weight"] is not None:
                self.refuse(node, "cross_entropy with weights of classes")
            return put(
                "cross_entropy", args[0], args[1], smoothing=g["label_smoothing"], reduction=self.reduction(node, g)
            )
        if name == "binary_cross_entropy_with_logits":
            return put("bce_logits", args[0], args[1], reduction=self.reduction(node, g))
        if name == "soft_margin_loss":
            return put("soft_margin", args[0], args[1], reduction=self.reduction(node, g))
        if name == "huber_loss":
            return put("huber", args[0], args[1], delta=g["delta"], reduction=self.reduction(node, g))
        self.refuse(node, f"the operation {name} is not translated")

    def reduction(self, node, g):
        word = _REDUCTION[g["reduction"]]
        if word == "none":
            self.refuse(node, "a loss that is not reduced")
        return word

    def parts(self, node, source, name, x, g):
        axis = g["dim"]
        total = self.shape(source)[axis]
        if name == "unbind":
            shape = [s for i, s in enumerate(self.shape(source)) if i != axis % self.rank(source)]
            return [self.put(node, "select", [x], shape=shape, axis=axis, index=i) for i in range(total)]
        out, at = [], 0
        for part in node.meta["val"]:
            stop = at + int(part.shape[axis])
            out.append(
                self.put(node, "slice", [x], shape=[int(s) for s in part.shape], axis=axis, start=at, stop=stop, step=1)
            )
            at = stop
        return out


class _Text(str):
    """A string argument, which is no name of a value."""


def _flat(items):
    for a in items:
        if isinstance(a, list):
            yield from _flat(a)
        elif not isinstance(a, _Text):
            yield a


def _line(node):
    """file:line of the user's code."""
    for text in reversed((node.meta.get("stack_trace") or "").splitlines()):
        text = text.strip()
        if text.startswith("File ") and "/torch/" not in text and "site-packages" not in text:
            file, line = text[5:].split(", ")[:2]
            return f"{file.strip(chr(34)).split('/')[-1]}:{line.removeprefix('line ')}"
    return ""
