"""The server on loopback, as OpenAI's client and a plain one see it: every picture is the one made alone."""

import base64
import gc
import json
import logging
import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import served_flux
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.sample_files import eight_bit
from ertacache.pipelines.loading import load_pipeline
from ertacache.runtime.apply import apply
from ertacache.runtime.run import Run
from ertacache.serving.job import Job
from ertacache.serving.order import Limits, Order
from ertacache.serving.service import Service
from pipelines import CALL
from served import Held, running, until

IMAGES = "/v1/images/generations"
PROMPT = "a small red ring"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_pipeline("tiny-flux")


@pytest.fixture(scope="module")
def service(pipe: Any) -> Service:
    return served_flux.service(pipe)


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture
def held(pipe: Any) -> Iterator[Held]:
    holder = Held(pipe.transformer)
    yield holder
    holder.released.set()
    holder.remove()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def pixels(data: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(data))))


def alone(pipe: Any, profile: Any, seed: int, prompt: str = PROMPT, **call: Any) -> np.ndarray:
    """The picture without a server."""
    arguments = {**CALL, **call}
    if profile is None:
        image = call_pipeline(pipe, Prompts((prompt,), seed), arguments)
    else:
        with apply(pipe, profile):
            image = call_pipeline(pipe, Prompts((prompt,), seed), arguments)
    return eight_bit(image)[0].numpy()


@pytest.mark.parametrize(
    ("quality", "name", "computed"),
    [("low", "third", 3), ("medium", "third", 3), ("high", "half", 5), ("auto", "half", 5), ("max", None, 10)],
)
def test_every_quality_is_a_profile_and_its_picture_the_one_made_alone(
    pipe: Any, service: Service, client: openai.OpenAI, quality: Any, name: str | None, computed: int
):
    answer = client.images.generate(prompt=PROMPT, quality=quality, size="64x64", extra_body={"seed": 5})
    assert answer.data is not None
    facts: Any = answer.data[0].model_extra
    own = {key: facts["ertacache"][key] for key in ("profile", "computed", "predicted", "uncached_because")}
    assert own == {"profile": name, "computed": computed, "predicted": 10 - computed, "uncached_because": None}
    assert facts["ertacache"]["judged_psnr_db"] == (31.5 if name == "half" else None)
    profile = next((rung.profile for rung in service.ladder.rungs if rung.name == name), None)
    assert np.array_equal(pixels(answer.data[0].b64_json or ""), alone(pipe, profile, 5))
    assert (answer.size, answer.quality, answer.output_format) == ("64x64", quality, "png")


def test_several_pictures_have_seeds_in_a_row(pipe: Any, client: openai.OpenAI):
    answer = client.images.generate(prompt=PROMPT, n=2, quality="max", extra_body={"seed": 8, "num_inference_steps": 3})
    assert answer.data is not None
    for n, one in enumerate(answer.data):
        assert (one.model_extra or {})["seed"] == 8 + n
        assert np.array_equal(pixels(one.b64_json or ""), alone(pipe, None, 8 + n, num_inference_steps=3))


def test_what_no_profile_fits_is_computed_and_says_so(pipe: Any, client: openai.OpenAI):
    for more, reason in (
        ({"num_inference_steps": 4}, "num_inference_steps: no profile is for 4; those here are for 10"),
        ({"guidance_scale": 7.0}, "embedded guidance: the profile was calibrated at 4, this call runs at 7;"),
    ):
        answer = client.images.generate(prompt=PROMPT, quality="low", extra_body={"seed": 5, **more})
        assert answer.data is not None
        own = (answer.data[0].model_extra or {})["ertacache"]
        assert own["uncached_because"] is not None and own["uncached_because"].startswith(reason)
        assert (own["computed"], own["predicted"]) == (more.get("num_inference_steps", 10), 0)
        wanted = alone(pipe, None, 5, **more)
        assert np.array_equal(pixels(answer.data[0].b64_json or ""), wanted)


