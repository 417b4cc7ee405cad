"""The command line tool as a process."""

import os
import shutil
import subprocess


def find_binary(binary=None):
    """TPLIMIT_BINARY, or the one of the path, or that of the build."""
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3)
    for path in (
        binary,
        os.environ.get("TPLIMIT_BINARY"),
        shutil.which("tplimit"),
        os.path.join(root, "build", "release", "tplimit"),
    ):
        if path and os.path.exists(path):
            return path
    raise FileNotFoundError("the tool tplimit was not found: put it on the path, or name it in TPLIMIT_BINARY")


def command(arguments, binary=None):
    """Exit code, standard output, standard error."""
    done = subprocess.run([find_binary(binary), *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr
