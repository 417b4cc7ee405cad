"""from_torch with torch itself, where it is installed."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import test_torch_graphs as graphs  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import torch_models  # noqa: E402
from torch import nn  # noqa: E402

from tplimit import pytorch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
X = torch.tensor(torch_models.POINTS)
y = torch.tensor(torch_models.TARGETS).float()


def text_of(build, **options):
    return pytorch.from_torch(build, X, y, **options).text


def sequential(n, *more, **rates):
    module = nn.Sequential(nn.Linear(3, n), nn.Tanh(), *more, nn.Linear(n, 1, bias=False))
    return module, torch.optim.SGD(module.parameters(), lr=rates.get("lr", 0.1))


@pytest.mark.parametrize(
    "name", ["mlp_sgd", "residual_adam", "cnn_adam", "decoder_sgd", "grouped_heads_adam", "lstm_sgd", "normed_sgd"]
)
def test_traces_are_the_stored_ones(name):
    build, data, target, loss, _ = torch_models.MODELS[name]
    traced, stored = pytorch.trace(build, data, target, loss), graphs.graph(name)
    for p in stored["parameters"]:
        p.pop("gradient_power", None)
    drop = lambda g: {k: v for k, v in g.items() if k != "from"}
    same = (
        lambda a, b: pytorch.Translation(drop(a) | {"from": ""}).text
        == pytorch.Translation(drop(b) | {"from": ""}).text
    )
    assert same(traced, stored)


@pytest.mark.parametrize("name", ["mlp_sgd", "mlp_adam", "grouped_heads_sgd", "lstm_sgd", "normed_sgd"])
def test_networks_of_torch_agree_with_the_limit(name, tmp_path):
    check_networks(*torch_models.MODELS[name][:4], tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"groups": True, "stride": 2}, {"dilation": 2, "padding": 2}, {"padding": (1, 0), "kernel_size": (3, 1)}],
)
def test_convolutions_that_are_sums_of_products(options, tmp_path):
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            own = {"kernel_size": 3} | options | ({"groups": n} if "groups" in options else {})
            self.n, self.wide, self.readout = n, nn.Conv2d(1, n, 1), nn.Linear(n, 1, bias=False)
            self.conv = nn.Conv2d(n, n, **own)
            nn.init.normal_(self.conv.weight, std=self.conv.weight[0].numel() ** -0.5)
            nn.init.normal_(self.readout.weight)

        def forward(self, x):
            x = torch.tanh(self.wide(x.unflatten(-1, (2, 4))))
            if min(self.conv.kernel_size) > 1:
                x = F.pad(x, (1, 1, 1, 1))
            return self.readout(torch.tanh(self.conv(x)).mean((-2, -1))) / self.n

    def build(n):
        net = Net(n)
        hidden = [net.conv.weight] if "groups" not in options else []
        rest = [p for p in net.parameters() if all(p is not h for h in hidden)]
        groups = [{"params": rest, "lr": 0.5 * n}] + [{"params": hidden, "lr": 0.5}] * bool(hidden)
        return net, torch.optim.SGD(groups)

    data, target = (torch.tensor(v) for v in (torch_models.SIGNALS, torch_models.SIGNAL_TARGETS))
    check_networks(build, data, target, "mse", tmp_path)


def check_networks(build, data, target, loss, tmp_path, steps=4):
    t = pytorch.from_torch(build, data, target, loss, steps=steps)
    limit = t.run(particles=2048)["loss"].value
    files = pytorch.train(build, data, target, loss, steps, (512,), 8, tmp_path)
    runs = np.load(files[0])["loss"]
    assert np.all(np.abs(runs.mean(0) - limit) < 5 * runs.std(0, ddof=1) / 8**0.5 + 0.005)


def test_default_initialisation_and_options():
    def build(n):
        module = nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1))
        return module, torch.optim.SGD(module.parameters(), lr=6.4 / n, momentum=0.9, dampening=0.1, weight_decay=0.01)

    text = text_of(build)
    assert "param l0_weight : [n, 3] ~ uniform(-0.57735026919, 0.57735026919), lr = 1 / n" in text
    assert "param l2_weight : [n, n] ~ normal(0, 1 / (3 * n)), lr = 1 / n  # uniform" in text
    assert "param l4_weight : [1, n] ~ uniform(-1 / sqrt(n), 1 / sqrt(n)), lr = 1 / n" in text
    assert "step sgd(loss, lr = 6.4, momentum = 0.9, dampening = 0.1, weight_decay = 0.01)" in text


def test_groups_of_adamw():
    def build(n):
        module, _ = sequential(n)
        groups = [
            {"params": module[0].parameters(), "weight_decay": 0.1},
            {"params": module[2].parameters(), "weight_decay": 0.0, "lr": 0.02},
        ]
        return module, torch.optim.AdamW(groups, lr=0.01, eps=1e-6)

    text = text_of(build)
    assert "weight_decay = {l0_weight: 0.1, l0_bias: 0.1, l2_weight: 0}" in text
    assert "param l2_weight : [1, n] ~ uniform(-1 / sqrt(n), 1 / sqrt(n)), lr = 2" in text


def test_initial_laws_are_seen():
    def build(n):
        module, optimiser = sequential(n, nn.Linear(n, n, bias=False))
        nn.init.trunc_normal_(module[2].weight, std=n**-0.5, a=-2 * n**-0.5, b=2 * n**-0.5)
        with torch.no_grad():
            module[0].weight.normal_().mul_(2).div_(4)
            module[0].bias.fill_(0.5)
        module[3].weight = nn.Parameter(3 * torch.randn(1, n))
        return module, torch.optim.SGD(module.parameters(), lr=0.1)

    text = text_of(build)
    assert "param l0_weight : [n, 3] ~ normal(0, 0.25)" in text
    assert "param l0_bias : [n] ~ normal(0.5, 0)" in text
    variance = float(text.split("param l2_weight : [n, n] ~ normal(0, ")[1].split(" / n")[0])
    assert variance == pytest.approx(0.773741, abs=1e-5)  # of a normal cut at 2 standard deviations
    assert "truncated normal" in text
    assert "param l3_weight : [1, n] ~ normal(0, 9)" in text


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda n: nn.Dropout(0.1), "another mask at every step"),
        (lambda n: nn.utils.parametrizations.orthogonal(nn.Linear(n, n)), "initial|not translated|changes|not seen"),
        (lambda n: nn.Linear(n, n + 1), "65|97"),
    ],
)
def test_refused(change, reason):
    def build(n):
        middle = change(n)
        width = middle.out_features if isinstance(middle, nn.Linear) else n
        module = nn.Sequential(nn.Linear(3, n), middle, nn.Linear(width, 1))
        return module, torch.optim.SGD(module.parameters(), lr=0.1)

    with pytest.raises(pytorch.Refused, match=reason):
        text_of(build)


def test_orthogonal_initialisation_is_refused_by_name():
    def build(n):
        module, optimiser = sequential(n, nn.Linear(n, n))
        nn.init.orthogonal_(module[2].weight)
        return module, optimiser

    with pytest.raises(pytorch.Refused, match="2.weight: "):
        text_of(build)


def test_attention_written_by_hand_is_that_of_torch():
    class Hand(torch_models.Attention):
        def forward(self, x):
            B, T, n = x.shape
            d = n // self.heads
            q, k, v = (a.view(B, T, self.heads, d).transpose(1, 2) for a in self.qkv(x).chunk(3, dim=-1))
            scores = (q @ k.transpose(-2, -1)) / d
            scores = scores.masked_fill(torch.tril(torch.ones(T, T)) == 0, float("-inf"))
            return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, n))

    def build(kind):
        def at(n):
            decoder = torch_models.Decoder(n)
            decoder.blocks = decoder.blocks[:1]
            decoder.blocks[0].attention = kind(n)
            torch_models.initialise(decoder.blocks, n)
            return decoder, torch_models.optimiser("sgd", decoder, n, 0.2)

        return at

    losses = []
    _, ids, target, loss, _ = torch_models.MODELS["decoder_sgd"]
    for kind in (Hand, torch_models.Attention):
        t = pytorch.from_torch(build(kind), ids, target, loss, steps=2)
        losses.append(t.run(particles=512)["loss"].value)
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


class Small(nn.Module):
    def __init__(self, n, layer=None, outputs=1):
        super().__init__()
        self.n, self.first, self.layer = n, nn.Linear(3, n), layer or nn.Identity()
        self.readout = nn.Linear(n, outputs, bias=False)
        nn.init.normal_(self.readout.weight)

    def forward(self, x):
        return self.readout(self.layer(torch.tanh(self.first(x)))) / self.n


def small(n, layer=None, loss=None, outputs=1):
    module = Small(n, layer, outputs)
    made = module, torch.optim.SGD(module.parameters(), lr=0.1 * n)
    return made + (loss,) if loss else made


def limit_of(build, target=y, **options):
    t = pytorch.from_torch(build, X, target, **options)
    return t.run(particles=1024)["loss"].value.tolist()


def test_values_that_are_changed_in_place():
    """x.relu_() changes what x is from there on, whether its result is used or not."""

    class InPlace(nn.Module):
        def forward(self, x):
            h = x * 1.0
            h.relu_()
            h[..., :] += 1
            return h

    class Plain(nn.Module):
        def forward(self, x):
            return torch.relu(x) + 1

    assert limit_of(lambda n: small(n, InPlace()), steps=2) == limit_of(lambda n: small(n, Plain()), steps=2)


def in_pairs(x):
    rows = [x[0], x[3], 0 * x[4]]
    return torch.stack([r for r in rows for _ in range(2)])


def with_entries_set(x):
    x = x.clone()
    x[1] = 2 * x[0]
    x[0] = 0.0
    return x


@pytest.mark.parametrize(
    "function, same",
    [
        (nn.Hardswish(), lambda x: x * torch.clamp(x + 3, 0, 6) / 6),
        (nn.CELU(0.5), lambda x: torch.where(x > 0, x, 0.5 * (torch.exp(2 * x) - 1))),
        (nn.SELU(), lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * (torch.exp(x) - 1))),
        (nn.Softplus(beta=2), lambda x: torch.log(1 + torch.exp(2 * x)) / 2),
        (nn.LogSigmoid(), lambda x: -torch.log(1 + torch.exp(-x))),
        (nn.PReLU().requires_grad_(False), lambda x: torch.where(x > 0, x, 0.25 * x)),
        (nn.Softshrink(), lambda x: torch.sign(x) * torch.relu(torch.abs(x) - 0.5)),
        (lambda x: x / x.norm(dim=-1, keepdim=True).div(x.shape[-1] ** 0.5), nn.RMSNorm(1, eps=1e-30)),
        (
            lambda x: x - x.std(-1, correction=0)[..., None],
            lambda x: x - (x - x.mean(-1)[:, None]).pow(2).mean(-1)[:, None] ** 0.5,
        ),
        (
            lambda x: x * F.cosine_similarity(x, x.abs())[:, None],
            lambda x: x * ((x * x.abs()).mean(-1) / (x**2).mean(-1))[:, None],
        ),
        (lambda x: torch.einsum("pn,q->pqn", x, torch.tensor([1.0, 2.0])).sum(1), lambda x: 3 * x),
        (
            lambda x: x + torch.einsum("pn,qn->pq", x, x)[:, :1] / x.shape[1],
            lambda x: x + (x * x[:1]).mean(-1)[:, None],
        ),
        (
            lambda x: F.pad(x, (0, 0, 1, 1))[:-2] + x.roll(1, 0),
            lambda x: torch.cat([0 * x[:1], x[:-1]]) + x[[5, 0, 1, 2, 3, 4]],
        ),
        (lambda x: F.normalize(x, dim=-1) * x.shape[1] ** 0.5, lambda x: x / x.pow(2).mean(-1, keepdim=True).sqrt()),
        (lambda x: x * ((x @ x[0]) / x.shape[1])[:, None], lambda x: x * (x * x[0]).mean(-1)[:, None]),
        (
            lambda x: torch.einsum("bkn,bk->bn", x.unflatten(0, (3, 2)), torch.eye(3, 2)).repeat_interleave(2, 0),
            in_pairs,
        ),
        (lambda x: (torch.eye(6)[:, None] @ x).squeeze(1), lambda x: x),
        (lambda x: (torch.tril(torch.ones(6, 6)).unsqueeze(1) @ x[None]).squeeze(1), lambda x: x.cumsum(0)),
        (with_entries_set, lambda x: torch.cat([x[:1] * 0, x[:1] * 2, x[2:]])),
        (
            lambda x: torch.stack([x, 2 * x])[torch.tensor([0, 1]), torch.tensor([3, 4])].repeat(3, 1),
            lambda x: torch.cat([x[3:4], 2 * x[4:5]] * 3),
        ),
        (lambda x: x.flip(0).cumsum(0), lambda x: torch.stack([x[5 - i :].sum(0) for i in range(6)])),
        (lambda x: torch.lerp(x, x.amin(0), 0.25), lambda x: 0.75 * x - 0.25 * (-x).max(0)[0]),
    ],
)
def test_functions_are_what_they_say(function, same):
    class Layer(nn.Module):
        def __init__(self, f):
            super().__init__()
            self.f = f

        def forward(self, x):
            return self.f(x)

    def build(f):
        if isinstance(f, nn.RMSNorm):
            f = lambda x: x / torch.sqrt((x**2).mean(-1, keepdim=True))
        return lambda n: small(n, Layer(f))

    frozen = [limit_of(build(f), steps=2) for f in (function, same)]
    assert frozen[0][1] == pytest.approx(frozen[1][1], rel=1e-6)


@pytest.mark.parametrize(
    "loss, same",
    [
        (F.l1_loss, lambda out, y: (out - y).abs().mean()),
        (F.smooth_l1_loss, lambda out, y: F.huber_loss(out, y)),
        (lambda out, y: F.mse_loss(out, y, reduction="none").mean(0).sum(), F.mse_loss),
        (
            lambda out, y: F.binary_cross_entropy(torch.sigmoid(out), (y > 0).float()),
            lambda out, y: F.soft_margin_loss(out, 2 * (y > 0) - 1),
        ),
        (lambda out, y: F.huber_loss(out, y, delta=0.5), lambda out, y: 0.5 * F.smooth_l1_loss(out, y, beta=0.5)),
    ],
)
def test_losses(loss, same):
    assert limit_of(lambda n: small(n, loss=loss), steps=2) == pytest.approx(
        limit_of(lambda n: small(n, loss=same), steps=2)
    )


def test_weights_of_classes_and_labels_that_are_ignored():
    build = lambda loss: lambda n: small(n, loss=loss, outputs=3)
    labels = torch.tensor([0, 2, -100, 1, 1, -100])
    weight = torch.tensor([1.0, 2.0, 0.5])

    def by_hand(out, y):
        keep = torch.tensor([0, 1, 3, 4])
        logs = torch.log_softmax(out, -1)[keep]
        w = torch.tensor([1.0, 0.5, 2.0, 2.0])
        return -(logs * F.one_hot(torch.tensor([0, 2, 1, 1]), 3) * w[:, None]).sum() / w.sum()

    weighted = limit_of(build(lambda out, y: F.cross_entropy(out, y, weight=weight)), labels, steps=3)
    assert weighted == pytest.approx(limit_of(build(by_hand), labels, steps=3), rel=1e-6)
    ignored = limit_of(build(F.cross_entropy), labels, steps=3)
    nll = limit_of(build(lambda out, y: F.nll_loss(F.log_softmax(out, -1), y)), labels, steps=3)
    each = limit_of(build(lambda out, y: F.cross_entropy(out, y, reduction="none").sum() / 4), labels, steps=3)
    picked = lambda out, y: -out.log_softmax(-1)[[0, 1, 3, 4]].gather(1, y[[0, 1, 3, 4]][:, None]).mean()
    assert each == pytest.approx(ignored, rel=1e-6)
    assert limit_of(build(picked), labels, steps=3) == pytest.approx(ignored, rel=1e-6)
    assert ignored == pytest.approx(nll, rel=1e-6) and ignored != pytest.approx(weighted, rel=1e-3)
    with pytest.raises(pytorch.Refused, match="pos_weight"):
        text_of(
            build(lambda out, y: F.binary_cross_entropy_with_logits(out, y.expand(-1, 3), pos_weight=torch.tensor(2.0)))
        )


def test_cross_attention_and_slices_of_several_parts(tmp_path):
    """Rows of a fused projection, of which MultiheadAttention takes one part for queries and two for keys and values."""

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n, self.embed, self.gates = n, nn.Linear(1, n), nn.Linear(1, 3 * n)
            self.attention = nn.MultiheadAttention(n, n // 2, batch_first=True)
            self.readout = nn.Linear(n, 1, bias=False)
            for p in (self.embed.weight, self.gates.weight, self.readout.weight):
                nn.init.normal_(p)
            nn.init.normal_(self.attention.in_proj_weight, std=n**-0.5)

        def forward(self, x):
            x = x.transpose(1, 2)
            z = torch.tanh(self.embed(x))
            one, two = self.gates(x).split([self.n, 2 * self.n], dim=-1)
            q = torch.tanh(one) * torch.tanh(two)[..., : self.n] + two[..., self.n :]
            return self.readout((q[:, :2] + self.attention(q[:, :2], z, z, need_weights=False)[0]).mean(1)) / self.n

    def build(n):
        net = Net(n)
        hidden = [net.attention.in_proj_weight, net.attention.out_proj.weight]
        rest = [p for p in net.parameters() if all(p is not h for h in hidden)]
        return net, torch.optim.SGD([{"params": hidden, "lr": 0.2}, {"params": rest, "lr": 0.2 * n}])

    data, target = (torch.tensor(v) for v in (torch_models.SIGNALS, torch_models.SIGNAL_TARGETS))
    text = pytorch.from_torch(build, data[..., :4], target, steps=3).text
    assert "param attention_in_proj_weight : [3, 2, m, n]" in text and "gates[1..3]" in text
    check_networks(build, data[..., :4], target, "mse", tmp_path, steps=3)


def test_rows_of_padding_are_not_trained(tmp_path):
    class Net(nn.Module):
        def __init__(self, n, drawn):
            super().__init__()
            self.n, self.embed, self.readout = n, nn.Embedding(4, n, padding_idx=3), nn.Linear(n, 1, bias=False)
            if drawn:
                nn.init.normal_(self.embed.weight, std=2.0)  # the row of padding, too
            nn.init.normal_(self.readout.weight)

        def forward(self, ids):
            keep = (ids != 3).float()
            return self.readout(torch.tanh(self.embed(ids).mean(1)) / keep.sum(1, keepdim=True)) / self.n

    ids = torch.tensor([[0, 1, 3, 3], [2, 3, 3, 3], [1, 1, 2, 0]])
    for drawn in (False, True):
        build = lambda n: (net := Net(n, drawn), torch.optim.SGD(net.parameters(), lr=n))
        check_networks(build, ids, torch.tensor([[1.0], [-1.0], [0.5]]), "mse", tmp_path / str(drawn))


def test_one_parameter_both_ways():
    class Tied(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.n, self.encode = n, nn.Linear(3, n)

        def forward(self, x):
            return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t()) / self.n

    text = pytorch.from_torch(lambda n: (m := Tied(n), torch.optim.SGD(m.parameters(), lr=n)), X, X).text
    assert "encode_weight @ x" in text and "encode_weight' @ z1" in text


def test_several_outputs_and_arrays_that_grow():
    class Two(Small):
        def forward(self, x):
            return {"out": super().forward(x), "x": x}

    def build(n):
        module = Two(n)
        return module, torch.optim.SGD(module.parameters(), lr=0.1 * n), lambda out, y: F.mse_loss(out["out"], y)

    assert limit_of(build, steps=3) == limit_of(lambda n: small(n), steps=3)

    class Positions(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.register_buffer("table", torch.sin(torch.arange(n) / n))

        def forward(self, x):
            return x + self.table[None]

    with pytest.raises(pytorch.Refused, match="'layer.table'"):
        text_of(lambda n: small(n, Positions(n)))


def test_several_optimisers():
    def build(n):
        module = nn.Sequential(
            nn.Linear(3, n), nn.Tanh(), nn.Linear(n, n, bias=False), nn.Tanh(), nn.Linear(n, 1, bias=False)
        )
        rest = [*module[0].parameters(), *module[4].parameters()]
        muon = torch.optim.Muon([module[2].weight], lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
        return module, [muon, torch.optim.RMSprop(rest, lr=0.01, alpha=0.9)]

    text = text_of(build)
    assert "param l2_weight : [n, n] ~ normal(0, 1 / (3 * n)), lr = 2 * sqrt(n)" in text
    assert "muon(loss, lr = 0.01, weight_decay = 0.25 / sqrt(n), only = (l2_weight))" in text
    assert "rmsprop(loss, lr = 0.01, alpha = 0.9, eps = " in text
    twice = lambda n: (module := sequential(n)[0], [torch.optim.SGD(module.parameters(), lr=0.1)] * 2)
    with pytest.raises(pytorch.Refused, match="two optimisers"):
        text_of(twice)


def plain(n, law=None):
    module = nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 1))
    if law:
        for layer in module[::2]:
            law(layer.weight)
            nn.init.zeros_(layer.bias)
    return module


@pytest.mark.parametrize("law", [None, nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_normal_])
@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
)
def test_advice_leads_to_mup(law, optimiser):
    """The factors that lint names, put on laws, rates and decays of a plain network, make it good."""

    def build(n, fixes=()):
        module = plain(n, law)
        base = optimiser(module.parameters()).param_groups[0]
        groups = []
        for name, p in module.named_parameters():
            fix = next((f for f in fixes if f.parameter == name), None)
            rate, std, decay = ((n / 64) ** getattr(fix, k, 0.0) for k in ("rate", "std", "decay"))
            with torch.no_grad():
                p.mul_(std)
            groups.append({"params": [p], "lr": base["lr"] * rate, "weight_decay": base["weight_decay"] * decay})
        return module, type(optimiser(module.parameters()))(groups, **({"momentum": 0.9} if "momentum" in base else {}))

    found = pytorch.lint(lambda n: build(n), X, y)
    assert not found.good and found.findings
    after = pytorch.lint(lambda n: build(n, found.findings), X, y)
    assert after.good, str(after)


def test_scores_divided_by_a_root_are_named():
    class Net(nn.Module):
        def __init__(self, n, power, by_hand):
            super().__init__()
            self.n, self.embed, self.qkv = n, nn.Linear(1, n), nn.Linear(n, 3 * n, bias=False)
            self.power, self.by_hand, self.readout = power, by_hand, nn.Linear(n, 1, bias=False)
            nn.init.normal_(self.readout.weight)

        def forward(self, x):
            q, k, v = self.qkv(self.embed(x.transpose(1, 2))).chunk(3, dim=-1)
            scale = self.n**self.power
            if self.by_hand == "queries first":
                a = (q * scale @ k.mT).softmax(-1) @ v
            elif self.by_hand == "both":
                a = ((q * scale**0.5) @ (scale**0.5 * k).mT).softmax(-1) @ v
            elif self.by_hand:
                a = (q @ k.mT * scale).softmax(-1) @ v
            else:
                a = F.scaled_dot_product_attention(q, k, v, scale=scale)
            return self.readout(a.mean(1)) / self.n

    data, target = (torch.tensor(v) for v in (torch_models.SIGNALS, torch_models.SIGNAL_TARGETS))
    for by_hand in (False, True, "queries first", "both"):
        for power in (-0.5, -1):

            def build(n):
                net = Net(n, power, by_hand)
                wide = [net.embed.weight, net.embed.bias, net.readout.weight]
                return net, torch.optim.Adam(
                    [{"params": wide, "lr": 0.01}, {"params": [net.qkv.weight], "lr": 0.6 / n}]
                )

            found = pytorch.lint(build, data, target)
            named = [f for f in found.findings if "scores of attention grow" in f.problem]
            assert bool(named) == (power == -0.5) and found.good == (power == -1), str(found)


def test_masks_of_each_sample():
    """As bool, stretched, or added as large negative numbers: positions of padding are not looked at."""

    class Net(nn.Module):
        def __init__(self, n, how):
            super().__init__()
            self.n, self.how, self.embed = n, how, nn.Embedding(4, n)
            self.q, self.k, self.readout = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, 1, bias=False)
            nn.init.normal_(self.readout.weight)

        def forward(self, ids):
            z, pad = self.embed(ids), (ids == 3)[:, None, :]
            q, k = self.q(z), self.k(z)
            mask = {
                "bool": lambda: ~pad,
                "stretched": lambda: torch.logical_not(pad).expand(-1, 4, -1),
                "added": lambda: torch.zeros(3, 4, 4).masked_fill(pad, -1e9),
                "infinite": lambda: torch.zeros(3, 4, 4).masked_fill(pad, float("-inf")),
                "by hand": lambda: None,
                "in two": lambda: None,
                "scaled behind": lambda: None,
            }[self.how]()
            if self.how == "in two":
                first = (ids == 3)[:, None, :] & (torch.arange(4) > 2)
                a = (q @ k.mT / self.n).masked_fill(first, float("-inf")).masked_fill(pad, float("-inf")).softmax(
                    -1
                ) @ z
            elif self.how == "scaled behind":
                a = ((q @ k.mT).masked_fill(pad, float("-inf")) / self.n).softmax(-1) @ z
            elif self.how == "by hand":
                a = (q @ k.mT / self.n).masked_fill(pad, float("-inf")).softmax(-1) @ z
            else:
                a = F.scaled_dot_product_attention(q, k, z, attn_mask=mask, scale=1 / self.n)
            return self.readout(a[:, 0]) / self.n

    def loss_at(how):
        def build(n):
            net = Net(n, how)
            hidden = [net.q.weight, net.k.weight]
            rest = [p for p in net.parameters() if all(p is not h for h in hidden)]
            return net, torch.optim.SGD([{"params": hidden, "lr": 0.3}, {"params": rest, "lr": 0.3 * n}])

        ids = torch.tensor([[0, 1, 3, 3], [2, 1, 0, 3], [1, 1, 2, 0]])
        t = pytorch.from_torch(build, ids, torch.tensor([[1.0], [-1.0], [0.5]]), steps=3)
        return t.run(particles=1024)["loss"].value

    usual = loss_at("by hand")
    for how in ("bool", "stretched", "added", "infinite", "in two"):
        assert loss_at(how) == pytest.approx(usual, rel=1e-6), how
    with pytest.raises(pytorch.Refused, match="right before it"):
        loss_at("scaled behind")


def test_what_has_no_graph_is_refused():
    class Branch(Small):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x[:, :1]

    build = lambda n: (net := Branch(n), torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(pytorch.Refused, match="torch.export cannot trace"):
        text_of(build)
    for data, target, why in (
        (X * float("nan"), y, "X has entries"),
        (X, None, "y is one tensor"),
        ((X, X), y, "X is one tensor"),
    ):
        with pytest.raises(ValueError, match=why):
            pytorch.from_torch(lambda n: small(n), data, target)
    with pytest.raises(ValueError, match="schedule"):
        text_of(lambda n: small(n), steps=4, schedule=[1.0])


def test_mup_package():
    mup = pytest.importorskip("mup")

    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.a, self.b, self.o = nn.Linear(3, n), nn.Linear(n, n), mup.MuReadout(n, 1)

        def forward(self, x):
            return self.o(torch.tanh(self.b(torch.tanh(self.a(x)))))

    def build(optimiser):
        def at(n):
            net = Net(n)
            mup.set_base_shapes(net, Net(64), delta=Net(128))
            return net, optimiser(net.parameters(), lr=0.3)

        return at

    text = text_of(build(mup.MuSGD))
    assert "z3 = z2 / (n / 64)" in text
    assert "param b_weight : [n, n] ~ normal(0, 1 / (3 * n)), lr = 64" in text and "lr = 3 / 640" in text
    assert "param b_weight : [n, n] ~ normal(0, 1 / (3 * n)), lr = 64 / n" in text_of(build(mup.MuAdam))
    assert pytorch.lint(build(mup.MuSGD), X, y).good
    mistake = pytorch.lint(build(torch.optim.SGD), X, y)
    assert {f.parameter for f in mistake.findings} >= {"a.weight", "o.weight"}
