"""What the benchmarks share: processes of their own, turns, times, memory, operations and tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psutil

if TYPE_CHECKING:
    import oip_torch as oip

ROOT = Path(__file__).resolve().parent.parent
KERAS = ROOT / "models" / "mnist_cnn.keras"
LAYER, MAPS = "Conv2D_3", 128  # of the shipped network: what most of the benchmarks are about
EPSILON = 0.01  # the article's
LOOPS = {  # the loops that `loop` knows
    "eager": "TensorFlow, eager, map by map: the article's loop",
    "graph": "TensorFlow, tf.function, map by map",
    "batched": "TensorFlow, tf.function, one batch",
    "plain": "torch, a plain loop, one batch",
    "kept": "torch, a plain loop, freed memory kept",
}
WITH_GC = "import gc; gc.enable()"  # timers switch it off, but it belongs to what a user waits for

_Case = TypeVar("_Case", str, tuple[str, str])


def parser(doc: str | None, name: str, *, rounds: int | None = None, network: bool = True) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("-o", "--output", type=Path, default=ROOT / "out" / "bench" / f"{name}.json")
    if network:
        made.add_argument("--network", type=Path, metavar="FILE.onnx", help="the shipped network, converted already")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds)
    return made


@contextlib.contextmanager
def workplace(network: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """A folder for a while, and the shipped network as an ONNX file: the one given, or converted into the folder."""
    with tempfile.TemporaryDirectory(prefix="oip-bench-") as name:
        folder = Path(name)
        if network is None:
            network = folder / "network.onnx"
            in_own_process(convert, keras_file=KERAS, network=network)
        yield folder, network.resolve()


def convert(keras_file: str, network: str, **inputs: Any) -> dict[str, Any]:
    """A turn: for a process of its own, since it may take gigabytes; returns what a caller wants to know of it."""
    import oip_torch as oip

    model = oip.convert(keras_file, network, device="cpu", progress=False, **inputs)
    return {"shape": model.input_shape, "maps": {layer.name: layer.maps for layer in model.layers}}


def write(result: dict[str, Any], output: Path | None, text: str) -> None:
    """The figures as JSON, with the machine and the versions; the tables on stdout."""
    here, installed = machine(), versions()
    line = f"{here['processor']}, {here['cores']} cores, {here['memory_gb']} GB, {here['system']}"
    names = ", ".join(f"{name} {number}" for name, number in installed.items())
    print(f"Machine: {line}; {names}.", text, sep="\n\n", end="\n\n", flush=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": here, "versions": installed} | result, indent=1) + "\n")
        tell(str(output))


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What it ran on."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Of what is installed; a machine with a card may go without TensorFlow."""
    found = {each.name: each.version for each in distributions()}
    return {name: found[name] for name in ("oip_torch", "torch", "tensorflow", "keras", "numpy") if name in found}


def in_own_process(function: Callable[..., Any], *, package: Path | None = None, **arguments: Any) -> Any:
    """`function(**arguments)` in a new process: TensorFlow and torch crash in one, and memory is told apart only so.

    The function stands at the top of a module of this folder; arguments and result go as JSON. With `package` the
    process imports ours from that folder.
    """
    code = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "function = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])\n"
        "print(json.dumps(function(**json.loads(sys.argv[4]))))"
    )
    home = Path(function.__code__.co_filename)
    names = [str(home.parent), home.stem, function.__name__, json.dumps(arguments, default=str)]
    return answer([sys.executable, "-c", code, *names], **({"PYTHONPATH": str(package)} if package else {}))


def answer(command: list[str], **environment: str) -> Any:
    """The JSON value on the last line that a command prints, off the GPU; a RuntimeError if it fails."""
    off = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return json.loads(printed(command, os.environ | off | environment).splitlines()[-1])


def printed(command: list[str], environment: dict[str, str] | None = None) -> str:
    """What a command prints; a RuntimeError with its last line of complaint if it fails."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if result.returncode != 0:
        complaint = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise RuntimeError(complaint[-1] if complaint else f"exit code {result.returncode}")
    return result.stdout


def turns(cases: Sequence[_Case], rounds: int) -> Iterator[_Case]:
    """The cases, so many times: each round begins with another one, and every other round runs backwards."""
    for number in range(rounds):
        first = number * len(cases) // rounds
        order = [*cases[first:], *cases[:first]][:: -1 if number % 2 else 1]
        for index, case in enumerate(order):
            what = case if isinstance(case, str) else ", ".join(case)
            tell(f"round {number + 1} of {rounds}, {index + 1} of {len(cases)}: {what}")
            yield case


def parts_of(
    jobs: dict[tuple[str, str], dict[str, Any]], rounds: int, *, here: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """By part its rows: `jobs` holds the arguments of `turn` by part and title, a row medians over the rounds.

    Each turn is a process of its own, if not all of them are to be run `here`.
    """
    done: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in jobs}
    for case in turns(list(jobs), rounds):
        done[case].append(turn(**jobs[case]) if here else in_own_process(turn, **jobs[case]))
    parts: dict[str, list[dict[str, Any]]] = {}
    for (part, title), found in done.items():
        row: dict[str, Any] = {"amount": int(title) if title.isdigit() else title}
        for key, value in found[0].items():
            row[key] = value if value is None or key == "images" else spread([each[key] for each in found])
        parts.setdefault(part, []).append(row)
    return parts


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, and all of them."""
    return {"median": float(np.median(values)), "all": [float(value) for value in values]}


