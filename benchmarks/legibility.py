"""Do the figures of legibility rank pictures as they must? The ways of looking, beside controls whose rank is known.

    python benchmarks/legibility.py --data mnist.npz [--network models/mnist_cnn.onnx] [--layer Conv2D_3] [-o FILE.json]

The data is a file in the layout of Keras' mnist.npz: x_test is told apart, x_train gives windows and the top digits.
Medians are over the maps that a real image fires, and over all maps with the others as 0.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_tools import ROOT, parser, write
from scipy.ndimage import gaussian_filter

import oip_torch as oip
from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.analysis.legibility import Readers, legibility

WEAK = 3.0  # maps whose default OIP scores below that, as in the aims for readable settings
BLUR = 2.0  # pixels, of the control "blurred noise"


def standardized(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(N, height, width, channels), each with mean 0 and standard deviation 1."""
    centred = images - images.mean((1, 2, 3), keepdims=True)
    return np.asarray(centred / np.maximum(centred.std((1, 2, 3), keepdims=True), 1e-12), np.float32)


def controls(readers: Readers, layer: Any, oips: oip.Oips, training: npt.NDArray[Any]) -> dict[str, Any]:
    """Name → a picture for each map."""
    stream, count = np.random.default_rng(0), len(oips)
    noise = stream.standard_normal(oips.images.shape)
    digits = training[:, :, :, None] if training.ndim == 3 else training
    own = readers.images.cpu().numpy().transpose(0, 2, 3, 1)
    # What a regression would find: the mean of a map's own top images, less that of all maps' top images.
    templates = [
        own[rows[rows >= 0]].mean(0) - own.mean(0) if (rows >= 0).any() else own[0] for rows in readers.members
    ]
    return {
        "top training digit": layer.top_images[:, 0],
        "mean of the 9 top training digits": standardized(layer.top_images.mean(1)),
        "white noise": standardized(noise),
        "blurred noise": standardized(gaussian_filter(noise, (0, BLUR, BLUR, 0))),
        "random training digits": standardized(digits[stream.choice(len(digits), count)]),
        "mean digit": np.repeat(standardized(digits.mean(0, keepdims=True)), count, axis=0),
        "the next map's OIP": np.roll(oips.images, -1, axis=0),
        "template of the own top test digits": standardized(np.stack(templates)),
    }


def row(tells: Any, looks: Any, dead: Any, weak: Any) -> dict[str, float | None]:
    both, known = legibility(tells, looks, dead), ~np.isnan(tells)
    figures = {
        "tells": np.median(tells[known]),
        "looks": np.median(looks),
        "legibility": np.median(both[known]),
        "lower_quartile": np.quantile(both[known], 0.25),
        "weak_maps": np.median(both[known & weak]) if (known & weak).any() else None,
        "tells_of_all": np.median(np.where(known & ~dead, tells, 0.0)),
        "legibility_of_all": np.median(np.where(known, both, 0.0)),
    }
    plain = {name: None if value is None else float(value) for name, value in figures.items()}
    return plain | {"dead": int(dead.sum())}


def measure(network: Path, layer: str, data: Path) -> dict[str, Any]:
    with np.load(data) as arrays:
        test, training = arrays["x_test"], arrays["x_train"]
    model = oip.load(network)
    began = time.perf_counter()
    readers = Readers.of(model, layer, test, training)
    seconds = {"readers": time.perf_counter() - began}
    calibration = oip.calibrate(model, training, layer)
    ways = {"default": oip.AscentSettings(), "article": oip.AscentSettings.article()}
    made = {name: oip.ascend(model, layer, settings=settings) for name, settings in ways.items()}
    weak, rows = made["default"].scores < WEAK, {}
    for name, oips in made.items():
        began = time.perf_counter()
        tells, looks = readers.tells(oips.images, oips.maps), readers.looks(oips.images)
        seconds[name] = time.perf_counter() - began
        strength = float(np.median(oips.scores / made["default"].scores))
        rows[name] = {"strength": strength} | row(tells, looks, oips.status == "dead", weak)
    none = np.zeros(len(readers.members), bool)
    maps = np.arange(len(readers.members))
    for name, pictures in controls(readers, calibration[layer], made["default"], training).items():
        rows[name] = row(readers.tells(pictures, maps), readers.looks(pictures), none, weak)
    thrice = oip.ascend(model, layer, starts=3)
    control = oip.noise_control(model, thrice)
    noise = standardized(np.random.default_rng(0).standard_normal(thrice.images.shape))
    control_of_noise = oip.noise_control(model, dataclasses.replace(thrice, images=noise))
    between = cross_correlations(thrice.select(starts=0).images)[np.triu_indices(len(maps), 1)]
    return {
        "layer": layer,
        "maps": len(maps),
        "undefined": int((~readers.defined).sum()),
        "images": len(test),
        "windows": len(readers.bank),
        "seconds": seconds,
        "pictures": rows,
        "noise_control": {
            "summary": control.summary,
            "agreement": float(np.median(control.agreement)),
            "least_agreement": float(control.agreement.min()),
            "told_of_white_noise": int(control_of_noise.noise.sum()),
            "scrambled_agreement": float(np.median(control.scrambled_agreement)),
            "agreement_of_different_maps": float(between.mean()),
            "maps_that_agree_no_better": int((control.agreement <= between.mean()).sum()),
            "score": float(np.median(control.score)),
            "scrambled_score": float(np.median(control.scrambled_score)),
        },
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| picture | strength | T | L | legibility | lower quartile | weak maps | T of all | legibility of all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in result["pictures"].items():
        strength = f"{found['strength']:.2f}" if "strength" in found else ""
        keys = ("tells", "looks", "legibility", "lower_quartile", "weak_maps", "tells_of_all", "legibility_of_all")
        lines.append(f"| {name} | {strength} | {' | '.join(_shown(found[key]) for key in keys)} |")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
    noise = result["noise_control"]
    return (
        "\n".join(lines) + f"\n\n{result['layer']}: {result['maps']} maps, {result['undefined']} undefined; "
        f"{result['images']} images, {result['windows']} windows. Seconds: {seconds}.\n"
        f"Noise control, three starts: {noise['summary']}. Medians: agreement {noise['agreement']:.2f}, of scrambled "
        f"copies {noise['scrambled_agreement']:.2f}; score {noise['score']:.2f}, of scrambled copies "
        f"{noise['scrambled_score']:.2f}. OIPs of different maps agree by {noise['agreement_of_different_maps']:.2f}, "
        f"and the starts of {noise['maps_that_agree_no_better']} maps no better; the least is "
        f"{noise['least_agreement']:.2f}. Of white noise {noise['told_of_white_noise']} maps are told."
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    made = parser(__doc__, "legibility", network=False)
    made.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
    made.add_argument("--network", type=Path, default=ROOT / "models" / "mnist_cnn.onnx", metavar="FILE.onnx")
    made.add_argument("--layer", default="Conv2D_3")
    options = made.parse_args()
    result = measure(options.network, options.layer, options.data)
    write(result, options.output, table(result))


if __name__ == "__main__":
    main()
