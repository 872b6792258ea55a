"""The gRPC port: the Open Inference Protocol before a simulated engine and before engines that misbehave; outcomes, bills and bounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes import PATIENCE_SECONDS, until
from tests.gateway.harness import KEY, NARROW_KEY, UNKNOWN_KEY, Gateway, Served, gateway
from tollway.domain.billing_classes import Quantities
from tollway.domain.catalog import Engine
from tollway.domain.limits import Limits
from tollway.domain.snapshot import Change
from tollway.domain.usage import Outcome, billed
from tollway.gateway.buffers import BufferBounds
from tollway.gateway.open_inference import server
from tollway.gateway.open_inference.bounds import GrpcBounds
from tollway.gateway.open_inference.calls import InferenceCall
from tollway.gateway.open_inference.server import HEALTH, SERVICE, Listener
from tollway.gateway.relay import RelayBounds
from tollway.gateway.request import INFINITE
from tollway.gateway.tracing import Tracer
from tollway.simulator import server as simulator
from tollway.simulator import truth
from tollway.simulator.open_inference_grpc import load_messages
from tollway.simulator.settings import SimulatorSettings
from tollway.spans import Sampler, TraceBounds

MESSAGE = load_messages()
Code = grpc.StatusCode
BEARER = (("authorization", f"Bearer {KEY}"),)


@dataclass
class Port:
    """A gateway with a gRPC port, and a channel to it."""

    running: Gateway
    channel: grpc.aio.Channel
    listener: Listener
    port: int

    async def call(self, method: str, request: Any, answer: str, key: str | None = KEY, **more: Any) -> Any:
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        calling = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return MESSAGE(answer).FromString(await calling(request.SerializeToString(), metadata=metadata, timeout=PATIENCE_SECONDS, **more))

    async def infer(self, request: Any, **more: Any) -> Any:
        return await self.call("ModelInfer", request, "ModelInferResponse", **more)

    async def refuse(self, request: Any, **more: Any) -> tuple[grpc.StatusCode, str]:
        """Status and code of the error of a call that must fail."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.infer(request, **more)
        trailers = dict(caught.value.trailing_metadata() or ())
        return caught.value.code(), str(trailers.get("x-error-code", ""))

    def stream(self, key: str = KEY) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(metadata=(("authorization", f"Bearer {key}"),))


@asynccontextmanager
async def port(
    models: dict[str, Served], bounds: GrpcBounds | None = None, *, grace_seconds: float = 1.0, **more: Any
) -> AsyncIterator[Port]:
    async with gateway(models, **more) as running:
        listener = Listener(running.plane, bounds or GrpcBounds(), 120)
        stop = asyncio.Event()
        listens: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(listener.serve("127.0.0.1:0", stop, grace_seconds=grace_seconds, ready=listens.set_result))
        try:
            at = await asyncio.wait_for(listens, PATIENCE_SECONDS)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{at}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
                yield Port(running, channel, listener, at)
        finally:
            stop.set()
            await asyncio.wait_for(serving, PATIENCE_SECONDS)


@asynccontextmanager
async def sim(log: Path, **more: Any) -> AsyncIterator[str]:
    """The address of HTTP for which a simulated engine serves gRPC on the next port."""
    settings = SimulatorSettings(port=0, grpc_listen="127.0.0.1:0", truth_log=log, ttft_seconds=0.001, inter_token_seconds=0.001, **more)
    stop, ports = asyncio.Event(), []
    ready = asyncio.Event()
    serving = asyncio.ensure_future(simulator.serve(settings, ready=lambda _: ready.set(), stop=stop, grpc_ready=ports.append))
    try:
        await asyncio.wait_for(ready.wait(), PATIENCE_SECONDS)
        yield f"http://127.0.0.1:{ports[0] - 1}"
    finally:
        stop.set()
        await asyncio.wait_for(serving, PATIENCE_SECONDS)


