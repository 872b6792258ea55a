"""Routes of records and usage, of what could not be rated, and of reconciliation."""
