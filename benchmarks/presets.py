"""How strong and how legible are the ways of looking? The default, `legible` and `strokes` on the layers of networks.

    python benchmarks/presets.py FILE.onnx [FILE.onnx ...] [--data mnist.npz] [--layers LAYER ...] [-o FILE.json]

The data is a file in the layout of Keras' mnist.npz; without it Keras downloads the digits. The images of x_test are
told apart, those of x_train give windows and the limits of `strokes`. Medians are over the maps that an image of x_test
fires; strength is over all maps, each over the default's score of the same seed. Agreement is that of the two seeds'
images. Of several networks each is also asked which classes it takes the class images of the others for.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from bench_tools import in_own_process, parser, table, tell, write

import oip_torch as oip
from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.analysis.legibility import Readers, legibility

WEAK = 3.0  # maps whose default OIP scores below that, as in legibility.py
SEEDS = (0, 1)


def ways(limits: tuple[float, float] | None) -> dict[str, oip.AscentSettings]:
    make = oip.AscentSettings
    return {"default": make(), "legible": make.legible(), "strokes": make.strokes(limits or "data")}


def measure(network: Path, layer: str, data: dict[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
    """A row for each way and seed."""
    model = oip.load(network, device="cpu")
    tell(f"{network.stem}, {layer}: ranking the images")
    readers = Readers.of(model, layer, data["x_test"], data["x_train"])
    largest = oip.calibrate(model, data["x_test"], layer)[layer].maximum
    limits = oip.calibrate(model, data["x_train"], layer).limits
    rows, reference = [], {}
    for way, settings in ways(limits).items():
        images = []
        for seed in SEEDS:
            oips = oip.ascend(model, layer, seed=seed, settings=settings)
            reference.setdefault(seed, oips.scores)
            rows.append({"network": network.stem, "layer": layer, "way": way, "seed": seed})
            rows[-1] |= figures(oips, readers, largest, reference[seed])
            images.append(oips.images)
            tell(str(rows[-1]))
        both = [cross_correlations(np.stack(pair))[0, 1] for pair in zip(*images, strict=True)]
        for row in rows[-len(SEEDS) :]:
            row["agreement"] = float(np.median(both))
    return rows


def figures(oips: oip.Oips, readers: Readers, largest: npt.NDArray[Any], reference: npt.NDArray[Any]) -> dict[str, Any]:
    """Of one ascent of all maps; `largest`: score of any real image, `reference`: scores of the default."""
    live, known, fired = oips.scores > 0, readers.defined, reference > 0
    tells, looks = readers.tells(oips.images, oips.maps), readers.looks(oips.images)
    legible = legibility(tells, looks, ~live)
    weak = known & (reference < WEAK)
    return {
        "maps": len(oips),
        "alive": int(live.sum()),
        "fallback": int((oips.status == "fallback").sum()),
        "fired_by_data": int(known.sum()),
        "above_data": int((oips.scores > largest)[known].sum()),
        "strength": float(np.median(oips.scores[fired] / reference[fired])),
        "data": float(np.median(oips.scores[known] / largest[known])),
        "tells": float(np.median(tells[known])),
        "looks": float(np.median(looks[known])),
        "legibility": float(np.median(legible[known])),
        "lower_quartile": float(np.quantile(legible[known], 0.25)),
        "weak": float(np.median(legible[weak])) if weak.any() else None,
        "weak_maps": int(weak.sum()),
        "image_steps": oips.provenance.image_steps / len(oips),
        "seconds": oips.provenance.seconds,
    }


def recognised(maker: Path, reader: Path, training: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """How many class images the network that they were made on takes for their class, and how many another one."""
    one, other = oip.load(maker, device="cpu"), oip.load(reader, device="cpu")
    layer, rows = one.layers.names[-1], []
    limits = oip.calibrate(one, training, layer).limits
    for way, settings in ways(limits).items():
        for seed in SEEDS:
            oips = oip.ascend(one, layer, seed=seed, settings=settings)
            row: dict[str, Any] = {"made_by": maker.stem, "read_by": reader.stem, "way": way, "seed": seed}
            for name, model in (("own", one), ("other", other)):
                x = torch.from_numpy(oips.images).movedim(-1, 1)
                with torch.no_grad():
                    said = model.up_to(layer, pre_activation=True)(model.to_input(x)).argmax(1).numpy()
                row |= {name: int((said == oips.maps).sum()), f"{name}_takes_them_for": said.tolist()}
            rows.append(row | {"classes": len(oips)})
            tell(str(rows[-1]))
    return rows


def download(output: str) -> str:
    """The digits, by Keras: for a process of its own, since TensorFlow and torch crash in one."""
    from keras.datasets import mnist

    (x_train, _), (x_test, _) = mnist.load_data()
    np.savez(output, x_train=x_train, x_test=x_test)
    return output


def digits(path: Path | None) -> dict[str, npt.NDArray[Any]]:
    """x_train and x_test."""
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        with np.load(path or in_own_process(download, output=f"{folder}/mnist.npz")) as arrays:
            return {name: arrays[name] for name in ("x_train", "x_test")}


def text(result: dict[str, Any]) -> str:
    """Two tables: figures by preset, and class images."""
    titles = {"network": "network", "layer": "layer", "way": "way", "seed": "seed", "strength": "strength"}
    titles |= {"data": "over the data", "alive": "alive", "above_data": "above the data", "fallback": "by the fallback"}
    titles |= {"tells": "T", "looks": "L", "legibility": "legibility", "lower_quartile": "lower quartile"}
    titles |= {"weak": "weak maps", "agreement": "agreement", "image_steps": "image-steps", "seconds": "s"}
    rows = [
        row
        | {"alive": f"{row['alive']} of {row['maps']}", "above_data": f"{row['above_data']} of {row['fired_by_data']}"}
        for row in result["presets"]
    ]
    classes = {"made_by": "made by", "read_by": "read by", "way": "way", "seed": "seed"}
    classes |= {"own": "own network", "other": "other network", "classes": "of"}
    return "\n\n".join([table(rows, titles)] + ([table(result["classes"], classes)] if result["classes"] else []))


def main() -> None:
    made = parser(__doc__, "presets", network=False)
    made.add_argument("networks", type=Path, nargs="+", metavar="FILE.onnx")
    made.add_argument("--data", type=Path, metavar="FILE.npz")
    made.add_argument("--layers", nargs="+", default=["Conv2D_2", "Conv2D_3"])
    options = made.parse_args()
    data = digits(options.data)
    rows = [row for network in options.networks for layer in options.layers for row in measure(network, layer, data)]
    pairs = itertools.permutations(options.networks, 2)
    classes = [row for one, other in pairs for row in recognised(one, other, data["x_train"])]
    result = {"presets": rows, "classes": classes}
    write(result, options.output, text(result))


if __name__ == "__main__":
    main()
