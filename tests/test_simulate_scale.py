"""scripts/simulate_scale.py: neither workers nor writer do more than they can, and either may be what holds it up."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulate_scale", ROOT / "scripts" / "simulate_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("workers", "by_workers"), [(5, True), (500, False)])
def test_the_narrowest_place_decides(script: ModuleType, workers: int, by_workers: bool) -> None:
    times = script.Times(compute=10.0, fetch=0.05, write=0.1, hand_out=0.05)  # one writer is enough for 50 workers
    found = script.simulate(times, workers)
    most = workers / times.compute if by_workers else 1 / times.writer
    assert 0.85 * most < found.rate < 1.05 * most
    assert (found.computing > 0.85) == by_workers
    assert (found.writing > 0.95) == (not by_workers)
    assert found == script.simulate(times, workers)
