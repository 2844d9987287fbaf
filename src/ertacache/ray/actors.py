"""Units of a calibration or a comparison on Ray: actors with a pipeline each, one unit at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from ertacache.calibration.checks import check_whole
from ertacache.calibration.spread import Bench, Result, pipeline_hash
from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.ray.source import (
    Pipeline,
    Source,
    check_sendable,
    check_shares,
    needs_ray,
    ray_module,
    source_like,
    source_of,
)

#: How often a unit may end its actor before it is given up.
_TRIES = 3


def map(
    pipeline: Pipeline | None = None, *, num_gpus: float = 1, num_cpus: float = 1, actors: int | None = None
) -> "ActorMap":
    """What `calibrate(..., map=...)` and `run_comparison(..., map=...)` take to spread their runs over Ray's actors.

    Each actor loads the pipeline once, and is refused if it is another one than the process that asks has. A unit of
    work whose actor dies is done again by a new one. Actors live as long as what this returns.

    Args:
        pipeline: where an actor gets its pipeline from: a bundled model, a folder, a Hub id, or a function without
            arguments that makes it. None for where the given pipeline was loaded from.
        num_gpus, num_cpus: of each actor; without a GPU the pipeline runs on the CPU.
        actors: how many; None for as many as the cluster has room for.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidArgument: a pipeline in place of where to get it from, or no such number of actors, CPUs or GPUs.
    """
    return ActorMap(pipeline, num_gpus, num_cpus, actors)


class ActorMap:
    """A `calibration.spread.Map` of actors; see `map` for its arguments."""

    def __init__(self, pipeline: Pipeline | None, num_gpus: float, num_cpus: float, actors: int | None) -> None:
        needs_ray("ertacache.ray.map")
        check_shares(num_gpus, num_cpus)
        if pipeline is not None:
            source_of(pipeline, num_gpus)
        if actors is not None:
            check_whole("actors", actors, 1, "give how many actors work at a time, or None for all there is room for")
        self._pipeline, self._count = pipeline, actors
        self._share = {"num_gpus": num_gpus, "num_cpus": num_cpus}
        self._actors: list[Any] = []
        self._identity = ""

    def __call__(
        self, pipe: Any, make: Callable[[Any], Bench], units: Sequence[Callable[[Bench], Result]]
    ) -> Iterator[Result]:
        check_sendable("map", make)
        ray = ray_module()
        actors, shared = self._started(pipe), [ray.put(make)]  # in a list Ray leaves it to the actor to fetch it
        waiting, free = deque(enumerate(units)), deque(actors)
        running, done = dict[Any, tuple[int, Any]](), dict[int, Result]()
        try:
            for number in range(len(units)):
                while number not in done:
                    while free and waiting:
                        n, unit = waiting.popleft()
                        actor = free.popleft()
                        running[actor.do.remote(shared, unit)] = n, actor
                    ready = ray.wait(list(running))[0][0]
                    n, actor = running.pop(ready)
                    done[n] = _result(ready)
                    free.append(actor)
                yield done.pop(number)
        finally:
            if running:  # nobody waits for them any more
                self.close()

    def close(self) -> None:
        """End the actors; the next call starts others."""
        for actor in self._actors:
            ray_module().kill(actor)
        self._actors = []

    def _started(self, pipe: Any) -> list[Any]:
        identity = pipeline_hash(pipe)
        if self._actors and identity != self._identity:
            self.close()
        if not self._actors:
            source = source_like(pipe, self._pipeline, self._share["num_gpus"])
            kind = ray_module().remote(**self._share, max_restarts=-1, max_task_retries=_TRIES - 1)(Worker)
            self._actors = [kind.remote(source, identity) for _ in range(self._room())]
            self._identity = identity
        return self._actors

    def _room(self) -> int:
        """How many actors.

        Raises:
            InvalidArgument: not even one fits into the cluster, in which it would be waited for without an end.
        """
        there = ray_module().cluster_resources()
        rooms = [
            int(there.get(name, 0) // share)
            for name, share in (("GPU", self._share["num_gpus"]), ("CPU", self._share["num_cpus"]))
            if share
        ]
        wanted = self._count or 1
        if min(rooms, default=wanted) < wanted:
            raise InvalidArgument(
                f"{wanted} actor(s) with num_gpus={self._share['num_gpus']:g} and num_cpus={self._share['num_cpus']:g} "
                f"do not fit into a cluster of {there.get('GPU', 0):g} GPUs and {there.get('CPU', 0):g} CPUs; ask for "
                "less, such as num_gpus=0 to work on CPUs"
            )
        return self._count or min(rooms, default=1)


def _result(reference: Any) -> Any:
    """What a unit returned, or the error that it raised itself."""
    ray = ray_module()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CalibrationError(
            f"a unit of work has ended its actor {_TRIES} times ({first}); look into Ray's logs, where there was too "
            "little memory give each actor more: map(num_gpus=..., num_cpus=...)"
        ) from error


class Worker:
    """One actor: a pipeline and what is made with it.

    Args:
        source: of the pipeline. identity: what `pipeline_hash` says of the one that it has to be like.
    """

    def __init__(self, source: Source, identity: str) -> None:
        self._source, self._identity = source, identity
        self._kept: tuple[str, Any] = "", None

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded with the first unit, whose error this may be."""
        pipe = self._source.load()
        if pipeline_hash(pipe) != self._identity:
            raise InvalidArgument(
                f"pipeline={self._source.name} gives the actors another {type(pipe).__name__} than the one that was "
                "given (its weights, a configuration or the scheduler differ); give a function that makes this "
                "one: ertacache.ray.map(pipeline=...)"
            )
        return pipe

    def do(self, shared: list[Any], unit: Callable[[Any], Any]) -> Any:
        """A unit's result.

        Args:
            shared: a reference to what makes of the pipeline that which units are called with; done once for each.
        """
        key = shared[0].hex()
        if self._kept[0] != key:
            self._kept = key, ray_module().get(shared[0])(self.pipe)
        return unit(self._kept[1])