def test_a_stream_shows_pictures_on_the_way_and_ends_with_the_same_one(
    pipe: Any, service: Service, client: openai.OpenAI
):
    events = list(
        client.images.generate(prompt=PROMPT, quality="high", stream=True, partial_images=2, extra_body={"seed": 5})
    )
    kinds = ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.type for event in events] == kinds
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, None]
    last = alone(pipe, service.ladder.rungs[1].profile, 5)
    assert np.array_equal(pixels(events[-1].b64_json), last)
    off = [float(np.abs(pixels(event.b64_json).astype(float) - last).mean()) for event in events]
    assert off[0] > off[1] > off[2] == 0 and pixels(events[0].b64_json).shape == (64, 64, 3)


def follow(url: str, **more: Any) -> list[dict[str, Any]]:
    body = {"prompt": PROMPT, "stream": True, "progress": True, **more}
    with httpx.stream("POST", url + IMAGES, json=body, timeout=None) as answer:
        return [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_progress_is_told_at_every_step_in_percent(url: str):
    events = [event for event in follow(url, quality="low") if event["type"] == "image_generation.progress"]
    assert [event["progress"] for event in events] == [0, 0, *range(10, 100, 10), 99]
    assert [event["status"] for event in events] == ["queued"] + ["in_progress"] * 11
    assert {event["schedule"] for event in events} == {served_flux.MASKS["third"]}


def test_a_client_that_goes_away_stops_the_denoiser_at_that_step(url: str, service: Service, held: Held):
    held.hold(3)
    body = json.dumps({"prompt": PROMPT, "quality": "max"})
    head = f"POST {IMAGES} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as leaving:
        leaving.sendall((head + body).encode())
        assert held.reached.wait(60)
        job = service.queue.running[0]
    until(lambda: job.cancelled)
    held.released.set()
    until(lambda: job.ended is not None and not service.queue.running)
    assert (job.state, held.calls) == ("cancelled", 3)
    assert service.workers[0].thread.is_alive()


def test_a_stream_that_is_closed_stops_the_denoiser_too(url: str, service: Service, held: Held):
    held.hold(2)
    body = {"prompt": PROMPT, "quality": "max", "stream": True, "progress": True}
    with httpx.stream("POST", url + IMAGES, json=body, timeout=None) as answer:
        assert answer.status_code == 200
        assert held.reached.wait(60)
        job = service.queue.running[0]
    until(lambda: job.cancelled)
    held.released.set()
    until(lambda: job.ended is not None)
    assert (job.state, held.calls, job.step) == ("cancelled", 2, 1)


def kept() -> int:
    """Jobs and runs in memory."""
    return sum(type(one) in (Job, Order, Run) for one in gc.get_objects())


def test_nothing_that_was_left_half_way_waits_for_a_collector(url: str, service: Service, held: Held):
    assert post(url).status_code == 200  # the worker has its last job in hand
    gc.collect()
    gc.disable()
    before = kept()
    try:
        for _ in range(3):
            test_a_stream_that_is_closed_stops_the_denoiser_too(url, service, held)
            test_a_client_that_goes_away_stops_the_denoiser_at_that_step(url, service, held)
        until(lambda: not service.queue.running)
        assert kept() <= before
    finally:
        gc.enable()


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + IMAGES, json={"prompt": PROMPT, "quality": "low", **body}, timeout=None)


def test_a_full_queue_is_refused_with_the_time_to_wait(url: str, service: Service, held: Held):
    held.hold(1)
    answers: list[int] = []
    waiting = [threading.Thread(target=lambda: answers.append(post(url, n=3).status_code)) for _ in range(3)]
    waiting[0].start()
    assert held.reached.wait(60)
    until(lambda: len(service.queue.waiting) == 2)
    for number, thread in enumerate(waiting[1:2], 1):
        thread.start()
        until(lambda number=number: len(service.queue.waiting) == 2 + 3 * number)
    refused = post(url, n=2)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"] == {
        "message": "5 wait, and there is room for 6; ask again later",
        "type": "server_error", "param": None, "code": "queue_full",
    }  # fmt: skip
    held.released.set()
    for thread in waiting[:2]:
        thread.join()
    assert answers == [200, 200]


