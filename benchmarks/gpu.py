"""What does a graphics card do?

    python benchmarks/gpu.py [-o benchmarks/results/gpu-NAME.json]
    python benchmarks/gpu.py --device cpu --small      # whether the script runs, where there is no card

Needs a card that CUDA runs on; without one it says so, and that is all. Measured are the whole network with 64 starts
of each map, images per second over the size of the batch beside the card's own ceiling (a matrix product and a copy, in
float32 and TF32), memory beside what was predicted, and the loops beside a plain one. Timed is the second of two runs.
Whether the card finds the same as the CPU is told by `oip compare`.

Operations are those that the ascent needs (as in speed.py), and the share is that of the matrix product in the same
precision. *Grown* is what torch took on the card at most, beyond what it had before.

`steps` is one step in four ways: told its rates by the host, as `oip.ascend` is; with the rates of all steps on the
device; recorded once as a CUDA graph and played; compiled with `mode="reduce-overhead"`. The last two need a card.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
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
    "step_images": 1024,
    "ceiling": {"side": 8192, "floats": 1 << 28},
}
SMALL = {
    "starts": 1,
    "budgets": (2,),
    "batches": (128,),
    "batch_steps": 3,
    "loop_images": 128,
    "loop_steps": 3,
    "step_images": 128,
}
SMALL |= {"ceiling": {"side": 256, "floats": 1 << 20}}


def cases(device: str, sizes: dict[str, Any], network: Path, starts: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What is measured, by part and title."""
    import oip_torch as oip

    model, every = oip.load(network, device="cpu"), {}
    for budget in sizes["budgets"]:
        for layer in (layer for layer in model.layers if (layer.height or 1) > 1):
            job = {"name": "within", "layer": layer.name, "steps": budget, "starts": sizes["starts"]}
            every["whole_network", f"{layer.name}, {budget}"] = job
    for tf32, basis in BASIS.items():
        for size in sizes["batches"]:
            job = {"name": "article", "steps": sizes["batch_steps"], "starts": size // MAPS, "batch_size": size}
            every["over_batches", f"{basis}, {size}"] = job | {"changes": {"tf32": tf32}}
    keys = [(index, start) for index in range(MAPS) for start in range(sizes["loop_images"] // MAPS)]
    np.save(starts, oip.start_images(model.input_shape, keys, layer=LAYER).permute(0, 2, 3, 1).numpy())
    ours = {"name": "article", "starts": sizes["loop_images"] // MAPS, "steps": sizes["loop_steps"]}
    plain = {"name": "plain", "maps": [key[0] for key in keys], "starts": starts}
    every["loops", LOOPS["plain"]] = ours | plain
    every["loops", "oip.ascend, the article's settings"] = ours
    every["loops", "the same, an image leaves when it has converged"] = ours | {"changes": {"stop": "converged"}}
    return {case: {"network": network, "device": device} | job for case, job in every.items()}


def steps(network: Path, device: str, images: int, count: int) -> list[dict[str, Any]]:
    """So many steps of one batch, by each way of doing a step; what comes of them beside the first way's."""
    import torch

    import oip_torch as oip
    from oip_torch.optim import loop
    from oip_torch.optim.loop import State
    from oip_torch.optim.objectives import map_mean
    from oip_torch.optim.schedule import Schedule
    from oip_torch.search.target import target_of

    model, schedule = oip.load(network, device=device), Schedule(steps=count)
    score = target_of(model, LAYER, False, map_mean, oip.AscentSettings(schedule=schedule)).score
    keys = [(index % MAPS, index // MAPS) for index in range(images)]
    x = oip.start_images(model.input_shape, keys, layer=LAYER).to(device)
    start = State.start(x, torch.tensor([key[0] for key in keys], device=device))
    traces = x.new_empty(images, count)

    def by_host() -> torch.Tensor:
        state = start.keep(torch.ones_like(start.rows, dtype=torch.bool))
        for t in range(count):
            loop.step(score, state, t, schedule.at(t), lambda scores, t=t: traces[:, t].copy_(scores))
        return state.x

    rates, at = schedule.rates(device), torch.zeros((), dtype=torch.long, device=device)
    fixed = start.keep(torch.ones_like(start.rows, dtype=torch.bool))

    def one() -> None:
        held = fixed.x
        epsilon, leak, momentum = rates.index_select(0, at.view(1)).view(3).unbind()
        loop.step(
            score, fixed, at, (epsilon, leak, momentum), lambda scores: traces.index_put_((fixed.rows, at), scores)
        )
        held.copy_(fixed.x)  # the place that the next one reads
        fixed.x = held
        at.add_(1)

    def again(step: Callable[[], object]) -> torch.Tensor:
        fixed.x.copy_(x)
        fixed.velocity.zero_()
        at.zero_()
        for _ in range(count):
            step()
        return fixed.x.clone()

    ways: dict[str, Callable[[], torch.Tensor]] = {"rates from the host": by_host, "rates there": lambda: again(one)}
    if device == "cuda":
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what libraries choose and allocate at first is no part of the recording
            again(one)
        torch.cuda.current_stream().wait_stream(aside)
        at.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one()
        compiled = torch.compile(one, mode="reduce-overhead")
        ways |= {"recorded and played": lambda: again(graph.replay), "compiled": lambda: again(compiled)}
    expected, rows = by_host(), []
    for way, run in ways.items():
        run()
        finish = torch.cuda.synchronize if device == "cuda" else lambda: None
        finish()
        began = time.perf_counter()
        images_made = run()
        finish()
        seconds = time.perf_counter() - began
        difference = float((images_made - expected).abs().max())
        rows.append({"way": way, "microseconds": 1e6 * seconds / count / images, "difference": difference})
    return rows


def main() -> None:
    made = bench.parser(__doc__, "gpu")
    made.set_defaults(output=None)
    made.add_argument("--device", default="cuda")
    made.add_argument("--small", action="store_true", help="tiny sizes; the figures mean nothing")
    options = made.parse_args()
    import torch

    on_card, sizes, tops = options.device == "cuda", SIZES | (SMALL if options.small else {}), {}
    if on_card and not torch.cuda.is_available():
        print("no GPU: torch finds no card that CUDA runs on here, so nothing is measured on one\n")
        return
    device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if on_card else bench.machine()["processor"]
    with bench.workplace(options.network) as (folder, network):
        for tf32, basis in BASIS.items():
            tops[basis] = bench.ceiling(options.device, tf32=tf32, **sizes["ceiling"])
        flops = bench.counted(network, LAYER, needed=True)
        ways = steps(network, options.device, sizes["step_images"], sizes["batch_steps"])
        parts = bench.parts_of(cases(options.device, sizes, network, folder / "starts.npy"), rounds=1, here=True)
    for row in parts["over_batches"]:
        rate = flops / row["microseconds"]["median"] / 1e3
        row |= {"gflops": rate, "share_of_ceiling": rate / tops[row["amount"].split(",")[0]]["gflops"]}
    for row in (row for rows in parts.values() for row in rows):
        row["images_per_second"] = row["images"] / row["seconds"]["median"]
    result = {
        "device": device,
        "needed_mflop_per_image_step": flops / 1e6,
        "ceilings": tops,
        **sizes,
        **parts,
        "steps": ways,
    }
    titles = {"whole_network": f"layer, image-steps ({sizes['starts']} starts of each map)"}
    titles |= {"over_batches": f"precision, batch ({LAYER}, the article's settings, {sizes['batch_steps']} steps)"}
    titles |= {"loops": f"loop ({sizes['loop_images']} images of {LAYER}, {sizes['loop_steps']} steps)"}
    more = {"images_per_second": "images/s", "gflops": "GFLOP/s", "share_of_ceiling": "of the ceiling"}
    product = f"GFLOP/s of a {sizes['ceiling']['side']}³ matrix product"
    rows = [{"basis": basis} | top for basis, top in tops.items()]
    ceilings = bench.table(rows, {"basis": "ceiling", "gflops": product, "copy_gb": "GB/s of a copy"})
    text = f"Device: {device}. Needed: {flops / 1e6:.1f} MFLOP an image-step of {LAYER}.\n\n{ceilings}"
    of_step = {"way": f"a step of {sizes['step_images']} images of {LAYER}", "microseconds": "µs an image"}
    text += f"\n\n{bench.table(ways, of_step | {'difference': 'largest difference of a pixel'})}"
    output = options.output
    if output is None and on_card and not options.small:
        slug = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        output = bench.ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    bench.write(result, output, f"{text}\n\n{bench.parts_text(parts, titles, **more, alive='maps alive')}")


if __name__ == "__main__":
    main()
