"""What Flambeau is measured against, and how. `python -m benchmarks --help`; docs/benchmarks.md has the results."""
