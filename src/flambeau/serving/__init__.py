"""The core that every protocol calls: queues, batches, models."""
