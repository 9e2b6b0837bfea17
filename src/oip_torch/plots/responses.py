"""How does it look what the network says to pictures?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from oip_torch.base.checks import shown
from oip_torch.base.drawing import INK, Figure, Size, add_note, checked_figsize, shade, shade_note, show_picture
from oip_torch.base.errors import InputError
from oip_torch.plots.fields import (
    OUTLINE,
    add_title,
    check_responses,
    label_of,
    outline_field,
    sight_note,
    title_of,
)
from oip_torch.results.oips import Names, short
from oip_torch.results.responses import Responses
from oip_torch.results.words import checked_names

__all__ = ["response"]

_MOST_ROWS = 32
_MOST_BARS = 12


def response(
    responses: Responses,
    *,
    names: Names | None = None,
    cmap: str | Colormap = "data",
    heat: str = "inferno",
    figsize: Size | None = None,
) -> Figure:
    """A row per picture: the picture, its map's activations laid over it, and what the network takes it for.

    Each unit of the map is drawn where the middle of its receptive field lies, not stretched over the image; where the
    fields have no such order the map is stretched, and the note says so. The outline is what the unit with the largest
    activation sees.

    Args:
        responses: from `respond`, at most 32 pictures; of more choose some with `take`.
        names: of the classes, in their order; None: numbers.
        cmap: colours of the pictures, see `sheet`.
        heat: a matplotlib colormap for activations.
        figsize: (width, height) in inches.

    Raises:
        InputError: no responses, too many pictures, another number of names, or no such colormap.
    """
    check_responses(responses)
    if len(responses) > _MOST_ROWS:
        raise InputError(
            f"there are {len(responses)} pictures: expected at most {_MOST_ROWS}; responses.take(range({_MOST_ROWS})) "
            "are the first"
        )
    if not isinstance(heat, str) or heat not in colormaps:
        raise InputError(f"heat is {shown(heat)}: expected a matplotlib colormap, as 'inferno'")
    called = _names(responses, names)
    with_map = responses.activations is not None and responses.activations[0].size > 1
    with_bars = called is not None
    count = len(responses)
    widths = [1.0] + [1.0] * with_map + [1.5] * with_bars
    size = checked_figsize(figsize) or (max(4.5, 1.9 * sum(widths) + 0.7), 1.75 * count + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(count, len(widths), width_ratios=widths)
    shades = shade(responses.images, responses.ends, cmap)
    for row in range(count):
        axes = figure.add_subplot(grid[row, 0])
        show_picture(axes, shades[row])
        axes.set_ylabel(label_of(responses, row), fontsize=8, color=INK, parse_math=False)
        outline_field(axes, responses, row)
        if with_map:
            _lay_over(figure.add_subplot(grid[row, 1]), responses, row, shades[row], heat)
        if called is not None:
            _bars(figure.add_subplot(grid[row, len(widths) - 1]), responses, row, called)
    whose = "" if responses.layer is None else f"{responses.place}: "
    title = f"{whose}what the network says to {title_of(responses)}"
    add_title(figure, title[0].upper() + title[1:] if responses.layer is None else title)
    notes = [
        *sight_note(responses),
        *([_heat_note(responses)] if with_map else []),
        *([_bar_note(responses)] if with_bars else []),
    ]
    add_note(figure, "\n".join([*notes, shade_note(responses.ends, cmap)]))
    return figure


def _lay_over(axes: Axes, responses: Responses, row: int, shades: npt.NDArray[np.floating], heat: str) -> None:
    assert responses.activations is not None
    values = responses.activations[row]
    height, width = shades.shape[:2]
    show_picture(axes, np.repeat(0.5 + 0.5 * shades.mean(-1, keepdims=True), 3, axis=-1))
    top, bottom, left, right = responses.extent or (0.0, float(height), 0.0, float(width))
    low, high = float(values.min()) + 0.0, float(values.max()) + 0.0  # no -0
    axes.imshow(
        values, cmap=heat, alpha=0.6, vmin=min(0.0, low), vmax=max(high, low + 1e-9), interpolation="nearest",
        extent=(left - 0.5, right - 0.5, bottom - 0.5, top - 0.5),
    )  # fmt: skip
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    told = f"{short(low)} to {short(high)}" if high != low else "0 all over" if high == 0 else f"{short(high)} all over"
    axes.set_xlabel(told, fontsize=8, color=INK, labelpad=2)
    outline_field(axes, responses, row)


def _bars(axes: Axes, responses: Responses, row: int, names: Sequence[str]) -> None:
    assert responses.outputs is not None
    values = responses.outputs[row]
    chosen = np.arange(len(values)) if len(values) <= _MOST_BARS else np.argsort(-values, kind="stable")[:_MOST_BARS]
    largest = values.argmax()
    heights = range(len(chosen))
    axes.barh(heights, values[chosen], color=[OUTLINE if number == largest else "#9aa5b1" for number in chosen])
    for at, number in zip(heights, chosen.tolist(), strict=True):
        if number == largest:
            told = f" {names[number]}: {values[number]:.2f}"
            axes.text(max(0.0, values[number]), at, told, fontsize=7, color=INK, va="center", parse_math=False)
    letters = 7 if len(chosen) <= 10 else 6
    axes.set_yticks(list(heights), [names[number] for number in chosen], fontsize=letters, parse_math=False)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    if responses.are_probabilities:
        axes.set_xlim(0, 1.3)  # room for the name
        axes.set_xticks([0, 0.5, 1])
    else:
        axes.margins(x=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _heat_note(responses: Responses) -> str:
    what = "what goes into the map's activation" if responses.pre_activation else "the map's activation"
    head = f"Laid over each picture: {what}, between the numbers below it."
    if responses.extent is None:
        return f"{head} The map is stretched over the image: its units' fields do not lie side by side."
    return f"{head} Each unit is drawn where the middle of its field lies."


def _bar_note(responses: Responses) -> str:
    assert responses.outputs is not None
    count = responses.outputs.shape[1]
    which = f" The {_MOST_BARS} largest of {count}." if count > _MOST_BARS else ""
    if responses.are_probabilities:
        return f"Bars: the probability of each class, by {responses.output}'s softmax.{which}"
    name = f" ({responses.output_activation})" if responses.output_activation not in (None, "linear") else ""
    return f"Bars: the outputs of {responses.output}{name}, which are no probabilities of one class each.{which}"


def _names(responses: Responses, names: Names | None) -> list[str] | None:
    """Of each output, as text; None where there are no two of them."""
    if responses.predicted is None or responses.outputs is None:
        if names is not None:
            raise InputError(f"names are given, but {responses.output} has no two outputs to be named: leave them out")
        return None
    count = responses.outputs.shape[1]
    if names is None:
        return [str(number) for number in range(count)]
    return checked_names(names, responses.output, count, count)
