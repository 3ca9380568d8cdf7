"""Drawings of a plan as SVG: the patch in the median image, to scale, and the network as boxes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoplan.planning.values import Configuration

PLANES = (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2))
"""Name and axes of the three planes of a volume, in RAS order."""
GAP, MARGIN = 34, 8


@dataclass(frozen=True)
class Extent:
    """What a plane shows, in mm: the image and the patch along two axes."""

    title: str
    image: tuple[float, float]
    patch: tuple[float, float]


def extents(configuration: Configuration, median_shape: Sequence[int], slice_axis: int) -> list[Extent]:
    """The planes in which a patch is drawn: three for a volume, the slice alone for a 2D network.

    Args:
        configuration: its patch has an entry for each axis that the network sees.
        median_shape: of the images at its spacing, three axes.
        slice_axis: that the 2D network's slices are stacked along.
    """
    seen = [axis for axis in range(3) if len(configuration.patch_size) == 3 or axis != slice_axis]
    size = dict(zip(seen, configuration.patch_size, strict=True))
    spacing = configuration.spacing
    return [
        Extent(
            name,
            (median_shape[i] * spacing[i], median_shape[j] * spacing[j]),
            (size[i] * spacing[i], size[j] * spacing[j]),
        )
        for name, i, j in PLANES
        if i in size and j in size
    ]


def field_of_view(planes: Sequence[Extent], *, width: float = 440) -> str:
    """SVG of the median image (outline) and the patch (filled) in each plane, all to one scale."""
    across = [max(p.image[0], p.patch[0]) for p in planes]
    down = max(max(p.image[1], p.patch[1]) for p in planes)
    room = width - 2 * MARGIN - GAP * (len(planes) - 1)
    scale = min(room / sum(across), 190 / down)
    height = down * scale + 52
    parts, x = [], MARGIN + (room - scale * sum(across)) / 2
    for plane, widest in zip(planes, across, strict=True):
        middle_x, middle_y = x + widest * scale / 2, 22 + down * scale / 2
        parts += [
            _text(middle_x, 12, plane.title, anchor="middle", soft=True),
            _box(middle_x, middle_y, plane.image, scale, "fill:none;stroke:var(--ink);stroke-width:1.5"),
            _box(middle_x, middle_y, plane.patch, scale, "fill:var(--fill);stroke:var(--s0);stroke-dasharray:4 2"),
            _text(middle_x, height - 14, f"{_mm(plane.image)}", anchor="middle"),
            _text(middle_x, height - 2, f"{_mm(plane.patch)}", anchor="middle", color="var(--s0)"),
        ]
        x += widest * scale + GAP
    return _svg(width, height, parts)


def _mm(size: tuple[float, float]) -> str:
    return f"{size[0]:.4g} x {size[1]:.4g} mm"


def network(configuration: Configuration, inputs: int, outputs: int, *, width: float = 440) -> str:
    """SVG of a U-Net: a box for each level on the way down and up, as wide as its feature maps are many and as high
    as they are large, on logarithmic scales."""
    stages = len(configuration.features)
    sizes = level_sizes(configuration)
    step = 46.0
    height = 30 + stages * step
    parts = []
    centers = [(66 + 92 * level / stages, 26 + level * step) for level in range(stages)]
    for level, (x, y) in enumerate(centers):
        is_last = level == stages - 1
        label = f"{' x '.join(map(str, sizes[level]))}"
        w = 16 + 9 * math.log2(max(1, configuration.features[level] / configuration.features[0]))
        h = max(14.0, 34 - 22 * level / max(1, stages - 1))
        x = width / 2 if is_last else x
        for side in (x,) if is_last else (x, width - x):
            parts.append(
                f'<rect x="{side - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" rx="2" '
                'style="fill:var(--fill);stroke:var(--s0)"/>'
            )
            parts.append(_text(side, y + 3, str(configuration.features[level]), anchor="middle"))
        if is_last:
            parts.append(_text(x, y + h / 2 + 12, label, anchor="middle", soft=True))
            continue
        parts.append(_arrow(x + w / 2 + 4, y, width - x - w / 2 - 6, y, dashed=True))
        parts.append(_text(width / 2, y - 4, label, anchor="middle", soft=True))
        next_x, next_y = (width / 2, centers[level + 1][1]) if level + 2 == stages else centers[level + 1]
        parts.append(_arrow(x, y + h / 2 + 2, next_x - (22 if level + 2 == stages else 0), next_y - 14))
        parts.append(_arrow(width - next_x + (22 if level + 2 == stages else 0), next_y - 14, width - x, y + h / 2 + 4))
        parts.append(
            _text(x - 12, y + step / 2 + 4, "/" + "x".join(map(str, configuration.strides[level + 1])), anchor="end",
                  soft=True)
        )  # fmt: skip
    first_x, first_y = centers[0]
    parts.append(_text(first_x - 14, first_y + 3, _channels(inputs), anchor="end", soft=True))
    parts.append(_text(width - first_x + 14, first_y + 3, f"{outputs} out", soft=True))
    return _svg(width, height, parts)


def _channels(inputs: int) -> str:
    return f"{inputs} in"


def level_sizes(configuration: Configuration) -> list[tuple[int, ...]]:
    """Size of the feature maps of each level."""
    size, found = configuration.patch_size, []
    for stride in configuration.strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        found.append(size)
    return found


def _box(x: float, y: float, size: tuple[float, float], scale: float, style: str) -> str:
    w, h = size[0] * scale, size[1] * scale
    return f'<rect x="{x - w / 2:.1f}" y="{y - h / 2:.1f}" width="{w:.1f}" height="{h:.1f}" style="{style}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", soft: bool = False, color: str = "") -> str:
    """Text of numbers and fixed words; nothing of a dataset comes here."""
    fill = color or ("var(--soft)" if soft else "var(--ink)")
    return f'<text x="{x:.1f}" y="{y:.1f}" style="font-size:10.5px;fill:{fill};text-anchor:{anchor}">{text}</text>'


def _arrow(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    angle, length = math.atan2(y2 - y1, x2 - x1), 5.0
    wings = [(x2 - length * math.cos(angle + turn), y2 - length * math.sin(angle + turn)) for turn in (0.45, -0.45)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((x2, y2), *wings))
    dash = ";stroke-dasharray:3 3" if dashed else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:var(--soft){dash}"/>'
        f'<polygon points="{head}" style="fill:var(--soft)"/>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}">{"".join(parts)}</svg>'
