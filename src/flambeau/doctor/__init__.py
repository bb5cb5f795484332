"""`flambeau doctor`."""
