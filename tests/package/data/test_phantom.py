"""The synthetic dataset, and the command from end to end on it."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from autoplan.__main__ import main
from autoplan.data import decathlon as datasets
from autoplan.data import images, phantom
from autoplan.data.fingerprint import fingerprint
from autoplan.planning.plan import plan
from autoplan.training import standing


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A phantom dataset of the default size."""
    path = tmp_path_factory.mktemp("data") / "Task00_Phantom"
    phantom.generate(path)
    return path


def test_it_is_a_dataset_with_what_makes_datasets_hard(folder) -> None:
    dataset = datasets.load(folder)
    facts = fingerprint(dataset)
    planned = plan(facts)
    assert (len(dataset.training), len(dataset.test), len(dataset.modalities), len(dataset.labels)) == (10, 3, 2, 4)
    assert all(c.fraction_kept < 0.8 for c in facts.cases), "a border of zeros"
    assert planned.nonzero_only
    assert planned.slice_axis == 2
    assert all(max(c.spacing) > 2 * min(c.spacing) for c in facts.cases), "anisotropic"
    assert len({c.spacing for c in facts.cases}) == len(facts.cases)
    affines = [images.read_volume(dataset.root / c.images[0]).affine for c in dataset.training]
    assert len({tuple(np.sign(np.round(a[:3, :3], 2)).flat) for a in affines}) == len(phantom.ORIENTATIONS)


def test_the_same_seed_makes_the_same_voxels() -> None:
    first, again, other = (phantom.make_case(np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


@pytest.mark.parametrize("value", [1, 2, 3], ids=phantom.LABELS[1:])
def test_no_threshold_finds_a_class(value) -> None:
    """The best interval of standardized intensities of either channel, chosen with the truth in hand."""
    cases = [phantom.make_case(np.random.default_rng(seed)) for seed in range(6)]
    best = 0.0
    for channel in range(2):
        values = np.concatenate([_standardized(image[..., channel]) for image, _, _ in cases])
        truth = np.concatenate([label.ravel() == value for _, label, _ in cases])
        levels = np.quantile(values, np.linspace(0, 1, 60))
        inside = np.histogram(values, levels)[0].cumsum(), np.histogram(values[truth], levels)[0].cumsum()
        chosen, hit = (np.triu(c[None, :] - np.concatenate([[0], c[:-1]])[:, None]) for c in inside)
        best = max(best, float((2 * hit / (chosen + truth.sum())).max()))
    assert best < 0.6


def _standardized(channel: np.ndarray) -> np.ndarray:
    inside = channel[channel > 0]
    return ((channel - inside.mean()) / inside.std()).ravel()


def test_it_is_not_written_over(folder, capsys) -> None:
    assert main(["phantom", str(folder)]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_cases", "0"], "cannot make 0 training"),
        (["--num_cases", "few"], "--num_cases takes a whole number"),
        (["--size", "3"], "there is no flag --size"),
        (["more"], "one argument too many"),
    ],
)
def test_the_command_refuses(tmp_path, capsys, arguments, message) -> None:
    assert main(["phantom", str(tmp_path / "x"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_commands_from_end_to_end(tmp_path, capsys, monkeypatch) -> None:
    """Rendering is replaced: it has tests of its own."""
    asked = []
    render = types.ModuleType("autoplan.bundle.render")
    render.render_all = lambda plan, dataset, bundles, *, force: (
        asked.append((plan, dataset.root, bundles, force)) or [bundles / "x"]
    )
    monkeypatch.setitem(sys.modules, "autoplan.bundle.render", render)
    monkeypatch.setattr(standing, "told", lambda *_: [])  # there are no bundles
    monkeypatch.chdir(tmp_path)
    assert main(["phantom", "data/Task00_Phantom", "--num_cases", "4", "--num_test", "1"]) == 0
    assert main(["--explain", "Task00_Phantom", "--cascade", "always"]) == 0
    first = capsys.readouterr().out
    assert main(["Task00_Phantom", "--force"]) == 0
    second = capsys.readouterr().out
    assert "fingerprint of 4 cases computed" in first
    assert "fingerprint of 4 cases reused" in second
    assert "Warning: There are 4 training cases" in second
    assert [line.split()[0] for line in second.splitlines() if line.startswith(("2d", "3d"))] == ["2d", "3d_fullres"]
    for part in ("\n3d_lowres\n", "\nall configurations\n", "  batch_size: ", "[section 2.2]"):
        assert part in first
        assert part not in second
    assert second.splitlines()[-1] == "bundles/x"
    (_, root, bundles, force), (_, _, _, forced) = asked
    assert (root, bundles, force, forced) == (tmp_path / "data" / "Task00_Phantom", Path("bundles"), False, True)
    assert asked[0][0].configuration("3d_lowres").batch_dice is False
