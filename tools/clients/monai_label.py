"""A bundle in MONAI Label: segmentations and a training over its REST interface, compared with the bundle's own.

    python3.11 -m venv label
    label/bin/pip install torch==2.13.0 monai==1.6.1 pytorch-ignite==0.5.5 nibabel==5.4.2 scipy==1.17.1 tqdm fire \
        matplotlib fastapi uvicorn httpx pydantic-settings python-dotenv python-multipart schedule dicomweb-client \
        timeloop expiringdict expiring_dict cachetools watchdog pynetdicom pynrrd girder-client einops passlib pyjwt \
        bcrypt shapely requests-toolbelt scikit-learn google-auth gdown lmdb scikit-image psutil numpymaxflow itk \
        torchvision jsonschema SimpleITK "pydicom<3"
    label/bin/pip install --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
    label/bin/python tools/clients/monai_label.py FOLDER [BUNDLE ...]

torchvision must be the build for this torch, and pydicom-seg does not take pydicom 3. FOLDER is that of bundles.py.
--no-deps leaves out sam2, which no bundle needs, and lets numpy be as new as torch wants
it. The server of MONAI Label gets copies of the bundles.
"""

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import requests

BUNDLES = ("3d_fullres", "3d_cascade_fullres", "phantom_mri_segmentation")
TRAINED = ("3d_fullres",)
SHORT = {"epoch_length": 5, "val_batches": 2, "batch_size": 2, "num_workers": 0, "learning_rate": 0.003}
SECONDS = 900


def digests(folder: Path) -> dict[str, str]:
    """Of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepare(folder: Path, task: Path, names: Sequence[str]) -> tuple[Path, Path]:
    """The application with copies of the bundles, and a datastore: labelled training images, and test images."""
    work = folder / "label"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    command = ["-m", "monailabel.main", "apps", "--download", "--name", "monaibundle", "--output", str(work)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    app, studies = work / "monaibundle", work / "studies"
    for name in names:
        copy = shutil.copytree(folder / "bundles" / task.name / name, app / "model" / name)
        if name in TRAINED:
            # MONAI Label passes on no settings of a training but its epochs, so that the file has the others.
            path = copy / "configs" / "train.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | SHORT, indent=1))
    (studies / "labels" / "final").mkdir(parents=True)
    for image in sorted(task.glob("images*/*.nii.gz")):
        shutil.copy(image, studies)
    for label in sorted(task.glob("labelsTr/*.nii.gz")):
        shutil.copy(label, studies / "labels" / "final")
    return app, studies


@contextlib.contextmanager
def server(app: Path, studies: Path, names: Sequence[str]) -> Iterator[str]:
    """The running server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "models", ",".join(names)]
    command += ["--conf", "zoo_source", "local", "--conf", "sam2", "false"]
    with (app.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=app.parent)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{address}/info/", timeout=SECONDS).raise_for_status()
                break
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def difference(found: Path, expected: Path, values: list[int]) -> str:
    """What differs between class numbers and the project's own labels, in words; "equal" when nothing does."""
    first, second = nibabel.load(found), nibabel.load(expected)
    own = np.asanyarray(second.dataobj)
    if first.shape != second.shape or not np.allclose(first.affine, second.affine, atol=1e-4):
        return f"another grid: {first.shape}, {second.shape}"
    differ = int((np.array(values)[np.asanyarray(first.dataobj).astype(int)] != own).sum())
    return f"{differ} of {own.size} voxels differ" if differ else f"equal, {int((own > 0).sum())} voxels of foreground"


def segment(address: str, name: str, image: str, target: Path) -> str:
    """Ask for the segmentation of an image; what went wrong, or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    query = {"image": image, "output": "image"}
    params = {"params": (None, json.dumps({"device": "cpu"}))}
    answer = requests.post(f"{address}/infer/{name}", params=query, files=params, timeout=SECONDS)
    if not answer.ok:
        return f"failed: {answer.status_code} {answer.text[:300]}"
    target.write_bytes(answer.content)
    return ""


def train(address: str, bundle: Path) -> str:
    """Ask for a training that goes on from models/model.pt; what is wrong with what it left, or what it did."""
    fold, model = bundle / "models" / "fold_0", bundle / "models" / "model.pt"
    before, start = digests(fold), digests(model.parent)[str(model)]
    settings = {"max_epochs": 1, "device": "cpu", "pretrained": True, "val_split": 0.2, "multi_gpu": False}
    query = {"run_sync": "true"}
    answer = requests.post(f"{address}/train/{bundle.name}", params=query, json=settings, timeout=SECONDS)
    if not answer.ok:
        return f"failed: {answer.status_code} {answer.text[:300]}"
    if digests(fold) != before:
        return "the fold was changed"
    if digests(model.parent)[str(model)] == start:
        return "models/model.pt is as it was"
    curve = (bundle / "models" / "fold_0_continued" / "curve.csv").read_text().splitlines()
    return f"equal: fold_0 is as it was, model.pt is new, {len(curve) - 1} epoch in fold_0_continued"


def predict(bundle: Path, image: Path, output: Path) -> Path:
    """The bundle's own prediction of an image."""
    images = output.with_suffix(".json")
    images.write_text(json.dumps([str(image)]))
    values = {"config_file": bundle / "configs" / "inference.json", "output_dir": output, "images": images}
    flags = [f"--{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", *flags]
    subprocess.run(command, check=True, cwd=output.parent, capture_output=True)
    return output / image.name


def main(folder: Path, names: Sequence[str]) -> int:
    """Compare bundles; 1 when something differs."""
    task = next((folder / "data").iterdir())
    images = sorted((task / "imagesTs").glob("*.nii.gz"))
    app, studies = prepare(folder, task, names)
    outcomes: list[tuple[str, ...]] = []

    def tell(*outcome: str) -> None:
        outcomes.append(outcome)
        print("  ".join(outcome), flush=True)

    def compare(name: str, what: str, image: Path, expected: Path) -> None:
        config = json.loads((app / "model" / name / "configs" / "inference.json").read_text())
        found = app.parent / "found" / what / name / image.name
        failed = segment(address, name, image.name[:-7], found)
        tell(name, what, image.name, failed or difference(found, expected, config["label_values"]))

    with server(app, studies, names) as address:
        for name in names:
            for image in images:
                compare(name, "infer", image, folder / "expected" / name / image.name)
        for name in set(names) & set(TRAINED):
            bundle = app / "model" / name
            tell(name, "train", "", train(address, bundle))
            expected = predict(bundle, images[0], app.parent / f"{name}_after")
            compare(name, "infer after train", images[0], expected)
    return int(any(not outcome[-1].startswith("equal") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:] or BUNDLES))
