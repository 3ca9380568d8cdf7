"""What a faster prediction costs in Dice: less overlap, no mirroring, region first.

    python benchmarks/faster_prediction.py canvas data/Task04_Hippocampus CANVASES [--edge 96]
    python benchmarks/faster_prediction.py compare BUNDLE DATASET [--fold 0] [--num 41] [--patch_size 24,32,24]

`canvas` writes each training image and label of a dataset at a random place in a larger cube of smooth noise with the
image's mean and standard deviation: a small object in a large image. A bundle of the dataset trains on them with
`--dataset_dir CANVASES --cache_dir ANOTHER`.

`compare` predicts the validation cases of a fold by the network of that fold, as `autoplan share --faster` does.
`--patch_size` makes images of one window have several.
"""

import json
from pathlib import Path

import fire
import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

from autoplan.data.facts import Case
from autoplan.sharing import faster


def canvas(dataset: str, folder: str, edge: int = 96) -> None:
    """Write the larger images."""
    source, target, rng = Path(dataset), Path(folder), np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (target / part).mkdir(parents=True)
    (target / "dataset.json").write_text((source / "dataset.json").read_text())
    for path in sorted(p for p in (source / "imagesTr").glob("*.nii.gz") if p.name[0] != "."):
        image: nibabel.Nifti1Image = nibabel.load(path)
        array = np.asarray(image.dataobj, dtype=np.float32)
        size = np.maximum(array.shape, edge)
        noise = gaussian_filter(rng.normal(size=size), 1)
        filled = (array.mean() + array.std() * noise / noise.std()).astype(np.float32)
        label = np.zeros(size, np.uint8)
        corner = [int(rng.integers(0, n - m + 1)) for n, m in zip(size, array.shape, strict=True)]
        where = tuple(slice(c, c + n) for c, n in zip(corner, array.shape, strict=True))
        filled[where] = array
        label[where] = np.asarray(nibabel.load(source / "labelsTr" / path.name).dataobj).round()
        nibabel.save(nibabel.Nifti1Image(filled, image.affine), target / "imagesTr" / path.name)
        nibabel.save(nibabel.Nifti1Image(label, image.affine), target / "labelsTr" / path.name)


def compare(bundle: str, dataset: str, fold: int = 0, num: int = 10**6, patch_size: tuple[int, ...] = ()) -> None:
    """Predict, and print the table."""
    entries = json.loads((Path(bundle) / "configs" / "datalist.json").read_text())["training"]
    some = [entry for entry in entries if entry["fold"] == fold][:num]
    cases = [Case(entry["name"], (entry["image"],), entry["label"]) for entry in some]
    settings = {"patch_size": list(patch_size)} if patch_size else {}
    found = faster.compare(Path(bundle), fold, Path(dataset), cases, settings)
    print(f"\n{len(cases)} cases, {found.ways[0].seconds:.0f} s as usual\n")
    for row in faster.rows(found):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    fire.Fire({"canvas": canvas, "compare": compare})
