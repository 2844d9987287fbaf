"""Loops by hand whose calls differ in the middle of a step that was begun as a predicted one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import cached
import ertacache.runtime.apply as ertacache
from ertacache.errors import ErtacacheError, ProfileMismatch
from ertacache.profile.profile import Profile
from pipelines import CALL, PROMPTS, flux
from rest_computed import MASK, T


@torch.no_grad()
def loop_by_hand(pipe: Any, doubled: int | None = None, without: int | None = None) -> tuple[list[int], list[Tensor]]:
    """Steps in which the transformer ran, and the latents.

    Args:
        doubled: the step from which on the second call has two branches in its batch.
        without: a step that calls nothing, and goes on from the last output.
    """
    x, ids = pipe.prepare_latents(1, 4, 64, 64, torch.float32, "cpu", torch.Generator().manual_seed(0))
    embeds, pooled, text_ids = pipe.encode_prompt(PROMPTS[0], None, max_sequence_length=CALL["max_sequence_length"])
    pipe.scheduler.set_timesteps(sigmas=[1 - i / T for i in range(T)], mu=cached.MU)
    ran: list[int] = []
    latents: list[Tensor] = []
    handle = pipe.transformer.register_forward_hook(lambda *_: ran.append(len(latents)))

    def call(name: str, x: Tensor, t: Tensor, scale: float) -> Tensor:
        more = {"pooled_projections": (pooled * scale).expand(len(x), -1), "txt_ids": text_ids, "img_ids": ids}
        with pipe.transformer.cache_context(name):
            return pipe.transformer(
                hidden_states=x, timestep=t.expand(len(x)) / 1000, guidance=None, return_dict=False,
                encoder_hidden_states=(embeds * scale).expand(len(x), -1, -1), **more,
            )[0]  # fmt: skip

    v = torch.zeros(0)
    for i, t in enumerate(pipe.scheduler.timesteps):
        if i != without:
            cond = call("cond", x, t, 1.0)
            uncond = call("uncond", torch.cat([x, x]) if doubled is not None and i >= doubled else x, t, 0.0)[:1]
            v = uncond + 4.0 * (cond - uncond)
        x = pipe.scheduler.step(v, t, x, return_dict=False)[0]
        latents.append(x.clone())
    handle.remove()
    return ran, latents


def with_calls(profile: Profile) -> Profile:
    facts = replace(profile.provenance, calls=((0, {"cond": 1, "uncond": 1}),), step_weights=(4.0,) * T)
    return replace(profile, provenance=facts)


@pytest.mark.parametrize("site", ["output", "guided"])
def test_the_second_call_of_a_predicted_step_may_be_the_one_that_differs(site: Any, caplog: Any) -> None:
    """The step ends as it was begun, by the prediction; the next one is computed."""
    pipe = flux(False)
    profile = with_calls(cached.fitted(pipe, site, MASK))
    words = "guidance branches: at step 4 the profile has 1 in the batch of call 'uncond', this call 2;"
    with ertacache.apply(pipe, profile) as stats:
        served, latents = loop_by_hand(pipe)
        assert served == [0, 0, 1, 1, 3, 3, 6, 6, 9, 9]
    with ertacache.apply(pipe, profile, on_mismatch="compute") as stats:
        ran, changed = loop_by_hand(pipe, doubled=4)
    assert ran == [0, 0, 1, 1, 3, 3, 4, *(i for i in range(5, T) for _ in range(2))]
    assert str(stats.reason).startswith(words) and len(caplog.records) == 1
    if site == "guided":
        assert torch.equal(changed[4], latents[4])
    with ertacache.apply(pipe, profile), pytest.raises(ProfileMismatch) as error:
        loop_by_hand(pipe, doubled=4)
    assert str(error.value).startswith(words)


@pytest.mark.parametrize("without", [3, 4])
def test_a_step_without_a_call_after_a_predicted_one(without: int, caplog: pytest.LogCaptureFixture) -> None:
    pipe = flux(False)
    profile = with_calls(cached.fitted(pipe, "output", MASK))
    with ertacache.apply(pipe, profile, on_mismatch="compute") as stats:
        ran, _ = loop_by_hand(pipe, without=without)
    served = [i for i in (0, 1, 3) if i < without]
    assert ran == sorted(2 * [*served, *range(without + 1, T)])
    assert stats.reason is not None and len(caplog.records) == 1
    with ertacache.apply(pipe, profile), pytest.raises(ErtacacheError):
        loop_by_hand(pipe, without=without)
