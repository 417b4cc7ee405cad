"""ATen operations, as torch.export shows them, to the operations of the form (form.py).

A method of `Nodes` for each operation.  Those without one are decomposed by torch's own rules, and the graph begins again;
so is a graph in which values are changed in place, which these rules take apart.
"""

import math

from .form import Refused

_SAME = {  # ATen name -> operation of the form with the same arguments
    "multiply": "mul", "true_divide": "div", "divide": "div", "neg": "neg",
    "tanh": "tanh", "relu": "relu", "abs": "abs", "sign": "sign", "erf": "erf", "silu": "silu", "sigmoid": "sigmoid",
    "mish": "mish", "sin": "sin", "cos": "cos", "exp": "exp", "log": "log", "sqrt": "sqrt", "floor": "floor", "softsign": "softsign",
    "maximum": "maximum", "minimum": "minimum", "clamp_min": "maximum", "clamp_max": "minimum",
    "detach": "stop", "where": "where",
}  # fmt: skip
_IDENTITY = {
    "contiguous", "clone", "alias", "to", "_to_copy", "lift_fresh_copy", "lift_fresh", "type_as", "float", "double", "identity",
}  # fmt: skip
_ASSERTIONS = {
    "_assert_tensor_metadata",
    "_assert_async",
    "_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
}
_RELATIONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_REDUCTION = {0: "none", 1: "mean", 2: "sum"}
_TRANSLATED = {}  # ATen name -> method of Nodes


def _translates(*names):
    def note(method):
        _TRANSLATED.update(dict.fromkeys(names, method))
        return method

    return note


def nodes_of(program, aliases, data, target):
    """What the form says of an exported program; aliases: the name of each parameter's first place."""
    import torch

    rules = None
    for _ in range(8):
        calls = _on_values(program)
        unknown = {n.target for n in calls if not _has_method(_name(n))}
        in_place = any(_schema(n) and _schema(n).is_mutable and _name(n) != "detach" for n in calls)
        if not unknown and not in_place:
            break
        rules = rules or torch.export.default_decompositions()
        table = {operation: rules[operation] for operation in unknown if operation in rules}
        if not table and not in_place:
            break
        program = program.run_decompositions(table)
    return Nodes(program, aliases, data, target)


def _schema(node):
    return getattr(node.target, "_schema", None)


def _name(node):
    """relu of aten.relu_.default."""
    packet = getattr(node.target, "_overloadpacket", None)
    name = packet.__name__ if packet else getattr(node.target, "__name__", str(node.target))
    return name.rstrip("_")


def _has_method(name):
    return name == "getitem" or any(name in known for known in (_TRANSLATED, _SAME, _IDENTITY, _ASSERTIONS, _RELATIONS))


def _on_values(program):
    """The operations on parameters and data; what is behind constants alone is computed."""
    signature = program.graph_signature
    behind, calls = set(), []
    for node in program.graph.nodes:
        if node.op == "placeholder" and (
            node.name in signature.inputs_to_parameters or node.name in signature.user_inputs
        ):
            behind.add(node)
        elif node.op == "call_function" and any(a in behind for a in node.all_input_nodes):
            behind.add(node)
            calls.append(node)
    return calls


