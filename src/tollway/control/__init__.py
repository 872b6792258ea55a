"""Control plane: operations on resources. They decide who may do what, what follows from it, and what gateways receive of it.

Owns: operations (create, list, archive, publish ...), access, publication, periodic jobs, collection of usage, verification. Routes are
in `api`.
Does not own: HTTP (only `api` uses it), SQL (`storage`), the request path (`gateway`).
May import: `engines`, `storage`, `wire`, `telemetry`, `domain`.
"""
