"""Answers of the simulator on each route, and their times: one `Simulator` is one engine with all its requests."""

import asyncio
import contextlib
import random
import secrets
import time
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tollway.simulator import faults, media, metrics, open_inference
from tollway.simulator.answering import Exchange
from tollway.simulator.dialects import JSON, POOLING, Script
from tollway.simulator.engine import Engine, Wheel
from tollway.simulator.faults import HEALTHY, Plan
from tollway.simulator.outlet import Line
from tollway.simulator.requests import (
    Endpoint,
    Order,
    Refused,
    echo_of,
    ids_of,
    read_count_tokens,
    read_input_tokens,
    read_order,
    read_tokenize,
)
from tollway.simulator.settings import SimulatorSettings
from tollway.simulator.tokens import BLOCK_TOKENS, Answer, Lengths, plan_answer
from tollway.simulator.truth import Ended, TruthLog, TruthRecord

ENDPOINTS: dict[bytes, Endpoint] = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "completions",
    b"/v1/embeddings": "embeddings",
    b"/v1/messages": "messages",
    b"/v1/rerank": "rerank",
    b"/v1/responses": "responses",
    b"/v1/score": "score",
}
_VERSION = "0.32.0"  # the vLLM whose shapes these are
_FLUSH_SECONDS = 1.0  # after the last answer of a drain, for its bytes to leave
_ECHO = "sim-echo"
_NO_ANSWER = Answer((), (), 0, 0, b"")


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came off the wire; of the headers only those that mean something here."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    body: bytes
    keep_alive: bool
    http_11: bool


class Peer(Protocol):
    """A connection, as the end of the simulator sees it."""

    @property
    def unsent(self) -> bool:
        """There are bytes that the kernel has not taken."""

    def hang_up(self, *, reset: bool) -> None:
        """Ends the connection at once, by RST or by FIN."""

    def drop(self, ended: Ended) -> None:
        """Stops what is being made for this client."""


