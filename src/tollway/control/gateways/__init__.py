"""Gateways: which may connect, which runs of theirs there were, and what is lost of them."""
