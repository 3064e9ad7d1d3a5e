"""How a command line of ours begins and ends: flags, the errors that are no defects, and the exit code of each (exit_codes.py).

Importing this module costs nothing but absl: a typo in a flag should answer at once.
"""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags

from electra_jax import exit_codes, interrupts

# A path given by a person that cannot be used, wherever it was noticed.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP}
_MISSING = re.compile(r"Flag --(\w+) must have a value other than None")  # absl's words
# What Python and the dynamic linker say where there is no room.
_WANT = re.compile("can't start new thread|failed to map segment|[Cc]annot allocate memory")


class UserError(Exception):
    """Something that a person mends: the message is one line that says what is wrong and how to mend it."""


class Diverged(UserError):
    """Training whose numbers are no longer finite. What trains many runs goes on with the next."""


class Preempted(Exception):
    """The run was told to stop, or must start again, and lost nothing: run the same command again."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# What absl and ml_collections raise for a wrong flag, config file or override.
_WRONG_FLAGS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError)


@contextlib.contextmanager
def defining(program: str) -> Iterator[None]:
    """Around the definition of a flag that reads its default at once, overrides from the command line and all: a mistake in them is one
    line and exit code 2 there already."""
    try:
        yield
    except _WRONG_FLAGS as error:
        _fail(program, f"{one_line(error)} (--help lists the flags)")


def run(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str] | None = None,
    more_help: Callable[[], Sequence[str]] = list,
    check: Callable[[Sequence[str]], None] = lambda argv: None,
) -> None:
    """Parses the flags, runs `main(argv)`, and exits by the table above. Replaces `absl.app.run`.

    absl's own flag errors exit 1 and `--help` too; here a wrong flag is the user's (2) and help is success (0).
    more_help: lines that --help prints after the flags. check(argv): raises UserError for a flag that absl would refuse with a poorer line.
    """
    argv = list(sys.argv if argv is None else argv)
    if sys.stderr is None:  # it was closed; print(file=None) writes to standard output
        sys.stderr = open(os.devnull, "w")
    interrupts.begun()
    app.define_help_flags()
    try:
        check(argv)
        positional = flags.FLAGS(argv)
        for name in flags.FLAGS:
            hasattr(flags.FLAGS[name].value, "to_dict")  # of a config file that cannot be read the value raises when it is looked into
    except SystemExit:  # --help has printed itself
        print("\n".join(more_help()))
        sys.exit(0)
    except _WRONG_FLAGS as error:
        missing = _MISSING.search(str(error))
        said = ": ".join(map(str, error.args)) if len(error.args) > 1 else error  # ml_collections gives two parts of a sentence
        words = f"--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}" if missing else one_line(said)
        _fail(argv[0], f"{words} (--help lists the flags)")
    if len(positional) > 1:
        _fail(argv[0], f"{positional[1]!r} is not a flag: write --name=value (--help lists the flags)")
    try:
        main(positional)
    except BaseException as error:
        found = outcome(error)
        if found is None:
            raise
        say(argv[0], found[1])
        sys.exit(found[0])


def outcome(error: BaseException) -> tuple[int, str] | None:
    """(exit code, the line to say) of an error that is no defect of ours; None for one that is, or for SystemExit."""
    if isinstance(error, UserError):
        return exit_codes.USER, one_line(error)
    if isinstance(error, Preempted):
        return exit_codes.AGAIN, one_line(error)
    if isinstance(error, KeyboardInterrupt):
        return exit_codes.AGAIN, "interrupted: run the same command again"
    if isinstance(error, MemoryError) or _WANT.search(str(error)):
        words = one_line(error) or "out of memory"
        return exit_codes.USER, f"the system refuses memory or threads ({words}): raise its limits (ulimit -v, -u)"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return exit_codes.USER, f"the disk is full ({one_line(error)}): free some space, then run the same command again"
    if isinstance(error, OSError) and error.filename and error.errno in _PLACES:
        return exit_codes.USER, f"{error.filename}: {os.strerror(error.errno)}: choose another place, or mend this one"
    return None


def say(program: str, message: str) -> None:
    """A last line on stderr."""
    print(f"{program.rsplit('/', 1)[-1]}: {message}", file=sys.stderr, flush=True)


def _fail(program: str, message: str) -> None:
    say(program, message)
    sys.exit(exit_codes.USER)
