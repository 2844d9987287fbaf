"""The other process of a split run: `python split_peer.py PORT` makes first parts for whoever sends it solvers."""

import json
import socket
import sys

from ertacache.split import first_part
from split_solvers import call, pipeline


def send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(len(data).to_bytes(8, "little") + data)


def receive(connection: socket.socket) -> bytes:
    """One message; empty where the other side has closed."""
    with connection.makefile("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def main() -> None:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        while request := receive(connection):
            name, until = json.loads(request)
            send(connection, first_part(pipeline(name), call(), until=until).to_bytes())


if __name__ == "__main__":
    main()
