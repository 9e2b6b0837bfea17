"""What does the network say to a picture: its classes, one map's activations, and which part of it a unit saw?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.analysis.calibration import Calibration, LayerCalibration
from oip_torch.analysis.image_statistics import best_correlations, unit_spectra
from oip_torch.analysis.scores import check_made_by
from oip_torch.base.checks import shown, whole, whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.image_files import check_pixels
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import standardize, to_array, to_tensor
from oip_torch.network.extract import truncate
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.network.receptive_field import receptive_field, receptive_fields
from oip_torch.results.fields import Array
from oip_torch.results.oips import Oips
from oip_torch.results.responses import Responses

__all__ = ["respond"]

_OTHER_MAPS = 16  # whose top images the likeness to any real images is measured by
_ALIKE = 0.02  # how far from 0 and 1 mean and standard deviation may be, as rounding and clipping leave them


def respond(
    model: FeatureModel,
    pictures: Oips | npt.ArrayLike,
    layer: str | Layer | None = None,
    maps: int | Iterable[int] | None = None,
    *,
    place: tuple[int, int] | None = None,
    calibration: Calibration | None = None,
    pre_activation: bool | None = None,
    batch_size: int = 64,
) -> Responses:
    """What the network says to pictures, shown to it through its domain as every OIP is.

        responses = oip.respond(model, oips, calibration=calibration)
        responses.outputs, responses.predicted          # (N, 10), (N,)
        oip.respond(model, x_test[:5], "Conv2D_3", 17).activations      # (5, 3, 3)

    Real images are standardised one by one, as `calibrate` does, so that they have the contrast of OIPs; of the network
    itself they may get another answer where it was trained on other contrasts.

    Args:
        model: from `load` or `convert`; of OIPs the one that made them.
        pictures: OIPs; or images (N, height, width) or (N, height, width, channels): floats are taken to be
            standardised one by one (mean 0, standard deviation 1), whole numbers to be pixels, 0–255.
        layer: its name, or an entry of `model.layers`, for images; None: the outputs alone. OIPs know theirs.
        maps: which map of the layer (or unit, or class), one for all images or one for each. OIPs know theirs.
        place: (row, column) of the unit whose field is told, as where OIPs were made for one; None: of each picture
            the one where its map is largest.
        calibration: of this model and layer, for the likeness to real images.
        pre_activation: look at what goes into the layer's activation; None: where that is a softmax or a sigmoid, as
            in `ascend`. OIPs know theirs.
        batch_size: pictures at once, which bounds the memory; of the results only one map per picture is kept.

    Raises:
        InputError: an argument of a wrong kind, OIPs or a calibration of another model, images of another shape or
            scale, unknown layer, map or place.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
    model.check_dtype()
    batch_size = whole("batch_size", batch_size, 1)
    if isinstance(pictures, Oips):
        if layer is not None or maps is not None or pre_activation is not None:
            raise InputError(
                "layer, maps or pre_activation are given with OIPs, which know theirs: leave them out, or give "
                "oips.images"
            )
        if not len(pictures):
            raise InputError("there are no OIPs to respond to: expected at least one")
        check_made_by(model, pictures)
        images, before = pictures.images, pictures.pre_activation
        name: str | None = pictures.layer
        numbers: Array | None = pictures.maps
        starts: Array | None = pictures.starts
        if not np.isfinite(images).all():
            raise InputError("these OIPs hold NaN or infinite values: expected finite numbers; leave them out")
    else:
        images = _images(model, pictures, batch_size)
        name = None if layer is None else model.layer(layer).name
        before = name is not None and model.wants_pre_activation(name, pre_activation)
        numbers, starts = _numbers(model, name, maps, len(images)), None
    if name is None and (place is not None or calibration is not None):
        raise InputError("place and calibration need a layer: expected layer= and maps= beside the images")
    data = None if calibration is None or name is None else _data(model, calibration, name, before)
    if place is not None and name is not None:
        place = _place(model, name, place)
    outputs, activations = _run(model, images, name, numbers, before, batch_size)
    entry = model.layers[model.network.output]
    found = Responses(
        images=images,
        outputs=outputs,
        output=entry.name,
        output_activation=entry.activation,
        output_noun=model.noun(entry.name),
        ends=model.domain.ends,
        starts=starts,
    )
    if name is None or activations is None or numbers is None:
        return found
    places, fields, unclipped = _seen(model, name, before, activations, place)
    likeness: tuple[Array | None, ...] = (None, None, None) if data is None else _likeness(images, numbers, data)
    return dataclasses.replace(
        found,
        layer=name,
        noun=model.noun(name),
        pre_activation=before,
        maps=numbers,
        activations=activations,
        scores=activations.mean((1, 2), dtype=np.float64),
        places=places,
        at_peak=place is None,
        fields=fields,
        unclipped_fields=unclipped,
        extent=_extent(model, name, before),
        likeness=likeness[0],
        nearest=likeness[1],
        likeness_to_others=likeness[2],
    )


