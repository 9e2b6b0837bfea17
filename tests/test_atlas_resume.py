"""An atlas is taken up again: what is whole stays, what is torn is made again, what differs is refused by name."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import oip_torch as oip
from oip_torch.atlas import making
from oip_torch.atlas.job import Job, Outcome, run

SETTINGS = oip.AscentSettings(steps=4, candidates=2, candidate_steps=2)


@pytest.fixture(scope="module")
def whole(model: oip.FeatureModel, tmp_path_factory: pytest.TempPathFactory) -> oip.Atlas:
    """Of 64 maps with two starts, in four cells. Not to be changed."""
    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    return oip.make_atlas(model, "Conv2D_2", path=path, starts=2, settings=SETTINGS)


@pytest.fixture
def copy(whole: oip.Atlas, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.path, tmp_path / "atlas.zarr"))


def arrays(path: str | Path) -> dict[str, Any]:
    """Everything that is in the layers' groups, but what says how long it took."""
    tree = xr.open_datatree(path, engine="zarr").load()
    return {
        f"{group.path}/{name}": values.values
        for group in tree.subtree
        for name, values in group.to_dataset().variables.items()
        if name != "cell_seconds"
    }


def assert_equal(path: str | Path, other: str | Path) -> None:
    one, two = arrays(path), arrays(other)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


class Counted:
    """An engine that notes what it was given."""

    def __init__(self, most: int | None = None) -> None:
        self.cells, self.most, self.at_once = 0, most, set[int | None]()

    def __call__(self, model: oip.FeatureModel, jobs: Iterator[Job], watch: Any) -> Iterator[Outcome]:
        for unit in jobs:
            if self.most is not None and self.cells >= self.most:
                raise KeyboardInterrupt
            self.cells += len(unit.cells)
            self.at_once.add(unit.at_once)
            yield unit, run(unit, model)


def chunk(path: Path, name: str) -> Path:
    return max((path / "layer_002" / name / "c").rglob("*"), key=str)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "harm", "again"),
    [
        ("images", cut, 1),
        ("snapshots", flip, 1),
        ("traces", Path.unlink, 1),
        ("scores", empty, 1),
        ("cell_sha256", Path.unlink, 1),
        ("cell_sha256", lambda path: path.write_bytes(path.read_bytes()[:7]), 1),
        ("cell_seconds", flip, 0),
    ],
)
def test_what_is_torn_is_made_again(
    model: oip.FeatureModel, whole: oip.Atlas, copy: Path, name: str, harm: Any, again: int
) -> None:
    harm(chunk(copy, name))
    found = oip.open_atlas(copy)
    assert found.state["Conv2D_2"].done == 4 - again or name == "cell_seconds"
    if name not in ("cell_sha256", "cell_seconds"):
        with pytest.raises(oip.InputError, match=r"1 of 4 parts of 'Conv2D_2' are damaged: make them again"):
            found["Conv2D_2"]
    engine = Counted()
    oip.make_atlas(model, path=copy, resume=True, engine=engine)
    assert engine.cells == again or name == "cell_seconds"
    assert_equal(copy, whole.path)


def test_figures_and_what_describes_an_array_are_made_again(
    model: oip.FeatureModel, whole: oip.Atlas, copy: Path
) -> None:
    (copy / "layer_002" / "quality" / "scores" / "zarr.json").unlink()
    cut(copy / "layer_002" / "traces" / "zarr.json")
    engine = Counted()
    oip.make_atlas(model, path=copy, resume=True, engine=engine)
    assert engine.cells == 4
    assert_equal(copy, whole.path)


def test_an_interrupted_atlas_goes_on(model: oip.FeatureModel, whole: oip.Atlas, tmp_path: Path) -> None:
    path = tmp_path / "atlas.zarr"
    with pytest.raises(KeyboardInterrupt):
        oip.make_atlas(model, "Conv2D_2", path=path, starts=2, settings=SETTINGS, engine=Counted(1))
    begun = oip.open_atlas(path)["Conv2D_2"]
    assert (len(begun.oips), begun.planned, begun.quality, begun.noise) == (32, 128, None, None)
    engine = Counted()
    oip.make_atlas(model, path=path, resume=True, engine=engine)
    assert engine.cells == 3
    assert_equal(path, whole.path)


