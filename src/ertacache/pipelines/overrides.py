"""Methods replaced on single instances, and everything put back as it was."""

import functools
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

from torch import nn

from ertacache.errors import CacheConflict

#: Names of the attributes by which a replaced method leads back to its overrides, and to the instance it was put on.
_OWNER, _HOME = "_ertacache_overrides", "_ertacache_home"

#: Where torch looks for a compiled call of a module, before anything else.
_CALL = "_compiled_call_impl"

#: (original, instance, *args, **kwargs) -> result
Wrapper = Callable[..., Any]


class Overrides:
    """Replaced methods that come off together. One that cannot be reached any more (in a copy of its instance, or
    under somebody else's wrapper) then only passes calls on.

    Attributes:
        active: whether the methods are replaced.
        exclusive: whether an instance may have one of this kind only.
    """

    exclusive = False

    def __init__(self) -> None:
        self.active = True
        self._undo: list[Callable[[], None]] = []
        self._put_on: list[tuple[Any, str, MethodType]] = []

    def replace(self, instance: Any, name: str, wrapper: Wrapper, *, copies: bool = True) -> None:
        """Put `wrapper` in place of a method of `instance`; its signature stays.

        Args:
            copies: whether deep copies of the instance pass by the wrapper too, with themselves as the instance.
        """
        self._put(instance, name, getattr(instance, name), wrapper, copies)

    def replace_call(self, module: nn.Module, wrapper: Wrapper) -> None:
        """Put `wrapper` around every call of a module.

        It goes outside of whatever else there is: forward hooks, offloading (which takes `forward` off and puts it
        on again in every run) and graphs compiled in place. torch looks for a compiled call before anything else,
        so that is the place; only the module that `torch.compile` returns has none of its own.
        """
        if hasattr(module, "_orig_mod"):
            self._put(module, "forward", module.forward, wrapper, copies=False)
        else:
            call = cast(Any, module)
            self._put(module, _CALL, call._compiled_call_impl or call._call_impl, wrapper, copies=False)

    def replace_part(self, part: nn.Module, wrapper: Wrapper) -> None:
        """Put `wrapper` around a part of a denoiser, so that compiled and offloaded parts pass by it as well.

        A graph compiled around the part looks at `forward` only; offloading takes that off in every run.
        """
        if hasattr(part, "_hf_hook") or vars(part).get(_CALL) is not None:
            self.replace_call(part, wrapper)
        else:
            self.replace(part, "forward", wrapper, copies=False)

    def covered(self) -> bool:
        """Whether a module's wrapper is passed over, or would be traced, since the module was compiled later on."""
        return any(
            _foreign(vars(instance).get(name), bound) if name == _CALL else vars(instance).get(_CALL) is not None
            for instance, name, bound in self._put_on
            if isinstance(instance, nn.Module) and name in (_CALL, "forward") and not hasattr(instance, "_orig_mod")
        )

    def remove(self) -> None:
        """Take every method off, newest first.

        Raises:
            CacheConflict: something else was wrapped around one of them meanwhile; the others are off then.
        """
        self.active = False
        self._put_on.clear()
        conflict: CacheConflict | None = None
        while self._undo:
            try:
                self._undo.pop()()
            except CacheConflict as error:
                conflict = error
        if conflict is not None:
            raise conflict

    def _put(self, instance: Any, name: str, original: Callable[..., Any], wrapper: Wrapper, copies: bool) -> None:
        before = vars(instance).get(name)
        if _is_stray(before, instance):  # came along with a deep copy, and leads back to another instance
            delattr(instance, name)
            before, original = None, original.__wrapped__.__get__(instance)  # pyright: ignore[reportFunctionMemberAccess]
        function = getattr(original, "__func__", None)

        @functools.wraps(function or original)
        def method(self_: Any, *args: Any, **kwargs: Any) -> Any:
            copied = self_ is not instance
            # A deep-copied instance carries this method along, bound to itself: call its own original, not ours.
            call = MethodType(function, self_) if function is not None and copied else original
            if not self.active or (copied and not copies):
                return call(*args, **kwargs)
            return wrapper(call, self_, *args, **kwargs)

        setattr(method, _OWNER, self)
        setattr(method, _HOME, weakref.ref(instance))
        bound = MethodType(method, instance)
        setattr(instance, name, bound)
        self._put_on.append((instance, name, bound))

        def undo() -> None:
            if vars(instance).get(name) is not bound:
                if name == _CALL:  # compiled since, which looks past whatever was there: nothing to take off
                    return
                if _taken_from_below(instance, bound, original):
                    return
                raise CacheConflict(
                    f"{type(instance).__name__}.{name} was wrapped again while a profile was applied; take that off, "
                    "and next time apply the profile last"
                )
            if before is None:
                delattr(instance, name)
            else:
                setattr(instance, name, before)

        self._undo.append(undo)


def _foreign(method: Any, bound: MethodType) -> bool:
    """Whether somebody else's method is where `bound` was put; other overrides pass calls on to it."""
    return method is not bound and not hasattr(method, _OWNER)


def _taken_from_below(instance: Any, method: MethodType, original: Callable[..., Any]) -> bool:
    """Put the original in the place of a method that hooks of accelerate or diffusers were put around since, as for
    offloading; whether there are such hooks."""
    chain = getattr(getattr(instance, "_diffusers_hook", None), "_fn_refs", ())
    places = [(instance, "_old_forward"), *((link, name) for link in chain for name in ("forward", "original_forward"))]
    held = [(holder, name) for holder, name in places if vars(holder).get(name) is method]
    for holder, name in held:
        setattr(holder, name, original)
    return bool(held)


def overrides_of(instance: Any, *names: str) -> Overrides | None:
    """The active overrides of any of these methods of an instance."""
    for name in names:
        method = vars(instance).get(name)
        found = getattr(method, _OWNER, None)
        if found is not None and found.active and not _is_stray(method, instance):
            return found
    return None


def _is_stray(method: Any, instance: Any) -> bool:
    """Whether a replaced method was put on another instance, of which this one is a deep copy."""
    home = getattr(method, _HOME, None)
    return home is not None and home() is not instance
