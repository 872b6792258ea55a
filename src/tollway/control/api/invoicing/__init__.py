"""Routes of invoices."""
