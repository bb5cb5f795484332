"""Compares engines on one bundle (speed, agreement with PyTorch, memory) and chooses one.

Each engine runs in a throw-away process (`candidate`), driven by `benchmark`, so that its memory is measured by itself
and then freed. `flambeau build` and `flambeau bench` use this; serving does not.
"""
