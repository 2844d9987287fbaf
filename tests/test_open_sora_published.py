"""Open-Sora from the folders that it is published in: the same bits, strict names, and the command that converts."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import ertacache.cli.app as cli
from entry_point import refused
from ertacache.errors import InvalidArgument, MissingExtra
from ertacache.opensora import OpenSoraPipeline
from ertacache.opensora.published import published_autoencoder, published_transformer
from ertacache.pipelines.loading import load_pipeline
from small_open_sora import CALL, open_sora, published

Sources = dict[str, str]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return open_sora()


@pytest.fixture
def sources(pipe: Any, tmp_path: Path) -> Sources:
    return published(tmp_path, pipe)


def frames(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    call = {**CALL, "num_inference_steps": 2}
    return pipe("a red ring", generator=torch.Generator().manual_seed(0), output_type="pt", **call).frames


@pytest.mark.parametrize("binary", [False, True])
def test_published_folders_give_the_pipeline_bit_for_bit(binary: bool, pipe: Any, tmp_path: Path):
    made = OpenSoraPipeline.from_published(**published(tmp_path, pipe, binary=binary), torch_dtype=torch.float32)
    assert torch.equal(frames(made), frames(pipe))
    assert not (made.vae.training or made.transformer.training or made.text_encoder.training)


def test_dtypes_and_rounding_are_those_asked_for(sources: Sources):
    made = OpenSoraPipeline.from_published(**sources)
    assert [part.dtype for part in (made.transformer, made.vae, made.text_encoder)] == [
        torch.bfloat16, torch.bfloat16, torch.float32,
    ]  # fmt: skip
    assert made.config.rounded_sizes
    half = OpenSoraPipeline.from_published(**sources, text_encoder_dtype=torch.bfloat16, rounded_sizes=False)
    assert half.text_encoder.dtype == torch.bfloat16 and not half.config.rounded_sizes


def test_weights_in_several_files(sources: Sources, pipe: Any):
    folder = Path(sources["transformer"])
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    state = published_transformer(str(folder)).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    (folder / "b.safetensors").unlink()
    with pytest.raises(InvalidArgument, match=r"transformer' lacks b\.safetensors of its weights; fetch it again"):
        published_transformer(str(folder))


def rewritten(source: str, **changes: Tensor | None) -> str:
    """The folder with tensors changed, added, or left out."""
    path = Path(source) / "model.safetensors"
    tensors: dict[str, Any] = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    return source


def test_the_frequencies_need_not_be_in_the_file(sources: Sources, pipe: Any):
    model = published_transformer(rewritten(sources["transformer"], **{"rope.freqs": None}))
    assert torch.equal(model.state_dict()["rope.freqs"], pipe.transformer.state_dict()["rope.freqs"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_embedder.proj.bias": None},
            r"\(missing: x_embedder\.proj\.bias\); give the whole checkpoint",
        ),
        ({"moon.weight": torch.ones(1)}, r"\(unknown: moon\.weight\); give the whole"),
        (
            {**{f"moon.{n}": torch.ones(1) for n in range(7)}, "x_embedder.proj.bias": None},
            r"\(missing: x_embedder\.proj\.bias; unknown: moon\.0, .*moon\.4 and 2 more\)",
        ),
        ({"x_embedder.proj.bias": torch.ones(3)}, r"other shapes .*\(x_embedder\.proj\.bias \[3\], not \[48\]\)"),
    ],
)
def test_tensors_of_another_transformer_are_named(sources: Sources, changes: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        published_transformer(rewritten(sources["transformer"], **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temporal_vae.quant_conv.conv.bias": None}, r"missing: temporal_vae\.quant_conv\.conv\.bias"),
        ({"moon.weight": torch.ones(1)}, r"unknown: moon\.weight"),
        ({"shift": torch.ones(1)}, r"other shapes .*\(shift \[1\], not \[1, 4, 1, 1, 1\]\)"),
    ],
)
def test_tensors_of_another_autoencoder_are_named(sources: Sources, changes: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        published_autoencoder(rewritten(sources["vae"], **changes))


def test_a_configuration_of_another_transformer_is_named(sources: Sources):
    path = Path(sources["transformer"]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "skip_y_embedder": True}))
    with pytest.raises(InvalidArgument, match=r"^skip_y_embedder is True; Open-Sora 1\.2 has"):
        published_transformer(sources["transformer"])


def test_folders_without_what_they_should_hold(sources: Sources, tmp_path: Path):
    for name, changed, message in (
        ("model.safetensors", None, r"has no weights; give a Hub id or folder with one of model\.safetensors, "),
        ("model.safetensors", b"no tensors", r"cannot read the model\.safetensors of .*; give a published Hub id"),
        ("config.json", None, r"has no config\.json; give a published Hub id"),
        ("config.json", b"[]", r"cannot read the config\.json of .*\(a list where an object belongs\)"),
    ):
        path = Path(sources["vae"]) / name
        kept = path.read_bytes()
        path.unlink() if changed is None else path.write_bytes(changed)
        with pytest.raises(InvalidArgument, match=message):
            published_autoencoder(sources["vae"])
        path.write_bytes(kept)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="cannot read the T5 encoder with its tokenizer of "):
        OpenSoraPipeline.from_published(**{**sources, "text_encoder": str(tmp_path / "empty")})


def test_a_hub_id_is_fetched_file_by_file(sources: Sources, pipe: Any, monkeypatch: pytest.MonkeyPatch):
    def fetched(source: str, name: str) -> str:
        if source != "someone/open-sora":
            raise LocalEntryNotFoundError("no network")
        path = Path(sources["transformer"]) / name
        if not path.is_file():
            raise EntryNotFoundError("no such file")
        return str(path)

    folder = Path(sources["transformer"])
    (folder / "model.safetensors").rename(folder / "diffusion_pytorch_model.safetensors")
    monkeypatch.setattr("ertacache.opensora.published.hf_hub_download", fetched)
    state = published_transformer("someone/open-sora").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in pipe.transformer.state_dict().items())
    with pytest.raises(InvalidArgument, match=r"cannot read the config\.json of 'someone/else' \(no network\)"):
        published_transformer("someone/else")


@pytest.mark.parametrize(("module", "name"), [("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf")])
def test_what_reads_a_tokenizer_of_sentencepiece_is_named(
    module: str, name: str, sources: Sources, monkeypatch: pytest.MonkeyPatch
):
    (Path(sources["text_encoder"]) / "tokenizer.json").unlink()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("ertacache.opensora.published.published_transformer", lambda *_: pytest.fail("it loads"))
    with pytest.raises(MissingExtra, match=rf"the tokenizer of '.*t5' needs {name}; .*\[opensora\]'"):
        OpenSoraPipeline.from_published(**sources)


def test_a_tokenizer_of_sentencepiece_is_read(sources: Sources, tmp_path: Path):
    """As the published one comes: without tokenizer.json."""
    pytest.importorskip("google.protobuf")
    import sentencepiece

    folder, corpus = Path(sources["text_encoder"]), tmp_path / "corpus.txt"
    (folder / "tokenizer.json").unlink()
    corpus.write_text("\n".join(["a red ring at the top left", "a blue cross aesthetic score: 6.5."] * 50))
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=64, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 10}))
    made = OpenSoraPipeline.from_published(**sources)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    for text in ("a red ring", "the blue cross at  the left", "a ｒｅｄ ring"):
        assert made.tokenizer(text).input_ids == [*model.encode(text), 1]


def test_the_command_writes_a_folder_that_loads(sources: Sources, pipe: Any, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["convert-open-sora", *sources.values(), "--out", str(out), "--dtype", "float32", "--json"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout) == {"folder": str(out)}
    for loaded in (load_pipeline(str(out), "cpu"), OpenSoraPipeline.from_pretrained(out)):
        assert torch.equal(frames(loaded), frames(pipe))


def test_the_command_s_own_refusals(sources: Sources, tmp_path: Path, monkeypatch: Any, capsys: Any):
    def said(*more: str) -> str:
        return refused(monkeypatch, capsys, "convert-open-sora", *sources.values(), *more)

    (tmp_path / "file").touch()
    assert "file is a file; name a folder" in said("--out", str(tmp_path / "file"))
    out = ("--out", str(tmp_path / "out"))
    assert said(*out, "--dtype", "int8") == "ertacache: --dtype is 'int8'; choose one of float32, float16, bfloat16\n"
    rewritten(sources["transformer"], moon=torch.ones(1))
    assert "(unknown: moon)" in said(*out)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_id_is_refused_without_asking_anybody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidArgument, match=r"cannot read the config\.json of 'a/b/c' .*; give a published Hub id"):
        published_transformer("a/b/c")


def test_the_published_id_is_one_of_a_pipeline(monkeypatch: pytest.MonkeyPatch, pipe: Any):
    """The transformer's alone, as every command takes it for --model."""
    asked: list[tuple[Any, ...]] = []

    def made(transformer: str, **more: Any) -> Any:
        asked.append((transformer, more))
        return pipe

    monkeypatch.setattr(OpenSoraPipeline, "from_published", made)
    assert load_pipeline("hpcai-tech/OpenSora-STDiT-v3", "cpu", "bfloat16") is pipe
    assert asked == [("hpcai-tech/OpenSora-STDiT-v3", {"torch_dtype": torch.bfloat16})]
