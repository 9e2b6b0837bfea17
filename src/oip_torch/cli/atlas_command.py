"""What does `oip atlas` do, and how are its results summed up?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oip_torch.base.errors import OipError
from oip_torch.cli.answers import failure_entry, to_json
from oip_torch.cli.options import Before, Device, Json, OnnxFile, Quiet, settings_of

if TYPE_CHECKING:
    from oip_torch.atlas.atlas import Atlas

__all__ = ["atlas"]


def atlas(
    context: typer.Context,
    onnx_file: OnnxFile,
    layers: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAYER", help="Names of layers, see `oip layers`; default: every convolution."),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="ATLAS.zarr", help="A folder, or a URL such as s3://…")
    ] = "atlas.zarr",
    starts: Annotated[int | None, typer.Option(help="Start images per map; default: 1, or as the atlas has.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the start images; default: 0.")] = None,
    settings: Annotated[str | None, typer.Option(help="article, default, legible or strokes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps spent on each image.")] = None,
    pre_activation: Before = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Real images (x_test; y_test, class_names and x_train where they are there)."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="local: every core of this machine, or every CUDA device; ray: a Ray cluster's workers.")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Of a Ray cluster that is there: auto or HOST:PORT; default: one of this machine."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Make what an atlas that is there lacks; more starts and layers as well.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Make these layers (default: all that are there) anew with other settings; the old stay until then.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make OIPs of every map of a network, in one zarr store; what is whole stays, whatever ends the work."""
    from oip_torch.analysis.calibration import calibrate
    from oip_torch.atlas.making import make_atlas
    from oip_torch.base.image_files import read_data
    from oip_torch.network.load import load

    name = "default" if settings is None else settings
    settings_of(name, steps, None, None)  # what cannot be is told before anything is read
    images, labels, training, names = (None, None, None, None) if data is None else read_data(data)
    network = load(onnx_file, device=device)
    limits = None
    if images is not None and name == "strokes":  # which keeps to what real images reach
        limits = calibrate(network, images, network.layers.names[:1], progress=False).limits
    began = time.perf_counter()
    made = make_atlas(
        *(network, layers or None),
        path=output, starts=starts, seed=seed,
        settings=None if settings is None and steps is None else settings_of(name, steps, None, limits),
        pre_activation=pre_activation, data=images, labels=labels, class_names=names, training=training,
        engine=engine, address=address, resume=resume, replace=replace, progress=False if quiet else None,
    )  # fmt: skip
    result, failure = _summary(made, time.perf_counter() - began)
    if as_json:
        context.obj.append(to_json(result | failure_entry(failure)))
    else:
        context.obj.append(
            f"{result['images']} images of {result['maps']} maps in {result['seconds']:.1f} s: {made.path}"
        )
        for name, summary in result["layers"].items():
            above = "" if summary["above_data"] is None else f", {summary['above_data']} above the data's maximum"
            context.obj.append(f"{name}: {summary['alive']} of {summary['maps']} alive{above}")
    if failure is not None:
        raise failure


def _summary(atlas: Atlas, seconds: float) -> tuple[dict[str, Any], OipError | None]:
    """The command's JSON object, and what is to be said of images that were lost."""
    from oip_torch.cli.ascent_files import summarize

    of_layers, lost, images, steps, device = {}, 0, 0, 0, ""
    for name in atlas.layers:
        held = atlas.figures(name)
        calibration = atlas.data(name)
        lost += len(held.oips.provenance.not_finite)
        images += len(held.oips)
        steps += held.oips.provenance.image_steps
        device = held.oips.provenance.device
        if len(held.oips):
            of_layers[name] = summarize(held.oips, None if calibration is None else calibration[1], held.noise)
    above = [summary["above_data"] for summary in of_layers.values()]
    result = {
        "images": images,
        "maps": sum(summary["maps"] for summary in of_layers.values()),
        "alive": sum(summary["alive"] for summary in of_layers.values()),
        "above_data": None if None in above or not above else sum(above),
        "steps": steps,
        "seconds": round(seconds, 3),
        "device": device,
        "layers": of_layers,
        "not_finite": lost,
        "atlas": atlas.path,
    }
    failure = None
    if lost:
        failure = OipError(
            f"{lost} of {lost + images} images left the finite numbers: the others are in {atlas.path}, which names "
            "these as not_finite; other settings have smaller steps"
        )
    return result, failure
