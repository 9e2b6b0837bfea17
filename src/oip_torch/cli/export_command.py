"""What does `oip export-atlas` do?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oip_torch.cli.answers import to_json
from oip_torch.cli.options import Json, map_numbers

__all__ = ["export_atlas"]


def export_atlas(
    context: typer.Context,
    atlas: Annotated[
        str, typer.Argument(metavar="ATLAS.zarr", help="Made by `oip atlas`: a folder, or a URL such as s3://…")
    ],
    layers: Annotated[
        list[str] | None, typer.Argument(metavar="LAYER", help="Names of its layers; default: all.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("export"),
    what: Annotated[
        str, typer.Option(help="Some of sheets, csv, npz, safetensors, gif and mp4, separated by commas.")
    ] = "sheets,csv",
    maps: Annotated[
        str | None, typer.Option(help="Whose ways gif and mp4 show, as in 0-5,17; default: all maps.")
    ] = None,
    width: Annotated[int | None, typer.Option(metavar="PIXELS", help="Of a sheet; default: as its maps need.")] = None,
    scale: Annotated[int, typer.Option(help="Of gif and mp4: how many times as high and wide.")] = 8,
    fps: Annotated[float, typer.Option(help="Of gif and mp4: pictures a second.")] = 2.0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Write what an atlas holds as pictures, animations, a table of all figures, or arrays."""
    from oip_torch.atlas.atlas import open_atlas

    files = open_atlas(atlas).export(
        output,
        what,
        layers or None,
        maps=None if maps is None else map_numbers("--maps", [maps]),
        width=width,
        scale=scale,
        fps=fps,
        replace=replace,
    )
    names = [str(file) for file in files]
    context.obj.extend([to_json({"files": names})] if as_json else names)
