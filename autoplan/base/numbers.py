"""Numbers as people type them."""

import re

MAX_DIGITS = 9
"""Of a whole number that a flag may take: no count of anything here is larger."""


def number(text: str) -> int | float | None:
    """The number that a text on a command line means: decimal digits, of a whole number at most `MAX_DIGITS`, perhaps
    with a sign, a point and an exponent. None for anything else, such as 1_0, 0x2 or nan."""
    if re.fullmatch(rf"-?(0|[1-9][0-9]{{0,{MAX_DIGITS - 1}}})", text):
        return int(text)
    is_fraction = re.fullmatch(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE)
    return float(text) if is_fraction and re.search("[.eE]", text) else None
