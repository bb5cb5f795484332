"""HTTP: the server, its fronts, and everything that needs Flask."""
