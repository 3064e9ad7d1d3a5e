"""How every program of ours ends: 0 done, 2 a person must mend something, 42 run the same command again, 1 a defect.

Importing this module costs nothing but absl: a typo in a flag should answer at once.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

EXIT_USER = 2
EXIT_AGAIN = 42
# A path given by a person that cannot be used, wherever it was noticed.
_PLACES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EDQUOT, errno.ENAMETOOLONG, errno.ELOOP}


class UserError(Exception):
    """Something that a person mends: the message is one line that says what is wrong and how to mend it."""


class Preempted(Exception):
    """The run was told to stop, or must start again, and lost nothing: run the same command again."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Parses the flags, runs `main(argv)`, and exits by the table above. Replaces `absl.app.run`.

    absl's own flag errors exit 1 and `--help` too; here a wrong flag is the user's (2) and help is success (0).
    """
    argv = list(sys.argv if argv is None else argv)
    # ml_collections raises plain AttributeError, KeyError or TypeError for a wrong override while flags are parsed.
    app.define_help_flags()
    try:
        positional = flags.FLAGS(argv)
        for name in flags.FLAGS:
            _ = flags.FLAGS[name].value  # a config file that cannot be read says so only here
    except SystemExit:  # --help has printed itself
        sys.exit(0)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as error:
        _fail(argv[0], f"{one_line(error)} (--help lists the flags)")
    if len(positional) > 1:
        _fail(argv[0], f"{positional[1]!r} is not a flag: write --name=value (--help lists the flags)")
    try:
        main(positional)
    except UserError as error:
        _fail(argv[0], one_line(error))
    except Preempted as error:
        print(one_line(error), file=sys.stderr, flush=True)
        sys.exit(EXIT_AGAIN)
    except KeyboardInterrupt:
        _fail(argv[0], "interrupted: the same command goes on from the last checkpoint")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(argv[0], f"the disk is full ({one_line(error)}): free some space, then run the same command again")
        if error.filename and error.errno in _PLACES:
            _fail(argv[0], f"{error.filename}: {os.strerror(error.errno)}: choose another place, or mend this one")
        raise


def _fail(program: str, message: str) -> None:
    print(f"{program.rsplit('/', 1)[-1]}: {message}", file=sys.stderr, flush=True)
    sys.exit(EXIT_USER)
