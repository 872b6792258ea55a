"""Processes: how the planes are assembled, started, watched and stopped.

Owns: listening sockets, child processes, signals, the data directory, and which part is handed to which port. Does not
own: what a process does once it runs (`gateway`, `control`, `simulator`), nor how a person asks for it (`cli`). May
import: every package below. Nothing but `cli` imports it."""
