"""Commands of budgets, credits, the ledger, periods, corrections and receipts."""
