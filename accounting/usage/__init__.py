"""What was used: recorded, summed up, asked for and forgotten."""
