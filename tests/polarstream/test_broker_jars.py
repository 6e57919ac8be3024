"""The cache of jars: locked by hash, fetched through jgo from a repository of our own on loopback."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from polarstream.broker import JarSource, LocalBroker, download_bar
from polarstream.broker.jars import Jar, JarLock, cache_root, read_lock
from streams.errors import BrokerUnavailable

CONTENT = {f"part-{name}": name.encode() * 5000 for name in "abc"}


def lock(repository: str = "http://127.0.0.1:9/maven2") -> JarLock:
    jars = tuple(
        Jar("org.example", name, "1.0", hashlib.sha256(content).hexdigest(), len(content))
        for name, content in CONTENT.items()
    )
    return JarLock("9.9.9", repository, jars)


@dataclass
class Repository:
    """A Maven repository on loopback that may garble its first answers."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    garble_first: int = 0


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Repository]:
    """Serve the jars of `CONTENT`; the user's own Maven repository is out of the way."""
    monkeypatch.setenv("M2_REPO", str(tmp_path / "no-m2"))
    served = Repository()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rsplit("/", 1)[1]
            content = CONTENT.get(name.removesuffix("-1.0.jar"))
            if content is None:
                self.send_error(404)
                return
            served.asked.append(name)
            if served.garble_first:
                served.garble_first -= 1
                content = content[:-1] + b"!"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_port}/maven2"
        yield served
        server.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_first_use_fetches_all_jars_and_tells_of_it(repository: Repository, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    jars = JarSource(tmp_path / "cache").ensure(
        lock(repository.url), lambda _what, done, total: told.append((done, total))
    )
    assert names(jars) == {f"{name}-1.0.jar" for name in CONTENT}
    assert told[0] == (0, 15_000)
    assert max(told) == (15_000, 15_000)
    assert names(jars.parent) == {"jars"}


def test_second_use_asks_nobody(repository: Repository, tmp_path: Path) -> None:
    source = JarSource(tmp_path / "cache")
    source.ensure(lock(repository.url))
    repository.asked.clear()
    source.ensure(lock(repository.url))
    assert repository.asked == []


def test_corrupted_jar_is_fetched_again_and_a_stray_one_removed(
    repository: Repository, tmp_path: Path
) -> None:
    source = JarSource(tmp_path / "cache")
    jars = source.ensure(lock(repository.url))
    repository.asked.clear()
    damaged = jars / "part-b-1.0.jar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (jars / "stray.jar").write_bytes(b"")
    source.ensure(lock(repository.url))
    assert repository.asked == ["part-b-1.0.jar"]
    assert damaged.read_bytes() == CONTENT["part-b"]
    assert not (jars / "stray.jar").exists()


def test_answer_with_a_wrong_hash_is_asked_for_again(repository: Repository, tmp_path: Path) -> None:
    repository.garble_first = 1
    jars = JarSource(tmp_path / "cache").ensure(lock(repository.url))
    assert (jars / "part-a-1.0.jar").read_bytes() == CONTENT["part-a"]
    assert len(repository.asked) == 4


def test_jar_that_is_never_the_locked_one_is_never_installed(repository: Repository, tmp_path: Path) -> None:
    repository.garble_first = 1000
    with pytest.raises(BrokerUnavailable, match="SHA-256"):
        JarSource(tmp_path / "cache").ensure(lock(repository.url))
    assert names(tmp_path / "cache/kafka-9.9.9/jars") == set()


def test_users_own_maven_repository_is_used_first(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "m2/org/example/part-c/1.0"
    own.mkdir(parents=True)
    (own / "part-c-1.0.jar").write_bytes(CONTENT["part-c"])
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    JarSource(tmp_path / "cache").ensure(lock(repository.url))
    assert sorted(repository.asked) == ["part-a-1.0.jar", "part-b-1.0.jar"]


def test_folder_of_jars_replaces_the_network(tmp_path: Path) -> None:
    folder = tmp_path / "usb stick"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / f"{name}-1.0.jar").write_bytes(content)
    jars = JarSource(tmp_path / "cache", folder=folder).ensure(lock())
    assert len(names(jars)) == 3


def test_folder_that_lacks_a_jar_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"3 of 3 jars .*not in "):
        JarSource(tmp_path / "cache", folder=tmp_path).ensure(lock())


def test_without_network_the_message_names_every_way_out(tmp_path: Path) -> None:
    nobody = JarSource(tmp_path / "cache", repository="http://127.0.0.1:9/maven2")
    with pytest.raises(BrokerUnavailable) as caught:
        LocalBroker(tmp_path, source=nobody).start()
    message = str(caught.value)
    assert "kafka.bootstrap_servers" in message
    assert "POLARSTREAM_JARS_DIR" in message
    assert "POLARSTREAM_MAVEN_URL" in message
    assert caught.value.exit_code == 69


def test_environment_names_the_source(tmp_path: Path) -> None:
    source = JarSource.from_env(
        {
            "POLARSTREAM_CACHE_DIR": str(tmp_path),
            "POLARSTREAM_JARS_DIR": "/jars",
            "POLARSTREAM_MAVEN_URL": "https://maven.example",
        }
    )
    assert source == JarSource(tmp_path, Path("/jars"), "https://maven.example")
    assert cache_root({"XDG_CACHE_HOME": "/x"}) == Path("/x/polarstream")
    assert cache_root({}) == Path.home() / ".cache/polarstream"


def test_lock_is_whole_and_brings_a_log_binding() -> None:
    found = read_lock()
    assert tuple(int(part) for part in found.kafka.split(".")) >= (4, 1)
    assert {"kafka_2.13", "slf4j-jdk14"} <= {jar.artifact for jar in found.jars}
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in found.jars)
    assert len({jar.name for jar in found.jars}) == len(found.jars)


def test_bar_shows_bytes_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with download_bar() as report:
        report("jars", 0, 2_000_000)
        report("jars", 2_000_000, 2_000_000)
        report("preparing", 0, 0)
        report("preparing", 1, 0)
    shown = capsys.readouterr().err
    assert "2.0/2.0 MB" in shown
    assert shown.count("preparing") == 1
