"""Execute the notebooks and store their outputs; `make notebooks` runs this on all of them.

With `--check` nothing is stored: that is what the tests do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"


def execute(path: Path, *, store: bool) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    if not store:
        return
    for cell in notebook.cells:
        # Times and versions of this run would make every execution a change.
        cell.metadata.pop("execution", None)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(notebook, path)  # type: ignore[no-untyped-call]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="*", default=sorted(FOLDER.glob("*.ipynb")))
    parser.add_argument("--check", action="store_true", help="execute without storing")
    options = parser.parse_args()
    for path in options.notebooks:
        print(path, flush=True)
        execute(path, store=not options.check)
    return 0


if __name__ == "__main__":
    sys.exit(main())
