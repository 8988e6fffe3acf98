"""The search page: one index, base beside tuned, marks that re-rank."""
