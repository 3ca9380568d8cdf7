"""Which images a bundle predicts."""

import json
from pathlib import Path

import pytest
from scripts.datalists import images_to_predict


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
