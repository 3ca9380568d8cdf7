"""Section "Provenance": versions, machine, commands, hashes, and a text for a methods section."""

import hashlib
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from autoplan import __version__
from autoplan.base.axes import as_flag
from autoplan.base.files import file_digest, read_object
from autoplan.base.scripts.memory import memory_bytes, processors
from autoplan.base.tables import duration, flags
from autoplan.bundle import saved
from autoplan.bundle.commands import planning_command, where_flag
from autoplan.data import layouts
from autoplan.data.decathlon import DESCRIPTION
from autoplan.data.facts import Dataset
from autoplan.evaluation.choice import mean_intervals
from autoplan.planning.values import ALL, Configuration, Fold, Plan
from autoplan.report.blocks import Block, Code, Section, Table, Text, Values, counted, number, words
from autoplan.report.blocks import Row as Line
from autoplan.report.sections.training import Training
from autoplan.report.summaries import Summary
from autoplan.report.validation import Result
from autoplan.training import results
from autoplan.training.recipe import flags_of_recipe, making_command

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "matplotlib")
CITATIONS = (
    "Isensee F., Petersen J., Klein A. et al. nnU-Net: Self-adapting Framework for U-Net-Based Medical Image "
    "Segmentation. arXiv:1809.10486 (2018).",
    "Cardoso M. J., Li W., Brown R. et al. MONAI: An open-source framework for deep learning in healthcare. "
    "arXiv:2211.02701 (2022).",
    "Paszke A., Gross S., Massa F. et al. PyTorch: An Imperative Style, High-Performance Deep Learning Library. "
    "NeurIPS 2019. arXiv:1912.01703.",
)


@dataclass(frozen=True)
class Provenance:
    """Where a page comes from. Pairs are names and values, as they are shown; `recipes` holds the first finished
    training of each configuration; `on_all` names those with a finished network that was trained on all cases."""

    versions: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]
    hashes: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    recipes: Mapping[str, results.Training]
    on_all: tuple[str, ...] = ()


