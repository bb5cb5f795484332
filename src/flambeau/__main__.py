"""`flambeau` and `python -m flambeau`."""

import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C ends every command with one line and the code 130, at whatever moment it comes."""
    try:
        from flambeau.cli import main as run  # it takes a while, in which somebody may change their mind

        run()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
        sys.stderr.write("flambeau: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
