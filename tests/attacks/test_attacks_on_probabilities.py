"""Files of stored probabilities, crafted and damaged in every way: one message, or what the whole file gives; for the
choice of a model, the report, and the second stage of a cascade."""

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack import check_message, no_hang
from conftest import TINY_PLAN, dataset_of
from scripts import blocks, probabilities

from autoplan.base.errors import DatasetError
from autoplan.data.facts import Case
from autoplan.evaluation import choice, crossvalidation
from autoplan.evaluation.segmenter import segmentations
from autoplan.report import validation

TASK, BUNDLE, CASE = TINY_PLAN.name, "3d_fullres", "case_0"
VALUES = [value for value, _ in TINY_PLAN.labels[1:]]
Members = dict[str, bytes]
"""Name in the archive -> content."""
HUGE = 2**40


@pytest.fixture(scope="module")
def bundle(project) -> Path:
    return project / "bundles" / TASK / BUNDLE


@pytest.fixture(scope="module")
def label(project) -> Path:
    return project / "data" / TASK / "labelsTr" / f"{CASE}.nii.gz"


@pytest.fixture(scope="module")
def whole(bundle, label, parse, tmp_path_factory) -> Path:
    """Probabilities as an evaluation keeps them, of an image in two blocks."""
    parser = parse(bundle, "train", "evaluate", mirror=False)
    image = str(label).replace("labelsTr", "imagesTr")
    item = parser.get_parsed_content("validate#preprocessing")({"image": image, "reference": str(label)})["image"]
    torch.manual_seed(0)
    found = torch.rand(3, 4, 4, 4)[None]
    found = torch.nn.functional.interpolate(found, size=item.shape[1:], mode="trilinear")[0].mul(5).softmax(0)
    cuts = blocks.cut([item.shape[1:]], 2, 2)
    parts = [found[:, :, b.spans[0]] if b.axis == 1 else found[:, b.spans[0]] for b in cuts]
    path = tmp_path_factory.mktemp("whole") / f"{CASE}.npz"
    rows = (iter(part.movedim(3, 1).split(4, 1)) for part in parts)
    probabilities.keeping(path, rows, item, 2, cuts, lambda all_: [list(some) for some in all_])
    return path


def score(path: Path, bundle: Path, label: Path) -> Any:
    """What `select` makes of a file."""
    job = crossvalidation.Unscored(CASE, label, label, ((choice.Candidate((BUNDLE,)), (path,), bundle),))
    segmenter = segmentations
    return crossvalidation._score(job, segmenter=segmenter, values=VALUES, ignore=None)


def report(path: Path, bundle: Path, label: Path) -> validation.Scored:
    """What `report` makes of it."""
    root = label.parents[1]
    dataset = dataset_of(TINY_PLAN, root)
    case = Case(CASE, (f"imagesTr/{CASE}.nii.gz",), f"labelsTr/{CASE}.nii.gz")
    return validation.score(dataset, validation.Job(case, (path,), None, (), bundle))


@pytest.fixture(scope="module")
def expected(whole, bundle, label) -> Any:
    return score(whole, bundle, label), report(whole, bundle, label)


# How files are crafted.


def read(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(members: Members | list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED, **claims: int) -> bytes:
    """An archive. `claims`: sizes that its directory tells of members whose names begin so."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
        for info in archive.filelist:
            for name, size in claims.items():
                info.file_size = size if info.filename.startswith(name) else info.file_size
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def array_of(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content))


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array whose header is this text, and no data."""
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


def first_rows(members: Members) -> str:
    return min(name for name in members if name.startswith("rows"))


def rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Members], bytes]:
    """The first array of probabilities, changed."""
    return lambda m: packed({**m, first_rows(m): npy(change(array_of(m[first_rows(m)])))})


def all_rows(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Members], bytes]:
    return lambda m: packed({n: npy(change(array_of(c))) if n.startswith("rows") else c for n, c in m.items()})


def raw_rows(content: bytes) -> Callable[[Members], bytes]:
    return lambda m: packed({**m, first_rows(m): content})


