"""The traffic of R1 that is not text by HTTP: sound and pictures, realtime sessions, and calls by gRPC. One client of each kind sends one
request after the other for as long as the kills go on, and notes what it heard, as the clients of `load` do."""

import json
import random
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import httpx2
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from reliability.bill_checks import Ended, Heard
from reliability.platforms import Platform
from reliability.processes import NO_TLS, WAIT_SECONDS
from tollway.simulator.open_inference_grpc import SERVICE, load_messages

STUDIO, TALKER, TENSORS = "studio", "talker", "tensors"
PRICES = {
    STUDIO: {
        "input": "0",
        "output": "0",
        "seconds": "0.000123456789",
        "characters": "15.000007",
        "images": "0.04",
        "pixels": "0.009001",
        "request": "0",
    },
    TALKER: {"input": "2.5", "cached_input": "0.600001", "output": "19.000003", "request": "0.000000000777"},
    TENSORS: {"input": "1.1", "output": "6.000007", "request": "0.000000031415"},
}
ENDPOINTS = {STUDIO: ["images/edits", "audio/speech", "audio/transcriptions"], TALKER: ["realtime"], TENSORS: ["infer"]}
PAUSE_SECONDS = 0.1
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000000049454e44ae426082"
)
HANGS = (httpx2.TimeoutException, TimeoutError)
"""Errors of a client that waited WAIT_SECONDS for the next part of an answer."""
FAULTS = (httpx2.HTTPError, WebSocketException, OSError, grpc.RpcError)
"""Errors of a gateway that dies, or is not there yet."""


def prepare(platform: Platform, grpc_port: int) -> None:
    """Add the models, with prices, and wait until the gateway serves them. `grpc_port`: the engine's."""
    engine_url = f"http://{platform.engine.arguments[platform.engine.arguments.index('--listen') + 1]}"
    headers = {"authorization": f"Bearer {platform.platform_key}"}
    with httpx2.Client(base_url=f"{platform.control_url}/v1", headers=headers, timeout=WAIT_SECONDS, trust_env=False) as http:

        def post(path: str, body: Mapping[str, Any] | None = None) -> None:
            answer = http.post(path, json=body)
            assert answer.status_code == 200, f"{path}: {answer.text}"

        for model, prices in PRICES.items():
            post("/platform/models", {"name": model, "endpoints": ENDPOINTS[model]})
            post("/platform/prices", {"model": model, "currency": "EUR", **prices})
            post(f"/platform/models/{model}/publish")
            engine: dict[str, Any] = {"engine": "kserve", "grpc_port": grpc_port} if model == TENSORS else {"engine": "sim"}
            post("/platform/deployments", {"model": model, "base_url": engine_url, "upstream_model": "sim-echo", "tier": 0, **engine})
    deadline = time.monotonic() + WAIT_SECONDS
    with _open(platform) as http:
        while not {each["id"] for each in http.get("/v1/models").json()["data"]} >= set(PRICES):
            assert time.monotonic() < deadline, "the gateway never knew the models"
            time.sleep(0.05)


