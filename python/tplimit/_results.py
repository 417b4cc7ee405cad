"""Results: NumPy arrays with names, and whatever the library writes about them."""

from __future__ import annotations

import html
import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Iterable, Iterator, Mapping, Optional, Sequence, Union

import numpy as np

from . import _core
from ._errors import Diagnostic

if TYPE_CHECKING:
    import pandas
    import xarray

Number = Union[float, np.ndarray]


def _number(x: Optional[np.ndarray]) -> Any:
    return x if x is None or x.ndim else float(x)


@dataclass(frozen=True, repr=False)
class Report:
    """One ``report`` of the program, with all iterations of the loops around it."""

    name: str
    value: Number
    """A float, or an array: loops first, then the axes of the value.  NaN where it is undetermined."""
    stderr: Optional[Number]
    """The error behind ``value``, of the same shape; :attr:`error_kind` says what it means.  ``None``: not known."""
    spread: Optional[Number]
    """With ``draws``: standard deviation over draws of what is random in the limit."""
    runs: Optional[np.ndarray]
    """Of networks: the values of each seed, seeds first."""
    method: str
    """``exact``, ``closed_form``, ``quadrature``, ``particles``, ``networks`` or ``samples``."""
    error_kind: str
    """What ``stderr`` is: ``standard_error``, ``exact``, ``rounding_bound``, ``quadrature_estimate``, ..."""
    dims: tuple[str, ...]
    """Names of the axes: loop variables, then ``i``, ``j``, ..."""
    coords: Mapping[str, np.ndarray]
    """The values that the loop variables take."""
    undetermined: Optional[str] = None
    """Why some values stay random as the width grows."""

    def __repr__(self) -> str:
        shape = " x ".join(map(str, np.shape(self.value)))
        what = shape if shape else f"{self.value!r}" + (f" +- {self.stderr:.2g}" if self.stderr else "")
        return f"<Report {self.name}: {what}, {self.method}>"

    def __array__(self, dtype: Any = None, copy: Optional[bool] = None) -> np.ndarray:
        return np.array(self.value, dtype=dtype)

    def __float__(self) -> float:
        return float(self.value)

    def to_xarray(self) -> "xarray.DataArray":
        """With named axes, and ``stderr`` among the attributes of nothing: see :meth:`Result.to_xarray`."""
        import xarray
        return xarray.DataArray(self.value, dims=self.dims, coords=self.coords, name=self.name,
                                attrs={"method": self.method})

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each number: the axes as index, columns ``value`` and, where there are errors, ``stderr``."""
        import pandas
        columns = {"value": np.ravel(self.value)}
        for name in ("stderr", "spread"):
            own = getattr(self, name)
            if own is not None:
                columns[name] = np.ravel(own)
        if not self.dims:
            return pandas.DataFrame(columns)
        axes = [self.coords.get(d, np.arange(n)) for d, n in zip(self.dims, np.shape(self.value))]
        return pandas.DataFrame(columns, index=pandas.MultiIndex.from_product(axes, names=self.dims))


def _report(arrays: Mapping[str, Any], words: Mapping[str, Any]) -> Report:
    value = arrays["value"]
    loops = list(words["index"])
    letters = [x for x in "ijklmnpqrsabcdefgh" if x not in loops]
    return Report(
        name=words["name"], value=_number(value), stderr=_number(arrays["stderr"]), spread=_number(arrays["spread"]),
        runs=arrays["runs"], method=words["method"], error_kind=words["error"],
        dims=tuple(loops + letters[:value.ndim - len(loops)]),
        coords={name: np.array(values) for name, values in zip(loops, words["index_values"])},
        undetermined=words.get("undetermined"))


class _Shown:
    """What can be shown as text, as a page in a notebook."""

    def _page(self) -> str:
        raise NotImplementedError

    def page(self, file: Any = None) -> str:
        """The page that ``--html`` of the command line writes; also to ``file``, if one is given."""
        text = self._page()
        if file is not None:
            with open(file, "w", encoding="utf-8") as out:
                out.write(text)
        return text

    def _repr_html_(self) -> str:
        fit = "this.style.height=(this.contentDocument.documentElement.scrollHeight+8)+'px'"
        return (f'<iframe srcdoc="{html.escape(self._page())}" onload="{fit}" '
                'style="width:100%;height:30em;border:0"></iframe>')


class Plot:
    """Charts as a Vega-Lite specification, which notebooks show; without altair, too."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {"application/vnd.vegalite.v5+json": self.spec, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return "<Plot: .spec is a Vega-Lite specification>"


