#!/usr/bin/env python3
"""Trains networks in PyTorch, written from the mathematics of programs/architectures and not from
tplimit, and writes the means over networks of what the programs report to networks.json.

  pip install torch numpy; ./networks.py [--networks 256] [--width 1024] [NAME..]

muP by hand, every parameter with its own rate: input weights N(0, s), rate lr n; hidden weights
N(0, s / n), rate lr; readout weights N(0, s) divided by n in the forward pass, rate lr n."""
import argparse
import csv
import json
import math
import pathlib

import torch
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def normal(variance, *shape):
    return (math.sqrt(variance) * torch.randn(*shape)).requires_grad_()


def sgd(groups):
    return torch.optim.SGD([{'params': p, 'lr': rate} for p, rate in groups], lr=0)


def decoder(n):
    text = torch.tensor([0, 1, 2, 0, 1, 3, 0])
    S, lr = 6, 0.5
    em, pos = normal(1, 4, n), normal(1, S, n)
    q, k, v, b = (normal(1 / n, n, n) for _ in range(4))
    a = normal(2 / n, n, n)
    optimiser = sgd([([em, pos], lr * n), ([q, k, v, a, b], lr)])

    def norm(z):
        return F.layer_norm(z, (n,), eps=1e-5)

    def logits(ids):
        z = em[ids] + pos
        h = norm(z)
        # 1 / n instead of 1 / sqrt(n)
        z = z + F.scaled_dot_product_attention((h @ q.T)[None], (h @ k.T)[None], (h @ v.T)[None],
                                               is_causal=True, scale=1 / n)[0]
        z = z + F.gelu(norm(z) @ a.T) @ b.T
        return norm(z) @ em.T / n

    losses = []
    for _ in range(5):
        loss = F.cross_entropy(logits(text[:S]), text[1:])
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        out = logits(text[:S])
        return {'loss': torch.stack(losses), 'final_loss': F.cross_entropy(out, text[1:])[None],
                'next': out[-1].softmax(0)}


def lstm(n):
    x = torch.tensor([[1, 0.5, -1], [-0.3, 1, 0.4], [0.7, -0.6, 0.1]])
    y, lr, bound = x[:, 0], 2, 1
    net = nn.LSTM(1, n, batch_first=True)
    with torch.no_grad():
        net.weight_ih_l0.normal_()
        net.weight_hh_l0.normal_(std=n**-0.5)
        net.bias_hh_l0.zero_()
        net.bias_ih_l0.zero_()
        net.bias_ih_l0[n:2 * n] = 1  # PyTorch's order: input, forget, candidate, output
    net.bias_ih_l0.requires_grad_(False)
    net.bias_hh_l0.requires_grad_(False)
    v = normal(1, n)
    optimiser = sgd([([net.weight_ih_l0, v], lr * n), ([net.weight_hh_l0], lr)])
    losses, outs = [], []
    for t in range(5):
        out = net(x[..., None])[1][0][0] @ v / n
        loss = ((out - y)**2).mean() / 2
        losses.append(loss.detach())
        outs.append(out.detach())
        if t == 4:
            break
        optimiser.zero_grad()
        loss.backward()
        trained = [net.weight_ih_l0, net.weight_hh_l0, v]
        size = torch.sqrt(sum((p.grad**2).sum() for p in trained))
        for p in trained:
            p.grad *= min(1.0, bound / size)
        optimiser.step()
    return {'loss': torch.stack(losses[:4]), 'out': torch.stack(outs[:4]).flatten(),
            'final_loss': losses[4][None]}


def cnn_1d(n):
    P, lr = 8, 1
    t = 2 * math.pi * torch.arange(P) / P
    x = torch.stack([t.sin(), t.cos(), (3 * t).sin(), (3 * t).cos()])[:, None]
    y = torch.tensor([1., 1, -1, -1])
    k1, k2, v = normal(1 / 3, n, 1, 3), normal(1 / (3 * n), n, n, 3), normal(1, n)
    optimiser = sgd([([k1, v], lr * n), ([k2], lr)])
    losses, outs = [], []
    for step in range(5):
        z = F.relu(F.conv1d(F.pad(x, (1, 1), mode='circular'), k1))
        z = F.relu(F.conv1d(F.pad(z, (1, 1), mode='circular'), k2, stride=2))
        out = z.mean(2) @ v / n
        loss = F.softplus(-y * out).mean()
        losses.append(loss.detach())
        outs.append(out.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = (torch.sign(outs[4]) == y).double().mean()
    return {'loss': torch.stack(losses[:4]), 'out': torch.stack(outs[:4]).flatten(),
            'final_loss': losses[4][None], 'right': right[None]}


def cnn_2d(n):
    lr = 1
    with open(ROOT / 'programs/data/digits8x8.csv', newline='') as f:
        rows = list(csv.DictReader(f))[:3]
    y = torch.tensor([float(r.pop('target')) for r in rows])
    y = (y - y.mean()) / y.std(unbiased=False)
    x = torch.tensor([[float(u) for u in r.values()] for r in rows]).reshape(3, 1, 8, 8) / 16
    k1, k2, v = normal(2 / 9, n, 1, 3, 3), normal(2 / (4 * n), n, n, 2, 2), normal(1, n)
    optimiser = sgd([([k1, v], lr * n), ([k2], lr)])
    losses = []
    for _ in range(4):
        z = F.avg_pool2d(F.relu(F.conv2d(x, k1)), 2)
        z = F.relu(F.conv2d(z, k2))
        loss = ((z.mean((2, 3)) @ v / n - y)**2).mean() / 2
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {'loss': torch.stack(losses[:3]), 'final_loss': losses[3][None]}


NETWORKS = {'decoder': decoder, 'lstm': lstm, 'cnn_1d': cnn_1d, 'cnn_2d': cnn_2d}


def main():
    arguments = argparse.ArgumentParser(description=__doc__,
                                        formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('--networks', type=int, default=256)
    arguments.add_argument('--width', type=int, default=1024)
    arguments.add_argument('--out', type=pathlib.Path, default=HERE / 'networks.json')
    arguments.add_argument('names', nargs='*', default=list(NETWORKS), metavar='NAME')
    given = arguments.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    found = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.names:
        torch.manual_seed(1 + list(NETWORKS).index(name))
        runs = [NETWORKS[name](given.width) for _ in range(given.networks)]
        reports = {}
        for report in runs[0]:
            values = torch.stack([r[report] for r in runs])
            error = values.std(0) / math.sqrt(given.networks)
            reports[report] = {'mean': values.mean(0).tolist(), 'error': error.tolist()}
        found[name] = {'width': given.width, 'networks': given.networks, 'reports': reports}
        given.out.write_text(json.dumps(found, indent=1) + '\n')
        print(name, json.dumps(reports))


if __name__ == '__main__':
    main()
