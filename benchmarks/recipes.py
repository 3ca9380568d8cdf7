"""What each ingredient of a short recipe gains, at equal time.

    python benchmarks/recipes.py clock BUNDLE OUT NAMES [--steps 12]
    python benchmarks/recipes.py train BUNDLE OUT NAMES [--iterations 300] [--fold 0] [--seed 0]
    python benchmarks/recipes.py compare OUT [--against base]

NAMES are keys of VARIANTS with commas between them, several to be combined with a plus: base,wide32,wide16+rate3.
`clock` measures the seconds of a training step of each, alone on a quiet machine, by a short training; OUT/clock.json
keeps them. `train` trains each for as many iterations as take the time of `--iterations` of "base", whatever else the
machine does meanwhile, and predicts the validation cases without mirroring, with the network and with moving averages
of its weights. `compare` prints the mean foreground Dice over the cases that all have, and the paired difference from
one of them with its 95 % interval, as `autoplan select` computes it.
"""

import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import fire
import torch

from autoplan.evaluation.choice import mean_intervals, means_of
from autoplan.training.results import curve, dice

EPOCHS = 40
"""Parts of a training after which the learning rate changes."""
AVERAGES = (0.99,)
"""Weight of the old weights in a moving average, each iteration. One: the handlers of ignite share theirs."""
Scores = dict[str, dict[str, dict[str, float | None]]]
"""Dice of trainings, by case and class."""


def rate(peak: float, course: str = "poly") -> dict[str, Any]:
    """Overlay: the highest learning rate, and how it goes from the first epoch to the last."""
    factors = {
        "poly": f"$lambda epoch: (1 - epoch / {EPOCHS}) ** 0.9",
        "warm": f"$lambda epoch: min(1.0, (epoch + 1) / 4, (1 - (epoch - 3) / {EPOCHS - 3}) ** 0.9)",
        "stable": f"$lambda epoch: min(1.0, (epoch + 1) / 4, ({EPOCHS} - epoch) / {EPOCHS // 2})",
        "cosine": f"$lambda epoch: (1 + math.cos(math.pi * epoch / {EPOCHS})) / 2",
    }
    schedule = {"_target_": "torch.optim.lr_scheduler.LambdaLR", "optimizer": "@optimizer"}
    return {
        "+imports": ["$import math"],
        "learning_rate": peak,
        "lr_schedule": {**schedule, "lr_lambda": factors[course]},
    }


def width(features: int) -> dict[str, Any]:
    """Overlay: the feature maps of the first level; twice as many on each level below."""
    return {"features": f"$[{features} * 2 ** level for level in range(len(@strides))]"}


def optimizer(name: str, **options: Any) -> dict[str, Any]:
    """Overlay: another optimizer."""
    given = {"_target_": f"torch.optim.{name}", "params": "$@network.parameters()", "lr": "@learning_rate"}
    return {"optimizer": {**given, "weight_decay": "@weight_decay", **options}}


