"""Probabilities on disk: close to those that were saved, and enough to make the segmentation again."""

import io

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, keep_probabilities
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.transforms import Compose
from scripts.evaluation import dice
from scripts.inversion import labels_of_files
from scripts.probabilities import Stored

SHAPES = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def smooth(shape, num_classes=3, seed=0, scale=2.0):
    """Probabilities that change slowly from place to place."""
    coarse = np.random.default_rng(seed).normal(size=(1, num_classes, 4, 4, 4)).astype(np.float32)
    logits = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=shape, mode="trilinear")[0]
    return (scale * logits).softmax(0)


def kept(folder, given_, axis=0, name="case"):
    """Probabilities as a file gives them again, (classes, X, Y, Z)."""
    path = folder / f"{name}.npz"
    keep_probabilities(path, given_, axis=axis)
    stored = Stored(path)
    assert (stored.shape, stored.axis) == (tuple(given_.shape[1:]), axis)
    return torch.cat(list(stored.rows()), 1).movedim(1, axis + 1)


# What is kept.


@given(SHAPES.flatmap(lambda s: st_numpy.arrays(np.float32, s, elements=st.floats(-9, 9, width=32))), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_round_trip(tmp_path_factory, logits, axis) -> None:
    """Each foreground class is off by half a step of 1/255 at most, the background by as much for each of them."""
    given_ = torch.from_numpy(logits).softmax(0)
    found = kept(tmp_path_factory.mktemp("round"), given_, axis)
    assert (found.shape, found.dtype) == (given_.shape, torch.float32)
    off = (found - given_).abs().flatten(1).max(1).values
    assert float(off[1:].max()) <= 1 / 510 + 1e-6
    assert float(off[0]) <= (len(given_) - 1) / 510 + 1e-6
    assert float(found.min()) >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_zero_and_one_are_exact(dtype, tmp_path) -> None:
    given_ = torch.eye(3, dtype=dtype).reshape(3, 3, 1, 1)
    assert torch.equal(kept(tmp_path, given_), given_.float())


def test_a_second_saving_changes_nothing(tmp_path) -> None:
    first = kept(tmp_path, smooth((5, 6, 7)), 2, "first")
    assert torch.equal(kept(tmp_path, first, 1, "second"), first)


def test_the_segmentation_is_the_most_probable_class(tmp_path) -> None:
    given_ = smooth((9, 8, 7))
    keep_probabilities(tmp_path / "case.npz", given_, axis=1)
    found = labels_of_files([tmp_path / "case.npz"])["pred"]
    assert (found.shape, found.dtype) == ((1, 9, 8, 7), torch.uint8)
    best = given_.sort(0).values
    apart = best[-1] - best[-2] > 3 / 255
    assert torch.equal(found.as_tensor()[0][apart].long(), given_.argmax(0)[apart])
    assert float(apart.float().mean()) > 0.8


def test_the_name_is_that_of_the_file(tmp_path) -> None:
    keep_probabilities(tmp_path / "a.b.npz", smooth((2, 2, 2)))
    assert Stored(tmp_path / "a.b.npz").image.meta["filename_or_obj"] == "a.b.nii.gz"


def test_smooth_probabilities_take_little_room(tmp_path) -> None:
    """Less than a byte a voxel, of two foreground classes."""
    keep_probabilities(tmp_path / "case.npz", smooth((64, 64, 64), scale=8.0))
    assert (tmp_path / "case.npz").stat().st_size < 64**3 * 2 / 2


@pytest.mark.parametrize("num", [2, 5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blocks_are_put_together(axis, num, tmp_path) -> None:
    given_ = smooth((9, 8, 7))
    for name, blocks in (("whole", 1), ("blocks", num)):
        keep_probabilities(tmp_path / f"{name}.npz", given_, axis=axis, num_blocks=blocks)
    rows = [list(Stored(tmp_path / f"{name}.npz").rows()) for name in ("whole", "blocks")]
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True)), "two rows at a time"


def test_files_of_older_versions_are_read(tmp_path) -> None:
    """They have all rows in one array."""
    given_ = torch.eye(3).reshape(3, 3, 1, 1).repeat(1, 1, 2, 4)
    keep_probabilities(tmp_path / "new.npz", given_)
    with np.load(tmp_path / "new.npz") as arrays:
        said = torch.load(io.BytesIO(arrays["geometry"].tobytes()), weights_only=True)
    geometry = io.BytesIO()
    torch.save({key: said[key] for key in ("affine", "applied_operations")}, geometry)
    foreground = (255 * given_[1:]).to(torch.uint8).numpy()
    np.savez(tmp_path / "old.npz", foreground=foreground, geometry=np.frombuffer(geometry.getvalue(), np.uint8))
    old = Stored(tmp_path / "old.npz")
    assert (old.shape, old.axis) == ((3, 2, 4), 0)
    assert torch.equal(torch.cat(list(old.rows()), 1), given_)


def test_an_ensemble_of_saved_probabilities_is_the_ensemble() -> None:
    """Mean of three, segmented: Dice with what full precision gives is 1 to three digits, for every class."""
    members = [smooth((40, 36, 32), seed=s) for s in range(3)]
    kept = [(m[1:] * 255).round() / 255 for m in members]
    kept = [torch.cat([(1 - k.sum(0, keepdim=True)).clamp(min=0), k]) for k in kept]
    exact, found = (torch.stack(m).mean(0).argmax(0, keepdim=True) for m in (members, kept))
    assert min(dice(found, exact, [1, 2])) > 0.99
    label = smooth((40, 36, 32), seed=0, scale=1.0).argmax(0, keepdim=True)
    for a, b in zip(dice(found, label, [1, 2]), dice(exact, label, [1, 2]), strict=True):
        assert a == pytest.approx(b, abs=1e-3)


# The file.


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch) -> None:
    def full_disk(file, array):
        file.write(b"half of")
        raise OSError("no space left")

    keep_probabilities(tmp_path / "new" / "case.npz", smooth((2, 2, 2)))
    before = (tmp_path / "new" / "case.npz").read_bytes()
    monkeypatch.setattr(np.lib.format, "write_array", full_disk)
    for name in ("case", "other"):
        with pytest.raises(OSError, match="no space left"):
            keep_probabilities(tmp_path / "new" / f"{name}.npz", smooth((2, 2, 2)))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["case.npz"]
    assert (tmp_path / "new" / "case.npz").read_bytes() == before


