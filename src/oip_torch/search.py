"""How is a strong OIP found for every map?

Many starts, a precursor that tries candidates, staged evolution, and maps that sleep: all of it batched, and all of it
counted in image-steps, so that what a result has cost can be said.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from oip_torch.ascent import AscentSettings, climb
from oip_torch.checks import shown, whole, whole_numbers
from oip_torch.engine import gradients, keep_freed_memory, products
from oip_torch.errors import InputError, OipError
from oip_torch.loop import Ascents, Schedule, rows_of
from oip_torch.memory import free_bytes, in_words
from oip_torch.model import FeatureModel
from oip_torch.objectives import Objective, check_objective, is_of_one_map, map_mean, map_peak, name_of, of_each
from oip_torch.oips import Oips
from oip_torch.onnx_file import Layer
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
_WAKE_SECONDS = 0.1  # how long a Ctrl-C may go unseen

logger = logging.getLogger("oip_torch")


@gradients()
def ascend(
    model: FeatureModel,
    layer: str | Layer,
    maps: int | Iterable[int] | Tensor | None = None,
    *,
    starts: int = 1,
    seed: int = 0,
    settings: AscentSettings | None = None,
    objective: Objective = map_mean,
    before_activation: bool | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> Oips:
    """Make OIPs: images that the chosen maps of a layer respond to.

        oips = oip.ascend(model, "Conv2D_3", maps=[17, 56], starts=4)

    Args:
        model: from `load` or `convert`; the work is done where its weights are, in their dtype.
        layer: name of the layer, or its entry of `model.layers`.
        maps: which of its maps (or units), each once: whole numbers, or a mask of booleans; None: all of them.
        starts: how many images per map, each from a start of its own (or from the best of its own candidates).
        seed: each image's random numbers depend on (seed, layer, map, start number) alone.
        settings: default `AscentSettings()`.
        objective: what is maximised, see `objectives`. A function of one's own has to score each image by its own
            activations alone: one that lets images enter each other's scores would give other results with another
            `batch_size`, and is refused.
        before_activation: maximise what goes into the layer's activation instead of what comes out. None: where the
            activation is a softmax or a sigmoid, which end at 1 whatever goes in, so that all scores would be 1.
        batch_size: images at once, at most; default by device.
        memory: bytes that this may take beyond what the process holds already: on a CPU for the work and its results,
            on CUDA for the work on the card. Default: half of what is free. Fewer images at once are worked on where it
            is little. What is expected is told by `info["predicted_bytes"]`.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Returns:
        The OIPs, map by map, start by start. Images that left the finite numbers are not among them:
        `info["not_finite"]` names them, as [map, start], and so does a warning of the logger "oip_torch".

    Raises:
        InputError: an argument of a wrong kind, unknown layer, a map out of range or named twice, an objective that
            cannot be maximised, or more images than fit in memory.
        OipError: every image left the finite numbers.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
    model.check_dtype()
    layer = model.layer(layer).name
    settings = AscentSettings() if settings is None else settings
    if not isinstance(settings, AscentSettings):
        raise InputError(
            f"settings is {shown(settings)}: expected AscentSettings(…), AscentSettings.article(…) or "
            "AscentSettings.within(…)"
        )
    numbers = chosen_maps(model, layer, maps)
    starts, seed = whole("starts", starts, 1), whole("seed", seed, 0)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    memory = None if memory is None else whole("memory", memory, 1)
    target = _target(model, layer, model.before_activation(layer, before_activation), objective)
    fingerprint = model.fingerprint
    plan = _plan(target, len(numbers) * starts, settings, batch_size, memory)
    keys = [(number, start) for number in numbers for start in range(starts)]
    if model.device.type == "cpu":
        keep_freed_memory()
    joined = _room(model, len(keys), settings)
    spent: list[int] = []
    stop = threading.Event()
    began = time.perf_counter()
    with bar(f"ascending {layer}", len(keys) * settings.image_steps, progress) as tell:

        def advance(count: int) -> None:
            if stop.is_set():
                raise _StoppedError
            tell(count)

        def work(first: int) -> None:
            rows = slice(first, first + plan.batch_size)
            batch = _Batch(target, keys[rows], seed, settings, advance)
            for name, values in batch.ascend().items():
                joined[name][rows] = values
            spent.append(batch.spent)

        with products(tf32=settings.tf32):  # of this process; autocast is a thread's, and off in new ones
            _each_batch(work, range(0, len(keys), plan.batch_size), plan.workers, stop)
    finite = np.isfinite(joined["images"]).all((1, 2, 3)) & np.isfinite(joined["scores"])
    lost = [key for key, sound in zip(keys, finite, strict=True) if not sound]
    if lost:
        text = (
            f"{len(lost)} of {len(keys)} images of {layer!r} left the finite numbers: {_named(lost, model.noun(layer))}"
        )
        hint = "use a smaller epsilon, or float64, and look whether the weights are finite"
        if len(lost) == len(keys):
            raise OipError(f"{text}; {hint}")
        logger.warning("note: %s; they are not among the results: %s", text, hint)
    status = np.where(joined["converged_at"] >= 0, "converged", "finished")
    status = np.where(joined["woken"], "woken", status)
    oips = Oips(
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
            "objective": name_of(objective),
            "way": settings.summary,
            "noun": model.noun(layer),
            "activation": model.layers[layer].activation,
            "before_activation": target.before_activation,
            "leaking": target.nearest_activations() if settings.leak > 0 else {},
            "source": model.network.source,
            "source_sha256": model.network.source_sha256,
            "graph_sha256": fingerprint,
            "weights": "as converted" if fingerprint == model.network.graph_sha256 else "changed since the conversion",
            "versions": {name: version(name) for name in ("oip_torch", "torch", "numpy")},
            "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
            "dtype": str(model.dtype).removeprefix("torch."),
            "not_finite": [list(key) for key in lost],
            "image_steps": sum(spent),
            "predicted_bytes": plan.bytes,
            "seconds": time.perf_counter() - began,
        },
    )
    return oips.take(finite) if lost else oips