SIZE = "give WIDTHxHEIGHT in pixels, multiples of 16, such as 1024x1024, or auto"
STEPS = "from 1 to 50: the steps of the solver"
FIELDS = (
    "background, guidance_scale, lora, model, n, negative_prompt, num_inference_steps, output_compression, "
    "output_format, partial_images, profile, progress, prompt, quality, response_format, seed, size, stream, "
    "true_cfg_scale"
)
BAD: list[tuple[Any, int, str]] = [
    ({}, 400, "prompt is missing or empty; say what to draw"),
    ({"prompt": "  "}, 400, "prompt is missing or empty; say what to draw"),
    ({"prompt": 5}, 400, "prompt is 5; give a text"),
    ({"prompt": "a" * 201}, 400, "prompt has 201 characters; this server takes at most 200"),
    ({"prompt": "\ud800"}, 400, "prompt holds half of a character; send valid Unicode"),
    ({"prompts": "a"}, 400, "prompts is no field of this request; did you mean prompt?"),
    ({"loras": "x"}, 400, "loras is no field of this request; did you mean lora?"),
    ({"model": "dall-e-3"}, 404, "model is 'dall-e-3', and this server has 'tiny-flux'"),
    ({"size": "64"}, 400, "size is '64'; " + SIZE),
    ({"size": "64x65"}, 400, "size is '64x65'; " + SIZE),
    ({"size": "00x64"}, 400, "size is '00x64'; " + SIZE),
    ({"size": [64]}, 400, "size is [64]; " + SIZE),
    ({"size": "256x256"}, 400, "size is 256x256: 65536 pixels; this server makes at most 16384"),
    ({"quality": "hd"}, 400, "quality is 'hd'; choose one of low, medium, high, xhigh, max, auto"),
    ({"profile": "haalf"}, 400, "profile is 'haalf', which is not served here; did you mean half?"),
    ({"seed": -1}, 400, f"seed is -1; choose a whole number from 0 to {2**62}: of the noise"),
    ({"seed": True}, 400, f"seed is True; choose a whole number from 0 to {2**62}: of the noise"),
    ({"n": 4}, 400, "n is 4; choose a whole number from 1 to 3: pictures of a request"),
    ({"num_inference_steps": 51}, 400, "num_inference_steps is 51; choose a whole number " + STEPS),
    ({"num_inference_steps": 1.5}, 400, "num_inference_steps is 1.5; choose a whole number " + STEPS),
    ({"guidance_scale": "4"}, 400, "guidance_scale is '4'; give a number from 0 to 100"),
    ({"true_cfg_scale": -1}, 400, "true_cfg_scale is -1; give a number from 0 to 100"),
    ({"negative_prompt": []}, 400, "negative_prompt is []; give a text"),
    ({"output_format": "svg"}, 400, "output_format is 'svg'; choose one of png, webp, jpeg"),
    ({"output_compression": 101}, 400,
     "output_compression is 101; choose a whole number from 0 to 100: the quality of jpeg and webp"),
    ({"background": "transparent"}, 400, "background is 'transparent'; choose one of opaque, auto"),
    ({"response_format": "url"}, 400, "response_format is 'url'; choose one of b64_json"),
    ({"output_compression": 50}, 400, "output_compression is 50, and a png loses nothing; use 100, or webp or jpeg"),
    ({"profile": "half", "quality": "low"}, 400, "profile is 'half' and quality 'low'; give one of the two"),
    ({"guidance_scale": -0.5}, 400, "guidance_scale is -0.5; give a number from 0 to 100"),
    ({"size": "16x10000"}, 400, "size is '16x10000'; " + SIZE),
    ({"size": "0x0"}, 400, "size is '0x0'; " + SIZE),
    ({"n": 0}, 400, "n is 0; choose a whole number from 1 to 3: pictures of a request"),
    ({"n": 1e9}, 400, "n is 1000000000.0; choose a whole number from 1 to 3: pictures of a request"),
    ({"\ud800": 1}, 400, "'\\ud800' is no field of this request; there are " + FIELDS),
    ({"x" * 10**5: 1}, 400, "'xxxxxxxxxxxx...xxxxxxxxxxxxx' is no field of this request; there are " + FIELDS),
    ({"model": "x" * 10**5}, 404, "model is 'xxxxxxxxxxxx...xxxxxxxxxxxxx', and this server has 'tiny-flux'"),
    ({"lora": {"name": "ink"}}, 400, "lora 'ink' is not served here; none is, without --lora at the start"),
    ({"stream": 1}, 400, "stream is 1; choose one of True, False"),
    ({"stream": True, "n": 2}, 400, "n is 2, and a stream is of one picture; use n=1, or stream=false"),
    ({"partial_images": 4}, 400, "partial_images is 4; choose a whole number from 0 to 3: pictures on the way"),
    ({"partial_images": 1}, 400, "partial_images is 1, which comes in a stream only; set stream=true"),
    ({"progress": True}, 400, "progress is True, which comes in a stream only; set stream=true"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_bad_input_is_answered_with_its_field_and_the_remedy(url: str, body: Any, status: int, message: str):
    given = body if not body or "prompt" in body or "prompts" in body else {"prompt": PROMPT, **body}
    answer = httpx.post(url + IMAGES, content=json.dumps(given))
    error = answer.json()["error"]
    assert (answer.status_code, error["message"]) == (status, message)
    assert error["param"] == (None if "is no field" in message else message.split()[0])


def test_what_is_no_request_is_refused(url: str):
    for content, status, message in (
        (b"[", 400, "the body is no JSON object ("),
        (b"[1]", 400, "the body is no JSON object ("),
        (b'{"prompt": NaN}', 400, ""),
        (b"[" * 100000, 400, "the body is no JSON object ("),
        (b" " * (2 << 20), 413, f"the body is over {1 << 20} bytes; send less"),
    ):
        answer = httpx.post(url + IMAGES, content=content)
        assert (answer.status_code, answer.json()["error"]["message"][: len(message)]) == (status, message)
    for method, path, status in (("GET", "/nowhere", 404), ("GET", IMAGES, 405), ("POST", "/health", 405)):
        answer = httpx.request(method, url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == f"{method} {path} is no route of this server; its page is /"
    answer = httpx.post(f"{url}/v1/videos", json={"prompt": PROMPT})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        404, "this model makes pictures; use /v1/images/generations",
    )  # fmt: skip


def test_more_than_may_ever_wait_is_refused_for_good(pipe: Any):
    with running(served_flux.service(pipe, limits=Limits(queue=2))) as url:
        answer = post(url, n=3)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        400, "n is 3, and at most 2 wait here; ask for fewer at once",
    )  # fmt: skip


def test_jpeg_and_webp_and_a_size(pipe: Any, url: str):
    call = {"height": 96, "width": 64, "num_inference_steps": 2}
    for kind in ("jpeg", "webp"):
        answer = post(url, output_format=kind, size="64x96", num_inference_steps=2, seed=1).json()
        data = base64.b64decode(answer["data"][0]["b64_json"])
        assert Image.open(BytesIO(data)).format == kind.upper()
        assert answer["size"] == "64x96"
    assert np.array_equal(np.asarray(Image.open(BytesIO(data)).convert("RGB")), alone(pipe, None, 1, **call))


def test_models_health_metrics_and_page(url: str, service: Service):
    model = httpx.get(f"{url}/v1/models").json()["data"][0]
    assert model["id"] == "tiny-flux" and model["ertacache"]["call"]["num_inference_steps"] == 10
    rows = model["ertacache"]["profiles"]
    assert [(row["name"], row["schedule"]) for row in rows] == [
        ("third", "#...#....#"), ("half", "##..#.#..#"), ("none", "#" * 10),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 for row in rows)
    assert httpx.get(f"{url}/health").status_code == 200
    before = httpx.get(f"{url}/metrics").text
    assert 'ertacache:profile_judged_psnr_db{profile="half"} 31.5' in before
    assert post(url, quality="low").status_code == 200
    after = httpx.get(f"{url}/metrics").text

    def of(page: str, name: str) -> float:
        return float(page.split(f"\nertacache:diffusion_{name} ")[1].split()[0])

    for name, more in (
        ('requests_total{status="completed"}', 1),
        ('denoiser_calls_total{kind="computed",profile="third"}', 3),
        ('denoiser_calls_total{kind="predicted",profile="third"}', 7),
        ("request_latency_seconds_count", 1),
        ("queue_time_seconds_count", 1),
        ("generation_batch_size_sum", 1),
    ):
        assert of(after, name) - of(before, name) == more, name
    assert (of(after, "num_queue_reqs"), of(after, "num_running_reqs")) == (0, 0)
    page = httpx.get(url).text
    assert "<title>ertacache</title>" in page and "http://" not in page and "https://" not in page
    assert "5 of 10 steps" in httpx.get(f"{url}/v1/profiles/half").text
    assert httpx.get(f"{url}/v1/profiles/none").status_code == 404


def test_a_run_that_breaks_is_one_answer_and_not_the_end(url: str, pipe: Any, caplog: pytest.LogCaptureFixture):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("out of order")

    handle = pipe.vae.decoder.register_forward_pre_hook(broken)
    try:
        answer = post(url)
    finally:
        handle.remove()
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        500, "the run failed with ZeroDivisionError; see the server's log",
    )  # fmt: skip
    assert post(url).status_code == 200


