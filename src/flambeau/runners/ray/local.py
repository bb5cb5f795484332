"""A Ray cluster of one node for `--ray-address local`, in a process of its own, because Ray takes over its signals.

It prints the cluster's address, and ends the cluster when its standard input ends: with the front, however that dies.
"""

import contextlib
import logging
import signal
import sys

from flambeau.system.machine import usable_cores

_OBJECT_STORE = 256 * 1024 * 1024  # bytes; bundles pass through it in pieces, and large batches


def main() -> None:
    """Live until standard input ends."""
    import ray

    with contextlib.redirect_stdout(sys.stderr):
        ray.init(
            address="local", num_cpus=usable_cores(), object_store_memory=_OBJECT_STORE, include_dashboard=False,
            logging_level=logging.ERROR, log_to_driver=False,
        )  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.write(f"{ray.get_runtime_context().gcs_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
