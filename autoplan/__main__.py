"""The entry point: finds the command, runs it, and turns what goes wrong into one message and an exit status."""

import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from autoplan.base.errors import AutoplanError

SHOWN = 200
"""Characters of a path that a message shows at most."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
WITH_NETWORKS = ("cost", "predict", "report", "run", "select", "share", "train", "verify")
"""Commands that load PyTorch, here or in processes of theirs."""
OTHERS = (errno.ENOENT, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a first argument that names none is the dataset of `plan`. Returns the exit status.

    What cannot be printed does not end a command, whose files matter more. That the reader of the output has gone, as
    `head` does, or that the output was closed, is no failure; that it could not be written, as on a full disk, is told
    at the end.
    """
    with ExitStack() as stack:
        outputs = [stack.enter_context(_printing(name)) for name in ("stdout", "stderr")]
        status = _status(list(sys.argv[1:] if arguments is None else arguments))
        for name, output in zip(("stdout", "stderr"), outputs, strict=True):
            getattr(sys, name).flush()
            if output is not None and output.error is not None and output.error.errno != errno.EPIPE:
                print(f"Error: the output could not be written: {_words(output.error)}.", file=sys.stderr)
                status = status or 1
    return status


def _status(words: list[str]) -> int:
    """Runs a command; what goes wrong becomes a message and an exit status."""
    try:
        _run(words)
    except AutoplanError as error:
        print(f"Error: {visible(str(error))}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in (*FULL, *NOT_WRITABLE, *IN_THE_WAY, *OTHERS):
            raise
        print(f"Error: {visible(explained(error))}", file=sys.stderr)
        return 1
    except MemoryError:
        print("Error: there is not enough memory. Give more, or close other programs.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


class _Output(io.RawIOBase):
    """A file that is printed to. Where that fails, it keeps the error and drops what comes after."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw = raw
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self.raw.isatty()

    def fileno(self) -> int:
        return self.raw.fileno()

    def write(self, data: Any) -> int | None:
        if self.error is None:
            try:
                return self.raw.write(data)
            except OSError as error:
                self.error = error
        return len(data)


@contextmanager
def _printing(name: str) -> Iterator[_Output | None]:
    """Makes `sys.stdout` or `sys.stderr` a stream that prints what can be printed: characters that its encoding lacks
    are escaped. None where it is no file, but what a program that calls `main` has put there."""
    before = getattr(sys, name)
    if before is None:  # it was closed: what a command opens must not become its output
        number = {"stdout": 1, "stderr": 2}[name]
        stream, output = open(os.devnull, "w", encoding="utf-8"), None  # noqa: SIM115
        os.set_inheritable(stream.fileno(), True)  # nor what a process opens that it starts
        if stream.fileno() < number:
            os.dup2(stream.fileno(), number)
    else:
        raw = getattr(getattr(before, "buffer", None), "raw", getattr(before, "buffer", None))
        output = _Output(raw) if isinstance(raw, io.RawIOBase) else None
        stream = before if output is None else io.TextIOWrapper(
            io.BufferedWriter(cast(io.RawIOBase, output)), before.encoding, "backslashreplace",
            line_buffering=before.line_buffering, write_through=before.write_through,
        )  # fmt: skip
    setattr(sys, name, stream)
    try:
        yield output
    finally:
        stream.flush()
        setattr(sys, name, before)


def visible(text: str) -> str:
    """A message whose control characters, but for line breaks, are escaped: a name of a file may hold any."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def _run(given: list[str]) -> None:
    """Runs the command that words ask for, or prints help."""
    _check_text(given)
    from autoplan.base.processes import check_limits, waiting
    from autoplan.cli import flags  # here, so that an interrupt during the imports is no traceback
    from autoplan.cli.commands import COMMANDS, known_settings

    if not given or given[0] in flags.HELP or given == ["help"]:
        print(flags.overview(COMMANDS))
        return
    name, words = _named(given)
    settings, hidden = known_settings() if flags.takes_settings(COMMANDS[name]) else ((), ())
    if set(words) & set(flags.HELP):
        print(flags.help_of(name, COMMANDS[name], settings=settings))
        return
    positional, values = flags.parse(name, COMMANDS[name], words, settings=settings, hidden=hidden)
    if name in WITH_NETWORKS:
        check_limits()
        os.environ.update(waiting(os.environ))
    COMMANDS[name](*positional, **values)


def _named(given: list[str]) -> tuple[str, list[str]]:
    """The command, and the words after its name. A word that names none is a dataset, unless it is close to the name
    of a command and no folder."""
    from autoplan.cli.commands import COMMANDS
    from autoplan.cli.flags import closest

    first = given[0]
    if first in COMMANDS:
        return first, given[1:]
    roots = [".", "data", *(word.rpartition("=")[2] for word in given[1:])]
    found = "" if first.startswith("-") else closest(first, COMMANDS)
    if found and not any((Path(root) / first).is_dir() for root in roots):
        raise AutoplanError(f"there is no command {first!r}, and no dataset of that name. Did you mean {found}?")
    return "plan", given


def _check_text(given: Sequence[str]) -> None:
    """Refuses arguments that cannot be the name of a file, or cannot be written down."""
    for argument in given:
        if "\0" in argument:
            raise AutoplanError(f"{argument[:SHOWN]!a} holds a NUL character. Leave it out.")
        if not argument.isascii() and any("\ud800" <= c <= "\udfff" for c in argument):
            raise AutoplanError(f"{argument[:SHOWN]!a} is not valid UTF-8. Rename the file or folder.")


def _words(error: OSError) -> str:
    """What the system says."""
    return (error.strerror or str(error)).lower()


def explained(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    name = str(error.filename or "")
    where = f"{name[:SHOWN]}...: " if len(name) > SHOWN else f"{name}: " if name else ""
    if error.errno in FULL:
        return f"{where}the disk is full. Free space, or name a folder on another disk; then the same command again."
    what = _words(error)
    if error.errno in NOT_WRITABLE:
        return f"{where}{what}. Change its permissions, or name another folder."
    if error.errno in IN_THE_WAY:
        return (
            f"{where}{what}: a file is in the place of a folder, or a folder in the place of a file. Name another path."
        )
    if error.errno == errno.ENAMETOOLONG:
        return f"{where}{what}. Name a shorter path."
    return f"{where}{what}. Check the path, then the same command again."


if __name__ == "__main__":
    sys.exit(main())
