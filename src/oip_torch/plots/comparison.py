"""How does a comparison of runtimes look? `plots` hands these on: `oip.plots.agreement(comparison)`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle

from oip_torch.base.checks import whole_numbers
from oip_torch.base.drawing import (
    INK,
    Canvas,
    Ends,
    Figure,
    Size,
    add_note,
    checked_figsize,
    limits,
    shade,
    shade_note,
    show_picture,
    to_shades,
)
from oip_torch.base.errors import InputError
from oip_torch.results.oips import short

__all__ = ["Compared", "agreement", "cross_scores", "divergence", "side_by_side"]


class Compared(Protocol):
    """What is drawn: see `Comparison`, which makes and saves it."""

    @property
    def layer(self) -> str: ...  # noqa: D102
    @property
    def place(self) -> str: ...  # noqa: D102
    @property
    def maps(self) -> npt.NDArray[Any]: ...  # noqa: D102
    @property
    def reference(self) -> str: ...  # noqa: D102
    @property
    def report(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def ascents(self) -> Mapping[str, Mapping[Any, Any]]: ...  # noqa: D102
    @property
    def ends(self) -> Ends | None: ...  # noqa: D102


@overload
def agreement(comparison: Compared, *, ax: None = None, figsize: Size | None = None) -> Figure: ...
@overload
def agreement(comparison: Compared, *, ax: Axes) -> Axes: ...
def agreement(comparison: Compared, *, ax: Axes | None = None, figsize: Size | None = None) -> Figure | Axes:
    """A matrix of runtimes by layers, gradients and ascents: how far each is from the reference.

    Cells that break their bound are red; blank cells were not measured (ONNX Runtime has no gradients).

    Args:
        comparison: from `compare`.
        ax: see `plots.sheet`.
        figsize: see `plots.sheet`.
    """
    entries = comparison.report["runtimes"]
    layers = list(next(iter(entries.values()))["layers"])
    bounds = comparison.report["bounds"]
    columns = dict.fromkeys(layers, bounds["layer_error"])
    columns["layers 64"] = bounds["layer_error_float64"]
    columns["gradients"] = 1 - bounds["gradient_cosine"]
    columns["traces 64"] = bounds["trace_error_float64"]
    columns["images 64"] = 1 - bounds["image_correlation_float64"]
    columns["cross-scores"] = bounds["cross_score_error"]

    def worst(values: Iterable[float | None]) -> float:
        return max(math.inf if value is None else value for value in values)

    rows = []
    for entry in entries.values():
        row = [worst([value]) for value in entry["layers"].values()]
        row.append(math.nan if entry["layers_float64"] is None else worst(entry["layers_float64"].values()))
        row.append(math.nan if entry["gradients"] is None else max(0.0, 1 - entry["gradient_cosine"]))
        row.append(math.nan if entry["dead_maps"] is None else worst([entry["trace_max_relative_error"]]))
        row.append(math.nan if entry["image_correlation"] is None else max(0.0, 1 - entry["image_correlation"]))
        scores = entry["scores"] or {}
        row.append(worst(score["max_relative_error"] for score in scores.values()) if scores else math.nan)
        rows.append(row)
    return _error_matrix(
        np.array(rows),
        list(entries),
        list(columns),
        np.array(list(columns.values())),
        f"Differences from {comparison.report['reference']}",
        "Layers: largest difference over the layer's largest value, in float32. Gradients, images: 1 - cosine, "
        "1 - correlation. 64: in float64.",
        ax=ax,
        figsize=figsize,
    )


@overload
def cross_scores(comparison: Compared, *, ax: None = None, figsize: Size | None = None) -> Figure: ...
@overload
def cross_scores(comparison: Compared, *, ax: Axes) -> Axes: ...
def cross_scores(comparison: Compared, *, ax: Axes | None = None, figsize: Size | None = None) -> Figure | Axes:
    """A matrix: OIPs made in one runtime (columns) and scored in another (rows), against the reference's scores.

    Args:
        comparison: from `compare`.
        ax: see `plots.sheet`.
        figsize: see `plots.sheet`.
    """
    entries = comparison.report["runtimes"]
    makers = list(dict.fromkeys(maker for entry in entries.values() for maker in entry["scores"] or {}))
    errors = np.full((len(entries), len(makers)), np.nan)
    for row, entry in enumerate(entries.values()):
        for maker, score in (entry["scores"] or {}).items():
            error = score["max_relative_error"]
            errors[row, makers.index(maker)] = math.inf if error is None else error
    return _error_matrix(
        errors,
        [f"scored in {name}" for name in entries],
        [f"made in {maker}" for maker in makers],
        np.full(len(makers), comparison.report["bounds"]["cross_score_error"]),
        f"{comparison.place}: OIPs of one runtime, scored in another",
        f"Largest difference from {comparison.reference}'s score of the same image, over its largest one, in float32.",
        ax=ax,
        figsize=figsize,
    )


def divergence(comparison: Compared, maps: int | Iterable[int] | None = None, *, figsize: Size | None = None) -> Figure:
    """Traces of all runtimes laid over each other (float32), and how far all of them are from the reference, by step.

    Args:
        comparison: from `compare`.
        maps: whose traces are drawn on the left; default: the one that diverges most, and three of the strongest.
        figsize: see `plots.sheet`.
    """
    reference = comparison.ascents[comparison.reference]
    figure = Figure(figsize=checked_figsize(figsize) or (11.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = _rows_of(comparison, maps, 4)
    runtimes = {name: made for name, made in comparison.ascents.items() if made}
    colors = {name: f"C{index}" for index, name in enumerate(runtimes)}
    for index, (name, made) in enumerate(runtimes.items()):
        for row in chosen:
            style = (0, (6, 2 * index)) if index else "-"
            label = name if row == chosen[0] else None
            trace = made["float32"].traces[row]
            steps = np.arange(1, len(trace) + 1)
            left.plot(steps, trace, color=colors[name], linestyle=style, linewidth=1.2, label=label)
        for dtype, ascents in made.items():
            if name == comparison.reference:
                continue
            line = "-" if dtype == "float32" else "--"
            want = reference[dtype].traces.astype(np.float64)
            live = want[:, -1] != 0
            errors = np.abs(ascents.traces - want)[live] / np.maximum(want[live], 1e-3 * want[live].max(1)[:, None])
            if not len(errors):
                continue
            steps = np.arange(1, errors.shape[1] + 1)
            for part, width, alpha in ((np.median(errors, 0), 1.2, 1.0), (errors.max(0), 0.8, 0.5)):
                shown = np.where(part > 0, part, np.nan)  # exact agreement has no place on a logarithmic axis
                if (part > 0).any():
                    right.plot(steps, shown, line, color=colors[name], linewidth=width, alpha=alpha)
    ends = {row: float(reference["float32"].traces[row, -1]) for row in chosen}
    height = -math.inf
    for row in sorted(chosen, key=lambda row: ends[row]):
        height = max(ends[row], height + 0.045 * max(ends.values()))  # labels that would lie on each other move apart
        left.annotate(f" map {comparison.maps[row]}", (len(trace), height), fontsize=7, va="center")
    left.set_xlabel("step")
    left.set_ylabel(f"score (mean over the map of {comparison.place})", parse_math=False)
    left.set_title(f"{comparison.place}: scores, float32", fontsize=10, color=INK, parse_math=False)
    left.legend(fontsize=7, frameon=False)
    right.set(xscale="log", yscale="log", xlabel="step", ylabel=f"relative difference from {comparison.reference}")
    right.set_title("solid: float32, dashed: float64; strong: median, faint: largest", fontsize=10, color=INK)
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def side_by_side(
    comparison: Compared,
    maps: int | Iterable[int] | None = None,
    *,
    cmap: str | Colormap = "data",
    figsize: Size | None = None,
) -> Figure:
    """Two rows per map: what each runtime's float32 ascent ends with, and the difference from the reference's image.

    Args:
        comparison: from `compare`.
        maps: which ones; default: the one that diverges most, and three of the strongest.
        cmap: see `plots.sheet`; quantiles are those of a map's row, so that its pictures compare.
        figsize: see `plots.sheet`.
    """
    runtimes = {name: made["float32"] for name, made in comparison.ascents.items() if made}
    want = runtimes[comparison.reference].images
    chosen = _rows_of(comparison, maps, 4)
    size = checked_figsize(figsize) or (1.45 * len(runtimes) + 0.8, 3.0 * len(chosen) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(2 * len(chosen), len(runtimes), squeeze=False)
    for index, row in enumerate(chosen):
        low, high = limits(want[row])
        largest = max(float(np.abs(made.images[row] - want[row]).max()) for made in runtimes.values())
        darkest = max(largest, 0.01 * (high - low))
        images = np.stack([made.images[row] for made in runtimes.values()])
        shades = shade(images, comparison.ends, cmap, together=True)
        for column, (name, made) in enumerate(runtimes.items()):
            upper, lower = grid[2 * index, column], grid[2 * index + 1, column]
            show_picture(upper, shades[column])
            difference = np.abs(made.images[row] - want[row])
            show_picture(lower, to_shades(-difference, -darkest, 0.0))
            upper.set_title(name if index == 0 else "", fontsize=8, color=INK)
            upper.set_xlabel(short(float(made.traces[row, -1]), 4), fontsize=7, color=INK, labelpad=1)
            lower.set_xlabel(f"≤ {difference.max():.1g}", fontsize=7, color=INK, labelpad=1)
        grid[2 * index, 0].set_ylabel(f"map {comparison.maps[row]}", fontsize=8, color=INK)
        grid[2 * index + 1, 0].set_ylabel("difference", fontsize=8, color=INK)
    figure.suptitle(f"{comparison.place}: from the same start, in float32", fontsize=11, color=INK, parse_math=False)
    add_note(
        figure,
        "Below each picture its last score. Differences: white 0, black the largest of the map's row, or 1 % of the "
        f"picture's range. {shade_note(comparison.ends, cmap, 'each map')}",
    )
    return figure


def _rows_of(comparison: Compared, maps: int | Iterable[int] | None, most: int) -> list[int]:
    """Rows of these maps; by default the one whose scores diverge most, and the strongest ones."""
    numbers = comparison.maps.tolist()
    if maps is not None:
        wanted = whole_numbers("maps", maps)
        if unknown := [number for number in wanted if number not in numbers]:
            raise InputError(f"map {unknown[0]} was not compared: expected one of {', '.join(map(str, numbers))}")
        return [numbers.index(number) for number in wanted]
    ends = np.array([made["float32"].traces[:, -1] for made in comparison.ascents.values() if made], np.float64)
    spread = (ends.max(0) - ends.min(0)) / np.maximum(np.abs(ends).max(0), 1e-300)
    strongest = np.argsort(-comparison.ascents[comparison.reference]["float32"].traces[:, -1], kind="stable")
    return list(dict.fromkeys([int(spread.argmax()), *strongest.tolist()]))[:most]


def _error_matrix(
    errors: npt.NDArray[np.floating],
    rows: list[str],
    columns: list[str],
    bounds: npt.NDArray[np.floating],
    title: str,
    note: str,
    *,
    ax: Axes | None,
    figsize: Size | None,
) -> Figure | Axes:
    """Cells shaded by their distance from the bound (of their column), red above it, blank where NaN."""
    size = 0.85 * len(columns) + 2.4, 0.42 * len(rows) + 0.9
    canvas = Canvas(size, ax=ax, figsize=figsize, around=0.8)
    axes, letters = canvas.axes, 8 * canvas.scale
    below = (
        np.log10(np.clip(errors / bounds, 1e-8, 1.0)) / 8 + 1
    )  # 0: a hundred-millionth of the bound, 1: at the bound
    for row, column in np.ndindex(errors.shape):
        value = errors[row, column]
        if math.isnan(value):
            continue
        broken = value > bounds[column]
        shade = (
            (0.85, 0.35, 0.35) if broken else (0.93 - 0.35 * below[row, column], 0.97 - 0.17 * below[row, column], 0.94)
        )
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=shade, edgecolor="white"))
        text = "0" if value == 0 else "∞" if math.isinf(value) else f"{value:.0e}"
        axes.text(column, row, text, fontsize=letters, color="white" if broken else INK, ha="center", va="center")
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), columns, fontsize=letters, rotation=30, ha="left", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=letters, parse_math=False)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return canvas.finish(title, note + " Red: above the bound.")
