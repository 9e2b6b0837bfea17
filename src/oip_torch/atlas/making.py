"""How is an atlas made, taken up again, and extended? (`make_atlas`)

What is to be in it is written first, then each unit of work as it is done. So at any moment the store says what is
whole, and whoever comes later makes the rest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from oip_torch.analysis.legibility import Readers
from oip_torch.analysis.noise_control import noise_control
from oip_torch.analysis.quality import assess
from oip_torch.atlas.atlas import Atlas, Cells, about, group_of, layout_of
from oip_torch.atlas.contents import NetworkContents
from oip_torch.atlas.job import Engine, Job, Made
from oip_torch.atlas.layout import FIGURES, Layout, arrays_of_cell
from oip_torch.atlas.local import local
from oip_torch.atlas.ray_engine import LostWorkerError, ray_engine
from oip_torch.atlas.recipe import Data, Recipe
from oip_torch.atlas.store import Store
from oip_torch.atlas.tables import data_tables, noise_table, quality_table
from oip_torch.atlas.units import Work
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.platform import free_memory, in_words
from oip_torch.base.progress import bar
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.objectives import Objective, map_mean
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.oips import Oips
from oip_torch.search.search import provenance_of
from oip_torch.search.target import target_of

__all__ = ["make_atlas"]

_CELL = {"cpu": 32, "cuda": 512}  # maps that are worked on as one batch, and lost where the work is cut short
_COPIES = 8  # of a layer's images that the figures of quality hold at one time, at most

logger = logging.getLogger("oip_torch")


def make_atlas(
    model: FeatureModel,
    layers: str | Layer | Iterable[str | Layer] | None = None,
    *,
    path: str | os.PathLike[str],
    starts: int | None = None,
    seed: int | None = None,
    settings: AscentSettings | None = None,
    objective: Objective = map_mean,
    pre_activation: bool | None = None,
    data: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    training: npt.ArrayLike | None = None,
    engine: str | Engine = "local",
    address: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Atlas:
    """Make the OIPs of every map of a network's layers, and keep all of it in one zarr store.

        atlas = oip.make_atlas(model, path="atlas.zarr", starts=8, data=x_test, labels=y_test)

    Whatever ends the work, what is whole stays: the same call with `resume=True` makes the rest, and nothing where
    nothing is left. It also takes more starts and more layers, which are added; other settings are refused.

    Args:
        model: from `load`, `convert` or `wrap`; the work is done where its weights are.
        layers: names, or entries of `model.layers`. None: every convolution (a layer of a kind with "Conv" in its
            name); where there is none, every layer that has maps. On an atlas that is there: none besides its own.
        path: of a folder, or a URL that fsspec knows, such as "s3://bucket/atlas.zarr".
        starts: images for each map. None: 1, or as many as the atlas has.
        seed: as of `ascend`. None: 0, or what the atlas was begun with.
        settings: as of `ascend`. None: the default, or what the atlas was begun with.
        objective: as of `ascend`, one of the image's own map that couples no images.
        pre_activation: as of `ascend`.
        data: real images, as for `calibrate`: what they draw from each map lies in the atlas, too.
        labels: the class of each of them, whole numbers.
        training: other images of the same kind, for the figures of legibility (see `Readers.of`). None: every second
            one of `data`, and the others are those to be told apart.
        engine: "local": every core of this machine, or every CUDA device; "ray": the workers of a Ray cluster, of one
            core or CUDA device each (see docs/scale.md); or an engine of one's own.
        address: of the Ray cluster, "auto" or "HOST:PORT". None: one on this machine, for this call.
        resume: whether the atlas may be there already. Where it is not, it is begun.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Raises:
        InputError: an argument of a wrong kind; an atlas that is there, without `resume`; one that was made of another
            network or with other settings, which are named.
        OipError: not even one image fits in memory; or Ray's workers died over a part three times: all others are made.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load, convert or wrap returns")
    model.check_dtype()
    real = None if data is None else Data.of(data, labels, training)
    if data is None and (labels is not None or training is not None):
        raise InputError("labels and training belong to data: expected data=… as well")
    if not isinstance(objective, Objective) or not objective.of_own_channel or objective.couples_images:
        raise InputError("objective: expected one of each map that couples no images, such as objectives.map_mean")
    worker = _engine(engine, address)
    store = Store(path, writable=True)
    before = _there(store, resume)
    recipe = _recipe(model, layers, starts, seed, settings, objective, pre_activation, real, before)
    if before is not None and (differences := before.differences(recipe)):
        raise InputError(
            f"{store.name} was made otherwise: {'; '.join(differences)} (there → asked for); expected the same, or "
            "another path"
        )
    provenances = {
        name: _provenance(model, name, recipe, objective) for name in recipe.network.of_layers
    }  # refuses what cannot be
    if before != recipe:
        store.say(recipe.to_attributes())
    layouts = {name: _prepare(store, recipe, name, provenances[name], model.device.type) for name in provenances}
    store.consolidate()
    changed = _add_data(store, recipe, model, real, progress)
    cells = {name: Cells.read(store, recipe, name, ()) for name in layouts}
    for name, own in cells.items():
        if own.torn.any():
            logger.warning(
                "note: %d of %d parts of %r are damaged, and are made again", own.torn.sum(), own.torn.size, name
            )
            store.unmark(group_of(recipe.network, name), own.torn)
    left = {name: ~own.made for name, own in cells.items()}

    def job_of(layer: str, maps: range, of_starts: range) -> Job:
        return Job(
            fingerprint=recipe.network.fingerprint,
            layer=layer,
            maps=tuple(maps),
            starts=tuple(of_starts),
            batch=layouts[layer].cell,
            settings=recipe.settings,
            seed=recipe.network.seed,
            objective=objective,
            pre_activation=model.wants_pre_activation(layer, recipe.pre_activation),
        )

    work = Work(left, layouts, job_of)
    changed |= bool(work)
    lost = _work_off(store, recipe, model, work, layouts, worker, progress)
    changed |= _add_figures(store, recipe, model, real)
    if not changed:
        logger.warning("note: nothing was left to do: %s is whole", store.name)
    store.consolidate()
    if lost:
        raise OipError(
            f"{len(lost)} parts of {store.name} were not made, since the workers died over them: {'; '.join(lost)}; "
            "all others are there, and --resume (resume=True) tries these again"
        )
    return Atlas(store)


