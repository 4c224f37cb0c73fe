"""Parts that the pruning steps share: schedules, selection, rounds, sizes."""
