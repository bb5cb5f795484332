"""Pipelines: from payload to tensors, and from tensors to answer."""
