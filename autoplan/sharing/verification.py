"""Checks of a bundle that somebody got: what the Model Zoo asks for, as far as that needs no internet, and whether it
predicts what it predicted where it was shared."""

import ast
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoplan.base import tables
from autoplan.base.codec import from_dict
from autoplan.base.errors import AutoplanError, DatasetError, TemplateError, one_line
from autoplan.base.files import read_json, read_object, read_text
from autoplan.base.processes import dying_with
from autoplan.base.scripts.memory import as_text, memory_bytes
from autoplan.bundle import weights
from autoplan.data import images
from autoplan.sharing import probe

MAX_DIFFERENCE = 0.01
"""Share of the voxels whose class may differ from the stored one. Our choice: with one thread
and with two, no voxel of a network of the hippocampus differed; with flipped weights, 79 % did."""
LARGE_FILE_BYTES = 25 * 2**20
"""What the Model Zoo keeps in a repository at most; larger files are listed with an address."""
REQUIRED: Mapping[str, type] = {
    "schema": str, "version": str, "changelog": dict, "monai_version": str, "pytorch_version": str,
    "numpy_version": str, "required_packages_version": dict, "name": str, "task": str, "description": str,
    "authors": str, "copyright": str, "network_data_format": dict,
}  # fmt: skip
"""Fields of metadata.json that must be there: those of the Model Zoo's schema, and those its checks read."""
OPTIONAL: Mapping[str, type] = {
    "data_source": str, "data_type": str, "image_classes": str, "label_classes": str, "pred_classes": str,
    "eval_metrics": dict, "intended_use": str, "references": list,
}  # fmt: skip
"""Fields whose type the schema fixes where they are there."""
TENSOR: Mapping[str, type] = {
    "type": str, "format": str, "num_channels": int, "spatial_shape": list, "dtype": str, "value_range": list,
    "is_patch_data": bool, "channel_def": dict,
}  # fmt: skip
"""Fields of an input or output of the network."""
GENERATED = ("__pycache__", ".ipynb_checkpoints", ".DS_Store", "eval")
"""What programs leave behind, which no bundle is handed in with."""
PACKAGES = {"monai": "monai", "torch": "pytorch", "numpy": "numpy"}
"""Packages whose versions have fields of their own, and how these begin."""
VERSION, PIN = r"\d+\.\d+\.\d+[-.+a-z0-9]*", r"\d[\w.+]*"
PLACEHOLDER = "fill.in"
MAX_SECONDS = 3600
"""What trying a bundle may take."""
LEAST_COPIES = 8
"""Of the voxels of a window, in 32 bits: what any network holds at a time. Our choice, on the low side."""

SHOWN = 100
"""Characters of a reason in the error at the end."""

State = Literal["ok", "FAILS", "skipped", "note"]


@dataclass(frozen=True)
class Check:
    """A check of a bundle, and how it came out; `why` is empty where there is nothing to say."""

    name: str
    state: State
    why: str = ""


def verify(bundle: Path, *, max_difference: float = MAX_DIFFERENCE) -> list[Check]:
    """Check a bundle. It runs the bundle's own code, unless its files, names or sizes speak against it.

    Args:
        bundle: its folder; nothing is written into it.
        max_difference: share of the voxels whose class may differ from the stored segmentation.

    Raises:
        TemplateError: the folder holds no bundle.
    """
    bundle = bundle.absolute()
    if not (bundle / "configs" / "metadata.json").is_file() or probe.config_file(bundle, "inference") is None:
        raise TemplateError(f"{bundle}: is no bundle: there is no configs/metadata.json with an inference.json beside.")
    named: list[tuple[str, Callable[[Path], list[str]]]] = [
        ("the name is one that Python can import", _name),
        ("files of a bundle", _files),
        ("large files are listed", _large_files),
        ("metadata.json has the fields of the schema", _metadata),
        ("network_data_format describes image and pred", _tensors),
    ]
    before: list[tuple[str, Callable[[Path], Iterator[str]]]] = [
        ("files are such as can be read", _unreadable),
        ("names are no code", _code),
        ("a window fits into memory", _too_large),
    ]
    checks = [_check(name, problems(bundle)) for name, problems in named]
    cautions = [_check(name, list(problems(bundle))) for name, problems in before]
    if any(check.state == "FAILS" for check in cautions):
        untried = Check("the bundle's code runs", "skipped", "what is named above speaks against it")
        return [*checks, *cautions, untried, versions(bundle)]
    checks += cautions
    with tempfile.TemporaryDirectory(prefix="autoplan-") as folder:
        tried = _tried(bundle, Path(folder))
        return [
            *checks,
            *(_finished(check, bundle, Path(folder), max_difference) for check in tried),
            versions(bundle),
        ]


def report(checks: Sequence[Check]) -> str:
    """A line for each check."""
    return tables.table([(c.state, c.name, c.why) for c in checks])


def check_passed(bundle: Path, checks: Sequence[Check]) -> None:
    """Raises AutoplanError if a check has failed."""
    failed = [f"{check.name} ({check.why[:SHOWN]})" for check in checks if check.state == "FAILS"]
    if failed:
        raise AutoplanError(f"{bundle}: {len(failed)} of {len(checks)} checks failed: {'; '.join(failed)}.")


