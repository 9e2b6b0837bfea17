"""What does `oip gallery` do?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from oip_torch.cli.answers import to_json
from oip_torch.cli.options import Json

__all__ = ["gallery"]


def gallery(
    context: typer.Context,
    atlas: Annotated[
        str, typer.Argument(metavar="ATLAS.zarr", help="That `oip atlas` made, or has begun: a folder or a URL.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE.html", help="The page; default: gallery.html."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of `oip compare -o DIR`, whose figures are shown as well."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the page of an atlas: one HTML file that needs no other, to look at and to send around."""
    from oip_torch.atlas.atlas import open_atlas
    from oip_torch.base.files import check_output_folder
    from oip_torch.gallery.page import checked_path, write_gallery
    from oip_torch.gallery.reports import read_report

    path = checked_path(Path("gallery.html") if output is None else output)
    check_output_folder(path.parent, [path.name])  # what cannot be written is told before anything is read
    held = open_atlas(atlas)
    compared = None if report is None else read_report(report, [layer.name for layer in held.network.layers])
    began = time.perf_counter()
    write_gallery(held.network, (held[name] for name in held.layers), path, compared)
    seconds, size = time.perf_counter() - began, path.stat().st_size
    if as_json:
        entry = {"page": str(path), "bytes": size, "layers": list(held.layers), "seconds": round(seconds, 3)}
        context.obj.append(to_json(entry))
    else:
        context.obj.append(f"{size / 1e6:.1f} MB in {seconds:.1f} s: {path}")
