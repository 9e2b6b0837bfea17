"""The page of an atlas in a browser, from disk and without network: what readers do with mouse, keyboard and ears."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from gallery_contents import Digits, contents_of, network_of, renamed
from matplotlib.image import imread
from playwright.sync_api import Browser, Error, Page, Route, expect, sync_playwright

import oip_torch as oip
from oip_torch.gallery.page import Gallery, write_gallery

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium"),
]

HOSTILE = "<img src=x onerror=alert(1)>"
LONG = "layer/" + "n" * 294
NUMBERS = list(range(22))


@dataclass
class Reader:
    """A page in the browser, and what it has asked for and complained of."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        """Of the maps in the grid, in order."""
        return [int(text) for text in self.page.locator(".grid .caption b").all_inner_texts()]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def path(model: oip.FeatureModel, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = digits
    held = contents_of(model, "Conv2D_1", (images[::20], labels[::20]), maps=NUMBERS)
    layers = [held, renamed(held, HOSTILE), renamed(held, "__proto__"), renamed(held, LONG)]
    runtime = {
        "counted": True,
        "layers": {"Conv2D_1": 1.5e-7},
        "trace_max_relative_error": 2e-9,
        "image_correlation": 1.0,
    }
    report = {"onnx": "mnist_cnn.onnx", "agree": True, "reference": "tensorflow, float64", "layer": "Conv2D_1"}
    report |= {"maps": [4, 6], "steps": 600, "runtimes": {"torch": runtime}}
    return write_gallery(network_of(model, layers), layers, tmp_path_factory.mktemp("gallery") / "page.html", report)


@pytest.fixture
def read(browser: Browser, path: Path) -> Iterator[Callable[..., Reader]]:
    """Open the page at an address, in a context of its own that reaches nothing; in the end nothing was asked for."""
    readers: list[Reader] = []

    def opened(address: str = "", **options: Any) -> Reader:
        context = browser.new_context(offline=True, **options)
        reader = Reader(context.new_page())

        def answer(route: Route) -> None:
            url = route.request.url
            if url == path.as_uri() or url.startswith(("data:", "blob:")):
                route.continue_()
            else:
                reader.requests.append(url)
                route.abort()

        context.route("**/*", answer)
        reader.page.on("console", lambda message: reader.complaints.append(message.text))
        reader.page.on("pageerror", lambda error: reader.complaints.append(str(error)))
        reader.page.on(
            "dialog", lambda dialog: (reader.complaints.append(f"dialog {dialog.message}"), dialog.dismiss())
        )
        reader.page.goto(path.as_uri() + address)
        readers.append(reader)
        return reader

    yield opened
    for reader in readers:
        assert (reader.requests, reader.complaints) == ([], [])
        reader.page.context.close()


def entry(page: Page) -> Any:
    """What the page holds of the first layer."""
    return page.evaluate("JSON.parse(document.getElementById('layer-0').textContent)")


def test_the_grid_sorts_and_filters(read: Callable[..., Reader]) -> None:
    reader = read()
    page, maps = reader.page, entry(reader.page)["maps"]
    assert reader.numbers == NUMBERS
    expect(page.locator("#count")).to_have_text("22 of 22 maps")
    for key in ("score", "over_data", "legibility", "agreement", "selectivity"):
        page.get_by_label("Sort by").select_option(key)
        values = {each["number"]: each["sort"][key] for each in maps}
        known = [number for number in NUMBERS if not isinstance(values[number], str)]
        sign = 1 if key == "selectivity" else -1
        undefined = [number for number in NUMBERS if number not in known]
        assert reader.numbers == sorted(known, key=lambda number: (sign * values[number], number)) + undefined
    page.get_by_label("Sort by").select_option("index")
    for flag in ("alive", "dead", "noise", "above_data"):
        page.get_by_label("Show", exact=True).select_option(flag)
        wanted = [each["number"] for each in maps if flag in each["flags"]]
        assert reader.numbers == wanted
        expect(page.locator("#count")).to_have_text(f"{len(wanted)} of 22 maps")
        expect(page.get_by_role("status")).to_have_text(f"{len(wanted)} of 22 maps")
    page.get_by_label("Show", exact=True).select_option("all")
    page.get_by_label("Numbers").fill("3, 7-9")
    assert reader.numbers == [3, 7, 8, 9]
    page.get_by_label("Numbers").fill("x")
    assert reader.numbers == []
    expect(page.locator("#hint")).to_contain_text("Type numbers or ranges")


def test_each_cell_shows_the_map_that_it_names(read: Callable[..., Reader]) -> None:
    reader = read()
    page = reader.page
    page.get_by_label("Sort by").select_option("score")
    found = page.evaluate("""async () => {
        const sheet = document.getElementById("best-0");
        await sheet.decode();
        const columns = JSON.parse(document.getElementById("layer-0").textContent).bestColumns;
        const own = document.createElement("canvas");
        own.width = own.height = 28;
        const pen = own.getContext("2d", { willReadFrequently: true });
        return [...document.querySelectorAll(".grid li")].map((item) => {
            const number = Number(item.querySelector("b").textContent);
            pen.drawImage(sheet, 28 * (number % columns), 28 * Math.floor(number / columns), 28, 28, 0, 0, 28, 28);
            const { x, y, width } = item.querySelector(".tile").getBoundingClientRect();
            return { wanted: [...pen.getImageData(0, 0, 28, 28).data], place: [x + scrollX, y + scrollY, width] };
        });
    }""")
    assert len(found) == 22
    seen = np.rint(255 * imread(io.BytesIO(page.screenshot(full_page=True)))).astype(int)
    for cell in found:
        left, top, side = map(round, cell["place"])
        assert side == 3 * 28
        shown = seen[top + 1 : top + side : 3, left + 1 : left + side : 3, :3]
        wanted = np.array(cell["wanted"]).reshape(28, 28, 4)[..., :3]
        assert np.array_equal(shown, wanted)
        assert len(np.unique(wanted)) > 3


def test_a_map_has_a_link_of_its_own_and_the_keyboard_leads_on(read: Callable[..., Reader]) -> None:
    reader = read("#Conv2D_1/17")
    page = reader.page
    expect(page.get_by_role("heading", name="Map 17 of Conv2D_1")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="Map 18 of Conv2D_1")).to_be_focused()
    assert page.url.endswith("#Conv2D_1/18")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Map 16 of Conv2D_1")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#count")).to_have_text("22 of 22 maps")
    expect(page.get_by_role("link", name=re.compile("^Map 16,"))).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("link", name=re.compile("^Map 17,"))).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    below = page.evaluate("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    expect(page.get_by_role("link", name=re.compile(f"^Map {below},"))).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=f"Map {below} of Conv2D_1")).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("Numbers")).to_be_focused()
    page.keyboard.type("5")
    assert reader.numbers == [5]
    page.keyboard.press("Escape")
    assert reader.numbers == NUMBERS


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("#Conv2D_1/99", "There is no map 99 of this layer"),
        ("#other/3", "There is no layer “other”"),
        ("#%E0%A4%A", "This address cannot be read"),
        ("#Dense_2", "There is no layer “Dense_2” in this atlas"),
    ],
)
def test_an_address_of_nothing_says_so(read: Callable[..., Reader], address: str, words: str) -> None:
    expect(read(address).page.locator("#hint")).to_contain_text(words)


def test_starts_ways_of_looking_and_the_evolution(read: Callable[..., Reader]) -> None:
    page = read("#Conv2D_1/4").page
    layer = entry(page)
    map_ = layer["maps"][4]
    portrait = page.locator(".portrait > canvas")

    def drawn() -> str:
        page.wait_for_timeout(150)
        return str(portrait.evaluate("(each) => each.toDataURL()"))

    best = drawn()
    other = 1 - map_["best"]
    page.get_by_role("button", name=re.compile(f"^Start {other}, score")).click()
    expect(page.get_by_role("button", name=re.compile(f"^Start {other}, score"))).to_be_focused()
    expect(page.get_by_role("heading", name=f"Figures of start {other}")).to_be_visible()
    assert drawn() != best
    page.get_by_role("button", name=re.compile(f"^Start {map_['best']}, score")).click()
    assert drawn() == best
    page.get_by_role("button", name="Own contrast").click()
    expect(page.get_by_role("button", name="Own contrast")).to_have_attribute("aria-pressed", "true")
    assert drawn() != best
    slider = page.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuetext", f"result, score {map_['starts'][map_['best']]['score']}")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(".frame-words")).to_contain_text("step 0")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".frame-words")).to_contain_text(f"step {layer['evolution'][1]['step']}")
    expect(page.get_by_role("heading", name="Map 4 of")).to_be_visible()  # the slider's arrows are its own


def test_similar_maps_stand_beside_a_map(read: Callable[..., Reader]) -> None:
    reader = read("#Conv2D_1/4")
    page = reader.page
    alike = entry(page)["maps"][4]["alike"]
    page.get_by_role("button", name="By activations").click()
    shown = page.locator(".similar .caption b").all_inner_texts()
    assert [int(text) for text in shown] == [position for position, _ in alike["activations"]][:12]
    page.get_by_role("button", name="Side by side in the grid").click()
    expect(page.locator("#count")).to_contain_text(f"Map 4 and the {len(alike['activations'])} of 22 maps most like it")
    assert reader.numbers == [4, *(position for position, _ in alike["activations"])]
    page.get_by_role("button", name="Show all again").click()
    assert reader.numbers == NUMBERS


def test_the_figures_of_a_comparison_say_whose_they_are(read: Callable[..., Reader]) -> None:
    page = read("#Conv2D_1/4").page
    section = page.get_by_role("region", name="In other frameworks")
    expect(section).to_contain_text("The runtimes agree.")
    expect(section.get_by_role("row", name=re.compile("torch"))).to_contain_text("1.5e−72.0e−91.000000")
    expect(section).to_contain_text(
        "the ascents of 2 maps of this layer, 600 steps in float64; this map was among them"
    )
    page.keyboard.press("ArrowRight")
    expect(section).to_contain_text("this map was not among them")


def test_a_reader_of_the_screen_hears_names(read: Callable[..., Reader]) -> None:
    page = read("#Conv2D_1/4").page
    heard = page.locator("body").aria_snapshot()
    for name in (
        'navigation "Layers of the network"',
        'img "OIP of map 4 of Conv2D_1, start',
        'list "All starts"',
        'slider "From the start to the result',
        'heading "Real images that excite it most"',
        'img "Real image',
        'img "Scores of 2 starts over',
        'rowheader "7"',
    ):
        assert name in heard, name
    page.goto(page.url.partition("#")[0] + "#Conv2D_1")
    heard = page.locator("body").aria_snapshot()
    for name in ('list "Maps of Conv2D_1"', 'link "Map 4, ', 'combobox "Sort by"', 'searchbox "Numbers"'):
        assert name in heard, name


@pytest.mark.parametrize("name", [HOSTILE, "__proto__", LONG])
def test_a_hostile_name_is_text(read: Callable[..., Reader], name: str) -> None:
    reader = read(viewport={"width": 390, "height": 844})
    page = reader.page
    page.locator("a.layer").get_by_text(name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    page.get_by_role("link", name=re.compile("^Map 3,")).click()
    expect(page.get_by_role("heading", name=f"Map 3 of {name}")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name=f"Map 3 of {name}")).to_be_visible()
    assert page.locator("img[src='x']").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["#Conv2D_1", "#Conv2D_1/4"])
def test_axe_finds_no_serious_fault(read: Callable[..., Reader], scheme: Any, address: str) -> None:
    page = read(address, color_scheme=scheme).page
    page.locator("#title").wait_for()
    found = Axe().run(page).response["violations"]
    serious = [
        (each["id"], [node["html"] for node in each["nodes"]][:3])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_the_theme_can_be_chosen(read: Callable[..., Reader]) -> None:
    page = read(color_scheme="light").page
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(background) != light
    expect(page.get_by_role("button", name="Dark")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate(background) == light


def test_without_script_all_maps_are_there(read: Callable[..., Reader]) -> None:
    page = read(java_script_enabled=False).page
    pictures = page.get_by_role("img", name=re.compile("^22 OIPs of "))
    expect(pictures).to_have_count(4)
    expect(pictures.first).to_be_visible()


def test_links_work_in_the_frame_of_a_notebook(browser: Browser, path: Path) -> None:
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.set_content(Gallery(path.read_text(encoding="utf-8"))._repr_html_())
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name=re.compile("^Map 3,")).click()
    expect(frame.get_by_role("heading", name="Map 3 of Conv2D_1")).to_be_visible()
    frame.get_by_role("link", name="← Conv2D_1").click()
    expect(frame.locator("#count")).to_have_text("22 of 22 maps")
    context.close()


def test_a_request_would_be_found(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<img src='https://example.org/x.png'>")
    context, asked = browser.new_context(offline=True), []
    context.route("**/*", lambda route: (asked.append(route.request.url), route.abort())[0])
    with pytest.raises(Error):
        context.new_page().goto(path.as_uri())
    assert asked == [path.as_uri()]
    context.close()
