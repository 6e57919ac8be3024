"""`forecast`: what an RX 580 would do, said on a machine without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpu_inference import standard_models
from gpu_inference.opencl import gfx803
from tests.e2e.cli import Cli
from tests.gpu_inference import networks

needs_clang = pytest.mark.skipif(gfx803.toolchain() is None, reason=f"no clang for gfx803: {gfx803.APT_LINE}")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "small.onnx").write_bytes(standard_models.mobilenet_v2(size=32, width=0.25))
    return Cli(tmp_path)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfx803, "toolchain", lambda: None)


def test_without_the_compiler_times_are_still_predicted_and_packages_named(
    cli: Cli, no_compiler: None
) -> None:
    shown = cli.run("forecast", "small.onnx", "--batch", "1", "--batch", "8")
    assert shown.returncode == 0, shown.stderr
    assert "batch 1: " in shown.stdout
    assert "batch 8: " in shown.stdout
    assert "ms predicted on an RX 580" in shown.stdout
    assert "clang-19 lld-19 llvm-19 rocm-device-libs" in shown.stdout
    assert "fits 4.0 GiB" in shown.stdout


def test_json_has_the_same_with_every_kernel(cli: Cli, no_compiler: None) -> None:
    document = json.loads(cli.run("forecast", "small.onnx", "--batch", "2", "--json").stdout)
    (one,) = document["batches"]
    assert one["batch"] == 2
    assert one["total_us"] == pytest.approx(sum(row["time_us"] for row in one["kernels"]))
    assert one["launches"] == sum(row["launches"] for row in one["kernels"])
    assert one["memory"]["peak_bytes"] > one["memory"]["weight_bytes"] > 0
    assert {row["isa"] for row in one["kernels"]} == {None}
    assert "rocm-device-libs" in document["missing"]
    assert document["device"]["compute_units"] == 36


@needs_clang
def test_the_compiled_codes_numbers_stand_beside_the_times(cli: Cli) -> None:
    (one,) = json.loads(cli.run("forecast", "small.onnx", "--json").stdout)["batches"]
    for row in one["kernels"]:
        assert 0 < row["isa"]["vgprs"] <= 256
        assert row["isa"]["name"] == row["kernel"]
        assert row["isa"]["spills"] == 0
        assert row["isa"]["waves"] >= 1
    tiled = [row for row in one["kernels"] if row["kernel"] == "conv_nhwc"]
    assert all(row["isa"]["mad_share"] > 0.8 and row["isa"]["local_bytes"] > 0 for row in tiled)


def test_what_only_a_run_can_tell_is_said(cli: Cli, no_compiler: None) -> None:
    (cli.folder / "detector.onnx").write_bytes(networks.detector())
    shown = cli.run("forecast", "detector.onnx")
    assert shown.returncode == 0, shown.stderr
    assert "ends before NonMaxSuppression node" in shown.stdout
    assert "takes at least" in shown.stdout


def test_a_model_that_is_no_model_is_refused(cli: Cli) -> None:
    (cli.folder / "broken.onnx").write_bytes(b"nothing")
    assert cli.run("forecast", "broken.onnx").returncode == 70
    assert cli.run("forecast", "missing.onnx").returncode == 2
