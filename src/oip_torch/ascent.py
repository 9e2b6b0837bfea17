"""How does an image climb? The loop: gradient, normalise, step, standardise.

With x the image and a(x) the activations of the chosen map,

    score(x) = mean of a(x) over the map
    g = d score / d x
    g = g / (sqrt(mean(g²)) + 1e-7)
    x = standardize(x + epsilon · g)

for many images at once; each has its own map, and nothing of one image enters another. The standardisation is what
bounds the problem: above a ReLU the score is piecewise linear, and without it grows without limit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from oip_torch.errors import InputError, OipError
from oip_torch.model import FeatureModel
from oip_torch.objectives import Objective, map_mean
from oip_torch.oips import Oips
from oip_torch.progress import bar
from oip_torch.starts import StartSettings, standardize, start_images

__all__ = ["AscentSettings", "ascend", "logarithmic_steps"]

_TINY = 1e-7  # of the article: keeps the division by a zero gradient finite
_BATCH = {"cpu": 128, "cuda": 4096}  # images at once; beyond that time per image no longer falls


@dataclass(frozen=True, kw_only=True)
class AscentSettings:
    """How an ascent is made. Frozen: results carry the settings that made them.

    Attributes:
        steps: of the ascent, ≥ 1.
        epsilon: the step, > 0, in units of the image's standard deviation (the gradient has RMS 1).
        stop: "steps": every image takes all steps; "converged": an image that meets the criterion leaves the batch.
        tolerance, patience, first_check: converged means that the relative change of the score,
            |s - s_before| / (|s| + 1e-7), is below `tolerance` in `patience` successive steps, from step `first_check`
            on. The article's code divides by score - 6 and takes no absolute value; this is what its text means.
        snapshots: the steps whose images are kept; None: 0, n, 2n, 4n, … and the last, with n = ⌊steps / 2^k⌋ and
            k = `doublings`.
        start: the length scales of the start images.
    """

    steps: int = 600
    epsilon: float = 0.01
    stop: Literal["steps", "converged"] = "steps"
    tolerance: float = 5e-4
    patience: int = 4
    first_check: int = 10
    snapshots: tuple[int, ...] | None = None
    doublings: int = 6
    start: StartSettings = field(default_factory=StartSettings)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "patience"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: expected a whole number, 1 or more")
        for name in ("first_check", "doublings"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: expected a whole number, 0 or more")
        for name in ("epsilon", "tolerance"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} is {getattr(self, name)}: expected a number above 0")
        if self.stop not in ("steps", "converged"):
            raise InputError(f"stop is {self.stop!r}: expected 'steps' or 'converged'")
        if self.snapshots is not None:
            object.__setattr__(self, "snapshots", tuple(int(step) for step in self.snapshots))
            if wrong := [step for step in self.snapshots if not 0 <= step < self.steps]:
                raise InputError(f"snapshot at step {wrong[0]}: expected steps from 0 to {self.steps - 1}")

    @classmethod
    def article(cls, **changes: Any) -> AscentSettings:
        """The article to the letter: 600 steps of 0.01 from four length scales; `changes` override fields."""
        article: dict[str, Any] = {"steps": 600, "epsilon": 0.01, "stop": "steps"}
        return cls(**(article | changes))

    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps whose images are kept, in order."""
        chosen = self.snapshots if self.snapshots is not None else logarithmic_steps(self.steps, self.doublings)
        return tuple(sorted(set(chosen)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return dataclasses.asdict(self)


def logarithmic_steps(steps: int, doublings: int = 6) -> tuple[int, ...]:
    """0, n, 2n, 4n, … and the last step, with n = ⌊steps / 2^doublings⌋: 600 gives 0, 9, 18, 36, 72, 144, 288, 599."""
    n = max(1, steps // 2**doublings)
    doubled = {n * 2**power for power in range(doublings)}
    return tuple(sorted({0, steps - 1} | {step for step in doubled if step < steps}))


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
        starts: how many start images per map.
        seed: each image's start depends on (seed, layer, map, start number) alone.
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
    chosen = _chosen_maps(model, layer, maps)
    for name, value, least in (("starts", starts, 1), ("seed", seed, 0), ("batch_size", batch_size or 1, 1)):
        if not _is_whole(value) or value < least:
            raise InputError(f"{name} is {value}: expected a whole number, {least} or more")
    keys = [(map_index, start) for map_index in chosen for start in range(starts)]
    network = model.up_to(layer)
    size = batch_size or _BATCH[model.device.type]
    began = time.perf_counter()
    batches = []
    with bar(f"ascending {layer}", len(keys) * settings.steps, progress) as advance:
        for first in range(0, len(keys), size):
            part = keys[first : first + size]
            x = start_images(model.input_shape, part, layer=layer, seed=seed, settings=settings.start)
            indices = torch.tensor([key[0] for key in part], device=model.device)
            climb = _climb(network, x.to(model.device, model.dtype), indices, settings, objective, advance)
            batches.append({name: tensor.cpu().numpy() for name, tensor in climb.items()})
    joined = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    if not (np.isfinite(joined["images"]).all() and np.isfinite(joined["scores"]).all()):
        raise OipError(f"the ascent of {layer!r} left the finite numbers: use a smaller epsilon, or float64")
    status = np.where(joined["converged_at"] >= 0, "converged", "finished")
    status = np.where(joined["dead"], "dead", status)
    return Oips(
        layer=layer,
        maps=np.array([key[0] for key in keys], np.int64),
        starts=np.array([key[1] for key in keys], np.int64),
        images=joined["images"].transpose(0, 2, 3, 1),
        scores=joined["scores"],
        traces=joined["traces"],
        snapshots=joined["snapshots"].transpose(0, 1, 3, 4, 2),
        snapshot_steps=np.array(settings.snapshot_steps(), np.int64),
        status=status,
        converged_at=np.where(joined["dead"], -1, joined["converged_at"]),
        settings=settings.to_dict(),
        info={
            "seed": seed,
            "objective": getattr(objective, "__name__", "custom"),
            "source": model.network.source,
            "source_sha256": model.network.source_sha256,
            "graph_sha256": model.network.graph_sha256,
            "versions": {name: version(name) for name in ("oip_torch", "torch", "numpy")},
            "device": _device_name(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "image_steps": int(np.isfinite(joined["traces"]).sum()),
            "seconds": time.perf_counter() - began,
        },
    )


def _climb(
    network: nn.Module,
    x: Tensor,
    maps: Tensor,
    settings: AscentSettings,
    objective: Objective,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """The ascent of one batch.

    Args:
        network: images → activations of the layer.
        x: (batch, channels, height, width), standardised.
        maps: (batch,) integers.
        settings: of the ascent.
        objective: what is maximised.
        advance: told how many image-steps were done.

    Returns:
        images, scores, traces (batch, steps), snapshots (batch, S, …), converged_at, dead: see `Oips`.
    """
    count, kept = len(x), settings.snapshot_steps()
    traces = x.new_full((count, settings.steps), math.nan)
    snapshots = x.new_empty((count, len(kept), *x.shape[1:]))
    final, all_maps = torch.empty_like(x), maps
    dead = torch.zeros(count, dtype=torch.bool, device=x.device)
    converged_at = torch.full((count,), -1, device=x.device)
    rows = torch.arange(count, device=x.device)  # of the images that are still climbing
    calm = torch.zeros(count, dtype=torch.long, device=x.device)  # successive steps of little change
    before = x.new_full((count,), math.inf)

    for step in range(settings.steps):
        if step in kept:
            snapshots[rows, kept.index(step)] = x
        score, gradient = _score_and_gradient(network, x, maps, objective)
        traces[rows, step] = score
        change = (score - before).abs() / (score.abs() + _TINY)
        calm = torch.where(change < settings.tolerance, calm + 1, 0) if step >= settings.first_check else calm
        met = (calm >= settings.patience) & (converged_at[rows] < 0)
        converged_at[rows] = torch.where(met, step, converged_at[rows])
        before = score

        rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        x = standardize(x + settings.epsilon * gradient / (rms + _TINY))

        advance(len(rows))
        last = step == settings.steps - 1
        leaving = torch.ones_like(met) if last else met if settings.stop == "converged" else None
        if leaving is not None and bool(leaving.any()):
            gone = rows[leaving]
            final[gone] = x[leaving]
            dead[gone] = (rms.flatten() == 0)[leaving] & (score <= 0)[leaving]
            for index, later in enumerate(kept):
                if later > step:
                    snapshots[gone, index] = x[leaving]
            staying = ~leaving
            x, maps, rows, calm, before = x[staying], maps[staying], rows[staying], calm[staying], before[staying]
            if not len(rows):
                break
    with torch.no_grad():
        scores = objective(network(final), all_maps)
    return {
        "images": final,
        "scores": scores,
        "traces": traces,
        "snapshots": snapshots,
        "converged_at": converged_at,
        "dead": dead,
    }


def _score_and_gradient(network: nn.Module, x: Tensor, maps: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
    """(batch,) scores and their gradients: of the sum, since no image's score depends on another image."""
    x = x.detach().requires_grad_()
    score = objective(network(x), maps)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    return score.detach(), gradient


def _chosen_maps(model: FeatureModel, layer: str, maps: int | Iterable[int] | None) -> list[int]:
    count = model.layers[layer].maps
    if maps is None:
        return list(range(count))
    chosen = [maps] if isinstance(maps, (int, np.integer)) else list(maps)
    if not chosen:
        raise InputError(
            f"no maps of layer {layer!r} were given: expected numbers from 0 to {count - 1}, or None for all"
        )
    for index in chosen:
        if not _is_whole(index) or not 0 <= index < count:
            raise InputError(f"layer {layer!r} has no map {index}: expected a number from 0 to {count - 1}")
    return [int(index) for index in dict.fromkeys(chosen)]


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