def test_every_request_and_every_job_is_a_line_of_json(url: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "ertacache.serving"):
        post(url, seed=1)
        # The line of the request before this one may come now as well.
        until(lambda: {"job", "request"} <= {json.loads(line)["event"] for line in caplog.messages})
    lines = {line["event"]: line for line in map(json.loads, caplog.messages)}
    assert lines["request"].items() >= {"method": "POST", "path": IMAGES, "status": 200}.items()
    assert lines["job"].items() >= {"state": "completed", "profile": "third", "computed": 3, "predicted": 7}.items()
    assert PROMPT not in caplog.text


def test_before_it_is_warm_and_without_the_key_nothing_is_made(pipe: Any, held: Held):
    held.hold(1)
    with running(served_flux.service(pipe, api_key="secret"), warm=False) as url:
        assert held.reached.wait(60)
        assert httpx.get(f"{url}/health").status_code == 503
        bearer = {"Authorization": "Bearer secret"}
        cold = httpx.post(url + IMAGES, json={"prompt": "a"}, headers=bearer)
        assert (cold.status_code, cold.headers["retry-after"]) == (503, "5")
        for headers in (
            {},
            {"Authorization": "secret"},
            {"Authorization": "Bearer secre"},
            {"Authorization": b"Basic\xff secret"},
        ):
            answer = httpx.get(f"{url}/v1/models", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} secret"}
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        threading.Timer(0.3, held.released.set).start()  # stopped while it warms up
    assert held.calls == 1


