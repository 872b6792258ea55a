"""Bytes in, events out: formats without I/O (sans-IO), used by gateway, link and control.

Owns: HTTP/1.1 framing and its strictness (`http`), server-sent events (`sse`), spool records (`segments`) and slots of requests in
progress (`progress_slots`), Redis replies (`resp`), error bodies (`errors`).
Does not own: sockets, files, deadlines, meaning. May import: domain, httptools, jiter, msgspec.
"""
