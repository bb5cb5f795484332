"""Builds a bundle from a source: read the weights, fill the network strictly, export it, check the export, write all.

Runs as a separate process (`python -m flambeau.builder`), started by `flambeau.sources.build_cache`. Apart from
`architectures` and `engines.pytorch`, only this package imports torch.
"""
