"""The loss of networks of several widths beside that of the limit, as a table."""

import warnings

import numpy as np


def print_losses(name, translation, files, steps, particles):
    """`files`: the networks' runs, one a width, which are set beside the limit of `translation`."""
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        compared = translation.compare(particles=particles, against=files, progress=False)
    value, error, outs = compared["loss"].value, compared["loss"].stderr, compared["out"].value
    print(
        f"{name}: loss at t = 0, {steps // 2}, {steps - 1}; rms deviation of out",
        *(str(w.message)[:200] for w in messages),
    )
    at = [0, steps // 2, steps - 1]
    for file in files:
        runs = np.load(file)
        mean, sem = runs["loss"].mean(0), runs["loss"].std(0, ddof=1) / len(runs["loss"]) ** 0.5
        rms = np.sqrt(((runs["out"] - outs) ** 2).mean())
        row = "  ".join(f"{mean[i]:.5f} +- {sem[i]:.5f}" for i in at)
        print(f"  {int(runs['width']):5d}  {row}  rms {rms:.5f}", flush=True)
    print("  limit  " + "  ".join(f"{value[i]:.5f} +- {error[i]:.5f}" for i in at), flush=True)
    print(f"  overall: {compared.verdict}", flush=True)
