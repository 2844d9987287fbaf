"""A profile inside vLLM-Omni, on the diffusers pipeline that `--diffusion-load-format diffusers` serves.

    vllm serve MODEL --omni --diffusion-load-format diffusers \
        --diffusers-load-kwargs '{"ertacache_profile": "profile.safetensors"}'

The adapter asks a registry for the utils class of the pipeline's class, hands it the load arguments, and later the
finished pipeline. Every class is given a subclass of its utils which takes `ertacache_profile` out of the arguments;
without that argument it is what it was.
"""

import logging
import sys
from importlib import import_module
from typing import Any, cast

from ertacache.integrations.engine import attach, load, release, warn_of_release

#: The load argument: path or Hub id of a profile.
ARGUMENT = "ertacache_profile"
#: The release that was run.
RELEASE = "0.30.0"
_MODULE = "vllm_omni.diffusion.models.diffusers_adapter.pipeline_utils"

logger = logging.getLogger(__name__)


def register() -> None:
    """The entry point, called in every process of the engine, and more than once in some."""
    # Whoever may load a diffusers pipeline has imported diffusers by then; text and speech stages have not.
    if "diffusers" not in sys.modules:
        return
    try:
        adapter = import_module(_MODULE)
        registry, plain = adapter.PIPELINE_UTILS_REGISTRY, adapter.BasePipelineUtils
    except (ImportError, AttributeError) as error:
        # Whether anyone wants a profile is not known here, and an engine without one has to start.
        logger.warning(
            "vllm-omni %s has no place for a profile (%s); %s in its load arguments is without effect: "
            "pip install vllm-omni==%s",
            *(release("vllm-omni"), error, ARGUMENT, RELEASE),
        )
        return
    for name in _pipelines():
        utils = registry.get(name, plain)
        if not issubclass(utils, ProfileUtils):
            registry[name] = type(f"Profile{utils.__name__}", (ProfileUtils, utils), {})


def _pipelines() -> list[str]:
    """The names of diffusers' pipeline classes; none of them is imported."""
    return [name for name in dir(import_module("diffusers")) if name.endswith("Pipeline")]


class ProfileUtils:
    """What a utils class of the adapter does more; goes in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self._source: Any = None
        self._profile: Any = None

    def update_load_kwargs(self, od_config: Any, load_kwargs: dict[str, Any]) -> None:
        """Take the profile out of the load arguments; it is read here, before the weights.

        Raises:
            InvalidArgument, ProfileInvalid: as `Profile.load`.
        """
        self._source = load_kwargs.pop(ARGUMENT, None)
        if self._source is not None:
            warn_of_release("vllm-omni", RELEASE)
            self._profile = load(self._source)
        cast(Any, super()).update_load_kwargs(od_config, load_kwargs)

    def apply_post_load_updates(self, pipeline: Any, od_config: Any) -> None:
        """Apply the profile to the finished pipeline. Raises as `attach`."""
        cast(Any, super()).apply_post_load_updates(pipeline, od_config)
        if self._profile is not None:
            attach(pipeline, self._profile, self._source)
