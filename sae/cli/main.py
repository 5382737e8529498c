"""The command line: find the command, run it, and turn an error into one line and an exit code."""

import errno
import logging
import sys

from sae.cli import (
    agent_run,
    bench,
    claims,
    coefficients,
    dashboard,
    evaluate,
    export,
    harvest,
    listing,
    pull,
    push,
    report,
    run,
    sweep_config,
    sync,
    watch,
)
from sae.cli.streams import show_what_can_be_shown
from sae.core.console import say, show
from sae.core.text import nearest
from sae.core.types import Interrupted, UserError
from sae.engine import processes
from sae.runner.signals import end_at_the_second

# not tyro's subcommands: the flags of `run`, `agent-run` and `bench` follow from the file that they are given
MODULES = (
    run,
    harvest,
    report,
    claims,
    evaluate,
    export,
    push,
    coefficients,
    watch,
    bench,
    listing,
    sweep_config,
    agent_run,
    sync,
    pull,
    dashboard,
)
ADVICE = {
    errno.ENOSPC: "free some space, or use --out DIR on another disk",
    errno.EDQUOT: "free some space, or use --out DIR on another disk",
    errno.EMFILE: "the limit is `ulimit -n`; raise it first: ulimit -n 4096",
}
COMMANDS = {module.COMMAND.name: module.COMMAND for module in MODULES}


def main(argv: list[str] | None = None) -> int:
    """Run the command line -> exit code: 0, 1 for bad input, 130 or 143 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    show_what_can_be_shown()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where there is no home, it tells of a cache of its own
    with end_at_the_second():
        return _ended(argv)


def _ended(argv: list[str]) -> int:
    try:
        return processes.end(_command(argv))
    except processes.PeerLostError as error:
        return processes.lost(error)
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
        return _fail(f"{where}{error.strerror or error or type(error).__name__}{advice}")
    except UnicodeEncodeError as error:  # the streams' errors never come here, so that it is a name
        return _fail(_unwritable(str(error.object)))
    except Interrupted as stop:
        return _fail(f"{stop}; what was done is saved, and the same command goes on from there", stop.exit_code, None)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, 0.0)
    except BaseException as error:  # a second signal, or a fault of ours
        processes.drop(error)
        raise


def usage() -> str:
    """What `sae --help` prints."""
    lines = [f"sae {command.usage}\n           {command.about}" for command in COMMANDS.values()]
    more = "sae COMMAND --help shows a command's options,\nand sae run FILE --help also every field of the file."
    return "usage: " + "\n       ".join(lines) + f"\n\n{more}"


def _command(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        show(usage())
        return 0 if argv else 1
    name, *rest = argv
    for token in argv:
        if any("\ud800" <= character <= "\udfff" for character in token):  # a byte that is no character here
            raise UserError(_unwritable(token))
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; {nearest(name, COMMANDS)}")
    return COMMANDS[name].main(rest)


def _unwritable(name: str) -> str:
    """What is said of a name that cannot be a file's, or that was no text to begin with."""
    encoding = sys.getfilesystemencoding()
    return f"{name[:200]}: this locale's encoding, {encoding}, lacks some of its characters; set LC_ALL=C.UTF-8"


def _fail(message: str, code: int = 1, seconds: float | None = processes.PARTING) -> int:
    say("sae: " + " ".join(message.split()), sys.stderr)
    return processes.end(code, message, seconds)
