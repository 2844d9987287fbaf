"""Denoisers that take or give the latent in another form, with conditions beside it, or not in every step."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModelOutput
from torch import Tensor

import ertacache.runtime.apply as ertacache
from ertacache.calibration.calibrate import calibrate
from ertacache.errors import UnsupportedPipeline
from ertacache.pipelines.denoiser_call import leading
from ertacache.profile.profile import Site
from field_pipeline import CALL, MASK, TEXTS, Field, Pipeline, T, check_residual_reuse, profile


class Lists(Pipeline):
    """As Z-Image: a list with one tensor [C, 1, 4] per sample, in and out."""

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        outputs = self.transformer(list(x.unsqueeze(2).unbind(0)), t)[0]
        assert isinstance(outputs, list) and [tuple(part.shape) for part in outputs] == [(2, 1, 4)] * len(x)
        return torch.stack(outputs).squeeze(2)


class ListField(Field):
    def forward(self, x: list[Tensor], t: Tensor) -> Any:
        return (list(self.value(torch.stack(x).squeeze(2), t).unsqueeze(2).unbind(0)),)


@pytest.mark.parametrize("site", ["output", "guided"])
def test_a_list_of_latents_is_a_batch(site: Site) -> None:
    pipe = Lists(ListField())
    plain = pipe.run()
    with ertacache.apply(pipe, profile(pipe, site)) as stats:
        cached = pipe.run()
    check_residual_reuse(pipe, stats, cached)
    assert pipe.transformer.calls == T + 4 and not torch.equal(cached, plain)
    assert torch.equal(pipe.run(), plain)


def test_a_list_of_different_sizes_is_refused() -> None:
    pipe = Lists(ListField())
    with ertacache.apply(pipe, profile(pipe)):
        pipe.scheduler.set_timesteps(T)
        with pytest.raises(UnsupportedPipeline, match=r"different sizes \[\[2, 1, 4\], \[2, 1, 3\]\]; nothing can be"):
            pipe.transformer([torch.ones(2, 1, 4), torch.ones(2, 1, 3)], torch.ones(2))


@dataclass
class Own:
    """What a denoiser returns that is not a tuple."""

    sample: Tensor
    extra: Any = None


class OwnField(Field):
    def __init__(self, kind: Any, extra: Any = None) -> None:
        super().__init__()
        self.kind, self.extra = kind, extra

    def forward(self, sample: Tensor, t: Tensor, return_dict: bool = True) -> Any:
        return self.kind(self.value(sample, t), self.extra)


class Objects(Pipeline):
    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        output = self.transformer(sample=x, t=t)
        assert type(output) is self.transformer.kind
        return output.sample


@pytest.mark.parametrize("kind", [Own, Flux2Transformer2DModelOutput])
def test_an_object_is_answered_by_one_of_its_class(kind: Any) -> None:
    pipe = Objects(OwnField(kind))
    with ertacache.apply(pipe, profile(pipe)) as stats:
        check_residual_reuse(pipe, stats, pipe.run())


class TwoTensors(Field):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        return (self.value(x, t), x)


@pytest.mark.parametrize("build", [lambda: Pipeline(TwoTensors()), lambda: Objects(OwnField(Own, torch.ones(1)))])
def test_a_denoiser_with_further_tensors_is_refused(build: Any) -> None:
    pipe = build()
    with ertacache.apply(pipe, profile(pipe)), pytest.raises(UnsupportedPipeline, match="returns several tensors"):
        pipe.run()
    assert pipe.steps == 1  # computed steps pass as they are


class Conditioned(Pipeline):
    """Conditions after the latent, on both axes."""

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        wide = torch.cat([x, torch.full_like(x, 100.0 + self.steps)], 1)
        return self.transformer(wide, t)[0]


def test_conditions_after_the_latent_are_no_part_of_the_residual() -> None:
    pipe = Conditioned(Field())
    with ertacache.apply(pipe, profile(pipe)) as stats:
        check_residual_reuse(pipe, stats, pipe.run())
    assert stats.extra_bytes == 2 * (2 * 2 * 4) * 8  # output and input, without the conditions
    fitted = calibrate(
        pipe, TEXTS, schedule=MASK, basis="fitted", site="output", history=1, holdout=0.3, show_progress=False, **CALL
    )
    assert fitted.provenance.latent_shape == (2, 4)


def test_the_leading_part() -> None:
    x = torch.arange(48.0).view(2, 4, 6)
    assert torch.equal(leading(x, torch.zeros(2, 3, 5)), x[:, :3, :5])
    assert leading(x, torch.zeros(2, 4, 6)) is x
    for shape in ((1, 4, 6), (2, 5, 6), (2, 4)):
        with pytest.raises(UnsupportedPipeline, match="the residual v − x is not defined at site 'output'"):
            leading(x, torch.zeros(shape))


class Variance(Pipeline):
    """A learned variance: twice the channels, which the pipeline drops."""

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        return self.transformer(x, t)[0].chunk(2, 1)[0]


class VarianceField(Field):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        value = self.value(x, t)
        return (torch.cat([value, value], 1),)


def test_a_learned_variance_has_no_residual_at_site_output() -> None:
    pipe = Variance(VarianceField())
    message = r"output has shape \[\d, 4, 4\] and its input \[\d, 2, 4\].*use site='guided', or basis='reuse'"
    with ertacache.apply(pipe, profile(pipe)), pytest.raises(UnsupportedPipeline, match=message):
        pipe.run()
    for basis in ("residual", "fitted"):
        with pytest.raises(UnsupportedPipeline, match=message):
            calibrate(pipe, TEXTS, schedule=MASK, basis=basis, site="output", holdout=0.3, show_progress=False, **CALL)
    with ertacache.apply(pipe, profile(pipe, "guided")) as stats:
        check_residual_reuse(pipe, stats, pipe.run())
    found = calibrate(
        pipe, TEXTS, schedule=MASK, basis="reuse", site="output", holdout=0.3, show_progress=False, **CALL
    )
    with ertacache.apply(pipe, found):
        pipe.run()
    assert torch.equal(pipe.received[1], pipe.received[0])


class Dropping(Pipeline):
    """From step 2 on without half of the tokens, which the output lacks as well."""

    what = "latent"

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        kept = x[..., :2] if self.steps >= 2 else x
        output = self.transformer(kept, t)[0]
        return torch.cat([output, output], -1) if self.steps >= 2 else output


class DroppingField(Field):
    def forward(self, x: Tensor, t: Tensor) -> Any:
        output = self.value(x, t)
        return (output[..., : 4 if t[0] > 900 else 2],)


class Restored(Pipeline):
    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        output = self.transformer(x, t)[0]
        return torch.cat([output] * (4 // output.shape[-1]), -1)


@pytest.mark.parametrize(
    ("build", "what"), [(lambda: Dropping(Field()), "latent"), (lambda: Restored(DroppingField()), "output")]
)
def test_a_shape_that_changes_within_a_run_is_refused(build: Any, what: str) -> None:
    message = rf"the {what} of call 'call0' has shape \[\d, 2, 2\] at step \d and had \[\d, 2, 4\] before; .*take off"
    for site in ("output", "guided"):
        pipe = build()
        with ertacache.apply(pipe, profile(pipe, site)), pytest.raises(UnsupportedPipeline, match=message):
            pipe.run()
    pipe = build()
    with pytest.raises(UnsupportedPipeline, match=message):
        calibrate(pipe, TEXTS, threshold=0.5, holdout=0.3, show_progress=False, **CALL)


class ThirdCall(Pipeline):
    """As skip-layer guidance: a further call at steps 1 to 3."""

    def guided(self, x: Tensor, t: Tensor) -> Tensor:
        first = self.transformer(x, t)[0]
        if not 1 <= self.steps <= 3:
            return first
        return first + 0.5 * (first - self.transformer(2 * x, t)[0])


def test_a_call_that_starts_midway_is_computed() -> None:
    pipe = ThirdCall(Field())
    with ertacache.apply(pipe, profile(pipe, "output")) as stats:
        pipe.run()
    assert (stats.computed, stats.predicted) == ({"call0": 4, "call1": 3}, {"call0": 4})
    assert pipe.transformer.calls == 7
    first = pipe.received[0] + pipe.seen_x[1] - pipe.seen_x[0]
    t = pipe.scheduler.timesteps[1]
    torch.testing.assert_close(pipe.received[1], first + 0.5 * (first - pipe.seen_x[1] - t / 1000))
    pipe = ThirdCall(Field())
    with ertacache.apply(pipe, profile(pipe, "guided")) as stats:
        pipe.run()
    # The first time there is no output of it to stand in with.
    assert (stats.computed, stats.predicted) == ({"call0": 4, "call1": 2}, {"call0": 4, "call1": 1})


def test_a_call_that_starts_midway_is_no_part_of_a_calibration() -> None:
    pipe = ThirdCall(Field())
    for site in ("output", "guided"):
        found = calibrate(
            pipe, TEXTS, schedule=MASK, basis="fitted", site=site, history=2, aim="step", holdout=0.3,
            show_progress=False, **CALL,
        )  # fmt: skip
        assert found.provenance.contexts == ("call0",)
        with ertacache.apply(pipe, found) as stats:
            pipe.run()
        assert stats.computed["call1"] == (3 if site == "output" else 2)


def test_a_call_without_a_latent_is_refused() -> None:
    pipe = Pipeline(Field())
    with ertacache.apply(pipe, profile(pipe)):
        pipe.scheduler.set_timesteps(T)
        with pytest.raises(UnsupportedPipeline, match="Field was called without a latent tensor; nothing can be"):
            pipe.transformer("latent", torch.ones(1))
