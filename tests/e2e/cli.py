"""Running the command line as a user does: its output, its exit code."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import msgspec

from polarstream.cli import main


class Cli:
    """Runs `polarstream` in a folder of its own, against one broker or none."""

    def __init__(self, folder: Path, bootstrap: str | None = None, **settings: str) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("POLARSTREAM_") or "CACHE" in k}
        self.environment: dict[str, str] = {
            **kept,
            "POLARSTREAM_DATA_DIR": str(folder / "data"),
            "COLUMNS": "200",
            **settings,
        }
        if bootstrap is not None:
            self.environment["POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS"] = bootstrap

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "polarstream", *arguments]

    def run(self, *arguments: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a command in this process, which saves the second that Python takes to start."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(self.folder),
            mock.patch.dict(os.environ, self.environment, clear=True),
            mock.patch.object(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data))),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main(arguments)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def spawn(
        self, *arguments: str, stdin: bytes = b"", timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a process of its own."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=self.environment,
            timeout=timeout_s,
            check=False,
        )
        return subprocess.CompletedProcess(
            arguments, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def ok(self, *arguments: str, stdin: str | bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        return done.stdout

    def json(self, *arguments: str, stdin: str | bytes = b"") -> Any:
        return msgspec.json.decode(self.ok(*arguments, "--json", stdin=stdin))

    def json_lines(self, *arguments: str) -> list[Any]:
        return [msgspec.json.decode(line) for line in self.ok(*arguments, "--json").splitlines()]

    def fails(self, code: int, *arguments: str, stdin: str | bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == code, (done.returncode, done.stderr, done.stdout)
        assert "Traceback" not in done.stderr
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
