"""A profile inside SGLang-Diffusion, on the diffusers pipeline that `--backend diffusers` serves.

    ERTACACHE_PROFILE=profile.safetensors sglang serve --model-path MODEL --backend diffusers

The plug-in wraps the step of the loading in which the engine puts on cache-dit.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from ertacache.errors import CacheConflict, MissingExtra
from ertacache.integrations.engine import attach, load, release, warn_of_release

#: The environment variable: path or Hub id of a profile.
VARIABLE = "ERTACACHE_PROFILE"
#: The release that was run.
RELEASE = "0.5.23"
TARGET = "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline.DiffusersPipeline._apply_cache_dit"
_PLUGINS = "sglang.multimodal_gen.runtime.platforms.plugins"

logger = logging.getLogger(__name__)


def register() -> None:
    """The entry point. The engine resolves the target later, when its processes are set up.

    Raises:
        MissingExtra: a profile is named, and this release of the engine has no such plug-ins.
    """
    source = os.environ.get(VARIABLE)
    if not source:
        return
    try:
        plugins = import_module(_PLUGINS)
        hook = plugins.plugin_hook(TARGET, plugins.HookType.AROUND)
    except (ImportError, AttributeError) as error:
        raise MissingExtra(
            f"{VARIABLE} is set, and sglang {release('sglang')} has no plug-ins for diffusion ({error}); install it "
            f"with: pip install 'sglang[diffusion]=={RELEASE}', or unset {VARIABLE}"
        ) from error
    warn_of_release("sglang", RELEASE)
    hook(partial(_profile_step, source))
    logger.info("%s is applied to what --backend diffusers loads, and to no pipeline of the engine's own", source)


def _profile_step(source: str, cache_step: Callable[..., Any], engine: Any, pipe: Any, server_args: Any) -> Any:
    """The engine's cache step, with the profile applied to the pipeline that comes out of it.

    Raises:
        CacheConflict: the engine was asked for a cache of its own, or to compile the whole denoiser, too.
        InvalidArgument, ProfileInvalid: as `Profile.load`.
        ProfileMismatch, UnsupportedPipeline: as `attach`.
    """
    if server_args.cache_dit_config:
        raise CacheConflict(
            f"--cache-dit-config {server_args.cache_dit_config!r} and {VARIABLE}={source!r} are two caches for one "
            f"pipeline; leave out one of them"
        )
    profile = load(source)
    pipe = cache_step(engine, pipe, server_args)
    if server_args.enable_torch_compile:
        _refuse_whole(pipe, source)
    attach(pipe, profile, source)
    return pipe


def _refuse_whole(pipe: Any, source: str) -> None:
    """Refuse what the engine would compile as one graph after this step, around the profile: `CacheConflict`."""
    from ertacache.pipelines.models import denoisers_of

    for denoiser in denoisers_of(pipe):
        if not getattr(denoiser, "_repeated_blocks", None):
            raise CacheConflict(
                f"--enable-torch-compile would compile {type(denoiser).__name__} as a whole, with the profile "
                f"{source!r} inside; leave it out, or unset {VARIABLE}"
            )
