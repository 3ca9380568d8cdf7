"""The entry point: finds the command, runs it, and turns what goes wrong into one message and an exit status."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from autoplan.errors import AutoplanError

SHOWN = 200
"""Characters of a path that a message shows at most."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
OTHERS = (errno.ENOENT, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a first argument that names none is the dataset of `plan`. Returns the exit status."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except AutoplanError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in (*FULL, *NOT_WRITABLE, *IN_THE_WAY, *OTHERS):
            raise
        print(f"Error: {explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def _run(given: list[str]) -> None:
    """Runs the command that words ask for, or prints help."""
    _check_text(given)
    from autoplan import flags  # here, so that an interrupt during the imports is no traceback
    from autoplan.commands import COMMANDS, known_settings

    if not given or given[0] in flags.HELP or given == ["help"]:
        print(flags.overview(COMMANDS))
        return
    name, words = _named(given)
    settings, hidden = known_settings() if flags.takes_settings(COMMANDS[name]) else ((), ())
    if set(words) & set(flags.HELP):
        print(flags.help_of(name, COMMANDS[name], settings=settings))
        return
    positional, values = flags.parse(name, COMMANDS[name], words, settings=settings, hidden=hidden)
    COMMANDS[name](*positional, **values)


def _named(given: list[str]) -> tuple[str, list[str]]:
    """The command, and the words after its name. A word that names none is a dataset, unless it is close to the name
    of a command and no folder."""
    from autoplan.commands import COMMANDS
    from autoplan.flags import closest

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


def explained(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    name = str(error.filename or "")
    where = f"{name[:SHOWN]}...: " if len(name) > SHOWN else f"{name}: " if name else ""
    if error.errno in FULL:
        return f"{where}the disk is full. Free space, or name a folder on another disk; then the same command again."
    what = (error.strerror or str(error)).lower()
    if error.errno in NOT_WRITABLE:
        return f"{where}{what}. Change its permissions, or name another folder."
    if error.errno in IN_THE_WAY:
        return f"{where}{what}: a file stands where a folder should be, or the other way round. Name another path."
    if error.errno == errno.ENAMETOOLONG:
        return f"{where}{what}. Name a shorter path."
    return f"{where}{what}. Check the path, then the same command again."


if __name__ == "__main__":
    sys.exit(main())
