"""Datasets in other layouts than the Decathlon's: what is found, what is refused, and that nothing but the layout
differs."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import TINY_PLAN, Tiny, write_task, write_tiny
from PIL import Image
from scripts.datalists import images_to_predict

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError, PlanError
from autoplan.base.scripts import formats
from autoplan.bundle import saved
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint, images, layouts
from autoplan.data.cases import read_case
from autoplan.data.layouts import Layout
from autoplan.planning import plan
from autoplan.planning.rules import grouped_folds

NAMES = [f"case_{i}" for i in range(5)]
FOLDERS = Layout(images="images", labels="labels")


def facts_of(dataset: datasets.Dataset) -> fingerprint.Fingerprint:
    return fingerprint.fingerprint(dataset, num_processes=1, progress=False)


# The same images in every layout.


def channels_of(path: Path) -> list[nibabel.Nifti1Image]:
    """The channels of a NIfTI file, an image each."""
    image = nibabel.load(path)
    array = np.asanyarray(image.dataobj)
    parts = [array] if array.ndim == 3 else [array[..., i] for i in range(array.shape[3])]
    return [nibabel.Nifti1Image(part, image.affine) for part in parts]


def write_as(image: nibabel.Nifti1Image, path: Path) -> None:
    """Write in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nibabel.save(image, path)
    else:
        import SimpleITK as sitk  # noqa: N813

        array = np.asanyarray(image.dataobj)
        made, world = sitk.GetImageFromArray(array.transpose(2, 1, 0)), formats.LPS @ image.affine
        spacing = np.linalg.norm(world[:3, :3], axis=0)
        made.SetSpacing(spacing.tolist())
        made.SetOrigin(world[:3, 3].tolist())
        made.SetDirection((world[:3, :3] / spacing).ravel().tolist())
        sitk.WriteImage(made, str(path), useCompression=True)


def nnunet_raw(source: Path, target: Path, ending: str = ".nii.gz") -> Layout:
    """Version 2: a file a channel, labels by name."""
    described = json.loads((source / "dataset.json").read_text())
    for path in sorted((source / "imagesTr").iterdir()):
        name = formats.case_name(path)
        for i, channel in enumerate(channels_of(path)):
            write_as(channel, target / "imagesTr" / f"{name}_{i:04}{ending}")
        write_as(channels_of(source / "labelsTr" / path.name)[0], target / "labelsTr" / f"{name}{ending}")
    content = {
        "channel_names": described["modality"],
        "labels": {name: int(value) for value, name in described["labels"].items()},
        "numTraining": len(described["training"]),
        "file_ending": ending,
    }
    (target / "dataset.json").write_text(json.dumps(content))
    return Layout()


def nnunet_1(source: Path, target: Path) -> Layout:
    """Version 1: the Decathlon's dataset.json, whose images have a number more."""
    nnunet_raw(source, target)
    shutil.copy(source / "dataset.json", target / "dataset.json")
    return Layout()


def nrrd(source: Path, target: Path) -> Layout:
    return nnunet_raw(source, target, ".nrrd")


def meta_image(source: Path, target: Path) -> Layout:
    return nnunet_raw(source, target, ".mha")


def folders(source: Path, target: Path) -> Layout:
    """A folder for each channel, and names that end as people end them."""
    described = json.loads((source / "dataset.json").read_text())
    parts = [f"c{i}" for i in described["modality"]]
    for path in sorted((source / "imagesTr").iterdir()):
        name = formats.case_name(path)
        for part, channel in zip(parts, channels_of(path), strict=True):
            write_as(channel, target / part / f"{name}_image.nii.gz")
        write_as(channels_of(source / "labelsTr" / path.name)[0], target / "masks" / f"{name}_mask.nii.gz")
    names = list(described["labels"].values())
    return Layout(
        images=",".join(parts), labels="masks", labels_are=",".join(names),
        channels=",".join(described["modality"].values()),
    )  # fmt: skip


def table(source: Path, target: Path) -> Layout:
    """A table that names the files of `folders`, with absolute paths and relative ones."""
    layout = folders(source, target)
    parts = layout.images.split(",")
    with (target / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["case", *parts, "label"])
        for path in sorted((source / "imagesTr").iterdir()):
            name = formats.case_name(path)
            found = [str(target / part / f"{name}_image.nii.gz") for part in parts]
            rows.writerow([name, *found, f"masks/{name}_mask.nii.gz"])
    return replace(layout, images="", labels="", table="cases.csv")


