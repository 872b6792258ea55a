"""Admission policy for what messages carry beside text: links, pictures, sounds, films, files.

Owns: which links may be fetched, which media are accepted and how much of them. Does not own: request fields, tokens. May import: domain.
"""
