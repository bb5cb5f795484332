"""From a source to a bundle: read the weights, fill the network strictly, export it, check the export, write it all.

Run as a process of its own (`python -m flambeau.builder`), which `flambeau.sources.build_cache` starts. With
`architectures` and `engines.pytorch`, the only home of torch.
"""
