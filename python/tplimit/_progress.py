"""Bars, by tqdm where it is installed."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Union

Progress = Union[bool, Callable[[float], object], None]
"""``True`` or ``None``: a bar, if tqdm is installed, for what takes longer than a second; ``False``: none; a function:
called with the fraction that is done, by the thread that waits."""


@contextmanager
def bar(progress: Progress, name: str) -> Iterator[Optional[Callable[[float], object]]]:
    if callable(progress):
        yield progress
        return
    if progress not in (True, False, None) or isinstance(progress, (int, float)) and not isinstance(progress, bool):
        raise ValueError(f"progress: True, False, or a function of the fraction that is done, not {progress!r}")
    if progress is False:
        yield None
        return
    try:
        with warnings.catch_warnings():  # in notebooks without ipywidgets, which get a bar of text
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        yield None
        return
    with tqdm(total=1.0, desc=name, delay=1, leave=False,
              bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}") as shown:
        yield lambda done: shown.update(done - shown.n)
