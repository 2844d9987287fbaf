"""The coefficients of a profile, on the device that its predictions are made on."""

import torch
from torch import Tensor

from ertacache.core.predictor import Terms
from ertacache.core.rectify import Affine
from ertacache.profile.profile import Profile


class Coefficients:
    """Terms and rectifier of each predicted step, put on a device when they are first asked for."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._terms: dict[tuple[int, str], Terms] = {}
        self._affine: dict[tuple[int, str], Affine] = {}
        self._device: torch.device | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of those that are tensors."""
        tables = [t for terms in self._terms.values() for t in (*(a for _, _, a in terms.a), terms.d, terms.b)]
        tables += [t for affine in self._affine.values() for t in (affine.kappa, affine.beta)]
        return sum(table.nbytes for table in tables if isinstance(table, Tensor))

    def terms(self, step: int, target: str, device: torch.device) -> Terms:
        """What predicts `target` at a step, on `device`."""
        if device != self._device:
            self._terms.clear()
            self._affine.clear()
            self._device = device
        if (step, target) not in self._terms:
            self._terms[step, target] = self._profile.predictor.terms(step, target, device)
        return self._terms[step, target]

    def correct(self, step: int, target: str, value: Tensor) -> Tensor:
        """The prediction [B, *] after its rectifier, or as it is where there is none."""
        rectifier = self._profile.rectifier
        if rectifier is None:
            return value
        if (step, target) not in self._affine:
            m = self._profile.predictor.targets.index(target)
            tables = (rectifier.kappa[step, m], rectifier.beta[step, m])
            self._affine[step, target] = Affine(*(table.to(value.device) for table in tables))
        affine = self._affine[step, target]
        return affine.apply(value) if rectifier.activation == "linear" else affine.apply_sigmoid(value)
