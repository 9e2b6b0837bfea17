"""What is imported is declared, the lowest versions are tested, and what is built holds what it should."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PYTHONS = [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in SpecifierSet(PROJECT["requires-python"])]

EXTRA_OF = {  # all other modules do without an extra
    "keras/aside.py": "convert",
    "atlas/ray_engine.py": "ray",
    "keras/export.py": "convert",
    "keras/graph.py": "convert",
    "keras/network.py": "convert",
    "keras/reference.py": "compare",
    "comparison/runtimes/keras_runtime.py": "convert",
    "comparison/runtimes/keras_tensorflow.py": "convert",
    "comparison/runtimes/keras_jax.py": "compare",
    "comparison/runtimes/onnx_runtime.py": "compare",
    "results/animation.py": "video",
}
THERE_ALREADY = {"IPython"}  # it is asked for its display only where its kernel runs us
BY_HAND = {"tf_keras"}  # tests/keras2_zoo.py made files of Keras 2 once, in an environment of its own
NOT_IMPORTED_BY_US = {"torchvision", "fsspec"}  # onnx2torch and zarr import them


def declared(extra: str | None = None) -> set[str]:
    """The packages that `pip install oip_torch[extra]` asks for by name; None: without an extra."""
    names = {Requirement(text).name for text in PROJECT["dependencies"]}
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra] if extra else []):
        if requirement.name == PROJECT["name"]:
            names = names.union(*(declared(other) for other in requirement.extras))
        else:
            names.add(requirement.name)
    return names


def imported(files: Iterable[Path]) -> set[str]:
    """The packages that these files import from elsewhere, by the names that pip knows."""
    files = list(files)
    found: set[str] = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    ours = {file.stem for file in files} - {"keras"} | {PROJECT["name"], "hostile"}  # the package beside the tests
    known = {
        "google": "protobuf",  # a name that several packages share
        "sklearn": "scikit-learn",
        "axe_playwright_python": "axe-playwright-python",
        "imageio_ffmpeg": "imageio-ffmpeg",
    }
    return {known.get(name, name) for name in found - sys.stdlib_module_names - ours - THERE_ALREADY}


@pytest.mark.parametrize("extra", [None, "convert", "compare", "ray", "video"])
def test_what_the_package_imports_is_declared(extra: str | None) -> None:
    package = ROOT / "src" / "oip_torch"
    files = [path for path in package.rglob("*.py") if EXTRA_OF.get(path.relative_to(package).as_posix()) == extra]
    assert files
    assert imported(files) <= declared(extra)


@pytest.mark.parametrize("folder", ["tests", "scripts", "benchmarks"])
def test_what_the_project_around_it_imports_is_declared(folder: str) -> None:
    assert imported((ROOT / folder).glob("*.py")) - BY_HAND <= declared("dev")


def test_an_undeclared_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("def later():\n    from requests.adapters import HTTPAdapter\n")
    assert imported(tmp_path.glob("*.py")) - declared("dev") == {"requests"}


def test_what_is_declared_for_users_is_imported() -> None:
    assert declared("compare") - imported((ROOT / "src").rglob("*.py")) == NOT_IMPORTED_BY_US


LOCKS = ["requirements.lock", "requirements-lowest.lock"]


def locked(name: str) -> list[Requirement]:
    """What a lock file pins: a package once for each set of Pythons and systems that needs a version of its own."""
    lines = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [Requirement(line.split(" --hash=")[0]) for line in lines if not line.startswith("#")]


def pins(name: str) -> dict[str, set[Version]]:
    """The versions that a lock file names for each package, over all Pythons."""
    found: dict[str, set[Version]] = {}
    for requirement in locked(name):
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        found.setdefault(requirement.name, set()).add(Version(pin.version))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_a_hash_for_every_version_and_names_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    blocks = re.findall(r"^[^#\s].*(?:\n .*)*", text, re.MULTILINE)
    assert len(blocks) == len(locked(name)) > 100
    assert [block for block in blocks if "--hash=sha256:" not in block] == []


REQUIREMENTS = [
    requirement
    for texts in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, texts)
    if requirement.name != PROJECT["name"]
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_lowest_version_allowed_is_in_the_tested_set(requirement: Requirement) -> None:
    (bound,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    assert bound in pins("requirements-lowest.lock")[requirement.name], "run make lock, and then make lowest"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_locked_version_is_allowed(requirement: Requirement) -> None:
    versions = pins("requirements.lock").get(requirement.name, set())
    assert any(version in requirement.specifier for version in versions), "run make lock"


def test_the_classifiers_name_the_pythons_that_are_allowed() -> None:
    named = [text.split(" :: ")[-1] for text in PROJECT["classifiers"] if " :: 3." in text]
    assert named == PYTHONS == ["3.11", "3.12", "3.13"]


def test_hosted_ci_runs_on_the_pythons_that_are_allowed() -> None:
    (matrix,) = re.findall(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert re.findall(r"[\d.]+", matrix) == PYTHONS


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def for_an_index(text: str) -> str:
    """A README as the build puts it into the package's metadata."""
    for change in PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text


def test_a_package_index_shows_no_path_that_leads_nowhere_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = for_an_index(readme)
    assert "](docs/" in readme
    assert not re.search(r"\]\((?!https?:)", shown)
    assert len(shown) > len(readme) / 2
    assert [line for line in readme.splitlines() if line.startswith("#")] == [
        line for line in shown.splitlines() if line.startswith("#")
    ]


def test_a_picture_goes_with_its_caption_and_a_link_leaves_its_text() -> None:
    text = (
        "One.\n\n![A picture](docs/a.png)\n\n*Its caption, with a [link](b.md).* [More](c.md)\n\nTwo [three](d.md).\n"
    )
    assert for_an_index(text) == "One.\n\nTwo three.\n"
    text = "![A picture](docs/a.png)\n\nNo caption, **bold**, [there](https://example.org/x).\n"
    assert for_an_index(text) == "No caption, **bold**, [there](https://example.org/x).\n"


def test_no_path_of_the_readme_leads_nowhere_here() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel, built without the network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_a_source_distribution_holds_what_a_clone_does(built: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone, but a source distribution unpacked")
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames()}
    assert set(git.stdout.strip("\0").split("\0")) <= held
    assert not [name for name in held if name.startswith(("out/", ".venv", ".git/"))]


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    source = ROOT / "src"
    package = {p.relative_to(source).as_posix() for p in (source / "oip_torch").rglob("*") if p.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {"oip_torch/py.typed", "oip_torch/data/digits.npy", "oip_torch/data/report.html.j2"} < package
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        held = set(archive.namelist())
        (metadata,) = [name for name in held if name.endswith(".dist-info/METADATA")]
        told = message_from_bytes(archive.read(metadata))
    information = metadata.rsplit("/", 1)[0]
    assert {name for name in held if not name.startswith(information)} == package
    assert f"{information}/licenses/LICENSE" in held
    assert told["License-Expression"] == "MIT AND CC-BY-SA-3.0"
    assert told["Description-Content-Type"] == "text/markdown"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    description = told.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.decode("utf-8").strip() == for_an_index(readme).strip()
