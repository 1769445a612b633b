"""What an operator decided: tiers, budgets and prices."""
