"""`ertacache quantize`: a folder that every command takes as the quantised model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from entry_point import refused
from ertacache.errors import MissingExtra
from ertacache.extras import present
from ertacache.pipelines.loading import call_arguments, load_pipeline
from ertacache.pipelines.quantizers.layers import DEFAULT_SKIP
from ertacache.pipelines.quantizers.quantize import quantize
from ertacache.pipelines.quantizers.record import mark, quantizer_of
from pipelines import CALL, PROMPTS, flux
from test_cli import invoke


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    flux().save_pretrained(folder)
    (folder / "call.json").write_text(json.dumps(CALL))
    return folder


def drawn(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent", **CALL).images


def test_a_quantised_folder_is_a_model_that_is_quantised_when_it_is_loaded(model: Path, tmp_path: Path):
    out = tmp_path / "w4a8"
    found = invoke("quantize", model, "--scheme", "W4A8", "--out", out, "--skip", "*.ff.net.2", "--json")
    skip = [*DEFAULT_SKIP, "*.ff.net.2"]
    plain, loaded = load_pipeline(str(model)), load_pipeline(str(out))
    quantize(plain, "w4a8", skip=skip)
    layers = sum(type(module).__name__ == "FakeQuantLinear" for module in plain.transformer.modules())
    assert found == {"folder": str(out), "scheme": "w4a8", "skip": skip, "layers": layers}
    assert quantizer_of(loaded.transformer) == quantizer_of(plain.transformer)
    assert torch.equal(drawn(loaded), drawn(plain))
    assert call_arguments(str(out), {}) == CALL
    text = invoke("generate", out, "--prompt", PROMPTS[0], "--out", tmp_path / "image.png")
    assert text.startswith(str(tmp_path / "image.png"))


def test_a_quantised_model_in_half_precision(model: Path, tmp_path: Path):
    invoke("quantize", model, "--scheme", "w8a8", "--out", tmp_path / "half", "--dtype", "bfloat16", "--json")
    loaded, plain = load_pipeline(str(tmp_path / "half"), dtype="bfloat16"), load_pipeline(str(model), dtype="bfloat16")
    quantize(plain, "w8a8")
    assert torch.equal(drawn(loaded), drawn(plain))


def test_the_text_says_what_was_made(model: Path, tmp_path: Path):
    text = invoke("quantize", model, "--scheme", "w4a4", "--out", tmp_path / "new" / "w4a4")
    assert text == f"{model} as w4a4 is in {tmp_path / 'new' / 'w4a4'}: 44 layers quantised\n"


def test_bad_input_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def says(*arguments: object) -> str:
        return refused(monkeypatch, capsys, "quantize", *arguments)

    out, full = tmp_path / "out", tmp_path / "full"
    full.mkdir()
    (full / "kept.txt").write_text("kept")
    assert "no scheme 'int8-wo'; did you mean int8wo?" in says(model, "--scheme", "int8-wo", "--out", out)
    assert "bits is 9; use 2 to 8, or 16" in says(model, "--scheme", "w9a8", "--out", out)
    assert f"the folder {full} is not empty; name a new one" in says(model, "--scheme", "w4a4", "--out", full)
    assert "name a folder" in says(model, "--scheme", "w4a4", "--out", full / "kept.txt")
    skipped = says(model, "--scheme", "w4a4", "--out", out, "--skip", "*.to_z")
    assert "has '*.to_z', which no linear layer in the blocks matches" in skipped
    assert "no model 'nothing'" in says("nothing", "--scheme", "w4a4", "--out", out)
    assert "is not empty" in says(model, "--scheme", "w4a4", "--out", model)
    assert [path.name for path in full.iterdir()] == ["kept.txt"]
    invoke("quantize", model, "--scheme", "w4a4", "--out", tmp_path / "once", "--json")
    again = says(tmp_path / "once", "--scheme", "w8a8", "--out", tmp_path / "twice")
    assert "FluxTransformer2DModel is quantised already (w4a4); load the model that it was made from" in again


@pytest.mark.skipif(not present("torchao"), reason="torchao is not installed")
@pytest.mark.parametrize("scheme", ["int8wo", "int8dq", "fp8wo"])
def test_torchaos_schemes_are_applied_when_the_folder_is_loaded(model: Path, tmp_path: Path, scheme: str):
    invoke("quantize", model, "--scheme", scheme, "--out", tmp_path / scheme, "--json")
    plain, loaded = load_pipeline(str(model)), load_pipeline(str(tmp_path / scheme))
    quantize(plain, scheme)
    assert quantizer_of(loaded.transformer) == quantizer_of(plain.transformer)
    assert torch.equal(drawn(loaded), drawn(plain))


def test_a_folder_of_torchaos_names_it_where_it_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipe = load_pipeline(str(model))
    mark(pipe.transformer, {"scheme": "int8wo", "group": 64, "skip": []})
    pipe.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(MissingExtra, match=r"the scheme 'int8wo' needs torchao; install it with: pip install"):
        load_pipeline(str(tmp_path))
