"""Programs, and what can be computed from them."""

from __future__ import annotations

import inspect
import operator
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Mapping, Optional, Sequence, Union

import numpy as np

from . import _core
from ._errors import Diagnostic, ProgramWarning
from ._progress import Progress, bar
from ._results import (Check, Comparison, CoordinateCheck, Explanation, Extrapolation, Limit, Networks, Parametrization,
                       Sweep)

if TYPE_CHECKING:
    from ._traced.measure import Recorder

Values = Union[float, Sequence[float]]
File = Union[str, "os.PathLike[str]"]


def _text(value: Any) -> str:
    """As the language writes constants: numbers, lists of numbers, or an expression as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    array = np.asarray(value)
    if array.ndim == 0:
        return repr(array.item())
    return "[" + ", ".join(map(_text, array)) + "]"


def _constant(name: str, value: Any) -> str:
    if value is None or (not isinstance(value, str) and not np.all(np.isfinite(np.asarray(value, dtype=np.float64)))):
        raise ValueError(f"constants: {name} is {value}")
    return _text(value)


def _array(name: str, value: Any) -> np.ndarray:
    """Numbers for `data`."""
    try:
        array = np.asarray(value)
    except Exception as error:
        raise ValueError(f"data {name}: {error}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"data {name}: numbers are wanted, this is an array of {array.dtype}")
    if np.ma.isMaskedArray(value) and np.ma.getmaskarray(value).any():
        raise ValueError(f"data {name}: entries are masked")
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options for the module, their numbers within the ranges of the command line."""
    out = dict(options)
    for name, (whole, least, most) in _core.option_ranges.items():
        if out.get(name) is not None:  # of too few particles the library says why (E4201)
            out[name] = _number(name, out[name], whole, 1 if name == "particles" else least, most)
    if "seed" in out:
        out["seed"] = _number("seed", out["seed"], True, 0, 2**64 - 1)
    for name in ("engine", "matrices", "precision"):
        if name in out and not isinstance(out[name], str):
            raise ValueError(f"{name}: a word is wanted, not {out[name]!r}")
    if out.get("tol_on") and out.get("tol") is None:
        raise ValueError("tol_on: of which tolerance? tol=")
    return out


def _number(name: str, value: Any, whole: bool, least: float, most: float) -> Any:
    wrong = ValueError(f"{name}: {'a whole' if whole else 'a'} number is wanted, not {value!r}")
    if isinstance(value, (str, bytes, bool)):
        raise wrong
    try:
        number = operator.index(value) if whole and not isinstance(value, (float, np.floating)) else float(value)
    except TypeError:
        raise wrong from None
    if number != number or (whole and number != int(number)):
        raise wrong
    if not least <= number <= most:
        bound = f"at least {least:g}" if number < least else f"at most {most:.12g}"
        raise ValueError(f"{name}: {value!r} is not possible, {bound} is")
    return int(number) if whole else number


def _warn(found: Iterable[Diagnostic]) -> None:
    for d in found:
        warnings.warn("\n" + d.rendered.rstrip(), ProgramWarning, stacklevel=3)


