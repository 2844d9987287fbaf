"""Pipelines without a prompt: class labels, and noise alone; and samples that are more than the prompts."""

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

import ertacache
import pipelines
import small_parts as parts
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.calibrator import Calibrator
from ertacache.calibration.method import Method
from small_parts import seeded

CHOICES: dict[str, Any] = {
    "schedule": "##.#..##", "basis": "reuse", "show_progress": False, "holdout": 1 / 3, "num_inference_steps": 8
}  # fmt: skip


def dit() -> Any:
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, in_channels=4,
            out_channels=8, activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
            norm_elementwise_affine=False,
        ),
        seed=1,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer=transformer, vae=parts.autoencoder(0), scheduler=diffusers.DDIMScheduler())


def noise() -> Any:
    unet = seeded(
        lambda: diffusers.UNet2DModel(
            sample_size=16, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        ),
        seed=2,
    )  # fmt: skip
    return diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler())


@pytest.mark.parametrize("batch_size", [None, 1])
@pytest.mark.parametrize(
    ("build", "inputs", "call"),
    [(dit, [{"class_labels": n} for n in (1, 5, 9)], {"guidance_scale": 4.0}), (noise, [{}] * 3, {"eta": 0.0})],
    ids=["labels", "noise"],
)
@pytest.mark.filterwarnings("ignore:this plan's results are far")
def test_a_pipeline_without_a_prompt_is_calibrated(
    build: Callable[[], Any], inputs: list[dict[str, Any]], call: dict[str, Any], batch_size: int | None
):
    pipe = build()
    profile = calibrate(pipe, inputs=inputs, batch_size=batch_size, **CHOICES, **call)
    assert (profile.provenance.prompt_count, profile.provenance.heldout["prompts"]) == (2, 1)
    given = {"class_labels": [9]} if "class_labels" in inputs[0] else {}
    with ertacache.apply(pipe, profile) as stats:
        pipe(**given, **call, num_inference_steps=8, generator=[torch.Generator().manual_seed(2)], output_type="np")
    assert (sum(stats.computed.values()), sum(stats.predicted.values())) == (5, 3)


@pytest.mark.parametrize("batch_size", [None, 2, 1])
def test_a_threshold_weighs_every_branch_of_its_own_batch(batch_size: int | None):
    """CogVideoX makes both branches in one call: of N prompts 2 N hidden residuals have a norm."""
    pipe, call = pipelines.cogvideox(), {**pipelines.VIDEO_CALL, "num_inference_steps": 6}
    options: dict[str, Any] = {"choose": 0.25, "seed": 0, "batch_size": batch_size, "call": call}
    method = Method("residual", "hidden", levels=0, threshold=0.1)
    calibrator = Calibrator(pipe, pipelines.PROMPTS[:4], hidden=True, **options)
    for n, batch in enumerate(calibrator.batches):
        norms = calibrator.reference.hidden_l1[n]
        assert norms.shape == (6, 2 * len(batch.texts))
        assert calibrator._seat(method, n, None).reference_l1 is not None
        assert torch.equal(calibrator._seat(method, n, None).reference_l1, norms)
    late = Calibrator(pipe, pipelines.PROMPTS[:4], **options)
    assert [len(norms) for norms in late.reference.hidden_l1] == [0] * len(late.batches)
    for n in range(len(late.batches)):  # a run of their own measures the same
        assert torch.equal(late.hidden_l1(n), calibrator.reference.hidden_l1[n])
