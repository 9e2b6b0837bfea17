"""Is the package of this checkout slower than that of another one?

    python benchmarks/against.py PATH_TO_OTHER_SRC [--rounds 5]
    make bench BENCH="--only speed --without-rivals --against PATH_TO_OTHER_SRC"

All 128 maps of Conv2D_3 by the article's settings and by the default, from both source trees, each in a process of its
own, taking turns; every other round runs backwards. The ratio of times is taken within a round; that of the processor's
time suffers less where other programs run beside. Only names are used that are public in both trees. The same images to
the bit are the same work; where they differ, times do not compare alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import bench_tools as bench
import numpy as np
from bench_tools import LAYER, MAPS

WAYS = {"article": "the article's settings", "within": "the default, search included"}


def turn(source: str, network: str, way: str, steps: int, images: str) -> dict[str, list[float]]:
    """Seconds of ascents by the package in a source tree, by clock and of processor; `images` receives the images."""
    import oip_torch as oip

    if Path(oip.__file__).parents[1] != Path(source):
        raise RuntimeError(f"the package was to come from {source}, and came from {oip.__file__}")
    model, make = oip.load(network, device="cpu"), oip.AscentSettings
    settings, spent = make.article(steps=steps) if way == "article" else make.within(steps), []

    def run() -> None:
        began = time.process_time()
        np.save(images, oip.ascend(model, LAYER, settings=settings, progress=False).images)
        spent.append(time.process_time() - began)

    seconds = bench.times(run)
    return {"seconds": seconds, "processor": spent[-len(seconds) :]}


def main() -> None:
    made = bench.parser(__doc__, "against", rounds=5)
    made.add_argument("source", type=Path, metavar="PATH_TO_OTHER_SRC", help="the folder that holds its oip_torch")
    made.add_argument("--steps", type=int, default=600)
    options = made.parse_args()
    trees = {"this": bench.ROOT / "src", "other": options.source.resolve()}
    if not (trees["other"] / "oip_torch" / "__init__.py").is_file():
        made.error(f"{options.source} holds no oip_torch: give the src folder of a checkout")
    import torch
    from torch.utils.benchmark import Compare, Measurement
    from torch.utils.benchmark.utils.common import TaskSpec

    done: dict[tuple[str, str], list[Measurement]] = {(way, tree): [] for way in WAYS for tree in trees}
    processor: dict[tuple[str, str], list[float]] = {case: [] for case in done}
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        networks = dict.fromkeys(trees, options.network)
        for tree, source in trees.items() if options.network is None else ():
            networks[tree] = f"{folder}/{tree}.onnx"  # each converts it for itself: what the file says may have changed
            bench.in_own_process(bench.convert, package=source, keras_file=bench.KERAS, network=networks[tree])
        for way, tree in bench.turns(list(done), options.rounds):
            job = {"source": trees[tree], "network": networks[tree], "images": f"{folder}/{way}-{tree}.npy"}
            found = bench.in_own_process(turn, package=trees[tree], way=way, steps=options.steps, **job)
            names = {"label": f"{MAPS} maps of {LAYER}", "sub_label": WAYS[way], "description": tree}
            task = TaskSpec("oip.ascend", "", **names, num_threads=torch.get_num_threads())
            done[way, tree].append(Measurement(1, found["seconds"], task))
            processor[way, tree].append(float(np.median(found["processor"])))
        apart = {way: float(np.ptp([np.load(f"{folder}/{way}-{tree}.npy") for tree in trees], 0).max()) for way in WAYS}
    rows: dict[str, Any] = {}
    for way, title in WAYS.items():
        this, other = ([found.median for found in done[way, tree]] for tree in trees)
        rows[way] = {"title": title, "ratio": bench.ratios(this, other), "pixels_apart": apart[way]}
        rows[way] |= {"this_seconds": bench.spread(this), "other_seconds": bench.spread(other)}
        rows[way]["processor"] = bench.ratios(processor[way, "this"], processor[way, "other"])
        rows[way]["same"] = "yes" if apart[way] == 0 else f"no, up to {apart[way]:.1e} of a deviation apart"
    columns = {"title": "", "ratio": "time of this over the other's: median (least to most)"}
    columns |= {"processor": "processor's time, likewise (least to most)", "same": "the same images"}
    every = Compare([found for each in done.values() for found in each])
    result = {"rounds": options.rounds, "steps": options.steps, "ways": rows}
    bench.write(result, options.output, f"{str(every).strip()}\n\n{bench.table(rows.values(), columns)}")


if __name__ == "__main__":
    main()
