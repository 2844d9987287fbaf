"""The parts of the small FLUX, its training loop and its folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from ertacache.errors import InvalidArgument
from ertacache.pipelines.loading import call_arguments, load_pipeline, read_prompts
from ertacache_zoo import catalogue, components, export, flow, scenes
from ertacache_zoo.text import labels, train_encoders
from ertacache_zoo.training import Recipe, learning_rate, train
from pipelines import CALL, PROMPTS, flux, generate


def test_the_transformer_has_the_promised_size():
    model = components.transformer(True)
    assert sum(p.numel() for p in model.parameters()) >= 2_000_000
    assert len(model.transformer_blocks) >= 2
    assert len(model.single_transformer_blocks) >= 4


def test_every_caption_fits_the_tokenizers():
    t5, clip = components.t5_tokenizer(), components.clip_tokenizer()
    for scene in scenes.sample(100, 0, "train"):
        ids = t5(scene.caption).input_ids
        assert len(ids) <= components.MAX_SEQUENCE_LENGTH
        assert t5.unk_token_id not in ids
        assert len(clip(scene.caption).input_ids) <= 77
        assert clip.decode(clip(scene.caption).input_ids, skip_special_tokens=True).strip() == scene.caption


def test_the_scheduler_shifts_64_tokens_like_a_megapixel():
    pipe = flux()
    generate(pipe, PROMPTS[:1], CALL)
    steps = CALL["num_inference_steps"]
    base = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shift = torch.tensor(1.15, dtype=torch.float64).exp()
    expected = shift / (shift + (1 / base - 1))
    assert torch.allclose(pipe.scheduler.sigmas[:-1].double(), expected, atol=1e-6)


def test_a_saved_pipeline_loads_and_draws_the_same(tmp_path: Path):
    pipe = flux()
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    before, after = generate(pipe, PROMPTS[:1], CALL), generate(again, PROMPTS[:1], CALL)
    assert torch.allclose(before, after, atol=1e-5)


def _toy(folder: Path, iterations: int, stop: int | None = None) -> nn.Module:
    module = nn.Linear(3, 1)
    with torch.no_grad():
        module.weight.fill_(0.1)
        module.bias.zero_()
    calls = 0

    def loss(generator: torch.Generator) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=generator)
        return (module(x) - x.sum(1, keepdim=True)).pow(2).mean()

    train("toy", module, loss, Recipe(iterations, 8, 1e-2, warmup=5, ema=0.9, save_every=10), folder)
    return module


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path):
    whole = _toy(tmp_path / "whole", 60)
    with pytest.raises(KeyboardInterrupt):
        _toy(tmp_path / "parts", 60, stop=38)
    parts = _toy(tmp_path / "parts", 60)
    assert torch.equal(whole.weight, parts.weight)
    log = [json.loads(line) for line in (tmp_path / "whole" / "toy.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in log] == [50]


def test_muon_takes_the_matrices_of_repeated_blocks_and_nothing_else(tmp_path: Path):
    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Linear(4, 4, bias=False)
            self.some_blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    torch.manual_seed(0)
    module = Toy()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    given = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).diag_embed()[0] + 0.1

    def loss(_: torch.Generator) -> torch.Tensor:
        return sum((p * (given if p.ndim == 2 else given[0])).sum() for p in module.parameters())  # pyright: ignore[reportReturnType]

    train("toy", module, loss, Recipe(1, 1, 1e-2, warmup=1, muon=True), tmp_path)
    moved = {name: (before[name] - p.detach()) / 1e-2 for name, p in module.named_parameters()}
    # AdamW's first step is a sign, Muon's is orthogonal and, by 0.2 · sqrt(4), as large as AdamW's later are.
    for name in ("embed.weight", "some_blocks.0.bias"):
        assert torch.allclose(moved[name].abs(), torch.ones_like(moved[name]), atol=1e-3)
    lengths = torch.linalg.svdvals(moved["some_blocks.0.weight"]) / (0.2 * 2)
    assert ((lengths > 0.6) & (lengths < 1.3)).all()


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth():
    recipe = Recipe(1100, 1, 2.0, warmup=100)
    assert learning_rate(recipe, 49) == 1.0
    assert learning_rate(recipe, 100) == 2.0
    assert learning_rate(recipe, 600) == pytest.approx(0.02 + 1.98 / 2)
    assert learning_rate(recipe, 1100) == pytest.approx(0.02)


def test_the_text_encoders_learn_which_words_belong_together(tmp_path: Path):
    drawn = scenes.sample(4, 1, "train")
    words, places = labels(drawn)
    first = drawn[0].objects[0]
    colours, shapes = list(scenes.COLOURS), list(scenes.SHAPES)
    assert words[0, 2].tolist()[1:3] == [colours.index(first.colour), shapes.index(first.shape)]
    assert words[0, 8].tolist() == [-100] * 4  # the word "and" belongs to neither
    here = list(scenes.PLACES).index(first.place)
    assert places[0, here].tolist()[1] == colours.index(first.colour) + 1
    assert (places[0] == 0).all(1).sum() == 2  # two places are empty
    tokenizers = components.t5_tokenizer(), components.clip_tokenizer()
    train_encoders(drawn, *tokenizers, tmp_path, Recipe(50, 4, 5e-3, warmup=5))
    log = [json.loads(line) for line in (tmp_path / "text.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 11.5  # seven guesses cost 14.0 nats at the start


def test_distillation_starts_from_the_base_model(tmp_path: Path):
    t5, clip = components.t5_tokenizer(), components.clip_tokenizer()
    drawn = scenes.sample(6, 1, "train")
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    pool = flow.make_pool(latents, [scene.caption for scene in drawn], t5, clip)
    assert pool.latents.shape == (6, 64, 16)
    assert pool.t5_ids.shape == (7, components.MAX_SEQUENCE_LENGTH)
    encoders = components.t5_encoder(t5), components.clip_encoder(clip)
    base = flow.train_base(pool, encoders, tmp_path, Recipe(1, 2, 1e-4), compiled=False)
    student = flow.distil(base, pool, tmp_path, Recipe(1, 2, 0.0), compiled=False)
    text, x, sigma = base.encode(pool.t5_ids[:2], pool.clip_ids[:2]), pool.latents[:2], torch.tensor([0.9, 0.4])
    for weight in (1.0, 7.0):
        drawn_by_student = student(x, sigma, text, torch.full((2,), weight))
        assert torch.allclose(drawn_by_student, base(x, sigma, text, None), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*catalogue.IMAGE_NAMES, *catalogue.DEVICE_NAMES])
def test_a_bundled_model_is_small_documented_and_draws_its_captions(name: str):
    folder = catalogue.folder(name)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size <= 8 * 2**20
    assert {"call.json", "training.json", "README.md", "model_index.json"} <= {path.name for path in folder.iterdir()}
    from ertacache_zoo.check import Judge, draw

    captions = [scene.caption for scene in scenes.sample(12, 77, "heldout")]
    images = draw(load_pipeline(name), captions, 77, call_arguments(name, {}))
    verdict = Judge().judge(images, captions)
    # `ertacache zoo check` measures this on 200 captions; here it is enough to notice a broken model.
    assert verdict.colour_and_place >= 0.6


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_bundled_weights_are_stored_as_float16_and_load_as_float32(name: str):
    folder = catalogue.folder(name)
    pipe = load_pipeline(name)
    for path in folder.rglob("*.safetensors"):
        stored, loaded = load_file(path), getattr(pipe, path.parent.name).state_dict()
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
        assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in stored.items())
    # Who asks for no type gets one type throughout.
    for part in type(pipe).from_pretrained(folder).components.values():
        if isinstance(part, nn.Module):
            assert {tensor.dtype for tensor in part.parameters()} == {torch.float32}


def test_half_precision_keeps_whole_numbers_and_refuses_what_would_overflow(tmp_path: Path):
    path = tmp_path / "vae" / "model.safetensors"
    path.parent.mkdir()
    ids = torch.arange(70_000, 70_003)
    save_file({"weight": torch.full((2,), 0.1), "table": torch.ones(2, dtype=torch.float64), "ids": ids}, path)
    export.in_half_precision(tmp_path)
    stored = load_file(path)
    assert torch.equal(stored["ids"], ids)
    assert stored["weight"].dtype == stored["table"].dtype == torch.float16
    save_file({"weight": torch.tensor([7e4])}, path)
    with pytest.raises(ValueError, match=r"weight of .*model\.safetensors holds values that float16 cannot"):
        export.in_half_precision(tmp_path)
    assert torch.equal(load_file(path)["weight"], torch.tensor([7e4]))


def test_unknown_names_are_refused(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="no bundled model 'huge-flux'; there are tiny-flux, tiny-flux-base"):
        catalogue.folder("huge-flux")
    with pytest.raises(InvalidArgument, match=r"dtype is 'float8'; choose one of float32, float16, bfloat16"):
        load_pipeline("tiny-flux", dtype="float8")
    with pytest.raises(InvalidArgument, match=r"no model '.*nowhere'; there are tiny-flux, tiny-flux-base"):
        load_pipeline(str(tmp_path / "nowhere"))
    for nothing in (None, "", 3):
        with pytest.raises(InvalidArgument, match=r"model is .*; give a bundled model, a diffusers folder or a Hub id"):
            load_pipeline(nothing)  # pyright: ignore[reportArgumentType]


def test_call_arguments_come_from_the_folder_and_give_way(tmp_path: Path):
    (tmp_path / "call.json").write_text('{"height": 64, "guidance_scale": 4.0}')
    found: dict[str, Any] = call_arguments(str(tmp_path), {"guidance_scale": 7.0, "width": None})
    assert found == {"height": 64, "guidance_scale": 7.0}
    (tmp_path / "call.json").write_text("[")
    with pytest.raises(InvalidArgument, match=r"call\.json is no JSON object"):
        call_arguments(str(tmp_path), {})


def test_prompt_files(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(InvalidArgument, match=r"cannot read prompts from .*prompts\.txt"):
        read_prompts(path)
    path.write_text("\n  \n")
    with pytest.raises(InvalidArgument, match=r"holds no prompts; write one a line"):
        read_prompts(path)
    path.write_text("a cat\n\n a dog \n")
    assert read_prompts(path) == ["a cat", "a dog"]
