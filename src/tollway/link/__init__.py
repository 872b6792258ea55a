"""The gateway's side of the link between the planes: usage goes up, the snapshot comes down.

Owns: the spool (what a crash may not lose), its recovery, its shipping to control; the follower of the snapshot and
its disk copy. Does not own: what a record means (`domain.usage`), how it is framed (`wire.segments`), what becomes of
it (`control.metering.collect`), or how the gateway indexes what it receives (`gateway.directory`). It is handed to the gateway
through `gateway.ports`. May import: wire, telemetry, domain, httpx2. Never gateway, control or storage.
"""
