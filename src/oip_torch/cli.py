"""Which words call what? The command `oip`.

stdout holds results: a table, or with --json one JSON object and nothing else. Everything else goes to stderr.
Exit codes: 0 done; 1 ran, but a proof or comparison failed; 2 the input or the call is wrong. Each but 0 comes
with one line `error: …`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import typer

from oip_torch.errors import InputError, OipError, ProofError

if TYPE_CHECKING:
    from oip_torch.calibration import Calibration
    from oip_torch.oips import Oips

__all__ = ["app", "main"]

_Number = TypeVar("_Number", int, float)

app = typer.Typer(
    name="oip",
    help="See what the feature maps of a Keras CNN respond to, in PyTorch.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA when present), cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
OnnxFile = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Made by `oip convert`.")]


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL.keras|.h5", help="A CNN saved by Keras.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ONNX file; default: beside the model.")
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Mean that was subtracted from the inputs (0–255 scale); M or M,M,M for channels."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation the inputs were divided by; S or S,S,S.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Keras CNN to ONNX and torch. Exit code 0 only when every layer is proven."""
    from oip_torch.conversion import convert as convert_model

    began = time.perf_counter()
    try:
        converted = convert_model(
            model,
            output,
            mean=_numbers("--mean", mean, float),
            std=_numbers("--std", std, float),
            device=device,
            progress=False if quiet else None,
        )
    except ProofError as error:
        if as_json:
            _print_json({"onnx": None, "layers": error.layers, "failed": error.failed, "error": str(error)})
        raise
    target = output if output is not None else model.with_suffix(".onnx")
    seconds = time.perf_counter() - began
    if as_json:
        rows = [layer.row() for layer in converted.layers]
        _print_json(
            {"onnx": str(target), "layers": rows, "seconds": round(seconds, 3), "proof": converted.network.proof}
        )
        return
    print(converted.layers)
    proof = converted.network.proof
    print(
        f"\nEvery layer is proven: torch and Keras differ by at most {proof['max_error']:.1e} of a layer's maximum "
        f"(1e-5 is allowed), and the input gradient's cosine is {proof['gradient']['cosine']:.9f}.\n"
        f"Written in {seconds:.1f} s: {target}"
    )


@app.command()
def layers(onnx_file: OnnxFile, as_json: Json = False) -> None:
    """List the layers of a converted network."""
    from oip_torch.onnx_file import Layers, read

    _, network = read(onnx_file)
    if as_json:
        _print_json({"layers": [layer.row() for layer in network.layers]})
    else:
        print(Layers(network.layers))


