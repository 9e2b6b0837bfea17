"""How long do 128 OIPs take, and beside what?

    python benchmarks/speed.py [--rounds 5] [--steps 600] [--without-rivals] [-o benchmarks/results/cpu.json]

The contestants take turns, each in a new process, on the same machine, the shipped network, the same start images and
maps (every one of Conv2D_3). What is timed is the second of two runs: loading, tracing and compiling are
not in it. The scores of the results come from one scorer. Machines are noisy: the ratios within a round count, not
the seconds.

Some contestants are so slow that a part of the job stands for all of it: the article's loop map by map always, the
others from the second round on (in the first they do the whole, which is what is scored). Their time is per image-step
all the same; *whole job* is what all of it takes, or would take at this rate.

A matrix product and a copy in memory, measured in the same rounds, tell what the machine can do at most; the operations
that the ascent needs are counted by torch, and their rate stands beside that ceiling.

The rivals (rivals/README.md) run in environments of their own, which are made on first use, of 2.3 to 5.8 GB each. One
that cannot be made, or does not run, is left out, and the output says why.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_tools as bench
import numpy as np
from bench_tools import KERAS, LAYER, LOOPS, MAPS, ratios, span, spread, target

STEPS = 600
RIVALS = Path(__file__).resolve().parent / "rivals"


@dataclass(frozen=True)
class Contestant:
    title: str
    maps: int = MAPS
    share: float = 1.0  # of the steps, from the second round on; with fewer maps from the first
    way: str | None = None  # of `oip.ascend`: "article" or "within"
    most: int = STEPS  # image-steps for each map
    rival: str | None = None  # whose environment


CONTESTANTS = {
    "eager": Contestant(LOOPS["eager"], maps=4, share=0.05),
    "graph": Contestant(LOOPS["graph"], maps=8, share=0.25),
    "batched": Contestant(LOOPS["batched"]),
    "xplique": Contestant("xplique", rival="xplique"),
    "xplique-warmup": Contestant("xplique, with its warm-up", rival="xplique"),
    "tf-keras-vis": Contestant("tf-keras-vis", share=0.25, rival="tf-keras-vis"),
    "lucent": Contestant("lucent", share=0.5, rival="lucent"),
    "plain": Contestant(LOOPS["plain"], share=0.5),
    "kept": Contestant(LOOPS["kept"], share=0.5),
    "article": Contestant("oip.ascend, the article's settings", way="article"),
    "quick": Contestant("oip.ascend, 60 image-steps, search included", way="within", most=60),
    "default": Contestant("oip.ascend, the default: 600 image-steps, search included", way="within"),
}
NEEDED = ("batched", "article", "quick")  # what the ratios are of


def environment(rival: str, folder: Path) -> Path:
    """The interpreter of a rival's environment, which is made if need be; a RuntimeError says why it cannot be."""
    home = folder / rival
    python, new = home / "bin" / "python", not home.exists()
    if new:
        bench.tell(f"making the environment of {rival} in {home} (some minutes and gigabytes, once) ...")
    try:
        if not python.exists():
            bench.printed([sys.executable, "-m", "venv", str(home)])
        # Where all is there already, pip sees it in a second and needs no network.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        bench.printed([*pip, "-r", str(RIVALS / f"{rival}.txt")])
    except (RuntimeError, OSError) as error:
        if new:
            shutil.rmtree(home, ignore_errors=True)
        raise RuntimeError(f"its environment cannot be made: {error}") from None
    return python


def turn(name: str, network: Path, folder: Path, steps: int, environments: Path) -> dict[str, Any]:
    """One contestant, in a process of its own; images.npy receives the final images."""
    contestant = CONTESTANTS[name]
    if contestant.rival is not None:
        call = [
            environment(contestant.rival, environments),
            RIVALS / "run.py",
            contestant.rival,
            KERAS,
            network,
            folder,
        ]
        warmup = ["--warmup"] if name.endswith("warmup") else []
        return bench.answer([*map(str, call), "--steps", str(steps), *warmup])
    job: dict[str, Any] = {"network": network, "steps": steps, "images": folder / "images.npy"}
    if contestant.way is None:
        job |= {"maps": list(range(contestant.maps)), "starts": folder / f"starts-{contestant.maps}.npy"}
    return bench.in_own_process(bench.turn, name=contestant.way or name, **job)


