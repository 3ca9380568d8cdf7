"""Whether the values of a dataclass can be: what computes with them need not ask."""

from collections.abc import Iterable, Sequence

LARGEST_SIZE = 2**31
"""Voxels along an axis, at most."""

LARGEST_MM = 1e6
"""Spacings lie between this and its inverse."""


def check(value: object, **holds: bool) -> None:
    """Raises ValueError with the first field of a value that does not hold."""
    if (field := next((name for name, sound in holds.items() if not sound), None)) is not None:
        raise ValueError(f"{type(value).__name__} cannot have the {field} {str(getattr(value, field))[:60]}")


def are_sizes(values: Sequence[int], num: int) -> bool:
    return len(values) == num and all(1 <= value < LARGEST_SIZE for value in values)


def are_lengths(values: Sequence[float], num: int) -> bool:
    return len(values) == num and all(1 / LARGEST_MM <= value <= LARGEST_MM for value in values)


def none_above(values: Sequence[int], limits: Sequence[int]) -> bool:
    return len(values) == len(limits) and all(value <= limit for value, limit in zip(values, limits, strict=True))


def are_labels(labels: Iterable[tuple[int, str]]) -> bool:
    """Whether there are a background and classes, each value and each name once."""
    values, names = ({pair[k] for pair in labels} for k in (0, 1))
    return len(values) == len(names) == len(tuple(labels)) > 1
