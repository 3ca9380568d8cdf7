"""Going on from a bundle: the plan of a dataset around networks that are trained already. Pure: no files, no torch.

What the weights depend on comes from the bundle: topology, patch, spacing, normalization and slice axis. What depends
on the dataset alone stays: classes, folds, batch size, loss and postprocessing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoplan.base.axes import Shape, Spacing, without_axis
from autoplan.base.checks import are_lengths, are_sizes, check
from autoplan.base.errors import PlanError
from autoplan.base.tables import table
from autoplan.planning import recipes, rules, topology
from autoplan.planning.reasons import WARNING, base_voxels
from autoplan.planning.values import ChannelNormalization, Configuration, ConfigurationName, Decision, Origin, Plan

SUPPORTED: tuple[ConfigurationName, ...] = ("2d", "3d_fullres")
"""Configurations that can go on. The stages of a cascade are trained one after the other, and the second sees the
classes of the first as channels."""
LARGEST_PATCH = 2**31
"""Voxels, far above what any GPU takes."""
MOST_STAGES, MOST_FEATURES = 32, 2**16
"""Of a network."""
KEPT = (WARNING, "single_component", "folds", "batch_dice")
"""Decisions about the dataset that the bundle does not touch."""


@dataclass(frozen=True)
class Network:
    """A network of a bundle. `prefix` stands before the names of its weights, such as `fullres.0.`."""

    configuration: ConfigurationName
    patch_size: Shape
    strides: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]
    prefix: str = ""

    def __post_init__(self) -> None:
        axes = 2 if self.configuration == "2d" else 3
        steps = [step for step in self.strides if len(step) == axes]
        coarsest = [math.prod(column) for column in zip(*steps, strict=True)]
        check(
            self,
            patch_size=are_sizes(self.patch_size, axes)
            and math.prod(self.patch_size) <= LARGEST_PATCH
            and all(size % factor == 0 for size, factor in zip(self.patch_size, coarsest, strict=False)),
            strides=0 < len(steps) == len(self.strides) <= MOST_STAGES
            and {*steps[0]} == {1}
            and {n for step in steps for n in step} <= {1, 2},
            features=are_sizes(self.features, len(self.strides)) and max(self.features) <= MOST_FEATURES,
        )


@dataclass(frozen=True)
class Source:
    """What a bundle says of its networks; of those of several folds, the first.

    Attributes:
        origin: which bundle it is.
        channels: names of the input channels, in order.
        classes: names of the classes, background first.
        spacing: that images are resampled to, mm.
        slice_axis: axis that slices are stacked along.
        normalization: of each channel.
        nonzero_only: whether only nonzero voxels are normalized.
        networks: those that can go on, simple ones first.
        others: configurations that cannot.
    """

    origin: Origin
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    spacing: Spacing
    slice_axis: int
    normalization: tuple[ChannelNormalization | None, ...]
    nonzero_only: bool
    networks: tuple[Network, ...]
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(
            self,
            channels=bool(self.channels),
            classes=len(self.classes) > 1,
            spacing=are_lengths(self.spacing, 3),
            slice_axis=0 <= self.slice_axis < 3,
            normalization=len(self.normalization) == len(self.channels),
        )


def adapted(own: Plan, source: Source) -> Plan:
    """The plan of a dataset that goes on with the networks of a bundle.

    Args:
        own: what the rules plan for the dataset by itself.
        source: the bundle.

    Raises:
        PlanError: the bundle's networks cannot see the images of the dataset; with the reason.
    """
    _check(own, source)
    whole = own.configuration("3d_fullres")
    shape = rules.resampled_shape(whole.median_shape, whole.spacing, target=source.spacing)
    planned = tuple(_configuration(own, source, network, shape) for network in source.networks)
    names = ("", *(c.name for c in planned))
    kept = [d for d in own.decisions if d.name in KEPT and d.configuration in names]
    return replace(
        own,
        slice_axis=source.slice_axis,
        normalization=source.normalization,
        nonzero_only=source.nonzero_only,
        configurations=planned,
        decisions=(*_decisions(own, source), *kept, *(d for c in planned for d in _of_network(c, source.origin))),
        origin=source.origin,
    )


def check_configurations(source: Source, names: Sequence[str]) -> None:
    """Refuses configurations that a bundle has no network for.

    Raises:
        PlanError: the first of them.
    """
    there = [network.configuration for network in source.networks]
    if absent := [name for name in names if name not in there]:
        raise PlanError(f"{source.origin.title} has no network of {absent[0]}. It has {' and '.join(there) or 'none'}.")


def _check(own: Plan, source: Source) -> None:
    """Refuses a bundle whose networks take other images."""
    title = source.origin.title
    if not source.networks:
        said = ", ".join(source.others) or "no network of autoplan's"
        raise PlanError(f"{title} cannot go on: it holds {said}, and only {' and '.join(SUPPORTED)} can.")
    ours, theirs = list(own.modalities), list(source.channels)
    if len(ours) != len(theirs):
        raise PlanError(
            f"{title} takes {len(theirs)} channel{'s' * (len(theirs) != 1)} ({', '.join(theirs)}), the images of "
            f"{own.name} have {len(ours)} ({', '.join(ours)}). Take a bundle for the same channels."
        )
    if ours != theirs and sorted(ours) == sorted(theirs):
        raise PlanError(
            f"{title} takes the channels {', '.join(theirs)} in this order, {own.name} has {', '.join(ours)}. Bring "
            "the channels of the images, and their names in dataset.json, into the order of the bundle."
        )


def _configuration(own: Plan, source: Source, network: Network, shape: Shape) -> Configuration:
    """The network of a bundle, on the images of a dataset with this median shape."""
    name, patch = network.configuration, network.patch_size
    batch = topology.batch_size(patch, shape, num_cases=own.num_training, base_voxels=base_voxels(name))
    return Configuration(
        name=name,
        spacing=source.spacing,
        median_shape=without_axis(shape, source.slice_axis) if len(patch) == 2 else shape,
        patch_size=patch,
        batch_size=batch,
        strides=network.strides,
        features=network.features,
        batch_dice=own.configuration(name).batch_dice,
        augmentation=rules.augmentation(patch),
    )


def inherited_classes(own: Plan, source: Source) -> tuple[int | None, ...]:
    """For each class of the dataset, its number in the bundle: the one of the same name, whatever its case; the
    background is the background. None for a new class."""
    theirs = {_plain(name): number for number, name in enumerate(source.classes) if number}
    return (0, *(theirs.get(_plain(name)) for _, name in own.labels[1:]))


def _plain(name: str) -> str:
    return name.strip().casefold()


# In words. Nothing below decides anything.


def report(own: Plan, plan: Plan, source: Source) -> str:
    """What comes from the bundle, to be read: a table of classes, and one of what the dataset's own plan has
    differently."""
    classes = [
        (name, "new: its weights start at random" if number is None else source.classes[number])
        for (_, name), number in zip(plan.labels, inherited_classes(own, source), strict=True)
    ]
    parts = [
        f"{plan.name} goes on from {source.origin.title}.",
        table([("class", "in the bundle"), *classes]),
        _differences(own, plan),
    ]
    left = [name for i, name in enumerate(source.classes) if i not in inherited_classes(own, source)]
    if left:
        parts.append(f"Classes of the bundle that {plan.name} does not have are dropped: {', '.join(left)}.")
    if source.others:
        parts.append(f"Left out of the bundle: {', '.join(source.others)}; stages of a cascade cannot go on.")
    return "\n\n".join([*parts, *(f"Warning: {d.because}" for d in _notes(own, source))])


def _differences(own: Plan, plan: Plan) -> str:
    """A table of what the plan of the dataset by itself has differently."""
    rows = [row for row in zip(_facts(own, plan), _facts(plan, plan), strict=True) if row[0] != row[1]]
    if not rows:
        return f"The plan of {plan.name} by itself would be the same."
    return table([("setting", "own plan", "from the bundle"), *((*a, b[1]) for a, b in rows)])


def _facts(plan: Plan, shown: Plan) -> list[tuple[str, str]]:
    """What a plan says of the settings that a bundle brings, for the configurations of `shown`."""
    channels = zip(plan.modalities, plan.normalization, strict=True)
    found = [
        ("spacing (mm)", _times(plan.spacing)),
        ("slice axis", "xyz"[plan.slice_axis]),
        *((f"normalization of {name}", _normalized(n)) for name, n in channels),
        ("nonzero voxels only", "yes" if plan.nonzero_only else "no"),
    ]
    for name in (c.name for c in shown.configurations):
        c = plan.configuration(name)
        found += [
            (f"{name}: patch", _times(c.patch_size)),
            (f"{name}: batch", str(c.batch_size)),
            (f"{name}: poolings", ", ".join(map(str, c.num_pool))),
            (f"{name}: features", f"{c.features[0]}-{c.features[-1]}"),
        ]
    return found


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def _normalized(n: ChannelNormalization | None) -> str:
    """How a channel is normalized, in few words."""
    return "by image" if n is None else f"[{n.lower:.4g}, {n.upper:.4g}], mean {n.mean:.4g}, std {n.std:.4g}"


def _decisions(own: Plan, source: Source) -> tuple[Decision, ...]:
    """What the bundle decides for all configurations."""
    title, origin = source.origin.title, source.origin
    same = "its weights know images of no other"
    channels = zip(own.modalities, source.normalization, strict=True)
    return (
        Decision("", "weights", origin.model, title, "Trainings start from the weights of this bundle. Output channels "
                 "of classes of the same name are taken over, those of new classes start at random."),
        Decision("", "spacing", f"{_times(source.spacing)} mm", title, f"The spacing is that of the bundle: {same}."),
        Decision("", "slice_axis", "xyz"[source.slice_axis], title, "The slices are those of the bundle."),
        *(Decision("", f"normalization of channel {i}", _normalized(n), title,
                   f"The normalization of {name} is that of the bundle: {same}.")
          for i, (name, n) in enumerate(channels)),
        Decision("", "nonzero_only", "yes" if source.nonzero_only else "no", title, "As in the bundle."),
        Decision("", "learning_rate", f"a {recipes.FINE_TUNING_DIVISOR}rd of that of a fresh training", "our choice",
                 "The whole rate would undo much of what the networks know. It is reached by a linear warm-up over the "
                 "first epoch, for the optimizer knows nothing yet of the size of the gradients."),
        *_notes(own, source),
    )  # fmt: skip


def _of_network(c: Configuration, origin: Origin) -> tuple[Decision, ...]:
    """What the bundle decides for one configuration."""
    values = {
        "patch_size": _times(c.patch_size),
        "num_pool": _times(c.num_pool),
        "features": f"{c.features[0]}-{c.features[-1]}",
    }
    batch = "By the rule of section 2.1, for the patch of the bundle and the images of this dataset."
    return (
        *(Decision(c.name, name, value, origin.title, "As in the bundle.") for name, value in values.items()),
        Decision(c.name, "batch_size", str(c.batch_size), "section 2.1", batch),
        Decision(c.name, "augmentation", c.augmentation, "section 2.3", "By the edges of the bundle's patch."),
    )


def _notes(own: Plan, source: Source) -> tuple[Decision, ...]:
    """What a user should know unasked."""
    title = source.origin.title
    other = [(a, b) for a, b in zip(own.modalities, source.channels, strict=True) if a != b]
    messages = [
        (source.origin.dataset == own.name, "the same dataset",
         f"The networks of {title} were trained on {own.name}, too. Cases that they have seen score too well in "
         "cross-validation; keep others apart to compare."),
        (bool(other), "channels",
         f"Channels have other names in {title}: {', '.join(f'{b} there, {a} here' for a, b in other)}. Networks know "
         "images like those that they were trained on only."),
    ]  # fmt: skip
    return tuple(Decision("", WARNING, value, title, because) for holds, value, because in messages if holds)