class _Kept:
    """What a result of the module can be asked for, with the answers: for another process, or a file."""

    def __init__(self, core: Any) -> None:
        self._texts = [core.text(full, 110) for full in (False, True)]
        self._page, self._vega, self._json, self._warnings = core.page(), core.vega(), core.json(True), core.warnings()
        self.seconds = getattr(core, "seconds", None)

    def text(self, full: bool, columns: int) -> str:
        return self._texts[full]

    def json(self, everything: bool) -> str:
        return self._json

    def page(self) -> str:
        return self._page

    def vega(self) -> str:
        return self._vega

    def warnings(self) -> list[dict[str, Any]]:
        return self._warnings


class _Result(_Shown, Mapping[str, Report]):
    """A mapping from the names of reports to reports; those whose names are Python names are attributes, too."""

    def __init__(self, core: Any, reports: Sequence[Report]) -> None:
        self._core = core
        self._reports: dict[str, Report] = {}
        for report in reports:
            name, k = report.name, 2
            while name in self._reports:
                name, k = f"{report.name}_{k}", k + 1
            self._reports[name] = report

    def __getitem__(self, name: str) -> Report:
        try:
            return self._reports[name]
        except KeyError:
            raise KeyError(f"{name!r} is no report; there are {', '.join(map(repr, self._reports))}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._reports)

    def __len__(self) -> int:
        return len(self._reports)

    def __getattr__(self, name: str) -> Report:
        own = self.__dict__.get("_reports", {})
        if name in own:
            return own[name]
        raise AttributeError(f"no attribute and no report {name!r}; the reports are {', '.join(map(repr, own))}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in self._reports if name.isidentifier())]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_core": self._core if isinstance(self._core, _Kept) else _Kept(self._core)}

    def to_xarray(self) -> "xarray.Dataset":
        """Every report as a variable, its error as ``NAME_stderr``.  Axes of values are named ``NAME_i``, ..; loop
        variables are shared where they take the same values."""
        import xarray
        shared: dict[str, np.ndarray] = {}
        variables: dict[str, Any] = {}
        coords: dict[str, Any] = {}
        for key, r in self.items():
            dims = []
            for d in r.dims:
                name = f"{key}_{d}"
                if d in r.coords:
                    if np.array_equal(shared.setdefault(d, r.coords[d]), r.coords[d]):
                        name = d
                    coords[name] = r.coords[d]
                dims.append(name)
            variables[key] = xarray.Variable(dims, r.value, attrs={"method": r.method})
            if r.stderr is not None:
                variables[f"{key}_stderr"] = xarray.Variable(dims, r.stderr, attrs={"kind": r.error_kind})
            if r.runs is not None:
                variables[f"{key}_runs"] = xarray.Variable(["seed", *dims], r.runs)
        return xarray.Dataset(variables, coords=coords)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row for each number of each report: columns ``report``, the axes, ``value``, ``stderr``."""
        import pandas
        tables = []
        for key, r in self.items():
            own = r.to_pandas()
            own = own.reset_index() if r.dims else own
            own.insert(0, "report", key)
            tables.append(own)
        out = pandas.concat(tables, ignore_index=True)
        last = [c for c in ("value", "stderr", "spread") if c in out]
        return out[["report", *(c for c in out if c not in ("report", *last)), *last]]

    def to_dict(self) -> dict[str, Any]:
        """What ``--out FILE.json`` of the command line holds; docs/json.md describes it."""
        return json.loads(self._core.json(True))

    def to_json(self) -> str:
        """The text of that file."""
        return self._core.json(True)

    def vega(self) -> dict[str, Any]:
        """The charts as a Vega-Lite 5 specification with its data."""
        return json.loads(self._core.vega())

    def plot(self) -> Any:
        """The charts: an ``altair.Chart`` where altair is installed, else a :class:`Plot`."""
        spec = self.vega()
        try:
            import altair
        except ImportError:
            return Plot(spec)
        return altair.Chart.from_dict(spec)

    def text(self, full: bool = False, columns: int = 110) -> str:
        """What the command line prints; of a result from another process or a file in 110 columns."""
        return self._core.text(full, columns)

    @cached_property
    def warnings(self) -> list[Diagnostic]:
        return [Diagnostic(**d) for d in self._core.warnings()]

    def _page(self) -> str:
        return self._core.page()

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()


class _Timed(_Result):
    @property
    def seconds(self) -> float:
        """The time that it took."""
        return self._core.seconds


class _OfProgram(_Timed):
    """Reports by name, from the words of the JSON and the arrays beside them."""

    def __init__(self, core: Any, words: dict[str, Any], arrays: Any) -> None:
        self._words = words
        super().__init__(core, [_report(a, w) for a, w in zip(arrays, words["reports"])])

    @property
    def engine(self) -> dict[str, Any]:
        """How the numbers were found; docs/json.md, "The engine"."""
        return self._words["engine"]


class _OfLimit(_OfProgram):
    @property
    def expectations(self) -> list[dict[str, Any]]:
        """What came of each ``expect``: ``status`` is ``pass``, ``fail`` or ``undecided``."""
        return self._words["expectations"]

    @property
    def passed(self) -> bool:
        """Whether no ``expect`` failed or is undecided."""
        return all(e["status"] == "pass" for e in self.expectations)


class Limit(_OfLimit):
    """The limit of infinite width: reports by name."""

    def __init__(self, core: Any) -> None:
        super().__init__(core, json.loads(core.json(False)), core.arrays())


class Networks(_OfProgram):
    """Finite networks of one width: means over seeds by name, and all seeds in ``.runs``."""

    def __init__(self, core: Any) -> None:
        super().__init__(core, json.loads(core.json(False)), core.arrays())

    @property
    def width(self) -> int:
        return self.engine["width"]

    @property
    def seeds(self) -> int:
        return self.engine["seeds"]


@dataclass(frozen=True)
class WidthReports:
    """Networks of one width beside the limit."""

    width: int
    seeds: int
    reports: Mapping[str, Report]

    def __getitem__(self, name: str) -> Report:
        return self.reports[name]


class Comparison(_OfLimit):
    """The limit, and networks of several widths beside it.  As a mapping: the reports of the limit."""

    def __init__(self, core: Any) -> None:
        limit, *networks = core.arrays()
        super().__init__(core, json.loads(core.json(True)), limit)
        of_networks = [dict(w, method="networks", error="standard_error") for w in self._words["reports"]]
        self.networks: list[WidthReports] = [
            WidthReports(own["width"], own["seeds"],
                         {name: _report(a, w) for name, a, w in zip(self, arrays, of_networks) if a is not None})
            for own, arrays in zip(self._words["compare"]["networks"], networks)]
        """Per width, ascending; without reports that networks of other code did not measure."""

    @property
    def verdict(self) -> str:
        """``agrees``, ``inconclusive`` or ``disagrees``, over all reports."""
        return self._words["compare"]["verdict"]

    @property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """Of each report: ``verdict``, ``reason``, ``p_value``, slopes; docs/json.md, "compare"."""
        return {own["name"]: own for own in self._words["compare"]["reports"]}


@dataclass(frozen=True)
class SweepRow:
    """One combination of a sweep."""

    values: Mapping[str, Any]
    """Of the constants, as they were given."""
    result: Union[Limit, Comparison, None]
    """``None``: it was refused."""
    errors: Sequence[Diagnostic]
    """Why it was refused; else empty."""


class Sweep(_Timed):
    """Limits for all combinations of values of some constants.  As a mapping: the reports, with an axis for each
    constant before their own axes, NaN where a combination was refused.  Reports whose shape depends on the constants
    stand in ``rows`` only."""

    def __init__(self, core: Any, over: Mapping[str, Sequence[Any]]) -> None:
        self._words = json.loads(core.json(True))["sweep"]
        self.rows: list[SweepRow] = []
        """All combinations, the last constant fastest."""
        for values, own in zip(itertools.product(*over.values()), core.rows()):
            refused = isinstance(own, list)
            result = None if refused else (Comparison if isinstance(own, _core.Comparison) else Limit)(own)
            errors = [Diagnostic(**d) for d in own] if refused else []
            self.rows.append(SweepRow(dict(zip(over, values)), result, errors))
        found = [row.result for row in self.rows if row.result is not None]
        stacked = [self._stacked(name, over) for name in (found[0] if found else ())]
        super().__init__(core, [report for report in stacked if report is not None])

    def _stacked(self, name: str, over: Mapping[str, Sequence[Any]]) -> Optional[Report]:
        own = [row.result.get(name) if row.result is not None else None for row in self.rows]
        some = [r for r in own if r is not None]
        first = some[0]
        if any(np.shape(r.value) != np.shape(first.value) or r.dims != first.dims
               or any(not np.array_equal(r.coords[d], first.coords[d]) for d in first.coords) for r in some):
            return None
        shape = tuple(len(values) for values in over.values()) + np.shape(first.value)
        nothing = np.full(np.shape(first.value), np.nan)

        def stack(field: str) -> Optional[np.ndarray]:
            parts = [None if r is None else getattr(r, field) for r in own]
            if all(part is None for part in parts):
                return None
            return np.array([nothing if part is None else part for part in parts]).reshape(shape)

        renamed = {d: f"{d}_" if d in over else d for d in first.dims}
        return Report(
            name=first.name, value=stack("value"), stderr=stack("stderr"), spread=stack("spread"), runs=None,
            method=_common(r.method for r in some), error_kind=_common(r.error_kind for r in some),
            dims=(*over, *renamed.values()),
            coords={**{key: _coordinate(values) for key, values in over.items()},
                    **{renamed[d]: values for d, values in first.coords.items()}},
            undetermined=next((r.undetermined for r in some if r.undetermined), None))

    @property
    def best(self) -> Optional[SweepRow]:
        """With ``best=``: the combination with the lowest (``highest``) value; ``None`` if none has a number."""
        best = self._words["best"]
        return best and self.rows[best["row"]]

    @property
    def ties(self) -> list[SweepRow]:
        """Those that errors do not tell apart from the best one."""
        return [self.rows[k] for k in (self._words["best"] or {"ties": []})["ties"]]


def _common(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _coordinate(values: Sequence[Any]) -> np.ndarray:
    plain = all(np.ndim(v) == 0 for v in values)
    return np.array(list(values) if plain else list(map(str, values)))


@dataclass(frozen=True, repr=False)
class Extrapolated(Report):
    """A report as the constant tends to its end: a float, or one axis ``entry`` whose coordinates say which number,
    as in ``t = 3, [1]``.  ``stderr`` is that of sampling."""

    extrapolation_error: Number = math.nan
    """Difference from the extrapolation by one order less."""
    order_seen: Number = math.nan
    """The order that the last three values show; NaN where it cannot be told."""
    slope: Number = math.nan
    """Of log value against log constant; NaN unless all values are positive."""
    series: Optional[Report] = None
    """At the values of the constant, which is the last axis."""


class Extrapolation(_Timed):
    """Reports as a constant grows, or shrinks to 0."""

    def __init__(self, core: Any) -> None:
        words = json.loads(core.json(True))["extrapolate"]
        self.constant: str = words["constant"]
        self.left_out: list[str] = words["left_out"]
        """What is not extrapolated, and why."""
        super().__init__(core, [self._extrapolated(report, words["values"]) for report in words["reports"]])

    def _extrapolated(self, report: Mapping[str, Any], texts: Sequence[str]) -> Extrapolated:
        entries = report["entries"]
        labels = [e["label"] for e in entries]
        bare = labels == [""]

        def array(numbers: Iterable[Any]) -> Any:
            own = _floats(list(numbers))
            return (float(own[0]) if own.ndim == 1 else own[0]) if bare else own

        dims, coords = ((), {}) if bare else (("entry",), {"entry": np.array(labels)})
        fixed = dict(name=report["name"], spread=None, runs=None, method="extrapolation")
        no_error = any(e["stderr"] is None for e in entries)
        series = Report(
            value=array(e["values"] for e in entries), error_kind="none" if no_error else "standard_error",
            stderr=None if no_error else array(e["stderr"] for e in entries), dims=(*dims, self.constant),
            coords={**coords, self.constant: np.array(texts)}, **{**fixed, "method": "limits"})
        unknown = any(e["sampling_error"] is None for e in entries)
        return Extrapolated(
            value=array(e["value"] for e in entries), error_kind="none" if unknown else "standard_error",
            stderr=None if unknown else array(e["sampling_error"] for e in entries), dims=dims, coords=coords, **fixed,
            extrapolation_error=array(e["extrapolation_error"] for e in entries),
            order_seen=array(_value(e["order_seen"]) for e in entries),
            slope=array(_value(e["slope"]) for e in entries), series=series)


def _value(estimate: Optional[Mapping[str, Any]], part: str = "value") -> Optional[float]:
    return None if estimate is None else estimate[part]


def _floats(numbers: Any) -> np.ndarray:
    """NaN for ``null``."""
    return np.array(numbers, dtype=np.float64)


@dataclass(frozen=True, repr=False)
class CoordinateSize(Report):
    """Root mean squares over coordinates and samples of one value, or of its change since the start: axes ``step``
    and ``width``, means over networks.  The fields below have the axis ``step``."""

    counted: Optional[np.ndarray] = None
    """The power of the width by counting; NaN: exactly 0, or behind the first step after which something grows."""
    slope: Optional[np.ndarray] = None
    """Of log size against log width; NaN where there is none."""
    slope_stderr: Optional[np.ndarray] = None
    limit: Optional[np.ndarray] = None
    """At infinite width; NaN where there is none."""
    limit_stderr: Optional[np.ndarray] = None
    growth: Sequence[str] = ()
    """``as counted``, ``faster than counted``, ``slower than counted``, or empty."""


class CoordinateCheck(_Result):
    """Sizes by name: ``z``, ``change of z``."""

    def __init__(self, core: Any) -> None:
        words = json.loads(core.json(True))["coordcheck"]
        self.widths: list[int] = words["widths"]
        self.steps: int = words["steps"]
        """Of training, that were run."""
        super().__init__(core, [self._size(own) for own in words["values"]])

    def _size(self, own: Mapping[str, Any]) -> CoordinateSize:
        steps = own["steps"]

        def estimates(key: str, part: str) -> np.ndarray:
            return _floats([_value(s[key], part) for s in steps])

        def sizes(part: str) -> np.ndarray:
            return _floats([[e[part] for e in s["sizes"]] for s in steps])

        return CoordinateSize(
            name=own["name"], value=sizes("value"), stderr=sizes("stderr"), spread=None, runs=None, method="networks",
            error_kind="standard_error", dims=("step", "width"),
            coords={"step": np.array([s["step"] for s in steps]), "width": np.array(self.widths)},
            counted=_floats([s["counted"] for s in steps]), slope=estimates("slope", "value"),
            slope_stderr=estimates("slope", "stderr"), limit=estimates("limit", "value"),
            limit_stderr=estimates("limit", "stderr"), growth=[s["growth"] for s in steps])

    @property
    def as_counted(self) -> bool:
        """Whether nothing grows faster than it is counted."""
        return all(growth != "faster than counted" for own in self.values() for growth in own.growth)


class _Text(_Shown):
    def __init__(self, core: Any) -> None:
        self._core = core

    def __getstate__(self) -> dict[str, Any]:
        parts = {name: getattr(self._core, name) for name in ("text", "page", "json", "latex")}
        return {"_core": SimpleNamespace(**parts)}

    def text(self) -> str:
        """What the command line prints."""
        return self._core.text

    def _page(self) -> str:
        return self._core.page

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return self.text()


class _TextAndWords(_Text):
    def to_dict(self) -> dict[str, Any]:
        """What the command line writes as JSON; docs/json.md describes it."""
        return json.loads(self._core.json)


class Check(_TextAndWords):
    """Powers of the width, before any number is computed."""

    @property
    def regime(self) -> str:
        """``feature learning``, ``kernel regime``, ``trivial``, ``unstable`` or ``untrained``."""
        return self.to_dict()["regime"]

    @property
    def fixes(self) -> list[dict[str, Any]]:
        """What muP needs: powers of n by which variances and rates are to be multiplied."""
        return self.to_dict()["fixes"]


class Explanation(_TextAndWords):
    """The limit as formulas."""

    def latex(self) -> str:
        """A document for latex."""
        return self._core.latex


class Parametrization(_Text):
    """Variances, multipliers and rates, in three equivalent forms."""
