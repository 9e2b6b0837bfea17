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

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_tools import (
    LOOPS,
    described,
    in_own_process,
    markdown,
    number,
    parser,
    ratios,
    span,
    spread,
    tell,
    timed_ascent,
    timed_loop,
    turns,
    write,
)

LAYERS = ("conv3_block4_out", "conv4_block6_out")
MEAN, STD = (123.7, 116.8, 103.9), (58.4, 57.1, 57.4)  # of ImageNet
CONTESTANTS = {"batched": LOOPS["batched"], "plain": LOOPS["plain"], "article": "oip.ascend, the article's settings"}


def save_resnet(path: str, side: int) -> dict[str, Any]:
    """ResNet50, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    keras.applications.ResNet50(weights=None, input_shape=(side, side, 3), classes=10).save(path)
    return {}


def convert(keras_file: str, network: str) -> dict[str, Any]:
    """In a process of its own, since it takes gigabytes; returns what the caller wants to know of the network."""
    import oip_torch as oip

    model = oip.convert(keras_file, network, mean=MEAN, std=STD, device="cpu", progress=False)
    return {"shape": model.input_shape, "maps": {layer.name: layer.maps for layer in model.layers}}


def counted(network: str, layer: str) -> dict[str, Any]:
    """Operations of an image-step on the plain network, forward and back to the image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import oip_torch as oip

    model = oip.load(network, device="cpu")
    x = torch.randn(1, *model.input_shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model.up_to(layer)(x).sum().backward()
    return {"flops": counter.get_total_flops()}


def measure(options: Any, folder: Path) -> dict[str, Any]:
    import oip_torch as oip

    keras_file, network = folder / "resnet50.keras", folder / "resnet50.onnx"
    tell("making ResNet50")
    in_own_process(save_resnet, path=keras_file, side=options.side)
    tell("converting it")
    made = in_own_process(convert, keras_file=keras_file, network=network)
    jobs: dict[tuple[str, str], dict[str, Any]] = {}
    for layer in options.layers:
        every = made["maps"][layer]
        maps = np.linspace(0, every - 1, min(options.maps, every)).round().astype(int).tolist()
        starts = folder / f"{layer}.npy"
        images = oip.start_images(tuple(made["shape"]), [(index, 0) for index in maps], layer=layer)
        np.save(starts, images.numpy().transpose(0, 2, 3, 1))
        usual = {"onnx_file": network, "layer": layer, "maps": maps, "steps": options.steps}
        for name in ("batched", "plain"):
            jobs[layer, name] = usual | {"name": name, "keras_file": keras_file, "starts": starts}
        jobs[layer, "article"] = usual | {"way": "article", "starts": 1}
    done: dict[tuple[str, str], list[dict[str, Any]]] = {job: [] for job in jobs}
    for job in turns(list(jobs), options.rounds):
        function = timed_ascent if job[1] == "article" else timed_loop
        done[job].append(in_own_process(function, **jobs[job]))
    layers = {}
    for layer in options.layers:
        flops, rows = in_own_process(counted, network=network, layer=layer)["flops"], {}
        for name, title in CONTESTANTS.items():
            found = done[layer, name]
            times = [turn["microseconds"] for turn in found]
            rows[name] = {
                "title": title,
                "seconds_per_image_step": spread([value / 1e6 for value in times]),
                "gflops": spread([flops / value / 1e3 for value in times]),
                "before_mb": spread([turn["before_mb"] for turn in found]),
                "peak_mb": spread([turn["peak_mb"] for turn in found]),
                "predicted_mb": found[0]["predicted_mb"],
                "article_over_it": ratios([turn["microseconds"] for turn in done[layer, "article"]], times),
            }
        layers[layer] = {"maps": jobs[layer, "plain"]["maps"], "gflop_per_image_step": flops / 1e9, "contestants": rows}
    return layers


def text(result: dict[str, Any]) -> str:
    head = [
        *("contestant", "s per image-step", "GFLOP/s", "oip.ascend's time over it"),
        *("memory before, MB", "peak, MB", "grown, MB", "predicted, MB"),
    ]
    blocks = [described(), f"ResNet50 at {result['side']}×{result['side']}, {result['steps']} steps:"]
    for layer, of in result["layers"].items():
        rows = []
        for row in of["contestants"].values():
            before, peak = row["before_mb"]["median"], row["peak_mb"]["median"]
            memory = [before, peak, peak - before, row["predicted_mb"]]
            times = [span(row[key]) for key in ("seconds_per_image_step", "gflops", "article_over_it")]
            rows.append([row["title"], *times, *map(number, memory)])
        needed = f"{of['gflop_per_image_step']:.2f} GFLOP an image-step"
        blocks += [f"{layer}, {len(of['maps'])} maps, {needed}:", markdown(head, rows)]
    return "\n\n".join(blocks)


def main() -> None:
    made = parser(__doc__, "large", rounds=3, network=False)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--side", type=int, default=224)
    made.add_argument("--maps", type=int, default=8, help="how many")
    made.add_argument("--layers", nargs="*", default=LAYERS)
    options = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as name:
        layers = measure(options, Path(name))
    settings = {"rounds": options.rounds, "steps": options.steps, "side": options.side}
    result = settings | {"layers": layers}
    write(result, options.output, text(result))


if __name__ == "__main__":
    main()
