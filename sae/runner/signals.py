"""What a run does at a signal. Only the main thread may handle signals; in any other, nothing here changes them."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

from sae.core.types import Interrupted

Handler = Callable[[int, FrameType | None], object]


@contextlib.contextmanager
def first_caught() -> Generator[list[int]]:
    """A list that the first SIGINT or SIGTERM is written in; a second signal does what it always does."""
    caught: list[int] = []
    with contextlib.ExitStack() as handling:

        def note(number: int, _: FrameType | None) -> None:
            caught.append(number)
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
