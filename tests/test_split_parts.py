"""Two parts of a run: FLUX, SDXL and Wan, what either side may say, and what is refused before anything is computed."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import cached
import ertacache
from ertacache.errors import CacheConflict, InvalidArgument, SplitMismatch, UnsupportedPipeline
from ertacache.split import Handover, first_part, second_part, split
from pipelines import CFG_CALL, PROMPTS, VIDEO_CALL, flux, wan
from small_images import pixart_sigma, stable_diffusion, stable_diffusion_xl
from small_parts import autoencoder
from small_token_images import flux_img2img

STEPS = 4
#: Of diffusers' own: numpy's arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def seeds(count: int = 1) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in range(count)]


def flux_call(**more: Any) -> dict[str, Any]:
    return {**CFG_CALL, "num_inference_steps": STEPS, "prompt": PROMPTS[0], "generator": seeds(), **more}


def sd_call(**more: Any) -> dict[str, Any]:
    given = {"num_inference_steps": STEPS, "prompt": PROMPTS[0], "generator": seeds(), "guidance_scale": 4.0}
    return {**given, "height": 32, "width": 32, **more}


def whole(pipe: Any, call: dict[str, Any]) -> Tensor:
    return pipe(**call, output_type="pt")[0]


def there_and_back(pipe: Any, call: dict[str, Any], until: int, **more: Any) -> tuple[Handover, Any]:
    made = Handover.from_bytes(first_part(pipe, call, until=until, **more).to_bytes())
    return made, second_part(pipe, made, {"output_type": "pt"})[0]


def test_flux_with_two_branches_of_a_batch(flux_cfg: Any) -> None:
    def call() -> dict[str, Any]:
        return flux_call(prompt=PROMPTS[:2], negative_prompt=["", "a ring"], generator=seeds(2))

    made, images = there_and_back(flux_cfg, call(), 2)
    assert torch.equal(images, whole(flux_cfg, call()))
    assert (made.packing, made.calls, made.steps, made.dtype) == ("tokens", 4, STEPS, torch.float32)
    assert sorted(made.embeddings) == [
        "negative_pooled_prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "prompt_embeds",
    ]  # fmt: skip
    assert made.source["pipeline"] == "FluxPipeline" and len(made.source["weights"]) == 16


def test_sdxl() -> None:
    pipe = stable_diffusion_xl().pipe
    call = sd_call(original_size=(40, 40), crops_coords_top_left=(3, 4))
    made, images = there_and_back(pipe, call, 3)
    assert torch.equal(images, whole(pipe, sd_call(original_size=(40, 40), crops_coords_top_left=(3, 4))))
    assert made.call["crops_coords_top_left"] == [3, 4] and "negative_pooled_prompt_embeds" in made.embeddings


def test_wan_and_its_solver_of_order_two() -> None:
    pipe = wan()
    call = {**VIDEO_CALL, "num_inference_steps": STEPS, "prompt": PROMPTS[0]}
    made, clip = there_and_back(pipe, {**call, "generator": seeds()}, 2)
    assert torch.equal(clip, whole(pipe, {**call, "generator": seeds()}))
    assert made.call["num_frames"] == VIDEO_CALL["num_frames"] and made.latent.ndim == 5


def test_several_images_of_a_prompt_and_the_texts_in_place_of_embeddings() -> None:
    pipe = stable_diffusion().pipe
    for texts in ("embeddings", "prompt"):
        made, images = there_and_back(pipe, sd_call(num_images_per_prompt=2, generator=seeds(2)), 2, texts=texts)
        assert torch.equal(images, whole(pipe, sd_call(num_images_per_prompt=2, generator=seeds(2)))), texts
        assert len(made.latent) == 2 and bool(made.embeddings) == (texts == "embeddings")
        assert made.call.get("num_images_per_prompt") == (2 if texts == "prompt" else None)


def test_the_grid_is_sent_and_the_noise_may_be_given(flux_cfg: Any) -> None:
    noise = flux_cfg(**flux_call(num_inference_steps=1), output_type="latent")[0]

    def call() -> dict[str, Any]:
        return flux_call(sigmas=[1.0, 0.9, 0.3, 0.1], latents=noise)

    made, images = there_and_back(flux_cfg, call(), 2)
    assert torch.equal(images, whole(flux_cfg, call()))
    assert not {"sigmas", "latents"} & set(made.call) and made.sigmas is not None


def test_all_steps_on_the_first_side_leave_the_decoding() -> None:
    pipe = stable_diffusion().pipe
    made, images = there_and_back(pipe, sd_call(), STEPS)
    assert made.step == made.steps == made.calls == STEPS
    assert torch.equal(images, whole(pipe, sd_call()))


def test_the_second_side_computes_what_is_left_and_nothing_else() -> None:
    pipe, calls = stable_diffusion().pipe, []
    made = first_part(pipe, sd_call(), until=3)
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    second_part(pipe, made, {"output_type": "latent"})
    handle.remove()
    assert len(calls) == STEPS - 3


def test_another_model_goes_on_from_the_latent() -> None:
    large, small = stable_diffusion().pipe, stable_diffusion().pipe
    with torch.no_grad():
        small.unet.conv_out.weight.mul_(0.5)
    with split(large, small, switch=2):
        mixed = whole(large, sd_call())
    made = Handover.from_bytes(first_part(large, sd_call(), until=2).to_bytes())
    assert torch.equal(second_part(small, made, {"output_type": "pt"})[0], mixed)
    assert not torch.equal(mixed, whole(large, sd_call()))


def test_callbacks_see_their_own_steps_and_may_end_the_first_part() -> None:
    pipe, seen = stable_diffusion().pipe, []

    def note(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(i)
        return given

    made = first_part(pipe, sd_call(callback_on_step_end=note), until=2)
    second_part(pipe, made, {"callback_on_step_end": note, "output_type": "latent"})
    assert seen == [0, 1, 2, 3]

    def stop(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = True
        return given

    with pytest.raises(InvalidArgument, match="was interrupted after 1 of 3 steps; nothing can be handed over"):
        first_part(pipe, sd_call(callback_on_step_end=stop), until=3)


def test_a_callback_that_changes_the_latent_is_heard() -> None:
    pipe = stable_diffusion().pipe

    def halve(pipe: Any, i: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": given["latents"] * 0.5} if i == 1 else {}

    expected = whole(pipe, sd_call(callback_on_step_end=halve))
    _, images = there_and_back(pipe, sd_call(callback_on_step_end=halve), 2)
    assert torch.equal(images, expected)


def test_the_pipeline_is_what_it_was_also_after_an_error() -> None:
    pipe = stable_diffusion().pipe
    parts = (pipe, pipe.scheduler, pipe.unet)
    before = [set(vars(part)) for part in parts]
    made = first_part(pipe, sd_call(), until=2)

    def fail(*_: Any) -> dict[str, Any]:
        raise RuntimeError("on purpose")

    for act in (
        lambda: first_part(pipe, sd_call(callback_on_step_end=fail), until=3),
        lambda: second_part(pipe, made, {"callback_on_step_end": fail}),
    ):
        with pytest.raises(RuntimeError, match="on purpose"):
            act()
    after = [set(vars(part)) - {"_interrupt"} for part in parts]
    assert after[1:] == before[1:] and not {"encode_prompt", "prepare_latents"} & after[0]


def test_one_part_at_a_time_on_a_pipeline() -> None:
    pipe = stable_diffusion().pipe

    def again(*_: Any) -> dict[str, Any]:
        first_part(pipe, sd_call(), until=1)
        return {}

    with pytest.raises(CacheConflict, match="a part of a split run is under way on this DDIMScheduler; make one call"):
        first_part(pipe, sd_call(callback_on_step_end=again), until=2)


def test_a_profile_may_be_on_either_side(flux_cfg: Any) -> None:
    """Its own steps are predicted on each; the second one computes until it has a history."""
    assert cached.MASK == "##..#.#..#"
    call = {**CFG_CALL, "prompt": PROMPTS[0]}
    with ertacache.apply(flux_cfg, cached.profile(flux_cfg, "output", cached.MASK)) as stats:
        made = first_part(flux_cfg, {**call, "generator": seeds()}, until=4)
        assert (stats.computed["cond"], stats.predicted["cond"]) == (2, 2)
        second_part(flux_cfg, made, {"output_type": "latent"})
    assert (stats.computed["cond"], stats.predicted["cond"]) == (3, 3)  # of this run: steps 4, 6 and 9


REFUSED_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "until 0": ({"until": 0}, "until is 0; hand over after a whole number of steps from 1 on, and where it would be 0"),
    "until true": ({"until": True}, "until is True; hand over after"),
    "until too late": ({"until": 9}, "until is 9 and DDIMScheduler makes 4 steps here; hand over after 1 to 4"),
    "texts": ({"texts": "ids"}, "texts is 'ids'; choose 'embeddings' or 'prompt'"),
    "unknown argument": ({"call": {"promt": "x"}}, r"no argument 'promt'; StableDiffusionPipeline takes prompt, "),
    "image": ({"call": {"ip_adapter_image": object()}}, "ip_adapter_image is none of the arguments that cross a split"),
    "size": ({"call": {"height": 2**20}}, "height is 1048576 where a whole number from 1 to 32768 belongs"),
    "guidance": ({"call": {"guidance_scale": "7"}}, "guidance_scale is '7' where a number from -1000 to 1000 belongs"),
}


@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_a_first_part_that_cannot_be(case: str) -> None:
    changes, message = REFUSED_CALLS[case]
    given = {"until": 2, **changes}
    call = sd_call(**given.pop("call", {}))
    with pytest.raises(InvalidArgument, match=message):
        first_part(stable_diffusion().pipe, call, **given)


def test_pipelines_that_cannot_be_cut() -> None:
    with pytest.raises(UnsupportedPipeline, match=r"PixArtSigmaPipeline cannot be cut: it does not ask between two"):
        first_part(pixart_sigma().pipe, {}, until=1)
    late = flux_img2img()
    with pytest.raises(UnsupportedPipeline, match=r"FluxImg2ImgPipeline.encode_prompt returns embeddings is not known"):
        first_part(late.pipe, {}, until=1)
    with pytest.raises(InvalidArgument, match="image is none of the arguments that cross a split"):
        first_part(late.pipe, {"image": 1}, until=1, texts="prompt")


def test_a_run_that_does_not_begin_at_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stable_diffusion().pipe
    retrieve = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion.retrieve_timesteps

    def late(*args: Any, **kwargs: Any) -> Any:
        timesteps, count = retrieve(*args, **kwargs)
        return timesteps[1:], count - 1

    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion
    monkeypatch.setattr(module, "retrieve_timesteps", late)
    with pytest.raises(UnsupportedPipeline, match="does not begin at the first step of its own solver"):
        first_part(pipe, sd_call(), until=2)

    def twice(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
        retrieve(scheduler, *args, **kwargs)
        return retrieve(scheduler, *args, **kwargs)

    monkeypatch.setattr(module, "retrieve_timesteps", twice)
    with pytest.raises(UnsupportedPipeline, match="runs its solver more than once in a call, or a copy of it"):
        first_part(pipe, sd_call(), until=2)


@pytest.fixture(scope="module")
def made() -> Handover:
    return first_part(stable_diffusion().pipe, sd_call(), until=2)


def other(change: str) -> Any:
    """A pipeline that differs from the first side's in one thing."""
    pipe = stable_diffusion().pipe
    match change:
        case "solver":
            pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        case "configuration":
            config = {**pipe.scheduler.config, "prediction_type": "v_prediction", "_use_default_values": []}
            pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
        case "scaling":
            pipe.vae = autoencoder(0, scaling_factor=0.5)
        case _:
            config = {"in_channels": 8} if change == "channels" else {"cross_attention_dim": 16}
            pipe.unet = diffusers.UNet2DConditionModel.from_config(
                {**pipe.unet.config, "_use_default_values": [], **config}
            )
    return pipe


