"""Commands of invoices."""
