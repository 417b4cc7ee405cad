"""Initial laws of the traced form, and what happens to them when a parameter is scaled or shifted."""

import math
from statistics import NormalDist


def normal(mean, std):
    return {"kind": "normal", "mean": mean, "std": std}


def uniform(low, high):
    return {"kind": "uniform", "low": low, "high": high}


def constant(value):
    return {"kind": "constant", "value": value}


def unseen(why):
    return {"kind": "unseen", "why": why}


def scaled(law, c):
    if law["kind"] in ("normal", "other"):
        return law | {"mean": law["mean"] * c, "std": law["std"] * abs(c)}
    if law["kind"] == "uniform":
        ends = sorted((law["low"] * c, law["high"] * c))
        return uniform(*ends)
    if law["kind"] == "constant":
        return constant(law["value"] * c)
    return law


def moved(law, c):
    if law["kind"] in ("normal", "other"):
        return law | {"mean": law["mean"] + c}
    if law["kind"] == "uniform":
        return uniform(law["low"] + c, law["high"] + c)
    if law["kind"] == "constant":
        return constant(law["value"] + c)
    return law


def truncated(mean, std, low, high):
    """A normal law given that it lies between the ends."""
    unit = NormalDist()
    ends = [(low - mean) / std, (high - mean) / std]
    mass = unit.cdf(ends[1]) - unit.cdf(ends[0])
    density = [unit.pdf(e) for e in ends]
    shift = (density[0] - density[1]) / mass
    variance = 1 + (ends[0] * density[0] - ends[1] * density[1]) / mass - shift**2
    if abs(shift) < 1e-12:
        shift = 0.0
    return {"kind": "other", "mean": mean + std * shift, "std": std * math.sqrt(variance), "what": "truncated normal"}
