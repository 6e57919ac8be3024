"""`broker.json`: what outlives a broker's process, and which process that is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarstream.broker.process import ProcessId
from polarstream.broker.settings import HOST


@dataclass(frozen=True, slots=True)
class State:
    """The content of `broker.json`; the ports outlive the process."""

    port: int
    controller_port: int
    process: ProcessId | None
    detached: bool

    def stopped(self) -> State:
        """The same without a process."""
        return State(self.port, self.controller_port, None, False)


def read_state(folder: Path) -> State | None:
    """The state in a folder; None before the first start, or when the file is damaged."""
    try:
        table: dict[str, Any] = json.loads((folder / "broker.json").read_text(encoding="utf-8"))
        process = table["process"]
        return State(
            table["port"],
            table["controller_port"],
            ProcessId(process["pid"], process["started"], str(folder / "server.properties"))
            if process
            else None,
            table["detached"],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_state(folder: Path, state: State) -> None:
    """Replace the state in a folder, at one stroke."""
    process = state.process
    table = {
        "bootstrap": f"{HOST}:{state.port}",
        "port": state.port,
        "controller_port": state.controller_port,
        "detached": state.detached,
        "process": {"pid": process.pid, "started": process.started} if process else None,
    }
    partial = folder / "broker.json.new"
    partial.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "broker.json")
