"""The entry point of the command line: it runs the command, and ends an interrupt with one line.

It imports almost nothing, so that an interrupt is handled from the first moment on.
"""

from __future__ import annotations

import sys

from spin.garbage_collection import collect_rarely
from spin.interrupts import INTERRUPTED, ToldInterrupt, handle_interrupts, was_interrupted

CONTINUED_COMMANDS = ("run", "reward", "bench", "compare")
"""Commands that go on where they were interrupted, when they are given again."""


def main() -> None:
    """Run the command that the arguments of the process name; after an interrupt, exit with 130."""
    # Hydra's arguments replace these later.
    command = sys.argv[1:2]
    try:
        handle_interrupts()
        collect_rarely()
        # Not earlier: these imports take long enough for an interrupt to come during them.
        from spin.cli.dispatch import run_command_line

        run_command_line()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # An import that was interrupted may raise an error of its own, and Ray's handler of SIGTERM
        # raises SystemExit.
        if not isinstance(error, KeyboardInterrupt) and not was_interrupted():
            raise
        # `spin compare`: its run has printed the line.
        if isinstance(error, ToldInterrupt):
            raise SystemExit(130) from None
        line = "spin: interrupted"
        if command and command[0] in CONTINUED_COMMANDS:
            line = INTERRUPTED
        print(line, file=sys.stderr)
        raise SystemExit(130) from None
