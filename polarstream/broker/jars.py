"""Kafka's jars: what the lock file names, and a cache folder that holds exactly that.

`jars.toml` beside this module lists every jar with its Maven coordinates, size and SHA-256. A jar
is used only when its hash is the locked one, wherever it came from: the cache, a folder that the
user names, the user's own Maven repository or Maven Central (through jgo).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from polarstream.broker.folder_lock import folder_lock
from polarstream.broker.progress import Progress, silent
from streams.errors import BrokerUnavailable, MissingExtra

_FETCH_THREADS = 6
_TIMEOUT_S = 15
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Jar:
    """One locked jar: Maven coordinates, SHA-256 as hex and size in bytes."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """The file's name, as Maven gives it."""
        return f"{self.artifact}-{self.version}.jar"


@dataclass(frozen=True, slots=True)
class JarLock:
    """The content of `jars.toml`."""

    kafka: str
    repository: str
    jars: tuple[Jar, ...]

    @property
    def size(self) -> int:
        """Bytes of all jars."""
        return sum(jar.size for jar in self.jars)


def read_lock() -> JarLock:
    """Read the lock file that this package ships."""
    text = resources.files("polarstream.broker").joinpath("jars.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    jars = []
    for entry in table["jar"]:
        group, artifact, version = entry["coordinates"].split(":")
        jars.append(Jar(group, artifact, version, entry["sha256"], entry["size"]))
    return JarLock(table["kafka"], table["repository"], tuple(jars))


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder for what can be fetched again: $POLARSTREAM_CACHE_DIR, else the user's cache."""
    if own := environ.get("POLARSTREAM_CACHE_DIR"):
        return Path(own).expanduser()
    if xdg := environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser() / "polarstream"
    if local := environ.get("LOCALAPPDATA"):
        return Path(local) / "polarstream" / "cache"
    return Path.home() / ".cache" / "polarstream"


@dataclass(frozen=True, slots=True)
class JarSource:
    """Where jars are kept and where missing ones come from.

    Args:
        cache: the root of the cache; jars lie in `<cache>/kafka-<version>/jars`.
        folder: a folder that holds the jars already; nothing is downloaded then.
        repository: URL of a Maven repository to use instead of Maven Central.
    """

    cache: Path
    folder: Path | None = None
    repository: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> JarSource:
        """The source that $POLARSTREAM_CACHE_DIR, _JARS_DIR and _MAVEN_URL describe."""
        folder = environ.get("POLARSTREAM_JARS_DIR")
        return cls(
            cache_root(environ),
            Path(folder).expanduser() if folder else None,
            environ.get("POLARSTREAM_MAVEN_URL") or None,
        )

    def home(self, lock: JarLock) -> Path:
        """The folder of everything that belongs to one version of Kafka."""
        return self.cache / f"kafka-{lock.kafka}"

    def ensure(self, lock: JarLock | None = None, progress: Progress = silent) -> Path:
        """Make the cache hold exactly the locked jars, every hash checked.

        Args:
            lock: which jars; those of `jars.toml` by default.
            progress: told of the bytes fetched.

        Returns:
            The folder of the jars.

        Raises:
            BrokerUnavailable: a jar is missing and can't be had; the message says what to do.
            MissingExtra: a jar has to be fetched and jgo is not installed.
        """
        lock = lock or read_lock()
        jars = self.home(lock) / "jars"
        if not _wrong(lock, jars):
            return jars
        jars.mkdir(parents=True, exist_ok=True)
        with folder_lock(self.home(lock)):
            wrong = _wrong(lock, jars)
            if wrong:
                self._fill(lock, wrong, jars, progress)
            known = {jar.name for jar in lock.jars}
            for stray in jars.iterdir():
                if stray.name not in known:
                    stray.unlink()
        return jars

    def _fill(self, lock: JarLock, wrong: list[Jar], jars: Path, progress: Progress) -> None:
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=self.home(lock)) as scratch:
            if self.folder is not None:
                get = _folder_getter(self.folder)
            else:
                get = _maven_getter(self.repository or lock.repository, Path(scratch), wrong, progress)
            pool = ThreadPoolExecutor(_FETCH_THREADS, "jars")
            try:
                jobs = [pool.submit(_install, jar, get, jars) for jar in wrong]
                wait(jobs, return_when=FIRST_EXCEPTION)
            finally:  # one that can't be had, or Ctrl-C: don't go on with the others
                pool.shutdown(cancel_futures=True)
        reasons = {
            jar.name: job.exception()
            for jar, job in zip(wrong, jobs, strict=True)
            if not job.cancelled() and job.exception() is not None
        }
        if reasons:
            name, reason = next(iter(reasons.items()))
            missing = _wrong(lock, jars)
            raise BrokerUnavailable(
                f"{len(missing)} of {len(lock.jars)} jars of Apache Kafka {lock.kafka} can't be had "
                f"({name}: {reason}). Do one of these:\n"
                "  use a broker that runs already: set kafka.bootstrap_servers in polarstream.toml, or "
                "POLARSTREAM_KAFKA__BOOTSTRAP_SERVERS=host:9092\n"
                "  name a folder that holds the jars: POLARSTREAM_JARS_DIR=/path (filled on a machine with "
                f"internet access: copy {jars})\n"
                "  name a Maven repository that this machine reaches: POLARSTREAM_MAVEN_URL=https://..."
            )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wrong(lock: JarLock, jars: Path) -> list[Jar]:
    def is_wrong(jar: Jar) -> bool:
        path = jars / jar.name
        try:
            return path.stat().st_size != jar.size or sha256_of(path) != jar.sha256
        except OSError:
            return True

    with ThreadPoolExecutor(os.cpu_count() or 1, "hash") as pool:
        return [jar for jar, wrong in zip(lock.jars, pool.map(is_wrong, lock.jars), strict=True) if wrong]


