"""Commands of usage, requests, quarantine and reconciliation."""
