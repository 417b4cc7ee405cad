"""from_jax with JAX itself, where it is installed."""

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
pytest.importorskip("optax")
import flax.linen as nn  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
import test_jax_graphs as graphs  # noqa: E402
import test_torch_graphs as shared  # noqa: E402

import jax_models  # noqa: E402  isort: skip
from tplimit import jax as front  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
X, y = jax_models.POINTS, jax_models.TARGETS


def build_of(apply, middle=lambda key, n: {}, optimiser=front.SGD(0.1)):
    """W [3, n], v [n, 1], and what is between them."""

    def build(n):
        a, b, c = jax.random.split(jax.random.key(0), 3)
        params = {"W": jax.random.normal(a, (3, n)), "v": jax.random.normal(c, (n, 1))} | middle(b, n)
        return params, apply, optimiser

    return build


def text_of(build, **options):
    return front.from_jax(build, X, y, **options).text


def run(t):
    return t.run(particles=1024)


@pytest.mark.parametrize("name", graphs.NAMES)
def test_traces_are_the_stored_ones(name):
    build, data, target, loss, _ = jax_models.MODELS[name]
    traced, stored = front.trace(build, data, target, loss), graphs.graph(name)
    for p in stored["parameters"]:
        p.pop("gradient_power", None)
    assert front.Translation(traced | {"from": ""}).text == front.Translation(stored | {"from": ""}).text


@pytest.mark.parametrize("name", ["mlp_sgd", "mlp_adam", "residual_sgd", "classifier_sgd"])
def test_networks_of_jax_agree_with_the_limit(name, tmp_path):
    build, data, target, loss, _ = jax_models.MODELS[name]
    steps = 4
    limit = run(front.Translation(graphs.graph(name), steps=steps))["loss"].value
    files = front.train(build, data, target, loss, steps, (512,), 8, tmp_path)
    runs = np.load(files[0])["loss"]
    assert np.all(np.abs(runs.mean(0) - limit) < 5 * runs.std(0, ddof=1) / 8**0.5 + 0.005)


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.relu, jax.nn.gelu, lambda z: jax.nn.gelu(z, approximate=False), jax.nn.silu, jax.nn.softplus, jax.nn.elu,
        jax.nn.leaky_relu, jax.nn.sigmoid, jax.lax.erf, jnp.cos, lambda z: jnp.where(z > 0, z, jnp.exp(z) - 1),
        lambda z: jnp.clip(z, -1, 1), lambda z: z**3 / (1 + z**2), lambda z: jax.lax.stop_gradient(z) * jax.nn.tanh(z),
        lambda z: (z - z.mean(-1, keepdims=True)) * jax.lax.rsqrt(z.var(-1, keepdims=True) + 1e-5),
        lambda z: jnp.minimum(jnp.abs(z), 1) * jnp.sign(z), jax.checkpoint(lambda z: jnp.log1p(z**2)),
    ],
)  # fmt: skip
def test_functions(function):
    """The output at the start, of weights whose mean is not 0, is that of a wide network."""

    def apply(p, x):
        return function(x @ p["W"]) @ p["v"] / p["v"].shape[0]

    def build(n):
        key = jax.random.key(1)
        params = {"W": jax.random.normal(key, (3, n)), "v": jnp.ones((n, 1))}
        return params, apply, front.SGD({"": 1.0, "W": None})

    found = run(front.from_jax(build, X, y, steps=1))["out"].value
    params, _, _ = build(200_000)
    assert np.allclose(np.array(found), apply(params, jnp.asarray(X)), atol=0.03)


def test_products_in_any_order():
    """W @ x with vmap, einsum, products with transposes: the same program's numbers."""

    def forms(p, x):
        yield jnp.tanh(x @ p["W"]) @ p["U"] @ p["v"]
        yield jax.vmap(lambda z: p["v"].T @ (p["U"].T @ jnp.tanh(p["W"].T @ z)))(x)
        yield jnp.einsum("nm,mo,sn->so", p["U"], p["v"], jnp.tanh(jnp.einsum("dn,sd->sn", p["W"], x)))
        yield (p["v"].T @ (p["U"].T @ jnp.tanh(p["W"].T @ x.T))).T
        yield ((jnp.tanh(x @ p["W"]) @ p["U"]) @ p["v"][:, 0])[:, None]
        yield jnp.sum((jnp.tanh(x @ p["W"]) @ p["U"]) * p["v"][:, 0], -1, keepdims=True)

    middle = lambda key, n: {"U": jax.random.normal(key, (n, n)) * n**-0.5}
    results = []
    for k in range(6):
        apply = lambda p, x, k=k: list(forms(p, x))[k] / p["v"].shape[0]
        results.append(run(front.from_jax(build_of(apply, middle), X, y, steps=2))["loss"].value)
    assert np.allclose(results, results[0], atol=1e-3)


