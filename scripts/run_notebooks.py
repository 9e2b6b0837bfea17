"""Execute the notebooks, and write them with their outputs into a folder; `make notebooks` runs this on all of them.

    python scripts/run_notebooks.py [NOTEBOOK ...] [-o FOLDER]
    python scripts/run_notebooks.py [NOTEBOOK ...] --store

The notebooks themselves change with `--store` alone, so that to run them leaves the working tree as it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def execute(path: Path, target: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    for cell in notebook.cells:
        # Times and versions of this run would make every execution a change.
        cell.metadata.pop("execution", None)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)  # type: ignore[no-untyped-call]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted((ROOT / "notebooks").glob("*.ipynb")))
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", type=Path, default=ROOT / "out" / "notebooks", metavar="FOLDER")
    where.add_argument("--store", action="store_true", help="write each notebook in place")
    options = parser.parse_args()
    for path in options.notebooks:
        target = path if options.store else options.output / path.name
        print(f"{path} → {target}", flush=True)
        execute(path, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
