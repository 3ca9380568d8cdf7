"""From the facts of a dataset to every decision about it. Pure: no files, no torch, no clock.

Where the prose of the paper and its Table 1 disagree the table decides; the docstrings of `topology` say where, and
so do the decisions of the plan.
"""

import math
import typing
from collections.abc import Mapping, Sequence

from autoplan.base.axes import Shape, Spacing, without_axis
from autoplan.base.errors import PlanError
from autoplan.data.facts import CaseFacts, Fingerprint
from autoplan.planning import rules, topology
from autoplan.planning.reasons import (
    all_warnings,
    base_voxels,
    of_cascade,
    of_components,
    of_configuration,
    of_folds,
    of_geometry,
    of_intensities,
    times,
)
from autoplan.planning.rules import Cascade
from autoplan.planning.values import Configuration, ConfigurationName, Decision, Plan


def plan(
    fingerprint: Fingerprint,
    *,
    cascade: Cascade = "auto",
    max_features: int | None = None,
    own_spacing: Spacing | None = None,
    groups: Mapping[str, str] | None = None,
    own_folds: Mapping[str, int] | None = None,
    before: Sequence[Sequence[str]] = (),
) -> Plan:
    """Every decision about the dataset of `fingerprint`.

    Args:
        fingerprint: facts of the dataset.
        cascade: "auto" plans the cascade where the criterion of section 2.2 applies, "always" and "never" override it.
        max_features: cap on the feature maps of a stage; None, as in the paper, means no cap.
        own_spacing: that every case is resampled to, mm; None, as in the paper, means the median.
        groups: patient, site or scanner of each case, whose cases stay in one fold; None: none are known.
        own_folds: fold of each case, where the user divides; None: they are drawn.
        before: folds that the dataset was divided into when it was planned before, whose cases stay in them.

    Raises:
        PlanError: fewer than two cases, an unknown value of `cascade`, a constant CT foreground, or an `own_spacing`
            that makes the median image too large.
    """
    if cascade not in typing.get_args(Cascade):
        raise PlanError(f"cascade is one of {', '.join(typing.get_args(Cascade))}, not {cascade!r}.")
    folds = _folds(fingerprint.cases, groups, own_folds, before)
    median = rules.target_spacing([c.spacing for c in fingerprint.cases])
    spacing = own_spacing or median
    shape = rules.median_shape(fingerprint.cases, spacing)
    if own_spacing and math.prod(shape) > rules.MAX_MEDIAN_VOXELS:
        raise PlanError(
            f"--spacing {times(spacing)} mm makes a median image of {times(shape)} voxels. The median spacing is "
            f"{times(median)} mm."
        )
    num_cases = len(fingerprint.cases)
    planned = configurations(shape, spacing, num_cases=num_cases, cascade=cascade, max_features=max_features)
    normalization = tuple(map(rules.normalization, fingerprint.modalities, fingerprint.intensities))
    return Plan(
        name=fingerprint.name,
        modalities=fingerprint.modalities,
        labels=fingerprint.labels,
        num_training=num_cases,
        slice_axis=rules.slice_axis(spacing),
        normalization=normalization,
        nonzero_only=rules.nonzero_only(fingerprint.cases),
        single_component=rules.single_component(fingerprint.cases, fingerprint.labels),
        folds=folds,
        configurations=planned,
        decisions=(
            *of_geometry(shape, spacing, median, num_cases=num_cases),
            of_cascade(shape, planned, cascade),
            *of_intensities(fingerprint, normalization),
            of_components(fingerprint),
            Decision("", "folds", str(len(folds)), "section 2.3", of_folds(folds, groups, own_folds)),
            *all_warnings(fingerprint, shape, folds, planned, cascade),
            *(d for c in planned for d in of_configuration(c, shape, spacing, num_cases=num_cases)),
        ),
        formats=fingerprint.formats,
        ignore=fingerprint.ignore,
        training_range=rules.training_range(fingerprint.cases),
        own_spacing=own_spacing,
    )


