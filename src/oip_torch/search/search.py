"""How is a strong OIP found for every map?

The call is checked, its work planned by memory and cores, and done batch by batch; what a result has cost is counted in
image-steps, so that it can be said.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from importlib.metadata import version
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.platform import keep_freed_memory, matmul_precision, recorded_gradients
from oip_torch.base.progress import bar
from oip_torch.base.tensors import standardize
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.objectives import Objective, ScoreFunction, map_mean
from oip_torch.optim.settings import AscentSettings
from oip_torch.optim.starts import given_images
from oip_torch.results.oips import Oips
from oip_torch.results.provenance import Provenance
from oip_torch.search.batch import Batch
from oip_torch.search.chosen import chosen_maps, maps_of_each
from oip_torch.search.plan import Plan, plan_of
from oip_torch.search.step import Callback, one_at_a_time
from oip_torch.search.target import Target, target_of

__all__ = ["ascend", "ascend_layer", "provenance_of"]

_WAKE_SECONDS = 0.1  # how long a Ctrl-C may go unseen

logger = logging.getLogger("oip_torch")


@overload
def ascend(  # type: ignore[overload-overlap]  # a text is an Iterable of texts as well
    model: FeatureModel,
    layer: str | Layer,
    maps: int | Iterable[int] | Tensor | None = None,
    *,
    starts: int = 1,
    seed: int = 0,
    start: npt.ArrayLike | Tensor | None = None,
    settings: AscentSettings | None = None,
    objective: Objective | ScoreFunction = map_mean,
    pre_activation: bool | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Oips: ...
@overload
def ascend(
    model: FeatureModel,
    layer: Iterable[str | Layer],
    maps: Mapping[str, int | Iterable[int] | Tensor | None] | None = None,
    *,
    starts: int = 1,
    seed: int = 0,
    start: npt.ArrayLike | Tensor | None = None,
    settings: AscentSettings | None = None,
    objective: Objective | ScoreFunction = map_mean,
    pre_activation: bool | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> dict[str, Oips]: ...
@recorded_gradients()
def ascend(
    model: FeatureModel,
    layer: str | Layer | Iterable[str | Layer],
    maps: int | Iterable[int] | Tensor | Mapping[str, int | Iterable[int] | Tensor | None] | None = None,
    *,
    starts: int = 1,
    seed: int = 0,
    start: npt.ArrayLike | Tensor | None = None,
    settings: AscentSettings | None = None,
    objective: Objective | ScoreFunction = map_mean,
    pre_activation: bool | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    callback: Callback | None = None,
) -> Oips | dict[str, Oips]:
    """Make OIPs: images that the chosen maps of a layer respond to.

        oips = oip.ascend(model, "Conv2D_3", maps=[17, 56], starts=4)
        of_each = oip.ascend(model, ["Conv2D_1", "Conv2D_2"])    # {"Conv2D_1": …, "Conv2D_2": …}

    Args:
        model: from `load`, `convert` or `wrap`; the work is done where its weights are, in their dtype.
        layer: name of the layer, or its entry of `model.layers`; or several of them, each once.
        maps: which of its maps (or units), each once: whole numbers, or a mask of booleans; None: all of them. Of
            several layers a dict of these by the layer's name: {"Conv2D_2": [3, 5]}; of those that it does not name,
            all. Where the objective is of no map of the layer, as `class_logit(3)` is, they number the images; None:
            one image.
        starts: how many images per map, each from a start of its own (or from the best of its own candidates).
        seed: each image's random numbers depend on (seed, layer, map, start number) alone.
        start: images of one's own to begin with, instead of noise: an array or tensor (N, height, width, channels),
            such as `oips.images` or `calibration.top_mean(layer)`. Each is standardised, whatever its scale, and then
            brought within the settings' constraint. N is 1 (the same for all), the number of maps, or that of maps
            times starts, in the order of the result; several starts from the same image need views, or all would end
            alike. Nothing is screened then: the settings are taken, and kept in the result, with one candidate.
        settings: default `AscentSettings()`.
        objective: what is maximised, see `oip_torch.objectives`: a value of that module, or a function of one's own,
            (activations, channels) → (batch,). That has to score each image by its own activations alone: one that lets
            images enter each other's scores would give other results with another `batch_size`, and is refused.
        pre_activation: maximise what goes into the layer's activation instead of what comes out. None: where the
            activation is a softmax or a sigmoid, which end at 1 whatever goes in, so that all scores would be 1.
        batch_size: images at once, at most; default by device.
        memory: bytes that this may take beyond what the process holds already: on a CPU for the work and its results,
            on CUDA for the work on the card. Default: half of what is free. Fewer images at once are worked on where it
            is little. What is expected is told by `provenance.predicted_bytes`.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.
        callback: a function that is told of every step of every batch, as a `Step`: layer, maps, step, scores, images.
            It is called by one thread at a time, on a CPU with several cores by another one than yours. What it raises
            ends the ascent, and comes out of it.

    Returns:
        The OIPs, map by map, start by start; of several layers a dict of them by name, in the order given. Images that
        left the finite numbers are not among them: `provenance.not_finite` names them, as [map, start], and so does a
        warning of the logger "oip_torch".

    Raises:
        InputError: an argument of a wrong kind, unknown layer, a layer named twice, a map out of range or named twice,
            an objective that cannot be maximised, start images of another shape or number or of one value, settings
            that do not fit the network's images, or more images than fit in memory.
        OipError: every image left the finite numbers; where noise does so already, the layer is named.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load, convert or wrap returns")
    model.check_dtype()
    if callback is not None and not callable(callback):
        raise InputError(f"callback is {shown(callback)}: expected a function of one argument, a Step, or None")
    settings = AscentSettings() if settings is None else settings
    if not isinstance(settings, AscentSettings):
        raise InputError(
            f"settings is {shown(settings)}: expected AscentSettings(…), AscentSettings.article(…) or "
            "AscentSettings.within(…)"
        )
    if not isinstance(objective, Objective):
        objective = Objective.of(objective)
    several = isinstance(layer, Iterable) and not isinstance(layer, (str, Layer))
    if several:
        of_each = maps_of_each(model, layer, maps, of_maps=objective.of_own_channel)
    else:
        name = model.layer(layer).name  # type: ignore[arg-type]  # which refuses what is none
        maps = 0 if maps is None and not objective.of_own_channel else maps
        of_each = {name: chosen_maps(model, name, maps)}  # type: ignore[arg-type]  # which refuses a dict
    starts, seed = whole("starts", starts, 1), whole("seed", seed, 0)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, 1)
    memory = None if memory is None else whole("memory", memory, 1)
    told = None if callback is None else one_at_a_time(callback)
    begun: dict[str, tuple[Tensor | None, str | None]] = dict.fromkeys(of_each, (None, None))
    if start is not None:
        for each, chosen in of_each.items():
            images, _ = begun[each] = given_images(start, model.input_shape, len(chosen), starts)
            _check_starts(settings, starts if len(start) < len(images) else 1)  # type: ignore[arg-type]
        settings = replace(settings, screening=replace(settings.screening, candidates=1))
    targets = {
        each: target_of(model, each, model.wants_pre_activation(each, pre_activation), objective, settings)
        for each in of_each
    }
    made = {}
    for each, chosen in of_each.items():
        given, start_sha256 = begun[each]
        made[each] = ascend_layer(
            *(targets.pop(each), chosen, range(starts), seed, settings),
            given=given,
            start_sha256=start_sha256,
            batch_size=batch_size,
            memory=memory,
            progress=progress,
            callback=told,
        )
        if lost := made[each].provenance.not_finite:
            _tell_of_lost(model, made[each], lost)
    return made if several else made[name]


