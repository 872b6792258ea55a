"""What each API's bodies mean: OpenAI's chat completions, completions and embeddings, Anthropic's messages.

Owns: request fields and their ranges, where usage stands in an answer, what an event of a stream says, the shape of errors.
Does not own: bytes on sockets, routing, money. May import: engines, wire, domain.
"""