LAYOUTS = {f.__name__: f for f in (nnunet_raw, nnunet_1, nrrd, meta_image, folders, table)}


def preprocessed(bundle: Path, parse: Callable[..., object], cache: Path) -> list[bytes]:
    """The cached cases of a bundle, in the order of its folds."""
    parser = parse(bundle, "train", cache_dir=str(cache), num_workers=0, device="cpu", amp=False)
    cases = parser.get_parsed_content("cases")
    return [path.read_bytes() for path in parser.get_parsed_content("cache").fill(cases[0] + cases[1])]


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory, parse: Callable[..., object]) -> tuple[Path, list[bytes]]:
    """A dataset of two channels, turned and with labels that do not count up, planned; and its cached cases."""
    root = tmp_path_factory.mktemp("decathlon")
    write_task(root / "data" / "Task", TINY_PLAN)
    shutil.rmtree(root / "data" / "Task" / "imagesTs")
    described = json.loads((root / "data" / "Task" / "dataset.json").read_text())
    (root / "data" / "Task" / "dataset.json").write_text(json.dumps({**described, "test": []}))
    planned(root, Layout())
    return root, preprocessed(root / "bundles" / "Task" / "3d_fullres", parse, root / "cache")


def planned(root: Path, layout: Layout) -> plan.Plan:
    """Plans root/data/Task and writes its bundles, as the command does."""
    words = [f"--{k}={getattr(layout, k)}" for k in ("images", "labels", "labels_are", "channels", "table")]
    given = [word for word in words if not word.endswith("=")]
    bundles = ["--bundles", str(root / "bundles"), "--num_processes", "1"]
    assert main([str(root / "data" / "Task"), *bundles, *given]) == 0
    return saved.load_plan(root / "bundles" / "Task")


