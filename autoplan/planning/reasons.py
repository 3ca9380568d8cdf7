"""Why a plan is as it is, in sentences, and what to beware of."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from autoplan.base.axes import Shape, Spacing
from autoplan.data.facts import CaseFacts, Fingerprint
from autoplan.planning import rules, topology
from autoplan.planning.rules import Cascade
from autoplan.planning.values import ChannelNormalization, Configuration, ConfigurationName, Decision, Plan

WARNING = "warning"
"""Name of the decisions that a user should see unasked."""

MAX_LISTED = 5
"""Cases that a warning names."""


def warnings(plan: Plan) -> tuple[Decision, ...]:
    """Decisions that a user should see without asking for explanations."""
    return tuple(d for d in plan.decisions if d.name == WARNING)


def base_voxels(name: ConfigurationName) -> int:
    """Voxels of an optimizer step at most."""
    return topology.BASE_VOXELS_2D if name == "2d" else topology.BASE_VOXELS_3D


def times(values: Iterable[float]) -> str:
    """`40 x 56 x 40`."""
    return " x ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _million(voxels: float) -> str:
    """`2.10 million`, or the number itself where it is small."""
    return f"{voxels / 1e6:.2f} million" if voxels >= 1e5 else f"{voxels:g}"


def of_geometry(shape: Shape, spacing: Spacing, median: Spacing, *, num_cases: int) -> tuple[Decision, ...]:
    """Target spacing, median shape, slice axis."""
    axis = rules.slice_axis(spacing)
    given = (
        ""
        if spacing == median
        else f" {times(spacing)} mm was chosen in its place, by --spacing or because time was short."
    )
    return (
        Decision("", "spacing", f"{times(spacing)} mm", "--spacing" if given else "section 2.2",
                 f"The median spacing of the {num_cases} training cases, axis by axis, is {times(median)} mm.{given}"),
        Decision("", "median_shape", times(shape), "section 2.2",
                 f"Cropped to the nonzero region and resampled to that spacing, the median image has {times(shape)} "
                 "voxels."),
        Decision("", "slice_axis", "xyz"[axis], "section 2.1; Table 1 for a tie",
                 f"The spacing is coarsest along {'xyz'[axis]} ({spacing[axis]:.4g} mm; of equal axes the last counts)"
                 ", so the 2D network sees slices across it, where the resolution is highest."),
    )  # fmt: skip


def of_cascade(shape: Shape, planned: Sequence[Configuration], cascade: Cascade) -> Decision:
    """Whether there is a cascade, and its resolution."""
    if not any(c.name == "3d_fullres" for c in planned):
        because = "The median image has one slice, so there is a 2D configuration only."
        return Decision("", "cascade", "no", "the paper is silent", because)
    limit = rules.CASCADE_FACTOR * topology.MAX_PATCH_VOXELS_3D
    more = "more" if rules.cascade_is_necessary(shape) else "not more"
    because = (
        f"The median image has {_million(math.prod(shape))} voxels, {more} than {_million(limit)}, which is "
        f"{rules.CASCADE_FACTOR} times the largest 3D patch of 128^3"
    )
    low = next((c for c in planned if c.name == "3d_lowres"), None)
    value = "no" if low is None else f"first stage at {times(low.spacing)} mm"
    request = "" if cascade == "auto" else f"; --cascade {cascade} was given"
    return Decision("", "cascade", value, "section 2.2", f"{because}{request}.")


def of_intensities(
    fingerprint: Fingerprint, normalization: Sequence[ChannelNormalization | None]
) -> tuple[Decision, ...]:
    """Normalization of each channel, and whether it is masked."""
    kept = rules.fraction_kept(fingerprint.cases)
    masked = rules.nonzero_only(fingerprint.cases)
    channels = enumerate(zip(fingerprint.modalities, normalization, strict=True))
    return (
        *(_normalization_decision(i, modality, n) for i, (modality, n) in channels),
        Decision("", "nonzero_only", "yes" if masked else "no", "section 2.2",
                 f"Cropping to the nonzero region keeps {kept:.1%} of the voxels, "
                 f"{'at most' if masked else 'more than'} {1 - rules.CROP_REDUCTION:.0%}, so normalization "
                 f"{'uses the nonzero voxels only and leaves all others 0' if masked else 'uses the whole image'}."),
    )  # fmt: skip


def _normalization_decision(channel: int, modality: str, statistics: ChannelNormalization | None) -> Decision:
    """Normalization of one channel."""
    name = f"normalization of channel {channel}"
    if statistics is None:
        because = (
            f"The name {modality!r} does not contain 'ct', so each image is z-scored with its own mean and deviation."
        )
        return Decision("", name, "z-score of each image", "section 2.2", because)
    because = (
        f"The name {modality!r} contains 'ct', so intensities are clipped to [{statistics.lower:.4g}, "
        f"{statistics.upper:.4g}], the 0.5 and 99.5 percentiles of the foreground of all training cases, and z-scored "
        f"with the mean {statistics.mean:.4g} and standard deviation {statistics.std:.4g} of that foreground."
    )
    return Decision("", name, "CT", "section 2.2", because)


def of_components(fingerprint: Fingerprint) -> Decision:
    """Postprocessing by largest component."""
    single = rules.single_component(fingerprint.cases, fingerprint.labels)
    most = [max(counts) for counts in zip(*(c.class_components for c in fingerprint.cases), strict=True)]
    counted = ", ".join(f"{name} {count}" for (_, name), count in zip(fingerprint.labels[1:], most, strict=True))
    value = ", ".join(name for number, name in fingerprint.labels if number in single) or "none"
    because = (
        f"The largest number of connected components of each class in one training label is: {counted}. Where it is 1, "
        "only the largest component of the class is kept in predictions."
    )
    return Decision("", "single_component", value, "section 2.5", because)


def of_folds(
    folds: Sequence[Sequence[str]], groups: Mapping[str, str] | None, own_folds: Mapping[str, int] | None
) -> str:
    """One sentence on the division into folds."""
    sizes = " or ".join(str(size) for size in sorted({len(f) for f in folds}))
    divided = f"The {sum(map(len, folds))} training cases are divided into {len(folds)} folds of {sizes}"
    if own_folds:
        return f"{divided}, as the dataset says."
    if groups:
        return f"{divided}; the cases of each of {len(set(groups.values()))} groups stay in one fold."
    return f"{divided}."


def all_warnings(
    fingerprint: Fingerprint,
    shape: Shape,
    folds: Sequence[Sequence[str]],
    planned: Sequence[Configuration],
    cascade: Cascade,
) -> tuple[Decision, ...]:
    """What a user should know unasked."""
    volumes = any(c.name == "3d_fullres" for c in planned)
    necessary = volumes and rules.cascade_is_necessary(shape)
    messages = [
        (len(fingerprint.cases) == len(folds) < rules.NUM_FOLDS, f"{len(folds)} folds", "section 2.3",
         f"There are {len(folds)} training cases, fewer than {rules.NUM_FOLDS}, so there are as many folds as cases."),
        (cascade == "always" and volumes and not necessary, "cascade", "section 2.2",
         "The cascade is planned because of --cascade always; the images are small enough to do without."),
        (cascade == "never" and necessary, "no cascade", "section 2.2",
         "The images are large enough for a cascade; --cascade never leaves it out."),
        *_case_warnings(fingerprint.cases),
        *_constant_channels(fingerprint),
        *_class_warnings(fingerprint, folds),
        *_twin_warnings(fingerprint, folds),
        *((_is_padded(c), f"patch of {c.name}", "the paper is silent",
           "The network must halve at least one axis twice, and the images are too small for that: the patch of "
           f"{c.name} is enlarged to {times(c.patch_size)} and images are padded to it.") for c in planned),
    ]  # fmt: skip
    return tuple(Decision("", WARNING, value, source, because) for holds, value, source, because in messages if holds)


def _class_warnings(fingerprint: Fingerprint, folds: Sequence[Sequence[str]]) -> list[tuple[bool, str, str, str]]:
    """Classes that are nowhere, or in so few cases that some folds have none to score."""
    found = []
    for i, (value, name) in enumerate(fingerprint.labels[1:]):
        those = [c.name for c in fingerprint.cases if c.class_voxels[i]]
        has, lacking = f"The class {name} (label {value}) occurs in", sum(not {*those} & {*fold} for fold in folds)
        of = f"of {len(fingerprint.cases)} training cases"
        found += [
            (not those, name, "the paper is silent", f"{has} no training label, so it cannot be learned."),
            (len(those) == 1, name, "the paper is silent",
             f"{has} one {of}, {''.join(those[:1])}: the network of its fold never sees it, and its score comes from "
             "that case alone."),
            (len(those) > 1 and lacking > 0, name, "the paper is silent",
             f"{has} {len(those)} {of}: {lacking} of {len(folds)} folds have none of them to score."),
        ]  # fmt: skip
    return found


def _twin_warnings(fingerprint: Fingerprint, folds: Sequence[Sequence[str]]) -> list[tuple[bool, str, str, str]]:
    """Images that are there twice, in different folds: the networks are scored on what they were trained on."""
    fold_of = {name: k for k, fold in enumerate(folds) for name in fold}
    same: dict[str, list[str]] = {}
    for case, content in zip(fingerprint.cases, fingerprint.contents, strict=False):
        same.setdefault(content[0], []).append(case.name)
    apart = [sorted(names) for names in same.values() if len({fold_of[name] for name in names}) > 1]
    because = (
        f"{' and '.join(apart[0][:2])} have the same image, and lie in different folds"
        f"{f', as in {len(apart)} groups of cases' * (len(apart) > 1)}: they score too well. Keep one of them."
        if apart
        else ""
    )
    return [(bool(apart), "same images", "the paper is silent", because)]


def _case_warnings(cases: Sequence[CaseFacts]) -> list[tuple[bool, str, str, str]]:
    """What is odd about some cases."""
    cases = sorted(cases, key=lambda c: c.name)
    outliers = rules.outliers(cases)
    sizes = [f"{c.name} ({_size_mm(c)})" for c in outliers]
    unclear = [f"{c.name} ({c.forms_apart_mm:g} mm)" for c in cases if c.forms_apart_mm > 0]
    return [
        (bool(outliers), "outliers", "the paper is silent",
         f"The size of {_some(sizes)} is more than {rules.OUTLIER_FACTOR} times larger or smaller than that of the "
         "median case. Check the voxel spacing in the header; a wrong one can fill the memory in training."),
        (bool(unclear), "sform and qform", "the paper is silent",
         f"The sform and qform in the header of {_some(unclear)} put the image at different places. The sform counts; "
         "a program that reads the qform shows the segmentation elsewhere."),
    ]  # fmt: skip


def _size_mm(case: CaseFacts) -> str:
    """Size of an image: whole mm, three digits where it is small."""
    size = [n * s for n, s in zip(case.shape, case.spacing, strict=True)]
    return times(round(mm) if mm >= 100 else float(f"{mm:.3g}") for mm in size) + " mm"


def _constant_channels(fingerprint: Fingerprint) -> Iterator[tuple[bool, str, str, str]]:
    """Channels that are z-scored and have one value in some cases: their profile is 0."""
    for channel, modality in enumerate(fingerprint.modalities):
        known = [c for c in fingerprint.cases if c.intensities and fingerprint.intensities[channel] is None]
        names = sorted(c.name for c in known if not any(c.intensities[channel]))
        yield (
            bool(names), "constant channels", "the paper is silent",
            f"Channel {modality} has one value in all its nonzero voxels in {_some(names)}. It tells a network nothing "
            "there: check whether it is missing.",
        )  # fmt: skip


def _some(texts: Sequence[str]) -> str:
    """The first texts of many, and how many more there are."""
    more = len(texts) - MAX_LISTED
    return ", ".join(texts[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _is_padded(configuration: Configuration) -> bool:
    """Whether an axis of the patch was raised because none was pooled twice."""
    median = configuration.median_shape
    sizes = (topology.admissible_size(n, max_pool=topology.MAX_POOL_3D) for n in median)
    return all(topology.num_poolings(n, max_pool=topology.MIN_POOLINGS) < topology.MIN_POOLINGS for n in sizes)


def of_configuration(c: Configuration, shape: Shape, spacing: Spacing, *, num_cases: int) -> tuple[Decision, ...]:
    """The decisions about one configuration."""
    whole = c.median_shape if c.name != "2d" else shape
    if c.name == "3d_cascade_fullres":
        return (
            Decision(c.name, "topology", times(c.patch_size), "Table 1, caption",
                     "The second stage is the network of 3d_fullres with one more input channel for each foreground "
                     "class, which holds the segmentation of the first stage."),
            _dice_decision(c),
        )  # fmt: skip
    low = () if c.name != "3d_lowres" else (_lowres_decision(c, shape, spacing),)
    return (
        *low,
        _patch_decision(c),
        Decision(c.name, "num_pool", times(c.num_pool), "section 2.1",
                 f"Each axis is halved until it is shorter than {topology.MIN_FEATURE_MAP} voxels, at most "
                 f"{topology.MAX_POOL_2D if c.name == '2d' else topology.MAX_POOL_3D} times: the axes of "
                 f"{times(c.patch_size)} are halved {', '.join(map(str, c.num_pool))} times. An axis that is halved "
                 "less often is halved at the deeper levels."),
        Decision(c.name, "features", f"{c.features[0]}-{c.features[-1]}", "section 2.1",
                 f"The {len(c.features)} levels start with {c.features[0]} feature maps, which double with every "
                 f"downsampling{_cap(c)}, to {c.features[-1]}."),
        _batch_decision(c, whole, num_cases),
        _dice_decision(c),
        _augmentation_decision(c, spacing),
    )  # fmt: skip


def _cap(c: Configuration) -> str:
    """Words on the cap of the feature maps, where it takes effect."""
    return "" if c.features[-1] == c.features[0] * 2 ** (len(c.features) - 1) else f", at most {c.features[-1]}"


def _lowres_decision(c: Configuration, shape: Shape, spacing: Spacing) -> Decision:
    """Spacing of the cascade's first stage."""
    doublings = [round(math.log2(low / full)) for low, full in zip(c.spacing, spacing, strict=True)]
    because = (
        f"The spacing {times(spacing)} mm is doubled {', '.join(map(str, doublings))} times along x, y, z (the finer "
        "axes first, as long as they do not become coarser than the coarsest), until the median image is small enough: "
        f"{times(c.median_shape)} voxels in place of {times(shape)}."
    )
    return Decision(c.name, "spacing", f"{times(c.spacing)} mm", "section 2.2", because)


