"""The pool with sessions that do what a test tells them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpu_inference import TensorInfo
from gpu_inference.serving import DevicePool, DeviceSpec


class Doubling:
    """y = 2 x."""

    inputs = outputs = (TensorInfo("x", np.dtype(np.float32), (None, 3)),)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": 2 * inputs["x"]}

    def close(self) -> None:
        pass


def test_two_devices_share_the_batches() -> None:
    pool = DevicePool([DeviceSpec(name, lambda key: Doubling()) for name in "ab"], "round-robin")
    try:
        assert pool.open("m", sizes=(1, 4)).result(5).devices == ("a", "b")
        batches = [np.full((4, 3), i, np.float32) for i in range(20)]
        answers = [f.result(5) for f in [pool.submit("m", {"x": batch}) for batch in batches]]
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(answer.outputs["y"], 2 * batch)
        assert [answer.device for answer in answers] == ["a", "b"] * 10
        pool.retire("m").result(5)
    finally:
        assert pool.close(5)
