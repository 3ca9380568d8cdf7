"""Images of every format: the array and the place in space that were written, with SimpleITK as witness."""

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from dicoms import series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.testing import data_path
from PIL import Image
from scripts import formats

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 200, (5, 4, 3)).astype(np.uint8)
AFFINE = np.array([[0, 2.0, 0, -7], [1.5, 0, 0, 3], [0, 0, -3.0, 11], [0, 0, 0, 1]])


def read(path):
    header, load = formats.open_image(path)
    return header, load()


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_volumes_come_back_where_they_were(suffix, tmp_path) -> None:
    path = tmp_path / f"case{suffix}"
    formats.write_image(path, VOLUME, AFFINE)
    header, array = read(path)
    assert (header.shape, header.channels) == ((5, 4, 3), 1)
    np.testing.assert_array_equal(array[..., 0], VOLUME)
    np.testing.assert_allclose(header.affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_components_of_a_voxel_are_channels(suffix, tmp_path) -> None:
    array = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"case{suffix}"))
    header, found = read(tmp_path / f"case{suffix}")
    assert (header.shape, header.channels) == ((5, 4, 3), 2)
    np.testing.assert_array_equal(found, array.transpose(2, 1, 0, 3))


@pytest.mark.parametrize(("suffix", "mode", "channels"), [(".png", "L", 1), (".bmp", "RGB", 3), (".png", "RGB", 3)])
def test_pictures(suffix, mode, channels, tmp_path) -> None:
    pixels = RNG.integers(0, 255, (6, 9, channels)).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode).save(tmp_path / f"case{suffix}")
    header, array = read(tmp_path / f"case{suffix}")
    assert (header.shape, header.channels) == ((9, 6, 1), channels)
    np.testing.assert_array_equal(array[:, :, 0], pixels.swapaxes(0, 1))


