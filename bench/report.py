"""Tables and plots of docs/performance.md from the records of bench/run.py."""
import json
import math
import re

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "tplimit", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402  (after the backend is chosen)

TITLES = {"worked_example": "tanh, 3 hidden layers, 9 steps", "relu": "relu, 2 hidden layers, 8 steps",
          "p16": "p16: tanh, 3 hidden layers, P = 16", "deep_tanh": "deep_tanh: tanh, 3 hidden layers, P = 10, 25 inputs"}
OWN, OTHERS = "#c2410c", {"eigen": "#94a3b8", "openblas": "#475569"}
NAMES = {"tplimit": "tplimit", "eigen": "Eigen", "openblas": "OpenBLAS", "sleef": "SLEEF", "std": "C++ library"}


# ---- numbers as text --------------------------------------------------------------------------------

def digits(x, n=2):
    return "-" if x is None else f"{float(f'{x:.{n}g}'):,.{max(0, n - 1 - math.floor(math.log10(abs(x))))}f}" if x else "0"


def percent(x):
    return f"{100 * x:.0f} %"


def binary(n):
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return str(n)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


# ---- tables: each from one record -------------------------------------------------------------------

class Kernels:
    """Rates of one run, and what the machine can do."""

    def __init__(self, measured):
        self.of = measured["benchmarks"]
        self.peak = {"double": self.of["Peak/dgemm/threads:1"]["flops_per_s"], "float": self.of["Peak/sgemm/threads:1"]["flops_per_s"]}
        self.bandwidth = self.of["Peak/read"]["bytes_per_s"]

    def share(self, name):
        """Of the measured peak of one core in the type that the name holds."""
        return self.of[name]["flops_per_s"] / self.peak[name.split("/")[1]]

    def bound(self, name):
        """The share that main memory allows: bandwidth times operations per byte."""
        entry = self.of[name]
        return min(1, self.bandwidth * entry["flops_per_s"] / entry["bytes_per_s"] / self.peak[name.split("/")[1]])

    def cases(self, family, kind):
        found = [re.fullmatch(rf"{family}/{kind}/(.*)/tplimit", name) for name in self.of]
        return sorted((match.group(1) for match in found if match), key=lambda case: [int(n) for n in re.findall(r"\d+", case)])


def machine_table(loaded):
    machine = loaded["kernels"]["machine"]
    versions = {part: f"{record['machine']['commit']}, {record['machine']['date']}" for part, record in loaded.items()}
    same = len(set(versions.values())) == 1
    size = lambda b: f"{b / 2**20:.0f} MiB" if b < 2**30 else f"{b / 2**30:.0f} GiB"
    return table(["", ""], [["CPU", f"{machine['cpu']}, {machine['cores']} cores, {machine['vector_units']}"],
                            ["last-level cache, memory", f"{size(machine['last_level_cache_bytes'])}, {size(machine['memory_bytes'])}"],
                            ["compiler", machine["compiler"]], ["flags", f"`{machine['flags']}`"],
                            ["commit, date", versions["kernels"] if same else "; ".join(f"{part}: {version}" for part, version in versions.items())],
                            ["load average at the start", f"{machine['load_at_start']} (an idle machine: below 0.5)"]])


def peaks_table(k):
    rows = [[label, f"{k.of[name][key] / 1e9:.1f} {unit}", percent(k.of[name]["spread"])] for label, name, key, unit in (
        ("dgemm, one thread", "Peak/dgemm/threads:1", "flops_per_s", "GFLOP/s"), ("dgemm, all cores", "Peak/dgemm/threads:all", "flops_per_s", "GFLOP/s"),
        ("sgemm, one thread", "Peak/sgemm/threads:1", "flops_per_s", "GFLOP/s"), ("sgemm, all cores", "Peak/sgemm/threads:all", "flops_per_s", "GFLOP/s"),
        ("reading main memory, one thread", "Peak/read", "bytes_per_s", "GB/s")) if name in k.of]
    return table(["", "median", "spread"], rows)


def products_table(k):
    rows = []
    for kind in ("double", "float"):
        for case in k.cases("InnerProducts", kind):
            row = [kind, *(part.split(":")[1] for part in case.split("/"))]
            for family in ("InnerProducts", "Product"):
                row += [percent(k.share(f"{family}/{kind}/{case}/{who}")) for who in ("tplimit", "eigen", "openblas")] + [percent(k.bound(f"{family}/{kind}/{case}/tplimit"))]
            rows.append(row)
    return table(["storage", "r", "P", *(f"{what} {who}" for what in ("<Q, x>", "Q a") for who in ("tplimit", "Eigen", "OpenBLAS", "memory allows"))], rows)


def gram_table(k):
    return table(["P", "tplimit", "Eigen", "OpenBLAS"], [[case.split(":")[1], *(percent(k.share(f"Gram/double/{case}/{who}")) for who in ("tplimit", "eigen", "openblas"))]
                                                        for case in k.cases("Gram", "double")])


