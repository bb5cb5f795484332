"""What a running service reports to its operator: events, metrics, spans."""
