"""Which images a bundle predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.datalists import divided, fold_cases, images_to_predict, with_references

from autoplan.planning import rules


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two images and a dataset.json that lists one elsewhere."""
    for name in ("b.nii", "a.nii.gz", ".hidden.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "dataset.json").write_text(json.dumps({"test": ["./imagesTs/t.nii.gz", {"image": "imagesTs/u.nii"}]}))
    return tmp_path


def names(found: list[dict[str, str]]) -> list[str]:
    return [Path(item["image"]).name for item in found]


def test_a_dataset_s_test_images(folder: Path) -> None:
    assert names(images_to_predict(folder)) == ["t.nii.gz", "u.nii"]


def test_the_images_of_a_folder(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    assert names(images_to_predict(folder)) == ["a.nii.gz", "b.nii"]


def test_named_images_come_before_all_else(folder: Path) -> None:
    listed = folder / "list.json"
    listed.write_text(json.dumps([str(folder / "b.nii"), "/elsewhere/c.nii.gz"]))
    assert names(images_to_predict(folder, images=listed)) == ["b.nii", "c.nii.gz"]
    assert names(images_to_predict("nowhere", images=str(listed))) == ["b.nii", "c.nii.gz"]
    (folder / "out").mkdir()
    (folder / "out" / "b.nii.gz").touch()
    assert names(images_to_predict(folder, folder / "out", skip_existing=True, images=listed)) == ["c.nii.gz"]


@pytest.mark.parametrize("content", ["[]", "{}", "5", '["a.nii", 5]'])
def test_a_list_that_is_none(content: str, folder: Path) -> None:
    (folder / "list.json").write_text(content)
    with pytest.raises(ValueError, match=r"list\.json: no JSON list of paths"):
        images_to_predict(folder, images=folder / "list.json")


@given(st.sets(st.text(max_size=5), min_size=2, max_size=30))
def test_cases_are_divided_as_in_planning(names: set[str]) -> None:
    assert divided(list(names)) == [list(fold) for fold in rules.folds(list(names))]


@pytest.mark.parametrize("listed", [True, False], ids=["by the datalist", "divided by itself"])
def test_fold_all_trains_on_all_cases_and_validates_on_these(tmp_path: Path, listed: bool) -> None:
    entries = [
        {"name": n, "image": f"{n}.nii.gz", "label": f"l{n}.nii.gz", "fold": k % 3} for k, n in enumerate("abcd")
    ]
    for path in (path for e in entries for path in (e["image"], e["label"])):
        (tmp_path / str(path)).touch()
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries}))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    training, validation = fold_cases(tmp_path, tmp_path / ("datalist.json" if listed else "none.json"), "all")
    assert sorted(case["name"] for case in training) == [*"abcd"]
    assert validation == training
    with pytest.raises(ValueError, match="There is no fold All: there are 3, counted from 0, and all"):
        fold_cases(tmp_path, tmp_path / "datalist.json", "All")
    with pytest.raises(ValueError, match=r"fold all was trained on all cases: there is none to evaluate it on\.$"):
        with_references(validation, "all")


def test_a_bundle_without_folds_takes_any_dataset(tmp_path: Path) -> None:
    entries = [{"image": f"./i/{n}.nii.gz", "label": f"./l/{n}.nii.gz"} for n in "abcdefg"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": entries}))
    for path in (path for entry in entries for path in entry.values()):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    found = [fold_cases(tmp_path, tmp_path / "none.json", k) for k in range(5)]
    assert all(len(training) + len(validation) == 7 for training, validation in found)
    assert sorted(name for _, validation in found for name in names(validation)) == [f"{n}.nii.gz" for n in "abcdefg"]
    with pytest.raises(ValueError, match="There is no fold 5: there are 5"):
        fold_cases(tmp_path, tmp_path / "none.json", 5)
    with pytest.raises(FileNotFoundError, match=r"dataset\.json does not exist. Name the folder"):
        fold_cases(tmp_path / "i", tmp_path / "none.json", 0)


@pytest.mark.parametrize(
    ("content", "images"),
    [
        pytest.param({"channel_names": {"0": "MRI"}}, ["_0000"], id="version 2"),
        pytest.param({"channel_names": {"0": "T1", "1": "T2"}}, ["_0000", "_0001"], id="two channels"),
        pytest.param(
            {"modality": {"0": "MRI"}, "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]},
            ["_0000"],
            id="version 1",
        ),
    ],
)
def test_a_bundle_without_folds_takes_nnunet_s_folders(tmp_path: Path, content: dict, images: list[str]) -> None:
    """A file a channel; an image without a label, and what else lies there, is no case."""
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for part, ends, cases in (("imagesTr", images, "abcdef"), ("labelsTr", [""], "abcde")):
        (tmp_path / part).mkdir()
        for path in (tmp_path / part / f"{name}{end}.nii.gz" for name in cases for end in ends):
            path.touch()
    found = [fold_cases(tmp_path, tmp_path / "none.json", k) for k in range(5)]
    assert sorted(case["name"] for _, validation in found for case in validation) == list("abcde")
    case = next(case for _, validation in found for case in validation if case["name"] == "b")
    paths = [str(tmp_path / "imagesTr" / f"b{end}.nii.gz") for end in images]
    assert case == {
        "name": "b",
        "image": paths if len(paths) > 1 else paths[0],
        "label": str(tmp_path / "labelsTr" / "b.nii.gz"),
    }


@pytest.mark.parametrize("content", [{}, {"training": []}, {"channel_names": {"0": "MRI"}}])
def test_a_dataset_without_training_cases_is_one_line(tmp_path: Path, content: dict) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lists no training cases, and none lie in imagesTr and"):
        fold_cases(tmp_path, tmp_path / "none.json", 0)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param({"name": "a", "image": "x.nii.gz"}, "a", id="named"),
        pytest.param({"image": "f/x.nii.gz"}, "x", id="of MONAI Label"),
        pytest.param({"image": ["f/x.nii.gz", "f/y.nii.gz"]}, "x", id="two files"),
    ],
)
def test_cases_to_score_have_a_name(case: dict[str, Any], name: str) -> None:
    reference = "labels/x.nii.gz"
    assert with_references([{**case, "label": reference}]) == [
        {"name": name, "image": case["image"], "reference": reference}
    ]
