"""Realtime sessions: WebSockets between clients and engines, metered by response."""