def _patch_decision(c: Configuration) -> Decision:
    """Patch size."""
    value = times(c.patch_size)
    if c.name == "2d":
        because = (
            f"The patch holds a slice of the median image, {times(c.median_shape)}, rounded up to fit the halvings."
        )
        return Decision(c.name, "patch_size", value, "section 2.1, Table 1", because)
    target = topology.target_size_3d(c.median_shape, c.spacing)
    extent = (float(n * s) for n, s in zip(c.median_shape, c.spacing, strict=True))
    because = (
        f"The median image measures {times(extent)} mm. A patch of 128^3 voxels with that aspect ratio, cut to the "
        f"image, has {times(round(t) for t in target)} voxels. {value} is the nearest size with at most 128^3 voxels "
        "that the network can halve. The text of the paper takes the aspect ratio in voxels, but only the ratio in mm "
        "gives the patches of its Table 1."
    )
    return Decision(c.name, "patch_size", value, "section 2.1, corrected by Table 1", because)


def _batch_decision(c: Configuration, median_shape: Shape, num_cases: int) -> Decision:
    """Batch size."""
    base = base_voxels(c.name)
    by_base, by_dataset = topology.batch_limits(c.patch_size, median_shape, num_cases=num_cases, base_voxels=base)
    because = (
        f"One training step may see {_million(base)} voxels, which is {by_base} patches, and "
        f"{topology.MAX_DATASET_FRACTION:.0%} of the dataset ({num_cases} images of {times(median_shape)} voxels), "
        f"which is {by_dataset}. The smaller number counts, but at least {topology.MIN_BATCH_SIZE}."
    )
    return Decision(c.name, "batch_size", str(c.batch_size), "section 2.1", because)


