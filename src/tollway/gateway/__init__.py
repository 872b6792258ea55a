"""Data plane: requests and their phases (authenticate, authorize, limit, route, relay, meter).

Owns: everything between a client's first byte and the last byte of its answer. Read `pipeline.py` first.
Does not own: where the snapshot comes from, where usage goes, how credentials are kept: those are handed in through `ports.py`.
May import: wire, telemetry, domain, uvloop and httptools. No framework, no SQL, no Redis, not even through another module.
"""
