"""Cost where it once grew faster than theory says it must: user seconds and memory of whole commands.

    python3 bench/cliffs.py [--binary build/release/tplimit] [--before OTHER/tplimit] [--only NAME ..]

With --before, both binaries run each command in turn, and the table has both.  A command that takes more than
--limit seconds is stopped.  Prints a table for docs/performance.md.
"""
import argparse
import os
import pathlib
import signal
import subprocess
import threading

FOLDER = pathlib.Path(__file__).resolve().parent / "cliffs"

# What is measured, the program, the command.
CASES = [
    ("check: residual net, 64 blocks, 10 steps", "residual_check", ["check"]),
    ("check: 12 blocks of attention and MLP, 3 steps", "attention_check", ["check"]),
    ("kernel regime: 64 inputs, 100 steps", "kernel_regime", ["run"]),
    ("linear residual net: 32 blocks, 11 steps", "linear_residual", ["run"]),
    ("NNGP, NTK: relu, 10 layers, 2,000 inputs", "relu_2000", ["run", "--memory", "20G"]),
    ("NNGP, NTK: erf, 3 layers, 2,000 inputs", "erf_2000", ["run", "--memory", "20G"]),
    ("NNGP, NTK: relu, 100 against 20,000 inputs", "rectangle", ["run", "--memory", "20G"]),
    ("NNGP, NTK: relu, 250 layers, 8 inputs", "relu_deep", ["run", "--set", "L=249"]),
    ("NNGP, NTK: relu, 1,000 layers, 8 inputs", "relu_deep", ["run"]),
    ("NNGP, NTK: tanh, 3 layers, 20 inputs", "tanh", ["run"]),
    ("NNGP, NTK: elu, 3 layers, 20 inputs", "elu", ["run"]),
    ("NNGP, NTK: clip, 3 layers, 20 inputs", "clip", ["run"]),
    ("NNGP, NTK: relu times tanh, 3 layers, 20 inputs", "kinked_product", ["run"]),
    ("NNGP, NTK: residual net of relu, erf, tanh, 8 inputs", "residual_mixed", ["run"]),
    ("prediction: relu NTK, 500 and 500 inputs", "predict", ["run"]),
    ("gated units from rows of one array", "gated", ["run"]),
    ("check: transformer, 12 layers, 16 positions, 50 steps", "transformer", ["check"]),
    ("particles: residual net, 16 blocks, 5 steps", "residual", ["run", "--engine", "particles"]),
    ("particles: the same, not residual", "deep_plain", ["run", "--engine", "particles"]),
    ("particles: decoder, 2 blocks, 2 steps", "decoder", ["run", "--engine", "particles"]),
    ("the same, engine chosen", "decoder", ["run"]),
    ("GAN, batches of 3 and 2, 6 rounds, particles", "gan", ["run", "--engine", "particles"]),
    ("the same, engine chosen", "gan", ["run"]),
    ("training, 10 steps", "lazy_training", ["run", "--particles", "4096"]),
    ("the same with --lazy", "lazy_training", ["run", "--particles", "4096", "--lazy"]),
]


def measure(binary, program, words, limit):
    """User seconds and megabytes of one command; its exit code (negative: stopped)."""
    command = [binary, words[0], str(FOLDER / f"{program}.tp"), *words[1:]]
    if words[0] == "run":
        command += ["--quiet", "--out", os.devnull]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timer = threading.Timer(limit, lambda: child.send_signal(signal.SIGKILL))
    timer.start()
    _, status, usage = os.wait4(child.pid, 0)
    timer.cancel()
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode


def cell(result):
    seconds, megabytes, code = result
    if code < 0:
        return f"> {seconds:.0f}, stopped", f"{megabytes:.0f}"
    return (f"{seconds:.3g}" if code in (0, 3, 6, 7) else f"exit {code}"), f"{megabytes:.0f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="build/release/tplimit")
    parser.add_argument("--before")
    parser.add_argument("--only", nargs="+", help="names of programs")
    parser.add_argument("--limit", type=float, default=100)
    args = parser.parse_args()
    both = [args.before, args.binary] if args.before else [args.binary]
    head = ["command", *(f"{name}{unit}" for name in (("before, ", "now, ") if args.before else ("",)) for unit in ("CPU s", "MB"))]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, program, words in CASES:
        if args.only and program not in args.only:
            continue
        cells = [c for binary in both for c in cell(measure(binary, program, words, args.limit))]
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
