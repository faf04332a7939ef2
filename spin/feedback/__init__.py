"""Who labels: the seam between what the opponent wrote and what the main player learns from."""
