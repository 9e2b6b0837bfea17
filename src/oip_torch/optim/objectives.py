"""What is maximised? Objectives are values: weighted sums of scores, one number per image; larger is better.

    map_mean                                    # the method's: the mean activation over the map
    map_mean + 0.1 * map_peak
    map_mean - 0.1 * total_variation            # with a regulariser: see `total_variation` for its weight
    neuron(row=0, column=2)                     # one position of the map
    map_mean - channel(5)                       # the map, rather than map 5
    class_logit(3) - class_logit(5)             # one class over another
    map_mean + diversity()                      # the starts of a map are pushed apart
    Objective.of(lambda activations, channels: …)

A score reads one place of the network: the layer that the OIPs are made for, another layer by its name, the network's
output, or the image itself, which makes it a regulariser.

**Images of no map.** What `whole_layer`, `direction`, `channel`, `unit` and `class_logit` say of an image does not
depend on the map that it is made for. Where an objective consists of such scores alone, `maps=` of `ascend` only
numbers the images, each from a start of its own, and `maps=None` makes one image for each start. Results call these
"image 0" and not "map 0", are never "dead", and are not laid beside what real data draws from a map.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.base.checks import number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.optim.regularizers import high_frequencies, l1, l2, total_variation
from oip_torch.optim.terms import Objective, Place, Reads, ScoreFunction, Term, check_objective

__all__ = [
    "Objective",
    "Place",
    "Reads",
    "ScoreFunction",
    "Term",
    "channel",
    "channel_of_each",
    "check_objective",
    "class_logit",
    "direction",
    "diversity",
    "high_frequencies",
    "l1",
    "l2",
    "map_mean",
    "map_peak",
    "mean_of_channel",
    "neuron",
    "peak_of_channel",
    "soft_peak",
    "total_variation",
    "unit",
    "whole_layer",
]

_TINY = 1e-12  # below any squared norm that counts
_LEAST_COSINE = 0.1  # so that an image that is far from the direction still has a slope towards it


def mean_of_channel(activations: Tensor, channels: Tensor) -> Tensor:
    """The mean activation over channel `channels[i]` of image i; for a flat layer the unit itself.

    Args:
        activations: (batch, channels, height, width) or (batch, units).
        channels: (batch,) integers.

    Returns:
        (batch,) scores.
    """
    rows = channel_of_each(activations, channels)
    return rows.flatten(1).mean(1) if rows.ndim > 1 else rows


def peak_of_channel(activations: Tensor, channels: Tensor) -> Tensor:
    """The largest activation on channel `channels[i]` of image i; arguments and result as of `mean_of_channel`."""
    rows = channel_of_each(activations, channels)
    return rows.flatten(1).amax(1) if rows.ndim > 1 else rows


def channel_of_each(activations: Tensor, channels: Tensor) -> Tensor:
    """Each image's own channel: (batch, channels, …) and (batch,) → (batch, …)."""
    if activations.shape[1] == 1:  # the gradient of an index takes longer than that of a part
        return activations[:, 0]
    return activations[torch.arange(len(channels), device=channels.device), channels]


map_mean = Objective((Term(name="map_mean", score=mean_of_channel, reads_one_channel=True, grows=True),))
"""The mean activation over the map: the method's objective."""

map_peak = Objective((Term(name="map_peak", score=peak_of_channel, reads_one_channel=True, grows=True),))
"""The largest activation on the map. A map fires if it fires at one place: what the mean hides, this follows."""


# One's own map


def soft_peak(sharpness: float = 1.0) -> Objective:
    """A smooth maximum over the map: log(mean(exp(k·a))) / k, with k the sharpness.

    It lies between the mean (k → 0) and the peak (k → ∞), and grows with each activation: the gradient is shared out
    among the positions by softmax(k·a), where `map_peak` gives all of it to one. What counts is k times the spread of
    the activations: for maps that reach 10, 1 is near the peak and 0.05 near the mean.

    Raises:
        InputError: the sharpness is no number above 0.
    """
    sharpness = float(plain(number("sharpness", sharpness, "a number above 0")))
    if sharpness <= 0:
        raise InputError(f"sharpness is {sharpness:g}: expected a number above 0")
    score = partial(_soft_peak, sharpness=sharpness)
    return _objective(Term(name=f"soft_peak({sharpness:g})", score=score, reads_one_channel=True, grows=True))


def neuron(row: int | None = None, column: int | None = None) -> Objective:
    """The activation at one position of the map; for a flat layer, which has none, the unit itself.

    The image shows what excites the map there: it lies where that position's receptive field lies, and the rest of the
    image matters only by the standardisation.

    Args:
        row: 0 is the upper one; None: the middle one.
        column: 0 is the left one; None: the middle one.

    Raises:
        InputError: no whole number of 0 or more; and when the layer's size is known, a position that is not there.
    """
    row = None if row is None else whole("row", row, 0)
    column = None if column is None else whole("column", column, 0)
    given = [f"{name}={at}" for name, at in (("row", row), ("column", column)) if at is not None]
    term = Term(
        name=f"neuron({', '.join(given)})" if given else "neuron",
        score=partial(_at, row=row, column=column),
        reads_one_channel=True,
        grows=True,
        of_one_position=True,
        fits=partial(_fits_position, row=row, column=column),
    )
    return _objective(term)


