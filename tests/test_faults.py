"""What goes wrong around us: signals at random moments, full disks, too little memory, processes that hang.

Whatever happens is told in one line, nothing half-written is left, nor a process or a temporary file.
scripts/faults.py sends the signals, and more of them; docs/reliability.md has the counts.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT

import oip_torch
from oip_torch.base.child import Child
from oip_torch.base.errors import RuntimeProcessError
from oip_torch.base.files import replacing
from oip_torch.comparison.runtimes.process import RuntimeProcess
from oip_torch.network.onnx_file import read, write
from oip_torch.plain.export import export_torch

SEED = int(os.environ.get("OIP_FAULTS_SEED", "15"))
LATEST = 5.0  # seconds


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convert", "ascend", "compare", "atlas"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_at_random_moments(script: ModuleType, name: str, number: signal.Signals, tmp_path: Path) -> None:
    moments = random.Random(f"{SEED} {name} {number.name}")
    for turn in range(2):
        moment = moments.uniform(0, LATEST)
        folder = tmp_path / str(turn)
        folder.mkdir()
        assert script.strike(name, number, moment, folder).problems == (), f"seed {SEED}, after {moment:.3f} s"


@contextlib.contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as where the disk is full: writing raises an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exported(atlas: oip_torch.Atlas, what: str, path: Path) -> None:
    atlas.export(path.parent / what, what, maps=[0] if what == "gif" else None)


def kinds(model: oip_torch.FeatureModel, atlas: oip_torch.Atlas) -> dict[str, Callable[[Path], Any]]:
    """Each kind of file that is written, by its ending: what writes it to a path."""
    oips = atlas["Conv2D_1"].oips
    found: dict[str, Callable[[Path], Any]] = {
        "nc": oips.save,
        "onnx": lambda path: write(read(ROOT / "models" / "mnist_cnn.onnx")[0], model.network, path),
        "html": lambda path: atlas.gallery().save(path),
        "weights.safetensors": lambda path: export_torch(ROOT / "models" / "mnist_cnn.onnx", path.parent),
        "zarr": lambda path: oip_torch.make_atlas(
            model, "Conv2D_1", path=path, settings=oip_torch.AscentSettings(steps=4, candidates=1)
        ),
    }
    for what in ("sheets", "csv", "npz", "safetensors", "gif"):
        found[what] = functools.partial(exported, atlas, what)
    return found


@pytest.mark.parametrize(
    "kind", ["nc", "onnx", "html", "weights.safetensors", "zarr", "sheets", "csv", "npz", "safetensors", "gif"]
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(
    kind: str, model: oip_torch.FeatureModel, small_atlas: oip_torch.Atlas, tmp_path: Path
) -> None:
    work = kinds(model, small_atlas)[kind]
    out = tmp_path / "out"
    importlib.import_module("matplotlib.font_manager")  # may write a file of its own when it is imported first
    with files_of_at_most(600), pytest.raises(oip_torch.OipError, match=r"File too large"):
        work(out / f"x.{kind}")
    left = [path for path in out.rglob("*") if path.is_file()] if kind != "zarr" else []  # its whole cells stay
    assert left == []
    work(out / f"x.{kind}")


COMMANDS = {
    "compare": [
        *("compare", ROOT / "models" / "mnist_cnn.keras", ROOT / "models" / "mnist_cnn.onnx", "-o", "out"),
        *("--runtimes", "keras-torch", "--layer", "Dense_2", "--maps", "0-2", "--steps", "30", "--quiet"),
    ],
    "atlas": ["atlas", ROOT / "models" / "mnist_cnn.onnx", "Conv2D_1", "--steps", "8", "-o", "out/x.zarr", "--quiet"],
    "gallery": ["gallery", "ATLAS", "-o", "out/page.html"],
}
"""As short as they can be, with results in the folder out."""


def command(name: str, atlas: oip_torch.Atlas) -> list[str]:
    words = [str(atlas.path) if word == "ATLAS" else str(word) for word in COMMANDS[name]]
    return [sys.executable, "-m", "oip_torch", *words]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_few_file_descriptors_are_enough(name: str, small_atlas: oip_torch.Atlas, tmp_path: Path) -> None:
    """As after `ulimit -n 24`, three of which are taken."""
    result = subprocess.run(
        ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *command(name, small_atlas)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stderr.splitlines() if "note: " not in line] == []
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out")


ON_A_SMALL_DISK = 'mount -t tmpfs -o size="$1" tmpfs out && shift && "$@"; code=$?; cp -r out left && exit $code'
NO_DISK = "no file system can be mounted here"


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where this user cannot mount a small file system, as in most containers."""
    folder = tmp_path_factory.mktemp("mounts")
    (folder / "out").mkdir()
    words = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", "20k", "true"]
    if shutil.which("unshare") is None or subprocess.run(words, cwd=folder, capture_output=True).returncode:
        pytest.skip(NO_DISK)


