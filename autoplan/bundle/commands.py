"""The commands that a message tells a user to type."""

from pathlib import Path


def planning_command(bundle: Path) -> str:
    """The command that writes a bundle."""
    return f"python -m autoplan {bundle.parent.name}{where_flag(bundle)}"


def where_flag(bundle: Path) -> str:
    """The flag that names the folder of the bundles, where it is needed, with a space before it."""
    bundles = bundle.parents[1].as_posix()
    return "" if bundles == "bundles" else f" --bundles {bundles}"
