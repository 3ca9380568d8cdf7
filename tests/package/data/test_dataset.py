"""dataset.json, where a dataset is found, and what is read from a file."""

import sys
import types
from pathlib import Path

import nibabel
import numpy as np
import pytest

from autoplan.base.errors import DatasetError
from autoplan.data import cases, images, labels
from autoplan.data import decathlon as datasets


def test_load_reads_what_is_there(tiny) -> None:
    tiny.describe(labels={"5": "five", "0": "background", "1": "one"})
    dataset = datasets.load(tiny.folder)
    assert dataset.name == "Task90_Tiny", "the folder's name, not that in dataset.json"
    assert dataset.modalities == ("MRI",)
    assert dataset.labels == ((0, "background"), (1, "one"), (5, "five"))
    assert [c.name for c in dataset.training] == [f"case_{i}" for i in range(5)]
    assert dataset.training[0].images == ("imagesTr/case_0.nii.gz",)
    assert dataset.test == (datasets.Case("test_0", ("imagesTs/test_0.nii.gz",)),)


def test_channels_are_ordered_by_number(make_tiny) -> None:
    tiny = make_tiny(modalities=("a", "b"))
    tiny.describe(modality={"1": "second", "0": "first"})
    assert datasets.load(tiny.folder).modalities == ("first", "second")


def test_test_images_may_be_missing_or_objects(tiny) -> None:
    tiny.describe(test=[{"image": "./imagesTs/test_0.nii.gz"}])
    assert datasets.load(tiny.folder).test[0].name == "test_0"
    tiny.describe(test=None)
    assert datasets.load(tiny.folder).test == ()


