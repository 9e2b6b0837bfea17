"""An atlas by Ray's workers is the one that is made here, also where workers die; and Ray leaves nothing behind."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import nn

import oip_torch as oip
from oip_torch.atlas.job import Job, Made, Outcome, run
from oip_torch.atlas.ray_engine import ray_engine, session
from oip_torch.base.errors import InputError, OipError

LAYER, LAYERS = "Conv2D_1", ("Conv2D_1", "Conv2D_2")  # of one cell, and of two
SETTINGS = oip.AscentSettings.article(steps=150)
# Ray's sockets and the processes' pipes that are open when a cluster ends are closed by nobody but the collector.
OF_RAY = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


# Without Ray


@pytest.mark.parametrize("address", ["", "nowhere", "ray://host:10001", "host:", 6379])
def test_what_is_no_address_is_refused(address: Any) -> None:
    with pytest.raises(InputError, match=r"^address is .*: expected auto, or HOST:PORT"):
        ray_engine(address)


def test_where_nobody_answers_nothing_is_written(model: oip.FeatureModel, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Ray cluster answers at {address}.*ray start --head"):
            oip.make_atlas(model, LAYER, path=tmp_path / "atlas.zarr", engine="ray", address=address)
    assert not list(tmp_path.iterdir())


def test_an_address_belongs_to_ray(model: oip.FeatureModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"address is 'auto': .*expected engine 'ray'"):
        oip.make_atlas(model, LAYER, path=tmp_path / "atlas.zarr", address="auto")


@pytest.mark.parametrize(
    ("address", "mode", "told"), [("127.0.0.1:6379", "", True), ("auto", "", False), ("127.0.0.1:6379", "token", False)]
)
def test_a_cluster_that_may_expect_a_token(
    monkeypatch: pytest.MonkeyPatch, address: str, mode: str, told: bool
) -> None:
    import ray

    def refused(**given: Any) -> None:
        raise ConnectionError("Failed to connect")  # all that Ray says in Python

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(InputError, match=r"cannot be reached at .*expected one of this") as caught, session(address):
        pass
    assert ("RAY_AUTH_MODE=token has to be set" in str(caught.value)) is told


def test_without_ray_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'needs Ray, which is not installed: run `pip install "oip_torch\[ray\]"`'):
        ray_engine()


# On a cluster of two workers, that the caller has started


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from oip_torch.atlas import ray_engine as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)  # what a cluster is sized by
        session = module.session(None)
        session.__enter__()
    yield
    session.__exit__(None, None, None)


@pytest.fixture(scope="module")
def here(model: oip.FeatureModel, tmp_path_factory: pytest.TempPathFactory) -> oip.Atlas:
    """The same atlas by the local engine."""
    return oip.make_atlas(model, LAYERS, path=tmp_path_factory.mktemp("here") / "a.zarr", settings=SETTINGS)


def check_equal(atlas: oip.Atlas, expected: oip.Atlas) -> None:
    """Bit by bit: a cell is one batch on one thread in both."""
    assert atlas.layers == LAYERS
    for layer, maps in zip(LAYERS, (32, 64), strict=True):
        got, want = atlas[layer], expected[layer]
        assert len(got.oips) == len(want.oips) == maps
        other = got.oips.traces != want.oips.traces  # where the scores go apart tells more than that images do
        where = (
            f"traces of images {np.flatnonzero(other.any(1))} differ, first at step {np.flatnonzero(other.any(0))[:1]}"
        )
        for name in ("maps", "starts", "images", "scores", "traces", "status"):
            np.testing.assert_array_equal(
                getattr(got.oips, name), getattr(want.oips, name), err_msg=f"{name} of {layer}; {where}"
            )
        assert got.quality is not None


def working(pid: int) -> list[psutil.Process]:
    """The workers below a process that are at a job."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # also a zombie
            if "ray::_work" in " ".join(process.cmdline()):
                found.append(process)
    return found


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@OF_RAY
def test_a_worker_that_is_killed_changes_nothing(
    cluster: None, model: oip.FeatureModel, here: oip.Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and "worker died" not in caplog.text:
            for process in working(os.getpid())[:1]:
                process.kill()
            time.sleep(0.3)

    with caplog.at_level(logging.WARNING, "oip_torch"):
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            atlas = oip.make_atlas(model, LAYERS, path=tmp_path / "a.zarr", settings=SETTINGS, engine="ray")
        finally:
            over.set()
            killer.join()
    assert "note: a Ray worker died over 'Conv2D_" in caplog.text
    check_equal(atlas, here)


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("__import__('os').kill(__import__('os').getpid(), 9)",)


@pytest.mark.slow
@OF_RAY
def test_a_part_that_kills_its_workers_is_reported_and_the_others_are_made(
    cluster: None, model: oip.FeatureModel, here: oip.Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def engine(model: oip.FeatureModel, jobs: Iterator[Job], watch: Callable[[int], None]) -> Iterator[Outcome]:
        deadly: Any = Deadly()
        changed = (dataclasses.replace(job, objective=deadly) if job.layer == LAYER else job for job in jobs)
        return ray_engine()(model, changed, watch)

    path = tmp_path / "atlas.zarr"
    with pytest.raises(OipError, match=r"^1 parts of .* maps 0 to 31 of 'Conv2D_1', start 0; all others are there"):
        oip.make_atlas(model, LAYERS, path=path, settings=SETTINGS, engine=engine)
    assert "(3 of 3)" in caplog.text
    assert [(each.done, each.planned) for each in oip.open_atlas(path).state.values()] == [(0, 1), (2, 2)]
    check_equal(oip.make_atlas(model, path=path, engine="ray", resume=True), here)


class Residual(nn.Module):
    """Names nodes of its graph otherwise than torch does where it unpickles it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return torch.relu(x + self.second(x)).mean((2, 3))


@pytest.mark.slow
@OF_RAY
def test_a_module_of_ones_own_travels(cluster: None) -> None:
    torch.manual_seed(0)
    own = oip.wrap(Residual(), (3, 12, 12), mean=0.5, std=0.25)
    with torch.no_grad():
        next(own.parameters()).mul_(1.5)  # weights that no file has
    job = Job(
        fingerprint=own.fingerprint,
        layer="second", maps=(0, 1, 2, 3), starts=(0,), batch=4, settings=oip.AscentSettings.article(steps=5), seed=3,
    )  # fmt: skip
    ((back, made),) = ray_engine()(own, iter([job]), lambda count: None)
    assert back == job
    assert isinstance(made, Made)
    np.testing.assert_array_equal(made.cells[0].images, run(job, own).cells[0].images)


@pytest.mark.slow
@OF_RAY
def test_what_goes_wrong_in_a_worker_is_said_in_a_line(cluster: None, model: oip.FeatureModel) -> None:
    job = Job(fingerprint="0" * 64, layer=LAYER, maps=(0,), starts=(0,), batch=1, settings=SETTINGS, seed=0)
    with pytest.raises(InputError, match=r"^the job is of the network of digest 000000000000…"):
        list(ray_engine()(model, iter([job]), lambda count: None))


# On a cluster of its own


MAKE = """
import sys, warnings
warnings.simplefilter("error")
import oip_torch as oip
model = oip.load(sys.argv[1], device="cpu")
settings = oip.AscentSettings.article(steps=2)
oip.make_atlas(model, ["Conv2D_1"], path="a.zarr", engine="ray", settings=settings)
import psutil, ray
print(ray.is_initialized(), len(psutil.Process().children(recursive=True)))
"""


@pytest.fixture
def room(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A process's folders; its temporary one is short, as Ray wants it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="t") as temporary:
        yield {"cwd": tmp_path, "env": {**os.environ, "TMPDIR": temporary}, "text": True}


def of_ray(folder: str) -> list[str]:
    return [str(path) for path in Path(folder).glob("*ray*/**/*") if not path.is_dir()]


@pytest.mark.slow
def test_a_cluster_that_was_started_is_gone_in_the_end(mnist_onnx: Path, room: dict[str, Any]) -> None:
    command = [sys.executable, "-c", MAKE, str(mnist_onnx)]
    result = subprocess.run(command, capture_output=True, timeout=300, **room)
    assert (result.returncode, result.stdout, result.stderr) == (0, "False 0\n", "")
    assert not [name for name in os.listdir(room["env"]["TMPDIR"]) if "ray" in name]


@pytest.mark.slow
def test_ctrl_c_ends_all_of_it(mnist_onnx: Path, room: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "oip_torch", "atlas", str(mnist_onnx), LAYER, "--engine", "ray", "--starts", "99"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, **room) as process:
        try:
            limit = time.monotonic() + 300
            while not working(process.pid):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < limit
                time.sleep(0.1)
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "error: interrupted\n")
    limit = time.monotonic() + 5
    while (alive := [child for child in children if is_alive(child)]) and time.monotonic() < limit:
        time.sleep(0.1)
    assert alive == []
    # Two empty folders may be left: Ray makes them anew as it stops, which is cut short after 1.5 seconds.
    assert of_ray(room["env"]["TMPDIR"]) == []
