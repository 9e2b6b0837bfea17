"""A process that does nothing is ended, and one that works is not, however long it takes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from oip_torch import InputError
from oip_torch.base.watchdog import did_nothing, patience, watched


def test_who_does_nothing_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        with watched(process, 0.5) as stuck:
            assert process.wait() == -9
        assert stuck.is_set()


def test_who_works_is_not() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        with watched(process, 3.0) as stuck:
            time.sleep(3.5)
        assert not stuck.is_set()
        assert process.poll() is None
        process.kill()


def test_who_has_ended_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with watched(process, 0.2) as stuck:
            time.sleep(0.5)
        assert not stuck.is_set()


@pytest.mark.parametrize(("told", "seconds"), [(None, 120), ("", 120), ("3.5", 3.5), ("inf", float("inf"))])
def test_patience_is_what_the_user_says(told: str | None, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OIP_PATIENCE", raising=False)
    if told is not None:
        monkeypatch.setenv("OIP_PATIENCE", told)
    assert patience() == seconds
    assert f"for {seconds:g} s" in did_nothing(seconds)


@pytest.mark.parametrize("told", ["long", "0", "-1", "nan"])
def test_what_is_no_time_is_refused(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIP_PATIENCE", told)
    with pytest.raises(InputError, match=r"OIP_PATIENCE is .*expected a number of seconds above 0"):
        patience()
