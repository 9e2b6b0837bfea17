"""What does a graphics card do?

    python benchmarks/gpu.py [-o benchmarks/results/gpu-NAME.json]
    python benchmarks/gpu.py --device cpu --small      # whether the script runs, where there is no card

Needs a card that CUDA runs on; without one it says so, and that is all. Measured are the whole network with 64 starts
of each map, images per second over the size of the batch beside the card's own ceiling (a matrix product and a copy, in
float32 and TF32), memory beside what was predicted, the loops beside a plain one, and whether the card finds the same
as the CPU. Each ascent is the second of two, of which the first takes two steps.

Operations are those that the ascent needs (as in speed.py), and the share is that of the matrix product in the same
precision. *Grown* is what torch took on the card at most, beyond what it had before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_tools import (
    KERAS,
    LOOPS,
    ROOT,
    ceiling,
    chosen,
    described,
    machine,
    markdown,
    measured,
    needed_flops,
    number,
    parser,
    tell,
    timed_loop,
    workplace,
    write,
)

if TYPE_CHECKING:
    import oip_torch as oip

LAYER, MAPS = "Conv2D_3", 128
BASIS = {False: "float32", True: "TF32"}
MEMORY = ("grown, MB", "predicted, MB")


@dataclass(frozen=True)
class Sizes:
    starts: int = 64
    budgets: tuple[int, ...] = (80, 600)
    batches: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    batch_steps: int = 50
    loop_images: int = 1024
    loop_steps: int = 600
    same_steps: int = 20
    side: int = 8192  # of the matrix product
    floats: int = 1 << 28  # of the copy


SMALL = Sizes(
    starts=1, budgets=(2,), batches=(128,), batch_steps=3, loop_images=128, loop_steps=3, side=256, floats=1 << 20
)


def whole_network(model: oip.FeatureModel, sizes: Sizes) -> list[dict[str, Any]]:
    """Every layer with maps, so many starts of each, for each budget of image-steps."""
    rows = []
    for budget in sizes.budgets:
        for layer in model.layers:
            if (layer.height or 1) > 1:
                tell(f"{layer.name}, {budget} image-steps")
                figures, oips = measured(model, layer.name, chosen("within", budget), starts=sizes.starts)
                alive = int((oips.best().scores > 0).sum())
                rows.append({"budget": budget, "layer": layer.name, "maps": layer.maps, "alive": alive} | figures)
    return rows


def over_batches(model: oip.FeatureModel, sizes: Sizes, tops: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Images per second over the size of the batch, the article's settings."""
    flops, rows = needed_flops(model, LAYER), []
    for tf32, basis in BASIS.items():
        for size in sizes.batches:
            tell(f"batches of {size}, {basis}")
            settings = chosen("article", sizes.batch_steps, tf32=tf32)
            figures, _ = measured(model, LAYER, settings, starts=size // MAPS, batch_size=size)
            rate = flops / figures["microseconds"] / 1e3
            rows.append(
                {"batch": size, "precision": basis, "images_per_second": size / figures["seconds"], "gflops": rate}
                | {"share_of_ceiling": rate / tops[basis]["gflops"]}
                | figures
            )
    return rows


def loops(model: oip.FeatureModel, sizes: Sizes, network: Path, folder: Path) -> list[dict[str, Any]]:
    """The article's ascent by a plain loop, by ours, and with images that leave the batch when they have converged."""
    import oip_torch as oip

    starts, images = sizes.loop_images // MAPS, folder / "starts.npy"
    keys = [(index, start) for index in range(MAPS) for start in range(starts)]
    np.save(images, oip.start_images(model.input_shape, keys, layer=LAYER).numpy().transpose(0, 2, 3, 1))
    tell("loops")
    job = {"layer": LAYER, "maps": [key[0] for key in keys], "steps": sizes.loop_steps}
    files = {"keras_file": str(KERAS), "onnx_file": str(network), "starts": str(images)}
    rows = [{"title": LOOPS["plain"]} | timed_loop("plain", **files, **job, device=model.device.type)]
    for title, changes in (
        ("oip.ascend, the article's settings", {}),
        ("the same, an image leaves when it has converged", {"stop": "converged"}),
    ):
        figures, _ = measured(model, LAYER, chosen("article", sizes.loop_steps, **changes), starts=starts)
        rows.append({"title": title} | figures)
    return rows


def sameness(model: oip.FeatureModel, sizes: Sizes, network: Path) -> list[dict[str, Any]]:
    """How far the card's results are from the CPU's, after a few steps from the same starts."""
    import oip_torch as oip

    tell("beside the CPU")
    settings = chosen("article", sizes.same_steps)
    reference = oip.ascend(oip.load(network, device="cpu"), LAYER, settings=settings, progress=False)
    live, rows = reference.scores > 0, []
    for tf32, basis in BASIS.items():
        settings = chosen("article", sizes.same_steps, tf32=tf32)
        oips = oip.ascend(model, LAYER, settings=settings, progress=False)
        relative = np.abs(oips.scores - reference.scores)[live] / reference.scores[live]
        rows.append(
            {
                "precision": basis,
                "steps": sizes.same_steps,
                "maps": int(live.sum()),
                "max_relative_score": float(relative.max()),
                "median_relative_score": float(np.median(relative)),
                "max_image": float(np.abs(oips.images - reference.images).max()),
                "alive_in_one_alone": int(((oips.scores > 0) != live).sum()),
            }
        )
    return rows


def measure(device: str, sizes: Sizes, network: Path, folder: Path) -> dict[str, Any]:
    import torch

    import oip_torch as oip

    model = oip.load(network, device=device)
    tell("the ceiling")
    tops = {basis: ceiling(device, sizes.side, sizes.floats, tf32) for tf32, basis in BASIS.items()}
    on_card = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(model.device) if on_card else machine()["processor"],
        "cuda": torch.version.cuda if on_card else None,
        "needed_mflop_per_image_step": needed_flops(model, LAYER) / 1e6,
        "product_side": sizes.side,
        "ceiling": tops,
        "batch_steps": sizes.batch_steps,
        "starts": sizes.starts,
        "loop_images": sizes.loop_images,
        "loop_steps": sizes.loop_steps,
        "whole_network": whole_network(model, sizes),
        "over_batches": over_batches(model, sizes, tops),
        "loops": loops(model, sizes, network, folder),
        "beside_the_cpu": sameness(model, sizes, network),
    }