def _check(name: str, problems: Sequence[str]) -> Check:
    return Check(name, "FAILS" if problems else "ok", "; ".join(problems))


# What the files say.


def _name(bundle: Path) -> list[str]:
    usual = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", bundle.name)
    return [] if usual else [f"{bundle.name} is not of letters, digits and _, beginning with a letter"]


def _files(bundle: Path) -> list[str]:
    problems = [f"{name} is missing" for name in ("LICENSE", "docs/README.md") if not (bundle / name).is_file()]
    there = sorted(bundle.rglob("*"))
    problems += [f"{p.relative_to(bundle)} is a symbolic link" for p in there if p.is_symlink()]
    left = [str(p.relative_to(bundle)) for p in there if p.name in GENERATED]
    return problems + [f"{name} is left by a program" for name in left[:3]]


def _large_files(bundle: Path) -> list[str]:
    listed = next((p for s in probe.SUFFIXES if (p := bundle / f"large_files.{s}").is_file()), None)
    try:
        entries = [] if listed is None else _read(listed)["large_files"]
        addresses = {from_dict(str, entry["path"]): from_dict(str, entry["url"]) for entry in entries}
    except Exception as error:  # a YAML file fails in too many ways to name
        return [f"{listed} cannot be read ({one_line(error)[:100]})"]
    problems = [f"{name} has no address" for name, url in addresses.items() if not re.match(r"https?://", url)]
    problems += [f"the address of {name} is to be filled in" for name, url in addresses.items() if PLACEHOLDER in url]
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        name = path.relative_to(bundle).as_posix()
        if path.stat().st_size > LARGE_FILE_BYTES and name not in addresses:
            problems.append(f"{name} has more than {LARGE_FILE_BYTES >> 20} MiB and is not in large_files.yml")
    return problems


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path)
    import yaml

    return yaml.safe_load(read_text(path))


def _typed(found: Mapping[str, Any], fields: Mapping[str, type], *, where: str = "", needed: bool = True) -> list[str]:
    """Fields that are missing or of another type."""
    problems = [f"{where}no {name}" for name in fields if needed and name not in found]
    wrong = [name for name, kind in fields.items() if name in found and type(found[name]) is not kind]
    return problems + [f"{where}{name} is no {fields[name].__name__}" for name in wrong]


def _metadata(bundle: Path) -> list[str]:
    found = read_object(bundle / "configs" / "metadata.json")
    if not found:
        return ["it cannot be read"]
    problems = _typed(found, REQUIRED) + _typed(found, OPTIONAL, needed=False)
    version, changelog, pins = found.get("version"), found.get("changelog"), found.get("required_packages_version")
    if not re.fullmatch(VERSION, str(version)):
        problems.append(f"version {version!r} is not like 1.0.0")
    if isinstance(changelog, dict) and version not in changelog:
        problems.append(f"version {version!r} is not in the changelog")
    versions = {name: found.get(name) for name in ("monai_version", "pytorch_version", "numpy_version")}
    versions |= pins if isinstance(pins, dict) else {}
    inexact = [name for name, value in versions.items() if not isinstance(value, str) or not re.fullmatch(PIN, value)]
    return problems + [f"{name} has no exact version" for name in inexact]


def _tensors(bundle: Path) -> list[str]:
    described = read_object(bundle / "configs" / "metadata.json").get("network_data_format")
    problems = []
    for side, name in (("inputs", "image"), ("outputs", "pred")):
        try:
            found = dict(described[side][name])  # type: ignore[index]  # what is no dictionary fails
        except (KeyError, TypeError, ValueError):
            problems.append(f"no {side}.{name}")
            continue
        problems += _typed(found, TENSOR, where=f"{side}.{name}: ")
        channels, number = found.get("channel_def"), found.get("num_channels")
        if isinstance(channels, dict) and isinstance(number, int) and len(channels) != number:
            problems.append(f"{side}.{name}: channel_def names {len(channels)} of {number} channels")
    return problems


def versions(bundle: Path) -> Check:
    """Tells which packages are here in another version than the bundle was tested with."""
    from importlib.metadata import PackageNotFoundError, version

    found = read_object(bundle / "configs" / "metadata.json")
    needed = found.get("required_packages_version")
    pins = {name: found.get(f"{key}_version") for name, key in PACKAGES.items()}
    others = []
    for name, wanted in {**pins, **(needed if isinstance(needed, dict) else {})}.items():
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "missing"
        if here.partition("+")[0] != wanted:
            others.append(f"{name} {here} (tested with {wanted})")
    return Check("versions of packages", "note" if others else "ok", ", ".join(others))


# What speaks against running a bundle's code.


