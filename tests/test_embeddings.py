"""Prompts that come as embeddings, with the text encoders unloaded: the same profile as from their texts."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ertacache
import small_images as images
import small_token_images as tokens
import small_videos as videos
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.prompts import Prompts, split_prompts
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.evaluation.evaluate import Evaluation, Trial
from ertacache.pipelines.inputs import joined, names_of
from ertacache.profile.profile import Profile
from every_pipeline import small
from supported import MASK, Small

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")

_PAIR = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_PAIR, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
#: What `encode_prompt` of each returns.
ENCODED: dict[str, tuple[Callable[[], Small], tuple[str, ...]]] = {
    "FLUX": (tokens.flux, ("prompt_embeds", "pooled_prompt_embeds", "")),
    "FLUX.2": (tokens.flux2, ("prompt_embeds", "")),
    "Chroma": (tokens.chroma, (*_MASKED[:1], "", _MASKED[1], _MASKED[2], "", _MASKED[3])),
    "Stable Diffusion": (images.stable_diffusion, _PAIR),
    "SDXL": (images.stable_diffusion_xl, _POOLED),
    "SD3": (images.stable_diffusion_3, _POOLED),
    "CogView4": (images.cogview4, _PAIR),
    "Z-Image": (images.z_image, _PAIR),
    "Sana": (images.sana, _MASKED),
    "PixArt": (images.pixart_sigma, _MASKED),
    "AuraFlow": (images.aura_flow, _MASKED),
    "Lumina2": (images.lumina2, _MASKED),
    "HiDream": (images.hidream, (
        "prompt_embeds_t5", "negative_prompt_embeds_t5", "prompt_embeds_llama3", "negative_prompt_embeds_llama3",
        "pooled_prompt_embeds", "negative_pooled_prompt_embeds",
    )),
    "Wan": (lambda: small("Wan"), _PAIR),
    "CogVideoX": (lambda: small("CogVideoX"), _PAIR),
    "CogVideoX image to video": (videos.cogvideox_image_to_video, _PAIR),
    "HunyuanVideo": (videos.hunyuan_video, ("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")),
    "LTX-Video": (videos.ltx.ltx_video, _MASKED),
    "Mochi": (videos.mochi, _MASKED),
    "Allegro": (videos.allegro, _MASKED),
}  # fmt: skip


def encoded(made: Small, names: tuple[str, ...], texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the encoders make of some texts in one call, prompt by prompt."""
    taken = inspect.signature(made.pipe.encode_prompt).parameters
    given = {name: value for name, value in made.call.items() if name in taken}
    for name in ("prompt_2", "prompt_3", "prompt_4"):
        if name in taken:
            given.setdefault(name, None)
    given |= {name: value for name, value in (("device", "cpu"), ("num_images_per_prompt", 1)) if name in taken}
    if "do_classifier_free_guidance" in taken:
        given["do_classifier_free_guidance"] = True
    if isinstance(given.get("negative_prompt"), str):
        given["negative_prompt"] = [given["negative_prompt"]] * len(texts)
    with torch.no_grad():
        found = made.pipe.encode_prompt(prompt=list(texts), **given)
    brought: list[dict[str, Any]] = [{} for _ in texts]
    for name, value in zip(names, found, strict=True):
        if name and value is not None:
            axis = 1 if "llama3" in name else 0
            for n, one in enumerate(brought):
                one[name] = [value[n]] if isinstance(value, list) else value.narrow(axis, n, 1).clone()
    return brought


