"""``%%tplimit``: a cell is a program."""

from __future__ import annotations

import re
from typing import Any

from ._program import Program

COMMANDS = ("run", "simulate", "compare", "sweep", "extrapolate", "coordcheck", "check", "explain", "program")
OF_PROGRAM = ("constants", "data_files", "folder", "decouple", "no_correction", "lazy")


def _words(line: str) -> list[str]:
    """Separated by spaces outside brackets and quotes."""
    words, depth, quote = [""], 0, ""
    for c in line:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        if c.isspace() and not depth and not quote:
            words.append("")
        else:
            words[-1] += c
    return [w for w in words if w]


def register(ipython: Any) -> None:
    def tplimit(line: str, cell: str) -> Any:
        """``%%tplimit [COMMAND] [OPTION=VALUE ..] [DATA ..] [-> NAME]``

        COMMAND: ``run`` (default), ``simulate``, ``compare``, ``sweep``, ``extrapolate``, ``coordcheck``, ``check``,
        ``explain`` or ``program``.  Options are those of the method, or of ``Program``: ``constants={"eta": 0.1}``;
        values are Python expressions, or words.  Names of variables alone, such as ``X y``, replace data of the
        program.  ``-> NAME`` keeps the result in this variable instead of showing it."""
        name = None
        if "->" in line:
            line, name = map(str.strip, line.rsplit("->", 1))
            if not name.isidentifier():
                raise ValueError(f"-> NAME: a variable's name is wanted, not '{name}'")
        words = _words(line)
        command = words.pop(0) if words and words[0] in COMMANDS else "run"
        options, of_program, data = {}, {}, {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                if key not in ipython.user_ns:
                    hint = f"a command ({', '.join(COMMANDS)}), OPTION=VALUE or the name of a variable"
                    raise NameError(f"'{key}' is no variable; wanted is {hint}")
                data[key] = ipython.user_ns[key]
                continue
            try:
                found = eval(value, ipython.user_ns)
            except NameError:
                if not re.fullmatch(r"[\w./-]+", value):
                    raise
                found = value
            except SyntaxError as error:
                if not re.fullmatch(r"[\w./-]+", value):
                    raise ValueError(f"{key}: '{value}' is no Python expression") from error
                found = value
            (of_program if key in OF_PROGRAM else options)[key] = found
        program = Program(cell, data=data, **of_program)
        result = program if command == "program" else getattr(program, command)(**options)
        if name is None:
            return result
        ipython.user_ns[name] = result
        return None

    ipython.register_magic_function(tplimit, magic_kind="cell", magic_name="tplimit")
