"""The memory of a prediction: how much there is, what an image takes, and what is done where it does not fit."""

import logging
import resource

import pytest
import torch
from monai.data import MetaTensor
from scripts import memory
from scripts.inferers import CascadeInferer, MeanInferer, MirroredWindowInferer
from scripts.inversion import LabelInferer
from scripts.probabilities import Stored

SIZES = {
    "4GB": 4 * 10**9,
    "4 gb": 4 * 10**9,
    "1.5G": 15 * 10**8,
    "300MB": 3 * 10**8,
    "2GiB": 2 * 2**30,
    "0.5GB": 5 * 10**8,
    "3.5 gib": 7 * 2**29,
    "1KiB": 1024,
    "8.589934592GB": 2**33,
    "1TB": 10**12,
    7: 7,
    "1e3": None,
}
SIZES |= {
    "9" * 400 + "GB": None,
    "1 GiBs": None,
    "²GB": None,
    "0.1": None,
    "0": None,
    "-1GB": None,
    "much": None,
    "": None,
    None: None,
}


@pytest.mark.parametrize(("size", "expected"), SIZES.items(), ids=map(str, SIZES))
def test_sizes(size, expected) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="a size is written as 4GB"):
            memory.as_bytes(size)
    else:
        assert memory.as_bytes(size) == expected


@pytest.mark.parametrize(
    ("root", "own", "slurm", "expected"),
    [
        pytest.param("max", "max", None, 10**12, id="the machine"),
        pytest.param("5000", "max", None, 5000, id="the container"),
        pytest.param("5000", "4000", None, 4000, id="a group in it"),
        pytest.param("max", "max", "1", 2**20, id="a job of Slurm"),
        pytest.param("max", "max", "0", 10**12, id="a job of Slurm without a limit"),
        pytest.param(None, None, "x", 10**12, id="nothing is known"),
    ],
)
def test_the_memory_there_is(root, own, slurm, expected, tmp_path, monkeypatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for folder, value in ((tmp_path, root), (tmp_path / "a", own)):
        if value is not None:
            (folder / "memory.max").write_text(value)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_own_groups", lambda: [tmp_path / "a" / "b", tmp_path / "a"])
    monkeypatch.setattr(memory.os, "sysconf", lambda _: 10**6)
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    if slurm is not None:
        monkeypatch.setenv("SLURM_MEM_PER_NODE", slurm)
    assert memory.memory_bytes() == expected
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (3000 if kind == resource.RLIMIT_DATA else -1, -1))
    assert memory.memory_bytes() == min(3000, expected), "what ulimit leaves"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, 8, id="no groups"),
        pytest.param({"cpu.max": "max 100000"}, 8, id="no quota"),
        pytest.param({"cpu.max": "200000 100000"}, 2, id="a container"),
        pytest.param({"cpu.max": "250000 100000"}, 2, id="two and a half"),
        pytest.param({"cpu.max": "50000 100000"}, 1, id="half a processor"),
        pytest.param({"cpu.max": "1600000 100000"}, 8, id="more than there are"),
        pytest.param({"cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3, id="a group in it"),
        pytest.param({"cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1, id="the least counts"),
        pytest.param({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4, id="version 1"),
        pytest.param({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, id="version 1, no quota"),
        pytest.param({"cpu.max": "what"}, 8, id="something else"),
    ],
)
def test_the_processors_there_are(files, expected, tmp_path, monkeypatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_own_groups", lambda: [tmp_path / "a", tmp_path])
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert memory.processors() == expected


def test_what_an_image_takes() -> None:
    found = memory.need((2, 10, 20, 30), (20, 20, 30), window=1000, features=30, num_classes=5, open_voxels=600)
    assert found == memory.Need(image=2 * 4 * 12000 + 3 * 12000, windows=4 * 1000 * (6 * 30 + 5 * 5), rows=4 * 5 * 600)
    assert found.total == found.image + found.windows + found.rows + memory.LIBRARIES
    assert str(found) == "41 MB of memory (image 1 MB, windows 1 MB, open rows 1 MB, libraries 40 MB)"
    assert memory.as_text(1.25e10) == "12.5 GB"


def test_the_voxels_that_are_seen_at_once(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = MirroredWindowInferer((16, 16, 8), sw_batch_size=2, member="lowres")
    assert one.window_voxels((40, 40, 40)) == 2 * 16 * 16 * 8
    assert one.window_voxels((40, 40, 4)) == 2 * 16 * 16 * 8, "it is padded"
    large = MirroredWindowInferer((64, 64, 64), sw_batch_size=2)
    assert large.window_voxels((99, 99, 99)) == 64**3, "a CPU sees one at a time"
    assert MirroredWindowInferer((16, 8), 0, sw_batch_size=3).window_voxels((9, 40, 40)) == 3 * 16 * 8
    assert MeanInferer([one, large]).window_voxels((99, 99, 99)) == 64**3
    assert CascadeInferer(one, large, (1, 1, 1), (2, 2, 2)).window_voxels((99, 99, 99)) == 64**3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert one.window_voxels((40, 40, 40)) == 2 * 2 * 16 * 16 * 8, "two mirrorings at once"
    assert MirroredWindowInferer((65, 64, 64)).window_voxels((99, 99, 99)) == 65 * 64**2, "they are too large for that"
    assert MirroredWindowInferer((16, 16, 8), mirror=False).window_voxels((40, 40, 40)) == 16 * 16 * 8


def two_classes(x):
    return torch.cat([x, -x], 1)


class Network(torch.nn.Module):
    """One weight, for one feature map, and two classes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return two_classes(x)


@pytest.mark.parametrize("folder", [False, True], ids=["labels", "and probabilities"])
@pytest.mark.parametrize(
    ("max_memory", "said"),
    [
        pytest.param(None, "", id="no limit"),
        pytest.param("1GB", "case takes about 1 MB of memory", id="it fits"),
        pytest.param("128KB", "open rows 1 MB, libraries 0 MB), in 4 blocks with 150 % more windows", id="in blocks"),
    ],
)
def test_what_does_not_fit_is_predicted_in_blocks(max_memory, said, folder, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(memory, "LIBRARIES", 0)
    caplog.set_level(logging.INFO)
    image = MetaTensor(
        torch.randn(1, 1, 20, 20, 20), affine=torch.eye(4)[None], meta={"filename_or_obj": ["case.nii.gz"]}
    )
    image.is_batch = True
    infer = MirroredWindowInferer((8, 8, 8), mirror=False)
    folders = [tmp_path / name if folder else None for name in ("whole", "blocks")]
    expected = LabelInferer(infer, 2, folders[0])(image, Network())
    found = LabelInferer(infer, 2, folders[1], max_memory=max_memory)(image, Network())
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)
    if folder:
        whole, blocks = (torch.cat(list(Stored(f / "case.npz").rows()), 1) for f in folders)
        assert torch.equal(blocks, whole)


def test_what_cannot_fit_is_refused() -> None:
    image = MetaTensor(
        torch.zeros(1, 1, 40, 40, 40), affine=torch.eye(4)[None], meta={"filename_or_obj": ["case.nii.gz"]}
    )
    image.is_batch = True
    segmenter = LabelInferer(MirroredWindowInferer((8, 8, 8)), 2, max_memory="100KB")
    with pytest.raises(ValueError, match=r"it would take about 41 MB of memory .* of which 1 MB are to be used"):
        segmenter(image, Network())
