"""Predicting many images with the bundle to share: resumes, and names in the end what could not be predicted."""

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoplan.base import written
from autoplan.base.errors import AutoplanError, DatasetError, TemplateError
from autoplan.base.files import check_writable, file_digest, read_object, write_text_atomically
from autoplan.base.processes import run_printing
from autoplan.data.decathlon import DESCRIPTION
from autoplan.data.facts import Case
from autoplan.data.images import (
    by_case,
    case_name,
    check_packages,
    files_of,
    image_files,
    segmentation_name,
    series_below,
)

RECORD = ".predicted_by.json"
"""File beside the predictions that tells which bundle made them, and of which images."""
PREDICTIONS = "predictions.json"
"""File beside the predictions in which the bundle says what each image was like."""
MAX_NAME, MAX_LISTED = 200, 20
"""Bytes of the name of a case that is made of folders, and folders that are listed as left out."""
NOT_KNOWN = ""
"""Digest of a file of which it is not known whether it is as it was predicted."""
Record = dict[str, list[Any]]
"""Name of a segmentation -> path, size and time of the last change of its image."""


def predict(
    bundle: Path, folder: Path, cases: Sequence[Case], output: Path, *, force: bool, settings: Mapping[str, Any]
) -> int:
    """Predict the images that have no segmentation yet.

    Args:
        bundle: with configs/inference.json and models/model.pt.
        folder: of the dataset or of the images.
        cases: what to predict; their paths are relative to `folder`.
        output: where the segmentations go, named after their images and in their formats.
        force: overwrite segmentations of other images, of unknown origin, or changed by hand.
        settings: keys of inference.json with new values.

    Returns:
        The number of images predicted now.

    Raises:
        TemplateError: the bundle is not there, has no weights, or is too old to predict these images.
        DatasetError: there are no images, or two of one name.
        AutoplanError: the output folder holds other segmentations, or some images could not be predicted.
    """
    found, dicom_seg = _absolute(folder, cases), bool(settings.get("dicom_seg"))
    _check_bundle(bundle, folder, found)
    for flag in ("dicom_seg", "strict", "region_first"):
        if settings.get(flag) and flag not in read_object(bundle / "configs" / "inference.json"):
            raise TemplateError(f"{bundle} was written by an older autoplan, which has no --{flag}. Write it anew.")
    if dicom_seg:
        _check_dicom(found)
    targets = _targets(folder, found, output)
    check_packages(Path(path) for case in found for path in case.images)
    check_writable(output, "--output")
    _claim(output, _signature(bundle, settings), targets, force=force, dicom_seg=dicom_seg)
    missing = [target for target in targets.values() if not target.is_file()]
    if missing:
        values = {"dataset_dir": str(folder.absolute()), "output_dir": str(output.absolute()), **settings}
        noted = written.recorded(output)
        try:
            status = _run(bundle, found, {"skip_existing": True, **values})
        finally:
            _note_others(output, missing, noted)
        _check_outcome(status, targets, output if dicom_seg else None)
    elif dicom_seg:
        _check_outcome(0, targets, output)
    return len(missing)


