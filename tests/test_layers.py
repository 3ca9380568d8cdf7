"""The imports of autoplan and of a bundle's scripts run one way, planning stays light, and a bundle stands alone."""

import ast
import json
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = PROJECT / "autoplan"
SCRIPTS = PROJECT / "templates" / "scripts"
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "axes": set(),
    "files": {"errors"},
    "overlays": {"errors"},
    "settings": {"errors", "flags", "memory", "overlays"},
    "facts": {"errors", "axes"},
    "processes": {"errors"},
    "topology": {"errors", "axes", "facts"},
    "rules": {"errors", "axes", "facts", "topology"},
    "plan": {"errors", "axes", "facts", "topology", "rules"},
    "tables": set(),
    "flags": {"errors"},
    "saved": {"files", "errors", "facts"},
    "dicom": {"overlays"},
    "formats": {"dicom", "overlays"},
    "contents": {"overlays"},
    "intensities": {"overlays"},
    "memory": {"overlays"},
    "images": {"errors", "axes", "formats", "memory"},
    "dataset": {"written", "files", "errors", "axes", "facts", "formats", "images", "processes"},
    "readings": {"files", "errors", "axes", "facts"},
    "fingerprint": {
        "contents",
        "saved",
        "files",
        "errors",
        "axes",
        "facts",
        "images",
        "intensities",
        "dataset",
        "processes",
        "readings",
    },
    "phantom": {"errors", "axes", "facts"},
    "evaluation": {"tables", "written", "files", "errors", "axes", "facts", "images", "dataset", "processes"},
    "render": {"settings", "overlays", "written", "formats", "errors", "axes", "facts", "topology", "rules", "plan"},
    "footprint": {"errors", "axes", "facts", "overlays", "topology", "plan"},
    "allocation": {"errors", "facts", "tables"},
    "coarse": {"axes", "facts", "topology", "rules", "images", "evaluation"},
    "cost": {"allocation", "files", "axes", "facts", "footprint", "render", "rules", "topology"},
    "budget": {"errors", "axes", "facts", "memory", "topology", "rules", "plan"},
    "finetuning": {"tables", "errors", "axes", "facts", "topology", "rules", "plan"},
    "weights": {"files", "memory", "errors", "axes", "facts", "topology", "rules", "overlays", "plan"},
    "pretrained": {"files", "errors", "axes", "facts", "saved", "settings", "render", "finetuning", "weights"},
    "lease": {"files", "processes"},
    "written": {"errors", "files", "processes"},
    "weak": {"files", "results"},
    "results": {"errors", "facts", "files", "saved"},
    "failures": {"files", "errors"},
    "jobs": {"axes", "settings", "tables", "files", "errors", "facts", "lease", "results", "failures"},
    "standing": {"errors", "results", "jobs"},
    "supervisor": {"facts", "lease", "processes", "failures", "jobs"},
    "ledger": {"errors", "files"},
    "within": {
        *("axes", "errors", "facts", "topology", "rules", "coarse", "ledger", "jobs", "allocation", "cost"),
    },
    "timed": {"allocation", "errors", "facts", "tables", "ledger", "results", "jobs", "backends"},
    "backends": {"tables", "facts", "supervisor", "lease", "processes", "failures", "jobs"},
    "cluster": {"errors", "files", "supervisor", "lease", "backends", "failures", "jobs"},
    "choice": {"tables", "errors", "axes", "facts", "topology", "rules", "plan"},
    "crossvalidation": {
        *("files", "errors", "facts", "images", "dataset", "overlays", "processes", "evaluation", "choice"),
        *("results", "jobs"),
        "weak",
    },
    "sharing": {
        "settings",
        "files",
        "errors",
        "axes",
        "facts",
        "topology",
        "rules",
        "plan",
        "render",
        "choice",
        "results",
        "weights",
        "written",
        "weak",
    },
    "probe": set(),
    "verification": {"tables", "files", "errors", "facts", "memory", "weights", "images", "processes", "probe"},
    "publishing": {
        *("errors", "facts", "files", "overlays", "settings", "saved", "images", "render", "results", "sharing"),
        *("prediction", "probe", "verification", "faster", "written", "processes"),
    },
    "faster": {"tables", "files", "errors", "facts", "images", "evaluation", "results", "choice", "prediction"},
    "prediction": {"written", "files", "errors", "axes", "facts", "images", "dataset", "processes"},
}
"""What each module may import; `commands` and `__main__` may import all."""
LAYOUTS = PACKAGE / "layouts"
LAYOUTS_MAY_IMPORT = {
    "__init__": {"common", "folders", "groups", "nnunet", "record", "table"},
    "common": set(),
    "record": set(),
    "groups": {"common", "record"},
    "found": {"common", "record"},
    "nnunet": {"common"},
    "folders": {"common", "found", "record"},
    "table": {"common", "found", "groups", "record"},
}
"""What each module of the layouts may import of them; all may import `LAYOUTS_STAND_ON`."""
LAYOUTS_STAND_ON = {"files", "errors", "facts", "formats", "images", "dataset", "overlays", "layouts"}
REPORT = PACKAGE / "report"
REPORT_MAY_IMPORT = {
    "__init__": set(),
    "blocks": set(),
    "page": {"blocks"},
    "charts": set(),
    "drawings": set(),
    "plan": {"blocks", "drawings"},
    "cost": {"blocks"},
    "pictures": set(),
    "cases": {"pictures"},
    "doctor": {"blocks", "cases"},
    "dataset": {"blocks", "cases", "charts", "doctor", "pictures"},
    "training": {"blocks", "charts"},
    "scores": {"cases", "pictures"},
    "result": {"blocks", "charts", "pictures", "scores"},
    "preview": {"cases", "pictures"},
    "provenance": {"blocks", "cases", "scores", "training"},
    "build": {"blocks", "cases", "cost", "page", "dataset", "plan", "provenance", "result", "scores", "training"},
}
"""What each module of the report may import of it; all of them may import the modules above, but for `commands`."""
SCRIPTS_MAY_IMPORT = {
    "__init__": {"files", "normalization"},
    "agreement": set(),
    "augmentation": set(),
    "beside": set(),
    "blocks": {"resampling"},
    "budget": {"files"},
    "cache": {"contents", "files", "formats"},
    "cascade": {"cache", "datalists", "formats", "inversion", "networks", "probabilities", "resampling"},
    "checkpoint": {"datalists", "files", "seen", "stopping"},
    "components": set(),
    "contents": set(),
    "cpu": set(),
    "datalists": {"files", "formats"},
    "degradation": set(),
    "dicom": set(),
    "dicom_seg": {"dicom", "files", "formats"},
    "distributed": set(),
    "evaluation": {"checkpoint", "files", "formats"},
    "familiarity": {"intensities"},
    "files": set(),
    "formats": {"dicom"},
    "intensities": set(),
    "inferers": {"agreement", "blocks", "cpu", "inversion", "networks", "precision", "resampling"},
    "inversion": {"agreement", "blocks", "formats", "memory", "precision", "probabilities", "resampling"},
    "losses": set(),
    "memory": set(),
    "networks": {"resampling"},
    "normalization": {"intensities"},
    "patches": {"augmentation", "cache", "cascade"},
    "precision": {"cpu"},
    "prediction": {"beside", "dicom_seg", "familiarity", "files", "formats", "readers"},
    "record": {"familiarity", "files", "formats", "memory"},
    "probabilities": {"blocks", "files", "formats", "memory"},
    "progress": {"agreement", "datalists", "evaluation", "files", "formats"},
    "readers": {"formats"},
    "resampling": {"memory"},
    "seen": {"cache", "stopping"},
    "stopping": {"budget"},
}
"""What each module of a bundle's scripts may import of them."""
MODULES = sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("__main__", "commands"))
LAYOUTS_MODULES = sorted(p.stem for p in LAYOUTS.glob("*.py"))
REPORT_MODULES = sorted(p.stem for p in REPORT.glob("*.py"))
SCRIPTS_MODULES = sorted(p.stem for p in SCRIPTS.glob("*.py"))


