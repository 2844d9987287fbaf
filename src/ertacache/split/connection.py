"""HTTP to a server that is not trusted: a deadline over all of it, and no byte more than was agreed.

The standard library's, whose timeouts are of single reads: a peer that sends a byte a second would never be late.
"""

import contextlib
import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ertacache.errors import AnswerInvalid, DeadlineExceeded, InvalidArgument
from ertacache.profile.sealed import short


class Lost(Exception):
    """The connection failed; the same request may be tried again."""


@dataclass(frozen=True)
class Answer:
    """Status, header fields in small letters, and body."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Connection:
    """To one server, kept open from request to request; for one thread.

    Args:
        url: http or https, host, port, and perhaps a folder.
        deadline: of `time.monotonic`, for everything. timeout: seconds without a byte until the connection is lost.

    Raises:
        InvalidArgument: another kind of URL.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None, deadline: float, timeout: float) -> None:
        self.url, self._folder, host, port, secure = url, *parsed(url)
        self.deadline, self._timeout = deadline, timeout
        self._http = _Http(host, port, tls or ssl.create_default_context() if secure else None, self)

    def left(self) -> float:
        """Seconds until the deadline.

        Raises:
            DeadlineExceeded: none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{self.url} did not finish its part in time; give a longer deadline")
        return left

    def quiet(self) -> float:
        """Seconds that the next read may wait."""
        return min(self._timeout, self.left())

    def request(self, method: str, path: str, body: bytes, fields: Mapping[str, str], cap: int) -> Answer:
        """One exchange.

        Raises:
            Lost: no connection, or it ended early. DeadlineExceeded: as it says.
            AnswerInvalid: no HTTP, compressed, or a body of more than `cap` bytes.
        """
        try:
            if self._http.sock is None:
                self._http.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
                self._http.request(method, self._folder + path, body, {**fields, "Accept-Encoding": "identity"})
            response = self._http.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, self._read(response, cap))
        except TimeoutError as error:
            self.close()
            self.left()
            raise Lost(f"no byte for {self._timeout:g} s") from error
        except (OSError, http.client.IncompleteRead) as error:
            self.close()
            raise Lost(str(error) or type(error).__name__) from error
        except (http.client.HTTPException, ValueError) as error:
            self.close()
            raise AnswerInvalid(f"{self.url} speaks no HTTP ({short(str(error))}); check the address") from error
        except BaseException:
            self.close()
            raise

    def _read(self, response: http.client.HTTPResponse, cap: int) -> bytes:
        coding = response.getheader("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise AnswerInvalid(f"{self.url} sent a body in the encoding {short(coding)}, which was not asked for")
        length, data = response.length, bytearray()
        if length is not None and length > cap:
            raise AnswerInvalid(f"{self.url} sent {length} bytes where {cap} at most belong; raise the client's cap")
        while part := response.read1(min(2**16, cap + 1)):
            data += part
            if len(data) > cap:
                raise AnswerInvalid(f"{self.url} sent more than {cap} bytes; raise the client's cap")
        if length is not None and len(data) < length:
            raise Lost(f"it ended after {len(data)} of {length} bytes")
        response.close()  # the response; the connection stays
        return bytes(data)

    def close(self) -> None:
        """A later request opens it anew."""
        self._http.close()


class _Http(http.client.HTTPConnection):
    """Reads and writes within the limits of its owner."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, owner: Connection) -> None:
        super().__init__(host, port)
        self.sock: Any = None
        self._tls, self._owner = tls, owner

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self._owner.quiet())
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(self._owner.quiet())
            made = plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        self.sock = _Timed(made, self._owner)


class _Timed:
    """As much of a socket as `http.client` uses."""

    def __init__(self, inner: socket.socket, owner: Connection) -> None:
        self._inner, self._owner = inner, owner

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(self._owner.left())  # of all the data
        self._inner.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._inner, self._owner))

    def close(self) -> None:
        self._inner.close()


class _Reader(io.RawIOBase):
    """The reading end, which does not close the socket."""

    def __init__(self, inner: socket.socket, owner: Connection) -> None:
        self._inner, self._owner = inner, owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._inner.settimeout(self._owner.quiet())
        return self._inner.recv_into(buffer)


def parsed(url: str) -> tuple[str, str, int, bool]:
    """Folder, host, port, and whether it is https.

    Raises:
        InvalidArgument: another kind of URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgument(f"url is {url!r} ({error}); give one such as https://server:8000") from error
    plain = not (parts.query or parts.fragment or parts.username) and re.fullmatch(r"[!-~]+", url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise InvalidArgument(f"url is {url!r}; give one such as https://server:8000, without a query")
    secure = parts.scheme == "https"
    return parts.path.rstrip("/"), parts.hostname, port or (443 if secure else 80), secure
