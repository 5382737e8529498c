"""The program between a launcher and a part: it stops the part once, and stops it where its launcher is gone.

A part is the child of this program, which passes SIGTERM on once, however often it comes: a part that saves may take a
second one as "now". Where the launcher is gone (kill -9), it stops the part, too. It ends as the part ends. Linux's
PR_SET_PDEATHSIG would be shorter, but its signal may come twice from a launcher that has threads.

It is started by path, `python -I -S keeper.py LAUNCHER COMMAND...`, with the launcher's process id, and imports the
standard library only, so that it starts in milliseconds.
"""

import os
import signal
import subprocess
import sys

LOOK = 0.5  # seconds between two looks for the launcher


class Keeper:
    """Runs a command as its child."""

    def __init__(self) -> None:
        self.part: subprocess.Popen[bytes] | None = None
        self.asked = self.stopped = False

    def stop(self, *_: object) -> None:
        """Stop the part, once; where it is not started yet, remember that it is to be stopped."""
        self.asked = True
        if self.part is not None and not self.stopped:
            self.stopped = True
            self.part.terminate()

    def run(self, launcher: int, command: list[str]) -> int:
        """Run a command to its end -> its exit code, or minus the signal that killed it."""
        signal.signal(signal.SIGTERM, self.stop)  # before there is a part, so that no signal is lost
        self.part = subprocess.Popen(command)
        while True:
            if self.asked or os.getppid() != launcher:
                self.stop()
            try:
                return self.part.wait(LOOK)
            except subprocess.TimeoutExpired:
                pass


def main() -> None:
    """Keep the command of the arguments, and end as it ends."""
    code = Keeper().run(int(sys.argv[1]), sys.argv[2:])
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
