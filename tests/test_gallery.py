"""The page of an atlas: what it holds is what the atlas holds, it needs no other file, and names stay text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import weakref
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gallery_contents import Digits, contents_of, network_of, renamed
from matplotlib.image import imread

import oip_torch as oip
from oip_torch.analysis.contents import LayerContents
from oip_torch.gallery.alike import by_images, nearest
from oip_torch.gallery.figures import FIGURES, REASONS
from oip_torch.gallery.page import Gallery, gallery_page, write_gallery
from oip_torch.gallery.reports import read_report
from oip_torch.gallery.sprites import Sheet, Tiling, encoded, tiled

MAPS = range(22)  # 20 are needed to lay a map beside others
HOSTILE = [
    *("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "__proto__", "層/é ﷽", "n" * 300),
    *("]]><!--", "{{ 7 * 7 }}{% raw %}", "\u202egnp.evil\u2066\u2069", "\x1b[31m'\"`\\"),
]


@pytest.fixture(scope="module")
def held(model: oip.FeatureModel, digits: Digits) -> LayerContents:
    images, labels = digits
    return contents_of(model, "Conv2D_1", (images[::20], labels[::20]), maps=MAPS)


@pytest.fixture(scope="module")
def html(model: oip.FeatureModel, held: LayerContents) -> str:
    return gallery_page(network_of(model, [held]), [held])


class Page(HTMLParser):
    """The elements of a page, as (tag, attributes), and the text of those with an id, of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def json(self, name: str) -> Any:
        return json.loads(self.texts[name])


