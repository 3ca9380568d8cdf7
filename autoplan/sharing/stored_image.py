"""An image and its segmentation that a bundle carries, so that anybody can check it."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from autoplan.base.files import read_object
from autoplan.data.facts import Case
from autoplan.prediction import predict
from autoplan.sharing import probe

LARGEST_AXIS, SLICES = 48, 16
"""Voxels of the stored image along an axis, at most; and along that of slices, where networks see slices alone."""

SMOOTHNESS = (0.0, 1.0, 2.0, 4.0)
"""Standard deviations, in voxels, of the Gaussian filters of the noise that the stored image is chosen from."""


def store_segmentation(built: Path) -> None:
    """Put a small synthetic image into the bundle, and what the bundle predicts for it: of several images, the one with
    the most classes and the most foreground, so that other weights predict something else."""
    import numpy as np

    from autoplan.data.images import read_volume

    with tempfile.TemporaryDirectory(prefix="autoplan-") as folder:
        images, output = Path(folder) / "images", Path(folder) / "predicted"
        images.mkdir()
        paths = [images / f"image_{number}.nii.gz" for number in range(len(SMOOTHNESS))]
        for number, path in enumerate(paths):
            _save(synthetic(built, number), built, path)
        cases = [Case(path.name.partition(".")[0], (path.name,)) for path in paths]
        predict.predict(built, images, cases, output, force=True, settings={})

        def interest(path: Path) -> tuple[int, float]:
            segmentation = read_volume(output / path.name).array
            return len(np.unique(segmentation)), min(float((segmentation > 0).mean()), 0.5)

        best = max(paths, key=interest)
        (built / probe.VERIFICATION).mkdir(parents=True)
        shutil.copyfile(best, built / probe.IMAGE)
        shutil.copyfile(output / best.name, built / probe.SEGMENTATION)


def synthetic(bundle: Path, number: int) -> Any:
    """A small image of smooth noise with intensities like those that the bundle knows.

    Args:
        bundle: a bundle of `sharing`.
        number: which of `SMOOTHNESS`; the same number gives the same image.

    Returns:
        float32 (X, Y, Z, C), in steps, so that a compressed file is small.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter

    config = read_object(bundle / "configs" / "inference.json")
    tensor = read_object(bundle / "configs" / "metadata.json")["network_data_format"]["inputs"]["image"]
    shape = [SLICES if n == 1 else min(n, LARGEST_AXIS) for n in tensor["spatial_shape"]]
    channels = []
    random = np.random.RandomState(number)  # its numbers stay the same from one version to the next
    for known in config["normalization"]:
        noise = gaussian_filter(random.standard_normal(shape), SMOOTHNESS[number])
        noise = np.round(noise / noise.std() * 16) / 16
        mean, std = (100.0, 20.0) if known is None else (known["mean"], known["std"])
        channels.append(mean + std * noise)
    return np.stack(channels, -1).astype(np.float32)


def _save(image: Any, bundle: Path, path: Path) -> None:
    """Write an image with the bundle's own spacing, in RAS order."""
    import nibabel
    import numpy as np

    spacing = read_object(bundle / "configs" / "inference.json")["target_spacing"]
    array, affine = image[..., 0] if image.shape[-1] == 1 else image, np.diag([*spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(array, affine), path)  # type: ignore[no-untyped-call]  # nibabel's own
