"""What people do to a pipeline while a profile is applied: adapters, control networks, callbacks."""

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from diffusers import FluxControlNetModel, FluxControlNetPipeline
from torch import Tensor, nn

import ertacache.runtime.apply as ertacache
import supported
from cached import SITES
from ertacache.calibration.calibrate import calibrate
from ertacache.pipelines.models import blocks_of
from ertacache.profile.profile import Profile, Site
from ertacache_zoo import components
from pipelines import CALL, PROMPTS, VIDEO_CALL, flux, generate, wan
from small_images import stable_diffusion_3
from small_wan_videos import picture, video_to_video
from supported import MASK, Small, T

COMPUTED = [int(mark == "#") for mark in MASK]


@dataclass(frozen=True)
class Served:
    """A pipeline of each kind: how it is built and called, and how many denoiser calls a step makes."""

    build: Callable[[], Any]
    call: dict[str, Any]
    calls: int

    def latents(self, pipe: Any, **more: Any) -> Tensor:
        return generate(pipe, PROMPTS[:1], {**self.call, "output_type": "latent"}, **more)


FAMILIES = {
    "flux": Served(flux, {**CALL, "num_inference_steps": T}, 1),
    "wan": Served(wan, {**VIDEO_CALL, "num_inference_steps": T}, 2),
}


@functools.cache
def profile_of(family: str, site: Site) -> Profile:
    served = FAMILIES[family]
    return calibrate(
        served.build(),
        PROMPTS[:2],
        schedule=MASK,
        basis="residual",
        site=site,
        holdout=0.5,
        show_progress=False,
        **served.call,
    )


@dataclass
class Below:
    """What the denoiser and the solver really did, seen from below whatever is applied; one entry per step."""

    ran: list[int] = field(default_factory=lambda: [0])
    outputs: list[Tensor] = field(default_factory=list[Tensor])
    samples: list[Tensor] = field(default_factory=list[Tensor])


@contextmanager
def below(pipe: Any) -> Iterator[Below]:
    """Enter before a profile is applied; each run starts afresh."""
    seen = Below()
    inside = next(blocks_of(pipe.transformer)[0].children())
    set_timesteps, step = pipe.scheduler.set_timesteps, pipe.scheduler.step

    @functools.wraps(set_timesteps)
    def begun(*args: Any, **kwargs: Any) -> Any:
        seen.ran, seen.outputs, seen.samples = [0], [], []
        return set_timesteps(*args, **kwargs)

    @functools.wraps(step)
    def stepped(output: Tensor, t: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.ran.append(0)
        seen.outputs.append(output.clone())
        seen.samples.append(sample.clone())
        return step(output, t, sample, *args, **kwargs)

    def count(*_: Any) -> None:
        seen.ran[-1] += 1

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(pipe.scheduler, "set_timesteps", begun))
        stack.enter_context(mock.patch.object(pipe.scheduler, "step", stepped))
        stack.callback(inside.register_forward_hook(count).remove)
        yield seen


