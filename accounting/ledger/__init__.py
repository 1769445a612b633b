"""What was paid and is owed, in double entry."""
