"""Readings that are kept: what is read again; the fingerprint is that of a dataset read anew, bit by bit."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Tiny, wait_until, write_tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from autoplan.__main__ import main
from autoplan.base.errors import DatasetError
from autoplan.data import decathlon as datasets
from autoplan.data import fingerprint as fp
from autoplan.data.facts import CaseFacts
from autoplan.data.readings import NAME, Histogram, Reading, Readings

FACTS = CaseFacts("case", (3, 4, 5), (0.1, 1.0, 2.5), (3, 3, 5), (7, 0), (1, 0), 0.3)
ALL = [*(f"case_{i}" for i in range(5)), "test_0"]


@pytest.fixture
def dataset(tmp_path: Path) -> Tiny:
    """Five cases with a CT channel, whose values differ from case to case and are no whole numbers, and with MR."""
    made = write_tiny(tmp_path / "Task91_Tiny", modalities=("CT", "MRI"))
    rng = np.random.default_rng(0)
    for i in range(5):
        made.write(made.image(f"case_{i}"), rng.normal(50 * i, 99.9, (12, 10, 8, 2)).astype(np.float32))
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases whose files are read."""
    names: list[str] = []
    reading = fp.read_case

    def noted(dataset: Any, case: Any) -> Any:
        names.append(case.name)
        return reading(dataset, case)

    monkeypatch.setattr(fp, "read_case", noted)
    return names


def planned(tiny: Tiny) -> Any:
    """The fingerprint, with what was kept beside it."""
    kept = Readings(tiny.folder.parent / "bundles" / NAME)
    return fp.fingerprint(datasets.load(tiny.folder), num_processes=1, progress=False, readings=kept)


def anew(tiny: Tiny) -> Any:
    return fp.fingerprint(datasets.load(tiny.folder), num_processes=1, progress=False)


def _with_cases(*numbers: int, test: bool = True) -> Callable[[Tiny], None]:
    def change(tiny: Tiny) -> None:
        names = [f"case_{i}" for i in numbers]
        entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in names]
        tiny.describe(training=entries, test=["imagesTs/test_0.nii.gz"] if test else [])

    return change


def _changed(part: str, case: str) -> Callable[[Tiny], None]:
    def change(tiny: Tiny) -> None:
        array = tiny.read(tiny.image(case, part))
        array[3, 3, 3] = 1 - (array[3, 3, 3] == 1)
        tiny.write(tiny.image(case, part), array)

    return change


def _damaged(change: Callable[[bytes], bytes]) -> Callable[[Tiny], None]:
    def damage(tiny: Tiny) -> None:
        path = tiny.folder.parent / "bundles" / NAME
        path.write_bytes(change(path.read_bytes()))

    return damage


def _nothing(tiny: Tiny) -> None:
    """As it was."""