@pytest.mark.slow
@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize(
    ("name", "size", "whole"),
    [("compare", "40k", {"report.json"}), ("atlas", "100k", {"x.zarr"}), ("gallery", "20k", set())],
)
def test_a_disk_that_fills_is_told_in_one_line(
    name: str, size: str, whole: set[str], small_atlas: oip_torch.Atlas, tmp_path: Path
) -> None:
    """What fitted as a whole stays: one of a comparison's two files, and the cells of an atlas."""
    (tmp_path / "out").mkdir()
    (tmp_path / "tmp").mkdir()
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", size, *command(name, small_atlas)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
        timeout=300,
    )
    lines = [line for line in result.stderr.splitlines() if "note: " not in line]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1
    assert re.match("error: .*No space left on device", lines[0])
    assert set(os.listdir(tmp_path / "left")) == whole
    assert os.listdir(tmp_path / "tmp") == []
    if name == "atlas":
        oip_torch.open_atlas(tmp_path / "left" / "x.zarr")
    elif name == "compare":
        assert json.loads((tmp_path / "left" / "report.json").read_text())


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    def vanish() -> None:
        with replacing(tmp_path / "out" / "x.json") as temporary:
            temporary.write_text("{}")
            shutil.rmtree(tmp_path / "out")

    with pytest.raises(oip_torch.InputError, match=r"cannot write .*No such file or directory"):
        vanish()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [300_000, 2_000_000])
def test_too_little_memory_for_torch_is_told_in_one_line(mnist_onnx: Path, tmp_path: Path, kilobytes: int) -> None:
    command = f'ulimit -v {kilobytes}; exec "$@"'
    words = [sys.executable, "-m", "oip_torch", "ascend", str(mnist_onnx), "Conv2D_1", "0", "--steps", "5"]
    result = subprocess.run(
        ["sh", "-c", command, "sh", *words], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


HANGS = "import sys, time\nsys.stdin.readline()\ntime.sleep(600)"


def test_a_runtime_that_hangs_is_given_up(shipped: Path, mnist_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: RuntimeProcess) -> Child:
        (self._folder / "hangs.py").write_text(HANGS)
        child = Child("hangs", folder=self._folder, environment={}, stdin=subprocess.PIPE)
        return self._cleanup.enter_context(child)

    monkeypatch.setattr(RuntimeProcess, "_start", start)
    monkeypatch.setenv("OIP_PATIENCE", "1")
    with RuntimeProcess("jax", shipped, mnist_onnx, 1) as process:
        with pytest.raises(RuntimeProcessError, match="jax did nothing for 1 s, as a stopped process does"):
            process.layers(torch.zeros(1, 28, 28, 1).numpy(), "float32")


@pytest.mark.slow
def test_an_export_that_is_stopped_is_given_up(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OIP_PATIENCE", "3")

    def stop() -> None:
        me = psutil.Process()
        limit = time.monotonic() + 100
        while time.monotonic() < limit:
            for child in me.children():
                with contextlib.suppress(psutil.Error):
                    if "oip_torch.keras.export" in child.cmdline() and sum(child.cpu_times()[:2]) > 1:
                        child.suspend()
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(oip_torch.ConversionError, match=r"the TensorFlow process .* did nothing for 3 s"):
        oip_torch.convert(shipped, tmp_path / "x.onnx")
    thread.join()
    assert os.listdir(tmp_path) == []
    assert not [child for child in psutil.Process().children() if "oip_torch" in " ".join(child.cmdline())]


@pytest.mark.parametrize("layer", ["Conv2D_1", "Conv2D_3"])
def test_an_interrupt_in_a_library_call_leaves_the_model_as_it_was(model: oip_torch.FeatureModel, layer: str) -> None:
    """As a notebook's stop button does it."""
    settings = oip_torch.AscentSettings.within(20)
    expected = oip_torch.ascend(model, layer, [0, 1], settings=settings)

    class Watch:
        steps = 0

        def __call__(self, step: oip_torch.Step) -> None:
            self.steps += 1
            if self.steps == 3:
                os.kill(os.getpid(), signal.SIGINT)

    watch = Watch()
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        oip_torch.ascend(
            model, layer, range(16), starts=50, settings=oip_torch.AscentSettings.within(2000), callback=watch
        )
    assert threading.active_count() == threads
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    again = oip_torch.ascend(model, layer, [0, 1], settings=settings)
    assert (again.images == expected.images).all()
