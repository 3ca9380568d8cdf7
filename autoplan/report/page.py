"""From sections to the two files: report.html, one page without any address outside it, and report.json."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoplan.report.blocks import Section

HTML, JSON = "report.html", "report.json"
_FOLDER = Path(__file__).parent


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page. Every text is escaped, except for drawings, which are markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["unbroken"] = _unbroken
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{_hash(script)}'",
    )


def _unbroken(text: str) -> str:
    """A text whose flags of commands no browser breaks after their hyphens."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<!\S)--?\w+", r'<span class="flag">\g<0></span>', str(escape(text))))


def _hash(script: str) -> str:
    """What the page's policy knows its one script by, so that no other can run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def as_json(task: str, state: str, sections: Sequence[Section]) -> str:
    """The same content for programs."""
    content = {"task": task, "state": state, **{section.name: _plain(section.data) for section in sections}}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """A value without numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