def pixels(data: str, columns: int, size: tuple[int, int], count: int) -> npt.NDArray[np.uint8]:
    """The pictures of a sheet: (count, height, width, 3)."""
    sheet = np.asarray(imread(io.BytesIO(base64.b64decode(data)), format="webp"))[..., :3]
    height, width = size
    rows = sheet.reshape(-1, height, columns, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    return rows[:count]


def test_the_page_runs_its_own_script_and_style_and_loads_nothing(html: str) -> None:
    page = Page(html)
    (policy,) = [each["content"] for tag, each in page.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.texts[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    kinds = [each.get("type") for tag, each in page.elements if tag == "script"]
    assert kinds.count(None) == 1
    assert set(kinds) == {None, "application/json", "text/plain"}
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("src", "href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/webp;base64,"))
    assert "http://" not in page.texts["script"].replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html


def test_without_script_the_page_says_what_is_left(html: str) -> None:
    (text,) = re.findall(r"<noscript>(.*?)</noscript>", html, re.DOTALL)
    assert "JavaScript, which is off here" in text
    assert [each["alt"] for tag, each in Page(html).elements if tag == "img"] == [
        "22 OIPs of Conv2D_1, the best of each map"
    ]


def test_a_sheet_holds_the_pictures_of_the_results(html: str, held: LayerContents) -> None:
    page, best = Page(html), held.oips.best()
    entry = page.json("layer-0")
    assert [each["number"] for each in entry["maps"]] == list(MAPS)
    (source,) = [each["src"] for tag, each in page.elements if each.get("id") == "best-0"]
    data = (source or "").partition(",")[2]
    np.testing.assert_array_equal(pixels(data, entry["bestColumns"], (28, 28), len(best)), best.pictures())
    grey = pixels(page.texts["pack-0-best-strongest"], entry["bestColumns"], (28, 28), len(best))
    np.testing.assert_array_equal(grey, best.pictures(cmap="grey"))
    assert (grey != best.pictures()).any()
    # Of the second sheet of maps (17 is the second of its maps): two starts, and the way of the best with its result.
    way = len(entry["evolution"]) + 1
    of_chunk = pixels(page.texts["pack-0-1-data"], entry["columns"]["1-data"], (28, 28), 6 * (2 + way))
    np.testing.assert_array_equal(of_chunk[2 + way : 4 + way], held.oips[17].pictures())
    np.testing.assert_array_equal(of_chunk[3 + 2 * way], held.oips[17].best().pictures()[0])


def test_real_images_are_those_of_the_calibration(html: str, held: LayerContents) -> None:
    page = Page(html)
    entry = page.json("layer-0")
    assert held.data is not None
    own = held.data.calibration
    places = entry["maps"][3]["data"]["pictures"]
    sheet = pixels(page.texts["pack-0-0-real"], entry["columns"]["0-real"], (28, 28), max(places) + 1)
    ends = held.oips.ends
    np.testing.assert_array_equal(sheet[places], tiled(own.top_of(3), ends, "data", (28, 28)))
    assert [each["index"] for each in entry["maps"][3]["data"]["top"]] == own.top_indices[3].tolist()
    fields = [each["field"] for each in entry["maps"][3]["data"]["top"]]
    assert fields == [field.tolist() for field in held.data.fields[3]]


def test_figures_are_those_of_the_quality_or_say_why_not(held: LayerContents, html: str) -> None:
    quality, entry = held.quality, Page(html).json("layer-0")
    assert quality is not None
    assert held.data is not None
    shown = [start["figures"] for each in entry["maps"] for start in each["starts"]]
    assert len(shown) == len(held.oips)
    for column, figure in enumerate(FIGURES):
        for row, value in enumerate(getattr(quality, figure.key).tolist()):
            if isinstance(shown[row][column], str):
                assert shown[row][column] in REASONS
                assert not np.isfinite(value)
            else:
                assert shown[row][column] == pytest.approx(value, rel=1e-3, abs=1e-9)
    for each in entry["maps"]:
        excited = bool(held.data.calibration.excited[each["number"]])
        assert isinstance(each["sort"]["over_data"], str) == (not excited or "alive" not in each["flags"])


def test_statuses_and_counts_are_those_of_the_results(held: LayerContents, html: str) -> None:
    entry, best = Page(html).json("layer-0"), held.oips.best()
    assert held.noise is not None
    assert held.data is not None
    marked = {"alive": best.scores > 0, "dead": best.status == "dead", "noise": held.noise.marks(best)}
    marked["above_data"] = best.scores > held.data.calibration.maximum[best.maps]
    for flag, mask in marked.items():
        assert [each["number"] for each in entry["maps"] if flag in each["flags"]] == best.maps[mask].tolist(), flag
    for flag, words in (("alive", "alive"), ("above_data", "above the data"), ("noise", "not distinguishable")):
        assert f"<li>{marked[flag].sum()} of 22 {words}" in html
    assert "<li>22 maps in 1 layer</li>" in html
    assert "<li>44 images</li>" in html


def test_a_map_that_is_noise_says_which_question_it_fails(held: LayerContents) -> None:
    noise = held.noise
    assert noise is not None
    failing = dataclasses.replace(
        noise,
        agreement=noise.agreement * 0,
        most_unrelated_agreement=np.full(22, 0.2),
        most_scrambled_agreement=np.full(22, -1.0),
        score=np.full(22, 2.0),
        noise_score=np.full(22, 3.0),
        scrambled_score=np.full(22, 1.0),
        unrelated_score=np.full(22, np.nan),
        noise=np.full(22, True),
    )
    entry = oip_entry(dataclasses.replace(held, noise=failing))["maps"][0]
    assert entry["noise"]["why"] == [
        "its starts agree no better than images of other maps do",
        "noise scores as high as its best image",
    ]
    assert entry["noise"]["unrelatedScore"] == "few_maps"
    assert "noise" in entry["flags"]
    dead = dataclasses.replace(held.oips, status=np.full(44, "dead"))
    entry = oip_entry(dataclasses.replace(held, noise=failing, oips=dead))["maps"][0]
    assert "noise" not in entry["flags"]


def oip_entry(contents: LayerContents) -> dict[str, Any]:
    from oip_torch.gallery.entries import layer_entry

    return layer_entry(contents, None, 16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda held: {"quality": None, "planned": 45}, "unfinished"),
        (lambda held: {"quality": None}, "not_asked"),
        (lambda held: {"data": dataclasses.replace(held.data, calibration=silent(held))}, "not_excited"),
    ],
)
def test_an_undefined_ratio_says_why(held: LayerContents, change: Any, reason: str) -> None:
    entry = oip_entry(dataclasses.replace(held, **change(held)))
    assert {each["sort"]["over_data"] for each in entry["maps"]} == {reason}


def silent(held: LayerContents) -> Any:
    assert held.data is not None
    return dataclasses.replace(held.data.calibration, maximum=held.data.calibration.maximum * 0)


def test_without_data_and_with_one_start_nothing_is_claimed_of_them(model: oip.FeatureModel) -> None:
    contents = contents_of(model, "Conv2D_1", None, maps=[3, 5], starts=1)
    entry = oip_entry(contents)
    assert entry["compares"] is False
    assert entry["data"] is None
    sort = entry["maps"][0]["sort"]
    assert (sort["over_data"], sort["agreement"], sort["legibility"]) == ("no_data", "one_start", "no_data")
    assert entry["maps"][0]["alike"]["activations"] == []
    page = gallery_page(network_of(model, [contents]), [contents])
    assert "above the data</li>" not in page
    assert "from noise</li>" not in page