def geometry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Members], bytes]:
    """The geometry, changed."""

    def crafted(members: Members) -> bytes:
        said = torch.load(io.BytesIO(array_of(members["geometry.npy"]).tobytes()), weights_only=True)
        file, changed = io.BytesIO(), change(said)
        torch.save(said if changed is None else changed, file)
        return packed({**members, "geometry.npy": npy(np.frombuffer(file.getvalue(), np.uint8))})

    return crafted


def field(name: str, value: Any) -> Callable[[Members], bytes]:
    return geometry(lambda said: {**said, name: value})


def operation(number: int, **values: Any) -> Callable[[Members], bytes]:
    def changed(said: dict[str, Any]) -> None:
        said["applied_operations"][number].update(values)

    return geometry(changed)


def cropped(value: Any) -> Callable[[Members], bytes]:
    def changed(said: dict[str, Any]) -> None:
        [step] = [s for s in said["applied_operations"] if s["class"] == "CropForeground"]
        step["extra_info"]["cropped"] = value

    return geometry(changed)


def operations(change: Callable[[list[Any]], Any]) -> Callable[[Members], bytes]:
    return geometry(lambda said: {**said, "applied_operations": change(said["applied_operations"])})


def without(name: str) -> Callable[[Members], bytes]:
    return geometry(lambda said: {key: value for key, value in said.items() if key != name})


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def objects(members: Members) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.array([Code()], dtype=object), allow_pickle=True)
    return packed({**members, first_rows(members): file.getvalue()})


def encrypted(members: Members) -> bytes:
    content = bytearray(packed(members))
    at = content.find(b"PK\x01\x02")
    content[at + 8] |= 1
    return bytes(content)


def compressed_in(number: int) -> Callable[[Members], bytes]:
    def crafted(members: Members) -> bytes:
        content = bytearray(packed(members))
        at = content.find(b"PK\x01\x02")
        content[at + 10 : at + 12] = number.to_bytes(2, "little")
        return bytes(content)

    return crafted


def part(fraction: float) -> Callable[[Members], bytes]:
    return lambda m: packed(m)[: int(fraction * len(packed(m)))]


def flipped(fraction: float) -> Callable[[Members], bytes]:
    def crafted(members: Members) -> bytes:
        content = bytearray(packed(members))
        content[int(fraction * len(content))] ^= 0x55
        return bytes(content)

    return crafted


def of_an_image(voxels: int) -> Callable[[Members], bytes]:
    """All of it fits together, but for the data: an image far larger than any memory."""

    def crafted(members: Members) -> bytes:
        said = torch.load(io.BytesIO(array_of(members["geometry.npy"]).tobytes()), weights_only=True)
        said |= {"shape": [voxels] * 3, "axis": 0, "across": 1, "applied_operations": []}
        file = io.BytesIO()
        torch.save(said, file)
        text = str({"descr": "|u1", "fortran_order": False, "shape": (2, voxels, voxels, voxels)}) + "\n"
        content = {
            "geometry.npy": npy(np.frombuffer(file.getvalue(), np.uint8)),
            "rows_000_00000.npy": header(text),
        }
        return packed(content, rows=len(header(text)) + 2 * voxels**3)

    return crafted


