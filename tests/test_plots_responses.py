"""Pictures of what the network says: what is outlined, cut out, laid over and claimed."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

import oip_torch
from oip_torch import AscentSettings, Calibration, FeatureModel, InputError, Oips, Responses, plots, respond
from oip_torch.base.drawing import shade

Digits = tuple[np.ndarray, np.ndarray]
ORANGE = (1.0, 0x8C / 255, 0x1A / 255, 1.0)


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return oip_torch.ascend(model, "Conv2D_3", [3, 17], settings=AscentSettings.within(60))


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, digits: Digits) -> Calibration:
    return oip_torch.calibrate(model, digits[0][::10], ["Conv2D_2", "Conv2D_3", "Dense_1"], top=4)


@pytest.fixture(scope="module")
def responses(model: FeatureModel, digits: Digits) -> Responses:
    return respond(model, digits[0][::1500], "Conv2D_2", 7)


def texts(figure: plots.Figure) -> list[str]:
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


def outlines(figure: plots.Figure) -> list[tuple[float, float, float, float]]:
    """Left, top, width, height of each."""
    found = [patch for patch in figure.findobj(Rectangle) if patch.get_edgecolor() == ORANGE and not patch.get_fill()]
    return [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in found]


def test_a_row_holds_the_picture_its_map_and_the_classes(responses: Responses) -> None:
    names = ["zero", *"123456789"]
    figure = plots.response(responses, names=names)
    assert len(figure.axes) == 3 * len(responses)
    for row in range(len(responses)):
        picture, over, bars = figure.axes[3 * row : 3 * row + 3]
        shown = np.asarray(picture.images[0].get_array())
        assert shown == pytest.approx(shade(responses.images[[row]], responses.ends)[0])
        heat = over.images[1]
        assert np.asarray(heat.get_array()) == pytest.approx(responses.activations[row])
        assert heat.get_extent() == [2.5, 24.5, 24.5, 2.5]  # 11 units in steps of 2 pixels, from 3 to 25 of 28
        widths = [bar.get_width() for bar in bars.patches]
        assert widths == pytest.approx(responses.outputs[row])
        assert [label.get_text() for label in bars.get_yticklabels()] == names
        low, high = responses.activations[row].min(), responses.activations[row].max()
        assert over.get_xlabel() == f"{low:.2f} to {high:.2f}"
    top, bottom, left, right = responses.fields[0]
    assert outlines(figure)[:2] == [(left - 0.5, top - 0.5, right - left, bottom - top)] * 2
    shown = " ".join(texts(figure))
    assert "Conv2D_2: what the network says to 4 pictures" in shown
    assert "Outlined is what the unit at which the map is largest sees: 8×8 of 28×28 pixels." in shown
    assert "Each unit is drawn where the middle of its field lies." in shown
    assert "Bars: the probability of each class, by Dense_2's softmax." in shown


def test_names_are_no_formulas(responses: Responses, oips: Oips, model: FeatureModel) -> None:
    name = "$\\bad{$"
    named = dataclasses.replace(responses, layer=name, output=name)
    figures = [plots.response(named, names=[name, *"123456789"]), plots.seen(dataclasses.replace(named, output=name))]
    for figure in figures:
        figure.savefig(io.BytesIO(), format="png", dpi=40)
        assert any(name in text for text in texts(figure))


def test_the_largest_unit_is_drawn_inside_its_outline(responses: Responses) -> None:
    """In its middle: the cell of the largest value lies where the field does."""
    top, _, left, _ = responses.extent
    for (y, x), field in zip(responses.places, responses.fields, strict=True):
        assert (top + 2 * (y + 0.5), left + 2 * (x + 0.5)) == ((field[0] + field[1]) / 2, (field[2] + field[3]) / 2)


def test_what_is_no_probability_is_not_called_so(rgb: FeatureModel, model: FeatureModel, digits: Digits) -> None:
    images = np.random.default_rng(0).integers(0, 255, (2, 20, 32, 3)).astype(np.uint8)
    linear = respond(rgb, images, "narrow", 0)
    shown = " ".join(texts(plots.response(linear)))
    assert "Bars: the outputs of logits, which are no probabilities of one class each." in shown
    many = dataclasses.replace(linear, outputs=np.arange(80.0).reshape(2, 40))
    figure = plots.response(many)
    assert len(figure.axes[2].patches) == 12
    assert "The 12 largest of 40." in " ".join(texts(figure))
    alone = respond(model, digits[0][:1])
    assert "What the network says to 1 picture" in texts(plots.response(alone))
    assert len(plots.response(alone).axes) == 2
    without = dataclasses.replace(alone, outputs=None)
    assert len(plots.response(without).axes) == 1
    with pytest.raises(InputError, match="has no two outputs to be named"):
        plots.response(without, names=["a"])
    stretched = dataclasses.replace(linear, extent=None)
    assert "The map is stretched over the image" in " ".join(texts(plots.response(stretched)))


def test_fields_are_outlined_or_cut_out(model: FeatureModel, oips: Oips) -> None:
    found = respond(model, oips)
    figure = plots.seen(found)
    assert [box[2:] for box in outlines(figure)] == [(18, 18), (18, 18)]
    assert "Conv2D_3: what a unit sees of 2 OIPs" in texts(figure)
    assert f"map 17: {found.activations[1].max():.2f}" in texts(figure)
    cut = plots.seen(found, crop=True, columns=1)
    assert outlines(cut) == []
    mosaic = np.asarray(cut.axes[0].images[0].get_array())
    assert mosaic.shape[1] == 18
    top, bottom, left, right = found.fields[0]
    begin = round(0.3 * 18)
    expected = shade(found.images[:1], found.ends)[0, top:bottom, left:right]
    assert mosaic[begin : begin + 18] == pytest.approx(expected)
    assert "Shown is what the unit at which the map is largest sees" in " ".join(texts(cut))


def test_what_lies_beyond_the_image_is_no_pixel(rgb: FeatureModel) -> None:
    images = np.random.default_rng(1).integers(0, 255, (1, 20, 32, 3)).astype(np.uint8)
    corner = respond(rgb, images, "narrow", 0, place=(1, 4))
    assert corner.fields[0].tolist() != corner.unclipped_fields[0].tolist()
    figure = plots.seen(corner, crop=True)
    mosaic = np.asarray(figure.axes[0].images[0].get_array())[4:]
    assert mosaic.shape[:2] == (13, 13)
    top, bottom, left, right = corner.fields[0]
    inside = mosaic[: bottom - top, : right - left]
    assert inside == pytest.approx(shade(corner.images, corner.ends)[0, top:bottom, left:right])
    assert (mosaic[bottom - top :] == (0.80, 0.84, 0.93)).all()
    shown = " ".join(texts(figure))
    assert "Blue-grey lies beyond the image." in shown
    assert "Shown is what the unit at (1, 4) sees" in shown


def test_top_images_are_outlined_where_the_map_saw_them(
    model: FeatureModel, calibration: Calibration, oips: Oips
) -> None:
    figure = plots.top_images(model, calibration, "Conv2D_3", count=2, oips=oips)
    data = calibration["Conv2D_3"]
    shown = texts(figure)
    for number in (3, 17):
        for place in range(2):
            assert f"#{data.top_indices[number, place]}: {data.top_scores[number, place]:.2f}" in shown
    assert {"OIP", "map 3", "map 17", "real images, the most exciting first"} <= set(shown)
    boxes = outlines(figure)
    assert len(boxes) == 6
    said = respond(model, data.top_of(3)[:2], "Conv2D_3", 3)
    made = respond(model, oips)
    first_left, first_top = boxes[0][0] - made.fields[0, 2], boxes[0][1] - made.fields[0, 0]
    second_left, second_top = boxes[1][0] - said.fields[0, 2], boxes[1][1] - said.fields[0, 0]
    assert second_top == first_top  # in one row
    assert second_left > first_left + 28
    title = "Conv2D_3: the real images that excite each map most, and what a unit saw of them (500 images)"
    assert title in shown
    assert len(outlines(plots.top_images(model, calibration, "Conv2D_2", [7], 3))) == 3
    silent = int(np.flatnonzero(calibration["Conv2D_2"].maximum == 0)[0])
    none = plots.top_images(model, calibration, "Conv2D_2", silent, 3, crop=True)
    assert "No outline: each map is the same all over, no unit is ahead." in " ".join(texts(none))
    units = texts(plots.top_images(model, calibration, "Dense_1", [3], 9))
    assert "Dense_1: the real images that excite each unit most (500 images)" in units
    assert "Outlined is what the units of Dense_1 see: 26×26 of 28×28 pixels." in " ".join(units)


def test_bad_calls(
    model: FeatureModel, smooth: FeatureModel, calibration: Calibration, responses: Responses, oips: Oips
) -> None:
    for draw in (plots.response, plots.seen):
        with pytest.raises(InputError, match=r"responses is 'x': expected what oip_torch\.respond returns"):
            draw("x")
        with pytest.raises(InputError, match="there are no responses to show"):
            draw(responses.take([]))
        with pytest.raises(InputError, match=r"(cmap|colors) is 'rainbowish'"):
            draw(responses, cmap="rainbowish")
        for figsize in (3, "wide", (1, 2, 3), (0, 3), (float("nan"), 3)):
            with pytest.raises(InputError, match="figsize is"):
                draw(responses, figsize=figsize)
    assert plots.seen(responses, figsize=(np.int64(6), 3.0)).get_figwidth() == 6
    with pytest.raises(InputError, match=r"there are 36 pictures: expected at most 32; responses\.take"):
        plots.response(responses.take([0] * 36))
    with pytest.raises(InputError, match="heat is 'hot air'"):
        plots.response(responses, heat="hot air")
    for names in ("0123456789", ["a"], list(range(10))):
        with pytest.raises(InputError, match=r"names (is|are) .*: expected"):
            plots.response(responses, names=names)
    with pytest.raises(InputError, match="these responses have no layer"):
        plots.seen(respond(model, responses.images))
    with pytest.raises(InputError, match="columns is 0"):
        plots.seen(responses, columns=0)
    with pytest.raises(InputError, match="calibration is None"):
        plots.top_images(model, None, "Conv2D_3")
    with pytest.raises(InputError, match="of another network"):
        plots.top_images(smooth, calibration, "Elu_2")
    with pytest.raises(InputError, match="no map 200 in Conv2D_3"):
        plots.top_images(model, calibration, "Conv2D_3", 200)
    with pytest.raises(InputError, match="count is 0"):
        plots.top_images(model, calibration, "Conv2D_3", 1, 0)
    with pytest.raises(InputError, match="expected OIPs of 'Conv2D_2'"):
        plots.top_images(model, calibration, "Conv2D_2", oips=oips)
    with pytest.raises(InputError, match="no map numbers"):
        plots.top_images(model, calibration, "Conv2D_3", [])
