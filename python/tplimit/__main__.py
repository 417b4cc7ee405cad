"""The command line: ``tplimit``, or ``python -m tplimit``."""

import signal
import sys

from . import _core


def main() -> None:
    for name in ("SIGINT", "SIGPIPE"):  # as any program has them; Python changes both
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    sys.exit(_core.command_line(["tplimit", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
