"""The chaos harness over a Ray cluster of several nodes on this machine: `python -m chaos.cluster`."""
