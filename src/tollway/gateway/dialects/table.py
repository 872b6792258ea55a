"""The dialects, one row each. A new API is a file here, a member of `domain.catalog.Endpoint` (and
of NOT_GENERATING there, if it generates nothing), and a row in this table.

Everything else follows from the row: the gateway's routes, the heads of requests to engines, and the shape of errors.
"""

import re

from tollway.domain.catalog import Endpoint
from tollway.gateway.dialects import (
    chat_completions,
    classify,
    compact,
    completions,
    count_tokens,
    embeddings,
    image_edits,
    image_generations,
    infer,
    input_tokens,
    messages,
    moderations,
    realtime,
    rerank,
    responses,
    score,
    speech,
    tokenize,
    transcripts,
)
from tollway.gateway.dialects.dialect import Dialect

DIALECTS: dict[Endpoint, Dialect] = {
    dialect.endpoint: dialect
    for dialect in (
        chat_completions.DIALECT,
        completions.DIALECT,
        embeddings.DIALECT,
        image_generations.DIALECT,
        image_edits.EDITS,
        image_edits.VARIATIONS,
        speech.DIALECT,
        transcripts.TRANSCRIPTIONS,
        transcripts.TRANSLATIONS,
        messages.DIALECT,
        count_tokens.DIALECT,
        responses.DIALECT,
        input_tokens.DIALECT,
        compact.DIALECT,
        infer.DIALECT,
        rerank.DIALECT,
        score.DIALECT,
        classify.DIALECT,
        moderations.DIALECT,
        realtime.DIALECT,
        tokenize.TOKENIZE,
        tokenize.DETOKENIZE,
    )
}

_ORIGIN = re.compile(rb"\Ahttps?://[^/]*", re.IGNORECASE)
"""Scheme and authority of a target in absolute form. A request for another host is refused in the shape of its path as well."""


def find_error_dialect(target: bytes) -> Dialect:
    """Return the dialect in which every error of a request to `target` is written: that of the longest endpoint that it begins with, or
    OpenAI's. `target`: in origin or absolute form, as much of it as has arrived."""
    path = _ORIGIN.sub(b"", target, count=1).partition(b"?")[0]
    best = DIALECTS[Endpoint.CHAT_COMPLETIONS]
    length = 0
    for dialect in DIALECTS.values():
        if len(dialect.target) > length and path.startswith(dialect.target):
            best, length = dialect, len(dialect.target)
    return best
