"""Intensities: CT by the dataset's statistics, all else by each image's own, within the nonzero region where asked."""

import re

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts import nonzero
from scripts.intensities import profile
from scripts.normalization import KnownValuesd, NormalizeChannelsd
from scripts.resampling import resample

CT = {"lower": -100.0, "upper": 200.0, "mean": 50.0, "std": 40.0}


def image_of(channels=1, seed=0):
    values = np.random.default_rng(seed).normal(30, 150, (channels, 9, 8, 7)).astype(np.float32)
    return MetaTensor(torch.from_numpy(values))


def test_ct_is_clipped_and_scaled_by_the_statistics_of_the_dataset() -> None:
    image = image_of()
    out = NormalizeChannelsd("image", [CT])({"image": image})["image"]
    np.testing.assert_allclose(out, (np.clip(np.asarray(image), -100, 200) - 50) / 40, rtol=1e-5, atol=1e-6)
    assert float(out.min()) == pytest.approx(-3.75)
    assert float(out.max()) == pytest.approx(3.75)


def test_other_modalities_are_z_scored_image_by_image() -> None:
    for seed in range(3):
        out = NormalizeChannelsd("image", [None])({"image": image_of(seed=seed) * 10 + 1000})["image"]
        assert float(out.mean()) == pytest.approx(0, abs=1e-5)
        assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_each_channel_by_its_own_rule() -> None:
    image = image_of(3)
    other = {"lower": 0.0, "upper": 10.0, "mean": 5.0, "std": 2.0}
    out = NormalizeChannelsd("image", [CT, None, other])({"image": image})["image"]
    for number, rule in enumerate([CT, None, other]):
        alone = NormalizeChannelsd("image", [rule])({"image": image[number : number + 1]})["image"]
        torch.testing.assert_close(out[number].as_tensor(), alone[0].as_tensor())


@pytest.mark.parametrize("rule", [None, CT], ids=["z-score", "CT"])
def test_with_a_mask_only_its_voxels_count_and_the_others_become_zero(rule) -> None:
    image = image_of()
    mask = torch.zeros(1, 9, 8, 7, dtype=torch.uint8)
    mask[:, 2:7, 1:6, 3:] = 1
    data = NormalizeChannelsd("image", [rule])({"image": image, "mask": mask})
    out, inside = data["image"], mask.bool()
    assert "mask" not in data
    assert not out[~inside].any()
    if rule is None:
        assert float(out[inside].mean()) == pytest.approx(0, abs=1e-5)
        assert float(out[inside].std(correction=0)) == pytest.approx(1, abs=1e-5)
    else:
        np.testing.assert_allclose(out[inside], (image[inside].numpy().clip(-100, 200) - 50) / 40, rtol=1e-5, atol=1e-6)


def test_the_channels_of_a_mask_are_joined() -> None:
    """One channel is nonzero where the other is not: a voxel counts in both."""
    mask = torch.zeros(2, 9, 8, 7)
    mask[0, :4], mask[1, 6:] = 1, 1
    out = NormalizeChannelsd("image", [None, None])({"image": image_of(2), "mask": mask})["image"]
    inside = mask.any(0)
    assert not out[:, ~inside].any()
    for channel in out:
        assert float(channel[inside].mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1000.1, -77.7, 1e6])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_constant_channel_becomes_zero(value, masked) -> None:
    data = {"image": torch.full((1, 40, 30, 20), value)}
    if masked:
        data["mask"] = torch.ones(1, 40, 30, 20)
    assert not NormalizeChannelsd("image", [None])(data)["image"].any()


@pytest.mark.parametrize("value", [7.0, 0.1, 1000.3, -77.7, 1e6])
@pytest.mark.parametrize("shape", [(30, 30, 24), (64, 20, 3)], ids=str)
def test_a_constant_channel_stays_zero_when_it_is_resampled(value, shape) -> None:
    """The spline leaves rounding, which is not to be scaled up to noise."""
    resampled = resample(torch.full((1, 36, 36, 12), value), shape)
    assert not NormalizeChannelsd("image", [None])({"image": resampled})["image"].any()
    assert profile(np.asarray(resampled[0]), absolute=False) == (0, 0, 0)


def test_a_faint_signal_on_a_large_offset_is_none_that_is_constant() -> None:
    image = 1000 + 0.02 * image_of() / 150
    out = NormalizeChannelsd("image", [None])({"image": image})["image"]
    assert float(out.std(correction=0)) == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("image", [image_of(2), image_of(2).as_tensor(), image_of(2).double()], ids=type)
