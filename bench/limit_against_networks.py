"""Error against seconds: the limit engine beside the best that networks of the same cost give (their means at two widths, extrapolated in 1/n).

python3 bench/limit_against_networks.py [--tplimit build/release/tplimit] [--quick]: prints a table, and writes docs/performance/limit_against_networks.svg if
matplotlib is there.  Errors are standard errors of the last report, root mean square over its entries.  Networks are measured once and scaled: their error falls
like seconds^-1/2.  Wall-clock seconds of one machine, otherwise idle.
"""
import argparse
import json
import math
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "bench" / "programs"
# name, program, options, samples a step times steps
CASES = [
    ("worked example", "worked_example", [], 40),
    ("minibatches, sgd", "minibatch_sgd", ["--set", "T=8"], 256),
    ("minibatches, sgd", "minibatch_sgd", ["--set", "T=64"], 2048),
    ("minibatches, sgd", "minibatch_sgd", ["--set", "T=496"], 15872),
    ("minibatches, adam", "minibatch_adam", ["--set", "T=64"], 2048),
]
WIDTHS, SEEDS = (512, 1024), 8


def flat(x):
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def rms(x):
    return math.sqrt(sum(v * v for v in x) / len(x))


def run(tplimit, command, program, *options):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run([tplimit, command, PROGRAMS / f"{program}.tp", "--quiet", "--out", out.name, *map(str, options)], check=False, capture_output=True)
        result = json.load(open(out.name))
    last = result["reports"][-1]
    return result["time_s"], flat(last["value"]), flat(last["stderr"])


def networks(tplimit, program, options, seeds):
    """Seconds and standard errors of 2 f(2n) - f(n)."""
    (t1, _, e1), (t2, _, e2) = (run(tplimit, "simulate", program, "--width", w, "--seeds", seeds, *options) for w in WIDTHS)
    return t1 + t2, rms([math.hypot(2 * b, a) for a, b in zip(e1, e2)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tplimit", default=ROOT / "build" / "release" / "tplimit")
    parser.add_argument("--quick", action="store_true", help="without the longest")
    args = parser.parse_args()
    rows = []
    for name, program, options, size in CASES:
        if args.quick and size > 10000:
            continue
        seconds, error = networks(args.tplimit, program, options, SEEDS)
        for particles in (512, 1024, 2048) if size < 10000 else (512, 1024):
            t, _, e = run(args.tplimit, "run", program, "--engine", "particles", "--particles", particles, *options)
            same = error * math.sqrt(seconds / t)
            rows.append((name, size, particles, t, rms(e), same))
            print(f"| {name} | {size:,} | {particles:,} | {t:.2f} | {rms(e):.1e} | {same:.1e} | {same / rms(e):.1f} |", flush=True)
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return
    figure, axes = plt.subplots(figsize=(7, 4))
    for k, (name, size) in enumerate(sorted({(r[0], r[1]) for r in rows}, key=lambda x: x[1])):
        own = [r for r in rows if (r[0], r[1]) == (name, size)]
        axes.loglog([r[3] for r in own], [r[4] for r in own], "o-", color=f"C{k}", label=f"{name}, {size:,}")
        axes.loglog([r[3] for r in own], [r[5] for r in own], "s--", color=f"C{k}", mfc="none")
    axes.set_xlabel("seconds")
    axes.set_ylabel("standard error of the last report")
    axes.legend(title="full: limit; dashed: networks", fontsize=7, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "performance" / "limit_against_networks.svg")


if __name__ == "__main__":
    main()
