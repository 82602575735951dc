"""The project itself: quick to import, pinned, documented by files that exist, small enough to clone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import capriccio
from capriccio import assets
from capriccio.errors import CapriccioError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEAVY = {"torch", "diffusers", "transformers", "scipy", "pydantic"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    ("statement", "heavy"), [("import capriccio", HEAVY), ("import capriccio.cli", HEAVY - {"pydantic"})]
)
def test_importing_is_light(statement: str, heavy: set[str]) -> None:
    assert not loaded_by(statement) & heavy


@pytest.mark.parametrize("name", capriccio.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(capriccio, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Studeo"):
        _ = capriccio.Studeo


def test_the_version_is_told_once() -> None:
    assert PROJECT["version"] == capriccio.__version__


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]])
def test_every_requirement_is_pinned_to_a_release_it_allows(requirement: str) -> None:
    wanted = Requirement(requirement)
    pins = {name.lower().replace("_", "-"): pin for name, pin in PINS.items()}
    assert wanted.specifier.contains(pins[wanted.name.lower()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_point_to_files_that_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text)]
    files = [ROOT / name for name in re.findall(r"`((?:src|docs|benchmarks|tests)/[\w/.-]+\.\w+)`", text)]
    assert [str(path) for path in links + files if not path.exists()] == []


def test_no_asset_is_too_large_for_the_repository() -> None:
    files = [path for path in Path(assets.__file__).parent.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.stat().st_size > 16 * 2**20] == []


def test_the_repository_is_small_enough_to_clone() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy is no repository")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.exists()) < 150 * 2**20


def test_an_asset_is_found_by_its_name() -> None:
    assert assets.available("__init__.py")
    assert assets.path("__init__.py").read_text().startswith('"""')


@pytest.mark.parametrize("name", ["miniature/flix", "", ".", "..", "../errors.py", "/etc"])
def test_an_unknown_asset_gets_a_sentence_with_the_remedy(name: str) -> None:
    assert not assets.available(name)
    with pytest.raises(CapriccioError, match="capriccio train miniature"):
        assets.path(name)


def test_what_travels_inside_another_asset_is_found_until_it_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert assets.place_below(tmp_path, "miniature/vae") == tmp_path / "miniature/flux/vae"
    (tmp_path / "miniature/vae").mkdir(parents=True)
    assert assets.place_below(tmp_path, "miniature/vae") == tmp_path / "miniature/vae"
    assert assets.place_below(tmp_path, "miniature/reader") == tmp_path / "miniature/reader"
