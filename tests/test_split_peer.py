"""What a client does with what it is sent: it believes nothing, never hangs, and says what happened."""

import gzip
import json
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ertacache.errors import (
    AnswerInvalid,
    DeadlineExceeded,
    InvalidArgument,
    ServerRefused,
    ServerUnreachable,
    UnsupportedPipeline,
)
from ertacache.split import Handover, SplitClient, first_part
from small_images import pixart_sigma
from small_token_images import flux_img2img
from split_http import ACCEPTED, JOB, answer, call, client, failed, once_asked, peer

#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def made(small: Any) -> Handover:
    return first_part(small, call(output_type="latent"), until=2)


def test_the_stand_in_is_believed_where_it_is_right(small: Any, made: Handover, whole: Tensor) -> None:
    seen: list[str] = []
    with peer(once_asked(answer(made.to_bytes())), seen) as url:
        assert torch.equal(client(url).generate(small, call(), switch=2)[0], whole)
    assert seen == ["POST /v1/split", f"GET /v1/split/{JOB}"]


def changed(made: Handover, **changes: Any) -> bytes:
    call = {**made.call, **changes.pop("call", {})}
    return replace(made, call=call, **changes).to_bytes()


WRONG: dict[str, tuple[Any, str]] = {
    "no handover": (lambda m: b"hello", "handed over what cannot be used: answer: file: has 5 bytes"),
    "a page": (lambda m: b"<html>" * 99, "handed over what cannot be used: answer: header: claims"),
    "pickled": (lambda m: b"\x80\x04\x95" * 99, "handed over what cannot be used: answer: header: claims"),
    "damaged": (lambda m: m.to_bytes()[:-1] + b"\xff", "handed over what cannot be used: answer: checksum: is"),
    "NaN": (lambda m: changed(m, latent=m.latent * torch.nan), "cannot be used: answer: tensor 'latent': holds NaN"),
    "step": (lambda m: changed(m, step=3), "handed over another run: step is 3 where 2 was asked for; check that both"),
    "guidance": (lambda m: changed(m, call={"guidance_scale": 9.0}), "run: guidance_scale is 9.0 where 4.0 was asked"),
    "steps": (lambda m: changed(m, call={"num_inference_steps": 9}), "run: num_inference_steps is 9 where 4 was asked"),
    "grid": (
        lambda m: changed(m, timesteps=torch.tensor([900, 700, 500, 300, 1])),
        r"handed over what this pipeline cannot go on with \(timesteps: the handover has \[5\]",
    ),
    "solver": (
        lambda m: changed(m, solver=replace(m.solver, config={**m.solver.config, "prediction_type": "v_prediction"})),
        "cannot be used: solver.prediction_type: this pipeline has",
    ),
    "latent": (
        lambda m: changed(m, latent=torch.zeros(1, 4, 32, 32), call={"height": 64, "width": 64}),
        r"cannot go on with \(latent: the handover has \[1, 4, 32, 32\] in torch.float32, and",
    ),
    "batch": (
        lambda m: changed(
            m, latent=torch.zeros(9, 4, 16, 16), embeddings={n: t.repeat(9, 1, 1) for n, t in m.embeddings.items()}
        ),
        "another run: samples is 9 where 1 was asked",
    ),
    "no texts": (lambda m: changed(m, embeddings={}), r"another run: embeddings is \[\] where \['prompt_embeds'\] was"),
    "other texts": (
        lambda m: changed(m, embeddings={**m.embeddings, "pooled_prompt_embeds": torch.zeros(1, 8)}),
        r"another run: embeddings is \['negative_prompt.*pooled_prompt_embeds.*\] where",
    ),
    "long texts": (
        lambda m: changed(m, embeddings={n: torch.zeros(1, 5000, 32) for n in m.embeddings}),
        "another run: tokens of .*prompt_embeds is 5000 where 'at most 77' was asked for",
    ),
    "wide texts": (
        lambda m: changed(m, embeddings={n: torch.zeros(1, 3, 64) for n in m.embeddings}),
        "cannot be used: .*prompt_embeds: texts are 64 wide in the handover and 32 in",
    ),
    "ragged texts": (
        lambda m: changed(m, embeddings={**m.embeddings, "negative_prompt_embeds": torch.zeros(1, 5, 32)}),
        r"cannot go on with \(ValueError: `prompt_embeds` and `negative_prompt_embeds` must have the same shape",
    ),
    "generators": (lambda m: changed(m, generators=()), r"another run: generators is \(0, False\) where \(1, False\)"),
    "dtype": (lambda m: m.to(torch.float16).to_bytes(), r"go on with \(latent: the handover has .* torch.float16"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_handover_that_was_not_asked_for(small: Any, made: Handover, case: str) -> None:
    build, message = WRONG[case]
    calls: list[int] = []
    handle = small.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        with peer(once_asked(answer(build(made)))) as url:
            failed(url, small, AnswerInvalid, message)
    finally:
        handle.remove()
    assert calls == []


def drip(connection: socket.socket) -> None:
    """A byte now and then, for ever: in the header, or in the body after it."""
    while True:
        connection.sendall(b"x")
        threading.Event().wait(0.02)


def body_drip(connection: socket.socket) -> None:
    connection.sendall(answer(content_length=2**20))
    drip(connection)


def header_drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    drip(connection)


def silence(connection: socket.socket) -> None:
    connection.recv(1)  # until the client closes


def informed(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        threading.Event().wait(0.02)


PLACE = json.dumps({"status": "in_progress", "step": 1}).encode()
GIANT = b"8000000000000000\r\n" + b"x" * 200_000
CAP = {"cap": 1000}
BOMB = gzip.compress(b"\0" * 2**24)
HOSTILE: dict[str, tuple[Any, type[Exception], str, dict[str, Any]]] = {
    "giant length": (answer(content_length=2**62), AnswerInvalid, f"sent {2**62} bytes where 1000 at most belong", CAP),
    "giant chunk": (
        answer(GIANT, content_length=None, transfer_encoding="chunked"), AnswerInvalid, "sent more than 1000", CAP,
    ),
    "no length": (answer(b"x" * 2000, content_length=None), AnswerInvalid, "sent more than 1000 bytes", CAP),
    "bomb": (answer(BOMB, content_encoding="gzip"), AnswerInvalid, "a body in the encoding 'gzip', which was not", {}),
    "redirect": (
        answer(status="302 Found", location="http://10.0.0.1/admin"), ServerRefused,
        "answered 302: it points to 'http://10.0.0.1/admin', and redirects are not followed", {},
    ),
    "teapot": (answer(b"a\x1b[2Jb\n", "418 I'm a teapot"), ServerRefused, r"answered 418: a \[2Jb $", {}),
    "no content": (answer(status="204 No Content"), ServerRefused, "answered 204: ", {}),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n" * 9, AnswerInvalid, "speaks no HTTP", {}),
    "headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500, AnswerInvalid, "speaks no HTTP .*100 headers", {}),
    "long header": (b"HTTP/1.1 200 OK\r\na: " + b"b" * 2**17, AnswerInvalid, "speaks no HTTP", {}),
    "ahead": (answer(b'{"status": "x", "step": 9}', "202 Accepted"), AnswerInvalid, "is at step 9 of 2;", {}),
    "no place": (answer(b"[]", "202 Accepted"), AnswerInvalid, "answered no JSON", {}),
    "deep place": (answer(b"[" * 60000, "202 Accepted"), AnswerInvalid, "answered no JSON", {}),
    "for ever": (answer(PLACE, "202 Accepted"), DeadlineExceeded, "did not finish its part in time", {"deadline": 0.5}),
    "busy for ever": (
        answer(b"", "429 Too Many Requests", retry_after=0), DeadlineExceeded, "answered 429", {"deadline": 0.5},
    ),
    "later than ever": (
        answer(b"", "503 Service Unavailable", retry_after=999999), DeadlineExceeded,
        r"is to be asked again in 1e\+06 s, and .* s are left \(it answered 503: \); give a longer deadline", {},
    ),
    "forgetful": (answer(b"{}", "404 Not Found"), ServerUnreachable, "does not know the run any more", {"retries": 1}),
    "silent": (silence, ServerUnreachable, "no byte for 0.2 s", {"timeout": 0.2}),
    "closed": (lambda c: None, ServerUnreachable, "failed 1 times, at last since Remote end closed", {}),
    "cut": (lambda c: c.sendall(answer(b"xx", content_length=9)), ServerUnreachable, "it ended after 2 of 9 bytes", {}),
    "slow body": (body_drip, DeadlineExceeded, "did not finish its part in time; give a longer", {"deadline": 0.5}),
    "slow header": (header_drip, DeadlineExceeded, "did not finish its part in time", {"deadline": 0.5}),
    "continued": (informed, DeadlineExceeded, "did not finish its part in time", {"deadline": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_peer_neither_holds_nor_breaks_the_client(small: Any, case: str) -> None:
    content, kind, message, more = HOSTILE[case]
    with peer(once_asked(content)) as url:
        failed(url, small, kind, message, **more)


def test_a_peer_that_names_no_run(small: Any) -> None:
    for said in (b'{"id": "../../admin"}', b'{"id": 5}', b"{}"):
        with peer(lambda request, connection, said=said: answer(said, "202 Accepted")) as url:
            failed(url, small, AnswerInvalid, r"answered 202 with .*, which names no run; check the address")
    with peer(lambda request, connection: answer(ACCEPTED)) as url:
        failed(url, small, AnswerInvalid, "answered 200 with .*, which names no run")


def test_a_hostile_peer_and_the_whole_run_here(small: Any, whole: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with peer(once_asked(answer(b"hello"))) as url:
        images = client(url).generate(small, call(), switch=2, on_failure="local")[0]
    assert torch.equal(images, whole)
    assert len(caplog.messages) == 1 and "handed over what cannot be used" in caplog.messages[0]


def test_a_server_that_forgot_is_asked_again_with_the_same_key(small: Any, made: Handover, whole: Tensor) -> None:
    seen: list[str] = []
    answers = [answer(b"{}", "404 Not Found"), answer(made.to_bytes())]
    with peer(once_asked(lambda connection: answers.pop(0)), seen) as url:
        assert torch.equal(client(url, retries=1).generate(small, call(), switch=2)[0], whole)
    assert seen == ["POST /v1/split", f"GET /v1/split/{JOB}"] * 2


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "scheme": ({"url": "ftp://x"}, "url is 'ftp://x'; give one such as https://server:8000, without a query"),
    "user": ({"url": "http://me:pw@x"}, "url is 'http://me:pw@x'; give one"),
    "port": ({"url": "http://x:99999"}, r"url is 'http://x:99999' \(Port out of range 0-65535\); give one such as"),
    "query": ({"url": "http://x/?a=1"}, "without a query"),
    "spaces": ({"url": "http://x/a b"}, "without a query"),
    "key": ({"key": "a\r\nb"}, "key is empty, or no header carries it; use letters"),
    "deadline": ({"deadline": 0}, "deadline is 0; give a number above 0"),
    "infinite": ({"deadline": float("inf")}, "deadline is inf; give a number above 0"),
    "timeout": ({"timeout": "3"}, "timeout is '3'; give a number above 0"),
    "retries": ({"retries": -1}, "retries is -1; give a whole number above -1"),
    "cap": ({"cap": 1.5}, "cap is 1.5; give a whole number above 0"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be(case: str) -> None:
    changes, message = SETTINGS[case]
    with pytest.raises(InvalidArgument, match=message):
        SplitClient(**{"url": "http://127.0.0.1:1", **changes})


def test_calls_that_cannot_be_are_refused_before_anything_is_sent(small: Any) -> None:
    here = client("http://127.0.0.1:1")
    for given, more, message in (
        (call(), {"switch": -1}, "switch is -1; give a whole number of steps from 0 on"),
        (call(), {"switch": True}, "switch is True; give"),
        (call(), {"switch": 1, "on_failure": "ignore"}, "on_failure is 'ignore'; choose 'raise' or 'local'"),
        (call(), {"switch": 1, "texts": "ids"}, "texts is 'ids'; choose 'embeddings' or 'prompt'"),
        (call(promt="x"), {"switch": 1}, "no argument 'promt'; StableDiffusionPipeline takes prompt"),
        (call(attention_kwargs={}), {"switch": 1}, "no argument 'attention_kwargs'; StableDiffusionPipeline takes"),
        (call(ip_adapter_image=1), {"switch": 1}, "ip_adapter_image is none of the arguments that cross a split"),
        (call(timesteps=[1, 2]), {"switch": 1}, "timesteps cannot be sent; give sigmas, or num_inference_steps"),
        (call(generator=5), {"switch": 1}, "generator is 5; only the state of one of the CPU can be sent"),
        (call(prompt=None), {"switch": 1}, "prompt or prompt_embeds must be given, and not both"),
        (call(prompt=None, prompt_embeds=[1]), {"switch": 1}, r"prompt_embeds is \[1\]; give a tensor"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            here.generate(small, given, **more)
    with pytest.raises(InvalidArgument, match="until is 0; give a whole number of steps from 1 on"):
        here.first_part(small, call(), until=0)
    with pytest.raises(UnsupportedPipeline, match="PixArtSigmaPipeline cannot be cut"):
        here.generate(pixart_sigma().pipe, {}, switch=1)
    with pytest.raises(UnsupportedPipeline, match=r"FluxImg2ImgPipeline.encode_prompt returns embeddings is not known"):
        here.generate(flux_img2img().pipe, {"prompt": "a ring", "height": 64, "width": 64}, switch=1)
