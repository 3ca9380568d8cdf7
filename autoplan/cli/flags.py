"""From a command's signature to its command line: which words it takes, what they mean, and its help.

A command is a function with positional arguments and keyword-only flags; a parameter `from_` is the flag --from. A flag
of type bool is a switch, which takes no value; of a flag of type int or float, what `number` knows becomes a number;
everything else stays text, so that a folder 2024_01 is not the number 202401. A command that takes `**settings` also
takes the settings of a training, as text.
"""

import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from autoplan.base.errors import AutoplanError
from autoplan.base.numbers import number

Command = Callable[..., None]
PROGRAM = "python -m autoplan"
HELP = ("-h", "--help")
WIDTH = 100


def flags(command: Command) -> dict[str, inspect.Parameter]:
    """The named flags of a command, in the order of its signature."""
    return _parameters(command, inspect.Parameter.KEYWORD_ONLY)


def positionals(command: Command) -> dict[str, inspect.Parameter]:
    """What a command takes without a flag."""
    return _parameters(command, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def takes_settings(command: Command) -> bool:
    """Whether the settings of a training are flags of the command."""
    return bool(_parameters(command, inspect.Parameter.VAR_KEYWORD))


def _parameters(command: Command, kind: Any) -> dict[str, inspect.Parameter]:
    found = inspect.signature(command).parameters.items()
    return {name.removesuffix("_"): p for name, p in found if p.kind is kind}


def is_switch(flag: inspect.Parameter) -> bool:
    """Whether a flag takes no value."""
    return flag.annotation is bool


def parse(
    name: str, command: Command, words: Sequence[str], *, settings: Collection[str] = (), hidden: Collection[str] = ()
) -> tuple[list[str], dict[str, Any]]:
    """The arguments that words on a command line stand for: positional ones, and flags with their values.

    Args:
        name: what the command is called.
        command: the function.
        words: what was typed after the command's name.
        settings: names that a command with `**settings` takes as well.
        hidden: names that such a command takes only to refuse them with a reason.

    Raises:
        AutoplanError: an unknown flag, a flag without its value or given twice, too many words or too few.
    """
    arguments: list[str] = []
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if re.match(r"-[^\d.]|-$", word):
            flag = _known(name, command, word, settings, hidden)
            if flag in values or f"{flag}_" in values:
                raise AutoplanError(f"{name}: --{flag} is given twice.")
            parameter = flags(command).get(flag)
            values[flag if parameter is None else parameter.name] = _value(name, flag, parameter, word, rest)
        else:
            arguments.append(word)
    _check_count(name, command, arguments)
    return arguments, values


def _known(name: str, command: Command, word: str, settings: Collection[str], hidden: Collection[str]) -> str:
    """The name of the flag that a word gives."""
    flag = word.partition("=")[0].removeprefix("--").replace("-", "_")
    known = [*flags(command), *settings]
    if word.startswith("--") and (flag in known or flag in hidden):
        return flag
    said = f"{name}: there is no flag {word.partition('=')[0]}."
    if found := closest(flag.strip("_"), known):
        raise AutoplanError(f"{said} Did you mean --{found}?")
    raise AutoplanError(f"{said} Its flags: {PROGRAM} {name} --help")


def _value(name: str, flag: str, parameter: inspect.Parameter | None, word: str, rest: list[str]) -> Any:
    """The value of a flag: behind its =, or the next word, which is taken from `rest`."""
    _, equals, text = word.partition("=")
    if not equals:
        if parameter and is_switch(parameter):
            return True
        if not rest or rest[0].startswith("--"):
            raise AutoplanError(f"{name}: --{flag} needs a value.")
        text = rest.pop(0)
    kinds = set() if parameter is None else {parameter.annotation, *typing.get_args(parameter.annotation)}
    if bool in kinds:
        return {"True": True, "False": False}.get(text, text)
    found = number(text) if {int, float} & kinds else None
    return text if found is None else found


def _check_count(name: str, command: Command, arguments: Sequence[str]) -> None:
    """Refuses too few or too many words without a flag."""
    expected = list(positionals(command))
    if len(arguments) < len(expected):
        raise AutoplanError(f"{name}: {expected[len(arguments)].upper()} is missing. Its help: {PROGRAM} {name} --help")
    if len(arguments) > len(expected):
        takes = "one" if expected else "none"
        raise AutoplanError(
            f"{name}: one argument too many, {arguments[len(expected)]!r}. It takes {takes}, and "
            f"{_listed(flags(command))}."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"--{name}" for name in names)


def closest(word: str, known: Collection[str]) -> str:
    """The known word that a mistyped one most likely means; empty if none is close."""
    return next(iter(difflib.get_close_matches(word.lower(), known, n=1)), "")


# Help.


def overview(commands: Mapping[str, Command]) -> str:
    """What `--help` prints: the everyday line, and a line for each command."""
    usages = {name: _usage(name, command) for name, command in commands.items()}
    width = max(map(len, usages.values()))
    lines = [f"  {usages[name].ljust(width)}  {_summary(command)}" for name, command in commands.items()]
    head = [f"{PROGRAM} DATASET", "", *_wrapped(_summary(commands["plan"]), 2)]
    return "\n".join([*head, "", "Commands", *lines, "", f"Flags of a command: {PROGRAM} COMMAND --help"])


def help_of(name: str, command: Command, *, settings: Collection[str] = ()) -> str:
    """What `COMMAND --help` prints: usage, description, and a paragraph for each flag."""
    description, arguments = _docstring(command)
    lines = [f"{PROGRAM} {_usage(name, command)} [flags]", "", *_wrapped(description, 0)]
    for argument, parameter in (*positionals(command).items(), *flags(command).items()):
        lines += ["", f"  {_shown(argument, parameter)}", *_wrapped(arguments.get(argument, ""), 6)]
    if takes_settings(command):
        lines += ["", "Settings of a training, each with a value:", *_wrapped(_listed(settings), 2)]
    return "\n".join(lines)


def _usage(name: str, command: Command) -> str:
    return " ".join([name, *(p.upper() for p in positionals(command))])


def _shown(name: str, parameter: inspect.Parameter) -> str:
    """A flag as it is typed, with its default value."""
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        return name.upper()
    if is_switch(parameter):
        return f"--{name}"
    default = "" if parameter.default in (None, "") else f" (default: {parameter.default})"
    return f"--{name} {name.upper()}{default}"


def _summary(command: Command) -> str:
    return (inspect.getdoc(command) or "").partition("\n")[0]


def _docstring(command: Command) -> tuple[str, dict[str, str]]:
    """Description, and explanation of each argument, of a docstring in Google's style."""
    description, _, rest = (inspect.getdoc(command) or "").partition("\n\nArgs:\n")
    found = re.findall(r"^(\w+): (.*(?:\n +.*)*)", textwrap.dedent(rest), re.MULTILINE)
    return description, {name: " ".join(text.split()) for name, text in found}


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of at most `WIDTH` characters; paragraphs stay apart."""
    space = " " * indent
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    filled = (textwrap.fill(p, WIDTH, initial_indent=space, subsequent_indent=space) for p in paragraphs)
    return "\n\n".join(filled).split("\n")
