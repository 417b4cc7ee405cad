"""Networks in muP for the tests of from_torch and the figures of docs/pytorch.md; needs torch.

python torch_models.py graphs mlp_sgd ..      # writes graphs/*.json, the fixtures of test_torch_graphs.py
python torch_models.py against mlp_sgd ..     # trains networks with torch and sets them beside the limit
"""

import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))

POINTS = [[1, 0.5, -0.2], [-0.3, 1, 0.4], [0.7, -0.6, 0.9], [-1, -0.2, 0.3], [0.2, 0.8, -1.1], [0.5, -1.2, -0.6]]
TARGETS = [[1], [-0.5], [0.5], [-1], [0.8], [0.2]]
SIGNALS = [
    [[0, 0.7, 1, 0.7, 0, -0.7, -1, -0.7]],
    [[1, 0, -1, 0, 1, 0, -1, 0]],
    [[0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1, -0.2]],
]
SIGNAL_TARGETS = [[1], [-1], [0.5]]
TEXT = [0, 1, 2, 0, 1, 3, 0]


def initialise(module, n):
    """Standard deviation 1 / sqrt(inputs) of Linear and Conv1d, 1 of readouts, no biases."""
    for m in module.modules():
        if isinstance(m, (nn.Linear, nn.Conv1d)):
            nn.init.normal_(m.weight, std=m.weight[0].numel() ** -0.5 if len(m.weight) >= n // 8 else 1.0)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def optimiser(kind, module, n, eta):
    """muP: by how many axes grow with n, rates eta n and eta (SGD), eta and eta / n (Adam)."""
    groups = []
    for p in module.parameters():
        hidden = sum(size >= n // 8 for size in p.shape) == 2
        rate = {"sgd": eta if hidden else eta * n, "adam": eta / n if hidden else eta}[kind]
        groups.append({"params": [p], "lr": rate})
    return torch.optim.SGD(groups, lr=eta) if kind == "sgd" else torch.optim.Adam(groups, lr=eta, betas=(0.9, 0.99))


class MLP(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n
        self.fc1, self.fc2, self.readout = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 1, bias=False)
        initialise(self, n)

    def forward(self, x):
        return self.readout(torch.tanh(self.fc2(torch.tanh(self.fc1(x))))) / self.n


class Residual(nn.Module):
    """Two pre-LayerNorm blocks n -> 2 n -> n."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.embed = nn.Linear(3, n)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n)) for _ in range(2)
        )
        self.norm, self.readout = nn.LayerNorm(n), nn.Linear(n, 1, bias=False)
        initialise(self, n)

    def forward(self, x):
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(h)
        return self.readout(self.norm(h)) / self.n


class CNN(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n
        self.conv1, self.conv2 = nn.Conv1d(1, n, 3, padding=1), nn.Conv1d(n, n, 3, stride=2, padding=1)
        self.readout = nn.Linear(n, 1, bias=False)
        initialise(self, n)

    def forward(self, x):
        h = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return self.readout(h.mean(-1)) / self.n


class Attention(nn.Module):
    """Two heads, which grow with n; scores are divided by the width of a head, as muP has it."""

    def __init__(self, n, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)

    def forward(self, x):
        B, T, n = x.shape
        d = n // self.heads
        q, k, v = (a.view(B, T, self.heads, d).transpose(1, 2) for a in self.qkv(x).split(n, dim=2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / d)
        return self.proj(a.transpose(1, 2).reshape(B, T, n))


class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.ln1, self.attention = nn.LayerNorm(n), Attention(n)
        self.ln2, self.mlp = nn.LayerNorm(n), nn.Sequential(
            nn.Linear(n, 2 * n, bias=False), nn.GELU(), nn.Linear(2 * n, n, bias=False)
        )

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Decoder(nn.Module):
    """Two blocks; the embedding is the readout, too."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.token, self.position = nn.Embedding(4, n), nn.Embedding(6, n)
        self.blocks = nn.Sequential(Block(n), Block(n))
        self.norm, self.head = nn.LayerNorm(n), nn.Linear(n, 4, bias=False)
        initialise(self, n)
        self.head.weight = self.token.weight

    def forward(self, ids):
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x))) / self.n


class GroupedHeads(nn.Module):
    """Heads of 2 coordinates, n / 2 of them, two to each key; rotary positions, RMSNorm, a gated layer."""

    def __init__(self, n, d=2, positions=6):
        super().__init__()
        self.n, self.d = n, d
        self.token = nn.Embedding(4, n)
        self.q, self.k, self.v = nn.Linear(n, n, bias=False), *(nn.Linear(n, n // 2, bias=False) for _ in range(2))
        self.proj, self.gate, self.up, self.down = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.norms, self.readout = nn.ModuleList(nn.RMSNorm(n) for _ in range(3)), nn.Linear(n, 4, bias=False)
        angles = torch.outer(torch.arange(positions), 100.0 ** -torch.arange(0, 1, 2 / d)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        initialise(self, n)

    def rotated(self, x):
        a, b = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-b, a], dim=-1) * self.sin

    def forward(self, ids):
        x = self.token(ids)
        z = self.norms[0](x)
        q, k, v = (m(z).unflatten(-1, (-1, self.d)).transpose(1, 2) for m in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True, enable_gqa=True)
        x = x + self.proj(a.transpose(1, 2).flatten(2))
        z = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(z)) * self.up(z))
        return self.readout(self.norms[2](x)) / self.n


