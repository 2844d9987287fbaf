"""A split run over HTTP: what comes of it, what either side refuses, and that nothing hangs or is made twice."""

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

import cached
from ertacache.errors import (
    DeadlineExceeded,
    ServerRefused,
    ServerUnreachable,
    UnsupportedPipeline,
)
from ertacache.runtime.apply import enable
from ertacache.serving.order import Limits
from ertacache.serving.split_app import make_split_app
from ertacache.serving.split_service import SplitService
from ertacache.split import Handover, SplitClient, first_part
from ertacache.split.request import SplitRequest
from pipelines import CFG_CALL, PROMPTS, flux, wan
from served import Held, running, until
from small_images import pixart_sigma, stable_diffusion, stable_diffusion_xl
from split_http import BEARER, JOB, KEY, STEPS, call, client, failed, relay

#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def large() -> Any:
    return stable_diffusion().pipe


@pytest.fixture(scope="module")
def service(large: Any) -> SplitService:
    limits = Limits(pixels=64 * 64, steps=20, characters=200, images=3, queue=1, body=2**20)
    return SplitService("sd", [large], limits=limits, api_key=KEY)


@pytest.fixture(scope="module")
def url(service: SplitService) -> Iterator[str]:
    with running(service, app=make_split_app(service)) as address:
        yield address


@pytest.fixture
def held(large: Any) -> Iterator[Held]:
    holder = Held(large.unet)
    yield holder
    holder.released.set()
    holder.remove()


# --- what comes of it


@pytest.mark.parametrize("switch", [0, 1, 3, STEPS])
@pytest.mark.parametrize("texts", ["embeddings", "prompt"])
def test_the_run_is_the_whole_one_bit_for_bit(
    url: str, small: Any, whole: Tensor, held: Held, switch: int, texts: Any
) -> None:
    told: list[tuple[str, int, int]] = []
    images = client(url).generate(small, call(), switch=switch, texts=texts, progress=lambda *at: told.append(at))[0]
    assert torch.equal(images, whole)
    assert held.calls == switch
    assert [at for at in told if at[0] == "device"] == [("device", n, STEPS) for n in range(switch + 1, STEPS + 1)]
    steps = [step for where, step, of in told if where != "device"]
    assert steps == sorted(steps) and all(of == switch for where, _, of in told if where != "device")


def test_several_prompts_and_the_noise_of_the_caller(url: str, small: Any) -> None:
    def own() -> dict[str, Any]:
        seeds = [torch.Generator().manual_seed(n) for n in (1, 2)]
        return call(prompt=PROMPTS[:2], negative_prompt=["", "a ring"], generator=seeds)

    assert torch.equal(client(url).generate(small, own(), switch=2)[0], small(**own())[0])
    noise = small(**call(num_inference_steps=1, output_type="latent"))[0]
    given = call(latents=noise, generator=None)
    assert torch.equal(client(url).generate(small, given, switch=2)[0], small(**given)[0])


def test_texts_that_the_device_has_encoded(url: str, small: Any, large: Any, whole: Tensor) -> None:
    made = first_part(small, call(), until=1).embeddings
    given = call(prompt=None, **made)
    encoder, large.text_encoder = large.text_encoder, None
    try:
        images = client(url).generate(small, given, switch=2)[0]
    finally:
        large.text_encoder = encoder
    assert torch.equal(images, whole)


def test_flux_with_grid_and_size_of_its_own(flux_cfg: Any) -> None:
    large = flux(guidance_embeds=False, seed=5)
    large.default_sample_size = 8  # of a warm-up
    service = SplitService("flux", [large], limits=Limits(steps=10))

    def given() -> dict[str, Any]:
        seed = torch.Generator().manual_seed(3)
        return {**CFG_CALL, "prompt": PROMPTS[0], "sigmas": [1.0, 0.8, 0.3], "generator": seed, "output_type": "pt"}

    with running(service, app=make_split_app(service)) as url:
        images = SplitClient(url).generate(flux_cfg, given(), switch=1)[0]
    assert torch.equal(images, flux_cfg(**given())[0])


def test_half_the_bytes_where_that_is_asked_for(url: str, small: Any) -> None:
    plain = client(url).first_part(small, call(), until=2)
    made = client(url).first_part(small, call(), until=2, compressed=True)
    assert made.dtype == torch.float32 and torch.equal(made.latent, plain.latent.bfloat16().float())
    assert torch.equal(made.embeddings["prompt_embeds"], plain.embeddings["prompt_embeds"].bfloat16().float())


