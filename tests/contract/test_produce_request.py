"""Joined produce requests against aiokafka's own, byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.protocol.produce import ProduceRequest
from hypothesis import given
from hypothesis import strategies as st

from streams.produce_request import JoinedProduceRequest

API_KEY = 0
topics = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=20),
        st.lists(st.tuples(st.integers(0, 2**31 - 1), st.binary(max_size=200)), max_size=4),
    ),
    max_size=3,
)


def encoded(request: Any, version: int) -> bytes:
    """What `AIOKafkaConnection.send` writes, without the length before it."""
    struct = request.prepare({API_KEY: (version, version)})
    chosen = struct.API_VERSION
    assert chosen == version
    header = struct.build_request_header(correlation_id=77, client_id="polarstream")
    return bytes(header.encode() + struct.encode())


@pytest.mark.parametrize("version", range(8))
@given(topics=topics, transactional_id=st.none() | st.text(max_size=20))
def test_a_joined_request_has_the_bytes_of_aiokafkas(
    version: int, topics: list[Any], transactional_id: str | None
) -> None:
    if version < 3:
        transactional_id = None
    args = (transactional_id, -1, 40_000, topics)
    assert encoded(JoinedProduceRequest(*args), version) == encoded(ProduceRequest(*args), version)
