"""The run directory: its files, its lock, and the record that the run is complete."""
