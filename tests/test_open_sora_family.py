"""Open-Sora's row: blocks that alternate, and an output of which the solver integrates the first half."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ertacache.runtime.apply as ertacache
from dummy_pipeline import PROMPTS, DummyPipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.prompts import Prompts
from ertacache.evaluation.execute import execute
from ertacache.pipelines.denoiser_call import OutputForm, read_output
from ertacache.pipelines.models import blocks_of, family_of
from ertacache.profile.profile import Site
from ertacache.runtime.watch import attentions_of
from open_sora_small import transformer

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

T, W, MASK = 10, 7.0, "##..#.#..#"
#: The predicted steps, and the last computed one before each.
PREDICTED = ((2, 1), (3, 1), (5, 4), (7, 6), (8, 6))
CALL: dict[str, Any] = {"num_inference_steps": T, "guidance_scale": W}


#: Reuse of the last residual, on the solver's own grid.
PLAIN: dict[str, Any] = {"basis": "residual", "rectifier": "none", "timesteps": "none"}


class Loop(DummyPipeline):
    """Both branches in one batch, the conditional one first; the sign turned for diffusers' solver.

    Attributes:
        halved: how the pipeline drops the channels that it does not integrate.
    """

    def __init__(self, halved: str = "slice") -> None:
        super().__init__(transformer().double(), (4, 3, 4, 4), branches=True)
        self.halved = halved

    def _guided(self, x: Tensor, t: Tensor, label: Tensor, weight: float) -> Tensor:
        drawn = [torch.randn(7, 20, generator=torch.Generator().manual_seed(int(n))) for n in label]
        captions = torch.cat((torch.stack(drawn), self.transformer.null_caption(len(x)).float()))
        size = {name: torch.tensor([32.0]) for name in ("height", "width")}
        with torch.no_grad(), self.transformer.cache_context("cond_uncond"):
            output = self.transformer(
                torch.cat((x, x)), t.repeat(2), captions, fps=torch.tensor([24.0]), **size, return_dict=False
            )[0]
        assert self.halved == "slice" or output.shape[1] == 8
        half = output[:, :4] if self.halved == "slice" else output.chunk(2, dim=1)[0]
        cond, uncond = half.chunk(2)
        return -(uncond + weight * (cond - uncond))


def profile(pipe: Loop, site: Site, **choices: Any) -> Any:
    return calibrate(pipe, PROMPTS[:3], schedule=MASK, site=site, holdout=0.3, show_progress=False, **CALL, **choices)


def received(pipe: Loop, wanted: Any = None) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """What the solver was given in each step, outputs and latents, and how often blocks ran."""
    outputs: list[Tensor] = []
    latents: list[Tensor] = []
    step = pipe.scheduler.step
    ran = [0]

    def noted(model_output: Tensor, timestep: Tensor, sample: Tensor, **kwargs: Any) -> Any:
        outputs.append(model_output.clone())
        latents.append(sample.clone())
        return step(model_output, timestep, sample, **kwargs)

    handle = pipe.transformer.spatial_blocks[0].mlp.fc1.register_forward_pre_hook(lambda *_: ran.append(1))
    pipe.scheduler.step = noted
    pipe.set_progress_bar_config()
    try:
        with nullcontext() if wanted is None else ertacache.apply(pipe, wanted):
            pipe(PROMPTS[:1], **CALL, generator=[torch.Generator().manual_seed(3)], output_type="latent")
    finally:
        handle.remove()
        del pipe.scheduler.step
    return outputs, latents, [sum(ran)]


def test_blocks_come_in_the_order_they_run():
    model, ran = transformer(depth=3), list[torch.nn.Module]()
    handles = [
        block.register_forward_pre_hook(lambda block, _: ran.append(block))
        for block in (*model.spatial_blocks, *model.temporal_blocks)
    ]
    pipe = SimpleNamespace(transformer=model)
    size = torch.tensor([32.0])
    with torch.no_grad():
        model(torch.randn(1, 4, 2, 4, 4), size, torch.randn(1, 7, 20), fps=size, height=size, width=size)
    for handle in handles:
        handle.remove()
    assert len(ran) == 6
    assert blocks_of(pipe.transformer) == ran


def test_the_query_projection_of_every_attention_is_found():
    model = transformer()
    names = [name for name, part in model.named_modules() if any(part is found for found in attentions_of(model))]
    assert names == [
        f"{kind}_blocks.{n}.{part}"
        for kind in ("spatial", "temporal")
        for n in range(2)
        for part in ("attn.qkv", "cross_attn.q_linear")
    ]


def test_a_run_is_followed():
    executed = execute(Loop(), None, Prompts(tuple(PROMPTS[:1]), 0), CALL, decode=False)[1]
    assert executed.signature == ((1, 4, 8, 2),) * T


def test_what_the_pipeline_drops_is_no_part_of_the_output():
    model = transformer()
    x, output = torch.zeros(2, 4, 3, 4, 4), torch.randn(2, 8, 3, 4, 4)
    value, form = read_output((output,), x, model)
    assert torch.equal(value, output[:, :4])
    assert form == OutputForm(tuple, surplus=4)
    (whole,) = form.wrap(value, model)
    assert torch.equal(whole, torch.cat((output[:, :4], torch.zeros(2, 4, 3, 4, 4)), 1))
    assert read_output((output[:, :4],), x, model)[1] == OutputForm(tuple)
    other = torch.nn.Linear(2, 2)
    assert not family_of(other).surplus
    assert read_output((output,), x, other)[0] is output


@pytest.mark.parametrize("halved", ["slice", "chunk"])
@pytest.mark.parametrize("site", ["output", "guided"])
def test_the_residual_is_of_the_channels_that_are_integrated(site: Site, halved: str):
    pipe = Loop(halved)
    found, x, (ran,) = received(pipe, profile(pipe, site, **PLAIN))
    plain = received(pipe)[0]
    assert ran == MASK.count("#")
    assert torch.equal(found[0], plain[0])
    sign = 1 if site == "guided" else -1  # the pipeline turns the sign after the denoiser
    for step, before in PREDICTED:
        torch.testing.assert_close(found[step], found[before] + sign * (x[step] - x[before]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("site", ["output", "guided", "hidden"])
def test_every_site_is_calibrated_and_skips_the_blocks(site: Site):
    pipe = Loop("chunk")
    wanted = profile(pipe, site, rectifier="channel", timesteps="none")
    shape = wanted.rectifier.kappa.shape[2:] if site == "hidden" else wanted.predictor.coef_shape
    assert tuple(shape) == (4, 1, 1, 1)
    assert wanted.provenance.latent_shape == (4, 3, 4, 4)
    assert received(pipe, wanted)[2] == [MASK.count("#")]


def test_the_hidden_residual_is_that_of_all_pairs_of_blocks():
    """The last computed step's residual in place of the blocks: the head is given the patches and that."""
    pipe = Loop()
    wanted = profile(pipe, "hidden", **PLAIN)
    model, entries, exits = pipe.transformer, list[Tensor](), list[Tensor]()
    handles = [
        model.spatial_blocks[0].register_forward_pre_hook(lambda _, args: entries.append(args[0])),
        model.final_layer.register_forward_pre_hook(lambda _, args: exits.append(args[0])),
    ]
    received(pipe, wanted)
    for handle in handles:
        handle.remove()
    assert len(entries) == len(exits) == T
    for step, before in PREDICTED:
        torch.testing.assert_close(exits[step] - entries[step], exits[before] - entries[before])
