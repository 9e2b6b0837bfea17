"""Which maps of two networks say the same of the same images, and how much of one network is found in the other?

Li et al., "Convergent Learning: Do different neural networks learn the same representations?", 2015, pair the units of
two networks by the correlation of their activations over the same images: one to one, so that the sum is the largest
(Hungarian algorithm), or each with the one that it resembles most. They correlate at every position; here it is the
mean over the map, which asks nothing of the maps' sizes, and does not see where in the image a pattern lies.

A correlation alone says little: maps of networks that have learned nothing resemble each other, too, since all of them
follow how much ink there is. So a map counts as found where it and its best counterpart resemble each other more than
either resembles any other map of its own layer; and more than chance, which is asked with the images of one network
shuffled, and which nearly every map exceeds. docs/atlas.md has what networks that learned nothing come to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oip_torch.analysis.image_statistics import best_correlations, unit_spectra
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.results.fields import Array, array, variables_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LayerMatch", "Match", "match_layers"]

LEAST_IMAGES = 50
"""With fewer the correlation of two maps is a matter of chance."""

_SHUFFLES = 20  # of the images: of each the best counterpart of every map
_LEVEL = 0.95
_STILL = 1e-6  # of its largest score: a map that varies less does not vary

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LayerMatch:
    """A layer of one network beside a layer of another. NaN and -1: the map never varies over the images.

    Attributes:
        layer, other_layer: their names.
        images: over so many images.
        chance: the correlation with the best counterpart that one map in 20 exceeds where the images of the other
            network are shuffled.
        maps, other_maps: (P,) int, the pairs, one to one, so that the sum of their correlations is the largest; the
            most alike first.
        correlation: (P,) of the maps' scores over the images, -1 to 1.
        best, other_best: (maps,) of each map's scores with those of its best counterpart in the other layer.
        counterpart, other_counterpart: (maps,) int, which map that is; several maps may have the same.
        nearest, other_nearest: (maps,) of each map's scores with those of the map of its own layer most like it.
        image_correlation: (P,) `cross_correlation` of the best OIPs of the two maps; NaN where there is none.
        unrelated_correlation: (P,) of the first map's with the OIP of the next pair's second map, for comparison.
        pictures, other_pictures: (P, height, width, channels) these OIPs; None where there are none.
    """

    layer: str
    other_layer: str
    images: int
    chance: float
    maps: Array = array("pair", stored="map")
    other_maps: Array = array("pair", stored="other_map")
    correlation: Floats = array("pair")
    best: Floats = array("own")
    counterpart: Array = array("own")
    nearest: Floats = array("own")
    other_best: Floats = array("other")
    other_counterpart: Array = array("other")
    other_nearest: Floats = array("other")
    image_correlation: Floats = array("pair")
    unrelated_correlation: Floats = array("pair")
    pictures: Array | None = array("pair", "y", "x", "channel", large=True, default=None)
    other_pictures: Array | None = array("pair", "y", "x", "channel", large=True, default=None)

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """(maps,) whether the map is found in the other network.

        It is where `best` is above `chance`, above the map's own `nearest`, and above its counterpart's.
        """
        return _found(self.best, self.nearest, self.counterpart, self.other_nearest, self.chance)

    @property
    def other_found(self) -> npt.NDArray[np.bool_]:
        """(maps of the other layer,) likewise, the other way round."""
        return _found(self.other_best, self.other_nearest, self.other_counterpart, self.nearest, self.chance)

    @property
    def summary(self) -> str:
        """In a few sentences: how many maps are found, and how alike pairs are."""
        if not len(self.correlation):
            return f"{_both(self.layer, self.other_layer)}: no map varies over the images, so that none can be paired."
        alike = np.median(self.correlation)
        told = (
            f"{_both(self.layer, self.other_layer)}: {_share(self.found, self.best)} maps are found in the other "
            f"network, and {_share(self.other_found, self.other_best)} the other way round. "
            f"The {len(self.correlation)} pairs correlate by {alike:.2f} in the median over {self.images} images"
        )
        known = np.isfinite(self.image_correlation)
        if known.any():
            told += (
                f", their OIPs by {np.median(self.image_correlation[known]):.2f} (of unrelated maps: "
                f"{np.nanmedian(self.unrelated_correlation):.2f})"
            )
        return f"{told}."

    def __repr__(self) -> str:
        return f"<LayerMatch of {self.summary}>"

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset with the dimensions pair, own, other (all maps of both layers), y, x, channel."""
        import xarray as xr

        names = {"layer": self.layer, "other_layer": self.other_layer, "images": self.images, "chance": self.chance}
        dataset = xr.Dataset(variables_of(self), attrs=names)
        dataset["found"], dataset["other_found"] = ("own", self.found), ("other", self.other_found)
        return dataset.set_coords(["map", "other_map"])


