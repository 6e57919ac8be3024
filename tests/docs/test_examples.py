"""The examples in docstrings, run as tests."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

PACKAGES = ("streams", "anomaly", "connectors", "gpu_inference", "agents", "polarstream")


def modules() -> list[str]:
    found = []
    for name in PACKAGES:
        package = importlib.import_module(name)
        found += [name, *(module.name for module in pkgutil.walk_packages(package.__path__, f"{name}."))]
    return [name for name in found if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_the_examples_are_found() -> None:
    finder = doctest.DocTestFinder()
    found = {
        name for name in modules() if any(t.examples for t in finder.find(importlib.import_module(name)))
    }
    assert {"anomaly.detectors.ewz", "anomaly.alerts", "streams.codecs", "polarstream.filters"} <= found
