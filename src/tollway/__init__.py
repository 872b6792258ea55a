"""Tollway: one OpenAI-compatible address in front of a fleet of model servers, metered to the token and billed to the cent.

Start reading at ARCHITECTURE.md, then `gateway/pipeline.py` (a request) and `control/metering/collect.py` (its money).
"""

__version__ = "0.1.0"
