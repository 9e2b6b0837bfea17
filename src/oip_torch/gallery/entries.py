"""What does the page hold of a network and of each layer, besides pictures? Numbers, texts and None, for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oip_torch.analysis.contents import DataContents, LayerContents, NetworkContents
from oip_torch.gallery.alike import by_images, nearest
from oip_torch.gallery.figures import FIGURES, REASONS, compares_with_data, figures_of, noise_of, rounded
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.oips import MARKS, NOTES, Oips, plural, short
from oip_torch.results.pictures import way_steps

__all__ = [
    "STATUS_WORDS",
    "best_row",
    "count_words",
    "layer_entry",
    "map_rows",
    "network_entry",
    "settings_words",
    "strip_entry",
]

_MOST_POINTS = 121  # of a trace: steps spread evenly, the first and the last among them

STATUS_WORDS = {
    "finished": "finished: the ascent took all its steps.",
    "converged": "converged: the article's criterion was met.",
    "recovered": NOTES["recovered"].removeprefix(MARKS["recovered"]).strip(),
    "fallback": NOTES["fallback"].removeprefix(MARKS["fallback"]).strip(),
    "dead": "dead: the map was 0 all over at every step.",
}
"""What each status means, in a sentence."""


def map_rows(oips: Oips) -> dict[int, list[int]]:
    """Of each map, in the order of the results, the positions of its images; the best one is not told apart here."""
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(oips.maps.tolist()):
        rows.setdefault(number, []).append(row)
    return rows


def best_row(oips: Oips, rows: Sequence[int]) -> int:
    """The position of the image with the highest score, as `Oips.best` chooses it."""
    return max(rows, key=lambda row: (float(oips.scores[row]), -row))


def network_entry(
    network: NetworkContents, layers: Sequence[Mapping[str, Any]], report: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is said of the whole network; `layers` are the entries of those that the atlas holds."""
    return {
        "name": network.name,
        "layers": [{"name": layer["name"], "index": index} for index, layer in enumerate(layers)],
        "figures": [{"label": each.label, "meaning": each.meaning, "unit": each.unit} for each in FIGURES],
        "keys": [each.key for each in FIGURES],
        "reasons": REASONS,
        "statuses": STATUS_WORDS,
        "marks": MARKS,
        "settings": _settings_summary(network),
        "report": None if report is None else {key: report[key] for key in ("onnx", "agree", "reference")},
    }


