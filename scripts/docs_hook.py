"""The hook of mkdocs.yml: pages of the site that lie outside of docs/, and links that lead there.

A code host shows every file of the project, the site shows pages alone. So the texts link to files, by relative paths,
and what is a page of the site becomes a link to that, anything else its text alone.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = {  # from the project's root → in the site
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "models/README.md": "model.md",
    "benchmarks/rivals/README.md": "rivals.md",
}

_LINK = re.compile(r"(!?)\[((?:[^][]|\[[^][]*\])*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside, and to the navigation what it does not name."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(Path(config.config_file_path).parent / source)))
    assert config.nav is not None
    named = {name for entry in config.nav for name in (entry.values() if isinstance(entry, dict) else [entry])}
    rest = sorted(file.src_uri for file in files.documentation_pages() if file.src_uri not in named)
    outside = [name for name in rest if name in OUTSIDE.values()]
    config.nav.extend([{"Notes": [name for name in rest if name not in outside]}, {"Project": outside}])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn relative paths to files into links to the site's pages, where they are."""
    assert page.file.abs_src_path is not None
    root = Path(config.config_file_path).parent
    folder = os.path.relpath(os.path.dirname(page.file.abs_src_path), root)

    def in_site(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups(default="")
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (root / path).exists():
            return link.group()  # strict mode says that it leads nowhere
        if path not in OUTSIDE and not path.startswith("docs/"):
            return text
        name = OUTSIDE.get(path, path.removeprefix("docs/"))
        return f"{mark}[{text}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    return _LINK.sub(in_site, markdown)