# The layer


def direction(vector: Any, *, cosine_power: float = 0.0, name: str = "direction") -> Objective:
    """How far the layer's activations go along a direction in the space of its channels.

        mean over the positions p of   s(p) · max(0.1, s(p) / |a(p)|) ^ cosine_power,   s(p) = a(p) · v / |v|

    With a power above 0 activations count less the more they point elsewhere, as in Carter et al., "Activation atlas",
    2019; the least factor of 0.1 keeps a slope where they point away.

    Args:
        vector: v, one number per channel (or unit) of the layer, not all 0: a list, an array or a tensor. For one
            channel alone, `channel` is shorter.
        cosine_power: 0 or more; 0: the projection alone.
        name: what results say of it.

    Raises:
        InputError: no finite numbers, all of them 0; and when the layer is known, another length than its channels.
    """
    try:
        array = np.asarray(vector.detach().cpu().double() if hasattr(vector, "detach") else vector)
    except ValueError:  # rows of different lengths
        array = np.empty((0, 0))
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not np.isfinite(array).all() or not array.any():
        raise InputError(
            f"vector is {shown(vector)}: expected one finite number per channel of the layer, in one dimension and not "
            "all 0"
        )
    if number("cosine_power", cosine_power, "a number of 0 or more") < 0:
        raise InputError(f"cosine_power is {cosine_power}: expected a number of 0 or more")
    unit_vector = tuple((array / np.linalg.norm(array.astype(np.float64))).tolist())
    term = Term(
        name=str(name),
        score=partial(_along, vector=unit_vector, power=float(plain(cosine_power))),
        grows=False,
        of_own_channel=False,
        fits=partial(_fits_vector, length=len(array)),
    )
    return _objective(term)


def channel(index: int) -> Objective:
    """The mean activation over one channel of the layer, whichever map an image is made for: `map_mean - channel(5)`.

    That difference is 0 for map 5 itself, and has no gradient there: leave it out of `maps=`.

    Raises:
        InputError: no whole number of 0 or more; and when the layer is known, no channel of it.
    """
    return _fixed(whole("index", index, 0), Place.LAYER, "channel({})")


def unit(layer: str, index: int) -> Objective:
    """The mean activation over one channel of another layer, or one of its units where its output is flat.

    Layers that end in a softmax or sigmoid are read before it, as `ascend` does.

    Args:
        layer: its name, or its entry of `model.layers`.
        index: of the channel or unit.

    Raises:
        InputError: no name, no whole number of 0 or more; and when the model is known, no such layer or channel.
    """
    name = _layer_name(layer)
    return _fixed(whole("index", index, 0), name, f"unit({name}, {{}})")


def class_logit(index: int, layer: str | None = None) -> Objective:
    """A class of the network before its softmax or sigmoid: the evidence for it, without bounds.

    It can be maximised from any layer, since it reads the output whatever layer is asked for; alone, or beside scores
    of a map: `map_mean + 0.1 * class_logit(3)`. `class_logit(3) - class_logit(5)` is the logarithm of the quotient of
    the probabilities that a softmax gives them.

    Args:
        index: of the class.
        layer: whose units are the classes; None: the network's output.

    Raises:
        InputError: as `unit`.
    """
    reads: Reads = Place.OUTPUT if layer is None else _layer_name(layer)
    suffix = "" if layer is None else f", {reads}"
    return _fixed(whole("index", index, 0), reads, f"class_logit({{}}{suffix})", flat=True)


def diversity(layer: str | None = None) -> Objective:
    """How unlike the images of a map are: 1 - the mean cosine of an image's Gram matrix with those of its other starts.

    The Gram matrix G = A Aᵀ, with A the (channels, positions) activations of a layer, says which channels respond
    together, wherever that is (Gatys et al., "Texture synthesis using convolutional neural networks", 2015); Olah et
    al., "Feature visualization", 2017, push images apart by it. With `map_mean + diversity()` several starts show
    several sides of a map. Images of other maps do not matter; with one start it is 0, and changes nothing.

    It lies between 0 and 1, whatever the scores of the map: begin with a weight of a tenth of them, as for the
    regularisers. It shapes the images, and is not part of the scores of results. Images enter each other's scores: all
    of a call are optimised in one batch, whose memory for images × channels² numbers comes on top of what is estimated,
    and of two survivors of the screening one is taken for all images together, the better one by the sum of the scores.

    Args:
        layer: whose activations are compared, its name; None: the layer that the OIPs are made for.
    """
    reads: Reads = Place.LAYER if layer is None else _layer_name(layer)
    name = "diversity" if layer is None else f"diversity({reads})"
    term = Term(name=name, score=_unlike_others, reads=reads, couples_images=True, grows=False, regularises=True)
    return _objective(term)


