"""What the steps that prune networks share."""
