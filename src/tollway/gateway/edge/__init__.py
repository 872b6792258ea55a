"""The edge of the data plane: sockets, framing, deadlines, routes and drain.

Owns: client connections, the public and the internal listener, the clock, who may connect and under which names.
Does not own: what a request means; `gateway.pipeline` decides that.
"""