# With a bundle.


def values_of(parser) -> np.ndarray:
    """The dataset's value of each class, which files hold; between the transforms are class numbers."""
    return np.array(parser.get_parsed_content("label_values"))


@pytest.fixture(params=["2d", "3d_fullres", "3d_lowres"])
def evaluated(request, project, parse, tmp_path):
    """Evaluation of fold 1 in a process, by a network that is decided: the parser and the folder of results."""
    bundle = project / "bundles" / TINY_PLAN.name / request.param
    settings_ = {"cache_dir": str(tmp_path / "cache"), "num_workers": 0, "device": "cpu", "fold": 1, "amp": False}
    parser = parse(bundle, "train", "evaluate", ckpt_dir=str(tmp_path), mirror=False, **settings_)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def")
    with torch.no_grad():
        for parameter in network.output_block.parameters():
            parameter.mul_(20)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    parser.get_parsed_content("validate#evaluator").run()
    return parser, tmp_path / "validation"


def test_the_segmentation_can_be_made_again(evaluated) -> None:
    """By the bundle's own postprocessing but for its last step, which writes."""
    parser, folder = evaluated
    *between, last = parser.get_parsed_content("validate#postprocessing").flatten().transforms
    assert type(last).__name__ == "SaveImaged"
    found = Compose(between)(labels_of_files([folder / "probabilities" / "case_1.npz"]))["pred"]
    written = nibabel.load(folder / "case_1.nii.gz")
    assert found.shape[1:] == written.shape
    np.testing.assert_allclose(found.affine, written.affine, atol=1e-5)
    same = np.asarray(written.dataobj) == values_of(parser)[found[0].numpy()]
    assert same.mean() > 0.995, "but for voxels where two classes are as probable"
    assert set(np.unique(written.dataobj)) > {0}


class Decided:
    """An inferer that gives probabilities whatever the image."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def parts(self):
        return []

    def window_voxels(self, shape):
        return 1

    def open_voxels(self, shape, axis, block=None):
        return 1

    def blocks(self, image, network, axis, blocks):
        assert len(blocks) == 1
        yield iter(self.probabilities.movedim(axis + 1, 1).split(3, 1))


@pytest.mark.parametrize("config", ["3d_fullres", "3d_lowres"])
def test_quantized_probabilities_give_the_very_same_segmentation(config, project, parse, tmp_path) -> None:
    """For probabilities that the file holds exactly, voxel by voxel; oblique image. And both are, but for ties in
    float16, what the inversion of all probabilities at once gives."""
    parser = parse(project / "bundles" / TINY_PLAN.name / config, "train", "evaluate", output_dir=str(tmp_path))
    data = parser.get_parsed_content("preprocessing")(
        {"image": str(project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz")}
    )
    foreground = (smooth(data["image"].shape[1:])[1:] * 255).round() / 255
    pred = torch.cat([(1 - foreground.sum(0, keepdim=True)).clamp(min=0), foreground])
    segmenter = parser.get_parsed_content("validate#inferer")
    segmenter.inferer = Decided(pred)
    [batch] = DataLoader([{"image": data["image"]}], batch_size=1)
    [labels] = decollate_batch(segmenter(batch["image"], None))
    postprocessing = parser.get_parsed_content("validate#postprocessing").flatten()
    postprocessing({"pred": labels, "image": data["image"]})
    between = Compose(postprocessing.transforms[:-1])
    found = between(labels_of_files([tmp_path / "probabilities" / "test_1.npz"]))["pred"]
    written = nibabel.load(tmp_path / "test_1.nii.gz")
    np.testing.assert_array_equal(values_of(parser)[found[0].numpy()], written.dataobj)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {".written.json", "test_1.nii.gz", "test_1.npz"}
    whole = {"pred": MetaTensor(pred).copy_meta_from(data["image"], copy_attr=False), "image": data["image"]}
    assert float((between(whole)["pred"] == found).as_tensor().float().mean()) > 0.998