def test_an_unfinished_layer_says_how_many_images_there_are(model: oip.FeatureModel, held: LayerContents) -> None:
    half = dataclasses.replace(held, oips=held.oips.take(range(11)), quality=None, noise=None)
    page = gallery_page(network_of(model, [half]), [half])
    assert "<li>11 images of 44 planned</li>" in page
    entry = Page(page).json("layer-0")
    assert (entry["images"], entry["planned"], len(entry["maps"])) == (11, 44, 6)


def test_names_stay_text(model: oip.FeatureModel, held: LayerContents) -> None:
    layers = [renamed(held, name) for name in HOSTILE]
    network = network_of(model, layers, name=HOSTILE[1], more=False)
    network = dataclasses.replace(network, versions={HOSTILE[0]: HOSTILE[1] + "\u2028"})
    html = gallery_page(network, layers)
    page, plain = Page(html), Page(gallery_page(network_of(model, [held], more=False), [held]))
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert [tag for tag, _ in page.elements].count("script") == 1 + 1 + len(HOSTILE) * (1 + 1 + 2 * 3)
    assert [each["name"] for each in page.json("network")["layers"]] == HOSTILE
    assert [page.json(f"layer-{index}")["name"] for index in range(len(HOSTILE))] == HOSTILE
    for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL):
        assert not set("<>&\u2028\u2029") & set(text)


def test_layers_are_taken_one_at_a_time(model: oip.FeatureModel, held: LayerContents) -> None:
    made: list[weakref.ref[LayerContents]] = []

    def layers() -> Iterator[LayerContents]:
        for name in ("a", "b"):
            assert [reference() for reference in made] == [None] * len(made)
            contents = renamed(held, name)
            made.append(weakref.ref(contents))
            yield contents
            del contents

    network = network_of(model, [renamed(held, "a"), renamed(held, "b")])
    assert [each["name"] for each in Page(gallery_page(network, layers())).json("network")["layers"]] == ["a", "b"]


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path, model: oip.FeatureModel, held: LayerContents) -> None:
    path = tmp_path / "page.html"
    path.write_text("earlier")

    def broken() -> Any:
        yield held
        raise oip.InputError("the store is damaged")

    with pytest.raises(oip.InputError, match="damaged"):
        write_gallery(network_of(model, [held]), broken(), path)
    assert path.read_text() == "earlier"
    assert write_gallery(network_of(model, [held]), [held], path) == path
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(oip.InputError, match=r"ends in \.png: expected an HTML file"):
        write_gallery(network_of(model, [held]), [held], tmp_path / "page.png")
    with pytest.raises(oip.InputError, match="holds no images yet"):
        write_gallery(network_of(model, [held]), [], path)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(html: str) -> None:
    shown = Gallery(html)._repr_html_()
    ((tag, attributes),) = Page(shown).elements
    assert tag == "iframe"
    assert attributes["srcdoc"] == html
    assert attributes["sandbox"] == "allow-scripts"


def test_the_page_is_small(html: str) -> None:
    assert len(html) < 44 * 15e6 / 1792 + 100_000  # as 15 MB for 224 maps of 8 starts, and what every page holds


def test_large_images_are_reduced_and_one_a_map_is_larger(model: oip.FeatureModel, held: LayerContents) -> None:
    tiling = Tiling(224, 448)
    assert (tiling.reduced, tiling.tile, tiling.large) == (True, (32, 64), (128, 256))
    assert Tiling(28, 28).large is None
    assert Tiling(28, 28).tile == (28, 28)
    image = np.zeros((1, 128, 128, 1))
    image[:, :64] = 1.0
    pictures = tiled(image, (0.0, 1.0), "data", (64, 64))
    np.testing.assert_array_equal(pictures[0, :, 0, 0], [255] * 32 + [0] * 32)
    network = network_of(model, [held])
    large = np.repeat(np.repeat(held.oips.images, 4, axis=1), 4, axis=2)
    oips = dataclasses.replace(
        held.oips, images=large, snapshots=held.oips.snapshots[:, :0], snapshot_steps=held.oips.snapshot_steps[:0]
    )
    bigger = dataclasses.replace(held, oips=dataclasses.replace(oips), data=None)
    bigger = dataclasses.replace(bigger, oips=bigger.oips.select(maps=[0, 1]), quality=None, noise=None)
    html = gallery_page(dataclasses.replace(network, input_shape=(1, 112, 112)), [bigger])
    page = Page(html)
    assert "Pictures are reduced from 112×112 to 64×64 pixels" in html
    entry = page.json("layer-0")
    assert (entry["tile"], entry["large"], entry["evolution"]) == ([64, 64], [112, 112], [])
    shown = pixels(page.texts["pack-0-large-1-data"], 1, (112, 112), 1)[0].astype(float)
    own = bigger.oips.best().pictures()[1].astype(float)
    assert np.corrcoef(shown.ravel(), own.ravel())[0, 1] > 0.98