def _install(jar: Jar, get: Callable[[Jar], Path], jars: Path) -> None:
    source = get(jar)
    found = sha256_of(source)
    if found != jar.sha256:
        raise ValueError(f"{source} has SHA-256 {found}, locked is {jar.sha256}")
    handle, partial = tempfile.mkstemp(prefix=jar.name, suffix=".part", dir=jars)
    with os.fdopen(handle, "wb") as target, source.open("rb") as content:
        shutil.copyfileobj(content, target)
    Path(partial).replace(jars / jar.name)


def _folder_getter(folder: Path) -> Callable[[Jar], Path]:
    def get(jar: Jar) -> Path:
        path = folder / jar.name
        if not path.is_file():
            raise FileNotFoundError(f"not in {folder}")
        return path

    return get


def _maven_getter(url: str, scratch: Path, wanted: list[Jar], progress: Progress) -> Callable[[Jar], Path]:
    try:
        import requests  # which jgo brings
        from jgo.maven import MavenContext, PythonResolver
    except ImportError:
        raise MissingExtra("jgo", "local") from None
    total = sum(jar.size for jar in wanted)
    what = "Apache Kafka's jars (once)"
    guard = threading.Lock()
    fetched = 0
    progress(what, 0, total)

    @contextmanager
    def counting(_name: str, _size: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal fetched
            with guard:
                fetched += count
                progress(what, min(fetched, total), total)

        yield advance

    own = Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")

    def get(jar: Jar) -> Path:
        # one scratch repository a try: jgo writes straight to the final name and never looks at it again
        for last in range(_TRIES):
            maven = MavenContext(
                resolver=PythonResolver(progress_callback=counting),
                repo_cache=scratch / str(last),
                local_repos=[own] if last == 0 and own.is_dir() else [],
                remote_repos={"repository": url.rstrip("/")},
                timeout=_TIMEOUT_S,
            )
            artifact = maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
            try:
                path = Path(artifact.resolve())
                if sha256_of(path) == jar.sha256 or last == _TRIES - 1:
                    return path
            except requests.ConnectTimeout:  # nobody is there: trying again only takes longer
                raise
            except requests.RequestException:
                if last == _TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    return get
