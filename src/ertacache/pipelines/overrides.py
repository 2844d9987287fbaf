"""Methods replaced on single instances, and everything put back as it was."""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from torch import nn

from ertacache.errors import CacheConflict

#: Name of the attribute by which a replaced method leads back to its overrides.
_OWNER = "_ertacache_overrides"

#: (original, instance, *args, **kwargs) -> result
Wrapper = Callable[..., Any]


class Overrides:
    """Replaced methods that come off together. One that cannot be reached any more (in a copy of its instance, or
    under somebody else's wrapper) then only passes calls on.

    Attributes:
        active: whether the methods are replaced.
    """

    def __init__(self) -> None:
        self.active = True
        self._undo: list[Callable[[], None]] = []

    def replace(self, instance: Any, name: str, wrapper: Wrapper) -> None:
        """Put `wrapper` in place of a method of `instance`; its signature stays."""
        self._put(instance, name, getattr(instance, name), wrapper)

    def replace_call(self, module: nn.Module, wrapper: Wrapper) -> None:
        """Put `wrapper` around every call of a module.

        It goes outside of whatever else there is: forward hooks, offloading (which takes `forward` off and puts it
        on again in every run) and graphs compiled in place. torch looks for a compiled call before anything else,
        so that is the place; only the module that `torch.compile` returns has none of its own.
        """
        if hasattr(module, "_orig_mod"):
            self._put(module, "forward", module.forward, wrapper)
        else:
            call = cast(Any, module)
            self._put(module, "_compiled_call_impl", call._compiled_call_impl or call._call_impl, wrapper)

    def replace_part(self, part: nn.Module, wrapper: Wrapper) -> None:
        """Put `wrapper` around a part of a denoiser, so that compiled and offloaded parts pass by it as well.

        A graph compiled around the part looks at `forward` only; offloading takes that off in every run.
        """
        if hasattr(part, "_hf_hook") or vars(part).get("_compiled_call_impl") is not None:
            self.replace_call(part, wrapper)
        else:
            self.replace(part, "forward", wrapper)

    def remove(self) -> None:
        """Take every method off, newest first.

        Raises:
            CacheConflict: something else was wrapped around one of them meanwhile; the others are off then.
        """
        self.active = False
        conflict: CacheConflict | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except CacheConflict as error:
                conflict = error
        if conflict is not None:
            raise conflict

    def _put(self, instance: Any, name: str, original: Callable[..., Any], wrapper: Wrapper) -> None:
        before = vars(instance).get(name)
        function = getattr(original, "__func__", None)

        @functools.wraps(function or original)
        def method(self_: Any, *args: Any, **kwargs: Any) -> Any:
            # A deep-copied instance carries this method along, bound to itself: call its own original, not ours.
            call = MethodType(function, self_) if function is not None and self_ is not instance else original
            return wrapper(call, self_, *args, **kwargs) if self.active else call(*args, **kwargs)

        setattr(method, _OWNER, self)
        bound = MethodType(method, instance)
        setattr(instance, name, bound)

        def undo() -> None:
            if vars(instance).get(name) is not bound:
                raise CacheConflict(
                    f"{type(instance).__name__}.{name} was wrapped again while a profile was applied; take that off, "
                    "and next time apply the profile last"
                )
            if before is None:
                delattr(instance, name)
            else:
                setattr(instance, name, before)

        self._undo.append(undo)


def overrides_of(instance: Any, *names: str) -> Overrides | None:
    """The active overrides of any of these methods of an instance."""
    for name in names:
        found = getattr(vars(instance).get(name), _OWNER, None)
        if found is not None and found.active:
            return found
    return None
