"""Imports the installed wheel and checks that its files are complete. Run by .ci/run outside the checkout."""

import pkgutil
import sys
from importlib import import_module, metadata
from importlib.resources import files
from pathlib import Path

import graphprune

venv = Path(sys.argv[1]).resolve()
where = Path(graphprune.__file__).resolve()
assert where.is_relative_to(venv), f"expected graphprune from {venv}, got {where}"
assert graphprune.__version__ == metadata.version("graphprune")

modules = ["graphprune", *(m.name for m in pkgutil.walk_packages(graphprune.__path__, "graphprune."))]
for name in modules:
    if name.rpartition(".")[2] != "__main__":
        import_module(name)

installed = {str(path).replace("\\", "/") for path in metadata.files("graphprune") or ()}
assert "graphprune/py.typed" in installed
assert not any(path.startswith(("tests/", "importance/", "specs/")) for path in installed), installed
assert files("graphprune.specs").joinpath("__init__.py").is_file()

checkout = Path(__file__).resolve().parents[1]
data = {
    f"graphprune/{folder.name}/{path.relative_to(folder).as_posix()}"
    for folder in (checkout / "specs", *(checkout / "graphprune" / name for name in ("demo", "study", "views")))
    for path in folder.rglob("*")
    if path.is_file() and path.suffix not in {".py", ".pyc"}
}
assert data <= installed, f"missing from the wheel: {sorted(data - installed)}"
print(f"{len(modules)} modules of the wheel import, {len(data)} data files, version {graphprune.__version__}")