def test_equal_requests_go_together_and_others_do_not(pipe: Any, held: Held):
    service = served_flux.service(pipe, batch=4)
    with running(service) as url:
        found: dict[Any, Any] = {}

        def ask(seed: int, quality: str) -> None:
            found[seed] = post(url, seed=seed, quality=quality).json()["data"][0]

        asked = [(20, "max"), (21, "low"), (22, "low"), (23, "max"), (24, "low")]
        held.queue([threading.Thread(target=ask, args=one) for one in asked], service)
        page = httpx.get(f"{url}/metrics").text
        assert "ertacache:diffusion_generation_batch_size_count 3.0" in page
        assert "ertacache:diffusion_generation_batch_size_sum 5.0" in page
    assert held.calls == 10 + 3 + 10
    profile = service.ladder.rungs[0].profile
    for seed in (21, 22, 24):
        off = pixels(found[seed]["b64_json"]).astype(int) - alone(pipe, profile, seed)
        assert np.abs(off).max() <= 1, "other kernels for a batch: a grey level"


def test_a_stop_ends_the_run_at_its_next_step(pipe: Any, held: Held):
    service = served_flux.service(pipe)
    with running(service) as url:
        held.hold(2)
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(post(url, quality="max").status_code))
        thread.start()
        assert held.reached.wait(60)
        service.queue.close()
        held.released.set()
        thread.join()
        assert (answers, held.calls) == ([503], 2)
        refused = post(url)
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            503, "this server is about to stop; ask again later",
        )  # fmt: skip
