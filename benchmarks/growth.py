"""How do time and memory grow, with images, maps, layers and the size of the image?

    python benchmarks/growth.py [--rounds 3] [-o benchmarks/results/growth.json]

Each ascent runs in a process of its own, and in each round of turns in another order. Timed is the second of two runs.
*Memory before* is what the process holds when the network is loaded, *peak* the most that it held in the first run. The
results themselves (images, snapshots, traces) are part of the growth, since the caller gets them; *predicted* is what
`ascend` said of its peak beyond what was held before.

- images: all 128 maps of Conv2D_3, with more and more starts;
- maps: one start of more and more maps of Conv2D_3;
- layers: 64 images of each layer of the network;
- sides: 32 maps of the third convolution of networks built like the shipped one, with random weights, for images of
  more and more pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_tools as bench
from bench_tools import MAPS

SIDE_STEPS, OF_A_LAYER = 30, 64
IMAGES = (128, 256, 512, 1024, 2048, 4096)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
SIDES = (28, 56, 112, 224)
WAYS = {"within": "{} image-steps, search included", "article": "the article's settings, {} steps"}


def save_cnn(path: str, side: int) -> None:
    """The shipped network's convolutions and poolings for larger images, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    layers: list[Any] = [keras.Input((side, side, 1))]
    for index, filters in enumerate((32, 64, 128), start=1):
        layers.append(keras.layers.Conv2D(filters, 3, activation="relu", name=f"Conv2D_{index}"))
        if index < 3:
            layers.append(keras.layers.MaxPooling2D(2))
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    keras.Sequential(layers).save(path)


def converted(side: int, folder: Path) -> Path:
    bench.tell(f"making a network for images of {side}×{side}")
    keras_file, onnx_file = folder / f"{side}.keras", folder / f"{side}.onnx"
    bench.in_own_process(save_cnn, path=keras_file, side=side)
    bench.in_own_process(bench.convert, keras_file=keras_file, network=onnx_file, mean=0.0, std=1.0)
    return onnx_file


def cases(options: Any, network: Path, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What is measured, by part and amount."""
    import oip_torch as oip

    def job(maps: int, images: int, **others: Any) -> dict[str, Any]:
        usual = {"name": "within", "network": network, "steps": options.steps}
        return usual | {"maps": list(range(maps)), "starts": images // maps} | others

    every = {}
    for way in WAYS:
        every |= {(f"images-{way}", str(count)): job(min(MAPS, count), count, name=way) for count in options.images}
    every |= {("maps", str(count)): job(count, count) for count in options.maps}
    for layer in oip.load(network, device="cpu").layers:
        if options.layers is None or layer.name in options.layers:
            every["layers", layer.name] = job(min(OF_A_LAYER, layer.maps), OF_A_LAYER, layer=layer.name)
    for side in options.sides:
        every["sides", str(side)] = job(32, 32, network=converted(side, folder), steps=SIDE_STEPS)
    return every


def flatness(rows: list[dict[str, Any]], title: str) -> list[dict[str, Any]]:
    """How far apart the least and the most are over the range of images, in percent of the least."""
    targets = []
    where = f"from {rows[0]['amount']} to {rows[-1]['amount']} images, {title}, in %"
    for key, what in (("seconds_per_oip", "time per OIP"), ("peak_mb", "peak memory")):
        medians = [row[key]["median"] for row in rows]
        apart = bench.spread([100 * (max(medians) / min(medians) - 1)])
        targets.append(bench.target(f"{what}: spread {where}", 15, apart))
    return targets


def main() -> None:
    made = bench.parser(__doc__, "growth", rounds=3)
    made.add_argument("--steps", type=int, default=60, help="image-steps for each image")
    made.add_argument("--images", type=int, nargs="*", default=IMAGES)
    made.add_argument("--maps", type=int, nargs="*", default=COUNTS)
    made.add_argument("--layers", nargs="*", help="default: all of them")
    made.add_argument("--sides", type=int, nargs="*", default=SIDES)
    options = made.parse_args()
    with bench.workplace(options.network) as (folder, network):
        parts = bench.parts_of(cases(options, network, folder), options.rounds)
    ways, targets = {way: title.format(options.steps) for way, title in WAYS.items()}, []
    for way, title in ways.items():
        targets += flatness(parts[f"images-{way}"], title) if options.images else []
    titles = {f"images-{way}": f"images ({title})" for way, title in ways.items()}
    titles |= {"maps": f"maps ({ways['within']})", "layers": f"layer ({OF_A_LAYER} images)"}
    titles |= {"sides": f"side of the image (32 maps, {SIDE_STEPS} image-steps)"}
    result = {"rounds": options.rounds, "steps": options.steps, "parts": parts, "targets": targets}
    bench.write(result, options.output, f"{bench.parts_text(parts, titles)}\n\n{bench.targets_table(targets)}")


if __name__ == "__main__":
    main()