def test_attention_of_flax():
    class Net(nn.Module):
        n: int

        @nn.compact
        def __call__(self, ids):
            one = nn.initializers.normal(1.0)
            h = nn.Embed(4, self.n, embedding_init=one)(ids)
            z = nn.LayerNorm()(h)
            scaled = lambda q, k, v, mask=None: nn.dot_product_attention(q / q.shape[-1] ** 0.5, k, v, mask=mask)
            mask = nn.make_causal_mask(ids)
            h = h + nn.MultiHeadDotProductAttention(2, use_bias=False, attention_fn=scaled, deterministic=True)(
                z, mask=mask
            )
            return nn.Dense(4, use_bias=False, kernel_init=one)(h) / self.n

    def build(n, seed=0):
        net = Net(n)
        params = net.init(jax.random.key(seed), jax_models.TEXT[None, :-1])
        return params, net.apply, jax_models.mup("sgd", params, n, 0.2)

    found = front.lint(build, jax_models.TEXT[None, :-1], jax_models.TEXT[None, 1:], "cross_entropy")
    text = found.translation.text
    assert found.good, str(found)
    assert (
        "MultiHeadDotProductAttention_0_query_kernel : [2, m, n] ~ normal(0, 1 / n)" in text
        and "causal_mask(6)" in text
    )


def test_convolution_of_flax():
    class Net(nn.Module):
        n: int

        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Conv(self.n, (3,), kernel_init=nn.initializers.normal(1.0))(x))
            h = nn.relu(nn.Conv(self.n, (3,), strides=2, padding=1)(h))
            return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.normal(1.0))(h.mean(1)) / self.n

    signals = np.array([[0, 0.7, 1, 0.7, 0, -0.7, -1, -0.7], [1, 0, -1, 0, 1, 0, -1, 0]])[..., None]

    def build(n, seed=0):
        net = Net(n)
        params = net.init(jax.random.key(seed), signals)
        return params, net.apply, jax_models.mup("sgd", params, n, 0.2)

    found = front.lint(build, signals, np.array([[1.0], [-1.0]]))
    assert found.good and "conv1d(" in found.translation.text


# ---- initial laws


def test_initial_laws_are_seen():
    init = nn.initializers

    def middle(key, n):
        a, b, c, d = jax.random.split(key, 4)
        return {
            "a": init.lecun_normal()(a, (n, n)),
            "b": init.he_uniform()(b, (n,) + (n,)),
            "c": jax.random.uniform(c, (n,), minval=-1, maxval=3) / 2 + 1,
            "d": 0.1 * jnp.ones(n),
            "e": 2 * jax.random.normal(d, (n, n)) / n**0.5,
        }

    text = text_of(build_of(lambda p, x: (x @ p["W"] @ p["a"] @ p["b"] @ p["e"] * p["c"] + p["d"]) @ p["v"], middle))
    assert "param a : [n, n] ~ normal(0, 1 / n)" in text and "truncated normal" in text
    assert "param b : [n, n] ~ normal(0, 2 / n)" in text and "uniform" in text
    assert "param c : [n] ~ uniform(0.5, 2.5)" in text
    assert "param d : [n] ~ normal(0.1, 0)" in text
    assert "param e : [n, n] ~ normal(0, 4 / n)" in text


def test_laws_of_arrays_from_elsewhere():
    """Of numpy's random numbers JAX sees the entries only."""

    def build(n):
        draw = np.random.default_rng(n)
        params = {
            "W": jnp.asarray(draw.normal(size=(3, n))),
            "U": jnp.asarray(draw.uniform(-1, 1, size=(n, n)) * (3 / n) ** 0.5),
            "v": jnp.asarray(draw.normal(size=(n, 1))),
        }
        return params, lambda p, x: jnp.tanh(x @ p["W"] @ p["U"]) @ p["v"] / p["v"].shape[0], front.SGD(0.1)

    text = text_of(build)
    assert "param U : [n, n] ~ normal(0, 1 / n)" in text
    assert "param W : [n, 3] ~ normal(0, 1)" in text and "# W: normal, of variance 1, from its entries" in text
    assert "param W : [n, 3] ~ normal(0, 2.25)" in text_of(build, laws={"W": ("normal", 1.5)})


def test_laws_that_are_not_known():
    apply = lambda p, x: x @ p["W"] @ p["a"] @ p["v"]
    for initialiser, reason in ((nn.initializers.orthogonal(), "a: "), (lambda key, s: jnp.eye(s[0]), "a: ")):
        with pytest.raises(front.Refused, match=reason):
            text_of(build_of(apply, lambda key, n: {"a": initialiser(key, (n, n))}))

    def truncated(n):
        key = jax.random.key(0)
        params = {"W": nn.initializers.lecun_normal()(key, (3, n)), "v": jnp.ones((n, 1))}
        return params, lambda p, x: jnp.tanh(x @ p["W"]) @ p["v"] / p["v"].shape[0], front.SGD(0.1)

    with pytest.raises(front.Refused, match="W: truncated normal .* laws={.W.: .normal.}"):
        text_of(truncated)
    assert "param W : [n, 3] ~ normal(0, 1 / 3)" in text_of(truncated, laws={"W": "normal"})