def memory_cells(row: dict[str, Any]) -> list[str]:
    return [number(row["peak_mb"] - row["before_mb"]), number(row["predicted_mb"])]


def text(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    blocks = [f"Device: {result['device']}" + (f", CUDA {result['cuda']}." if result["cuda"] else "."), described()]
    side = result["product_side"]
    blocks += [
        f"Needed: {result['needed_mflop_per_image_step']:.1f} MFLOP an image-step of {LAYER}.",
        markdown(
            ["ceiling", f"GFLOP/s of a {side}³ matrix product", "GB/s of a copy"],
            [[basis, number(top["gflops"]), number(top["copy_gb"])] for basis, top in result["ceiling"].items()],
        ),
    ]
    for title, table in (
        (f"The whole network, {result['starts']} starts of each map:", whole_network_table(result)),
        (f"{LAYER}, the article's settings, {result['batch_steps']} steps:", batches_table(result)),
        (f"{result['loop_images']} images of {LAYER}, {result['loop_steps']} steps:", loops_table(result)),
        ("Beside the CPU, from the same starts; pixels have deviation 1:", sameness_table(result)),
    ):
        blocks += [title, table]
    return "\n\n".join(blocks)


def whole_network_table(result: dict[str, Any]) -> str:
    rows = []
    for budget in dict.fromkeys(row["budget"] for row in result["whole_network"]):
        of = [row for row in result["whole_network"] if row["budget"] == budget]
        total = {key: sum(row[key] for row in of) for key in ("maps", "alive", "images", "seconds", "image_steps")}
        total["microseconds"] = total["seconds"] / total["image_steps"] * 1e6
        for row in (*of, {"layer": "**all**"} | total):
            times = number(row["seconds"]), number(row["microseconds"])
            memory = memory_cells(row) if "peak_mb" in row else ["", ""]
            rows.append([budget, row["layer"], row["images"], *times, f"{row['alive']} of {row['maps']}", *memory])
    return markdown(["image-steps", "layer", "images", "s", "µs per image-step", "maps alive", *MEMORY], rows)


def batches_table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["over_batches"]:
        times = [number(row[key]) for key in ("images_per_second", "microseconds", "gflops")]
        rows.append([row["precision"], row["batch"], *times, f"{row['share_of_ceiling']:.1%}", *memory_cells(row)])
    head = ["precision", "batch", "images/s", "µs per image-step", "GFLOP/s", "of the ceiling", *MEMORY]
    return markdown(head, rows)


def loops_table(result: dict[str, Any]) -> str:
    rows = [
        [row["title"], number(row["seconds"]), row["image_steps"], number(row["microseconds"])]
        for row in result["loops"]
    ]
    return markdown(["loop", "s", "image-steps", "µs per image-step"], rows)


def sameness_table(result: dict[str, Any]) -> str:
    rows = []
    for row in result["beside_the_cpu"]:
        apart = [f"{row[key]:.1e}" for key in ("max_relative_score", "median_relative_score", "max_image")]
        rows.append([row["precision"], row["steps"], row["maps"], *apart, row["alive_in_one_alone"]])
    scores = "relative difference of the scores, most", "median"
    return markdown(["precision", "steps", "maps", *scores, "of pixels, most", "alive in one alone"], rows)


def main() -> None:
    made = parser(__doc__, "gpu")
    made.set_defaults(output=None)
    made.add_argument("--device", default="cuda")
    made.add_argument("--small", action="store_true", help="tiny sizes; the figures mean nothing")
    options = made.parse_args()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch finds no card that CUDA runs on here, so nothing is measured on one\n")
        return
    with workplace(options.network) as (folder, network):
        result = measure(options.device, SMALL if options.small else Sizes(), network, folder)
    output = options.output
    if output is None and options.device == "cuda" and not options.small:
        slug = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
        output = ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    write(result, output, text(result))


if __name__ == "__main__":
    main()