class _StoppedError(Exception):
    """Another thread failed, or was interrupted: this one need not go on."""


def _named(keys: Sequence[tuple[int, int]], noun: str) -> str:
    """[(3, 0), (3, 1), (5, 0)] → "map 3 (starts 0, 1), map 5 (start 0)"; at most eight maps by name."""
    starts: dict[int, list[int]] = {}
    for number, start in keys:
        starts.setdefault(number, []).append(start)
    named = [
        f"{noun} {number} (start{'s' if len(own) > 1 else ''} {', '.join(map(str, own))})"
        for number, own in starts.items()
    ]
    return ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")


@dataclass(frozen=True)
class _Target:
    """What is looked at, and what is maximised there; the networks up to it are built once, and for one call alone.

    `rising`: whether the objective grows where the map responds. Where it does not, a silent map is no failure.
    """

    model: FeatureModel
    layer: str
    before_activation: bool
    objective: Objective
    rising: bool
    climbed: Callable[..., fx.GraphModule]

    @property
    def wakes(self) -> bool:
        """Whether there is something to wake: the layer's own activation, in a map that should respond."""
        return self.rising and not self.before_activation

    def nearest_activations(self) -> dict[str, str]:
        return self.model.nearest_activations(self.layer, before_activation=self.before_activation)

    def step_bytes(self, *, leaky: bool, one_map: bool) -> int:
        return self.model.step_bytes(self.layer, leaky=leaky, one_map=one_map, before_activation=self.before_activation)


def _target(model: FeatureModel, layer: str, before_activation: bool, objective: Objective) -> _Target:
    climbed = functools.cache(functools.partial(model.climbed, layer, before_activation=before_activation))
    rising = True
    if not is_of_one_map(objective):
        image = torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype)
        with torch.no_grad():
            activations = model.up_to(layer, before_activation=before_activation)(image)
        rising = check_objective(objective, activations)
    return _Target(model, layer, before_activation, objective, rising, climbed)


