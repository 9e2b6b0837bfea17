"""What does the engine bring on a network of another size?

    python benchmarks/large.py [--rounds 3] [--steps 20] [-o benchmarks/results/large.json]

ResNet50 of keras.applications for images of 224×224×3, with random weights (nothing is downloaded): a few maps of
layers in the middle, by `oip.ascend` in the article's settings, by a plain loop in torch and by the batched loop under
tf.function, from the same start images, each in a process of its own, taking turns. Steps are few, and two more
forward passes of `oip.ascend`, for the scores of the final images, are in its time.

Operations are counted by torch on the plain network, all maps of the layer included, so that rates tell the contestants
apart and are not shares of a ceiling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_tools as bench
import numpy as np
from bench_tools import LOOPS, ratios, spread

LAYERS = ("conv3_block4_out", "conv4_block6_out")
IMAGENET = {"mean": (123.7, 116.8, 103.9), "std": (58.4, 57.1, 57.4)}
CONTESTANTS = {"batched": LOOPS["batched"], "plain": LOOPS["plain"], "article": "oip.ascend, the article's settings"}
COLUMNS = {
    "title": "contestant",
    "seconds_per_image_step": "s per image-step (least to most)",
    "gflops": "GFLOP/s (least to most)",
    "article_over_it": "oip.ascend's time over it (least to most)",
    "before_mb": "memory before, MB",
    "peak_mb": "peak, MB",
    "grown_mb": "grown, MB",
    "predicted_mb": "predicted, MB",
}


def save_resnet(path: str, side: int) -> None:
    """ResNet50, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    keras.applications.ResNet50(weights=None, input_shape=(side, side, 3), classes=10).save(path)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    import oip_torch as oip

    files = {"keras_file": folder / "resnet50.keras", "network": folder / "resnet50.onnx"}
    bench.tell("making ResNet50, and converting it")
    bench.in_own_process(save_resnet, path=files["keras_file"], side=options.side)
    made = bench.in_own_process(bench.convert, **files, **IMAGENET)
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for layer in options.layers:
        every = made["maps"][layer]
        maps = np.linspace(0, every - 1, min(options.maps, every)).round().astype(int).tolist()
        images = oip.start_images(tuple(made["shape"]), [(index, 0) for index in maps], layer=layer)
        np.save(folder / f"{layer}.npy", images.numpy().transpose(0, 2, 3, 1))
        for name in CONTESTANTS:
            starts = 1 if name == "article" else folder / f"{layer}.npy"
            job = {"name": name, "layer": layer, "maps": maps, "starts": starts, "steps": options.steps}
            jobs[layer, name] = files | job
    done = bench.play(jobs, options.rounds)
    layers = {}
    for layer in options.layers:
        flops = bench.in_own_process(bench.counted, network=files["network"], layer=layer, needed=False)
        own, rows = [found["seconds"] / found["image_steps"] for found in done[layer, "article"]], {}
        for name, title in CONTESTANTS.items():
            found = bench.spreads(done[layer, name])
            times = [each["seconds"] / each["image_steps"] for each in done[layer, name]]
            rows[name] = {key: found[key] for key in ("before_mb", "peak_mb", "grown_mb")} | {
                "title": title,
                "seconds_per_image_step": spread(times),
                "gflops": spread([flops / value / 1e9 for value in times]),
                "predicted_mb": done[layer, name][0]["predicted_mb"],
                "article_over_it": ratios(own, times),
            }
        maps = jobs[layer, "plain"]["maps"]
        layers[layer] = {"maps": maps, "gflop_per_image_step": flops / 1e9, "contestants": rows}
    return layers


def text(result: dict[str, Any]) -> str:
    blocks = [f"ResNet50 at {result['side']}×{result['side']}, {result['steps']} steps:"]
    for layer, of in result["layers"].items():
        needed = f"{of['gflop_per_image_step']:.2f} GFLOP an image-step"
        table = bench.table(of["contestants"].values(), COLUMNS)
        blocks += [f"{layer}, {len(of['maps'])} maps, {needed}:", table]
    return "\n\n".join(blocks)


def main() -> None:
    made = bench.parser(__doc__, "large", rounds=3, network=False)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--side", type=int, default=224)
    made.add_argument("--maps", type=int, default=8, help="how many")
    made.add_argument("--layers", nargs="*", default=LAYERS)
    options = made.parse_args()
    settings = {"rounds": options.rounds, "steps": options.steps, "side": options.side}
    with bench.workplace(Path()) as (folder, _):
        result = settings | {"layers": measure(options, folder)}
    bench.write(result, options.output, text(result))


if __name__ == "__main__":
    main()