def _engine(engine: str | Engine, address: str | None) -> Engine:
    if engine == "ray":
        return ray_engine(address)
    if address is not None:
        raise InputError(f"address is {shown(address)}: it belongs to a Ray cluster; expected engine 'ray' with it")
    if callable(engine):
        return engine
    if engine != "local":
        raise InputError(f"engine is {shown(engine)}: expected 'local' or 'ray'")
    return local


def _there(store: Store, resume: bool) -> Recipe | None:
    """What the atlas that is there was made of; None where there is none."""
    if not store.is_atlas:
        if store.is_empty:
            return None
        raise InputError(f"{store.name} is there, and is no atlas: expected a path where nothing is, or an atlas")
    recipe = Recipe.from_attributes(store.attributes(), store.name)
    if not resume:
        raise InputError(
            f"{store.name} is there already: expected a path where nothing is; with --resume (resume=True) what it "
            "lacks is made"
        )
    return recipe


def _recipe(
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


def _provenance(model: FeatureModel, layer: str, recipe: Recipe, objective: Objective) -> dict[str, Any]:
    """Of a layer's images, before they are made; an `InputError` where they cannot be."""
    before = model.wants_pre_activation(layer, recipe.pre_activation)
    target = target_of(model, layer, before, objective, recipe.settings)
    made_by = provenance_of(target, recipe.network.seed, recipe.settings)
    fingerprint = recipe.network.fingerprint
    return replace(made_by, fingerprint=fingerprint, weights=model.weights_in_words(fingerprint)).to_dict()


def _prepare(store: Store, recipe: Recipe, layer: str, provenance: Mapping[str, Any], device: str) -> Layout:
    """The layer's group with all of its arrays, of the sizes that are needed now."""
    group = group_of(recipe.network, layer)
    if not store.has(group):
        entry, snapshots = layout_of(recipe, layer, 1), len(recipe.settings.snapshot_steps())
        cell = Layout.cell_of(entry.maps, _CELL[device], entry.image, snapshots)
        store.say({"layer": layer, "cell": cell, "provenance": dict(provenance)}, group)
    layout, _ = about(store, recipe, layer)
    if store.prepare(group, layout, {"snapshot_step": np.array(recipe.settings.snapshot_steps(), np.int64)}):
        for table in ("quality", "noise"):  # they are of fewer starts, and xarray refuses groups of several sizes
            store.remove(f"{group}/{table}")
    return layout


def _add_data(store: Store, recipe: Recipe, model: FeatureModel, data: Data | None, progress: bool | None) -> bool:
    """What real images draw from the layers that lack it; returns whether there was one."""
    if data is None:
        return False
    groups = {name: f"{group_of(recipe.network, name)}/data" for name in recipe.network.of_layers}
    lacking = [name for name, group in groups.items() if store.read_table(group, data.sha256) is None]
    if lacking:
        for name, table in data_tables(model, data, lacking, recipe.pre_activation, progress).items():
            store.write_table(groups[name], table, data.sha256)
    return bool(lacking)


def _work_off(
    store: Store,
    recipe: Recipe,
    model: FeatureModel,
    work: Work,
    layouts: Mapping[str, Layout],
    engine: Engine,
    progress: bool | None,
) -> list[str]:
    """Hand the jobs to the engine, and write what comes back; returns the parts that its workers died over."""
    total, told, lost = 0, 0, []
    planned = work.images * recipe.settings.image_steps
    with bar("making the atlas", planned, progress) as tell:

        def advance(count: int) -> None:
            nonlocal told
            told += count
            tell(count)

        while work:  # again where a job did not fit in memory, and was the last
            for job, made in engine(model, work, advance):
                if not isinstance(made, Made):
                    if not work.halve(job):
                        if isinstance(made, LostWorkerError):
                            lost.append(f"maps {job.maps[0]} to {job.maps[-1]} of {job.layer!r}, start {job.starts[0]}")
                            continue
                        raise OipError(
                            f"an image of {job.layer!r} does not fit in memory: {made}; what was made stays in "
                            f"{store.name}"
                        ) from made
                    continue
                layout = layouts[job.layer]
                _write(store, group_of(recipe.network, job.layer), layout, work.block(job), job, made)
                work.done(job, made.seconds)
                total += job.image_steps
                if told < total:  # an engine that does not tell of steps
                    advance(total - told)
    return lost


def _write(store: Store, group: str, layout: Layout, block: tuple[int, int], job: Job, made: Made) -> None:
    """All cells of a job at once."""
    first, cells = block
    parts = [
        arrays_of_cell(layout, maps, start, oips) for (maps, start), oips in zip(job.cells, made.cells, strict=True)
    ]
    columns = [parts[at : at + cells] for at in range(0, len(parts), cells)]  # start by start
    arrays = {
        name: np.concatenate([np.concatenate([part[name] for part in column]) for column in columns], axis=1)
        for name in parts[0]
    }
    seconds = np.array([oips.provenance.seconds for oips in made.cells]).reshape(-1, cells).T
    store.write_cells(group, layout, (first, job.starts[0]), arrays, seconds)


def _add_figures(store: Store, recipe: Recipe, model: FeatureModel, data: Data | None) -> bool:
    """Quality and noise control of the layers that are whole and lack them; returns whether there was one."""
    added = False
    atlas = Atlas(store)
    for name in recipe.network.of_layers:
        group = group_of(recipe.network, name)
        cells = Cells.read(store, recipe, name, FIGURES)
        wanted = ["quality", "noise"] if recipe.starts > 1 else ["quality"]
        lacking = [table for table in wanted if store.read_table(f"{group}/{table}", cells.sha256) is None]
        if not lacking or not cells.state.finished or not len(cells.oips):
            continue
        layout = cells.layout
        if (needed := _COPIES * layout.bytes_of(["images"])) > (most := free_memory() // 2):
            logger.warning(
                "note: quality and noise control of %r are left out: they need %s of memory, and %s may be used",
                *(name, in_words(needed), in_words(most)),
            )
            continue
        oips = Cells.read(store, recipe, name, (*FIGURES, "images")).oips
        if "quality" in lacking:
            found = atlas.data(name)
            readers = None if data is None else _readers(model, oips, data)
            quality = assess(model, oips, None if found is None else found[1], readers=readers)
            store.write_table(f"{group}/quality", quality_table(quality, layout.maps, layout.starts), cells.sha256)
        if "noise" in lacking:
            noise = noise_control(model, oips)
            store.write_table(f"{group}/noise", noise_table(noise, layout.maps), cells.sha256)
        added = True
    return added


def _readers(model: FeatureModel, oips: Oips, data: Data) -> Readers | None:
    """For the figures of legibility; None where there is one image alone."""
    images, training = (data.images[::2], data.images[1::2]) if data.training is None else (data.images, data.training)
    if not len(training):
        return None
    return Readers.of(model, oips.layer, images, training, pre_activation=oips.pre_activation, progress=False)
