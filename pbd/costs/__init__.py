"""What training will take: predicted seconds and bytes."""
