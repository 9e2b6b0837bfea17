"""How is an atlas made, taken up again, and extended? (`make_atlas`)

What is to be in it is written first, then each unit of work as it is done. So at any moment the store says what is
whole, and whoever comes later makes the rest.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from oip_torch.atlas.asked import asked, replaced, there
from oip_torch.atlas.atlas import Atlas, Cells, about, layout_of
from oip_torch.atlas.figures import add_data, add_figures
from oip_torch.atlas.job import Engine, Job, Made
from oip_torch.atlas.layout import Layout, arrays_of_cell
from oip_torch.atlas.local import local
from oip_torch.atlas.ray_engine import LostWorkerError, ray_engine
from oip_torch.atlas.recipe import Data, Recipe
from oip_torch.atlas.store import Store
from oip_torch.atlas.units import Work
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.progress import bar
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.optim.objectives import Objective, map_mean
from oip_torch.optim.settings import AscentSettings
from oip_torch.search.plan import image_costs
from oip_torch.search.search import provenance_of
from oip_torch.search.target import Target, target_of

__all__ = ["make_atlas"]

_CELL = {"cpu": 32, "cuda": 512}  # maps that are written as one, and lost where the work is cut short
_BATCH_BYTES = 256 << 20  # that those of them may take on a CPU that are worked on at once; fewer cost no time then

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
    class_names: Sequence[str] | npt.NDArray[np.str_] | None = None,
    training: npt.ArrayLike | None = None,
    engine: str | Engine = "local",
    address: str | None = None,
    resume: bool = False,
    replace: bool = False,
    progress: bool | None = None,
) -> Atlas:
    """Make the OIPs of every map of a network's layers, and keep all of it in one zarr store.

        atlas = oip.make_atlas(model, path="atlas.zarr", starts=8, data=x_test, labels=y_test)

    Whatever ends the work, what is whole stays: the same call with `resume=True` makes the rest, and nothing where
    nothing is left. It also takes more starts and more layers, which are added; other settings are refused, unless
    `replace` says that layers are to be made anew with them.

    One process at a time writes to a folder. An object store has no locks: see to that yourself.

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
        class_names: of the classes 0, 1, 2 …; None: their numbers.
        training: other images of the same kind, for the figures of legibility (see `Readers.of`). None: every second
            one of `data`, and the others are those to be told apart.
        engine: "local": every core of this machine, or every CUDA device; "ray": the workers of a Ray cluster, of one
            core or CUDA device each (see docs/scale.md); or an engine of one's own.
        address: of the Ray cluster, "auto" or "HOST:PORT". None: one on this machine, for this call.
        resume: whether the atlas may be there already. Where it is not, it is begun.
        replace: whether `layers` (None: all) of the atlas that is there are made anew with `settings`, where they have
            others. What the atlas says of them stays as it was until all of them are whole; the same call goes on
            where it was cut short.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Raises:
        InputError: an argument of a wrong kind; an atlas that is there, without `resume`; one that was made of another
            network or with other settings, which are named; another process that writes to the same folder.
        OipError: not even one image fits in memory; or Ray's workers died over a part three times: all others are made.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load, convert or wrap returns")
    model.check_dtype()
    real = None if data is None else Data.of(data, labels, training, class_names)
    if data is None and not (labels is None and class_names is None and training is None):
        raise InputError("labels, class_names and training belong to data: expected data=… as well")
    if not isinstance(objective, Objective) or not objective.of_own_channel or objective.couples_images:
        raise InputError("objective: expected one of each map that couples no images, such as objectives.map_mean")
    if replace and settings is None:
        raise InputError("replace=True without settings: expected those that the layers are to be made anew with")
    worker = _engine(engine, address)
    store = Store(path, writable=True)
    with store.writing():
        before = there(store, resume or replace)
        recipe = asked(
            *(model, None if replace else layers, starts, seed, None if replace else settings),
            *(objective, pre_activation, real, before),
        )
        if before is not None and (differences := before.differences(recipe)):
            raise InputError(
                f"{store.name} was made otherwise: {'; '.join(differences)} (there → asked for); expected the same, or "
                "another path; --replace (replace=True) makes layers anew with other settings"
            )
        if replace:
            recipe = replaced(store, model, layers, settings, recipe, before)
        _make(store, recipe, before, model, objective, real, worker, progress, at_once=not replace)
    return Atlas(store)


