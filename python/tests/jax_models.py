"""Networks in muP for the tests of from_jax and the figures of docs/jax.md; needs jax, flax and optax.

python jax_models.py graphs                 # writes graphs/jax/*.json, the fixtures of test_jax_graphs.py
python jax_models.py against mlp_sgd ..     # trains networks with JAX and sets them beside the limit
"""

import os
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__":
    sys.path.insert(0, HERE)
    import test_torch_graphs  # noqa: F401  (sets up the package)

from tplimit.jax import SGD, Adam, named  # noqa: E402

POINTS = np.array(
    [[1, 0.5, -0.2], [-0.3, 1, 0.4], [0.7, -0.6, 0.9], [-1, -0.2, 0.3], [0.2, 0.8, -1.1], [0.5, -1.2, -0.6]]
)
TARGETS = np.array([[1], [-0.5], [0.5], [-1], [0.8], [0.2]])
TEXT = np.array([0, 1, 2, 0, 1, 3, 0])
WORDS, KINDS = np.array([[0, 1, 2], [3, 1, 0], [2, 2, 4], [4, 3, 1]]), np.array([0, 2, 1, 1])


def mup(kind, params, n, eta):
    """Rates by how many axes grow with n: eta n and eta (SGD), eta and eta / n (Adam)."""
    rates = {}
    for name, leaf in named(params).items():
        hidden = sum(size >= n // 8 for size in leaf.shape) == 2
        rates[name] = {"sgd": eta if hidden else eta * n, "adam": eta / n if hidden else eta}[kind]
    return SGD(rates) if kind == "sgd" else Adam(rates, b2=0.99)


def mlp(kind, eta):
    """Two hidden layers, W @ x written by hand."""

    def apply(p, x):
        h = jnp.tanh(x @ p["W1"] + p["b1"])
        h = jnp.tanh(h @ p["W2"] + p["b2"])
        return h @ p["v"] / p["v"].shape[0]

    def build(n, seed=0):
        a, b, c = jax.random.split(jax.random.key(seed), 3)
        params = {
            "W1": jax.random.normal(a, (3, n)) / 3**0.5,
            "b1": jnp.zeros(n),
            "W2": jax.random.normal(b, (n, n)) / n**0.5,
            "b2": jnp.zeros(n),
            "v": jax.random.normal(c, (n, 1)),
        }
        return params, apply, mup(kind, params, n, eta)

    return build


class Residual(nn.Module):
    """Two pre-LayerNorm blocks n -> 2 n -> n, of Flax."""

    n: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(self.n, kernel_init=nn.initializers.normal(3**-0.5), name="embed")(x)
        for i in range(2):
            z = nn.LayerNorm(name=f"norm{i}")(h)
            z = nn.gelu(nn.Dense(2 * self.n, name=f"up{i}")(z))
            h = h + nn.Dense(self.n, name=f"down{i}")(z)
        h = nn.LayerNorm(name="norm")(h)
        return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.normal(1.0), name="readout")(h) / self.n


def residual(kind, eta):
    def build(n, seed=0):
        net = Residual(n)
        params = net.init(jax.random.key(seed), jnp.ones((1, 3)))
        return params, net.apply, mup(kind, params, n, eta)

    return build


def attention(kind, eta):
    """A causal block of two heads, which grow with n; scores are divided by the width of a head."""

    def apply(p, ids):
        x = p["token"][ids] + p["place"]
        d = p["q"].shape[-1]
        q, k, v = (jnp.einsum("bsn,nhd->bhsd", x, p[name]) for name in "qkv")
        scores = jnp.einsum("bhsd,bhtd->bhst", q, k) / d
        mask = jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        a = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
        x = x + jnp.einsum("bhst,bhtd,hdn->bsn", a, v, p["o"])
        x = x + jnp.maximum(x @ p["up"], 0) @ p["down"]
        return x @ p["readout"] / x.shape[-1]

    def build(n, seed=0):
        keys = iter(jax.random.split(jax.random.key(seed), 9))
        draw = lambda std, *shape: std * jax.random.normal(next(keys), shape)
        params = {"token": draw(1.0, 4, n), "place": draw(1.0, 6, n)}
        params |= {name: draw(n**-0.5, n, 2, n // 2) for name in "qkv"}
        params |= {
            "o": draw(n**-0.5, 2, n // 2, n),
            "up": draw(n**-0.5, n, 2 * n),
            "down": draw((2 * n) ** -0.5, 2 * n, n),
        }
        params["readout"] = draw(1.0, n, 4)
        return params, apply, mup(kind, params, n, eta)

    return build


class Classifier(nnx.Module):
    """The mean of embedded words, a hidden layer, three classes; of nnx."""

    def __init__(self, n, rngs):
        one = nnx.initializers.normal(1.0)
        self.embed = nnx.Embed(5, n, embedding_init=one, rngs=rngs)
        self.hidden = nnx.Linear(n, n, rngs=rngs)
        self.readout = nnx.Linear(n, 3, use_bias=False, kernel_init=one, rngs=rngs)
        self.n = n

    def __call__(self, words):
        return self.readout(nnx.silu(self.hidden(self.embed(words).mean(1)))) / self.n


def classifier(kind, eta):
    def build(n, seed=0):
        definition, params = nnx.split(Classifier(n, nnx.Rngs(seed)), nnx.Param)
        return params, lambda p, x: nnx.merge(definition, p)(x), mup(kind, params, n, eta)

    return build


def next_letter(out, y):
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


# name -> build, X, y, loss, steps
MODELS = {
    "mlp_sgd": (mlp("sgd", 0.3), POINTS, TARGETS, "mse", 8),
    "mlp_adam": (mlp("adam", 0.02), POINTS, TARGETS, "mse", 8),
    "residual_sgd": (residual("sgd", 0.05), POINTS, TARGETS, lambda out, y: jnp.mean((out - y) ** 2), 6),
    "residual_adam": (residual("adam", 0.01), POINTS, TARGETS, "mse", 6),
    "attention_sgd": (attention("sgd", 0.2), TEXT[None, :-1], TEXT[None, 1:], next_letter, 4),
    "classifier_sgd": (classifier("sgd", 0.5), WORDS, KINDS, next_letter, 6),
    "classifier_adam": (classifier("adam", 0.02), WORDS, KINDS, "cross_entropy", 6),
}


def translated(name, steps=None):
    from tplimit import jax as front

    build, X, y, loss, own = MODELS[name]
    return front.from_jax(build, X, y, loss=loss, steps=steps or own, name=name)


def write_graphs():
    for name in MODELS:
        translated(name).save_graph(os.path.join(HERE, "graphs", "jax", f"{name}.json"))
        print(name)


def against(name, widths=(64, 256, 1024), seeds=8, particles=8192, folder="against"):
    """Deviations of JAX's networks from the limit, and what `tplimit compare` says of them."""
    from losses import print_losses
    from tplimit import jax as front

    build, X, y, loss, steps = MODELS[name]
    t = translated(name)
    t.save(folder)
    files = front.train(build, X, y, loss, steps, widths, seeds, os.path.join(folder, name))
    print_losses(name, t, files, steps, particles)


if __name__ == "__main__":
    if sys.argv[1] == "graphs":
        write_graphs()
    else:
        for name in sys.argv[2:] or MODELS:
            against(name)
