"""What the benchmarks share: processes of their own, turns, spreads, memory, ceilings, operations and tables."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import oip_torch as oip

ROOT = Path(__file__).resolve().parent.parent
KERAS = ROOT / "models" / "mnist_cnn.keras"
EPSILON = 0.01  # the article's
LOOPS = {  # the loops that `loop` knows
    "eager": "TensorFlow, eager, map by map: the article's loop",
    "graph": "TensorFlow, tf.function, map by map",
    "batched": "TensorFlow, tf.function, one batch",
    "plain": "torch, a plain loop, one batch",
    "kept": "torch, a plain loop, freed memory kept",
}

_Case = TypeVar("_Case", str, tuple[str, ...])


# The call


def parser(doc: str | None, name: str, *, rounds: int | None = None, network: bool = True) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("-o", "--output", type=Path, default=ROOT / "out" / "bench" / f"{name}.json")
    if network:
        made.add_argument(
            "--network", type=Path, metavar="FILE.onnx", help="the shipped network, if it is converted already"
        )
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    return made


@contextlib.contextmanager
def workplace(network: Path | None) -> Iterator[tuple[Path, Path]]:
    """A folder for a while, and the shipped network as an ONNX file: the one given, or converted into the folder."""
    import oip_torch as oip

    with tempfile.TemporaryDirectory(prefix="oip-bench-") as name:
        folder = Path(name)
        if network is None:
            network = folder / "network.onnx"
            oip.convert(KERAS, network, device="cpu", progress=False)
        yield folder, network.resolve()


def write(result: dict[str, Any], output: Path | None, text: str) -> None:
    """The figures as JSON, with the machine and the versions; the tables on stdout."""
    print(text, end="\n\n", flush=True)
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine(), "versions": versions()} | result, indent=1) + "\n")
    tell(str(output))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What it ran on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": next(iter(names), platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Of what is installed; a machine with a card may go without TensorFlow."""
    found = {}
    for name in ("oip_torch", "torch", "tensorflow", "keras", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def described() -> str:
    """The machine and the versions in a line."""
    here, installed = machine(), ", ".join(f"{name} {number}" for name, number in versions().items())
    return (
        f"Machine: {here['processor']}, {here['cores']} cores, {here['memory_gb']} GB, {here['system']}; {installed}."
    )


# Turns


def in_own_process(function: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """`function(**arguments)` in a new process: TensorFlow and torch crash in one, and memory is told apart only so.

    The function stands at the top of a module of this folder; arguments and result go as JSON.
    """
    code = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "function = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])\n"
        "print(json.dumps(function(**json.loads(sys.argv[4]))))"
    )
    home = Path(function.__code__.co_filename)
    return last_line(
        [
            *(sys.executable, "-c", code, str(home.parent), home.stem, function.__name__),
            json.dumps(arguments, default=str),
        ]
    )


def last_line(command: list[str]) -> dict[str, Any]:
    """The JSON object on the last line that a command prints, off the GPU; a RuntimeError if it fails."""
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    return dict(json.loads(printed(command, environment).splitlines()[-1]))


def printed(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints; a RuntimeError with its last line of complaint if it fails."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if result.returncode != 0:
        complaint = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise RuntimeError(complaint[-1] if complaint else f"exit code {result.returncode}")
    return result.stdout


def turns(cases: Sequence[_Case], rounds: int) -> Iterator[_Case]:
    """The cases, so many times; each round begins with another one."""
    for number in range(rounds):
        first = number * len(cases) // rounds
        for index, case in enumerate([*cases[first:], *cases[:first]]):
            what = case if isinstance(case, str) else ", ".join(case)
            tell(f"round {number + 1} of {rounds}, {index + 1} of {len(cases)}: {what}")
            yield case


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, and all of them."""
    return {"median": float(np.median(values)), "all": [float(value) for value in values]}


def ratios(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Of each round's two, since both met the same minutes of the machine."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


# What is measured


def loop(
    name: str,
    keras_file: Path,
    onnx_file: Path,
    layer: str,
    maps: np.ndarray,
    starts: np.ndarray,
    device: str = "cpu",
) -> Callable[[int], np.ndarray]:
    """One of the loops that others would write, ready to go: steps → final images (batch, height, width, channels).

    TensorFlow's functions are traced when they are first called, so call it once before the clock.
    """
    if name in ("plain", "kept"):
        from oip_torch.base.platform import keep_freed_memory
        from oip_torch.comparison.runtimes.torch_module import TorchModule

        if name == "kept":
            keep_freed_memory()
        module = TorchModule(keras_file, onnx_file, device=device, plain=True)
        module.gradients(layer, maps[:1], starts[:1], "float32")  # loads the network
        return lambda steps: module.run_ascent(layer, maps, starts, "float32", steps=steps, epsilon=EPSILON)[1]

    import tensorflow as tf

    from oip_torch.comparison.runtimes.keras_tensorflow import TensorFlow

    runtime = TensorFlow(keras_file, onnx_file)
    parts = [slice(None)] if name == "batched" else [slice(index, index + 1) for index in range(len(maps))]
    # Its own `run_ascent` traces anew in each call: a tenth of the time of a map by itself.
    steppers = [runtime.step(layer, maps[part], "float32", EPSILON) for part in parts]
    if name != "eager":
        steppers = [tf.function(step) for step in steppers]

    def work(steps: int) -> np.ndarray:
        finals = []
        for part, step in zip(parts, steppers, strict=True):
            x, scores = tf.constant(starts[part]), []
            for _ in range(steps):
                x, score = step(x)
                scores.append(score)
            finals.append(x.numpy())
        return np.concatenate(finals)

    return work


def chosen(way: str, steps: int, **changes: Any) -> oip.AscentSettings:
    """ "article" or "within", for so many steps."""
    import oip_torch as oip

    if way == "article":
        return oip.AscentSettings.article(steps=steps, **changes)
    return oip.AscentSettings.within(steps, **changes)


def timed_loop(
    name: str,
    keras_file: str,
    onnx_file: str,
    layer: str,
    maps: Sequence[int],
    starts: str,
    steps: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """A turn: one of `LOOPS`, as `timed_ascent` has it; `starts` is an .npy file."""
    work = loop(name, Path(keras_file), Path(onnx_file), layer, np.array(maps), np.load(starts), device)
    before = memory_mb(from_now=True)["now"]
    work(2)
    began = time.perf_counter()
    work(steps)
    seconds, count = time.perf_counter() - began, len(maps) * steps
    figures = {"seconds": seconds, "image_steps": count, "microseconds": seconds / count * 1e6}
    return figures | {"before_mb": before, "peak_mb": memory_mb()["peak"], "predicted_mb": None}


def timed_ascent(onnx_file: str, layer: str, maps: Sequence[int] | None, starts: int, way: str, steps: int) -> Any:
    """A turn: `oip.ascend` on the CPU."""
    import oip_torch as oip

    model = oip.load(onnx_file, device="cpu")
    return measured(model, layer, chosen(way, steps), maps=maps, starts=starts)[0]


def measured(
    model: oip.FeatureModel, layer: str, settings: oip.AscentSettings, **job: Any
) -> tuple[dict[str, Any], oip.Oips]:
    """Time and memory of one ascent, after one of a single image in two steps, which is not timed.

    Memory is the process' resident one, or what torch has taken on the card; `peak_mb` is the most during both ascents.
    """
    import torch

    import oip_torch as oip

    on_card = model.device.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device) / 1e6
    else:
        before = memory_mb(from_now=True)["now"]
    # Not as many images as in the job: freed memory is kept, and their results would leave a hole in it.
    short = dataclasses.replace(settings, steps=2, candidate_steps=min(2, settings.candidate_steps))
    oip.ascend(model, layer, 0, settings=short, progress=False)
    began = time.perf_counter()
    oips = oip.ascend(model, layer, settings=settings, progress=False, **job)
    seconds = time.perf_counter() - began
    predicted = oips.info["predicted_bytes"]
    steps = computed(oips)
    arrays = (oips.images, oips.snapshots, oips.traces)
    figures = {
        "images": len(oips),
        "seconds": seconds,
        "image_steps": steps,
        "microseconds": seconds / steps * 1e6,
        "before_mb": before,
        "peak_mb": torch.cuda.max_memory_allocated(model.device) / 1e6 if on_card else memory_mb()["peak"],
        "predicted_mb": predicted / 1e6,
        "result_mb": sum(array.nbytes for array in arrays) / 1e6,
    }
    return figures, oips


def computed(oips: oip.Oips) -> int:
    """Image-steps that were computed: an image whose first gradient is 0 takes the others as they are."""
    still = (oips.traces == oips.traces[:, :1]).all(1).sum() if oips.settings["leak"] == 0 else 0
    return int(oips.info["image_steps"] - still * (oips.traces.shape[1] - 1))


def memory_mb(*, from_now: bool = False) -> dict[str, float]:
    """This process' resident memory, now and at most; `from_now` forgets the maximum so far.

    From /proc: `ru_maxrss` begins with what the parent process had. Elsewhere than on Linux it stands for both.
    """
    try:
        if from_now:
            with contextlib.suppress(PermissionError):
                Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)
        return {"now": most, "peak": most}
    of = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {"now": int(of["VmRSS"]) * 1024 / 1e6, "peak": int(of["VmHWM"]) * 1024 / 1e6}


def ceiling(device: str = "cpu", side: int = 2048, floats: int = 1 << 26, tf32: bool = False) -> dict[str, float]:
    """What the machine can do: GFLOP/s of a float32 matrix product, GB/s of a copy (read and written)."""
    import torch

    from oip_torch.base.platform import matmul_precision

    a, b = torch.randn(2, side, side, device=device)
    source = torch.randn(floats, device=device)
    target = torch.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):  # the first one wakes things up, and is the slowest
            began = time.perf_counter()
            work()
            if a.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times)

    with matmul_precision(tf32=tf32):
        product = best(lambda: torch.mm(a, b))
    return {
        "gflops": 2 * side**3 / product / 1e9,
        "copy_gb": 2 * source.nbytes / best(lambda: target.copy_(source)) / 1e9,
    }


def needed_flops(model: oip.FeatureModel, layer: str) -> float:
    """Operations of one image-step on a chain of convolutions and max-poolings without padding.

    A product and a sum for each weight and place, forward and again back to the image; of the last convolution for one
    map alone, of the others for all maps, but only at the places that something behind them reads. How the engine does
    it does not enter.
    """
    names = model.layers.names
    end = model.layers[layer]
    rows, columns, flops, last = end.height or 1, end.width or 1, 0.0, True
    for name in reversed(names[: names.index(layer) + 1]):
        module: Any = model.module_of(name, pre_activation=True)
        kind = model.layers[name].kind
        if kind == "Conv2D":
            maps = 1 if last else len(module.weight)
            flops += 2 * 2 * maps * module.weight[0].numel() * rows * columns
            (height, width), stride = module.weight.shape[2:], module.stride
            last = False
        elif kind == "MaxPooling2D":
            height, width = np.broadcast_to(module.kernel_size, 2)
            stride = np.broadcast_to(module.stride, 2)
        else:
            raise ValueError(f"the operations of {kind} are not counted")
        rows, columns = (rows - 1) * int(stride[0]) + int(height), (columns - 1) * int(stride[1]) + int(width)
    return flops


# Tables


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def number(value: float | None) -> str:
    """Three digits; "–" for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def span(values: dict[str, Any] | None) -> str:
    """Median (least to most)."""
    if values is None:
        return "–"
    if len(values["all"]) == 1:
        return number(values["median"])
    return f"{number(values['median'])} ({number(min(values['all']))} to {number(max(values['all']))})"


def target(what: str, asked: float, values: dict[str, Any], *, least: bool = False) -> dict[str, Any]:
    """What is asked for, at most or at `least`, beside what was measured; judged by the median."""
    median = values["median"]
    return {
        "what": what,
        "bound": "at least" if least else "at most",
        "asked": asked,
        "measured": values,
        "met": median >= asked if least else median <= asked,
    }


def targets_table(targets: Sequence[dict[str, Any]]) -> str:
    rows = [
        (goal["what"], f"{goal['bound']} {goal['asked']:g}", span(goal["measured"]), "yes" if goal["met"] else "**no**")
        for goal in targets
    ]
    return markdown(["asked for", "bound", "measured: median (least to most)", "met"], rows)
