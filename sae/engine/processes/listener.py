"""The program that reads what jax's C++ side prints, and says it in one line where it is fatal.

Where a peer is gone, jax's C++ side prints twenty lines of addresses and aborts its process. So file descriptors 1 and
2 of a joined process lead to this program (`joining.py`), which outlives the abort. It passes other text through.

It is started by path, `python -I -S listener.py N INDEX COORDINATOR SECONDS`, and imports the standard library only, so
that it starts in milliseconds. N and INDEX are "None" where the cluster alone knows them.
"""

import re
import signal
import sys
from collections.abc import Iterable

LOST = "sae lost: "  # begins a line that the process itself writes when it has lost a peer
ADVICE = "what was saved is kept; start all processes again, with the same commands, and they go on from there"

# "E0131 12:00:00.000000    1234 client.h:80] ..."
RECORD = re.compile(rb"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")
OURS = re.compile(rb"client\.h|coordination_service|preemption_")  # files of jax.distributed
STOPPED = re.compile(rb"heartbeats\):\n((?:\d+\n|/job[^\n]*\n)+)")  # the tasks that gave no sign of life


class Listener:
    """Reads a process's output line by line."""

    def __init__(self, n: str, index: str, coordinator: str, seconds: str) -> None:
        self.n, self.index, self.coordinator, self.seconds = n, index, coordinator, seconds
        self.total = "" if n == "None" else f" of {n}"
        self.told = False

    def read(self, lines: Iterable[bytes]) -> None:
        """Pass lines through, until they end; swallow records of jax.distributed and explain a fatal one."""
        state, fatal = "others", b""  # whose lines these are: others', ours, or those of a fatal record
        for line in lines:
            record = RECORD.match(line)
            if line.startswith(LOST.encode()):
                self.tell(line.decode(errors="replace").removeprefix(LOST).strip())
            elif state == "fatal":
                if line.startswith(b"***"):  # the stack follows
                    self.explain(fatal)
                    state = "over"
                fatal += line
            elif state == "over" or line.startswith(b"[Gloo] "):
                pass
            elif record and OURS.match(record[2]):
                state = "fatal" if record[1] == b"F" else "ours"
                fatal = line
            elif record or state == "others":
                state = "others"
                sys.stderr.buffer.write(line)
                sys.stderr.flush()
        if state == "fatal":
            self.explain(fatal)

    def explain(self, text: bytes) -> None:
        """Say what a fatal record means."""
        if b"RegisterTask" in text:
            self.tell(
                f"processes{self.total} did not all come to {self.coordinator} within {self.seconds} seconds; "
                "start all, and see that they reach it"
            )
        elif b"to coordination service" in text or b"ocket closed" in text:
            self.gone("process 0")
        elif tasks := STOPPED.search(text):
            self.gone("process " + " and ".join(re.findall(r"\d+$", tasks[1].decode(), re.M)))
        else:
            self.gone(f"process {1 - int(self.index)}" if self.n == "2" else "another process")

    def gone(self, which: str) -> None:
        """Say which process is gone, and what to do."""
        self.tell(f"{which}{self.total} is gone; {ADVICE}")

    def tell(self, line: str) -> None:
        """Print one line, once: the process may have said it itself."""
        if not self.told:
            self.told = True
            sys.stderr.write(f"sae: {line}\n")
            sys.stderr.flush()


def main() -> None:
    """Listen until the process has ended; signals to the group of processes are for that one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Listener(*sys.argv[1:]).read(sys.stdin.buffer)


if __name__ == "__main__":
    main()
