"""How fast is an atlas made: by one and two Ray workers, and of larger networks? What does writing a part of it take?

    python benchmarks/atlas.py [--rounds 3] [-o benchmarks/results/atlas.json] [--only workers writing networks]

Every turn is a process of its own. It is to be run on a machine that does nothing else.

- workers: eight parts of 32 images of Conv2D_3 of the shipped network, by one Ray worker and by two, of one thread each,
  on a cluster of this machine. They take turns, and the ratio is of each round's two. Before the clock starts the
  cluster is up, and each worker has done a part. Nothing is written.
- writing: one part (a cell of 32 maps with one start) is written into a local folder, its digest included.
- networks: a few maps of three layers of torchvision's networks with random weights, as an atlas, by the local engine
  with one thread; image-steps per second of the ascents alone, and the most memory that the process held.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bench_tools as bench

PARTS, CELL, ASKED = 8, 32, 1.6
NETWORKS = {  # three layers of each, from early to late
    "resnet50": ("layer1.2.conv2", "layer2.3.conv2", "layer4.2.conv2"),
    "convnext_tiny": ("features.1.2.block.0", "features.3.2.block.0", "features.7.2.block.0"),
}
COLUMNS = {
    "workers": {"title": "", "seconds": "s", "rate": "image-steps per s: median (least to most)"},
    "writing": {"title": "", "seconds": "s: median (least to most)", "files": "files", "megabytes": "MB"},
    "networks": {
        "title": "",
        "side": "pixels",
        "images": "images",
        "rate": "image-steps per s and core: median (least to most)",
        "peak_mb": "peak memory, MB",
        "before_mb": "before, MB",
    },
}


def jobs_of(model: Any, parts: int, steps: int) -> list[Any]:
    import oip_torch as oip
    from oip_torch.atlas.job import Job

    cells = bench.MAPS // CELL
    return [
        Job(
            fingerprint=model.fingerprint,
            layer=bench.LAYER,
            maps=tuple(range(part % cells * CELL, (part % cells + 1) * CELL)),
            starts=(part // cells,),
            batch=CELL,
            settings=oip.AscentSettings.within(steps),
            seed=0,
        )
        for part in range(parts)
    ]


def by_ray(network: str, workers: int, steps: int) -> dict[str, float]:
    """A turn: all parts, by so many workers."""
    import torch

    import oip_torch as oip
    from oip_torch.atlas.job import Made
    from oip_torch.atlas.ray_engine import ray_engine, session

    torch.set_num_threads(workers)  # what a cluster is sized by
    model = oip.load(network, device="cpu")

    def work(jobs: Iterable[Any]) -> int:
        made = [outcome for _, outcome in ray_engine()(model, iter(jobs), lambda count: None)]
        assert all(isinstance(each, Made) for each in made)
        return sum(oips.provenance.image_steps for each in made for oips in each.cells)

    with session(None):
        work(jobs_of(model, 2 * workers, 20))
        began = time.perf_counter()
        done = work(jobs_of(model, PARTS, steps))
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "rate": done / seconds}


def writing(network: str) -> dict[str, float]:
    """A turn: how long it takes until a part lies in the folder; the median of ten."""
    import numpy as np

    import oip_torch as oip
    from oip_torch.atlas import making
    from oip_torch.atlas.atlas import group_of
    from oip_torch.atlas.job import run
    from oip_torch.atlas.store import Store

    model = oip.load(network, device="cpu")
    (job,) = jobs_of(model, 1, 600)
    settings = oip.AscentSettings()
    made = run(dataclasses.replace(job, settings=settings), model)
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        path = Path(folder) / "atlas.zarr"
        with_nothing = making.make_atlas(
            model, bench.LAYER, path=path, starts=10, settings=settings, engine=lambda model, jobs, watch: iter(())
        ) if False else None  # fmt: skip
        del with_nothing
        recipe = making._recipe(model, bench.LAYER, 10, 0, settings, job.objective, None, None, None)
        store = Store(path, writable=True)
        store.say(recipe.to_attributes())
        provenance = making._provenance(model, bench.LAYER, recipe, job.objective)
        layout = making._prepare(store, recipe, bench.LAYER, provenance, "cpu")
        seconds, before = [], len(list(path.rglob("*")))
        for start in range(10):
            began = time.perf_counter()
            made_so = dataclasses.replace(job, starts=(start,))
            cells = tuple(dataclasses.replace(oips, starts=np.full(len(oips), start)) for oips in made.cells)
            making._write(store, group_of(recipe.network, bench.LAYER), layout, (0, 1), made_so, type(made)(cells))
            seconds.append(time.perf_counter() - began)
        found = [each for each in path.rglob("*") if "c" in each.parts and each.is_file()]
    del before
    return {"seconds": float(np.median(seconds)), "files": len(found) / 10, "megabytes": 0.0}