def _make(
    store: Store,
    recipe: Recipe,
    before: Recipe | None,
    model: FeatureModel,
    objective: Objective,
    real: Data | None,
    worker: Engine,
    progress: bool | None,
    *,
    at_once: bool,
) -> None:
    """Make what the store lacks of a recipe, which the atlas is known by from the first or, not `at_once`, the last."""
    provenances = {
        name: _provenance(model, name, recipe, objective) for name in recipe.network.of_layers
    }  # refuses what cannot be
    if at_once and before != recipe:
        store.say(recipe.to_attributes())
    _remove_replaced(store, recipe if before is None else before)
    prepared = {name: _prepare(store, recipe, model, name, provenances[name], objective) for name in provenances}
    layouts = {name: layout for name, (layout, _) in prepared.items()}
    store.consolidate()
    changed = add_data(store, recipe, model, real, progress)
    cells = {name: Cells.read(store, recipe, name, ()) for name in layouts}
    for name, own in cells.items():
        if own.torn.any():
            logger.warning(
                "note: %d of %d parts of %r are damaged, and are made again", own.torn.sum(), own.torn.size, name
            )
            store.unmark(recipe.group(name), own.torn)
    left = {name: ~own.made for name, own in cells.items()}

    def job_of(layer: str, maps: range, of_starts: range) -> Job:
        return Job(
            fingerprint=recipe.network.fingerprint,
            layer=layer,
            maps=tuple(maps),
            starts=tuple(of_starts),
            batch=layouts[layer].cell,
            at_once=prepared[layer][1],
            settings=recipe.settings_of(layer),
            seed=recipe.network.seed,
            objective=objective,
            pre_activation=model.wants_pre_activation(layer, recipe.pre_activation),
        )

    work = Work(left, layouts, job_of)
    changed |= bool(work)
    lost = _work_off(store, recipe, model, work, layouts, worker, progress)
    changed |= add_figures(store, recipe, model, real)
    if not changed:
        logger.warning("note: nothing was left to do: %s is whole", store.name)
    if not at_once and not lost:
        store.say(recipe.to_attributes())
        _remove_replaced(store, recipe)
    store.consolidate()
    if lost:
        raise OipError(
            f"{len(lost)} parts of {store.name} were not made, since the workers died over them: {'; '.join(lost)}; "
            "all others are there, and --resume (resume=True) tries these again"
        )


def _remove_replaced(store: Store, recipe: Recipe) -> None:
    """The groups of layers that were made anew since go."""
    there_now = set(store.groups()) if recipe.versions else set()
    for name, version in recipe.versions.items():
        for group in there_now.intersection(recipe.group(name, older) for older in range(version)):
            store.remove(group)


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


def _provenance(model: FeatureModel, layer: str, recipe: Recipe, objective: Objective) -> dict[str, Any]:
    """Of a layer's images, before they are made; an `InputError` where they cannot be."""
    target = _target(model, layer, recipe, objective)
    made_by = provenance_of(target, recipe.network.seed, recipe.settings_of(layer))
    fingerprint = recipe.network.fingerprint
    return dataclasses.replace(made_by, fingerprint=fingerprint, weights=model.weights_in_words(fingerprint)).to_dict()


def _target(model: FeatureModel, layer: str, recipe: Recipe, objective: Objective) -> Target:
    before = model.wants_pre_activation(layer, recipe.pre_activation)
    return target_of(model, layer, before, objective, recipe.settings_of(layer))


def _at_once(model: FeatureModel, layer: str, recipe: Recipe, objective: Objective, cell: int) -> int:
    """How many maps of a new layer's cells are worked on at once; said in the atlas, since sums round by it."""
    if model.device.type != "cpu":
        return cell
    one = image_costs(_target(model, layer, recipe, objective), recipe.settings_of(layer)).bytes
    return min(cell, max(1, _BATCH_BYTES // one))


def _prepare(
    store: Store, recipe: Recipe, model: FeatureModel, layer: str, provenance: Mapping[str, Any], objective: Objective
) -> tuple[Layout, int]:
    """The layer's group with all of its arrays, of the sizes that are needed now; and how many maps are a batch."""
    group, settings = recipe.group(layer), recipe.settings_of(layer)
    if layer in recipe.versions and store.has(group):  # of a call that was cut short, perhaps with other settings
        found = store.attributes(group).get("settings")
        if found != json.loads(json.dumps(settings.to_dict())):
            store.remove(group)
    if not store.has(group):
        entry = layout_of(recipe, layer, 1)
        cell = Layout.cell_of(entry.maps, _CELL[model.device.type], entry.image, entry.snapshots)
        more: dict[str, Any] = {"at_once": _at_once(model, layer, recipe, objective, cell)}
        more |= {"settings": settings.to_dict()} if layer in recipe.versions else {}
        store.say({"layer": layer, "cell": cell, "provenance": dict(provenance), **more}, group)
    layout, _ = about(store, recipe, layer)
    if store.prepare(group, layout, {"snapshot_step": np.array(settings.snapshot_steps(), np.int64)}):
        for table in ("quality", "noise"):  # they are of fewer starts, and xarray refuses groups of several sizes
            store.remove(f"{group}/{table}")
    at_once = store.attributes(group).get("at_once", layout.cell)
    return layout, min(layout.cell, at_once) if isinstance(at_once, int) and at_once > 0 else layout.cell


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
    planned = sum(count * recipe.settings_of(name).image_steps for name, count in work.images.items())
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
                _write(store, recipe.group(job.layer), layout, work.block(job), job, made)
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
