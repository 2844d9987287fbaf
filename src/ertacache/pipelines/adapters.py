"""LoRA adapters beside a model: loaded once and off, each on for the calls that name it."""

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ertacache.errors import InvalidArgument, UnsupportedPipeline


def load_adapters(pipe: Any, adapters: Mapping[str, str]) -> None:
    """Load every adapter into a pipeline, where all of them are off.

    Raises:
        UnsupportedPipeline: it takes none. InvalidArgument: an adapter of another model, or no adapter.
    """
    kind = type(pipe).__name__
    if adapters and not hasattr(pipe, "load_lora_weights"):
        raise UnsupportedPipeline(f"{kind} takes no LoRA adapters; start the server without --lora")
    for name, path in adapters.items():
        fault: Exception | str = "it has no weights for this model"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # which it is to have
                pipe.load_lora_weights(path, adapter_name=name)
        except Exception as error:  # of diffusers, peft, torch, safetensors and the Hub, each of its own kind
            fault = error
        if not any(name in names for names in pipe.get_list_adapters().values()) or isinstance(fault, Exception):
            why = " ".join(str(fault).split())[:300]
            raise InvalidArgument(f"lora {name!r}: {path} does not load into {kind} ({why}); give one made for it")
    if adapters:
        pipe.disable_lora()


@contextmanager
def switched_on(pipe: Any, scales: Sequence[tuple[str, float]]) -> Generator[None]:
    """These adapters are on inside, and none is afterwards."""
    try:
        if scales:
            pipe.enable_lora()
            pipe.set_adapters([name for name, _ in scales], [scale for _, scale in scales])
        yield
    finally:
        if scales:
            pipe.disable_lora()
