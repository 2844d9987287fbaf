"""The hooks of the two engines that the plug-ins use, shaped as in their releases and loaded under their names.

`benchmarks/engines.py` runs the same plug-ins with the real ones; these stand in for them in the fast tests.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

ADAPTER = "vllm_omni.diffusion.models.diffusers_adapter.pipeline_utils"
PLUGINS = "sglang.multimodal_gen.runtime.platforms.plugins"
LOADER = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline"


@contextmanager
def loaded(name: str, **contents: Any) -> Iterator[Any]:
    """A module under a dotted name, with the packages above it."""
    parts = name.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    before = {one: sys.modules.pop(one, None) for one in names}
    for one in names:
        sys.modules[one] = ModuleType(one)
    vars(sys.modules[name]).update(contents)
    try:
        yield sys.modules[name]
    finally:
        for one, module in before.items():
            del sys.modules[one]
            if module is not None:
                sys.modules[one] = module


class BasePipelineUtils:
    """vLLM-Omni's hooks, which do nothing, and a note of what they were given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def update_load_kwargs(self, od_config: Any, load_kwargs: dict[str, Any]) -> None:
        self.given.append(dict(load_kwargs))

    def apply_post_load_updates(self, pipeline: Any, od_config: Any) -> None:
        self.given.append(pipeline)


class WanPipelineUtils(BasePipelineUtils):
    """One that the engine has for a class of its own accord."""

    def update_load_kwargs(self, od_config: Any, load_kwargs: dict[str, Any]) -> None:
        super().update_load_kwargs(od_config, load_kwargs)
        load_kwargs["boundary_ratio"] = od_config.boundary_ratio


def vllm_omni() -> Any:
    """The module with the registry, under its name."""
    registry = {"WanPipeline": WanPipelineUtils}
    return loaded(ADAPTER, BasePipelineUtils=BasePipelineUtils, PIPELINE_UTILS_REGISTRY=registry)


def load_with_vllm_omni(adapter: Any, pipe: Any, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """The order in which the adapter loads: what the utils leave of the load arguments, then the finished pipeline."""
    utils = adapter.PIPELINE_UTILS_REGISTRY.get(type(pipe).__name__, adapter.BasePipelineUtils)()
    config = SimpleNamespace(boundary_ratio=0.9, diffusers_load_kwargs=arguments)
    load_kwargs = {"torch_dtype": "bfloat16", **config.diffusers_load_kwargs}
    utils.update_load_kwargs(config, load_kwargs)
    utils.apply_post_load_updates(pipe, config)
    return utils, load_kwargs


class HookType(Enum):
    BEFORE, AFTER, AROUND, REPLACE = "before", "after", "around", "replace"


class DiffusersPipeline:
    """SGLang's loader from the cache step on."""

    def __init__(self, pipe: Any, cache_dit_config: Any = None, enable_torch_compile: bool = False) -> None:
        args = SimpleNamespace(cache_dit_config=cache_dit_config, enable_torch_compile=enable_torch_compile)
        self.steps: list[str] = []
        self.pipe = self._apply_cache_dit(pipe, args)

    def _apply_cache_dit(self, pipe: Any, server_args: Any) -> Any:
        self.steps.append("cache")
        return pipe


class Hooks:
    """SGLang's registry: a target's hooks are put around it when the engine says so."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, Callable[..., Any], HookType]] = []

    def plugin_hook(self, target: str, type: HookType = HookType.AFTER) -> Callable[..., Any]:
        return lambda hook: self.registered.append((target, hook, type))

    def apply(self, owner: type, monkeypatch: Any) -> None:
        for target, hook, kind in self.registered:
            assert target == f"{LOADER}.DiffusersPipeline._apply_cache_dit" and kind is HookType.AROUND
            original = owner.__dict__["_apply_cache_dit"]
            around = lambda *args, hook=hook, original=original: hook(original, *args)  # noqa: E731
            monkeypatch.setattr(owner, "_apply_cache_dit", around)


def sglang(hooks: Hooks) -> Any:
    """The module with the hooks, under its name."""
    return loaded(PLUGINS, plugin_hook=hooks.plugin_hook, HookType=HookType)
