"""The command line. `main` is the entry point; each module here holds one group of commands."""

from __future__ import annotations

from polarstream.cli.main import main

__all__ = ["main"]
