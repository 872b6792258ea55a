"""Recomputes from the archive what was booked. Shares pure parts with what it checks, and no stored sum."""