def test_the_input_is_not_written_to(image) -> None:
    before, data = image.clone(), {"image": image, "mask": torch.ones(1, 9, 8, 7)}
    NormalizeChannelsd("image", [CT, None])(data)
    NormalizeChannelsd("image", [CT, None])({"image": image})
    assert torch.equal(torch.as_tensor(image), torch.as_tensor(before))
    assert set(data) == {"image", "mask"}


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float64], ids=str)
def test_any_number_type(dtype) -> None:
    image = (image_of().abs() % 200).to(dtype)
    out = NormalizeChannelsd("image", [None])({"image": image})["image"]
    assert out.dtype == torch.float32
    assert float(out.mean()) == pytest.approx(0, abs=1e-5)


def test_the_geometry_is_kept() -> None:
    image = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    assert torch.equal(NormalizeChannelsd("image", [None])({"image": image})["image"].affine, image.affine)


def test_a_wrong_number_of_channels_is_said() -> None:
    with pytest.raises(ValueError, match="3 channels, the bundle is made for 2"):
        NormalizeChannelsd("image", [None, None])({"image": image_of(3)})


def test_nonzero_holds_negative_values_too() -> None:
    image = torch.tensor([[-5.0, 0.0, 3.0]])
    assert nonzero(image).tolist() == [[True, False, True]]


def test_an_image_of_zeros_is_refused_by_name() -> None:
    image = MetaTensor(torch.zeros(1, 4, 4, 4), meta={"filename_or_obj": "/data/case_7.nii.gz"})
    with pytest.raises(ValueError, match=r"case_7.nii.gz: every voxel is zero"):
        nonzero(image)


# Real data, where they are there.


def test_real_ct_is_normalized_by_pooled_statistics(real_data) -> None:
    """The fingerprint's rule, applied case by case, is that of the foreground of all cases together."""
    from autoplan.data import decathlon, fingerprint
    from autoplan.planning import rules

    folder = real_data("Task61_STSCT")
    facts = fingerprint.fingerprint(decathlon.load(folder), num_processes=1, progress=False)
    rule = rules.normalization("CT", facts.intensities[0])
    normalize = NormalizeChannelsd("image", [vars(rule)])
    raw, normalized = [], []
    for case in decathlon.load(folder).training:
        image, label = (np.asanyarray(nibabel.load(folder / p).dataobj) for p in (case.images[0], case.label))
        raw.append(image[label > 0].astype(np.float64))
        out = normalize({"image": torch.from_numpy(image.astype(np.float32))[None]})["image"][0].numpy()
        normalized.append(out[label > 0].astype(np.float64))
    raw, normalized = np.concatenate(raw), np.concatenate(normalized)
    lower, upper = np.percentile(raw, [0.5, 99.5])
    expected = (raw.clip(lower, upper) - raw.mean()) / raw.std()
    np.testing.assert_allclose(normalized, expected, atol=1e-4)
    assert (rule.mean, rule.std) == (pytest.approx(25.4, abs=0.05), pytest.approx(57.7, abs=0.05))


def test_real_skull_stripped_images_stay_zero_outside_the_brain(real_data) -> None:
    """The mask is taken before the spline, which leaves hardly a voxel at exactly zero."""
    path = sorted((real_data("Task64_OpenMS") / "imagesTr").glob("*.nii.gz"))[0]
    image = torch.from_numpy(np.moveaxis(nibabel.load(path).get_fdata(dtype=np.float32), 3, 0)[:, ::2, ::2, ::2].copy())
    mask, shape = nonzero(image), (64, 80, 70)
    resampled, inside = resample(image, shape), resample(mask, shape, "nearest")
    assert (resampled != 0).float().mean() > inside.any(0).float().mean() + 0.1
    out = NormalizeChannelsd("image", [None] * 4)({"image": resampled, "mask": inside})["image"]
    brain = inside.any(0)
    assert not out[:, ~brain].any()
    for channel in out:
        assert float(channel[brain].mean()) == pytest.approx(0, abs=1e-4)
        assert float(channel[brain].std(correction=0)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param([0, 2, 5, 7], "", id="all"),
        pytest.param([0], "", id="background alone"),
        pytest.param(
            [0, 1, 2], "the label has the values 1, but the classes of this bundle have 0, 2, 5, 7", id="one more"
        ),
        pytest.param([0, 1, 2, 3, -1, 9, 10, 11], "the values -1, 1, 3, 9, 10, but", id="many more"),
    ],
)
def test_labels_have_the_values_of_the_classes(values, said) -> None:
    data = {"label": torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)}
    known = KnownValuesd("label", [0, 2, 5, 7], allow_missing_keys=True)
    assert known({}) == {}
    if said:
        with pytest.raises(ValueError, match=re.escape(said)):
            known(data)
    else:
        assert known(data)["label"] is data["label"]
