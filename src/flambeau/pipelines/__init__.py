"""Pipelines: payload to tensors, tensors to answer."""
