from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODULE = """
from anomaly.compiled import compiled

@compiled
def length(cell):
    return cell.x.shape[0]
"""
SHOW = """
import numpy as np, loop
record = np.zeros(1, np.dtype([("x", "<f8", ({fields},))]))[0]
assert loop.length(record) == {fields}
(made,) = loop.length.overloads.values()
(hits,) = [*loop.length.stats.cache_hits.values(), 0][:1]
print(made.fndesc.mangled_name, hits)
"""


def show(folder: Path, fields: int) -> list[str]:
    path = os.pathsep.join([str(folder), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", SHOW.format(fields=fields)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()


def test_code_from_the_cache_never_bears_the_name_of_other_code(tmp_path: Path) -> None:
    # the linker takes one of two functions of the same name, so a detector of 3 fields ran that of 1
    (tmp_path / "loop.py").write_text(MODULE, encoding="utf-8")
    (one, missed), (three, _) = show(tmp_path, 1), show(tmp_path, 3)
    assert one != three
    assert missed == "0"
    assert show(tmp_path, 3) == [three, "1"]  # and it comes from the cache as before
