"""The block phase: layers to replace, training and scoring of groups of blocks."""
