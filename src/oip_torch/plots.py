"""How does it look? Every function returns a matplotlib Figure and neither shows nor saves it.

    oip.plots.sheet(oips).savefig("sheet.png")

The figures do not belong to pyplot: nothing has to be closed, and a notebook shows what a cell returns.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure
from matplotlib.patches import Rectangle

from oip_torch.checks import shown, whole, whole_numbers
from oip_torch.errors import InputError
from oip_torch.oips import Oips, plural

if TYPE_CHECKING:
    from oip_torch.calibration import Calibration
    from oip_torch.comparison import Comparison

__all__ = [
    "agreement",
    "beside_data",
    "consistency",
    "cross_scores",
    "divergence",
    "evolution",
    "sheet",
    "side_by_side",
    "trace",
]

_INK = "#333333"
_TRIAL = "#7a6a9a"
_STATUS_COLORS = {"finished": _INK, "converged": _INK, "woken": "#8a5a00", "dead": "#b03030"}
_MARKS = {"woken": "*"}
_WOKEN = "* woken: it slept in all trials, and fired by way of its peak."


class Figure(_Figure):
    """A matplotlib Figure that a notebook shows as it is, without pyplot and without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def evolution(oips: Oips, map: int, starts: int | Iterable[int] | None = None) -> Figure:
    """A row of pictures per start: how the OIP of one map came about, step by step; on the right the score's trace.

    The way is the whole one: where candidates were tried, it begins with the start and the trial of the one that went
    on, and a line shows where the trial ends.

    Args:
        oips: with snapshots.
        map: which map.
        starts: which starts; None: all of them.

    Raises:
        InputError: a map or start that is not among the results.
    """
    _check_some(oips)
    rows = oips.select(maps=map, starts=starts)
    number, trial = int(rows.maps[0]), rows.trial_steps
    steps = [int(step) for step in rows.snapshot_steps]
    if steps and steps[-1] == rows.traces.shape[1] - 1:
        steps.pop()  # one step before the result, and not to be told from it
    columns = len(steps) + 1
    figure = Figure(figsize=(1.25 * columns + 2.4, 1.55 * len(rows) + 0.95), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.7])
    for row in range(len(rows)):
        frames = [*rows.snapshots[row, : len(steps)], rows.images[row]]
        low, high = _limits(np.stack(frames))
        titles = [f"trial, step {step}" if step < trial else f"step {step}" for step in steps] + ["result"]
        scores = [*(float(rows.traces[row, step]) for step in steps), float(rows.scores[row])]
        for column, (frame, title, score) in enumerate(zip(frames, titles, scores, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _picture(axes, _shades(frame, low, high))
            axes.set_title(title if row == 0 else "", fontsize=9, color=_TRIAL if title.startswith("trial") else _INK)
            axes.set_xlabel("" if math.isnan(score) else _short(score), fontsize=8, color=_INK, labelpad=2)
            if column == 0:
                axes.set_ylabel(f"start {rows.starts[row]}\n{rows.status[row]}", fontsize=8, color=_INK)
        axes = figure.add_subplot(grid[row, columns])
        _trace_lines(axes, rows.take([row]))
        axes.set_title("score by step" if row == 0 else "", fontsize=9, color=_INK)
    begins = "the start"
    if rows.settings.get("candidates", 1) > 1 and not trial:  # a file saved before trials were kept
        begins = "the end of its trial"
    figure.suptitle(f"{rows.place}, {rows.noun} {number}: from {begins} to the OIP", fontsize=11, color=_INK)
    notes = ["Below each picture its score. Scale: the same within a row, from its 0.5 % to its 99.5 % quantile."]
    if trial:
        notes.append(f"Steps 0 to {trial - 1} are the trial of the start that went on; the dotted line is its end.")
    _note(figure, "\n".join([*notes, _way(rows)]))
    return figure


def sheet(oips: Oips, columns: int | None = None, title: str | None = None) -> Figure:
    """A contact sheet: every image with its map's number and its score; dead ones are marked, not hidden.

    Args:
        oips: one or more images; with several starts the start's number is shown too.
        columns: pictures per row; by default 16, or fewer for few pictures.
        title: instead of the default one.
    """
    _check_some(oips)
    columns = None if columns is None else whole("columns", columns, 1)
    columns = columns or min(16, max(4, math.ceil(math.sqrt(2 * len(oips)))), max(1, len(oips)))
    rows = math.ceil(len(oips) / columns)
    several = len(set(oips.starts.tolist())) > 1
    height, width = oips.images.shape[1:3]
    # One mosaic with text, not an Axes for each picture: a hundred times faster for a layer of many maps.
    gap_x, gap_y = max(1, round(0.1 * width)), max(2, round(0.3 * height))
    mosaic = np.ones((rows * (height + gap_y), columns * (width + gap_x) - gap_x, 3))
    inches = 0.85
    figure = Figure(
        figsize=(max(4.5, columns * inches * (1 + gap_x / width)), rows * inches * (height + gap_y) / width + 0.95),
        layout="constrained",
    )
    axes = figure.subplots()
    for index in range(len(oips)):
        image, status = oips.images[index], str(oips.status[index])
        row, column = divmod(index, columns)
        top, left = row * (height + gap_y) + gap_y, column * (width + gap_x)
        shades = _shades(image, *_limits(image))
        faded = 0.25 * shades + 0.75 if status == "dead" else shades
        mosaic[top : top + height, left : left + width] = faded
        start = f"·{oips.starts[index]}" if several else ""
        score = "dead" if status == "dead" else _short(float(oips.scores[index])) + _MARKS.get(status, "")
        label = f"{oips.maps[index]}{start}: {score}"
        x, y = left + width / 2 - 0.5, top - 0.6 - 0.03 * height
        axes.text(x, y, label, fontsize=7, color=_STATUS_COLORS[status], ha="center", va="bottom")
    _picture(axes, mosaic)
    figure.suptitle(title or _sheet_title(oips), fontsize=11, color=_INK)
    head = f"{oips.noun.capitalize()}{'·start' if several else ''}: score."
    woken = f" {_WOKEN}" if (oips.status == "woken").any() else ""
    _note(figure, f"{head}{woken} Scale: each picture from its own 0.5 % to its 99.5 % quantile.\n{_way(oips)}")
    return figure


def _sheet_title(oips: Oips) -> str:
    numbers = set(oips.maps.tolist())
    whose = f"{oips.place}, {oips.noun} {oips.maps[0]}" if len(numbers) == 1 else oips.place
    several = "" if len(numbers) in (1, len(oips)) else f", of {len(numbers)} {plural(oips.noun)}"
    if oips.before_activation:  # which has no dead region
        return f"{whose}: {len(oips)} OIP{'s' if len(oips) > 1 else ''}{several}"
    return f"{whose}: {len(oips) - oips.counts()['dead']} of {len(oips)} OIPs alive{several}"


def trace(oips: Oips) -> Figure:
    """The score of every image by step, one line each; converged ones end with a dot where the criterion was met."""
    _check_some(oips)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _trace_lines(axes, oips, labels=len(oips) <= 8)
    axes.set_xlabel("step")
    axes.set_ylabel(_score_name(oips))
    axes.set_title(f"{oips.place}: scores of {len(oips)} ascents", fontsize=11, color=_INK)
    if len(oips) <= 8:
        axes.legend(fontsize=8, frameon=False)
    trial = "\nLeft of the dotted line: the trial of the start that went on." if oips.trial_steps else ""
    _note(figure, f"{_way(oips)}{trial}")
    return figure


def beside_data(
    oips: Oips, calibration: Calibration, maps: int | Iterable[int] | None = None, count: int = 5
) -> Figure:
    """A row per map: its best OIP, and beside it the real images that excite the map most.

    Above the OIP stands its score, and how many times the largest score of the data that is, or that no image of the
    data excites the map; above each real image its number in the data and its score, with = where others score exactly
    as much. All are standardised in the same way, so that their scores compare.

    Args:
        oips: of a layer that was calibrated.
        calibration: of the model that made the OIPs.
        maps: which maps, in this order; None: all of them.
        count: how many real images, 1 or more; at most as many as the calibration holds.

    Raises:
        InputError: OIPs or a calibration of another model, a map that is not among the results, no image asked for.
    """
    _check_some(oips)
    if not hasattr(calibration, "check"):
        raise InputError(f"calibration is {shown(calibration)}: expected what oip_torch.calibrate returns")
    calibration.check(oips)
    count = whole("count", count, 0)
    data = calibration[oips.layer]
    best = oips.select(maps=maps).best()
    if not len(best) or count < 1:
        raise InputError(f"{len(best)} OIPs and {count} real images to show: expected at least one of each")
    count = min(count, data.top_indices.shape[1])
    height, width = best.images.shape[1:3]
    compared = best.info.get("objective", "map_mean") == "map_mean"  # which is what the data was scored by
    equals = (data.top_scores[:, :, None] == data.top_scores[:, None, :]).sum(2) > 1
    if data.tied is not None:
        equals |= (data.top_scores == data.top_scores[:, -1:]) & (data.tied > 0)[:, None]
    # As in `sheet`: one mosaic with text. Its columns: the map's number, the OIP, a gap, the real images.
    gap_x, gap_y, apart = max(1, round(0.14 * width)), max(2, round(0.3 * height)), max(2, round(0.4 * width))
    lefts = [apart] + [2 * apart + width + column * (width + gap_x) for column in range(count)]
    mosaic = np.ones((len(best) * (height + gap_y) + gap_y, lefts[-1] + width, 3))
    inches = 1.05 / width
    figure = Figure(figsize=(max(4.5, inches * mosaic.shape[1]), inches * mosaic.shape[0] + 0.75), layout="constrained")
    axes = figure.subplots()

    def put(image: npt.NDArray[np.floating], row: int, column: int, label: str, color: str, faded: bool) -> None:
        top, left = row * (height + gap_y) + 2 * gap_y, lefts[column]
        shades = _shades(image, *_limits(image))
        mosaic[top : top + height, left : left + width] = 0.25 * shades + 0.75 if faded else shades
        axes.text(left + width / 2 - 0.5, top - 1, label, fontsize=7.5, color=color, ha="center", va="bottom")

    for row in range(len(best)):
        number, score, status = int(best.maps[row]), float(best.scores[row]), str(best.status[row])
        excited = bool(data.excited[number])
        label = "dead" if status == "dead" else _short(score) + _MARKS.get(status, "")
        if not excited:
            hardly = "the data hardly excites" if data.maximum[number] > 0 else "no image of the data excites"
            label += f"\n{hardly} this {best.noun}"
        elif status != "dead" and compared:
            label += f" ({_short(score / float(data.maximum[number]), 1)} × data)"
        put(best.images[row], row, 0, label, _STATUS_COLORS[status], status == "dead")
        middle = row * (height + gap_y) + 2 * gap_y + height / 2
        axes.text(lefts[0] - 2, middle, f"{best.noun}\n{number}", fontsize=9, color=_INK, ha="right", va="center")
        for place, picture in enumerate(data.top_of(number)[:count]):
            value = float(data.top_scores[number, place])
            tied = excited and equals[number, place]
            label = f"#{data.top_indices[number, place]}: {_short(value)}{' =' if tied else ''}"
            put(picture, row, place + 1, label, _INK if excited else "#999999", not excited)
    _picture(axes, mosaic)
    heads = ((lefts[0] + width / 2, "OIP"), ((lefts[1] + mosaic.shape[1]) / 2, "real images, the most exciting first"))
    for x, text in heads:
        axes.text(x - 0.5, 0.5 * gap_y, text, fontsize=9, color=_INK, ha="center", va="center")
    figure.suptitle(f"{best.place}: OIPs beside the data ({calibration.count} images)", fontsize=11, color=_INK)
    what = "mean of what goes into it" if best.before_activation else "mean activation"
    notes = [f"Above the real images: number in the data, score ({what}); faded: they do not excite the {best.noun}."]
    if not compared:
        notes.append(f"The OIPs' scores are of another objective ({best.info['objective']}), and do not compare.")
    if (equals & data.excited[:, None])[best.maps, :count].any():
        notes.append("= others score exactly as much: such images have no order.")
    if (best.status == "woken").any():
        notes.append(_WOKEN)
    _note(figure, "\n".join([*notes, "Scale: each picture from its own 0.5 % to its 99.5 % quantile.", _way(best)]))
    return figure


def consistency(oips: Oips, map: int) -> Figure:
    """One row per start of a map: the image, its score, and how well it agrees with the image of every other start.

    The agreement is the best normalised cross-correlation over all shifts (`quality.cross_correlation`).

    Args:
        oips: with two starts of this map or more.
        map: which map.

    Raises:
        InputError: a map that is not among the results, or one start only.
    """
    from oip_torch.quality import cross_correlations  # torch comes with it, and takes seconds

    _check_some(oips)
    rows = oips.select(maps=map)
    count = len(rows)
    if count < 2:
        raise InputError(
            f"{rows.noun} {rows.maps[0]} has one start only: expected two or more to compare; ascend with starts=8"
        )
    correlations = cross_correlations(rows.images)
    means = (correlations.sum(1) - np.diag(correlations)) / (count - 1)
    height, width = rows.images.shape[1:3]
    # One Axes in units of a row's height, so that the pictures and the rows of the table stay side by side.
    side = 0.92
    picture_width = side * width / height
    text_at = picture_width + 0.25
    table_at = text_at + 2.1
    cell = 0.75
    inches = 0.85
    figure = Figure(
        figsize=(inches * (table_at + cell * count + 1.1), inches * (count + 0.8) + 0.75), layout="constrained"
    )
    axes = figure.subplots()
    for row in range(count):
        dead = str(rows.status[row]) == "dead"
        shades = _shades(rows.images[row], *_limits(rows.images[row]))
        top, bottom = row - side / 2, row + side / 2
        axes.imshow(
            0.25 * shades + 0.75 if dead else shades, extent=(0, picture_width, bottom, top), interpolation="nearest"
        )
        color = _STATUS_COLORS[str(rows.status[row])]
        axes.text(-0.12, row, f"start {rows.starts[row]}", fontsize=8, color=_INK, ha="right", va="center")
        score = "dead" if dead else _short(float(rows.scores[row]))
        for column, text in enumerate((score, f"{means[row]:.2f}")):
            axes.text(text_at + 0.45 + column, row, text, fontsize=8, color=color, ha="center", va="center")
    table = np.where(np.eye(count, dtype=bool), np.nan, np.clip(correlations, 0, 1))
    axes.imshow(
        table, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
        extent=(table_at, table_at + cell * count, count - 0.5, -0.5),
    )  # fmt: skip
    for row in range(count):
        at = table_at + cell * (row + 0.5)
        axes.text(at, -0.62, f"{rows.starts[row]}", fontsize=8, color=_INK, ha="center", va="bottom")
        for column in range(count):
            if column != row:
                value = correlations[row, column]
                x = table_at + cell * (column + 0.5)
                color = "white" if value > 0.6 else _INK
                axes.text(x, row, f"{value:.2f}", fontsize=7, color=color, ha="center", va="center")
    heads = ((text_at + 0.45, "score"), (text_at + 1.45, "mean\nagreement"))
    for x, text in heads:
        axes.text(x, -0.62, text, fontsize=8, color=_INK, ha="center", va="bottom")
    axes.text(
        *(table_at + cell * count / 2, -0.95, "agreement with start"), fontsize=8, color=_INK, ha="center", va="bottom"
    )
    axes.set(xlim=(-1.0, table_at + cell * count + 0.1), ylim=(count - 0.45, -1.25), aspect="equal")
    axes.axis("off")
    figure.suptitle(
        f"{rows.place}, {rows.noun} {rows.maps[0]}: {count} starts, mean agreement {means.mean():.2f}",
        fontsize=11,
        color=_INK,
    )
    _note(
        figure,
        "Agreement: the best correlation over all shifts, white 0, dark blue 1.\n"
        f"Scale: each picture from its own 0.5 % to its 99.5 % quantile.\n{_way(rows)}",
    )
    return figure


def agreement(comparison: Comparison) -> Figure:
    """A matrix of runtimes by layers, gradients and ascents: how far each is from the reference.

    Cells that break their bound are red; blank cells were not measured (ONNX Runtime has no gradients).
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
    )


def cross_scores(comparison: Comparison) -> Figure:
    """A matrix: OIPs made in one runtime (columns) and scored in another (rows), against the reference's scores."""
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
    )


def divergence(comparison: Comparison, maps: int | Iterable[int] | None = None) -> Figure:
    """Traces of all runtimes laid over each other (float32), and how far all of them are from the reference, by step.

    Args:
        comparison: from `compare`.
        maps: whose traces are drawn on the left; default: the one that parts most, and three of the strongest.
    """
    reference = comparison.ascents[comparison.reference]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
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
    left.set(xlabel="step", ylabel=f"score (mean over the map of {comparison.place})")
    left.set_title(f"{comparison.place}: scores, float32", fontsize=10, color=_INK)
    left.legend(fontsize=7, frameon=False)
    right.set(xscale="log", yscale="log", xlabel="step", ylabel=f"relative difference from {comparison.reference}")
    right.set_title("solid: float32, dashed: float64; strong: median, faint: largest", fontsize=10, color=_INK)
    for axes in (left, right):
        axes.tick_params(labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def side_by_side(comparison: Comparison, maps: int | Iterable[int] | None = None) -> Figure:
    """Two rows per map: what each runtime's float32 ascent ends with, and the difference from the reference's image.

    Args:
        comparison: from `compare`.
        maps: which ones; default: the one that parts most, and three of the strongest.
    """
    runtimes = {name: made["float32"] for name, made in comparison.ascents.items() if made}
    want = runtimes[comparison.reference].images
    chosen = _rows_of(comparison, maps, 4)
    figure = Figure(figsize=(1.45 * len(runtimes) + 0.8, 3.0 * len(chosen) + 0.6), layout="constrained")
    grid = figure.subplots(2 * len(chosen), len(runtimes), squeeze=False)
    for index, row in enumerate(chosen):
        low, high = _limits(want[row])
        largest = max(float(np.abs(made.images[row] - want[row]).max()) for made in runtimes.values())
        darkest = max(largest, 0.01 * (high - low))
        for column, (name, made) in enumerate(runtimes.items()):
            upper, lower = grid[2 * index, column], grid[2 * index + 1, column]
            _picture(upper, _shades(made.images[row], low, high))
            difference = np.abs(made.images[row] - want[row])
            _picture(lower, _shades(-difference, -darkest, 0.0))
            upper.set_title(name if index == 0 else "", fontsize=8, color=_INK)
            upper.set_xlabel(_short(float(made.traces[row, -1]), 4), fontsize=7, color=_INK, labelpad=1)
            lower.set_xlabel(f"≤ {difference.max():.1g}", fontsize=7, color=_INK, labelpad=1)
        grid[2 * index, 0].set_ylabel(f"map {comparison.maps[row]}", fontsize=8, color=_INK)
        grid[2 * index + 1, 0].set_ylabel("difference", fontsize=8, color=_INK)
    figure.suptitle(f"{comparison.place}: from the same start, in float32", fontsize=11, color=_INK)
    _note(
        figure,
        "Below each picture its last score. Differences: white 0, black the largest of the map's row, or 1 % of the "
        "picture's range.",
    )
    return figure


def _rows_of(comparison: Comparison, maps: int | Iterable[int] | None, most: int) -> list[int]:
    """Rows of these maps; by default the one whose scores part most, and the strongest ones."""
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
) -> Figure:
    """Cells shaded by their distance from the bound (of their column), red above it, blank where NaN."""
    figure = Figure(figsize=(0.85 * len(columns) + 2.4, 0.42 * len(rows) + 1.7), layout="constrained")
    axes = figure.subplots()
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
        axes.text(column, row, text, fontsize=8, color="white" if broken else _INK, ha="center", va="center")
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(columns)), columns, fontsize=8, rotation=30, ha="left")
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=11, color=_INK)
    _note(figure, note + " Red: above the bound.")
    return figure