def strip_entry(layer: Layer, index: int | None) -> dict[str, Any]:
    """A layer of the strip: what it is called, how large it is, and which of the page's layers it is."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "maps": layer.maps,
        "size": layer.size,
        "flat": layer.height == layer.width == 1,
        "side": 0 if not layer.height or not layer.width else math.sqrt(layer.height * layer.width),
        "index": index,
    }


def layer_entry(contents: LayerContents, report: Mapping[str, Any] | None, chunk: int) -> dict[str, Any]:
    """All that the page shows of one layer, besides its pictures.

    Args:
        contents: of the layer.
        report: of `oip compare`, as `reports.read_report` gives it; None: there is none.
        chunk: so many maps share a sheet.
    """
    oips, layer, data = contents.oips, contents.layer, contents.data
    groups = map_rows(oips)
    numbers = np.array(list(groups), np.int64)
    best = oips.take([best_row(oips, rows) for rows in groups.values()])
    alike = by_images(best.images) if len(best) > 1 else [[] for _ in best]
    alike_on_data = [[] for _ in best] if data is None else nearest(np.asarray(data.likeness, float), numbers)
    maps = [
        _map_entry(contents, number, rows, images, activations)
        for (number, rows), images, activations in zip(groups.items(), alike, alike_on_data, strict=True)
    ]
    steps = way_steps(oips)
    return {
        "name": layer.name,
        "place": oips.place,
        "settings": oips.settings.summary,
        "kind": layer.kind,
        "size": layer.size,
        "noun": oips.noun,
        "nouns": plural(oips.noun),
        "of": layer.maps,
        "images": len(oips),
        "planned": contents.planned - len(oips.provenance.not_finite),  # these were made, and are lost
        "starts": max((len(rows) for rows in groups.values()), default=0),
        "canBeDead": oips.provenance.can_be_dead is not False,
        "compares": compares_with_data(contents),
        "score": _score_words(oips),
        "way": oips.way,
        "lost": len(oips.provenance.not_finite),
        "evolution": [{"step": step, "screening": step < oips.screening_steps} for step in steps],
        "traceSteps": _points(oips.traces.shape[1]),
        "screening": oips.screening_steps,
        "data": None if data is None else _data_entry(data),
        "noise": None if contents.noise is None else contents.noise.summary,
        "compare": None if report is None else _compare_entry(report, layer.name),
        "chunk": chunk,
        "maps": maps,
    }


def _map_entry(
    contents: LayerContents,
    number: int,
    rows: Sequence[int],
    images: list[tuple[int, float]],
    activations: list[tuple[int, float]],
) -> dict[str, Any]:
    oips, best = contents.oips, best_row(contents.oips, rows)
    noise = noise_of(contents.noise, number)
    figures = [figures_of(contents, row, len(rows)) for row in rows]
    of_best = dict(zip((each.key for each in FIGURES), figures[rows.index(best)], strict=True))
    points = _points(oips.traces.shape[1])
    return {
        "number": number,
        "best": rows.index(best),
        "flags": _flags(contents, number, best, noise),
        "sort": {
            "score": rounded(float(oips.scores[best])),
            "over_data": of_best["over_data"],
            "legibility": of_best["legibility"],
            "agreement": noise["agreement"] if noise else ("one_start" if len(rows) < 2 else "not_asked"),
            "selectivity": of_best["selectivity_rank"],
        },
        "starts": [
            {
                "start": int(oips.starts[row]),
                "score": short(float(oips.scores[row])),
                "status": str(oips.status[row]),
                "converged": int(oips.converged_at[row]),
                "figures": of_row,
                "trace": [_number(value) for value in oips.traces[row, points]] if points else [],
            }
            for row, of_row in zip(rows, figures, strict=True)
        ],
        "way": [_number(oips.traces[best, step]) for step in way_steps(oips)],
        "noise": noise,
        "data": None if contents.data is None else _map_data(contents.data, number),
        "alike": {"images": images, "activations": activations},
    }


def _flags(contents: LayerContents, number: int, best: int, noise: Mapping[str, Any] | None) -> list[str]:
    """Which filters let a map pass."""
    oips = contents.oips
    status, score = str(oips.status[best]), float(oips.scores[best])
    flags = [status] if status in (*MARKS, "dead") else []
    if score > 0:
        flags.append("alive")
    if noise is not None and noise["noise"] and status != "dead":  # as `NoiseControl.marks`: the dead are called dead
        flags.append("noise")
    if contents.data is not None and compares_with_data(contents) and score > contents.data.calibration.maximum[number]:
        flags.append("above_data")
    return flags


def _data_entry(data: DataContents) -> dict[str, Any]:
    return {
        "count": data.count,
        "ranked": int(data.calibration.excited.sum()),
        "classes": list(data.class_names) if data.classes is not None else [],
    }


def _map_data(data: DataContents, number: int) -> dict[str, Any]:
    """What the data draws from one map; the pictures stand in the order of `top` on the sheet of real images."""
    own = data.calibration
    tied = 0 if own.tied is None else int(own.tied[number])
    scores = own.top_scores[number]
    equal = (scores[:, None] == scores[None, :]).sum(1) > 1
    if tied:
        equal |= scores == scores[-1]
    return {
        "maximum": short(float(own.maximum[number])),
        "mean": short(float(own.mean[number])),
        "excited": bool(own.excited[number]),
        "fires": bool(own.maximum[number] > 0),
        "top": [
            {
                "index": int(own.top_indices[number, place]),
                "score": short(float(scores[place])),
                "equal": bool(equal[place]),
                "field": _field(data, number, place),
            }
            for place in range(len(scores))
        ],
        "classes": [] if data.classes is None else [_number(value) for value in data.classes[number]],
    }


def _field(data: DataContents, number: int, place: int) -> list[int] | str:
    """Top, bottom, left, right of what is outlined; "all" where a unit sees everything, "none" where none is ahead."""
    top, bottom, left, right = (int(end) for end in data.fields[number, place])
    if min(top, bottom, left, right) < 0 or top == bottom or left == right:
        return "none"
    height, width = data.calibration.pictures.shape[1:3]
    return "all" if (bottom - top, right - left) == (height, width) else [top, bottom, left, right]


def _compare_entry(report: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """What `oip compare` found of one layer: its errors, and of its maps' ascents where they were compared."""
    ascended = report["layer"] == layer
    return {
        "ascended": report["maps"] if ascended else None,
        "steps": report["steps"],
        "rows": [
            {
                "name": name,
                "counted": entry["counted"],
                "error": entry["layers"].get(layer),
                "trace": entry["trace_max_relative_error"] if ascended else None,
                "images": entry["image_correlation"] if ascended else None,
            }
            for name, entry in report["runtimes"].items()
        ],
    }


def _points(steps: int) -> list[int]:
    """Which steps of a trace are drawn."""
    return sorted({round(step) for step in np.linspace(0, steps - 1, min(steps, _MOST_POINTS)).tolist()})


def _number(value: float) -> float | None:
    return rounded(float(value)) if math.isfinite(value) else None


def _score_words(oips: Oips) -> str:
    """What a score is, in words: "mean activation of the map"."""
    if oips.scored_by != "map_mean":
        return oips.scored_by
    mean = "mean " if oips.noun == "map" else ""
    return f"{mean}{'pre-activation' if oips.pre_activation else 'activation'} of the {oips.noun}"


def count_words(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many there are of what, in words, for the page's head."""
    maps = [each for layer in layers for each in layer["maps"]]

    def having(flag: str, among: Sequence[Mapping[str, Any]]) -> int:
        return sum(flag in each["flags"] for each in among)

    images = sum(layer["images"] for layer in layers)
    planned = sum(layer["planned"] for layer in layers)
    of_planned = "" if planned == images else f" of {planned:,} planned"
    told = [
        f"{len(maps):,} map{'' if len(maps) == 1 else 's'} in {len(layers)} layer{'' if len(layers) == 1 else 's'}",
        f"{images:,} images{of_planned}",
    ]
    mortal = [each for layer in layers if layer["canBeDead"] for each in layer["maps"]]
    if mortal:
        told.append(f"{having('alive', mortal):,} of {len(mortal):,} alive")
    measured = [each for layer in layers if layer["compares"] for each in layer["maps"]]
    if measured:
        told.append(f"{having('above_data', measured):,} of {len(measured):,} above the data")
    controlled = [each for each in maps if each["noise"] is not None]
    if controlled:
        told.append(f"{having('noise', controlled):,} of {len(controlled):,} not distinguishable from noise")
    return told


def settings_words(network: NetworkContents) -> str:
    """The settings in a sentence."""
    return f"{_settings_summary(network)}; seed {network.seed}."


def _settings_summary(network: NetworkContents) -> str:
    return AscentSettings.from_dict(dict(network.settings)).summary