SAME = {"image": "labelsTr/case_0.nii.gz", "label": "./labelsTr/case_0.nii.gz"}
OTHER = {"image": "imagesTr/case_1.nii.gz", "label": "labelsTr/case_1.nii.gz"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modality": None}, '"modality" is missing'),
        ({"modality": ["MRI"]}, '"modality" is missing or no object'),
        ({"modality": {"0": "MRI", "2": "T2"}}, "must number the channels"),
        ({"labels": None}, '"labels" is missing'),
        ({"labels": {"background": 0, "a": 1}}, '"labels" must map numbers to names'),
        ({"labels": {"1": "a", "2": "b"}}, "must hold 0, the background"),
        ({"labels": {"0": "background"}}, "at least one other class"),
        ({"labels": {"0": "background", "1": "a", "01": "b"}}, '"labels" has a number twice'),
        ({"labels": {"0": "background", "1": "a", "2": "a "}}, "\"labels\" has the name 'a' more than once"),
        ({"labels": {"0": "background", "1": ""}}, '"labels" holds an empty name'),
        ({"modality": {"0": "  "}}, '"modality" holds an empty name'),
        ({"modality": {"0": "M\nRI"}}, "line breaks or control characters, 'M\\nRI'"),
        ({"labels": {"0": "background", "1": "a\0"}}, "line breaks or control characters"),
        ({"labels": {"0": "background", "1": "a\u2028b"}}, "line breaks or control characters"),
        ({"labels": {"0": "background", "1": "a" * 10_000}}, "a name of 10000 characters"),
        ({"labels": {"0": "background", "65536": "a"}}, "stored with values of at most 65535"),
        ({"labels": {str(i): f"c{i}" for i in range(256)}}, "256 classes with the background"),
        ({"test": ["x" * 5000 + ".nii.gz"]}, "or more than 1000 characters"),
        ({"test": ["x\0.nii.gz"]}, "line breaks or control characters"),
        ({"training": None}, '"training" must be a list'),
        ({"training": ["./imagesTr/case_0.nii.gz"]}, '"training" must be a list of'),
        ({"training": []}, "no training case"),
        ({"test": "imagesTs"}, '"test" must be a list'),
        ({"test": [3]}, '"test" must be a list'),
        ({"test": ["imagesTs/test_0.npy"]}, "is neither an image"),
        ({"test": ["imagesTr/case_0.nii.gz"]}, "case_0: more than one image has this name"),
        ({"test": ["imagesTs/CASE_0.nii.gz"]}, "case_0 and CASE_0 differ only in case"),
        ({"training": [SAME, OTHER], "test": []}, "labelsTr/case_0.nii.gz is an image, of case_0, and a label, of"),
        ({"test": ["/etc/test_0.nii.gz"]}, "leaves the dataset's folder"),
        ({"test": ["imagesTs/../../test_0.nii.gz"]}, "leaves the dataset's folder"),
        ({"test": ["..\\test_0.nii.gz"]}, "leaves the dataset's folder"),
        ({"test": ["C:test_0.nii.gz"]}, "leaves the dataset's folder"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_malformed_descriptions(tiny, fields, message) -> None:
    tiny.describe(**fields)
    with pytest.raises(DatasetError, match=r"Task90_Tiny, dataset\.json: ") as error:
        datasets.load(tiny.folder)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "name",
    ["$import this", "$import", "@x", "%y#z", "::", "$\\frac$", "Größe", "a" * 200, "名前", "{0}", "<b>"],
)
def test_names_that_only_look_odd_are_taken(tiny, name) -> None:
    tiny.describe(labels={"0": "background", "1": name}, modality={"0": name})
    dataset = datasets.load(tiny.folder)
    assert (dataset.labels[1], dataset.modalities) == ((1, name), (name,))


def test_as_many_classes_as_can_be_stored(tiny) -> None:
    tiny.describe(labels={**{str(i): f"c{i}" for i in range(254)}, "65535": "last"})
    assert len(datasets.load(tiny.folder).labels) == 255


def test_all_faults_of_a_description_are_reported(tiny) -> None:
    tiny.describe(modality=None, labels={}, test=["../x.nii.gz"])
    with pytest.raises(DatasetError) as error:
        datasets.load(tiny.folder)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "cannot be read as JSON", id="no JSON"),
        pytest.param("[]", "holds no JSON object", id="no object"),
        pytest.param("[" * 100_000, "nested too deeply", id="nested"),
        pytest.param('{"name": "\\ud800"}', "surrogates not allowed", id="half a character"),
        pytest.param('{"name": "\0"}', "Invalid control character", id="a NUL byte"),
    ],
)
def test_no_json(tiny, text, message) -> None:
    (tiny.folder / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        datasets.load(tiny.folder)


def test_a_folder_that_cannot_name_bundles(tiny) -> None:
    renamed = tiny.folder.rename(tiny.folder.with_name("my task"))
    with pytest.raises(DatasetError, match="'my task', names the bundles"):
        datasets.load(renamed)


def test_locate_takes_a_folder_or_a_name(tiny, tmp_path, monkeypatch) -> None:
    assert datasets.locate(str(tiny.folder), Path("nowhere")) == tiny.folder
    assert datasets.locate(tiny.folder.name, tiny.folder.parent) == tiny.folder
    assert datasets.locate(str(tmp_path), tmp_path) == tmp_path  # its layout is said by flags, or refused by `layouts`
    with pytest.raises(DatasetError, match="neither a folder"):
        datasets.locate("Hippocampus", tmp_path)
    for name in ("x" * 5000, "x\0y"):
        with pytest.raises(DatasetError, match="neither a folder") as error:
            datasets.locate(name, tmp_path)
        assert len(str(error.value)) < 400


@pytest.fixture
def decathlon(monkeypatch) -> types.SimpleNamespace:
    """MONAI's part of a download, replaced: `fails` makes it fail."""
    state = types.SimpleNamespace(fails=False)

    def download_url(url, filepath, *, hash_val, hash_type) -> None:
        if state.fails:
            raise OSError("no route\nto host")
        Path(filepath).write_text(url + hash_val + hash_type)

    def extractall(filepath, output_dir) -> None:
        (Path(output_dir) / "Task02_Heart").mkdir()
        (Path(output_dir) / "Task02_Heart" / "dataset.json").write_text(Path(filepath).read_text())

    resource = types.SimpleNamespace(resource={"Task02_Heart": "address "}, md5={"Task02_Heart": "sum "})
    utils = {"download_url": download_url, "extractall": extractall}
    for name, content in (("datasets", {"DecathlonDataset": resource}), ("utils", utils)):
        module = types.ModuleType(f"monai.apps.{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for package in ("monai", "monai.apps"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    return state


def test_a_task_of_the_decathlon_is_downloaded(decathlon, tmp_path) -> None:
    folder = datasets.locate("Task02_Heart", tmp_path / "data")
    assert folder == tmp_path / "data" / "Task02_Heart"
    assert (folder / "dataset.json").read_text() == "address sum md5"
    assert [p.name for p in folder.parent.iterdir()] == ["Task02_Heart"]


def test_a_failed_download_leaves_nothing(decathlon, tmp_path) -> None:
    decathlon.fails = True
    with pytest.raises(DatasetError, match="no route to host"):
        datasets.locate("Task02_Heart", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DatasetError, match="no task of the Decathlon"):
        datasets.locate("Task77_Heart", tmp_path)


def test_affines_are_compared_in_mm() -> None:
    first = np.diag([1.0, 1.0, 1.0, 1.0])
    second = first.copy()
    second[0, 0] = 1.001
    assert images.corner_distance_mm((11, 5, 5), first, second) == pytest.approx(0.01)
    second[:3, 3] = (3, 4, 0)
    assert images.corner_distance_mm((1, 1, 1), first, second) == pytest.approx(5)


@pytest.mark.parametrize(
    ("shift", "faults"), [(0.09, 0), (0.11, 1)], ids=["within the tolerance", "beyond the tolerance"]
)
def test_affine_tolerance(tiny, shift, faults) -> None:
    path = tiny.image("case_1", "labelsTr")
    affine = nibabel.load(path).affine
    affine[1, 3] += shift
    tiny.write(path, tiny.read(path), affine)
    dataset = datasets.load(tiny.folder)
    assert len(cases.read_case(dataset, dataset.training[1])[1]) == faults


def test_labels_stored_as_floats(tiny) -> None:
    path = tiny.image("case_1", "labelsTr")
    tiny.write(path, tiny.read(path).astype(np.float32) + 5e-5)
    dataset = datasets.load(tiny.folder)
    volumes, faults = cases.read_case(dataset, dataset.training[1])
    assert not faults
    assert volumes.label is not None
    assert volumes.label.dtype.kind == "i"
    assert labels.count_values(volumes.label) == [(0, 960 - 27 - 18), (1, 27), (2, 18)]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("scaled", [False, True])
def test_files_are_read_as_nibabel_reads_them(tmp_path, kind, suffix, scaled) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = kind(array, np.diag([1, 2, 3, 1.0]))
    if scaled:
        image.header.set_slope_inter(0.5, 10)
    path = tmp_path / f"image{suffix}"
    nibabel.save(image, path)
    volume = images.read_volume(path)
    np.testing.assert_allclose(volume.array[..., 0], nibabel.load(path).get_fdata())
    np.testing.assert_array_equal(volume.affine, image.affine)
    assert volume.array.dtype == (np.float32 if scaled else np.int16)


def test_damage_near_the_end_of_a_compressed_file_is_noticed(tiny) -> None:
    path = tiny.image("case_1")
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(DatasetError, match="incorrect"):
        images.read_volume(path)


@pytest.mark.parametrize("value", [-1, 70000])
def test_values_far_off_are_counted(value) -> None:
    array = np.zeros((3, 3, 3), dtype=np.int32)
    array[0, 0, 0] = value
    assert sorted(labels.count_values(array)) == sorted([(0, 26), (value, 1)])
