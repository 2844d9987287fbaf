"""The plug-ins of vLLM-Omni and SGLang against fakes of the hooks that they use."""

import copy
import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook

import fake_engines as fake
import pipelines
from benchmark_scripts import ROOT
from cached import latents, profile
from ertacache.errors import CacheConflict, InvalidArgument, MissingExtra, ProfileInvalid, ProfileMismatch
from ertacache.integrations import engine, sglang, vllm_omni
from ertacache.runtime.apply import apply
from ertacache.runtime.hooks import attachment_of


@pytest.fixture(autouse=True)
def engines_that_were_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"vllm-omni": vllm_omni.RELEASE, "sglang": sglang.RELEASE}
    monkeypatch.setattr(engine, "version", found.__getitem__)
    monkeypatch.delenv(sglang.VARIABLE, raising=False)


@pytest.fixture
def file(flux: Any, tmp_path: Path) -> Path:
    return profile(flux, "output").save(tmp_path / "profile.safetensors")


@pytest.fixture
def adapter() -> Iterator[Any]:
    with fake.vllm_omni() as found:
        yield found


@pytest.fixture
def hooks() -> Iterator[fake.Hooks]:
    found = fake.Hooks()
    with fake.sglang(found):
        yield found


def check_played(pipe: Any, file: Path) -> None:
    """The profile's computed steps and no others are called, and the latents are those of `apply`."""
    plain = copy.deepcopy(pipe)
    calls: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    found = latents(pipe)
    hook.remove()
    with apply(plain, file) as stats:
        expected = latents(plain)
    assert torch.equal(found, expected)
    assert len(calls) == 5 and stats.computed == stats.predicted == {"cond": 5}


def check_uncached(pipe: Any) -> None:
    assert attachment_of(pipe) is None


# vLLM-Omni


def test_vllm_omni_applies_the_profile_of_the_load_arguments(flux: Any, file: Path, adapter: Any):
    vllm_omni.register()
    utils, left = fake.load_with_vllm_omni(adapter, flux, ertacache_profile=str(file), variant="fp16")
    assert left == {"torch_dtype": "bfloat16", "variant": "fp16"}
    assert utils.given == [left, flux] and isinstance(utils, fake.BasePipelineUtils)
    check_played(flux, file)


def test_vllm_omni_keeps_its_own_utils_and_gains_none_twice(flux: Any, adapter: Any):
    vllm_omni.register()
    registry = adapter.PIPELINE_UTILS_REGISTRY
    first = dict(registry)
    vllm_omni.register()
    assert registry == first and {"FluxPipeline", "WanPipeline", "QwenImagePipeline"} <= set(registry)
    assert issubclass(registry["WanPipeline"], fake.WanPipelineUtils)
    utils, left = fake.load_with_vllm_omni(adapter, pipelines.wan())
    assert left["boundary_ratio"] == 0.9 and len(utils.given) == 2


def test_vllm_omni_without_a_profile_is_what_it_was(flux: Any, adapter: Any, caplog: pytest.LogCaptureFixture):
    before = latents(flux)
    vllm_omni.register()
    _, left = fake.load_with_vllm_omni(adapter, flux, variant="fp16")
    assert left == {"torch_dtype": "bfloat16", "variant": "fp16"} and caplog.records == []
    check_uncached(flux)
    assert torch.equal(latents(flux), before)


def test_vllm_omni_refuses_a_profile_before_the_weights_are_loaded(flux: Any, adapter: Any, tmp_path: Path):
    vllm_omni.register()
    (tmp_path / "broken.safetensors").write_bytes(b"no profile")
    for source, error, words in (
        (str(tmp_path / "nowhere.safetensors"), InvalidArgument, "there is no profile at"),
        (3, InvalidArgument, "the profile's source is 3"),
        ("", InvalidArgument, "there is no profile at ''"),
        (str(tmp_path / "broken.safetensors"), ProfileInvalid, "broken.safetensors"),
    ):
        utils = adapter.PIPELINE_UTILS_REGISTRY["FluxPipeline"]()
        with pytest.raises(error, match=words):
            utils.update_load_kwargs(None, {"ertacache_profile": source})
        assert utils.given == []


