"""How is a strong OIP found for every map?

Many starts, a precursor that tries candidates, staged evolution, and maps that sleep: all of it batched, and all of it
counted in image-steps, so that what a result has cost can be said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oip_torch.ascent import AscentSettings, Schedule, climb, is_whole
from oip_torch.errors import InputError, OipError
from oip_torch.model import FeatureModel
from oip_torch.objectives import Objective, map_mean, map_peak
from oip_torch.oips import Oips
from oip_torch.progress import bar
from oip_torch.starts import Key, components, standardize

__all__ = ["ascend", "chosen_maps"]

_TO_THE_PEAK = Schedule(steps=100, epsilon=0.5, epsilon_last=0.005, leak=1.0, leak_last=1.0)
_FROM_THE_PEAK = Schedule(steps=60, epsilon=0.03, epsilon_last=0.005, leak=0.02)
"""How a dead map is woken. Of the 13 maps of the shipped model's Conv2D_2 that the ascent leaves dead these wake ten or
more; with steps of 0.1 and above in the second part, maps that fired fell back to 0."""
_BATCH = {"cpu": 64, "cuda": 4096}  # images at once; beyond that the time per image no longer falls


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
        batch_size: images at once; default by device.
        progress: show a bar on stderr; None: only on a terminal.

    Returns:
        The OIPs, map by map, start by start.

    Raises:
        InputError: unknown layer, a map out of range, a number that is not positive.
    """
    settings = settings or AscentSettings()
    numbers = chosen_maps(model, layer, maps)
    for name, value, least in (("starts", starts, 1), ("seed", seed, 0), ("batch_size", batch_size or 1, 1)):
        if not is_whole(value) or value < least:
            raise InputError(f"{name} is {value}: expected a whole number, {least} or more")
    keys = [(number, start) for number in numbers for start in range(starts)]
    began = time.perf_counter()
    with bar(f"ascending {layer}", len(keys) * settings.image_steps, progress) as advance:

        def work(part: Sequence[tuple[int, int]]) -> dict[str, Any]:
            return _ascend_batch(model, layer, part, seed, settings, objective, advance)

        batches = _each_batch(work, keys, batch_size, model.device)
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    if not (np.isfinite(joined["images"]).all() and np.isfinite(joined["scores"]).all()):
        raise OipError(f"the ascent of {layer!r} left the finite numbers: use a smaller epsilon, or float64")
    status = np.where(joined["converged_at"] >= 0, "converged", "finished")
    status = np.where(joined["woken"], "woken", status)
    return Oips(
        layer=layer,
        maps=np.array([key[0] for key in keys], np.int64),
        starts=np.array([key[1] for key in keys], np.int64),
        images=joined["images"].transpose(0, 2, 3, 1),
        scores=joined["scores"],
        largest_before=joined["largest_before"],
        traces=joined["traces"],
        snapshots=joined["snapshots"].transpose(0, 1, 3, 4, 2),
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
            "image_steps": int(joined["image_steps"].sum()),
            "seconds": time.perf_counter() - began,
        },
    )


