"""The accounting service: may you spend this, and what did you spend."""