def test_vllm_omni_refuses_a_profile_of_another_pipeline(file: Path, adapter: Any):
    vllm_omni.register()
    pipe = pipelines.wan()
    with pytest.raises(ProfileMismatch, match="model class: the profile has 'FluxTransformer2DModel'"):
        fake.load_with_vllm_omni(adapter, pipe, ertacache_profile=str(file))
    check_uncached(pipe)


def test_vllm_omni_of_another_release_says_so(flux: Any, file: Path, adapter: Any, monkeypatch, caplog):
    monkeypatch.setattr(engine, "version", lambda name: "0.31.0")
    vllm_omni.register()
    assert caplog.records == []
    fake.load_with_vllm_omni(adapter, flux, ertacache_profile=str(file))
    assert "vllm-omni is 0.31.0, and ertacache was run inside 0.30.0" in caplog.text
    assert "pip install vllm-omni==0.30.0" in caplog.text
    check_played(flux, file)


@pytest.mark.parametrize("contents", [None, {}], ids=["no module", "no registry"])
def test_vllm_omni_without_the_registry_starts_and_says_what_it_lacks(contents: Any, monkeypatch, caplog):
    monkeypatch.setattr(engine, "version", lambda name: "1.0.0")
    with fake.loaded("vllm_omni" if contents is None else fake.ADAPTER):
        vllm_omni.register()
    assert "vllm-omni 1.0.0 has no place for a profile" in caplog.text
    assert "pip install vllm-omni==0.30.0" in caplog.text


# SGLang


def load_with_sglang(hooks: fake.Hooks, monkeypatch: pytest.MonkeyPatch, pipe: Any, **arguments: Any) -> Any:
    hooks.apply(fake.DiffusersPipeline, monkeypatch)
    return fake.DiffusersPipeline(pipe, **arguments)


@pytest.mark.parametrize("registered", [1, 2])
def test_sglang_applies_the_profile_of_the_variable(registered: int, flux: Any, file: Path, hooks, monkeypatch, caplog):
    monkeypatch.setenv(sglang.VARIABLE, str(file))
    caplog.set_level(logging.INFO, "ertacache")
    for _ in range(registered):
        sglang.register()
    assert load_with_sglang(hooks, monkeypatch, flux).steps == ["cache"]
    assert caplog.text.count("profile.safetensors on FluxPipeline: 5 of 10 steps are computed") == 1
    check_played(flux, file)


@pytest.mark.parametrize("value", [None, ""])
def test_sglang_without_a_profile_is_what_it_was(value: str | None, hooks: fake.Hooks, monkeypatch, caplog):
    if value is not None:
        monkeypatch.setenv(sglang.VARIABLE, value)
    sglang.register()
    assert hooks.registered == [] and caplog.records == []


def test_sglang_refuses_a_profile_that_it_cannot_apply(flux: Any, file: Path, hooks, monkeypatch, tmp_path: Path):
    (tmp_path / "broken.safetensors").write_bytes(b"no profile")
    for source, pipe, error, words in (
        (tmp_path / "nowhere.safetensors", flux, InvalidArgument, "there is no profile at"),
        (tmp_path / "broken.safetensors", flux, ProfileInvalid, "broken.safetensors"),
        (file, pipelines.wan(), ProfileMismatch, "model class: the profile has 'FluxTransformer2DModel'"),
    ):
        hooks.registered.clear()
        monkeypatch.setenv(sglang.VARIABLE, str(source))
        sglang.register()
        with monkeypatch.context() as patch, pytest.raises(error, match=words):
            load_with_sglang(hooks, patch, pipe)
        check_uncached(pipe)


