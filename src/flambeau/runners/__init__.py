"""Runners: where replicas live."""