def dense_table(k):
    rows = [[kind, *(part.split(":")[1] for part in case.split("/"))] + [percent(k.share(f"{family}/{kind}/{case}/{who}")) for family in ("DenseProduct", "DenseTransposed", "DenseStep") for who in ("tplimit", "openblas")]
            for kind in ("double", "float") for case in k.cases("DenseProduct", kind)]
    return table(["entries", "n", "P", *(f"{what} {who}" for what in ("W x", "W' d", "step") for who in ("tplimit", "OpenBLAS"))], rows)


def engine_table(k):
    what = {"Draw": "fresh normals, up to r", "ApplyNew": "W x, W' d: new directions, up to r", "ApplyKnown": "W x, no new direction"}
    rows = [[label, kind, re.search(r"r:(\d+)", case).group(1), digits(k.of[name]['cpu_s'] * 1e3, 3), f"{k.of[name]['flops_per_s'] / 1e9:.1f}", percent(k.share(name)), percent(k.of[name]["spread"])]
            for family, label in what.items() for kind in ("double", "float") for case in k.cases(family, kind) for name in [f"{family}/{kind}/{case}/tplimit"]]
    return table(["16,384 particles, P = 16", "storage", "r", "ms", "GFLOP/s", "of peak", "spread"], rows)


def items_table(k):
    labels = {"Map": "", "Normals": "normals, ", "DualKernel": "K and K', "}
    rows = []
    for name in k.of:
        family, *rest = name.split("/")
        if family in labels and rest[1] == "tplimit":
            other = lambda who: f"{1e9 / k.of[f'{family}/{rest[0]}/{who}']['items_per_s']:.2f}" if f"{family}/{rest[0]}/{who}" in k.of else "-"
            rows.append([labels[family] + rest[0], other("tplimit"), other("sleef"), other("std")])
    return table(["ns per number", "tplimit", "SLEEF", "C++ library"], rows)


def front_end_table(k):
    stages = ("syntax", "lower", "verify", "erase_identities", "leading_order", "parse")
    workloads = dict.fromkeys(name.split("/")[1] for name in k.of if name.startswith("FrontEnd/"))
    rows = []
    for workload in workloads:
        whole = k.of[f"FrontEnd/{workload}/parse"]
        rows.append([workload, f"{round(whole['items_per_s'] * whole['cpu_s'], -2):,.0f}", *(f"{k.of[f'FrontEnd/{workload}/{stage}']['cpu_s'] * 1e3:.3g}" for stage in stages)])
    return table(["ms", "instructions", *stages], rows)


def accuracy_table(measured):
    parts = []
    for program, m in measured.items():
        reference = m["reference"]
        rows = [[f"limit, {binary(r['particles'])} particles", r["seeds"], digits(r["seconds"]), f"{r['rms_error']:.1e}", f"{r['own_standard_error']:.1e}", f"{float(f'''{r['equivalent_width']:.2g}'''):,.0f}"] for r in m["limit"]]
        rows += [[f"one network, n = {n['width']:,} ({n['matrices']})", n["seeds"], digits(n["seconds"]), f"{n['rms_deviation']:.1e}", "-", f"{n['width']:,}"] for n in m["networks"]]
        parts.append(f"{TITLES[program]} (`bench/programs/{program}.tp`). Reference: {binary(reference['particles'])} particles x {reference['randomisations']} randomisations, another seed, "
                     f"standard error {reference['standard_error']:.1e}, {digits(reference['seconds'])} s. One network deviates by {m['deviation_times_root_width']:.2f} / sqrt(n).\n\n"
                     + table(["", "seeds", "seconds", "rms error", "own standard error", "equivalent width"], rows))
    return "\n\n".join(parts)


def efficiency_table(measured):
    peaks = measured["peaks_flops_per_s"]
    one, every = peaks["Peak/dgemm/threads:1"], peaks.get("Peak/dgemm/threads:all", peaks["Peak/dgemm/threads:1"])
    rows = [[TITLES[r["program"]], f"`{r['options']}`", r["largest_rank"], f"{r['product_flops']:.2g}", digits(r["seconds"], 3), digits(r["cpu_s"], 3),
             percent(r["product_flops"] / r["seconds"] / every), percent(r["product_flops"] / r["cpu_s"] / one), f"{r['largest_error']:.1e}"] for r in measured["runs"]]
    return table(["program", "options", "rank", "FLOP in products", "s", "CPU s", "of dgemm, all cores, per s", "of dgemm, one core, per CPU s", "largest error"], rows)


def growth_table(measured):
    rows = [[r["step"], digits(r["cpu_s_per_step"]), r["largest_rank"]] for r in measured["steps"]]
    first, last = measured["steps"]
    whole = measured["whole_run"]
    return (table(["step", "CPU s per step", "rank"], rows)
            + f"\n\nA step at {last['step']} costs {last['cpu_s_per_step'] / first['cpu_s_per_step']:.1f} times one at {first['step']} (CPU seconds; {measured['particles']} particles, rank tolerance "
              f"{measured['rank_tol']:g}: what `--tol {measured['tol']:g}` chose; {measured['randomisations']} randomisations). `--tol {measured['tol']:g}` for all {whole['steps']:,} steps: "
              f"{digits(whole['seconds'])} s, largest error {whole['largest_error']:.1e}.")