@dataclass(frozen=True)
class _Plan:
    """How the images are worked on: so many in a batch, so many batches at once, in so much memory."""

    batch_size: int
    workers: int
    bytes: int


def _plan(target: _Target, count: int, settings: AscentSettings, batch_size: int | None, memory: int | None) -> _Plan:
    """As many images at once as are worth it and fit; an `InputError` where not even one does."""
    model = target.model
    on_cpu = model.device.type == "cpu"
    free = free_bytes(model.device) // 2 if memory is None else memory
    result = sum(array.nbytes for array in _room(model, 1, settings).values())
    results = count * result if on_cpu else 0
    cores = torch.get_num_threads() if on_cpu else 1
    plain = is_of_one_map(target.objective)
    networks = {(settings.leak > 0, plain)}
    if settings.candidates > 1 and settings.waking and settings.steps > 1 and target.wakes:  # see _Batch.by_the_peak
        networks |= {(True, is_of_one_map(target.objective, map_peak)), (True, plain)}
    step = max(target.step_bytes(leaky=leaky, one_map=one_map) for leaky, one_map in networks)
    # While a batch is at work it holds the results of two finalists and of the better ones, what is kept of the
    # finalists' trials, and about so many images.
    tried = sum(kept < settings.trial_steps for kept in settings.snapshot_steps())
    images = 16 + 3 * (1 + settings.finalists) * tried
    one = int(_BESIDE * (step + 3 * result + images * math.prod(model.input_shape) * model.dtype.itemsize))
    room = max(0, free - results - _LIBRARIES)
    workers = min(cores, count, room // one)
    if workers == 0:
        raise InputError(
            f"OIPs of {target.layer!r}, {count} in number, need {in_words(_LIBRARIES + results + one)} of memory, "
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
    numbers = torch.empty(0, dtype=model.dtype, device="cpu").numpy().dtype
    pixels = (height, width, channels)
    rows: dict[str, tuple[tuple[int, ...], npt.DTypeLike]] = {
        "images": (pixels, numbers),
        "scores": ((), numbers),
        "largest_before": ((), numbers),
        "traces": ((settings.way_steps,), numbers),
        "snapshots": ((len(settings.snapshot_steps()), *pixels), numbers),
        "converged_at": ((), np.int64),
        "dead": ((), bool),
        "woken": ((), bool),
    }
    return {name: np.empty((count, *shape), kind) for name, (shape, kind) in rows.items()}


def _each_batch(work: Callable[[int], None], firsts: Sequence[int], workers: int, stop: threading.Event) -> None:
    """`work` on each batch, which it is told by the number of its first image; `stop` is set where one fails.

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
                pending = {pool.submit(work, first) for first in firsts}
                while pending:
                    # Not for ever: a wait without an end is not woken by every signal on every system.
                    done, pending = wait(pending, timeout=_WAKE_SECONDS, return_when=FIRST_EXCEPTION)
                    for finished in done:
                        finished.result()
            except BaseException:  # Ctrl-C above all
                stop.set()  # who is at work ends after its step,
                pool.shutdown(wait=False, cancel_futures=True)  # and what has not begun need not
                raise
    finally:
        torch.set_num_threads(cores)


def chosen_maps(model: FeatureModel, layer: str, maps: int | Iterable[int] | Tensor | None) -> list[int]:
    """The maps as a list; None stands for all. An `InputError` names the range, and what was named twice."""
    count, noun = model.layers[layer].maps, model.noun(layer)
    if maps is None:
        return list(range(count))
    numbers = whole_numbers(f"maps of layer {layer!r}", maps, count)
    if not numbers:
        raise InputError(
            f"no maps of layer {layer!r} were given: expected numbers from 0 to {count - 1}, or None for all"
        )
    for number in numbers:
        if not 0 <= number < count:
            raise InputError(f"layer {layer!r} has no {noun} {number}: expected a number from 0 to {count - 1}")
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise InputError(
            f"{noun} {twice} of layer {layer!r} is named more than once: expected each once; several images of one "
            "come from several starts (starts=3, --starts 3)"
        )
    return numbers


class _Batch:
    """The images of some (map, start) that are ascended together, and the image-steps that they have cost."""

    def __init__(
        self,
        target: _Target,
        keys: Sequence[tuple[int, int]],
        seed: int,
        settings: AscentSettings,
        advance: Callable[[int], None],
    ) -> None:
        self.target, self.model, self.keys, self.seed = target, target.model, keys, seed
        self.settings, self.advance = settings, advance
        self.maps = torch.tensor([key[0] for key in keys], device=self.model.device)
        self.columns = torch.arange(len(keys), device=self.model.device)
        self.spent = 0

    @gradients()
    def ascend(self) -> dict[str, Any]:
        """What `_room` has room for, of these images."""
        settings = self.settings
        asleep = torch.zeros_like(self.maps, dtype=torch.bool)
        if settings.candidates == 1:
            numbers = torch.zeros_like(self.maps)
            result = self.climb_on(self.beginning(numbers), numbers, asleep)
        else:
            trials, chosen, awake = self.precursor()
            if settings.waking and settings.steps > 1 and self.target.wakes:
                asleep = ~awake
            tries = [
                _after(trial, self.climb_on(trial.images, numbers, asleep))
                for trial, numbers in zip(trials, chosen, strict=True)
            ]
            result = functools.reduce(_better, tries)
        with torch.no_grad():
            before = self.model.up_to(self.target.layer, before_activation=True)(result.images)
        found = {
            "images": result.images.movedim(-3, -1),  # outside, channels come last
            "scores": result.scores,
            "largest_before": of_each(before, self.maps).reshape(len(self.maps), -1).amax(1),
            "traces": result.traces,
            "snapshots": result.snapshots.movedim(-3, -1),
            "converged_at": result.converged_at,
            "dead": ~result.responded & self.target.wakes,
            "woken": asleep & ~result.silent,
        }
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def precursor(self) -> tuple[list[Ascents], Tensor, Tensor]:
        """The most promising candidates of each image after a short climb each, the best first.

        Promising is judged by the leaky score, which ranks sleeping maps as well.

        Returns:
            The finalists' trials, the best of all images first; (finalists, batch) their numbers; and (batch,) whether
            the map responded to any candidate.
        """
        awake = torch.zeros_like(self.maps, dtype=torch.bool)
        kept = tuple(step for step in self.settings.snapshot_steps() if step < self.settings.trial_steps)
        best: list[Ascents] = []
        numbers = self.maps.new_empty(0, len(self.maps))
        for candidate in range(self.settings.candidates):
            number = torch.full_like(self.maps, candidate)
            trial = self.climb(self.beginning(number), self.maps, self.settings.candidate_schedule, kept=kept)
            awake |= ~trial.silent
            best, numbers = [*best, trial], torch.cat([numbers, number[None]])
            ranked = torch.stack([each.leaky_scores for each in best]).nan_to_num(nan=-math.inf, posinf=-math.inf)
            order = ranked.topk(min(self.settings.finalists, len(ranked)), dim=0).indices
            best, numbers = [Ascents.pick(best, place) for place in order], numbers.gather(0, order)
        return best, numbers, awake

    def climb_on(self, x: Tensor, numbers: Tensor, asleep: Tensor) -> Ascents:
        """An ascent that may end in the result: the maps that sleep by way of their peak, the others straight."""
        tried = self.settings.trial_steps
        added: dict[int, Tensor] = {}
        if self.settings.stages is not None:
            ends = np.cumsum(self.settings.stages)[:-1].tolist()
            added = dict(zip(ends, self.parts(numbers)[1:], strict=True))
        kept = tuple(step - tried for step in self.settings.snapshot_steps() if step >= tried)

        def straight(rows: Tensor) -> Ascents:
            there = {step: part[rows] for step, part in added.items()}
            schedule = self.settings.schedule
            return self.climb(x[rows], self.maps[rows], schedule, kept=kept, added=there, settings=self.settings)

        if not asleep.any():
            return straight(torch.ones_like(asleep))
        parts = [self.by_the_peak(x[asleep], self.maps[asleep], kept)]
        if not asleep.all():
            parts.append(straight(~asleep))
        order = torch.cat([torch.nonzero(asleep), torch.nonzero(~asleep)]).flatten().argsort()
        return Ascents.cat(parts).take(order)

    def by_the_peak(self, x: Tensor, maps: Tensor, kept: tuple[int, ...]) -> Ascents:
        """The ascent of maps that sleep.

        The mean over a map can stay below 0 while one place of it could fire. So the largest pre-activation is ascended
        until it is as large as it gets; then what was asked for, in steps so small that the map does not fall asleep
        again.
        """
        all_steps = self.settings.steps
        steps = max(1, all_steps * _TO_THE_PEAK.steps // (_TO_THE_PEAK.steps + _FROM_THE_PEAK.steps))
        up = dataclasses.replace(_TO_THE_PEAK, steps=steps)
        on = dataclasses.replace(_FROM_THE_PEAK, steps=all_steps - steps)
        peak = self.climb(x, maps, up, ascended=map_peak, kept=tuple(step for step in kept if step < steps))
        later = tuple(step - steps for step in kept if step >= steps)
        mean = self.climb(peak.images, maps, on, kept=later, settings=self.settings)
        # The largest pre-activation is the evidence of a map that stays dead, and tells its tries apart.
        return dataclasses.replace(_after(peak, mean), leaky_scores=peak.leaky_scores)

    def climb(self, x: Tensor, maps: Tensor, schedule: Schedule, **more: Any) -> Ascents:
        """`climb`, counted."""

        def advance(count: int) -> None:
            self.spent += count
            self.advance(count)

        return climb(self.target.climbed, x, maps, schedule, self.target.objective, advance=advance, **more)

    def parts(self, numbers: Tensor) -> Tensor:
        """(components, batch, …) of each image's candidate of this number."""
        keys: list[Key] = [(*key, number) for key, number in zip(self.keys, numbers.tolist(), strict=True)]
        made = components(
            self.model.input_shape, keys, layer=self.target.layer, seed=self.seed, settings=self.settings.start
        )
        return made.to(self.model.device, self.model.dtype)

    def beginning(self, numbers: Tensor) -> Tensor:
        """The start from its components: all of them, or with stages the longest wavelengths alone."""
        parts = self.parts(numbers)
        return standardize(parts.sum(0) if self.settings.stages is None else parts[0])


def _better(first: Ascents, second: Ascents) -> Ascents:
    """Image by image the better one of two ascents: by its score, and where both sleep by its leaky score."""
    equal = (second.scores == first.scores) & (second.leaky_scores > first.leaky_scores)
    lost = ~first.scores.isfinite() & second.scores.isfinite()
    return second.where((second.scores > first.scores) | equal | lost, first)


def _after(before: Ascents, then: Ascents) -> Ascents:
    """Two ascents, the second from where the first ended, as one way.

    It ends with the second's image, or where its steps led to a lower score with the first's.
    """
    steps = before.traces.shape[1]
    began = then.traces[:, 0]
    worse = began > then.scores
    return dataclasses.replace(
        then,
        images=torch.where(rows_of(worse, then.images), before.images, then.images),
        scores=torch.where(worse, began, then.scores),
        silent=torch.where(worse, before.silent, then.silent),
        traces=torch.cat([before.traces, then.traces], dim=1),
        snapshots=torch.cat([before.snapshots, then.snapshots], dim=1),
        converged_at=torch.where(then.converged_at < 0, -1, then.converged_at + steps),
        responded=before.responded | then.responded,
    )