def ratios(ones: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Of each round's two, since both met the same minutes of the machine."""
    return spread([one / other for one, other in zip(ones, others, strict=True)])


def turn(
    name: str,
    network: str | Path,
    steps: int,
    layer: str = LAYER,
    device: str = "cpu",
    images: str | None = None,
    **job: Any,
) -> dict[str, Any]:
    """Time and memory of a job: one of `LOOPS`, or `oip.ascend` by the settings "article" or "within".

    `job` are further arguments of `loop` or of `oip.ascend`; its "changes" those of the settings. Loading is not timed,
    and the first of the runs is not either: it traces, compiles, and tells the memory. `images` receives its result.
    """
    work: Callable[[], Any]
    if name in LOOPS:
        work = loop(name, Path(network), steps, layer, device, **job)
    else:
        import oip_torch as oip

        make, changes = oip.AscentSettings, job.pop("changes", {})
        settings = make.article(steps=steps, **changes) if name == "article" else make.within(steps, **changes)
        model = oip.load(network, device=device)
        work = partial(oip.ascend, model, layer, settings=settings, progress=False, **job)
    if "torch" in sys.modules:
        import torch.utils.benchmark  # noqa: F401  before memory is looked at: it takes some
    before, first = memory_mb(device, from_now=True)["now"], {}

    def run() -> None:
        result = work()
        if not first:
            first.update(before_mb=before, peak_mb=memory_mb(device)["peak"], **sizes(result, steps))
            if images is not None:
                np.save(images, result if isinstance(result, np.ndarray) else result.images)

    seconds = float(np.median(times(run)))
    first |= {"seconds": seconds, "grown_mb": first["peak_mb"] - before}
    return first | {"microseconds": seconds / first["image_steps"] * 1e6, "seconds_per_oip": seconds / first["images"]}


def times(run: Callable[[], Any]) -> list[float]:
    """Seconds of each run, after a first one that does not count."""
    if "tensorflow" in sys.modules:  # torch, and with it torch's timer, crashes beside it
        return timeit.repeat(run, WITH_GC, repeat=2, number=1)[1:]
    import torch
    from torch.utils.benchmark import Timer

    timer = Timer("run()", WITH_GC, globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange().times


def sizes(result: np.ndarray | oip.Oips, steps: int) -> dict[str, Any]:
    """Images and image-steps that a job computed; the memory it was estimated to take and gave back."""
    if isinstance(result, np.ndarray):
        return {"images": len(result), "image_steps": len(result) * steps, "predicted_mb": None, "result_mb": None}
    # An image whose first gradient is 0 takes the steps after it as they are.
    still = (result.traces == result.traces[:, :1]).all(1).sum() if result.settings.schedule.leak == 0 else 0
    return {
        "images": len(result),
        "image_steps": int(result.provenance.image_steps - still * (result.traces.shape[1] - 1)),
        "alive": len(np.unique(result.maps[result.scores > 0])),
        "predicted_mb": result.provenance.predicted_bytes / 1e6,
        "result_mb": sum(array.nbytes for array in (result.images, result.snapshots, result.traces)) / 1e6,
    }


def loop(
    name: str, network: Path, steps: int, layer: str, device: str, maps: Any, starts: str, keras_file: Any = KERAS
) -> Callable[[], np.ndarray]:
    """One of the loops that others would write: maps (batch,), start images in an .npy file → the final images.

    Images are (batch, height, width, channels). TensorFlow's functions are traced when they are first called.
    """
    maps, x0 = np.array(maps), np.load(starts)
    if name in ("plain", "kept"):
        from oip_torch.base.platform import keep_freed_memory
        from oip_torch.comparison.runtimes.torch_module import TorchModule

        if name == "kept":
            keep_freed_memory()
        module = TorchModule(Path(keras_file), network, device=device, plain=True)
        module.gradients(layer, maps[:1], x0[:1], "float32")  # loads the network
        return lambda: module.run_ascent(layer, maps, x0, "float32", steps=steps, epsilon=EPSILON)[1]

    import tensorflow as tf

    from oip_torch.comparison.runtimes.keras_tensorflow import TensorFlow

    runtime = TensorFlow(Path(keras_file), network)
    parts = [slice(None)] if name == "batched" else [slice(index, index + 1) for index in range(len(maps))]
    # Its own `run_ascent` traces anew in each call: a tenth of the time of a map by itself.
    steppers = [runtime.step(layer, maps[part], "float32", EPSILON) for part in parts]
    if name != "eager":
        steppers = [tf.function(step) for step in steppers]

    def work() -> np.ndarray:
        finals = []
        for part, step in zip(parts, steppers, strict=True):
            x, scores = tf.constant(x0[part]), []
            for _ in range(steps):
                x, score = step(x)
                scores.append(score)
            finals.append(x.numpy())
        return np.concatenate(finals)

    return work


def memory_mb(device: str = "cpu", *, from_now: bool = False) -> dict[str, float]:
    """This process' resident memory, or what torch has taken on the card; `from_now` forgets the most so far."""
    if device == "cuda":
        import torch

        if from_now:
            torch.cuda.reset_peak_memory_stats()
        return {"now": torch.cuda.memory_allocated() / 1e6, "peak": torch.cuda.max_memory_allocated() / 1e6}
    now = peak = psutil.Process().memory_info().rss / 1e6
    with contextlib.suppress(OSError):  # elsewhere than on Linux there is no peak that can be told to forget
        if from_now:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    return {"now": now, "peak": peak}


def ceiling(device: str = "cpu", side: int = 2048, floats: int = 1 << 26, tf32: bool = False) -> dict[str, float]:
    """What the machine can do: GFLOP/s of a float32 matrix product, GB/s of a copy (read and written)."""
    import torch
    from torch.utils.benchmark import Timer

    from oip_torch.base.platform import matmul_precision

    a, b = torch.randn(2, side, side, device=device)
    source = torch.randn(floats, device=device)
    names = {"a": a, "b": b, "source": source, "target": torch.empty_like(source)}

    def least(statement: str) -> float:
        return min(Timer(statement, globals=names, num_threads=torch.get_num_threads()).blocked_autorange().times)

    with matmul_precision(tf32=tf32):
        product = least("torch.mm(a, b)")
    return {"gflops": 2 * side**3 / product / 1e9, "copy_gb": 2 * source.nbytes / least("target.copy_(source)") / 1e9}


def counted(network: str | Path, layer: str, needed: bool) -> float:
    """Operations of an image-step, forward and back to the image, by torch's count.

    All of the plain network up to the layer; or only what is `needed`, on a chain of convolutions and poolings without
    padding: one map of the layer, from the part of the image that it reads. How the engine does it does not enter.
    """
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    import oip_torch as oip

    model = oip.load(network, device="cpu")
    x, work = torch.randn(1, *model.input_shape, requires_grad=True), model.up_to(layer)
    if needed:
        names = model.layers.names
        *before, last = (model.module_of(name, pre_activation=True) for name in names[: names.index(layer) + 1])
        one = nn.Conv2d(last.in_channels, 1, last.kernel_size, last.stride).requires_grad_(False)
        work = nn.Sequential(*before, one)
        work(x).sum().backward()
        rows, columns = x.grad.abs().sum((0, 1)).nonzero().amax(0) + 1
        x = x.detach()[..., :rows, :columns].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        work(x).sum().backward()
    return float(counter.get_total_flops())


def table(rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> str:
    """Markdown; `columns` are titles by key. A spread is shown whole where the title says "least to most"."""

    def cell(value: Any, title: str) -> str:
        if isinstance(value, dict):
            return span(value) if "least to most" in title else number(value["median"])
        return number(value) if value is None or isinstance(value, float) else str(value)

    cells = [[cell(row.get(key), title) for key, title in columns.items()] for row in rows]
    lines = ["| " + " | ".join(each) + " |" for each in (columns.values(), *cells)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def number(value: float | None) -> str:
    """Three digits; "–" for none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def span(values: dict[str, Any]) -> str:
    """Median (least to most)."""
    median, least, most = map(number, (values["median"], min(values["all"]), max(values["all"])))
    return median if len(values["all"]) == 1 else f"{median} ({least} to {most})"


def target(what: str, asked: float, values: dict[str, Any], *, least: bool = False) -> dict[str, Any]:
    """What is asked for, at most or at `least`, beside what was measured; judged by the median."""
    met = values["median"] >= asked if least else values["median"] <= asked
    bound = "at least" if least else "at most"
    return {"what": what, "bound": bound, "asked": asked, "measured": values, "met": met}


def parts_text(parts: dict[str, list[dict[str, Any]]], titles: dict[str, str], **more: str) -> str:
    """A table for each part: what `turn` tells, and the columns `more`."""
    columns = {"seconds": "s", "ms": "ms per OIP", "microseconds": "µs per image-step (least to most)", **more}
    for key in ("memory before", "peak", "grown", "predicted", "result"):
        columns[f"{key.split()[-1]}_mb"] = f"{key}, MB"
    texts = []
    for part, rows in parts.items():
        shown = [row | {"ms": row["seconds_per_oip"]["median"] * 1e3} for row in rows]
        texts.append(table(shown, {"amount": titles[part], **columns}))
    return "\n\n".join(texts)


def targets_table(targets: Iterable[dict[str, Any]]) -> str:
    met = {True: "yes", False: "**no**"}
    rows = [goal | {"bound": f"{goal['bound']} {goal['asked']:g}", "met": met[goal["met"]]} for goal in targets]
    columns = {"what": "asked for", "bound": "bound", "measured": "measured: median (least to most)", "met": "met"}
    return table(rows, columns)