# ---- plots ------------------------------------------------------------------------------------------

def accuracy_plot(measured, path):
    figure, axes = plt.subplots(1, len(measured), figsize=(9.5, 4.2), sharey=True, layout="constrained")
    for axis, (program, m) in zip(axes, measured.items()):
        limit, networks = m["limit"], m["networks"]
        axis.loglog([r["seconds"] for r in limit], [r["rms_error"] for r in limit], "o-", color=OWN, markersize=4)
        axis.loglog([r["seconds"] for r in limit], [r["own_standard_error"] for r in limit], "_", color=OWN, markersize=11)
        axis.loglog([n["seconds"] for n in networks], [n["rms_deviation"] for n in networks], "s-", color=OTHERS["openblas"], markersize=4)
        for r in limit:
            axis.annotate(binary(r["particles"]), (r["seconds"], r["rms_error"]), xytext=(-4, -11), textcoords="offset points", ha="right", fontsize=8, color=OWN)
        for n in networks:
            axis.annotate(f"n = {binary(n['width'])}", (n["seconds"], n["rms_deviation"]), xytext=(6, 4), textcoords="offset points", fontsize=8, color=OTHERS["openblas"])
        axis.margins(x=0.12, y=0.09)
        axis.set_title(TITLES[program], fontsize=9)
        axis.set_xlabel("seconds")
        axis.grid(alpha=0.25, linewidth=0.5)
    axes[0].set_ylabel("rms error of an output")
    figure.text(0.5, -0.02, "orange: limit, by number of particles (dash: its own standard error)       grey: one finite network", ha="center", va="top")
    save(figure, path)


def kernels_plot(k, path):
    panels = [(family, kind) for kind in ("double", "float") for family in ("InnerProducts", "Product")]
    titles = {"InnerProducts": "inner products <Q, x>", "Product": "products Q a"}
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.2), sharex=True, sharey=True, layout="constrained")
    for axis, (family, kind) in zip(axes.flat, panels):
        cases = k.cases(family, kind)
        for place, who in enumerate(("tplimit", "eigen", "openblas")):
            axis.barh([i + (place - 1) * 0.27 for i in range(len(cases))], [100 * k.share(f"{family}/{kind}/{case}/{who}") for case in cases], height=0.25,
                      color=OWN if who == "tplimit" else OTHERS[who], label=NAMES[who])
        for i, case in enumerate(cases):
            bound = 100 * k.bound(f"{family}/{kind}/{case}/tplimit")
            if bound < 100:
                axis.plot([bound, bound], [i - 0.42, i + 0.42], color="black", linewidth=1, label="most that reading memory allows, where below 100 %" if i == 0 else None)
        axis.set_yticks(range(len(cases)), [case.replace(":", " = ").replace("/", ", ") for case in cases])
        axis.set_title(f"{titles[family]}, {kind}", fontsize=9)
        axis.grid(axis="x", alpha=0.25, linewidth=0.5)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("% of OpenBLAS' large matrix product, same type, one core", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=4, frameon=False)
    save(figure, path)


def save(figure, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    print(f"  {path.name}: {path.stat().st_size / 1000:.0f} kB")


# ---- all of it --------------------------------------------------------------------------------------

def sections(records):
    """Name of a section of docs/performance.md -> its text, for the parts that were measured."""
    out, loaded = {}, {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    if not loaded:
        raise SystemExit(f"no records in {records.name}: run scripts/bench first")
    if "kernels" in loaded:
        k = Kernels(loaded["kernels"]["measured"])
        out |= {"machine": machine_table(loaded), "peaks": peaks_table(k), "products": products_table(k), "gram": gram_table(k), "dense": dense_table(k), "engine": engine_table(k),
                "items": items_table(k), "front_end": front_end_table(k)}
    for part, text in (("accuracy", accuracy_table), ("efficiency", efficiency_table), ("growth", growth_table)):
        if part in loaded:
            out[part] = text(loaded[part]["measured"])
    return out, loaded


def plots(loaded, folder):
    if "accuracy" in loaded:
        accuracy_plot(loaded["accuracy"]["measured"], folder / "accuracy.svg")
    if "kernels" in loaded:
        kernels_plot(Kernels(loaded["kernels"]["measured"]), folder / "kernels.svg")


def show(records):
    """Prints the tables; plots go beside the records."""
    texts, loaded = sections(records)
    for name, text in texts.items():
        print(f"\n{name}\n\n{text}")
    plots(loaded, records)


def write(records, docs):
    """Replaces what stands between the marks of docs/performance.md, and the plots beside it."""
    texts, loaded = sections(records)
    page = docs / "performance.md"
    text = page.read_text()
    for name, section in texts.items():
        text, count = re.subn(rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end -->)", lambda m: f"{m.group(1)}{section}\n{m.group(2)}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"docs/performance.md: no section '{name}'")
    page.write_text(text)
    plots(loaded, docs / "performance")
