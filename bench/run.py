"""Runs the benchmarks and keeps what they measured as JSON: scripts/bench [--quick] [--only PART] [--report].

Parts: kernels (Google Benchmark), accuracy (error against seconds), efficiency (share of the peak end to end), growth (seconds per step).
Records go to bench/records/<machine>/<part>.json, those of --quick to the build folder, where they replace nothing.
"""
import argparse
import datetime
import json
import math
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "bench" / "programs"


# ---- the machine ------------------------------------------------------------------------------------

def output_of(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def cpu_model():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    match = re.search(r"^(?:model name|Processor|cpu)\s*:\s*(.*)$", text, re.M)
    return match.group(1).strip() if match else os.uname().machine


def vector_units():
    flags = set(re.search(r"^flags\s*:\s*(.*)$", pathlib.Path("/proc/cpuinfo").read_text() + "\nflags :", re.M).group(1).split())
    return next((name for name in ("avx512f", "avx2", "sse2") if name in flags), "none known")


def machine_name():
    return f"{re.sub('[^a-z0-9]+', '-', cpu_model().lower()).strip('-')}-{os.cpu_count()}-cores"


def describe(build):
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.M))
    native = " -march=native" if cache.get("TPLIMIT_NATIVE") == "ON" else ""
    caches = [int(path.read_text().strip().rstrip("K")) for path in pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return {
        "cpu": cpu_model(), "vector_units": vector_units(), "cores": os.cpu_count(),
        "last_level_cache_bytes": 1024 * max(caches, default=0),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "compiler": output_of(cache["CMAKE_CXX_COMPILER"], "--version").splitlines()[0],
        "flags": f"{cache['CMAKE_CXX_FLAGS_RELEASE']}{native} -ffp-contract=off",
        "commit": output_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
        "date": datetime.date.today().isoformat(),
        "load_at_start": round(os.getloadavg()[0], 1),
    }


# ---- parts: each returns what it measured -----------------------------------------------------------

class Suite:
    def __init__(self, build, quick):
        self.build, self.quick = build, quick
        self.scratch = tempfile.TemporaryDirectory()

    def tplimit(self, command, program, *options):
        """JSON of a run; cpu_s is added: seconds of all its threads."""
        out = pathlib.Path(self.scratch.name) / "out.json"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = [self.build / "tplimit", command, PROGRAMS / f"{program}.tp", "--quiet", "--out", out, *map(str, options)]
        done = subprocess.run(words)
        if done.returncode not in (0, 3):
            sys.exit(f"{' '.join(map(str, words))}: exit code {done.returncode}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = json.loads(out.read_text())
        result["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"  {command} {program} {' '.join(map(str, options))}: {result['time_s']:.3g} s", flush=True)
        return result

    def kernels(self, names="."):
        """Medians over repetitions.  Repetitions of all benchmarks are interleaved, so that a busy minute spoils none of them."""
        out = pathlib.Path(self.scratch.name) / "kernels.json"
        repetitions = 3 if self.quick else 7
        subprocess.run([self.build / "bench" / "tplimit_bench", f"--benchmark_filter={names}", f"--benchmark_out={out}",
                        f"--benchmark_repetitions={repetitions}", f"--benchmark_min_time={0.01 if self.quick else 0.05}",
                        "--benchmark_enable_random_interleaving=true", "--benchmark_report_aggregates_only=true"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        kept = {}
        for row in sorted(json.loads(out.read_text())["benchmarks"], key=lambda row: row["family_index"]):
            if row.get("error_occurred"):
                sys.exit(f"{row['name']}: {row['error_message']}")
            entry = kept.setdefault(row["run_name"].removeprefix("BM_").removesuffix("/real_time"), {})
            scale = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}[row["time_unit"]]
            if row["aggregate_name"] == "median":
                entry["cpu_s"] = row["cpu_time"] * scale
                entry["wall_s"] = row["real_time"] * scale
                entry.update({f"{k}_per_s": row[k] for k in ("flops", "bytes", "items") if k in row})
            elif row["aggregate_name"] == "cv":
                entry["spread"] = row["cpu_time"]  # standard deviation of the repetitions over their mean
        return {"repetitions": repetitions, "benchmarks": {name: {k: rounded(v) for k, v in e.items()} for name, e in kept.items()}}

    def accuracy(self):
        """rms deviation from a far more accurate run, over outputs and seeds, of the limit engine and of single finite networks."""
        # Particles and networks, each with its number of seeds.
        particles = {2**10: 8, 2**12: 8, 2**14: 4} if self.quick else {2**10: 16, 2**12: 16, 2**14: 8, 2**16: 4, 2**18: 3}
        widths = {64: 16, 256: 16, 1024: 16, 4096: 8} if self.quick else {64: 64, 256: 64, 1024: 32, 4096: 32, 16384: 16, 65536: 16}
        out = {}
        for program in ("worked_example", "relu"):
            # Four times the particles of the largest run, and a seed that no other run has.
            reference = self.tplimit("run", program, "--particles", 4 * max(particles), "--seed", 1000)
            values, errors = outputs(reference)
            limit = []
            for count, seeds in particles.items():
                runs = [self.tplimit("run", program, "--particles", count, "--seed", s) for s in range(seeds)]
                limit.append({"particles": count, "seeds": seeds, "seconds": statistics.median(r["time_s"] for r in runs),
                              "cpu_s": statistics.median(r["cpu_s"] for r in runs),
                              "rms_error": rms(v - w for r in runs for v, w in zip(outputs(r)[0], values)),
                              "own_standard_error": rms(e for r in runs for e in outputs(r)[1])})
            networks = []
            for width, seeds in widths.items():
                run = self.tplimit("simulate", program, "--width", width, "--seeds", seeds)
                networks.append({"width": width, "seeds": seeds, "matrices": run["engine"]["matrices"], "seconds": run["time_s"] / seeds,
                                 "rms_deviation": rms(v - w for one in run["reports"][-1]["runs"] for v, w in zip(flat(one), values))})
            # A network deviates by s / sqrt(n); s from the widths at which that holds.
            s = rms(math.sqrt(n["width"]) * n["rms_deviation"] for n in networks if n["width"] >= 256)
            for row in limit:
                row["equivalent_width"] = (s / row["rms_error"]) ** 2
            out[program] = {"reference": {"particles": reference["engine"]["particles"], "randomisations": reference["engine"]["randomisations"], "seconds": reference["time_s"],
                                          "values": values, "standard_error": rms(errors)},
                            "deviation_times_root_width": s, "limit": limit, "networks": networks}
        return out

    def efficiency(self):
        """Floating-point operations in products over time, whole runs, beside the peaks of the same minutes."""
        settings = {"p16": ["--set", f"T={8 if self.quick else 30}", "--particles", 16384, "--randomisations", 2],
                    "deep_tanh": ["--set", f"T={20 if self.quick else 100}", "--tol", 1e-2],
                    "worked_example": ["--particles", 16384 if self.quick else 65536]}
        before, rows = self.kernels("BM_Peak")["benchmarks"], []
        for program, options in settings.items():
            run = self.tplimit("run", program, *options)
            engine = run["engine"]
            rows.append({"program": program, "options": " ".join(map(str, options)), "seconds": run["time_s"], "cpu_s": run["cpu_s"],
                         "product_flops": engine["product_flops"], "particles": engine["particles"], "randomisations": engine["randomisations"],
                         "largest_rank": engine["largest_rank"], "largest_error": engine["largest_error"], "peak_memory_bytes": run["peak_memory_bytes"]})
        after = self.kernels("BM_Peak")["benchmarks"]
        peaks = {name: max(before[name]["flops_per_s"], after[name]["flops_per_s"]) for name in before if "flops_per_s" in before[name]}
        return {"peaks_flops_per_s": peaks, "runs": rows}

    def growth(self):
        """Seconds per step early and late in long training.  Particles and rank tolerance are those that --tol 1e-3 chooses."""
        early, late, half = (50, 300, 25) if self.quick else (50, 1000, 50)
        chosen = self.tplimit("run", "growth", "--set", f"T={late}", "--tol", 1e-3)
        engine = chosen["engine"]
        fixed = ["--particles", engine["particles"], "--rank-tol", engine["rank_tol"], "--randomisations", 2]
        rows = []
        for step, reach in ((early, 25), (late, half)):
            # The faster of two: a difference of long runs shows what else the machine did.
            runs = [min((self.tplimit("run", "growth", "--set", f"T={t}", *fixed) for _ in range(2)), key=lambda run: run["cpu_s"])
                    for t in (step - reach, step + reach)]
            rows.append({"step": step, "cpu_s_per_step": (runs[1]["cpu_s"] - runs[0]["cpu_s"]) / (2 * reach),
                         "seconds_per_step": (runs[1]["time_s"] - runs[0]["time_s"]) / (2 * reach), "largest_rank": runs[1]["engine"]["largest_rank"]})
        return {"tol": 1e-3, "whole_run": {"steps": late, "seconds": chosen["time_s"], "largest_error": engine["largest_error"]},
                "particles": engine["particles"], "rank_tol": engine["rank_tol"], "randomisations": 2, "steps": rows}


def rounded(x):
    """Four digits: more are noise."""
    return float(f"{x:.4g}")


def flat(x):
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def outputs(run):
    """Values and standard errors of the last report."""
    report = run["reports"][-1]
    return flat(report["value"]), flat(report["stderr"])


def rms(numbers):
    numbers = list(numbers)
    return math.sqrt(sum(x * x for x in numbers) / len(numbers))


# ---- command line -----------------------------------------------------------------------------------

PARTS = ("kernels", "accuracy", "efficiency", "growth")


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute or two in all: shorter runs, wider error bars")
    parser.add_argument("--only", choices=PARTS, action="append", metavar="NAME", help=f"one part, may be repeated: {', '.join(PARTS)}")
    parser.add_argument("--report", action="store_true", help="measures nothing; writes docs/performance.md from the records")
    parser.add_argument("--machine", default=machine_name(), help="name of the records' folder (default: %(default)s)")
    args = parser.parse_args()
    build = ROOT / "build" / "bench"
    records = (build / "records" if args.quick else ROOT / "bench" / "records") / args.machine
    if not args.report:
        records.mkdir(parents=True, exist_ok=True)
        suite, machine = Suite(build, args.quick), describe(build)
        for part in args.only or PARTS:
            print(part, flush=True)
            start = time.monotonic()
            measured = getattr(suite, part)()
            seconds = round(time.monotonic() - start)
            (records / f"{part}.json").write_text(json.dumps({"machine": machine, "quick": args.quick, "seconds": seconds, "measured": measured}, indent=1) + "\n")
            print(f"  {seconds} s", flush=True)
    import report  # needs matplotlib, which a measurement does not
    if args.quick:
        report.show(records)
    else:
        report.write(records, ROOT / "docs")


if __name__ == "__main__":
    main()
