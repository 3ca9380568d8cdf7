"""Postprocessing by largest components."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage
from scripts.components import KeepLargestComponentd


def plainly(volume: np.ndarray, label: int) -> np.ndarray:
    """What should be left, voxel by voxel of the whole volume."""
    components, count = ndimage.label(volume == label, np.ones((3, 3, 3)))
    sizes = [(components == number).sum() for number in range(1, count + 1)]
    result = volume.copy()
    if count:
        result[(components > 0) & (components != 1 + int(np.argmax(sizes)))] = 0
    return result


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3), st.floats(0.05, 0.6))
@settings(max_examples=60, deadline=None)
def test_all_but_the_largest_component_become_background(seed, shape, density) -> None:
    rng = np.random.default_rng(seed)
    volume = (rng.random(shape) < density) * rng.integers(1, 4, shape).astype(np.uint8)
    found = KeepLargestComponentd("pred", [1, 3])({"pred": torch.from_numpy(volume.copy())[None]})["pred"][0].numpy()
    np.testing.assert_array_equal(found, plainly(plainly(volume, 1), 3))


CASES = {
    "nothing": (np.zeros(7), np.zeros(7)),
    "one": (np.array([0, 1, 1, 0, 0, 0, 0]), np.array([0, 1, 1, 0, 0, 0, 0])),
    "two": (np.array([1, 0, 1, 1, 0, 0, 1]), np.array([0, 0, 1, 1, 0, 0, 0])),
    "equals: the first": (np.array([1, 1, 0, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 0, 0, 0])),
    "another class between": (np.array([1, 2, 1, 1, 2, 0, 2]), np.array([0, 2, 1, 1, 2, 0, 2])),
}


@pytest.mark.parametrize(("before", "after"), CASES.values(), ids=CASES)
def test_along_a_line(before, after) -> None:
    data = {"pred": MetaTensor(torch.from_numpy(before.astype(np.uint8)).reshape(1, 7, 1, 1), affine=torch.eye(4) * 2)}
    found = KeepLargestComponentd("pred", [1])(data)["pred"]
    assert found.reshape(-1).tolist() == after.tolist()
    assert isinstance(found, MetaTensor)
    assert found.dtype == torch.uint8
    assert data["pred"].reshape(-1).tolist() == before.tolist(), "the input is not written to"
