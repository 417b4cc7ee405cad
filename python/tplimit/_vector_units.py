"""A module for vector units that a processor lacks would end the process: this says so first."""

from ._build import arch

_NEEDS = {
    "x86-64-v2": {"sse4_2", "popcnt", "ssse3"},
    "x86-64-v3": {"avx2", "fma", "bmi2", "f16c", "movbe"},
    "x86-64-v4": {"avx2", "fma", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def missing() -> "set[str]":
    """Of this processor, as far as Linux tells."""
    needed = _NEEDS.get(arch, set())
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("flags"):
                    return needed - set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def check() -> None:
    lacking = missing()
    if lacking:
        raise ImportError(f"this build of tplimit is for {arch}, and the processor lacks {', '.join(sorted(lacking))}: "
                          "build it with pip install ./python -C cmake.define.TPLIMIT_ARCH=native")
