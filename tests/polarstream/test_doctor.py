from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarstream import doctor


@pytest.mark.parametrize(
    ("version", "verdict"),
    [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "fail")],
)
def test_python_versions(version: tuple[int, ...], verdict: str) -> None:
    assert doctor.check_python(version).verdict == verdict


def test_a_missing_extra_names_the_command_that_installs_it() -> None:
    local, arrow = doctor.check_extras(lambda name: name != "jgo")
    assert (local.verdict, local.found, local.advice) == (
        "warn",
        "jgo not installed",
        "pip install 'polarstream[local]'",
    )
    assert arrow.verdict == "ok"


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_disk(tmp_path / "not" / "there").verdict in ("ok", "warn")
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = doctor.check_disk(tmp_path)
    assert (check.verdict, check.found) == ("fail", f"{tmp_path} cannot be written")
    assert "POLARSTREAM_DATA_DIR" in check.advice


def test_a_full_disk_and_little_memory_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "_MIN_MEMORY_BYTES", 1 << 62)
    assert doctor.check_disk(tmp_path).verdict == "warn"
    assert doctor.check_memory().verdict == "warn"


def test_a_clock_in_the_past_fails_and_an_unkept_one_is_warned_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kept, verdict in ((True, "ok"), (False, "warn"), (None, "ok")):
        monkeypatch.setattr(doctor, "_clock_synchronised", lambda kept=kept: kept)
        assert doctor.check_clock().verdict == verdict
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert doctor.check_clock().verdict == "fail"


def test_a_configuration_with_faults_is_one_failing_check(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[worker]\nlinger_ms = -1\n")
    config, check = doctor.check_config(path)
    assert config is None
    assert check.verdict == "fail"
    assert "worker.linger_ms" in check.found
    assert {c.name for c in doctor.examine(path)} >= {"python", "config", "clock", "memory", "devices"}
