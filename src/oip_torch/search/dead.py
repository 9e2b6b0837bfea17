"""Is a dead map dead for sure? The hardest search for an image that it fires on, and a bound that there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.platform import matmul_precision, recorded_gradients
from oip_torch.base.progress import bar
from oip_torch.base.tensors import standardize, to_array
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.constraint import Range, Standardized
from oip_torch.optim.starts import random_stream
from oip_torch.results.fields import Array, array, variables_of
from oip_torch.results.oips import plural
from oip_torch.search.bounds import ImageSet, NotCoveredError, UpperBounds
from oip_torch.search.chosen import chosen_maps
from oip_torch.search.field import Field, field_of, without_idle_reshapes

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DeadMaps", "certify_dead"]

_EPSILON, _LAST, _MOMENTUM = 0.3, 1e-3, 0.8  # of steps: share of the image's norm, what is left in the end, momentum
_LEAST_CONTRAST = 0.03  # of a start, in shares of the whole contrast that a field can have

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DeadMaps:
    """What is known of M maps that no image was found for.

    Attributes:
        layer: its name.
        noun: what a channel of it is called.
        starts, steps: of the search, for each map.
        limits: (least, largest) value of a pixel, where the images were asked to stay within; None: any.
        no_bound: why there is no bound, in words; "" where there is one.
        maps: (M,) int, in the order asked for.
        images: (M, height, width, channels), of mean 0 and standard deviation 1, on which the map came highest.
        largest: (M,) the largest value that goes into the map's activation on that image, over all of the map.
        rows, columns: (M,) int, the place on the map where that is; 0 for units.
        bounds: (M,) no image of the set brings the map above that; NaN where no bound is available.
    """

    layer: str
    noun: str
    starts: int
    steps: int
    limits: tuple[float, float] | None
    no_bound: str
    maps: Array = array("map", stored="map")
    images: Array = array("map", "y", "x", "channel", large=True)
    largest: Floats = array("map")
    rows: Array = array("map", stored="row")
    columns: Array = array("map", stored="column")
    bounds: Floats = array("map")

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        return f"<DeadMaps of {self.layer!r}: {self.summary}>"

    @property
    def recovered(self) -> npt.NDArray[np.bool_]:
        """(M,) whether the map fires on its image: then it is not dead, and the search that said so has failed."""
        return self.largest > 0

    @property
    def certified(self) -> npt.NDArray[np.bool_]:
        """(M,) whether no image of the set can make the map fire."""
        return self.bounds <= 0

    @property
    def summary(self) -> str:
        """In a sentence: "of 4 maps 3 recovered, 0 dead for sure, 1 open"."""
        recovered, certified = int(self.recovered.sum()), int(self.certified.sum())
        left = len(self) - recovered - certified
        return f"of {len(self)} {plural(self.noun)} {recovered} recovered, {certified} dead for sure, {left} open"

    @property
    def verdicts(self) -> list[str]:
        """Of each map, in a sentence."""
        within = "" if self.limits is None else f" within {self.limits[0]:.3g} to {self.limits[1]:.3g}"
        found = []
        for number, largest, bound in zip(self.maps, self.largest, self.bounds, strict=True):
            if largest > 0:
                told = (
                    f"recovered: {largest:.3g} goes into its activation on this image; a search that called the "
                    f"{self.noun} dead had failed"
                )
            elif bound <= 0:
                told = (
                    f"dead for sure: no image of mean 0 and standard deviation 1{within} brings it above {bound:.3g} "
                    f"(bound); the largest value reached was {largest:.3g}"
                )
            else:
                known = f"no bound is available ({self.no_bound})" if math.isnan(bound) else f"the bound is {bound:.3g}"
                told = (
                    f"not recovered: the largest value reached was {largest:.3g}, from {self.starts} starts of "
                    f"{self.steps} steps; no bound below 0 is known: {known}"
                )
            found.append(f"{self.noun} {number}: {told}")
        return found

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset with the dimensions map, y, x, channel."""
        import xarray as xr

        attributes = {"layer": self.layer, "starts": self.starts, "steps": self.steps, "no_bound": self.no_bound}
        return xr.Dataset(variables_of(self), attrs=attributes)


