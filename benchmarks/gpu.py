"""What does a graphics card do?

    python benchmarks/gpu.py [-o benchmarks/results/gpu-NAME.json]
    python benchmarks/gpu.py --device cpu --small      # whether the script runs, where there is no card

Needs a card that CUDA runs on; without one it says so, and that is all. Measured are the whole network with 64 starts
of each map, images per second over the size of the batch beside the card's own ceiling (a matrix product and a copy, in
float32 and TF32), memory beside what was predicted, and the loops beside a plain one. Timed is the second of two runs.
Whether the card finds the same as the CPU is told by `oip compare`.

Operations are those that the ascent needs (as in speed.py), and the share is that of the matrix product in the same
precision. *Grown* is what torch took on the card at most, beyond what it had before.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bench_tools as bench
import numpy as np
from bench_tools import LAYER, LOOPS, MAPS

BASIS = {False: "float32", True: "TF32"}
SIZES: dict[str, Any] = {
    "starts": 64,
    "budgets": (80, 600),
    "batches": (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "batch_steps": 50,
    "loop_images": 1024,
    "loop_steps": 600,
    "ceiling": {"side": 8192, "floats": 1 << 28},
}
SMALL = {"starts": 1, "budgets": (2,), "batches": (128,), "batch_steps": 3, "loop_images": 128, "loop_steps": 3}
SMALL |= {"ceiling": {"side": 256, "floats": 1 << 20}}
TIMES = {"images": "images", "seconds": "s", "image_steps": "image-steps", "microseconds": "µs per image-step"}
MEMORY = {"grown_mb": "grown, MB", "predicted_mb": "predicted, MB"}


def measure(device: str, sizes: dict[str, Any], network: Path, folder: Path) -> dict[str, Any]:
    """The rows of the tables; each ascent in this process, one after the other."""
    import oip_torch as oip

    model, usual = oip.load(network, device="cpu"), {"network": str(network), "device": device}
    flops = bench.counted(str(network), LAYER, needed=True)
    tops = {basis: bench.ceiling(device, tf32=tf32, **sizes["ceiling"]) for tf32, basis in BASIS.items()}
    whole, batches, loops = [], [], []
    for budget in sizes["budgets"]:
        for layer in (layer for layer in model.layers if (layer.height or 1) > 1):
            bench.tell(f"{layer.name}, {budget} image-steps")
            found = bench.turn("within", **usual, layer=layer.name, steps=budget, starts=sizes["starts"])
            whole.append({"budget": budget, "layer": layer.name, "maps": layer.maps} | found)
    for tf32, basis in BASIS.items():
        for size in sizes["batches"]:
            bench.tell(f"batches of {size}, {basis}")
            job = {"steps": sizes["batch_steps"], "starts": size // MAPS, "batch_size": size, "tf32": tf32}
            row = {"batch": size, "precision": basis} | bench.turn("article", **usual, **job)
            rate = flops / row["microseconds"] / 1e3
            row |= {"gflops": rate, "share_of_ceiling": rate / tops[basis]["gflops"]}
            batches.append(row | {"images_per_second": size / row["seconds"]})
    bench.tell("loops")
    keys = [(index, start) for index in range(MAPS) for start in range(sizes["loop_images"] // MAPS)]
    np.save(folder / "starts.npy", oip.start_images(model.input_shape, keys, layer=LAYER).permute(0, 2, 3, 1).numpy())
    ours = {"name": "article", "starts": sizes["loop_images"] // MAPS}
    for title, job in {
        LOOPS["plain"]: {"name": "plain", "maps": [key[0] for key in keys], "starts": str(folder / "starts.npy")},
        "oip.ascend, the article's settings": ours,
        "the same, an image leaves when it has converged": ours | {"stop": "converged"},
    }.items():
        loops.append({"title": title} | bench.turn(**usual, **job, steps=sizes["loop_steps"]))
    measured = {"ceiling": tops, "whole_network": whole, "over_batches": batches, "loops": loops}
    return sizes | {"needed_mflop_per_image_step": flops / 1e6, "product_side": sizes["ceiling"]["side"]} | measured


def text(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    whole = []
    for budget in result["budgets"]:
        of = [row for row in result["whole_network"] if row["budget"] == budget]
        total = {key: sum(row[key] for row in of) for key in ("maps", "alive", "images", "seconds", "image_steps")}
        total |= {"layer": "**all**", "microseconds": total["seconds"] / total["image_steps"] * 1e6}
        whole += [row | {"budget": budget, "alive": f"{row['alive']} of {row['maps']}"} for row in (*of, total)]
    tops = [{"basis": basis} | top for basis, top in result["ceiling"].items()]
    product = f"GFLOP/s of a {result['product_side']}³ matrix product"
    rates = {"images_per_second": "images/s", "gflops": "GFLOP/s", "share_of_ceiling": "of the ceiling"}
    cuda = f", CUDA {result['cuda']}" if result["cuda"] else ""
    needed = f"{result['needed_mflop_per_image_step']:.1f} MFLOP an image-step"
    return "\n\n".join(
        [
            f"Device: {result['device']}{cuda}. Needed: {needed}.",
            bench.table(tops, {"basis": "ceiling", "gflops": product, "copy_gb": "GB/s of a copy"}),
            f"The whole network, {result['starts']} starts of each map:",
            bench.table(whole, {"budget": "budget", "layer": "layer", **TIMES, "alive": "maps alive", **MEMORY}),
            f"{LAYER}, the article's settings, {result['batch_steps']} steps:",
            bench.table(
                result["over_batches"], {"precision": "precision", "batch": "batch", **rates, **TIMES, **MEMORY}
            ),
            f"{result['loop_images']} images of {LAYER}, {result['loop_steps']} steps:",
            bench.table(result["loops"], {"title": "loop", **TIMES}),
        ]
    )


def main() -> None:
    made = bench.parser(__doc__, "gpu")
    made.set_defaults(output=None)
    made.add_argument("--device", default="cuda")
    made.add_argument("--small", action="store_true", help="tiny sizes; the figures mean nothing")
    options = made.parse_args()
    import torch

    on_card, output = options.device == "cuda", options.output
    if on_card and not torch.cuda.is_available():
        print("no GPU: torch finds no card that CUDA runs on here, so nothing is measured on one\n")
        return
    device = torch.cuda.get_device_name() if on_card else bench.machine()["processor"]
    with bench.workplace(options.network) as (folder, network):
        result = measure(options.device, SIZES | (SMALL if options.small else {}), network, folder)
    result = {"device": device, "cuda": torch.version.cuda if on_card else None} | result
    if output is None and on_card and not options.small:
        slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        output = bench.ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    bench.write(result, output, text(result))


if __name__ == "__main__":
    main()
