"""The REST routes of the control plane: one router per resource, in the shapes of OpenAI's organization API where it has one.

Owns: routes, schemas, the mapping of faults to bodies, where transactions open and commit.
Does not own: rules. A route authenticates, reads the request, opens a transaction, calls operations, and shapes the answer.
May import: `control`, `wire`, `domain`, FastAPI. It imports no module of `storage`: `plane.database` opens its transactions.
"""
