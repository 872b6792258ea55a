"""Invoices: documents for closed billing periods, their files, and their payment."""
