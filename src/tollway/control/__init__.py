"""Control plane: operations on the nouns. Who may do what, what follows from it, and what gateways are told of it.

Owns: operations (create, list, archive, publish ...), access, publication, collection of usage, verification. Doors are in `api`.
Does not own: HTTP (below `api` nothing knows it), SQL (`storage`), the request path (`gateway`).
May import: `link` formats, `storage`, `wire`, `telemetry`, `domain`.
"""
