"""What outlives the process: the run directory, its lock, its files and the proof that it is complete."""
