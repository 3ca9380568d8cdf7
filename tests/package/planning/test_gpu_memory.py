"""A plan for a GPU of little memory: batch first, then patch, by the rules of the paper."""

import math
from dataclasses import replace

import pytest
from made import case, fingerprint

from autoplan.__main__ import main
from autoplan.base.errors import PlanError
from autoplan.bundle import saved
from autoplan.cli import commands
from autoplan.cost import footprint
from autoplan.planning import gpu_memory, topology
from autoplan.planning.plan import plan
from autoplan.planning.values import Configuration, Plan

CASES = [case(name=f"case_{i:02d}", shape=(160,) * 3, cropped_shape=(160,) * 3) for i in range(40)]
PLAN = plan(fingerprint(CASES), cascade="always")
GB = 10**9


def needed(_: Plan, c: Configuration) -> int:
    """64 bytes a voxel of a step, some more where the first stage's segmentation is seen."""
    return c.batch_size * math.prod(c.patch_size) * (70 if c.name == "3d_cascade_fullres" else 64)


def test_the_plan_before() -> None:
    assert [(c.name, c.patch_size, c.batch_size) for c in PLAN.configurations] == [
        ("2d", (160, 160), 107),
        ("3d_fullres", (128, 128, 128), 2),
        ("3d_lowres", (80, 80, 80), 2),
        ("3d_cascade_fullres", (128, 128, 128), 2),
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * GB),
        ("8 gb", 8 * GB),
        ("11.5GiB", 23 * 2**29),
        ("2048MB", 2_048_000_000),
        (" 6GB ", 6 * GB),
        ("8TB", 8000 * GB),
    ],
)
def test_sizes(text, size) -> None:
    assert gpu_memory.parsed(text) == size


@pytest.mark.parametrize("text", ["8", "GB", "-8GB", "1GB", "0GB", "8PB", "8GBs", "1e3GB", "nan", "9" * 99 + "GB"])
def test_no_sizes(text) -> None:
    with pytest.raises(PlanError, match="--gpu_memory takes a size above 1 GB, such as 8GB, not"):
        gpu_memory.parsed(text)


def fit(room: int, planned: Plan = PLAN) -> Plan:
    """The plan for a GPU that has so many bytes for tensors."""
    return gpu_memory.fitted(planned, gpu_memory.RESERVED_BYTES + room, needed)


@pytest.mark.parametrize(
    ("side", "limit", "said"),
    [
        pytest.param(512, None, "", id="CT"),
        pytest.param(1024, None, "", id="two fit"),
        pytest.param(4000, None, "patches of 4032x4032, 2 in a batch: 11.8 times the voxels", id="microscopy"),
        pytest.param(4000, 8 * GB, "", id="with a limit"),
    ],
)
def test_patches_of_whole_pictures_are_said(side: int, limit: int | None, said: str) -> None:
    shape = (side, side, 1)
    pictures = [
        case(name=f"case_{i:02d}", shape=shape, cropped_shape=shape, spacing=(1.0, 1.0, 1.0)) for i in range(40)
    ]
    found = gpu_memory.suspicion(replace(plan(fingerprint(pictures)), gpu_memory=limit))
    assert said in found if said else found is None


def test_a_plan_without_2d_has_nothing_to_say() -> None:
    assert gpu_memory.suspicion(replace(PLAN, configurations=PLAN.configurations[1:])) is None


def test_what_fits_stays() -> None:
    found = fit(GB)
    assert found.configurations == PLAN.configurations
    assert found.decisions[1:] == PLAN.decisions
    assert "all configurations fit as the paper plans them" in found.decisions[0].because
    assert found.gpu_memory == 2 * GB


def test_the_batch_goes_first() -> None:
    """The largest that fits, with the patch of the plan."""
    room = 50 * 160 * 160 * 64
    found = fit(room).configuration("2d")
    assert (found.patch_size, found.batch_size) == ((160, 160), 50)
    assert fit(room - 1).configuration("2d").batch_size == 49


