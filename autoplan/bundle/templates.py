"""The templates of configs, and which of them are laid over each other for a bundle."""

from pathlib import Path
from typing import Any

from autoplan.base.scripts import templates_folder
from autoplan.bundle.overlays import overlaid, read_template
from autoplan.planning import recipes

BATCHES = {"quick.json": recipes.quick_batch_size, "budget.json": recipes.budget_batch_size}
"""Recipes with a batch of their own, from the planned one."""

CONFIGS = ("train.json", "evaluate.json", "inference.json", "multi_gpu_train.json", "quick.json", "budget.json")

OVERLAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "3d_lowres": {"train.json": ("3d_lowres/train.json",), "inference.json": ("3d_lowres/inference.json",)},
    "3d_cascade_fullres": {
        "train.json": ("3d_cascade_fullres/networks.json", "3d_cascade_fullres/train.json"),
        "evaluate.json": ("3d_cascade_fullres/evaluate.json",),
        "inference.json": ("3d_cascade_fullres/networks.json", "3d_cascade_fullres/inference.json"),
        "multi_gpu_train.json": ("3d_cascade_fullres/multi_gpu_train.json",),
    },
}
"""What the stages of the cascade add to the templates of 3d_fullres; see `overlays`."""

PRETRAINED: dict[str, tuple[str, ...]] = {
    "train.json": ("pretrained/train.json",),
    "multi_gpu_train.json": ("pretrained/multi_gpu_train.json",),
}
"""What is laid over these where trainings start from the weights of another bundle."""

IGNORING: dict[str, tuple[str, ...]] = {
    "train.json": ("ignoring/train.json",),
    "evaluate.json": ("ignoring/evaluate.json",),
}
"""What is laid over these where labels have voxels that are not known."""


def template(name: str, configuration: str, *, goes_on: bool = False, ignores: bool = False) -> dict[str, Any]:
    """A config of a configuration as the templates have it, before any plan.

    Args:
        name: file name, such as train.json.
        configuration: such as 3d_fullres.
        goes_on: whether its trainings start from the weights of another bundle.
        ignores: whether labels have voxels that are not known.
    """
    folder = templates_folder() / "configs"
    config = read_template(folder / name)
    wanted = [OVERLAYS.get(configuration, {}), *[PRETRAINED] * goes_on, *[IGNORING] * ignores]
    for overlay in (overlay for overlays in wanted for overlay in overlays.get(name, ())):
        config = overlaid(config, read_template(folder / overlay))
    return config


def copied(templates: Path) -> dict[str, bytes]:
    """The files that every bundle has alike, path in the bundle -> content."""
    paths = [templates / "LICENSE", templates / "configs" / "logging.conf", *(templates / "scripts").glob("*.py")]
    return {path.relative_to(templates).as_posix(): path.read_bytes() for path in paths}
