"""HTTP: the only home of flask and of the server."""
