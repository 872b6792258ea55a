"""The engines' own token counters, compared with the ledger."""