@pytest.mark.parametrize("megabytes", [100, 60, 30, 10, 5, 1])
def test_then_the_patch(megabytes) -> None:
    """Each fits, is one that the network can halve, has the batch of the rules at most, and is the largest: the patch
    of the rule for a voxel more does not fit."""
    room = megabytes * 2**20
    found = fit(room)
    for c in found.configurations:
        assert needed(found, c) <= room
        assert c.batch_size >= topology.MIN_BATCH_SIZE
        assert c.patch_size == tuple(
            topology.admissible_size(n, max_pool=6 if c.name == "2d" else 5) for n in c.patch_size
        )
        assert c.features == topology.features(len(c.strides))
    c = found.configuration("3d_cascade_fullres")
    larger = [topology.patch_size_3d(c.median_shape, c.spacing, max_patch_voxels=n)
              for n in range(math.prod(c.patch_size) + 1, 128**3, 997)]  # fmt: skip
    sizes = {p: needed(found, replace(PLAN.configuration(c.name), patch_size=p, strides=((1,) * 3,), features=(30,)))
             for p in set(larger) if math.prod(p) > math.prod(c.patch_size)}  # fmt: skip
    assert min(sizes.values()) > room


@pytest.mark.parametrize("megabytes", [250, 100, 10])
def test_the_second_stage_keeps_the_network_of_3d_fullres(megabytes) -> None:
    full, cascade = (fit(megabytes * 2**20).configuration(n) for n in ("3d_fullres", "3d_cascade_fullres"))
    assert replace(full, name=cascade.name, batch_dice=cascade.batch_dice) == cascade
    assert cascade.batch_dice == PLAN.configuration(cascade.name).batch_dice


def test_a_cap_on_the_features_stays() -> None:
    capped = plan(fingerprint(CASES), cascade="never", max_features=320)
    assert max(fit(30 * 2**20, capped).configuration("3d_fullres").features) <= 320


def test_a_gpu_that_is_too_small_is_one_line() -> None:
    with pytest.raises(PlanError, match="2d does not fit a GPU of 1 GB: its smallest patch needs"):
        fit(100)


def test_the_decisions_say_so() -> None:
    found = fit(100 * 2**20)
    by_name = {(d.configuration, d.name): d for d in found.decisions}
    first = found.decisions[0]
    assert (first.name, first.value) == ("gpu_memory", "1.105 GB")
    assert "2d gets a batch of 64 in place of 107" in first.because
    for c in found.configurations[:3]:
        assert by_name[c.name, "batch_size"].value == str(c.batch_size)
        assert by_name[c.name, "patch_size"].value == " x ".join(map(str, c.patch_size))
    assert by_name["2d", "batch_size"].because.startswith("64 in place of 107, so that a step fits a GPU of 1.105 GB.")


def test_the_commands(tiny, tmp_path, capsys, monkeypatch) -> None:
    """Planning keeps the limit until it is taken back; all configurations of the dataset are tiny."""
    monkeypatch.setattr(footprint, "training_bytes", needed)
    bundles = tmp_path / "bundles"
    words = ["plan", str(tiny.folder), "--bundles", str(bundles), "--num_processes", "1"]
    task = bundles / tiny.folder.name
    assert main([*words, "--gpu_memory", "8GB"]) == 0
    assert "GPU memory: --gpu_memory 8 GB was given" in capsys.readouterr().out
    assert main(words) == 0
    assert saved.load_plan(task).gpu_memory == 8 * GB
    assert main([*words, "--gpu_memory", "none", "--force"]) == 0
    assert saved.load_plan(task).gpu_memory is None
    assert main([*words, "--gpu_memory", "8"]) == 1
    assert "such as 8GB, not '8'" in capsys.readouterr().err
    assert main(["run", *words[1:4], "--from", "x", "--gpu_memory", "8GB"]) == 1
    assert "--gpu_memory and --from exclude each other" in capsys.readouterr().err
    assert commands._gpu_memory("", tmp_path / "none") is None