def _objective(term: Term) -> Objective:
    return Objective((term,))


def _fixed(index: int, reads: Reads, name: str, *, flat: bool = False) -> Objective:
    """The mean of one channel of a place, the same for all images."""
    term = Term(
        name=name.format(index),
        score=partial(_mean_of, index=index),
        reads=reads,
        grows=False,
        of_own_channel=False,
        fits=partial(_fits_index, index=index, name=name.format(index), flat=flat),
    )
    return _objective(term)


def _layer_name(layer: Any) -> str:
    """Of a layer given by its name or its entry."""
    name = getattr(layer, "name", layer)
    if not isinstance(name, str):
        raise InputError(f"layer is {shown(layer)}: expected the name of a layer, such as 'Dense_1'")
    return name


# Scores: (batch, channels, height, width) or (batch, units), and (batch,) channels → (batch,)


def _soft_peak(activations: Tensor, channels: Tensor, *, sharpness: float) -> Tensor:
    rows = channel_of_each(activations, channels)
    if rows.ndim == 1:
        return rows
    rows = rows.flatten(1)
    peak = rows.detach().amax(1, keepdim=True)  # taken out, so that nothing overflows and a silent map has exactly 0
    return peak[:, 0] + (sharpness * (rows - peak)).exp().mean(1).log() / sharpness


def _at(activations: Tensor, channels: Tensor, *, row: int | None, column: int | None) -> Tensor:
    rows = channel_of_each(activations, channels)
    if rows.ndim == 1:
        return rows
    height, width = rows.shape[1:]
    return rows[:, height // 2 if row is None else row, width // 2 if column is None else column]


def _signed_squares(activations: Tensor, channels: Tensor) -> Tensor:
    return (activations * activations.abs()).flatten(1).mean(1)


def _along(activations: Tensor, channels: Tensor, *, vector: tuple[float, ...], power: float) -> Tensor:
    values = activations.flatten(2) if activations.ndim > 2 else activations[:, :, None]
    along = (values * _tensor(vector, values.device, values.dtype)[:, None]).sum(1)
    if power:
        norms = (values.square().sum(1) + _TINY).sqrt()
        along = along * (along / norms).clamp(min=_LEAST_COSINE) ** power
    return along.mean(1)


def _mean_of(activations: Tensor, channels: Tensor, *, index: int) -> Tensor:
    rows = activations[:, index]
    return rows.flatten(1).mean(1) if rows.ndim > 1 else rows


def _unlike_others(activations: Tensor, channels: Tensor) -> Tensor:
    values = activations.flatten(2) if activations.ndim > 2 else activations[:, :, None]
    grams = F.normalize((values @ values.transpose(1, 2)).flatten(1), dim=1)
    others = (channels[:, None] == channels[None, :]).fill_diagonal_(False)
    unlike = torch.where(others, 1 - grams @ grams.T, 0.0)
    return unlike.sum(1) / others.sum(1).clamp(min=1)


@lru_cache(maxsize=32)
def _tensor(vector: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Made once, since a copy to a card in each step would make host and device wait for each other."""
    with torch.inference_mode(False):
        return torch.tensor(vector, device=device, dtype=dtype)


# Does the place have what a score asks for?


def _fits_position(size: tuple[int, ...], where: str, *, row: int | None, column: int | None) -> None:
    if len(size) == 1:
        if row is not None or column is not None:
            raise InputError(f"neuron asks for a position, but {where} is flat, of {size[0]} units: expected neuron()")
        return
    for name, at, count in (("row", row, size[1]), ("column", column, size[2])):
        if at is not None and at >= count:
            raise InputError(
                f"neuron asks for {name} {at}, but maps of {where} have {size[1]}×{size[2]} positions: expected a "
                f"{name} from 0 to {count - 1}"
            )


def _fits_vector(size: tuple[int, ...], where: str, *, length: int) -> None:
    if length != size[0]:
        raise InputError(f"the direction has {length} numbers, but {where} has {size[0]} channels: expected as many")


def _fits_index(size: tuple[int, ...], where: str, *, index: int, name: str, flat: bool) -> None:
    if flat and len(size) > 1:
        raise InputError(
            f"{name} asks for a class, but {where} has maps of {size[1]}×{size[2]}: expected a flat layer, by layer=…"
        )
    if index >= size[0]:
        what = "channels" if len(size) > 1 else "units"
        raise InputError(f"{name}: {where} has {size[0]} {what}: expected a number from 0 to {size[0] - 1}")


whole_layer = Objective((Term(name="whole_layer", score=_signed_squares, grows=False, of_own_channel=False),))
"""The layer as a whole: the mean of a·|a| over all its channels and positions.

For activations of 0 or more that is the mean of their squares, as in DeepDream (Mordvintsev, Olah and Tyka,
"Inceptionism", 2015): what already responds grows most, where the mean would ask all channels to respond a little. The
sign keeps what is below 0, in a layer of tanh, before an activation or through a leak, from counting as a response."""
