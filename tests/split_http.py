"""What stands between a device and a server of split runs, or in the server's place; and that server as a process.

`python split_http.py NAME...` serves the pipelines of those solvers, prints their addresses, and ends with its input.
"""

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ertacache.split import SplitClient
from pipelines import PROMPTS

STEPS, KEY = 4, "secret"
BEARER = {"Authorization": f"Bearer {KEY}"}
JOB = "0123456789abcdef01234567"
ACCEPTED = json.dumps({"id": JOB, "status": "queued", "step": 0}).encode()


def call(**more: Any) -> dict[str, Any]:
    """Of `stable_diffusion()`, anew each time, since it uses its generator up."""
    given = {"prompt": PROMPTS[0], "num_inference_steps": STEPS, "guidance_scale": 4.0, "height": 32, "width": 32}
    return {**given, "generator": torch.Generator().manual_seed(3), "output_type": "pt", **more}


def client(url: str, **more: Any) -> SplitClient:
    """One that tries once."""
    return SplitClient(url, **{"key": KEY, "deadline": 60.0, "retries": 0, **more})


def failed(url: str, small: Any, kind: type[Exception], message: str, **more: Any) -> None:
    """A run with a switch at 2 ends with this error."""
    with pytest.raises(kind, match=message):
        client(url, **more).generate(small, call(), switch=2)


def answer(body: bytes = b"", status: str = "200 OK", **fields: object) -> bytes:
    """A whole answer; `content_length=None` leaves that field out."""
    known = {"content_length": len(body), **fields}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in known.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


def read_request(file: Any) -> tuple[str, bytes] | None:
    """Method and path, and the body; None where the other side has closed."""
    first = file.readline().decode()
    if not first:
        return None
    length = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    return " ".join(first.split()[:2]), file.read(length)


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """An address where each connection is handed to `serve` in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads: list[threading.Thread] = []
        connections: list[socket.socket] = []

        def one(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                serve(connection)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(listener.accept()[0])
                    threads.append(threading.Thread(target=one, args=(connections[-1],)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            acceptor.join()
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def peer(respond: Callable[[str, socket.socket], bytes | None], seen: list[str] | None = None) -> Iterator[str]:
    """A server that answers what `respond` returns for "METHOD /path", and nothing more after None."""

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as file:
            while (request := read_request(file)) is not None:
                if seen is not None:
                    seen.append(request[0].partition("?")[0])
                said = respond(request[0], connection)
                if said is None:
                    return
                connection.sendall(said)

    with listening(serve) as url:
        yield url


def once_asked(content: bytes | Callable[[socket.socket], bytes | None]) -> Any:
    """`respond` of a server that takes the run and answers the question for it with `content`."""

    def respond(request: str, connection: socket.socket) -> bytes | None:
        if request.startswith("POST"):
            return answer(ACCEPTED, "202 Accepted")
        if request.startswith("DELETE"):
            return answer(b"{}")
        return content(connection) if callable(content) else content

    return respond


@contextlib.contextmanager
def relay(target: str, *, delay: float = 0.0, cut: list[int] | None = None) -> Iterator[str]:
    """A way to a server that takes `delay` seconds each way; a connection ends after so many bytes of answers.

    Args:
        cut: for each connection in turn; those after the last are whole.
    """
    host, port = target.removeprefix("http://").split(":")
    left = list(cut or ())

    def pump(source: socket.socket, sink: socket.socket, most: float) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                time.sleep(delay)
                sink.sendall(data[: int(min(most, len(data)))])
                most -= len(data)
                if most <= 0:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(connection: socket.socket) -> None:
        most = left.pop(0) if left else float("inf")
        with socket.create_connection((host, int(port))) as there:
            up = threading.Thread(target=pump, args=(connection, there, float("inf")))
            up.start()
            pump(there, connection, most)
            up.join()

    with listening(serve) as url:
        yield url


def main() -> None:
    from ertacache.serving.split_app import make_split_app
    from ertacache.serving.split_service import SplitService
    from served import running
    from split_solvers import pipeline

    with contextlib.ExitStack() as stack:
        urls: dict[str, str] = {}
        for name in sys.argv[1:]:
            pipe = pipeline(name.removeprefix("slow "))
            if name.startswith("slow "):
                denoiser = getattr(pipe, "unet", None) or pipe.transformer
                denoiser.register_forward_pre_hook(lambda *_: time.sleep(0.3))
            service = SplitService(name, [pipe])
            urls[name] = stack.enter_context(running(service, app=make_split_app(service)))
        sys.stdout.write(json.dumps(urls) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
