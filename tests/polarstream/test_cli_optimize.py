"""`optimize` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import gpu_inference
from tests.e2e.cli import Cli
from tests.gpu_inference.optimiser import networks


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    (tmp_path / "net.onnx").write_bytes(networks.chain())
    x = np.random.default_rng(0).standard_normal((48, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "frames.npz", x=x)
    return Cli(tmp_path, POLARSTREAM_CACHE=str(tmp_path / "cache"))


def test_the_usual_transforms_are_compared(cli: Cli) -> None:
    shown = cli.run("optimize", "net.onnx", "--data", "frames.npz")
    assert shown.returncode == 0
    head, *rows = shown.stdout.splitlines()
    assert head.split()[:3] == ["RECIPE", "BYTES", "RATIO"]
    assert [row.split()[0] for row in rows][:4] == ["original", "fold", "fp16", "fp16-whole"]
    assert "random data" not in shown.stdout


def test_a_recipe_is_written_and_runs(cli: Cli) -> None:
    shown = cli.run("optimize", "net.onnx", "--apply", "channels=0.25+int8", "-o", "out/small.onnx", "--json")
    assert shown.returncode == 0
    document = json.loads(shown.stdout)
    (result,) = document["results"]
    path = cli.folder / "out" / "small.onnx"
    assert document["output"] == "out/small.onnx"
    assert document["data"] == "random"
    assert result["recipe"] == "channels=0.25+int8"
    assert result["size_bytes"] == path.stat().st_size
    assert result["ratio"] < 0.25
    onnx.checker.check_model(str(path), full_check=True)
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["polarstream.recipe"] == "channels=0.25+int8"
    session = gpu_inference.load(path, "onnxruntime")
    (y,) = session.run({"x": np.zeros((2, 3, 16, 16), np.float32)}).values()
    assert y.shape == (2, 10)


def test_a_budget_gives_the_front_a_picture_and_the_best_model(cli: Cli) -> None:
    x = np.random.default_rng(1).standard_normal((16, 3, 16, 16)).astype(np.float32)
    np.savez(cli.folder / "other.npz", x=x)
    learn = ("--data", "frames.npz", "--calibration", "other.npz")
    arguments = ("optimize", "net.onnx", *learn, "--budget", "size=0.4", "--floor", "0.8")
    shown = cli.run(*arguments, "--trials", "8", "--plot", "front.png", "-o", "best.onnx", "--json")
    assert shown.returncode == 0
    document = json.loads(shown.stdout)
    best = next(one for one in document["results"] if one["recipe"] == document["best"])
    assert best["ratio"] <= 0.4
    assert best["kept"] >= 0.8
    assert best["size_bytes"] == (cli.folder / "best.onnx").stat().st_size
    assert document["best"] in document["front"]
    assert (cli.folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_budget_that_nothing_meets_is_a_failed_check(cli: Cli) -> None:
    shown = cli.run("optimize", "net.onnx", "--budget", "size=0.001", "--trials", "3", "-o", "best.onnx")
    assert shown.returncode == 1
    assert "no model within the budget (nearest: " in shown.stdout
    assert not (cli.folder / "best.onnx").exists()


def test_what_can_not_be_used_is_refused(cli: Cli) -> None:
    (cli.folder / "model.pb").write_bytes(b"x")
    for arguments, code, complaint in (
        (["none.onnx"], 2, "there is no file"),
        (["net.onnx", "--apply", "shrink"], 2, "no transform 'shrink'"),
        (["net.onnx", "--apply", "fp16", "--budget", "size=1"], 2, "exclude each other"),
        (["net.onnx", "-o", "x.onnx"], 2, "--output writes one model"),
        (["net.onnx", "--device", "tpu"], 2, "no device 'tpu'"),
        (["net.onnx", "--shape", "1,x"], 2, "no shape '1,x'"),
        (["model.pb"], 70, "pip install tf2onnx"),
        (["frames.npz"], 70, "not an ONNX model"),
    ):
        shown = cli.run("optimize", *arguments)
        assert (shown.returncode, complaint in shown.stderr) == (code, True), shown.stderr
