"""The imports of autoplan run one way, and planning stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "autoplan"
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "axes": set(),
    "files": {"errors"},
    "overlays": set(),
    "facts": {"errors", "axes"},
    "processes": {"errors"},
    "topology": {"errors", "axes", "facts"},
    "rules": {"errors", "axes", "facts", "topology"},
    "plan": {"errors", "axes", "facts", "topology", "rules"},
    "tables": set(),
    "flags": {"errors"},
    "saved": {"files", "errors", "facts"},
    "images": {"errors", "axes", "processes"},
    "dataset": {"files", "errors", "axes", "facts", "images", "processes"},
    "fingerprint": {"saved", "files", "errors", "axes", "facts", "images", "dataset", "processes"},
    "phantom": {"errors", "axes", "facts"},
    "evaluation": {"tables", "files", "errors", "axes", "facts", "images", "dataset", "processes"},
    "render": {"overlays", "files", "errors", "axes", "facts", "topology", "rules", "plan"},
    "lease": {"files"},
    "results": {"errors", "files"},
    "failures": set(),
    "jobs": {"tables", "files", "errors", "facts", "lease", "results", "failures"},
    "supervisor": {"facts", "lease", "processes", "failures", "jobs"},
    "backends": {"facts", "supervisor", "lease", "processes", "failures", "jobs"},
    "cluster": {"errors", "supervisor", "lease", "backends", "failures", "jobs"},
    "choice": {"tables", "errors", "axes", "facts", "topology", "rules", "plan"},
    "crossvalidation": {
        *("files", "errors", "facts", "images", "dataset", "overlays", "processes", "evaluation", "choice"),
        *("results", "jobs"),
    },
    "sharing": {"files", "errors", "axes", "facts", "topology", "rules", "plan", "render", "choice", "results"},
    "prediction": {"files", "errors", "images", "dataset", "processes"},
}
"""What each module may import; `commands` and `__main__` may import all."""
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("commands", "__main__"))


def _imported(module: str) -> set[str]:
    """Modules of autoplan that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("autoplan.")}
        if isinstance(node, ast.ImportFrom) and node.module == "autoplan":
            found |= {a.name for a in node.names if (PACKAGE / f"{a.name}.py").exists()}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autoplan."):
            found.add(str(node.module).split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{module}: relative import in line {node.lineno}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert module in MAY_IMPORT, f"say in MAY_IMPORT where {module} stands"
    assert _imported(module) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", ["topology", "rules", "plan"])
def test_planning_is_pure(module: str) -> None:
    """No files, clocks or environment: the modules that would give them are not imported."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names <= {"math", "random", "statistics", "typing"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("autoplan.plan", "torch monai nibabel numpy scipy"),
        ("autoplan.commands", "torch monai scipy.ndimage distributed"),
        ("autoplan.supervisor", "torch monai nibabel numpy scipy fire distributed"),
    ],
)
def test_import_stays_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; print([m for m in {absent.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert result.stdout.strip() == "[]"
