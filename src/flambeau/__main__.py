"""`flambeau` and `python -m flambeau`."""

import signal
import sys


def main() -> None:
    """Run the command line. Ctrl-C at any moment ends any command with one line and exit code 130."""
    try:
        from flambeau.system.init_process import step_down

        step_down()  # in a container: process 1 has other duties than a server's
        from flambeau.cli import main as run  # inside `try`: the import takes a while, and Ctrl-C may come during it

        run()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to be interrupted
        sys.stderr.write("flambeau: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
