"""Loops over pixels and boxes compiled to machine code, by numba.

The machine code is kept on disk next to the module (or under `NUMBA_CACHE_DIR`), so that only the first
process ever waits for the compiler. A compiled loop holds no lock of Python's: threads run it side by side.
Importing numba takes 0.1 s and about 65 MB.

Caution for whoever edits: the cache looks at the file of a compiled function, not at functions in other files
that it calls; after a change in one of those, touch the caller or delete `__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles a function of arrays and numbers; the order of operations is kept."""
    return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
