"""Ask an engine which models it serves, before it is connected: the list of OpenAI's API (`GET /v1/models`), which most engines have."""

import re

import httpx2
import msgspec

from tollway.control.reconciliation.engine_answers import Unreadable, read_answer
from tollway.domain.catalog import Engine
from tollway.engines.table import ENGINES

PATH = "/v1/models"

ANSWER_SECONDS_MAX = 8.0
"""Deadline for the answer of an engine, from the resolution of its name on."""

MODELS_MAX = 500
"""Models that are named; an engine serves a handful, and a service a few hundred."""

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,256}")
_UNLISTED = frozenset({Engine.KSERVE, Engine.TRITON})
"""Engines of the Open Inference Protocol, which has no list of models."""


class _ListedModel(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


async def list_served_models(client: httpx2.AsyncClient, engine: Engine, base_url: str, credential: str | None) -> list[str]:
    """Return the names of the models that an engine serves, in its order, MODELS_MAX at most; names that could not be given to a deployment
    are left out. Raises Unreadable."""
    if engine in _UNLISTED:
        raise Unreadable(f"{engine} has no list of its models; name the model as the engine knows it")
    headers = {"accept": "application/json"}
    if credential is not None:
        name, _, value = ENGINES[engine].credential_header.format(credential=credential).partition(": ")
        headers[name] = value
    body = await read_answer(client, base_url, PATH, headers, ANSWER_SECONDS_MAX)
    try:
        listed = msgspec.json.decode(body, type=_ModelList).data
    except msgspec.DecodeError:
        raise Unreadable(f"{PATH} did not answer with a list of models") from None
    return list(dict.fromkeys(each.id for each in listed if _NAME.fullmatch(each.id)))[:MODELS_MAX]
