"""``%%tplimit``: a cell is a program."""

from __future__ import annotations

import ast
import shlex
from typing import Any

from ._program import Program


def register(ipython: Any) -> None:
    def tplimit(line: str, cell: str) -> Any:
        """``%%tplimit [COMMAND] [OPTION=VALUE ..] [DATA ..] [-> NAME]``

        COMMAND: ``run`` (default), ``simulate``, ``compare``, ``sweep``, ``extrapolate``, ``coordcheck``, ``check``,
        ``explain`` or ``program``.  Options are those
        of the method; names of Python variables alone, such as ``X y``, replace data of the program.  ``-> NAME`` keeps
        the result in this variable instead of showing it."""
        words = shlex.split(line)
        name = None
        if len(words) >= 2 and words[-2] == "->":
            words, name = words[:-2], words[-1]
        commands = ("run", "simulate", "compare", "sweep", "extrapolate", "coordcheck", "check", "explain", "program")
        command = words.pop(0) if words and words[0] in commands else "run"
        options, data = {}, {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                data[key] = ipython.user_ns[key]
                continue
            try:
                options[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                options[key] = ipython.user_ns.get(value, value)
        program = Program(cell, data=data)
        result = program if command == "program" else getattr(program, command)(**options)
        if name is None:
            return result
        ipython.user_ns[name] = result
        return None

    ipython.register_magic_function(tplimit, magic_kind="cell", magic_name="tplimit")
