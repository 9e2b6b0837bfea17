"""How long do 128 OIPs take, and beside what?

    make bench
    python benchmarks/speed.py [--rounds 5] [--steps 600] [-o benchmarks/results/cpu.json]

The contestants take turns, each round in a new process, on the same machine, the shipped network, the same start images
and maps (every one of Conv2D_3). What is timed is the ascent, after a short one that is not: loading and compiling are
not in it. The article's loop map by map is so slow that a few maps stand for all; its time is per image-step all the
same. Scores of the results come from one scorer. Machines are noisy: the ratios within a run count, not the seconds.

A matrix product and a copy in memory, measured in the same rounds, tell what the machine can do at most; the operations
that the ascent needs are counted (torch.utils.flop_counter), and their rate stands beside that ceiling.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
KERAS = ROOT / "models" / "mnist_cnn.keras"
LAYER, MAPS, EPSILON = "Conv2D_3", 128, 0.01
CONTESTANTS = {  # name → (title, maps, steps as a share of the whole)
    "eager": ("the article's loop, eager TensorFlow, map by map", 1, 0.1),
    "graph": ("the same under tf.function", 4, 0.5),
    "batched": ("the same in one batch under tf.function", MAPS, 1.0),
    "plain": ("a plain loop in torch, one batch", MAPS, 1.0),
    "article": ("oip.ascend, the article's settings", MAPS, 1.0),
    "quick": ("oip.ascend, 60 image-steps, search included", MAPS, 1.0),
    "default": ("oip.ascend, the default: 600 image-steps, search included", MAPS, 1.0),
}


def run(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """One contestant's turn, in this process: seconds, image-steps and final images."""
    _, count, share = CONTESTANTS[name]
    steps = max(1, round(steps * share))
    maps, starts = np.arange(count), np.load(folder / "starts.npy")[:count]
    if name in ("eager", "graph", "batched"):
        from oip_torch.runtimes.keras_tensorflow import TensorFlow

        runtime = TensorFlow(KERAS, folder / "network.onnx")

        def work(steps: int) -> Any:
            return runtime.ascend(LAYER, maps, starts, "float32", steps=steps, epsilon=EPSILON, way=name)[1]

    elif name == "plain":
        from oip_torch.runtimes.torch_module import TorchModule

        module = TorchModule(KERAS, folder / "network.onnx", plain=True)

        def work(steps: int) -> Any:
            return module.ascend(LAYER, maps, starts, "float32", steps=steps, epsilon=EPSILON)[1]

    else:
        import oip_torch as oip

        model = oip.load(folder / "network.onnx", device="cpu")

        def work(steps: int) -> Any:
            settings = {
                "article": oip.AscentSettings.article(steps=steps),
                "quick": oip.AscentSettings.within(min(60, steps)),
                "default": oip.AscentSettings.within(steps),
            }[name]
            return oip.ascend(model, LAYER, settings=settings, progress=False)

    work(3)
    began = time.perf_counter()
    result = work(steps)
    seconds = time.perf_counter() - began
    spent = len(maps) * steps if isinstance(result, np.ndarray) else result.info["image_steps"]
    np.save(folder / "images.npy", result if isinstance(result, np.ndarray) else result.images)
    return {"seconds": seconds, "image_steps": spent}


def ceiling() -> dict[str, float]:
    """What the machine can do: float32 GFLOP/s of a matrix product, GB/s of a copy (read and written)."""
    import torch

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    source, target = torch.randn(1 << 26), torch.empty(1 << 26)

    def best(work: Any) -> float:
        work()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times)

    return {
        "gflops": 2 * 2048**3 / best(lambda: torch.mm(a, b)) / 1e9,
        "copy_gb": 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9,
    }