class Simulator:
    """One engine and all its connections."""

    def __init__(self, settings: SimulatorSettings, loop: asyncio.AbstractEventLoop, lost: "asyncio.Future[None]") -> None:
        self.settings = settings
        self.clock = loop.time
        self.wheel = Wheel(loop)
        self.engine = Engine(settings, self.wheel, self.clock)
        self.truth = TruthLog(
            settings.truth_log,
            fsync_each=settings.fsync_each,
            fsync_seconds=settings.fsync_seconds,
            lost=lost.set_exception,
        )
        self.exchanges: set[Exchange] = set()
        self.connections: set[Peer] = set()
        self.draining = False
        self._idle = asyncio.Event()
        self._dice = random.Random(settings.seed)
        self._rates = tuple((faults.parse(spec), rate) for spec, rate in settings.fault_rates)
        self._lengths = {
            "natural_min": settings.output_tokens_min,
            "natural_max": settings.output_tokens_max,
            "context_max": settings.context_tokens_max,
        }
        self._life = secrets.token_hex(6)  # makes attempt ids unique among all simulators that write to one log
        self._attempts = 0

    # Requests for the engine

    def exchange(self, line: Line, endpoint: Endpoint, request: Request) -> Exchange:
        """Reads a request for the engine. Raises Refused for what does not get there."""
        order = read_order(endpoint, request.body)
        model = order.model or self.settings.models[0]
        served, plan = self._plan(model, request.headers.get(b"x-sim-fault", b""))
        self._check_model(served)
        self._attempts += 1
        settings = self.settings
        script = Script(
            answer_id=_read_request_id(request),
            created_at_seconds=int(time.time()),
            model=model,
            order=order,
            answer=self._answer(order, served, plan),
            plan=plan,
            tokens_per_chunk=settings.tokens_per_chunk,
            dimensions=order.dimensions or settings.embedding_dimensions,
            with_details=settings.prompt_tokens_details,
            with_reasoning=bool(settings.reasoning_tokens or plan.reasoning_tokens),
        )
        attempt_id = f"{self._life}-{self._attempts}"
        return Exchange(line, script, attempt_id, self.engine, self.truth, self.wheel, self.clock)

    def over(self, exchange: Exchange) -> None:
        """The exchange's connection has no more to do with it."""
        self.exchanges.discard(exchange)
        if not self.exchanges:
            self._idle.set()

    def _plan(self, model: str, header: bytes) -> tuple[str, Plan]:
        """The served model's name, and the faults that the header, the model's suffix or the dice ask for."""
        served, _, suffix = model.partition("!")
        spec = "+".join(part for part in (header.decode("latin-1"), suffix) if part)
        if spec:
            try:
                return served, faults.parse(spec)
            except ValueError as error:
                raise Refused(400, "BadRequestError", str(error), "x-sim-fault") from None
        if self._rates:
            dice = self._dice.random()
            for plan, rate in self._rates:
                dice -= rate
                if dice < 0:
                    return served, plan
        return served, HEALTHY

    def _check_model(self, model: str) -> None:
        if model not in self.settings.models:
            raise Refused(404, "NotFoundError", f"The model `{model}` does not exist.", "model")

    def _answer(self, order: Order, served: str, plan: Plan) -> Answer:
        limit = self.settings.context_tokens_max
        for prompt in order.prompts:
            wanted = 0 if order.endpoint in POOLING else order.tokens_max or 1
            if prompt.tokens + wanted > limit:
                raise Refused(
                    400,
                    "BadRequestError",
                    f"This model's maximum context length is {limit} tokens. However, you requested {wanted} output tokens and "
                    f"your prompt contains {prompt.tokens} input tokens. Please reduce the length of either one.",
                    "input_tokens",
                )
        if order.endpoint in POOLING:
            return _NO_ANSWER
        reasoning = 0
        if order.endpoint != "completions":  # raw completions have no reasoning parser
            reasoning = self.settings.reasoning_tokens if plan.reasoning_tokens is None else plan.reasoning_tokens
        return plan_answer(
            order.prompts,
            order.choices,
            tokens_max=order.tokens_max,
            ignore_eos=order.ignore_eos,
            echo=echo_of(order) if served.startswith(_ECHO) else b"",
            lengths=Lengths(reasoning=reasoning, **self._lengths),
            seed=self.settings.seed,
        )

    # Requests about the engine

    def get(self, path: bytes) -> tuple[int, bytes, bytes]:
        """Status, content type and body of a GET."""
        engine, settings = self.engine, self.settings
        if path in (b"/health", b"/ping"):
            return 200, b"", b""  # also while draining, as vLLM
        if path == b"/metrics":
            text = metrics.render(
                engine.counters,
                model=settings.models[0],
                running=engine.running,
                waiting=engine.waiting,
                cache_usage=engine.cache_usage,
                blocks=settings.cache_blocks_max,
                block_tokens=BLOCK_TOKENS,
            )
            return 200, b"text/plain; version=0.0.4; charset=utf-8", text
        if path == b"/v1/models":
            cards: list[dict[str, object]] = [
                {
                    "id": model,
                    "object": "model",
                    "created": int(time.time()),
                    "owned_by": "vllm",
                    "root": model,
                    "parent": None,
                    "max_model_len": settings.context_tokens_max,
                    "permission": [],
                }
                for model in settings.models
            ]
            return 200, JSON, msgspec.json.encode({"object": "list", "data": cards})
        if path.startswith(open_inference.BASE):
            found = open_inference.describe(path, settings.models, is_draining=self.draining)
            if found is not None:
                return found
        if path == b"/version":
            return 200, JSON, msgspec.json.encode({"version": _VERSION})
        if path == b"/load":
            return 200, JSON, msgspec.json.encode({"server_load": len(self.exchanges)})
        if path == b"/sim/state":
            return 200, JSON, msgspec.json.encode(self._state())
        return 404, JSON, b'{"detail":"Not Found"}'

    def post(self, request: Request) -> tuple[int, bytes, bytes]:
        """Status, content type and body of a POST that needs no engine. Raises Refused."""
        path, body = request.path, request.body
        if path == b"/tokenize":
            prompt = read_tokenize(body)
            answer = {
                "count": prompt.tokens,
                "max_model_len": self.settings.context_tokens_max,
                "tokens": ids_of(prompt),
                "token_strs": None,
            }
            return 200, JSON, msgspec.json.encode(answer)
        if path == b"/v1/messages/count_tokens":
            model, prompt = read_count_tokens(body)
            self._check_model(model.partition("!")[0])
            original = {"original_input_tokens": prompt.tokens}
            return 200, JSON, msgspec.json.encode({"input_tokens": prompt.tokens, "context_management": original})
        if path == b"/v1/responses/input_tokens":
            model, prompt = read_input_tokens(body)
            self._check_model(model.partition("!")[0])
            return 200, JSON, msgspec.json.encode({"object": "response.input_tokens", "input_tokens": prompt.tokens})
        if path == b"/ping":
            return 200, b"", b""
        of_media = media.answer(path, body)
        if of_media is not None:
            self._note_media(request, of_media)
            return 200, of_media.kind, of_media.body
        return 404, JSON, b'{"detail":"Not Found"}'

    def _note_media(self, request: Request, of_media: media.MediaAnswer) -> None:
        self._attempts += 1
        now_us = time.time_ns() // 1000
        self.truth.append(
            TruthRecord(
                request_id=_read_request_id(request),
                attempt_id=f"{self._life}-{self._attempts}",
                model="",
                endpoint=request.path.removeprefix(b"/v1/").decode("latin-1"),
                prompt_tokens=0,
                cached_tokens=0,
                completion_tokens=0,
                reasoning_tokens=0,
                delivered_tokens=0,
                ended="completed",
                finish_reason=None,
                terminator_sent=True,
                started_at_us=now_us,
                ended_at_us=now_us,
                units=of_media.units,
                pixels=of_media.pixels,
            )
        )

    def _state(self) -> dict[str, object]:
        counters = self.engine.counters
        return {
            "running": self.engine.running,
            "waiting": self.engine.waiting,
            "exchanges": len(self.exchanges),
            "connections": len(self.connections),
            "draining": self.draining,
            "ended": counters.ended,
            "prompt_tokens": counters.prompt_tokens,
            "cached_tokens": counters.cached_tokens,
            "generation_tokens": counters.generation_tokens,
        }

    # The end

    async def drain(self) -> None:
        """Refuses new requests, lets the running ones finish for `drain_seconds`, breaks off the rest."""
        self.draining = True
        self._idle.clear()
        if self.exchanges:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.settings.drain_seconds)
        for exchange in tuple(self.exchanges):
            exchange.break_off()
        deadline = self.clock() + _FLUSH_SECONDS
        while self.clock() < deadline and any(connection.unsent for connection in self.connections):
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Hangs up on everybody, records what was running as cut, and closes the log."""
        try:
            for connection in tuple(self.connections):
                connection.hang_up(reset=False)
                connection.drop("cut")
        finally:
            self.truth.close()


def _read_request_id(request: Request) -> str:
    """The id that came with a request, or one of its own."""
    return request.headers.get(b"x-request-id", b"").decode("latin-1") or secrets.token_hex(16)
