"""The engines' side of the gateway: connections with their states, the pool of each upstream, and its passive health.

Owns: sockets towards engines, the requests' heads that go up, ejection. Does not own: what an answer means, retries.
May import: request, ports, dialects, wire, domain.
"""
