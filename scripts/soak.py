"""Ascents, captures and calibrations by the thousand in one process: does anything grow?

    python scripts/soak.py --rounds 20000 --output benchmarks/results/soak.json

A round is one ascent (two images, three steps), one capture and one calibration (six images) of a network of two small
convolutions. In every tenth round something goes wrong: a callback raises, the code in a `capture` block raises, an
argument is wrong, a callback is interrupted by a real SIGINT, a layer is captured that never runs. The result has, a
hundred times over the run, the memory of the process, its threads, file descriptors, the hooks that are left on the
network, objects that Python knows of, and seconds per round; and how much of each is gained from the tenth part to the
end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

import oip_torch as oip

FEW = oip.AscentSettings(steps=3, candidates=1, doublings=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class OwnError(Exception):
    """Of a callback."""


def network() -> oip.FeatureModel:
    """Two small convolutions."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Tanh())
    return oip.wrap(module, (1, 8, 8), domain=oip.Domain())


def sound(model: oip.FeatureModel, number: int) -> None:
    """One round in which nothing goes wrong."""
    oips = oip.ascend(model, "2", [0, 1], seed=number, settings=FEW)
    assert len(oips) == 2
    with oip.capture(model, "0", "3") as maps:
        model(IMAGES)
    assert maps["3"].shape == (2, 2, 4, 4)
    assert oip.calibrate(model, PIXELS, ["0", "2"], progress=False).count == 6


def _raises(step: Any) -> None:
    raise OwnError


def _is_interrupted(step: Any) -> None:
    signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def ends_with(kind: type[BaseException]) -> Iterator[None]:
    """The block ends with such an error, or the soak does."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def wrong(model: oip.FeatureModel, number: int) -> None:
    """One round in which something goes wrong, another thing each time."""

    def callback_raises() -> None:
        with ends_with(OwnError):
            oip.ascend(model, "2", seed=number, settings=FEW, callback=_raises)

    def callback_is_interrupted() -> None:
        with ends_with(KeyboardInterrupt):
            oip.ascend(model, "2", seed=number, settings=FEW, callback=_is_interrupted)

    def block_raises() -> None:
        with ends_with(OwnError), oip.capture(model, "0"):
            model(IMAGES)
            raise OwnError

    def never_runs() -> None:
        with ends_with(oip.CaptureError), oip.capture(model, "0"):
            pass

    def other_shape() -> None:
        with ends_with(oip.InputError), oip.capture(model, "0"):
            model(IMAGES[:, :, :5])

    def wrong_argument() -> None:
        with ends_with(oip.InputError):
            oip.calibrate(model, PIXELS / 255, progress=False)

    ways: list[Callable[[], None]] = [
        callback_raises, callback_is_interrupted, block_raises, never_runs, other_shape, wrong_argument,
    ]  # fmt: skip
    ways[(number // 10) % len(ways)]()


def state(model: oip.FeatureModel) -> dict[str, float]:
    """What must not grow."""
    gc.collect()
    process = psutil.Process()
    hooks = sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )
    return {
        "memory": process.memory_info().rss, "threads": process.num_threads(), "descriptors": process.num_fds(),
        "hooks": hooks, "objects": len(gc.get_objects()),
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these it ends, with fewer rounds")
    parser.add_argument("--output", type=Path, help="a JSON file")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("oip_torch").setLevel(logging.ERROR)
    model = network()
    samples: list[dict[str, float]] = []
    every, began, went_wrong = max(1, given.rounds // 100), time.monotonic(), 0
    last, last_cpu = began, time.process_time()
    for number in range(1, given.rounds + 1):
        if number % 10 == 0:
            wrong(model, number)
            went_wrong += 1
        else:
            sound(model, number)
        if number % every == 0:
            now, cpu = time.monotonic(), time.process_time()
            spent = {"seconds_per_round": (now - last) / every, "cpu_seconds_per_round": (cpu - last_cpu) / every}
            samples.append({"round": number, **state(model), **spent})
            last, last_cpu = time.monotonic(), time.process_time()
            if now - began > given.seconds:
                break
            print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    early, late = samples[len(samples) // 10 : len(samples) // 5 + 1], samples[-max(1, len(samples) // 10) :]
    gained = {
        name: float(np.median([s[name] for s in late]) - np.median([s[name] for s in early])) for name in samples[0]
    }
    gained.pop("round")
    result = {
        "rounds": number, "of_them_wrong": went_wrong, "seconds": round(time.monotonic() - began, 1),
        "torch": torch.__version__, "python": platform.python_version(), "threads_of_torch": torch.get_num_threads(),
        "gained_from_the_second_to_the_last_tenth": gained, "samples": samples,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if given.output is None:
        print(text)
    else:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