class Unloaded:
    """A pipeline without its text encoders for the length of a `with` block."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.parts = {n: p for n, p in pipe.components.items() if n.startswith(("text_encoder", "tokenizer"))}

    def __enter__(self) -> None:
        for name in self.parts:
            setattr(self.pipe, name, None)

    def __exit__(self, *_: object) -> None:
        for name, part in self.parts.items():
            setattr(self.pipe, name, part)


OPTIONS: dict[str, Any] = {"schedule": MASK, "basis": "fitted", "history": 2, "holdout": 1 / 3, "show_progress": False}


def of_texts(made: Small, batch_size: int | None) -> Profile:
    inputs = {"inputs": [made.inputs] * 3} if made.inputs else {}
    return calibrate(made.pipe, made.prompts, aim="step", batch_size=batch_size, **OPTIONS, **inputs, **made.call)


def brought_by(made: Small, names: tuple[str, ...], batch_size: int | None) -> list[dict[str, Any]]:
    """Encoded in the batches in which a calibration calls the pipeline: two prompts to fit, one held out."""
    cuts = [(0, 2), (2, 3)] if batch_size is None else [(0, 1), (1, 2), (2, 3)]
    parts = [one for start, end in cuts for one in encoded(made, names, made.prompts[start:end])]
    return [{**made.inputs, **part} for part in parts]


@pytest.mark.filterwarnings(
    "ignore:In CPU autocast", "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers'
@pytest.mark.parametrize("batch_size", [None, 1], ids=["all", "one by one"])
@pytest.mark.parametrize("name", ENCODED)
def test_embeddings_give_the_profile_of_their_texts(name: str, batch_size: int | None):
    build, names = ENCODED[name]
    made = build()
    if batch_size is None and made.batch_size == 1:
        pytest.skip("takes one prompt per call")
    inputs = brought_by(made, names, batch_size)
    expected = of_texts(made, batch_size)
    call = {key: value for key, value in made.call.items() if key != "negative_prompt"}
    with Unloaded(made.pipe):
        found = calibrate(made.pipe, inputs=inputs, aim="step", batch_size=batch_size, **OPTIONS, **call)
    assert torch.equal(found.predictor.a, expected.predictor.a) and found.schedule == expected.schedule
    assert found.provenance.heldout == expected.provenance.heldout
    assert found.provenance.contexts == expected.provenance.contexts


FLUX = ENCODED["FLUX"]


@pytest.fixture(scope="module")
def flux() -> Small:
    return FLUX[0]()


@pytest.fixture(scope="module")
def brought(flux: Small) -> list[dict[str, Any]]:
    return brought_by(flux, FLUX[1], 1)


def calibrated(flux: Small, inputs: Any, **options: Any) -> Profile:
    with Unloaded(flux.pipe):
        return calibrate(flux.pipe, inputs=inputs, aim="step", **{**OPTIONS, **flux.call, **options})


def test_texts_are_names_that_change_nothing(flux: Small, brought: list[dict[str, Any]]):
    plain, named = (calibrated(flux, brought, prompts=prompts) for prompts in (None, ["a", "b", "c"]))
    assert torch.equal(plain.predictor.a, named.predictor.a)
    assert plain.provenance.prompt_hash == named.provenance.prompt_hash
    assert plain.provenance.method["inputs"] == ["pooled_prompt_embeds", "prompt_embeds"]
    other = [{**brought[0], "prompt_embeds": brought[0]["prompt_embeds"] + 1}, *brought[1:]]
    assert calibrated(flux, other).provenance.prompt_hash != plain.provenance.prompt_hash


def test_a_profile_of_embeddings_serves_a_call_with_embeddings(flux: Small, brought: list[dict[str, Any]]):
    profile = calibrated(flux, brought)
    with Unloaded(flux.pipe), ertacache.apply(flux.pipe, profile) as stats, torch.no_grad():
        flux.pipe(**brought[0], **flux.call, output_type="latent", generator=torch.Generator().manual_seed(0))
    assert (dict(stats.computed), dict(stats.predicted)) == ({"cond": 5}, {"cond": 3})


def test_an_evaluation_takes_embeddings(flux: Small, brought: list[dict[str, Any]], tmp_path: Path):
    profile = calibrated(flux, brought)
    prompts = Prompts(("one", "two"), 0, tuple(brought[:2]))
    with Unloaded(flux.pipe):
        evaluation = Evaluation(flux.pipe, prompts, flux.call, "group", tmp_path, samples=0)
        row = evaluation.row(Trial("ours", "uniform", profile=profile))
    texts = Evaluation(flux.pipe, Prompts(flux.prompts[:2], 0), flux.call, "group", tmp_path, samples=0)
    assert row["calls"] == {"cond": 5}
    of_texts = texts.row(Trial("ours", "uniform", profile=profile))
    assert row["psnr"]["values"] == pytest.approx(of_texts["psnr"]["values"], abs=1e-3)


def test_a_checkpoint_belongs_to_its_embeddings(flux: Small, brought: list[dict[str, Any]], tmp_path: Path):
    path = tmp_path / "runs.pt"
    first = calibrated(flux, brought, checkpoint=path)
    same = [{name: value.clone() for name, value in one.items()} for one in brought]
    assert calibrated(flux, same, checkpoint=path) == first
    same[2]["prompt_embeds"][0, 0, 0] += 1e-6
    with pytest.raises(CalibrationError, match="belongs to another calibration"):
        calibrated(flux, same, checkpoint=path)


E1 = torch.zeros(1, 3, 2)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fewer inputs than prompts": (
        {"prompts": ["a", "b"], "inputs": [{"prompt_embeds": E1}] * 3},
        "3 inputs for 2 prompts; give one dictionary per prompt",
    ),
    "one alone": ({"inputs": [{"prompt_embeds": E1}]}, r"1 prompt\(s\) given; calibrate with at least 2"),
    "no text": ({"inputs": [{"prompt_2": "x"}] * 3}, "FluxPipeline needs prompts; give texts, or what its encode_pr"),
    "no prompts at all": ({}, "FluxPipeline needs prompts; give texts"),
    "no batch axis": (
        {"inputs": [{"prompt_embeds": E1[0] + n} for n in range(3)], "batch_size": 1},
        r"prompt_embeds of one prompt is \[3, 2\]; give it with a batch axis of 1 at 0, as encode_prompt returns it",
    ),
    "lengths": (
        {"inputs": [{"prompt_embeds": E1[:, : n + 1]} for n in range(3)]},
        r"prompt_embeds is \[1, 1, 2\] or \[1, 2, 2\] from prompt to prompt, which one call cannot take together; give",
    ),
    "no text encoder": (
        {"prompts": ["a", "b", "c"]},
        r"FluxPipeline has no text_encoder and no text_encoder_2, and its call fails \(.*\); give everything that enc",
    ),
    "half": (
        {"inputs": [{"prompt_embeds": E1 + n} for n in range(3)]},
        "FluxPipeline refuses the call: If `prompt_embeds` are provided",
    ),
    "one twice": (
        {"inputs": [{"prompt_embeds": E1}] * 3},
        r"prompt 'embeddings \w+' is given twice, as number 1, which is fitted to, and number 3, which judges; give ea",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_put_together_is_refused(name: str, flux: Small):
    options, message = REFUSED[name]
    inputs = options.get("inputs")
    with pytest.raises(InvalidArgument, match=message) as caught:
        calibrated(flux, inputs, **{key: value for key, value in options.items() if key != "inputs"})
    assert len(str(caught.value)) < 700  # no dump of tensors


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda x: x.double(), r"prompt_embeds \[1, \d+, \d+\] torch.float64 \(.*dtype.*\); give what its encode_"),
        (lambda x: x.bfloat16(), r"prompt_embeds \[1, \d+, \d+\] torch.bfloat16 \(.*\); .* in the denoiser's dtype"),
        (lambda x: x[..., 1:], r"FluxPipeline fails with .* \(.*shapes cannot be multiplied.*\); give what its"),
    ],
    ids=["float64", "bfloat16", "another width"],
)
def test_embeddings_of_another_model_or_dtype_are_named(
    spoiled: Callable[[torch.Tensor], torch.Tensor], message: str, flux: Small, brought: list[dict[str, Any]]
):
    inputs = [{**one, "prompt_embeds": spoiled(one["prompt_embeds"])} for one in brought]
    with pytest.raises(InvalidArgument, match=message):
        calibrated(flux, inputs, batch_size=1)


def test_an_error_of_another_kind_is_the_pipelines_own(flux: Small, brought: list[dict[str, Any]]):
    def broken(*given: Any) -> None:
        raise RuntimeError("out of memory")

    handle = flux.pipe.transformer.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        calibrated(flux, brought)
    handle.remove()


def test_guidance_without_negative_embeddings_says_what_is_missing():
    made, names = images.stable_diffusion_xl(), _POOLED
    inputs = [{k: v for k, v in one.items() if "negative" not in k} for one in brought_by(made, names, 1)]
    call = {key: value for key, value in made.call.items() if key != "negative_prompt"}
    made.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    with Unloaded(made.pipe), pytest.raises(InvalidArgument, match=r"has no text_encoder.*negative_prompt_embeds"):
        calibrate(made.pipe, inputs=inputs, batch_size=1, **OPTIONS, **call)


def test_what_one_call_is_given_for_several_prompts():
    ones: list[dict[str, Any]] = [
        {
            "prompt_embeds": torch.full((1, 2, 3), float(n)), "prompt_embeds_llama3": torch.full((4, 1, 2), float(n)),
            "prompt_embeds_mask": torch.full((1, 2), n), "negative_prompt_embeds": None, "prompt_embeds_scale": 0.5,
            "negative_prompt": "no", "image": n, "class_labels": n,
        }
        for n in range(2)
    ]  # fmt: skip
    both, first = joined(ones), joined(ones[:1])
    assert both["prompt_embeds"].tolist() == [[[0.0] * 3] * 2, [[1.0] * 3] * 2]
    assert both["prompt_embeds_llama3"].shape == (4, 2, 2) and both["prompt_embeds_llama3"][0, 1].tolist() == [1, 1]
    assert both["prompt_embeds_mask"].tolist() == [[0, 0], [1, 1]] and both["negative_prompt_embeds"] is None
    assert (both["image"], both["negative_prompt"], both["prompt_embeds_scale"]) == ([0, 1], ["no"] * 2, [0.5] * 2)
    assert (first["image"], first["negative_prompt"], first["class_labels"]) == (0, ["no"], [0])
    assert first["prompt_embeds"] is ones[0]["prompt_embeds"]
    listed = [{"prompt_embeds": [torch.zeros(n + 1, 2)]} for n in range(2)]  # a tensor per prompt, of any length
    assert [len(one) for one in joined(listed)["prompt_embeds"]] == [1, 2]
    adapters = [{"ip_adapter_image_embeds": [E1]}] * 2  # whose halves are branches: one prompt at a time
    assert joined(adapters[:1])["ip_adapter_image_embeds"] == [E1]
    with pytest.raises(InvalidArgument, match=r"ip_adapter_image_embeds is list from prompt to prompt.*batch_size=1"):
        joined(adapters)
    with pytest.raises(InvalidArgument, match=r"prompt_cu_seqlens is .*use batch_size=1"):
        joined([{"prompt_cu_seqlens": torch.tensor([0, 3])}] * 2)


def test_names_and_identities_tell_contents_apart():
    ones = [{"prompt_embeds": torch.full((1, 2), float(n)), "image": object()} for n in range(3)]
    names = names_of(ones)
    assert len(set(names)) == 3 and names == names_of(ones) and all(name.startswith("embeddings ") for name in names)
    fitted, chosen, held = split_prompts(None, 0.0, 0.34, 0, ones)
    assert chosen.texts == chosen.identities == ()
    assert fitted.texts + held.texts == tuple(names) == fitted.identities + held.identities
    assert split_prompts(["a", "b", "c"], 0.0, 0.34, 0, ones)[0].identities == tuple(names[:2])
    assert Prompts(("a",), 0, ({"image": 1},)).identities == ("a",)
    labels = names_of([{"class_labels": n} for n in (1, 2)])
    assert len(set(labels)) == 2 and labels[0].startswith("inputs ")
