"""What a running service tells its operator: events, figures, spans."""
