"""The page of metrics against what a process exports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prometheus_client.metrics import MetricWrapperBase

from streams import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<type>\w+) \| (?P<labels>[^|]*)\| (?P<meaning>[^|]+) \|$")


class Metric(NamedTuple):
    name: str
    type: str
    labels: frozenset[str]


def written() -> list[Metric]:
    rows = [ROW.match(line) for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [
        Metric(row["name"], row["type"], frozenset(re.findall(r"`(\w+)`", row["labels"])))
        for row in rows
        if row is not None
    ]


def exported() -> set[Metric]:
    labels = {
        metric._name: frozenset(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
    }
    latency = metrics.LatencyHistogram()
    latency.observe("plant", np.array([0.1]))
    for family in latency.collect():
        labels[family.name] = frozenset(family.samples[0].labels) - {"le"}
    return {
        Metric(
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            labels.get(family.name, frozenset()),
        )
        for family in metrics.REGISTRY.collect()
    }


def test_every_metric_is_on_the_page_once_with_its_type_and_labels() -> None:
    page = written()
    assert len(page) == len({metric.name for metric in page})
    assert exported() - set(page) == set()


def test_the_page_names_no_metric_that_is_not_exported() -> None:
    # where /proc is missing, prometheus_client exports none of the process's own
    assert {
        metric for metric in set(written()) - exported() if not metric.name.startswith("process_")
    } == set()


def test_every_metric_of_the_module_is_registered() -> None:
    families = {family.name for family in metrics.REGISTRY.collect()}
    declared = {m._name for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)}
    assert declared <= families