def _dice_decision(c: Configuration) -> Decision:
    """Dice over the batch or per sample."""
    if c.batch_dice:
        because = "The network sees parts of images, so Dice is computed over all patches of a batch together."
        return Decision(c.name, "batch_dice", "yes", "section 2.3", because)
    because = "The network sees nearly whole images, so Dice is computed for each patch and averaged."
    return Decision(c.name, "batch_dice", "no", "section 2.3", because)


def _augmentation_decision(c: Configuration, spacing: Spacing) -> Decision:
    """Set of augmentation parameters."""
    axis = rules.augmentation_slice_axis(c, slice_axis=rules.slice_axis(spacing))
    along = "" if axis is None else "xyz"[axis]
    longest, shortest = max(c.patch_size), min(c.patch_size)
    because = {
        "2d": "The patches of a 2D network are augmented in 2D.",
        "3d": f"The longest patch edge, {longest}, is at most {rules.SLICEWISE_RATIO} times the shortest, {shortest}.",
        "slicewise": f"The longest patch edge, {longest}, is more than {rules.SLICEWISE_RATIO} times the shortest, "
        f"{shortest}, so the patch is augmented in 2D, slice by slice along its shortest edge, {along}.",
    }[c.augmentation]
    because += (
        f" Rotations by up to {rules.rotation_degrees(c.augmentation):g} degrees and elastic deformations with alpha "
        f"up to {rules.elastic_alpha(c.augmentation)[1]:g} are known defaults of nnU-Net."
    )
    return Decision(c.name, "augmentation", c.augmentation, "section 2.3", because)
