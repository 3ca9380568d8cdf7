"""Stands for `python -m monai.bundle run`: writes the result files of a training without training, in no time.

Its epochs take STUB_SECONDS. It resumes from last.pt, saves and ends on SIGTERM, has a process of its own in another
group as a training with loading processes has, and notes in STUB_NOTES that it started, that it ended, and when it
finds another in its folder. STUB_FAULTS is a folder: the file "CONFIGURATION-FOLD" holds a line for each start that
shall fail, and says how.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def note(what: str) -> None:
    with Path(os.environ["STUB_NOTES"]).open("a") as file:
        file.write(f"{what} {STEP} {BUNDLE.name} {FOLD} {os.getpid()}\n")


def fail_if_told() -> None:
    path = Path(os.environ.get("STUB_FAULTS", "nowhere")) / f"{BUNDLE.name}-{FOLD}"
    lines = path.read_text().splitlines() if path.is_file() else []
    if lines:
        path.write_text("\n".join(lines[1:]))
        if lines[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        print(f"Traceback (most recent call last):\n{lines[0]}", file=sys.stderr)
        sys.exit(1)


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def train() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    last = FOLDER / "last.pt"
    done = int(last.read_text()) if last.is_file() else 0
    if done < EPOCHS:
        (FOLDER / "finished.json").unlink(missing_ok=True)
    for epoch in range(done + 1, EPOCHS + 1):
        time.sleep(float(os.environ.get("STUB_SECONDS", "0.05")))
        if epoch == (EPOCHS + 1) // 2:
            fail_if_told()
        rows = [("epoch", "train_average", "val_average", "seconds")]
        rows += [(e, 1 / e, 2 / e, 1.5) for e in range(1, epoch + 1)]
        replace(FOLDER / "curve.csv", "".join(",".join(map(str, row)) + "\n" for row in rows))
        replace(last, str(epoch))
        replace(FOLDER / "model.pt", f"{BUNDLE.name} {FOLD} {epoch}")
    found = {
        "epochs": EPOCHS,
        "stopped": False,
        "model": digest(),
        "max_epochs": EPOCHS,
        "schedule": RECIPE != "train",
        "settings": {"budget_seconds": float(settings["--budget_seconds"])} if RECIPE == "budget" else {},
    }
    replace(FOLDER / "finished.json", json.dumps(found))


def digest() -> str:
    return hashlib.sha256((FOLDER / "model.pt").read_bytes()).hexdigest()[:16]


SETTINGS = dict.fromkeys(("target_spacing", "patch_size", "strides", "features", "mirror", "overlap"))


def evaluate() -> None:
    cases = json.loads((BUNDLE / "configs" / "datalist.json").read_text())["training"]
    names = [case["name"] for case in cases if case["fold"] == int(FOLD)]
    found = {"mean_foreground_dice": 0.5 + int(FOLD) / 10, "cases": {n: {"ball": 0.5} for n in names}}
    for name in names:
        replace(FOLDER / "validation" / "probabilities" / f"{name}.npz", "")
    replace(FOLDER / "validation" / "dice.json", json.dumps({**found, "model": digest(), "settings": SETTINGS}))


words = sys.argv[1:]
STEP, settings = words[1], dict(zip(words[2::2], words[3::2], strict=True))
BUNDLE = Path(settings["--config_file"].strip("[]").split(",")[0].strip("' ")).parent.parent
FOLD = settings.get("--fold", "-")
RECIPE = next((name for name in ("quick", "budget") if f"{name}.json" in settings["--config_file"]), "train")
CONFIG = BUNDLE / "configs" / ("quick.json" if RECIPE == "quick" else "train.json")
EPOCHS = int(settings.get("--max_epochs") or json.loads(CONFIG.read_text())["max_epochs"])
FOLDER = BUNDLE / "models" / f"fold_{FOLD}"
# Several that fill one cache run together.
busy = BUNDLE / f"busy_{os.getpid() if STEP == 'caching' else FOLD}"
note("start")
with contextlib.suppress(OSError):
    if Path(f"/proc/{busy.read_text()}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
        note("clash")
busy.write_text(str(os.getpid()))
if STEP == "training":
    helper = subprocess.Popen(["sleep", "100"], preexec_fn=lambda: os.setpgid(0, 0))
    with Path(os.environ["STUB_NOTES"]).open("a") as file:
        file.write(f"helper {STEP} {BUNDLE.name} {FOLD} {helper.pid}\n")
    train()
    helper.kill()
if STEP == "evaluating":
    evaluate()
busy.unlink()
note("end")
