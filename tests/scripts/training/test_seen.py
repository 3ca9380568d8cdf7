"""What a network has seen: which trainings may go on, and what their records say."""

from pathlib import Path
from typing import Any

import pytest
from scripts.cache import CaseCache
from scripts.seen import Seen, seen
from scripts.stopping import OtherRecipeError

SETTINGS = {"target_spacing": [1.0, 1.0, 2.5], "normalization": [None], "patch_size": [8, 8, 8]}

SPACING, INTENSITIES = {**SETTINGS, "target_spacing": [2, 2, 5]}, {**SETTINGS, "normalization": [[0, 1]]}


def cases(folder: Path, names: str, **contents: str) -> list[dict[str, Any]]:
    """Cases a, b, ... whose files hold their names, or other contents."""
    found = []
    for name in names:
        item = {key: str(folder / f"{name}_{key}.nii") for key in ("image", "label")}
        Path(item["image"]).write_text(contents.get(name, f"image of {name}"))
        Path(item["label"]).write_text(contents.get(f"{name}_label", f"label of {name}"))
        found.append({"name": name, **item})
    return found


def make(folder: Path, training: str, validation: str, settings: dict[str, Any] | None = None, **contents: str) -> Seen:
    cache = CaseCache(folder / "cache", dict, 2, num_classes=2)
    sides = [cases(folder, names, **contents) for names in (training, validation)]
    return Seen(cache, *sides, settings or SETTINGS)


@pytest.mark.parametrize(
    ("training", "validation", "more", "message"),
    [
        pytest.param("abc", "d", {}, None, id="as it was"),
        pytest.param("abcef", "dg", {}, None, id="cases were added"),
        pytest.param("ab", "d", {}, None, id="a training case is gone"),
        pytest.param("abc", "d", {"b_label": "corrected"}, None, id="a label was corrected"),
        pytest.param("abc", "d", {"settings": {**SETTINGS, "patch_size": [4, 4, 4]}}, None, id="another patch"),
        pytest.param("abd", "c", {}, "has seen 1 of the 1 cases that it is to be validated on: c", id="other folds"),
        pytest.param("bc", "ade", {}, "has seen 1 of the 3 cases", id="a training case is now held out"),
        pytest.param("bc", "x", {"x": "image of a"}, "validated on: x", id="under another name"),
        pytest.param("abc", "x", {"x": "image of a"}, None, id="a dataset that has an image twice"),
        pytest.param("abc", "d", {"settings": SPACING}, "begun with target_spacing", id="another spacing"),
        pytest.param("abc", "d", {"settings": INTENSITIES}, "begun with normalization", id="another normalization"),
    ],
)
def test_which_trainings_go_on(tmp_path, training, validation, more, message) -> None:
    before = make(tmp_path, "abc", "d").state_dict()
    now = make(tmp_path, training, validation, **more)
    if message is None:
        now.load_state_dict(before)
        assert now.cases.keys() == {*"abc", *training}
    else:
        with pytest.raises(OtherRecipeError, match=message):
            now.load_state_dict(before)


def test_fold_all_is_validated_on_what_it_has_seen(tmp_path) -> None:
    now = make(tmp_path, "abc", "abc")
    now.load_state_dict(now.state_dict())
    assert sorted(now.cases) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        pytest.param("xbc", ["x"], id="a is called x now"),
        pytest.param("xabc", [], id="the dataset has the image twice"),
    ],
)
def test_an_image_under_another_name(tmp_path, now, expected) -> None:
    trained = make(tmp_path, "ab", "").cases
    there = make(tmp_path, now, "", x="image of a").cases
    assert seen(trained, {"x": there["x"]}, there) == expected


def test_names_that_were_exchanged(tmp_path) -> None:
    trained = make(tmp_path, "a", "").cases
    there = make(tmp_path, "ab", "", a="image of b", b="image of a").cases
    assert seen(trained, {"b": there["b"]}, there) == ["b"]
