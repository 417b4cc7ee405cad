"""Programs, and what can be computed from them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional, Sequence, Union

import numpy as np

from . import _core
from ._errors import Diagnostic, ProgramWarning
from ._progress import Progress, bar
from ._results import Check, Comparison, Explanation, Limit, Networks, Parametrization

Values = Union[float, Sequence[float]]


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


def _warn(found: Iterable[Diagnostic]) -> None:
    for d in found:
        warnings.warn("\n" + d.rendered.rstrip(), ProgramWarning, stacklevel=4)


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
        if isinstance(source, os.PathLike) or ("\n" not in source and source.endswith(".tp")):
            path = Path(source)
            text = path.read_text(encoding="utf-8")
            name, folder = name or str(path), path.parent if folder is None else folder
        else:
            text = str(source)
        own = {key: np.ascontiguousarray(value, dtype=np.float64).reshape(np.shape(value))
               for key, value in {**(data or {}), **arrays}.items()}
        self._core = _core.Program(
            text=text, name=name or "program.tp", folder=str("." if folder is None else folder),
            constants=[(key, _text(value)) for key, value in (constants or {}).items()], data=own,
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

    def __repr__(self) -> str:
        return f"<Program: {len(self.text.splitlines())} lines; reports {', '.join(self.reports)}>"

    def run(self, *, particles: Optional[int] = None, tol: Optional[float] = None, tol_on: Sequence[str] = (),
            randomisations: int = 8, seed: int = 0, draws: int = 1, engine: str = "auto",
            given: Optional[Mapping[str, Values]] = None, rank_tol: Optional[float] = None, merge_rows: float = 1e-12,
            matrices: str = "auto", precision: str = "double", threads: int = 0, memory: float = 0,
            progress: Progress = None) -> Limit:
        """The limit of infinite width.

        The options are those of ``tplimit run`` (docs/cli.md), and the same options give the same bits.  Ctrl-C ends
        it soon.  Raises :class:`tplimit.Error`."""
        options = _limit_options(locals())
        options["draws"] = draws
        with bar(progress, "limit") as shown:
            result = Limit(self._core.run(options, shown))
        _warn(result.warnings)
        return result

    def simulate(self, width: int, seeds: int = 1, *, seed: int = 0, matrices: str = "auto", precision: str = "double",
                 threads: int = 0, memory: float = 0, progress: Progress = None) -> Networks:
        """Finite networks of one width, as ``tplimit simulate``."""
        options = dict(width=width, seeds=seeds, seed=seed, matrices=matrices, precision=precision, threads=threads,
                       memory=float(memory))
        with bar(progress, f"width {width}") as shown:
            result = Networks(self._core.simulate(options, shown))
        _warn(result.warnings)
        return result

    def compare(self, widths: Sequence[int] = (128, 512, 2048), seeds: int = 8, *, particles: Optional[int] = None,
                tol: Optional[float] = None, tol_on: Sequence[str] = (), randomisations: int = 8, seed: int = 0,
                draws: int = 64, engine: str = "auto", given: Optional[Mapping[str, Values]] = None,
                rank_tol: Optional[float] = None, merge_rows: float = 1e-12, matrices: str = "auto",
                precision: str = "double", threads: int = 0, memory: float = 0,
                progress: Progress = None) -> Comparison:
        """Networks of several widths beside the limit, and whether they tend to it, as ``tplimit compare``."""
        if len(set(widths)) < len(widths) or not widths:
            raise ValueError("widths: different whole numbers, at least one")
        if seeds < 2 or randomisations < 2:
            raise ValueError("compare needs 2 seeds and 2 randomisations or more")
        options = _limit_options(locals())
        options.update(draws=draws, widths=sorted(map(int, widths)), seeds=seeds)
        with bar(progress, "compare") as shown:
            result = Comparison(self._core.compare(options, shown))
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
        options = _limit_options(locals())
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
    out["memory"] = float(given["memory"])
    tol_on = given["tol_on"]
    out["tol_on"] = [tol_on] if isinstance(tol_on, str) else list(tol_on)
    values = dict(given["given"] or {})
    if len(values) > 1:
        raise ValueError("given: one output")
    out["given"] = {name: list(map(float, np.ravel(v))) for name, v in values.items()}
    return out