def _folds(
    cases: Sequence[CaseFacts],
    groups: Mapping[str, str] | None,
    own_folds: Mapping[str, int] | None,
    before: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], ...]:
    """Validation cases of each fold: those of the user, those of before, groups, or drawn case by case. Where a class
    would be missing in a fold though there are cases enough, they are not drawn but spread."""
    names = [c.name for c in cases]
    if own_folds:
        return tuple(tuple(sorted(n for n in names if own_folds[n] == k)) for k in range(1 + max(own_folds.values())))
    classes = {c.name: [n > 0 for n in c.class_voxels] for c in cases}
    if grown := rules.grown_folds(before, names, groups, classes):
        return grown
    if groups:
        return rules.grouped_folds(groups, classes)
    drawn = rules.folds(names)
    return drawn if rules.are_spread(drawn, classes) else rules.grouped_folds({name: name for name in names}, classes)


def configurations(
    median_shape: Shape,
    spacing: Spacing,
    *,
    num_cases: int,
    cascade: Cascade = "auto",
    max_features: int | None = None,
) -> tuple[Configuration, ...]:
    """The configurations of a dataset: 2d, 3d_fullres and, with the cascade, 3d_lowres and 3d_cascade_fullres. Images
    of one slice have 2d only.

    Args:
        median_shape: median shape of the cropped and resampled cases, voxels.
        spacing: target spacing, mm.
        num_cases: number of training cases.
        cascade: see `plan`.
        max_features: see `plan`.

    Source: arXiv:1809.10486, sections 2.1 and 2.2, Table 1.
    """
    is_flat = median_shape[rules.slice_axis(spacing)] == 1
    low = None if is_flat else rules.low_resolution(median_shape, spacing, cascade=cascade)
    seen: list[tuple[ConfigurationName, Shape, Spacing]] = [("2d", median_shape, spacing)]
    if not is_flat:
        seen.append(("3d_fullres", median_shape, spacing))
    if low is not None:
        seen += [("3d_lowres", *low), ("3d_cascade_fullres", median_shape, spacing)]
    # Where a cascade is planned against the criterion, 3d_fullres is treated as a net that has one.
    necessary = rules.cascade_is_necessary(median_shape) or cascade == "always"
    return tuple(_configuration(*s, num_cases=num_cases, max_features=max_features, necessary=necessary) for s in seen)


def num_input_channels(name: ConfigurationName, *, modalities: Sequence[str], labels: Sequence[tuple[int, str]]) -> int:
    """Channels that the network sees: one a modality and, in the cascade's second stage, one a foreground class.

    Source: arXiv:1809.10486, section 2.1, "U-Net Cascade". That the background has no channel of its own is nnU-Net's
    known default; the paper is silent.
    """
    return len(modalities) + (len(labels) - 1 if name == "3d_cascade_fullres" else 0)


def _configuration(
    name: ConfigurationName,
    median_shape: Shape,
    spacing: Spacing,
    *,
    num_cases: int,
    max_features: int | None,
    necessary: bool,
) -> Configuration:
    """One configuration on images of the given median shape and spacing."""
    shape, patch, max_pool = _patch(name, median_shape, spacing)
    strides = topology.strides(patch, max_pool=max_pool)
    return Configuration(
        name=name,
        spacing=spacing,
        median_shape=shape,
        patch_size=patch,
        batch_size=topology.batch_size(patch, median_shape, num_cases=num_cases, base_voxels=base_voxels(name)),
        strides=strides,
        features=topology.features(len(strides), max_features=max_features),
        batch_dice=rules.batch_dice(name, cascade_necessary=necessary),
        augmentation=rules.augmentation(patch),
    )


def _patch(name: ConfigurationName, median_shape: Shape, spacing: Spacing) -> tuple[Shape, Shape, int]:
    """Median shape that the network sees (2D: the plane), its patch, and the most poolings an axis may have."""
    if name == "2d":
        plane = without_axis(median_shape, rules.slice_axis(spacing))
        return plane, topology.patch_size_2d(plane), topology.MAX_POOL_2D
    return median_shape, topology.patch_size_3d(median_shape, spacing), topology.MAX_POOL_3D


# The decisions, in words. Nothing below decides anything.
