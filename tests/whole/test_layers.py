"""Folders are the architecture: each imports only those below it, no level has more than twelve names, planning stays
light, and a bundle stands alone."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "autoplan"
SCRIPTS = PROJECT / "templates" / "scripts"
FLOORS = (
    "base", "data", "planning", "bundle", "training", "cost", "evaluation", "prediction", "budget", "sharing", "report",
    "cli",
)  # fmt: skip
"""The folders of autoplan, from the ground up: each may import itself and those before it."""
MOST_NAMES = 12
"""In a folder."""
MODULES = sorted(path.relative_to(PROJECT).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
SCRIPTS_MODULES = sorted(path.stem for path in SCRIPTS.glob("*.py"))


def path_of(module: tuple[str, ...]) -> Path:
    return PROJECT.joinpath(*module).with_suffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of all that a module imports, anywhere in it, as `package.module` or `package.module.name`. Of what
    autoplan reads from the scripts, `from . import name` is of autoplan's package there and of `scripts` here."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level or (path == SCRIPTS / "formats.py" and node.module is None), path
            found |= {f"{node.module or path.parent.name}.{alias.name}" for alias in node.names}
    return found


def arrows(root: Path, package: str) -> dict[str, set[str]]:
    """The modules of a package, and those of it that each imports when it is imported itself."""
    paths = {
        ".".join((package, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in root.rglob("*.py")
    }

    def module_of(name: str) -> str:
        return name if name in paths else name.rpartition(".")[0]

    return {name: {module_of(n) for n in imported(path)} & paths.keys() - {name} for name, path in paths.items()}


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_a_folder_imports_those_below_it(module: tuple[str, ...]) -> None:
    above = FLOORS[FLOORS.index(module[1]) + 1 :] if module[1] in FLOORS else () if module[1] == "__main__" else FLOORS
    assert not {name for name in imported(path_of(module)) for floor in above if name.startswith(f"autoplan.{floor}.")}


def test_the_floors_are_those_that_are_told() -> None:
    """In docs/architecture.md, from the top, with every module."""
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| (.*?) \|", text, re.MULTILINE)
    told = {folder: set(re.findall(r"`(\w+)/?`", modules)) for folder, modules in rows if folder in FLOORS}
    assert tuple(told) == FLOORS[::-1]
    for folder, names in told.items():
        there = {
            path.stem
            for path in (PACKAGE / folder).iterdir()
            if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        assert names == there - {"__init__"}, folder


def test_every_folder_has_its_floor() -> None:
    assert {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} == {*FLOORS}


@pytest.mark.parametrize(
    ("root", "package"), [(PACKAGE, "autoplan"), (SCRIPTS, "scripts")], ids=["autoplan", "scripts"]
)
def test_imports_make_no_circle(root: Path, package: str) -> None:
    """Also not by those inside functions."""
    TopologicalSorter(arrows(root, package)).prepare()  # raises CycleError


FOLDERS = [PACKAGE, *(path.parent for path in sorted(PACKAGE.rglob("*/__init__.py")))]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(PROJECT)))
def test_a_folder_can_be_seen_at_once(folder: Path) -> None:
    names = [p.name for p in folder.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))]
    names = [name for name in names if name not in ("__init__.py", "__main__.py")]
    assert len(names) <= MOST_NAMES, names
    text = (folder / "__init__.py").read_text()
    assert ast.get_docstring(ast.parse(text)), "it says what the folder is"


@pytest.mark.parametrize("module", SCRIPTS_MODULES)
def test_scripts_need_only_what_a_bundle_names(module: str) -> None:
    """The standard library, and the packages whose versions metadata.json gives."""
    metadata = json.loads((PROJECT / "templates" / "configs" / "metadata.json").read_text())
    named = {*metadata["required_packages_version"], *metadata["optional_packages_version"], "monai", "numpy", "torch"}
    named = named - {"pytorch-ignite", "pillow"} | {"ignite", "PIL"}
    outside = {name.split(".")[0] for name in imported(SCRIPTS / f"{module}.py")} - {"scripts"}
    assert outside <= named | sys.stdlib_module_names | {"__future__"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "planning").glob("*.py")), ids=lambda path: path.stem)
def test_planning_is_pure(path: Path) -> None:
    """No files, clocks or environment: the modules that would give them are not imported."""
    names = {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
    assert names <= {"bisect", "math", "random", "re", "statistics", "typing"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("autoplan.planning.plan", "torch monai nibabel numpy scipy"),
        ("autoplan.__main__", "torch monai scipy.ndimage distributed"),
        ("autoplan.training.supervisor", "torch monai nibabel numpy scipy fire distributed"),
    ],
)
def test_import_stays_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; print([m for m in {absent.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert result.stdout.strip() == "[]"


DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
WORDS = re.compile(r"`((?:autoplan|templates|tests|tools|benchmarks)/[\w./-]+)`(?:: ((?:`\w+`(?:, )?)+))?")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_what_documents_name_is_there(document: Path) -> None:
    """Every path, and every function behind one, as in `autoplan/planning/rules.py`: `target_spacing`."""
    for place, names in WORDS.findall(document.read_text(encoding="utf-8")):
        path = PROJECT / place
        assert path.exists(), place
        there = path.read_text() if path.is_file() else ""
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(def |class )?{name}\b", there, re.MULTILINE), f"{place}: {name}"
