"""Names of workers: the same after a restart, never one's that lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarstream.worker import claim_instance
from streams.errors import Stop


def test_workers_of_one_machine_get_names_of_their_own_and_keep_them(tmp_path: Path) -> None:
    with claim_instance(tmp_path, None) as first, claim_instance(tmp_path, None) as second:
        assert second == f"{first}-2"
    with claim_instance(tmp_path, None) as again:
        assert again == first
    assert not list(tmp_path.iterdir()), "no lock is left"


def test_a_lock_whose_file_was_taken_away_meanwhile_is_no_claim(tmp_path: Path) -> None:
    with claim_instance(tmp_path, "press-1"):
        (tmp_path / "worker-press-1.lock").unlink()
        with claim_instance(tmp_path, "press-1") as name:
            assert name == "press-1"
            with pytest.raises(Stop), claim_instance(tmp_path, "press-1"):
                pass


def test_a_configured_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    with claim_instance(tmp_path, "press-1") as name:
        assert name == "press-1"
        with (
            pytest.raises(Stop, match=r"'press-1': stop it, or set worker\.instance_id"),
            claim_instance(tmp_path, "press-1"),
        ):
            pass