def test_sglang_refuses_two_caches_and_a_graph_around_the_profile(flux: Any, file: Path, hooks, monkeypatch):
    monkeypatch.setenv(sglang.VARIABLE, str(file))
    sglang.register()
    hooks.apply(fake.DiffusersPipeline, monkeypatch)
    with pytest.raises(CacheConflict, match=r"--cache-dit-config 'cache.yaml' and ERTACACHE_PROFILE=.* two caches"):
        fake.DiffusersPipeline(flux, cache_dit_config="cache.yaml")
    monkeypatch.setattr(type(flux.transformer), "_repeated_blocks", None)
    with pytest.raises(CacheConflict, match="would compile FluxTransformer2DModel as a whole"):
        fake.DiffusersPipeline(flux, enable_torch_compile=True)
    check_uncached(flux)


@pytest.mark.slow
def test_sglang_may_compile_the_blocks_under_the_profile(flux: Any, file: Path, hooks, monkeypatch):
    monkeypatch.setenv(sglang.VARIABLE, str(file))
    sglang.register()
    load_with_sglang(hooks, monkeypatch, flux, enable_torch_compile=True)
    expected = latents(flux)
    flux.transformer.compile_repeated_blocks(backend="eager")
    assert torch.equal(latents(flux), expected)


def test_sglang_of_another_release_says_so(file: Path, hooks: fake.Hooks, monkeypatch, caplog):
    monkeypatch.setattr(engine, "version", lambda name: "0.6.0")
    monkeypatch.setenv(sglang.VARIABLE, str(file))
    sglang.register()
    assert "sglang is 0.6.0, and ertacache was run inside 0.5.23" in caplog.text and len(hooks.registered) == 1
    with fake.loaded(fake.PLUGINS), pytest.raises(MissingExtra, match=r"sglang 0\.6\.0 has no plug-ins .*==0\.5\.23"):
        sglang.register()


# Both


def test_requests_that_do_not_suit_the_profile_are_computed(flux: Any, file: Path, adapter: Any):
    vllm_omni.register()
    fewer = {**pipelines.CALL, "num_inference_steps": 4}
    expected = pipelines.generate(flux, pipelines.PROMPTS, fewer)
    fake.load_with_vllm_omni(adapter, flux, ertacache_profile=str(file))
    assert torch.equal(pipelines.generate(flux, pipelines.PROMPTS, fewer), expected)
    check_played(flux, file)


def test_offloading_that_is_put_on_later_goes_inside(flux: Any, file: Path, adapter: Any):
    vllm_omni.register()
    fake.load_with_vllm_omni(adapter, flux, ertacache_profile=str(file))
    expected = latents(flux)
    _, hook = cpu_offload_with_hook(flux.transformer, execution_device="cpu")
    assert torch.equal(latents(flux), expected)
    hook.remove()


def test_another_cache_is_refused(flux: Any, file: Path, adapter: Any):
    from diffusers import FirstBlockCacheConfig

    vllm_omni.register()
    flux.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))
    with pytest.raises(CacheConflict, match="another cache is enabled on FluxTransformer2DModel"):
        fake.load_with_vllm_omni(adapter, flux, ertacache_profile=str(file))


def test_a_source_tree_without_metadata_has_an_unknown_release(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert engine.release("no-such-engine") == "unknown" and engine.release("ertacache") != "unknown"


def test_the_entry_points_are_there_and_load_no_torch():
    code = (
        "import os, sys; os.environ.pop('ERTACACHE_PROFILE', None)\n"
        "from ertacache.integrations import sglang, vllm_omni\n"
        "sglang.register()\n"
        "vllm_omni.register()\n"
        "assert not {'torch', 'diffusers', 'numpy', 'sglang', 'vllm_omni', 'ertacache.runtime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    groups = {"vllm_omni.general_plugins": vllm_omni.register, "sglang.multimodal_gen.plugins": sglang.register}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, values in declared.items():
        ((name, value),) = values.items()
        assert name == "ertacache" and EntryPoint(name, value, group).load() is groups[group]
    assert set(declared) == set(groups)