class Program:
    """A checked program.

    ``source``: the text of a program, or the path of a ``.tp`` file (a ``Path``, or a text in one line that ends in
    ``.tp``).  ``constants``: instead of those of the program, as ``--set``; numbers, arrays, or texts in the language.
    Arrays replace ``data`` of their names, whatever the program says about them (a literal, a file, which then is not
    read): ``Program(text, X=X, y=y)``, or ``data={"seed": ..}`` for names that are taken here.  ``data_files``: files
    instead, as ``--data``.  Paths in the program are relative to ``folder``, by default that of the file, or the
    current one.  ``decouple``, ``no_correction``, ``lazy``: ablations, as of the command line.

    Raises :class:`tplimit.Error` if the program is rejected.
    """

    def __init__(self, source: Union[str, "os.PathLike[str]"], *, constants: Optional[Mapping[str, Any]] = None,
                 data: Optional[Mapping[str, Any]] = None, data_files: Optional[Mapping[str, Any]] = None,
                 name: Optional[str] = None, folder: Optional[Union[str, "os.PathLike[str]"]] = None,
                 decouple: Sequence[str] = (), no_correction: bool = False, lazy: bool = False,
                 **arrays: Any) -> None:
        if not isinstance(source, (str, os.PathLike)):
            raise TypeError(f"a program is a text, or the path of a file, not {type(source).__name__}")
        if isinstance(source, os.PathLike) or ("\n" not in source and source.endswith(".tp")):
            path = Path(source)
            text = path.read_text(encoding="utf-8")
            name, folder = name or str(path), path.parent if folder is None else folder
        else:
            text = str(source)
        own = {key: _array(key, value) for key, value in {**(data or {}), **arrays}.items()}
        self._core = _core.Program(
            text=text, name=name or "program.tp", folder=str("." if folder is None else folder),
            constants=[(key, _constant(key, value)) for key, value in dict(constants or {}).items()], data=own,
            data_files=[(key, os.fspath(file)) for key, file in (data_files or {}).items()],
            decouple=[decouple] if isinstance(decouple, str) else list(decouple), no_correction=no_correction,
            lazy=lazy)

    @property
    def text(self) -> str:
        """The program as it was given."""
        return self._core.text

    @property
    def reports(self) -> list[str]:
        """Names of what it reports."""
        return self._core.reports

    @property
    def warnings(self) -> list[Diagnostic]:
        """Of the program, before anything is computed."""
        return [Diagnostic(**d) for d in self._core.warnings()]

    def __getstate__(self) -> dict[str, Any]:  # between processes
        return self._core.arguments()

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self._core = _core.Program(**arguments)

    def __repr__(self) -> str:
        return f"<Program: {len(self.text.splitlines())} lines; reports {', '.join(self.reports)}>"

    def run(self, *, particles: Optional[int] = None, tol: Optional[float] = None, tol_on: Sequence[str] = (),
            randomisations: int = 8, seed: int = 0, draws: int = 1, engine: str = "auto",
            given: Optional[Mapping[str, Values]] = None, rank_tol: Optional[float] = None, merge_rows: float = 1e-12,
            matrices: str = "auto", precision: str = "double", threads: int = 0, memory: float = 0,
            checkpoint: Optional[File] = None, checkpoint_interval: float = 60, progress: Progress = None) -> Limit:
        """The limit of infinite width.

        The options are those of ``tplimit run`` (docs/cli.md), and the same options give the same bits.  Ctrl-C ends
        it soon; with ``checkpoint``, a folder, the same call then goes on from what was done.  Raises
        :class:`tplimit.Error`."""
        options = {**_limit_options(locals()), **_kept(checkpoint, checkpoint_interval), "draws": draws}
        with bar(progress, "limit") as shown:
            result = Limit(self._core.run(_checked(options), shown))
        _warn(result.warnings)
        return result

    def simulate(self, width: Optional[int] = None, seeds: int = 1, *, seed: int = 0, matrices: str = "auto",
                 precision: str = "double", threads: int = 0, memory: float = 0, checkpoint: Optional[File] = None,
                 checkpoint_interval: float = 60, progress: Progress = None) -> Networks:
        """Finite networks of one width, as ``tplimit simulate``."""
        options = dict(width=width, seeds=seeds, seed=seed, matrices=matrices, precision=precision, threads=threads,
                       memory=memory, **_kept(checkpoint, checkpoint_interval))
        with bar(progress, "networks") as shown:
            result = Networks(self._core.simulate(_checked(options), shown))
        _warn(result.warnings)
        return result

    def compare(self, widths: Optional[Sequence[int]] = None, seeds: int = 8, *, particles: Optional[int] = None,
                tol: Optional[float] = None, tol_on: Sequence[str] = (), randomisations: int = 8, seed: int = 0,
                draws: int = 64, engine: str = "auto", given: Optional[Mapping[str, Values]] = None,
                limit: Union[Limit, File, None] = None, against: Union[File, Sequence[File], Recorder, None] = None,
                fit_corrections: bool = False, rank_tol: Optional[float] = None, merge_rows: float = 1e-12,
                matrices: str = "auto", precision: str = "double", threads: int = 0, memory: float = 0,
                checkpoint: Optional[File] = None, checkpoint_interval: float = 60,
                progress: Progress = None) -> Comparison:
        """Networks of several widths beside the limit, and whether they tend to it, as ``tplimit compare``.

        ``widths``: by default 128, 512, 2048.  ``limit``: a result of :meth:`run`, or a file of ``tplimit run --out``,
        of the same program and data; the limit is then not computed again.  ``against``: instead of own networks those
        that other code has trained, in files (docs/compare.md), or as ``tplimit.measure`` recorded them.
        ``fit_corrections``: the verdicts hold limit, coefficient of 1/n and variance that the widths give."""
        own = dict(locals())
        known = None
        if against is not None:
            _refuse_changed(own, ("widths", "seeds", "given"), "the networks are those of 'against'")
        if limit is not None:
            _refuse_changed(own, ("engine", "particles", "randomisations", "tol", "rank_tol", "merge_rows", "draws"),
                            "limit is known already")
            known = ((limit.to_json(), "result") if isinstance(limit, Limit)
                     else (Path(limit).read_text(encoding="utf-8"), os.fspath(limit)))
        options = {**_limit_options(own), **_kept(checkpoint, checkpoint_interval),
                   **_network_options(widths, seeds, randomisations), "draws": draws,
                   "against": _files(against), "fit_corrections": fit_corrections}
        with bar(progress, "compare") as shown:
            result = Comparison(self._core.compare(_checked(options), known, shown))
        _warn(result.warnings)
        return result

    def sweep(self, over: Mapping[str, Sequence[Any]], *, best: Optional[str] = None, highest: bool = False,
              widths: Optional[Sequence[int]] = None, seeds: int = 8, particles: Optional[int] = None,
              tol: Optional[float] = None, tol_on: Sequence[str] = (), randomisations: int = 8, seed: int = 0,
              draws: Optional[int] = None, engine: str = "auto", given: Optional[Mapping[str, Values]] = None,
              rank_tol: Optional[float] = None, merge_rows: float = 1e-12, matrices: str = "auto",
              precision: str = "double", threads: int = 0, memory: float = 0, checkpoint: Optional[File] = None,
              checkpoint_interval: float = 60, progress: Progress = None) -> Sweep:
        """The limit for all combinations of values of some constants, ``{"eta": [0.1, 0.3], "parametrization": ["mup",
        "ntk"]}``, as ``tplimit sweep``; with ``widths`` networks beside each, as :meth:`compare`.

        ``best``: a report whose lowest (``highest``) value is wanted.  A combination that is refused is a row with its
        errors."""
        if highest and best is None:
            raise ValueError("highest: of which report? best=")
        own = dict(locals())
        options = {**_limit_options(own), **_kept(checkpoint, checkpoint_interval), "best": best, "highest": highest,
                   **_over(over), "draws": draws if draws is not None else 64 if widths else 1,
                   **(_network_options(widths, seeds, randomisations) if widths else dict(widths=[], seeds=seeds))}
        with bar(progress, "sweep") as shown:
            result = Sweep(self._core.sweep(_checked(options), shown), over)
        _warn(result.warnings)
        return result

    def extrapolate(self, in_: Mapping[str, Sequence[Any]], *, order: int = 1, particles: Optional[int] = None,
                    tol: Optional[float] = None, tol_on: Sequence[str] = (), randomisations: int = 8, seed: int = 0,
                    draws: int = 1, engine: str = "auto", given: Optional[Mapping[str, Values]] = None,
                    rank_tol: Optional[float] = None, merge_rows: float = 1e-12, matrices: str = "auto",
                    precision: str = "double", threads: int = 0, memory: float = 0, checkpoint: Optional[File] = None,
                    checkpoint_interval: float = 60, progress: Progress = None) -> Extrapolation:
        """The limit as one constant grows, ``{"L": [8, 16, 32]}``, or shrinks to 0, ``{"dt": [0.1, 0.05]}``, too, as
        ``tplimit extrapolate``; ``order``: the leading power of 1/constant, or of one that shrinks."""
        options = {**_limit_options(locals()), **_kept(checkpoint, checkpoint_interval), **_over(in_), "order": order,
                   "draws": draws}
        with bar(progress, "extrapolate") as shown:
            result = Extrapolation(self._core.extrapolate(_checked(options), shown))
        _warn(result.warnings)
        return result

    def coordcheck(self, widths: Optional[Sequence[int]] = None, steps: int = 4, seeds: int = 4, *,
                   particles: Optional[int] = None, tol: Optional[float] = None, tol_on: Sequence[str] = (),
                   randomisations: int = 8, seed: int = 0, engine: str = "auto",
                   given: Optional[Mapping[str, Values]] = None, rank_tol: Optional[float] = None,
                   merge_rows: float = 1e-12, matrices: str = "auto", precision: str = "double", threads: int = 0,
                   memory: float = 0, progress: Progress = None) -> CoordinateCheck:
        """Sizes of all named values over the first steps at several widths, beside the powers of the width that they
        are counted with, as ``tplimit coordcheck``."""
        options = {**_limit_options(locals()), **_network_options(widths, seeds, randomisations), "draws": 1,
                   "steps": steps}
        with bar(progress, "coordcheck") as shown:
            result = CoordinateCheck(self._core.coordcheck(_checked(options), shown))
        _warn(result.warnings)
        return result

    def check(self) -> Check:
        """Sizes of everything in powers of the width, the regime, and what would make it muP, without numbers; as
        ``tplimit check``."""
        return Check(self._core.check(None))

    def explain(self, names: Sequence[str] = (), *, steps: Optional[tuple[int, int]] = None, numbers: bool = False,
                particles: Optional[int] = None, tol: Optional[float] = None, tol_on: Sequence[str] = (),
                randomisations: int = 8, seed: int = 0, engine: str = "auto",
                given: Optional[Mapping[str, Values]] = None, rank_tol: Optional[float] = None,
                merge_rows: float = 1e-12, matrices: str = "auto", precision: str = "double", threads: int = 0,
                memory: float = 0, progress: Progress = None) -> Explanation:
        """The limit as formulas, as ``tplimit explain``; ``numbers``: with the value of every mean and coefficient."""
        options = _checked(_limit_options(locals()))
        if steps is not None and (np.shape(steps) != (2,) or not 0 <= steps[0] < steps[1]):
            raise ValueError(f"steps: a pair (first, last + 1), as in (0, 2), not {steps!r}")
        with bar(progress, "explain") as shown:
            return Explanation(self._core.explain([names] if isinstance(names, str) else list(names), steps, numbers,
                                                  options, shown))

    def parametrization(self) -> Parametrization:
        """Initial variance, multiplier and rates of every parameter in three equivalent forms."""
        return Parametrization(self._core.parametrization())


