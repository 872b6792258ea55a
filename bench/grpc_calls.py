"""CPU time that a call by gRPC costs a gateway, beside a relay of nothing but grpc.aio: `python -m bench.grpc_calls`.

Three processes (an engine that answers at once, the bare relay, the gateway with its phases and a sink in memory) and this one, the client.
Rounds are interleaved, and each process's own CPU time is read from /proc, so a busy machine makes the figures larger for both alike.
"""

import asyncio
import os
import subprocess
import sys
from statistics import median
from typing import Any

import grpc

from tollway.gateway.open_inference.server import SERVICE
from tollway.simulator.open_inference_grpc import load_messages

CALLS, ROUNDS, CONCURRENCY = 1_000, 5, 8
METHOD = f"/{SERVICE}/ModelInfer"
TICKS = os.sysconf("SC_CLK_TCK")


def _make_message() -> bytes:
    message = load_messages()("ModelInferRequest")(model_name="m")
    message.inputs.add(name="x", datatype="FP32", shape=[256])
    message.raw_input_contents.append(b"\0" * 1_024)
    data: bytes = message.SerializeToString()
    return data


async def _serve(answer: Any) -> None:
    server = grpc.aio.server()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def _run_engine() -> None:
    said: bytes = load_messages()("ModelInferResponse")(model_name="m", raw_output_contents=[b"\0" * 1_024]).SerializeToString()

    async def answer(message: bytes, context: object) -> bytes:
        return said

    await _serve(answer)


async def _run_bare(engine: int) -> None:
    call = grpc.aio.insecure_channel(f"127.0.0.1:{engine}").unary_unary(METHOD)

    async def answer(message: bytes, context: object) -> bytes:
        answered: bytes = await call(message)
        return answered

    await _serve(answer)


async def _run_gateway(engine: int) -> None:
    from tests.gateway.harness import Served, gateway
    from tollway.domain.catalog import Engine
    from tollway.gateway.open_inference.bounds import GrpcBounds
    from tollway.gateway.open_inference.server import Listener

    served = Served([f"http://127.0.0.1:{engine - 1}"], engine=Engine.KSERVE)
    async with gateway({"m": served}) as running:
        listener = Listener(running.plane, GrpcBounds(), 0)
        await listener.serve("127.0.0.1:0", asyncio.Event(), grace_seconds=1, ready=lambda port: print(port, flush=True))


def _read_cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _launch(*role: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-m", "bench.grpc_calls", *role], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


async def _call(port: int, count: int) -> None:
    from tests.gateway.harness import KEY

    message = _make_message()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)

        async def work() -> None:
            for _ in range(count // CONCURRENCY):
                await call(message, metadata=(("authorization", f"Bearer {KEY}"),))

        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))


def main() -> None:
    """Print the median microseconds of CPU per call of both, and the range."""
    engine, port = _launch("engine")
    processes = {"bare": _launch("bare", str(port)), "gateway": _launch("gateway", str(port))}
    spent: dict[str, list[float]] = {name: [] for name in processes}
    try:
        for _, at in processes.values():
            asyncio.run(_call(at, CALLS // 5))
        for _ in range(ROUNDS):
            for name, (process, at) in processes.items():
                before = _read_cpu_seconds(process.pid)
                asyncio.run(_call(at, CALLS))
                spent[name].append((_read_cpu_seconds(process.pid) - before) / CALLS * 1e6)
    finally:
        for each in (engine, *(process for process, _ in processes.values())):
            each.terminate()
            each.wait()
    for name, values in spent.items():
        print(f"{name}: {median(values):.0f} µs of CPU per call ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine"]:
            asyncio.run(_run_engine())
        case ["bare", engine_port]:
            asyncio.run(_run_bare(int(engine_port)))
        case ["gateway", engine_port]:
            asyncio.run(_run_gateway(int(engine_port)))
        case _:
            main()
