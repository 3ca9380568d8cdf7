"""nnU-Net's descriptions with hostile values, and folders with odd names: refused in short, or read as they lie."""

import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attack import HOSTILE_TEXTS, no_hang, outcome

from autoplan.data import layouts
from autoplan.data.facts import Dataset
from autoplan.data.layouts import Layout

NAMES = ["case_0", "case_1", "case_2"]
LABELS = {"background": 0, "a": 1}
VALUES: list[Any] = [
    None, True, False, 0, -1, 2, 65536, 10**30, 1.5, float("nan"), float("inf"), [], [0], [1, 2], [[]], [None], {},
    {"a": 1}, {"0": 0}, {"": ""}, ["a"], [{"image": "x"}], {"images": []}, {"images": ["x"], "label": "y"}, "9" * 5000,
    *HOSTILE_TEXTS,
]  # fmt: skip


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw folder of nnU-Net, version 2, whose images are empty files: the names alone are read here."""
    folder = tmp_path / "raw" / "Dataset001_Tiny"
    for part, end in (("imagesTr", "_0000"), ("labelsTr", ""), ("imagesTs", "_0000")):
        (folder / part).mkdir(parents=True)
        for name in NAMES if part != "imagesTs" else ["test"]:
            (folder / part / f"{name}{end}.nii.gz").touch()
    return folder


def described(**fields: Any) -> dict[str, Any]:
    return {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", **fields}


def section(**entry: Any) -> dict[str, Any]:
    """Three cases by paths, the first of which is odd."""
    whole = {n: {"images": [f"imagesTr/{n}_0000.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in NAMES}
    return {**whole, NAMES[0]: {**whole[NAMES[0]], **entry}}


def key_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


PLACES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "channel_names": lambda v: described(channel_names=v),
    "name of a channel": lambda v: described(channel_names={"0": v}),
    "number of a channel": lambda v: described(channel_names={key_of(v): "CT"}),
    "labels": lambda v: described(labels=v),
    "value of a class": lambda v: described(labels={**LABELS, "b": v}),
    "name of a class": lambda v: described(labels={**LABELS, key_of(v): 2}),
    "name of a class by value": lambda v: described(labels={"0": "background", "1": v}),
    "file_ending": lambda v: described(file_ending=v),
    "dataset": lambda v: described(dataset=v),
    "images of a case": lambda v: described(dataset=section(images=v)),
    "image of a case": lambda v: described(dataset=section(images=[v])),
    "label of a case": lambda v: described(dataset=section(label=v)),
    "name of a case": lambda v: described(dataset={**section(), key_of(v): {"images": ["x.nii.gz"], "label": "y"}}),
    "training of version 1": lambda v: {"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "training": v},
    "image of version 1": lambda v: {"modality": {"0": "CT"}, "labels": {"0": "b"}, "training": [{"image": v}]},
}  # fmt: skip


def check_sound(found: Dataset) -> None:
    """What a dataset must be for anything that follows: names that are names, values that are numbers."""
    cases = (*found.training, *found.test)
    values = [value for value, _ in found.labels]
    assert all(type(value) is int and 0 <= value < 2**16 for value in values)
    assert (values[0], len(values)) == (0, len(set(values)))
    texts = [*found.modalities, *(name for _, name in found.labels), *(case.name for case in cases)]
    assert all(isinstance(text, str) and text.strip() and "\0" not in text and "\n" not in text for text in texts)
    assert len(found.training) >= 2
    assert all(len(case.images) == len(found.modalities) for case in cases)
    folded = [unicodedata.normalize("NFC", case.name).casefold() for case in cases]
    assert len(folded) == len(set(folded))
    assert not any("/" in case.name or "\\" in case.name for case in cases)
    assert not {image for case in cases for image in case.images} & {case.label for case in cases}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_hostile_descriptions(raw, place) -> None:
    with no_hang(["hostile descriptions"]):
        for value in VALUES:
            (raw / "dataset.json").write_text(json.dumps(place(value)))
            found = outcome(lambda: layouts.load(raw, Layout()))
            if isinstance(found, Dataset):
                check_sound(found)


def test_hostile_splits(raw) -> None:
    (raw / "dataset.json").write_text(json.dumps(described()))
    whole = [{"val": NAMES[:2]}, {"val": NAMES[2:]}]
    with no_hang(["hostile splits"]):
        for value in VALUES:
            for splits in (value, [value], [*whole, value], [{"val": value}], [*whole, {"val": [value]}]):
                (raw / "splits_final.json").write_text(json.dumps(splits))
                found = outcome(lambda: layouts.load(raw, Layout()))
                if isinstance(found, Dataset):
                    assert {case.fold for case in found.training} == {0, 1}


TWICE = {
    "a case": '{"channel_names": {"0": "CT"}, "labels": {"b": 0, "a": 1}, "dataset": {"x": 1, "x": 2}}',
    "a class": '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "a": 2}}',
    "a channel": '{"channel_names": {"0": "CT", "0": "PET"}, "labels": {"background": 0, "a": 1}}',
    "a field": '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}, "labels": {"b": 0, "c": 1}}',
}  # fmt: skip


@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE)
def test_what_a_description_says_twice(raw, text) -> None:
    (raw / "dataset.json").write_text(text)
    assert "twice in one object" in str(outcome(lambda: layouts.load(raw, Layout())))


# Folders.

STEMS = ["a", "A", "b", "b_0000", "b_0001", "c_0000", "é", "é", "ß", "ss", "d_image", "d_label", "d_mask", "e-seg", "e"]
ENDINGS = [".nii.gz", ".nii", ".png", ".NRRD", ".txt", ""]


def arrangements(folder: Path, rng: random.Random) -> Iterator[Layout]:
    """Folders with some files of some names, and flags that name folders of them."""
    for number in range(250):
        own = folder / str(number)
        parts = rng.sample(["images", "t1", "ct", "masks"], rng.choice((1, 2, 2, 3)))
        for part in parts:
            (own / part).mkdir(parents=True)
            for stem in rng.sample(STEMS, rng.randrange(1, 6)) if rng.random() < 0.5 else ["a", "b", "é"]:
                (own / part / f"{stem}{rng.choice(ENDINGS) if rng.random() < 0.05 else '.nii.gz'}").touch()
        yield Layout(
            images=",".join(f"{number}/{part}" for part in parts[: rng.choice((1, 1, 2))]),
            labels=f"{number}/{rng.choice(parts)}", channels=rng.choice(("", "CT", "CT", "a,b")),
            found=((0, "background"), (1, "a")),
        )  # fmt: skip


def test_folders_at_random(tmp_path) -> None:
    """What is found belongs together: an image and a label of a case begin with its name."""
    read = 0
    with no_hang(["folders at random"]):
        for layout in arrangements(tmp_path, random.Random(3)):
            found = outcome(lambda layout=layout: layouts.load(tmp_path, layout))
            if isinstance(found, Dataset):
                read += 1
                for case in found.training:
                    assert all(Path(path).name.startswith(case.name) for path in (*case.images, case.label))
                    places = {Path(path).parent for path in case.images}
                    assert len(case.images) == len(places) or "_0" in case.images[0]
    assert read > 10


@pytest.mark.parametrize("flag", ["images", "labels", "channels", "labels_are"])
def test_hostile_flags(raw, flag) -> None:
    given = {"images": "imagesTr", "labels": "labelsTr", "channels": "CT"}
    with no_hang(["hostile flags"]):
        for text in HOSTILE_TEXTS:
            for value in (text, f"{text},{text}", f"imagesTr,{text}"):
                layout = Layout(**{**given, flag: value}, found=((0, "background"), (1, "a")))
                found = outcome(lambda layout=layout: layouts.load(raw, layout))
                if isinstance(found, Dataset):
                    assert all(name.strip() for name in found.modalities)
