"""What a run does at a signal. Only the main thread may handle signals; in any other, nothing here changes them."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

from sae.core.types import Interrupted
from sae.engine import processes

Handler = Callable[[int, FrameType | None], object]

_got: list[int] = []  # signals that this process has got


def end_at_the_second() -> None:
    """On the command line: let the first SIGINT or SIGTERM interrupt what is done, and the second end the process.

    An exception that a second signal raised could come anywhere while the first is heeded, also where Python or JAX
    can only print it. All files are old or new at every moment, so the process may end where it is.
    """
    _got.clear()

    def handle(number: int, _: FrameType | None) -> NoReturn:
        if _got and not processes.joined():  # the others of a joined process are told (`processes.drop`)
            name = signal.Signals(number).name
            shown = "\x1b[?25h" * sys.stderr.isatty()  # a live display hides the cursor
            line = f"{shown}sae: stopped at once by {name}; the same command goes on from what was saved\n"
            with contextlib.suppress(OSError):
                os.write(2, line.encode())
            os._exit(128 + number)
        _got.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


@contextlib.contextmanager
def first_caught() -> Generator[list[int]]:
    """A list that the first SIGINT or SIGTERM is written in; a second signal does what it always does."""
    caught: list[int] = []
    with contextlib.ExitStack() as handling:

        def note(number: int, _: FrameType | None) -> None:
            caught.append(number)
            _got.append(number)
            handling.close()

        handling.enter_context(_handled(note, signal.SIGINT, signal.SIGTERM))
        yield caught


@contextlib.contextmanager
def all_caught() -> Generator[list[int]]:
    """A list that every SIGINT, SIGTERM and SIGHUP is written in; what is ignored (nohup) stays ignored."""
    caught: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    with _handled(lambda number, _: caught.append(number), *numbers):
        yield caught


@contextlib.contextmanager
def stopping_at_once() -> Generator[None]:
    """SIGINT or SIGTERM raises Interrupted where it comes: for work that has nothing to save."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    with _handled(stop, signal.SIGINT, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handled(handler: Handler, *numbers: signal.Signals) -> Generator[None]:
    """Handle these signals by a function inside, and as before outside."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
