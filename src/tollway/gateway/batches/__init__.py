"""Batches at the gateway: their requests from clients, and the worker that sends their lines (docs/batches.md)."""
