"""Profiles for the random pipelines, made without calibration, and an explicit loop to compare the run-time with."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.profile import Profile, Provenance, Site
from ertacache.runtime.identity import identity_of
from pipelines import CALL, CFG_CALL, PROMPTS, generate

SITES: tuple[Site, ...] = ("output", "guided", "hidden")
MASK = "##..#.#..#"
T, TOKENS, CHANNELS = 10, 64, 16
MU = 1.15  # the shift that the scheduler of the random pipelines has at 64 tokens
#: What a run does not look at.
UNUSED: dict[str, Any] = {
    "dtype": "torch.float32",
    "prompt_count": 2,
    "prompt_hash": "0" * 16,
    "holdout_count": 1,
    "seed": 0,
    "method": {},
    "versions": {},
    "heldout": {},
}
CONTEXTS = {False: ("cond",), True: ("cond", "uncond")}


def call_of(pipe: Any) -> dict[str, Any]:
    return CALL if pipe.transformer.config.guidance_embeds else CFG_CALL


def base_sigmas(pipe: Any) -> torch.Tensor:
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / T, T), mu=MU)
    return scheduler.sigmas.float()


def provenance(pipe: Any, **changes: Any) -> Provenance:
    """What a calibration of this pipeline with CALL or CFG_CALL writes down."""
    embedded = bool(pipe.transformer.config.guidance_embeds)
    facts: dict[str, Any] = {
        **identity_of(pipe),
        "num_inference_steps": T,
        "contexts": CONTEXTS[not embedded],
        "guidance_weight": None if embedded else CFG_CALL["true_cfg_scale"],
        "embedded_guidance": CALL["guidance_scale"] if embedded else None,
        "call": call_of(pipe),
        "latent_shape": (TOKENS, CHANNELS),
        "channel_axis": -1,
    }
    return Provenance(**{**facts, **UNUSED, **changes})


def profile(pipe: Any, site: Site, mask: str = MASK, *, basis: str = "residual", **changes: Any) -> Profile:
    """Reuse of the newest output or residual at a site."""
    schedule = Schedule.from_mask(mask)
    facts = changes.pop("provenance", None) or provenance(pipe)
    grid = changes.pop("base_sigmas") if "base_sigmas" in changes else base_sigmas(pipe)
    targets = ("guided",) if site == "guided" else facts.contexts
    reuse = Predictor.plain_reuse if site == "hidden" or basis == "reuse" else Predictor.residual_reuse
    parts: dict[str, Any] = {
        "schedule": schedule,
        "site": site,
        "predictor": reuse(schedule, targets),
        "base_sigmas": grid,
        "sigmas": grid,
        "rectifier": None,
        "provenance": facts,
    }
    return Profile(**{**parts, **changes})


def fitted(pipe: Any, site: Site, mask: str = MASK, levels: int = 2) -> Profile:
    """Every coefficient of formula (P) in use, one per channel; at site `guided` from all calls."""
    plain = profile(pipe, site, mask)
    targets = plain.predictor.targets
    sources = targets if site != "guided" else ("guided", *plain.provenance.contexts)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(T, len(targets), *shape, 1, CHANNELS, generator=generator) * 0.1

    a, d, b = draw(len(sources), levels), draw() + 0.5, draw()
    for m, target in enumerate(targets):
        a[:, m, sources.index(target), 0] += 0.8
    for i in range(T):
        if plain.schedule.computed[i]:
            a[i], d[i], b[i] = 0, 0, 0
        a[i, :, :, plain.schedule.depth(i) :] = 0
    return replace(plain, predictor=Predictor(targets, sources, a, d if site != "hidden" else d * 0, b))


@contextmanager
def block_calls(pipe: Any) -> Iterator[list[int]]:
    """How often the first block really ran, in its attention: the blocks themselves are passed by at site hidden."""
    count = [0]
    transformer = getattr(pipe.transformer, "_orig_mod", pipe.transformer)

    def ran(*_: Any) -> None:
        count[0] += 1

    handle = transformer.transformer_blocks[0].attn.register_forward_hook(ran)
    try:
        yield count
    finally:
        handle.remove()


def calls_per_step(pipe: Any, prompts: list[str] = PROMPTS[:1], **more: Any) -> list[int]:
    """How often the first block ran, for each step of one run."""
    totals = [0]
    with block_calls(pipe) as count:

        def note(_: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            totals.append(count[0])
            return tensors

        generate(pipe, prompts, call_of(pipe), callback_on_step_end=note, **more)
    return np.diff(totals).tolist()


def latents(pipe: Any, prompts: list[str] = PROMPTS[:1], **more: Any) -> torch.Tensor:
    """Final latents [B, N, C] of one run."""
    return generate(pipe, prompts, {**call_of(pipe), "output_type": "latent"}, **more)


@torch.no_grad()
def explicit_loop(pipe: Any, wanted: Profile, prompt: str = PROMPTS[0], seed: int = 0) -> torch.Tensor:
    """Final latents [1, N, C] by Euler over the transformer, formula (P) written out; sites output and guided."""
    call = call_of(pipe)
    branches = {"cond": prompt} if call is CALL else {"cond": prompt, "uncond": ""}
    dtype = pipe.transformer.dtype
    x, ids = pipe.prepare_latents(1, 4, 64, 64, dtype, "cpu", torch.Generator().manual_seed(seed))
    text = {
        name: pipe.encode_prompt(words, None, max_sequence_length=call["max_sequence_length"])
        for name, words in branches.items()
    }
    guidance = torch.tensor([call["guidance_scale"]]) if call is CALL else None

    def branch(name: str, t: torch.Tensor) -> torch.Tensor:
        embeds, pooled, text_ids = text[name]
        return pipe.transformer(
            hidden_states=x, timestep=t, guidance=guidance, pooled_projections=pooled, encoder_hidden_states=embeds,
            txt_ids=text_ids, img_ids=ids,
        ).sample  # fmt: skip

    def combine(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(outputs) == 1:
            return outputs["cond"]
        return outputs["uncond"] + call["true_cfg_scale"] * (outputs["cond"] - outputs["uncond"])

    past: list[dict[str, torch.Tensor]] = []  # newest first: what each source gave, and "x"

    def formula(i: int, target: str) -> torch.Tensor:
        table, m = wanted.predictor, wanted.predictor.targets.index(target)
        total = table.d[i, m] * (x.float() - past[0]["x"].float()) + table.b[i, m]
        for level, held in enumerate(past[: table.levels]):
            for s, source in enumerate(table.sources):
                total = total + table.a[i, m, s, level] * held[source].float()
        return total.to(x.dtype)

    for i, (sigma, sigma_next) in enumerate(zip(wanted.sigmas[:-1], wanted.sigmas[1:], strict=True)):
        if wanted.schedule.computed[i]:
            outputs = {name: branch(name, (sigma * 1000).expand(1).to(dtype) / 1000) for name in branches}
            v = combine(outputs)
            past.insert(0, {**outputs, "guided": v, "x": x})
        elif wanted.site == "guided":
            v = formula(i, "guided")
        else:
            v = combine({name: formula(i, name) for name in branches})
        x = (x.float() + (sigma_next - sigma) * v).to(v.dtype)
    return x
