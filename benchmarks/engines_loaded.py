"""The adapters of the two engines with a model loaded, as the engines' workers load it; see `engines.py`.

What the adapters cannot have on a CPU is stubbed, and `STUBBED` says what that is.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from ertacache.errors import ErtacacheError
from ertacache.integrations import sglang as sglang_plugin
from ertacache.integrations import vllm_omni as vllm_omni_plugin
from ertacache.runtime.apply import disable
from ertacache.runtime.hooks import attachment_of

#: Distributions whose versions matter.
BESIDE = {"sglang": ("diffusers",), "vllm-omni": ("vllm", "diffusers")}
#: The compiled ops of torchvision do not load beside this torch. Modules that the adapters import name it; what runs
#: here asks it for nothing. Of vllm, what is compiled cannot be loaded either; it says so itself and goes on.
STUBBED = ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional")
_SGLANG = "sglang.multimodal_gen"
_ADAPTER = "vllm_omni.diffusion.models.diffusers_adapter.pipeline_diffusers_adapter"


class Stub(ModuleType):
    """A module with a class for every name that is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stub(*names: str) -> None:
    """Put stubs in place of modules, after diffusers and transformers have looked whether the real ones are there."""
    importlib.import_module("diffusers").FluxPipeline  # noqa: B018
    importlib.import_module("transformers.utils").is_torchvision_available()
    for name in names:
        module = sys.modules[name] = Stub(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None, is_package=True), []
        above, _, own = name.rpartition(".")
        if above:
            setattr(sys.modules[above], own, module)


def refused(load: Callable[[], object]) -> str:
    """The kind and the text of the error of a loading; nothing where there is none."""
    try:
        load()
    except ErtacacheError as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Loaded:
    """An engine's adapter around a pipeline."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)

    def generate(self, request: dict[str, Any]) -> Tensor:
        """One request, through the adapter, to an image [1, 3, H, W] in 0..1."""
        raise NotImplementedError

    def run(self, request: dict[str, Any]) -> tuple[Tensor, int]:
        """The image of a request, and how often the denoiser was really called."""
        calls: list[int] = []
        handle = self.pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(1))
        try:
            return self.generate(request).float(), len(calls)
        finally:
            handle.remove()

    def refusals(self, folder: str) -> dict[str, str]:
        """What the engine's own loading ends with where the profile cannot be applied."""
        raise NotImplementedError

    def reason(self) -> str | None:
        """Why the newest request was computed without the profile."""
        attachment = attachment_of(self.pipe)
        return None if attachment is None else attachment.controller.stats.reason


class Sglang(Loaded):
    def __init__(self, folder: str, **arguments: Any) -> None:
        arguments = {"model_path": folder, "backend": "diffusers", "num_gpus": 1, **arguments}
        module = importlib.import_module(f"{_SGLANG}.runtime.server_args.server_args")
        self.args = module.ServerArgs.from_kwargs(**arguments)
        module.set_global_server_args(self.args)
        loader = importlib.import_module(f"{_SGLANG}.runtime.pipelines.diffusers_pipeline")
        self.adapter = loader.DiffusersPipeline(folder, self.args)
        super().__init__(self.adapter.diffusers_pipe)

    def generate(self, request: dict[str, Any]) -> Tensor:
        sampling = importlib.import_module(f"{_SGLANG}.configs.sample").SamplingParams(**request)
        batch = importlib.import_module(f"{_SGLANG}.runtime.pipelines_core.schedule_batch").Req(
            sampling_params=sampling
        )
        return self.adapter.forward(batch, self.args).output

    def refusals(self, folder: str) -> dict[str, str]:
        return {"--cache-dit-config": refused(lambda: Sglang(folder, cache_dit_config="cache.yaml"))}


@contextmanager
def sglang(folder: str, profile: Path | None) -> Iterator[Sglang]:
    """SGLang's `DiffusersPipeline`, with the plug-in's hook applied as a worker does."""
    stub(*STUBBED)
    os.environ[sglang_plugin.VARIABLE] = "" if profile is None else str(profile)
    sglang_plugin.register()
    importlib.import_module(f"{_SGLANG}.runtime.platforms.plugins").HookRegistry.apply_hooks()
    loaded = Sglang(folder)
    yield loaded
    if profile is not None:
        disable(loaded.pipe)


class VllmOmni(Loaded):
    def __init__(self, folder: str, **load_kwargs: Any) -> None:
        config = importlib.import_module("vllm_omni.diffusion.data").OmniDiffusionConfig(
            model=folder, diffusion_load_format="diffusers", diffusers_load_kwargs=load_kwargs
        )
        config.enrich_config()
        device = importlib.import_module("torch").device("cpu")
        self.adapter = importlib.import_module(_ADAPTER).DiffusersAdapterPipeline(od_config=config, device=device)
        self.adapter.load_weights()
        super().__init__(self.adapter._pipeline)

    def generate(self, request: dict[str, Any]) -> Tensor:
        given = {**request, "output_type": "pt", "generator_device": "cpu"}
        prompt = given.pop("prompt")
        sampling = importlib.import_module("vllm_omni.inputs.data").OmniDiffusionSamplingParams(**given)
        one = importlib.import_module("vllm_omni.diffusion.request").OmniDiffusionRequest(prompt, sampling, "request")
        batch = importlib.import_module("vllm_omni.diffusion.worker.request_batch").DiffusionRequestBatch([one])
        return self.adapter.forward(batch).output

    def refusals(self, folder: str) -> dict[str, str]:
        return {"no such profile": refused(lambda: VllmOmni(folder, ertacache_profile="nowhere.safetensors"))}


@contextmanager
def vllm_omni(folder: str, profile: Path | None) -> Iterator[VllmOmni]:
    """vLLM-Omni's `DiffusersAdapterPipeline`, with the plug-in registered as a worker does."""
    stub(*STUBBED)
    vllm_omni_plugin.register()
    arguments = {} if profile is None else {vllm_omni_plugin.ARGUMENT: str(profile)}
    loaded = VllmOmni(folder, **arguments)
    yield loaded
    if profile is not None:
        disable(loaded.pipe)