class Recurrent(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.n = n
        self.lstm, self.readout = nn.LSTM(1, n, batch_first=True), nn.Linear(n, 1, bias=False)
        for p in self.lstm.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)
            else:
                nn.init.zeros_(p)
        initialise(self, n)

    def forward(self, x):
        return self.readout(self.lstm(x.transpose(1, 2))[0][:, -1]) / self.n


class Normed(nn.Module):
    """Convolutions with batch statistics and groups of channels; what is added is smoothed."""

    def __init__(self, n):
        super().__init__()
        self.n = n
        self.conv1, self.conv2 = nn.Conv1d(1, n, 3, padding="same"), nn.Conv1d(n, n, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm1d(n), nn.GroupNorm(2, n)
        self.readout = nn.Linear(n, 1, bias=False)
        self.register_buffer("smooth", torch.softmax(-torch.arange(8).sub(torch.arange(8)[:, None]).abs().float(), 0))
        initialise(self, n)

    def forward(self, x):
        h = self.norm1(self.conv1(x))
        h.relu_()
        h = h + torch.einsum("bcs,st->bct", F.silu(self.norm2(self.conv2(h))), self.smooth)
        return self.readout(h.mean(-1)) / self.n


def next_letter(out, y):
    return F.cross_entropy(out.view(-1, out.size(-1)), y.view(-1))


def both(make, eta_sgd, eta_adam):
    def build(kind, eta):
        def at(n):
            module = make(n)
            return module, optimiser(kind, module, n, eta)

        return at

    return build("sgd", eta_sgd), build("adam", eta_adam)


# name -> build, X, y, loss, steps
MODELS = {}
for name, make, rates, X, y, loss, steps in (
    ("mlp", MLP, (0.3, 0.02), POINTS, TARGETS, "mse", 8),
    ("residual", Residual, (0.05, 0.01), POINTS, TARGETS, "mse", 6),
    ("cnn", CNN, (0.5, 0.02), SIGNALS, SIGNAL_TARGETS, "mse", 6),
    ("decoder", Decoder, (0.2, 0.02), [TEXT[:-1]], [TEXT[1:]], next_letter, 4),
    ("grouped_heads", GroupedHeads, (0.2, 0.02), [TEXT[:-1]], [TEXT[1:]], next_letter, 4),
    ("lstm", Recurrent, (1.0, 0.02), SIGNALS, SIGNAL_TARGETS, "mse", 6),
    ("normed", Normed, (0.2, 0.01), SIGNALS, SIGNAL_TARGETS, "mse", 6),
):
    X, y = torch.tensor(X), torch.tensor(y)
    if loss == "mse":
        X, y = X.float(), y.float()
    for kind, build in zip(("sgd", "adam"), both(make, *rates)):
        MODELS[f"{name}_{kind}"] = (build, X, y, loss, steps)


def translated(name, steps=None):
    from tplimit import pytorch

    build, X, y, loss, own = MODELS[name]
    return pytorch.from_torch(build, X, y, loss=loss, steps=steps or own, name=name)


def write_graphs(names):
    for name in names:
        translated(name).save_graph(os.path.join(HERE, "graphs", f"{name}.json"))
        print(name)


# Else 8192: minutes for Adam, which reveals more directions than SGD.
PARTICLES = {"decoder_adam": 512, "grouped_heads_sgd": 2048, "grouped_heads_adam": 1024, "normed_adam": 2048}


def against(name, widths=(64, 256, 1024), seeds=8, particles=4096, folder="against"):
    """Deviations of torch's networks from the limit, and what `tplimit compare` says of them."""
    import json

    from losses import print_losses
    from tplimit import pytorch

    build, X, y, loss, steps = MODELS[name]
    with open(os.path.join(HERE, "graphs", f"{name}.json")) as f:
        t = pytorch.Translation(json.load(f), steps=steps, name=name)
    t.save(folder)
    torch.set_num_threads(1)
    files = pytorch.train(build, X, y, loss, steps, widths, seeds, os.path.join(folder, name))
    print_losses(name, t, files, steps, particles)


if __name__ == "__main__":
    if sys.argv[1] == "graphs":
        write_graphs(sys.argv[2:] or MODELS)
    else:
        for name in sys.argv[2:] or [n for n in MODELS if n.startswith(("mlp", "residual", "cnn", "decoder"))]:
            against(name, particles=PARTICLES.get(name, 8192))
