"""How long do 128 OIPs take, and beside what?

    python benchmarks/speed.py [--rounds 5] [--steps 600] [--without-rivals] [-o benchmarks/results/cpu.json]

The contestants take turns, each in a new process, on the same machine, the shipped network, the same start images and
maps (every one of Conv2D_3). What is timed is the ascent, after a short one that is not: loading, tracing and compiling
are not in it. The scores of the results come from one scorer. Machines are noisy: the ratios within a round count, not
the seconds.

Some contestants are so slow that a part of the job stands for all of it: the article's loop map by map always, the
others from the second round on (in the first they do the whole, which is what is scored). Their time is per image-step
all the same; *whole job* is what all of it takes, or would take at this rate.

A matrix product and a copy in memory, measured in the same rounds, tell what the machine can do at most; the operations
that the ascent needs are counted, and their rate stands beside that ceiling.

The rivals (rivals/README.md) run in environments of their own, which are made on first use, of 2.3 to 5.8 GB each. One
that cannot be made, or does not run, is left out, and the output says why.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_tools import (
    KERAS,
    LOOPS,
    ROOT,
    ceiling,
    chosen,
    computed,
    described,
    in_own_process,
    last_line,
    loop,
    markdown,
    needed_flops,
    number,
    parser,
    printed,
    ratios,
    span,
    spread,
    target,
    targets_table,
    tell,
    turns,
    workplace,
    write,
)

LAYER, MAPS, STEPS = "Conv2D_3", 128, 600
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
    "xplique-waking": Contestant("xplique, with its waking", rival="xplique"),
    "tf-keras-vis": Contestant("tf-keras-vis", share=0.25, rival="tf-keras-vis"),
    "lucent": Contestant("lucent", share=0.5, rival="lucent"),
    "plain": Contestant(LOOPS["plain"], share=0.5),
    "kept": Contestant(LOOPS["kept"], share=0.5),
    "article": Contestant("oip.ascend, the article's settings", way="article"),
    "quick": Contestant("oip.ascend, 60 image-steps, search included", way="within", most=60),
    "default": Contestant("oip.ascend, the default: 600 image-steps, search included", way="within"),
}
NEEDED = ("batched", "article", "quick")  # what the ratios are of


def own_turn(name: str, network: str, folder: str, steps: int) -> dict[str, Any]:
    """One of our contestants or of the loops, in this process; images.npy receives the final images."""
    contestant = CONTESTANTS[name]
    work: Callable[[int], Any]
    if contestant.way is None:
        starts = np.load(Path(folder) / "starts.npy")[: contestant.maps]
        work = loop(name, KERAS, Path(network), LAYER, np.arange(contestant.maps), starts)
    else:
        import oip_torch as oip

        model, way = oip.load(network, device="cpu"), contestant.way

        def work(steps: int) -> Any:
            return oip.ascend(model, LAYER, settings=chosen(way, steps), progress=False)

    work(3)
    began = time.perf_counter()
    result = work(steps)
    seconds = time.perf_counter() - began
    is_array = isinstance(result, np.ndarray)
    np.save(Path(folder) / "images.npy", result if is_array else result.images)
    return {"seconds": seconds, "image_steps": contestant.maps * steps if is_array else computed(result)}


def rival_turn(name: str, network: Path, folder: Path, steps: int, python: Path) -> dict[str, Any]:
    """One of the rivals, by its own script in its own environment."""
    rival = str(CONTESTANTS[name].rival)
    script = RIVALS / f"run_{rival.replace('-', '_')}.py"
    command = [str(python), str(script), str(KERAS), str(network), str(folder), "--steps", str(steps)]
    return last_line([*command, *(["--waking"] if name.endswith("waking") else [])])


def environment(rival: str, folder: Path) -> Path:
    """The interpreter of a rival's environment, which is made if need be; a RuntimeError says why it cannot be."""
    home = folder / rival
    python, new = home / "bin" / "python", not home.exists()
    if new:
        tell(f"making the environment of {rival} in {home} (some minutes and gigabytes, once) ...")
    try:
        if not python.exists():
            printed([sys.executable, "-m", "venv", str(home)])
        # Where all is there already, pip sees it in a second and needs no network.
        printed(
            [
                *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("-r", str(RIVALS / f"{rival}.txt")),
            ]
        )
    except (RuntimeError, OSError) as error:
        if new:
            shutil.rmtree(home, ignore_errors=True)
        raise RuntimeError(f"its environment cannot be made: {error}") from None
    return python


