"""What does the engine bring on a network of another size?

    python benchmarks/large.py [--rounds 3] [--steps 20] [-o benchmarks/results/large.json]

Networks of keras.applications for images of 224×224×3, with random weights (nothing is downloaded): a few maps of
layers on the way, by `oip.ascend` in the article's settings, by a plain loop in torch and by the batched loop under
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

NETWORKS = {  # and layers of each
    "ResNet50": ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
    "VGG16": ("block3_conv3", "block5_conv3"),
    "MobileNetV2": ("block_6_expand_relu", "block_13_expand_relu"),
}
IMAGENET = {"mean": (123.7, 116.8, 103.9), "std": (58.4, 57.1, 57.4)}


def save(path: str, name: str, side: int) -> None:
    """A network of keras.applications, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), classes=10).save(path)


def main() -> None:
    made = bench.parser(__doc__, "large", rounds=3, network=False)
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--side", type=int, default=224)
    made.add_argument("--maps", type=int, default=8, help="how many")
    made.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = made.parse_args()
    import oip_torch as oip

    jobs, titles, flops = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        for name in options.networks:
            files = {"keras_file": f"{folder}/{name}.keras", "network": f"{folder}/{name}.onnx"}
            bench.tell(f"making {name}, and converting it")
            bench.in_own_process(save, path=files["keras_file"], name=name, side=options.side)
            network = bench.in_own_process(bench.convert, **files, **IMAGENET)
            for layer in NETWORKS[name]:
                part = f"{name}, {layer}"
                maps = np.linspace(0, network["maps"][layer] - 1, options.maps).round().astype(int).tolist()
                images = oip.start_images(tuple(network["shape"]), [(index, 0) for index in maps], layer=layer)
                np.save(f"{folder}/{part}.npy", images.permute(0, 2, 3, 1).numpy())
                job = {"network": files["network"], "layer": layer, "maps": maps, "steps": options.steps}
                others = {"keras_file": files["keras_file"], "starts": f"{folder}/{part}.npy"}
                jobs |= {(part, LOOPS[other]): job | others | {"name": other} for other in ("batched", "plain")}
                jobs[part, "oip.ascend, the article's settings"] = job | {"name": "article"}
                flops[part] = bench.in_own_process(bench.counted, network=files["network"], layer=layer, needed=False)
                titles[part] = f"{part}: {flops[part] / 1e9:.2f} GFLOP an image-step"
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