class DeepLoss(torch.nn.Module):
    """The mean of a loss over the outputs of a network with deep supervision, each half as heavy as the finer one."""

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Of logits (B, outputs, classes, ...) and labels (B, 1, ...)."""
        outputs = logits.unbind(1)
        weights = [0.5**level for level in range(len(outputs))]
        return sum(w * self.loss(o, label) for w, o in zip(weights, outputs, strict=True)) / sum(weights)


VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "wide32": width(32),
    "wide24": width(24),
    "wide16": width(16),
    "wide8": width(8),
    "rate03": rate(3e-4),
    "rate3": rate(3e-3),
    "rate10": rate(1e-2),
    "warm3": rate(3e-3, "warm"),
    "warm10": rate(1e-2, "warm"),
    "warm30": rate(3e-2, "warm"),
    "stable10": rate(1e-2, "stable"),
    "cosine10": rate(1e-2, "cosine"),
    "batch1": {"batch_size": 1},
    "batch2": {"batch_size": 2},
    "batch4": {"batch_size": 4},
    "batch8": {"batch_size": 8},
    "adamw": {**optimizer("AdamW", amsgrad=True), "weight_decay": 1e-2},
    "sgd": {**rate(1e-2, "warm"), **optimizer("SGD", momentum=0.95, nesterov=True)},
    "foreground5": {"foreground_fraction": 0.5},
    "mirrored": {"mirror_prob": 0.5},
    "mirror0": {"mirror_prob": 0.5, "train#preprocessing#transforms#2#axes": [0]},
    "augment5": {f"train#preprocessing#transforms#0#{name}_prob": 0.5 for name in ("rotation", "scaling", "elastic")},
    "plain": {"train#preprocessing": "@validate#preprocessing"},
    "capped": {"features": "$[min(256, 16 * 2 ** level) for level in range(len(@strides))]"},
    "dice2": {"+loss": {"lambda_dice": 1.0, "lambda_ce": 0.5}},
    "entropy2": {"+loss": {"lambda_dice": 0.5, "lambda_ce": 1.0}},
    "now": {**width(16), "batch_size": 1, **rate(3e-3, "warm")},
    "residual": {"+network_def": {"res_block": True}},
    "deep": {
        "+network_def": {"deep_supervision": True, "deep_supr_num": "$len(@strides) - 2"},
        "train#trainer#loss_function": {"_target_": "benchmarks.recipes.DeepLoss", "loss": "@loss"},
    },
}


def clock(bundle: str, out: str, names: Any, steps: int = 12) -> None:
    """Measure the seconds of a step."""
    for name in _names(names):
        folder = Path(out) / "clock" / name
        _run(bundle, folder, name, {"epoch_length": steps, "max_epochs": 3})
        seconds = [row["seconds"] / steps for row in curve(folder)[1:]]
        known = _clocks(out) | {name: statistics.median(seconds)}
        (Path(out) / "clock.json").write_text(json.dumps(known, indent=1) + "\n")
        print(f"{name}: {known[name]:.3f} s a step, {known[name] / known['base']:.2f} of base", flush=True)


def train(bundle: str, out: str, names: Any, iterations: int = 300, fold: int = 0, seed: int = 0) -> None:
    """Train and predict."""
    for name in _names(names):
        clocks = _clocks(out)
        steps = max(1, round(iterations * clocks["base"] / _seconds(clocks, name) / EPOCHS))
        folder = Path(out) / f"fold_{fold}_{iterations}" / f"{name}@{seed}"
        given = {"epoch_length": steps, "max_epochs": EPOCHS, "fold": fold, "seed": seed}
        if not (folder / "finished.json").exists():
            _run(bundle, folder, name, given, averages=True)
        for weight in (None, *AVERAGES):
            place = folder if weight is None else folder.with_name(f"{name}~{weight}@{seed}")
            place.mkdir(exist_ok=True)
            if weight is not None:
                (place / "model.pt").write_bytes((folder / f"average_{weight}.pt").read_bytes())
            if not (place / "validation" / "dice.json").exists():
                _run(bundle, place, name, {"fold": fold, "mirror": False}, step="evaluating")


def compare(out: str, against: str = "base") -> None:
    """Print a table of each group of trainings; where seeds are several, also of their mean in each case."""
    for group in sorted(Path(out).glob("fold_*")):
        found = {path.name: dice(path) for path in sorted(group.iterdir()) if dice(path)}
        found |= _means_of_seeds(found, against)
        print(
            f"\n{group.name}\n\n| variant | seed | Dice | difference from {against} | 95 % interval |\n|--|--|--|--|--|"
        )
        for name, scores in found.items():
            variant, seed = name.split("@")
            mean = _foreground(scores)
            if (base := found.get(f"{against}@{seed}")) is None or variant == against:
                print(f"| {variant} | {seed} | {mean:.4f} | | |")
                continue
            rows = [[_minus(v, base[case][c]) for c, v in row.items()] for case, row in scores.items()]
            low, high = mean_intervals(rows)[1] or (0.0, 0.0)
            gain = mean - _foreground(base)
            print(f"| {variant} | {seed} | {mean:.4f} | {gain:+.4f} | {low:+.4f} to {high:+.4f} |")


def _means_of_seeds(found: Scores, against: str) -> Scores:
    """The mean scores of each variant over the seeds that it shares with one of them; those of that one, too."""
    means: Scores = {}
    for variant in dict.fromkeys(name.split("@")[0] for name in found):
        own, other = ({n.split("@")[1] for n in found if n.startswith(f"{v}@")} for v in (variant, against))
        seeds = sorted(own & other)
        if len(seeds) > 1:
            for v in (variant, against):
                means[f"{v}@{','.join(seeds)}"] = _mean_scores([found[f"{v}@{seed}"] for seed in seeds])
    return means


def _mean_scores(several: list[dict[str, dict[str, float | None]]]) -> dict[str, dict[str, float | None]]:
    """The mean in each case and class; what one has no score for has none."""
    means: dict[str, dict[str, float | None]] = {}
    for case, row in several[0].items():
        values = {c: [scores[case][c] for scores in several] for c in row}
        means[case] = {c: None if None in v else statistics.fmean(v) for c, v in values.items()}
    return means


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _foreground(scores: dict[str, dict[str, float | None]]) -> float:
    """The mean over the classes of the mean over the cases."""
    return means_of([list(row.values()) for row in scores.values()]).foreground or 0.0


def _names(names: Any) -> list[str]:
    return list(names) if isinstance(names, (list, tuple)) else str(names).split(",")


def _seconds(clocks: dict[str, float], name: str) -> float:
    """Of a step; that of a combination is the product of what its parts cost more or less than base."""
    product = math.prod(clocks.get(part, clocks["base"]) / clocks["base"] for part in name.split("+"))
    return clocks.get(name, clocks["base"] * product)


def _clocks(out: str) -> dict[str, float]:
    path = Path(out) / "clock.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _run(
    bundle: str, folder: Path, name: str, given: dict[str, Any], step: str = "training", *, averages: bool = False
) -> None:
    """Run a step of the bundle with the overlay of a variant, results in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    overlay: dict[str, Any] = {"batch_size": 2, "val_batches": 1, "mirror_prob": 0.0, **rate(1e-3)}
    for part in name.split("+"):
        overlay |= VARIANTS[part]
    if averages:
        overlay |= _averages(folder)
    path = folder / "overlay.json"
    path.write_text(json.dumps(overlay, indent=1) + "\n")
    names = ["train", *(["evaluate"] if step == "evaluating" else [])]
    files = [str(Path(bundle).resolve() / "configs" / f"{n}.json") for n in names] + [str(path.resolve())]
    options = {**given, "ckpt_dir": str(folder.resolve())}
    words = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", step, "--config_file", str(files), *words]
    with (folder / f"{step}.log").open("w") as log:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        subprocess.run(command, cwd=bundle, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)


def _averages(folder: Path) -> dict[str, Any]:
    """Overlay: handlers that keep moving averages of the weights, and save them at the end."""
    overlay: dict[str, Any] = {"+train#handlers": []}
    for number, weight in enumerate(AVERAGES):
        handler = {"_target_": "ignite.handlers.EMAHandler", "model": "@network_def", "momentum": 1 - weight}
        overlay[f"average_{number}"] = handler
        overlay["+train#handlers"] += [
            {"_target_": "scripts.use", "handler": f"@average_{number}"},
            {
                "_target_": "CheckpointSaver",
                "save_dir": str(folder.resolve()),
                "save_dict": {"model": f"$@average_{number}.ema_model"},
                "save_final": True,
                "final_filename": f"average_{weight}.pt",
            },
        ]
    return overlay


if __name__ == "__main__":
    fire.Fire({"clock": clock, "train": train, "compare": compare})