MISMATCHES = {
    "solver": "solver: the handover is of DDIMScheduler, this pipeline has EulerDiscreteScheduler; set pipe.scheduler",
    "configuration": r"solver.prediction_type: this pipeline has 'v_prediction', the other one None; set pipe.sched",
    "scaling": r"space.vae.scaling_factor: this pipeline has 0.5, the other one 1.0; hand over to a model with",
    "channels": r"space.denoiser.in_channels: this pipeline has 8, the other one 4; hand over",
    "texts": r"space.denoiser.cross_attention_dim: this pipeline has 16, the other one 32; hand over",
}


@pytest.mark.parametrize("change", MISMATCHES)
def test_a_pipeline_that_a_handover_does_not_belong_to(change: str, made: Handover) -> None:
    with pytest.raises(SplitMismatch, match=MISMATCHES[change]):
        second_part(other(change), made)


def test_a_light_autoencoder_may_decode(made: Handover) -> None:
    pipe = stable_diffusion().pipe
    pipe.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), scaling_factor=1.0, latent_channels=4,
    )  # fmt: skip
    assert second_part(pipe, made, {"output_type": "pt"})[0].shape == (1, 3, 32, 32)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"latent": torch.zeros(1, 4, 8, 8)}, r"latent: the handover has \[1, 4, 8, 8\] in torch.float32, and"),
    "dtype": ({"latent": torch.zeros(1, 4, 16, 16).half()}, r"in torch.float16, .*handover.to\(torch.float32\) for"),
    "timesteps": ({"timesteps": torch.tensor([5000, 3, 2, 1])}, "timesteps: they reach from 1 to 5000 and this solver"),
    "fewer": (
        {"timesteps": torch.tensor([900, 500, 1])},
        r"timesteps: the handover has \[3\] in torch.int64, and DD",
    ),
    "width": ({"embeddings": {"prompt_embeds": torch.zeros(1, 3, 7)}}, "prompt_embeds: texts are 7 wide .* and 32 in"),
    "vast": ({"call": {"height": 2**15, "width": 2**15}}, "height, width: 1073741824 pixels, more than a latent of"),
    "samples": ({"call": {"prompt": ["a"] * 5}}, "prompt: 5 samples of the call and 1 of the latent; ask"),
    "argument": ({"call": {"num_frames": 5}}, "num_frames: the handover is of a StableDiffusionPipeline, and Stable"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_pipeline_cannot_use_is_refused_before_it_computes(case: str, made: Handover) -> None:
    changes, message = WRONG[case]
    pipe, calls = stable_diffusion().pipe, []
    pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    changes = {**changes, **({"call": {**made.call, **changes["call"]}} if "call" in changes else {})}
    with pytest.raises(SplitMismatch, match=message):
        second_part(pipe, replace(made, **changes))
    assert calls == []


def test_what_the_second_side_may_say(made: Handover) -> None:
    pipe = stable_diffusion().pipe
    for name, value in (("prompt", "x"), ("height", 64), ("latents", None)):
        with pytest.raises(InvalidArgument, match=f"{name} of the second part comes with the handover; give it in"):
            second_part(pipe, made, {name: value})
    with pytest.raises(InvalidArgument, match="no argument 'x'; StableDiffusionPipeline takes"):
        second_part(pipe, made, {"x": 1})
    plain, weak = (
        second_part(pipe, made, {"output_type": "latent", **more})[0] for more in ({}, {"guidance_scale": 2.0})
    )
    assert not torch.equal(plain, weak)


def test_bfloat16_on_the_way_is_asked_for(made: Handover) -> None:
    small = made.to(torch.bfloat16)
    assert small.dtype == torch.bfloat16 and len(small.to_bytes()) < len(made.to_bytes())
    back = Handover.from_bytes(small.to_bytes()).to(torch.float32)
    assert torch.equal(back.latent, made.latent.bfloat16().float())
    second_part(stable_diffusion().pipe, back, {"output_type": "latent"})
    with pytest.raises(InvalidArgument, match=r"dtype is torch.int64; hand over in float32, float16 or bfloat16"):
        made.to(torch.int64)


def test_flux_embeds_its_guidance() -> None:
    pipe = flux(seed=0)
    call = {"height": 64, "width": 64, "num_inference_steps": STEPS, "prompt": PROMPTS[0], "guidance_scale": 2.5}
    call["max_sequence_length"] = CFG_CALL["max_sequence_length"]
    made, images = there_and_back(pipe, {**call, "generator": seeds()}, 1)
    assert made.call["guidance_scale"] == 2.5
    assert torch.equal(images, whole(pipe, {**call, "generator": seeds()}))
