"""Numbers of networks as they train, in the archives that `tplimit compare FILE --against` reads."""

import contextlib
import os

import numpy as np


def measure(folder="."):
    """A recorder: one archive a width, WIDTH.npz, with `width` and for each report an array [seed, ..].

    runs = tplimit.measure("runs")
    for width in (64, 256, 1024):
        for seed in range(8):
            torch.manual_seed(seed)
            module, optimiser = build(width)
            with runs.network(width, seed) as record:
                for t in range(10):
                    out = module(X); loss = ..
                    record(loss = loss, out = out)     # a series: one entry a call
                    ..
                record.once(final_loss = ..)           # a single value
    """
    return Recorder(folder)


class Recorder:
    def __init__(self, folder):
        self.folder = folder
        self.runs = {}  # width -> {seed: {name: array}}

    @contextlib.contextmanager
    def network(self, width, seed=None):
        """Records one network; kept, and the archive of its width written, when the block ends without an error."""
        record = _Network()
        yield record
        seeds = self.runs.setdefault(int(width), {})
        seed = len(seeds) if seed is None else seed
        if seed in seeds:
            raise ValueError(f"seed {seed} of width {width} was recorded before")
        found = record.arrays()
        for other in list(seeds.values())[:1]:
            for name in found.keys() | other.keys():
                if name not in found or name not in other or found[name].shape != other[name].shape:
                    raise ValueError(
                        f"'{name}' has another shape, or is missing, in the other networks of width {width}"
                    )
        seeds[seed] = found
        self.write(int(width))

    @property
    def files(self):
        return [os.path.join(self.folder, f"{w}.npz") for w in sorted(self.runs)]

    def write(self, width):
        """As a whole or not at all."""
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, f"{width}.npz")
        seeds = self.runs[width]
        first = next(iter(seeds.values()))
        arrays = {name: np.stack([run[name] for run in seeds.values()]) for name in first}
        with open(path + ".part", "wb") as f:
            np.savez(f, width=width, **arrays)
        os.replace(path + ".part", path)


class _Network:
    def __init__(self):
        self.series, self.single = {}, {}

    def __call__(self, **values):
        for name, value in values.items():
            self.series.setdefault(name, []).append(_array(value))

    def once(self, **values):
        for name, value in values.items():
            if name in self.single:
                raise ValueError(f"'{name}' was recorded before")
            self.single[name] = _array(value)

    def arrays(self):
        both = self.series.keys() & self.single.keys() | ({"width"} & (self.series.keys() | self.single.keys()))
        if both:
            raise ValueError(f"names that cannot be used, or twice: {', '.join(sorted(both))}")
        return {name: np.stack(values) for name, values in self.series.items()} | self.single


def _array(value):
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    array = np.array(value, dtype=float)  # a copy
    if array.size > 1_000_000:
        raise ValueError("an array of over a million numbers is no report")
    return array
