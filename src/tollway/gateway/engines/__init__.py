"""What each engine adds to the dialects: which usage it can report, which fields it takes, how it isolates tenants.

Owns: the table of habits. Does not own: sockets, routing. May import: domain.
"""
