"""How an actor comes to its pipeline, and what can be sent to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ertacache.calibration.checks import check_number
from ertacache.errors import InvalidArgument
from ertacache.extras import require
from ertacache.pipelines.loading import DTYPES, check_model, load_pipeline

#: What a process that has no pipeline is told instead: where to load one from, or how to make it.
Pipeline = str | Callable[[], Any]


@dataclass(frozen=True)
class Source:
    """Where each actor gets its pipeline from.

    Attributes:
        pipeline: a bundled model, a folder, a Hub id, or a function without arguments that makes one.
        device: "cpu", or None for the actor's accelerator. dtype: as `load_pipeline`; both only where it is loaded.
    """

    pipeline: Pipeline
    device: str | None = None
    dtype: str | None = None

    @property
    def name(self) -> str:
        """What a message calls the pipeline."""
        return getattr(self.pipeline, "__qualname__", repr(self.pipeline))

    def load(self) -> Any:
        """The pipeline, without its own progress bars."""
        if not isinstance(self.pipeline, str):
            return self.pipeline()
        return load_pipeline(self.pipeline, self.device, self.dtype)


def source_of(pipeline: Any, num_gpus: float, dtype: str | None = None) -> Source:
    """The source of a pipeline, checked as far as it can be without loading it.

    Args:
        num_gpus: of each actor; 0 loads on the CPU.

    Raises:
        InvalidArgument: a pipeline itself, which cannot be sent, or nothing that one could be loaded from.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InvalidArgument(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    if isinstance(pipeline, str):
        check_model(pipeline)
    elif not callable(pipeline) or hasattr(pipeline, "scheduler"):
        raise InvalidArgument(
            f"pipeline is a {type(pipeline).__name__}, which cannot be sent to actors; give its folder or Hub id, or a "
            "function without arguments that makes it"
        )
    check_sendable("pipeline", pipeline)
    return Source(pipeline, None if num_gpus else "cpu", dtype)


def source_like(pipe: Any, pipeline: Pipeline | None, num_gpus: float) -> Source:
    """The source of a pipeline that this process has: as given, else where it was loaded from.

    Raises:
        InvalidArgument: it was made otherwise; and as `source_of`.
    """
    if pipeline is None:
        pipeline = getattr(pipe, "name_or_path", None)
        if not pipeline or not isinstance(pipeline, str):
            raise InvalidArgument(
                f"this {type(pipe).__name__} cannot be sent to actors and was loaded from nowhere; say how they get "
                "one like it: ertacache.ray.map(pipeline=...), a folder, a Hub id or a function without arguments"
            )
    dtype = str(getattr(pipe, "dtype", None)).removeprefix("torch.")
    return source_of(pipeline, num_gpus, dtype if dtype in DTYPES else None)


def check_shares(num_gpus: float, num_cpus: float) -> None:
    """Refuse what an actor cannot have of a machine: `InvalidArgument`."""
    remedy = "give the GPUs of each actor: 1, a share such as 0.5, or 0 to work on CPUs"
    check_number("num_gpus", num_gpus, remedy, lambda x: 0 <= x < 1000)
    check_number("num_cpus", num_cpus, "give the CPUs of each actor, 1 or more", lambda x: 0 < x < 1000)


def check_sendable(name: str, value: Any) -> None:
    """Refuse what cannot be sent to another process, by the name of its innermost part that has one.

    Raises:
        InvalidArgument: naming it.
    """
    try:
        ray_module("cloudpickle").dumps(value)
    except Exception as error:  # whatever an object's own way to be pickled raises
        parts: Mapping[str, Any] = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        for inner, part in parts.items():
            check_sendable(str(inner), part)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InvalidArgument(
            f"{name} is a {type(value).__name__}, which cannot be sent to actors ({first}); give plain data"
        ) from error


def needs_ray(what: str) -> None:
    """Refuse work on Ray where it is not installed, and join or start a cluster where this process has none.

    Raises:
        MissingExtra: naming the extra.
    """
    require(what, "ray")
    ray = ray_module()
    if not ray.is_initialized():
        ray.init()


def ray_module(part: str = "") -> Any:
    """Ray itself or a part of it, imported when it is used; unlike this package it has types that do not hold."""
    return import_module(f"ray.{part}" if part else "ray")