def measure(
    names: list[str], network: Path, folder: Path, rounds: int, steps: int, environments: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Every turn of every contestant, and who was left out, and why."""
    import torch

    import oip_torch as oip
    from oip_torch.optim.objectives import map_mean

    model = oip.load(network, device="cpu")
    scorer, every = model.up_to(LAYER), torch.arange(MAPS)
    starts = oip.start_images(model.input_shape, [(index, 0) for index in range(MAPS)], layer=LAYER)
    for contestant in CONTESTANTS.values():
        np.save(folder / f"starts-{contestant.maps}.npy", starts[: contestant.maps].permute(0, 2, 3, 1).numpy())
    left_out: dict[str, str] = {}
    done: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ceiling", *names)}
    for name in bench.turns(list(done), rounds):
        if name == "ceiling":
            done[name].append(bench.in_own_process(bench.ceiling))
            continue
        if name in left_out:
            continue
        contestant = CONTESTANTS[name]
        whole = not done[name] and contestant.maps == MAPS
        count = max(1, round(min(contestant.most, steps) * (1 if whole else contestant.share)))
        try:
            found = turn(name, network, folder, count, environments)
        except RuntimeError as error:
            if contestant.rival is None:
                sys.exit(f"error: {name}: {error}")
            left_out[name] = f"it does not run: {error}"
            bench.tell(f"{name} is left out: {error}")
            continue
        # What the contestant's whole job takes: ours end by themselves, a loop goes as far as it is told.
        part = 1.0 if contestant.way else found["image_steps"] / (MAPS * steps)
        found |= {"job_seconds": found["seconds"] / part, "micros": found["seconds"] / found["image_steps"] * 1e6}
        if whole:  # scored by one scorer, whoever made them
            x = torch.from_numpy(np.load(folder / "images.npy").transpose(0, 3, 1, 2).copy())
            with torch.no_grad():
                found["scores"] = map_mean(scorer(x), every).tolist()
        done[name].append(found)
    return done, left_out


def summary(done: dict[str, list[dict[str, Any]]], left_out: dict[str, str], flops: float) -> dict[str, Any]:
    """What the tables show, by contestant."""

    def all_of(name: str, key: str = "job_seconds") -> list[float]:
        return [found[key] for found in done[name]]

    reference = np.array(done["batched"][0]["scores"])
    live = reference > 0
    rows: dict[str, Any] = {}
    for name in (name for name in CONTESTANTS if name in done):
        row = rows[name] = {"title": CONTESTANTS[name].title}
        if name in left_out:
            row["left out"] = left_out[name]
            continue
        row |= {
            "image_steps": all_of(name, "image_steps"),
            "job_seconds": spread(all_of(name)),
            "microseconds_per_image_step": spread(all_of(name, "micros")),
            "ratio_to_batched": ratios(all_of(name), all_of("batched")),
            "article_over_it": ratios(all_of("article"), all_of(name)),
        }
        row |= {key: value for key, value in done[name][0].items() if key == "versions"}
        if "scores" in done[name][0]:
            scores = np.array(done[name][0]["scores"])
            row |= {
                "alive": int((scores > 0).sum()),
                "at_or_above_batched": float((scores >= 0.999 * reference)[live].mean()),
                "median_score_over_batched": float(np.median(scores[live] / reference[live])),
                "scores": scores.tolist(),
            }
        if CONTESTANTS[name].way:
            rates = [flops / micros / 1e3 for micros in all_of(name, "micros")]
            row |= {"gflops": spread(rates), "share_of_ceiling": ratios(rates, all_of("ceiling", "gflops"))}
    return rows


def asked_for(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks of itself, beside what came out."""
    ratio, quick = "ratio_to_batched", rows["quick"]
    targets = [target("equal work: time over the batched loop's", 0.65, rows["article"][ratio])]
    for name, times in (("graph", 20), ("eager", 150)):
        if name in rows:
            faster = spread([1 / value for value in rows[name]["article_over_it"]["all"]])
            targets.append(target(f"equal work: times faster than {rows[name]['title']}", times, faster, least=True))
    if "article_over_it" in rows.get("xplique", {}):
        targets.append(target("equal work: time over xplique's", 0.4, rows["xplique"]["article_over_it"]))
    return [
        *targets,
        target("equal quality (60 image-steps): time over the batched loop's", 0.1, quick[ratio]),
        target("equal quality: share of maps alive", 1.0, spread([quick["alive"] / MAPS]), least=True),
        target("equal quality: share at or above", 0.97, spread([quick["at_or_above_batched"]]), least=True),
        target("equal work: share of the ceiling", 0.4, rows["article"]["share_of_ceiling"], least=True),
    ]


def text(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    rows = []
    for row in result["contestants"].values():
        if "left out" in row:
            row = row | {"job_seconds": f"left out: {row['left out']}"}
        if "alive" in row:
            row = row | {"alive": f"{row['alive']} of {MAPS}", "as good": f"{row['at_or_above_batched']:.0%}"}
        if "gflops" in row:
            row = row | {"share": f"{row['share_of_ceiling']['median']:.0%}"}
        rows.append(row)
    columns = {
        "title": "contestant",
        "job_seconds": "whole job, s",
        "microseconds_per_image_step": "µs per image-step (least to most)",
        "ratio_to_batched": "time over the batched loop's (least to most)",
        "article_over_it": "oip.ascend's with the article's settings over it (least to most)",
        "alive": "alive",
        "as good": "at or above the batched loop's score",
    }
    rates = {"title": "", "gflops": "GFLOP/s (least to most)", "share": "of the matrix product's"}
    copies = spread([found["copy_gb"] for found in result["ceiling"]])
    return "\n\n".join(
        [
            f"{result['maps']} maps of {LAYER}, {result['steps']} steps, {result['rounds']} rounds:",
            bench.table(rows, columns),
            "Medians, of ratios that were each taken within a round. Image-steps are those that were computed: in "
            "`oip.ascend` an image whose first gradient is 0 leaves the batch, since nothing would ever move it. At or "
            "above: to a thousandth, of the maps that respond in the batched loop. Its scores differ from others' with "
            "equal work by rounding alone.",
            f"Needed: {result['needed_mflop_per_image_step']:.1f} MFLOP an image-step. In the same rounds a 2048³ "
            f"matrix product ran at {span(result['ceiling_gflops'])} GFLOP/s, a copy at {span(copies)} GB/s:",
            bench.table([row for row in rows if "gflops" in row], rates),
            bench.targets_table(result["targets"]),
        ]
    )


def main() -> None:
    made = bench.parser(__doc__, "speed", rounds=5)
    made.add_argument("--steps", type=int, default=STEPS)
    made.add_argument("--only", nargs="*", choices=CONTESTANTS, help=f"contestants; {', '.join(NEEDED)} always run")
    made.add_argument("--without-rivals", action="store_true")
    made.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("BENCH_ENVIRONMENTS", bench.ROOT / ".bench")),
        help="where the rivals' environments are or go; default: $BENCH_ENVIRONMENTS, or .bench",
    )
    options = made.parse_args()
    names = [
        name
        for name, contestant in CONTESTANTS.items()
        if (options.only is None or name in (*options.only, *NEEDED))
        and not (options.without_rivals and contestant.rival)
    ]
    with bench.workplace(options.network) as (folder, network):
        place = options.environments.absolute()
        done, left_out = measure(names, network, folder, options.rounds, options.steps, place)
        flops = bench.in_own_process(bench.counted, network=network, layer=LAYER, needed=True)
    rows = summary(done, left_out, flops)
    result = {
        "layer": LAYER,
        "maps": MAPS,
        "steps": options.steps,
        "rounds": options.rounds,
        "needed_mflop_per_image_step": flops / 1e6,
        "ceiling": done["ceiling"],
        "ceiling_gflops": spread([found["gflops"] for found in done["ceiling"]]),
        "contestants": rows,
        "targets": asked_for(rows),
    }
    bench.write(result, options.output, text(result))


if __name__ == "__main__":
    main()
