"""Scoring without a server: inputs from files to rows in a file, through the service's own batch queue and replicas.

    inputs   the inputs that the user named, lazily, one entry after the other; tables for CSV and JSONL
    reading  entries from a thread of their own, and files into memory
    job      entries to outcomes, in order, with a bounded number in flight
    rows     outcomes to rows, and rows to lines of text
    journal  rows to a file that a later run can resume; parquet converts it at the end

It knows neither HTTP nor the terminal: `flambeau.cli.predict` reads the command line and shows the progress.
"""