def test_callbacks_of_the_device_are_heard_and_the_server_makes_none(url: str, small: Any, whole: Tensor) -> None:
    seen: list[int] = []

    def note(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(i)
        return given

    assert torch.equal(client(url).generate(small, call(callback_on_step_end=note), switch=2)[0], whole)
    assert seen == [2, 3]

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError("on purpose")

    with pytest.raises(ZeroDivisionError, match="on purpose"):  # nobody else's fault
        client(url).generate(small, call(callback_on_step_end=fail), switch=2, on_failure="local")


# --- on the way


def test_a_slow_way_and_connections_that_are_lost(url: str, small: Any, whole: Tensor, held: Held) -> None:
    with relay(url, delay=0.05) as slow:
        assert torch.equal(client(slow).generate(small, call(), switch=2)[0], whole)
    assert held.calls == 2
    # The first connection breaks in the answer to the POST, the second and third in the handover's bytes.
    with relay(url, cut=[100, 4000, 9000]) as broken:
        assert torch.equal(client(broken, retries=3).generate(small, call(), switch=2)[0], whole)
    assert held.calls == 4
    with relay(url, cut=[100, 4000]) as broken:
        failed(broken, small, ServerUnreachable, r"failed 2 times, at last since .*; check the server, or", retries=1)


def test_nobody_is_there(small: Any, whole: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        gone = f"http://127.0.0.1:{place.getsockname()[1]}"
    failed(gone, small, ServerUnreachable, rf"{gone} failed 2 times, at last since .*refused; check", retries=1)
    images = client(gone).generate(small, call(), switch=2, on_failure="local")[0]
    assert torch.equal(images, whole)
    assert caplog.messages == [
        f"all steps are made here, since {gone} failed 1 times, at last since [Errno 111] Connection refused; check "
        "the server, or finish here with on_failure='local'"
    ]


def test_what_is_raised_in_progress_ends_the_run_there_too(
    url: str, small: Any, service: SplitService, held: Held
) -> None:
    held.hold(2)

    def stop(where: str, step: int, steps: int) -> None:
        if where == "server" and step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client(url).generate(small, call(), switch=3, progress=stop)
    assert all(job.ended is not None for job in service.jobs.values())
    held.released.set()
    until(lambda: not service.queue.running)
    assert held.calls == 2


def test_who_waits_for_a_run_that_another_cancels(url: str, small: Any, service: SplitService, held: Held) -> None:
    held.hold(1)
    job = post(url, sound(small)).json()["id"]
    assert held.reached.wait(60)
    said: list[int] = []
    path = f"{url}/v1/split/{job}"
    waiter = threading.Thread(
        target=lambda: said.append(httpx.get(f"{path}?step=0&wait=60", headers=BEARER, timeout=None).status_code)
    )
    seen = service.jobs[job].seen
    waiter.start()
    until(lambda: service.jobs[job].seen != seen)
    assert httpx.delete(path, headers=BEARER).json() == {"id": job, "object": "split.deleted", "deleted": True}
    held.released.set()
    waiter.join()
    assert (said, held.calls) == ([404], 1)
    assert "secret" not in repr(client(url))


def test_a_client_that_is_gone_ends_its_run(
    url: str, small: Any, service: SplitService, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "patience", 0.05)
    held.hold(1)
    job = post(url, sound(small)).json()["id"]
    assert held.reached.wait(60)
    until(lambda: service.jobs[job].abandoned)
    held.released.set()
    until(lambda: not service.queue.running)
    assert held.calls == 1
    assert httpx.get(f"{url}/v1/split/{job}", headers=BEARER).status_code == 404


def test_a_full_queue_is_waited_for(url: str, small: Any, whole: Tensor, service: SplitService, held: Held) -> None:
    held.hold(1)
    first, second = (post(url, sound(small, until=n)).json()["id"] for n in (1, 2) if until_taken(service, held, n))
    full = post(url, sound(small, until=3))
    assert (full.status_code, full.json()["error"]["message"]) == (
        429, "1 wait, and there is room for 1; ask again later",
    )  # fmt: skip
    assert int(full.headers["retry-after"]) >= 1
    failed(url, small, DeadlineExceeded, r"is to be asked again in .* s are left \(it answered 429", deadline=0.8)
    threading.Timer(0.2, held.released.set).start()
    assert torch.equal(client(url).generate(small, call(), switch=3)[0], whole)
    assert held.calls == 1 + 2 + 3
    for job in (first, second):
        assert httpx.delete(f"{url}/v1/split/{job}", headers=BEARER).status_code == 200


def until_taken(service: SplitService, held: Held, n: int) -> bool:
    """Whether the first is under way before the second comes."""
    return n == 1 or held.reached.wait(60)


# --- what a server does with what it is sent


def sound(small: Any, **changes: Any) -> bytes:
    given = {name: value for name, value in call().items() if name != "output_type"}
    return replace(SplitRequest.of(small, given, 2, "embeddings", False), **changes).to_bytes()


def post(url: str, data: bytes, **fields: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/split", content=data, headers={**BEARER, **fields}, timeout=None)


def test_a_key_names_one_run(url: str, small: Any, held: Held) -> None:
    named = {"Idempotency-Key": "run-1"}
    held.hold(1)
    first = post(url, sound(small), **named)
    assert held.reached.wait(60)
    joined = post(url, sound(small), **named)
    held.released.set()
    assert first.status_code == joined.status_code == 202
    assert first.json()["id"] == joined.json()["id"] and first.headers["location"] == f"/v1/split/{joined.json()['id']}"

    def fetched() -> bytes:
        found = httpx.get(f"{url}{first.headers['location']}?wait=60&step=2", headers=BEARER, timeout=None)
        return found.content if found.status_code == 200 else b""

    until(fetched)
    again = post(url, sound(small), **named)
    assert (again.json()["status"], again.json()["id"], again.json()["step"]) == ("completed", joined.json()["id"], 2)
    assert fetched() == fetched() and Handover.from_bytes(fetched()).step == 2
    assert held.calls == 2
    other = post(url, sound(small, until=3), **named)
    assert (other.status_code, other.json()["error"]["message"]) == (
        422, "this Idempotency-Key was sent with another request; make a new one",
    )  # fmt: skip
    for bad in ("", "x" * 201):
        refused = post(url, sound(small), **{"Idempotency-Key": bad})
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            400, "Idempotency-Key is empty or over 200 characters; send a random one",
        )  # fmt: skip


def test_results_are_kept_up_to_a_number(
    url: str, small: Any, service: SplitService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ertacache.serving.split_service.KEPT", 2)
    names = []
    for _ in range(3):
        names.append(post(url, sound(small, until=1)).json()["id"])
        until(lambda: service.jobs[names[-1]].ended is not None)
    statuses = [httpx.get(f"{url}/v1/split/{name}", headers=BEARER).status_code for name in names]
    assert statuses == [404, 200, 200]


def test_the_key_is_asked_for(url: str, small: Any, held: Held) -> None:
    for key in (None, "other"):
        failed(url, small, ServerRefused, "answered 401: the key is missing or wrong; send Authorization", key=key)
    for method, path in (("GET", f"/v1/split/{JOB}"), ("DELETE", f"/v1/split/{JOB}"), ("POST", "/v1/decode")):
        assert httpx.request(method, url + path).status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    assert held.calls == 0


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"call": {"num_inference_steps": 21}}, "num_inference_steps makes 21 steps and this server takes at"),
    "pixels": ({"call": {"height": 256}}, "height makes 8192 pixels, times width and frames, and this"),
    "samples": ({"call": {"num_images_per_prompt": 4}, "drop": "generator.0"}, "prompt makes 4 samples and this"),
    "characters": ({"call": {"prompt": "x" * 201}}, "prompt makes 201 characters and this server takes at most 200"),
    "negative": ({"call": {"negative_prompt": "x" * 201}}, "prompt makes 201 characters and this server"),
    "until": ({"until": 41}, "until makes 41 calls of the solver and this server takes at most 40; ask for less"),
    "until of the run": ({"until": 5}, "until is 5 and DDIMScheduler makes 4 steps here; hand over after 1 to 4"),
    "until 0": ({"until": 0}, "request: until: is 0 where a number of steps belongs; ask with SplitClient of the same"),
    "until text": ({"until": "2"}, "request: until: is '2', not a whole number; ask with"),
    "texts": ({"texts": "ids"}, "request: texts: is 'ids' where 'embeddings' or 'prompt' belongs"),
    "unknown": ({"call": {"attention_kwargs": {}}}, "call.attention_kwargs is none of the arguments that cross"),
    "foreign": ({"call": {"num_frames": 5}}, "num_frames is no argument of StableDiffusionPipeline; leave it out"),
    "number": ({"call": {"guidance_scale": "7"}}, "call.guidance_scale is '7' where a number from -1000 to 1000"),
    "nothing": ({"drop": "prompt"}, "prompt or prompt_embeds must be given, and not both; say what to draw"),
    "both": ({"tensors": {"text.prompt_embeds": torch.zeros(1, 3, 32)}}, "prompt or prompt_embeds must be given, and"),
    "negatives": ({"call": {"negative_prompt": ["a", "b"]}}, "negative_prompt has 2 texts beside 1 prompts; give as"),
    "sides": ({"call": {"height": 30}}, "the pipeline refuses the call (`height` and `width` have to be divisible by"),
    "generators": (
        {"tensors": {"generator.1": torch.Generator().get_state()}}, "generator has 2 states and the call 1 samples",
    ),
    "generator of nobody": (
        {"tensors": {"generator.0": torch.zeros(5056, dtype=torch.uint8)}}, "generator.0 is no state of a CPU",
    ),
    "generator of a length": (
        {"tensors": {"generator.0": torch.zeros(16, dtype=torch.uint8)}},
        "request: generator.0: has shape [16], not [5056]",
    ),
    "generator numbers": (
        {"tensors": {"generator.2": torch.Generator().get_state()}},
        "request: tensors: holds generators that are not numbered from 0",
    ),
    "tensor": ({"tensors": {"weights": torch.zeros(1)}}, "request: tensors: 'weights' is unknown"),
    "dtype": ({"tensors": {"latents": torch.zeros(1, 4, dtype=torch.int32)}}, "request: tensor 'latents': has dtype"),
    "latents": ({"tensors": {"latents": torch.zeros(2, 4, 16, 16)}}, "latents has 2 samples and the call 1; give one"),
    "batch": ({"tensors": {"latents": torch.zeros(4)}}, "request: latents: has shape [4], which has no batch"),
    "NaN": ({"tensors": {"latents": torch.full((1, 4, 16, 16), torch.nan)}}, "request: tensor 'latents': holds NaN"),
    "grid": ({"tensors": {"sigmas": torch.ones(2).double()}}, "the pipeline refuses the call (The current scheduler"),
    "vast": ({"tensors": {"latents": torch.zeros(1, 4, 512, 512)}}, "the body is over 1048576 bytes; send less"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused_before_any_step(url: str, small: Any, held: Held, case: str) -> None:
    changes, message = BAD[case]
    request = SplitRequest.of(small, {n: v for n, v in call().items() if n != "output_type"}, 2, "embeddings", False)
    dropped = changes.get("drop")
    own = {name: value for name, value in request.call.items() if name != dropped}
    tensors = {name: value for name, value in request.tensors.items() if name != dropped}
    made = replace(
        request, call={**own, **changes.get("call", {})}, tensors={**tensors, **changes.get("tensors", {})},
        **{name: changes[name] for name in ("until", "texts") if name in changes},
    )  # fmt: skip
    said = post(url, made.to_bytes())
    if said.status_code == 202:
        job = said.json()["id"]
        until(lambda: httpx.get(f"{url}/v1/split/{job}", headers=BEARER).status_code != 202)
        said = httpx.get(f"{url}/v1/split/{job}", headers=BEARER)
    assert said.status_code == (413 if case == "vast" else 400)
    assert said.json()["error"]["message"].startswith(message)
    assert held.calls == 0


def test_what_is_no_request(url: str) -> None:
    for content, message in (
        (b"", "request: file: has 0 bytes, too few for a header; the file is damaged or is no split request"),
        (b"\x80\x04\x95" * 99, "request: header: claims "),
        (b'{"prompt": "a ring"}', "request: header: claims "),
    ):
        said = post(url, content)
        assert (said.status_code, said.json()["error"]["message"][: len(message)]) == (400, message)
    said = httpx.get(f"{url}/v1/split/{JOB}", headers=BEARER)
    assert (said.status_code, said.json()["error"]["message"]) == (
        404, "no such run; it was cancelled, has expired, or never was",
    )  # fmt: skip
    said = httpx.get(f"{url}/nowhere")
    assert said.json()["error"]["message"] == "GET /nowhere is no route of this server; its page is /"
    assert httpx.get(url).json()["ertacache"]["solver"] == "DDIMScheduler"


def test_a_run_that_breaks_is_one_answer(url: str, small: Any, large: Any, whole: Tensor) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("out of order")

    handle = large.unet.register_forward_pre_hook(broken)
    try:
        failed(url, small, ServerRefused, "answered 500: the run failed with ZeroDivisionError; see the server's log")
    finally:
        handle.remove()
    assert torch.equal(client(url).generate(small, call(), switch=2)[0], whole)


def test_a_stop_ends_the_run_and_the_client_says_so(large: Any, small: Any, held: Held) -> None:
    service = SplitService("sd", [large])
    with running(service, app=make_split_app(service)) as url:
        held.hold(2)

        def stop(where: str, step: int, steps: int) -> None:
            if step == 1:
                service.queue.close()
                held.released.set()

        with pytest.raises(ServerUnreachable, match="failed 1 times, at last since it answered 503: cancelled, since"):
            SplitClient(url, retries=0).generate(small, call(), switch=3, progress=stop)
    assert held.calls == 2


def test_pipelines_that_cannot_serve() -> None:
    with pytest.raises(UnsupportedPipeline, match="PixArtSigmaPipeline cannot be cut"):
        SplitService("x", [pixart_sigma().pipe])


def test_a_body_that_does_not_come(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ertacache.serving.service._BODY_SECONDS", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"POST /v1/split HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode())
        slow.sendall(b"Content-Length: 9\r\n\r\nabc")
        said = slow.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 408 ") and b"the body did not arrive within 0.2 s; send it again" in said


@pytest.mark.parametrize("kind", ["sdxl", "wan"])
def test_sizes_that_nobody_said_are_the_devices(kind: str) -> None:
    make = stable_diffusion_xl if kind == "sdxl" else wan
    large, small = (pipe if kind == "wan" else pipe.pipe for pipe in (make(), make()))
    given: dict[str, Any] = {"prompt": PROMPTS[0], "num_inference_steps": 3, "output_type": "pt"}
    given |= {"height": 32, "width": 32, "num_frames": 6} if kind == "wan" else {}  # 6 frames become 5, or 9
    whole = small(**given, generator=torch.Generator().manual_seed(1))[0]
    service = SplitService("tiny-wan" if kind == "wan" else kind, [large])
    with running(service, app=make_split_app(service)) as url:
        generator = torch.Generator().manual_seed(1)
        images = SplitClient(url).generate(small, {**given, "generator": generator}, switch=2)[0]
    assert torch.equal(images, whole)


def test_a_profile_at_the_server() -> None:
    large, small = (flux(guidance_embeds=False, seed=5) for _ in range(2))
    large.default_sample_size = 8  # of a warm-up
    plan = cached.profile(large, "output", cached.MASK)
    given = {**CFG_CALL, "prompt": PROMPTS[0], "num_inference_steps": len(cached.MASK)}
    enable(large, plan, on_mismatch="compute")
    held = Held(large.transformer)
    service = SplitService("flux", [large])
    with running(service, app=make_split_app(service)) as url:
        held.hold(-1)
        SplitClient(url).first_part(small, {**given, "generator": torch.Generator().manual_seed(0)}, until=4)
    assert held.calls == 2 * cached.MASK[:4].count("#")


def test_a_refusal_is_read_although_the_body_is_long(url: str, small: Any) -> None:
    noise = torch.zeros(1, 4, 256, 256)  # 1 MiB
    for key, message in (
        ("other", "answered 401: the key is missing"),
        (KEY, "answered 413: the body is over 1048576"),
    ):
        with pytest.raises(ServerRefused, match=message):
            client(url, key=key).first_part(small, call(latents=noise), until=2)


def test_a_server_that_never_gets_warm_says_so(small: Any) -> None:
    large = stable_diffusion().pipe
    large.unet = None
    service = SplitService("sd", [large])
    with running(service, app=make_split_app(service)) as url:
        failed(url, small, ServerRefused, "answered 500: a worker has ended; the server's log says why")
