"""Which settings find the strongest OIPs, and what does each part of them bring?

    python benchmarks/settings.py FILE.onnx [FILE.onnx ...] [-o out/bench/settings.md] [--data FILE.npz]

Every way is run on every map of the three convolutions. Strength is the score over that of the article's settings (600
steps from one start) on the maps that respond to those, all under the same standardisation. Scores do not depend on the
machine, seconds do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_tools as bench
import numpy as np

import oip_torch as oip

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
        "default, one survivor": make(steps=400, survivors=1),
        "default, no fallback": make(fallback=None),
        "default, strategy 1": make(stages=STAGES),
        "default, Fourier starts 1/f": make(start=oip.StartSettings(kind="fourier")),
        "default, long wavelengths only (3, 7)": make(start=oip.StartSettings(sides=(3, 7))),
        "16 times the default": make(candidates=64, steps=250, survivors=32),
    }


def measure(path: Path, data: Path | None) -> str:
    model = oip.load(path)
    calibration = None if data is None else oip.calibrate(model, oip.read_images(data), list(LAYERS))
    rows: list[dict[str, Any]] = []
    for layer in LAYERS:
        reference = np.empty(0)
        for name, settings in ways().items():
            oips = oip.ascend(model, layer, settings=settings)
            reference = oips.scores if name == "article" else reference
            live, ratio = oips.scores > 0, oips.scores[reference > 0] / reference[reference > 0]
            above = "" if calibration is None else (oips.scores > calibration[layer].maximum)[live].sum()
            row = {"layer": layer, "way": name, "image-steps per map": round(oips.provenance.image_steps / len(oips))}
            row |= {"alive": f"{live.sum()} of {len(oips)}", "above the data": above and f"{above} of {live.sum()}"}
            row |= {"median strength": f"{np.median(ratio):.3f}", "least": f"{ratio.min():.3f}"}
            rows.append(row | {"below 1": (ratio < 0.999).sum()})
            bench.tell(str(rows[-1]))
    return bench.table(rows, {title: title for title in rows[0]})


def main() -> None:
    made = bench.parser(__doc__, "settings", network=False)
    made.set_defaults(output=bench.ROOT / "out" / "bench" / "settings.md")
    made.add_argument("networks", type=Path, nargs="+")
    made.add_argument("--data", type=Path)
    options = made.parse_args()
    tables = {path.stem: measure(path, options.data) for path in options.networks}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(f"### {name}\n\n{table}\n" for name, table in tables.items()))


if __name__ == "__main__":
    main()
