"""Which words call what? The commands of `oip`; what they are told and how they end is in `cli`.

Each command appends to `context.obj` what is for stdout: with --json one object, with the key `error` where it fails.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oip_torch.base.errors import InputError, OipError, VerificationError
from oip_torch.cli.answers import failure_entry, to_json
from oip_torch.cli.atlas_command import atlas
from oip_torch.cli.export_command import export_atlas
from oip_torch.cli.gallery_command import gallery
from oip_torch.cli.options import (
    Before,
    Device,
    Json,
    Kind,
    Mean,
    OnnxFile,
    Quiet,
    Range,
    Std,
    domain_options,
    map_numbers,
    settings_of,
)

if TYPE_CHECKING:
    from oip_torch.network.model import FeatureModel

__all__ = ["app"]

app = typer.Typer(
    name="oip",
    help="See what the feature maps of a Keras CNN respond to, in PyTorch.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: the same in a terminal, in a pipe and without UTF-8
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"oip_torch {version('oip_torch')}")
        raise typer.Exit


@app.callback()
def _oip(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def convert(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL.keras|.h5", help="A CNN saved by Keras.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ONNX file; default: beside the model.")
    ] = None,
    architecture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="The network as model.to_json() writes it, for weights alone."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    data: Kind = None,
    value_range: Range = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Of the images, for a network that leaves them open."),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Images (x_test) to verify the conversion on, in the place of digits."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Keras CNN to ONNX and torch. Exit code 0 only when every layer is verified."""
    from oip_torch.base.image_files import read_images
    from oip_torch.keras.convert import convert as convert_model

    given = domain_options(mean, std, data, value_range) | {"device": device, "progress": False if quiet else None}
    given |= {"architecture": architecture, "size": size, "probes": None if probes is None else read_images(probes)}
    target = output if output is not None else _beside(model, ".onnx")
    _make_file(context, target, as_json, lambda: convert_model(model, output, **given))


