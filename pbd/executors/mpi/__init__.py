"""Workers as MPI ranks."""
