"""From probabilities to labels on the image's own grid: what MONAI's inversion and the largest class give."""

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY_PLAN
from monai.data import DataLoader, MetaTensor, decollate_batch
from monai.transforms import Invertd
from scripts.blocks import cut
from scripts.inversion import InvertToLabeld, LabelInferer, labels_of_blocks, mean_rows

ANGLE = np.deg2rad(20)
OBLIQUE = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]])
DIRECTIONS = {
    "RAS": np.eye(3),
    "LPI": -np.eye(3),
    "axes in another order": np.eye(3)[[1, 2, 0]],
    "oblique": OBLIQUE,
    "oblique, other order, flipped": OBLIQUE[[2, 0, 1]] * [1, -1, 1],
}
CONFIGURATIONS = ("3d_fullres", "3d_lowres")


@pytest.fixture(params=CONFIGURATIONS)
def preprocessing(request, project, parse):
    return parse(project / "bundles" / TINY_PLAN.name / request.param, "inference").get_parsed_content("preprocessing")


def write_image(path, direction, shape=(13, 11, 9)):
    """Two channels, zeros around three sides, a spacing that the preprocessing changes."""
    array = np.zeros((*shape, 2), np.float32)
    array[2:, 1:-2, :-1] = np.random.default_rng(0).normal(50, 20, (shape[0] - 2, shape[1] - 3, shape[2] - 1, 2))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = direction @ np.diag([2.0, 1.0, 2.5]), (5, -7, 11)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def probabilities(image, num_classes=3, seed=0):
    """Smooth, of another size for each class, on the grid of a preprocessed image."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(size=(1, num_classes, 3, 3, 3)).astype(np.float32))
    logits = torch.nn.functional.interpolate(coarse, size=tuple(image.shape[1:]), mode="trilinear")[0]
    return MetaTensor((3 * logits).softmax(0).half()).copy_meta_from(image, copy_attr=False)


def stock(data, transform):
    """MONAI's inversion of all classes at once, before the largest class is taken."""
    invert = Invertd("pred", transform, "image", nearest_interp=False)
    return invert({"pred": data["pred"], "image": data["image"]})["pred"]


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_equals_the_stock_inversion(direction, preprocessing, tmp_path) -> None:
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", direction))})
    data["pred"] = probabilities(data["image"])
    expected = stock(data, preprocessing)
    found = InvertToLabeld("pred", preprocessing, "image")(data)["pred"]
    assert (found.shape, found.dtype) == ((1, 13, 11, 9), torch.uint8)
    assert torch.equal(found.as_tensor(), expected.half().argmax(0, keepdim=True).as_tensor().to(torch.uint8))
    assert torch.equal(found.affine, expected.affine)
    np.testing.assert_allclose(found.affine, nibabel.load(tmp_path / "image.nii.gz").affine, atol=1e-5)
    assert set(found.unique().tolist()) == {0, 1, 2}
    # In float32 only near ties come out otherwise.
    best = expected.as_tensor().float().sort(0).values
    apart = best[-1] - best[-2] > 1e-3
    assert torch.equal(found[0][apart].long().as_tensor(), expected.argmax(0).as_tensor()[apart])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_row_by_row_is_the_same(direction, axis, preprocessing, tmp_path) -> None:
    """As the inversion of all probabilities at once, but for voxels where float16 cannot tell two classes apart."""
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", direction))})
    data["pred"] = probabilities(data["image"])
    [batch] = DataLoader([{"image": data["image"]}], batch_size=1)
    segmenter = LabelInferer(Given(data["pred"].as_tensor()), 3, axis=axis)
    [labels] = decollate_batch(segmenter(batch["image"], torch.nn.Identity()))
    assert labels.dtype == torch.uint8
    invert = InvertToLabeld("pred", preprocessing, "image")
    expected = invert(data)["pred"]
    found = invert({"pred": labels, "image": data["image"]})["pred"]
    assert (found.shape, found.dtype, found.applied_operations) == ((1, 13, 11, 9), torch.uint8, [])
    assert torch.equal(found.affine, expected.affine)
    assert found.meta["filename_or_obj"] == expected.meta["filename_or_obj"]
    best = stock(data, preprocessing).as_tensor().float().sort(0).values
    tied = best[-1] - best[-2] < 1e-3
    assert torch.equal(found[0][~tied].as_tensor(), expected[0][~tied].as_tensor())
    assert float(tied[2:, 1:-2, :-1].float().mean()) < 0.01
    assert set(found.unique().tolist()) == {0, 1, 2}


class Given:
    """An inferer that gives these probabilities (classes, X, Y, Z), two rows at a time."""

    def __init__(self, pred):
        self.pred = pred

    def best_axis(self, shape):
        return int(np.argmax(shape))

    def window_voxels(self, shape):
        return 1

    def parts(self):
        return []

    def open_voxels(self, shape, axis, block=None):
        return 1

    def blocks(self, image, network, axis, blocks):
        assert image.shape[1:] == self.pred.shape[1:]
        for block in blocks:
            part = self.pred.movedim(block.axis + 1, 0)[block.spans[0]].movedim(0, block.axis + 1)
            yield iter(part.movedim(axis + 1, 1).split(2, 1))


