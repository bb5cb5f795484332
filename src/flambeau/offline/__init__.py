"""Scoring without a server: inputs from files to rows in a file, through the service's own batcher and replicas.

    inputs   what the user named, one entry after the other, lazily; tables for CSV and JSONL
    stream   entries to outcomes, in order, with a bounded number in flight
    rows     outcomes to rows; lines for their text
    journal  rows to a file that a later start can go on from; parquet for what is made of it at the end

It knows neither HTTP nor the terminal: `flambeau.cli.predict` reads the command line and shows how far a run is.
"""
