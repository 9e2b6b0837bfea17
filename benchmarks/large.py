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

import bench_tools as bench
import numpy as np
from bench_tools import LOOPS

LAYERS = ("conv3_block4_out", "conv4_block6_out")
IMAGENET = {"mean": (123.7, 116.8, 103.9), "std": (58.4, 57.1, 57.4)}


def save_resnet(path: str, side: int) -> None:
    """ResNet50, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    keras.applications.ResNet50(weights=None, input_shape=(side, side, 3), classes=10).save(path)


def main() -> None:
    made = bench.parser(__doc__, "large", rounds=3, network=False)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--side", type=int, default=224)
    made.add_argument("--maps", type=int, default=8, help="how many")
    made.add_argument("--layers", nargs="*", default=LAYERS)
    options = made.parse_args()
    import oip_torch as oip

    jobs, titles, flops = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        files = {"keras_file": f"{folder}/resnet50.keras", "network": f"{folder}/resnet50.onnx"}
        bench.tell("making ResNet50, and converting it")
        bench.in_own_process(save_resnet, path=files["keras_file"], side=options.side)
        network = bench.in_own_process(bench.convert, **files, **IMAGENET)
        for layer in options.layers:
            maps = np.linspace(0, network["maps"][layer] - 1, options.maps).round().astype(int).tolist()
            images = oip.start_images(tuple(network["shape"]), [(index, 0) for index in maps], layer=layer)
            np.save(f"{folder}/{layer}.npy", images.permute(0, 2, 3, 1).numpy())
            job = {"network": files["network"], "layer": layer, "maps": maps, "steps": options.steps}
            others = {"keras_file": files["keras_file"], "starts": f"{folder}/{layer}.npy"}
            jobs |= {(layer, LOOPS[name]): job | others | {"name": name} for name in ("batched", "plain")}
            jobs[layer, "oip.ascend, the article's settings"] = job | {"name": "article"}
            flops[layer] = bench.in_own_process(bench.counted, network=files["network"], layer=layer, needed=False)
            titles[layer] = f"{layer}: {flops[layer] / 1e9:.2f} GFLOP an image-step"
        layers = bench.parts_of(jobs, options.rounds)
    for layer, rows in layers.items():
        for row in rows:
            row["gflops"] = bench.spread([flops[layer] / micros / 1e3 for micros in row["microseconds"]["all"]])
            row["article_over_it"] = bench.ratios(rows[-1]["microseconds"]["all"], row["microseconds"]["all"])
    more = {"gflops": "GFLOP/s (least to most)", "article_over_it": "oip.ascend's time over it (least to most)"}
    result = {"rounds": options.rounds, "steps": options.steps, "side": options.side, "layers": layers}
    bench.write(result, options.output, bench.parts_text(layers, titles, **more))


if __name__ == "__main__":
    main()
