"""One real broker for the whole session, a topic prefix for each test, own brokers for fault tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests import brokers

if TYPE_CHECKING:
    from polarstream.broker import LocalBroker
    from streams.config import KafkaConfig

_numbers = itertools.count(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI nothing skips: what a test needs, `.ci/run` installs."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """The broker that all tests share. Nobody stops it: use `own_broker` for that."""
    with brokers.quick_broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def broker(session_broker: LocalBroker) -> str:
    """Host and port of the session's broker."""
    return session_broker.bootstrap


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """A prefix for topics, groups and application ids that no other test has."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in request.node.name)
    return f"t{next(_numbers)}-{name[:60]}-"


@pytest.fixture
def kafka(broker: str) -> KafkaConfig:
    """How to reach the session's broker."""
    from streams.config import KafkaConfig

    return KafkaConfig(bootstrap_servers=[broker])


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LocalBroker]]:
    """Make brokers of the test's own, stopped at its end.

    Call it for a started `LocalBroker`: `stop()`, `kill()` (as kill -9) and `start()` again, on the
    same port and data. `start=False` leaves it stopped, `secure=True` gives it a SASL_SSL listener
    (`sasl_ssl` then holds its files and users); the rest goes to `brokers.quick_broker`.
    """
    made: list[LocalBroker] = []

    def make(*, start: bool = True, secure: bool = False, **options: object) -> LocalBroker:
        folder = tmp_path_factory.mktemp("own-broker")
        if secure:
            options["sasl_ssl"] = brokers.make_sasl_ssl(folder / "certificates")
        own = brokers.quick_broker(folder, **options)  # type: ignore[arg-type]
        made.append(own)
        if start:
            own.start()
        return own

    yield make
    for own in made:
        own.stop()