@pytest.mark.parametrize("write", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_plan_and_the_same_bits(write, decathlon, tmp_path, parse) -> None:
    source, expected = decathlon
    layout = write(source / "data" / "Task", tmp_path / "data" / "Task")
    found = planned(tmp_path, layout)
    same = replace(saved.load_plan(source / "bundles" / "Task"), formats=found.formats)
    assert found == same
    bundle = tmp_path / "bundles" / "Task" / "3d_fullres"
    assert preprocessed(bundle, parse, tmp_path / "cache") == expected
    described = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert ("SimpleITK" in described["required_packages_version"]) == (found.formats != ("NIfTI",))


@pytest.mark.parametrize("write", [nnunet_raw, nrrd, folders], ids=["nnunet_raw", "nrrd", "folders"])
def test_the_segmentation_has_the_name_and_grid_of_its_case(write, decathlon, tmp_path, parse) -> None:
    """Of the cases of a fold, as `evaluating` writes them: the label itself, through the preprocessing and back."""
    source, _ = decathlon
    layout = write(source / "data" / "Task", tmp_path / "data" / "Task")
    planned(tmp_path, layout)
    grids = {}
    for root in (source, tmp_path):
        bundle = root / "bundles" / "Task" / "3d_fullres"
        parser = parse(
            bundle, "inference", dataset_dir=str(root), output_dir=str(tmp_path / root.name), device="cpu", amp=False
        )
        train = parse(bundle, "train", fold=0)
        case = train.get_parsed_content("cases")[1][0]
        data = parser.get_parsed_content("preprocessing")({"name": case["name"], "image": case["image"]})
        data["pred"] = (data["image"][:1] * 0).repeat(3, 1, 1, 1) + np.float32(0)
        data["pred"][1] = 1
        parser.get_parsed_content("postprocessing")(data)
        [written] = sorted(p for p in (tmp_path / root.name).iterdir() if p.suffix != ".json")
        assert formats.case_name(written) == case["name"]
        grids[root] = images.read_volume(written)
    np.testing.assert_array_equal(grids[source].array, grids[tmp_path].array)
    np.testing.assert_allclose(grids[source].affine, grids[tmp_path].affine, atol=1e-5)


def test_the_flags_are_remembered(tmp_path, capsys) -> None:
    tiny = write_tiny(tmp_path / "data" / "mine")
    layout = folders(tiny.folder, tmp_path / "other" / "mine")
    task = tmp_path / "bundles" / "mine"
    words = ["--images", layout.images, "--labels", "masks", "--labels_are", "rest,a,b", "--group_by", r"\d"]
    plain = [str(tmp_path / "other" / "mine"), "--bundles", str(tmp_path / "bundles"), "--num_processes", "1"]
    assert main([*plain, *words]) == 0
    said = capsys.readouterr().out
    assert "case_0: c0/case_0_image.nii.gz with masks/case_0_mask.nii.gz" in said
    assert "classes: 0 rest, 1 a, 2 b" in said
    first = saved.load_plan(task)
    assert main(plain) == 0
    assert "reused" in capsys.readouterr().out
    assert saved.load_plan(task) == first
    assert layouts.read(task).found == ((0, "rest"), (1, "a"), (2, "b"))
    label = tiny.folder.parent.parent / "other" / "mine" / "masks" / "case_1_mask.nii.gz"
    tiny.write(label, tiny.read(label) + (tiny.read(label) == 2))
    assert main(plain) == 1
    err = capsys.readouterr().err
    assert "case_1: the label has the undeclared value 3. The classes were found when" in err
    assert f"Plan with --images {layout.images} --labels masks again" in err
    assert "dataset.json" not in err
    words[words.index("rest,a,b")] = "rest,a,b,c"
    assert main([*plain, *words, "--force"]) == 0
    assert "3 c" in capsys.readouterr().out
    (task / layouts.RECORD).write_text("{")
    assert main(plain) == 1
    assert "layout.json is damaged" in capsys.readouterr().err


# nnU-Net.


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder of nnU-Net with five cases of one channel."""
    write_tiny(tmp_path / "source")
    nnunet_raw(tmp_path / "source", tmp_path / "Dataset001_Tiny")
    return tmp_path / "Dataset001_Tiny"


def describe(folder: Path, **fields: object) -> None:
    """Changes fields of dataset.json."""
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_nnunet_s_test_images_and_own_paths(raw) -> None:
    (raw / "imagesTs").mkdir()
    shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", raw / "imagesTs" / "new_0000.nii.gz")
    assert [case.name for case in layouts.load(raw, Layout()).test] == ["new"]
    section = {n: {"images": [f"imagesTr/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in NAMES[1:]}
    describe(raw, dataset=section)
    assert [case.name for case in layouts.load(raw, Layout()).training] == NAMES[1:]


def test_a_bundle_finds_nnunet_s_test_images(raw) -> None:
    (raw / "imagesTs").mkdir()
    for i in range(2):
        shutil.copy(raw / "imagesTr" / "case_0_0000.nii.gz", raw / "imagesTs" / f"new_000{i}.nii.gz")
    assert images_to_predict(raw, channels=2) == [
        {"name": "new", "image": [str(raw / "imagesTs" / f"new_000{i}.nii.gz") for i in range(2)]}
    ]


def test_nnunet_s_folds_are_the_plan_s(raw) -> None:
    folds = [{"train": NAMES[2:], "val": NAMES[:2]}, {"train": NAMES[:2], "val": NAMES[2:]}]
    (raw / "splits_final.json").write_text(json.dumps(folds))
    assert main([str(raw), "--bundles", str(raw.parent / "bundles"), "--num_processes", "1"]) == 0
    assert saved.load_plan(raw.parent / "bundles" / raw.name).folds == (tuple(NAMES[:2]), tuple(NAMES[2:]))


def test_ignore_is_no_class(raw) -> None:
    describe(raw, labels={"background": 0, "a": 1, "ignore": 2})
    dataset = layouts.load(raw, Layout())
    assert (dataset.labels, dataset.ignore) == (((0, "background"), (1, "a")), 2)


def _rename(folder: Path, name: str, new: str) -> None:
    (folder / name).rename(folder / new)


FAULTS_OF_NNUNET = {
    "regions": (lambda f: describe(f, labels={"background": 0, "whole": [1, 2]}), "regions, classes of several values"),
    "no labels": (lambda f: describe(f, labels={}), '"labels" is missing'),
    "labels of text": (lambda f: describe(f, labels={"background": "0"}), "must map names to whole numbers"),
    "no background": (lambda f: describe(f, labels={"a": 1}), "must hold 0"),
    "channels": (lambda f: describe(f, channel_names={"1": "MRI"}), '"channel_names" must number'),
    "more channels": (lambda f: describe(f, channel_names={"0": "a", "1": "b"}), "case_0 has the channels 0000, and"),
    "file_ending": (
        lambda f: describe(f, file_ending=".nrrd"),
        r"imagesTr has no file that ends in .nrrd.*5 in .nii.gz",
    ),
    "a list as a name": (lambda f: describe(f, labels={"0": "background", "1": ["a"]}), "regions|must map names"),
    "an object as a name": (lambda f: describe(f, labels={"0": "background", "1": {}}), "must map names to whole"),
    "a name twice": (lambda f: describe(f, labels={"0": "a", "1": "a"}), "a name more than once"),
    "a channel without a name": (lambda f: describe(f, channel_names={"0": ["CT"]}), "channel 0 has no name"),
    "a case with /": (lambda f: describe(f, dataset={"a/b": {"images": ["x"], "label": "y"}}), "'a/b' is no name"),
    "NUL in a path": (lambda f: describe(f, dataset={"a": {"images": ["x\0"], "label": "y"}}), "is no path"),
    "two labels": (
        lambda f: shutil.copy(f / "labelsTr/case_0.nii.gz", f / "labelsTr/case_0.nii") and describe(f, file_ending=""),
        "labelsTr has case_0.nii and case_0.nii.gz for case_0",
    ),
    "no number": (lambda f: _rename(f, "imagesTr/case_0_0000.nii.gz", "imagesTr/x.nii.gz"), "x_0000"),
    "no label": (lambda f: (f / "labelsTr/case_0.nii.gz").unlink(), "1 images of imagesTr have no label.*case_0"),
    "no image": (lambda f: (f / "imagesTr/case_1_0000.nii.gz").unlink(), "1 labels of labelsTr have no image.*case_1"),
    "section": (lambda f: describe(f, dataset={"a": {"images": "x"}}), 'a must have "images"'),
    "empty section": (lambda f: describe(f, dataset={}), '"dataset" must map cases'),
    "section of channels": (lambda f: describe(f, dataset={"a": {"images": ["x", "y"], "label": "z"}}), "has 2 images"),
    "splits": (lambda f: (f / "splits_final.json").write_text('[{"val": ["case_0"]}]'), "case_1, case_2"),
    "no splits": (lambda f: (f / "splits_final.json").write_text("[1]"), "splits_final.json is no list"),
    "name": (lambda f: describe(f, labels={"background": 0, "a\nb": 1, "c": 2}), "control characters"),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS_OF_NNUNET.values(), ids=FAULTS_OF_NNUNET)
def test_faults_of_nnunet_folders(damage, message, raw) -> None:
    damage(raw)
    with pytest.raises(DatasetError, match=message):
        layouts.load(raw, Layout())


# Folders and tables.


@pytest.fixture
def pairs(tmp_path: Path) -> Tiny:
    """A folder images and a folder labels with five cases."""
    tiny = write_tiny(tmp_path / "mine")
    for old, new in (("imagesTr", "images"), ("labelsTr", "labels")):
        (tiny.folder / old).rename(tiny.folder / new)
    (tiny.folder / "dataset.json").unlink()
    return tiny


def test_channels_by_numbers_in_one_folder(pairs) -> None:
    for name in NAMES:
        image = pairs.folder / "images" / f"{name}.nii.gz"
        shutil.copy(image, image.with_name(f"{name}_0001.nii.gz"))
        image.rename(image.with_name(f"{name}_0000.nii.gz"))
    found = layouts.load(pairs.folder, FOLDERS)
    assert found.modalities == ("images 0", "images 1")
    assert found.training[0].images == ("images/case_0_0000.nii.gz", "images/case_0_0001.nii.gz")
    assert facts_of(found).cases[0].shape == (12, 10, 8)
    (pairs.folder / "images" / "case_1_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"case_1 has case_1_0000.nii.gz, other cases have 2 files of images"):
        layouts.load(pairs.folder, FOLDERS)


def test_images_and_labels_in_one_folder(pairs) -> None:
    for name in NAMES:
        os.renames(pairs.folder / "images" / f"{name}.nii.gz", pairs.folder / "all" / f"{name}_image.nii.gz")
        os.renames(pairs.folder / "labels" / f"{name}.nii.gz", pairs.folder / "all" / f"{name}_label.nii.gz")
    found = layouts.load(pairs.folder, Layout(images="all", labels="all"))
    assert [case.name for case in found.training] == NAMES


def _mask(folder: Path, mode: str, value: object) -> None:
    Image.new(mode, (12, 10), value).save(folder / "labels" / "case_0.png")
    (folder / "labels" / "case_0.nii.gz").unlink()


FAULTS_OF_FOLDERS = {
    "one flag": (lambda f: None, {"labels": ""}, "belong together"),
    "no folder": (lambda f: None, {"images": "none"}, "none is no folder"),
    "one folder": (lambda f: None, {"images": "labels"}, "no name in labels says image and none in labels says label"),
    "channels of some": (
        lambda f: (
            [shutil.copy(f / "images/case_0.nii.gz", f / f"images/case_0_000{i}.nii.gz") for i in (0, 1)]
            and (f / "images/case_0.nii.gz").unlink()
        ),
        {},
        "no label",
    ),
    "two labels": (
        lambda f: shutil.copy(f / "labels/case_0.nii.gz", f / "labels/case_0.nii"),
        {},
        "case_0.nii and case_0.nii.gz are labels of case_0",
    ),
    "names in two cases": (
        lambda f: [shutil.copy(f / p / "case_0.nii.gz", f / p / "CASE_0.nii.gz") for p in ("images", "labels")],
        {},
        "CASE_0 and case_0 differ only in case",
    ),
    "bombs": (lambda f: None, {"group_by": "a{99999999999999999999}"}, "no regular expression"),
    "brackets": (lambda f: None, {"group_by": "[" * 60}, "no regular expression"),
    "deep": (lambda f: None, {"group_by": "(" * 100_000}, "no regular expression"),
    "some without a group": (lambda f: None, {"group_by": r"case_([01])?"}, "matches nothing in the names of case_2"),
    "empty": (lambda f: (f / "empty").mkdir(), {"images": "empty"}, "empty has no images"),
    "unmatched": (
        lambda f: _rename(f, "labels/case_0.nii.gz", "labels/y.nii.gz"),
        {},
        r"(?s)no label.*case_0.*no image.*y",
    ),
    "names": (
        lambda f: None,
        {"labels_are": "a,b"},
        "--labels_are names 2 classes; the labels hold the values 0, 1, 2",
    ),
    "colours": (lambda f: _mask(f, "RGB", (9, 0, 0)), {}, "case_0: the label is a picture of colours"),
    "unreadable": (
        lambda f: (f / "labels/case_1.nii.gz").write_bytes(b""),
        {},
        "case_1: labels/case_1.nii.gz cannot be",
    ),
    "an image": (lambda f: (f / "images/case_0.nii.gz").write_bytes(b""), {}, "case_0: images/case_0.nii.gz cannot be"),
    "group": (lambda f: None, {"group_by": "x"}, "matches nothing in the names of case_0"),
    "one group": (lambda f: None, {"group_by": "case"}, "puts all cases into one group"),
    "no expression": (lambda f: None, {"group_by": "("}, "no regular expression"),
}


@pytest.mark.parametrize(("damage", "flags", "message"), FAULTS_OF_FOLDERS.values(), ids=FAULTS_OF_FOLDERS)
def test_faults_of_folders(damage, flags, message, pairs) -> None:
    damage(pairs.folder)
    with pytest.raises(DatasetError, match=message):
        layouts.load(pairs.folder, replace(FOLDERS, **flags))


def test_a_folder_without_flags_names_them(pairs) -> None:
    with pytest.raises(DatasetError, match=r"--images DIR --labels DIR; there are images, imagesTs, labels"):
        layouts.load(pairs.folder, Layout())


def test_labels_of_zeros(pairs) -> None:
    for name in NAMES:
        path = pairs.folder / "labels" / f"{name}.nii.gz"
        pairs.write(path, 0 * pairs.read(path))
    with pytest.raises(DatasetError, match="the labels are 0 everywhere"):
        layouts.load(pairs.folder, FOLDERS)


def write_table(folder: Path, *rows: str) -> Layout:
    (folder / "cases.csv").write_text("\n".join(rows))
    return Layout(table="cases.csv")


def test_a_table_with_folds_patients_and_test_images(pairs) -> None:
    lines = [f"{n},images/{n}.nii.gz,labels/{n}.nii.gz,{i % 2},p{i // 2}" for i, n in enumerate(NAMES)]
    write_table(pairs.folder, "case,t1,label,fold,patient", *lines, "t,imagesTs/test_0.nii.gz,,,p9")
    found = layouts.load(pairs.folder, Layout(table="cases.csv", group_by="patient"))
    assert [c.fold for c in found.training] == [0, 1, 0, 1, 0]
    assert [c.group for c in found.training] == ["p0", "p0", "p1", "p1", "p2"]
    assert [c.name for c in found.test] == ["t"]
    by_name = layouts.load(pairs.folder, Layout(table="cases.csv", group_by=r"\d"))
    assert [c.group for c in by_name.training] == list("01234")


def folded(folds: str) -> list[str]:
    """Rows of all cases, with a fold each."""
    return [f"{n},images/{n}.nii.gz,labels/{n}.nii.gz,{k}" for n, k in zip(NAMES, folds, strict=True)]


def renamed(*names: str) -> list[str]:
    """Rows of the first cases, by other names."""
    return [f"{n},images/case_{i}.nii.gz,labels/case_{i}.nii.gz" for i, n in enumerate(names)]


FAULTS_OF_TABLES = {
    "no rows": (["case,t1,label"], "has no rows"),
    "no columns": (["name,mask", "a,b"], r"(?s)no column 'case'.*no column 'label'.*no column names images"),
    "no case": (["case,t1,label", ",images/case_0.nii.gz,labels/case_0.nii.gz"], "a row has no case"),
    "no image": (
        ["case,t1,label", "a,images/case_0.nii.gz,x.nii", "b,,x.nii"],
        "b: there is no image in the column t1",
    ),
    "fold": (["case,t1,label,fold", "a,images/case_0.nii.gz,x.nii,one"], "the fold 'one' is no number"),
    "a gap": (
        ["case,t1,label,fold", *folded("00322")],
        "the folds are 0, 2, 3",
    ),
    "one fold": (
        ["case,t1,label,fold", *folded("00000")],
        "only one fold",
    ),
    "a superscript fold": (["case,t1,label,fold", "a,images/case_0.nii.gz,x.nii,²"], "the fold '²' is no number"),
    "a fold of 5,000 digits": (
        ["case,t1,label,fold", f"a,images/case_0.nii.gz,x.nii,{'9' * 5000}"],
        "the fold '9{60}...' is no number",
    ),
    "some folds": (
        ["case,t1,label,fold", *folded("010  ")],
        "2 cases have no fold: case_3, case_4",
    ),
    "an empty cell in the first row": (
        ["case,t1,t2,label", "a,images/case_0.nii.gz,,x.nii", "b,images/case_1.nii.gz,images/case_2.nii.gz,x.nii"],
        "a: there is no image in the column t2",
    ),
    "a cell that is no image": (
        ["case,t1,label", "a,images/case_0.nii.gz,x.nii", "b,see below,x.nii"],
        "b: 'see below' in the column t1 is no image",
    ),
    "a long field": (["case,t1,label", f"a,{'b' * 200_000},x.nii"], "field larger than field limit"),
    "a column twice": (["case,t1,t1,label", "a,b,c,d"], "2 columns are called 't1'"),
    "a comma in a path": (["case,t1,label", "a,images/case,0.nii.gz,x.nii"], "row of 'a' has 4 cells, and there are 3"),
    "an open quotation mark": (["case,t1,label", 'a,"b,c'], "unexpected end of data"),
    "names in two cases": (["case,t1,label", *renamed("b", "B")], "b and B differ only in case"),
    "names in two Unicode forms": (["case,t1,label", *renamed("\u00e9", "e\u0301")], "Unicode form of their letters"),
    "an image as its own label": (
        ["case,t1,label", *(f"{n},labels/{n}.nii.gz,labels/{n}.nii.gz" for n in NAMES)],
        "labels/case_0.nii.gz is an image, of case_0, and a label, of case_0",
    ),
    "an image of two cases": (
        ["case,t1,label", *(f"{n},images/case_0.nii.gz,labels/{n}.nii.gz" for n in NAMES)],
        "images/case_0.nii.gz is the image of case_0 and of case_1",
    ),
    "a file as two channels": (
        ["case,t1,t2,label", *(f"{n},images/{n}.nii.gz,images/{n}.nii.gz,labels/{n}.nii.gz" for n in NAMES)],
        "case_0: one file is two of its channels",
    ),
    "twice": (["case,t1,label", *["a,images/case_0.nii.gz,labels/case_0.nii.gz"] * 2], "a: more than one image"),
    "a name": (["case,t1,label", "a/b,images/case_0.nii.gz,labels/case_0.nii.gz"], "'a/b' is no name of a case"),
    "few": (["case,t1,label", "a,images/case_0.nii.gz,labels/case_0.nii.gz"], "1 training cases"),
}


@pytest.mark.parametrize(("rows", "message"), FAULTS_OF_TABLES.values(), ids=FAULTS_OF_TABLES)
def test_faults_of_tables(rows, message, pairs) -> None:
    with pytest.raises(DatasetError, match=message):
        layouts.load(pairs.folder, write_table(pairs.folder, *rows))


def test_cases_that_share_a_label_are_told(pairs, capsys) -> None:
    """Two images of one patient may; in two folds they make scores too good."""
    lines = [f"{n},images/{n}.nii.gz,labels/case_{i // 2}.nii.gz,p{i // 2}" for i, n in enumerate(NAMES)]
    words = ["plan", str(pairs.folder), "--bundles", str(pairs.folder / "b"), "--table", "cases.csv"]
    words += ["--num_processes", "1"]
    write_table(pairs.folder, "case,t1,label,patient", *lines)
    assert main(words) == 0
    assert re.search(r"Warning: .*/case_0\.nii\.gz is the label of case_0 and of case_1\. If", capsys.readouterr().out)
    assert main([*words, "--group_by", "patient", "--force"]) == 0
    assert "is the label of" not in capsys.readouterr().out


def test_an_empty_group_is_told(pairs) -> None:
    lines = [f"{n},images/{n}.nii.gz,labels/{n}.nii.gz,{'p' * i}" for i, n in enumerate(NAMES)]
    layout = replace(write_table(pairs.folder, "case,t1,label,patient", *lines), group_by="patient")
    with pytest.raises(DatasetError, match="case_0: the column patient is empty"):
        layouts.load(pairs.folder, layout)


def named(pairs: Tiny, kind: str, name: str) -> Layout:
    """A layout in which all images are in one folder, or one column, of a name."""
    if kind == "table":
        return write_table(pairs.folder, f"case,{name},label", *renamed(*NAMES))
    (pairs.folder / "images").rename(pairs.folder / name)
    return replace(FOLDERS, images=name)


@pytest.mark.parametrize("kind", ["table", "folders"])
@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        pytest.param("ct", 1, ("ct",), id="CT"),
        pytest.param("flair", 1, ("flair",), id="MR"),
        pytest.param("ct", 2, ("ct 0", "ct 1"), id="two channels"),
    ],
)
def test_a_single_folder_or_column_names_its_channel(kind, name, channels, expected, pairs) -> None:
    """So that the rules for CT apply where they should."""
    for case in NAMES if channels > 1 else ():
        path = pairs.folder / "images" / f"{case}.nii.gz"
        pairs.write(path, np.stack([pairs.read(path)] * channels, axis=-1))
    found = layouts.load(pairs.folder, named(pairs, kind, name))
    assert found.modalities == expected
    assert [statistics is not None for statistics in facts_of(found).intensities] == ["ct" in name] * channels


def test_no_table(pairs) -> None:
    with pytest.raises(DatasetError, match=r"cases.csv: cannot be read.*--table FILE.csv"):
        layouts.load(pairs.folder, Layout(table="cases.csv"))


# Groups.


def test_the_frames_of_a_patient(tmp_path, capsys) -> None:
    tiny = write_tiny(tmp_path / "Task27")
    names = ["patient1_frame01", "patient1_frame12", "patient2_frame01", "patient2_frame12", "patient3_frame01"]
    for old, new in zip(NAMES, names, strict=True):
        for part in ("imagesTr", "labelsTr"):
            tiny.image(old, part).rename(tiny.image(new, part))
    tiny.describe(training=[{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names])
    words = [str(tiny.folder), "--bundles", str(tmp_path / "bundles"), "--num_processes", "1"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert (
        "Warning: Judging by their names, patient1_frame01 and patient1_frame12 belong to one patient, as in 2 groups"
        in said
    )
    flag = said.partition("--group_by '")[2].partition("'")[0]
    assert main([*words, "--group_by", flag, "--force"]) == 0
    assert "Warning: By" not in capsys.readouterr().out
    found = saved.load_plan(tmp_path / "bundles" / "Task27")
    assert sorted(found.folds) == [tuple(names[:2]), tuple(names[2:4]), tuple(names[4:])]
    assert "3 groups stay in one fold" in next(d.because for d in found.decisions if d.name == "folds")


def test_no_suspicion_where_there_is_none(tiny) -> None:
    dataset = datasets.load(tiny.folder)
    assert layouts.suspicion(dataset) == ""
    assert layouts.same_patient([f"a1_{i}" for i in range(40)]) == []


def test_groups_are_whole_and_classes_even() -> None:
    groups = {f"c{i:02}": f"g{i // 3}" for i in range(30)}
    classes = {name: [group in ("g0", "g1", "g2", "g3", "g4")] for name, group in groups.items()}
    found = grouped_folds(groups, classes)
    assert sorted(n for fold in found for n in fold) == sorted(groups)
    assert all(len({groups[n] for n in fold}) == 2 for fold in found)
    assert [sum(classes[n][0] for n in fold) for fold in found] == [3] * 5
    assert found == grouped_folds(dict(reversed(groups.items())), classes)
    with pytest.raises(PlanError, match="at least two groups"):
        grouped_folds(dict.fromkeys(groups, "one"), classes)
    assert len(grouped_folds({"a": "1", "b": "2", "c": "2"}, {n: [True] for n in "abc"})) == 2


# What is said where there is no dataset.json.


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        pytest.param(FOLDERS, "the image has 2 channels, case_0 has 1 (images). Correct either.", id="found"),
        pytest.param(
            replace(FOLDERS, channels="T1"),
            "the image has 2 channels, --channels names 1 (T1). Correct either.",
            id="flag",
        ),
    ],
)
def test_what_has_other_channels(layout, said, pairs) -> None:
    path = pairs.folder / "images" / "case_3.nii.gz"
    pairs.write(path, np.stack([pairs.read(path)] * 2, axis=-1))
    with pytest.raises(DatasetError, match="case_3") as refused:
        facts_of(layouts.load(pairs.folder, layout))
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000], ids=["long name", "long path"])
def test_flags_in_a_folder_that_cannot_be(name, tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"cannot be read \(File name too long\)") as refused:
        layouts.read(tmp_path / name)
    assert len(str(refused.value)) < 300


def test_a_mask_that_was_resized_with_interpolation_is_none(tmp_path, capsys) -> None:
    """Its blends would be planned as a hundred classes."""
    from PIL import ImageDraw

    for part in ("images", "masks"):
        (tmp_path / "photos" / part).mkdir(parents=True)
    for k in range(3):
        mask = Image.new("L", (200, 200))
        ImageDraw.Draw(mask).ellipse((20 + k, 30, 150, 180), fill=255)
        mask.resize((60, 60), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "masks" / f"a{k}.png")
        noise = np.random.default_rng(k).integers(1, 255, (60, 60)).astype(np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / "images" / f"a{k}.png")
    command = ["plan", str(tmp_path / "photos"), "--images", "images", "--labels", "masks"]
    assert main([*command, "--bundles", str(tmp_path / "bundles")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert all(
        "a0: the label is no mask of classes: " in line.replace("a1", "a0").replace("a2", "a0") for line in lines
    )
    assert all(line.endswith("name them all with --labels_are.") for line in lines)
    values = sorted({*np.unique([np.asarray(Image.open(p)) for p in (tmp_path / "photos" / "masks").iterdir()])})
    names = ",".join(f"class {value}" for value in values)
    assert main([*command, "--labels_are", names, "--bundles", str(tmp_path / "bundles")]) == 0


def test_pictures_of_nnunet_have_their_channels_in_one_file(tmp_path) -> None:
    folder = tmp_path / "Dataset120_Roads"
    for part, end in (("imagesTr", "_0000"), ("labelsTr", ""), ("imagesTs", "_0000")):
        (folder / part).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng(k).integers(1, 255, (20, 30, 3)).astype(np.uint8)
            pixels = (pixels[..., 0] > 99).astype(np.uint8) if part == "labelsTr" else pixels
            name = f"{'new' if part == 'imagesTs' else 'img'}_{k}{end}.png"
            Image.fromarray(pixels).save(folder / part / name)
    description = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "road": 1}}
    (folder / "dataset.json").write_text(json.dumps({**description, "numTraining": 3, "file_ending": ".png"}))
    dataset = layouts.load(folder, Layout())
    assert [(c.name, c.images, c.label) for c in dataset.training[:1]] == [
        ("img_0", ("imagesTr/img_0_0000.png",), "labelsTr/img_0.png")
    ]
    assert [c.name for c in dataset.test] == ["new_0", "new_1", "new_2"]
    volumes, faults = read_case(dataset, dataset.training[0])
    assert (faults, volumes.image.grid.channels) == ([], 3)


@pytest.mark.parametrize(
    ("image", "label"),
    [("a.nrrd", "a.seg.nrrd"), ("a.ome.tif", "a.png"), ("a.NII.GZ", "a.nii"), ("a.tif", "a.ome.tif")],
)
def test_names_that_programs_give_match(image, label, tmp_path) -> None:
    for part, name in (("images", image), ("masks", label)):
        (tmp_path / part).mkdir()
        for k in "ab":
            (tmp_path / part / name.replace("a.", f"{k}.", 1)).touch()
    found = layouts.load(
        tmp_path,
        Layout(
            images="images", labels="masks", labels_are="rest,organ", channels="x", found=((0, "rest"), (1, "organ"))
        ),
    )
    assert [(c.name, Path(c.label).name) for c in found.training] == [("a", label), ("b", label.replace("a.", "b.", 1))]