def rivals(folder: Path, names: list[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters by rival, and of the contestants that are left out the reasons."""
    pythons, reasons = {}, {}
    for rival in dict.fromkeys(CONTESTANTS[name].rival for name in names):
        if rival is not None:
            try:
                pythons[rival] = environment(rival, folder)
            except RuntimeError as error:
                reasons[rival] = str(error)
    return pythons, {name: reasons[rival] for name in names if (rival := CONTESTANTS[name].rival) in reasons}


def scored(model: Any, images: np.ndarray) -> list[float]:
    """By one scorer, whoever made them."""
    import torch

    from oip_torch.optim.objectives import map_mean

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        return [float(score) for score in map_mean(model.up_to(LAYER)(x), torch.arange(len(x)))]


def measure(
    names: list[str], network: Path, folder: Path, rounds: int, steps: int, environments: Path
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Every turn of every contestant, and who was left out, and why."""
    import oip_torch as oip

    model = oip.load(network, device="cpu")
    starts = oip.start_images(model.input_shape, [(index, 0) for index in range(MAPS)], layer=LAYER)
    np.save(folder / "starts.npy", starts.numpy().transpose(0, 2, 3, 1))
    pythons, left_out = rivals(environments, names)
    done: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ceiling", *names)}
    for name in turns(list(done), rounds):
        if name == "ceiling":
            done[name].append(in_own_process(ceiling))
            continue
        if name in left_out:
            continue
        contestant = CONTESTANTS[name]
        whole = not done[name] and contestant.maps == MAPS
        count = max(1, round(min(contestant.most, steps) * (1 if whole else contestant.share)))
        try:
            if contestant.rival is None:
                turn = in_own_process(own_turn, name=name, network=network, folder=folder, steps=count)
            else:
                turn = rival_turn(name, network, folder, count, pythons[contestant.rival])
        except RuntimeError as error:
            if contestant.rival is None:
                sys.exit(f"error: {name}: {error}")
            left_out[name] = f"it does not run: {error}"
            continue
        # What the contestant's whole job takes: ours end by themselves, a loop goes as far as it is told.
        part = 1.0 if contestant.way else turn["image_steps"] / (MAPS * steps)
        turn["job_seconds"] = turn["seconds"] / part
        if whole:
            turn["scores"] = scored(model, np.load(folder / "images.npy"))
        done[name].append(turn)
    for name, reason in left_out.items():
        tell(f"{name} is left out: {reason}")
    return done, left_out


def summary(
    done: dict[str, list[dict[str, Any]]], left_out: dict[str, str], flops: float, steps: int
) -> dict[str, Any]:
    """What the tables show."""

    def times(name: str, of: str = "job_seconds") -> list[float]:
        return [turn[of] for turn in done[name]]

    def per_step(name: str) -> list[float]:
        return [turn["seconds"] / turn["image_steps"] * 1e6 for turn in done[name]]

    reference = np.array(done["batched"][0]["scores"])
    live = reference > 0
    top = times("ceiling", "gflops")
    rows: dict[str, Any] = {}
    for name, contestant in CONTESTANTS.items():
        if name in left_out:
            rows[name] = {"title": contestant.title, "left out": left_out[name]}
            continue
        if name not in done:
            continue
        rows[name] = {
            "title": contestant.title,
            "image_steps": times(name, "image_steps"),
            "job_seconds": spread(times(name)),
            "microseconds_per_image_step": spread(per_step(name)),
            "ratio_to_batched": ratios(times(name), times("batched")),
            "article_over_it": ratios(times("article"), times(name)),
        }
        if "versions" in done[name][0]:
            rows[name]["versions"] = done[name][0]["versions"]
        if "scores" in done[name][0]:
            scores = np.array(done[name][0]["scores"])
            rows[name] |= {
                "alive": int((scores > 0).sum()),
                "at_or_above_batched": float((scores >= 0.999 * reference)[live].mean()),
                "median_score_over_batched": float(np.median(scores[live] / reference[live])),
                "scores": scores.tolist(),
            }
        if contestant.way:
            rates = [flops / micros / 1e3 for micros in per_step(name)]
            rows[name] |= {"gflops": spread(rates), "share_of_ceiling": ratios(rates, top)}
    return {
        "layer": LAYER,
        "maps": MAPS,
        "steps": steps,
        "rounds": len(top),
        "needed_mflop_per_image_step": flops / 1e6,
        "ceiling": done["ceiling"],
        "ceiling_gflops": spread(top),
        "contestants": rows,
        "targets": asked_for(rows),
    }


def asked_for(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks of itself, beside what came out."""
    ratio = "ratio_to_batched"
    targets = [target("equal work: time over the batched loop's", 0.65, rows["article"][ratio])]
    for name, times in (("graph", 20), ("eager", 150)):
        if name in rows:
            faster = spread([1 / value for value in rows[name]["article_over_it"]["all"]])
            targets.append(target(f"equal work: times faster than {rows[name]['title']}", times, faster, least=True))
    if "article_over_it" in rows.get("xplique", {}):
        targets.append(target("equal work: time over xplique's", 0.4, rows["xplique"]["article_over_it"]))
    quick = rows["quick"]
    targets += [
        target("equal quality (60 image-steps): time over the batched loop's", 0.1, quick[ratio]),
        target("equal quality: share of maps alive", 1.0, spread([quick["alive"] / MAPS]), least=True),
        target("equal quality: share at or above", 0.97, spread([quick["at_or_above_batched"]]), least=True),
        target("equal work: share of the ceiling", 0.4, rows["article"]["share_of_ceiling"], least=True),
    ]
    return targets


def text(result: dict[str, Any]) -> str:
    """The tables in Markdown."""
    head = [
        *("contestant", "whole job, s", "µs per image-step (least to most)", "time over the batched loop's"),
        *("oip.ascend's with the article's settings over it", "alive", "at or above the batched loop's score"),
    ]
    rows = []
    for row in result["contestants"].values():
        if "left out" in row:
            rows.append([row["title"], f"left out: {row['left out']}", *[""] * 5])
            continue
        scores = ("–", "–")
        if "alive" in row:
            scores = f"{row['alive']} of {MAPS}", f"{row['at_or_above_batched']:.0%}"
        times = number(row["job_seconds"]["median"]), span(row["microseconds_per_image_step"])
        rows.append([row["title"], *times, span(row["ratio_to_batched"]), span(row["article_over_it"]), *scores])
    rates = [
        [row["title"], span(row["gflops"]), f"{row['share_of_ceiling']['median']:.0%}"]
        for row in result["contestants"].values()
        if "gflops" in row
    ]
    copies = spread([turn["copy_gb"] for turn in result["ceiling"]])
    return "\n\n".join(
        [
            described(),
            f"{result['maps']} maps of {LAYER}, {result['steps']} steps, {result['rounds']} rounds:",
            markdown(head, rows),
            "Medians, of ratios that were each taken within a round. Image-steps are those that were computed: in "
            "`oip.ascend` an image whose first gradient is 0 leaves the batch, since nothing would ever move it. At or "
            "above: to a thousandth, of the maps that the batched loop wakes. Its scores part from others' with equal "
            "work by rounding alone.",
            f"Needed: {result['needed_mflop_per_image_step']:.1f} MFLOP an image-step. In the same rounds a 2048³ "
            f"matrix product ran at {span(result['ceiling_gflops'])} GFLOP/s, a copy at {span(copies)} GB/s:",
            markdown(["", "GFLOP/s", "of the matrix product's"], rates),
            targets_table(result["targets"]),
        ]
    )


def main() -> None:
    made = parser(__doc__, "speed", rounds=5)
    made.add_argument("--steps", type=int, default=STEPS)
    made.add_argument("--only", nargs="*", choices=CONTESTANTS, help=f"contestants; {', '.join(NEEDED)} always run")
    made.add_argument("--without-rivals", action="store_true")
    made.add_argument(
        "--environments",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("BENCH_ENVIRONMENTS", ROOT / ".bench")),
        help="where the rivals' environments are or go; default: $BENCH_ENVIRONMENTS, or .bench",
    )
    options = made.parse_args()
    names = [
        name
        for name, contestant in CONTESTANTS.items()
        if (options.only is None or name in (*options.only, *NEEDED))
        and not (options.without_rivals and contestant.rival)
    ]
    import oip_torch as oip

    with workplace(options.network) as (folder, network):
        done, left_out = measure(names, network, folder, options.rounds, options.steps, options.environments.absolute())
        flops = needed_flops(oip.load(network, device="cpu"), LAYER)
    result = summary(done, left_out, flops, options.steps)
    write(result, options.output, text(result))


if __name__ == "__main__":
    main()