@recorded_gradients()
def ascend_layer(
    target: Target,
    numbers: Sequence[int],
    starts: Sequence[int],
    seed: int,
    settings: AscentSettings,
    *,
    given: Tensor | None = None,
    start_sha256: str | None = None,
    batch_size: int | None = None,
    memory: int | None = None,
    progress: bool | None = None,
    callback: Callback | None = None,
    watch: Callable[[int], None] | None = None,
) -> Oips:
    """The OIPs of these maps of one layer, each with the starts of these numbers; those that are finite.

    Args:
        target: of the layer.
        numbers, starts: of the maps, and of each one's starts.
        seed, settings, batch_size, memory, progress, callback: as of `ascend`, checked.
        given: images that they begin with, one for each,
        start_sha256: and their digest.
        watch: is told of image-steps that were done, in whichever thread; what it raises ends the ascent.
    """
    model, layer = target.model, target.layer
    given = None if given is None else given.to(model.device, model.dtype)
    fingerprint = model.fingerprint
    plan = plan_of(target, len(numbers) * len(starts), settings, batch_size, memory)
    keys = [(number, start) for number in numbers for start in starts]
    if model.device.type == "cpu":
        keep_freed_memory()
    figures: dict[str, npt.NDArray[Any]] = {}
    spent: list[int] = []
    stop = threading.Event()
    lock = threading.Lock()
    began = time.perf_counter()
    with bar(f"ascending {layer}", len(keys) * settings.image_steps, progress) as tell:

        def advance(count: int) -> None:
            if stop.is_set():
                raise _StoppedError
            tell(count)
            if watch is not None:
                watch(count)

        def work(first: int) -> None:
            rows = slice(first, first + plan.batch_size)
            batch = Batch(target, keys[rows], seed, settings, advance, None if given is None else given[rows], callback)
            found = batch.run()
            with lock:  # the first batch tells what there is of each image: room for all is made once
                for name in found.keys() - figures.keys():
                    figures[name] = np.empty((len(keys), *found[name].shape[1:]), found[name].dtype)
            for name, values in found.items():
                figures[name][rows] = values
            spent.append(batch.spent)

        with matmul_precision(tf32=settings.tf32):  # of this process; autocast is a thread's, and off in new ones
            _each_batch(work, range(0, len(keys), plan.batch_size), plan, stop)
    finite = np.isfinite(figures["images"]).all((1, 2, 3)) & np.isfinite(figures["scores"])
    lost = [key for key, sound in zip(keys, finite, strict=True) if not sound]
    oips = Oips(
        layer=layer,
        maps=np.array([key[0] for key in keys], np.int64),
        starts=np.array([key[1] for key in keys], np.int64),
        snapshot_steps=np.array(settings.snapshot_steps(), np.int64),
        settings=settings,
        provenance=replace(
            provenance_of(target, seed, settings),
            start_sha256=start_sha256,
            fingerprint=fingerprint,
            weights=model.weights_in_words(fingerprint),
            not_finite=tuple(lost),
            image_steps=sum(spent),
            predicted_bytes=plan.bytes,
            seconds=time.perf_counter() - began,
        ),
        **figures,
    )
    return oips.take(finite) if lost else oips


