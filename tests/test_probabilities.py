"""Probabilities on disk: close to those that were saved, and enough to make the segmentation again."""

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from monai.data import MetaTensor
from monai.transforms import Compose
from scripts import probabilities
from scripts.evaluation import dice

SHAPES = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))


def an_image(shape=(1, 1, 1), name="case_7"):
    return MetaTensor(torch.zeros(1, *shape), meta={"filename_or_obj": f"/data/imagesTr/{name}.nii.gz"})


def smooth(shape, num_classes=3, seed=0, scale=2.0):
    """Probabilities that change slowly from place to place."""
    coarse = np.random.default_rng(seed).normal(size=(1, num_classes, 4, 4, 4)).astype(np.float32)
    logits = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=shape, mode="trilinear")[0]
    return (scale * logits).softmax(0)


# What is kept.


@given(SHAPES.flatmap(lambda shape: st_numpy.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32))))
@settings(max_examples=60, deadline=None)
def test_a_round_trip(tmp_path_factory, logits) -> None:
    """Each foreground class is off by half a step of 1/255 at most, the background by as much for each of them."""
    given_ = torch.from_numpy(logits).softmax(0)
    path = tmp_path_factory.mktemp("round") / "case_7.npz"
    probabilities.save(path, given_, an_image())
    found = probabilities.load(path)["pred"]
    assert (found.shape, found.dtype) == (given_.shape, torch.float32)
    off = (found - given_).abs().flatten(1).max(1).values
    assert float(off[1:].max()) <= 1 / 510 + 1e-6
    assert float(off[0]) <= (len(given_) - 1) / 510 + 1e-6
    assert float(found.min()) >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_zero_and_one_are_exact(dtype, tmp_path) -> None:
    given_ = torch.eye(3, dtype=dtype).reshape(3, 3, 1, 1)
    probabilities.save(tmp_path / "case.npz", given_, an_image())
    assert torch.equal(probabilities.load(tmp_path / "case.npz")["pred"], given_.float())


def test_a_second_saving_changes_nothing(tmp_path) -> None:
    probabilities.save(tmp_path / "first.npz", smooth((5, 6, 7)), an_image())
    first = probabilities.load(tmp_path / "first.npz")["pred"]
    probabilities.save(tmp_path / "second.npz", first, an_image())
    assert torch.equal(probabilities.load(tmp_path / "second.npz")["pred"], first)


def test_the_segmentation_is_the_most_probable_class(tmp_path) -> None:
    given_ = smooth((9, 8, 7))
    probabilities.save(tmp_path / "case.npz", given_, an_image())
    found = probabilities.segmentation(tmp_path / "case.npz")
    assert (found.shape, found.dtype) == ((1, 9, 8, 7), torch.uint8)
    best = given_.sort(0).values
    apart = best[-1] - best[-2] > 3 / 255
    assert torch.equal(found[0][apart].long(), given_.argmax(0)[apart])
    assert float(apart.float().mean()) > 0.8


def test_the_name_is_that_of_the_file(tmp_path) -> None:
    probabilities.save(tmp_path / "a.b.npz", smooth((2, 2, 2)), an_image(name="another"))
    assert probabilities.load(tmp_path / "a.b.npz")["image"].meta["filename_or_obj"] == "a.b.nii.gz"


def test_smooth_probabilities_take_little_room(tmp_path) -> None:
    """One byte a voxel and foreground class before compression."""
    given_ = smooth((64, 64, 64), scale=8.0)
    probabilities.save(tmp_path / "case.npz", given_, an_image())
    assert (tmp_path / "case.npz").stat().st_size < 64**3 * 2 / 2


def test_an_ensemble_of_saved_probabilities_is_the_ensemble() -> None:
    """Mean of three, segmented: Dice with what full precision gives is 1 to three digits, for every class."""
    members = [smooth((40, 36, 32), seed=s) for s in range(3)]
    kept = [(m[1:] * 255).round() / 255 for m in members]
    kept = [torch.cat([(1 - k.sum(0, keepdim=True)).clamp(min=0), k]) for k in kept]
    exact, found = (torch.stack(m).mean(0).argmax(0, keepdim=True) for m in (members, kept))
    assert min(dice(found, exact, [0, 1, 2])) > 0.99
    label = smooth((40, 36, 32), seed=0, scale=1.0).argmax(0, keepdim=True)
    for a, b in zip(dice(found, label, [1, 2]), dice(exact, label, [1, 2]), strict=True):
        assert a == pytest.approx(b, abs=1e-3)


# The file.


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch) -> None:
    def full_disk(file, **arrays):
        file.write(b"half of")
        raise OSError("no space left")

    probabilities.save(tmp_path / "new" / "case.npz", smooth((2, 2, 2)), an_image())
    before = (tmp_path / "new" / "case.npz").read_bytes()
    monkeypatch.setattr(probabilities.np, "savez_compressed", full_disk)
    for name in ("case", "other"):
        with pytest.raises(OSError, match="no space left"):
            probabilities.save(tmp_path / "new" / f"{name}.npz", smooth((2, 2, 2)), an_image())
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["case.npz"]
    assert (tmp_path / "new" / "case.npz").read_bytes() == before


# With a bundle.


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


def test_the_segmentation_can_be_made_again(evaluated, monkeypatch) -> None:
    """The bundle's own postprocessing without its first step, which saves probabilities, and its last, which writes."""
    parser, folder = evaluated
    postprocessing = parser.get_parsed_content("validate#postprocessing").flatten()
    first, *between, last = postprocessing.transforms
    assert isinstance(first, probabilities.SaveProbabilitiesd)
    assert type(last).__name__ == "SaveImaged"
    found = Compose(between)(probabilities.load(folder / "probabilities" / "case_1.npz"))["pred"]
    written = nibabel.load(folder / "case_1.nii.gz")
    assert found.shape[1:] == written.shape
    np.testing.assert_allclose(found.affine, written.affine, atol=1e-5)
    same = np.asarray(written.dataobj) == found[0].numpy()
    assert same.mean() > 0.995, "but for voxels where two classes are as probable"
    assert set(np.unique(written.dataobj)) > {0}


def test_quantized_probabilities_give_the_very_same_segmentation(project, parse, tmp_path) -> None:
    """For probabilities that the file holds exactly, voxel by voxel; oblique image."""
    bundle = project / "bundles" / TINY_PLAN.name / "3d_fullres"
    parser = parse(bundle, "train", "evaluate", output_dir=str(tmp_path))
    data = parser.get_parsed_content("preprocessing")(
        {"image": str(project / "data" / TINY_PLAN.name / "imagesTs" / "test_1.nii.gz")}
    )
    foreground = (smooth(data["image"].shape[1:])[1:] * 255).round() / 255
    pred = torch.cat([(1 - foreground.sum(0, keepdim=True)).clamp(min=0), foreground])
    data["pred"] = MetaTensor(pred).copy_meta_from(data["image"], copy_attr=False)
    postprocessing = parser.get_parsed_content("validate#postprocessing").flatten()
    postprocessing(data)
    between = postprocessing.transforms[1:-1]
    found = Compose(between)(probabilities.load(tmp_path / "probabilities" / "test_1.npz"))["pred"]
    written = nibabel.load(tmp_path / "test_1.nii.gz")
    np.testing.assert_array_equal(found[0].numpy(), written.dataobj)
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {"test_1.nii.gz", "test_1.npz"}
