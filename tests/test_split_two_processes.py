"""The server of split runs as a process of its own: every solver bit for bit, a slow way, and a death in the middle."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.errors import ServerUnreachable
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.split import SplitClient
from split_http import relay
from split_solvers import SOLVERS, call, pipeline

SLOW = "slow DPM-Solver++ 2M"
#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]


class Server(subprocess.Popen[str]):
    """The addresses of its pipelines, by solver."""

    def __init__(self, *names: str) -> None:
        script = Path(__file__).with_name("split_http.py")
        super().__init__([sys.executable, str(script), *names], stdin=-1, stdout=-1, text=True)
        assert self.stdout is not None
        self.urls: dict[str, str] = json.loads(self.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SOLVERS, SLOW) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_over_a_socket(server: Server, name: str) -> None:
    whole = pipeline(name)(**call(), output_type="pt")[0]
    given: dict[str, Any] = call(output_type="pt")
    with relay(server.urls[name], delay=0.02) as url:
        assert torch.equal(SplitClient(url).generate(pipeline(name), given, switch=SOLVERS[name][2])[0], whole)


def test_a_server_that_is_killed_in_the_middle(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    small = pipeline(SLOW.removeprefix("slow "))
    whole = small(**call(), output_type="pt")[0]

    def kill(where: str, step: int, steps: int) -> None:
        told.append(where)
        if (where, step) == ("server", 1):
            server.kill()
            server.wait()

    told: list[str] = []
    client = SplitClient(server.urls[SLOW], retries=1, deadline=60)
    with pytest.raises(ServerUnreachable, match=r"failed 2 times, at last since .*refused; check the server, or"):
        client.generate(small, call(), switch=5, progress=kill)
    assert server.returncode == -9 and "device" not in told
    images = client.generate(small, call(output_type="pt"), switch=5, on_failure="local", progress=kill)[0]
    assert torch.equal(images, whole)
    assert caplog.messages[-1].startswith(f"all steps are made here, since {server.urls[SLOW]} failed 2 times")


def test_the_command_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """As a user starts it: key, TLS, a whole example, and the end at Ctrl-C."""
    pem, key = tmp_path / "server.pem", tmp_path / "server.key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(pem)]
    subprocess.run([*made, *names], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = str(place.getsockname()[1])
    # A shell starts its background jobs, and theirs, with the signal ignored.
    run = "import signal; signal.signal(2, signal.default_int_handler); from ertacache.cli.app import main; main()"
    words = [sys.executable, "-c", run, "split-server", "tiny-flux"]
    files = ["--port", port, "--api-key", "key", "--ssl-certfile", str(pem), "--ssl-keyfile", str(key)]
    url, tls = f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=str(pem))
    small = load_pipeline("tiny-flux")
    given = call_arguments("tiny-flux", {"num_inference_steps": 4}) | {"prompt": "a red ring", "output_type": "pt"}
    whole = small(**given, generator=torch.Generator().manual_seed(0))[0]
    with subprocess.Popen([*words, *files], stderr=-1, text=True) as process:
        assert process.stderr is not None
        try:
            while "warm" not in (line := process.stderr.readline()):
                assert line, "it ended"
            generator = torch.Generator().manual_seed(0)
            client = SplitClient(url, "key", tls=tls)
            assert torch.equal(client.generate(small, {**given, "generator": generator}, switch=2)[0], whole)
            with pytest.raises(ServerUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
                SplitClient(url, "key", retries=0).generate(small, {**given, "generator": generator}, switch=2)
        finally:
            process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 130