def _unreadable(bundle: Path) -> Iterator[str]:
    """Files that reading would not come to an end with, or that hold more than the memory there is."""
    for path in sorted(bundle.rglob("*")):
        if not path.is_file() and not path.is_dir():
            yield f"{path.relative_to(bundle)} is no file"
        elif path.is_file() and 0 < memory_bytes() < path.stat().st_size:
            yield f"{path.relative_to(bundle)} has {as_text(path.stat().st_size)}, more than there is of memory"
        elif path.parent == bundle / "configs" and path.suffix[1:] in probe.SUFFIXES:
            try:
                _read(path)
            except OSError as error:
                yield f"{path.relative_to(bundle)}: {error.strerror}"
            except Exception:  # MONAI says what is wrong with it
                pass
    model = bundle / "models" / "model.pt"
    if model.is_file() and zipfile.is_zipfile(model):
        try:
            weights.check(model, "Get it anew.")
        except TemplateError as error:
            yield one_line(error).removeprefix(f"{bundle}/")


def _code(bundle: Path) -> Iterator[str]:
    """Texts of metadata.json and names of classes that MONAI's config parser would run: it takes what begins with $ for
    an expression, and a dictionary with a _target_ for a call. A name that is written as a literal is a name."""
    yield from _expressions(read_object(bundle / "configs" / "metadata.json"), "metadata.json")
    for name in ("inference", "train"):
        names = _value(bundle, name, "class_names")
        for text in names if isinstance(names, list) else [names]:
            if isinstance(text, str) and text.startswith("$") and not _is_literal(text[1:]):
                yield f"{name}.json, class_names: {text[:60]} is an expression and no name"


def _expressions(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict) and "_target_" in value:
        yield f"{place}: _target_ calls {str(value['_target_'])[:60]}"
    if isinstance(value, str) and value.startswith("$"):
        yield f"{place}: {value[:60]} is an expression"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from _expressions(item, f"{place}#{str(key)[:60]}")


def _is_literal(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), str)
    except (MemoryError, RecursionError, SyntaxError, ValueError):
        return False


def _value(bundle: Path, name: str, key: str) -> Any:
    """A value of a config; None where there is none, or MONAI will say what is wrong with the config."""
    path = probe.config_file(bundle, name)
    try:
        return _read(path)[key] if path else None
    except Exception:  # a YAML file fails in too many ways to name
        return None


def _too_large(bundle: Path) -> Iterator[str]:
    """Windows whose voxels alone need more than the memory there is."""
    shapes = {f"{name}.json, patch_size": _value(bundle, name, "patch_size") for name in ("inference", "train")}
    try:
        image = _value(bundle, "metadata", "network_data_format")["inputs"]["image"]
        shapes["metadata.json, spatial_shape"] = [image["num_channels"], *image["spatial_shape"]]
    except (KeyError, TypeError):
        pass  # told above
    memory = memory_bytes()
    for place, shape in shapes.items():
        sizes = [size for size in shape if type(size) is int and size > 1] if isinstance(shape, list) else []
        needed = 4 * LEAST_COPIES * math.prod(min(size, 2**62) for size in sizes)
        if 0 < memory < needed:
            yield f"{place}: a window needs {as_text(float(needed))} at least, and there are {as_text(memory)}"


# What the bundle does.


def _tried(bundle: Path, folder: Path) -> list[Check]:
    """The checks of `probe`, in a process of its own, for a bundle brings its own code."""
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, probe.__file__, str(bundle), str(folder)],
            cwd=bundle, capture_output=True, text=True, errors="replace", check=False, env={**os.environ, **quiet},
            preexec_fn=dying_with(os.getpid()), stdin=subprocess.DEVNULL, timeout=MAX_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [Check("the bundle's code runs", "FAILS", f"it does not end within {MAX_SECONDS} s")]
    if not (folder / "results.json").is_file():
        said = (done.stderr.strip() or "it says nothing").splitlines()[-1]
        return [Check("the bundle's code runs", "FAILS", f"exit status {done.returncode}: {said[: probe.LENGTH]}")]
    return results_in(folder)


def results_in(folder: Path) -> list[Check]:
    """The checks that `probe` has written down."""
    results: list[dict[str, str]] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    states: dict[str, State] = {"ok": "ok", "fails": "FAILS", "skipped": "skipped"}
    return [Check(result["name"], states[result["state"]], result["why"]) for result in results]


def _finished(check: Check, bundle: Path, folder: Path, max_difference: float) -> Check:
    """The check of the prediction with its outcome; any other as it is."""
    if check.name != probe.PREDICTS or check.state != "ok":
        return check
    try:
        difference = different(bundle / probe.SEGMENTATION, folder / probe.PREDICTED)
    except AutoplanError as error:
        return Check(check.name, "FAILS", one_line(error))
    said = f"{difference:.3%} of the voxels differ, {max_difference:.3%} may"
    return Check(check.name, "ok" if difference <= max_difference else "FAILS", said)


def different(stored: Path, predicted: Path) -> float:
    """Share of the voxels whose class differs.

    Raises:
        OSError: a file is not there or cannot be read.
        ValueError: they have other shapes.
    """
    first, second = (images.read_volume(path).array for path in (stored, predicted))
    if first.shape != second.shape:
        raise DatasetError(f"the prediction has the shape {second.shape}, the stored segmentation {first.shape}")
    return float((first != second).mean())
