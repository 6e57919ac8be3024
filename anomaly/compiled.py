"""Loops over readings compiled to machine code, by numba.

A score depends on what the readings before it left behind, so a detector is a loop over readings in order. In
plain Python such a loop takes microseconds a reading and field; in NumPy only detectors with little state can
be taken in wide rounds over sensors, as `ewz` is. Compiled, a loop costs 3 to 300 ns a reading, and any cut
of the stream gives the same scores bit for bit, because nothing is reordered.

The machine code is kept on disk next to the module (or under `NUMBA_CACHE_DIR`), so that only the first
process ever waits for the compiler. Importing numba takes 0.1 s and about 65 MB: modules that use this are
imported when a detector of theirs is asked for, never before.

Caution for whoever edits: the cache looks at the file of a compiled function, not at functions in other files
that it calls; after a change in one of those, touch the caller or delete `__pycache__`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

#: Tells the machine code of this process from that of others.
_PROCESS = os.urandom(6).hex()

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of arrays and numbers; division by zero gives inf or NaN, as in NumPy.

    The order of operations is kept, so results are those of the same code in Python.
    """
    return _compile(function, fastmath=False)


def compiled_any_order(function: Function) -> Function:
    """Compile a reduction (sum, minimum) whose operations may be reordered, so that it uses vector units.

    Only for results that don't depend on how the stream is cut: the same array in, the same bits out. NaN is
    not expected in the arrays.
    """
    return _compile(function, fastmath={"nnan", "nsz", "reassoc", "contract", "arcp"})


def _compile(function: Function, fastmath: bool | set[str]) -> Function:
    decorate = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)
    dispatcher = cast("Function", decorate(function))
    # numba names a function after its types, and a record type after how many types the process had before.
    # So code on disk, made by another process for other fields, may bear the name of code made here, and the
    # linker then keeps either: scores were wrong, seen with 1 and 3 fields (numba issue 10486). The cache has
    # taken its file name from the function by now.
    function.__qualname__ = f"{function.__qualname__}_{_PROCESS}"
    return dispatcher
