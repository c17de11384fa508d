"""The wheel holds what the folders hold, under the names that the docs promise."""

import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import graphprune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def pyproject(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk(repository: Path) -> set[str]:
    """Every folder under graphprune/ with Python files in it, the symlinked ones included."""
    found = set()
    for folder, _, names in os.walk(repository / "graphprune", followlinks=True):
        if any(name.endswith(".py") for name in names):
            found.add(".".join(Path(folder).relative_to(repository).parts))
    return found


def test_packages_list_is_complete(repository: Path, pyproject: dict):
    listed = pyproject["tool"]["setuptools"]["packages"]
    on_disk = packages_on_disk(repository)
    problems = [
        f'pyproject.toml, [tool.setuptools] packages: add the line    "{name}",'
        for name in sorted(on_disk - set(listed))
    ]
    problems += [
        f'pyproject.toml, [tool.setuptools] packages: delete the line    "{name}",  (no such folder)'
        for name in sorted(set(listed) - on_disk)
    ]
    problems += [
        f"{name.replace('.', '/')}/: add an __init__.py with a docstring that says what the package is for"
        for name in sorted(on_disk)
        if not (repository / name.replace(".", "/") / "__init__.py").is_file()
    ]
    if listed != sorted(listed):
        problems.append(f"pyproject.toml, [tool.setuptools] packages: keep the lines sorted: {sorted(listed)}")
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("name", ["importance", "specs"])
def test_symlinks_are_relative(repository: Path, name: str):
    link = repository / "graphprune" / name
    assert link.is_symlink(), (
        f"graphprune/{name} must be a symlink to ../{name}; on Windows: git config core.symlinks true"
    )
    assert link.readlink() == Path("..", name)


def test_every_data_file_has_a_pattern(repository: Path, pyproject: dict):
    """A recipe or a demo file that no pattern matches would be missing from the wheel without a word."""
    patterns = pyproject["tool"]["setuptools"]["package-data"]
    missed = []
    for package in ("graphprune.specs", "graphprune.demo", "graphprune.study.report", "graphprune.views"):
        folder = repository / package.replace(".", "/")
        matched = {path for pattern in patterns[package] for path in folder.glob(pattern)}
        missed += [
            f"{path.relative_to(repository)}: add a pattern to [tool.setuptools.package-data] {package!r}"
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix not in {".py", ".pyc"} and path not in matched
        ]
    assert not missed, "\n" + "\n".join(missed)


def test_specs_are_reachable_as_resources():
    assert files("graphprune.specs").joinpath("__init__.py").is_file()


def test_version_is_the_installed_one():
    try:
        installed = metadata.version("graphprune")
    except metadata.PackageNotFoundError:
        pytest.skip("graphprune is not installed here, only on the path; `make test` installs it")
    assert graphprune.__version__ == installed


def test_importance_refuses_its_bare_name(repository: Path):
    result = subprocess.run(
        [sys.executable, "-c", "import importance"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "expected this package as 'graphprune.importance', got 'import importance'" in result.stderr
    assert "write 'from graphprune import importance'" in result.stderr


def test_constraints_satisfy_pyproject(repository: Path, pyproject: dict):
    """What is installed in the Makefile is pinned, at a version the declared range allows."""
    pins: dict[str, list[Requirement]] = {}
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"constraints.txt: not an exact pin: {line}"
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)

    wanted, extras = pyproject["project"]["dependencies"], pyproject["project"]["optional-dependencies"]
    wanted = [*wanted, *(line for name in ("dev", "bitsandbytes", "trl") for line in extras[name])]
    for requirement in map(Requirement, wanted + pyproject["build-system"]["requires"]):
        found = pins.get(canonicalize_name(requirement.name), [])
        assert found, f"constraints.txt: add an exact pin for {requirement.name} (pyproject.toml asks for it)"
        for pin in found:
            (version,) = (spec.version for spec in pin.specifier)
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} is outside {requirement}"


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_each_python_gets_one_pin(repository: Path, python: str):
    seen = set()
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                assert pin.name not in seen, f"constraints.txt pins {pin.name} twice for Python {python}"
                seen.add(pin.name)
    assert {"torch", "transformers", "numpy", "networkx"} <= seen
