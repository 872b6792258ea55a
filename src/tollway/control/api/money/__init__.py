"""Routes of budgets, credits, the ledger, periods and corrections."""