def _imported(path: Path) -> set[str]:
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


def _inside(package: Path, module: str) -> set[str]:
    """Modules of a package that a module of it imports."""
    prefix = f"autoplan.{package.name}." if package in (REPORT, LAYOUTS) else f"{package.name}."
    names = {name.removeprefix(prefix).split(".")[0] for name in _imported(package / f"{module}.py")
             if name.startswith(prefix)}  # fmt: skip
    return {name for name in names if (package / f"{name}.py").exists()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    assert module in MAY_IMPORT, f"say in MAY_IMPORT where {module} stands"
    assert _inside(PACKAGE, module) <= MAY_IMPORT[module]


@pytest.mark.parametrize("module", LAYOUTS_MODULES)
def test_imports_of_the_layouts_run_one_way(module: str) -> None:
    assert module in LAYOUTS_MAY_IMPORT, f"say in LAYOUTS_MAY_IMPORT where {module} stands"
    assert _inside(LAYOUTS, module) <= LAYOUTS_MAY_IMPORT[module]
    assert _inside_autoplan(LAYOUTS, module) <= LAYOUTS_STAND_ON


@pytest.mark.parametrize("module", REPORT_MODULES)
def test_imports_of_the_report_run_one_way(module: str) -> None:
    assert module in REPORT_MAY_IMPORT, f"say in REPORT_MAY_IMPORT where {module} stands"
    assert _inside(REPORT, module) <= REPORT_MAY_IMPORT[module]
    assert not {"commands", "__main__"} & _inside_autoplan(REPORT, module)


def _inside_autoplan(package: Path, module: str) -> set[str]:
    """What a module of a package imports of autoplan."""
    return {name.split(".")[1] for name in _imported(package / f"{module}.py") if name.startswith("autoplan.")}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_the_report(module: str) -> None:
    """It is at the top, beside the command line."""
    assert not [name for name in _imported(PACKAGE / f"{module}.py") if name.startswith("autoplan.report")]


@pytest.mark.parametrize("module", SCRIPTS_MODULES)
def test_imports_of_scripts_run_one_way(module: str) -> None:
    assert module in SCRIPTS_MAY_IMPORT, f"say in SCRIPTS_MAY_IMPORT where {module} stands"
    assert _inside(SCRIPTS, module) <= SCRIPTS_MAY_IMPORT[module]


@pytest.mark.parametrize(
    ("table", "modules"),
    [
        pytest.param(MAY_IMPORT, MODULES, id="autoplan"),
        pytest.param(LAYOUTS_MAY_IMPORT, LAYOUTS_MODULES, id="layouts"),
        pytest.param(REPORT_MAY_IMPORT, REPORT_MODULES, id="report"),
        pytest.param(SCRIPTS_MAY_IMPORT, SCRIPTS_MODULES, id="scripts"),
    ],
)
def test_what_may_be_imported_has_no_circle(table: dict[str, set[str]], modules: list[str]) -> None:
    assert sorted(table) == modules
    TopologicalSorter(table).prepare()  # raises CycleError


@pytest.mark.parametrize("module", SCRIPTS_MODULES)
def test_scripts_need_only_what_a_bundle_names(module: str) -> None:
    """The standard library, and the packages whose versions metadata.json gives."""
    metadata = json.loads((PROJECT / "templates" / "configs" / "metadata.json").read_text())
    named = {*metadata["required_packages_version"], *metadata["optional_packages_version"], "monai", "numpy", "torch"}
    named = named - {"pytorch-ignite", "pillow"} | {"ignite", "PIL"}
    outside = {name.split(".")[0] for name in _imported(SCRIPTS / f"{module}.py")} - {"scripts"}
    assert outside <= named | sys.stdlib_module_names | {"__future__"}


@pytest.mark.parametrize("module", ["topology", "rules", "plan", "budget"])
def test_planning_is_pure(module: str) -> None:
    """No files, clocks or environment: the modules that would give them are not imported."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names <= {"bisect", "math", "random", "re", "statistics", "typing"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("autoplan.plan", "torch monai nibabel numpy scipy"),
        ("autoplan.__main__", "torch monai scipy.ndimage distributed"),
        ("autoplan.supervisor", "torch monai nibabel numpy scipy fire distributed"),
    ],
)
def test_import_stays_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; print([m for m in {absent.split()!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert result.stdout.strip() == "[]"
