"""Do the figures of legibility agree with people? A sheet of numbered pictures to rate, and what the ratings say.

    python scripts/rate_pictures.py sheet FILE.onnx OIPS.nc [OIPS.nc ...] --data mnist.npz -o out/rating
    python scripts/rate_pictures.py evaluate out/rating/key.csv RATINGS.csv [RATINGS.csv ...]

`sheet` draws pictures by chance from all files, with real images and scrambled noise among them, in random order.
People open sheet.png, fill in the column of ratings.csv, 1 (I see nothing) to 5 (I could draw it from memory), and do
not look into key.csv, which holds what each picture is, and its figures. `evaluate` gives the rank correlation
(Spearman) of the ratings, averaged over the people, with each figure.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

import oip_torch as oip
from oip_torch.analysis.noise_control import phase_scrambled
from oip_torch.base.drawing import contact_sheet
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.files import existing_file, replacing

FIGURES = ("legibility", "tells", "looks", "over_data", "spectrum_distance", "noise_robustness")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="write sheet.png, ratings.csv and key.csv")
    sheet.add_argument("network", type=Path, metavar="FILE.onnx")
    sheet.add_argument(
        "oips", type=Path, nargs="+", metavar="OIPS.nc", help="of one layer, by Oips.save or `oip ascend`"
    )
    sheet.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="with x_test and x_train")
    sheet.add_argument("--count", type=int, default=76, help="of all pictures (default: 76)")
    sheet.add_argument("--controls", type=int, default=12, help="of them real images and noise (default: 12)")
    sheet.add_argument("--seed", type=int, default=0)
    sheet.add_argument("-o", "--output", type=Path, default=Path("out/rating"), help="folder (default: out/rating)")
    evaluate = commands.add_parser("evaluate", help="rank correlation of ratings with each figure")
    evaluate.add_argument("key", type=Path, metavar="KEY.csv")
    evaluate.add_argument("ratings", type=Path, nargs="+", metavar="RATINGS.csv", help="one for each person")
    options = parser.parse_args(arguments)
    try:
        if options.command == "sheet":
            write_sheet(options)
        else:
            print(table(correlations(options.key, options.ratings)))
    except OipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_sheet(options: argparse.Namespace) -> None:
    """Draw the pictures, work out their figures, and write the three files."""
    if not 0 <= options.controls <= options.count:
        raise InputError(f"--controls {options.controls} of --count {options.count}: expected 0 to all of them")
    stream = np.random.default_rng(options.seed)
    model = oip.load(options.network)
    given = {path.stem if len({p.stem for p in options.oips}) == len(options.oips) else str(path): oip.Oips.load(path)
             for path in options.oips}  # fmt: skip
    layer = next(iter(given.values())).layer
    if other := [name for name, oips in given.items() if oips.layer != layer]:
        raise InputError(
            f"{other[0]} holds OIPs of {given[other[0]].layer!r}: expected {layer!r}, as in the first file"
        )
    real, training = (_images(options.data, name) for name in ("x_test", "x_train"))
    before = next(iter(given.values())).pre_activation
    readers = oip.Readers.of(model, layer, real, training, pre_activation=before)
    calibration = oip.calibrate(model, training, layer, top=1, pre_activation=before)

    pool = [(name, row) for name, oips in given.items() for row in np.flatnonzero(oips.status != "dead").tolist()]
    if not pool:
        raise InputError("all OIPs of these files are dead: there is nothing to rate")
    controls = [("real", "noise")[number % 2] for number in range(options.controls)]
    order = stream.permutation(len(pool))
    drawn = [pool[index] for index in order[: options.count - len(controls)]]
    picked: dict[str, list[oip.Oips]] = {}
    for name, row in drawn:
        picked.setdefault(name, []).append(given[name].take([row]))
    for control in controls:
        name, row = pool[stream.integers(len(pool))]
        one = given[name].take([row])
        scrambled = phase_scrambled(one.images, stream)
        images = calibration[layer].top_of(int(one.maps[0]))[:1] if control == "real" else scrambled
        picked.setdefault(control, []).append(dataclasses.replace(one, images=images.astype(one.images.dtype)))
    rows: list[dict[str, Any]] = []
    for name, singles in picked.items():
        for one in singles:
            found = oip.assess(model, one, calibration, readers=readers)
            figures = {figure: float(getattr(found, figure)[0]) for figure in FIGURES}
            rows.append({"source": name, "map": int(one.maps[0]), "image": one.images[0]} | figures)
    rows = [rows[index] for index in stream.permutation(len(rows))]

    figure = contact_sheet(
        np.stack([row["image"] for row in rows]),
        [str(number) for number in range(1, len(rows) + 1)],
        ["finished"] * len(rows),
        title=f"{len(rows)} pictures",
        legend="Rate each one in ratings.csv: 1, I see nothing; 3, I see strokes; 5, I could draw it from memory.",
    )
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "sheet.png") as temporary:
        figure.savefig(temporary, dpi=150)
    numbered = [{"number": number, **row} for number, row in enumerate(rows, 1)]
    _write(folder / "ratings.csv", ("number", "rating"), numbered)
    _write(folder / "key.csv", ("number", "source", "map", *FIGURES), numbered)
    print(f"{folder / 'sheet.png'}: {len(rows)} pictures\n{folder / 'ratings.csv'}: to be filled in, 1 to 5")


def correlations(key: Path, ratings: list[Path]) -> dict[str, tuple[float, int]]:
    """Figure → Spearman's rank correlation with the mean rating, and over how many pictures; NaN below three."""
    figures = {row["number"]: row for row in _read(key, ("number", *FIGURES))}
    given: dict[str, list[int]] = {}
    for path in ratings:
        for row in _read(path, ("number", "rating")):
            text = (row["rating"] or "").strip()
            if row["number"] not in figures:
                raise InputError(f"{path} rates picture {row['number']}: expected numbers that are in {key}")
            if text not in ("", "1", "2", "3", "4", "5"):
                raise InputError(f"{path}: the rating of picture {row['number']} is {text!r}: expected 1 to 5, or none")
            if text:
                given.setdefault(row["number"], []).append(int(text))
    if not given:
        raise InputError(f"{ratings[0]} holds no ratings: fill in its second column, 1 to 5")
    means = np.array([np.mean(values) for values in given.values()])
    found = {}
    for figure in FIGURES:
        values = np.array([float(figures[number][figure]) for number in given])
        known = ~np.isnan(values)
        varied = known.sum() > 2 and len(set(values[known])) > 1 and len(set(means[known])) > 1
        found[figure] = float(spearmanr(means[known], values[known])[0]) if varied else math.nan, int(known.sum())
    return found


def table(found: dict[str, tuple[float, int]]) -> str:
    """In Markdown."""
    lines = ["| figure | rank correlation with the ratings | pictures |", "|---|---|---|"]
    for name, (value, count) in found.items():
        lines.append(f"| {name} | {'undefined' if math.isnan(value) else f'{value:.2f}'} | {count} |")
    return "\n".join(lines)


def _images(path: Path, name: str) -> npt.NDArray[Any]:
    with np.load(existing_file(path, "an .npz file with x_test and x_train"), allow_pickle=False) as arrays:
        if name not in arrays.files:
            raise InputError(f"{path} has no array {name}: expected x_test and x_train, as in Keras' mnist.npz")
        return np.asarray(arrays[name])


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def _read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    with existing_file(path, "a table written by `sheet`").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(columns) <= rows[0].keys():
        raise InputError(f"{path} is no table with the columns {', '.join(columns)}: expected one that `sheet` wrote")
    return rows


if __name__ == "__main__":
    sys.exit(main())
