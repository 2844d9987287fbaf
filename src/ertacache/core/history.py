"""What the computed steps of a run leave behind for the predicted ones."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ertacache.errors import PredictorInvalid


class History:
    """The newest outputs and inputs of a run, by source.

    Args:
        levels: how many outputs to keep, 1 or more: of every source, or by source (1 of those not named). Of the
            inputs, only the newest per source is kept.
    """

    def __init__(self, levels: int | Mapping[str, int]) -> None:
        self._levels = levels
        self._outputs: dict[str, list[Tensor]] = {}
        self._inputs: dict[str, Tensor] = {}
        self._likes: dict[str, Tensor] = {}
        self._device = torch.device("cpu")

    def push(self, source: str, output: Tensor, x: Tensor | None = None, *, copy: bool = False) -> None:
        """Record a computed step.

        Args:
            output: [B, *].
            x: its input [B, *], for predictors with d. Nobody may change it later.
            copy: keep a copy of `output`, which its owner may change later.
        """
        self._likes.pop(source, None)
        self._likes[source] = torch.empty_like(output, device="meta")
        self._device = output.device
        held = self._outputs.setdefault(source, [])
        del held[self._level(source) - 1 :]  # first, so that there is room for the new one
        self._inputs.pop(source, None)  # an older step's input must never stand in for this one's
        held.insert(0, self._keep(output, copy))
        if x is not None:
            self._inputs[source] = self._keep_input(x)

    @property
    def newest(self) -> Tensor | None:
        """The output [B, *] pushed last, of whichever source, without its data: a meta tensor."""
        return next(reversed(self._likes.values()), None)

    def like(self, source: str) -> Tensor:
        """The newest output [B, *] of `source` without its data: a meta tensor.

        Raises:
            PredictorInvalid: none was pushed.
        """
        if source not in self._likes:
            raise PredictorInvalid(f"no output of '{source}' is held; compute a step before predicting it")
        return self._likes[source]

    @property
    def device(self) -> torch.device:
        """Of the output pushed last."""
        return self._device

    def output(self, source: str, level: int) -> Tensor:
        """An output [B, *] of `source`, level 0 being the newest.

        Raises:
            PredictorInvalid: fewer are held.
        """
        held = self._outputs.get(source, [])
        if level >= len(held):
            raise PredictorInvalid(f"output {level + 1} of '{source}' is wanted and {len(held)} are held; push more")
        return self._fetch(held[level])

    def outputs(self, source: str) -> list[Tensor]:
        """The outputs [B, *] kept for `source`, newest first."""
        return [self._fetch(kept) for kept in self._outputs.get(source, [])]

    def depth(self, source: str) -> int:
        """Number of outputs kept for `source`."""
        return len(self._outputs.get(source, []))

    @property
    def x(self) -> Tensor | None:
        """The input pushed last, of whichever source."""
        kept = next(reversed(self._inputs.values()), None)
        return None if kept is None else self._fetch(kept)

    def input(self, source: str) -> Tensor:
        """The input [B, *] of the newest output of `source`; failing that, the one pushed last.

        Raises:
            PredictorInvalid: no input was pushed.
        """
        kept = self._inputs.get(source)
        x = self.x if kept is None else self._fetch(kept)
        if x is None:
            raise PredictorInvalid(f"d needs an input of '{source}' and none is held; push(source, output, x)")
        return x

    @property
    def finite(self) -> bool:
        """Whether all that is held is free of NaN and infinity."""
        return all(bool(self._fetch(kept).isfinite().all()) for kept in self._held())

    def clear(self) -> None:
        """Forget everything, as at the start of a run."""
        self._outputs.clear()
        self._inputs.clear()
        self._likes.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages kept alive on the device of the outputs."""
        return storage_bytes(self._held())

    @property
    def host_nbytes(self) -> int:
        """Bytes that stand in for these in the host's memory; see `offload.HostHistory`."""
        return 0

    def _held(self) -> list[Tensor]:
        return [kept for outputs in self._outputs.values() for kept in outputs] + list(self._inputs.values())

    def _level(self, source: str) -> int:
        return self._levels if isinstance(self._levels, int) else self._levels.get(source, 1)

    def _keep(self, output: Tensor, copy: bool) -> Tensor:
        """What is held of an output."""
        return output.clone() if copy else output

    def _keep_input(self, x: Tensor) -> Tensor:
        """What is held of an input: not the larger tensor that it may be a view of."""
        return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x

    def _fetch(self, kept: Tensor) -> Tensor:
        """What was held, where it can be computed with."""
        return kept


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages of tensors."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
