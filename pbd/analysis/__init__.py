"""What compression does to a network: to its representations, to its classes, and to single images."""
