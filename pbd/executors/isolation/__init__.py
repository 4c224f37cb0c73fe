"""Training in a child process of each worker: a crash costs one attempt, not the run."""
