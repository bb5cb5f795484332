"""The chaos harness: a client with a ledger against a real server, while things are made to go wrong.

It knows the server by its command line, its HTTP surface and /proc alone, and imports nothing of it; only `model`,
which the server's workers load, is written against `flambeau`. Run by `make chaos`; not shipped.
"""