def _each_batch(
    work: Callable[[Sequence[tuple[int, int]]], dict[str, Any]],
    keys: list[tuple[int, int]],
    batch_size: int | None,
    device: torch.device,
) -> list[dict[str, Any]]:
    """`work` on each part of the keys, in their order.

    On a CPU the cores work on a batch each, instead of all on one: operations this small spend more time waiting for
    each other than computing, and where another program holds a core they wait for it at every operation (measured
    with one core busy: 4.5 ms an image-step with two threads on one batch, 0.6 ms with one).
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    size = batch_size or min(_BATCH[device.type], -(-len(keys) // cores))
    parts = [keys[first : first + size] for first in range(0, len(keys), size)]
    workers = min(cores, len(parts))
    if workers == 1:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(cores // workers,)) as pool:
            return list(pool.map(work, parts))
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


def _ascend_batch(
    model: FeatureModel,
    layer: str,
    keys: Sequence[tuple[int, int]],
    seed: int,
    settings: AscentSettings,
    objective: Objective,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """What `climb` returns for these (map, start), as arrays, after the precursor if there is one."""
    maps = torch.tensor([key[0] for key in keys], device=model.device)

    def parts_of(some: Sequence[Key]) -> Tensor:
        made = components(model.input_shape, some, layer=layer, seed=seed, settings=settings.start)
        return made.to(model.device, model.dtype)

    if settings.candidates > 1:
        x, parts = _precursor(model, layer, keys, maps, settings, objective, parts_of, advance)
    else:
        parts = parts_of(keys)
        x = _beginning(parts, settings)
    added: dict[int, Tensor] = {}
    if settings.stages is not None:
        ends = np.cumsum(settings.stages)[:-1].tolist()
        added = dict(zip(ends, parts[1:], strict=True))
    kept = settings.snapshot_steps()
    result = climb(
        *(model, layer, x, maps, settings.schedule, objective),
        kept=kept,
        added=added,
        settings=settings,
        advance=advance,
    )
    done = int(torch.isfinite(result["traces"]).sum()) + len(keys) * (settings.image_steps - settings.steps)
    done += _wake(model, layer, keys, maps, settings, objective, parts_of, result)
    del result["promise"]
    with torch.no_grad():
        before = model.up_to(layer, before_activation=True)(result["images"])
    rows = before[torch.arange(len(maps), device=maps.device), maps]
    result["largest_before"] = rows.flatten(1).amax(1) if rows.ndim > 1 else rows
    arrays = {name: tensor.cpu().numpy() for name, tensor in result.items()}
    # Counted before the traces of woken images take the place of those that led nowhere.
    return arrays | {"image_steps": np.array([done])}


def _wake(
    model: FeatureModel,
    layer: str,
    keys: Sequence[tuple[int, int]],
    maps: Tensor,
    settings: AscentSettings,
    objective: Objective,
    parts_of: Callable[[Sequence[Key]], Tensor],
    result: dict[str, Tensor],
) -> int:
    """Try the dead images of `result` again, each from `settings.waking` other starts; returns the image-steps spent.

    The mean over a map can stay below 0 while one place of it could fire. So the largest pre-activation is ascended
    until it is as large as it gets; then what was asked for, in steps so small that the map does not fall asleep again.
    """
    result["woken"] = torch.zeros_like(result["dead"])
    rows = torch.nonzero(result["dead"]).flatten()
    if not settings.waking or not len(rows):
        return 0
    tried = rows.repeat(settings.waking)
    numbers = [settings.candidates + index // len(rows) for index in range(len(tried))]
    x = standardize(
        parts_of([(*keys[row], number) for row, number in zip(tried.tolist(), numbers, strict=True)]).sum(0)
    )
    peak = climb(model, layer, x, maps[tried], _TO_THE_PEAK, map_peak)
    mean = climb(
        *(model, layer, peak["images"], maps[tried], _FROM_THE_PEAK, objective), kept=settings.snapshot_steps()
    )
    with torch.no_grad():
        peak_scores = objective(model.up_to(layer)(peak["images"]), maps[tried])
    slept = (mean["scores"] <= 0) | (peak_scores > mean["scores"])  # the second climb lost what the first had found
    images = torch.where(slept[:, None, None, None], peak["images"], mean["images"])
    scores = torch.where(slept, peak_scores, mean["scores"])
    # The best of each image's tries; where nothing fired, the one that came closest is the evidence.
    rank = scores + torch.where(scores > 0, 0, peak["promise"] - peak["promise"].amax() - 1)
    best = rank.view(settings.waking, len(rows)).argmax(0) * len(rows) + torch.arange(len(rows), device=rows.device)
    fires = scores[best] > 0
    result["images"][rows] = images[best]
    woken, best = rows[fires], best[fires]
    result["woken"][woken], result["dead"][woken] = True, False
    result["scores"][woken] = scores[best]
    result["converged_at"][woken] = -1
    result["snapshots"][woken] = mean["snapshots"][best]
    steps = min(settings.steps, _FROM_THE_PEAK.steps)
    result["traces"][woken] = torch.nan
    result["traces"][woken, :steps] = mean["traces"][best, :steps]
    return len(tried) * (_TO_THE_PEAK.steps + _FROM_THE_PEAK.steps)


def _beginning(parts: Tensor, settings: AscentSettings) -> Tensor:
    """The start from its components: all of them, or with stages the longest wavelengths alone."""
    return standardize(parts.sum(0) if settings.stages is None else parts[0])


def _precursor(
    model: FeatureModel,
    layer: str,
    keys: Sequence[tuple[int, int]],
    maps: Tensor,
    settings: AscentSettings,
    objective: Objective,
    parts_of: Callable[[Sequence[Key]], Tensor],
    advance: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """The most promising of each image's candidates after a short climb, and the components it began with.

    Promising is judged by the leaky score, which ranks sleeping maps as well.
    """
    best = torch.full((len(keys),), -torch.inf, device=model.device, dtype=model.dtype)
    x, parts = None, None
    for candidate in range(settings.candidates):
        tried = parts_of([(*key, candidate) for key in keys])
        start = _beginning(tried, settings)
        trial = climb(model, layer, start, maps, settings.candidate_schedule, objective, advance=advance)
        better = trial["promise"] > best
        best = torch.where(better, trial["promise"], best)
        mask = better[:, None, None, None]
        x = trial["images"] if x is None else torch.where(mask, trial["images"], x)
        parts = tried if parts is None else torch.where(mask, tried, parts)
    assert x is not None
    assert parts is not None
    return x, parts
