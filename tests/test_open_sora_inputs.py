"""What a call of Open-Sora is given wrongly: named before anything is encoded."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from ertacache.errors import InvalidArgument
from ertacache.opensora.frame_conditioning import check_given
from ertacache.opensora.given_frames import given_frames
from small_open_sora import CALL, open_sora
from small_parts import LENGTH, WIDTH


@pytest.fixture(scope="module")
def pipe() -> Any:
    """With nothing that could run."""
    made = open_sora()

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("the work has begun")

    for part in (made.text_encoder, made.transformer, made.vae):
        part.forward = never
    return made


E = torch.zeros(2, LENGTH, WIDTH)
M = torch.ones(2, LENGTH, dtype=torch.long)
TEXT: dict[str, Any] = {"prompt": "a ring"}

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({}, r"give prompt, or prompt_embeds with prompt_attention_mask: neither of them is given"),
    ({**TEXT, "prompt_embeds": E, "prompt_attention_mask": M}, "give prompt, .*both prompt and prompt_embeds are"),
    ({"prompt_embeds": E}, "prompt_embeds has no prompt_attention_mask; give both"),
    ({"prompt_embeds": E[0], "prompt_attention_mask": M}, r"prompt_embeds has shape \[24, 32\]; give \[prompts, tok"),
    ({"prompt_embeds": E[..., 1:], "prompt_attention_mask": M}, r"prompt_embeds has shape \[2, 24, 31\]; .*32\]"),
    (
        {"prompt_embeds": torch.zeros(1, LENGTH + 1, WIDTH), "prompt_attention_mask": M},
        r"prompt_embeds has shape \[1, 25, 32\]; give .* with up to 24 tokens",
    ),
    ({"prompt_embeds": E, "prompt_attention_mask": M[:1]}, r"prompt_attention_mask has shape \[1, 24\] .*\[2, 24\]"),
    ({"prompt_embeds": E, "prompt_attention_mask": M * 0}, "prompt_attention_mask leaves a prompt without any token"),
    ({**TEXT, "prompt_attention_mask": M}, "prompt_attention_mask belongs to prompt_embeds, and prompt is a text"),
    ({"prompt": []}, r"prompt is \[\]; give a text, or a list"),
    ({"prompt": ["a", 1]}, r"prompt is \['a', 1\]; give a text"),
    ({"prompt": 1}, "prompt is 1; give a text"),
    ({**TEXT, "num_inference_steps": 0}, "num_inference_steps is 0; give 1 or more"),
    ({**TEXT, "num_videos_per_prompt": True}, "num_videos_per_prompt is True; give 1 or more"),
    ({**TEXT, "guidance_scale": float("nan")}, "guidance_scale is nan; give a number from 0 on"),
    ({**TEXT, "guidance_scale": -1}, "guidance_scale is -1; give a number from 0 on"),
    ({**TEXT, "guidance_scale": float("inf")}, "guidance_scale is inf; give a number"),
    ({**TEXT, "fps": 0}, "fps is 0; give frames per second above 0"),
    ({**TEXT, "fps": "24"}, "fps is '24'; give frames per second"),
    ({**TEXT, "strength": 1.0}, r"strength is 1\.0; give a number from 0 .* to below 1"),
    ({**TEXT, "strength": -0.1}, r"strength is -0\.1; give a number"),
    ({**TEXT, "output_type": "gif"}, "output_type is 'gif'; choose one of pil, np, pt, latent"),
    (
        {**TEXT, "callback_on_step_end_tensor_inputs": ["latents", "noise"]},
        "callback_on_step_end_tensor_inputs has 'noise'; choose among latents, prompt_embeds, prompt_attention_mask",
    ),
    ({**TEXT, "num_frames": 0}, "num_frames is 0; give 1 or more"),
    ({**TEXT, "num_frames": 17.0}, r"num_frames is 17\.0; give 1 or more"),
    ({**TEXT, "height": 8}, "height is 8; give height and width"),
    ({**TEXT, "resolution": "480p"}, "height=32 and width=43 exclude resolution='480p'"),
    ({**TEXT, "latents": torch.zeros(1, 4, 5, 4, 4)}, r"latents has .* 4, 4\]; this call needs \[1, 4, 5, 4, 5\]"),
    ({**TEXT, "generator": [torch.Generator()] * 2}, r"generator is a list of 2 for 1 clip\(s\); give one for each"),
    ({**TEXT, "motion_score": float("nan")}, "motion_score is nan; give a finite number"),
    ({**TEXT, "image": Image.new("RGB", (40, 32))}, r"image has 32×40 pixels \(height × width\) and the call 32×43"),
    ({**TEXT, "image": Image.new("RGB", (43, 32)), "num_frames": 1}, r"1 frame\(s\) are given and num_frames is 1; "),
    (
        {**TEXT, "video": torch.zeros(3, 3, 32, 43)},
        r"3 frame\(s\) are given, which end within a latent frame of a clip of 17; give 1$",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), REFUSALS)
def test_a_call_that_cannot_be_is_refused_before_the_work(pipe: Any, given: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        pipe(**{**CALL, **given})


def test_without_a_text_encoder_a_text_is_refused():
    pipe = open_sora(text_encoder=None, tokenizer=None)
    with pytest.raises(InvalidArgument, match=r"^prompt is a text, and the pipeline has no text encoder"):
        pipe("a ring", **CALL)


@pytest.mark.parametrize(
    "scheduler", [lambda: FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), lambda: DDIMScheduler()]
)
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # numpy on diffusers' own schedulers
def test_a_scheduler_without_a_shift_to_set_is_refused(scheduler: Callable[[], Any]):
    with pytest.raises(InvalidArgument, match=r"^scheduler is a .*Scheduler that Open-Sora's shift cannot be set"):
        open_sora(scheduler=scheduler())


PIXELS = np.arange(2 * 16 * 24 * 3, dtype=np.uint8).reshape(2, 16, 24, 3)
TENSOR = torch.from_numpy(PIXELS).movedim(-1, 1)
EXPECTED = (TENSOR.float() / 255 * 2 - 1).movedim(1, 0)[None]  # [1, 3, 2, 16, 24]
SIZE = (16, 24)


@pytest.mark.parametrize(
    "video",
    [
        PIXELS, TENSOR, TENSOR.float() / 255, list(PIXELS), list(TENSOR), [Image.fromarray(frame) for frame in PIXELS],
        PIXELS[None], TENSOR[None], [TENSOR], [PIXELS], [[Image.fromarray(frame) for frame in PIXELS]],
    ],
)  # fmt: skip
def test_a_clip_comes_in_any_form(video: Any):
    found = given_frames(None, video, SIZE, 3)
    assert found is not None and torch.equal(found, EXPECTED)


@pytest.mark.parametrize("image", [PIXELS[0], TENSOR[0], Image.fromarray(PIXELS[0]), [TENSOR[0]], TENSOR[:1]])
def test_an_image_comes_in_any_form(image: Any):
    found = given_frames(image, None, SIZE, 3)
    assert found is not None and torch.equal(found, EXPECTED[:, :, :1])


def test_each_prompt_may_have_its_own():
    images = given_frames(TENSOR, None, SIZE, 2)
    clips = given_frames(None, [TENSOR, TENSOR.flip(0)], SIZE, 2)
    assert images is not None and torch.equal(images, EXPECTED[0].movedim(1, 0)[:, :, None])
    assert clips is not None and torch.equal(clips, torch.cat([EXPECTED, EXPECTED.flip(2)]))
    assert given_frames(None, None, SIZE, 2) is None


@pytest.mark.parametrize(
    ("image", "video", "message"),
    [
        (PIXELS[0], PIXELS, "both image and video are given; give the image to begin with"),
        ([TENSOR[0]] * 3, None, r"3 of image are given for 2 prompt\(s\); give one"),
        (None, [], "video is a list; give a list of images, an array"),
        (None, PIXELS[0], "video is a ndarray; give a list of images"),
        (None, [TENSOR, TENSOR[:1]], r"the clips of video have \[1, 2\] frames; make them equal"),
        ("a ring", None, "image has a part with str; give an image, an array"),
        (torch.zeros(1, *SIZE), None, r"image has a part with shape \[1, 16, 24\]; give an image"),
        (None, [torch.zeros(4, *SIZE)], r"video has a part with shape \[4, 16, 24\]; give a list of images"),
        (None, [TENSOR[0], TENSOR[0, :, :8]], "video has 8×24 pixels"),
        (torch.full((3, *SIZE), -1.0), None, "image has values from -1 to -1; give 0 to 1, or whole numbers"),
        (torch.full((3, *SIZE), float("nan")), None, "image has values from nan to nan; give 0 to 1"),
    ],
)
def test_frames_that_are_none_are_refused(image: Any, video: Any, message: str):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        given_frames(image, video, SIZE, 2)


def latent_frames(frames: int, pad_to: int) -> list[int]:
    """Which latent frame each frame lies in, of a clip of `pad_to` frames: a second formulation of the rule."""
    found: list[int] = []
    for start in range(0, pad_to, 17):
        length = min(17, pad_to - start)
        first = found[-1] + 1 if found else 0
        found += [first + (n + -length % 4) // 4 for n in range(length)]
    return found[:frames]


@pytest.mark.parametrize("num_frames", [*range(2, 40), 51])
def test_given_frames_fill_whole_latent_frames_that_the_clip_groups_alike(num_frames: int):
    """Those that are allowed are those whose own latent frames are the first of the clip's."""
    for given in range(1, num_frames):
        own, whole = latent_frames(given, given), latent_frames(num_frames, num_frames)
        fits = own == whole[:given] and whole[given] != whole[given - 1]
        if fits:
            check_given(given, num_frames)
        else:
            with pytest.raises(InvalidArgument, match="which end within a latent frame of a clip of"):
                check_given(given, num_frames)


def test_the_remedies_work():
    with pytest.raises(InvalidArgument, match=r"a clip of 8; give 4 or choose num_frames=9$"):
        check_given(5, 8)
    with pytest.raises(InvalidArgument, match=r"a clip of 8; num_frames=9$"):
        check_given(1, 8)
    with pytest.raises(InvalidArgument, match=r"a clip of 9; give 5 or choose num_frames=10$"):
        check_given(6, 9, chunk=5, shared=2)  # 5 and 1 of 4, which are grouped in pairs from the end
    check_given(4, 8)
    check_given(5, 9)
    check_given(1, 9)
