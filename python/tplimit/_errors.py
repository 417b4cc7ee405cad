"""What goes wrong, as the library words it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Mapping, Optional, Sequence


@dataclass(frozen=True)
class Diagnostic:
    """One error or warning; docs/diagnostics.md explains every code."""

    code: str
    """Such as ``"E2103"``; stable."""
    message: str
    """One line, without a full stop."""
    help: str
    """What to do about it; may be empty."""
    label: str
    """What stands behind the caret; may be empty."""
    line: Optional[int]
    """From 1; ``None`` where there is no place in the program to point at."""
    column: Optional[int]
    rendered: str
    """With the line of the program, a caret, and notes."""

    def __str__(self) -> str:
        return self.rendered


class Error(Exception):
    """The program is rejected, or its evaluation stopped.  ``str(error)`` is what the command line
    prints; the attributes are those of the first diagnostic."""

    def __init__(self, diagnostics: Sequence[Mapping[str, Any]], rendered: str) -> None:
        super().__init__("\n" + rendered.rstrip())
        self.diagnostics: list[Diagnostic] = [Diagnostic(**d) for d in diagnostics]
        """All of them, in order."""
        self.rendered: str = rendered

    def __reduce__(self) -> tuple[Any, ...]:  # between processes
        return type(self), ([asdict(d) for d in self.diagnostics], self.rendered)

    @property
    def code(self) -> str:
        return self.diagnostics[0].code

    @property
    def message(self) -> str:
        return self.diagnostics[0].message

    @property
    def help(self) -> str:
        return self.diagnostics[0].help

    @property
    def line(self) -> Optional[int]:
        return self.diagnostics[0].line

    @property
    def column(self) -> Optional[int]:
        return self.diagnostics[0].column


class ProgramWarning(UserWarning):
    """What the library says of a program or a result that it nevertheless computes."""
