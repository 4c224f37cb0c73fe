"""The student: how its blocks are chosen, with or without a budget, assembled, refitted and fine-tuned."""
