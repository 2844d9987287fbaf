"""What a profile does to the images of real pipelines, and how much of the denoiser it runs."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import FluxImg2ImgPipeline

import ertacache.runtime.apply as ertacache
from cached import CHANNELS, MASK, SITES, TOKENS, T, call_of, calls_per_step, explicit_loop, fitted, latents, profile
from ertacache.profile.profile import Profile, Rectifier, Site
from pipelines import CALL, PROMPTS, generate

COMPUTED = [int(mark == "#") for mark in MASK]


@pytest.fixture(params=["embedded", "two branches"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("flux" if request.param == "embedded" else "flux_cfg")


def images(pipe: Any, prompts: list[str] = PROMPTS[:1], **more: Any) -> torch.Tensor:
    return generate(pipe, prompts, call_of(pipe), **more)


@pytest.mark.parametrize("site", SITES)
def test_computing_every_step_changes_no_bit(pipe: Any, site: Site) -> None:
    plain = images(pipe)
    with ertacache.apply(pipe, profile(pipe, site, "#" * T)) as stats:
        assert torch.equal(images(pipe), plain)
    assert sum(stats.predicted.values()) == 0


@pytest.mark.parametrize("site", SITES)
def test_the_denoiser_runs_exactly_on_the_computed_steps(pipe: Any, site: Site) -> None:
    wanted = profile(pipe, site)
    contexts = wanted.provenance.contexts
    with ertacache.apply(pipe, wanted) as stats:
        assert calls_per_step(pipe) == [len(contexts) * computed for computed in COMPUTED]
    assert stats.computed == dict.fromkeys(contexts, 5)
    assert stats.predicted == dict.fromkeys(contexts, 5)
    assert stats.runs == 1


def test_extra_bytes_are_what_is_held(flux_cfg: Any) -> None:
    one = TOKENS * CHANNELS * 4
    hidden = TOKENS * 128 * 4
    held = {"output": 2 * one + one, "guided": one + one, "hidden": 2 * hidden}
    for site in SITES:  # outputs, and the input they were computed from
        with ertacache.apply(flux_cfg, profile(flux_cfg, site)) as stats:
            images(flux_cfg)
        assert stats.extra_bytes == held[site], site
    with ertacache.apply(flux_cfg, fitted(flux_cfg, "output")) as stats:
        images(flux_cfg)
    tables = 5 * 2 * (2 * 2 + 2) * CHANNELS * 4  # steps and branches; two levels of both branches, d and b
    assert stats.extra_bytes == 2 * 2 * one + one + tables


@pytest.mark.parametrize("site", ["output", "guided"])
@pytest.mark.parametrize("make", [profile, fitted])
def test_predictions_follow_formula_p(pipe: Any, site: Site, make: Any) -> None:
    wanted = make(pipe, site)
    plain, expected = latents(pipe), explicit_loop(pipe, wanted)
    assert torch.equal(explicit_loop(pipe, profile(pipe, site, "#" * T)), plain)  # the loop is the pipeline's
    with ertacache.apply(pipe, wanted):
        found = latents(pipe)
    assert (expected - plain).abs().max() > 0.02  # what is compared is not just noise in the last digit
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=5e-5)  # sums in another order, T steps long


def test_residual_reuse_is_the_same_before_and_after_guidance(flux_cfg: Any) -> None:
    found: list[torch.Tensor] = []
    for site in ("output", "guided"):
        with ertacache.apply(flux_cfg, profile(flux_cfg, site)):
            found.append(latents(flux_cfg))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_hidden_residual_is_added_to_the_input_of_the_blocks(flux: Any) -> None:
    """Every step but the first predicted: the head sees the embedded latent and the residual of step 0."""
    wanted = profile(flux, "hidden", "#" + "." * (T - 1))
    entries: list[torch.Tensor] = []
    exits: list[torch.Tensor] = []
    flux.transformer.x_embedder.register_forward_hook(lambda m, a, out: entries.append(out))
    # Something added between the blocks, as a ControlNet does, is in the residual already.
    flux.transformer.transformer_blocks[0].register_forward_hook(lambda m, a, out: (out[0], out[1] + 1))
    flux.transformer.norm_out.register_forward_pre_hook(lambda m, a: exits.append(a[0]))
    with ertacache.apply(flux, wanted):
        latents(flux)
    residual = exits[0] - entries[0]
    assert len(exits) == T and residual.abs().max() > 0.1
    for i in range(1, T):
        assert torch.equal(exits[i], entries[i] + residual), i


@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
def test_rectifier_corrects_the_head_at_site_hidden(flux: Any, activation: Any) -> None:
    table = torch.zeros(T, 1, 1, CHANNELS)
    table[[i for i in range(T) if not COMPUTED[i]]] = torch.linspace(-0.3, 0.3, CHANNELS)
    outputs: list[torch.Tensor] = []
    received: list[torch.Tensor] = []
    flux.transformer.proj_out.register_forward_hook(lambda m, a, out: outputs.append(out))
    step = flux.scheduler.step

    def watch(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        received.append(output)
        return step(output, *args, **kwargs)

    flux.scheduler.step = watch
    watch.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    with ertacache.apply(flux, profile(flux, "hidden", rectifier=Rectifier(table, table / 2, activation))):
        latents(flux)
    for i, v in enumerate(outputs):
        kappa, beta = table[i, 0], table[i, 0] / 2
        error = kappa * v + beta if activation == "linear" else torch.sigmoid(4 * kappa * v + 4 * beta - 2)
        expected = v if COMPUTED[i] else v - error
        torch.testing.assert_close(received[i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("site", SITES)
def test_a_second_call_starts_afresh(pipe: Any, site: Site) -> None:
    wanted = profile(pipe, site)
    with ertacache.apply(pipe, wanted):
        fresh = images(pipe, PROMPTS[1:2], seed=7)
    with ertacache.apply(pipe, wanted) as stats:
        images(pipe)
        assert torch.equal(images(pipe, PROMPTS[1:2], seed=7), fresh)
    assert stats.runs == 2
    assert set(stats.computed.values()) == {5}


@pytest.mark.parametrize("site", SITES)
def test_a_batch_of_two_is_two_batches_of_one(pipe: Any, site: Site) -> None:
    with ertacache.apply(pipe, profile(pipe, site)):
        both = images(pipe, PROMPTS[:2])
        apart = [images(pipe, [PROMPTS[n]], seed=n) for n in range(2)]
    torch.testing.assert_close(both, torch.cat(apart), rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
def test_two_images_per_prompt(pipe: Any, site: Site) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    with ertacache.apply(pipe, profile(pipe, site)) as stats:
        apart = [images(pipe, seed=seed) for seed in range(2)]
        both = pipe(PROMPTS[0], generator=generators, num_images_per_prompt=2, output_type="pt", **call_of(pipe))[0]
    torch.testing.assert_close(both, torch.cat(apart), rtol=0, atol=1e-5)
    assert set(stats.computed.values()) == {5}


@pytest.mark.parametrize("site", ["output", "guided"])
def test_bfloat16_is_predicted_in_float32(pipe: Any, site: Site) -> None:
    before = latents(pipe)
    wanted = fitted(pipe, site)
    pipe.to(torch.bfloat16)
    expected = explicit_loop(pipe, wanted)
    with ertacache.apply(pipe, wanted):
        found = latents(pipe)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, expected)
        pipe.to(torch.float32)
        assert latents(pipe).dtype == torch.float32
    assert before.isfinite().all()


def test_bfloat16_hidden_keeps_its_dtype(pipe: Any) -> None:
    wanted = profile(pipe, "hidden")
    # Given, as some versions of torch draw other numbers in half precision.
    noise = torch.randn(1, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(3))
    with ertacache.apply(pipe, wanted):
        exact = images(pipe, latents=noise)
        pipe.to(torch.bfloat16)
        rough = latents(pipe)
        assert rough.dtype == torch.bfloat16
        assert (images(pipe, latents=noise).float() - exact).abs().mean() < 0.05


def late_start(pipe: Any, wanted: Profile, **more: Any) -> tuple[list[int], Any]:
    img2img = FluxImg2ImgPipeline.from_pipe(pipe)
    img2img.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with ertacache.apply(img2img, wanted) as stats:
        return calls_per_step(img2img, image=picture, strength=0.6, **more), stats


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("mask", "ran"),
    [
        ("#.#.##.#.#", [1, 1, 0, 1, 0, 1]),  # the run starts at step 4, matched by its sigma
        ("#.#....#.#", [1, 0, 0, 1, 0, 1]),  # nothing is held at step 4, so it is computed
    ],
)
def test_image_to_image_starts_late(pipe: Any, site: Site, mask: str, ran: list[int]) -> None:
    calls = 1 if call_of(pipe) is CALL else 2
    found, stats = late_start(pipe, profile(pipe, site, mask))
    assert found == [calls * n for n in ran]
    assert set(stats.computed) == set(stats.predicted) == {"cond", "uncond"} - ({"uncond"} if calls == 1 else set())
    assert set(stats.computed.values()) == {sum(ran)}
    assert set(stats.predicted.values()) == {6 - sum(ran)}


def test_image_to_image_computes_until_two_outputs_are_held(flux: Any) -> None:
    assert late_start(flux, fitted(flux, "output", "##...#.#.#"))[0] == [1, 1, 0, 1, 0, 1]
    assert late_start(flux, fitted(flux, "output", "##....#.#."))[0] == [1, 1, 1, 0, 1, 0]


def test_a_late_start_after_an_interrupted_run_holds_nothing(flux: Any) -> None:
    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return tensors

    img2img = FluxImg2ImgPipeline.from_pipe(flux)
    picture = torch.zeros(1, 3, 64, 64)
    with ertacache.apply(img2img, fitted(img2img, "output", "##....#.#.")):
        images(img2img, image=picture, strength=0.6, callback_on_step_end=stop)
        assert calls_per_step(img2img, image=picture, strength=0.6) == [1, 1, 1, 0, 1, 0]


def test_image_to_image_of_computed_steps_changes_no_bit(flux: Any) -> None:
    img2img = FluxImg2ImgPipeline.from_pipe(flux)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    plain = generate(img2img, PROMPTS[:1], CALL, image=picture, strength=0.6)
    with ertacache.apply(img2img, profile(flux, "guided", "#" * T)):
        assert torch.equal(generate(img2img, PROMPTS[:1], CALL, image=picture, strength=0.6), plain)


def test_two_pipelines_do_not_meet(flux: Any, flux_cfg: Any) -> None:
    ours, theirs = profile(flux, "guided", "#.#.#.#.##"), profile(flux_cfg, "hidden")
    with ertacache.apply(flux, ours):
        alone = images(flux)
    with ertacache.apply(flux_cfg, theirs):
        alone_cfg = images(flux_cfg)
    with ertacache.apply(flux, ours) as stats, ertacache.apply(flux_cfg, theirs) as stats_cfg:
        interleaved: list[torch.Tensor] = []

        def other(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 4:
                interleaved.append(images(flux_cfg))
            return tensors

        assert torch.equal(images(flux, callback_on_step_end=other), alone)
        assert torch.equal(interleaved[0], alone_cfg)
    assert (stats.computed, stats_cfg.computed) == ({"cond": 6}, {"cond": 5, "uncond": 5})


def test_a_callback_may_rewrite_the_latents(flux_cfg: Any) -> None:
    """Pinning the latent after each step: what is predicted must come from the new one, and a run ends in it."""
    wanted = profile(flux_cfg, "output", "#" + "." * (T - 1))
    received: list[torch.Tensor] = []

    def rewrite(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        received.append(tensors["latents"])
        return {"latents": torch.full_like(tensors["latents"], float(step))}

    with ertacache.apply(flux_cfg, wanted):
        final = latents(flux_cfg, callback_on_step_end=rewrite)
    assert torch.equal(final, torch.full_like(final, T - 1.0))
    # Residual reuse from latent s to latent t adds t − s to the output; Euler multiplies it by Δσ.
    drift = [(received[i] - (i - 1)) / (wanted.sigmas[i + 1] - wanted.sigmas[i]) - i for i in range(2, T)]
    for step in drift[1:]:
        torch.testing.assert_close(step, drift[0], rtol=0, atol=2e-4)


def test_an_interrupted_run_leaves_nothing_behind(pipe: Any) -> None:
    wanted = profile(pipe, "guided")

    def stop(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 2
        return tensors

    with ertacache.apply(pipe, wanted):
        fresh = images(pipe)
    with ertacache.apply(pipe, wanted) as stats:
        images(pipe, callback_on_step_end=stop)
        assert set(stats.computed.values()) == {2} and set(stats.predicted.values()) == {1}
        assert torch.equal(images(pipe), fresh)


@pytest.mark.parametrize("site", SITES)
def test_outputs_may_be_overwritten_by_the_next_call(flux: Any, site: Site) -> None:
    """As a CUDA graph does, which returns the same memory every time."""
    wanted = profile(flux, site, "##.##...##")
    with ertacache.apply(flux, wanted):
        expected = latents(flux)
    forward, memory = flux.transformer.forward, torch.empty(1, TOKENS, CHANNELS)

    def graph(*args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        memory.copy_(forward(*args, **kwargs)[0])
        return (memory,)

    flux.transformer.forward = graph

    def spoil(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        memory.fill_(torch.nan)
        return tensors

    with ertacache.apply(flux, wanted):
        assert torch.equal(latents(flux, callback_on_step_end=spoil), expected)
