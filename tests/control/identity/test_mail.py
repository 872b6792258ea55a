"""Mail by SMTP: a message arrives as it was written, and a server that is slow or refuses costs a bounded time and says nothing of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.policy import default

import pytest

from tollway.control.identity import mail
from tollway.control.identity.mail import MailFailure, MailServer, Message

MESSAGE = Message("ada@example.com", "Invitation", "It asks for this token: tw_invite_secret\n")


class Server:
    """A mail server of RFC 5321 that keeps what it was sent. `refuses`: verb that it answers with 550. `drips`: it answers byte by byte."""

    def __init__(self, refuses: bytes = b"", *, drips: bool = False) -> None:
        self.refuses, self.drips = refuses, drips
        self.received: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[MailServer]:
        """Listen on a free port, for the length of the block."""
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            port: int = server.sockets[0].getsockname()[1]
            yield MailServer(host="127.0.0.1", port=port, sender="tollway@example.com", security="none")
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._say(writer, b"220 here")
            while line := await reader.readline():
                verb = line.split()[0].upper()
                if verb == self.refuses:
                    await self._say(writer, b"550 no")
                elif verb == b"DATA":
                    await self._say(writer, b"354 go on")
                    self.received.append((await reader.readuntil(b"\r\n.\r\n"))[:-3])
                    await self._say(writer, b"250 taken")
                else:
                    await self._say(writer, b"221 bye" if verb == b"QUIT" else b"250 yes")
        writer.close()

    async def _say(self, writer: asyncio.StreamWriter, words: bytes) -> None:
        writer.write(words if self.drips else words + b"\r\n")
        while self.drips:
            await asyncio.sleep(0.01)
            writer.write(b".")
            await writer.drain()


async def test_message_arrives_as_it_was_written() -> None:
    server = Server()
    async with server.listening() as sender:
        await asyncio.to_thread(sender.send, MESSAGE)
    received = message_from_bytes(server.received[0], policy=default)
    assert (received["To"], received["From"], received["Subject"]) == ("ada@example.com", "tollway@example.com", "Invitation")
    assert received.get_content().replace("\r\n", "\n") == MESSAGE.text


@pytest.mark.parametrize("verb", [b"MAIL", b"RCPT", b"DATA"])
async def test_refusal_is_a_failure_that_repeats_nothing_of_the_message(verb: bytes) -> None:
    async with Server(verb).listening() as sender:
        with pytest.raises(MailFailure) as failure:
            await asyncio.to_thread(sender.send, MESSAGE)
    assert "tw_invite" not in str(failure.value) and "ada" not in str(failure.value)


async def test_server_that_answers_byte_by_byte_is_cut_off_at_the_deadline_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "SEND_SECONDS_MAX", 0.3)
    async with Server(drips=True).listening() as sender:
        with pytest.raises(MailFailure):
            await asyncio.to_thread(sender.send, MESSAGE)


async def test_no_server_is_a_failure() -> None:
    async with Server().listening() as sender:
        pass
    with pytest.raises(MailFailure):
        await asyncio.to_thread(sender.send, MESSAGE)
