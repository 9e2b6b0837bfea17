"""What is asked for of an atlas, beside what is there? The recipe of both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oip_torch.analysis.contents import NetworkContents
from oip_torch.atlas.recipe import Data, Recipe
from oip_torch.atlas.store import Store
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.objectives import Objective
from oip_torch.optim.settings import AscentSettings

__all__ = ["asked", "replaced", "there"]


def there(store: Store, resume: bool) -> Recipe | None:
    """What the atlas that is there was made of; None where there is none."""
    if not store.is_atlas:
        if store.is_empty:
            return None
        raise InputError(f"{store.name} is there, and is no atlas: expected a path where nothing is, or an atlas")
    recipe = Recipe.from_attributes(store.attributes(), store.name)
    if not resume:
        alone = "; object stores have no locks: see to it that no other process writes there" if store.is_remote else ""
        raise InputError(
            f"{store.name} is there already: expected a path where nothing is; with --resume (resume=True) what it "
            f"lacks is made{alone}"
        )
    return recipe


def asked(
    model: FeatureModel,
    layers: str | Layer | Iterable[str | Layer] | None,
    starts: int | None,
    seed: int | None,
    settings: AscentSettings | None,
    objective: Objective,
    pre_activation: bool | None,
    data: Data | None,
    before: Recipe | None,
) -> Recipe:
    """What is asked for; what is not said is as it was before."""
    chosen = _chosen_layers(model, layers, before)
    count = (1 if before is None else before.starts) if starts is None else whole("starts", starts, 1)
    if before is not None and count < before.starts:
        raise InputError(f"starts is {count}: the atlas has {before.starts} of each map; expected as many, or more")
    number = (0 if before is None else before.network.seed) if seed is None else whole("seed", seed, 0)
    if settings is None:
        settings = AscentSettings() if before is None else before.settings
    if not isinstance(settings, AscentSettings):
        raise InputError(f"settings is {shown(settings)}: expected AscentSettings(…)")
    network = NetworkContents(
        name=model.network.source,
        fingerprint=model.fingerprint,
        source_sha256=model.network.source_sha256,
        input_shape=model.input_shape,
        domain=model.domain,
        layers=tuple(model.layers),
        settings=settings.to_dict(),
        seed=number,
        versions=_versions() if before is None else before.network.versions,
        of_layers=tuple(chosen),
    )
    return Recipe(
        network=network,
        settings=settings,
        objective=objective.name,
        pre_activation=pre_activation,
        starts=count,
        data=None if data is None else data.sha256,
        own_settings={} if before is None else before.own_settings,
        versions={} if before is None else before.versions,
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("oip_torch", "torch", "numpy", "xarray", "zarr")}


def _chosen_layers(model: FeatureModel, layers: Any, before: Recipe | None) -> list[str]:
    """Names in the network's order; those of the atlas that is there are among them."""
    known = set() if before is None else set(before.network.of_layers)
    if layers is None and before is None:
        with_maps = [layer for layer in model.layers if model.has_maps(layer.name)]
        convolutions = [layer for layer in with_maps if "conv" in layer.kind.lower()]
        known = {layer.name for layer in convolutions or with_maps}
        if not known:
            raise InputError("this network has no layer with maps: name the layers, as in layers=['Dense_1']")
    elif layers is not None:
        given = [layers] if isinstance(layers, (str, Layer)) else layers
        if not isinstance(given, Iterable):
            raise InputError(f"layers is {shown(layers)}: expected names of layers, or None")
        known |= {model.layer(layer).name for layer in given}
    return [layer.name for layer in model.layers if layer.name in known]


def replaced(
    store: Store,
    model: FeatureModel,
    layers: str | Layer | Iterable[str | Layer] | None,
    settings: AscentSettings | None,
    recipe: Recipe,
    before: Recipe | None,
) -> Recipe:
    """The recipe with these layers made anew; those that have these settings already stay."""
    if before is None:
        raise InputError(f"{store.name} is not there: expected an atlas whose layers are to be replaced")
    if recipe.starts != before.starts:
        raise InputError(
            f"starts is {recipe.starts}: the atlas has {before.starts} of each map; expected the same with --replace "
            "(replace=True), and more by a call of its own"
        )
    if settings is None:
        raise InputError("replace=True without settings: expected those that the layers are to be made anew with")
    given = before.network.of_layers if layers is None else [layers] if isinstance(layers, (str, Layer)) else layers
    if not isinstance(given, Iterable):
        raise InputError(f"layers is {shown(layers)}: expected names of layers, or None")
    names = [model.layer(layer).name for layer in given]
    for name in names:
        if name not in before.network.of_layers:
            raise unknown_name("layer of the atlas", name, before.network.of_layers)
    return recipe.replacing([name for name in names if recipe.settings_of(name) != settings], settings)