def _limit_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What every evaluation of a limit takes, for the module."""
    names = ("particles", "tol", "randomisations", "seed", "engine", "rank_tol", "merge_rows", "matrices", "precision",
             "threads")
    out = {name: given[name] for name in names}
    out["memory"] = given["memory"]
    tol_on = given["tol_on"]
    out["tol_on"] = [tol_on] if isinstance(tol_on, str) else list(tol_on)
    values = dict(given["given"] or {})
    if len(values) > 1:
        raise ValueError("given: one output")
    out["given"] = {name: list(map(float, np.ravel(v))) for name, v in values.items()}
    return out


def _network_options(widths: Optional[Sequence[int]], seeds: int, randomisations: int) -> dict[str, Any]:
    """Of networks of several widths beside the limit; no widths: those of the command line."""
    if isinstance(widths, (str, bytes)):
        raise ValueError(f"widths: different whole numbers, as in [128, 512], not {widths!r}")
    own = [] if widths is None else sorted(_number("widths", w, *_core.option_ranges["width"]) for w in np.ravel(widths))
    if widths is not None and (not own or len(set(own)) < len(own)):
        raise ValueError("widths: different whole numbers, at least one")
    if _number("seeds", seeds, *_core.option_ranges["seeds"]) < 2 or _number(
            "randomisations", randomisations, *_core.option_ranges["randomisations"]) < 2:
        raise ValueError("a comparison needs 2 seeds and 2 randomisations or more")
    return dict(widths=own, seeds=seeds)


def _refuse_changed(given: Mapping[str, Any], names: Sequence[str], why: str) -> None:
    """Options of compare that mean nothing beside another one."""
    usual = inspect.signature(Program.compare).parameters
    changed = [name for name in names if given[name] != usual[name].default]
    if changed:
        raise ValueError(f"{why}: leave out {', '.join(changed)}")


def _files(against: Union[File, Sequence[File], Recorder, None]) -> list[str]:
    """Of networks that other code has trained."""
    if against is None:
        return []
    if isinstance(against, (Networks, Comparison, Limit)):
        raise TypeError("against: files that other code has written, or what tplimit.measure recorded; own networks need no "
                        "'against', and a limit that is known is limit=")
    found = getattr(against, "files", against)
    files = [os.fspath(f) for f in ([found] if isinstance(found, (str, os.PathLike)) else found)]
    if not files:
        raise ValueError("against: no file, or nothing recorded yet")
    return files


def _kept(checkpoint: Optional[File], interval: float) -> dict[str, Any]:
    return dict(checkpoint="" if checkpoint is None else os.fspath(checkpoint), checkpoint_interval=interval)


def _over(over: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    if not isinstance(over, Mapping):
        raise ValueError('constants and their values, as in {"eta": [0.1, 0.3]}')
    axes = []
    for name, values in over.items():
        if isinstance(values, (str, bytes)) or np.ndim(np.asarray(values, dtype=object)) == 0:
            raise ValueError(f"{name}: a list of values is wanted, as in [0.1, 0.3], not {values!r}")
        texts = [_text(value) for value in values]
        if not texts or len(set(texts)) < len(texts):
            raise ValueError(f"{name}: different values, at least one")
        axes.append((name, texts))
    return dict(over=axes)