def test_an_alpha_channel_that_says_nothing_is_dropped(tmp_path) -> None:
    pixels = RNG.integers(0, 255, (6, 9, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "case.png")
    assert read(tmp_path / "case.png")[1].shape == (9, 6, 1, 3)
    pixels[0, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "case.png")
    with pytest.raises(ValueError, match="parts of it are transparent"):
        read(tmp_path / "case.png")


@pytest.mark.parametrize("shape", [(6, 9), (3, 6, 9)], ids=["plane", "stack"])
def test_tiff(shape, tmp_path) -> None:
    planes = RNG.integers(0, 60_000, shape).astype(np.uint16)
    tifffile.imwrite(tmp_path / "case.tif", planes, photometric="minisblack")
    header, array = read(tmp_path / "case.tif")
    assert header.shape == (9, 6, 1 if len(shape) == 2 else 3)
    np.testing.assert_array_equal(array[..., 0], planes.reshape(-1, 6, 9).transpose(2, 1, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_segmentations_of_planes_come_back(suffix, tmp_path) -> None:
    formats.write_image(tmp_path / f"case{suffix}", VOLUME[:, :, :1], np.eye(4))
    np.testing.assert_array_equal(read(tmp_path / f"case{suffix}")[1][..., 0], VOLUME[:, :, :1])


# A segmentation lies where its image lies, for nibabel and for ITK.

TURNED = np.array([[0, 2.0, 0, -7], [1.5, 0, 0, 3], [0, 0, -3.0, 11], [0, 0, 0, 1]])
MOVED = TURNED + np.array([[0, 0, 0, 40.0], [0, 0, 0, -25], [0, 0, 0, 5], [0, 0, 0, 0]])
SHEARED = TURNED @ (np.eye(4) + 0.4 * np.outer([0, 1, 0, 0], [0, 0, 1, 0]))


def nifti(path, sform=None, qform=None, sizes=(1.5, 2, 3), units=2, shape=(5, 4, 3), version=1):
    """Writes an image whose header has these forms, with their codes, and no others."""
    header = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}[version]()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["pixdim"][1:4], header["xyzt_units"] = sizes, units
    for name, form in (("qform", qform), ("sform", sform)):
        if form is not None:
            getattr(header, f"set_{name}")(form[0], form[1])
    kind = {1: nibabel.Nifti1Image, 2: nibabel.Nifti2Image}[version]
    nibabel.save(kind(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), None, header), path)
    return path


def segmented(image, suffix):
    """Writes a segmentation of an image, as a bundle does, and returns its path."""
    if suffix.startswith(".nii"):
        file = formats.open_nifti(image)
        affine, shape = formats.nifti_affine(file.header), file.shape
    else:
        header = read(image)[0]
        affine, shape = header.affine, header.shape
    target = Path(image).with_name(f"segmentation{suffix}")
    formats.write_image(target, np.ones(shape[:3], np.uint8), affine, image)
    return target


def itk_place(path):
    """Spacing, origin and direction of the first three axes by ITK; None where it does not read the file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    rank, n = reader.GetDimension(), min(reader.GetDimension(), 3)
    direction = np.reshape(reader.GetDirection(), (rank, rank))[:n, :n]
    return np.concatenate([reader.GetSpacing()[:n], reader.GetOrigin()[:n], direction.ravel()])


def assert_same_place(image, segmentation):
    expected, found = itk_place(image), itk_place(segmentation)
    assert (expected is None) == (found is None)  # NIfTI-2, shears
    if expected is not None:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("units", [0, 1, 2, 3, 10])
@pytest.mark.parametrize(
    "forms",
    [
        pytest.param({"sform": (TURNED, 1), "qform": (TURNED, 1)}, id="both"),
        pytest.param({"sform": (TURNED, 2), "qform": (MOVED, 1)}, id="both, at two places"),
        pytest.param({"sform": (TURNED, 4), "qform": (MOVED, 2)}, id="both, of two spaces"),
        pytest.param({"qform": (TURNED, 1)}, id="qform alone"),
        pytest.param({"sform": (TURNED, 1)}, id="sform alone"),
        pytest.param({}, id="none"),
        pytest.param({"sform": (TURNED, 1), "shape": (5, 4, 3, 2)}, id="channels"),
        pytest.param({"sform": (TURNED, 1), "version": 2}, id="NIfTI-2"),
    ],
)
def test_a_nifti_segmentation_lies_on_its_image_in_all_programs(forms, units, tmp_path) -> None:
    image = nifti(tmp_path / "image.nii.gz", units=units, **forms)
    segmentation = segmented(image, ".nii.gz")
    assert_same_place(image, segmentation)
    first, second = nibabel.load(image), nibabel.load(segmentation)
    assert type(first) is type(second)
    np.testing.assert_array_equal(first.affine, second.affine)
    assert first.header.get_xyzt_units()[0] == second.header.get_xyzt_units()[0]
    np.testing.assert_array_equal(np.asarray(second.dataobj), np.ones((5, 4, 3)))
    # What planning and bundles take for mm is what ITK takes for mm, where ITK goes by the form that nibabel goes by.
    if itk_place(image) is not None and ("qform" not in forms or np.array_equal(forms["qform"][0], TURNED)):
        spacing = np.linalg.norm(formats.nifti_affine(first.header)[:3, :3], axis=0)
        np.testing.assert_allclose(itk_place(image)[:3], spacing, rtol=1e-5)


FIELDS = {
    **dict.fromkeys(("sform_code", "qform_code"), st.integers(0, 4)),
    **dict.fromkeys(("quatern_b", "quatern_c", "quatern_d"), st.floats(-0.5, 0.5, width=32)),
    **dict.fromkeys(("qoffset_x", "qoffset_y", "qoffset_z"), st.floats(-90, 90, width=32)),
    "xyzt_units": st.integers(0, 26),
    "qfac": st.sampled_from([-1, 0, 1]),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([{}, {"sform": (TURNED, 1)}, {"sform": (TURNED, 1), "qform": (MOVED, 1)}, {"sform": (SHEARED, 1)}]),
    st.fixed_dictionaries({}, optional=FIELDS),
)
@pytest.mark.filterwarnings("ignore")
def test_any_nifti_header_is_taken_over(tmp_path, forms, fields) -> None:
    path = nifti(tmp_path / "image.nii", **forms)
    header = nibabel.Nifti1Header(path.read_bytes()[:348])
    header["pixdim"][0] = fields.pop("qfac", 1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    try:
        segmentation = segmented(path, ".nii")
    except formats.UnsuitableError:
        return
    assert_same_place(path, segmentation)
    np.testing.assert_array_equal(nibabel.load(segmentation).affine, nibabel.load(path).affine)


@pytest.mark.parametrize("sform_code", [0, 1], ids=["in use", "beside an sform"])
def test_a_qform_that_is_no_rotation_is_refused(sform_code, tmp_path) -> None:
    path = nifti(tmp_path / "image.nii", sform=(TURNED, 1), qform=(TURNED, 1))
    header = nibabel.Nifti1Header(path.read_bytes()[:348])
    header["sform_code"], header["quatern_b"], header["quatern_c"] = sform_code, 0.9, 0.9
    with pytest.raises(formats.UnsuitableError, match="its qform is no rotation"):
        formats.nifti_affine(header)


@pytest.mark.parametrize(
    "name", ["anatomical.nii", "functional.nii", "example4d.nii.gz", "standard.nii.gz", "reoriented_anat_moved.nii"]
)
def test_files_that_come_with_nibabel(name, tmp_path) -> None:
    image = Path(shutil.copy(Path(data_path, name), tmp_path))
    assert_same_place(image, segmented(image, "".join(image.suffixes)))
    spacing = np.linalg.norm(formats.nifti_affine(nibabel.load(image).header)[:3, :3], axis=0)
    np.testing.assert_allclose(itk_place(image)[:3], spacing, rtol=1e-5)


def test_a_shear_is_written_as_sform_alone(tmp_path, caplog) -> None:
    """No quaternion can say it: other programs would put the file elsewhere."""
    formats.write_image(tmp_path / "tilted.nii.gz", np.ones((5, 4, 3), np.uint8), SHEARED)
    header = nibabel.load(tmp_path / "tilted.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (0, 1)
    np.testing.assert_allclose(header.get_best_affine(), SHEARED, atol=1e-6)
    assert "tilted: its slices are sheared against each other" in caplog.text
    caplog.clear()
    formats.write_image(tmp_path / "straight.nii.gz", np.ones((5, 4, 3), np.uint8), TURNED)
    assert not caplog.text
    np.testing.assert_allclose(nibabel.load(tmp_path / "straight.nii.gz").get_qform(), TURNED, atol=1e-6)


def itk_file(path, *, rank=3, lines=(), direction=None):
    """Writes an NRRD or a MetaImage, with more lines in its header."""
    image = sitk.GetImageFromArray(np.arange(4**rank, dtype=np.int16).reshape((4,) * rank))
    image.SetSpacing([0.5, 0.75, 3.0][:rank])
    image.SetOrigin([5.0, -6.0, 7.0][:rank])
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    end = b"ElementDataFile" if path.suffix == ".mha" else b"\n\n"
    head, _, data = path.read_bytes().partition(end)
    before, after = (head, end) if path.suffix == ".mha" else (head + b"\n", b"\n")
    path.write_bytes(before + "".join(f"{line}\n" for line in lines).encode() + after + data)
    return path


@pytest.mark.parametrize(
    ("suffix", "options", "mm"),
    [
        pytest.param(".nrrd", {}, 1, id="NRRD"),
        pytest.param(".nrrd", {"direction": [0, 1, 0, 1, 0, 0, 0, 0, -1]}, 1, id="NRRD, turned"),
        pytest.param(".nrrd", {"rank": 2}, 1, id="NRRD, a plane"),
        pytest.param(".nrrd", {"lines": ['space units: "um" "um" "um"']}, 1e-3, id="NRRD, micrometres"),
        pytest.param(".nrrd", {"lines": ['space units: "microns" "microns" "microns"']}, 1e-3, id="NRRD, microns"),
        pytest.param(".mha", {}, 1, id="MetaImage"),
        pytest.param(".mha", {"direction": [0, 1, 0, 1, 0, 0, 0, 0, -1]}, 1, id="MetaImage, turned"),
        pytest.param(".mha", {"rank": 2}, 1, id="MetaImage, a plane"),
        pytest.param(".mha", {"lines": ["DistanceUnits = um"]}, 1e-3, id="MetaImage, micrometres"),
    ],
)
def test_a_segmentation_by_itk_lies_on_its_image(suffix, options, mm, tmp_path) -> None:
    image = itk_file(tmp_path / f"image{suffix}", **options)
    header = read(image)[0]
    rank = options.get("rank", 3)
    np.testing.assert_allclose(np.linalg.norm(header.affine[:3, :rank], axis=0), mm * np.array([0.5, 0.75, 3])[:rank])
    segmentation = segmented(image, suffix)
    assert_same_place(image, segmentation)
    found, array = read(segmentation)
    np.testing.assert_allclose(found.affine, header.affine, atol=1e-9)
    assert found.shape == header.shape
    np.testing.assert_array_equal(array, np.ones_like(array))


SPACE = "space: left-posterior-superior\nspace directions: (0.5,0,0) (0,0.75,0) (0,0,3)"


@pytest.mark.parametrize(
    ("fields", "channels", "mm"),
    [
        pytest.param(f"sizes: 4 3 2\n{SPACE.replace('left-posterior', 'right-anterior')}", 1, 1, id="RAS"),
        pytest.param(f"sizes: 4 3 2\n{SPACE.replace('(0,0,3)', '(0,1,3)')}", 1, 1, id="sheared"),
        pytest.param(f"sizes: 4 3 2 2\n{SPACE} none\nkinds: domain domain domain list", 2, 1, id="channels last"),
        pytest.param(f"sizes: 2 4 3 2\n{SPACE.replace(': (', ': none (')}\nkinds: vector domain domain domain"
                     '\nspace units: "um" "um" "um"', 2, 1e-3, id="channels first, in micrometres"),
        pytest.param("sizes: 4 3 2\nspacings: 0.5 0.75 3", 1, 1, id="no space"),
        pytest.param('sizes: 4 3\nspacings: 0.5 0.75\nunits: "um" "um"', 1, 1e-3, id="a plane in micrometres"),
        pytest.param("sizes: 4 3 2 2\nspace: left-posterior-superior-time\nspace directions: (0.5,0,0,0) (0,0.75,0,0) "
                     '(0,0,3,0) (0,0,0,1)\nspace units: "cm" "cm" "cm" "s"', 2, 10, id="time"),
    ],
)  # fmt: skip
def test_nrrd_of_other_programs(fields, channels, mm, tmp_path) -> None:
    rank = len(fields.split("\n")[0].split()) - 1
    image, size = tmp_path / "a.nrrd", np.prod([int(n) for n in fields.split("\n")[0].split()[1:]])
    image.write_bytes(f"NRRD0005\ntype: uchar\ndimension: {rank}\nencoding: raw\n{fields}\n\n".encode() + bytes(size))
    header, _ = read(image)
    assert header.channels == channels
    np.testing.assert_allclose(np.linalg.norm(header.affine[:3, :2], axis=0), [0.5 * mm, 0.75 * mm])
    segmentation = segmented(image, ".nrrd")
    assert_same_place(image, segmentation)
    np.testing.assert_allclose(read(segmentation)[0].affine, header.affine, atol=1e-9)


def test_the_file_of_the_voxels_belongs_to_its_case(tmp_path) -> None:
    """Whatever it is called: what was read of it, and what is cached of it, does not outlive its change."""
    from scripts.cache import CaseCache

    from autoplan.base.errors import DatasetError
    from autoplan.data import fingerprint, images
    from autoplan.data.facts import Case, Dataset

    header = a_detached_file(tmp_path / "a.mhd")
    data = (tmp_path / "a.raw").rename(tmp_path / "voxels.bin")
    header.write_text(header.read_text().replace("a.raw", "voxels.bin"))
    case = Case("a", ("a.mhd",), "a.mhd")
    dataset = Dataset(tmp_path, "Task01_Made", ("MRI",), ((0, "rest"), (7, "organ")), (case,), ())
    cache, item = CaseCache(tmp_path / "cache", dict, 0, 2), {"name": "a", "image": str(header), "label": str(header)}
    before = fingerprint.case_key(dataset, case), cache.path(item)
    data.write_bytes(data.read_bytes()[::-1])
    after = fingerprint.case_key(dataset, case), cache.path(item)
    assert before[0] != after[0]
    assert before[1] != after[1]
    data.unlink()
    assert fingerprint.case_key(dataset, case) != after[0]
    with pytest.raises(DatasetError, match=r"cannot be used: its header names voxels.bin, which is not there\."):
        images.read_volume(header)


def test_units_of_the_axes_of_an_nrrd(tmp_path) -> None:
    """Where it has no directions; a channel has no unit of length."""
    lines = "NRRD0004\ntype: uchar\ndimension: 4\nsizes: 4 3 2 2\nspacings: 0.5 0.75 3 nan\nencoding: raw"
    (tmp_path / "a.nrrd").write_bytes(f'{lines}\nunits: "cm" "cm" "cm" "s"\n\n'.encode() + bytes(48))
    header, _ = read(tmp_path / "a.nrrd")
    np.testing.assert_allclose(np.linalg.norm(header.affine[:3, :3], axis=0), [5, 7.5, 30])
    assert header.channels == 2


def test_units_that_are_no_length_are_refused(tmp_path) -> None:
    image = itk_file(tmp_path / "image.nrrd", lines=['space units: "furlong" "furlong" "furlong"'])
    with pytest.raises(formats.UnsuitableError, match="its unit of length is 'furlong'"):
        formats.open_image(image)


# TIFF says in many ways how large its voxels are.

PLANES = RNG.integers(0, 9, (3, 4, 5)).astype(np.uint8)
OME = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0}


@pytest.mark.parametrize(
    ("options", "beside", "mm"),
    [
        pytest.param({}, None, None, id="nothing"),
        pytest.param({"resolution": (72, 72), "resolutionunit": 2}, None, None, id="72 dpi, which nobody measured"),
        pytest.param({"resolution": (20000, 40000), "resolutionunit": 3}, None, (5e-4, 2.5e-4, None), id="a cm"),
        pytest.param({"resolution": (25.4, 50.8), "resolutionunit": 2}, None, (1, 0.5, None), id="an inch"),
        pytest.param(
            {"imagej": True, "resolution": (2, 4), "metadata": {"unit": "um", "spacing": 3, "axes": "ZYX"}},
            None,
            (5e-4, 2.5e-4, 3e-3),
            id="ImageJ",
        ),
        pytest.param(
            {"imagej": True, "resolution": (2, 4), "metadata": {"unit": "\\u00B5m", "spacing": 3, "axes": "ZYX"}},
            None,
            (5e-4, 2.5e-4, 3e-3),
            id="ImageJ, with an escaped letter",
        ),
        pytest.param({"ome": True, "metadata": OME}, None, (5e-4, 2.5e-4, 2e-3), id="OME, in micrometres"),
        pytest.param(
            {"ome": True, "metadata": {**OME, "PhysicalSizeXUnit": "nm", "PhysicalSizeZUnit": "mm"}},
            None,
            (5e-7, 2.5e-4, 2),
            id="OME, a unit for each axis",
        ),
        pytest.param({"ome": True, "metadata": OME}, {"spacing": [6, 0.09, 0.1]}, (0.1, 0.09, 6), id="nnU-Net"),
        pytest.param({}, {"shapes": []}, None, id="a JSON file of another program"),
    ],
)
@pytest.mark.parametrize("number", ["", "_0000"])
def test_the_spacing_of_a_tiff(options, beside, mm, number, tmp_path) -> None:
    image = tmp_path / f"case{number}.tif"
    tifffile.imwrite(image, PLANES, photometric="minisblack", **options)
    if beside is not None:
        (tmp_path / "case.json").write_text(json.dumps(beside))
        assert formats.files_of(image) == [image, tmp_path / "case.json"]
    header, array = read(image)
    x, y, z = mm or (1, 1, 1)
    expected = [x, y, (x * y) ** 0.5 if z is None else z]
    np.testing.assert_allclose(np.diag(header.affine)[:3], expected, rtol=1e-6)
    assert header.measured == (mm is not None)
    np.testing.assert_array_equal(array[..., 0], PLANES.transpose(2, 1, 0))
    segmentation = segmented(image, ".tif")
    found, _ = read(segmentation)
    np.testing.assert_allclose(found.affine, header.affine, rtol=1e-6)
    assert found.measured == header.measured
    assert_same_place(image, segmentation)


@pytest.mark.parametrize("content", ['{"spacing": [0, 1, 1]}', '{"spacing": "wide"}', "[[", '{"spacing": [1, 1, NaN]}'])
def test_a_spacing_that_is_none_is_refused(content, tmp_path) -> None:
    tifffile.imwrite(tmp_path / "case.tif", PLANES, photometric="minisblack")
    (tmp_path / "case.json").write_text(content)
    with pytest.raises(formats.UnsuitableError, match=re.escape("case.json beside it has no spacing")):
        formats.open_image(tmp_path / "case.tif")


# Pictures as they are shown.


def exif(orientation):
    made = Image.Exif()
    made[274] = orientation
    return made


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_are_turned_as_programs_show_them(orientation, suffix, tmp_path) -> None:
    from PIL import ImageOps

    pixels, path = np.kron(RNG.integers(0, 2, (3, 2)) * 200, np.ones((8, 8))).astype(np.uint8), tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path if suffix != ".tif" else tmp_path / "a.png", exif=exif(orientation))
    if suffix == ".tif":  # Pillow 13.0 confuses the axes of such a file
        tifffile.imwrite(path, pixels, extratags=[(274, 3, 1, orientation, True)], photometric="minisblack")
    with Image.open(path if suffix != ".tif" else tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    header, array = read(path)
    assert header.shape == (*expected.shape[::-1], 1)
    np.testing.assert_array_equal(array[..., 0, 0], expected.T)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16], ids=str)
def test_tiff_whose_least_value_is_white(dtype, tmp_path) -> None:
    shown = RNG.integers(0, 2, (6, 9)).astype(dtype)
    stored = ~shown if dtype is bool else np.iinfo(dtype).max - shown
    tifffile.imwrite(tmp_path / "case.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "case.tif")[1][..., 0, 0], shown.T)
    if dtype is not np.uint16:  # which Pillow gives as they are stored
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "case.tif")), shown)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(("kind", "channels"), [("unspecified", 4), ("unassalpha", 3)])
def test_extra_samples_of_tiff(kind, channels, constant, tmp_path) -> None:
    pixels = RNG.integers(0, 255, (6, 9, 4)).astype(np.uint8)
    pixels[..., 3] = 9 if constant else pixels[..., 3]
    tifffile.imwrite(tmp_path / "case.tif", pixels, photometric="rgb", extrasamples=[kind])
    if kind == "unassalpha" and not constant:
        with pytest.raises(formats.UnsuitableError, match="parts of it are transparent"):
            read(tmp_path / "case.tif")
        return
    np.testing.assert_array_equal(read(tmp_path / "case.tif")[1][:, :, 0], pixels[..., :channels].swapaxes(0, 1))


# The segmentation of an image is a label of it, in planning and in training.


def a_nifti(path):
    return nifti(path, sform=(TURNED, 1), qform=(MOVED, 1), units=3)


def a_plain_nifti(path):
    return nifti(path)


def an_nrrd(path):
    return itk_file(path, lines=['space units: "um" "um" "um"'])


def a_detached_file(path):
    sitk.WriteImage(sitk.ReadImage(str(itk_file(path.with_suffix(".mha")))), str(path))
    return path


def a_tiff(path):
    return tifffile.imwrite(path, PLANES + 1, metadata={**OME, "axes": "ZYX"}, ome=True, photometric="minisblack")


def a_tiff_beside_json(path):
    tifffile.imwrite(path, PLANES + 1, photometric="minisblack")
    path.with_suffix(".json").write_text('{"spacing": [6, 0.09, 0.1]}')


def a_plane(path):
    tifffile.imwrite(path, PLANES[0] + 1, photometric="minisblack", resolution=(40, 20), resolutionunit=3)


def a_photo(path):
    Image.fromarray(RNG.integers(0, 255, (6, 9, 3)).astype(np.uint8)).save(path, exif=exif(6))


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        pytest.param(".nii.gz", a_nifti, id="NIfTI whose forms differ, in micrometres"),
        pytest.param(".NII.GZ", a_plain_nifti, id="NIfTI without forms"),
        pytest.param(".nrrd", an_nrrd, id="NRRD in micrometres"),
        pytest.param(".nhdr", a_detached_file, id="NRRD with a file beside"),
        pytest.param(".mha", itk_file, id="MetaImage"),
        pytest.param(".mhd", a_detached_file, id="MetaImage with a file beside"),
        pytest.param(".ome.tif", a_tiff, id="OME-TIFF"),
        pytest.param(".tif", a_tiff_beside_json, id="TIFF with nnU-Net's file beside"),
        pytest.param(".tif", a_plane, id="a plane"),
        pytest.param(".jpg", a_photo, id="a photo, turned"),
        pytest.param("", lambda path: series(path), id="DICOM"),
    ],
)
def test_a_segmentation_is_a_label_of_its_image(suffix, write, tmp_path) -> None:
    from functools import partial

    from monai.transforms import Compose, LoadImaged, SaveImaged
    from scripts.prediction import SegmentationWriter
    from scripts.readers import FormatReader, LoadImageCased

    from autoplan.data.cases import read_case
    from autoplan.data.facts import Case, Dataset

    image = tmp_path / f"case{suffix}"
    write(image)
    (tmp_path / "labels").mkdir()
    writer = partial(SegmentationWriter, label_values=[0, 7])
    options = {"output_dir": tmp_path / "labels", "output_postfix": "", "separate_folder": False, "resample": False}
    steps = [
        LoadImaged("image", FormatReader, ensure_channel_first=True),
        lambda data: {"image": (data["image"][:1] > data["image"][:1].mean()).long()},
        SaveImaged("image", writer=writer, output_dtype=np.uint8, **options),
    ]
    Compose(steps)({"image": str(image)})
    label = tmp_path / "labels" / formats.segmentation_name(image)
    modalities = ("red", "green", "blue") if suffix == ".jpg" else ("MRI",)
    dataset = Dataset(tmp_path, "Task01_Made", modalities, ((0, "rest"), (7, "organ")), (), ())
    volumes, faults = read_case(dataset, Case("case", (image.name,), f"labels/{label.name}"))
    assert faults == []
    assert set(np.unique(volumes.label)) == {0, 7}
    data = LoadImageCased(["image", "label"], FormatReader, ensure_channel_first=True)(
        {"image": str(image), "label": str(label), "name": "case"}
    )
    assert data["image"].shape[1:] == data["label"].shape[1:]
    np.testing.assert_allclose(data["image"].affine, data["label"].affine, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(data["image"].affine, volumes.image.affine)
    np.testing.assert_array_equal(data["label"][0], volumes.label)


def test_a_label_without_a_size_lies_on_its_image(tmp_path) -> None:
    from scripts.readers import FormatReader, LoadImageCased

    a_plane(tmp_path / "image.tif")
    Image.fromarray(PLANES[0]).save(tmp_path / "label.png")
    load = LoadImageCased(["image", "label"], FormatReader, ensure_channel_first=True)
    data = load({key: str(next(tmp_path.glob(f"{key}.*"))) for key in ("image", "label")})
    np.testing.assert_array_equal(data["image"].affine, data["label"].affine)
    assert data["label"].pixdim.tolist() == pytest.approx([0.25, 0.5, 1])


def test_numbers_of_a_palette_are_refused_in_planning_and_prediction(tmp_path) -> None:
    from monai.transforms import LoadImaged
    from scripts.prediction import FAULT, ImageDataset
    from scripts.readers import FormatReader

    from autoplan.data.cases import read_case
    from autoplan.data.facts import Case, Dataset

    Image.fromarray(PLANES[0] + 1).convert("P").save(tmp_path / "a.png")
    dataset = Dataset(tmp_path, "Task01_Made", ("image",), ((0, "rest"), (1, "a")), (), ())
    _, [fault] = read_case(dataset, Case("a", ("a.png",), None))
    load = LoadImaged("image", FormatReader, ensure_channel_first=True)
    item = ImageDataset([{"image": str(tmp_path / "a.png")}], load)[0]
    assert fault == f"Task01_Made, a: {formats.PALETTE}"
    assert item[FAULT] == formats.PALETTE


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((5, 4), "Store a plane as a volume of one slice."), ((5, 4, 3, 1, 2), "along the fourth axis.")],
)
def test_nifti_of_other_axes(shape, remedy, tmp_path) -> None:
    from scripts.readers import FormatReader

    from autoplan.base.errors import DatasetError
    from autoplan.data import images

    path = nifti(tmp_path / "a.nii.gz", sform=(np.eye(4), 1), shape=shape, sizes=(1, 1, 1))
    said = f"it has {len(shape)} axes, not 3 or 4. "
    with pytest.raises(DatasetError, match=f"cannot be used: {said}.*{remedy}"):
        images.read_volume(path)
    with pytest.raises(formats.UnsuitableError, match=said):
        FormatReader().get_data([str(path)])


# Names and files.


@pytest.mark.parametrize(
    ("name", "case", "segmentation"),
    [
        ("A.NII.GZ", "A", "A.nii.gz"),
        ("a.b.nii", "a.b", "a.b.nii.gz"),
        ("a.seg.nrrd", "a", "a.nrrd"),
        ("a.ome.tif", "a", "a.tif"),
        ("a.OME.TIFF", "a", "a.tif"),
    ],
)
def test_names(name, case, segmentation) -> None:
    assert (formats.case_name(name), formats.segmentation_name(name)) == (case, segmentation)


@pytest.mark.parametrize(
    ("header", "line", "files"),
    [
        pytest.param("a.mhd", "NDims = 3\nElementDataFile = b.bin", ["b.bin"], id="MetaImage"),
        pytest.param("a.mhd", "ElementDataFile = x%02d.raw 1 3 2", ["x01.raw", "x03.raw"], id="MetaImage, a pattern"),
        pytest.param("a.mhd", "ElementDataFile = LIST\nb\nc d", ["b", "c d"], id="MetaImage, a list"),
        pytest.param("a.mha", "ElementDataFile = LOCAL\nb.bin", [], id="MetaImage, in one file"),
        pytest.param("a.nhdr", "NRRD0004\n# b\ndata file: ./b.gz", ["b.gz"], id="NRRD"),
        pytest.param("a.nhdr", "NRRD0004\ndatafile: x%d.raw 9 10 1", ["x9.raw", "x10.raw"], id="NRRD, a pattern"),
        pytest.param("a.nhdr", "NRRD0004\ndata file: LIST 2\nb\nc", ["b", "c"], id="NRRD, a list"),
        pytest.param("a.nrrd", "NRRD0004\ntype: int\n\ndata file: b", [], id="NRRD, in one file"),
        pytest.param("a.nhdr", "NRRD0004\ndata file: missing", [], id="a file that is not there"),
        pytest.param("a.nhdr", "NRRD0004\ndata file: a.nhdr", [], id="itself"),
        pytest.param("a.nhdr", "NRRD0004\ndata file: x%d 1 999999999 0", ["x1"], id="far too many"),
        pytest.param("a.nhdr", "data file: \0", [], id="no name"),
        pytest.param("a.nhdr", "data file: " + 300 * "b", [], id="a name too long"),
    ],
)
def test_the_files_of_an_image(header, line, files, tmp_path) -> None:
    (tmp_path / header).write_text(line + "\n")
    for name in {*files, "b", "b.bin", "x1"}:
        (tmp_path / name).touch()
    assert formats.files_of(tmp_path / header) == [tmp_path / name for name in (header, *files)]


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_a_name_of_any_length_has_files(suffix) -> None:
    assert formats.files_of("a" * 900 + suffix) == [Path("a" * 900 + suffix)]


@pytest.mark.parametrize("name", ["A.NII.GZ", "A.Nii"])
def test_suffixes_of_any_case_are_read(name, tmp_path) -> None:
    from scripts.readers import FormatReader

    from autoplan.data import images

    nifti(tmp_path / name.lower(), sform=(TURNED, 1), qform=(TURNED, 1)).rename(tmp_path / name)
    [path] = formats.image_files(tmp_path)
    volume, (array, meta) = images.read_volume(path), FormatReader().get_data([str(path)])
    np.testing.assert_array_equal(volume.array[..., 0], array)
    np.testing.assert_array_equal(volume.affine, meta["affine"])


def test_files_of_no_known_format_are_refused(tmp_path) -> None:
    (tmp_path / "case.txt").write_text("text")
    with pytest.raises(ValueError, match="no image of a known format"):
        formats.open_image(tmp_path / "case.txt")