@pytest.mark.parametrize(
    ("before", "change", "again"),
    [
        pytest.param(_nothing, _nothing, [], id="nothing has changed"),
        pytest.param(_with_cases(0, 1, 2), _with_cases(0, 1, 2, 3, 4), ["case_3", "case_4"], id="grown at the end"),
        pytest.param(_with_cases(2, 4), _with_cases(0, 1, 2, 3, 4), ["case_0", "case_1", "case_3"], id="grown between"),
        pytest.param(_nothing, _with_cases(4, 2, 0, 3, 1), [], id="another order"),
        pytest.param(_nothing, _with_cases(0, 1, 4), [], id="cases are removed"),
        pytest.param(_with_cases(0, 1, 2, test=False), _with_cases(0, 1, 2), ["test_0"], id="a test image is new"),
        pytest.param(_nothing, _changed("imagesTr", "case_1"), ["case_1"], id="an image has changed"),
        pytest.param(_nothing, _changed("labelsTr", "case_4"), ["case_4"], id="a label has changed"),
        pytest.param(_nothing, _changed("imagesTs", "test_0"), ["test_0"], id="a test image has changed"),
        pytest.param(
            _nothing, lambda tiny: tiny.describe(labels={"0": "background", "1": "b", "2": "a"}), ALL, id="other labels"
        ),
        pytest.param(
            _nothing, lambda tiny: tiny.describe(modality={"0": "CT", "1": "CT 2"}), ALL, id="other modalities"
        ),
        pytest.param(_nothing, _damaged(lambda text: text[:-9]), ["test_0"], id="the last line is half-written"),
        pytest.param(_nothing, _damaged(lambda text: text[300:]), ["case_0"], id="the first line is damaged"),
        pytest.param(_nothing, _damaged(lambda text: text.replace(b'"case_2"', b'"case_3"')), ["case_2"], id="altered"),
        pytest.param(_nothing, _damaged(lambda text: text + b"\nx\n\xff\n1234\n" + bytes(99)), [], id="rubbish"),
        pytest.param(_nothing, _damaged(lambda text: b""), ALL, id="emptied"),
        pytest.param(_nothing, lambda tiny: setattr(fp, "FORMAT", fp.FORMAT + 1), ALL, id="another version"),
    ],
)
def test_what_is_read_again(dataset, read, monkeypatch, before, change, again) -> None:
    monkeypatch.setattr(fp, "FORMAT", fp.FORMAT)
    before(dataset)
    planned(dataset)
    change(dataset)
    read.clear()
    found = planned(dataset)
    assert read == again
    assert planned(dataset) == found
    assert read == again, "now all are kept"
    assert found == anew(dataset)
    lines = (dataset.folder.parent / "bundles" / NAME).read_bytes().split()
    assert sum(line.startswith(b'{"key"') for line in lines) == len(found.cases) + len(dataset.description["test"])


@pytest.mark.parametrize("count", range(7))
def test_an_end_after_some_cases(dataset, monkeypatch, read, count: int) -> None:
    """What was read before a planning is ended counts, even where the rest of the dataset is wrong."""
    reading = fp.read_case

    def ended(dataset: Any, case: Any) -> Any:
        if len(read) == count:
            raise KeyboardInterrupt
        return reading(dataset, case)

    with monkeypatch.context() as patch:
        patch.setattr(fp, "read_case", ended)
        if count < len(ALL):
            with pytest.raises(KeyboardInterrupt):
                planned(dataset)
    read.clear()
    assert planned(dataset) == anew(dataset)
    assert read[: len(ALL) - count] == ALL[count:]


def test_faults_are_not_kept(dataset, read) -> None:
    """Of a dataset with a fault all sound cases are kept, and the corrected one is read."""
    good = dataset.read(dataset.image("case_2", "labelsTr"))
    dataset.write(dataset.image("case_2", "labelsTr"), good + 7)
    for _ in range(2):
        with pytest.raises(DatasetError, match="case_2: the label has the undeclared values"):
            planned(dataset)
    assert read == [*ALL, "case_2"]
    dataset.write(dataset.image("case_2", "labelsTr"), good)
    assert planned(dataset) == anew(dataset)
    assert read[: len(ALL) + 2] == [*ALL, "case_2", "case_2"]


def test_a_killed_planning_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """SIGKILL in the middle, then the same command."""
    tiny = write_tiny(tmp_path / "Task91_Tiny", num_cases=12)
    words = [str(tiny.folder), "--bundles", str(tmp_path / "bundles"), "--num_processes", "1"]
    slow = (
        "import time; from autoplan.data import fingerprint as fp\n"
        "from autoplan.__main__ import main; read = fp.read_case\n"
        f"fp.read_case = lambda *given: time.sleep(0.2) or read(*given)\nmain({words})"
    )
    process = subprocess.Popen([sys.executable, "-c", slow])
    path = tmp_path / "bundles" / "Task91_Tiny" / NAME
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 3)
    process.kill()
    process.wait()
    before = path.read_bytes().count(b"\n")
    assert main(words) == 0
    assert f"Task91_Tiny: {before} of 13 cases were read before" in capsys.readouterr().out
    assert main(words) == 0
    assert "reused" in capsys.readouterr().out