def test_what_is_a_batch_is_said_once(model: oip.FeatureModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, first, rest = tmp_path / "atlas.zarr", Counted(1), Counted()
    monkeypatch.setattr(making, "_BATCH_BYTES", 4 << 20)
    with pytest.raises(KeyboardInterrupt):
        oip.make_atlas(model, "Conv2D_1", path=path, starts=2, settings=SETTINGS, engine=first)
    monkeypatch.undo()
    held = oip.make_atlas(model, path=path, resume=True, engine=rest)["Conv2D_1"]
    (at_once,) = first.at_once | rest.at_once
    assert at_once is not None
    assert 1 < at_once < 32
    small = oip.ascend(model, "Conv2D_1", starts=1, settings=SETTINGS, batch_size=at_once)
    assert held.oips.select(starts=0).scores == pytest.approx(small.scores, rel=1e-4)


def test_a_whole_atlas_is_left_alone(model: oip.FeatureModel, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Counted()
    with caplog.at_level(logging.WARNING, "oip_torch"):
        oip.make_atlas(model, path=copy, resume=True, engine=engine)
    assert engine.cells == 0
    assert f"nothing was left to do: {copy} is whole" in caplog.text


def test_starts_and_layers_are_added(model: oip.FeatureModel, whole: oip.Atlas, copy: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (copy / "layer_002" / "images" / "c").rglob("*/0/0/0/0")}
    engine = Counted()
    more = oip.make_atlas(model, "Conv2D_1", path=copy, starts=3, resume=True, engine=engine)
    assert engine.cells == 2 + 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    at_once = oip.make_atlas(
        *(model, ["Conv2D_1", "Conv2D_2"]), path=tmp_path / "at_once.zarr", starts=3, settings=SETTINGS
    )
    assert_equal(more.path, at_once.path)


def test_data_can_be_added(model: oip.FeatureModel, copy: Path, digits: Any) -> None:
    engine = Counted()
    held = oip.make_atlas(model, path=copy, data=digits[0][::100], resume=True, engine=engine)["Conv2D_2"]
    assert engine.cells == 0
    assert held.data is not None
    assert held.data.classes is None
    assert held.quality is not None
    assert np.isfinite(held.quality.over_data).any()


def test_what_differs_is_named(model: oip.FeatureModel, rgb: oip.FeatureModel, whole: oip.Atlas) -> None:
    changed = oip.AscentSettings(steps=5, candidates=2, candidate_steps=2)
    with pytest.raises(oip.InputError, match=r"is there already: expected a path where nothing is; with --resume"):
        oip.make_atlas(model, path=whole.path)
    with pytest.raises(oip.InputError, match=r"schedule.steps 4 → 5; seed 0 → 7 \(there → asked for\)"):
        oip.make_atlas(model, path=whole.path, settings=changed, seed=7, resume=True)
    with pytest.raises(oip.InputError, match=r"network \w{12}… → \w{12}…"):
        oip.make_atlas(rgb, path=whole.path, resume=True)
    with pytest.raises(oip.InputError, match=r"objective map_mean → map_peak"):
        oip.make_atlas(model, path=whole.path, objective=oip.objectives.map_peak, resume=True)
    with pytest.raises(oip.InputError, match=r"starts is 1: the atlas has 2 of each map"):
        oip.make_atlas(model, path=whole.path, starts=1, resume=True)
    other = oip.load(Path(__file__).parent.parent / "models" / "mnist_cnn.onnx", domain=oip.Domain(mean=(1.0,)))
    with pytest.raises(oip.InputError, match=r"domain.mean \[0.0\] → \[1.0\]"):
        oip.make_atlas(other, path=whole.path, resume=True)


# Layers that are made anew


OTHER = oip.AscentSettings(steps=6, candidates=2, candidate_steps=2)


def test_a_layer_is_replaced_when_the_new_one_is_whole(
    model: oip.FeatureModel, whole: oip.Atlas, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def replace(settings: oip.AscentSettings, engine: Counted) -> oip.Atlas:
        return oip.make_atlas(model, "Conv2D_2", path=copy, settings=settings, replace=True, engine=engine)

    oip.make_atlas(model, "Conv2D_1", path=copy, resume=True)
    for settings in (oip.AscentSettings(steps=5, candidates=2, candidate_steps=2), OTHER):  # the first is given up
        with pytest.raises(KeyboardInterrupt):
            replace(settings, Counted(1))
        held = oip.open_atlas(copy)["Conv2D_2"]
        assert np.array_equal(held.oips.images, whole["Conv2D_2"].oips.images)
        assert held.quality is not None
    engine = Counted()
    held = replace(OTHER, engine)
    assert engine.cells == 3
    assert (held["Conv2D_2"].oips.settings, held["Conv2D_1"].oips.settings) == (OTHER, SETTINGS)
    assert not (copy / "layer_002").exists()
    alone = oip.make_atlas(model, "Conv2D_2", path=tmp_path / "alone.zarr", starts=2, settings=OTHER)
    for name in ("images", "scores", "snapshots", "traces"):
        assert np.array_equal(getattr(held["Conv2D_2"].oips, name), getattr(alone["Conv2D_2"].oips, name)), name
    assert held["Conv2D_2"].noise is not None
    engine = Counted()
    with caplog.at_level(logging.WARNING, "oip_torch"):
        replace(OTHER, engine)
        oip.make_atlas(model, path=copy, resume=True, engine=engine)
    assert engine.cells == 0
    assert caplog.text.count("nothing was left to do") == 2
    more = oip.make_atlas(model, path=copy, starts=3, resume=True, engine=engine)
    assert engine.cells == 3
    assert (len(more["Conv2D_2"].oips), len(more["Conv2D_1"].oips)) == (192, 96)
    every = oip.make_atlas(model, path=copy, settings=OTHER, replace=True, engine=Counted())
    assert every["Conv2D_1"].oips.settings == OTHER
    oip.make_atlas(model, path=copy, settings=OTHER, resume=True)


def test_what_cannot_be_replaced(model: oip.FeatureModel, copy: Path, tmp_path: Path) -> None:
    for given, message in [
        ({"layers": "Conv2D_2"}, r"replace=True without settings"),
        ({"layers": "Conv2D_3", "settings": OTHER}, r"no layer of the atlas 'Conv2D_3'|Conv2D_3"),
        ({"settings": OTHER, "starts": 3}, r"starts is 3: the atlas has 2 of each map"),
        ({"settings": OTHER, "seed": 7}, r"seed 0 → 7"),
        ({"settings": OTHER, "path": tmp_path / "none.zarr"}, r"is not there: expected an atlas whose layers"),
    ]:
        with pytest.raises(oip.InputError, match=message):
            oip.make_atlas(**({"model": model, "path": copy, "replace": True} | given))  # type: ignore[arg-type]
    assert not (tmp_path / "none.zarr").exists()


# What is no atlas, and what a stranger may have put there


def test_what_is_no_atlas_is_refused(model: oip.FeatureModel, tmp_path: Path) -> None:
    with pytest.raises(oip.InputError, match=r"nowhere.zarr is no atlas: no zarr group is there"):
        oip.open_atlas(tmp_path / "nowhere.zarr")
    assert not (tmp_path / "nowhere.zarr").exists()
    file = tmp_path / "file.zarr"
    file.write_text("x")
    with pytest.raises(oip.InputError, match=r"is a file: expected the folder of an atlas"):
        oip.open_atlas(file)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("x")
    for resume in (False, True):
        with pytest.raises(oip.InputError, match=r"is there, and is no atlas"):
            oip.make_atlas(model, path=folder, resume=resume)
    zarr.create_group(tmp_path / "other.zarr", attributes={"mine": 1})
    with pytest.raises(oip.InputError, match=r"is no atlas of ours, or of another version \(no format\)"):
        oip.open_atlas(tmp_path / "other.zarr")


def change(path: Path, edit: Any) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_attributes_of_a_stranger_are_read_strictly(copy: Path) -> None:
    def starts(data: dict[str, Any]) -> None:
        data["attributes"]["starts"] = 1 << 40

    root = copy / "zarr.json"
    own = root.read_text()
    for edit, message in [
        (starts, "numbers of maps or starts"),
        (lambda data: data["attributes"].update(layers=["Conv2D_9"]), "the names of its layers"),
        (lambda data: data["attributes"].update(settings={"exec": 1}), "no setting 'exec'"),
        (lambda data: data["attributes"]["network"].update(input_shape=[1, 1 << 20, 1 << 20]), "numbers"),
        (lambda data: data["attributes"].update(oip_torch_atlas_format=9), "format 9"),
        (lambda data: data["attributes"].pop("network"), "is damaged"),
    ]:
        root.write_text(own)
        change(root, edit)
        with pytest.raises(oip.InputError, match=message):
            oip.open_atlas(copy)
    root.write_text(own)
    change(root, lambda data: data["attributes"].update(starts=1 << 19))
    with pytest.raises(oip.InputError, match=r"has 1048576 cells: expected at most 131072"):
        oip.open_atlas(copy)["Conv2D_2"]


def test_arrays_of_a_stranger_are_numbers_in_codecs_of_ours(copy: Path) -> None:
    group = zarr.open_group(copy, path="layer_002", mode="r+", use_consolidated=False)
    shape = group["scores"].shape
    for made, message in [
        ({"dtype": "float32", "compressors": zarr.codecs.BloscCodec()}, "BloscCodec"),
        ({"dtype": "float64"}, r"is float64 \(64, 2\)"),
        ({"dtype": str}, "holds"),
    ]:
        given: dict[str, Any] = {"chunks": (32, 1), "dimension_names": ("map", "start"), "overwrite": True}
        with contextlib.suppress(Warning):
            group.create_array("scores", shape=shape, **(given | made))
        with pytest.raises(oip.InputError, match=message):
            oip.open_atlas(copy)["Conv2D_2"]


# Other places than folders


def test_an_atlas_in_memory(model: oip.FeatureModel, whole: oip.Atlas) -> None:
    path = "memory://atlas-test.zarr"
    oip.make_atlas(model, "Conv2D_2", path=path, settings=SETTINGS)
    found = oip.make_atlas(model, path=path, starts=2, resume=True)["Conv2D_2"]
    assert np.array_equal(found.oips.images, whole["Conv2D_2"].oips.images)
    with pytest.raises(oip.InputError, match="is there already"):
        oip.make_atlas(model, path=path)


@pytest.mark.slow
def test_an_atlas_in_an_object_store(
    model: oip.FeatureModel, whole: oip.Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem().mkdir("atlases")
        path = "s3://atlases/atlas.zarr"
        with pytest.raises(oip.InputError, match="is no atlas"):
            oip.open_atlas(path)
        with pytest.raises(KeyboardInterrupt):
            oip.make_atlas(model, "Conv2D_2", path=path, starts=2, settings=SETTINGS, engine=Counted(1))
        engine = Counted()
        found = oip.make_atlas(model, path=path, resume=True, engine=engine)["Conv2D_2"]
        assert engine.cells == 3
        assert np.array_equal(found.oips.images, whole["Conv2D_2"].oips.images)
        assert found.quality is not None
    finally:
        server.stop()


# The command line


def command(*given: str | Path) -> list[str]:
    return [sys.executable, "-m", "oip_torch", "atlas", *map(str, given)]


def files_under(path: Path) -> int:
    """Other than `rglob`, it bears that folders come and go meanwhile."""
    return sum(len(files) for _folder, _folders, files in os.walk(path))


@pytest.mark.slow
def test_killed_at_random_moments_it_is_the_same_in_the_end(mnist_onnx: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed of the moments:", seed)
    drawn, path = random.Random(seed), tmp_path / "killed.zarr"
    given = [mnist_onnx, "Conv2D_1", "Conv2D_2", "--starts", "2", "--steps", "40", "--device", "cpu", "--json"]
    files = 200  # about so many there are in the end
    for _ in range(3):
        last = files_under(path)
        enough = last + drawn.randint(0, files // 4)
        with subprocess.Popen(
            [*command(*given, "-o", path, "--resume")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            while process.poll() is None and files_under(path) < enough:
                time.sleep(0.001)
            time.sleep(drawn.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
    ended = subprocess.run(command(*given, "-o", path, "--resume"), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    straight = subprocess.run(
        command(*given, "-o", tmp_path / "straight.zarr"), capture_output=True, text=True, check=False
    )
    assert straight.returncode == 0, straight.stderr
    assert_equal(path, tmp_path / "straight.zarr")
    one, other = json.loads(ended.stdout), json.loads(straight.stdout)
    assert {key: one[key] for key in one if key not in ("seconds", "atlas")} == {
        key: other[key] for key in other if key not in ("seconds", "atlas")
    }
    assert (one["images"], one["maps"], one["above_data"], one["device"]) == (192, 96, None, "cpu")
    assert set(one["layers"]) == {"Conv2D_1", "Conv2D_2"}
