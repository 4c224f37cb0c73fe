"""Analysis of a compressed network: its representations, its classes, and single images."""
