"""Seeds and a mutator for what arrives on a connection: requests as clients send them, and every way they are bent that ever broke a
server or a proxy (http-garden's trophies, RFC 9112's own warnings)."""

import random
from collections.abc import Iterator, Sequence

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
GET = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
LENGTH = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"

SEEDS = [
    GET,
    GET + GET,
    b"\r\n" + GET,
    b"HEAD /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + GET,
    b"GET /livez HTTP/1.0\r\n\r\n",
    b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/livez HTTP/1.1\r\nHost: a\r\n\r\n",
    LENGTH,
    LENGTH + GET,
    CHUNKED,
    CHUNKED + GET,
    POST + b"Transfer-Encoding: chunked\r\n\r\n1;a=b\r\n{\r\n1\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n" + GET,
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}" + GET,
    POST + b"Authorization: Bearer x\r\nContent-Length: 2\r\n\r\n{}" + GET,
    b"GET /livez HTTP/1.1\r\nHost: [::1]:80\r\nCookie: a=b\r\nAccept: */*\r\nX-Long: " + b"y" * 300 + b"\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + GET,
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef" + GET,
    POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET,
    b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GET,
    b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + GET,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]

FRAGMENTS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x0c",
    b"\x85",
    b"\xa0",
    b"\xff",
    b":",
    b";",
    b",",
    b"_",
    b"-1",
    b"+1",
    b"0x1",
    b"0",
    b"00000000000000000000",
    b"ffffffffffffffff",
    b"10000000000000000",
    b"18446744073709551616",
    b"\r\n ",
    b"\n ",
    b"\r\r\n",
    b"\n\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Content-Length: 1\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 1, 1\r\n",
    b"Content_Length: 1\r\n",
    b"Content-Length:\r\n",
    b"Host: b\r\n",
    b"Host:\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: x\r\n",
    b"0\r\n\r\n",
    b"1\r\nx\r\n",
    b"1;\r\nx\r\n",
    b"1 \r\nx\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"GET ",
    GET,
    b'"',
    b"%2e%2e",
    b"//",
    b"\\",
    b"#",
    b"?",
    b"Authorization: Bearer x\r\n",
    b"X-Api-Key: x\r\n",
    b"X: " + b"z" * 5000 + b"\r\n",
]


def mutate(dice: random.Random, data: bytes, fragments: Sequence[bytes] = FRAGMENTS, seeds: Sequence[bytes] = SEEDS) -> bytes:
    """`data`, bent in one to four places: by a piece of `fragments`, by one of `seeds` behind it, by bytes."""
    for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 4))):
        at = dice.randrange(len(data) + 1)
        until = min(len(data), at + dice.choice((0, 1, 1, 2, 4, 16, 64)))
        match dice.randrange(8):
            case 0:
                data = data[:at] + dice.choice(fragments) + data[at:]
            case 1:
                data = data[:at] + dice.choice(fragments) + data[until:]
            case 2:
                data = data[:at] + data[until:]
            case 3:
                data = data[:at] + data[at:until] * 2 + data[until:]
            case 4:
                data = data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
            case 5:
                data = data[:at]
            case 6:
                lines = data.split(b"\r\n")
                line = dice.randrange(len(lines))
                lines.insert(dice.randrange(len(lines) + 1), lines[line])
                data = b"\r\n".join(lines)
            case 7:
                data = data + dice.choice(seeds)
    return data


def inputs(seed: int, count: int) -> Iterator[bytes]:
    """The seeds, and then so many bent ones; the same for the same `seed`."""
    dice = random.Random(seed)
    yield from SEEDS
    for _ in range(count):
        yield mutate(dice, dice.choice(SEEDS))
