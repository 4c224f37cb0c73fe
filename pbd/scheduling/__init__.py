"""Scheduling: tasks in groups, assigned to workers by predicted costs; replays without workers."""
