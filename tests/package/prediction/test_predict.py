"""The command `predict`: what is predicted, what is skipped, what is not touched."""

import json
import shutil
import zipfile
from pathlib import Path

import dicoms
import pydicom
import pytest

from autoplan.__main__ import main
from autoplan.base import written
from autoplan.base.errors import AutoplanError, DatasetError, TemplateError
from autoplan.base.files import file_digest
from autoplan.data.facts import Case
from autoplan.prediction import predict as prediction


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A bundle with weights, as far as the command looks at it."""
    folder = tmp_path / "bundles" / "Task90_Tiny" / "best"
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text("first")
    write_weights(folder, "first")
    return folder


def write_weights(bundle: Path, content: str) -> None:
    with zipfile.ZipFile(bundle / "models" / "model.pt", "w") as file:
        file.writestr("data.pkl", content)


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii"):
        (folder / name).write_text(name)
    return [folder / "a.nii.gz", folder / "b.nii"]


@pytest.fixture
def runs(monkeypatch) -> list[list[str]]:
    """The names that each run of the bundle predicts; an image that holds "bad" fails."""
    found: list[list[str]] = []

    def run(command, folder):
        assert command[-2] == "--args_file"
        arguments = json.loads(Path(command[-1]).read_text())
        given = {k: eval(v[1:]) if str(v).startswith("$") else v for k, v in arguments.items()}
        output, names, status = Path(given["output_dir"]), [], 0
        assert given["skip_existing"] is True
        assert Path(given["dataset_dir"]).is_absolute()
        assert not (folder / "scripts").exists()
        for image in map(Path, json.loads(Path(given["images"]).read_text())):
            target = output / f"{prediction.case_name(image.name)}.nii.gz"
            if not target.exists():
                names.append(image.name)
                if "bad" not in image.read_text():
                    target.write_text(f"of {image.read_text()}")
                else:
                    status = 1
        found.append(names)
        return status

    monkeypatch.setattr(prediction, "run_printing", run)
    return found


def predict(bundle: Path, images: list[Path], output: Path, *, force: bool = False, **settings: str) -> int:
    folder = images[0].parent
    there = prediction.images_in(folder, bundle)
    return prediction.predict(bundle, folder, there, output, force=force, settings=settings)


def test_all_are_predicted_once(bundle, images, runs, tmp_path) -> None:
    assert predict(bundle, images, tmp_path / "out") == 2
    assert predict(bundle, images, tmp_path / "out") == 0
    assert runs == [["a.nii.gz", "b.nii"]]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]


CHANGES = {
    "a segmentation is missing": (lambda b, i, o: (o / "b.nii.gz").unlink(), {}, ["b.nii"]),
    "an image has changed": (lambda b, i, o: i[0].write_text("changed"), {}, ["a.nii.gz"]),
    "other weights": (lambda b, i, o: write_weights(b, "second"), {}, ["a.nii.gz", "b.nii"]),
    "other settings": (lambda b, i, o: None, {"device": "cpu"}, ["a.nii.gz", "b.nii"]),
}


@pytest.mark.parametrize(("change", "settings", "again"), CHANGES.values(), ids=CHANGES)
def test_what_is_not_as_it_was_is_predicted_again(change, settings, again, bundle, images, runs, tmp_path) -> None:
    predict(bundle, images, tmp_path / "out")
    change(bundle, images, tmp_path / "out")
    assert predict(bundle, images, tmp_path / "out", **settings) == len(again)
    assert runs[1:] == [again]


def other_settings(bundle: Path, _: list[Path]) -> dict[str, str]:
    return {"device": "cpu"}


def other_weights(bundle: Path, _: list[Path]) -> dict[str, str]:
    write_weights(bundle, "second")
    return {}


def other_images(_: Path, images: list[Path]) -> dict[str, str]:
    for path in images:
        path.write_text(f"another {path.name}")
    return {}


def nothing(*_: object) -> dict[str, str]:
    return {}


@pytest.mark.parametrize("file", ["a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("noted", [True, False], ids=["noted", "of an older version"])
@pytest.mark.parametrize("change", [other_settings, other_weights, other_images, nothing])
def test_what_a_person_corrected_stays(change, noted, file, bundle, images, runs, tmp_path) -> None:
    """It is named, and all else is predicted; --force overwrites it."""
    output, cases = tmp_path / "out", prediction.images_in(images[0].parent, bundle)
    predict(bundle, images, output)
    (output / "a.dcm").write_text("made beside")
    written.record(output, ["a.dcm"])
    (output / file).write_text("corrected")
    if not noted:
        (output / written.RECORD).unlink()
        written.record(output, {"a.nii.gz", "a.dcm", "b.nii.gz"} - {file})
    settings = change(bundle, images)
    done = predict(bundle, images, output, **settings)
    assert (output / file).read_text() == "corrected"
    is_told = [line.strip() for line in prediction.changed_by_hand(output, cases)]
    if change is nothing:
        assert (done, str(output / file) in is_told) == (0, noted)
    else:
        assert done == (1 if file == "a.nii.gz" else 2)
        assert str(output / file) in is_told
        assert "of another" in (output / "b.nii.gz").read_text() or change is not other_images
    assert str(output / "b.nii.gz") not in is_told
    predict(bundle, images, output, force=True, **settings)
    if file == "a.nii.gz" and (noted or change is not nothing):
        assert (output / file).read_text() == f"of {images[0].read_text()}"
        assert not prediction.changed_by_hand(output, cases)


def test_what_was_not_changed_is_made_again_with_all_that_belongs_to_it(bundle, images, runs, tmp_path) -> None:
    output = tmp_path / "out"
    predict(bundle, images, output)
    (output / "a.dcm").write_text("made beside")
    written.record(output, ["a.dcm"])
    assert predict(bundle, images, output, device="cpu") == 2
    assert not (output / "a.dcm").exists(), "of the segmentation before"
    assert not prediction.changed_by_hand(output, prediction.images_in(images[0].parent, bundle))


def test_images_of_another_folder_with_the_same_names(bundle, images, runs, tmp_path) -> None:
    predict(bundle, images, tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.nii.gz").write_text("another patient")
    with pytest.raises(AutoplanError, match=r"holds predictions of other images, such as a\.nii\.gz of .*images/a"):
        predict(bundle, [other / "a.nii.gz"], tmp_path / "out")
    assert (tmp_path / "out" / "a.nii.gz").read_text() == "of a.nii.gz"
    assert predict(bundle, [other / "a.nii.gz"], tmp_path / "out", force=True) == 1
    assert (tmp_path / "out" / "a.nii.gz").read_text() == "of another patient"
    assert predict(bundle, [other / "a.nii.gz"], tmp_path / "out") == 0, "now they are its own"


@pytest.mark.parametrize("change", ["an image more", "an image less"])
def test_the_same_folder_may_change(change, bundle, images, runs, tmp_path) -> None:
    predict(bundle, images, tmp_path / "out")
    if change == "an image more":
        (images[0].parent / "c.nii").write_text("c")
    else:
        images[0].unlink()
    assert predict(bundle, images, tmp_path / "out") == (change == "an image more")
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_two_folders_of_one_name_do_not_mix(bundle, runs, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", "Task90_Tiny", "--images"]
    for name, image in (("A", "a.nii"), ("B", "b.nii")):
        (tmp_path / name / "imgs").mkdir(parents=True)
        (tmp_path / name / "imgs" / image).write_text(name)
    assert main([*words, "A/imgs"]) == 0
    assert main([*words, "B/imgs"]) == 1
    error = capsys.readouterr().err
    assert f"predictions/imgs holds predictions of other images, such as a.nii.gz of {tmp_path}/A/imgs/a.nii." in error
    assert "--output DIR" in error
    assert "--force" in error
    assert [p.name for p in (tmp_path / "predictions/imgs").glob("*.nii.gz")] == ["a.nii.gz"]
    assert main([*words, "B/imgs", "--output", "predictions/b"]) == 0
    assert main([*words, "A/imgs"]) == 0


def test_an_output_that_is_a_file(bundle, images, runs, tmp_path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(AutoplanError, match=r"--output .*/out: .*/out is a file, not a folder"):
        predict(bundle, images, tmp_path / "out")
    assert runs == []
    assert (tmp_path / "out").read_text() == "mine"


def test_segmentations_of_unknown_origin_are_not_touched(bundle, images, runs, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").write_text("by hand")
    with pytest.raises(AutoplanError, match="1 segmentation of unknown origin, such as a"):
        predict(bundle, images, tmp_path / "out")
    assert (tmp_path / "out" / "a.nii.gz").read_text() == "by hand"
    assert predict(bundle, images, tmp_path / "out", force=True) == 2


@pytest.mark.parametrize("force", [False, True])
def test_images_are_never_overwritten(force, bundle, images, runs) -> None:
    before = {p: p.read_text() for p in images}
    with pytest.raises(DatasetError, match="holds the images themselves"):
        predict(bundle, images, images[0].parent, force=force)
    assert {p: p.read_text() for p in images} == before


def test_a_bad_image_is_named_and_tried_again(bundle, images, runs, tmp_path) -> None:
    images[0].write_text("bad")
    for _ in range(2):
        with pytest.raises(AutoplanError, match=r"1 of 2 images have no segmentation:\n.*a\.nii\.gz"):
            predict(bundle, images, tmp_path / "out")
    assert runs == [["a.nii.gz", "b.nii"], ["a.nii.gz"]]


def test_a_dicom_segmentation_that_is_missing_is_named(bundle, runs, tmp_path, monkeypatch) -> None:
    """The images have their segmentations, and the counts say so; so does the same command once more."""
    monkeypatch.setattr(prediction, "segmentation_name", lambda image, name: f"{name}.nii.gz")
    (bundle / "configs" / "inference.json").write_text('{"dicom_seg": false}')
    cases, output = [Case(name, (str(tmp_path / name),)) for name in "abc"], tmp_path / "out"
    for case in cases:
        (tmp_path / case.name).mkdir()

    def run(_, cases, __):
        for case in cases:
            (output / f"{case.name}.nii.gz").write_text("predicted")
            written.record(output, [f"{case.name}.nii.gz"])
        (output / "a.dcm").write_text("beside")
        (output / prediction.PREDICTIONS).write_text(json.dumps({"b": {"incomplete": "its files have no StudyID"}}))
        return 1

    monkeypatch.setattr(prediction, "_run", run)
    for _ in range(2):
        with pytest.raises(AutoplanError) as caught:
            prediction.predict(bundle, tmp_path, cases, output, force=False, settings={"dicom_seg": True})
        first, *lines, remedy = str(caught.value).splitlines()
        assert first == "2 of 3 images have their segmentation, but no DICOM Segmentation:"
        assert lines == [f"  {tmp_path / 'b'}: its files have no StudyID", f"  {tmp_path / 'c'}: it is not known why"]
        assert remedy.startswith("Correct what is named and remove the segmentation of such an image")
        monkeypatch.setattr(prediction, "_run", lambda *_: pytest.fail("nothing is left to predict"))
    (output / "b.nii.gz").write_text("corrected")
    (output / "c.dcm").write_text("made by hand")
    assert prediction.predict(bundle, tmp_path, cases, output, force=False, settings={"dicom_seg": True}) == 0


def test_series_in_folders_of_folders(bundle, runs, tmp_path, monkeypatch, capsys) -> None:
    """Each is a case that is named by its folders; what is left out is told."""
    root = tmp_path / "archive"
    places = ["p1/s1/ax", "p1/s1/scout", "p1/s2/ax", "p2/s1/ax", "p2/s1/report", "flat", "p2/s1/planes"]
    for place in places:
        kind = {"ImageType": ["A", "B", "LOCALIZER"]} if place.endswith("scout") else {}
        dicoms.series(root / place, **kind)
    for path in (root / "p2/s1/report").iterdir():
        slice_ = pydicom.dcmread(path)
        del slice_.Rows
        slice_.save_as(path)
    dicoms.series(root / "p2/s1/planes", orientation=(0, 1, 0, 0, 0, -1), name="other{}", uid="1.2")
    for path in (root / "p2/s1/planes").iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.SeriesInstanceUID = "1.2"
        slice_.save_as(path)
    (root / "p1" / "notes.txt").write_text("text")
    long = "x" * 90
    dicoms.series(root / long / long / long)
    (bundle / "configs" / "inference.json").write_text("{}")
    cases = prediction.images_in(root, bundle)
    assert [case.name for case in cases[:4]] == ["flat", "p1_s1_ax", "p1_s2_ax", "p2_s1_ax"]
    assert [case.images for case in cases[:2]] == [("flat",), ("p1/s1/ax",)]
    assert len(cases) == 5
    assert len(cases[4].name) < 100
    assert [line.removeprefix(f"  {root}/") for line in prediction.left_out(root, cases)] == [
        "Left out:",
        "p1: no image, 1 file such as notes.txt",
        "p1/s1/scout: a localizer, 4 files such as 0.dcm",
        "p2/s1/planes: a localizer, 8 files such as 0.dcm",
        "p2/s1/report: DICOM files without an image, 4 files such as 0.dcm",
    ]
    given = []

    def run(_, cases, __):
        given.extend(prediction._listed(case) for case in cases)
        for case in cases:
            (tmp_path / "out" / f"{case.name}.nii.gz").write_text("predicted")
        return 0

    monkeypatch.setattr(prediction, "_run", run)
    assert main(["predict", "Task90_Tiny", "--bundles", str(bundle.parent.parent), "--images", str(root),
                 "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    assert given[:2] == [str(root / "flat"), {"name": "p1_s1_ax", "image": [str(root / "p1/s1/ax")]}]
    assert "p1/s1/scout: a localizer" in capsys.readouterr().out
    shutil.rmtree(root / "p1" / "s2")
    cases = prediction.images_in(root, bundle)
    assert prediction.predict(bundle, root, cases, tmp_path / "out", force=False, settings={}) == 0, "a folder less"


def test_errors(bundle, images, tmp_path) -> None:
    with pytest.raises(DatasetError, match="no images to predict"):
        prediction.predict(bundle, tmp_path, [], tmp_path / "out", force=False, settings={})
    with pytest.raises(DatasetError, match="is no folder"):
        prediction.images_in(tmp_path / "none", bundle)
    (images[0].parent / "a.nii").write_text("")
    with pytest.raises(DatasetError, match="two images are called a"):
        predict(bundle, images, tmp_path / "out")
    (bundle / "models" / "model.pt").write_bytes(b"PK half of it")
    with pytest.raises(TemplateError, match=r"model\.pt is damaged. Write the bundle anew: python -m autoplan select"):
        predict(bundle, images, tmp_path / "out")
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(TemplateError, match="autoplan select Task90_Tiny"):
        predict(bundle, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_record_names_no_more_than_it_must(bundle, images, runs, tmp_path) -> None:
    predict(bundle, images, tmp_path / "out")
    record = json.loads((tmp_path / "out" / prediction.RECORD).read_text())
    assert set(record) == {"by", "images"}
    assert set(record["images"]) == {"a.nii.gz", "b.nii.gz"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param({"settings": {"features": [2, 4]}}, {"features": [2, 4]}, id="narrow"),
        pytest.param({"settings": {"features": [4, 8]}}, {}, id="as planned"),
        pytest.param({"settings": {}}, {}, id="an older record"),
        pytest.param({"settings": 7}, {}, id="a damaged record"),
        pytest.param({"settings": {"features": [2, 4]}, "model": "another"}, {}, id="the record of another network"),
        pytest.param({}, {}, id="no record"),
    ],
)
def test_a_network_predicts_as_wide_as_it_was_trained(record, expected, tmp_path) -> None:
    """The record lies beside the weights, wherever these are."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "models" / "fold_1").mkdir(parents=True)
    (tmp_path / "configs" / "inference.json").write_text(json.dumps({"features": [4, 8]}))
    weights = tmp_path / "models" / "fold_1" / "model.pt"
    weights.write_bytes(b"weights")
    weights.with_name("model.json").write_text(json.dumps({"model": file_digest(weights), **record} if record else {}))
    settings = {"model_file": str(weights)}
    assert prediction._width(tmp_path, settings) == expected
    assert prediction._width(tmp_path, {}) == {}