class Nodes:
    """Walks an exported program.  A value is a name, a number, or a tensor that is known before the run."""

    def __init__(self, program, aliases, data, target):
        import torch

        self.torch, self.program, self.aliases = torch, program, aliases
        signature = program.graph_signature
        self.parameters = {
            node: aliases[name.removeprefix("net.")] for node, name in signature.inputs_to_parameters.items()
        }
        self.stored = dict(signature.inputs_to_parameters)
        state = dict(program.state_dict) | dict(program.constants)
        stored = dict(signature.inputs_to_buffers) | dict(getattr(signature, "inputs_to_lifted_tensor_constants", {}))
        self.buffers = {node: state[name] for node, name in stored.items()}
        self.origin = {id(state[name]): name.removeprefix("net.") for name in signature.inputs_to_buffers.values()}
        self.inputs = dict(zip(signature.user_inputs, (("x", data), ("y", target))))
        self.values = {}  # torch node -> value
        self.nodes, self.constants, self.taken = [], {}, {"x", "y"}
        self.zero_rows = set()  # parameters whose row of padding is 0

        outputs = None
        for node in program.graph.nodes:
            if node.op == "placeholder":
                if node.name in self.parameters:
                    self.values[node] = self.parameters[node.name]
                elif node.name in self.inputs:
                    self.values[node] = self.inputs[node.name][0]
                else:
                    self.values[node] = self.buffers.get(node.name)
            elif node.op == "output":
                outputs = [self.values.get(n) for n in node.args[0]][-2:]
            elif node.op == "call_function":
                self.values[node] = self.call(node)
        if not all(isinstance(o, str) for o in outputs):
            raise Refused("the output depends on no input")
        self.outputs = {"out": outputs[0], "loss": outputs[1]}

    def call(self, node):
        args = [self.known(a) for a in node.args]
        kwargs = {k: self.known(v) for k, v in node.kwargs.items()}
        if not any(isinstance(a, str) for a in _flat([*args, *kwargs.values()])):
            value = node.target(*args, **kwargs)  # known before the run
            if origin := next((self.origin[id(a)] for a in _flat(args) if id(a) in self.origin), None):
                self.origin[id(value)] = origin  # a part of a buffer has its name
            return value
        name, given = _name(node), {}
        if schema := _schema(node):
            for i, a in enumerate(schema.arguments):
                given[a.name] = (
                    args[i] if i < len(args) else kwargs.get(a.name, a.default_value if a.has_default_value() else None)
                )
        if name == "getitem":
            return args[0][args[1]]
        if name in _IDENTITY:
            return args[0]
        if name in _ASSERTIONS:
            return None
        if name in _RELATIONS:
            return self.put(node, "compare", args[:2], relation=_RELATIONS[name])
        if name in _TRANSLATED:
            return _TRANSLATED[name](self, node, given)
        if name in _SAME:
            return self.put(node, _SAME[name], [a for a in args if a is not None])
        self.refuse(node, f"the operation {name} is not translated")

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
        return [int(s) for s in node.meta["val"].shape]

    def source_shape(self, node):
        """Of the first operand."""
        return self.shape(node.args[0])

    def put(self, node, op, args, shape=None, **attrs):
        """A node of the form; its name."""
        name = node.name
        while name in self.taken or name in self.aliases or name in self.constants:
            name = f"{node.name}_{len(self.nodes)}" if name == node.name else name + "_"
        self.taken.add(name)
        self.nodes.append({
            "name": name, "op": op, "args": [self.argument(a) for a in args],
            "attrs": {k: (v.item() if hasattr(v, "item") else v) for k, v in attrs.items()},
            "shape": shape if shape is not None else self.shape(node), "module": _path(node), "line": _line(node),
        })  # fmt: skip
        return name

    def argument(self, a):
        if isinstance(a, self.torch.Tensor):
            flat = a.flatten()
            first = flat[0].item()
            if bool((flat == first).all()) and not isinstance(first, bool):
                return _finite(decimal(a.flatten()[:1])[0])
            a_finite = a.clamp(min=_LOWEST) if a.dtype.is_floating_point else a
            value = decimal(a.to(self.torch.int64) if a.dtype == self.torch.bool else a_finite)
            same = next((name for name, v in self.constants.items() if v == value), None)
            name = same or self.constant_name(a)
            self.constants[name] = value
            return name
        if isinstance(a, bool) or a is None:
            raise Refused(f"an argument {a} of an operation")
        return a

    def constant_name(self, tensor):
        base, i = self.origin.get(id(tensor), "constant_1"), 2
        name = base
        while name in self.constants or name in self.taken or name in self.aliases:
            name, i = f"{base.removesuffix('_1')}_{i}", i + 1
        return name

    def refuse(self, node, why):
        where, line = _path(node), _line(node)
        raise Refused(" ".join(x for x in (f"in {where}:" if where else "", why, f"({line})" if line else "") if x))

    def only(self, node, **expected):
        """Refuses options that the translation would leave out: only(node, beta = given["beta"] == 1)."""
        for option, holds in expected.items():
            if not holds:
                self.refuse(node, f"the option {option} of {_name(node)}")

    def evaluated(self, node):
        """The tensor of a node behind data alone, or None."""
        if not isinstance(node, self.torch.fx.Node):
            return node
        if node.op == "placeholder":
            return self.inputs[node.name][1] if node.name in self.inputs else self.buffers.get(node.name)
        behind = {n: self.evaluated(n) for n in node.all_input_nodes}
        if any(v is None for v in behind.values()):
            return None
        args, kwargs = self.torch.fx.node.map_arg((node.args, node.kwargs), behind.get)
        return node.target(*args, **kwargs)

    # ---- functions of coordinates

    @_translates("add", "sub")
    def add(self, node, g):
        a, b, op = g["self"], g["other"], _name(node)
        if g.get("alpha", 1) != 1:
            b = self.put(node, "mul", [b, g["alpha"]])
        for zero, other in ((b, a), (a, b)) if op == "add" else ((b, a),):
            if self.is_zero(zero) and isinstance(other, str) and self.same_shape(node, other is a):
                return other
        return self.put(node, op, [a, b])

    def same_shape(self, node, first):
        operand = node.args[0 if first else 1]
        return isinstance(operand, self.torch.fx.Node) and self.shape(operand) == self.shape(node)

    def is_zero(self, a):
        return isinstance(a, self.torch.Tensor) and not a.any()

    @_translates("rsub")
    def rsub(self, node, g):
        a = g["self"] if g["alpha"] == 1 else self.put(node, "mul", [g["self"], g["alpha"]])
        return self.put(node, "sub", [g["other"], a])

    @_translates("mul")
    def mul(self, node, g):
        if self.is_zero(g["self"]) or self.is_zero(g["other"]):
            return self.torch.zeros(self.shape(node))
        return self.put(node, "mul", [g["self"], g["other"]])

    @_translates("div")
    def div(self, node, g):
        if g.get("rounding_mode"):
            self.refuse(node, "division that rounds")
        return self.put(node, "div", [g["self"], g["other"]])

    @_translates("reciprocal")
    def reciprocal(self, node, g):
        return self.put(node, "div", [1.0, g["self"]])

    @_translates("rsqrt")
    def rsqrt(self, node, g):
        return self.put(node, "pow", [g["self"], -0.5])

    @_translates("square")
    def square(self, node, g):
        return self.put(node, "pow", [g["self"], 2.0])

    @_translates("pow")
    def pow(self, node, g):
        base, exponent = g["self"], g["exponent"]
        if isinstance(exponent, str):
            if not isinstance(base, (int, float)) or base <= 0:
                self.refuse(node, "a power whose exponent is computed")
            return self.put(node, "exp", [self.put(node, "mul", [exponent, math.log(base)])])
        return self.put(node, "pow", [base, float(exponent)])

    @_translates("expm1")
    def expm1(self, node, g):
        return self.put(node, "sub", [self.put(node, "exp", [g["self"]]), 1.0])

    @_translates("log1p")
    def log1p(self, node, g):
        return self.put(node, "log", [self.put(node, "add", [g["self"], 1.0])])

    @_translates("xlogy")
    def xlogy(self, node, g):  # 0 at 0
        inside = self.put(node, "maximum", [g["other"], 1e-300])
        return self.put(node, "mul", [g["self"], self.put(node, "log", [inside])])

    @_translates("lerp")
    def lerp(self, node, g):
        a, b = g["self"], g["end"]
        return self.put(node, "add", [a, self.put(node, "mul", [g["weight"], self.put(node, "sub", [b, a])])])

    @_translates("gelu")
    def gelu(self, node, g):
        return self.put(node, "gelu_tanh" if str(g.get("approximate")) == "tanh" else "gelu", [g["self"]])

    @_translates("softplus")
    def softplus(self, node, g):  # torch returns x beyond a threshold, where both are the same in float32
        if g["beta"] == 1:
            return self.put(node, "softplus", [g["self"]])
        inside = self.put(node, "softplus", [self.put(node, "mul", [g["self"], g["beta"]])])
        return self.put(node, "div", [inside, g["beta"]])

    @_translates("log_sigmoid")
    def log_sigmoid(self, node, g):
        return self.put(node, "neg", [self.put(node, "softplus", [self.put(node, "neg", [g["self"]])])])

    @_translates("leaky_relu")
    def leaky_relu(self, node, g):
        return self.put(node, "leaky_relu", [g["self"]], slope=g["negative_slope"])

    @_translates("elu")
    def elu(self, node, g):
        self.only(node, input_scale=g["input_scale"] == 1)
        value = self.put(node, "elu", [g["self"]], alpha=g["alpha"])
        return value if g["scale"] == 1 else self.put(node, "mul", [value, g["scale"]])

    @_translates("clamp", "clip", "hardtanh", "relu6")
    def clamp(self, node, g):
        low, high = g.get("min", g.get("min_val")), g.get("max", g.get("max_val"))
        if _name(node) == "relu6":
            low, high = 0.0, 6.0
        if isinstance(low, (str, self.torch.Tensor)) or isinstance(high, (str, self.torch.Tensor)):
            value = g["self"] if low is None else self.put(node, "maximum", [g["self"], low])
            return value if high is None else self.put(node, "minimum", [value, high])
        return self.put(node, "clip", [g["self"]], low=low, high=high)

    @_translates("prelu", "_prelu_kernel")
    def prelu(self, node, g):
        slope, rank = g["weight"], len(self.shape(node))
        own = self.shape(node.args[1])
        for k in range(rank - 2 if len(own) == 1 and own[0] > 1 else 0):  # the channels are axis 1
            slope = self.put(node, "unsqueeze", [slope], shape=own + [1] * (k + 1), axis=k + 1)
        x = g["self"]
        positive = self.put(node, "compare", [x, 0.0], relation=">")
        return self.put(node, "where", [positive, x, self.put(node, "mul", [slope, x])])

    @_translates("dropout", "feature_dropout", "native_dropout", "alpha_dropout", "feature_alpha_dropout")
    def dropout(self, node, g):
        if g["p"] == 0 or not g["train"]:
            return g["input"]
        self.refuse(
            node,
            f"dropout of p = {g['p']:g} draws another mask at every step; call eval() on it, or train with p = 0",
        )

    @_translates("masked_fill")
    def masked_fill(self, node, g):
        value = float(g["value"])
        if isinstance(g["self"], self.torch.Tensor):  # an additive mask
            return self.put(node, "where", [g["mask"], _finite(value), g["self"]])
        return self.put(node, "masked_fill", [g["self"], g["mask"]], value="-inf" if value == -math.inf else value)

    @_translates("logical_not", "bitwise_not")
    def logical_not(self, node, g):
        self.only(node, dtype=node.meta["val"].dtype == self.torch.bool)
        return self.put(node, "compare", [g["self"], 0.0], relation="==")

    @_translates("logical_and", "bitwise_and", "logical_or", "bitwise_or")
    def logical(self, node, g):
        self.only(node, dtype=node.meta["val"].dtype == self.torch.bool)
        return self.put(node, "mul" if _name(node).endswith("and") else "maximum", [g["self"], g["other"]])

    @_translates("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero", "fill")
    def filled(self, node, g):
        name = _name(node)
        value = 0.0 if "zero" in name else 1.0 if "ones" in name else g.get("fill_value", g.get("value"))
        if isinstance(value, str):
            self.refuse(node, "a value that is computed")
        return self.torch.full(self.shape(node), float(value))

    @_translates("gather")
    def gather(self, node, g):
        index, shape = self.evaluated(node.args[2]), self.source_shape(node)
        axis = g["dim"] % len(shape)
        if index is None or list(index.shape) != shape[:axis] + [1] + shape[axis + 1 :]:
            self.refuse(node, "indices that are computed, or more than one for each place")
        chosen = self.torch.nn.functional.one_hot(index.squeeze(axis), shape[axis]).movedim(-1, axis)
        return self.put(
            node, "sum", [self.put(node, "mul", [g["self"], chosen], shape=shape)], axes=[axis], keepdims=True
        )

    @_translates("tril", "triu")
    def triangle(self, node, g):
        rows, columns = self.shape(node)[-2:]
        mask = getattr(self.torch, _name(node))(self.torch.ones(rows, columns), g["diagonal"])
        return self.put(node, "mul", [g["self"], mask])

    # ---- products

    @_translates("linear")
    def linear(self, node, g):
        if self.is_zero(g["input"]):
            zero = self.torch.zeros(self.shape(node))
            return zero if g["bias"] is None else self.put(node, "expand", [g["bias"]])
        return self.put(node, "linear", [a for a in (g["input"], g["weight"], g["bias"]) if a is not None])

    @_translates("matmul", "mm", "bmm", "mv", "dot")
    def matmul(self, node, g):
        a, b = g["self"], next(g[k] for k in ("other", "mat2", "vec", "tensor") if k in g)
        if self.is_zero(a) or self.is_zero(b):
            return self.torch.zeros(self.shape(node))
        shapes = [
            list(x.shape) if isinstance(x, self.torch.Tensor) else self.shape(n) for x, n in zip((a, b), node.args)
        ]
        vectors = [i for i in (0, 1) if len(shapes[i]) == 1]
        if not vectors:
            return self.put(node, "matmul", [a, b])
        full = [shapes[0] if 0 not in vectors else [1] + shapes[0], shapes[1] if 1 not in vectors else shapes[1] + [1]]
        if 0 in vectors:
            a = self.put(node, "unsqueeze", [a], shape=full[0], axis=0)
        if 1 in vectors:
            b = self.put(node, "unsqueeze", [b], shape=full[1], axis=1)
        lead = self.shape(node)[: len(self.shape(node)) - 2 + len(vectors)]
        product = self.put(node, "matmul", [a, b], shape=lead + [full[0][-2], full[1][-1]])
        return self.put(node, "squeeze", [product], axes=[{0: -2, 1: -1}[i] for i in vectors])

    @_translates("addmm", "baddbmm")
    def addmm(self, node, g):
        a, b = (g["mat1"], g["mat2"]) if "mat1" in g else (g["batch1"], g["batch2"])
        product, added = self.put(node, "matmul", [a, b]), g["self"]
        if g["alpha"] != 1:
            product = self.put(node, "mul", [product, g["alpha"]])
        if g["beta"] != 1:
            added = self.put(node, "mul", [added, g["beta"]], shape=self.shape(node.args[0]))
        return self.put(node, "add", [product, added])

    @_translates("embedding")
    def embedding(self, node, g):
        rows = self.put(node, "embedding", [g["weight"], g["indices"]])
        padding = g["padding_idx"]
        if padding is None or padding < 0:
            return rows
        # The row of padding is not trained; it is 0 where nothing else was written into it.
        shape, table = self.shape(node), self.program.state_dict[self.stored[node.args[0].name]]
        trained = self.put(node, "compare", [g["indices"], padding], shape=shape[:-1], relation="!=")
        trained = self.put(node, "unsqueeze", [trained], shape=shape[:-1] + [1], axis=len(shape) - 1)
        moving = self.put(node, "mul", [trained, rows])
        if not table[padding].any():
            self.zero_rows.add(g["weight"])
            return moving
        fixed = self.put(
            node, "mul", [self.put(node, "sub", [1.0, trained], shape=shape[:-1] + [1]), self.put(node, "stop", [rows])]
        )
        return self.put(node, "add", [moving, fixed])

    @_translates("one_hot")
    def one_hot(self, node, g):
        return self.put(node, "one_hot", [g["self"]], count=self.shape(node)[-1])

    @_translates("conv1d", "conv2d")
    def conv(self, node, g):
        count = 1 if _name(node) == "conv1d" else 2
        full = lambda v: list(v) * count if len(v) == 1 else list(v)
        weight = self.shape(node.args[1])
        depthwise = g["groups"] != 1
        if depthwise and not g["groups"] == self.source_shape(node)[1] == weight[0]:
            self.refuse(node, "groups of channels other than single ones, one output each,")
        padding, dilation = g["padding"], full(g["dilation"])
        if isinstance(padding, str):
            spans = [d * (k - 1) for k, d in zip(weight[2:], dilation)]
            if padding == "same" and any(s % 2 for s in spans):
                self.refuse(node, "padding = 'same' of an even kernel")
            padding = [s // 2 if padding == "same" else 0 for s in spans]
        parts = [a for a in (g["input"], g["weight"], g["bias"]) if a is not None]
        more = ({"dilation": dilation} if any(d != 1 for d in dilation) else {}) | (
            {"depthwise": True} if depthwise else {}
        )
        return self.put(node, "conv", parts, stride=full(g["stride"]), padding=full(padding), **more)

    @_translates("avg_pool1d", "avg_pool2d", "max_pool1d", "max_pool2d")
    def pool(self, node, g):
        name = _name(node)
        if any(g["padding"]) or g["ceil_mode"] or any(d != 1 for d in g.get("dilation", [1])):
            self.refuse(node, "padding or dilation of a pool")
        self.only(node, divisor_override=g.get("divisor_override") is None)
        window = list(g["kernel_size"]) * (2 if name.endswith("2d") and len(g["kernel_size"]) == 1 else 1)
        stride = list(g["stride"]) or window
        return self.put(node, name[:8], [g["self"]], window=window, stride=stride * (len(window) // len(stride)))

    @_translates("adaptive_avg_pool1d", "adaptive_avg_pool2d")
    def adaptive_mean(self, node, g):
        sizes, out = self.source_shape(node), self.shape(node)
        count = len(g["output_size"])
        if out[-count:] == [1] * count:
            return self.put(node, "mean", [g["self"]], axes=list(range(-count, 0)), keepdims=True)
        if any(a % b for a, b in zip(sizes[-count:], out[-count:])):
            self.refuse(node, "an adaptive mean whose parts are not equal")
        window = [a // b for a, b in zip(sizes[-count:], out[-count:])]
        return self.put(node, "avg_pool", [g["self"]], window=window, stride=window)

    # ---- normalisation, attention

    def normalised(self, node, x, axes, eps, shape):
        """x minus its mean over these axes, divided by its standard deviation."""
        ones = [1 if i in axes else s for i, s in enumerate(shape)]
        mean = self.put(node, "mean", [x], shape=ones, axes=axes, keepdims=True)
        centred = self.put(node, "sub", [x, mean], shape=shape)
        return self.put(node, "mul", [centred, self.inverse_root(node, centred, axes, eps, shape)], shape=shape)

    def inverse_root(self, node, x, axes, eps, shape):
        """1 / sqrt(mean of x^2 over the axes + eps)."""
        ones = [1 if i in axes else s for i, s in enumerate(shape)]
        squares = self.put(node, "pow", [x, 2.0], shape=shape)
        mean = self.put(node, "mean", [squares], shape=ones, axes=axes, keepdims=True)
        return self.put(node, "pow", [self.put(node, "add", [mean, eps], shape=ones), -0.5], shape=ones)

    def scaled(self, node, y, weight, bias, shape, behind=0):
        """weight * y + bias, with `behind` axes of size 1 after those of the weight."""
        for op, w in (("mul", weight), ("add", bias)):
            if w is None:
                continue
            for k in range(behind if isinstance(w, str) else 0):
                w = self.put(node, "unsqueeze", [w], shape=[shape[1]] + [1] * (k + 1), axis=k + 1)
            if isinstance(w, self.torch.Tensor):
                w = w.reshape(list(w.shape) + [1] * behind)
            y = self.put(node, op, [y, w], shape=shape)
        return y

    @_translates("layer_norm", "rms_norm")
    def layer_norm(self, node, g):
        name, weight, bias = _name(node), g["weight"], g.get("bias")
        eps = g["eps"] if g["eps"] is not None else float(self.torch.finfo(node.meta["val"].dtype).eps)
        count, shape = len(g["normalized_shape"]), self.shape(node)
        if count == 1:
            return self.put(node, name, [g["input"]] + [a for a in (weight, bias) if a is not None], eps=eps)
        x = g.get("input")
        axes = list(range(len(shape) - count, len(shape)))
        if name == "layer_norm":
            y = self.normalised(node, x, axes, eps, shape)
        else:
            y = self.put(node, "mul", [x, self.inverse_root(node, x, axes, eps, shape)])
        return self.scaled(node, y, weight, bias, shape)

    @_translates("batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional")
    def batch_norm(self, node, g):
        shape = self.source_shape(node)
        behind = len(shape) - 2
        if g["training"]:
            y = self.normalised(node, g["input"], [i for i in range(len(shape)) if i != 1], g["eps"], shape)
        else:
            mean, root = g["running_mean"], self.torch.sqrt(g["running_var"] + g["eps"])
            at = [-1] + [1] * behind
            y = g["input"]
            if not self.is_zero(mean):
                y = self.put(node, "sub", [y, mean.reshape(at)], shape=shape)
            y = self.put(node, "div", [y, root.reshape(at)], shape=shape)
        y = self.scaled(node, y, g["weight"], g["bias"], shape, behind)
        return y if _name(node) == "batch_norm" else [y, None, None, None, None]  # with statistics that nothing reads

    @_translates("instance_norm")
    def instance_norm(self, node, g):
        if not g["use_input_stats"]:
            self.refuse(node, "statistics that are kept")
        shape = self.shape(node)
        y = self.normalised(node, g["input"], list(range(2, len(shape))), g["eps"], shape)
        return self.scaled(node, y, g["weight"], g["bias"], shape, len(shape) - 2)

    @_translates("group_norm")
    def group_norm(self, node, g):
        shape, groups = self.shape(node), g["num_groups"]
        parts = [shape[0], groups, shape[1] // groups] + shape[2:]
        x = self.put(node, "reshape", [g["input"]], shape=parts)
        y = self.normalised(node, x, list(range(2, len(parts))), g["eps"], parts)
        y = self.put(node, "reshape", [y], shape=shape)
        return self.scaled(node, y, g["weight"], g["bias"], shape, len(shape) - 2)

    @_translates("scaled_dot_product_attention")
    def attention(self, node, g):
        if g["dropout_p"]:
            self.refuse(node, "dropout of attention")
        q, k, v, mask = g["query"], g["key"], g["value"], g["attn_mask"]
        shapes = [self.shape(a) for a in node.args[:3]]
        scale = float(g["scale"] if g["scale"] is not None else shapes[0][-1] ** -0.5)
        if g.get("enable_gqa"):
            k, v = (self.repeated(node, x, s, shapes[0]) for x, s in ((k, shapes[1]), (v, shapes[2])))
        causal = bool(g["is_causal"])
        if isinstance(mask, self.torch.Tensor):
            if mask.dtype != self.torch.bool and bool(((mask == 0) | (mask == -math.inf)).all()):
                mask = mask == 0
            if mask.dtype == self.torch.bool and mask.all():
                mask = None
        if mask is None:
            return self.put(node, "attention", [q, k, v], scale=scale, causal=causal)
        boolean = isinstance(mask, self.torch.Tensor) and mask.dtype == self.torch.bool
        if boolean and mask.squeeze().dim() == 2:
            return self.put(node, "attention", [q, k, v, mask.squeeze()], scale=scale, causal=causal)
        # Masks of each sample or head, and added ones: written out.
        rank, rows, columns = len(shapes[0]), shapes[0][-2], shapes[1][-2]
        order = [*range(rank - 2), rank - 1, rank - 2]
        turned = self.put(node, "permute", [k], shape=shapes[0][:-2] + [shapes[0][-1], columns], order=order)
        square = shapes[0][:-2] + [rows, columns]
        scores = self.put(node, "matmul", [q, turned], shape=square)
        scores = self.put(node, "mul", [scores, scale], shape=square)
        own = node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"]
        if boolean:
            scores = self.put(node, "masked_fill", [scores, ~mask], shape=square, value="-inf")
        elif isinstance(mask, str) and own.meta["val"].dtype == self.torch.bool:
            out = self.put(node, "compare", [mask, 0.0], shape=self.shape(own), relation="==")
            scores = self.put(node, "masked_fill", [scores, out], shape=square, value="-inf")
        else:
            scores = self.put(node, "add", [scores, mask], shape=square)
        weights = self.put(node, "softmax", [scores], shape=square, axis=-1)
        return self.put(node, "matmul", [weights, v])

    def repeated(self, node, x, shape, wanted):
        """Keys or values of heads, [.., H / r, S, d], as often as there are queries."""
        times = wanted[-3] // shape[-3]
        if times == 1:
            return x
        lead, tail = shape[:-2], shape[-2:]
        x = self.put(node, "unsqueeze", [x], shape=lead + [1] + tail, axis=len(lead))
        x = self.put(node, "expand", [x], shape=lead + [times] + tail)
        return self.put(node, "reshape", [x], shape=shape[:-3] + [wanted[-3]] + tail)

    @_translates("softmax", "log_softmax", "_softmax", "_log_softmax")
    def softmax(self, node, g):
        return self.put(node, _name(node).lstrip("_"), [g["self"]], axis=g["dim"])

    # ---- sums

    def over(self, g, key="dim"):
        axes = g.get(key)
        return (axes if isinstance(axes, list) or axes is None else [axes]) or None

    @_translates("mean", "sum", "amax", "amin", "logsumexp")
    def reduce(self, node, g):
        return self.put(node, _name(node), [g["self"]], axes=self.over(g), keepdims=bool(g.get("keepdim", False)))

    @_translates("max", "min")
    def largest(self, node, g):
        name = _name(node)
        if "other" in g:
            return self.put(node, name + "imum", [g["self"], g["other"]])
        if "dim" not in g:
            return self.put(node, "a" + name, [g["self"]], axes=None, keepdims=False)
        shape = [int(s) for s in node.meta["val"][0].shape]
        return [
            self.put(node, "a" + name, [g["self"]], shape=shape, axes=[g["dim"]], keepdims=bool(g["keepdim"])),
            None,
        ]

    @_translates("var", "std")
    def var(self, node, g):
        correction = g["correction"] if "correction" in g else int(bool(g.get("unbiased", True)))
        correction = 1 if correction is None else correction
        options = {"axes": self.over(g), "keepdims": bool(g.get("keepdim", False)), "correction": correction}
        value = self.put(node, "var", [g["self"]], **options)
        return value if _name(node) == "var" else self.put(node, "sqrt", [value])

    @_translates("cumsum")
    def cumsum(self, node, g):
        return self.put(node, "cumsum", [g["self"]], axis=g["dim"])

    # ---- shapes

    @_translates("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_as", "reshape_as")
    def reshape(self, node, g):
        return self.put(node, "reshape", [g["self"]])

    @_translates("permute", "transpose", "t", "mT", "numpy_T", "swapaxes", "swapdims")
    def permute(self, node, g):
        rank, name = len(self.source_shape(node)), _name(node)
        order = list(range(rank))
        if name == "permute":
            order = [d % rank for d in g["dims"]]
        elif name == "numpy_T":
            order.reverse()
        elif rank > 1:
            a, b = (rank - 2, rank - 1)
            if name not in ("t", "mT"):
                a, b = (g[k] % rank for k in (("dim0", "dim1") if "dim0" in g else ("axis0", "axis1")))
            order[a], order[b] = order[b], order[a]
        return self.put(node, "permute", [g["self"]], order=order)

    @_translates("expand", "expand_as", "broadcast_to")
    def expand(self, node, g):
        return self.put(node, "expand", [g["self"]])

    @_translates("broadcast_tensors")
    def broadcast_tensors(self, node, g):
        return g["tensors"]  # operations of the form broadcast by themselves

    @_translates("repeat")
    def repeat(self, node, g):
        shape, times = self.source_shape(node), list(g["repeats"])
        shape = [1] * (len(times) - len(shape)) + shape
        x = g["self"]
        if all(s == 1 for s, k in zip(shape, times) if k > 1):
            return self.put(node, "expand", [x])
        if len(times) > len(self.source_shape(node)):
            x = self.put(node, "expand", [x], shape=shape)
        for axis, k in enumerate(times):
            if k > 1:
                shape = shape[:axis] + [shape[axis] * k] + shape[axis + 1 :]
                x = self.put(node, "concat", [x] * k, shape=shape, axis=axis)
        return x

    @_translates("unsqueeze")
    def unsqueeze(self, node, g):
        return self.put(node, "unsqueeze", [g["self"]], axis=g["dim"] % len(self.shape(node)))

    @_translates("squeeze")
    def squeeze(self, node, g):
        shape, dims = self.source_shape(node), g.get("dim")
        dims = list(range(len(shape))) if dims is None else dims if isinstance(dims, list) else [dims]
        return self.put(node, "squeeze", [g["self"]], axes=[d % len(shape) for d in dims if shape[d % len(shape)] == 1])

    @_translates("select")
    def select(self, node, g):
        size = self.source_shape(node)[g["dim"]]
        return self.put(node, "select", [g["self"]], axis=g["dim"], index=g["index"] % size)

    @_translates("slice", "narrow")
    def slice(self, node, g):
        size = self.source_shape(node)[g["dim"]]
        if _name(node) == "narrow":
            g = {**g, "end": g["start"] + g["length"], "step": 1}
        start, stop, _ = slice(g["start"], g["end"]).indices(size)
        return self.put(node, "slice", [g["self"]], axis=g["dim"], start=start, stop=stop, step=g["step"])

    @_translates(
        "chunk", "split", "split_with_sizes", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"
    )
    def parts(self, node, g):
        shape, axis = self.source_shape(node), g["dim"]
        out, at = [], 0
        for part in node.meta["val"]:
            own = [int(s) for s in part.shape]
            stop = at + own[axis]
            if isinstance(g["self"], self.torch.Tensor):
                out.append(g["self"].narrow(axis, at, own[axis]))
            elif own == shape:
                out.append(g["self"])
            else:
                out.append(self.put(node, "slice", [g["self"]], shape=own, axis=axis, start=at, stop=stop, step=1))
            at = stop
        return out

    @_translates("unbind")
    def unbind(self, node, g):
        shape, axis = self.source_shape(node), g["dim"]
        own = [s for i, s in enumerate(shape) if i != axis % len(shape)]
        return [self.put(node, "select", [g["self"]], shape=own, axis=axis, index=i) for i in range(shape[axis])]

    @_translates("cat")
    def cat(self, node, g):
        parts = self.tensors_as_constants(node, g["tensors"])
        return parts[0] if len(parts) == 1 else self.put(node, "concat", parts, axis=g["dim"])

    @_translates("stack")
    def stack(self, node, g):
        shape = self.shape(node)
        axis = g["dim"] % len(shape)
        one = shape[:axis] + [1] + shape[axis + 1 :]
        parts = [
            a.unsqueeze(axis) if isinstance(a, self.torch.Tensor)
            else self.put(node, "unsqueeze", [a], shape=one, axis=axis)
            for a in g["tensors"]
        ]  # fmt: skip
        return self.put(node, "concat", self.tensors_as_constants(node, parts), axis=axis)

    def tensors_as_constants(self, node, parts):
        """Constants beside values: all of their entries are written, or what would be a number is stretched to the shape."""
        out = []
        for a in parts:
            if isinstance(a, self.torch.Tensor) and isinstance(self.argument(a), (int, float)):
                a = self.put(node, "full", [], shape=list(a.shape), value=float(a.flatten()[0]))
            out.append(a)
        return out

    @_translates("flip")
    def flip(self, node, g):
        shape, x = self.shape(node), g["self"]
        for axis in g["dims"]:
            x = self.put(node, "take", [x], axis=axis % len(shape), at=list(reversed(range(shape[axis]))))
        return x

    @_translates("roll")
    def roll(self, node, g):
        shape, x = self.shape(node), g["self"]
        if not g["dims"]:
            self.refuse(node, "roll without its dims")
        for axis, by in zip(g["dims"], g["shifts"]):
            at = [(i - by) % shape[axis] for i in range(shape[axis])]
            x = self.put(node, "take", [x], axis=axis % len(shape), at=at)
        return x

    @_translates("index_select")
    def index_select(self, node, g):
        if isinstance(g["index"], str):
            self.refuse(node, "indices that are data")
        rank = len(self.shape(node))
        return self.put(node, "take", [g["self"]], axis=g["dim"] % rank, at=g["index"].tolist())

    @_translates("index", "_unsafe_index")
    def index(self, node, g):
        used = [(axis, i) for axis, i in enumerate(g["indices"]) if i is not None]
        axes, at = [axis for axis, _ in used], [i for _, i in used]
        if axes == [0] and isinstance(at[0], str) and g["self"] in self.aliases:
            return self.put(node, "embedding", [g["self"], at[0]])
        if any(isinstance(i, str) for i in at):
            self.refuse(node, "indices that are computed")
        if any(i.dtype == self.torch.bool for i in at):
            self.refuse(node, "a mask as an index")
        if axes != list(range(axes[0], axes[0] + len(axes))):
            self.refuse(node, "indices along axes that are not side by side")
        x, shape = g["self"], self.source_shape(node)
        sizes, at = [shape[a] for a in axes], self.torch.broadcast_tensors(*at)
        place = sum(
            (i % size) * math.prod(sizes[k + 1 :]) for k, (i, size) in enumerate(zip(at, sizes))
        )  # in the axes as one
        if len(axes) > 1:
            x = self.put(node, "reshape", [x], shape=shape[: axes[0]] + [math.prod(sizes)] + shape[axes[-1] + 1 :])
        own = shape[: axes[0]] + [place.numel()] + shape[axes[-1] + 1 :]
        x = self.put(node, "take", [x], shape=own, axis=axes[0], at=place.flatten().tolist())
        return x if place.dim() == 1 else self.put(node, "reshape", [x])

    @_translates("copy")
    def copy(self, node, g):  # what x[..] = y and in-place operations on views become
        same = self.shape(node) == self.shape(node.args[1])
        return g["src"] if same else self.put(node, "expand", [g["src"]])

    @_translates("slice_scatter", "select_scatter")
    def scatter(self, node, g):
        x, src, shape = g["self"], g["src"], self.shape(node)
        axis = g["dim"] % len(shape)
        size = shape[axis]
        sized = lambda k: shape[:axis] + [k] + shape[axis + 1 :]
        if _name(node) == "select_scatter":
            start = g["index"] % size
            stop = start + 1
            if isinstance(src, str):
                src = self.put(node, "unsqueeze", [src], shape=sized(1), axis=axis)
            elif isinstance(src, self.torch.Tensor):
                src = src.unsqueeze(axis)
        else:
            start, stop, step = slice(g["start"], g["end"], g["step"]).indices(size)
            if step != 1:
                self.refuse(node, "a part with steps that is changed")
        part = lambda a, b: (
            x.narrow(axis, a, b - a) if isinstance(x, self.torch.Tensor)
            else self.put(node, "slice", [x], shape=sized(b - a), axis=axis, start=a, stop=b, step=1)
        )  # fmt: skip
        parts = [part(0, start)] if start else []
        parts += [src] + ([part(stop, size)] if stop < size else [])
        if len(parts) == 1:
            return src
        return self.put(node, "concat", self.tensors_as_constants(node, parts), axis=axis)

    @_translates("pad", "constant_pad_nd")
    def pad(self, node, g):
        if str(g.get("mode", "constant")) != "constant" or g.get("value"):
            self.refuse(node, "padding other than by zeros")
        x, shape = g["self"], self.source_shape(node)
        for k, (before, after) in enumerate(zip(g["pad"][::2], g["pad"][1::2])):
            axis = len(shape) - 1 - k
            if min(before, after) < 0:
                self.refuse(node, "padding that cuts")
            parts = []
            for size in (before, None, after):
                own = shape[:axis] + [size] + shape[axis + 1 :]
                parts += [x] if size is None else [self.put(node, "full", [], shape=own, value=0.0)] if size else []
            if len(parts) > 1:
                shape = shape[:axis] + [shape[axis] + before + after] + shape[axis + 1 :]
                x = self.put(node, "concat", parts, shape=shape, axis=axis)
        return x

    # ---- losses

    def reduction(self, node, g):
        return _REDUCTION[g["reduction"]]

    @_translates("mse_loss")
    def mse(self, node, g):
        return self.put(node, "mse", [g["self"], g["target"]], reduction=self.reduction(node, g))

    @_translates("cross_entropy_loss")
    def cross_entropy(self, node, g):
        reduction, target = self.reduction(node, g), node.args[1]
        classes = len(self.shape(target)) < len(self.source_shape(node))
        if not classes and reduction == "none":
            self.only(node, label_smoothing=g["label_smoothing"] == 0, weight=g["weight"] is None)
            shape, axis = self.source_shape(node), self.class_axis(node)
            logs = self.put(node, "log_softmax", [g["self"]], shape=shape, axis=axis)
            each = self.put(node, "mul", [g["target"], logs], shape=shape)
            return self.put(node, "neg", [self.put(node, "sum", [each], axes=[axis], keepdims=False)])
        if reduction == "none" or g["weight"] is not None or (classes and self.ignored(target, g["ignore_index"])):
            self.only(node, label_smoothing=g["label_smoothing"] == 0, weight=classes)
            logs = self.put(node, "log_softmax", [g["self"]], shape=self.source_shape(node), axis=self.class_axis(node))
            return self.picked(node, logs, target, g, reduction)
        return self.put(
            node, "cross_entropy", [g["self"], g["target"]], smoothing=g["label_smoothing"], reduction=reduction
        )

    @_translates("nll_loss", "nll_loss_nd", "nll_loss2d")
    def nll(self, node, g):
        return self.picked(node, g["self"], node.args[1], g, self.reduction(node, g))

    def class_axis(self, node):
        return 1 if len(self.source_shape(node)) > 1 else 0

    def ignored(self, target, index):
        labels = self.evaluated(target)
        return labels is None or bool((labels == index).any())

    def picked(self, node, logs, target, g, reduction):
        """-sum of weight[label] logs[label] over the labels that count, or its weighted mean; weights are written out."""
        torch, labels = self.torch, self.evaluated(target)
        if labels is None:
            self.refuse(node, "labels that are computed")
        axis, shape = self.class_axis(node), self.source_shape(node)
        counts = labels != g["ignore_index"]
        weight = g["weight"] if g["weight"] is not None else torch.ones(shape[axis])
        if isinstance(weight, str):
            self.refuse(node, "weights of classes that are trained")
        each = weight.double()[labels.clamp(min=0)] * counts
        if not each.any():
            self.refuse(node, "every label is ignored")
        chosen = torch.movedim(
            torch.nn.functional.one_hot(labels.clamp(min=0), shape[axis]) * each[..., None], -1, axis
        )
        product = self.put(node, "mul", [logs, chosen], shape=shape)
        if reduction == "none":
            return self.put(node, "neg", [self.put(node, "sum", [product], axes=[axis], keepdims=False)])
        total = self.put(node, "sum", [product], axes=None, keepdims=False)
        return self.put(node, "mul", [total, -1.0 / (float(each.sum()) if reduction == "mean" else 1.0)])

    @_translates("binary_cross_entropy_with_logits")
    def bce_logits(self, node, g):
        self.only(node, weight=g["weight"] is None, pos_weight=g["pos_weight"] is None)
        return self.put(node, "bce_logits", [g["self"], g["target"]], reduction=self.reduction(node, g))

    @_translates("soft_margin_loss")
    def soft_margin(self, node, g):
        return self.put(node, "soft_margin", [g["self"], g["target"]], reduction=self.reduction(node, g))

    @_translates("huber_loss")
    def huber(self, node, g):
        return self.put(node, "huber", [g["self"], g["target"]], delta=g["delta"], reduction=self.reduction(node, g))


_LOWEST = -1e30  # for -infinity in masks: its exponential is 0, and no difference is undefined


def _finite(value):
    return max(value, _LOWEST)


def decimal(tensor):
    """Nested lists; of float32 the shortest decimals, 0.1 and not 0.10000000149011612."""
    import numpy as np

    array = np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)
    if array.dtype == np.float32:
        array = np.array([float(str(v)) for v in array.ravel()]).reshape(array.shape)
    return array.tolist()


class _Text(str):
    """A string argument, which is no name of a value."""


def _flat(items):
    for a in items:
        if isinstance(a, list):
            yield from _flat(a)
        elif not isinstance(a, _Text):
            yield a


def _path(node):
    """The module's name."""
    path = ""
    for value in (node.meta.get("nn_module_stack") or {}).values():
        path = value[0]
    return path.removeprefix("net").removeprefix(".") if path != "net" else ""


def _line(node):
    """file:line of the user's code."""
    for text in reversed((node.meta.get("stack_trace") or "").splitlines()):
        text = text.strip()
        if text.startswith("File ") and "/torch/" not in text and "site-packages" not in text:
            file, line = text[5:].split(", ")[:2]
            return f"{file.strip(chr(34)).split('/')[-1]}:{line.removeprefix('line ')}"
    return ""
