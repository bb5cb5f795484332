"""Envelopes: what a platform puts around requests and answers, taken off before a handler sees them, and put back."""