@app.command()
def ascend(
    onnx_file: OnnxFile,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Name of the layer, see `oip layers`.")],
    maps: Annotated[
        list[int] | None, typer.Argument(metavar="[MAP ...]", help="Which maps; default: all of the layer.")
    ] = None,
    starts: Annotated[int, typer.Option(help="Start images per map.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the start images.")] = 0,
    settings: Annotated[str, typer.Option(help="article or default.")] = "default",
    steps: Annotated[
        int | None, typer.Option(help="Steps spent on each image; with the default settings the search included.")
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Size of a step.")] = None,
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
    from oip_torch.ascent import AscentSettings
    from oip_torch.calibration import calibrate, read_images
    from oip_torch.files import check_output_folder
    from oip_torch.model import load
    from oip_torch.search import ascend as make

    if settings not in ("article", "default"):
        raise InputError(f"--settings {settings}: expected article or default")
    if memory is not None and not 0 < memory < math.inf:
        raise InputError(f"--memory {memory}: expected a number of GiB above 0")
    most = None if memory is None else math.ceil(memory * 2**30)
    changes: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    if settings == "article":
        chosen = AscentSettings.article(**(changes if steps is None else changes | {"steps": steps}))
    else:
        chosen = AscentSettings(**changes) if steps is None else AscentSettings.within(steps, **changes)
    images = None if data is None else read_images(data)
    network = load(onnx_file, device=device)
    folder = check_output_folder(output if output is not None else Path("oips"))
    bars = False if quiet else None
    network.layers[layer]  # a wrong name is told before the data is run through the network
    calibration = None if images is None else calibrate(network, images, [layer], progress=bars)
    began = time.perf_counter()
    oips = make(network, layer, maps or None, starts=starts, seed=seed, settings=chosen, memory=most, progress=bars)
    seconds = time.perf_counter() - began
    files = _write_results(oips, calibration, folder)
    summary = _summary(oips, calibration)
    if as_json:
        _print_json(
            {
                "images": len(oips),
                "maps": summary["maps"],
                "alive": summary["alive"],
                "above_data": summary["above_data"],
                "steps": oips.info["image_steps"],
                "seconds": round(seconds, 3),
                "device": oips.info["device"],
                "layers": {layer: summary},
                "files": [str(file) for file in files],
            }
        )
        return
    print(f"{oips!r} in {seconds:.1f} s on {oips.info['device']}")
    if images is not None:
        print(f"{summary['above_data']} of {summary['maps']} maps score above the maximum of {len(images)} real images")
    for dead in summary["dead"]:
        print(
            f"map {dead['map']} is dead: after {dead['tries']} starts the largest value that went into its activation "
            f"was {dead['largest_before']:.4g}"
        )
    for file in files:
        print(file)


@app.command()
def compare(
    model: Annotated[Path, typer.Argument(metavar="MODEL.keras|.h5", help="The Keras network.")],
    onnx_file: OnnxFile,
    runtimes: Annotated[
        str, typer.Option(help="Which, besides the imported torch module; separated by commas.")
    ] = "tensorflow,jax,keras-torch,onnxruntime",
    layer: Annotated[
        str | None, typer.Option(help="Whose maps are ascended; default: the last convolution with maps.")
    ] = None,
    maps: Annotated[
        str | None, typer.Option(help="Which of its maps, as in 0,5,17; default: 64, spread evenly.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each ascent.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the start images.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for report.json and report.html.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the network in several runtimes side by side. Exit code 0 only when they agree."""
    from oip_torch.comparison import compare as run
    from oip_torch.files import check_output_folder

    if output is not None:
        check_output_folder(output)
    comparison = run(
        *(model, onnx_file),
        runtimes=[name.strip() for name in runtimes.split(",") if name.strip()],
        layer=layer,
        maps=_numbers("--maps", maps, int),
        steps=steps,
        seed=seed,
        device=device,
        progress=False if quiet else None,
    )
    files = [] if output is None else comparison.save(output)
    if as_json:
        _print_json(comparison.report | {"files": [str(file) for file in files]})
        for note in comparison.report["notes"]:
            print(f"note: {note}", file=sys.stderr)
    else:
        print(comparison)
        for file in files:
            print(file)
    if not comparison.agree:
        raise OipError(comparison.verdict)


def _write_results(oips: Oips, calibration: Calibration | None, folder: Path) -> list[Path]:
    """oips.nc and the pictures; returns their paths."""
    from oip_torch import plots
    from oip_torch.files import replacing

    best = oips.best()
    pictures = {"sheet.png": plots.sheet(best), "trace.png": plots.trace(best)}
    if calibration is not None:
        pictures["beside_data.png"] = plots.beside_data(best, calibration, best.maps[:16].tolist())
    for index in np.argsort(-best.scores, kind="stable")[:3]:
        number = int(best.maps[index])
        pictures[f"evolution_{number:03d}.png"] = plots.evolution(oips, number)
    files = [oips.save(folder / "oips.nc")]
    if calibration is not None:
        files.append(calibration.save(folder / "calibration.nc"))
    for name, figure in pictures.items():
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, dpi=110)
        files.append(folder / name)
    return files


def _summary(oips: Oips, calibration: Calibration | None) -> dict[str, Any]:
    """Of one layer, each map by its best image; of dead maps the evidence."""
    best = oips.best()
    above = None
    if calibration is not None:
        above = int((best.scores > calibration[oips.layer].maximum[best.maps]).sum())
    tries = oips.settings["candidates"]
    dead = []
    for number in best.maps[best.scores <= 0].tolist():
        every = oips.select(maps=number)
        dead.append({"map": number, "tries": len(every) * tries, "largest_before": float(every.largest_before.max())})
    return {
        "maps": len(best),
        "alive": int((best.scores > 0).sum()),
        "above_data": above,
        "median_score": float(np.median(best.scores)),
        "dead": dead,
    }


def _numbers(option: str, text: str | None, kind: Callable[[str], _Number]) -> list[_Number] | None:
    """ "1.5" or "1,2,3" to numbers."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        expected = (
            "whole numbers as in 0,5,17" if kind is int else "a number, or one per channel as in 103.9,116.8,123.7"
        )
        raise InputError(f"{option} {text}: expected {expected}") from None


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, allow_nan=False))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    try:
        result = app(args=(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
    except ProofError as error:
        return _fail(str(error), 1)
    except OipError as error:
        return _fail(str(error), 2 if isinstance(error, InputError) else 1)
    except typer.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        # Typer's own usage errors: several lines by default, here one.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _fail(f"{error.format_message()} (see `oip --help`)", 2)
        raise
    return result if isinstance(result, int) else 0


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
