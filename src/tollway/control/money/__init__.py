"""The ledger, billing periods, corrections, credits and budgets."""