@recorded_gradients()
def certify_dead(
    model: FeatureModel,
    layer: str | Layer,
    maps: int | Iterable[int] | Tensor | None = None,
    *,
    limits: tuple[float, float] | str | None = None,
    starts: int = 256,
    steps: int = 600,
    seed: int = 0,
    progress: bool | None = None,
) -> DeadMaps:
    """Look harder for an image that a dead map fires on, and for a bound that says that there is none.

        oips = oip.ascend(model, "Conv2D_2")
        oip.certify_dead(model, "Conv2D_2", oips.maps[oips.status == "dead"]).verdicts

    Searched is one unit's pre-activation on its receptive field alone, from starts of any contrast up to the whole
    contrast of an image; what is found is then placed into an image of mean 0 and standard deviation 1. Where units of
    a map differ, as at borders that are padded, and with `limits`, the largest pre-activation of the map is searched on
    whole images. The bound (`search.bounds`, CROWN) is over all such images and all units of the map. It is computed in
    float64, of the network in real numbers, with an allowance for rounding. What units see decides what it costs: with
    fields of 8×8 pixels seconds, with most of an image of 28×28 minutes.

    Args:
        model: from `load` or `convert`. The search runs on its device, the bound on the CPU.
        layer: with a ReLU as its activation.
        maps: which of its maps or units; None: all of them.
        limits: (least, largest) value of a pixel, in units of standardised images; "data": the domain's black and
            white; None: any.
        starts: of the search, each 1 or more.
        steps: of the search, each 1 or more.
        seed: of the starts, which depend on it, the layer and the map alone.
        progress: as in `ascend`.

    Raises:
        InputError: an argument of a wrong kind, or a layer whose activation is no ReLU.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
    model.check_dtype()
    layer = model.layer(layer).name
    if model.layers[layer].activation != "relu" or model.tap(layer).before is None:
        has = f"has the activation {model.layers[layer].activation}" if model.layers[layer].activation else "has none"
        raise InputError(f"layer {layer!r} {has}: expected one with a ReLU, of which alone a map can be dead for sure")
    numbers = chosen_maps(model, layer, maps)
    starts, steps, seed = whole("starts", starts, 1), whole("steps", steps, 1), whole("seed", seed, 0)
    constraint, ends = _constraint(model, limits)
    network = without_idle_reshapes(model.up_to(layer, pre_activation=True), model)
    exact = deepcopy(network).double().cpu()
    field = field_of(exact, model.input_shape)
    searched = field if ends is None else None
    found: list[Tensor] = []
    with bar(f"searching {layer}", len(numbers) * steps, progress) as tell, matmul_precision():
        for number in numbers:
            stream = random_stream(seed, f"dead in {layer}", (number, 0))
            generator = torch.Generator().manual_seed(int(stream.integers(1 << 62)))
            search = _Search(model, network, number, searched, constraint, generator)
            found.append(search.run(starts, steps, tell))
        images = torch.stack(found)
        with torch.no_grad():
            own = network(model.to_input(images))[torch.arange(len(numbers)), numbers].flatten(1).double().cpu()
    largest, places = (part.numpy() for part in own.max(1))
    width = model.tap(layer).size[1] if model.has_maps(layer) else 1
    bounds, no_bound = np.full(len(numbers), np.nan), ""
    try:
        bounds = _bounds(exact, model, numbers, field, ends)
    except NotCoveredError as error:
        no_bound = f"{error} is not covered"
    return DeadMaps(
        layer=layer,
        noun=model.noun(layer),
        starts=starts,
        steps=steps,
        limits=ends,
        no_bound=no_bound,
        maps=np.array(numbers),
        images=to_array(images),
        largest=largest,
        rows=places // width,
        columns=places % width,
        bounds=bounds,
    )


def _constraint(
    model: FeatureModel, limits: tuple[float, float] | str | None
) -> tuple[Standardized | Range, tuple[float, float] | None]:
    """Of the images that count, and the least and largest value of a pixel; None: any."""
    if limits is None:
        return Standardized(), None
    if isinstance(limits, str) and limits == "data":
        limits = float(model.domain.ends[0].min()), float(model.domain.ends[1].max())
    constraint = Range(limits=limits)  # type: ignore[arg-type]  # which refuses what is none
    low, high = constraint.limits  # type: ignore[str-unpack]  # "data" was replaced
    if not isinstance(low, float) or not isinstance(high, float):
        raise InputError(f"limits are {shown(limits)}: expected one number each, not one per channel")
    if -low * high <= 1:
        raise InputError(
            f"limits are {low:g} and {high:g}: no image between them has mean 0 and standard deviation 1; expected "
            "limits whose product is below -1"
        )
    return constraint, (low, high)


@dataclass(frozen=True)
class _Search:
    """One map's, on the field of a unit or on whole images."""

    model: FeatureModel
    network: fx.GraphModule
    channel: int
    field: Field | None
    constraint: Standardized | Range
    generator: torch.Generator

    @property
    def pixels(self) -> int:
        """Numbers in a whole image."""
        return math.prod(self.model.input_shape)

    def run(self, starts: int, steps: int, tell: Callable[[int], None]) -> Tensor:
        """(C, H, W) the whole image on which the map comes highest, of all that the ascents passed through."""
        x = self.start(starts).to(self.model.device, self.model.dtype)
        velocity, best, highest = torch.zeros_like(x), x[0], -math.inf
        for step in range(steps):
            x = x.detach().requires_grad_()
            value = self.network(self.model.to_input(x))[:, self.channel].flatten(1).amax(1)
            (gradient,) = torch.autograd.grad(value.sum(), x)
            x = x.detach()
            if float(value.detach().max()) > highest:
                highest, best = float(value.detach().max()), x[value.argmax()]
            size = _norm(x).clamp_min(_LEAST_CONTRAST) * _EPSILON * _LAST ** (step / steps)
            velocity = _MOMENTUM * velocity + gradient / _norm(gradient).clamp_min(1e-12)
            x = self.project(x + size * velocity)
            tell(1)
        return self.whole(best)

    def start(self, count: int) -> Tensor:
        """White noise and long wavelengths by turns, from hardly any contrast to the whole one, here or in places."""

        def noise(height: int, width: int) -> Tensor:
            return torch.randn(count, channels, height, width, generator=self.generator)

        channels, height, width = self.model.input_shape
        if self.field is not None:
            height, width = self.field.height, self.field.width
        x, long = noise(height, width), F.interpolate(noise(3, 3), (height, width), mode="bicubic")
        x[::2] = 0.3 * x[::2] + long[::2]
        if self.field is None:
            uneven = F.interpolate(noise(4, 4)[:, :1], (height, width), mode="bicubic")
            return self.project(x * 10**uneven)
        contrast = torch.logspace(math.log10(_LEAST_CONTRAST), 0, count).view(-1, 1, 1, 1)
        return self.project(x / _norm(x) * math.sqrt(self.pixels) * contrast)

    def project(self, x: Tensor) -> Tensor:
        """To the images of the set; a field, to what a part of one can be."""
        if self.field is None:
            return self.constraint.bound(x)
        # The rest has to have the mean that makes up for the field's, and what is left of the sum of squares.
        rest = self.pixels - x[0].numel()
        squares = (x**2).sum((1, 2, 3), keepdim=True) + x.sum((1, 2, 3), keepdim=True) ** 2 / rest
        return x * (self.pixels / squares.clamp_min(self.pixels)).sqrt()

    def whole(self, x: Tensor) -> Tensor:
        """An image of the set that holds this field: the rest is a chessboard, for the contrast."""
        if self.field is None:
            constraint = self.constraint
            return (replace(constraint, turns=200) if isinstance(constraint, Range) else constraint).bound(x[None])[0]
        channels, height, width = self.model.input_shape
        field, (top, left) = self.field, (self.field.top, self.field.left)
        board = (torch.arange(height)[:, None] + torch.arange(width)).remainder(2).to(x)
        image = board.expand(channels, height, width).clone()
        outside = torch.ones(channels, height, width, dtype=torch.bool, device=x.device)
        outside[:, top : top + field.height, left : left + field.width] = False
        rest = image[outside]
        rest = (rest - rest.mean()) / torch.linalg.vector_norm(rest - rest.mean())
        total, squares = x.double().sum(), (x.double() ** 2).sum()
        left_over = (self.pixels - squares - total**2 / len(rest)).clamp_min(0).sqrt()
        image[outside] = (left_over * rest.double() - total / len(rest)).to(x)
        image[:, top : top + field.height, left : left + field.width] = x
        return standardize(image[None])[0]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return norm


def _bounds(
    exact: fx.GraphModule,
    model: FeatureModel,
    numbers: list[int],
    field: Field | None,
    ends: tuple[float, float] | None,
) -> Floats:
    """(M,) over all units of each map."""
    channels, height, width = model.input_shape
    pixels, domain = channels * height * width, model.domain
    images = ImageSet(pixels)
    if ends is not None:
        images = ImageSet(pixels, *(torch.full((pixels,), end, dtype=torch.float64) for end in ends))
    size = (height, width) if field is None else (field.height, field.width)
    std, mean = (torch.tensor(part, dtype=torch.float64).view(-1, 1, 1) for part in (domain.std, domain.mean))
    upper = UpperBounds(exact, (channels, *size), images, (std, mean))
    found = []
    for number in numbers:
        shape = upper.output_shape
        units = math.prod(shape[1:])
        rows = torch.zeros(units, shape[0], units, dtype=torch.float64)
        rows[:, number] = torch.eye(units, dtype=torch.float64)
        found.append(float(upper.of(rows.view(units, *shape)).max()))
    return np.array(found)
