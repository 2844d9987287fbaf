"""A call of Open-Sora's pipeline: against a loop by hand, batches, sizes, given frames, callbacks."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

from ertacache.opensora.time_shift import noise_levels
from small_open_sora import CALL, open_sora, transformer
from small_parts import LENGTH, THREE_PROMPTS

#: t′ of the reference at 480p, 51 frames and 30 steps, and what its embedder sees of it.
TIMES = (
    1000, 992.9314, 985.4678, 977.5754, 969.2159, 960.3469, 950.9203, 940.8815, 930.1691, 918.713, 906.4327, 893.2362,
    879.017, 863.6513, 846.9945, 828.877, 809.0977, 787.4169, 763.5468, 737.1379, 707.7626, 674.8911, 637.86, 595.8265,
    547.7032, 492.0635, 426.9972, 349.8871, 257.0481, 143.121,
)  # fmt: skip
SEEN = (
    1000, 992, 984, 976, 968, 960, 952, 940, 932, 920, 908, 892, 880, 864, 848, 828, 808, 788, 764, 736, 708, 676, 636,
    596, 548, 492, 426, 350, 258, 143,
)  # fmt: skip
SHAPE = (1, 4, 5, 4, 5)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return open_sora()


def latents(pipe: Any, prompt: Any = THREE_PROMPTS[0], seed: int = 0, **more: Any) -> Tensor:
    call = {"generator": torch.Generator().manual_seed(seed), **CALL, **more, "output_type": "latent"}
    return pipe(prompt, **call).frames


def by_hand(pipe: Any, prompt: str, r: float, guidance: float, steps: int, size: tuple[float, float]) -> Tensor:
    """z += v dt from noise to data, with both branches in calls of their own."""
    model, z = pipe.transformer, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    embeds, mask = pipe.encode_prompt(prompt)
    levels = [r * u / (1 + (r - 1) * u) for u in noise_levels(steps)] + [0.0]
    told = {name: torch.tensor([n]) for name, n in zip(("fps", "height", "width"), (24.0, *size), strict=True)}
    for i in range(steps):
        time = torch.tensor([1000 * levels[i]], dtype=torch.float32)
        with torch.no_grad():
            cond, uncond = (
                model(z, time, text, encoder_attention_mask=mask, **told).sample[:, :4]
                for text in (embeds, model.y_embedder.y_embedding[None])
            )
        v = uncond + guidance * (cond - uncond) if guidance > 1 else cond
        z = z + v * (levels[i] - levels[i + 1])
    return z


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_a_call_is_the_loop_of_the_reference(pipe: Any, guidance: float):
    # √(32 · 43 / 512²) = 0.0724 and √5 = 2.2361, each product rounded to bfloat16; 43 is in bfloat16 as it is.
    r = float((torch.tensor(32.0 * 43 / 512**2).bfloat16().sqrt() * torch.tensor(5.0).bfloat16().sqrt()).float())
    expected = by_hand(pipe, THREE_PROMPTS[0], r, guidance, 4, (32.0, 43.0))
    found = latents(pipe, num_inference_steps=4, guidance_scale=guidance)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("rounded", [True, False])
def test_the_noise_levels_are_those_of_the_reference(pipe: Any, rounded: bool):
    pipe.register_to_config(rounded_sizes=rounded)
    pipe._set_timesteps(30, (480, 854), 51)
    told = pipe._told((480, 854), 24.0)
    pipe.register_to_config(rounded_sizes=True)
    times = pipe.scheduler.timesteps
    assert told["width"].tolist() == [856.0 if rounded else 854.0] and told["height"].tolist() == [480.0]
    exact = (480 * 854 * 15) ** 0.5 / 512
    r = 4.84375 if rounded else exact
    assert abs(pipe.scheduler.shift - r) <= (0 if rounded else 1e-15)
    for time, u in zip(times.tolist(), noise_levels(30), strict=True):
        assert abs(time - 1000 * r * u / (1 + (r - 1) * u)) < 2e-4
    if rounded:  # printed to four digits of a float32, whose last bit is 6e-5 there
        assert max(abs(found - time) for found, time in zip(times.tolist(), TIMES, strict=True)) < 1.2e-4
        assert tuple(times.bfloat16().tolist()) == SEEN


def test_the_update_of_the_scheduler_is_that_of_the_reference_but_for_the_sign(pipe: Any):
    """z + v (σ − σ′) bit for bit; the reference takes the difference of 1000 σ, which rounds otherwise by 1e-5."""
    pipe._set_timesteps(30, (480, 854), 51)
    scheduler, z = pipe.scheduler, torch.randn(64, generator=torch.Generator().manual_seed(0))
    sigmas = scheduler.sigmas.tolist()
    for i, t in enumerate(scheduler.timesteps):
        v = torch.randn(64, generator=torch.Generator().manual_seed(i + 1))
        expected = z + v * (scheduler.sigmas[i] - scheduler.sigmas[i + 1])
        dt = (1000 * torch.tensor(sigmas[i]) - 1000 * torch.tensor(sigmas[i + 1])) / 1000
        z, before = scheduler.step(-v, t, z, return_dict=False)[0], z
        assert torch.equal(z, expected)
        assert torch.allclose(z, before + v * dt, rtol=0, atol=1e-6)


def test_the_transformer_sees_what_the_reference_shows_it():
    """In its dtype: latents, captions and timesteps; the null caption as long as the prompt."""
    pipe = open_sora(transformer=transformer().bfloat16())
    seen: list[dict[str, Any]] = []
    forward = pipe.transformer.forward

    def watched(**given: Any) -> Any:
        seen.append(given)
        return forward(**given)

    pipe.transformer.forward = watched
    found = latents(pipe, list(THREE_PROMPTS[:2]), num_inference_steps=3)
    assert found.dtype == torch.float32 and len(seen) == 3
    _, mask = pipe.encode_prompt(list(THREE_PROMPTS[:2]))
    null = pipe.transformer.y_embedder.y_embedding
    for given, t in zip(seen, pipe.scheduler.timesteps, strict=True):
        assert given["hidden_states"].dtype == given["encoder_hidden_states"].dtype == torch.bfloat16
        assert torch.equal(given["timestep"], t.bfloat16().expand(4))
        assert torch.equal(given["encoder_hidden_states"][:2], null.expand(2, -1, -1))
        assert torch.equal(given["encoder_attention_mask"], torch.cat([mask, mask]) != 0)
        assert given["frame_mask"] is None
    noise = torch.randn((2, *SHAPE[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert torch.equal(seen[0]["hidden_states"], torch.cat([noise, noise]))


def test_the_text_encoder_stays_in_float32():
    pipe = open_sora(transformer=transformer().bfloat16())
    embeds, mask = pipe.encode_prompt("a ring")
    assert embeds.dtype == torch.float32 and mask.shape == (1, LENGTH)


def test_two_prompts_of_different_lengths_are_two_calls(pipe: Any):
    prompts = ["a red ring", THREE_PROMPTS[1]]
    _, mask = pipe.encode_prompt(prompts)
    assert len(set(mask.sum(1).tolist())) == 2
    both = latents(pipe, prompts, generator=[torch.Generator().manual_seed(n) for n in (0, 1)])
    for n, prompt in enumerate(prompts):
        one = latents(pipe, prompt, seed=n)
        assert (both[n] - one[0]).abs().max() < 1e-5 * one.abs().max()


def test_several_clips_of_a_prompt_stand_together(pipe: Any):
    generators = [torch.Generator().manual_seed(n) for n in range(4)]
    found = latents(pipe, list(THREE_PROMPTS[:2]), num_videos_per_prompt=2, generator=generators)
    one = latents(pipe, THREE_PROMPTS[1], seed=2)
    assert found.shape == (4, *SHAPE[1:])
    assert (found[2] - one[0]).abs().max() < 1e-5 * one.abs().max()


def test_embeddings_and_noise_of_ones_own(pipe: Any):
    embeds, mask = pipe.encode_prompt(THREE_PROMPTS[0])
    plain, noise = latents(pipe), torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents(pipe, None, prompt_embeds=embeds, prompt_attention_mask=mask), plain)
    tokens = int(mask.sum())
    short = {"prompt_embeds": embeds[:, :tokens], "prompt_attention_mask": mask[:, :tokens].bool()}
    assert (latents(pipe, None, **short) - plain).abs().max() < 1e-5
    assert torch.equal(latents(pipe, seed=5, latents=noise), plain)


def test_scores_and_frames_per_second_reach_the_model(pipe: Any):
    plain, prompt = latents(pipe, "a red ring"), "a red ring aesthetic score: 6.5."
    for changed in ({"fps": 12.0}, {"aesthetic_score": None}, {"motion_score": 5}, {"camera_motion": "pan right"}):
        assert not torch.equal(latents(pipe, "a red ring", **changed), plain)
    assert torch.equal(latents(pipe, prompt, aesthetic_score=None), plain)
    assert torch.equal(latents(pipe, "A red <b>ring</b>"), plain)
    assert not torch.equal(latents(pipe, "A red <b>ring</b>", clean_caption=False), plain)


def test_a_call_leaves_nothing_to_the_next(pipe: Any):
    other = {"height": 48, "width": 32, "num_frames": 22, "num_inference_steps": 3}
    config = copy.deepcopy(dict(pipe.scheduler.config))
    latents(pipe)
    assert torch.equal(latents(pipe, **other), latents(open_sora(), **other))
    assert torch.equal(latents(pipe), latents(open_sora()))
    assert dict(pipe.scheduler.config) == config


def test_the_shift_of_the_scheduler_s_own_configuration_has_no_say(pipe: Any):
    shifted = open_sora(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert torch.equal(latents(shifted), latents(pipe))


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ({"num_frames": 1}, (1, 1, 3, 32, 40)),
        ({"num_frames": 8}, (1, 8, 3, 32, 40)),
        ({"num_frames": 34}, (1, 34, 3, 32, 40)),
        ({"num_frames": 51, "height": 16, "width": 17}, (1, 51, 3, 16, 16)),
        ({"height": 41, "width": 58}, (1, 17, 3, 40, 56)),
    ],
)
def test_odd_sizes_and_lengths(pipe: Any, call: dict[str, Any], shape: tuple[int, ...]):
    arguments = {**CALL, "num_inference_steps": 2, **call}
    assert pipe(THREE_PROMPTS[0], **arguments, output_type="pt").frames.shape == shape


def test_every_form_of_the_result_is_the_same_clip(pipe: Any):
    def made(output_type: str, **more: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        call = {**CALL, "num_inference_steps": 2, "generator": generator, "output_type": output_type, **more}
        return pipe(THREE_PROMPTS[0], **call)

    tensor, array, pictures = (made(kind).frames for kind in ("pt", "np", "pil"))
    assert torch.equal(tensor, torch.from_numpy(array).movedim(-1, 2))
    assert len(pictures) == 1 and len(pictures[0]) == 17 and pictures[0][0].size == (40, 32)
    assert np.array_equal(np.asarray(pictures[0][3]), (array[0, 3] * 255).round().astype("uint8"))
    assert torch.equal(made("pt", return_dict=False)[0], tensor)
    z = made("latent").frames
    with torch.no_grad():
        decoded = pipe.vae.decode(z, num_frames=17).sample
    assert torch.equal(tensor, (decoded / 2 + 0.5).clamp(0, 1).movedim(1, 2))


def test_an_image_is_told_its_own_frames_per_second(pipe: Any):
    assert torch.equal(latents(pipe, num_frames=1), latents(pipe, num_frames=1, fps=12.0))


CLIP = torch.rand(5, 3, 32, 43, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("name", "value", "frames"), [("image", CLIP[0], 1), ("video", CLIP, 2)])
def test_given_frames_come_back_as_they_are(pipe: Any, name: str, value: Any, frames: int):
    found = latents(pipe, **{name: value})
    clip = (value if name == "video" else value[None]).movedim(0, 1)[None]
    with torch.no_grad():
        given = pipe.vae.encode(clip * 2 - 1).latent_dist.sample(torch.Generator().manual_seed(0))
    assert given.shape[2] == frames and torch.equal(found[:, :, :frames], given)
    assert not torch.equal(found[:, :, frames:], latents(pipe)[:, :, frames:])
    assert torch.equal(latents(pipe), latents(open_sora()))


def test_given_frames_with_a_strength_join_in_when_the_noise_is_as_low(pipe: Any):
    """A loop by hand: left alone above the level, noised once at it, denoised from there on."""
    masks: list[Tensor] = []
    forward = pipe.transformer.forward

    def watched(**given: Any) -> Any:
        masks.append(given["frame_mask"])
        return forward(**given)

    generator, model = torch.Generator().manual_seed(0), pipe.transformer
    with torch.no_grad():
        given = pipe.vae.encode(CLIP[0][None, :, None] * 2 - 1).latent_dist.sample(generator)
    z = torch.cat([given, torch.randn(SHAPE, generator=generator)[:, :, 1:]], 2)
    pipe._set_timesteps(6, (32, 43), 17)
    sigmas, strength = pipe.scheduler.sigmas.tolist(), 0.2
    (embeds, mask), joined = pipe.encode_prompt(THREE_PROMPTS[0]), False
    told = {name: torch.tensor([n]) for name, n in (("fps", 24.0), ("height", 32.0), ("width", 43.0))}
    expected: list[bool] = []
    for i in range(6):
        if not joined and strength >= sigmas[i]:
            noise = torch.randn(SHAPE, generator=generator)
            z[:, :, 0] = ((1 - sigmas[i]) * z + sigmas[i] * noise)[:, :, 0]
            joined = True
        expected.append(joined)
        frames = torch.tensor([[joined, True, True, True, True]])
        with torch.no_grad():
            v = model(
                z, torch.tensor([1000 * sigmas[i]]), embeds, encoder_attention_mask=mask, frame_mask=frames, **told
            ).sample[:, :4]
        after = z + v * (sigmas[i] - sigmas[i + 1])
        z = after if joined else torch.cat([z[:, :, :1], after[:, :, 1:]], 2)
    assert set(expected) == {True, False}

    model.forward = watched
    found = latents(pipe, num_inference_steps=6, guidance_scale=1.0, image=CLIP[0], strength=strength)
    del model.forward
    assert [bool(one[0, 0]) for one in masks] == expected and all(bool(one[:, 1:].all()) for one in masks)
    assert (found - z).abs().max() < 2e-5 * z.abs().max()


def test_each_prompt_has_its_own_image(pipe: Any):
    images = [Image.fromarray((frame.movedim(0, -1) * 255).byte().numpy()) for frame in CLIP[:2]]
    generators = [torch.Generator().manual_seed(n) for n in (0, 1)]
    found = latents(pipe, list(THREE_PROMPTS[:2]), image=images, generator=generators, num_inference_steps=3)
    one = latents(pipe, THREE_PROMPTS[1], image=images[1], seed=1, num_inference_steps=3)
    assert (found[1] - one[0]).abs().max() < 1e-5 * one.abs().max()


def test_a_callback_sees_and_changes_the_run(pipe: Any):
    seen: list[tuple[int, float, list[str]]] = []

    def stop(own: Any, i: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((i, float(t), sorted(given)))
        assert own.current_timestep is t and own.num_timesteps == 4
        own._interrupt = i == 1
        return {"latents": torch.zeros_like(given["latents"])}

    found = latents(
        pipe, num_inference_steps=4, callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )  # fmt: skip
    assert seen == [(i, float(pipe.scheduler.timesteps[i]), ["latents", "prompt_embeds"]) for i in (0, 1)]
    assert not found.any() and pipe.current_timestep is None
    assert latents(pipe).any(), "an interrupted call interrupts the next"


def test_a_callback_may_end_guidance(pipe: Any):
    """As diffusers' callbacks for it do: the conditional half, which is the second, goes on."""
    batches: list[int] = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )

    def end(own: Any, i: int, t: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if i != 1:
            return {}
        own._guidance_scale = 0.0
        return {name: given[name].chunk(2)[1] for name in ("prompt_embeds", "prompt_attention_mask")}

    names = ["prompt_embeds", "prompt_attention_mask"]
    latents(pipe, num_inference_steps=4, callback_on_step_end=end, callback_on_step_end_tensor_inputs=names)
    handle.remove()
    assert batches == [2, 2, 1, 1]


def test_a_pipeline_is_saved_and_loaded_bit_for_bit(pipe: Any, tmp_path: Any):
    from ertacache.opensora import OpenSoraPipeline
    from ertacache.pipelines.loading import load_pipeline

    pipe.register_to_config(rounded_sizes=False)
    plain = latents(pipe)
    pipe.save_pretrained(tmp_path)
    pipe.register_to_config(rounded_sizes=True)
    for loaded in (OpenSoraPipeline.from_pretrained(tmp_path), load_pipeline(str(tmp_path), "cpu")):
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is OpenSoraPipeline
        assert torch.equal(latents(loaded), plain)
    half = OpenSoraPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = [half.transformer.dtype, half.vae.dtype, half.text_encoder.dtype]
    assert kinds == [torch.bfloat16, torch.bfloat16, torch.float32]
    one = OpenSoraPipeline.from_pretrained(tmp_path, dtype={"default": torch.bfloat16})
    assert one.text_encoder.dtype == torch.bfloat16
