"""The few objects of ComfyUI that the node pack touches, as plain as they can be, and the pack loaded beside them.

`benchmarks/comfyui.py` runs the same pack in a real ComfyUI; this stands in for it in the fast tests.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PACK = Path(__file__).parent.parent / "comfyui-ertacache"
NAME = "pack_under_test"
CHANNELS = 4


class WrappersMP:
    OUTER_SAMPLE = "outer_sample"
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"


class Executor:
    """A function with the wrappers around it that are still to be called."""

    def __init__(self, function: Callable[..., Any], class_obj: Any, wrappers: list[Callable[..., Any]]) -> None:
        self.function, self.class_obj, self.wrappers = function, class_obj, wrappers

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not self.wrappers:
            return self.function(*args, **named)
        return self.wrappers[0](Executor(self.function, self.class_obj, self.wrappers[1:]), *args, **named)


def wrapped(function: Callable[..., Any], owner: Any, kind: str, options: dict[str, Any]) -> Executor:
    kept = options.get("transformer_options", {}).get("wrappers", {}).get(kind, {})
    return Executor(function, owner, [one for of_key in kept.values() for one in of_key])


class CONST:
    """Flow matching, by ComfyUI's name."""


class ModelSampling(CONST):
    sigma_max = 1.0


class Flow(torch.nn.Module):
    """A model whose slope follows latent, noise level and conditioning, and which counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.nn.Parameter(torch.randn(CHANNELS, CHANNELS, generator=generator), requires_grad=False)
        self.model_config = SimpleNamespace(unet_config={"image_model": "fake", "depth": 2, "dtype": torch.float32})
        self.model_sampling, self.latent_format = ModelSampling(), SimpleNamespace(latent_channels=CHANNELS)
        self.calls: list[int] = []

    def denoise(self, x: Tensor, sigma: Tensor, cond: float) -> Tensor:
        self.calls.append(len(x))
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        v = torch.tanh(torch.einsum("ij,bj...->bi...", self.mix, x) * (0.5 + level)) + cond * level + 0.3 * x
        return x - level * v


class Patcher:
    """A model with its options; clones share the model and nothing else."""

    def __init__(self, model: Flow) -> None:
        self.model, self.model_options = model, dict[str, Any](transformer_options={})
        self.wrappers: dict[str, dict[str, list[Callable[..., Any]]]] = {}

    def clone(self) -> "Patcher":
        other = type(self)(self.model)
        other.model_options, other.wrappers = copied(self.model_options), copied(self.wrappers)
        return other

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)


def copied(options: Any) -> Any:
    """Nested dictionaries and lists copied, what is in them not."""
    if isinstance(options, dict):
        return {key: copied(value) for key, value in options.items()}
    return list(options) if isinstance(options, list) else options


class CFGGuider:
    def __init__(self, patcher: Patcher) -> None:
        self.model_patcher, self.model_options = patcher, patcher.model_options
        self.original_conds: dict[str, list[dict[str, Any]]] = {}
        self.cfg = 1.0

    def set_conds(self, positive: Any, negative: Any) -> None:
        self.original_conds = {"positive": deepcopy(positive), "negative": deepcopy(negative)}

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        model, conds = self.model_patcher.model, self.original_conds
        cond = model.denoise(x, timestep, conds["positive"][0]["cond"])
        if self.cfg == 1.0:
            return cond
        uncond = model.denoise(x, timestep, conds["negative"][0]["cond"])
        return uncond + self.cfg * (cond - uncond)

    def __call__(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: int | None = None) -> Tensor:
        run = wrapped(self.predict_noise, self, WrappersMP.PREDICT_NOISE, self.model_options)
        return run(x, timestep, model_options, seed)

    def outer_sample(self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any = None,
                     seed: int | None = None) -> Tensor:  # fmt: skip
        options = copied(self.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        extra = {"model_options": options, "seed": seed}
        run = wrapped(sampler.sample, sampler, WrappersMP.SAMPLER_SAMPLE, options)
        return run(self, sigmas, extra, None, noise, latent, mask, True)

    def sample(self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any = None,
               seed: int | None = None) -> Tensor:  # fmt: skip
        kept, self.model_options = self.model_options, copied(self.model_options)
        # They are the patcher's own until a run begins.
        self.model_options["transformer_options"]["wrappers"] = copied(self.model_patcher.wrappers)
        try:
            run = wrapped(self.outer_sample, self, WrappersMP.OUTER_SAMPLE, self.model_options)
            return run(noise, latent, sampler, sigmas, mask, seed=seed)
        finally:
            self.model_options = kept


class KSAMPLER:
    def __init__(self, sampler_function: Callable[..., Tensor], extra_options: dict[str, Any] | None = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(self, guider: CFGGuider, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, latent: Any,
               mask: Any, quiet: bool) -> Tensor:  # fmt: skip
        model = Inner(guider)
        return self.sampler_function(
            model, noise * sigmas[0], sigmas, extra_args={**extra, "denoise_mask": mask}, callback=callback,
            disable=quiet, **self.extra_options,
        )  # fmt: skip


class Inner:
    def __init__(self, guider: CFGGuider) -> None:
        self.inner_model = guider

    def __call__(self, x: Tensor, sigma: Tensor, denoise_mask: Any, model_options: Any, seed: int | None) -> Tensor:
        return self.inner_model(x, sigma, model_options, seed)


def sample_euler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any = None, disable: bool = True,
                 s_churn: float = 0.0) -> Tensor:  # fmt: skip
    for sigma, following in pairwise(sigmas):
        hat = sigma * (1 + s_churn)
        denoised = model(x, hat * x.new_ones([len(x)]), **extra_args)
        x = x + (x - denoised) / hat * (following - hat)
    return x


def sample_heun(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, **named: Any) -> Tensor:
    ones = x.new_ones([len(x)])
    for sigma, following in pairwise(sigmas):
        slope = (x - model(x, sigma * ones, **extra_args)) / sigma
        guess = x + slope * (following - sigma)
        if following == 0:
            return guess
        x = x + (slope + (guess - model(guess, following * ones, **extra_args)) / following) / 2 * (following - sigma)
    return x


def sample_own_heun(*args: Any, **named: Any) -> Tensor:
    """A sampler of some other pack, whose name says nothing."""
    return sample_heun(*args, **named)


def sample_dpmpp_2m(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, **named: Any) -> Tensor:
    """A multistep sampler: one call a step, two outputs in each."""
    before = None
    for sigma, following in pairwise(sigmas):
        slope = (x - model(x, sigma * x.new_ones([len(x)]), **extra_args)) / sigma
        used = slope if before is None else 1.5 * slope - 0.5 * before
        x, before = x + used * (following - sigma), slope
    return x


def sample_custom(model: Patcher, noise: Tensor, cfg: float, sampler: Any, sigmas: Tensor, positive: Any, negative: Any,
                  latent: Tensor, noise_mask: Any = None, seed: int | None = None, **named: Any) -> Tensor:  # fmt: skip
    guider = CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider.sample(noise, latent, sampler, sigmas, noise_mask, seed)


def prepare_noise(latent: Tensor, seed: int) -> Tensor:
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


class _Part:
    """An input or output of a schema."""

    def __init__(self, id: str = "", **given: Any) -> None:
        self.id, self.given = id, given


def _kind(name: str) -> type:
    return type(name, (), {"Input": type("Input", (_Part,), {"kind": name}),
                           "Output": type("Output", (_Part,), {"kind": name})})  # fmt: skip


def _modules(folder: Path) -> dict[str, ModuleType]:
    kinds = ("Model", "Conditioning", "Sampler", "Sigmas", "Latent", "String", "Float", "Int", "Combo")
    io = SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {}),
        Schema=lambda **given: SimpleNamespace(**given),
        NodeOutput=lambda *result, ui=None: SimpleNamespace(result=result, ui=ui),
        **{kind: _kind(kind) for kind in kinds},
    )
    bar = type("ProgressBar", (), {"__init__": lambda self, total: None, "update": lambda self, value: None})
    contents: dict[str, dict[str, Any]] = {
        "comfy": {},
        "comfy.patcher_extension": {"WrappersMP": WrappersMP},
        "comfy.sample": {"sample_custom": sample_custom, "prepare_noise": prepare_noise,
                         "fix_empty_latent_channels": lambda model, latent: latent},
        "comfy.samplers": {"CFGGuider": CFGGuider, "KSAMPLER": KSAMPLER},
        "comfy.utils": {"ProgressBar": bar},
        "comfy_api": {},
        "comfy_api.latest": {"io": io, "ui": SimpleNamespace(PreviewText=str),
                             "ComfyExtension": type("ComfyExtension", (), {})},
        "comfyui_version": {"__version__": "0.0-fake"},
        "folder_paths": {"models_dir": str(folder)},
    }  # fmt: skip
    made = {name: ModuleType(name) for name in contents}
    for name, content in contents.items():
        vars(made[name]).update(content)
        if "." in name:
            setattr(made[name.rpartition(".")[0]], name.rpartition(".")[2], made[name])
    return made


@contextmanager
def loaded(folder: Path) -> Iterator[Any]:
    """The pack's module `nodes`, loaded by its path as ComfyUI does, with models in `folder`; gone afterwards."""
    before = {name: sys.modules.get(name) for name in _modules(folder)}
    sys.modules.update(_modules(folder))
    spec = importlib.util.spec_from_file_location(NAME, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None and spec.loader is not None
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[NAME])
        yield sys.modules[f"{NAME}.nodes"]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
            del sys.modules[name]
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module