def needed_flops(onnx_file: Path) -> float:
    """Operations of one image-step, forward and back, on the network as it is climbed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import oip_torch as oip

    model = oip.load(onnx_file, device="cpu")
    network = model.climbed(LAYER, leaky=False, one_map=True)
    x = torch.randn(16, *model.input_shape, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        plain, _ = network(x, 0.0, torch.arange(16))
        plain.sum().backward()
    return counter.get_total_flops() / 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "out" / "speed.json")
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)  # a contestant, and the folder: one turn
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(ceiling() if options.turn[0] == "ceiling" else turn(options)))
        return

    import oip_torch as oip

    with tempfile.TemporaryDirectory(prefix="oip-bench-") as name:
        folder = Path(name)
        model = oip.convert(KERAS, folder / "network.onnx", device="cpu")
        starts = oip.start_images(model.input_shape, [(number, 0) for number in range(MAPS)], layer=LAYER)
        np.save(folder / "starts.npy", starts.numpy().transpose(0, 2, 3, 1))
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in ("ceiling", *CONTESTANTS)}
        for number in range(options.rounds):
            for name in turns:
                turns[name].append(asked(name, folder, options.steps))
                if name != "ceiling":
                    images = np.load(folder / "images.npy")
                    turns[name][-1]["scores"] = scored(model, images)
                print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
        result = summary(turns, needed_flops(folder / "network.onnx"), options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    print(options.output)


def turn(options: argparse.Namespace) -> dict[str, Any]:
    return run(options.turn[0], Path(options.turn[1]), options.steps)


def asked(name: str, folder: Path, steps: int) -> dict[str, Any]:
    """A turn in a process of its own: TensorFlow and torch crash in one."""
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, __file__, "--turn", name, str(folder), "--steps", str(steps)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{name} failed:\n{result.stderr}")
    return dict(json.loads(result.stdout.splitlines()[-1]))


def scored(model: Any, images: np.ndarray) -> list[float]:
    """By one scorer, whoever made them."""
    import torch

    from oip_torch.objectives import map_mean

    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        return [float(score) for score in map_mean(model.up_to(LAYER)(x), torch.arange(len(x)))]


def summary(turns: dict[str, list[dict[str, Any]]], flops: float, options: argparse.Namespace) -> dict[str, Any]:
    top = float(np.median([turn["gflops"] for turn in turns["ceiling"]]))
    reference = np.array(turns["batched"][0]["scores"])
    rows = {}
    for name, (title, maps, _) in CONTESTANTS.items():
        per_step = [turn["seconds"] / turn["image_steps"] * 1e6 for turn in turns[name]]
        paired = [ours["seconds"] / other["seconds"] for ours, other in zip(turns[name], turns["batched"], strict=True)]
        scores = np.array(turns[name][0]["scores"])
        rows[name] = {
            "title": title,
            "maps": maps,
            "image_steps": turns[name][0]["image_steps"],
            "microseconds_per_image_step": {"median": float(np.median(per_step)), "all": per_step},
            # The whole job: what all maps take, or would take at this rate.
            "job_seconds": float(np.median([turn["seconds"] for turn in turns[name]]))
            * (1 if maps == MAPS else MAPS * options.steps / turns[name][0]["image_steps"]),
            "ratio_to_batched": {"median": float(np.median(paired)), "all": paired} if maps == MAPS else None,
            "alive": int((scores > 0).sum()) if maps == MAPS else None,
            "at_or_above_batched": float((scores >= 0.999 * reference)[reference > 0].mean()) if maps == MAPS else None,
            "gflops": flops / np.median(per_step) / 1e3 if name in ("article", "quick", "default") else None,
        }
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "ceiling": turns["ceiling"],
        },
        "versions": {name: version(name) for name in ("oip_torch", "torch", "tensorflow", "keras", "numpy")},
        "layer": LAYER,
        "steps": options.steps,
        "rounds": options.rounds,
        "needed_mflop_per_image_step": flops / 1e6,
        "ceiling_gflops": top,
        "contestants": rows,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| contestant | whole job, s | µs per image-step (least to most) | time over the batched loop's | alive "
        "| at or above the batched loop's score |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["contestants"].values():
        times = row["microseconds_per_image_step"]
        ratio = row["ratio_to_batched"]
        span = "–" if ratio is None else f"{ratio['median']:.3f} ({min(ratio['all']):.3f} to {max(ratio['all']):.3f})"
        alive = "–" if row["alive"] is None else f"{row['alive']} of {MAPS}"
        above = "–" if row["at_or_above_batched"] is None else f"{row['at_or_above_batched']:.0%}"
        lines.append(
            f"| {row['title']} | {row['job_seconds']:.3g} | {times['median']:.0f} ({min(times['all']):.0f} to "
            f"{max(times['all']):.0f}) | {span} | {alive} | {above} |"
        )
    article = result["contestants"]["article"]
    share = article["gflops"] / result["ceiling_gflops"]
    return "\n".join(lines) + (
        f"\n\nNeeded: {result['needed_mflop_per_image_step']:.1f} MFLOP an image-step. The article's settings in "
        f"`oip.ascend` ran at {article['gflops']:.0f} GFLOP/s, {share:.0%} of the {result['ceiling_gflops']:.0f} "
        "GFLOP/s of a 2048³ matrix product in the same run."
    )


if __name__ == "__main__":
    main()