def test_a_sheet_of_any_count_comes_back() -> None:
    stream = np.random.default_rng(0)
    for count in (1, 2, 7):
        pictures = stream.integers(0, 256, (count, 3, 5, 3), dtype=np.uint8)
        sheet: Sheet = encoded([pictures], lossless=True)
        np.testing.assert_array_equal(pixels(sheet.data, sheet.columns, (3, 5), count), pictures)


def test_most_similar_maps() -> None:
    stream = np.random.default_rng(0)
    images = stream.standard_normal((4, 12, 12, 1))
    images[2] = np.roll(images[0], 3, axis=1)
    (first, *_), second, third, _ = by_images(images)
    assert first == (2, 1.0)
    assert third[0] == (0, 1.0)
    assert sorted(position for position, _ in second) == [0, 2, 3]
    likeness = np.array([[1.0, 0.2, np.nan], [0.2, 1.0, 0.7], [np.nan, 0.7, 1.0]])
    assert nearest(likeness, np.array([2, 0, 1])) == [[(2, 0.7)], [(2, 0.2)], [(0, 0.7), (1, 0.2)]]


REPORT = {
    "onnx": "/somewhere/mnist_cnn.onnx",
    "agree": True,
    "reference": "tensorflow, float64",
    "layer": "Conv2D_3",
    "maps": [0, 2],
    "steps": 600,
    "runtimes": {
        "torch": {
            "counted": True,
            "layers": {"Conv2D_1": 1e-7, "Conv2D_3": None},
            "trace_max_relative_error": 1e-9,
            "image_correlation": 1.0,
        }
    },
}


def test_a_report_of_a_comparison_is_shown_layer_by_layer(
    tmp_path: Path, model: oip.FeatureModel, held: LayerContents
) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    report = read_report(tmp_path, model.layers.names)
    html = gallery_page(network_of(model, [held]), [held], report)
    page = Page(html)
    assert page.json("network")["report"] == {
        "onnx": "mnist_cnn.onnx", "agree": True, "reference": "tensorflow, float64",
    }  # fmt: skip
    found = page.json("layer-0")["compare"]
    assert found["ascended"] is None
    assert found["rows"] == [{"name": "torch", "counted": True, "error": 1e-7, "trace": None, "images": None}]
    assert "/somewhere" not in html


def test_a_name_that_is_no_text_is_refused(model: oip.FeatureModel, held: LayerContents) -> None:
    network = dataclasses.replace(network_of(model, [held]), name="half \ud800")
    with pytest.raises(oip.InputError, match=r"a name cannot be written on a page: the text 'half \\ud800' has half"):
        gallery_page(network, [held])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{", "is no report of a comparison"),
        ("[]", "is no report of a comparison"),
        (json.dumps(REPORT | {"runtimes": {"torch": {}}}), "is no report of a comparison"),
        (json.dumps(REPORT | {"agree": "no"}), "'no' stands where true or false is expected"),
        (json.dumps(REPORT | {"steps": 1e300}), "steps is 1e.300: expected a whole number"),
        (json.dumps(REPORT | {"maps": [float("nan")]}), "NaN stands where a finite number is expected"),
        (json.dumps(REPORT | {"reference": "\ud800"}), "has half a character"),
        ("[" * 30 + "]" * 30, "nested deeper than 16 brackets"),
        ("[" * 30_000 + "]" * 30_000, "nested more than 200 levels deep"),
        (json.dumps(REPORT | {"layer": "other"}), "is of another network: it has a layer 'other'"),
    ],
)
def test_another_report_is_refused(tmp_path: Path, model: oip.FeatureModel, text: str, message: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(oip.InputError, match=message):
        read_report(tmp_path, model.layers.names)
    with pytest.raises(oip.InputError, match="does not exist"):
        read_report(tmp_path / "none", model.layers.names)


def test_a_report_is_no_link(tmp_path: Path, model: oip.FeatureModel) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(REPORT))
    (tmp_path / "report.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(oip.InputError, match=r"report\.json is a link: expected the file"):
        read_report(tmp_path, model.layers.names)
