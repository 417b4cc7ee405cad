"""The loss of networks of several widths beside that of the limit, as a table."""

import numpy as np


def print_losses(name, translation, files, steps, particles):
    """`files`: the networks' runs, one a width, which `tplimit compare` sets beside the limit of `translation`."""
    options = [word for file in files for word in ("--against", file)]
    _, compared, printed, messages = translation.tool("compare", "--particles", particles, *options)
    assert compared, messages
    limit = {r["name"]: r for r in compared["reports"]}
    value, error = np.array(limit["loss"]["value"]), np.array(limit["loss"]["stderr"])
    outs = np.array(limit["out"]["value"])
    print(f"{name}: loss at t = 0, {steps // 2}, {steps - 1}; rms deviation of out", messages[:200])
    at = [0, steps // 2, steps - 1]
    for file in files:
        runs = np.load(file)
        mean, sem = runs["loss"].mean(0), runs["loss"].std(0, ddof=1) / len(runs["loss"]) ** 0.5
        rms = np.sqrt(((runs["out"] - outs) ** 2).mean())
        row = "  ".join(f"{mean[i]:.5f} +- {sem[i]:.5f}" for i in at)
        print(f"  {int(runs['width']):5d}  {row}  rms {rms:.5f}", flush=True)
    print("  limit  " + "  ".join(f"{value[i]:.5f} +- {error[i] or 0:.5f}" for i in at), flush=True)
    print(*("  " + line for line in printed.splitlines() if line.startswith("overall:")), sep="\n", flush=True)
