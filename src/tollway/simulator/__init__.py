"""An inference engine as a client of vLLM 0.32 sees it, without a GPU and almost without CPU.

Owns: the engine's wire shapes, its scheduling (slots, queue, prefix cache, pace), the faults that engines show in
the field, and the truth log: what was really generated for whom, which is the only reference for usage records and bills
in system tests. Does not own: anything the gateway does. It shares no code with the data plane, so that a mistake
there cannot hide here. May import: the standard library, uvloop, httptools, msgspec. Nothing else of tollway.
"""
