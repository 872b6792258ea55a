"""Proofs of who people and programs are, and the sessions and tokens that they get for them."""
