"""Differences between inference engines: one file per engine, one table.

Owns: capabilities, extra request fields, words of errors, names of token counters, the paths of readiness and load. Does not own: sockets,
routing, the request fields of an API. May import: domain. Used by the gateway (requests) and the control plane (counters).
"""