ARCHIVES: dict[str, Callable[[Members], bytes]] = {
    "empty": lambda m: b"",
    "one byte": lambda m: b"P",
    "zeros": lambda m: bytes(9999),
    "text": lambda m: b"probabilities\n" * 99,
    "an empty archive": lambda m: packed({}),
    "an array": lambda m: m[first_rows(m)],
    "a pickle": lambda m: pickle.dumps(Code()),
    "twice": lambda m: packed(m) + packed(m),
    "something before": lambda m: b"#!/bin/sh\n" + packed(m),
    "something behind": lambda m: packed(m) + b"more",
    "not compressed": partial(packed, compression=zipfile.ZIP_STORED),
    "bzip2": partial(packed, compression=zipfile.ZIP_BZIP2),
    "lzma": partial(packed, compression=zipfile.ZIP_LZMA),
    "compressed in no known way": compressed_in(99),
    "compressed in another way": compressed_in(0),
    "encrypted": encrypted,
    "sizes of terabytes": partial(packed, rows=HUGE),
    "sizes of nothing": partial(packed, rows=0),
    "a geometry of terabytes": partial(packed, geometry=HUGE),
    "the other way round": lambda m: packed(dict(reversed(m.items()))),
    "no geometry": lambda m: packed({n: c for n, c in m.items() if n != "geometry.npy"}),
    "no rows": lambda m: packed({"geometry.npy": m["geometry.npy"]}),
    "two geometries": lambda m: packed([*m.items(), ("geometry.npy", m["geometry.npy"])]),
    "something else": lambda m: packed({**m, "more.npy": m[first_rows(m)]}),
    "something else, no array": lambda m: packed({**m, "README": b"hello"}),
    "many more": lambda m: packed({**m, **{f"more_{i}": b"" for i in range(3000)}}),
    "a folder": lambda m: packed({**m, "rows_000_00009.npy/": b""}),
    "rows of another folder": lambda m: packed({n.replace("rows", "../rows"): c for n, c in m.items()}),
    "rows in capitals": lambda m: packed({n.replace("rows", "ROWS"): c for n, c in m.items()}),
    "rows without a suffix": lambda m: packed({n.removesuffix(".npy"): c for n, c in m.items()}),
    "rows with other digits": lambda m: packed({n.replace("000_", "\u0660\u0660\u0660_"): c for n, c in m.items()}),
    "rows of an older version": lambda m: packed({n.replace("_000", "").replace("_001", ""): c for n, c in m.items()}),
    "rows as foreground": lambda m: packed({"geometry.npy": m["geometry.npy"], "foreground.npy": m[first_rows(m)]}),
    "foreground beside rows": lambda m: packed({**m, "foreground.npy": m[first_rows(m)]}),
    "an image beyond all memory": of_an_image(30_000),
    "an image beyond all numbers": of_an_image(2**20),
    **{f"cut at {n}/16": part(n / 16) for n in range(1, 16)},
    **{f"changed at {n}/32": flipped(n / 32) for n in range(32)},
}
ROWS: dict[str, Callable[[Members], bytes]] = {
    **{
        f"of type {kind}": rows(lambda a, kind=kind: a.astype(kind))
        for kind in ("i1", "?", "u2", ">u2", "i4", "i8", "f2", "f4", "f8", "c8", "S1", "U1", "M8[s]", "V3", "u1,u1")
    },
    **{f"all of type {kind}": all_rows(lambda a, kind=kind: a.astype(kind)) for kind in ("i1", "?", "f4", "i8")},
    "objects": objects,
    "of no axis": rows(lambda a: np.array(7, np.uint8)),
    **{f"of {n} axes": rows(lambda a, n=n: a.reshape(-1, *a.shape[5 - n :])[:, ...]) for n in (2, 3)},
    "of five axes": rows(lambda a: a[..., None]),
    "of one axis": rows(np.ravel),
    "no class": rows(lambda a: a[:0]),
    "no voxels": rows(lambda a: a[:, :0]),
    "one class": rows(lambda a: a[:1]),
    "one class more": rows(lambda a: np.concatenate([a, a[:1]])),
    "300 classes": all_rows(lambda a: np.repeat(a[:1], 300, 0)),
    "one row less": rows(lambda a: a[:, 1:]),
    "one row more": rows(lambda a: np.concatenate([a, a[:, :1]], 1)),
    "a smaller plane": rows(lambda a: a[:, :, 1:]),
    "a turned plane": rows(lambda a: a.swapaxes(2, 3)),
    "all turned": all_rows(lambda a: a.swapaxes(2, 3)),
    "all smaller": all_rows(lambda a: a[..., 1:]),
    "columns first": rows(np.asfortranarray),
    "no data": lambda m: packed({**m, first_rows(m): m[first_rows(m)][:128]}),
    "half the data": lambda m: packed({**m, first_rows(m): m[first_rows(m)][:-9]}),
    "more data": lambda m: packed({**m, first_rows(m): m[first_rows(m)] + b"more"}),
    "no header": raw_rows(b""),
    "half a header": raw_rows(b"\x93NUMPY\x01\x00v\x00{'descr'"),
    "another magic": lambda m: packed({**m, first_rows(m): b"\x94" + m[first_rows(m)][1:]}),
    **{f"version {v}": lambda m, v=v: packed({**m, first_rows(m): b"\x93NUMPY" + bytes([v, 0]) + m[first_rows(m)][8:]})
       for v in (0, 2, 3, 9)},
    **{
        f"header {name}": raw_rows(header(text))
        for name, text in {
            "of garbage": "\x00\x01",
            "of a list": "[]\n",
            "of code": "__import__('os').system('touch hacked')\n",
            "that lacks the shape": "{'descr': '|u1', 'fortran_order': False}\n",
            "of a huge shape": f"{{'descr': '|u1', 'fortran_order': False, 'shape': (2, {2**62}, 4, 4)}}\n",
            "of a negative shape": "{'descr': '|u1', 'fortran_order': False, 'shape': (2, -4, 4, 4)}\n",
            "of a shape of fractions": "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4.5, 4, 4)}\n",
            "of a shape of truth": "{'descr': '|u1', 'fortran_order': False, 'shape': (True, True, True, True)}\n",
            "of an unknown type": "{'descr': 'u99', 'fortran_order': False, 'shape': (2, 4, 4, 4)}\n",
            "nested deeply": "(" * 9000 + ")" * 9000,
            "that is long": " " * 60000,
        }.items()
    },
    "zeros of 64 MB": raw_rows(npy(np.zeros((2, 2**11, 2**7, 2**7), np.uint8))),
}  # fmt: skip
ODD = {
    "nothing": None, "text": "x", "a number": 7, "a fraction": 1.5, "a list": [], "huge": [2**62] * 3,
    "zeros": [0, 0, 0], "negative": [-1, 4, 4], "fractions": [4.0, 4.0, 4.0], "truth": [True, True, True],
    "too few": [16, 15], "too many": [16, 15, 11, 1], "a tensor": torch.ones(3), "nested": [[[]]],
    "large": [20000, 20000, 20000], "a bytes": b"abc",
}  # fmt: skip
GEOMETRIES: dict[str, Callable[[Members], bytes]] = {
    **{f"is {name}": geometry(lambda said, value=value: value or [value]) for name, value in
       {"a list": [1], "text": "x", "a number": 7, "a tensor": [torch.ones(4)], "an empty list": []}.items()},
    **{f"without {name}": without(name) for name in ("shape", "axis", "across", "affine", "applied_operations")},
    **{f"shape is {name}": field("shape", value) for name, value in ODD.items()},
    **{f"axis is {value!r}": field("axis", value) for value in (3, -1, 0, 1.0, "2", None, True, [2], 2**62)},
    **{f"across is {value!r}": field("across", value) for value in (3, -1, 2, "0", None, True, 2**62)},
    **{f"affine is {name}": field("affine", value) for name, value in
       {**ODD, "NaN": torch.full((4, 4), torch.nan), "infinite": torch.full((4, 4), torch.inf), "3 x 3": torch.eye(3),
        "of zeros": torch.zeros(4, 4), "whole numbers": torch.eye(4, dtype=torch.int64),
        "complex": torch.eye(4, dtype=torch.complex64), "sparse": torch.eye(4).to_sparse()}.items()},
    **{f"operations are {name}": field("applied_operations", value) for name, value in ODD.items()},
    **{f"operation {n} is {name}": operations(lambda steps, n=n, value=value: [*steps[:n], value, *steps[n + 1 :]])
       for n in (0, 2) for name, value in ODD.items()},
    **{f"operation {n} is left out": operations(lambda steps, n=n: [*steps[:n], *steps[n + 1 :]]) for n in range(3)},
    **{f"operation {n} is there twice": operations(lambda steps, n=n: [*steps[:n], steps[n], *steps[n:]])
       for n in range(3)},
    "operations backwards": operations(lambda steps: steps[::-1]),
    **{f"original size of operation {n} is {name}": operation(n, orig_size=value)
       for n in range(3) for name, value in ODD.items()},
    **{f"operation {n} has {name} as details": operation(n, extra_info=value)
       for n in range(3) for name, value in ODD.items()},
    **{f"class of operation {n} is {name}": operation(n, **{"class": value})
       for n in range(3) for name, value in {"nothing": None, "unknown": "Foo", "a list": []}.items()},
    **{f"cropped is {name}": cropped(value) for name, value in
       {**ODD, "huge ": [2**40] * 6, "large ": [3000] * 6, "negative ": [-2] * 6, "one more": [3, 2, 1, 1, 0, 1],
        "exchanged": [1, 1, 2, 2, 0, 1]}.items()},
    "code": geometry(lambda said: {**said, "more": Code()}),
    "empty": lambda m: packed({**m, "geometry.npy": npy(np.zeros(0, np.uint8))}),
    "garbage": lambda m: packed({**m, "geometry.npy": npy(np.arange(99, dtype=np.uint8))}),
    "half of it": lambda m: packed({**m, "geometry.npy": npy(array_of(m["geometry.npy"])[:-99])}),
    "of another type": lambda m: packed({**m, "geometry.npy": npy(array_of(m["geometry.npy"]).astype(np.float64))}),
    "objects": lambda m: packed({**m, "geometry.npy": npy(np.array([Code()], dtype=object))}),
    "a pickle": lambda m: packed({**m, "geometry.npy": npy(np.frombuffer(pickle.dumps(Code()), np.uint8))}),
    "20 MB": lambda m: packed({**m, "geometry.npy": npy(np.zeros(20 * 2**20, np.uint8))}),
}  # fmt: skip
CRAFTED = {
    f"{kind} {name}": craft
    for kind, table in {"archive": ARCHIVES, "rows": ROWS, "geometry": GEOMETRIES}.items()
    for name, craft in table.items()
}
HARMLESS = {
    "archive twice", "archive something before", "archive something behind", "archive not compressed", "archive bzip2",
    "archive lzma", "archive the other way round", "rows columns first", "geometry without across",
    "geometry operation 0 is there twice", *(f"geometry class of operation {n} is unknown" for n in (0, 1)),
}  # fmt: skip
"""What says the same in another way. Others are refused, but for bytes that have no meaning, such as a time."""