def _images(model: FeatureModel, given: npt.ArrayLike, batch_size: int) -> Array:
    """(N, height, width, channels), standardised one by one."""
    try:
        images = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    except ValueError:  # rows of different lengths
        images = np.empty(0)
    shape = model.network.input_shape
    if images.ndim == 3 and shape[2] == 1:
        images = images[..., None]
    got = f"the pictures are an array of shape {images.shape} and type {images.dtype}"
    if images.ndim != 4 or images.shape[1:] != shape or images.dtype.kind not in "uif":
        raise InputError(f"{got}: expected Oips, or images (N, {shape[0]}, {shape[1]}, {shape[2]}) of numbers")
    if not len(images):
        raise InputError(f"{got}: expected at least one image")
    if images.dtype.kind in "ui":
        pixels = check_pixels(images, "the pictures")
        parts = (pixels[first : first + batch_size] for first in range(0, len(pixels), batch_size))
        return np.concatenate([to_array(standardize(model.standardize(part))) for part in parts])
    if not np.isfinite(images).all():
        raise InputError(f"{got}, and hold NaN or infinite values: expected finite numbers")
    means, deviations = images.mean((1, 2, 3), dtype=np.float64), images.std((1, 2, 3), dtype=np.float64)
    wrong = np.flatnonzero((np.abs(means) > _ALIKE) | (np.abs(deviations - 1) > _ALIKE))
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"picture {first} has mean {means[first]:.3g} and standard deviation {deviations[first]:.3g}: expected 0 "
            "and 1, as each OIP has; give pixels, 0–255, as whole numbers, and they are standardised"
        )
    return to_array(to_tensor(images, dtype=model.dtype))


def _numbers(model: FeatureModel, layer: str | None, maps: int | Iterable[int] | None, count: int) -> Array | None:
    """(N,) the map of each picture."""
    if layer is None or maps is None:
        if layer is None and maps is None:
            return None
        there, missing = ("maps", "layer") if layer is None else ("layer", "maps")
        raise InputError(f"{there} is given without {missing}: expected both, or neither for the outputs alone")
    noun, channels = model.noun(layer), model.layers[layer].maps
    numbers = np.array(whole_numbers(f"{noun} numbers", maps), np.int64)
    if len(numbers) not in (1, count):
        raise InputError(
            f"there are {len(numbers)} {noun} numbers for {count} pictures: expected one for all or for each"
        )
    if wrong := [int(number) for number in numbers if not 0 <= number < channels]:
        raise InputError(f"no {noun} {wrong[0]} in {layer}: expected 0 to {channels - 1}")
    return np.broadcast_to(numbers, count).copy()


def _data(model: FeatureModel, calibration: Calibration, layer: str, before: bool) -> LayerCalibration:
    if not isinstance(calibration, Calibration):
        raise InputError(f"calibration is {shown(calibration)}: expected what oip_torch.calibrate returns, or None")
    calibration.check(model)
    data = calibration[layer]
    if data.pre_activation != before:
        ours, theirs = ("before", "after") if before else ("after", "before")
        raise InputError(
            f"this calibration scored {layer!r} {theirs} its activation, here it is looked at {ours} it: calibrate "
            f"again with pre_activation={before}"
        )
    return data


def _place(model: FeatureModel, layer: str, place: Any) -> tuple[int, int]:
    if isinstance(place, str) or not hasattr(place, "__len__") or len(place) != 2:
        raise InputError(f"place is {shown(place)}: expected (row, column) of a unit, or None for the largest")
    field = receptive_field(model, layer, place[0], place[1])
    assert field.row is not None
    assert field.column is not None
    return field.row, field.column


