"""Replicas on the nodes of a Ray cluster: for the runner `ray`. Nothing here imports Ray before a runner starts.

Ray places actors, and tells when one or its node is gone. Queue, batches, deadlines and retries stay the front's.
"""
