"""What is installed, what it is pinned to, and that the README names only what exists."""

import configparser
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging", reason="comes with pytest")
from packaging.requirements import Requirement  # noqa: E402

PROJECT = Path(__file__).resolve().parents[2]
TEMPLATES = PROJECT / "templates"
README = (PROJECT / "README.md").read_text()
PAGES = {
    path: path.read_text()
    for path in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *PROJECT.glob("docs/**/*.md"))
}
"""What people read, by file."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def _setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    return config


def _pins(python: str) -> dict[str, str]:
    """Package -> version, as constraints.txt has it for a Python."""
    lines = [line for line in (PROJECT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    found: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", requirement
            assert requirement.name not in found, f"{requirement.name} is pinned twice for Python {python}"
            found[requirement.name] = specifier.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_are_within_the_ranges(python) -> None:
    setup, pins = _setup(), _pins(python)
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    required = [Requirement(line) for text in texts for line in text.splitlines() if line]
    assert {r.name for r in required} == set(pins)
    for requirement in required:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_pins_are_what_bundles_name() -> None:
    metadata = json.loads((TEMPLATES / "configs" / "metadata.json").read_text())
    pins = _pins("3.11")
    named = {**metadata["required_packages_version"], **metadata["optional_packages_version"]}
    named["monai"], named["numpy"] = metadata["monai_version"], metadata["numpy_version"]
    named["torch"] = metadata["pytorch_version"]
    assert named == {name: pins[name] for name in named}


def test_pythons_are_the_ones_named() -> None:
    assert _setup()["options"]["python_requires"] == ">=3.10,<3.14"
    assert "Python 3.10 to 3.13" in README


def test_the_wheel_holds_package_and_templates(tmp_path) -> None:
    """Built from a copy, so that no build/ is left behind."""
    try:
        version("setuptools")
    except PackageNotFoundError:
        pytest.skip("building without internet needs setuptools")
    source = tmp_path / "source"
    names = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "autoplan", "templates")
    expected = {}
    for path in (p for name in names for p in (PROJECT / name, *(PROJECT / name).rglob("*"))):
        relative = path.relative_to(PROJECT)
        if path.is_file() and not {"__pycache__", ".ruff_cache", "ruff.toml"} & set(relative.parts):
            (source / relative).parent.mkdir(parents=True, exist_ok=True)
            (source / relative).write_bytes(path.read_bytes())
            if relative.parts[0] in ("autoplan", "templates"):
                prefix = "autoplan/" if relative.parts[0] == "templates" else ""
                expected[prefix + relative.as_posix()] = path.read_bytes()
    command = "-m pip wheel -q --no-deps --no-build-isolation -w .. ."
    built = subprocess.run([sys.executable, *command.split()], cwd=source, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"no wheel can be built here: {built.stderr[-300:]}")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
        (entry_points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "autoplan = autoplan.__main__:main" in archive.read(entry_points).decode()
        archive.extractall(tmp_path / "installed")
    assert sorted(content) == sorted(expected)
    assert content == expected
    where = "from autoplan.base.scripts import templates_folder as f; print(f())"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path / "installed", capture_output=True, text=True, check=False
    )
    assert found.stdout.strip() == str(tmp_path / "installed" / "autoplan" / "templates"), found.stderr


def _commands() -> Iterator[str]:
    """Lines of indented blocks that are commands."""
    for line in (line for text in PAGES.values() for line in text.splitlines()):
        match = re.match(r" {4}(?:\$ )?((?:make|python|pip|\.venv/bin/\w+|autoplan|bash) .*)", line)
        if match:
            yield match[1].split("  #")[0].strip()


COMMANDS = sorted(set(_commands()))


def test_the_readme_has_the_commands() -> None:
    assert {"make demo", "make test"} <= set(COMMANDS)
    first_screen = "\n".join(README.splitlines()[:24])
    assert "make demo" in first_screen
    assert "make test" in first_screen


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_shown_exists(command) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]\w*):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        asked = [w for w in words[1:] if "=" not in w]
        assert asked
        assert set(asked) <= set(targets)
    elif "-m" in words:
        module = words[words.index("-m") + 1]
        assert module in ("pip", "venv") or importlib.util.find_spec(module) is not None
    elif words[1].endswith(".py"):
        assert (PROJECT / words[1]).is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if "monai.bundle run" in c])
def test_a_bundle_command_that_is_shown_names_what_is_there(command) -> None:
    words = shlex.split(command)
    names = re.findall(r"(\w+\.json)", words[words.index("--config_file") + 1])
    merged: dict[str, object] = {}
    for name in names:
        merged.update(json.loads((TEMPLATES / "configs" / name).read_text()))
    assert words[words.index("run") + 1] in merged
    keys = [w.removeprefix("--").partition("#")[0] for w in words if w.startswith("--")]
    assert set(keys) <= set(merged) | {"config_file", "tracking"}, "a key, or a flag of MONAI's own"


def test_settings_that_are_shown_exist() -> None:
    known = set(json.loads((TEMPLATES / "docs" / "settings.json").read_text()))
    shown = set(re.findall(r"^\| `(\w+)` \|", PAGES[PROJECT / "docs" / "how-to" / "train.md"], re.MULTILINE))
    assert shown
    assert shown <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PROJECT).as_posix())
def test_files_that_a_page_names_exist(page) -> None:
    for path in set(re.findall(r"`((?:autoplan|templates|tests|benchmarks|tools)/[\w./]+\w)`", PAGES[page])):
        assert (PROJECT / path).exists(), path
    for target in set(re.findall(r"\]\(([\w./-]+)\)", PAGES[page])):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    """A newcomer reads it to the end."""
    assert len(README.splitlines()) <= 100


def test_the_changelog_has_this_version() -> None:
    from autoplan import __version__

    headings = re.findall(r"^## \[(.+?)\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert __version__ in headings
