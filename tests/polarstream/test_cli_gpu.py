"""`devices`, `tune`, `profile` and `gpu-report`, on whatever OpenCL device there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from gpu_inference import DeviceError, KernelError, conformance, devices, standard_models
from gpu_inference.opencl import peak
from polarstream import gpu_report
from tests.e2e.cli import Cli


def has_device() -> bool:
    try:
        return bool(devices.list_devices())
    except DeviceError:
        return False


needs_device = pytest.mark.skipif(
    not has_device(), reason="no OpenCL device: apt install pocl-opencl-icd gives one on the processor"
)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(tmp_path, POLARSTREAM_CACHE=str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "small.onnx"
    path.write_bytes(standard_models.mobilenet_v2(size=32, width=0.25))
    return str(path)


@needs_device
def test_devices_lists_what_there_is(cli: Cli) -> None:
    shown = cli.run("devices")
    assert shown.returncode == 0
    assert devices.list_devices()[0].name in shown.stdout
    (first, *_) = json.loads(cli.run("devices", "--json").stdout)
    assert first["index"] == 0
    assert first["traits"]["compute_units"] >= 1
    assert first["is_rx580"] == (first["traits"]["kind"] == "gfx803")


def test_a_machine_without_a_driver_is_told_what_to_install(cli: Cli) -> None:
    gone: Callable[[], None] = mock.Mock(side_effect=DeviceError(f"no OpenCL: {devices.INSTALL_HINT}"))
    with mock.patch.object(devices, "list_devices", gone):
        shown = cli.run("devices")
    assert shown.returncode == 70
    assert "RUSTICL_ENABLE=radeonsi" in shown.stderr
    assert "apt install mesa-opencl-icd" in shown.stderr


@needs_device
def test_an_unknown_device_is_refused_with_those_that_there_are(cli: Cli, model: str) -> None:
    shown = cli.run("tune", model, "--device", "no such card")
    assert shown.returncode == 70
    assert devices.list_devices()[0].name in shown.stderr


def test_a_file_that_is_not_there_is_a_wrong_usage(cli: Cli) -> None:
    shown = cli.run("profile", "nothing.onnx")
    assert shown.returncode == 2
    assert "there is no file 'nothing.onnx'" in shown.stderr


@needs_device
def test_accuracy_compares_the_types_on_given_inputs(cli: Cli, tmp_path: Path) -> None:
    path, frames = tmp_path / "net.onnx", tmp_path / "frames.npz"
    net = standard_models.Network((1, 16))
    path.write_bytes(net.model(net.linear("x", 16, 12)))
    np.savez(frames, x=np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32))
    shown = cli.run("accuracy", str(path), "--inputs", str(frames))
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["fp32", "fp16", "int8", "int4"]
    found = json.loads(
        cli.run("accuracy", str(path), "--inputs", str(frames), "--weights", "int8", "--json").stdout
    )
    exact, stored = found["types"]
    halves = json.loads(cli.run("accuracy", str(path), "--activations", "fp16", "--json").stdout)["types"]
    assert [one["activations"] for one in halves] == ["fp32", "fp16", "fp16", "fp16", "fp16"]
    assert (exact["weights"], stored["weights"]) == ("fp32", "int8")
    assert 0 < stored["max_error"] < 0.02
    assert stored["ratio"] < 0.5
    assert stored["agreement"] * 5 in range(6)


def test_accuracy_refuses_what_it_can_not_use(cli: Cli, model: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.npz"
    wrong.write_text("no archive")
    for arguments, complaint in (
        (["--weights", "int2"], "no weights of type 'int2': take fp32, fp16, int8, int4"),
        (["--activations", "int8"], "no activations of type 'int8': take fp32, fp16"),
        (["--inputs", str(wrong)], "is no .npz file of numbers"),
        (["--inputs", str(tmp_path / "none.npz")], "there is no file"),
    ):
        shown = cli.run("accuracy", model, *arguments)
        assert shown.returncode == 2
        assert complaint in shown.stderr
    shown = cli.run("tune", model, "--weights", "half")
    assert shown.returncode == 2
    assert "no weights of type 'half'" in shown.stderr


@needs_device
def test_tuning_is_kept(cli: Cli, model: str) -> None:
    first = json.loads(cli.run("tune", model, "--json").stdout)
    assert first["timed"] > 0
    assert json.loads(cli.run("tune", model, "--json").stdout)["timed"] == 0


@needs_device
def test_a_profile_has_every_launch_with_its_time(cli: Cli, model: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    found = json.loads(cli.run("profile", model, "--json", "--trace", str(trace)).stdout)
    assert found["total_us"] == pytest.approx(sum(one["time_us"] for one in found["launches"]))
    assert found["peak_gflops"] > 0
    assert found["peak_gbps"] > 0
    assert any(one["flops"] > 0 for one in found["launches"])
    assert {slot for one in found["launches"] for slot in one["slots"]} == set(
        range(len(found["slot_bytes"]))
    )
    events = json.loads(trace.read_text())
    assert [event["dur"] for event in events] == [one["time_us"] for one in found["launches"]]
    shown = cli.run("profile", model, "--top", "3")
    assert f"{len(found['launches'])} launches" in shown.stdout
    assert shown.stdout.startswith("takes ")
    assert "of weights" in shown.stdout.splitlines()[0]
    assert len(shown.stdout.splitlines()) == 6
    assert found["memory"]["weight_bytes"] == found["constant_bytes"]
    assert found["memory"]["slot_bytes"] == found["slot_bytes"]


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """A report with no models to measure and few node tests, which keeps what it saves on the way."""

    def shorten(tests: list[str]) -> None:
        right = gpu_report.ModelTimes("a model", 1, 2.0, 1.0, 10.0, 5, 1e-6, True)
        monkeypatch.setattr(gpu_report, "_measured", lambda *arguments: right)
        monkeypatch.setattr(conformance, "device_tests", lambda quick: tests)
        monkeypatch.setattr(peak, "measure_peak", lambda device: (100.0, 10.0))

    return shorten


@needs_device
def test_a_report_counts_the_node_tests_and_names_those_that_fail(
    cli: Cli, short_report: Callable[[list[str]], None]
) -> None:
    short_report(["test_relu", "test_det_2d", "test_matmul_2d"])
    shown = cli.run("gpu-report", "--quick")
    assert shown.returncode == 1
    assert "2 passed, 1 failed, 0 not run" in shown.stdout
    assert "test_det_2d: ModelError: Det node" in shown.stdout
    report = json.loads((cli.folder / "gpu-report.json").read_text())
    assert report["conformance"]["passed"] == 2
    assert list(report["conformance"]["failed"]) == ["test_det_2d"]
    assert report["conformance"]["running"] == ""
    short_report(["test_relu"])
    assert cli.run("gpu-report", "--quick", "--json").returncode == 0


@needs_device
def test_a_card_that_hangs_leaves_a_report_that_names_the_test(
    cli: Cli, short_report: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_report(["test_relu", "test_matmul_2d", "test_exp"])
    run = conformance.check_node_test

    def hang(name: str, device: int) -> None:
        if name == "test_matmul_2d":
            raise KeyboardInterrupt
        run(name, device)

    monkeypatch.setattr(conformance, "check_node_test", hang)
    assert cli.run("gpu-report").returncode == 130
    report = json.loads((cli.folder / "gpu-report.json").read_text())
    assert report["conformance"]["running"] == "test_matmul_2d"
    assert report["conformance"]["passed"] == 1
    assert report["conformance"]["not_run"] == ["test_matmul_2d", "test_exp"]
    assert report["models"][0]["tuned_ms"] == 1.0


@needs_device
def test_a_model_that_the_driver_fails_is_a_finding_not_the_end(
    cli: Cli, short_report: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_report(["test_relu"])

    def fail(*arguments: object) -> None:
        raise KernelError("kernel 'gemm' doesn't build\nwith a log")

    monkeypatch.setattr(gpu_report, "_measured", fail)
    shown = cli.run("gpu-report")
    assert shown.returncode == 1
    assert "KernelError: kernel 'gemm' doesn't build" in shown.stdout
    assert "1 passed, 0 failed" in shown.stdout
    report = json.loads((cli.folder / "gpu-report.json").read_text())
    assert all("with a log" in one["failure"] for one in report["models"])


@needs_device
@pytest.mark.slow
def test_a_gpu_report_is_right_and_written(cli: Cli, tmp_path: Path) -> None:
    shown = cli.run("gpu-report", "--quick", "--out", str(tmp_path / "report.json"))
    assert shown.returncode == 0, shown.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"]["name"] in shown.stdout
    assert {one["model"].split()[0] for one in report["models"]} == {"ResNet-50", "MobileNetV2"}
    assert all(one["right"] and one["tuned_ms"] > 0 for one in report["models"])
    assert report["conformance"]["passed"] + len(report["conformance"]["not_run"]) > 150
    assert report["conformance"]["failed"] == {}
