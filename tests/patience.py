"""The patience of tests, in one place. No test measures speed: what is waited for may take many times as long on a busy machine."""

PATIENCE_SECONDS = 60.0
"""Longest wait for something that must happen, of a test or of a server in it: only a hang is longer, whatever else this machine does."""

CLIENT_SECONDS = 2 * PATIENCE_SECONDS
"""Longest wait of a test's client for an answer: longer than any of the server behind it, which then says what did not happen."""
