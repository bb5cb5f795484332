"""Who may do what: tokens, the table of routes, the gate that holds the two together, TLS, and rates.

The gate decides over plain values and knows no front; the short way, the lane and Flask all ask the same one.
"""