GRIDS = {
    "the same": [(9, 14, 11)] * 2,
    "finer": [(9, 14, 11), (13, 31, 30)],
    "coarser": [(19, 44, 31), (5, 9, 8)],
    "one axis": [(9, 14, 11), (9, 14, 20)],
    "over another grid": [(9, 14, 11), (20, 9, 22), (11, 21, 13)],
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shapes", GRIDS.values(), ids=GRIDS)
def test_in_blocks_is_the_same_but_for_rounding(shapes, axis) -> None:
    pred = torch.from_numpy(np.random.default_rng(0).random((4, *shapes[0]), np.float32)).half()
    infer = Given(pred)

    def labels(num):
        blocks = cut(shapes, axis, num)
        own = [pred.movedim(b.axis + 1, 0)[b.spans[0]][b.own] for b in blocks]
        assert torch.equal(torch.cat(own), pred.movedim(blocks[0].axis + 1, 0)), "each voxel belongs to one"
        return labels_of_blocks(infer.blocks(pred, None, axis, blocks), shapes, axis, blocks)

    whole = labels(1)
    assert whole.shape == shapes[-1]
    by_torch = pred.float()[None]
    for shape in shapes[1:]:
        by_torch = torch.nn.functional.interpolate(by_torch, size=shape, mode="trilinear")
    best = by_torch[0].sort(0).values
    apart = best[-1] - best[-2] > 2e-3
    assert apart.float().mean() > 0.9
    for num in (1, 2, 3, 7, 99):
        assert torch.equal(labels(num)[apart].long(), by_torch[0].argmax(0)[apart])


@pytest.mark.parametrize("split", [(3, 2), (1, 5), (4, 4)], ids=str)
def test_members_advance_together(split) -> None:
    """However many rows each of them finishes at a time."""
    volumes = [torch.rand(3, 11, 4, 5), torch.rand(3, 11, 4, 5)]
    rows = mean_rows([iter(v.split(n, 1)) for v, n in zip(volumes, split, strict=True)])
    torch.testing.assert_close(torch.cat(list(rows), 1), torch.stack(volumes).mean(0))


@pytest.mark.parametrize("other", [(3, 10, 4, 5), (3, 12, 4, 5), (2, 11, 4, 5), (3, 11, 5, 4)], ids=str)
def test_members_on_other_grids_are_an_error(other) -> None:
    members = [iter(torch.rand(3, 11, 4, 5).split(2, 1)), iter(torch.rand(*other).split(3, 1))]
    with pytest.raises(ValueError, match="different grids"):
        list(mean_rows(members))


@pytest.mark.parametrize("case", ["imagesTr/case_0", "imagesTs/test_0", "imagesTs/test_1"])
def test_the_cases_of_a_dataset(case, preprocessing, project) -> None:
    path = project / "data" / TINY_PLAN.name / f"{case}.nii.gz"
    data = preprocessing({"image": str(path)})
    data["pred"] = probabilities(data["image"])
    found = InvertToLabeld("pred", preprocessing, "image")(data)["pred"]
    image = nibabel.load(path)
    assert found.shape[1:] == image.shape[:3]
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    assert found.meta["filename_or_obj"] == str(path), "by it the file is named"
    expected = stock(data, preprocessing).half().argmax(0, keepdim=True)
    assert torch.equal(found.as_tensor().long(), expected.as_tensor())


def test_outside_of_the_crop_is_background(preprocessing, tmp_path) -> None:
    """Where no probability is known, even though the background is nowhere probable."""
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", np.eye(3)))})
    pred = torch.zeros(3, *data["image"].shape[1:], dtype=torch.float16)
    pred[2] = 1
    data["pred"] = MetaTensor(pred).copy_meta_from(data["image"], copy_attr=False)
    found = InvertToLabeld("pred", preprocessing, "image")(data)["pred"]
    expected = torch.zeros(13, 11, 9)
    expected[2:, 1:-2, :-1] = 2
    assert torch.equal(found[0].as_tensor().float(), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((0.5, 0.5, 0.0), 0), ((0.2, 0.4, 0.4), 1), ((0.4, 0.2, 0.4), 0), ((1 / 3, 1 / 3, 1 / 3), 0), ((0, 0, 1), 2)],
    ids=str,
)
def test_a_tie_goes_to_the_first_class(values, expected, preprocessing, tmp_path) -> None:
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", np.eye(3)))})
    pred = torch.tensor(values).half().reshape(3, 1, 1, 1).repeat(1, *data["image"].shape[1:])
    data["pred"] = MetaTensor(pred).copy_meta_from(data["image"], copy_attr=False)
    found = InvertToLabeld("pred", preprocessing, "image")(data)["pred"]
    assert found[0, 2:, 1:-2, :-1].unique().tolist() == [expected]


def test_what_it_is_given_stays_as_it_was(preprocessing, tmp_path) -> None:
    """So that the same probabilities can be inverted again."""
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", np.eye(3)))})
    data["pred"] = probabilities(data["image"])
    pred, image, steps = data["pred"].clone(), data["image"].clone(), len(data["image"].applied_operations)
    invert = InvertToLabeld("pred", preprocessing, "image")
    first, second = invert(data)["pred"], invert(data)["pred"]
    assert torch.equal(first, second)
    assert torch.equal(data["pred"], pred)
    assert torch.equal(data["image"], image)
    assert len(data["image"].applied_operations) == steps


def test_the_result_needs_no_inversion_any_more(preprocessing, tmp_path) -> None:
    data = preprocessing({"image": str(write_image(tmp_path / "image.nii.gz", np.eye(3)))})
    data["pred"] = probabilities(data["image"])
    assert InvertToLabeld("pred", preprocessing, "image")(data)["pred"].applied_operations == []