def test_two_plannings_at_once(dataset, read) -> None:
    """Each keeps what it reads; what both have read is there once in the end."""
    path = dataset.folder.parent / "bundles" / NAME
    one, other = Readings(path), Readings(path)
    loaded = datasets.load(dataset.folder)
    found = [fp.fingerprint(loaded, num_processes=1, progress=False, readings=r) for r in (one, other)]
    assert read == [*ALL, *ALL]
    assert found[0] == found[1] == planned(dataset)
    assert path.read_bytes().count(b"\n") == len(ALL)


@given(st.data())
@settings(max_examples=50)
def test_a_file_that_ends_anywhere(tmp_path_factory, data) -> None:
    """After any number of its bytes, those that fit in whole are there, and what is added then is there as well."""
    path = tmp_path_factory.mktemp("kept") / NAME
    names = ["a", "b", "c"]
    ends = []
    for name in names:
        Readings(path).add(name, Reading((), FACTS))
        ends.append(path.stat().st_size)
    size = data.draw(st.integers(0, ends[-1]))
    os.truncate(path, size)
    whole = [name for name, end in zip(names, ends, strict=True) if end <= size]
    assert [name for name in names if name in Readings(path)] == whole
    Readings(path).add("d", Reading((), FACTS))
    found = Readings(path)
    assert [name for name in (*names, "d") if name in found] == [*whole, "d"]
    assert found["d"].facts == FACTS


@given(st.dictionaries(st.floats(-1e14, 1e14), st.integers(1, 2**40)), st.floats(-1e14, 1e14), st.floats(0, 1e30))
def test_a_reading_comes_back_bit_by_bit(tmp_path_factory, counts, mean, deviation) -> None:
    path = tmp_path_factory.mktemp("kept") / NAME
    values = np.array(sorted(counts), np.float64)
    histogram = Histogram(values, np.array([counts[v] for v in values], np.int64), mean, deviation)
    Readings(path).add("key", Reading((), FACTS, (None, histogram)))
    back = Readings(path)["key"]
    assert back.facts == FACTS
    none, found = back.histograms
    assert none is None
    assert found is not None
    assert (found.mean, found.deviation) == (mean, deviation)
    assert found.values.tobytes() == values.tobytes()
    assert found.counts.tobytes() == histogram.counts.tobytes()
    assert found.values.dtype == np.float64


def test_a_ct_takes_a_few_kilobytes(tmp_path) -> None:
    """Whole numbers from -1000 to 1500, as CT has them, of a million voxels."""
    array = np.random.default_rng(0).normal(50, 200, (100, 100, 100)).clip(-1000, 1500).astype(np.int16)
    histogram = fp._histogram(array, np.ones(array.shape, np.uint8))
    Readings(tmp_path / NAME).add("key", Reading((), FACTS, (histogram,)))
    assert (tmp_path / NAME).stat().st_size < 5000


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_is_one_line(dataset, monkeypatch, capsys, written) -> None:
    """Also where the disk takes a part of the line."""
    opened = Path.open

    class Full:
        def __init__(self, path: Path) -> None:
            self.file, self.left = opened(path, "ab", buffering=0), written

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, text: bytes) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.left -= self.file.write(text[: self.left])
            return written

    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda path, *how, **more: Full(path) if how == ("ab",) else opened(path, *how, **more)
        )
        words = [str(dataset.folder), "--bundles", str(dataset.folder.parent / "bundles")]
        assert main(words) == 1
    err = capsys.readouterr().err
    assert "the disk is full" in err
    assert len(err.splitlines()) == 1
    assert main(words) == 0
    assert "were read before" not in capsys.readouterr().out


def test_a_folder_in_its_place_is_one_line(dataset, capsys) -> None:
    (dataset.folder.parent / "bundles" / "Task91_Tiny" / NAME).mkdir(parents=True)
    assert main([str(dataset.folder), "--bundles", str(dataset.folder.parent / "bundles")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_lines_are_json(dataset) -> None:
    planned(dataset)
    lines = (dataset.folder.parent / "bundles" / NAME).read_text().strip().splitlines()
    found = [json.loads(line[9:]) for line in lines]
    assert [entry["facts"]["name"] if entry["facts"] else None for entry in found] == [*ALL[:-1], None]
