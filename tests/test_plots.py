"""Pictures: what is on them, and that they are nobody's but the caller's."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, Comparison, FeatureModel, InputError, Oips, ascend, calibrate, plots
from oip_torch.comparison.answers import Ascents
from oip_torch.comparison.bounds import BOUNDS
from oip_torch.optim.objectives import map_mean, map_peak


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", range(6), starts=2, settings=AscentSettings.article(steps=20))


def texts(figure: plots.Figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_sheet_names_each_picture_and_marks_the_dead(oips: Oips) -> None:
    best = oips.select(starts=0)
    shown = texts(plots.sheet(best, cmap="grey"))
    for number, score, status in zip(best.maps, best.scores, best.status, strict=True):
        assert (f"{number}: dead" if status == "dead" else f"{number}: {score:.2f}") in shown
    assert any("quantile" in text for text in shown)
    assert f"{oips.maps[-1]}·1: " in " ".join(texts(plots.sheet(oips)))


def test_an_evolution_has_a_row_per_start_and_one_scale_per_row(oips: Oips) -> None:
    figure = plots.evolution(oips, 0, cmap="grey")
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == 2 * len(oips.snapshot_steps)  # the last snapshot gives way to the result
    shown = texts(figure)
    assert "step 0" in shown
    assert "result" in shown
    first = oips.select(maps=0, starts=0)
    low, high = np.quantile(np.stack([*first.snapshots[0, :-1], first.images[0]]), [0.005, 0.995])
    expected = np.clip((first.snapshots[0, 0, ..., 0] - low) / (high - low), 0, 1)
    assert np.asarray(pictures[0].images[0].get_array())[..., 0] == pytest.approx(expected, abs=1e-6)


def test_a_trace_has_a_line_per_image(oips: Oips) -> None:
    axes = plots.trace(oips).axes[0]
    assert sum(len(line.get_xdata()) > 1 for line in axes.lines) == len(oips)
    assert axes.get_xlabel() == "step"


def test_colours_for_three_channels(oips: Oips) -> None:
    coloured = dataclasses.replace(oips, images=oips.images.repeat(3, -1), snapshots=oips.snapshots.repeat(3, -1))
    for figure in (plots.sheet(coloured), plots.evolution(coloured, 1)):
        figure.savefig(io.BytesIO(), format="png", dpi=40)


def test_colours_are_the_data_s_own_unless_others_are_asked_for(oips: Oips) -> None:
    """Black is a pixel of 0, white one of 255; a file that does not know them is shown in grey."""
    one = oips.select(maps=0, starts=0)

    def pixels(shown: Oips, **more: str) -> np.ndarray:
        figure = plots.evolution(shown, 0, **more)
        return np.asarray(figure.axes[len(shown.snapshot_steps) - 1].images[0].get_array())

    own = pixels(one)
    expected = np.clip((one.images[0] * 78.56749 + 33.318421) / 255, 0, 1)
    assert own == pytest.approx(expected.repeat(3, -1), abs=1e-6)
    grey = pixels(one, cmap="grey")
    assert not np.allclose(own, grey)
    assert np.ptp(pixels(one, cmap="viridis"), -1).max() > 0.1
    unknown = dataclasses.replace(one, provenance=dataclasses.replace(one.provenance, domain=None))
    assert np.array_equal(pixels(unknown), grey)
    assert any("Colours: the data's own" in text for text in texts(plots.sheet(one)))
    assert not any("Colours: the data's own" in text for text in texts(plots.sheet(unknown)))
    with pytest.raises(InputError, match="cmap is 'rainbowish': expected 'data', 'grey', or a matplotlib colormap"):
        plots.sheet(one, cmap="rainbowish")


def test_figures_are_not_pyplot_s(oips: Oips) -> None:
    import matplotlib.pyplot as plt

    plots.sheet(oips)
    plots.trace(oips)
    assert plt.get_fignums() == []


def test_nothing_to_show(oips: Oips) -> None:
    with pytest.raises(InputError, match="no OIPs to show"):
        plots.sheet(oips.take([]))
    with pytest.raises(InputError, match="no map 77"):
        plots.evolution(oips, 77)


# What is shown is so


@pytest.fixture(scope="module")
def searched(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", [3, 56], starts=2, settings=AscentSettings.within(100))


def test_an_evolution_begins_at_the_start_and_says_where_the_screening_ends(searched: Oips, oips: Oips) -> None:
    screening = searched.screening_steps
    assert screening > 0
    figure = plots.evolution(searched, 56)
    shown = texts(figure)
    assert "Conv2D_3, map 56: from the start to the OIP" in shown
    steps = [int(step) for step in searched.snapshot_steps[:-1]]
    assert [text for text in shown if "step " in text][: len(steps)] == [
        f"screening\nstep {step}" if step < screening else f"step {step}" for step in steps
    ]
    first = searched.select(maps=56, starts=0)
    assert f"{first.traces[0, 0]:.2f}" in shown
    (line,) = [line for line in figure.axes[len(steps) + 1].lines if line.get_linestyle() == ":"]
    assert list(line.get_xdata()) == [screening, screening]
    note = " ".join(" ".join(shown).split())
    assert (
        f"Steps 0 to {screening - 1} are the screening of the start that went on; the dotted line is its end." in note
    )
    assert f"Settings: {AscentSettings.within(100).summary}." in note
    article = " ".join(texts(plots.evolution(oips, 0)))
    assert "screening" not in article
    assert "Settings: 20 steps of 0.01 from one start." in article


def test_a_file_without_the_screening_s_steps_does_not_claim_the_start(searched: Oips) -> None:
    screening = searched.screening_steps
    kept = searched.snapshot_steps >= screening
    old = dataclasses.replace(
        searched,
        traces=searched.traces[:, screening:],
        snapshots=searched.snapshots[:, kept],
        snapshot_steps=searched.snapshot_steps[kept] - screening,
        converged_at=np.full_like(searched.converged_at, -1),
    )
    assert old.screening_steps == 0
    assert "Conv2D_3, map 3: from the end of its screening to the OIP" in texts(plots.evolution(old, 3))


def test_small_scores_and_recovered_maps_are_shown_as_such(oips: Oips) -> None:
    some = oips.select(starts=0).take([0, 1, 2])
    some = dataclasses.replace(
        some, scores=np.array([0.0012, 1.5, 0.0]), status=np.array(["finished", "recovered", "dead"])
    )
    shown = texts(plots.sheet(some))
    assert {"0: 0.001", "1: 1.50*", "2: dead"} <= set(shown)
    assert not any(text.endswith("0.00") for text in shown)
    assert "* recovered: inactive after the screening, it fires by way of its peak." in " ".join(
        " ".join(shown).split()
    )
    assert "Conv2D_3: 2 of 3 OIPs alive" in shown
    assert "recovered" not in " ".join(texts(plots.sheet(some.take([0, 2]))))


def test_titles_name_what_is_shown(model: FeatureModel, searched: Oips) -> None:
    assert "Conv2D_3, map 56: 2 of 2 OIPs alive" in texts(plots.sheet(searched.select(56)))
    assert "Conv2D_3: 4 of 4 OIPs alive, of 2 maps" in texts(plots.sheet(searched))
    classes = ascend(model, "Dense_2", [1, 7], starts=2, settings=AscentSettings.within(12))
    shown = texts(plots.sheet(classes))
    assert "Dense_2 before its softmax: 4 OIPs, of 2 classes" in shown
    assert any(text.startswith("Class·start: score.") for text in shown)
    assert "Dense_2 before its softmax, class 7: from the start to the OIP" in texts(plots.evolution(classes, 7))
    assert any("Dense_2 before its softmax, class 7: 2 starts" in text for text in texts(plots.consistency(classes, 7)))
    trace = plots.trace(classes)
    assert trace.axes[0].get_ylabel() == "score (pre-activation of the class)"
    assert "class 1, start 0" in texts(trace)
    units = ascend(model, "Dense_1", [1], settings=AscentSettings.within(12))
    assert plots.trace(units).axes[0].get_ylabel() == "score (activation of the unit)"
    assert plots.trace(searched).axes[0].get_ylabel() == "score (mean activation of the map)"
    for draw in (plots.evolution, plots.consistency):
        for several in ([3, 56], [], "3"):
            with pytest.raises(InputError, match=r"the map is .*: expected a whole number"):
                draw(searched, several)
    with pytest.raises(InputError, match="no OIPs to show"):
        plots.evolution(searched, 3, starts=[])

    def falling(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return -map_mean(activations, maps)

    other = ascend(model, "Conv2D_3", [3, 5], settings=AscentSettings.within(12), objective=falling)
    assert "Conv2D_3: 2 OIPs" in texts(plots.sheet(other))  # whether a map is alive was not asked
    peak = ascend(model, "Conv2D_3", 3, settings=AscentSettings.within(12), objective=map_peak)
    assert plots.trace(peak).axes[0].get_ylabel() == "score (map_peak)"


def beside(model: FeatureModel, maximum: float, objective: str = "map_mean") -> str:
    """The text of `beside_data` for a map from which the data draws `maximum` at most."""
    oips = ascend(model, "Conv2D_3", [0, 3], settings=AscentSettings.within(12))
    oips = dataclasses.replace(
        oips,
        scores=np.array([1.27, 2.0]),
        provenance=dataclasses.replace(oips.provenance, objective=objective, scored_by=objective),
    )
    images = np.random.default_rng(0).integers(0, 255, (12, 28, 28))
    calibration = calibrate(model, images, "Conv2D_3", top=3)
    layer = calibration["Conv2D_3"]
    own = layer.maximum.copy()
    own[:] = 1.0
    own[0] = maximum
    scores = np.minimum(layer.top_scores, own[:, None])
    changed = dataclasses.replace(layer, maximum=own, top_scores=scores)
    figure = plots.beside_data(oips, dataclasses.replace(calibration, layers={"Conv2D_3": changed}), count=3)
    return "\n".join(texts(figure))


def test_no_ratio_is_told_where_the_data_does_not_excite_the_map(model: FeatureModel) -> None:
    for maximum, words in (
        (0.0, "no image of the data excites this map"),
        (0.0059, "the data hardly excites this map"),
    ):
        text = beside(model, maximum)
        assert f"1.27\n{words}" in text
        assert "1.27 (" not in text
        assert "2.00 (2.0 × data)" in text
    assert "1.27 (2.5 × data)" in beside(model, 0.5)
    other = beside(model, 0.5, "map_peak")
    assert "× data" not in other
    assert "The OIPs' scores are of another objective (map_peak), and do not compare." in " ".join(other.split())


def test_images_that_score_alike_are_not_ranked(model: FeatureModel, digits: tuple[np.ndarray, np.ndarray]) -> None:
    """After a softmax hundreds of digits score exactly 1."""
    images = digits[0][::5]
    after = calibrate(model, images, "Dense_2", top=4, pre_activation=False)
    layer = after["Dense_2"]
    certain = np.flatnonzero((layer.top_scores == 1).all(1))
    assert len(certain) > 3
    assert (layer.top_ranks[certain] == 1).all()
    assert layer.tied is not None
    assert (layer.tied[certain] > 0).all()
    oips = ascend(model, "Dense_2", certain, settings=AscentSettings.within(12), pre_activation=False)
    shown = texts(plots.beside_data(oips, after, count=3))
    assert sum(text.endswith("1.00 =") for text in shown) == 3 * len(certain)
    assert any("= others score exactly as much: such images have no order." in " ".join(text.split()) for text in shown)
    before = calibrate(model, images, "Dense_2", top=4)["Dense_2"]
    assert (before.top_ranks == [1, 2, 3, 4]).all()
    assert before.tied is not None
    assert not before.tied.any()


# In figures of one's own


def draw_all(oips: Oips, model: FeatureModel) -> dict[str, object]:
    """What draws into one Axes, by its name, for two starts of a map or more."""
    calibration = calibrate(model, np.random.default_rng(0).integers(0, 255, (12, 28, 28)), "Conv2D_3", top=3)
    return {
        "sheet": lambda **more: plots.sheet(oips, **more),
        "trace": lambda **more: plots.trace(oips, **more),
        "consistency": lambda **more: plots.consistency(oips, 0, **more),
        "beside_data": lambda **more: plots.beside_data(oips, calibration, **more),
    }


def test_an_axes_of_the_caller_s_is_drawn_into_and_its_figure_left_alone(oips: Oips, model: FeatureModel) -> None:
    import matplotlib.pyplot as plt

    for name, draw in draw_all(oips, model).items():
        own = draw()
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        figure.suptitle("mine")
        right.plot([1, 2])
        assert draw(ax=left) is left
        assert left.get_title().replace("\n", " ") == own.get_suptitle()
        note = " ".join(own.get_supxlabel().split())
        assert note in " ".join(" ".join(text.get_text() for text in left.texts).split())
        assert (figure.get_suptitle(), figure.get_supxlabel()) == ("mine", "")
        assert figure.axes == [left, right]
        assert (len(right.lines), right.get_title(), right.texts[:]) == (1, "", [])
        assert figure.get_size_inches().tolist() == [9, 4]
        assert plt.get_fignums() == [figure.number]
        figure.savefig(io.BytesIO(), format="png")
        bottom = min(text.get_window_extent().y0 for text in left.texts)
        assert bottom > -1, name  # the note has its place in a figure that makes room
        plt.close(figure)


def test_labels_shrink_with_the_room_and_pictures_fill_it(oips: Oips) -> None:
    import matplotlib.pyplot as plt

    figure, (wide, high) = plt.subplots(1, 2, figsize=(3, 3))
    wide.set_position((0, 0, 1, 0.2))
    high.set_position((0, 0, 0.2, 1))
    for axes in (wide, high):
        plots.sheet(oips, ax=axes)
    shapes = [axes.images[0].get_array().shape for axes in (wide, high)]
    assert shapes[0][1] > 2 * shapes[0][0]
    assert shapes[1][0] > 2 * shapes[1][1]
    own = plots.sheet(oips)
    assert wide.texts[0].get_fontsize() < own.axes[0].texts[0].get_fontsize() == 7
    plt.close(figure)


def test_figures_have_the_size_that_is_asked_for(oips: Oips, model: FeatureModel) -> None:
    for draw in (*draw_all(oips, model).values(), lambda **more: plots.evolution(oips, 0, **more)):
        assert draw(figsize=(7, np.float64(3))).get_size_inches().tolist() == [7, 3]
        for wrong in (3, (3,), (3, 0), (3, -1), (3, float("nan")), (3, 501), "ab", ("3", "4"), (True, 3)):
            with pytest.raises(InputError, match=r"figsize is .*: expected \(width, height\) in inches"):
                draw(figsize=wrong)


def test_what_is_no_axes_is_refused(oips: Oips, model: FeatureModel) -> None:
    import matplotlib.pyplot as plt

    figure, several = plt.subplots(1, 2)
    polar = plt.figure().add_subplot(projection="polar")
    for draw in draw_all(oips, model).values():
        for wrong in (several, figure, polar, "ax", 0):
            with pytest.raises(InputError, match=r"ax is .*: expected one Axes of matplotlib"):
                draw(ax=wrong)
        with pytest.raises(InputError, match="figsize and ax are both given"):
            draw(ax=several[0], figsize=(3, 3))
    plt.close("all")


def test_classes_are_called_by_their_names(model: FeatureModel) -> None:
    classes = ascend(model, "Dense_2", [3, 7], starts=2, settings=AscentSettings.within(12))
    names = ["a$b", "1", "2", "a$\\frac$", "4", "5", "6", "a cat", "8", "9"]
    first = classes.select(starts=0)
    assert f"a cat: {first.scores[1]:.2f}" in texts(plots.sheet(first, names=names))
    assert "class 7 (a cat), start 1" in texts(plots.trace(classes, names=names))
    assert any(
        text.startswith("Dense_2 before its softmax, class 7 (a cat): 2 starts")
        for text in texts(plots.consistency(classes, 7, names=names))
    )
    assert any("class 7 (a cat): from" in text for text in texts(plots.evolution(classes, 7, names=names)))
    calibration = calibrate(model, np.random.default_rng(0).integers(0, 255, (12, 28, 28)), "Dense_2", top=3)
    beside = plots.beside_data(classes, calibration, names=names)
    assert "class\na cat" in texts(beside)
    for figure in (
        *(plots.sheet(first, names=names), plots.trace(classes, names=names), beside),
        *(plots.evolution(classes, 3, names=names), plots.consistency(classes, 3, names=names)),
    ):
        figure.savefig(io.BytesIO(), format="png", dpi=40)  # a name is no formula
    with pytest.raises(InputError, match="9 names are given"):
        plots.trace(classes, names=names[:9])


@pytest.mark.parametrize("name", ["$\\bad{$", "a$b$c", "\\$1"])
def test_a_layer_s_name_is_no_formula(oips: Oips, name: str) -> None:
    named = dataclasses.replace(oips, layer=name)
    number = int(named.maps[0])
    for figure in (plots.sheet(named), plots.trace(named), plots.evolution(named, number)):
        figure.savefig(io.BytesIO(), format="png", dpi=40)
        assert any(name in text for text in texts(figure))


def test_a_colormap_itself_is_taken(oips: Oips) -> None:
    from matplotlib import colormaps

    one = oips.select(maps=0, starts=0)
    own, named = (plots.sheet(one, cmap=cmap).axes[0].images[0].get_array() for cmap in (colormaps["magma"], "magma"))
    assert np.array_equal(own, named)
    for wrong in (None, 3, ["viridis"], ""):
        with pytest.raises(InputError, match="cmap is"):
            plots.sheet(one, cmap=wrong)


def made_up_comparison(model: FeatureModel) -> Comparison:
    """Of two runtimes that differ by a little."""
    images = np.random.default_rng(0).normal(size=(2, 28, 28, 1))
    traces = np.array([[1.0, 2.0], [1.0, 3.0]])
    ascents = {
        name: {dtype: Ascents(traces=traces + shift, images=images + shift) for dtype in ("float32", "float64")}
        for name, shift in (("tensorflow", 0.0), ("torch", 0.05))
    }
    scores = {name: {"max_relative_error": 1e-7} for name in ascents}
    entry = {"layers": {"Conv2D_1": 1e-7}, "layers_float64": None, "gradients": None, "dead_maps": None}
    entry |= {"image_correlation": None, "scores": scores}
    return Comparison(
        layer="Conv2D_1",
        maps=np.array([0, 5]),
        reference="tensorflow",
        report={"runtimes": dict.fromkeys(ascents, entry), "reference": "tensorflow, float64", "bounds": BOUNDS}
        | {"before_activation": False},
        disagreements=(),
        ascents=ascents,
        domain=model.domain,
    )


def test_a_comparison_s_images_are_shown_in_the_data_s_own_colours(model: FeatureModel) -> None:
    comparison = made_up_comparison(model)
    image = comparison.ascents["torch"]["float32"].images[1]

    def picture(shown: Comparison, **more: str) -> np.ndarray:
        return np.asarray(plots.side_by_side(shown, [5], **more).axes[1].images[0].get_array())

    expected = np.clip((image * 78.56749 + 33.318421) / 255, 0, 1).repeat(3, -1)
    assert picture(comparison) == pytest.approx(expected, abs=1e-6)
    grey = picture(comparison, cmap="grey")
    assert not np.allclose(grey, expected)
    assert np.ptp(picture(comparison, cmap="viridis"), -1).max() > 0.1
    unknown = dataclasses.replace(comparison, domain=None)
    assert np.array_equal(picture(unknown), grey)
    for shown, words in ((comparison, "Colours: the data's own"), (unknown, "Scale: each map from its own")):
        assert words in " ".join(" ".join(texts(plots.side_by_side(shown))).split())


def test_a_comparison_is_drawn_where_and_as_large_as_is_asked_for(model: FeatureModel) -> None:
    import matplotlib.pyplot as plt

    comparison = made_up_comparison(model)
    figure, axes = plt.subplots(2, layout="constrained")
    for draw, own in zip((plots.agreement, plots.cross_scores), axes, strict=True):
        assert draw(comparison, ax=own) is own
        assert own.get_title().replace("\n", " ") == draw(comparison).get_suptitle()
    assert figure.get_suptitle() == ""
    plt.close(figure)
    for draw in (plots.agreement, plots.cross_scores, plots.divergence, plots.side_by_side):
        assert draw(comparison, figsize=(6, 5)).get_size_inches().tolist() == [6, 5]
        with pytest.raises(InputError, match="figsize is 0"):
            draw(comparison, figsize=0)