class Clients:
    """The clients, each a thread. `heard`: what they were answered; `wrong`: what no answer may be."""

    def __init__(self, platform: Platform, grpc_port: int, seed: int) -> None:
        """`grpc_port`: the gateway's."""
        self.heard: list[Heard] = []
        self.wrong: list[str] = []
        self._platform = platform
        self._grpc_port = grpc_port
        self._stopping = threading.Event()
        of_kinds: Sequence[Callable[[random.Random, int], None]] = (self._ask_for_media, self._converse, self._infer)
        dice = [random.Random(f"{seed} {number}") for number in range(len(of_kinds))]
        self._threads = [threading.Thread(target=self._repeat, args=each, daemon=True) for each in zip(of_kinds, dice, strict=True)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each end what it has begun."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
            if thread.is_alive():
                self.wrong.append("a client of pictures, sound, sessions or tensors did not end")

    def _repeat(self, ask: Callable[[random.Random, int], None], dice: random.Random) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            try:
                ask(dice, number)
            except HANGS as error:
                self.wrong.append(f"{ask.__name__} hung: {error!r}"[:500])
            except FAULTS:
                pass  # it is starting again
            except Exception as error:
                self.wrong.append(f"{ask.__name__}: {error!r}"[:500])
            self._stopping.wait(PAUSE_SECONDS)

    def _note(self, model: str, id: str | None, status: int, ended: Ended, tokens: int = 0, code: str | None = None) -> None:
        self.heard.append(Heard(model, 0, id, status, tokens, ended, code))

    def _ask_for_media(self, dice: random.Random, number: int) -> None:
        with _open(self._platform) as http:
            match number % 3:
                case 0:
                    form = {
                        "model": STUDIO,
                        "prompt": "A toll bridge.",
                        "n": str(dice.randint(1, 4)),
                        "size": f"{dice.randint(1, 300)}x100",
                    }
                    answer = http.post("/v1/images/edits", data=form, files={"image": ("a.png", PICTURE, "image/png")})
                case 1:
                    said = {"model": STUDIO, "voice": "alloy", "response_format": "wav", "input": "toll " * dice.randint(1, 400)}
                    answer = http.post("/v1/audio/speech", json=said)
                case _:
                    sound = {"file": ("a.wav", _make_sound(dice.randint(1, 30)), "audio/wav")}
                    answer = http.post("/v1/audio/transcriptions", data={"model": STUDIO}, files=sound)
        ended: Ended = "complete" if answer.status_code == 200 else "error"
        code = None if answer.status_code == 200 else str(answer.json()["error"]["code"])
        self._note(STUDIO, answer.headers.get("x-request-id"), answer.status_code, ended, code=code)

    def _converse(self, dice: random.Random, number: int) -> None:
        """Hold a session of a few responses; every fifth client leaves in the middle of the last one."""
        url = self._platform.gateway_url.replace("http", "ws", 1) + f"/v1/realtime?model={TALKER}"
        headers = {"authorization": f"Bearer {self._platform.tenant.api_key}"}
        try:
            # Without pings of its own, or it would give up on a gateway that hangs before the time after which that counts as a hang.
            session = connect(url, additional_headers=headers, proxy=None, open_timeout=WAIT_SECONDS, close_timeout=1.0, ping_interval=None)
        except InvalidStatus as refusal:
            answer = refusal.response
            code = str(json.loads(answer.body or b"")["error"]["code"])
            self._note(TALKER, answer.headers.get("x-request-id"), answer.status_code, "error", code=code)
            return
        with session:
            for _ in range(dice.randint(1, 3)):
                words = " ".join(dice.choices(("toll", "road", "bridge", "ferry"), k=dice.randint(2, 30)))
                item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": words}]}
                session.send(json.dumps({"type": "conversation.item.create", "item": item}))
                session.send(json.dumps({"type": "response.create"}))
                if not self._hear_response(session, leaves=number % 5 == 0):
                    return

    def _hear_response(self, session: ClientConnection, *, leaves: bool) -> bool:
        """Return whether a response was heard to its end. `leaves`: only its first token is. What arrived of it is noted in any case."""
        id: str | None = None
        tokens = 0
        ended: Ended = "broken"
        code: str | None = None
        try:
            while (event := json.loads(session.recv(WAIT_SECONDS)))["type"] != "response.done":
                if event["type"] == "error":
                    ended, code = "error", event["error"]["code"]
                    return False
                if event["type"] == "response.created":
                    id = event["response"]["id"]
                elif event["type"] == "response.output_text.delta":
                    tokens += 1  # the engine sends an event for each
                    if leaves:
                        ended = "left"
                        return False
            response = event["response"]
            if response["status"] == "completed":
                ended, tokens = "complete", response["usage"]["output_tokens"]
            else:
                ended, code = "error", response["status"]
            return True
        finally:
            self._note(TALKER, id, 101, ended, tokens, code=code)

    def _infer(self, dice: random.Random, number: int) -> None:
        """Make a call, or a stream of one request, which every fifth client leaves."""
        make = load_messages()
        request = make("ModelInferRequest")(model_name=TENSORS)
        text = " ".join(dice.choices(("axle", "barrier", "coin"), k=dice.randint(2, 30)))
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
        request.inputs.add(name="max_tokens", datatype="INT32", shape=[1]).contents.int_contents.append(64)
        for name in ("return_num_input_tokens", "return_num_output_tokens"):
            request.inputs.add(name=name, datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
        metadata = (("authorization", f"Bearer {self._platform.tenant.api_key}"),)
        with grpc.insecure_channel(f"127.0.0.1:{self._grpc_port}", (("grpc.enable_http_proxy", 0),)) as channel:
            data = request.SerializeToString()
            try:
                if number % 2:
                    _, call = channel.unary_unary(f"/{SERVICE}/ModelInfer").with_call(data, timeout=WAIT_SECONDS, metadata=metadata)
                else:
                    call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([data]), timeout=WAIT_SECONDS, metadata=metadata)
                    for _ in call:
                        if number % 5 == 0:
                            call.cancel()
                            return
                    assert call.code() is grpc.StatusCode.OK
                self._note(TENSORS, dict(call.trailing_metadata() or ()).get("x-request-id"), 200, "complete")
            except grpc.RpcError as error:
                told = dict(error.trailing_metadata() or ()) if isinstance(error, grpc.Call) else {}
                if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError(error.details()) from error
                if "x-error-code" in told:
                    self._note(TENSORS, told.get("x-request-id"), 503, "error", code=told["x-error-code"])


def _open(platform: Platform) -> httpx2.Client:
    headers = {"authorization": f"Bearer {platform.tenant.api_key}"}
    return httpx2.Client(base_url=platform.gateway_url, headers=headers, timeout=WAIT_SECONDS, trust_env=False, verify=NO_TLS)


def _make_sound(seconds: int) -> bytes:
    """Return silence as WAV, 8 kHz and 8 bits."""
    size = 8_000 * seconds
    head = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", size + 36, b"WAVEfmt ", 16, 1, 1, 8_000, 8_000, 1, 8, b"data", size)
    return head + b"\x80" * size
