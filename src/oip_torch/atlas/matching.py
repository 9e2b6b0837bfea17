"""How much of one network is found in another? (`match`)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.analysis.matching import Match, match_layers
from oip_torch.analysis.scores import LayerOutputs, map_means, standardized_batches
from oip_torch.atlas.atlas import Atlas
from oip_torch.atlas.tables import scored_rows
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.base.image_files import check_pixels, images_sha256
from oip_torch.base.platform import matmul_precision
from oip_torch.network.domain import Domain
from oip_torch.network.model import FeatureModel
from oip_torch.results.fields import Array

__all__ = ["match"]


def match(
    a: Atlas | FeatureModel,
    b: Atlas | FeatureModel,
    layers: str | Iterable[str] | Mapping[str, str] | None = None,
    *,
    data: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Match:
    """Pair the maps of two networks by what they say of the same real images; see `Match` and `LayerMatch`.

        found = oip.match(oip.open_atlas("first.zarr"), oip.open_atlas("second.zarr"))
        print(found.summary)
        oip.plots.match(found["Conv2D_3"])

    Of two trainings, two settings, two frameworks. Of more than 2,000 images so many are
    taken, spread evenly; each is standardised and shown to each network through its own domain, as `calibrate` does.

    Args:
        a: an atlas; or a network, which is shown `data`.
        b: another one; an atlas that was made with the same data.
        layers: names that both have; or which layer of `a` is laid beside which of `b`, as {"Conv2D_3": "conv3"}. None:
            all that both have under one name; of two networks the convolutions (layers of a kind with "conv" in it).
        data: real images, as for `calibrate`, where `a` or `b` is a network.
        seed: of the shuffled images (`LayerMatch.chance`).

    Raises:
        InputError: an atlas made without data, atlases of different data, no layer in common, fewer than 50 images.
    """
    for name, side in (("a", a), ("b", b)):
        if not isinstance(side, (Atlas, FeatureModel)):
            raise InputError(f"{name} is {shown(side)}: expected an atlas, from open_atlas, or a network, from load")
    networks = [side for side in (a, b) if isinstance(side, FeatureModel)]
    if networks and data is None:
        raise InputError("a network is matched by what it says of real images: expected data=…, as for calibrate")
    if data is not None and not networks:
        raise InputError("both are atlases, which hold what their data drew: expected no data=…")
    pixels = None if data is None else check_pixels(data, "data")
    images = None if pixels is None else pixels[scored_rows(len(pixels))]
    chosen = _chosen(a, b, layers)
    own, other = _sides(a, list(chosen), images), _sides(b, list(dict.fromkeys(chosen.values())), images)
    found = {}
    for name, theirs in chosen.items():
        first, second = own[name], other[theirs]
        if first.sha256 != second.sha256:
            raise InputError(
                f"{name!r} and {theirs!r} were scored on different images (digests {first.sha256[:12]}… and "
                f"{second.sha256[:12]}…): expected atlases made with the same data; make one again with the other's"
            )
        if first.pre_activation != second.pre_activation:
            raise InputError(
                f"{name!r} and {theirs!r}: one was scored before its activation, the other after it: expected the same"
            )
        found[name] = match_layers((name, theirs), (first.scores, second.scores), (first.best, second.best), seed)
    domain = (a.network.domain if isinstance(a, Atlas) else a.domain) or Domain()
    return Match(name=_name(a), other_name=_name(b), layers=found, ends=domain.ends)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One layer: (images, maps) scores, the digest of the images, and by map the best of its OIPs."""

    scores: Array
    sha256: str
    pre_activation: bool
    best: Mapping[int, Array]


def _sides(side: Atlas | FeatureModel, names: list[str], images: Array | None) -> dict[str, _Side]:
    if isinstance(side, Atlas):
        return {name: _of_atlas(side, name) for name in names}
    assert images is not None
    before = [name for name in names if side.wants_pre_activation(name, None)]
    parts: dict[str, list[Array]] = {name: [] for name in names}
    outputs = LayerOutputs(side, names, before)
    with torch.no_grad(), matmul_precision():
        for _, x in standardized_batches(side, images, outputs.at_once):
            for name, output in outputs(x).items():
                parts[name].append(map_means(output).cpu().numpy())
    digest = images_sha256(images)
    return {
        name: _Side(scores=np.concatenate(held), sha256=digest, pre_activation=name in before, best={})
        for name, held in parts.items()
    }


def _of_atlas(atlas: Atlas, name: str) -> _Side:
    contents = atlas[name]
    if contents.data is None or contents.data.scores is None:
        raise InputError(
            f"{atlas.path} holds nothing of real images, by which maps are paired: expected one made with data; "
            "make_atlas(…, data=…, resume=True) adds them"
        )
    best = contents.oips.best()
    pictures = {one.map: one.image for one in best if one.status != "dead"}
    return _Side(
        scores=contents.data.scores,
        sha256=contents.data.scored_sha256,
        pre_activation=contents.data.calibration.pre_activation,
        best=pictures,
    )


def _chosen(
    a: Atlas | FeatureModel, b: Atlas | FeatureModel, layers: str | Iterable[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Which layer of `a` is laid beside which of `b`."""
    if layers is None:
        there = _names(b)
        common = {name: name for name in _names(a) if name in there}
        if not common:
            raise InputError(
                f"no layer has the same name in both: there are {', '.join(_names(a))} and {', '.join(there)}; say "
                "which belong together, as in layers={'Conv2D_3': 'conv3'}"
            )
        return common
    if isinstance(layers, Mapping):
        chosen = {str(name): str(theirs) for name, theirs in layers.items()}
    elif isinstance(layers, (str, Iterable)):
        chosen = {str(name): str(name) for name in ([layers] if isinstance(layers, str) else layers)}
    else:
        raise InputError(f"layers is {shown(layers)}: expected names of layers, or None")
    if not chosen:
        raise InputError("layers is empty: expected names of layers, or None")
    for side, names in ((a, chosen), (b, chosen.values())):
        known = side.layers if isinstance(side, Atlas) else side.layers.names
        for name in names:
            if name not in known:
                raise unknown_name("layer", name, known)
    return chosen


def _names(side: Atlas | FeatureModel) -> list[str]:
    if isinstance(side, Atlas):
        return list(side.layers)
    return [layer.name for layer in side.layers if side.has_maps(layer.name) and "conv" in layer.kind.lower()]


def _name(side: Atlas | FeatureModel) -> str:
    return side.network.name if isinstance(side, Atlas) else side.network.source
