"""The APIs that the gateway serves: one file per API, one table.

Owns: paths, request fields and their ranges, headers and fields that are injected, hidden, passed on or withheld, where usage stands in
an answer, what an event of a stream says, the shape of errors. Does not own: bytes on sockets, routing, money.
May import: engines, wire, domain.
"""
