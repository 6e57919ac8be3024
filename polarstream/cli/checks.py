"""`doctor` and `status`: look, and change nothing."""

from __future__ import annotations

import asyncio
import sys
import time

import typer

from polarstream.cli.options import ConfigOption, JsonOption, examples, load_config
from polarstream.cli.output import print_json, print_table

_MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog=examples("polarstream doctor", "polarstream doctor --json"))(doctor)
    app.command(epilog=examples("polarstream status", "polarstream status --json"))(status)


def doctor(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Check Python, configuration, broker, clock, disk, memory and devices; says what to do.

    Exit code 1 when something fails, 0 when all is well or only warned about.
    """
    from polarstream.doctor import examine

    checks = examine(config)
    if json:
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{_MARKS[check.verdict]:4}  {check.name:{width}}  {check.found}")
            if check.advice:
                print(f"      {'':{width}}  → {check.advice}")
    return int(any(check.verdict == "fail" for check in checks))


def status(config: ConfigOption = None, json: JsonOption = False) -> int:
    """Show the broker, the workers of this data folder, their lag and the topics."""
    from polarstream.status import gather_status

    found = asyncio.run(gather_status(load_config(config)))
    if json:
        print_json(found)
        return 69 if found.broker_fault else 0
    print(f"data folder  {found.data_dir}")
    print(f"broker       {found.broker or 'none'}")
    if found.broker_fault:
        print(f"error: {found.broker_fault}", file=sys.stderr)
    if not found.workers:
        print("workers      none in this data folder")
    for worker in found.workers:
        minutes = (time.time() - worker.started_at) / 60
        print(f"worker       {worker.instance_id}, process {worker.pid}, {minutes:.0f} min, {worker.metrics}")
    for entry in found.lag:
        print(f"lag          {entry.topic}: {entry.lag} messages")
    if found.topics:
        print()
        print_table(
            ("TOPIC", "PARTITIONS", "MESSAGES"), [(t.name, t.partitions, t.messages) for t in found.topics]
        )
    return 69 if found.broker_fault else 0
