"""Who runs side by side: each peer with its own virtual environment, and polarstream as installed here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workload import ALPHA, FIELDS, STREAM, THRESHOLD, WARMUP

if TYPE_CHECKING:
    from collections.abc import Mapping

_PEERS = Path(__file__).parent / "peers"
_ROOT = Path(__file__).parent.parent


def cache_folder() -> Path:
    """Where environments of peers and data of brokers live: `$XDG_CACHE_HOME/polarstream/bench`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polarstream" / "bench"


@dataclass(frozen=True)
class Job:
    """What one run of a contestant is told: read `source`, write `target`.

    Attributes:
        group: consumer group, fresh for each run.
        folder: an empty folder for whatever it keeps.
        partitions: of both topics.
    """

    bootstrap: str
    source: str
    target: str
    group: str
    folder: Path
    partitions: int = 4


@dataclass(frozen=True)
class Contestant:
    """One way to do the job.

    Attributes:
        rate: readings/s that it is expected to reach; sizes its run, and nothing else.
        requirements: what pip installs into its environment; empty for polarstream.
        script: its program under peers/.
        arguments: placeholders in braces are filled from the Job; `{script}` is the program.
        committed: its output counts once its transaction is committed.
        worker: overrides of polarstream's [worker] table.
    """

    name: str
    title: str
    rate: int
    requirements: tuple[str, ...] = ()
    script: str = ""
    arguments: tuple[str, ...] = ("{script}", "{bootstrap}", "{source}", "{target}", "{group}", "{folder}")
    environment: Mapping[str, str] = field(default_factory=dict)
    committed: bool = False
    worker: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] | None = None

    def command(self, job: Job) -> list[str]:
        """The command line of one run; writes polarstream's configuration file where it needs one."""
        if not self.requirements:
            config = job.folder / "polarstream.toml"
            config.write_text(polarstream_toml(job, self.worker, self.detector))
            return [sys.executable, "-m", "polarstream", "worker", "--config", str(config)]
        values = {**vars(job), "script": str(_PEERS / self.script)}
        return [str(self.python()), *(a.format(**values) for a in self.arguments)]

    def process_environment(self, job: Job) -> dict[str, str]:
        """The environment of the process: ours, without what would leak our packages into a peer's."""
        env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}}
        if not self.requirements:
            env["PYTHONPATH"] = str(_ROOT)
        return {**env, **{k: v.format(**vars(job)) for k, v in self.environment.items()}}

    def python(self) -> Path:
        """The interpreter of its environment."""
        return cache_folder() / "envs" / self.name.partition("-")[0] / "bin" / "python"

    def install(self) -> None:
        """Makes its environment with pip, or leaves it where its requirements are met already."""
        if not self.requirements:
            return
        wanted = hashlib.sha256(json.dumps([self.requirements, sys.version_info[:2]]).encode()).hexdigest()
        home = self.python().parent.parent
        stamp = home / "requirements.sha256"
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        print(f"installing {self.title} into {home}", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)
        venv.EnvBuilder(with_pip=True).create(home)
        subprocess.run(
            [str(self.python()), "-m", "pip", "install", "--quiet", *self.requirements], check=True
        )
        stamp.write_text(wanted)

    def versions(self) -> dict[str, str]:
        """What is installed of the packages that decide its speed."""
        code = (
            "import json, importlib.metadata as m, platform\n"
            "names = ['polarstream', 'confluent-kafka', 'msgspec', 'quixstreams', 'bytewax', 'pathway',"
            " 'faust-streaming', 'aiokafka', 'numpy', 'uvloop', 'orjson']\n"
            "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
            "found = {n: have[n] for n in names if n in have}\n"
            "print(json.dumps({'python': platform.python_version(), **found}))"
        )
        python = str(self.python()) if self.requirements else sys.executable
        out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        return dict(json.loads(out.stdout))


def polarstream_toml(
    job: Job, worker: Mapping[str, Any] | None = None, detector: Mapping[str, Any] | None = None
) -> str:
    """The configuration that gives polarstream the same job as its peers, or that with another detector."""
    same = {"type": "ewz", "alpha": ALPHA, "warmup": WARMUP, "threshold": THRESHOLD}
    lines = [
        f"app_id = {json.dumps(job.group)}",
        f"data_dir = {json.dumps(str(job.folder / 'data'))}",
        "[kafka]",
        f"bootstrap_servers = {json.dumps(job.bootstrap.split(','))}",
        "[topics]",
        f"predictions = {json.dumps(job.target)}",
        *(
            f"{t} = {json.dumps(f'{job.target}.{t}')}"
            for t in ("alerts", "analytics", "dead_letter", "control")
        ),
        "[worker]",
        *(f"{k} = {json.dumps(v)}" for k, v in (worker or {}).items()),
        "[[streams]]",
        f"name = {json.dumps(STREAM)}",
        f"topic = {json.dumps(job.source)}",
        f"partitions = {job.partitions}",
        *(f"[streams.fields.{name}]" for name in FIELDS),
        "[streams.detector]",
        *(f"{k} = {json.dumps(v)}" for k, v in (detector or same).items()),
    ]
    return "\n".join(lines) + "\n"


_IN_ENVIRONMENT = {
    "BOOTSTRAP": "{bootstrap}",
    "SOURCE": "{source}",
    "TARGET": "{target}",
    "GROUP": "{group}",
    "FOLDER": "{folder}",
    "PYTHONPATH": str(_PEERS),
}

CONTESTANTS: dict[str, Contestant] = {
    c.name: c
    for c in (
        Contestant("polarstream", "polarstream", 320_000),
        Contestant(
            "polarstream-eo",
            "polarstream, exactly once",
            260_000,
            committed=True,
            worker={"delivery": "exactly_once"},
        ),
        Contestant("polarstream-auto", "polarstream, auto", 120_000, detector={"type": "auto"}),
        Contestant(
            "confluent",
            "confluent-kafka loop",
            200_000,
            ("confluent-kafka==2.16.1", "msgspec==0.22.0"),
            "confluent_loop.py",
        ),
        Contestant("pathway", "Pathway", 80_000, ("pathway==0.33.0", "msgspec==0.22.0"), "pathway_app.py"),
        Contestant(
            "bytewax",
            "Bytewax",
            47_000,
            ("bytewax[kafka]==0.21.1", "confluent-kafka==2.16.1", "msgspec==0.22.0"),
            "bytewax_app.py",
            ("-m", "bytewax.run", "bytewax_app:flow"),
            _IN_ENVIRONMENT,
        ),
        Contestant("quix", "Quix Streams", 33_000, ("quixstreams==3.28.1",), "quix_app.py"),
        Contestant(
            "faust",
            "plain Faust, table",
            2_200,
            ("faust-streaming[fast]==0.15.3", "orjson==3.13.0", "uvloop==0.23.0"),
            "faust_app.py",
            ("{script}", "--loop", "uvloop", "worker", "--loglevel", "warn"),
            _IN_ENVIRONMENT,
        ),
    )
}
