"""How fast is an atlas made: by one and by two Ray workers, and of larger networks?

    python benchmarks/atlas.py [--rounds 3] [-o benchmarks/results/atlas.json] [--only workers parts streamed]

Every turn is a process of its own, and they take turns. To be run on a machine that does nothing else.

- workers: eight parts, each of 32 images of Conv2D_3 of the shipped network, by one Ray worker and by two, of one
  thread each, on a cluster of this machine; the ratio is of each round's two. Before the clock starts the cluster is
  up and its workers have loaded the network. Nothing is written.
- parts: the first part of an atlas of each of three layers, by one thread: of the shipped network, and of torchvision's
  ResNet50 and ConvNeXt-Tiny with random weights. Image-steps per second of a core, planning included; seconds of a
  core until the part lies in a local folder; and the most memory that the process held, beside what it held before.
- streamed: whole atlases of Conv2D_3 of the shipped network, from 1 to 128 starts a map, 60 image-steps each; seconds,
  figures of quality included, and the most memory that the process held beyond what it held after a first small one.
  Images go to the disk as they are made.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_tools as bench

PARTS, CELL, ASKED, SIDE = 8, 32, 1.6, 112
NETWORKS = {  # three layers of each, from early to late; and steps of each image
    "shipped": (("Conv2D_1", "Conv2D_2", "Conv2D_3"), 60),
    "resnet50": (("layer1.2.conv2", "layer3.2.conv2", "layer4.2.conv2"), 4),
    "convnext_tiny": (("features.1.2.block.0", "features.5.4.block.0", "features.7.2.block.0"), 4),
}


def by_ray(network: str, workers: int, steps: int) -> dict[str, float]:
    """A turn: all parts, by so many workers."""
    import torch

    import oip_torch as oip
    from oip_torch.atlas.job import Job, Made
    from oip_torch.atlas.ray_engine import ray_engine, session

    torch.set_num_threads(workers)  # what a cluster is sized by
    model = oip.load(network, device="cpu")

    def work(parts: int, steps: int) -> int:
        one = functools.partial(
            Job, fingerprint=model.fingerprint, layer=bench.LAYER, batch=CELL, settings=oip.AscentSettings.within(steps)
        )
        maps = [tuple(range(first, first + CELL)) for first in range(0, bench.MAPS, CELL)]
        jobs = [one(maps=maps[part % len(maps)], starts=(part // len(maps),), seed=0) for part in range(parts)]
        done = 0
        for _, made in ray_engine()(model, iter(jobs), lambda count: None):
            assert isinstance(made, Made)
            done += sum(oips.provenance.image_steps for oips in made.cells)
        return done

    with session(None):
        work(2 * workers, 20)
        began = time.perf_counter()
        done = work(PARTS, steps)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "rate": done / seconds}


def first_parts(network: str, file: str, side: int) -> list[dict[str, Any]]:
    """A turn: the first part of each of three layers, made and written; the rest of the atlas is left."""
    import torch

    import oip_torch as oip
    from oip_torch.atlas.job import Job, Outcome, run

    torch.set_num_threads(1)
    layers, steps = NETWORKS[network]
    if network == "shipped":
        model = oip.load(file, device="cpu")
    else:
        import torchvision

        torch.manual_seed(0)
        model = oip.wrap(getattr(torchvision.models, network)(weights=None), (3, side, side), mean=0.5, std=0.25)
    settings = oip.AscentSettings.within(steps) if network == "shipped" else oip.AscentSettings.article(steps=steps)
    rows: list[dict[str, Any]] = []

    def engine(model: oip.FeatureModel, jobs: Iterator[Job], watch: Any) -> Iterator[Outcome]:
        """The first job, and no more of this layer."""
        before = bench.memory_mb(from_now=True)["now"]
        job = next(jobs)
        began = time.process_time()  # one thread: what it takes of a core, whatever else the machine does
        made = run(job, model)
        seconds = time.process_time() - began
        done = sum(oips.provenance.image_steps for oips in made.cells)
        began = time.process_time()
        yield job, made
        rows.append(
            {
                "title": f"{network}, {job.layer}",
                "shape": model.input_shape,
                "images": len(job),
                "rate": done / seconds,
                "write_seconds": time.process_time() - began,
                "result_mb": sum(each.images.nbytes + each.snapshots.nbytes for each in made.cells) / 1e6,
                "before_mb": before,
                "peak_mb": bench.memory_mb()["peak"],
            }
        )
        raise _EnoughError

    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        for layer in layers:
            try:
                oip.make_atlas(
                    model, layer, path=Path(folder) / layer, settings=settings, engine=engine, progress=False
                )
            except _EnoughError:
                bench.tell(str(rows[-1]))
    return rows


def streamed(network: str, starts: int) -> dict[str, float]:
    """A turn: a whole atlas of one layer."""
    import oip_torch as oip

    model = oip.load(network, device="cpu")
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as folder:
        settings = oip.AscentSettings.within(60)
        oip.make_atlas(model, bench.LAYER, path=Path(folder) / "warm", starts=1, settings=settings, progress=False)
        before = bench.memory_mb(from_now=True)["now"]
        began = time.perf_counter()
        oip.make_atlas(model, bench.LAYER, path=Path(folder) / "a", starts=starts, settings=settings, progress=False)
        seconds = time.perf_counter() - began
    images = bench.MAPS * starts
    turn = {"seconds": seconds, "ms_per_image": 1e3 * seconds / images, "before_mb": before}
    turn["peak_mb"] = bench.memory_mb()["peak"] - before
    bench.tell(f"{images} images: {turn}")
    return turn


class _EnoughError(Exception):
    """What is to be measured is done."""


def main() -> None:
    made = bench.parser(__doc__, "atlas", rounds=3)
    made.add_argument(
        "--only", nargs="*", choices=("workers", "parts", "streamed"), default=("workers", "parts", "streamed")
    )
    made.add_argument(
        "--starts", nargs="*", type=int, default=[1, 8, 32, 128], help="of streamed atlases, for each map"
    )
    made.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--steps", type=int, default=300, help="image-steps of each image that the workers make")
    made.add_argument("--side", type=int, default=SIDE, help="of the larger networks' images")
    options = made.parse_args()
    result: dict[str, Any] = {name: getattr(options, name) for name in ("rounds", "steps", "side")}
    tables = []
    network = str((options.network or bench.ROOT / "models" / "mnist_cnn.onnx").resolve())
    if "workers" in options.only:
        found: dict[str, list[dict[str, float]]] = {"1": [], "2": []}
        for case in bench.turns(list(found), options.rounds):
            found[case].append(bench.in_own_process(by_ray, network=network, workers=int(case), steps=options.steps))
        rows = [
            {"workers": case} | {key: bench.spread([turn[key] for turn in turns]) for key in ("seconds", "rate")}
            for case, turns in found.items()
        ]
        ratio = bench.ratios(*([turn["rate"] for turn in found[case]] for case in ("2", "1")))
        goal = bench.target("rate of two workers over that of one", ASKED, ratio, least=True)
        result |= {"workers": rows, "targets": [goal]}
        columns = {"workers": "Ray workers", "seconds": "s", "rate": "image-steps per s: median (least to most)"}
        tables += [bench.table(rows, columns), bench.targets_table([goal])]
    if "parts" in options.only:
        turns: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in options.networks}
        for name in bench.turns(list(turns), options.rounds):
            turns[name].append(bench.in_own_process(first_parts, network=name, file=network, side=options.side))
        rows = []
        for same in (layer for found_turns in turns.values() for layer in zip(*found_turns, strict=True)):
            spreads = ("rate", "write_seconds", "before_mb", "peak_mb")
            rows.append(same[0] | {key: bench.spread([row[key] for row in same]) for key in spreads})
        result["parts"] = rows
        columns = {"title": "layer", "images": "images", "rate": "image-steps per s of a core: median (least to most)"}
        columns |= {"write_seconds": "to write it, s of a core", "result_mb": "result, MB"}
        columns |= {"before_mb": "memory before, MB", "peak_mb": "peak, MB"}
        tables.append(bench.table(rows, columns))
    if "streamed" in options.only:
        every: dict[str, list[dict[str, float]]] = {str(starts): [] for starts in options.starts}
        for case in bench.turns(list(every), options.rounds):
            every[case].append(bench.in_own_process(streamed, network=network, starts=int(case)))
        rows = [
            {"images": bench.MAPS * int(case)} | {key: bench.spread([turn[key] for turn in same]) for key in same[0]}
            for case, same in every.items()
        ]
        result["streamed"] = rows
        columns = {"images": "images", "seconds": "s", "ms_per_image": "ms per image"}
        columns |= {"before_mb": "memory held before, MB", "peak_mb": "beyond that, MB"}
        tables.append(bench.table(rows, columns))
    bench.write(result, options.output, "\n\n".join(tables))


if __name__ == "__main__":
    main()