def _run(
    model: FeatureModel, images: Array, layer: str | None, numbers: Array | None, before: bool, batch_size: int
) -> tuple[Array | None, Array | None]:
    """(N, classes) outputs, or None where they are maps; and (N, rows, columns) of each picture's own map."""
    last = model.tap(model.network.output)
    taps = [last] if layer is None else [last, model.tap(layer, pre_activation=before)]
    network = truncate(model.graph_module, [tap.node for tap in taps])
    outputs, activations = [], []
    with torch.no_grad(), matmul_precision():
        for first in range(0, len(images), batch_size):
            x = to_tensor(images[first : first + batch_size], model.device, model.dtype)
            said, *looked_at = network(model.to_input(x))
            outputs.append(said.cpu().numpy())
            if looked_at and numbers is not None:
                own = torch.from_numpy(numbers[first : first + batch_size]).to(x.device)
                of_map = looked_at[0][torch.arange(len(own), device=x.device), own]
                activations.append(of_map.reshape(len(own), *(of_map.shape[1:] or (1, 1))).cpu().numpy())
    whole_outputs = None if last.size else np.concatenate(outputs)
    return whole_outputs, np.concatenate(activations) if activations else None


def _seen(
    model: FeatureModel, layer: str, before: bool, activations: Array, place: tuple[int, int] | None
) -> tuple[Array, Array, Array]:
    """Of each picture the place of the unit that is told of, and what it sees, clipped and unclipped."""
    count, rows, columns = activations.shape
    if not model.tap(layer).size:
        (field,) = receptive_fields(model, layer, [(None, None)], pre_activation=before)
        ends = (field.top, field.bottom, field.left, field.right)
        return np.full((count, 2), -1), np.tile(ends, (count, 1)), np.tile(field.unclipped, (count, 1))
    flat = activations.reshape(count, -1)
    places = np.stack(np.divmod(flat.argmax(1), columns), axis=1)
    if place is not None:
        places[:] = place
    elif rows * columns > 1:
        places[flat.max(1) == flat.min(1)] = -1
    chosen = [(int(row), int(column)) for row, column in np.unique(places, axis=0) if row >= 0]
    found = dict(zip(chosen, receptive_fields(model, layer, chosen, pre_activation=before), strict=True))
    fields, unclipped = np.full((count, 4), -1), np.full((count, 4), -1)
    for index, (row, column) in enumerate(places.tolist()):
        if row >= 0:
            field = found[row, column]
            fields[index] = field.top, field.bottom, field.left, field.right
            unclipped[index] = field.unclipped
    return places, fields, unclipped


def _extent(model: FeatureModel, layer: str, before: bool) -> tuple[float, float, float, float] | None:
    """Where the map lies on the image, if the middles of its units' fields lie at equal distances."""
    size = model.tap(layer).size
    if not size:
        return None
    corners = [(0, 0), (size[0] // 2, size[1] // 2), (size[0] - 1, size[1] - 1)]
    fields = receptive_fields(model, layer, corners, pre_activation=before)
    ends: list[float] = []
    for axis, count in enumerate(size):
        first, middle, last = (field.center[axis] for field in fields)
        step = (last - first) / (count - 1) if count > 1 else float(fields[0].unclipped_size[axis])
        if step <= 0 or abs(first + step * (count // 2) - middle) > 0.01:
            return None
        ends += [first - step / 2, last + step / 2]
    return ends[0], ends[1], ends[2], ends[3]


def _likeness(images: Array, numbers: Array, data: LayerCalibration) -> tuple[Array, Array, Array]:
    """Likeness to the top images of the own map, the number of the one that is most alike, likeness to other maps'."""
    excited = np.flatnonzero(data.excited)
    likeness, to_others = np.full(len(images), np.nan), np.full(len(images), np.nan)
    nearest = np.full(len(images), -1)
    spread = np.linspace(0, max(0, len(excited) - 1), _OTHER_MAPS + 1).round().astype(int)  # one may be the own map
    others = excited[np.unique(spread)] if len(excited) else excited
    spectra: dict[int, npt.NDArray[np.complex128]] = {}  # of the top images of the maps that are in use
    for row in np.argsort(numbers, kind="stable"):  # map by map, so that those of one map alone have to be held
        number = int(numbers[row])
        spectra = {other: held for other, held in spectra.items() if other in others or other == number}
        for other in {number, *others.tolist()} - spectra.keys():
            spectra[other] = unit_spectra(data.top_of(other))
        (picture,) = unit_spectra(images[row][None])
        alike = {other: best_correlations(picture, held, images.shape[1:3]) for other, held in spectra.items()}
        if data.excited[number]:
            likeness[row] = alike[number].max()
            nearest[row] = data.top_indices[number, alike[number].argmax()]
        if rest := [float(values.max()) for other, values in alike.items() if other != number][:_OTHER_MAPS]:
            to_others[row] = np.mean(rest)
    return likeness, nearest, to_others
