"""The benchmark: what the gateway costs, beside what nginx costs, in the same minutes on the same machine.

Owns: the load (native/), the rig that starts and pins processes, the figures, and docs/performance.md, which is
rendered from the JSON lines in results/. Does not own: correctness (tests/) and the faithful engine
(tollway.simulator); the mock here is only cheap. Talks to the gateway as a client and as an operator would: command
line, configuration files, sockets, /metrics.
"""
