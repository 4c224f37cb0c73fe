"""The student: which blocks are accepted, how they are assembled and fine-tuned."""
