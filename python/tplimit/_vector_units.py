"""The module is compiled for one or several kinds of vector units, each in a folder of its name: the best that the
processor has is loaded."""

from __future__ import annotations

from pathlib import Path

# Best first.  Other names are those of single processors, as "native": who builds for them knows.
_NEEDS = {
    "x86-64-v4": {"avx2", "bmi2", "f16c", "fma", "movbe", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx2", "bmi2", "f16c", "fma", "movbe"},
    "x86-64-v2": {"popcnt", "sse4_1", "sse4_2", "ssse3"},
    "baseline": set(),
}


def best(built: set[str], flags: set[str]) -> str:
    """Of these, for a processor with these flags; :class:`ImportError` if it can run none."""
    for name in [*sorted(built - _NEEDS.keys()), *_NEEDS]:
        if name in built and _NEEDS.get(name, set()) <= flags:
            return name
    lacking = min((_NEEDS[name] - flags for name in built), key=len)
    raise ImportError(f"this build of tplimit is for {', '.join(sorted(built))}, and the processor lacks "
                      f"{', '.join(sorted(lacking))}: build it with pip install ./python -C "
                      "cmake.define.TPLIMIT_ARCH=native")


def _flags() -> set[str]:
    """Of this processor; where Linux does not tell, of all."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set().union(*_NEEDS.values())


_UNITS = Path(__file__).parent / "units"
chosen = best({folder.name for folder in _UNITS.iterdir()}, _flags())
folder = str(_UNITS / chosen)
