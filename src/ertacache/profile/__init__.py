"""The profile: what calibration found, and the file that carries it."""