def check(path: Path, bundle: Path, label: Path, expected: Any) -> bool:
    """Whether the file is refused, by all who read it; else it must give what the whole file gives."""
    with no_hang([path.name]):
        shown = report(path, bundle, label)
        try:
            found = score(path, bundle, label)
        except DatasetError as error:
            check_message(f"Error: {error}", names=CASE)
            assert len(shown.faults) == 1
            assert shown.faults[0]
            return True
    assert found == expected[0]
    assert shown == expected[1]
    return False


def test_there_are_enough() -> None:
    assert len(CRAFTED) >= 140


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_files(name, whole, bundle, label, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"{CASE}.npz"
    path.write_bytes(CRAFTED[name](read(whole)))
    is_refused = check(path, bundle, label, expected)
    if not name.startswith("archive changed"):
        assert is_refused == (name not in HARMLESS)
    assert not (tmp_path / "hacked").exists()


def test_every_array_may_be_missing(whole, bundle, label, expected, tmp_path) -> None:
    members, path = read(whole), tmp_path / f"{CASE}.npz"
    for name in members:
        path.write_bytes(packed({n: c for n, c in members.items() if n != name}))
        assert check(path, bundle, label, expected)
        path.write_bytes(packed([*members.items(), (name, members[name])]))
        assert check(path, bundle, label, expected)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "folder": Path.mkdir,
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file(kind, bundle, label, expected, tmp_path) -> None:
    NO_FILES[kind](tmp_path / f"{CASE}.npz")
    assert check(tmp_path / f"{CASE}.npz", bundle, label, expected)
