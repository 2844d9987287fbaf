"""Which function calls are under way where somebody calls, and when one of them has ended."""

import gc
import inspect
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate, repeat
from types import CodeType, FrameType
from typing import Any

from ertacache.pipelines.models import PIPELINE_MODULES

#: Packages whose frames lie between a pipeline and its denoiser without being anybody's loop.
_MACHINERY = frozenset(
    {
        "ertacache", "torch", "accelerate", "peft", "contextlib", "functools", "threading", "concurrent", "asyncio",
        "anyio",
    }
)  # fmt: skip
_PIPELINES = frozenset({"DiffusionPipeline", "ModularPipeline", "ModularPipelineBlocks"})
#: Name under which a frame holds its mark, beside its variables.
_MARK = "__ertacache_mark__"

#: References to a frame's dictionary of variables that nobody else has: the frame's, ours, and that of the question.
_UNSHARED = 3

#: A call under way: which frame, and of which function, since a later frame may lie at the same address.
Place = tuple[int, CodeType]


class _Mark:
    """Lives as long as the frame that holds it."""


def callers() -> list[FrameType]:
    """The frames of the calling thread, innermost first, without those of this package, torch and other machinery."""
    return [frame for frame in _outward(inspect.currentframe()) if not _is_machinery(frame)]


def places(frames: list[FrameType]) -> frozenset[Place]:
    """The same without holding the frames, whose variables would live on."""
    return frozenset((id(frame), frame.f_code) for frame in frames)


def elsewhere(wanted: frozenset[Place]) -> bool:
    """Whether one of these calls is under way in another thread than the asking one."""
    own = id(inspect.currentframe())  # a frame that holds itself would live on, with all around it
    stacks = (frames for frames in _stacks() if own not in map(id, frames))
    return any((id(frame), frame.f_code) in wanted for frames in stacks for frame in frames)


class Scope:
    """A function call under way, known without being held: the pipeline call, or the function of a loop by hand.

    Attributes:
        place: which call it is.
        of_pipeline: whether it is a method of a pipeline of diffusers, or of the pipeline `pipe`.
    """

    def __init__(self, frame: FrameType, pipe: object) -> None:
        self.place: Place = (id(frame), frame.f_code)
        self.of_pipeline = False
        self._mark: weakref.ref[_Mark] | None = None
        # The variables of a module or class body are somebody's dictionary, which is not ours to write in.
        if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return
        variables: Any = frame.f_locals
        mark: _Mark = variables.get(_MARK) or _Mark()
        code = frame.f_code
        self.of_pipeline = code.co_varnames[: min(1, code.co_argcount)] == ("self",) and _is_pipeline(variables, pipe)
        # Before Python 3.13 a copy, in which tensors would live on; but one that a debugger writes back into the frame,
        # or that the function has from `locals()`, is not ours to empty.
        if isinstance(variables, dict) and sys.gettrace() is None and sys.getrefcount(variables) <= _UNSHARED:
            variables.clear()
        variables[_MARK] = mark
        self._mark = weakref.ref(mark)

    def depth(self, frames: list[FrameType]) -> int | None:
        """Its place among the frames of a call; None where it has ended or made no such call."""
        if not self.alive():
            return None
        return next((n for n, frame in enumerate(frames) if (id(frame), frame.f_code) == self.place), None)

    def alive(self) -> bool:
        """Whether it has not ended, as far as can be told."""
        return self._mark is None or self._mark() is not None

    def at_end(self, action: Callable[..., object], *args: Any) -> None:
        """Call `action` when the function returns, raises (and the error is gone) or is closed.

        A module or notebook cell has no such end.
        """
        if self._mark is not None and (mark := self._mark()) is not None:
            weakref.finalize(mark, action, *args).atexit = False

    def under_way(self) -> bool:
        """Whether some thread is inside of it."""
        if self._mark is None or self._mark() is None:
            return False
        return any((id(frame), frame.f_code) == self.place for frames in _stacks() for frame in frames)


def common(frames: list[FrameType], begun: frozenset[Place]) -> FrameType | None:
    """The innermost of the frames that was under way at another time as well."""
    return next((frame for frame in frames if (id(frame), frame.f_code) in begun), None)


def path_to(frames: list[FrameType], depth: int) -> tuple[CodeType, ...]:
    """The functions through which a call came from the frame at `depth`, innermost first.

    Each once, however deep it calls itself, and without cells and modules, which are other code at each step.
    """
    codes = (frame.f_code for frame in frames[:depth])
    return tuple(dict.fromkeys(code for code in codes if code.co_flags & inspect.CO_OPTIMIZED))


def all_of_diffusers(frames: list[FrameType], depth: int) -> bool:
    """Whether all of these functions are the library's own."""
    return all(_package(frame) == "diffusers" for frame in frames[:depth])


def _stacks() -> list[deque[FrameType]]:
    """The frames of every thread as they are at one moment, innermost first.

    No Python code runs while a stack is walked, no loop of ours and no finaliser of the garbage collector: another
    thread could then go on, and to ask CPython 3.11 for what lies around a frame that is just ending may crash it.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        tops = sys._current_frames().values()  # pyright: ignore[reportPrivateUsage]  # documented, whatever its name
        return [_walked(top) for top in [*tops]]
    finally:
        tops = None  # one of them is this very frame, which would hold itself, and all callers with their tensors
        if collects:
            gc.enable()


def _walked(top: FrameType) -> deque[FrameType]:
    """The frames from `top` outwards, in one piece: the outermost one has None around it, which has no `f_back`."""
    found = deque[FrameType]()
    around = accumulate(repeat("f_back"), getattr, initial=top)
    with suppress(AttributeError):
        found.extend(around)
    found.pop()
    return found


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _package(frame: FrameType) -> str:
    name = str(frame.f_globals.get("__name__", ""))
    return "diffusers" if name.startswith(PIPELINE_MODULES) else name.partition(".")[0]


def _is_machinery(frame: FrameType) -> bool:
    return _package(frame) in _MACHINERY


def _is_pipeline(variables: dict[str, Any], pipe: object) -> bool:
    """Asked of the classes by name: their modules are slow to import."""
    owner = variables.get("self")
    bases = (base for base in type(owner).__mro__ if base.__module__.startswith("diffusers."))
    return (owner is not None and owner is pipe) or any(base.__name__ in _PIPELINES for base in bases)
