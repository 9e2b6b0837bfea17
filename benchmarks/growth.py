"""How do time and memory grow, with images, maps, layers and the size of the image?

    python benchmarks/growth.py [--rounds 3] [-o benchmarks/results/growth.json]

Each ascent runs in a process of its own, and in each round of turns in another order. Timed is the second of two
ascents; the first takes two steps. *Memory before* is what the process holds when the network is loaded, *peak* the
most that it held from there on. The results themselves (images, snapshots, traces) are part of the growth, since the
caller gets them; *predicted* is what `ascend` said of its peak beyond what was held before.

- images: all 128 maps of Conv2D_3, with more and more starts;
- maps: one start of more and more maps of Conv2D_3;
- layers: 64 images of each layer of the network;
- sides: 32 maps of the third convolution of networks built like the shipped one, with random weights, for images of
  more and more pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench_tools import (
    described,
    in_own_process,
    markdown,
    number,
    parser,
    span,
    spread,
    target,
    targets_table,
    tell,
    timed_ascent,
    turns,
    workplace,
    write,
)

LAYER, MAPS, STEPS, SIDE_STEPS = "Conv2D_3", 128, 60, 30
IMAGES = (128, 256, 512, 1024, 2048, 4096)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
SIDES = (28, 56, 112, 224)
WAYS = {"within": "{} image-steps, search included", "article": "the article's settings, {} steps"}
OF_A_LAYER = 64  # images


def save_cnn(path: str, side: int) -> dict[str, Any]:
    """The shipped network's convolutions and poolings for larger images, untrained. Runs on TensorFlow."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    keras.Sequential(
        [
            keras.Input((side, side, 1)),
            layers.Conv2D(32, 3, activation="relu", name="Conv2D_1"),
            layers.MaxPooling2D(2, name="Max_Pool_1"),
            layers.Conv2D(64, 3, activation="relu", name="Conv2D_2"),
            layers.MaxPooling2D(2, name="Max_Pool_2"),
            layers.Conv2D(128, 3, activation="relu", name="Conv2D_3"),
            layers.GlobalAveragePooling2D(name="Mean"),
            layers.Dense(10, activation="softmax", name="Dense"),
        ]
    ).save(path)
    return {}


def converted(side: int, folder: Path) -> Path:
    import oip_torch as oip

    tell(f"making a network for images of {side}×{side}")
    keras_file, onnx_file = folder / f"{side}.keras", folder / f"{side}.onnx"
    in_own_process(save_cnn, path=keras_file, side=side)
    oip.convert(keras_file, onnx_file, mean=0.0, std=1.0, device="cpu", progress=False)
    return onnx_file


def cases(options: Any, network: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What is measured, by "part amount": the arguments of `timed_ascent`."""
    import oip_torch as oip

    every: dict[str, dict[str, Any]] = {}
    usual = {"onnx_file": network, "layer": LAYER, "way": "within", "steps": options.steps}
    for way in WAYS:
        for images in options.images:
            maps = min(MAPS, images)
            every[f"images-{way} {images}"] = usual | {"maps": list(range(maps)), "starts": images // maps, "way": way}
    for count in options.maps:
        every[f"maps {count}"] = usual | {"maps": list(range(count)), "starts": 1}
    for layer in oip.load(network, device="cpu").layers:
        if options.layers is None or layer.name in options.layers:
            maps = min(OF_A_LAYER, layer.maps)
            job = {"layer": layer.name, "maps": list(range(maps)), "starts": OF_A_LAYER // maps}
            every[f"layers {layer.name}"] = usual | job
    for side in options.sides:
        job = {"onnx_file": converted(side, folder), "maps": list(range(32)), "starts": 1, "steps": SIDE_STEPS}
        every[f"sides {side}"] = usual | job
    return every


def summary(done: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """By part, the amounts in their order, each with medians over the rounds."""
    parts: dict[str, Any] = {}
    for name, turns_ in done.items():
        part, amount = name.split()
        row: dict[str, Any] = {"amount": int(amount) if amount.isdigit() else amount, "images": turns_[0]["images"]}
        for key in ("seconds", "microseconds", "before_mb", "peak_mb", "predicted_mb", "result_mb"):
            row[key] = None if turns_[0][key] is None else spread([turn[key] for turn in turns_])
        row["seconds_per_oip"] = spread([turn["seconds"] / turn["images"] for turn in turns_])
        row["grown_mb"] = spread([turn["peak_mb"] - turn["before_mb"] for turn in turns_])
        parts.setdefault(part, []).append(row)
    return parts


def flatness(parts: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """How far apart the least and the most are over the range of images, in percent of the least."""
    targets = []
    for way, title in WAYS.items():
        rows = parts.get(f"images-{way}", [])
        if len(rows) < 2:
            continue
        where = f"from {rows[0]['amount']} to {rows[-1]['amount']} images, {title.format(steps)}, in %"
        for key, what in (("seconds_per_oip", "time per OIP"), ("peak_mb", "peak memory")):
            medians = [row[key]["median"] for row in rows]
            apart = 100 * (max(medians) / min(medians) - 1)
            targets.append(target(f"{what}: spread {where}", 15, spread([apart])))
    return targets


def text(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    steps = result["steps"]
    titles = {f"images-{way}": f"images ({title.format(steps)})" for way, title in WAYS.items()}
    titles |= {"maps": f"maps ({WAYS['within'].format(steps)})", "layers": f"layer ({OF_A_LAYER} images)"}
    titles |= {"sides": f"side of the image (32 maps, {SIDE_STEPS} image-steps)"}
    head = [
        *("s", "ms per OIP", "µs per image-step (least to most)", "memory before, MB", "peak, MB"),
        *("grown, MB", "predicted, MB", "of it the results, MB"),
    ]
    blocks = [described(), f"Medians of {result['rounds']} rounds."]
    for part, rows in result["parts"].items():
        cells = []
        for row in rows:
            memory = [row[key] and row[key]["median"] for key in ("before_mb", "peak_mb", "grown_mb", "predicted_mb")]
            times = [number(row["seconds"]["median"]), number(row["seconds_per_oip"]["median"] * 1e3)]
            memory.append(row["result_mb"]["median"])
            cells.append([row["amount"], *times, span(row["microseconds"]), *map(number, memory)])
        blocks.append(markdown([titles[part], *head], cells))
    if result["targets"]:
        blocks.append(targets_table(result["targets"]))
    return "\n\n".join(blocks)


def main() -> None:
    made = parser(__doc__, "growth", rounds=3)
    made.add_argument("--steps", type=int, default=STEPS, help="image-steps for each image")
    made.add_argument("--images", type=int, nargs="*", default=IMAGES)
    made.add_argument("--maps", type=int, nargs="*", default=COUNTS)
    made.add_argument("--layers", nargs="*", help="default: all of them")
    made.add_argument("--sides", type=int, nargs="*", default=SIDES)
    options = made.parse_args()
    with workplace(options.network) as (folder, network):
        jobs = cases(options, network, folder)
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for name in turns(list(jobs), options.rounds):
            done[name].append(in_own_process(timed_ascent, **jobs[name]))
    parts = summary(done)
    result = {
        "rounds": options.rounds,
        "steps": options.steps,
        "parts": parts,
        "targets": flatness(parts, options.steps),
    }
    write(result, options.output, text(result))


if __name__ == "__main__":
    main()
