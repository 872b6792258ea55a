"""Mail: one port, a mail server behind it or a directory of files.

Mail is sent after the commit of what it is about, and nothing depends on its arrival: what could not be sent is answered as such, and can
be asked for again.
"""

import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Protocol

STEP_SECONDS_MAX = 10.0
"""For each step of the conversation with a mail server."""

SEND_SECONDS_MAX = 30.0
"""For the whole conversation, which a request waits for: a server that answers byte by byte keeps within the bound of each step."""


class MailFailure(Exception):
    """A message that no server took. The text says why, without the message."""


class MessageRefused(MailFailure):
    """A message that the server did not take for its recipient or its content: it may take others."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to one person. `text` can hold a secret: it is never logged."""

    recipient: str
    subject: str
    text: str = field(repr=False)


class Mail(Protocol):
    """A way to send messages."""

    def send(self, message: Message) -> None:
        """Hand a message over. Blocks for a bounded time. Raises MailFailure, MessageRefused."""


@dataclass(frozen=True, slots=True)
class MailDirectory:
    """A directory in which messages are written, for installations without a mail server. `new_name` returns names that were never used."""

    directory: Path
    new_name: Callable[[], str]

    def send(self, message: Message) -> None:
        """Write a message as a file that only the owner can read. Raises MailFailure."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.directory / f"{self.new_name()}.eml"
            path.touch(mode=0o600)
            path.write_bytes(bytes(_compose(message, "tollway@localhost")))
        except OSError as error:
            raise MailFailure(f"cannot write to the mail directory: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """A server that takes messages by SMTP. `security`: "starttls" and "tls" check its certificate; "none" is for a server on the same
    host. `username`: None sends without authentication."""

    host: str
    port: int
    sender: str
    security: str = "starttls"
    username: str | None = None
    password: str = field(default="", repr=False)

    def send(self, message: Message) -> None:
        """Hand a message to the server. Raises MailFailure, MessageRefused."""
        try:
            with self._new_connection() as connection, _ended_after(SEND_SECONDS_MAX, connection):
                connection.connect(self.host, self.port)
                if self.security == "starttls":
                    connection.starttls(context=ssl.create_default_context())
                if self.username is not None:
                    connection.login(self.username, self.password)
                connection.send_message(_compose(message, self.sender))
        except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError) as error:
            raise MessageRefused(f"the mail server refused the message: {type(error).__name__}") from error
        except (OSError, smtplib.SMTPException) as error:
            raise MailFailure(f"the mail server did not take the message: {type(error).__name__}") from error

    def _new_connection(self) -> smtplib.SMTP:
        """Return a connection that is not open yet: its deadline is to hold for the server's greeting as well."""
        connection: smtplib.SMTP
        if self.security == "tls":
            connection = smtplib.SMTP_SSL(timeout=STEP_SECONDS_MAX, context=ssl.create_default_context())
        else:
            connection = smtplib.SMTP(timeout=STEP_SECONDS_MAX)
        connection._host = self.host  # type: ignore[attr-defined]  # whose certificate is expected; else only a constructor that connects sets it
        return connection


@contextmanager
def _ended_after(seconds: float, connection: smtplib.SMTP) -> Iterator[None]:
    """Cut the connection when so much time has passed within the block; whatever waits for it then fails."""

    def cut() -> None:
        if connection.sock is not None:
            with suppress(OSError):  # the other side may have closed it by then
                connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _compose(message: Message, sender: str) -> EmailMessage:
    composed = EmailMessage()
    composed["From"], composed["To"], composed["Subject"] = sender, message.recipient, message.subject
    composed.set_content(message.text, cte="8bit")  # as it is: a token that is folded could not be copied from a file
    return composed
