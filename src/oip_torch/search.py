"""How is a strong OIP found for every map?

Many starts, a precursor that tries candidates, staged evolution, and maps that sleep: all of it batched, and all of it
counted in image-steps, so that what a result has cost can be said.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oip_torch.ascent import AscentSettings, Schedule, climb, is_whole
from oip_torch.engine import keep_freed_memory, products
from oip_torch.errors import InputError, OipError
from oip_torch.memory import free_bytes, in_words
from oip_torch.model import FeatureModel
from oip_torch.objectives import OF_ONE_MAP, Objective, map_mean, map_peak
from oip_torch.oips import Oips
from oip_torch.progress import bar
from oip_torch.starts import Key, components, standardize

__all__ = ["ascend", "chosen_maps"]

_TO_THE_PEAK = Schedule(steps=5, epsilon=0.2, epsilon_last=0.002, leak=1.0, leak_last=1.0)
_FROM_THE_PEAK = Schedule(steps=3, epsilon=0.1, epsilon_last=0.005, leak=0.02)
"""How a sleeping map is woken: two climbs that share the steps as 5 to 3. Of the 13 maps of the shipped model's
Conv2D_2 that sleep after their trials 10 fire in the end; with first steps of 2 towards the peak half as many did."""
_BATCH = {"cpu": 64, "cuda": 4096}  # images at once; beyond that the time per image no longer falls
_BESIDE = 2.0  # with what allocator and libraries take: on CPUs processes grew by 1.3 to 2 of what their tensors hold
_LIBRARIES = 32 << 20  # what the first ascent of a process takes for kernels and threads
_CORE_BYTES = 64 << 20  # of a core's batch: with images so large that this is few of them, time per image is the same


def ascend(
    model: FeatureModel,
    layer: str,
    maps: int | Iterable[int] | None = None,
    *,
    starts: int = 1,
    seed: int = 0,
    settings: AscentSettings | None = None,
    objective: Objective = map_mean,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> Oips:
    """Make OIPs: images that the chosen maps of a layer respond to.

        oips = oip.ascend(model, "Conv2D_3", maps=[17, 56], starts=4)

    Args:
        model: from `load` or `convert`; the work is done where its weights are, in their dtype.
        layer: name of the layer.
        maps: which of its maps (or units); None: all of them.
        starts: how many images per map, each from a start of its own (or from the best of its own candidates).
        seed: each image's random numbers depend on (seed, layer, map, start number) alone.
        settings: default `AscentSettings()`.
        objective: what is maximised; see `objectives`.
        batch_size: images at once, at most; default by device.
        memory: bytes that this may take beyond what the process holds already: on a CPU for the work and its results,
            on CUDA for the work on the card. Default: half of what is free. Fewer images at once are worked on where it
            is little. What is expected is told by `info["predicted_bytes"]`.
        progress: show a bar on stderr; None: only on a terminal.

    Returns:
        The OIPs, map by map, start by start.

    Raises:
        InputError: unknown layer, a map out of range, a number that is not positive, or more images than fit in memory.
    """
    settings = settings or AscentSettings()
    numbers = chosen_maps(model, layer, maps)
    whole = {"starts": (starts, 1), "seed": (seed, 0), "batch_size": (batch_size, 1), "memory": (memory, 1)}
    for name, (value, least) in whole.items():
        if value is None:
            continue
        if not is_whole(value) or value < least:
            raise InputError(f"{name} is {value}: expected a whole number, {least} or more")
    keys = [(number, start) for number in numbers for start in range(starts)]
    plan = _plan(model, layer, len(keys), settings, objective, batch_size, memory)
    if model.device.type == "cpu":
        keep_freed_memory()
    joined = _room(model, len(keys), settings)
    spent: list[int] = []
    began = time.perf_counter()
    with bar(f"ascending {layer}", len(keys) * settings.image_steps, progress) as advance:

        def work(first: int) -> None:
            rows = slice(first, first + plan.batch_size)
            batch = _Batch(model, layer, keys[rows], seed, settings, objective, advance)
            found = batch.ascend()
            if not (np.isfinite(found["images"]).all() and np.isfinite(found["scores"]).all()):
                raise OipError(f"the ascent of {layer!r} left the finite numbers: use a smaller epsilon, or float64")
            for name, values in found.items():
                joined[name][rows] = values
            spent.append(batch.spent)

        with products(tf32=settings.tf32):
            _each_batch(work, range(0, len(keys), plan.batch_size), plan.workers)
    status = np.where(joined["converged_at"] >= 0, "converged", "finished")
    status = np.where(joined["woken"], "woken", status)
    return Oips(
        layer=layer,
        maps=np.array([key[0] for key in keys], np.int64),
        starts=np.array([key[1] for key in keys], np.int64),
        images=joined["images"],
        scores=joined["scores"],
        largest_before=joined["largest_before"],
        traces=joined["traces"],
        snapshots=joined["snapshots"],
        snapshot_steps=np.array(settings.snapshot_steps(), np.int64),
        status=np.where(joined["dead"], "dead", status),
        converged_at=np.where(joined["dead"], -1, joined["converged_at"]),
        settings=settings.to_dict(),
        info={
            "seed": seed,
            "objective": getattr(objective, "__name__", "custom"),
            "leaking": model.nearest_activations(layer) if settings.leak > 0 else {},
            "source": model.network.source,
            "source_sha256": model.network.source_sha256,
            "graph_sha256": model.network.graph_sha256,
            "versions": {name: version(name) for name in ("oip_torch", "torch", "numpy")},
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
            "dtype": str(model.dtype).removeprefix("torch."),
            "image_steps": sum(spent),
            "predicted_bytes": plan.bytes,
            "seconds": time.perf_counter() - began,
        },
    )


@dataclass(frozen=True)
class _Plan:
    """How the images are worked on: so many in a batch, so many batches at once, in so much memory."""

    batch_size: int
    workers: int
    bytes: int


def _plan(
    model: FeatureModel,
    layer: str,
    count: int,
    settings: AscentSettings,
    objective: Objective,
    batch_size: int | None,
    memory: int | None,
) -> _Plan:
    """As many images at once as are worth it and fit; an `InputError` where not even one does."""
    on_cpu = model.device.type == "cpu"
    free = free_bytes(model.device) // 2 if memory is None else memory
    result = sum(array.nbytes for array in _room(model, 1, settings).values())
    results = count * result if on_cpu else 0
    cores = torch.get_num_threads() if on_cpu else 1
    # While a batch is at work it holds the results of two finalists and of the better ones, and about so many images.
    step = model.step_bytes(layer, leaky=settings.leak > 0, one_map=objective in OF_ONE_MAP)
    tensors = step + 3 * result + 16 * math.prod(model.input_shape) * model.dtype.itemsize
    one = int(_BESIDE * tensors)
    room = max(0, free - results - _LIBRARIES)
    workers = min(cores, count, room // one)
    if workers == 0:
        raise InputError(
            f"OIPs of {layer!r}, {count} in number, need {in_words(_LIBRARIES + results + one)} of memory, "
            f"{in_words(results)} of it for the results, and {in_words(free)} may be used: ask for fewer maps or "
            "starts, keep fewer snapshots (AscentSettings(snapshots=())), or allow more (memory=BYTES or --memory GIB, "
            "at most what is free)"
        )
    most = _BATCH[model.device.type] if batch_size is None else batch_size
    if on_cpu and batch_size is None:
        most = min(most, max(1, _CORE_BYTES // one))
    most = min(most, room // (workers * one))
    rounds = -(-count // (workers * most))
    size = -(-count // (workers * rounds))  # of equal batches, so that no core waits for another one in the end
    return _Plan(size, workers, _LIBRARIES + results + workers * size * one)


def _room(model: FeatureModel, count: int, settings: AscentSettings) -> dict[str, npt.NDArray[Any]]:
    """Arrays for what `_Batch.ascend` finds of so many images, to be filled batch by batch."""
    channels, height, width = model.input_shape
    numbers = torch.empty(0, dtype=model.dtype).numpy().dtype
    pixels = (height, width, channels)
    rows: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
        "images": (pixels, numbers),
        "scores": ((), numbers),
        "largest_before": ((), numbers),
        "traces": ((settings.steps,), numbers),
        "snapshots": ((len(settings.snapshot_steps()), *pixels), numbers),
        "converged_at": ((), np.int64),
        "dead": ((), bool),
        "woken": ((), bool),
    }
    return {name: np.empty((count, *shape), kind) for name, (shape, kind) in rows.items()}


def _each_batch(work: Callable[[int], None], firsts: Sequence[int], workers: int) -> None:
    """`work` on each batch, which it is told by the number of its first image.

    On a CPU the cores work on a batch each, instead of all on one: operations this small spend more time waiting for
    each other than computing, and where another program holds a core they wait for it at every operation (measured
    with one core busy: 4.5 ms an image-step with two threads on one batch, 0.6 ms with one).
    """
    if workers == 1:
        for first in firsts:
            work(first)
        return
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,)) as pool:
            try:
                for done in [pool.submit(work, first) for first in firsts]:
                    done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # what has not begun need not, for Ctrl-C above all
                raise
    finally:
        torch.set_num_threads(cores)


def chosen_maps(model: FeatureModel, layer: str, maps: int | Iterable[int] | None) -> list[int]:
    """The maps as a list, each once; None stands for all. An `InputError` names the range."""
    count = model.layers[layer].maps
    if maps is None:
        return list(range(count))
    numbers = [maps] if isinstance(maps, (int, np.integer)) else list(maps)
    if not numbers:
        raise InputError(
            f"no maps of layer {layer!r} were given: expected numbers from 0 to {count - 1}, or None for all"
        )
    for number in numbers:
        if not is_whole(number) or not 0 <= number < count:
            raise InputError(f"layer {layer!r} has no map {number}: expected a number from 0 to {count - 1}")
    return [int(number) for number in dict.fromkeys(numbers)]


class _Batch:
    """The images of some (map, start) that are ascended together, and the image-steps that they have cost."""

    def __init__(
        self,
        model: FeatureModel,
        layer: str,
        keys: Sequence[tuple[int, int]],
        seed: int,
        settings: AscentSettings,
        objective: Objective,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.layer, self.keys, self.seed = model, layer, keys, seed
        self.settings, self.objective, self.advance = settings, objective, advance
        self.maps = torch.tensor([key[0] for key in keys], device=model.device)
        self.columns = torch.arange(len(keys), device=model.device)
        self.spent = 0

    def ascend(self) -> dict[str, Any]:
        """What `_room` has room for, of these images."""
        settings = self.settings
        asleep = torch.zeros_like(self.maps, dtype=torch.bool)
        if settings.candidates == 1:
            numbers = torch.zeros_like(self.maps)
            result = self.climb_on(self.beginning(numbers), numbers, asleep)
        else:
            images, chosen, awake = self.precursor()
            if settings.waking and settings.steps > 1:
                asleep = ~awake
            result = self.climb_on(images[0], chosen[0], asleep)
            for x, numbers in zip(images[1:], chosen[1:], strict=True):
                result = _better(result, self.climb_on(x, numbers, asleep))
        result["woken"] = asleep & ~result["dead"]
        with torch.no_grad():
            before = self.model.up_to(self.layer, before_activation=True)(result["images"])
        rows = before[self.columns, self.maps]
        result["largest_before"] = rows.flatten(1).amax(1) if rows.ndim > 1 else rows
        for name in ("images", "snapshots"):  # outside, channels come last
            result[name] = result[name].movedim(-3, -1)
        return {name: tensor.cpu().numpy() for name, tensor in result.items() if name != "promise"}

    def precursor(self) -> tuple[Tensor, Tensor, Tensor]:
        """The most promising candidates of each image after a short climb each, the best first.

        Promising is judged by the leaky score, which ranks sleeping maps as well.

        Returns:
            (finalists, batch, …) images, (finalists, batch) their numbers, and (batch,) whether any candidate fires.
        """
        awake = torch.zeros_like(self.maps, dtype=torch.bool)
        images: list[Tensor] = []
        promise: list[Tensor] = []
        numbers: list[Tensor] = []
        for candidate in range(self.settings.candidates):
            number = torch.full_like(self.maps, candidate)
            trial = self.climb(self.beginning(number), self.maps, self.settings.candidate_schedule)
            awake |= trial["scores"] > 0
            ranked = torch.stack([*promise, trial["promise"]])
            order = ranked.topk(min(self.settings.finalists, len(ranked)), dim=0).indices
            promise = list(ranked[order, self.columns])
            images = list(torch.stack([*images, trial["images"]])[order, self.columns])
            numbers = list(torch.stack([*numbers, number])[order, self.columns])
        return torch.stack(images), torch.stack(numbers), awake

    def climb_on(self, x: Tensor, numbers: Tensor, asleep: Tensor) -> dict[str, Tensor]:
        """An ascent that may end in the result: the maps that sleep by way of their peak, the others straight."""
        added: dict[int, Tensor] = {}
        if self.settings.stages is not None:
            ends = np.cumsum(self.settings.stages)[:-1].tolist()
            added = dict(zip(ends, self.parts(numbers)[1:], strict=True))
        kept, schedule = self.settings.snapshot_steps(), self.settings.schedule
        if not asleep.any():
            result = self.climb(x, self.maps, schedule, kept=kept, added=added, settings=self.settings)
        else:
            result = self.by_the_peak(x[asleep], self.maps[asleep], kept)
            if not asleep.all():
                there = {step: part[~asleep] for step, part in added.items()}
                others = self.climb(
                    *(x[~asleep], self.maps[~asleep], schedule), kept=kept, added=there, settings=self.settings
                )
                order = torch.cat([torch.nonzero(asleep), torch.nonzero(~asleep)]).flatten().argsort()
                result = {name: torch.cat([result[name], others[name]])[order] for name in result}
        return result if self.settings.candidates == 1 else _unless_worse(x, result)

    def by_the_peak(self, x: Tensor, maps: Tensor, kept: tuple[int, ...]) -> dict[str, Tensor]:
        """The ascent of maps that sleep.

        The mean over a map can stay below 0 while one place of it could fire. So the largest pre-activation is ascended
        until it is as large as it gets; then what was asked for, in steps so small that the map does not fall asleep
        again.
        """
        whole = self.settings.steps
        steps = max(1, whole * _TO_THE_PEAK.steps // (_TO_THE_PEAK.steps + _FROM_THE_PEAK.steps))
        up = dataclasses.replace(_TO_THE_PEAK, steps=steps)
        on = dataclasses.replace(_FROM_THE_PEAK, steps=whole - steps)
        peak = self.climb(x, maps, up, ascended=map_peak, kept=tuple(step for step in kept if step < steps))
        mean = self.climb(peak["images"], maps, on, kept=tuple(step - steps for step in kept if step >= steps))
        result = _unless_worse(peak["images"], mean)
        for name in ("traces", "snapshots"):
            result[name] = torch.cat([peak[name], mean[name]], dim=1)
        # The largest pre-activation is the evidence of a map that stays dead, and tells its tries apart.
        return result | {"promise": peak["promise"], "converged_at": torch.full_like(mean["converged_at"], -1)}

    def climb(self, x: Tensor, maps: Tensor, schedule: Schedule, **more: Any) -> dict[str, Tensor]:
        """`climb`, counted."""

        def advance(count: int) -> None:
            self.spent += count
            self.advance(count)

        return climb(self.model, self.layer, x, maps, schedule, self.objective, advance=advance, **more)

    def parts(self, numbers: Tensor) -> Tensor:
        """(components, batch, …) of each image's candidate of this number."""
        keys: list[Key] = [(*key, number) for key, number in zip(self.keys, numbers.tolist(), strict=True)]
        made = components(self.model.input_shape, keys, layer=self.layer, seed=self.seed, settings=self.settings.start)
        return made.to(self.model.device, self.model.dtype)

    def beginning(self, numbers: Tensor) -> Tensor:
        """The start from its components: all of them, or with stages the longest wavelengths alone."""
        parts = self.parts(numbers)
        return standardize(parts.sum(0) if self.settings.stages is None else parts[0])


def _better(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Image by image the better one of two ascents: by its score, and where both sleep by its promise."""
    same = second["scores"] == first["scores"]
    second_wins = (second["scores"] > first["scores"]) | (same & (second["promise"] > first["promise"]))
    return {name: torch.where(_like(second_wins, first[name]), second[name], first[name]) for name in first}


def _unless_worse(x: Tensor, result: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ascent from `x`, with `x` itself as the image where the steps led to a lower score."""
    worse = result["traces"][:, 0] > result["scores"]
    scores = torch.where(worse, result["traces"][:, 0], result["scores"])
    images = torch.where(_like(worse, x), x, result["images"])
    return result | {"images": images, "scores": scores, "dead": result["dead"] & (scores <= 0)}


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    """(batch,) in a form that selects rows of (batch, …)."""
    return mask.view(-1, *[1] * (tensor.ndim - 1))
