"""Limits on what each may do in a time, and quotas of what an organization may have."""
