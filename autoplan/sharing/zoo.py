"""A folder for the Model Zoo: a bundle of `sharing`, and what the zoo asks for beside its networks."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoplan.base import written
from autoplan.base.codec import format_json
from autoplan.base.errors import AutoplanError, TemplateError, one_line, shortened
from autoplan.base.files import file_digest, read_object, read_text
from autoplan.base.processes import dying_with
from autoplan.base.scripts import templates_folder
from autoplan.bundle import saved, templates, writing
from autoplan.bundle.ensemble import going_on, shared_readme
from autoplan.bundle.readme import Shared, told_folds
from autoplan.bundle.settings import MEMBERS
from autoplan.planning.values import ALL, NOT_VALIDATED, Fold, Plan
from autoplan.sharing import ensemble, faster, verification
from autoplan.sharing.stored_image import store_segmentation
from autoplan.sharing.verification import LARGE_FILE_BYTES, Check
from autoplan.training import results

FIRST_VERSION = "0.1.0"
NETWORKS, EXPORTS = "networks", "exports"
MARK = "configs/metadata.json"
"""The file without which a folder is no shared bundle."""
PARTS = (*writing.GENERATED, "models", "large_files.yml")
"""What is at the top of a shared bundle, and is removed from it where a later version has it not."""


@dataclass(frozen=True)
class Request:
    """What people say of a bundle that they share.

    Attributes:
        name: of the bundle and its folder.
        authors: who trained it.
        data_source: where the data come from.
        data_license: their license, or a file with its text.
        version: empty for the next one.
        url: address of the folder where files will lie that are too large for the zoo.
        torchscript, onnx: whether to export models/model.ts and models/model.onnx.
    """

    name: str
    authors: str
    data_source: str
    data_license: str
    version: str = ""
    url: str = ""
    torchscript: bool = False
    onnx: bool = False

    @property
    def exports(self) -> tuple[str, ...]:
        """Files of the exports."""
        wanted = {"models/model.ts": self.torchscript, "models/model.onnx": self.onnx}
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)


@dataclass(frozen=True)
class Published:
    """A folder that was written, or one that holds the same already: `checks` is empty then. `kept` has a folder with
    what was changed by hand in the version before, if anything was."""

    folder: Path
    version: str
    checks: Sequence[Check]
    kept: Sequence[Path] = ()


def check(request: Request) -> None:
    """Refuses what cannot be shared, before anything is done.

    Raises:
        AutoplanError: something is not said, or cannot be.
    """
    needed = {"name": request.name, "authors": request.authors, "data_license": request.data_license,
              "data_source": request.data_source}  # fmt: skip
    if missing := [f"--{flag}" for flag, value in needed.items() if not value.strip()]:
        raise AutoplanError(f"share needs {', '.join(missing)}: autoplan cannot know these. See share --help.")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+){2,}", request.name) or "segmentation" not in request.name:
        raise AutoplanError(
            f"--name {request.name}: the Model Zoo takes anatomy, modality and task in lower case, joined by _, such "
            "as hippocampus_mri_segmentation."
        )
    if request.version and not re.fullmatch(r"\d+\.\d+\.\d+", request.version):
        raise AutoplanError(f"--version {request.version}: give three numbers, such as 1.0.0.")
    if request.url and not re.match(r"https?://", request.url):
        raise AutoplanError(f"--url {request.url}: give an address that begins with https://.")
    _license_text(request.data_license)
    if request.onnx:
        _check_onnx()


def _check_onnx() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise AutoplanError(f"--onnx needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}")


def publish(
    root: Path,
    bundle: str,
    folds: Sequence[Fold],
    output: Path,
    request: Request,
    measure: Callable[[str, Fold], object] | None = None,
    *,
    force: bool = False,
) -> Published:
    """Write the folder, or leave it as it is where nothing has changed. Files in it that `share` has not written stay.

    Args:
        root: folder of the task's bundles.
        bundle: one that `select` wrote, or a configuration.
        folds: of a configuration: whose networks; all that are finished if empty.
        output: folder that the bundle's own is made in.
        request: what people say.
        measure: called with each configuration that is shared, and the first of its folds, before the README is
            written: it has what `faster` knows of their networks.
        force: write over files that were changed by hand; a copy is kept.

    Raises:
        AutoplanError: the bundle cannot be shared, the version exists, files were changed by hand, or a check fails;
            nothing is changed then.
    """
    check(request)
    plan, target = saved.load_plan(root), output / request.name
    with written.anew(target) as temporary:
        _check_target(target)
        if not force:
            written.check_own(target, written.recorded(target))
        source = _source(plan, root, bundle, folds, temporary)
        if measure is not None:
            for name, fold in _first_networks(read_object(source / "configs" / "inference.json")).items():
                measure(name, fold)
        files = _files(plan, source, root, request)
        changed = _changed(target, files, source, request)
        there = _metadata(target)
        if not changed and request.version in ("", there["version"]):
            return Published(target, str(there["version"]), [])
        version = _version(there, changed, request.version)
        built = temporary / request.name
        files[MARK] = _versioned(files[MARK], there, version, changed)
        checks = _build(built, files, source, request)
        kept = written.put(built, target, last=MARK, parts=PARTS, force=force)
    return Published(target, version, checks, kept)


# Where it comes from.


def _source(plan: Plan, root: Path, bundle: str, folds: Sequence[Fold], temporary: Path) -> Path:
    """The folder of a bundle of `sharing`."""
    if bundle in MEMBERS:
        source, key = temporary / "source", read_object(root / saved.PLAN).get("fingerprint")
        name = f"{plan.name}_{bundle}"
        ensemble.share_configuration(plan, root, source, bundle, folds, name=name, fingerprint_key=str(key))
        return source
    if folds:
        raise AutoplanError(f"--folds {folds[0]}: {bundle} holds the folds that select chose. Name a configuration.")
    source, select = root / bundle, f"python -m autoplan select {root.name} --bundles {root.parent}"
    inference = read_object(source / "configs" / "inference.json")
    if not any(f"{member}_folds" in inference for member in MEMBERS.values()):
        raise TemplateError(f"{source}: is no bundle that select wrote. Choose the best model first: {select}")
    if not (source / "models" / "model.pt").is_file():
        raise TemplateError(f"{source}: has no weights. Choose the best model again: {select}")
    scripts = {name: data for name, data in templates.copied(templates_folder()).items() if name.startswith("scripts/")}
    if any(not (source / name).is_file() or (source / name).read_bytes() != data for name, data in scripts.items()):
        raise TemplateError(f"{source}: was written by another version of autoplan. Write it again: {select}")
    return source


def _first_networks(inference: Mapping[str, Any]) -> dict[str, Fold]:
    """Configurations that a bundle holds, and the first fold of each; not the first stage of a cascade."""
    found = {name: inference[f"{m}_folds"][0] for name, m in MEMBERS.items() if f"{m}_folds" in inference}
    return {name: fold for name, fold in found.items() if name != "3d_lowres" or "3d_cascade_fullres" not in found}


def _figures(root: Path, inference: Mapping[str, Any]) -> dict[str, tuple[Path, str]]:
    """Curves of the trainings of the networks: name in docs -> file, and what it shows."""
    found = {}
    for name, member in MEMBERS.items():
        for k in inference.get(f"{member}_folds", []):
            path = results.fold_folder(root / name, k) / "progress.png"
            if path.is_file():
                whose = NOT_VALIDATED if k == ALL else f"fold {k}"
                found[f"{name}_fold_{k}.png"] = (path, f"Losses and estimated Dice of every epoch: {name}, {whose}")
    return found


def _files(plan: Plan, source: Path, root: Path, request: Request) -> dict[str, bytes]:
    """The files of the folder but for weights, exports and the stored segmentation; metadata.json without version."""
    inference, metadata = (read_object(source / "configs" / f"{name}.json") for name in ("inference", "metadata"))
    inference |= {"bundle_root": f"$scripts.root({request.name!r})", "dataset_dir": "$@bundle_root + '/data'"}
    metadata |= {"name": request.name, "authors": request.authors, "data_source": request.data_source}
    configs = {"inference.json": inference, **going_on(plan, inference)}
    figures = _figures(root, inference)
    known = {key: faster.load(root / key[0], key[1]) for key in _first_networks(inference).items()}
    costs = {key: (len(found.cases), faster.rows(found)) for key, found in known.items() if found is not None}
    said = Shared(request.data_source, {name: text for name, (_, text) in figures.items()}, costs)
    readme = shared_readme(plan, metadata, inference, configs["train.json"], said)
    return {
        **templates.copied(templates_folder()),
        **{f"configs/{name}": format_json(config).encode() for name, config in configs.items()},
        MARK: format_json(metadata).encode(),
        "docs/README.md": readme.encode(),
        "docs/data_license.txt": _license(plan, request).encode(),
        **{f"docs/{name}": path.read_bytes() for name, (path, _) in figures.items()},
    }


def _license_text(given: str) -> str:
    """The license itself, or the text of a file."""
    if not os.path.exists(given) or os.path.isdir(given):
        return given
    try:
        text = read_text(Path(given)).strip()
        if not text or "\0" in text:
            raise ValueError("it holds none")
    except (OSError, ValueError) as error:
        raise AutoplanError(
            f"--data_license {shortened(given)} cannot be read as a text in UTF-8 ({one_line(error)}). Convert it, or "
            "give the license's name and address."
        ) from None
    return text


def _license(plan: Plan, request: Request) -> str:
    return (
        "The images and labels that the networks of this bundle were trained on are not in it. They have terms of "
        f"their own:\n\nDataset: {plan.name}\nSource: {request.data_source}\nLicense: "
        f"{_license_text(request.data_license)}\n"
    )


# What is there already.


def _check_target(target: Path) -> None:
    """Refuses a folder that is something else."""
    if target.exists() and not _metadata(target):
        raise AutoplanError(f"{target} is no shared bundle. Move it away, or name another folder: --output DIR")


def _metadata(target: Path) -> dict[str, Any]:
    """The metadata of a version that is there; empty where there is none."""
    found = read_object(target / MARK)
    return found if isinstance(found.get("version"), str) and isinstance(found.get("changelog"), dict) else {}


def _changed(target: Path, files: Mapping[str, bytes], source: Path, request: Request) -> list[str]:
    """Which parts of a bundle differ from the version that is there: "networks", "configs", …; all of a new one."""
    if not target.is_dir():
        return [NETWORKS]
    changed = {name.partition("/")[0] for name, data in files.items() if not _is(target / name, data)}
    own = {name for name in written.recorded(target) if (target / name).is_file()}
    changed |= {"docs" for name in own if name.startswith("docs/") and name not in files}
    there = {name for name in ("models/model.ts", "models/model.onnx") if name in own}
    parts = [NETWORKS] if not _same(source / "models" / "model.pt", target / "models" / "model.pt") else []
    return [*parts, *sorted(changed), *([EXPORTS] if there != set(request.exports) else [])]


def _same(first: Path, second: Path) -> bool:
    return second.is_file() and file_digest(first) == file_digest(second)


def _is(path: Path, data: bytes) -> bool:
    """Whether a file holds this; of metadata.json, all but what tells versions apart."""
    if not path.is_file():
        return False
    if path.name != "metadata.json":
        return path.read_bytes() == data
    return _unversioned(read_object(path)) == _unversioned(json.loads(data))


def _unversioned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in ("version", "changelog")}


def _version(there: Mapping[str, Any], changed: Sequence[str], wanted: str) -> str:
    """The version to write: the one that is wanted, or the next; other networks raise the second number.

    Raises:
        AutoplanError: the version that is wanted exists.
    """
    if wanted:
        if wanted in there.get("changelog", {}):
            raise AutoplanError(f"--version {wanted} exists; the newest is {there['version']}. Take a higher one.")
        return wanted
    if not there:
        return FIRST_VERSION
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", there["version"])
    if found is None:
        raise AutoplanError(f"the version that is there, {there['version']!r}, has no next one. Say which: --version")
    major, minor, patch = map(int, found.groups())
    return f"{major}.{minor + 1}.0" if NETWORKS in changed else f"{major}.{minor}.{patch + 1}"


def _versioned(metadata: bytes, there: Mapping[str, Any], version: str, changed: Sequence[str]) -> bytes:
    """The metadata with its version, and an entry in the changelog."""
    found = json.loads(metadata)
    entry = f"changed: {', '.join(changed)}" if there and changed else "the same under another version"
    if not there or NETWORKS in changed:
        scores = found["eval_metrics"]
        dice = scores["mean_dice"]["mean foreground"] if scores else None
        on_all = any(f"fold_{ALL}" in folds for folds in found["autoplan"]["networks"].values())
        whose = told_folds([ALL] if on_all else scores["folds"])
        of = "of the networks of the" if on_all else "in"
        score = "" if dice is None else f"; mean foreground Dice {dice:.4f} {of} cross-validation"
        score = score if scores else "; no cross-validated score"
        entry = f"{'other networks' if there else 'first version'} ({whose}){score}"
    changelog = {version: entry, **there.get("changelog", {})}
    return format_json({**found, "version": version, "changelog": changelog}).encode()


# Writing.


def _build(built: Path, files: Mapping[str, bytes], source: Path, request: Request) -> list[Check]:
    """Write the folder and check it.

    Raises:
        AutoplanError: an export failed, a large file has no address, or a check failed.
    """
    writing.fill(built, files)
    (built / "models").mkdir()
    shutil.copyfile(source / "models" / "model.pt", built / "models" / "model.pt")
    for name in request.exports:
        _export(built, name)
    _list_large_files(built, request.url)
    store_segmentation(built)
    checks = verification.verify(built)
    verification.check_passed(Path(request.name), checks)
    return checks


def _export(built: Path, name: str) -> None:
    """Write an exported network by the program of MONAI that does it."""
    verb = "ckpt_export" if name.endswith(".ts") else "onnx_export"
    given = ["--filepath", name, "--ckpt_file", "models/model.pt", "--meta_file", "configs/metadata.json"]
    words = ["-W", "ignore", "-B", "-m", "monai.bundle", verb, "network_def", *given]
    done = subprocess.run(
        [sys.executable, *words, "--config_file", "configs/inference.json"],
        cwd=built, capture_output=True, text=True, errors="replace", check=False, preexec_fn=dying_with(os.getpid()),
    )  # fmt: skip
    if done.returncode or not (built / name).is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise AutoplanError(f"{name} cannot be exported: {said[:300]}")


def _list_large_files(built: Path, url: str) -> None:
    """large_files.yml, where files are too large for the zoo."""
    large = [path for path in sorted((built / "models").iterdir()) if path.stat().st_size > LARGE_FILE_BYTES]
    if large and not url:
        sizes = ", ".join(f"{path.name} ({path.stat().st_size >> 20} MiB)" for path in large)
        raise AutoplanError(
            f"the Model Zoo takes no file above {LARGE_FILE_BYTES >> 20} MiB: {sizes}. Say in which folder they will "
            "lie: --url https://…"
        )
    lines = ["large_files:"]
    for path in large:
        lines += [
            f'- path: "models/{path.name}"', f'  url: "{url.rstrip("/")}/{path.name}"',
            f'  hash_val: "{hashlib.sha256(path.read_bytes()).hexdigest()}"', '  hash_type: "sha256"',
        ]  # fmt: skip
    if large:
        (built / "large_files.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")


# The stored segmentation.
