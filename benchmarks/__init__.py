"""What Flambeau is measured against, and how: `python -m benchmarks --help`; docs/benchmarks.md has the results.

Beside that, the parts of a request (`micro`), and the whole on paper (`simulate`).
"""