def provenance_of(target: Target, seed: int, settings: AscentSettings) -> Provenance:
    """Where OIPs of this target come from, as far as it is known before they are made; without the fingerprint."""
    model = target.model
    return Provenance(
        seed=seed,
        objective=target.objective.name,
        scored_by=target.objective.reported.name,
        subject=target.subject,
        can_be_dead=target.can_be_dead,
        noun=target.noun,
        channels=model.layers[target.layer].maps,
        activation=model.layers[target.layer].activation,
        pre_activation=target.pre_activation,
        leaking=target.leaking if settings.schedule.leaks else {},
        domain=model.domain,
        source=model.network.source,
        source_sha256=model.network.source_sha256,
        versions={name: version(name) for name in ("oip_torch", "torch", "numpy")},
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
    )


def _tell_of_lost(model: FeatureModel, oips: Oips, lost: Sequence[tuple[int, int]]) -> None:
    """Say which images left the finite numbers; an `OipError` where none is left."""
    count = len(lost) + len(oips)
    text = f"{len(lost)} of {count} images of {oips.layer!r} left the finite numbers: {_named(lost, oips.noun)}"
    hint = "use a smaller epsilon, or float64, and look whether the weights are finite"
    noise = torch.randn((2, *model.input_shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            model.every_layer(model.to_input(standardize(noise.to(model.device, model.dtype))))
    except InputError as error:  # then it is not the ascent
        hint = f"for noise already {error}"
    if not len(oips):
        raise OipError(f"{text}; {hint}")
    logger.warning("note: %s; they are not among the results: %s", text, hint)


def _check_starts(settings: AscentSettings, same: int) -> None:
    """Raise an `InputError` where images of one's own are no starts; of each there are `same` copies for a map."""
    if settings.stages is not None:
        raise InputError(
            "stages add noise to a start of long wavelengths, and start gives other images: expected one of the two"
        )
    if same > 1 and settings.views is None:
        raise InputError(
            f"starts is {same}, and all of them would begin with the same image and end alike: expected start images "
            "for each, or settings with views, which differ by chance"
        )


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


def _each_batch(work: Callable[[int], None], firsts: Sequence[int], plan: Plan, stop: threading.Event) -> None:
    """`work` on each batch, which it is told by the number of its first image; `stop` is set where one fails.

    On a CPU the cores work on a batch each, instead of all on one: operations this small spend more time waiting for
    each other than computing, and where another program holds a core they wait for it at every operation (measured
    with one core busy: 4.5 ms an image-step with two threads on one batch, 0.6 ms with one).
    """
    cores = torch.get_num_threads()
    try:
        if plan.workers == 1:
            torch.set_num_threads(plan.threads)
            for first in firsts:
                work(first)
            return
        with ThreadPoolExecutor(plan.workers, initializer=torch.set_num_threads, initargs=(plan.threads,)) as pool:
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
