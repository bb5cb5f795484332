"""Engines tried side by side on one bundle: how fast, how near to PyTorch, how large, and which one to take.

Each runs in a throw-away process (`candidate` there, `benchmark` here), so that what it takes of memory
is its own and goes back. `flambeau build` and `flambeau bench` ask; nothing here is part of serving.
"""
