"""Training in a child process of each worker, so that a crash costs one attempt and not the run."""
