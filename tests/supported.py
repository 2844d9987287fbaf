"""What "a pipeline is supported" means: calls counted under ours, and the plain pipeline back bit for bit."""

import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import ertacache.runtime.apply as ertacache
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines import pipeline_call
from ertacache.profile.profile import Profile

T, MASK = 8, "##.#..##"
SITES: tuple[Literal["output", "guided"], ...] = ("output", "guided")
#: What each site is tested with.
_BASES: dict[str, dict[str, Any]] = {
    "output": {"basis": "residual"},
    "guided": {"basis": "fitted", "history": 2, "aim": "step"},
    "hidden": {"basis": "residual"},
}


@dataclass
class Small:
    """A real pipeline class around small random weights.

    Attributes:
        call: arguments of every call, `num_inference_steps` = T among them; no prompts.
        prompts: two to fit and one to hold out.
        inputs: arguments that are no JSON, such as images, for one prompt.
        refused: sites at which calibration must refuse the pipeline, with a pattern of the reason.
        notes: what the table should say beside what is measured.
        batch_size: prompts per call of the calibration.
        warns: pattern of what diffusers warns of in every call.
    """

    pipe: Any
    call: dict[str, Any]
    prompts: tuple[str, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    batch_size: int | None = None
    warns: str = ""


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        computed, predicted: calls of one run, per context.
        notes: how the pipeline calls its denoiser.
        refused: the reason why this site does not serve it; no counts then.
    """

    pipeline: str
    denoiser: str
    scheduler: str
    computed: dict[str, int]
    predicted: dict[str, int]
    notes: tuple[str, ...] = ()
    refused: str = ""


@dataclass
class Watch:
    """The calls that really ran a denoiser, seen from below whatever is attached to it.

    Attributes:
        steps: their names, solver step by solver step.
        notes: how the first of them was made.
        fail_at: number of calls after which one raises, for the test of what an exception leaves behind.
    """

    steps: list[list[str]] = field(default_factory=lambda: [[]])
    notes: tuple[str, ...] = ()
    fail_at: int | None = None
    context: str | None = None
    _first: tuple[Any, Any] | None = None

    def ran(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._first is None:
            x = kwargs.get("hidden_states", kwargs.get("sample", args[0] if args else None))
            self._first = x, output[0] if isinstance(output, tuple) else output.sample
        step = self.steps[-1]
        step.append(self.context or f"call{len(step)}")
        if self.fail_at is not None and sum(map(len, self.steps)) > self.fail_at:
            raise Interrupted

    def restart(self) -> None:
        self.steps = [[]]

    def stepped(self, latent: Tensor) -> None:
        if not self.notes and self._first is not None and self.steps[0]:
            self.notes = tuple(_notes(self._first, latent, self.steps[0][0].startswith("call")))
        self.steps.append([])


class Interrupted(Exception):
    """Raised in the middle of a run."""


def denoisers(pipe: Any) -> list[nn.Module]:
    """The modules that a pipeline calls in its steps."""
    found = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet"))
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def watched(pipe: Any) -> Iterator[Watch]:
    """Count what really runs. Enter before a profile is applied, so that ours goes outside."""
    watch = Watch()
    kind = type(pipe.scheduler)  # of which a calibration makes copies
    set_timesteps, step = kind.set_timesteps, kind.step

    @functools.wraps(set_timesteps)
    def begun(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch.restart()
        return set_timesteps(self, *args, **kwargs)

    @functools.wraps(step)
    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch.stepped(inspect.signature(step).bind(self, *args, **kwargs).arguments["sample"])
        return step(self, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(kind, "set_timesteps", begun))
        stack.enter_context(mock.patch.object(kind, "step", stepped))
        for module in denoisers(pipe):
            handle = module.register_forward_hook(watch.ran, with_kwargs=True)
            stack.callback(handle.remove)
            if hasattr(module, "cache_context"):
                named = _noting_contexts(module.cache_context, watch)
                stack.enter_context(mock.patch.object(module, "cache_context", named))
        yield watch


def _noting_contexts(cache_context: Any, watch: Watch) -> Any:
    @contextmanager
    def named(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        watch.context = name
        try:
            with cache_context(name, *args, **kwargs):
                yield
        finally:
            watch.context = None

    return named


def _notes(first: tuple[Any, Any], latent: Tensor, unnamed: bool) -> Iterator[str]:
    x, v = first
    if isinstance(x, list):
        yield "a list of latents"
        x, v = torch.stack(x), torch.stack(v)
    if len(x) == 2 * len(latent):
        yield "both branches in one call"
    if x[0].numel() > latent[0].numel():
        yield "conditions concatenated to the latent"
    if v[0].numel() > x[0].numel():
        yield "more channels out than in"
    if unnamed:
        yield "no cache context"


def generate(small: Small, prompt: int = 0, *, decode: bool = False) -> Tensor:
    """The final latents of one prompt, or its picture."""
    call = {"prompt": small.prompts[prompt], **small.call}
    if small.batch_size != 1:
        for name in [name for name in call if name.startswith(("prompt", "negative_prompt"))]:
            call[name] = [call[name]] if isinstance(call[name], str) else call[name]
    generator: Any = torch.Generator().manual_seed(prompt)
    with torch.no_grad():
        return pipeline_call.call(small.pipe, {"generator": generator, **call, **small.inputs}, decode=decode)


def calibrated(small: Small, site: str) -> Profile:
    """A profile of the schedule above, as a file gives it back."""
    more: dict[str, Any] = {"inputs": [small.inputs] * len(small.prompts)} if small.inputs else {}
    profile = calibrate(
        small.pipe, small.prompts, schedule=MASK, site=site, holdout=1 / len(small.prompts), show_progress=False,
        batch_size=small.batch_size, **_BASES[site], **more, **small.call,
    )  # fmt: skip
    return Profile.from_bytes(profile.to_bytes())


def check(small: Small, site: str) -> Result:
    """Everything that a supported pipeline must hold to at one site."""
    with warnings.catch_warnings():
        if small.warns:
            warnings.filterwarnings("ignore", small.warns)
        return _check(small, site)


def _check(small: Small, site: str) -> Result:
    pipe = small.pipe
    names = {
        "pipeline": type(pipe).__name__,
        "denoiser": " + ".join(dict.fromkeys(type(module).__name__ for module in denoisers(pipe))),
        "scheduler": type(pipe.scheduler).__name__,
    }
    if site in small.refused:
        with pytest.raises(UnsupportedPipeline, match=small.refused[site]) as caught:
            calibrated(small, site)
        return Result(**names, computed={}, predicted={}, refused=str(caught.value))
    with watched(pipe) as watch:
        plain = generate(small)
        assert torch.equal(generate(small), plain), "the plain pipeline does not repeat itself"
        profile = calibrated(small, site)
        contexts = list(profile.provenance.contexts)
        expected = [contexts if mark == "#" else [] for mark in str(profile.schedule)]

        with ertacache.apply(pipe, profile) as stats:
            cached = generate(small)
            assert watch.steps[:T] == expected
        assert not torch.equal(cached, plain), "nothing was predicted"
        assert cached.isfinite().all()
        assert torch.equal(generate(small), plain), "the pipeline is not what it was before"
        _check_interrupted(small, watch, profile, plain, cached)
    ran = Counter(name for step in expected for name in step)
    assert stats.computed == ran
    assert stats.predicted == dict.fromkeys(contexts, profile.schedule.T - profile.schedule.K)
    return Result(
        **names,
        computed=dict(ran),
        predicted=dict(stats.predicted),
        notes=tuple(dict.fromkeys((*watch.notes, *small.notes))),
    )


def _check_interrupted(small: Small, watch: Watch, profile: Profile, plain: Tensor, cached: Tensor) -> None:
    """`enable`, a run that dies on the way, one that does not, `disable`."""
    ertacache.enable(small.pipe, profile)
    watch.fail_at = 2
    with pytest.raises(Interrupted):
        generate(small)
    watch.fail_at = None
    assert torch.equal(generate(small), cached), "a run that died left something behind"
    ertacache.disable(small.pipe)
    assert torch.equal(generate(small), plain), "the pipeline is not what it was before"
