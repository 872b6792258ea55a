"""The gRPC port of the simulator: the Open Inference Protocol as Triton's vLLM backend serves it, with its call for streams.

Messages are read and written by the protobuf library from the description of the protocol, so that nothing is shared with the gateway that
walks them by hand. A request is an exchange as by REST (`open_inference`); of a stream each event of it is a response.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine, Sequence
from importlib.resources import files
from typing import Any, Final

import grpc
import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tollway.simulator.answering import Exchange
from tollway.simulator.endpoints import Request, Simulator
from tollway.simulator.open_inference import INPUTS, OUTPUTS, TensorRequest, list_outputs, make_request
from tollway.simulator.requests import Refused

SERVICE: Final = "inference.GRPCInferenceService"
_CODES: Final = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
_CONTENTS: Final = {"BYTES": "bytes_contents", "INT32": "int_contents", "BOOL": "bool_contents", "UINT32": "uint_contents"}


def load_messages() -> Callable[[str], Any]:
    """Return what makes the class of a message of the protocol by its name."""
    pool = descriptor_pool.DescriptorPool()
    data = files("tollway.wire").joinpath("open_inference.binpb").read_bytes()
    pool.Add(descriptor_pb2.FileDescriptorSet.FromString(data).file[0])
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}"))


class _Line:
    """The end of one exchange: takes a stream of completions, and queues its text with its counts, then how it ended: a status of HTTP, 0
    for a connection that the plan of the exchange breaks."""

    paused = False
    chunked = False

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[str, int, int] | int] = asyncio.Queue()
        self.message = ""
        self._bytes = b""
        self._status = 0
        self._output_tokens = 0

    def write(self, data: bytes) -> None:
        """Take bytes of the answer."""
        self._bytes += data
        if not self._status:
            lines, blank, rest = self._bytes.partition(b"\r\n\r\n")
            if not blank:
                return
            self._status, self._bytes = int(lines[9:12]), rest
        *whole, self._bytes = self._bytes.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: {"):
                self._take(msgspec.json.decode(event[6:]))

    def _take(self, chunk: dict[str, Any]) -> None:
        if "error" in chunk:
            self._status, self.message = 500, str(chunk["error"]["message"])
            return
        usage = chunk.get("usage") or {}
        tokens = usage.get("completion_tokens", self._output_tokens)
        text = "".join(each.get("text") or "" for each in chunk.get("choices", ()))
        if text:
            self.events.put_nowait((text, usage.get("prompt_tokens", 0), tokens - self._output_tokens))
            self._output_tokens = tokens

    def answered(self, stale_seconds: float | None, *, close: bool) -> None:
        """The exchange has ended as it should, or with an error of the engine."""
        if self._status != 200 and not self.message:
            self.message = self._bytes.decode("utf-8", "replace")
        self.events.put_nowait(self._status)

    def hang_up(self, *, reset: bool) -> None:
        """The plan of the exchange breaks the connection."""
        self.events.put_nowait(0)


class Listener:
    """The port of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._message = load_messages()

    async def start(self, address: str) -> tuple[int, Callable[[], Coroutine[Any, Any, None]]]:
        """Return the port, and what ends the listener. Raises OSError if it cannot listen."""
        server = grpc.aio.server(options=(("grpc.max_receive_message_length", self._simulator.settings.body_bytes_max),))
        kind, message = grpc.unary_unary_rpc_method_handler, self._message
        methods = {
            "ServerLive": kind(self._tell(message("ServerLiveResponse")(live=True))),
            "ServerReady": kind(self._tell(message("ServerReadyResponse")(ready=True))),
            "ServerMetadata": kind(self._tell(message("ServerMetadataResponse")(name="triton", version="2.0-sim"))),
            "ModelReady": kind(self._tell(message("ModelReadyResponse")(ready=True))),
            "ModelMetadata": kind(self._describe),
            "ModelInfer": kind(self._infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._infer_stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(errno.EADDRINUSE, f"cannot listen on {address}") from None
        await server.start()

        async def end() -> None:
            await server.stop(None)

        return port, end

    def _tell(self, answer: Any) -> Callable[..., Any]:
        async def tell(message: bytes, context: object) -> bytes:
            data: bytes = answer.SerializeToString()
            return data

        return tell

    async def _describe(self, message: bytes, context: Any) -> bytes:
        asked = self._message("ModelMetadataRequest").FromString(message)
        if asked.name not in self._simulator.settings.models:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{asked.name}' is not found")
        tensor = self._message("ModelMetadataResponse.TensorMetadata")
        answer = self._message("ModelMetadataResponse")(
            name=asked.name,
            versions=["1"],
            platform="vllm",
            inputs=[tensor(**each) for each in INPUTS],
            outputs=[tensor(**each) for each in OUTPUTS],
        )
        data: bytes = answer.SerializeToString()
        return data

    async def _infer(self, message: bytes, context: Any) -> bytes:
        request = self._message("ModelInferRequest").FromString(message)
        asked, is_raw = await self._read(request, context), bool(request.raw_input_contents)
        text, prompt_tokens, output_tokens = "", 0, 0
        async for part, prompt, output in self._answer(asked, context):
            text, prompt_tokens, output_tokens = text + part, prompt, output_tokens + output
        data: bytes = self._render(asked, (text, prompt_tokens, output_tokens), is_raw, is_final=False).SerializeToString()
        return data

    async def _infer_stream(self, messages: Any, context: Any) -> None:
        response = self._message("ModelStreamInferResponse")
        async for message in messages:
            request = self._message("ModelInferRequest").FromString(message)
            asked, is_raw = await self._read(request, context), bool(request.raw_input_contents)
            held: tuple[str, int, int] | None = None
            async for part in self._answer(asked, context):
                if held is not None:
                    told = response(infer_response=self._render(asked, held, is_raw, is_final=False))
                    await context.write(told.SerializeToString())
                held = part
            told = response(infer_response=self._render(asked, held or ("", 0, 0), is_raw, is_final=True))
            await context.write(told.SerializeToString())

    async def _read(self, request: Any, context: Any) -> TensorRequest:
        tensors: dict[str, tuple[str, Sequence[int], Sequence[Any]]] = {}
        for index, each in enumerate(request.inputs):
            if request.raw_input_contents:
                data = _unpack(request.raw_input_contents[index], each.datatype)
            else:
                data = list(getattr(each.contents, _CONTENTS.get(each.datatype, "bytes_contents")))
            tensors[each.name] = (each.datatype, list(each.shape), [item.decode() if isinstance(item, bytes) else item for item in data])
        try:
            return make_request(request.model_name, request.id, tensors)
        except Refused as refused:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, refused.message)
            raise

    async def _answer(self, asked: TensorRequest, context: Any) -> Any:
        """Yield the parts of an answer; end the call as the exchange ends if that is not well."""
        headers = {key.encode(): value.encode() for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        simulator, line = self._simulator, _Line()
        exchange: Exchange | None = None
        try:
            request = asked.as_completion(Request(b"POST", b"", headers, b"", True, True), stream=True)
            exchange = simulator.exchange(line, "completions", request)
            if simulator.draining:
                exchange.refuse()
                raise Refused(503, "", "the server is shutting down")
            simulator.exchanges.add(exchange)
            if not exchange.begin():
                raise Refused(503, "", "the queue is full")
            while not isinstance(event := await line.events.get(), int):
                yield event
            if event != 200:
                code = grpc.StatusCode.UNAVAILABLE if event == 0 else _CODES.get(event, grpc.StatusCode.INTERNAL)
                await context.abort(code, line.message or "Socket closed")
        except Refused as refused:
            await context.abort(_CODES.get(refused.status, grpc.StatusCode.INTERNAL), refused.message)
        finally:
            if exchange is not None:
                exchange.left("aborted")
                simulator.over(exchange)

    def _render(self, asked: TensorRequest, part: tuple[str, int, int], is_raw: bool, *, is_final: bool) -> Any:
        """Return an answer: as raw contents where the request had those, as Triton answers its own clients."""
        answer = self._message("ModelInferResponse")(model_name=asked.model, model_version="1", id=asked.id)
        answer.parameters["triton_final_response"].bool_param = is_final
        for name, datatype, value in list_outputs(asked, *part):
            output = answer.outputs.add(name=name, datatype=datatype, shape=[1])
            element = value.encode() if isinstance(value, str) else value
            if not is_raw:
                getattr(output.contents, _CONTENTS[datatype]).append(element)
            elif isinstance(element, bytes):
                answer.raw_output_contents.append(len(element).to_bytes(4, "little") + element)
            else:
                answer.raw_output_contents.append(int(str(element)).to_bytes(4, "little"))
        return answer


def _unpack(raw: bytes, datatype: str) -> list[Any]:
    if datatype == "BYTES":
        return [raw[4:]]
    return [bool(raw[0]) if datatype == "BOOL" else int.from_bytes(raw, "little", signed=True)]
