"""Values and rules of tenants, keys, catalog, prices, limits, usage, ledger and faults.

Owns: the vocabulary, every arithmetic rule of money and limits, the table of faults, the shape of what crosses between the planes.
Does not own: how anything is stored, sent, or served. No I/O, no clock, no randomness, no async, no framework: time and random
bytes come in as arguments, so each rule can be tested and replayed as a pure function.
May import: the standard library's pure parts and msgspec (declared shapes).
"""
