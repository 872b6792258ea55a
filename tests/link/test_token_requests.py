"""Requests for tokens on their way from a gateway to control: what they leave of its share for the gateway's own calls."""

import asyncio

from tollway.control.api.places import NODE_REQUESTS_MAX
from tollway.link.token_requests import CONCURRENT_MAX, CONNECTIONS_MAX, TokenRequests


async def test_requests_for_tokens_leave_the_gateway_most_of_its_share_at_control() -> None:
    arrived, released = asyncio.Semaphore(0), asyncio.Event()
    running = most = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        writers.append(writer)
        while (await reader.readline()).startswith(b"POST"):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            running += 1
            most = max(most, running)
            arrived.release()
            await released.wait()
            running -= 1
            body = b'{"status":200,"body":"{}"}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    requests = TokenRequests(control_link_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", node_key="tw_node_x")
    try:
        asked = [asyncio.create_task(requests.ask(b"{}", b"application/json", None)) for _ in range(CONCURRENT_MAX)]
        for _ in range(CONNECTIONS_MAX):
            await arrived.acquire()
        assert (await requests.ask(b"{}", b"application/json", None))[0] == 503
        released.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * CONCURRENT_MAX
    finally:
        await requests.close()
        server.close()
        for writer in writers:
            writer.close()
            await writer.wait_closed()
    assert most == CONNECTIONS_MAX
    own, processes = 4, 2  # connections of a gateway's own calls, while one process takes over from the other
    assert processes * (own + CONNECTIONS_MAX) <= NODE_REQUESTS_MAX
