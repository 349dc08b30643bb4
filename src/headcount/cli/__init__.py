"""The command line: one file a command, each of which parses, calls the library and prints."""

import os
import signal
import sys


def main() -> None:
    """Run the command line. Exit codes: 2 for a user's mistake, 1 for a bug, 130 after Ctrl-C, 143 after SIGTERM."""
    # PyTorch's threads, once it is imported, sleep where they wait for one another: spinning, two of them take twice the
    # processor and up to twice the time on a machine that does other work too.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        from headcount.cli.ending import run  # not before: what takes seconds to import can be stopped as well

        sys.exit(run())
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, before)