@app.command("import")
def import_(
    context: typer.Context,
    onnx_file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A CNN that another program wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; default: FILE.oip.onnx beside it.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    data: Kind = None,
    value_range: Range = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Of the images, for a file that leaves them open."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Take in the ONNX file of any CNN. Exit code 0 only when every layer is verified against ONNX Runtime."""
    from oip_torch.keras.importing import import_onnx

    given = domain_options(mean, std, data, value_range) | {"size": size, "device": device}
    target = output if output is not None else _beside(onnx_file, ".oip.onnx")
    _make_file(context, target, as_json, lambda: import_onnx(onnx_file, output, **given))


def _beside(path: Path, ending: str) -> Path:
    """The default output; of a path without a name ("", "/") as well, which is refused when it is read."""
    return path.parent / f"{path.stem}{ending}"


def _make_file(context: typer.Context, target: Path, as_json: bool, make: Callable[[], FeatureModel]) -> None:
    """Convert or import, and tell of the layers and of how they were verified."""
    began = time.perf_counter()
    try:
        made = make()
    except VerificationError as error:
        if as_json:
            context.obj.append(
                to_json({"onnx": None, "layers": error.layers, "failed": error.failed} | failure_entry(error))
            )
        raise
    seconds = time.perf_counter() - began
    verification, rewritten = made.network.verification, made.network.rewritten
    if as_json:
        rows = [layer.row() for layer in made.layers]
        context.obj.append(
            to_json(
                {
                    "onnx": str(target),
                    "layers": rows,
                    "seconds": round(seconds, 3),
                    "verification": verification,
                    "rewritten": rewritten,
                }
            )
        )
        return
    reference = "ONNX Runtime" if verification.get("reference") == "onnxruntime" else "Keras"
    gradient = verification.get("gradient")
    cosine = "" if gradient is None else f", and the input gradient's cosine is {gradient['cosine']:.9f}"
    context.obj.append(
        f"{made.layers}\n\n"
        f"Every layer is verified: torch and {reference} differ by at most {verification['max_error']:.1e} of a "
        f"layer's maximum (1e-5 is allowed){cosine}.{_decided_in_float64(verification)}\n"
        f"Written in {seconds:.1f} s: {target}"
    )


@app.command()
def layers(context: typer.Context, onnx_file: OnnxFile, as_json: Json = False) -> None:
    """List the layers of a converted network."""
    from oip_torch.network.onnx_file import Layers, read

    _, network = read(onnx_file)
    if as_json:
        context.obj.append(to_json({"layers": [layer.row() for layer in network.layers]}))
    else:
        context.obj.append(str(Layers(network.layers)))


@app.command("export-torch")
def export_torch(
    context: typer.Context,
    onnx_file: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the two files.")],
    as_json: Json = False,
) -> None:
    """Write a network as plain PyTorch: model.py and weights.safetensors. Exit code 0 only when both are verified."""
    from oip_torch.plain import export

    errors = export.export_torch(onnx_file, output)
    files = [str(output / name) for name in ("model.py", "weights.safetensors")]
    if as_json:
        context.obj.append(to_json({"files": files, "layers": errors}))
        return
    context.obj.append(
        f"Every layer is verified: what was written and the network differ by at most {max(errors.values()):.1e} of a "
        f"layer's maximum ({export.TOLERANCE:.0e} is allowed)."
    )
    context.obj.extend(files)


@app.command()
def ascend(
    context: typer.Context,
    onnx_file: OnnxFile,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Name of the layer, see `oip layers`.")],
    maps: Annotated[
        list[str] | None,
        typer.Argument(metavar="MAP", help="Which maps, as in 3 17 or 0-5,9; default: all of the layer."),
    ] = None,
    more_maps: Annotated[
        str | None, typer.Option("--maps", metavar="MAPS", help="The same as an option: --maps 0-5,9.")
    ] = None,
    starts: Annotated[int, typer.Option(help="Start images per map.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the start images.")] = 0,
    settings: Annotated[str, typer.Option(help="article, default, legible or strokes.")] = "default",
    steps: Annotated[
        int | None, typer.Option(help="Steps spent on each image; with the default settings the search included.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Size of a step.")] = None,
    pre_activation: Before = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GIB", help="Memory that it may take; default: half of what is free.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Real images (x_test, as in mnist.npz) to compare the scores with."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for oips.nc and the pictures; default: oips.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make OIPs of a layer's maps: oips.nc, a contact sheet, and evolution pictures of the strongest maps."""
    from oip_torch.analysis.calibration import calibrate
    from oip_torch.analysis.noise_control import noise_control
    from oip_torch.base.files import check_output_folder
    from oip_torch.base.image_files import read_images
    from oip_torch.cli.ascent_files import summarize, write_results
    from oip_torch.network.load import load
    from oip_torch.results.oips import plural
    from oip_torch.search.search import ascend as make

    chosen_maps = map_numbers("MAP", maps or []) + map_numbers("--maps", [] if more_maps is None else [more_maps])
    if memory is not None and not 0 < memory * 2**30 < math.inf:
        raise InputError(f"--memory {memory}: expected a number of GiB above 0")
    most = None if memory is None else math.ceil(memory * 2**30)
    settings_of(settings, steps, epsilon, None)  # what cannot be is told before anything is read
    images = None if data is None else read_images(data)
    network = load(onnx_file, device=device)
    folder = check_output_folder(output if output is not None else Path("oips"), ["oips.nc", "calibration.nc"])
    bars = False if quiet else None
    network.layers[layer]  # a wrong name is told before the data is run through the network
    calibration = None
    if images is not None:
        calibration = calibrate(network, images, [layer], pre_activation=pre_activation, progress=bars)
    chosen = settings_of(settings, steps, epsilon, None if calibration is None else calibration.limits)
    began = time.perf_counter()
    oips = make(
        *(network, layer, chosen_maps or None),
        starts=starts, seed=seed, settings=chosen, pre_activation=pre_activation, memory=most, progress=bars,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    # With one start the agreement cannot be asked, and a score alone says too little.
    control = noise_control(network, oips) if starts > 1 else None
    summary = summarize(oips, calibration, control)
    files: list[Path] = []
    failure: OipError | None = None
    try:
        write_results(oips, calibration, control, folder, files)
        if lost := oips.provenance.not_finite:
            names = ", ".join(str(number) for number in dict.fromkeys(number for number, _ in lost))
            failure = OipError(
                f"{len(lost)} of {len(lost) + len(oips)} images left the finite numbers, of {plural(oips.noun)} "
                f"{names}: the others are in {files[0]}; try a smaller --epsilon"
            )
    except OipError as error:
        failure = error
    if as_json:
        context.obj.append(
            to_json(
                {
                    "images": len(oips),
                    "maps": summary["maps"],
                    "alive": summary["alive"],
                    "above_data": summary["above_data"],
                    "steps": oips.provenance.image_steps,
                    "seconds": round(seconds, 3),
                    "device": oips.provenance.device,
                    "layers": {layer: summary},
                    "files": [str(file) for file in files],
                }
                | failure_entry(failure)
            )
        )
    else:
        context.obj.append(f"{oips!r} in {seconds:.1f} s on {oips.provenance.device}")
        if images is not None:
            context.obj.append(
                f"{summary['above_data']} of {summary['maps']} {plural(oips.noun)} score above the maximum of "
                f"{len(images)} real images"
            )
        if control is not None:
            context.obj.append(control.summary)
        context.obj.extend(
            f"{oips.noun} {dead['map']} is dead: after {dead['tries']} starts the largest value that went into its "
            f"activation was {dead['max_preactivation']:.4g}"
            for dead in summary["dead"]
        )
        context.obj.extend(map(str, files))
    if failure is not None:
        raise failure


app.command()(atlas)
app.command()(gallery)
app.command()(export_atlas)


@app.command()
def compare(
    context: typer.Context,
    model: Annotated[Path, typer.Argument(metavar="MODEL.keras|.h5", help="The Keras network.")],
    onnx_file: OnnxFile,
    runtimes: Annotated[
        str, typer.Option(help="Which, besides the imported torch module; separated by commas.")
    ] = "tensorflow,jax,keras-torch,onnxruntime",
    layer: Annotated[
        str | None, typer.Option(help="Whose maps are ascended; default: the last convolution with maps.")
    ] = None,
    maps: Annotated[
        str | None, typer.Option(help="Which of its maps, as in 0-5,17; default: 64, spread evenly.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each ascent.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the start images.")] = 0,
    pre_activation: Before = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.json and report.html.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the network in several runtimes side by side. Exit code 0 only when they agree."""
    from oip_torch.base.files import check_output_folder
    from oip_torch.comparison.comparison import compare as run

    if output is not None:
        check_output_folder(output, ["report.json", "report.html"])
    comparison = run(
        *(model, onnx_file),
        runtimes=[name.strip() for name in runtimes.split(",") if name.strip()],
        layer=layer,
        maps=None if maps is None else map_numbers("--maps", [maps]),
        steps=steps,
        seed=seed,
        pre_activation=pre_activation,
        device=device,
        progress=False if quiet else None,
    )
    files: list[Path] = []
    failure = None if comparison.agree else OipError(comparison.verdict)
    if output is not None:
        try:
            files = comparison.save(output)
        except OipError as error:
            failure = error
    if as_json:
        context.obj.append(
            to_json(comparison.report | {"files": [str(file) for file in files]} | failure_entry(failure))
        )
        for note in comparison.report["notes"]:
            print(f"note: {note}", file=sys.stderr)
    else:
        context.obj.extend([str(comparison), *map(str, files)])
    if failure is not None:
        raise failure


def _decided_in_float64(verification: dict[str, Any]) -> str:
    """What float32 was too coarse for."""
    names, gradient = verification.get("in_float64"), verification.get("gradient", {}).get("cosine_float64")
    told = "" if not names else f" In float64, where rounding is out of the way, so were decided: {', '.join(names)}."
    return told if gradient is None else f"{told} The gradient's cosine in float64 is {gradient:.9f}."
