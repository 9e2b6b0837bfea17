"""Which settings find the strongest OIPs, and what does each part of them bring?

    python benchmarks/settings.py FILE.onnx [FILE.onnx ...] [-o docs/experiments-table.md] [--data FILE.npz]

Every way is run on every map of the three convolutions. Strength is the score over that of the article's settings (600
steps from one start) on the maps that those wake, all under the same standardisation. Scores do not depend on the
machine, seconds do.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import oip_torch as oip
from oip_torch.base.files import replacing

LAYERS = ("Conv2D_1", "Conv2D_2", "Conv2D_3")
STAGES = (15, 35, 65, 85)  # the article's (20, 50, 100, 400) would not leave room for a search within 600


def ways() -> dict[str, oip.AscentSettings]:
    make, article = oip.AscentSettings, oip.AscentSettings.article
    return {
        "article": article(),
        "article, best of 10 candidates": article(steps=300, candidates=10, candidate_steps=30, candidate_epsilon=0.01),
        "article, strategy 1 (20, 40, 80, 400)": article(stages=(20, 40, 80, 400)),
        "article, Fourier starts 1/f": article(start=oip.StartSettings(kind="fourier")),
        "article, long wavelengths only (3, 7)": article(start=oip.StartSettings(sides=(3, 7))),
        "article with the leak": article(leak=0.3),
        "within 50": make.within(50),
        "within 100": make.within(100),
        "within 300": make.within(300),
        "default (600)": make(),
        "default, no momentum": make(momentum=0.0),
        "default, one finalist": make(steps=400, finalists=1),
        "default, no waking": make(waking=False),
        "default, strategy 1": make(stages=STAGES),
        "default, Fourier starts 1/f": make(start=oip.StartSettings(kind="fourier")),
        "default, long wavelengths only (3, 7)": make(start=oip.StartSettings(sides=(3, 7))),
        "16 times the default": make(candidates=64, steps=250, finalists=32),
    }


def measure(path: Path, names: list[str], data: Path | None) -> list[dict[str, object]]:
    model = oip.load(path)
    calibration = None if data is None else oip.calibrate(model, oip.read_images(data), list(LAYERS))
    rows = []
    for layer in LAYERS:
        reference = None
        for name in names:
            oips = oip.ascend(model, layer, settings=ways()[name])
            if reference is None:
                reference = oips.scores
            ratio = oips.scores[reference > 0] / reference[reference > 0]
            row = {
                "network": path.stem,
                "layer": layer,
                "way": name,
                "image_steps": oips.info["image_steps"] / len(oips),
                "alive": int((oips.scores > 0).sum()),
                "maps": len(oips),
                "median": float(np.median(ratio)),
                "least": float(ratio.min()),
                "below": int((ratio < 0.999).sum()),
                "seconds": oips.info["seconds"],
            }
            if calibration is not None:
                live = oips.scores > 0
                row["above_data"] = int((oips.scores > calibration[layer].maximum)[live].sum())
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| layer | way | image-steps per map | alive | above the data | median strength | least | below 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        above = f"{row['above_data']} of {row['alive']}" if "above_data" in row else ""
        lines.append(
            f"| {row['layer']} | {row['way']} | {row['image_steps']:.0f} | {row['alive']} of {row['maps']} | {above} "
            f"| {row['median']:.3f} | {row['least']:.3f} | {row['below']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", help="names of ways; the article always runs first")
    options = parser.parse_args()
    names = list(ways()) if options.only is None else ["article", *options.only]
    text = "".join(f"### {path.stem}\n\n{table(measure(path, names, options.data))}\n" for path in options.networks)
    if options.output is None:
        print(text)
        return
    with replacing(options.output) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
