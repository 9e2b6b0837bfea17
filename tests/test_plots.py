"""Pictures: what is on them, and that they are nobody's but the caller's."""

from __future__ import annotations

import io

import numpy as np
import pytest

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend, plots


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", range(6), starts=2, settings=AscentSettings.article(steps=20))


def texts(figure: plots.Figure) -> list[str]:
    from matplotlib.text import Text

    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_sheet_names_each_picture_and_marks_the_dead(oips: Oips) -> None:
    best = oips.select(starts=0)
    shown = texts(plots.sheet(best))
    for number, score, status in zip(best.maps, best.scores, best.status, strict=True):
        assert (f"{number}: dead" if status == "dead" else f"{number}: {score:.2f}") in shown
    assert any("quantile" in text for text in shown)
    assert f"{oips.maps[-1]}·1: " in " ".join(texts(plots.sheet(oips)))


def test_an_evolution_has_a_row_per_start_and_one_scale_per_row(oips: Oips) -> None:
    figure = plots.evolution(oips, 0)
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
    import dataclasses

    coloured = dataclasses.replace(oips, images=oips.images.repeat(3, -1), snapshots=oips.snapshots.repeat(3, -1))
    for figure in (plots.sheet(coloured), plots.evolution(coloured, 1)):
        figure.savefig(io.BytesIO(), format="png", dpi=40)


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
