"""A small sound profile with exact values, and ways to damage its file."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.profile.fingerprint import config_hash, prompt_hash
from ertacache.profile.profile import Profile, Provenance, Rectifier

# sha256 of make() as each version of the format wrote it; those of older ones are what their releases wrote.
GOLDEN = "b8aa88bb20c002c2c7821b4e00acf18b3fce0c1a7c15b1fe571192db80ac9224"
OLDER = {
    1: "1a566a23233720dbb7454a0ef404185b1a276035ae60e00652d8b93e5b347f07",
    2: "853bece2b7792a272bc1512f52ae960b9868857b30fe9e4c7e7358512c8f7088",
    3: "9fceb6f962be98682e8f489b93096854eea2f3c9a93ce675a621033eb1e60801",
    4: "f889b833d8820441ead18f984ac60b553b9eba6488f41f7cca539daa2944d6fc",
}
#: What a version added to the provenance.
ADDED = {
    2: ("boundaries", "later_weights"),
    3: ("measured",),
    4: ("model_config", "scheduler_config", "weights", "step_arguments", "calls", "step_weights"),
}
FACTS: dict[str, Any] = {
    "model_class": "FluxTransformer2DModel",
    "scheduler_class": "FlowMatchEulerDiscreteScheduler",
    "num_inference_steps": 5,
    "contexts": ("cond", "uncond"),
    "guidance_weight": 7.0,
    "embedded_guidance": 3.5,
    "call": {"height": 64, "width": 64, "true_cfg_scale": 7.0, "negative_prompt": "", "sizes": [1, 2]},
    "latent_shape": (16, 3),
    "channel_axis": -1,
    "dtype": "float32",
    "prompt_count": 12,
    "prompt_hash": "00112233445566ff",
    "holdout_count": 4,
    "seed": 0,
    "method": {"basis": "fitted", "history": 2, "threshold": None, "strength": 0.1},
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    "heldout": {"psnr": {"mean": 31.4159, "std": 2.5}, "ssim": {"mean": 0.97, "std": 0.01}, "K": 3},
    "boundaries": (),
    "later_weights": (),
    "measured": {"speed_up": 1.5, "uncached_seconds": 3.0, "cached_seconds": 2.0},
    "model_config": {"guidance_embeds": True, "axes_dims_rope": [4, 6, 6]},
    "scheduler_config": {"shift": 3.0},
    "weights": "00aa11bb22cc33dd:gD+AP8B/wH8=",
    "step_arguments": {"eta": 0.0},
    "calls": (),
    "step_weights": (),
}
#: What files older than version 4 have in place of configurations.
HASHES = {"model_config_hash": "0123456789abcdef", "scheduler_config_hash": "fedcba9876543210"}


def rows(values: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """The table with its computed steps set to zero, as a predictor and a rectifier need it."""
    table = values.clone()
    table[list(schedule.computed_steps)] = 0
    return table


def table(*shape: int) -> torch.Tensor:
    """Exact float32 values, none of them zero, the same on every machine."""
    return (torch.arange(1, 1 + int(torch.tensor(shape).prod())) / 64).reshape(shape)


def make(site: Any = "guided", activation: Any = None, **changes: Any) -> Profile:
    """Five steps, two contexts, history 2 where there is one, per-channel coefficients of latents [16, 3].

    At site hidden, whose residuals have other channels, the predictor's are plain numbers.
    """
    schedule = Schedule.from_mask("#.#.#")
    targets = ("guided",) if site == "guided" else ("cond", "uncond")
    coef, M = () if site == "hidden" else (1, 3), len(targets)
    a = rows(table(5, M, 2, 2, *coef), schedule)
    a[1, :, :, 1] = 0  # only one step is computed before step 1
    b = rows(table(5, M, *coef), schedule)
    kappa = rows(table(5, M, 1, 3), schedule)
    parts: dict[str, Any] = {
        "schedule": schedule,
        "site": site,
        "predictor": Predictor(targets, ("cond", "uncond"), a, b / 2 * (site != "hidden"), b),
        "base_sigmas": torch.tensor([1.0, 0.875, 0.75, 0.5, 0.25, 0.0]),
        "sigmas": torch.tensor([1.0, 0.875, 0.8125, 0.5625, 0.3125, 0.0]),
        "rectifier": Rectifier(kappa, kappa / 4, activation) if activation else None,
        "provenance": Provenance(**FACTS),
    }
    return Profile(**{**parts, **changes})


def times(profile: Profile, factor: float) -> Profile:
    """The same with other coefficients, each exactly that many times as large."""
    tables = {name: getattr(profile.predictor, name) * factor for name in "adb"}
    return replace(profile, predictor=replace(profile.predictor, **tables))


def of_scale(profile: Profile, field: str, scale: float) -> Profile:
    """The profile at another scale, with coefficients of its own: scale / 4 times as large."""
    other = times(profile, 0.75 + scale / 16)
    return replace(other, provenance=replace(profile.provenance, **{field: scale}))


def facts(**changes: Any) -> Provenance:
    return Provenance(**{**FACTS, **changes})


def reaching_too_far() -> torch.Tensor:
    """A predictor.a whose step 1 reads two computed steps where there is one."""
    a = make().predictor.a.clone()
    a[1, 0, 0, 1] = 1.0
    return a


BLANK = "0" * 64


def sealed(header: dict[str, Any], blob: bytes) -> bytes:
    """The file of a header, its checksum set right by the rule of the specification where it has one."""
    text = header.get("__metadata__", {}) if isinstance(header.get("__metadata__"), dict) else {}
    try:
        document = json.loads(text["ertacache"])
        document["checksum"] = BLANK if "checksum" in document else document["checksum"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return framed(json.dumps(header), blob)
    sealing = json.loads(json.dumps(header))
    sealing["__metadata__"]["ertacache"] = json.dumps(document, sort_keys=True)
    data = framed(json.dumps(sealing), blob)
    return data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def older(version: int, activation: str | None = None, **changes: torch.Tensor) -> bytes:
    """make() as older versions wrote it: before 4 with hashes; before 3 with rows for all steps, and no checksum."""
    profile = make(activation=activation)
    data = profile.to_bytes()
    document = parts_of(data)[1]
    for added in (name for since, names in ADDED.items() if since > version for name in names):
        del document["provenance"][added]
    document["provenance"] |= HASHES if version < 4 else {}
    if version >= 3:
        text = json.dumps({**document, "version": version, "checksum": BLANK}, sort_keys=True)
        data = save_tensors(load_tensors(data), {"ertacache": text})
        return data.replace(BLANK.encode(), hashlib.sha256(data).hexdigest().encode(), 1)
    del document["checksum"]
    tensors = {name: getattr(profile, name) for name in ("base_sigmas", "sigmas")}
    tensors |= {f"predictor.{name}": getattr(profile.predictor, name) for name in "abd"}
    if profile.rectifier is not None:
        tensors |= {f"rectifier.{name}": getattr(profile.rectifier, name) for name in ("beta", "kappa")}
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    text = json.dumps({**document, "version": version}, sort_keys=True)
    return save_tensors({name: tensor.clone() for name, tensor in tensors.items()}, {"ertacache": text})


def parts_of(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, document and tensor bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(header["__metadata__"]["ertacache"]), data[end:]


def framed(header: str, blob: bytes = b"") -> bytes:
    return len(header.encode()).to_bytes(8, "little") + header.encode() + blob


def with_header(edit: Callable[[dict[str, Any]], None]) -> bytes:
    header, _, blob = parts_of(make().to_bytes())
    edit(header)
    return sealed(header, blob)


def with_text(text: str) -> bytes:
    return with_header(lambda header: header["__metadata__"].update(ertacache=text))


def with_document(activation: str | None = None, **changes: Any) -> bytes:
    document = parts_of(make(activation=activation).to_bytes())[1]
    return with_text(json.dumps({**document, **changes}))


def without(key: str) -> bytes:
    document = parts_of(make().to_bytes())[1]
    del document[key]
    return with_text(json.dumps(document))


def with_facts(**changes: Any) -> bytes:
    return with_document(provenance={**parts_of(make().to_bytes())[1]["provenance"], **changes})


def with_tensors(activation: str | None = None, **changes: torch.Tensor | None) -> bytes:
    data = make(activation=activation).to_bytes()
    tensors: dict[str, Any] = load_tensors(data)
    tensors.update({name.replace("__", "."): value for name, value in changes.items()})
    kept = {name: value.clone() for name, value in tensors.items() if value is not None}
    header, _, blob = parts_of(save_tensors(kept, parts_of(data)[0]["__metadata__"]))
    return sealed(header, blob)


def edited(profile: Profile, edit: Callable[[dict[str, Any]], None], *, seal: bool = False) -> bytes:
    """The file of a profile with another document, and the old checksum unless it is sealed anew."""
    header, document, blob = parts_of(profile.to_bytes())
    edit(document)
    header["__metadata__"]["ertacache"] = json.dumps(document, sort_keys=True)
    return sealed(header, blob) if seal else framed(json.dumps(header), blob)


def thousands_of_steps() -> bytes:
    """One predicted step in 4096, whose coefficients for every step would fill half a gigabyte."""
    grid = torch.linspace(1, 0, 4097)
    row = torch.ones(1, 1, 1, 1, 2**15)
    tensors = {"base_sigmas": grid, "sigmas": grid.clone(), "predictor.a": row, "predictor.b": row[0].clone()}
    document = parts_of(make().to_bytes())[1] | {"schedule": "#" * 4095 + ".", "sources": ["guided"]}
    tensors["predictor.d"] = tensors["predictor.b"].clone()
    header, _, blob = parts_of(save_tensors(tensors, {"ertacache": json.dumps(document)}))
    return sealed(header, blob)


def poisoned(name: str, value: float) -> bytes:
    tensor = load_tensors(make(activation="linear").to_bytes())[name].clone()
    tensor.view(-1)[-1] = value
    return with_tensors("linear", **{name.replace(".", "__"): tensor})


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


if __name__ == "__main__":  # in a process of its own, for the tests of stable bytes
    print(hashlib.sha256(make().to_bytes()).hexdigest())
    print(config_hash({"b": {1, "x"}, "a": len}), prompt_hash(["a red square"]))
    lazy = "import sys, ertacache.profile.profile; print(sorted({'diffusers', 'huggingface_hub'} & {*sys.modules}))"
    print(subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True, check=True).stdout)