def _trace_lines(axes: Axes, oips: Oips, labels: bool = False) -> None:
    faint = 0.9 if len(oips) <= 8 else 0.35
    for row in range(len(oips)):
        label = f"{oips.noun} {oips.maps[row]}, start {oips.starts[row]}" if labels else None
        (line,) = axes.plot(oips.traces[row], linewidth=1, alpha=faint, label=label)
        step = int(oips.converged_at[row])
        if step >= 0:
            axes.plot([step], [oips.traces[row, step]], "o", markersize=3, color=line.get_color(), alpha=faint)
    if oips.trial_steps:
        axes.axvline(oips.trial_steps, linestyle=":", linewidth=1, color=_TRIAL)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _check_some(oips: Oips) -> None:
    if not isinstance(oips, Oips):
        raise InputError(f"oips is {shown(oips)}: expected what oip_torch.ascend or Oips.load returns")
    if not len(oips):
        raise InputError("there are no OIPs to show: expected at least one")


def _way(oips: Oips) -> str:
    """By which settings the images came about."""
    way = oips.info.get("way")
    return f"Settings: {way}." if way else ""


def _score_name(oips: Oips) -> str:
    objective = oips.info.get("objective", "map_mean")
    if objective != "map_mean":
        return f"score ({objective})"
    mean = "mean " if oips.noun == "map" else ""
    if oips.before_activation:
        return f"score ({mean}pre-activation of the {oips.noun})"
    return f"score ({mean}activation of the {oips.noun})"


def _short(score: float, decimals: int = 2) -> str:
    """So many decimals, or as many as a small score needs to differ from 0."""
    return f"{score:.{decimals}f}" if score == 0 or abs(score) >= 0.5 * 10**-decimals else f"{score:.1g}"


def _limits(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Black and white: quantiles, so that a few extreme pixels do not make the rest grey."""
    low, high = np.quantile(pixels, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def _shades(image: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.floating]:
    """(height, width, channels) → (height, width, 3), 0 to 1; other than three channels become their mean in grey."""
    scaled = np.clip((image - low) / (high - low), 0.0, 1.0)
    return scaled if image.shape[-1] == 3 else np.repeat(scaled.mean(-1, keepdims=True), 3, axis=-1)


def _picture(axes: Axes, shades: npt.NDArray[np.floating]) -> None:
    axes.imshow(shades, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _note(figure: Figure, text: str) -> None:
    most = round(figure.get_figwidth() / 0.055)  # letters in a line, at this size
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, most)]
    figure.supxlabel("\n".join(lines), fontsize=7, color="#777777")