def told(
    bundle: Path, folder: Path, cases: Sequence[Case], output: Path, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Predict all images into a new folder, and give what predictions.json tells of each, by its case.

    Args:
        bundle, folder, cases, output, settings: see `predict`.

    Raises:
        AutoplanError: some images could not be predicted.
    """
    found = _absolute(folder, cases)
    targets = _targets(folder, found, output)
    status = _run(bundle, found, {"output_dir": str(output.absolute()), **settings})
    _check_outcome(status, targets)
    return read_object(output / PREDICTIONS)


def _absolute(folder: Path, cases: Sequence[Case]) -> list[Case]:
    """The cases with the absolute paths of their images."""
    return [replace(case, images=tuple(str((folder / path).absolute()) for path in case.images)) for case in cases]


def _check_bundle(bundle: Path, folder: Path, cases: Sequence[Case]) -> None:
    """Refuses a bundle without weights, and an old one, which takes no list of images, where it would predict
    others."""
    remedy = f"python -m autoplan select {bundle.parent.name} --bundles {bundle.parent.parent}"
    remedy += "" if bundle.name == "best" else f" --name {bundle.name}"
    config = bundle / "configs" / "inference.json"
    if not config.is_file() or not (bundle / "models" / "model.pt").is_file():
        raise TemplateError(f"{bundle} has no trained weights. Choose the best model first: {remedy}")
    if not zipfile.is_zipfile(bundle / "models" / "model.pt"):
        raise TemplateError(f"{bundle / 'models' / 'model.pt'} is damaged. Write the bundle anew: {remedy}")
    in_folder = all(Path(path).parent == folder.absolute() for case in cases for path in case.images)
    if "images" not in read_object(config) and in_folder and (folder / DESCRIPTION).is_file():
        raise TemplateError(
            f"{bundle} was written by an older autoplan: it would predict the test images of {folder / DESCRIPTION} "
            f"instead. Write the bundle anew: {remedy}"
        )


def _check_dicom(cases: Sequence[Case]) -> None:
    """Refuses DICOM Segmentations of what is no series."""
    if others := [case.images[0] for case in cases if len(case.images) > 1 or not Path(case.images[0]).is_dir()]:
        raise DatasetError(
            f"--dicom_seg: {others[0]} is no folder of DICOM files, which a DICOM Segmentation could refer to. Leave "
            "the flag out."
        )
    if importlib.util.find_spec("highdicom") is None:
        raise DatasetError("--dicom_seg needs highdicom. Install it: python -m pip install 'autoplan[formats]'")


def _check_outcome(status: int, targets: Mapping[Case, Path], dicom_segs: Path | None = None) -> None:
    """Raises AutoplanError unless the bundle ended well and every image has its segmentation, and its DICOM
    Segmentation where these are asked for: then their folder is given."""
    failed = [case.images[0] for case, target in targets.items() if not target.is_file()]
    if status < 0 or status > 128:
        raise AutoplanError(f"the prediction was stopped (exit status {status}). The same command continues it.")
    incomplete = {} if dicom_segs is None else _incomplete(targets, dicom_segs)
    beside = "".join(f"\n  {image}: {cause}" for image, cause in incomplete.items())
    if incomplete:
        beside = (
            f"{len(incomplete)} of {len(targets)} images have their segmentation, but no DICOM Segmentation:{beside}\n"
            "Correct what is named and remove the segmentation of such an image; the same command then writes both. Or "
            "leave --dicom_seg out."
        )
    if failed:
        lines = "\n".join(f"  {image}" for image in failed)
        raise AutoplanError(
            f"{len(failed)} of {len(targets)} images have no segmentation:\n{lines}\n"
            "The reasons are above. Correct what they name; the same command then predicts what is missing."
            + (f"\n{beside}" if beside else "")
        )
    if beside:
        raise AutoplanError(beside)
    if status:
        raise AutoplanError(f"the prediction ended with exit status {status}; the reason is above.")


def _incomplete(targets: Mapping[Case, Path], output: Path) -> dict[str, str]:
    """Images with a segmentation and no DICOM Segmentation, and why, by predictions.json. A segmentation that was
    changed by hand stays alone."""
    changed, known = set(written.edited(output)), read_object(output / PREDICTIONS)
    found = {}
    for case, target in targets.items():
        if target.is_file() and target.name not in changed and not (output / _dicom(case)).is_file():
            entry = known.get(case.name)
            told = entry.get("incomplete") if isinstance(entry, dict) else None
            found[case.images[0]] = str(told or "it is not known why")
    return found


def warnings(output: Path, cases: Sequence[Case]) -> list[str]:
    """What to say of the images that are unlike those of the training, by predictions.json; a line an image."""
    known = read_object(output / PREDICTIONS)
    found = {case.name: entry["warnings"] for case in cases if isinstance(entry := known.get(case.name), dict)
             and isinstance(entry.get("warnings"), list) and entry["warnings"]}  # fmt: skip
    if not found:
        return []
    lines = [f"  {name}: {'; '.join(map(str, texts))}" for name, texts in found.items()]
    verb = "are" if len(found) > 1 else "is"
    return [f"{len(found)} of {len(cases)} images {verb} unlike those of the training. Look at them:", *lines]


def images_in(folder: Path, bundle: Path) -> list[Case]:
    """The images in a folder, sorted, as cases of a bundle with so many channels; and each DICOM series in the folders
    below, such as PATIENT/STUDY/SERIES, named by them. Localizers, and series without images, are left out.

    Raises:
        DatasetError: there is no such folder.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is no folder. Name the one with the images: --images DIR")
    channels = read_object(bundle / "configs" / "inference.json").get("normalization")
    count = len(channels) if isinstance(channels, list) and channels else 1
    below = series_below(folder)
    there = [path for path in image_files(folder) if not below.get(path)]
    found = [Case(n, tuple(p.relative_to(folder).as_posix() for p in paths)) for n, paths in by_case(there, count)]
    nested = [path.relative_to(folder) for path, reason in below.items() if not reason and path not in there]
    return found + [Case(_joined(path), (path.as_posix(),)) for path in nested]


def _joined(path: Path) -> str:
    """Name of the case of a series in folders of folders. Files have names of at most 255 bytes."""
    name = "_".join(path.parts)
    return name if len(name.encode()) <= MAX_NAME else f"{name[:50]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def left_out(folder: Path, cases: Sequence[Case]) -> list[str]:
    """What of a folder is not predicted: files and series that are none of the cases; a line a folder."""
    taken = {file for case in cases for path in case.images for file in files_of(folder / path)}
    below, lines = series_below(folder), []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        others = [name for name in files if name[0] != "." and Path(root) / name not in taken]
        if others:
            kind = below.get(Path(root)) or "no image"
            count = f"{len(others)} file{'s' * (len(others) > 1)}"
            lines.append(f"  {Path(root)}: {kind}, {count} such as {sorted(others)[0]}")
    more = [f"  and {len(lines) - MAX_LISTED} folders more"] if len(lines) > MAX_LISTED else []
    return ["Left out:", *lines[:MAX_LISTED], *more] if lines else []


def _targets(folder: Path, cases: Sequence[Case], output: Path) -> dict[Case, Path]:
    """The segmentation of each image."""
    if not cases:
        raise DatasetError(f"{folder}: no images to predict, neither listed as test in dataset.json nor as files.")
    targets: dict[Case, Path] = {}
    for case in cases:
        target = output / segmentation_name(case.images[0], case.name)
        if target in targets.values():
            raise DatasetError(f"{folder}: two images are called {case.name}. Rename one of them.")
        targets[case] = target
    sources = {os.path.realpath(path) for case in cases for path in case.images}
    if any(os.path.realpath(target) in sources for target in targets.values()):
        raise DatasetError(
            f"{output} holds the images themselves. Name another folder for the segmentations: --output DIR"
        )
    return targets


def _signature(bundle: Path, settings: Mapping[str, Any]) -> dict[str, object]:
    """What segmentations depend on, besides the image."""
    hashed = hashlib.sha256()
    for name in ("configs/inference.json", "models/model.pt"):
        with (bundle / name).open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                hashed.update(block)
    return {"bundle": hashed.hexdigest()[:16], "settings": dict(settings)}


def _stamp(case: Case) -> list[Any]:
    """Tells whether an image is still the one that was predicted."""
    image = Path(case.images[0])
    stats = [file.stat() for path in case.images for file in files_of(path) if file.is_file()]
    size, time = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    return [str(image.resolve()), *((size, time) if stats else (None, None))]


def _known(output: Path) -> tuple[object, Record]:
    """Which bundle made the predictions in a folder, and of which images; nothing where the record is damaged."""
    claimed = read_object(output / RECORD)
    images = claimed.get("images")
    found = images.items() if isinstance(images, dict) else ()
    stamps = {name: s for name, s in found if isinstance(s, list) and len(s) == 3 and isinstance(s[0], str)}
    return claimed.get("by"), stamps


def _claim(
    output: Path,
    signature: Mapping[str, object],
    targets: Mapping[Case, Path],
    *,
    force: bool,
    dicom_seg: bool = False,
) -> None:
    """Make the folder one of predictions by this bundle, and write down which images they are of. Segmentations by
    another bundle, or of an image that has changed since, are removed to be made again, unless they were changed by
    hand: these stay. Those of other images or of unknown origin are refused. With `force`, none is kept or refused."""
    by, known = _known(output)
    there = {case: target for case, target in targets.items() if target.is_file()}
    if not force:
        _check_unclaimed(output, [t for t in there.values() if t.name not in known], _others(output, known, targets))
    same = by == signature
    output.mkdir(parents=True, exist_ok=True)
    again = {case for case, target in there.items() if not same or known.get(target.name) != _stamp(case)}
    _make_way(output, targets, again, force=force, dicom_seg=dicom_seg)
    kept = {name: stamp for name, stamp in known.items() if same and name not in _others(output, known, targets)}
    images = {**kept, **{target.name: _stamp(case) for case, target in targets.items()}}
    write_text_atomically(output / RECORD, json.dumps({"by": signature, "images": images}))


def _make_way(
    output: Path, targets: Mapping[Case, Path], again: Collection[Case], *, force: bool, dicom_seg: bool
) -> None:
    """Remove what will be written anew: segmentations that are made again, and DICOM Segmentations beside them. What
    was changed by hand stays unless `force`, and is noted, so that the bundle leaves it alone, too."""
    noted = written.recorded(output)
    names = [name for case, target in targets.items() for name in (target.name, _dicom(case))]
    changed = set(written.foreign(output, names))
    stay = set()
    for case, target in targets.items():
        is_changed = target.name in changed
        if target.is_file() and case not in again and not (force and is_changed and target.name in noted):
            continue
        if is_changed and not force:
            stay |= changed & {target.name, _dicom(case)}
            continue
        if _dicom(case) in changed and not (force and dicom_seg):
            stay.add(_dicom(case))
        else:
            (output / _dicom(case)).unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    if new := stay - set(noted):
        written.note(output, dict.fromkeys(new, NOT_KNOWN))


def _dicom(case: Case) -> str:
    """Name of the DICOM Segmentation of a case, where there is one."""
    return f"{case.name}.dcm"


def _note_others(output: Path, segmentations: Sequence[Path], before: Mapping[str, str]) -> None:
    """Note segmentations that were predicted now, where an old bundle has not done it."""
    noted = written.recorded(output)
    names = [target.name for target in segmentations if target.is_file()]
    if new := [name for name in names if noted.get(name) == before.get(name)]:
        written.record(output, new)


def changed_by_hand(output: Path, cases: Sequence[Case]) -> list[str]:
    """What to say of segmentations that are not as they were predicted."""
    own = {name for case in cases for name in (segmentation_name(case.images[0], case.name), _dicom(case))}
    found = [name for name in written.edited(output) if name in own]
    if not found:
        return []
    were, stay, them = ("were", "stay", "them") if len(found) > 1 else ("was", "stays", "it")
    return [
        f"{len(found)} of the files {were} changed by hand, or predicted by an older autoplan, and {stay}. "
        f"--force predicts {them} anew:",
        *(f"  {output / name}" for name in found),
    ]


def _others(output: Path, known: Record, cases: Collection[Case]) -> list[str]:
    """Names of the segmentations in a folder that are of images of another folder than those of `cases`."""
    folders = {str(Path(case.images[0]).resolve().parent) for case in cases}
    common = os.path.commonpath(folders) if len(folders) > 1 else None  # of series in folders of folders

    def is_own(image: str) -> bool:
        path = Path(image)
        return str(path.parent) in folders or (common is not None and path.is_relative_to(common))

    return [n for n, s in known.items() if not is_own(s[0]) and (output / n).is_file()]


def _check_unclaimed(output: Path, unknown: Sequence[Path], others: Sequence[str]) -> None:
    """Refuses a folder with segmentations that this prediction has not made."""
    remedy = "Name another folder: --output DIR; or overwrite them: --force"
    if others:
        _, known = _known(output)
        raise AutoplanError(
            f"{output} holds predictions of other images, such as {others[0]} of {known[others[0]][0]}. {remedy}"
        )
    if unknown:
        count = f"{len(unknown)} segmentation{'s' * (len(unknown) > 1)}"
        raise AutoplanError(f"{output} holds {count} of unknown origin, such as {unknown[0].name}. {remedy}")


def _width(bundle: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The features of the network, where the record beside its weights has others than inference.json: a training for a
    short time may be of a narrow one."""
    weights = Path(settings.get("model_file", bundle / "models" / "model.pt"))
    record = read_object(weights.with_name("model.json"))
    trained = record.get("settings")
    is_its_own = "model" in record and weights.is_file() and record["model"] == file_digest(weights)
    features = trained.get("features") if is_its_own and isinstance(trained, dict) else None
    planned = read_object(bundle / "configs" / "inference.json").get("features")
    return {"features": features} if planned is not None and features not in (None, planned) else {}


def _run(bundle: Path, cases: Sequence[Case], values: Mapping[str, Any]) -> int:
    """Run the bundle's inference on images; returns its exit status.

    Values and paths go through files: on a command line MONAI would read more in them. The working directory is an
    empty one, so that Python finds no other `scripts` there.
    """
    with tempfile.TemporaryDirectory(prefix="autoplan-") as folder:
        listed, arguments = Path(folder) / "images.json", Path(folder) / "arguments.json"
        listed.write_text(json.dumps([_listed(case) for case in cases]), encoding="utf-8")
        values = {**_width(bundle, values), **values, "images": str(listed)}
        given = {name: _literal(value) for name, value in values.items()}
        config = str(bundle.absolute() / "configs" / "inference.json")
        arguments.write_text(json.dumps({"config_file": config, **given}), encoding="utf-8")
        # MONAI warns that a config runs code, which is autoplan's own here, and of a decoder that is not needed.
        quiet = ["-W", "ignore::UserWarning:monai.bundle.scripts", "-W", "ignore::UserWarning:monai.data.image_reader"]
        run = ["-m", "monai.bundle", "run", "inference", "--args_file", str(arguments)]
        return run_printing([sys.executable, *quiet, *run], Path(folder))


def _listed(case: Case) -> str | dict[str, Any]:
    """An image in the list that a bundle reads; bundles of older versions know one path an image."""
    plain = len(case.images) == 1 and case_name(case.images[0]) == case.name
    return case.images[0] if plain else {"name": case.name, "image": list(case.images)}


def _literal(value: Any) -> Any:
    """A value as it stands in a config. MONAI takes $, @, %, # and "import" for more than they are, so a text with more
    than plain characters becomes an expression that escapes them."""
    if not isinstance(value, str) or (re.fullmatch(r"[\w/.-]+", value, re.ASCII) and "import" not in value):
        return value
    escaped = re.sub(r"[^\w/. -]", lambda odd: f"\\U{ord(odd[0]):08x}", value, flags=re.ASCII)
    return "$'" + escaped.replace("import", "\\x69mport") + "'"