def read(
    dataset: Dataset, plan: Plan, folder: Path, key: str, summaries: Sequence[Summary], trainings: Sequence[Training]
) -> Provenance:
    """What can be known of where everything comes from.

    Args:
        dataset: what dataset.json says.
        plan: folds and configurations.
        folder: of the task's bundles.
        key: digest of the dataset's files.
        summaries: of all images; they know the digests of their voxels.
        trainings: whatever was trained.
    """
    finished = [(t, t.ended) for t in trainings if t.ended is not None]
    recipes: dict[str, results.Training] = {}
    for t, found in finished:
        recipes.setdefault(t.row.configuration, found)
    shared = [path for path in sorted(folder.glob("*/models/model.pt")) if path.parents[1].name not in recipes]
    return Provenance(
        (("autoplan", __version__), ("Python", platform.python_version()), *((p, _version(p)) for p in PACKAGES)),
        _machine(),
        (
            *((p.name, file_digest(p)) for p in (dataset.root / DESCRIPTION, folder / layouts.RECORD) if p.is_file()),
            ("names, sizes and checksums of all files", key[:16]),
            ("voxels of all images", _voxels(summaries)),
            ("plan.json", file_digest(folder / saved.PLAN)),
            *((f"{t.name}, model.pt", found.model) for t, found in finished),
            *((f"{path.parents[1].name}, model.pt", file_digest(path)) for path in shared),
        ),
        tuple(_commands(plan, folder, trainings)),
        recipes,
        tuple(t.row.configuration for t, _ in finished if t.is_on_all),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> tuple[tuple[str, str], ...]:
    """The machine that the page is made on."""
    return (
        ("system", platform.platform()),
        ("processor", f"{_processor()}, {counted(processors(), 'core')} to use"),
        ("memory", f"{memory_bytes() / 2**30:.0f} GiB"),
        ("GPU", _gpus() or "none"),
    )


def _processor() -> str:
    """Its name, where the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _gpus() -> str:
    """Names of the GPUs, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        said = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True,
            timeout=10, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(said.split("\n")).strip("; ")


def _voxels(summaries: Sequence[Summary]) -> str:
    """Digest of the voxels of all images that can be read, whatever their compression."""
    digest = hashlib.sha256()
    for s in sorted(summaries, key=lambda s: (s.is_test, s.name)):
        digest.update(f"{s.name} {s.is_test} {s.content}\n".encode())
    return digest.hexdigest()[:16]


def _commands(plan: Plan, folder: Path, trainings: Sequence[Training]) -> list[str]:
    """The commands that make everything again."""
    first = plan.configurations[0].name
    where = where_flag(folder / first)
    given = layouts.read(folder).flags
    if plan.gpu_memory:
        either = (f"{plan.gpu_memory / 1e9:.15g}GB", f"{plan.gpu_memory / 2**30:.15g}GiB")
        given["gpu_memory"] = min(either, key=len)
    if plan.own_spacing:
        given["spacing"] = as_flag(plan.own_spacing)
    commands = [planning_command(folder / first) + flags(given)]
    groups: dict[tuple[str, str], list[Fold]] = {}
    for t in trainings:
        recipe = flags_of_recipe(folder / t.row.configuration, t.row.fold)
        groups.setdefault((t.row.configuration, recipe), []).append(t.row.fold)
    commands += [making_command(folder / name, folds) for (name, _), folds in groups.items()]
    others = (_selecting(folder / "best"), *(("predict {}",) if (folder / "best").is_dir() else ()), "report {}")
    return [*commands, *(f"python -m autoplan {command.format(plan.name)}{where}" for command in others)]


def _selecting(bundle: Path) -> str:
    """The command that made a bundle to share, with a place for the dataset."""
    about = read_object(bundle / "configs" / "metadata.json").get("autoplan", {})
    on_all = [name for name, folds in about.get("networks", {}).items() if f"fold_{ALL}" in folds]
    named = f" --configurations {','.join(on_all)}" if about.get("choice") == "by hand" else ""
    return f"select {{}} --folds {ALL}{named}" if on_all else "select {}"


def section(plan: Plan, provenance: Provenance, result: Result | str | None) -> Section:
    """Where everything comes from, and how to write about it."""
    methods = methods_text(plan, provenance, result if isinstance(result, Result) else None)
    hashes = [Line(words(name, value)) for name, value in provenance.hashes]
    blocks: list[Block] = [
        Text("Versions of the programs, and the machine that this page was made on:"),
        Values([*provenance.versions, *provenance.machine]),
        Text("The commands that make it again, beside the folder of the datasets:"),
        Code("\n".join(provenance.commands)),
        Table("Digests, first 16 hexadecimal digits of SHA-256", ("what", "digest"), hashes, text=2),
        Text("For a methods section; cite the dataset, too:"),
        Code(methods),
    ]
    return Section("provenance", "Provenance", blocks, {**asdict(provenance), "methods": methods})


# The text.


def methods_text(plan: Plan, provenance: Provenance, result: Result | None) -> str:
    """What was done, in the words of a paper, with its numbers."""
    paragraphs = [
        f"{_data(plan)} {_preprocessing(plan)}",
        *(
            _network(c, plan, provenance.recipes.get(c.name)) + _ON_ALL * (c.name in provenance.on_all)
            for c in plan.configurations
        ),
        _validation(plan, result),
        "\n".join(f"[{i}] {text}" for i, text in enumerate(CITATIONS, 1)),
    ]
    return "\n\n".join(paragraphs)


def _data(plan: Plan) -> str:
    names = ", ".join(name for _, name in plan.labels[1:])
    channels = ", ".join(plan.modalities)
    return (
        f"Networks for the segmentation of {names} were trained on {plan.num_training} images ({channels}). They were "
        f"planned by autoplan {__version__}, which follows nnU-Net [1], as bundles of MONAI [2] on PyTorch [3]."
    )


def _preprocessing(plan: Plan) -> str:
    """Crop, resampling and normalization."""
    spacing = " x ".join(f"{s:.4g}" for s in plan.spacing)
    masked = " over its nonzero voxels" if plan.nonzero_only else ""
    found = []
    for modality, n in zip(plan.modalities, plan.normalization, strict=True):
        found.append(
            f"the intensities of {modality} were normalized image by image to mean 0 and standard deviation 1{masked}"
            if n is None
            else f"the intensities of {modality} were clipped to [{n.lower:.4g}, {n.upper:.4g}], the 0.5 and 99.5 "
            f"percentiles of the foreground, and normalized by its mean {n.mean:.4g} and standard deviation {n.std:.4g}"
        )
    return (
        f"Images were cropped to their nonzero region and resampled to {spacing} mm (third-order splines, labels by "
        f"nearest neighbour); {'; '.join(found)}."
    )


_ON_ALL = " One network was trained on all cases and not validated."


def _network(c: Configuration, plan: Plan, training: results.Training | None) -> str:
    """A network, and how it was trained where that is known."""
    recipe = training.settings if training else {}
    features = training.features if training and training.features else c.features
    patch = " x ".join(map(str, recipe.get("patch_size", c.patch_size)))
    said = (
        f"{c.name}: a U-Net of {len(features)} levels with {features[0]} to {features[-1]} feature maps, instance "
        f"normalization and leaky ReLU; patches of {patch} voxels."
    )
    if plan.origin is not None:
        said += f" It went on from {plan.origin.title}, which was trained on {plan.origin.dataset}."
    if training is None:
        return said + " It is not trained yet."
    seconds, rate, length = training.budget_seconds, recipe.get("learning_rate"), recipe.get("epoch_length")
    course = f"an initial learning rate of {rate}"
    epochs = f"up to {training.max_epochs} epochs of {length} batches"
    if seconds is not None:
        course = f"a learning rate that rose to {rate} and fell to 0"
        epochs = f"{duration(seconds)}, that is {training.epochs} epochs of up to {length} batches"
    return said + (
        f" It was trained in batches of {recipe.get('batch_size')} by Adam (AMSGrad) with {course} and weight decay "
        f"{recipe.get('weight_decay')}, on the sum of Dice loss and cross-entropy, for {epochs}, with random rotation, "
        f"scaling, elastic deformation, change of gamma{', mirroring' if recipe.get('mirror_prob') else ''}."
    )


def _validation(plan: Plan, result: Result | None) -> str:
    """Cross-validation, choice, postprocessing and score."""
    names = dict(plan.labels)
    kept = ", ".join(names[value] for value in plan.single_component)
    cleaned = f"All but the largest connected component of {kept} was removed. " if kept else ""
    if result is None or not result.readable:
        return f"Networks are compared by {len(plan.folds)}-fold cross-validation. {cleaned}".strip()
    folds = sorted(set(result.folds.values()))
    means, interval = _scores(result)
    was = "was chosen" if result.chosen is not None and result.chosen.is_current else "was evaluated"
    told = f" (95 % bootstrap interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    return (
        f"{cleaned}{' + '.join(result.members)} {was} by cross-validation: {counted(len(result.readable), 'case')} of "
        f"{counted(len(folds), 'fold')} of {len(plan.folds)}, each predicted by a network that had not seen it. The "
        f"mean foreground Dice was {means}{told}."
    )


def _scores(result: Result) -> tuple[str, tuple[float, float] | None]:
    """Mean over the classes of the mean over the cases, and its interval."""
    rows = [c.dice for c in result.readable]
    columns = [[v for v in column if v is not None] for column in zip(*rows, strict=True)]
    means = [sum(column) / len(column) for column in columns if column]
    _, interval = mean_intervals(rows)
    return (number(sum(means) / len(means), 4) if means else "not defined"), interval