Serve = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def engine(infer: Serve | None = None, stream: Any = None) -> AsyncIterator[str]:
    """The same for an engine that does what these handlers do."""
    far = grpc.aio.server()
    handlers: dict[str, Any] = {}
    if infer is not None:
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(infer)
    if stream is not None:
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(stream)
    far.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    at = far.add_insecure_port("127.0.0.1:0")
    await far.start()
    try:
        yield f"http://127.0.0.1:{at - 1}"
    finally:
        await far.stop(None)


def text(words: str = "a toll road", model: str = "m", tokens: int = 5, version: str = "", counts: bool = True) -> Any:
    request = MESSAGE("ModelInferRequest")(model_name=model, model_version=version, id="7")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(words.encode())
    request.inputs.add(name="max_tokens", datatype="INT32", shape=[1]).contents.int_contents.append(tokens)
    for name in ("return_num_input_tokens", "return_num_output_tokens") if counts else ():
        request.inputs.add(name=name, datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
    return request


def read(answer: Any) -> dict[str, Any]:
    """The element of each output."""
    found = {}
    for each in answer.outputs:
        contents = each.contents.bytes_contents or each.contents.uint_contents
        found[each.name] = contents[0]
    return found


def served(url: str, upstream_model: str = "sim-echo") -> Served:
    return Served([url], engine=Engine.KSERVE, upstream_model=upstream_model)


async def answers_of(stream: Any) -> list[Any]:
    found = []
    while (data := await asyncio.wait_for(stream.read(), PATIENCE_SECONDS)) is not grpc.aio.EOF:
        found.append(MESSAGE("ModelStreamInferResponse").FromString(data).infer_response)
    return found


async def test_calls_and_streams_are_answered_counted_and_billed_as_the_engine_says(tmp_path: Path) -> None:
    log = tmp_path / "truth.jsonl"
    async with sim(log) as url, port({"m": served(url), "n/versions/2": served(url)}) as made:
        answer = await made.infer(text())
        raw = text()
        for each in raw.inputs:
            each.ClearField("contents")
        raw.raw_input_contents.extend([b"\x0b\0\0\0a toll road", (5).to_bytes(4, "little"), b"\1", b"\1"])
        assert [each[-4:] for each in (await made.infer(raw)).raw_output_contents[1:]] == [
            read(answer)[name].to_bytes(4, "little") for name in ("num_input_tokens", "num_output_tokens")
        ]
        versioned = await made.infer(text(model="n", version="2"))
        stream = made.stream()
        for words in ("one", "and then two"):
            await stream.write(text(words).SerializeToString())
        await stream.done_writing()
        parts = await answers_of(stream)
        assert await stream.code() is Code.OK
        await made.running.sink.settled(5)
        finals = made.running.sink.finals
        assert made.running.plane.metrics.anomalies == {}
    assert (answer.model_name, answer.id, versioned.model_name) == ("m", "7", "n")
    assert read(answer)["num_output_tokens"] == finals[0].used.output > 0
    assert [each.id for each in parts] == ["7"] * len(parts) and len(parts) > 2
    assert sum(read(each)["num_output_tokens"] for each in parts if read(each).get("num_output_tokens")) == sum(
        each.used.output for each in finals[3:]
    )
    records = {each.request_id: each for each in truth.read(log)}
    for final in finals:
        record = records[final.admit.request_id]
        assert (final.outcome, final.admit.endpoint) == (Outcome.COMPLETED, "infer")
        assert (record.prompt_tokens, record.completion_tokens) == (final.used.input_tokens, final.used.output_tokens)


@pytest.mark.parametrize("leaves_after", [0, 3])
async def test_client_that_leaves_a_stream_pays_the_tokens_between_delivered_and_generated_and_no_request(
    tmp_path: Path, leaves_after: int
) -> None:
    log = tmp_path / "truth.jsonl"
    async with sim(log) as url, port({"m": served(url, "sim-echo!itl@20" if leaves_after else "sim-echo!ttft@60000")}) as made:
        stream = made.stream()
        await stream.write(text("word " * 200, tokens=200).SerializeToString())
        delivered = 0
        for _ in range(leaves_after):
            answer = MESSAGE("ModelStreamInferResponse").FromString(await asyncio.wait_for(stream.read(), PATIENCE_SECONDS))
            delivered += read(answer.infer_response)["num_output_tokens"]
        await until(lambda: bool(made.running.sink.admits))
        stream.cancel()
        final = await made.running.sink.settled()
        await until(lambda: not truth.read_unended(log))
    asked = [each for each in truth.read(log) if each.request_id == final.admit.request_id]
    generated = sum(each.completion_tokens for each in asked)
    assert final.outcome is Outcome.CLIENT_CANCELLED and all(each.ended == "aborted" for each in asked)
    assert delivered <= final.used.output_tokens <= generated and billed(final) == final.used
    assert final.used.input_tokens == (asked[0].prompt_tokens if delivered else 0)


async def test_calls_are_shared_by_deployments_and_go_on_without_one_that_dies_or_is_drained() -> None:
    asked = [0, 0]

    def answering(number: int) -> tuple[Serve, Any]:
        async def infer(message: bytes, context: Any) -> bytes:
            asked[number] += 1
            data: bytes = MESSAGE("ModelInferResponse")(model_name="m").SerializeToString()
            return data

        async def stream(messages: Any, context: Any) -> None:
            async for _ in messages:
                asked[number] += 1
                await context.write(part(2))

        return infer, stream

    async def one_stream(made: Port) -> grpc.StatusCode:
        calling = made.stream()
        await calling.write(bent().SerializeToString())
        await calling.done_writing()
        await answers_of(calling)
        code: grpc.StatusCode = await calling.code()
        return code

    async with engine(*answering(0)) as other:
        async with engine(*answering(1)) as dying:
            both = Served([other, dying], engine=Engine.KSERVE, upstream_model="sim-echo", one_tier=True)
            async with AsyncExitStack() as held:
                made = await held.enter_async_context(port({"m": both}))
                await asyncio.gather(*(made.infer(bent()) for _ in range(16)))
                assert min(asked) > 0, "both have their share"
                (kept,) = [each for each in made.running.plane.upstreams.of("m") if each.deployment.base_url == other]
                (drained,) = [each for each in made.running.plane.upstreams.of("m") if each is not kept]
                living = drained.deployment
                drained.deployment = msgspec.structs.replace(living, weight=0)
                before = asked[1]
                await asyncio.gather(*(made.infer(bent()) for _ in range(8)))
                assert [await one_stream(made) for _ in range(2)] == [Code.OK] * 2 and asked[1] == before
                drained.deployment = living
                passing = held.pop_all()
        async with passing:  # its engine has died
            await asyncio.gather(*(made.infer(bent()) for _ in range(8)))
            assert [await one_stream(made) for _ in range(4)] == [Code.OK] * 4 and asked[1] == before
            await made.running.sink.settled(38)
            finals = made.running.sink.finals
    assert {each.outcome for each in finals} == {Outcome.COMPLETED} and len({each.admit.request_id for each in finals}) == 38
    assert {each.deployment_id for each in finals[26:]} == {kept.deployment.id}


async def test_call_without_counts_is_billed_by_the_request(tmp_path: Path) -> None:
    async with sim(tmp_path / "truth.jsonl") as url, port({"m": served(url)}) as made:
        assert list(read(await made.infer(text(counts=False)))) == ["text_output"]
        final = await made.running.sink.settled()
    assert final.used == Quantities() and billed(final) == Quantities(request=1)


async def test_what_server_and_models_say_needs_a_key_only_for_models(tmp_path: Path) -> None:
    named = MESSAGE("ModelMetadataRequest")(name="m")
    async with sim(tmp_path / "truth.jsonl") as url, port({"m": served(url)}) as made:
        empty = MESSAGE("ServerLiveRequest")()
        assert (await made.call("ServerLive", empty, "ServerLiveResponse", None)).live
        assert (await made.call("ServerReady", empty, "ServerReadyResponse", None)).ready
        assert (await made.call("ServerMetadata", empty, "ServerMetadataResponse", None)).name == "tollway"
        assert (await made.call("ModelReady", named, "ModelReadyResponse")).ready
        described = await made.call("ModelMetadata", named, "ModelMetadataResponse")
        assert (described.name, described.inputs[0].name) == ("m", "text_input")
        for key, code in ((None, Code.UNAUTHENTICATED), (UNKNOWN_KEY, Code.UNAUTHENTICATED), (NARROW_KEY, Code.NOT_FOUND)):
            for method in ("ModelReady", "ModelMetadata"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await made.call(method, named, "ModelReadyResponse", key)
                assert caught.value.code() is code
        check = made.channel.unary_unary(f"/{HEALTH}/Check")
        assert await check(b"") == b"\x08\x01"
        made.running.plane.draining = True
        assert await check(b"") == b"\x08\x02"
        made.running.plane.draining = False
        asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        async for told in reflection_pb2_grpc.ServerReflectionStub(made.channel).ServerReflectionInfo(iter([asked])):
            assert b"ModelStreamInfer" in told.file_descriptor_response.file_descriptor_proto[0]


def bent(**change: Any) -> Any:
    """A request of one tensor of two floats, changed."""
    request = MESSAGE("ModelInferRequest")(model_name=change.get("model", "m"))
    tensor = request.inputs.add(name="x", datatype=change.get("datatype", "FP32"), shape=change.get("shape", [2]))
    if "raw" in change:
        request.raw_input_contents.extend(change["raw"])
    else:
        tensor.contents.fp32_contents.extend(change.get("data", [1.0, 2.0]))
    for name in change.get("parameters", ()):
        request.parameters[name].int64_param = 1
    for name in change.get("of_tensor", ()):
        tensor.parameters[name].string_param = "r"
    return request


REFUSED: list[tuple[Any, str | None, grpc.StatusCode, str]] = [
    (bent(), UNKNOWN_KEY, Code.UNAUTHENTICATED, "invalid_api_key"),
    (bent(), None, Code.UNAUTHENTICATED, "invalid_api_key"),
    (bent(), NARROW_KEY, Code.NOT_FOUND, "model_not_found"),
    (bent(model="x"), KEY, Code.NOT_FOUND, "model_not_found"),
    (bent(model=""), KEY, Code.NOT_FOUND, "model_not_found"),
    (bent(shape=[3]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(shape=[-1]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(shape=[2**40, 2**40]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(shape=[1] * 17), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(datatype="OBJECT"), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(raw=[b"1234567"]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(raw=[b"", b""]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(raw=[b"\xff\xff\xff\xff1"], datatype="BYTES", shape=[1]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(parameters=["sequence_id"]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(of_tensor=["shared_memory_region"]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(parameters=[f"p{number}" for number in range(65)]), KEY, Code.INVALID_ARGUMENT, "invalid_value"),
    (bent(raw=[b"x" * 3_000_000], datatype="UINT8", shape=[3_000_000]), KEY, Code.RESOURCE_EXHAUSTED, ""),
]


async def test_150_bad_requests_and_metadata_are_refused_by_status_before_an_engine_hears_of_them() -> None:
    asked: list[bytes] = []

    async def infer(message: bytes, context: Any) -> bytes:
        asked.append(message)
        return b""

    bounds = GrpcBounds(message_bytes_max=2_000_000, metadata_bytes_max=8192)
    async with engine(infer) as url, port({"m": served(url)}, bounds) as made:
        for request, key, status, code in REFUSED:
            assert await made.refuse(request, key=key) == (status, code), request
        calling = made.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for message in (b"\xff", b"\x0b", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff", b"\x08\x01" * 5_000, b"\x2a\x02\x1a\xff"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calling(message, metadata=BEARER)
            assert caught.value.code() is Code.INVALID_ARGUMENT
        for method, metadata, expected in (
            ("ModelInfer", (*BEARER, ("x", "y" * 20_000)), (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.INTERNAL)),
            ("ModelInfer", (*BEARER, ("authorization", "Bearer other")), (Code.INVALID_ARGUMENT,)),
            ("RepositoryIndex", BEARER, (Code.UNIMPLEMENTED,)),
            ("SystemSharedMemoryRegister", BEARER, (Code.UNIMPLEMENTED,)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.channel.unary_unary(f"/{SERVICE}/{method}")(bent().SerializeToString(), metadata=metadata)
            assert caught.value.code() in expected, method
        packed = made.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await packed(bent().SerializeToString(), metadata=BEARER, compression=grpc.Compression.Gzip)
        assert caught.value.code() is Code.UNIMPLEMENTED
        refusals = made.running.plane.metrics.refusals
    assert asked == []
    assert (refusals["invalid_api_key"], refusals["model_not_found"], refusals["invalid_value"] > 10) == (2, 3, True)


FAULTS = [
    (Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, "invalid_request"),
    (Code.NOT_FOUND, Code.UNAVAILABLE, "upstream_error"),
    (Code.UNAVAILABLE, Code.UNAVAILABLE, "upstream_error"),
    (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, "upstream_rate_limited"),
    (Code.INTERNAL, Code.UNAVAILABLE, "upstream_error"),
    (None, Code.UNAVAILABLE, "upstream_invalid"),
]


async def test_failures_of_engines_are_told_by_status_and_bill_nothing() -> None:
    said: list[grpc.StatusCode | None] = []

    async def infer(message: bytes, context: Any) -> bytes:
        if said[-1] is not None:
            await context.abort(said[-1], "it does not")
        return b"\xff"

    async with engine(infer) as url, port({"m": served(url)}) as made:
        for number, (code, told, word) in enumerate(FAULTS, 1):
            said.append(code)
            assert await made.refuse(bent()) == (told, word)
            final = await made.running.sink.settled(number)
            assert (final.outcome, billed(final)) == (Outcome.UPSTREAM_ERROR, Quantities())
    async with port({"m": served("http://127.0.0.1:9")}) as made:
        assert await made.refuse(bent()) == (Code.UNAVAILABLE, "upstream_unreachable")


def part(tokens: int, final: bool = False) -> bytes:
    """A response of a stream that counts so many tokens."""
    answer = MESSAGE("ModelInferResponse")(model_name="own", id="7")
    answer.parameters["triton_final_response"].bool_param = final
    answer.outputs.add(name="num_output_tokens", datatype="UINT32", shape=[1]).contents.uint_contents.append(tokens)
    answer.outputs.add(name="num_input_tokens", datatype="UINT32", shape=[1]).contents.uint_contents.append(4)
    data: bytes = MESSAGE("ModelStreamInferResponse")(infer_response=answer).SerializeToString()
    return data


async def test_stream_that_an_engine_breaks_off_ends_with_an_error_and_bills_what_was_delivered() -> None:
    async def stream(messages: Any, context: Any) -> None:
        await context.write(part(2))
        await context.write(part(3))
        await context.abort(Code.INTERNAL, "it broke")

    async with engine(stream=stream) as url, port({"m": served(url)}) as made:
        calling = made.stream()
        await calling.write(bent().SerializeToString())
        assert [read(MESSAGE("ModelStreamInferResponse").FromString(await calling.read()).infer_response)["num_output_tokens"]] == [2]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers_of(calling)
        final = await made.running.sink.settled()
    assert caught.value.code() is Code.UNAVAILABLE
    assert (final.outcome, final.used) == (Outcome.UPSTREAM_ERROR, Quantities(4, 0, 5))


async def test_engine_that_dies_at_any_byte_of_a_stream_never_ends_it_well() -> None:
    """A relay between gateway and engine cuts the connection after a number of bytes of the engine's."""

    async def stream(messages: Any, context: Any) -> None:
        async for _ in messages:
            await context.write(part(2))
            await context.write(part(3))

    async with engine(stream=stream) as url:
        behind = int(url.rpartition(":")[2]) + 1
        limit = [1 << 30]
        passed = [0]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", behind)

            async def up() -> None:
                while data := await reader.read(1 << 16):
                    far_writer.write(data)

            going_up = asyncio.ensure_future(up())
            try:
                while data := await far_reader.read(1):
                    writer.write(data)
                    passed[0] += 1
                    if passed[0] >= limit[0]:
                        break
            except ConnectionError:
                pass
            going_up.cancel()
            far_writer.transport.abort()
            writer.transport.abort()

        relay = await asyncio.start_server(serve, "127.0.0.1", 0)
        at = relay.sockets[0].getsockname()[1]
        async with port({"m": served(f"http://127.0.0.1:{at - 1}")}) as made:

            async def ask() -> tuple[grpc.StatusCode, int]:
                passed[0] = 0
                calling = made.stream()
                await calling.write(bent().SerializeToString())
                await calling.done_writing()
                tokens = 0
                try:
                    for each in await answers_of(calling):
                        tokens += read(each)["num_output_tokens"]
                except grpc.aio.AioRpcError:
                    pass
                return await calling.code(), tokens

            assert await ask() == (Code.OK, 5)
            whole = passed[0]
            statuses = []
            for number, cut in enumerate(range(1, whole, max(1, whole // 24)), 2):
                limit[0] = cut
                statuses.append((await ask())[0])
                final = await made.running.sink.settled(number)
                assert final.outcome in (Outcome.UPSTREAM_ERROR, Outcome.COMPLETED)
                assert (statuses[-1] is Code.OK) == (final.outcome is Outcome.COMPLETED)
                await made.listener.close_channels()
        relay.close()
    assert statuses.count(Code.OK) <= 2, "only a cut behind the last trailer is none"


async def test_151_client_that_leaves_or_is_late_ends_the_call_of_its_engine() -> None:
    begun, left = asyncio.Event(), asyncio.Event()

    async def infer(message: bytes, context: Any) -> bytes:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE_SECONDS)
        except asyncio.CancelledError:
            left.set()
            raise
        return b""

    async with engine(infer) as url, port({"m": served(url)}) as made:
        calling = made.channel.unary_unary(f"/{SERVICE}/ModelInfer")(bent().SerializeToString(), metadata=BEARER)
        await asyncio.wait_for(begun.wait(), PATIENCE_SECONDS)
        calling.cancel()
        final = await made.running.sink.settled(1)
        assert (final.outcome, final.error) == (Outcome.CLIENT_CANCELLED, None)
        await asyncio.wait_for(left.wait(), PATIENCE_SECONDS)
        left.clear()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made.channel.unary_unary(f"/{SERVICE}/ModelInfer")(bent().SerializeToString(), metadata=BEARER, timeout=2.0)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        final = await made.running.sink.settled(2)
        assert final.outcome is Outcome.CLIENT_CANCELLED
        await asyncio.wait_for(left.wait(), PATIENCE_SECONDS)


async def test_152_revoked_key_and_idle_time_end_streams_and_a_drain_ends_the_rest() -> None:
    async def stream(messages: Any, context: Any) -> None:
        async for _ in messages:
            while True:
                await context.write(part(1))
                await asyncio.sleep(0.01)

    async with engine(stream=stream) as url, port({"m": served(url)}, GrpcBounds(idle_seconds=0.5)) as made:
        idle = made.stream()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers_of(idle)
        assert caught.value.code() is Code.DEADLINE_EXCEEDED
        calling = made.stream()
        await calling.write(bent().SerializeToString())
        await calling.read()
        version = made.running.plane.version + 1
        made.running.plane.apply(Change(version=version, kind="key", id="key_" + "0" * 32, entry=None))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answers_of(calling)
        assert caught.value.code() is Code.UNAUTHENTICATED
        final = await made.running.sink.settled()
        assert final.error == "invalid_api_key" and final.used.output > 0


async def test_153_call_without_a_key_or_a_message_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MESSAGE_SECONDS", 0.1)
    async with port({"m": served("http://127.0.0.1:9")}, GrpcBounds(calls_max=1)) as made:
        for metadata, code in (((), Code.UNAUTHENTICATED), (BEARER, Code.DEADLINE_EXCEEDED)):
            calling = made.channel.stream_unary(f"/{SERVICE}/ModelInfer")(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(calling, PATIENCE_SECONDS)
            assert caught.value.code() is code


async def test_153_limits_hold_and_calls_beyond_the_bound_are_refused() -> None:
    release = asyncio.Event()

    async def infer(message: bytes, context: Any) -> bytes:
        await release.wait()
        answer = MESSAGE("ModelInferResponse")(model_name="own")
        data: bytes = answer.SerializeToString()
        return data

    async with engine(infer) as url:
        async with port({"m": served(url)}, GrpcBounds(calls_max=2)) as made:
            calls = [asyncio.ensure_future(made.infer(bent())) for _ in range(2)]
            async with asyncio.timeout(PATIENCE_SECONDS):
                while made.listener.running < 2:
                    await asyncio.sleep(0.01)
            assert (await made.refuse(bent()))[0] is Code.RESOURCE_EXHAUSTED
            release.set()
            assert [(await each).model_name for each in calls] == ["m", "m"]
        async with port({"m": served(url)}, limits=Limits(requests_per_minute=1)) as made:
            await made.infer(bent())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made.infer(bent())
            assert caught.value.code() is Code.RESOURCE_EXHAUSTED
            assert int(dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]) > 0


async def test_drain_lets_calls_end_and_ends_streams_that_do_not() -> None:
    async def stream(messages: Any, context: Any) -> None:
        async for _ in messages:
            while True:
                await context.write(part(1))
                await asyncio.sleep(0.01)

    async with engine(stream=stream) as url:
        async with port({"m": served(url)}) as made:
            calling = made.stream()
            await calling.write(bent().SerializeToString())
            await calling.read()
            running = made.running
            sink = running.sink
        final = await sink.settled()
    assert final.error in ("draining", None) and final.used.output > 0


def reflecting(made: Port) -> Any:
    return made.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")()


async def test_calls_without_a_key_have_a_small_part_of_the_places_for_a_short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REFLECTION_SECONDS", PATIENCE_SECONDS)
    async with port({"m": served("http://127.0.0.1:9")}, GrpcBounds(calls_max=2 * server.KEYLESS_PART)) as made:
        open_calls = [reflecting(made) for _ in range(2)]
        for each in open_calls:
            await each.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
            assert SERVICE.encode() in await each.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made.call("ServerLive", MESSAGE("ServerLiveRequest")(), "ServerLiveResponse", None)
        assert caught.value.code() is Code.UNAVAILABLE
        named = MESSAGE("ModelReadyRequest")(name="m")
        assert (await made.call("ModelReady", named, "ModelReadyResponse")).ready
        monkeypatch.setattr(server, "REFLECTION_SECONDS", 0.05)
        open_calls.pop().cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (code := await reflecting(made).code()) is Code.UNAVAILABLE:
                pass
        assert code is Code.DEADLINE_EXCEEDED
        bad = reflecting(made)
        await bad.write(b"\xff")
        assert await bad.code() in (Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED)


async def test_calls_of_one_organization_have_a_bound_of_their_own() -> None:
    async with port({"m": served("http://127.0.0.1:9")}, GrpcBounds(organization_calls_max=1)) as made:
        idle = made.stream()

        async def wait_for(*, taken: bool) -> None:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while bool(made.listener._places) is not taken:
                    await asyncio.sleep(0.01)

        await wait_for(taken=True)
        assert await made.refuse(bent()) == (Code.RESOURCE_EXHAUSTED, "rate_limit_exceeded")
        await idle.done_writing()
        assert await idle.code() is Code.OK
        await wait_for(taken=False)  # a client hears of the end before the place is given back
        assert await made.refuse(bent()) == (Code.UNAVAILABLE, "upstream_unreachable")
        await wait_for(taken=False)


async def test_answer_that_is_not_read_is_given_up_and_counts_as_long_as_it_is_held() -> None:
    held: list[int] = []
    told: list[str] = []

    class Context:
        async def write(self, answer: bytes) -> None:
            held.append(made.running.plane.buffers.total)
            await asyncio.Event().wait()

        async def abort(self, code: grpc.StatusCode, words: str) -> None:
            told.append(words)

    async def infer(message: bytes, context: Any) -> bytes:
        data: bytes = MESSAGE("ModelInferResponse")(model_name="m", raw_output_contents=[b"x" * 2_000_000]).SerializeToString()
        return data

    async with (
        engine(infer) as url,
        port({"m": served(url)}, GrpcBounds(write_stall_seconds=0.01), buffers=BufferBounds(total_bytes_max=1_000_000)) as made,
    ):
        context: Any = Context()
        await made.listener._write(b"x" * 300_000, context)
        assert await made.refuse(bent()) == (Code.UNAVAILABLE, "overloaded")
        final = await made.running.sink.settled()
        assert billed(final) == Quantities()
        assert (held, made.running.plane.buffers.total, told) == ([300_000], 0, ["The client does not read."])


async def test_exit_waits_for_requests_and_for_nothing_else() -> None:
    async with port({"m": served("http://127.0.0.1:9")}, grace_seconds=10 * PATIENCE_SECONDS) as made:
        stuck = reflecting(made)
        await stuck.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
        await stuck.read()


def test_whole_answer_has_the_time_in_all_and_a_stream_that_for_its_first() -> None:
    faults: dict[bool, list[str]] = {False: [], True: []}
    for is_stream, found in faults.items():
        call: Any = InferenceCall.__new__(InferenceCall)
        call._plane = SimpleNamespace(bounds=RelayBounds())
        call.request = SimpleNamespace(started=0.0, head=SimpleNamespace(timeout_seconds=INFINITE))
        call._driver = SimpleNamespace(interrupt=lambda fault, found=found: found.append(fault.kind.code))
        call._started = call._fed_at = 0.0
        call._sent, call._is_stream = 0, is_stream
        call.tick(RelayBounds().first_token_seconds + 1)
        call.tick(RelayBounds().total_seconds + 1)
    assert (len(faults[False]), len(faults[True])) == (1, 2)


async def test_time_that_is_none_is_refused_before_a_request_is_admitted() -> None:
    async with port({"m": served("http://127.0.0.1:9")}) as made:
        calling = made.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calling(bent().SerializeToString(), metadata=(*BEARER, ("x-request-timeout", "soon")))
        assert caught.value.code() is Code.INVALID_ARGUMENT
        assert made.running.sink.finals == []


async def test_deployments_without_grpc_are_neither_waited_for_nor_asked(tmp_path: Path) -> None:
    beyond = "http://127.0.0.1:65535"
    async with sim(tmp_path / "truth.jsonl") as url:
        several = Served([beyond, beyond, url], engine=Engine.KSERVE, upstream_model="sim-echo")
        async with port({"m": served(beyond), "n": several}) as made:
            (upstream,) = made.running.plane.upstreams.of("m")
            upstream.limit = 0
            assert await made.refuse(bent()) == (Code.UNAVAILABLE, "no_upstream")
            assert made.running.plane.metrics.queue_results == {}
            named = MESSAGE("ModelMetadataRequest")(name="n")
            assert (await made.call("ModelMetadata", named, "ModelMetadataResponse")).name == "n"


async def test_sampled_request_is_traced_with_its_attempts() -> None:
    told: list[str] = []

    async def infer(message: bytes, context: Any) -> bytes:
        told.append(dict(context.invocation_metadata())["traceparent"])
        data: bytes = MESSAGE("ModelInferResponse")(model_name="m").SerializeToString()
        return data

    spans: list[Any] = []
    async with engine(infer) as url, port({"m": served(url)}) as made:
        made.running.plane.tracer = Tracer(Sampler(TraceBounds(sample_ratio=0.0)), spans.extend)
        trace = "0af7651916cd43dd8448eb211c80319c"
        calling = made.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        await calling(bent().SerializeToString(), metadata=(*BEARER, ("traceparent", f"00-{trace}-b7ad6b7169203331-01")))
        await calling(bent().SerializeToString(), metadata=BEARER)
    assert [(each.trace_id, each.name) for each in spans] == [(trace, "infer m"), (trace, "infer sim-echo")]
    assert spans[0].attributes["http.route"] == "/v2/models/{model}/infer"
    assert told[0] == f"00-{trace}-{spans[1].span_id}-01", "an engine gets the span of the attempt"