class LoraLinear(nn.Module):
    """As PEFT's: the layer that it takes the place of, plus a product of two thin ones."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
            self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def load_lora(denoiser: nn.Module) -> None:
    """Put an adapter on every query projection, as loading one does."""
    for name, module in list(denoiser.named_modules()):
        if name.endswith("to_q"):
            denoiser.get_submodule(name.removesuffix(".to_q")).to_q = LoraLinear(module)


def unload_lora(denoiser: nn.Module) -> None:
    for name, module in list(denoiser.named_modules()):
        if name.endswith("to_q"):
            denoiser.get_submodule(name.removesuffix(".to_q")).to_q = module.base_layer


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_may_come_and_go_while_a_profile_is_applied(family: str, site: Site):
    served = FAMILIES[family]
    pipe = served.build()
    expected = [n * served.calls for n in COMPUTED]
    with below(pipe) as seen:
        plain = served.latents(pipe)
        load_lora(pipe.transformer)
        with_lora = served.latents(pipe)
        unload_lora(pipe.transformer)
        ertacache.enable(pipe, profile_of(family, site))
        cached = served.latents(pipe)
        assert seen.ran[:T] == expected
        load_lora(pipe.transformer)
        assert not torch.equal(served.latents(pipe), cached) and seen.ran[:T] == expected
        unload_lora(pipe.transformer)
        assert torch.equal(served.latents(pipe), cached) and seen.ran[:T] == expected
        load_lora(pipe.transformer)
        ertacache.disable(pipe)
        assert torch.equal(served.latents(pipe), with_lora)
        unload_lora(pipe.transformer)
        with ertacache.apply(pipe, profile_of(family, site)):  # the other way round
            load_lora(pipe.transformer)
            served.latents(pipe)
            unload_lora(pipe.transformer)
        assert torch.equal(served.latents(pipe), plain)


def flux_controlnet() -> Small:
    """FLUX with a control network of two blocks; what is zero before training is made to matter."""

    def build() -> nn.Module:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers' own use of it
            net = FluxControlNetModel(
                patch_size=1, in_channels=4 * components.LATENT_CHANNELS, num_layers=1, num_single_layers=1,
                attention_head_dim=32, num_attention_heads=4, joint_attention_dim=96, pooled_projection_dim=64,
                guidance_embeds=True, axes_dims_rope=(4, 14, 14),
            )  # fmt: skip
        for block in (net.controlnet_x_embedder, *net.controlnet_blocks, *net.controlnet_single_blocks):
            nn.init.normal_(block.weight, std=0.1)
        return net

    pipe = FluxControlNetPipeline(**flux().components, controlnet=components.seeded(build, seed=9))
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": T, "controlnet_conditioning_scale": 0.7}
    return Small(pipe, call, tuple(PROMPTS[:3]), {"control_image": picture(64)})


@pytest.mark.parametrize("site", SITES)
def test_a_control_network_runs_in_every_step_and_the_denoiser_in_the_computed_ones(site: Site):
    small, controlled = flux_controlnet(), [0]
    pipe, inputs = small.pipe, [small.inputs] * 2
    profile = calibrate(
        pipe, small.prompts[:2], inputs=inputs, schedule=MASK, site=site, holdout=0.5, show_progress=False, **small.call
    )

    def count(*_: Any) -> None:
        controlled[0] += 1

    with below(pipe) as seen:
        plain = supported.generate(small)
        pipe.controlnet.register_forward_hook(count)
        with ertacache.apply(pipe, profile) as stats:
            cached = supported.generate(small)
            assert seen.ran[:T] == COMPUTED and controlled == [T]
        assert stats.computed.total() == sum(COMPUTED) and not torch.equal(cached, plain)
        assert torch.equal(supported.generate(small), plain)
        small.inputs["control_image"] = picture(64, seed=1)
        assert not torch.equal(supported.generate(small), plain), "the control image does not matter"


@pytest.mark.parametrize("site", supported.SITES)
def test_calls_that_start_later_run_where_they_are_not_predicted(site: str):
    """Skip-layer guidance: a second call in steps 1 to 3, of which the schedule predicts step 2."""
    small = stable_diffusion_3()
    small.call |= {
        "skip_guidance_layers": [0], "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.5,
    }  # fmt: skip
    with supported.watched(small.pipe) as watch:
        plain = supported.generate(small)
        both, one = ["call0", "call1"], ["call0"]
        assert watch.steps[:T] == [one, both, both, both, one, one, one, one]
        profile = supported.calibrated(small, site)
        with ertacache.apply(small.pipe, profile) as stats:
            cached = supported.generate(small)
            # At site guided nothing that the calls of a predicted step return is used. At site output the one that the
            # first step did not make is: it runs, the only one of its step.
            assert watch.steps[:T] == [one, both, one if site == "output" else [], both, [], [], one, one]
        assert stats.computed == {"call0": 5, "call1": 3 if site == "output" else 2}
        assert stats.predicted == {"call0": 3} if site == "output" else {"call0": 3, "call1": 1}
        assert cached.isfinite().all() and not torch.equal(cached, plain)
        assert torch.equal(supported.generate(small), plain)


@pytest.mark.parametrize("site", supported.SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_callback_may_rewrite_the_latents(family: str, site: Site):
    """Residual reuse is then v_c + (x_i − x_c) with the x_i that the callback made."""
    served = FAMILIES[family]
    pipe = served.build()

    def rewrite(_: Any, step: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": tensors["latents"] * 0.8} if step in (1, 4) else {}

    with below(pipe) as seen:
        plain = served.latents(pipe)
        rewritten = served.latents(pipe, callback_on_step_end=rewrite)
        every = list(seen.samples)
        with ertacache.apply(pipe, profile_of(family, site)):
            first = served.latents(pipe, callback_on_step_end=rewrite)
            assert seen.ran[:T] == [n * served.calls for n in COMPUTED]
            x, v = seen.samples, seen.outputs
            assert torch.equal(x[2], every[2])  # steps 0 and 1 are computed, and then rewritten
            for i, newest in ((2, 1), (4, 3), (5, 3)):
                torch.testing.assert_close(v[i], v[newest] + (x[i] - x[newest]), rtol=1e-4, atol=1e-4)
            assert torch.equal(served.latents(pipe, callback_on_step_end=rewrite), first)
        assert not torch.equal(rewritten, plain) and torch.equal(served.latents(pipe), plain)


def test_video_to_video_that_starts_late_computes_until_it_has_a_history():
    small = video_to_video()
    with supported.watched(small.pipe) as watch:
        profile = supported.calibrated(small, "output")
        small.call["strength"] = 0.5
        plain = supported.generate(small)
        with ertacache.apply(small.pipe, profile):
            supported.generate(small)
            both = ["call0", "call1"]
            assert watch.steps[: T // 2] == [both, [], both, both]  # of steps 4 to 7 of ##.#..##
        assert torch.equal(supported.generate(small), plain)