@dataclass(frozen=True, kw_only=True)
class Match(Mapping[str, LayerMatch]):
    """Two networks beside each other, layer by layer: `match["Conv2D_3"].correlation`.

    Attributes:
        name, other_name: of the networks.
        layers: name in the first network → `LayerMatch`.
        ends: black and white of the first network's data, to show OIPs by; None: not known.
    """

    name: str
    other_name: str
    layers: dict[str, LayerMatch]
    ends: tuple[Array, Array] | None = None

    def __getitem__(self, layer: str) -> LayerMatch:
        if layer not in self.layers:
            raise unknown_name("matched layer", layer, self.layers)
        return self.layers[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def found(self) -> float:
        """Share of the first network's maps that are found in the other, of those that vary; NaN where none does."""
        return _total([(own.found, own.best) for own in self.layers.values()])

    @property
    def other_found(self) -> float:
        """Likewise, the other way round."""
        return _total([(own.other_found, own.other_best) for own in self.layers.values()])

    @property
    def summary(self) -> str:
        """A line for each layer, and what "found" means."""
        lines = [f"{self.name} beside {self.other_name}", *(own.summary for own in self.layers.values())]
        return "\n".join(
            [
                *lines,
                "Found: a map and its best counterpart are more alike than either is to any other map of its own "
                "layer, and than chance.",
            ]
        )

    def __repr__(self) -> str:
        own, other = _percent(self.found), _percent(self.other_found)
        shares = f"{own} of the maps are found in the other, {other} the other way round"
        return f"<Match of {self.name!r} and {self.other_name!r}: {shares}; {', '.join(self.layers)}>"

    def to_xarray(self) -> xr.DataTree:
        """As an xarray DataTree, with a Dataset for each layer: layer_000 and so on, since names may hold anything."""
        import xarray as xr

        held = {f"layer_{place:03d}": own.to_xarray() for place, own in enumerate(self.layers.values())}
        tree = xr.DataTree.from_dict(held)
        tree.attrs.update(name=self.name, other_name=self.other_name)
        return tree


def match_layers(
    names: tuple[str, str],
    scores: tuple[Array, Array],
    pictures: tuple[Mapping[int, Array], Mapping[int, Array]] = ({}, {}),
    seed: int = 0,
) -> LayerMatch:
    """Pair the maps of two layers.

    Args:
        names: of the layers.
        scores: (images, maps) of each, over the same images in the same order.
        pictures: of each: number of a map → its best OIP, (height, width, channels), of one size; may be empty.
        seed: of the shuffles.

    Raises:
        InputError: another number of images, fewer than 50, or images of two sizes.
    """
    images = len(scores[0])
    if images != len(scores[1]) or images < LEAST_IMAGES:
        raise InputError(
            f"{names[0]!r} was scored on {images} images, {names[1]!r} on {len(scores[1])}: expected the same, and "
            f"{LEAST_IMAGES} or more"
        )
    from scipy.optimize import linear_sum_assignment  # half a second, of every picture: the plots import this module

    (own, varies), (other, other_varies) = _unit(scores[0]), _unit(scores[1])
    table = own.T @ other
    table[~varies], table[:, ~other_varies] = np.nan, np.nan
    best, counterpart = _largest(table)
    other_best, other_counterpart = _largest(table.T)
    rows, columns = np.flatnonzero(varies), np.flatnonzero(other_varies)
    first, second = linear_sum_assignment(table[np.ix_(rows, columns)], maximize=True)
    pairs, partners = rows[first], columns[second]
    order = np.argsort(-table[pairs, partners], kind="stable")
    pairs, partners = pairs[order], partners[order]
    found = LayerMatch(
        layer=names[0],
        other_layer=names[1],
        images=images,
        chance=_chance(own[:, varies], other[:, other_varies], seed),
        maps=pairs,
        other_maps=partners,
        correlation=table[pairs, partners],
        best=best,
        counterpart=counterpart,
        nearest=_nearest(own, varies),
        other_best=other_best,
        other_counterpart=other_counterpart,
        other_nearest=_nearest(other, other_varies),
        image_correlation=np.full(len(pairs), np.nan),
        unrelated_correlation=np.full(len(pairs), np.nan),
    )
    return found if not (pictures[0] and pictures[1]) else _with_pictures(found, *pictures)


def _with_pictures(match: LayerMatch, own: Mapping[int, Array], other: Mapping[int, Array]) -> LayerMatch:
    """With the OIPs of the pairs; NaN for those that a pair lacks."""
    sizes = [next(iter(held.values())).shape for held in (own, other)]
    if sizes[0] != sizes[1]:  # such OIPs cannot be laid beside each other pixel by pixel
        return match
    empty = np.full(sizes[0], np.nan)
    ours = np.stack([own.get(int(number), empty) for number in match.maps]) if len(match.maps) else empty[None][:0]
    theirs = np.stack([other.get(int(number), empty) for number in match.other_maps]) if len(ours) else ours
    return dataclasses.replace(
        match,
        pictures=ours,
        other_pictures=theirs,
        image_correlation=_alike(ours, theirs),
        unrelated_correlation=_alike(ours, np.roll(theirs, -1, axis=0))
        if len(ours) > 1
        else match.unrelated_correlation,
    )


def _alike(images: Array, others: Array) -> Floats:
    """(P,) the best correlation over all shifts, row by row; NaN where an image is missing."""
    known = np.isfinite(images).all((1, 2, 3)) & np.isfinite(others).all((1, 2, 3))
    found = np.full(len(images), np.nan)
    if known.any():
        pair = unit_spectra(images[known]), unit_spectra(others[known])
        found[known] = best_correlations(*pair, images.shape[1:3])
    return found


def _unit(scores: Array) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """(images, maps) of mean 0 and length 1 each, 0 where a map never varies; (maps,) whether it does."""
    values = np.asarray(scores, np.float64)
    off = values - values.mean(0)
    length = np.sqrt((off**2).sum(0))
    varies = length > _STILL * np.sqrt(len(values)) * np.abs(values).max(0)
    return np.where(varies, off / np.where(varies, length, 1.0), 0.0), varies


def _largest(table: Floats) -> tuple[Floats, Array]:
    """Of each row the largest number that is defined, and its column; NaN and -1 where there is none."""
    known = np.isfinite(table)
    place = np.where(known, table, -np.inf).argmax(1) if table.shape[1] else np.zeros(len(table), int)
    some = known.any(1)
    values = np.full(len(table), np.nan)
    values[some] = table[some, place[some]]
    return values, np.where(some, place, -1)


def _nearest(unit: Floats, varies: npt.NDArray[np.bool_]) -> Floats:
    """(maps,) the correlation with the other map of the layer that is most like it; NaN where there is none."""
    table = unit.T @ unit
    table[~varies], table[:, ~varies] = np.nan, np.nan
    np.fill_diagonal(table, np.nan)
    return _largest(table)[0]


def _chance(own: Floats, other: Floats, seed: int) -> float:
    """What the best counterpart of one map in 20 exceeds where nothing belongs together."""
    if not own.shape[1] or not other.shape[1]:
        return float("nan")
    generator = np.random.default_rng(seed)
    drawn = [(own.T @ other[generator.permutation(len(other))]).max(1) for _ in range(_SHUFFLES)]
    return float(np.quantile(np.stack(drawn), _LEVEL))


def _found(best: Floats, nearest: Floats, counterpart: Array, theirs: Floats, chance: float) -> npt.NDArray[np.bool_]:
    """A map that is the only one of its layer that varies has no nearest, and need not be above it."""
    of_counterpart = np.where(counterpart >= 0, theirs[counterpart], np.nan)
    return np.asarray((best > chance) & ~(best <= nearest) & ~(best <= of_counterpart), bool)


def _total(parts: list[tuple[npt.NDArray[np.bool_], Floats]]) -> float:
    varying = sum(int(np.isfinite(best).sum()) for _, best in parts)
    return sum(int(found.sum()) for found, _ in parts) / varying if varying else float("nan")


def _share(found: npt.NDArray[np.bool_], best: Floats) -> str:
    """ "61 of 115"; those that never vary are not asked."""
    still = int((~np.isfinite(best)).sum())
    return f"{found.sum()} of {len(best) - still}{f' (and {still} never vary)' if still else ''}"


def _both(layer: str, other: str) -> str:
    return layer if layer == other else f"{layer} and {other}"


def _percent(share: float) -> str:
    return "none" if np.isnan(share) else f"{share:.0%}"
