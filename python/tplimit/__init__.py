"""Infinite-width limits of neural networks, with error bars, and finite networks beside them.

>>> import tplimit
>>> p = tplimit.Program('''
... width n
... data x = [1, 2]
... random W : [n, 2] ~ normal(0, 1)
... report K = E(tanh(W @ x)^2)
... ''')
>>> r = p.run()
>>> print(r.K.value, r.K.method)
0.6782440494217463 closed form

In a notebook, ``%load_ext tplimit`` adds the cell magic ``%%tplimit``.
"""

from . import _vector_units

__path__.insert(0, _vector_units.folder)  # where _core is

from ._errors import Diagnostic, Error, ProgramWarning
from ._program import Program
from ._results import (Check, Comparison, CoordinateCheck, Explanation, Extrapolation, Limit, Networks, Plot, Report,
                       Sweep)
from ._core import version as __version__

__all__ = ["Check", "Comparison", "CoordinateCheck", "Diagnostic", "Error", "Explanation", "Extrapolation", "Limit",
           "Networks", "Plot", "Program", "ProgramWarning", "Report", "Sweep", "__version__"]


def __getattr__(name):
    """PyTorch's side, docs/pytorch.md, and JAX's, docs/jax.md; they are imported where they are needed."""
    if name in ("from_torch", "lint", "measure"):
        from . import pytorch
        return getattr(pytorch, name)
    if name == "from_jax":
        from .jax import from_jax
        return from_jax
    if name in ("pytorch", "jax"):
        import importlib
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'tplimit' has no attribute '{name}'")


def load_ipython_extension(ipython) -> None:
    """``%load_ext tplimit``"""
    from ._magic import register
    register(ipython)
