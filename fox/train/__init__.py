"""Training: which data when (curriculum, batches), how (schedule, optimizer, loop), and how it survives a stop (checkpoint)."""
