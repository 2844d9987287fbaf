"""Clips as jobs: created by OpenAI's client, followed, fetched, cancelled and deleted."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

import video_profiles
from ertacache.calibration.pipeline_run import call_pipeline
from ertacache.calibration.prompts import Prompts
from ertacache.runtime.apply import apply
from ertacache.serving import videos
from ertacache.serving.encoded import clip
from ertacache.serving.ladder import Rung
from ertacache.serving.order import Limits
from ertacache.serving.service import Service
from pipelines import VIDEO_CALL, wan
from served import Held, running, until

#: OpenAI's client says at every call that OpenAI's own service of clips ends.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return wan()


@pytest.fixture(scope="module")
def service(pipe: Any) -> Service:
    rungs = (Rung("half", video_profiles.profile(pipe, "guided")), Rung("none"))
    return Service("small", [pipe], rungs, Limits(pixels=32 * 32 * 33, steps=50, queue=2))


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with running(service) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_clip_from_its_order_to_its_end(pipe: Any, service: Service, client: openai.OpenAI):
    made = client.videos.create(prompt="a ball", size="32x32", extra_body={"seed": 3})  # type: ignore[arg-type]
    assert (made.status in ("queued", "in_progress"), made.model, made.size, made.seconds) == (
        True, "small", "32x32", "0.5625",
    )  # fmt: skip
    until(lambda: client.videos.retrieve(made.id).status == "completed")
    done = client.videos.retrieve(made.id)
    assert (done.progress, done.error, (done.expires_at or 0) - (done.completed_at or 0)) == (100, None, 3600)
    facts = (done.model_extra or {})["ertacache"]
    assert (facts["profile"], facts["computed"], facts["predicted"]) == ("half", 10, 10)
    with apply(pipe, service.ladder.rungs[0].profile):
        frames = call_pipeline(pipe, Prompts(("a ball",), 3), VIDEO_CALL)[0]
    assert client.videos.download_content(made.id).read() == clip(frames, 16)
    assert [video.id for video in client.videos.list()] == [made.id]
    deleted = client.videos.delete(made.id)
    assert (deleted.id, deleted.deleted) == (made.id, True)
    with pytest.raises(openai.NotFoundError, match="it was deleted, has expired, or never was"):
        client.videos.retrieve(made.id)


def test_a_deleted_clip_stops_the_denoiser_at_its_next_step(pipe: Any, service: Service, client: openai.OpenAI):
    held = Held(pipe.transformer)
    try:
        held.hold(3)  # the first call of the second step: two calls a step
        extra = {"quality": "max"}
        first = client.videos.create(prompt="a ball", extra_body=extra)
        second = client.videos.create(prompt="a cube", extra_body=extra)
        assert held.reached.wait(60)
        told = client.videos.retrieve(first.id)
        assert (told.status, told.progress) == ("in_progress", 10)
        assert client.videos.retrieve(second.id).status == "queued"
        with pytest.raises(openai.ConflictError, match="the video is in_progress"):
            client.videos.download_content(first.id)
        newest_first = [video.id for video in client.videos.list(limit=1)]
        assert newest_first == [second.id, first.id]  # page by page
        client.videos.delete(second.id)
        client.videos.delete(first.id)
        held.released.set()
        until(lambda: not service.queue.running)
        assert held.calls == 4
    finally:
        held.released.set()
        held.remove()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seconds": "0"}, "seconds is '0'; give a length such as 4"),
        ({"seconds": "nan"}, "seconds is 'nan'; give a length such as 4"),
        ({"seconds": "4"}, "size is 32x32, 65 frames: 66560 pixels; this server makes at most 33792"),
        ({"num_frames": "0"}, "num_frames is 0; choose a whole number of 1 or more: frames of the clip"),
        ({"num_frames": "few"}, "num_frames is 'few'; choose a whole number of 1 or more: frames of the clip"),
        ({"n": "2"}, "n is no field of this request; there are guidance_scale, lora, model, negative_prompt, "
         "num_frames, num_inference_steps, profile, prompt, quality, seconds, seed, size, true_cfg_scale"),
        ({"seconds": "1", "num_frames": "5"}, "num_frames is 5 and seconds '1'; give one of the two"),
        ({"lora": '[{"name": "ink"}]'}, "lora 'ink' is not served here; none is, without --lora at the start"),
        ({"lora": "[" * 100000}, "lora is '[[[[[[[[[[[[...[[[[[[[[[[[[['; give "
         """{"name": "style", "scale": 1.0}, or a list of such"""),
        ({"true_cfg_scale": "2"}, "true_cfg_scale is nothing that this model takes; leave it out"),
        ({"prompt": " "}, "prompt is missing or empty; say what to draw"),
    ],
)  # fmt: skip
def test_bad_fields_of_a_form_are_refused(url: str, fields: dict[str, str], message: str):
    form = {name: (None, value) for name, value in {"prompt": "a ball", **fields}.items()}
    answer = httpx.post(f"{url}/v1/videos", files=form)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_files_and_fields_given_twice_are_refused(url: str):
    for form in (
        [("prompt", (None, "a")), ("input_reference", ("a.png", b"1"))],
        [("prompt", (None, "a")), ("input_reference", (None, "a")), ("input_reference", (None, "b"))],
    ):
        answer = httpx.post(f"{url}/v1/videos", files=form)
        assert answer.json()["error"]["message"] == (
            "input_reference is a file, or given twice; this server takes each field once, as text"
        )
    for content in (b"--x", b"", b"--x\r\n\r\n--x--"):
        answer = httpx.post(
            f"{url}/v1/videos", content=content, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert (answer.status_code, answer.json()["error"]["message"][:17]) == (400, "prompt is missing")
    for path, status in (
        ("/v1/videos/none/content", 404),
        ("/v1/videos?limit=x", 400),
        ("/v1/videos?limit=0", 400),
        ("/v1/videos?order=down", 400),
        ("/v1/videos?after=video_deleted", 404),
        ("/v1/images/generations", 405),
    ):
        assert httpx.get(url + path).status_code == status
    answer = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "this model makes clips; use /v1/videos")


def test_a_length_in_seconds_is_a_number_of_frames_that_the_autoencoder_takes(service: Service, url: str):
    made = httpx.post(f"{url}/v1/videos", json={"prompt": "a", "seconds": "1", "num_inference_steps": 1}).json()
    assert made["seconds"] == f"{17 / 16:g}"
    until(lambda: httpx.get(f"{url}/v1/videos/{made['id']}").json()["status"] == "completed")


def test_old_clips_are_forgotten(service: Service, url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(videos, "KEPT", 1)
    for _ in range(2):
        made = httpx.post(f"{url}/v1/videos", json={"prompt": "a", "num_inference_steps": 1}).json()
        until(lambda made=made: httpx.get(f"{url}/v1/videos/{made['id']}").json()["status"] == "completed")
    assert [video["id"] for video in httpx.get(f"{url}/v1/videos").json()["data"]] == [made["id"]]
    assert torch.is_grad_enabled()
