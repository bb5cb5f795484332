"""Protocols: from a client's request to payloads, and from outcomes to its answer. Pure functions, for any server."""
