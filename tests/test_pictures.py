"""Pictures outside of figures: arrays, PNG files, an animation; and that they are those of the plots."""

from __future__ import annotations

import dataclasses
import gc
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.image import imread

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend, plots

SHORT = AscentSettings.within(40)


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", [3, 56], starts=2, settings=SHORT)


@pytest.fixture(scope="module")
def coloured(rgb: FeatureModel) -> Oips:
    return ascend(rgb, rgb.layers[0], [0, 1], settings=SHORT)


def drawn(oips: Oips, **more: Any) -> np.ndarray:
    """(height, width, 3), 0 to 255: the result at the end of the first row of an evolution."""
    figure = plots.evolution(oips, int(oips.maps[0]), **more)
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    return np.rint(255 * np.asarray(pictures[-1 if len(oips) == 1 else len(pictures) // 2 - 1]))


def frames(path: Path) -> tuple[np.ndarray, list[int], int]:
    """(frames, height, width, 3), how many milliseconds each is shown, and how often all are shown again."""
    pixels, shown = [], []
    with pytest.importorskip("PIL.Image").open(path) as file:
        for frame in range(file.n_frames):
            file.seek(frame)
            pixels.append(np.asarray(file.convert("RGB")))
            shown.append(file.info["duration"])
        return np.stack(pixels), shown, file.info["loop"]


def test_pictures_are_those_of_the_plots_and_each_pixel_a_square(oips: Oips, coloured: Oips) -> None:
    made = oips.pictures()
    assert (made.shape, made.dtype) == ((4, 28, 28, 3), np.uint8)
    assert np.array_equal(made[0], drawn(oips))
    large = oips.pictures(3)
    assert large.shape == (4, 84, 84, 3)
    for row in range(3):
        for column in range(3):
            assert np.array_equal(large[:, row::3, column::3], made)
    assert np.ptp(oips.pictures(cmap="viridis"), -1).max() > 50
    assert np.ptp(coloured.pictures(np.int64(2)), -1).max() > 50
    assert oips.take([]).pictures(2).shape == (0, 56, 56, 3)


@pytest.mark.parametrize("scale", [0, -1, 1.5, True, "8", None, float("nan"), 600])
def test_scales_that_are_none(oips: Oips, scale: Any) -> None:
    with pytest.raises(InputError, match=r"scale is .*: expected") as told:
        oips.pictures(scale)
    assert "\n" not in str(told.value)


def test_png_files_hold_the_pictures_under_names_that_stay(oips: Oips, tmp_path: Path) -> None:
    paths = oips.save_pictures(tmp_path / "new" / "folder", 2)
    assert [path.name for path in paths] == [
        *("Conv2D_3_003_00.png", "Conv2D_3_003_01.png", "Conv2D_3_056_00.png", "Conv2D_3_056_01.png")
    ]
    for path, picture in zip(paths, oips.pictures(2), strict=True):
        assert np.array_equal(np.rint(255 * imread(path)[..., :3]), picture)
    assert oips[56].save_pictures(tmp_path / "new" / "folder", 2) == paths[2:]
    assert sorted((tmp_path / "new" / "folder").iterdir()) == sorted(paths)


def test_a_layer_s_name_cannot_lead_out_of_the_folder(oips: Oips, tmp_path: Path) -> None:
    names = ["../../etc/x", "a/b", "a_b", "/", "..", "-rf", "a\nb", "a b", "ä", "x" * 300, "\0"]
    found = [dataclasses.replace(oips[3], layer=name).save_pictures(tmp_path / "in", 1) for name in names]
    files = [path.name for paths in found for path in paths]
    assert len(set(files)) == len(files) == 2 * len(names)
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == sorted(files)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    for file in files:
        assert file.isascii()
        assert file[0] not in ".-"
        assert not set(file) & set("/\\ \n\0")
    assert "a_b_003_00.png" in files


def test_all_png_files_are_written_or_none(oips: Oips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = oips.save_pictures(tmp_path, 1)
    before = first.read_bytes()
    written: list[Path] = []

    def fail(path: Path, picture: np.ndarray) -> None:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")
        written.append(path)

    monkeypatch.setattr("matplotlib.image.imsave", fail)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device; choose another output"):
        oips.save_pictures(tmp_path, 2)
    assert first.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 4


def test_files_that_cannot_be_written(oips: Oips, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no OIPs to save"):
        oips.take([]).save_pictures(tmp_path)
    with pytest.raises(InputError, match="map 3, start 0 is among these OIPs more than once"):
        oips.take([0, 1, 0]).save_pictures(tmp_path)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", 3):
        with pytest.raises(InputError):
            oips.save_pictures(path)  # type: ignore[arg-type]
    (tmp_path / "Conv2D_3_056_01.png").mkdir()
    with pytest.raises(InputError, match="is a directory"):
        oips.save_pictures(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Conv2D_3_056_01.png", "file"]


def test_a_gif_shows_the_way_and_holds_the_result(oips: Oips, coloured: Oips, tmp_path: Path) -> None:
    path = oips.save_animation(tmp_path / "deep" / "way.gif", map=56, start=1, scale=2, fps=4)
    assert [file.name for file in path.parent.iterdir()] == ["way.gif"]
    shown, milliseconds, loop = frames(path)
    one = oips.select(56, 1)
    pictures = [axes for axes in plots.evolution(one, 56).axes if axes.images]
    assert len(shown) == len(pictures) > 3
    assert milliseconds == [250] * (len(shown) - 1) + [2250]
    assert loop == 0  # without end
    assert np.array_equal(shown[-1], one.pictures(2)[0])  # grey levels survive the palette
    start = np.rint(255 * np.asarray(pictures[0].images[0].get_array()))
    assert np.array_equal(shown[0][::2, ::2], start)
    of_colour = coloured.save_animation(tmp_path / "colour.gif", 1, scale=1)
    assert np.abs(frames(of_colour)[0][-1] - coloured.pictures()[1].astype(float)).mean() < 8  # 256 colours a picture
    assert len(frames(oips.save_animation(path, 3, cmap="magma", scale=1))[0]) == len(shown)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"path": "way.png"}, r"way.png ends in .png: expected a file with the ending .gif"),
        ({"path": "way"}, "ends in nothing: expected a file with the ending .gif"),
        ({"path": 3}, "the path is given as 3"),
        ({"map": 4}, "no map 4 among"),
        ({"map": [3]}, r"the map is \(3,\): expected a whole number"),
        ({"map": True}, "the map is True"),
        ({"start": 2}, "no start 2 among"),
        ({"start": None}, "the start is None"),
        ({"fps": 0}, "fps is 0.0: expected pictures a second"),
        ({"fps": 51}, "fps is 51.0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": "2"}, "fps is '2'"),
        ({"scale": 0}, "scale is 0"),
        ({"cmap": "rainbowish"}, "cmap is 'rainbowish'"),
    ],
)
def test_gifs_that_cannot_be(oips: Oips, tmp_path: Path, more: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {"path": "way.gif", "map": 3} | more
    if isinstance(given["path"], str):
        given["path"] = tmp_path / given["path"]
    with pytest.raises(InputError, match=match) as told:
        oips.save_animation(**given)
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def video(path: Path) -> npt.NDArray[np.uint8]:
    import imageio.v3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # imageio's reader leaves pipes open
        held = imageio.v3.imread(path, plugin="FFMPEG")
        gc.collect()
    return held


def test_a_video_shows_what_the_gif_does(oips: Oips, tmp_path: Path) -> None:
    path = oips.save_animation(tmp_path / "way.mp4", 56, 1, scale=3, fps=4)
    assert [file.name for file in tmp_path.iterdir()] == ["way.mp4"]
    held = video(path)
    gif = oips.save_animation(tmp_path / "way.gif", 56, 1, scale=3, fps=4)
    shown, *_ = frames(gif)
    height, width = shown[0].shape[:2]
    assert held.shape == (len(shown) + 8, height + height % 2, width + width % 2, 3)  # held for two seconds more
    assert np.abs(held[-1][:height, :width].astype(float) - oips.select(56, 1).pictures(3)[0]).mean() < 8


def test_an_animation_is_a_gif_or_a_video(oips: Oips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"way.webm ends in .webm: expected a file with the ending .gif or .mp4"):
        oips.save_animation(tmp_path / "way.webm", 3)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r"needed for .mp4: run `pip install "):
        oips.save_animation(tmp_path / "way.mp4", 3)
    assert list(tmp_path.iterdir()) == []


def test_a_gif_needs_snapshots_and_is_written_whole(
    oips: Oips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(oips, snapshots=oips.snapshots[:, :0], snapshot_steps=oips.snapshot_steps[:0])
    with pytest.raises(InputError, match="hold no snapshots of the way"):
        few.save_animation(tmp_path / "way.gif", 3)

    def fail(self: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "way.gif").write_bytes(b"before")
    monkeypatch.setattr("matplotlib.animation.PillowWriter.finish", fail)
    with pytest.raises(InputError, match=r"cannot write .*way.gif: No space left"):
        oips.save_animation(tmp_path / "way.gif", 3)
    assert (tmp_path / "way.gif").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1
