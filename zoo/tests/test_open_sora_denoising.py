"""How tiny-open-sora's transformer is trained, and that its pipeline calls it in the same way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ertacache.opensora import OpenSoraPipeline, STDiT3Transformer3DModel
from ertacache_zoo import clip_text, clips, components, open_sora, shape_map, video
from ertacache_zoo.export import write_model
from ertacache_zoo.training import Recipe


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _small() -> Any:
    return components.seeded(
        lambda: STDiT3Transformer3DModel(
            caption_channels=96, depth=1, hidden_size=32, num_heads=2, in_channels=8, input_sq_size=48, mlp_ratio=1.0,
            model_max_length=24,
        ),
        seed=0,
    )  # fmt: skip


Pair = tuple[torch.Tensor, torch.Tensor]


def _pool(count: int = 4) -> tuple[torch.Tensor, Pair, Pair]:
    """Latents, captions of 21 tokens with a mask, and what is where, of clips that are all the same but in text."""
    drawn = clips.sample(1, 0, "train")
    paths = clips.render_with_paths(drawn, 0)[1]
    shown = (
        shape_map.shape_map(drawn, paths).expand(count, -1, -1, -1),
        shape_map.mover_map(drawn, paths).expand(count, -1, -1, -1),
    )
    mask = (torch.arange(24) < 21).long().expand(count, -1)
    text = torch.arange(1.0, count + 1)[:, None, None].expand(-1, 24, 96)
    return _noise(1, 8, 3, 12, 12).expand(count, -1, -1, -1, -1), (text, mask), shown


def _knowing(clean: torch.Tensor, maps: Pair, seen: list[dict[str, Any]]) -> Callable[..., Any]:
    """A forward pass that knows the clip, and what it shows where; it keeps what it was given."""
    sizes = (len(clips.SHAPES), 2)
    parts = [
        torch.nn.functional.one_hot(m[:1].clamp(min=0), n).movedim(-1, 1) for m, n in zip(maps, sizes, strict=True)
    ]
    shown = torch.cat(parts, 1) * 100.0

    def forward(**given: Any) -> tuple[torch.Tensor]:
        seen.append(given)
        x, sigma = given["hidden_states"], given["timestep"].view(-1, 1, 1, 1, 1) / 1000
        velocity = (clean - x) / sigma + 0 * given["encoder_hidden_states"].sum()
        return (torch.cat([velocity, shown.expand(len(x), -1, -1, -1, -1)], 1),)

    return forward


def test_the_exact_velocity_has_no_loss_and_draws_the_clip(tmp_path: Path):
    latents, text, shown = _pool()
    told: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = []
    model = _small()
    model.forward = _knowing(latents[:1], shown, told)
    open_sora.train_transformer(model, latents, text, shown, tmp_path, Recipe(50, 16, 0.0), compiled=False)
    (line,) = (tmp_path / "transformer.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == pytest.approx(0, abs=1e-5)

    words = clip_text.tokenizer()
    encoder = components.seeded(components.t5_encoder, words, seed=0)
    pipe = OpenSoraPipeline(
        words, encoder, components.seeded(open_sora.autoencoder, seed=0), model, open_sora.scheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    model.forward = _knowing(latents[:1], shown, asked)
    drawn = pipe(
        clips.sample(1, 0, "train")[0].caption, **open_sora.CALL, output_type="latent",
        generator=torch.Generator().manual_seed(5),
    ).frames  # fmt: skip
    assert torch.allclose(drawn, latents[:1], atol=1e-4)

    # What stays from step to step is what it was trained with: the same arguments, and the same values.
    assert len(asked) == 30
    assert {name for given in asked for name in given} - {"frame_mask"} == set(told[0])
    for name in ("fps", "height", "width"):
        assert {float(given[name]) for given in (*told, *asked)} == {24.0 if name == "fps" else 48.0}
    # Captions have 21 tokens, and the null caption counts as many.
    for given in (*told, *asked):
        assert (given["encoder_attention_mask"].sum(1) == 21).all()
    null = model.null_caption(1)[0]
    unconditional, conditional = asked[0]["encoder_hidden_states"]
    assert torch.equal(unconditional, null) and not torch.equal(conditional, null)
    dropped = [bool(torch.equal(row, null)) for given in told for row in given["encoder_hidden_states"]]
    assert sum(dropped) / len(dropped) == pytest.approx(video.CAPTION_DROPOUT, abs=0.03)


def test_a_wrong_velocity_and_a_wrong_shape_cost_what_they_should(tmp_path: Path):
    latents, text, shown = _pool()
    model, seen = _small(), []
    right = _knowing(latents[:1], shown, seen)

    def wrong(**given: Any) -> tuple[torch.Tensor]:
        found = right(**given)[0].clone()
        found[:, :8] += 0.5
        found[:, 8:] = 0
        return (found,)

    model.forward = wrong
    open_sora.train_transformer(model, latents, text, shown, tmp_path, Recipe(50, 4, 0.0), compiled=False)
    (line,) = (tmp_path / "transformer.jsonl").read_text().splitlines()
    guess = torch.tensor([len(clips.SHAPES), 2.0]).log().sum().item()
    assert json.loads(line)["loss"] == pytest.approx(0.25 + open_sora.SHAPE_LOSS * guess, abs=1e-4)


def test_the_noise_levels_of_a_batch_are_spread_over_the_solvers():
    generator = torch.Generator().manual_seed(0)
    batches = torch.stack([open_sora.noise_levels(16, generator) for _ in range(400)])
    ordered = batches.sort(1).values
    assert torch.equal(batches, ordered)
    # One of each sixteenth: what is highest in one batch is lower than what comes after it in any other.
    assert (ordered[:, :-1].amax(0) <= ordered[:, 1:].amin(0)).all()
    middle = open_sora.TRAINING_SHIFT / (open_sora.TRAINING_SHIFT + 1)
    assert ordered[:, 7].max() < middle < ordered[:, 8].min()
    pipe = open_sora.scheduler()
    pipe.set_shift(1.734375)  # √3 in bfloat16
    pipe.set_timesteps(sigmas=[1 - i / 30 for i in range(30)])
    assert batches.min() < pipe.timesteps[-1] / 1000 < pipe.timesteps[1] / 1000 < batches.max() <= 1


def test_the_pipeline_shifts_by_the_number_of_latent_frames_alone():
    pipe = OpenSoraPipeline(None, None, open_sora.autoencoder(), open_sora.transformer(), open_sora.scheduler())  # pyright: ignore[reportArgumentType]
    pipe._set_timesteps(30, (48, 48), 9)
    assert pipe.scheduler.shift == 1.734375


@torch.no_grad()
def test_every_block_starts_as_the_identity():
    model = components.seeded(open_sora.transformer, seed=0)
    x, captions, time = _noise(2, 108, 128), _noise(2, 24, 128, seed=1), model.t_block(_noise(2, 128, seed=2))
    rotation = model.rope(3, rounded=True, device=x.device, dtype=x.dtype)
    blocks = [*model.spatial_blocks, *model.temporal_blocks]
    assert len(blocks) == 8
    for block in blocks:
        after = block(x, captions, time.unflatten(-1, (1, 6, -1)), 3, None, rotation if block.temporal else None)
        assert torch.equal(after, x)


def test_the_null_caption_is_learned_where_it_is_read(tmp_path: Path):
    latents, text, shown = _pool()
    model = _small()
    before = model.null_caption(1)[0].clone()
    open_sora.train_transformer(model, latents, text, shown, tmp_path, Recipe(2, 16, 1e-2, seed=1), compiled=False)
    changed = (model.null_caption(1)[0] != before).any(1)
    assert changed.tolist() == [True] * 21 + [False] * 3
    assert "y_embedder.y_embedding" in model.state_dict()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_loss_of_one_clip_falls(tmp_path: Path):
    latents, text, shown = _pool(1)
    recipe = Recipe(100, 2, 1e-2, warmup=5, seed=2)
    open_sora.train_transformer(_small(), latents, text, shown, tmp_path, recipe, compiled=False)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "transformer.jsonl").read_text().splitlines()]
    assert losses[1] < 0.9 * losses[0]


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path):
    recipe = Recipe(6, 4, 1e-2, warmup=2, ema=0.9, weight_decay=0.01, seed=3, save_every=2, muon=True)

    def trained(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        model, passes = _small(), iter(range(1, 100))

        def count(*_: Any) -> None:
            if next(passes) == stop:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(count)
        open_sora.train_transformer(model, *_pool(), folder, recipe, compiled=False)
        return model.state_dict()

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", stop=4)
    parts = trained(tmp_path / "parts")
    assert {name for name, value in whole.items() if not torch.equal(value, parts[name])} == set()


def test_training_sees_the_text_as_the_pipeline_makes_it():
    words = clip_text.tokenizer()
    encoder = components.seeded(components.t5_encoder, words, seed=0)
    pipe = OpenSoraPipeline(words, encoder, open_sora.autoencoder(), open_sora.transformer(), open_sora.scheduler())
    captions = [clip.caption for clip in clips.sample(3, 0, "train")]
    embeds, mask = open_sora.text_embeddings(pipe, captions)
    assert embeds.shape == (3, clip_text.MAX_SEQUENCE_LENGTH, open_sora.TEXT_WIDTH)
    ids, expected = clip_text.tokenize(captions, words)
    assert torch.equal(mask, expected) and (mask.sum(1) == 21).all()
    assert torch.allclose(embeds, encoder(ids, attention_mask=expected)[0], atol=1e-6)
    # Every word is known, and nothing is written behind the caption.
    assert words.unk_token_id not in ids


def test_the_parts_fit_in_eight_megabytes_and_the_code_of_the_readme_calls_them(tmp_path: Path):
    words = clip_text.tokenizer()
    encoder = components.seeded(components.t5_encoder, words, seed=0)
    model = components.seeded(open_sora.transformer, seed=0)
    vae = components.seeded(open_sora.autoencoder, seed=0)
    pipe = OpenSoraPipeline(words, encoder, vae, model, open_sora.scheduler())
    out = write_model(pipe, tmp_path, open_sora.CALL, "", {}, tmp_path, [])
    logs = 2**16
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) + logs <= 8 * 2**20
    assert 3_500_000 < (out / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size < 3_900_000
    readme = video._readme("tiny-open-sora", "kind", OpenSoraPipeline, open_sora.CALL)
    code = readme.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.split("\n\n")[0], names)
    assert names["OpenSoraPipeline"] is OpenSoraPipeline
    called: dict[str, Any] = {}
    given = code.split("video = ")[1]
    exec(
        f"video = {given}", {"pipe": lambda prompt, **call: called.update(call) or type("Output", (), {"frames": [0]})}
    )
    assert called == open_sora.CALL