def test_one_key_for_two_parameters():
    def build(n):
        key = jax.random.key(0)
        params = {"W": jax.random.normal(key, (3, n)), "v": jax.random.normal(key, (n, 1))}
        return params, lambda p, x: x @ p["W"] @ p["v"], front.SGD(0.1)

    with pytest.raises(front.Refused, match="W and v are drawn with the same key"):
        text_of(build)


# ---- optimisers


def test_rates_by_name():
    apply = lambda p, x: jnp.tanh(x @ p["W"] / 3**0.5) @ p["v"] / p["v"].shape[0]
    optimiser = front.AdamW({"": 0.1, "v": 0.05}, b2=0.99, weight_decay={"W": 0.1, "": 0.0})
    text = text_of(build_of(apply, optimiser=optimiser))
    assert "betas = (0.9, 0.99)" in text and "weight_decay = {W: 0.1, v: 0}" in text and "step adamw(" in text
    text = text_of(build_of(apply, optimiser=front.SGD({"": 0.1, "v": None}, momentum=0.9, nesterov=True)))
    assert "random v : [1, n]" in text and "momentum = 0.9, nesterov = true" in text
    with pytest.raises(ValueError, match="lr has no entry for 'v'"):
        text_of(build_of(apply, optimiser=front.SGD({"W": 0.1})))
    with pytest.raises(ValueError, match="cannot be read"):
        text_of(build_of(apply, optimiser=optax.sgd(0.1)))


@pytest.mark.parametrize(
    "optimiser, schedule",
    [
        (lambda n: front.SGD({"": 0.1 * n, "W2": 0.1}, momentum=0.9, nesterov=True), None),
        (lambda n: front.SGD({"": 0.3 * n, "W2": 0.3}), [1, 0.5, 0.25, 0.2]),
        (lambda n: front.AdamW({"": 0.05, "W2": 0.05 / n}, b2=0.99, weight_decay={"": 0.0, "W1": 0.3}), None),
    ],
)
def test_optimisers_are_those_of_optax(optimiser, schedule, tmp_path):
    network = jax_models.mlp("sgd", 0.1)
    build = lambda n, seed=0: (*network(n, seed)[:2], optimiser(n))
    t = front.from_jax(build, X, y, steps=4, schedule=schedule)
    limit = run(t)["loss"].value
    runs = np.load(front.train(build, X, y, "mse", 4, (512,), 8, tmp_path, schedule)[0])["loss"]
    assert np.all(np.abs(runs.mean(0) - limit) < 5 * runs.std(0, ddof=1) / 8**0.5)


# ---- what is refused, with its primitive and its line


@jax.custom_jvp
def straight_through(z):
    return jnp.sign(z)


straight_through.defjvp(lambda p, t: (jnp.sign(p[0]), t[0]))


@pytest.mark.parametrize(
    "middle, reason",
    [
        (lambda z: jnp.sort(z), r"sort: is not translated \(test_jax.py:\d+\)"),
        (lambda z: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h), z), r"(scan|while): is not translated"),
        (lambda z: z * jax.random.bernoulli(jax.random.key(0), 0.9, z.shape), "random.*: draws random numbers"),
        (straight_through, "straight_through has a rule of differentiation of its own"),
        (lambda z: z[:, : z.shape[1] // 3], "slice.*the width"),
        (lambda z: z @ jnp.eye(z.shape[1]), "changes with the width"),
        (lambda z: jnp.floor(z).astype(int) * z, "makes whole numbers"),
    ],
)
def test_refused(middle, reason):
    def apply(p, x):
        z = middle(x @ p["W"])
        return z @ p["v"][: z.shape[1]]

    with pytest.raises(front.Refused, match=reason):
        text_of(build_of(apply))


def test_three_mistakes():
    """Adam at one rate; SGD at one rate; a readout that is not divided by the width."""
    mistakes = {
        "adam": (jax_models.mlp("adam", 0.02), front.Adam(0.02), 1, "W2"),
        "sgd": (jax_models.mlp("sgd", 0.3), front.SGD(0.3), 1, "W1"),
        "readout": (jax_models.mlp("sgd", 0.3), None, "n", "v"),
    }
    for good, optimiser, factor, parameter in mistakes.values():
        assert front.lint(good, X, y).good

        def build(n, seed=0):
            params, apply, own = good(n, seed)
            return params, lambda p, x: apply(p, x) * (n if factor == "n" else 1), optimiser or own

        found = front.lint(build, X, y)
        assert not found.good and parameter in {f.parameter for f in found.findings}, str(found)
