"""The coefficients of a profile, on the device that its predictions are made on."""

import torch
from torch import Tensor

from ertacache.core.compensation import Compensation, Correction
from ertacache.core.predictor import Terms
from ertacache.core.rectify import Affine
from ertacache.profile.profile import Profile


class Coefficients:
    """Terms and rectifier of predicted steps, and the corrections of computed ones, put on a device when they are first
    asked for."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._terms: dict[tuple[int, str], Terms] = {}
        self._affine: dict[tuple[int, str], Affine] = {}
        self._device: torch.device | None = None
        self._corrections: dict[tuple[int, torch.device, bool], Correction | None] = {}
        self._alone: Compensation | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of those that are tensors."""
        tables = [t for terms in self._terms.values() for t in (*(a for _, _, a in terms.a), terms.d, terms.b)]
        tables += [t for affine in self._affine.values() for t in (affine.kappa, affine.beta)]
        made = [one for one in self._corrections.values() if one is not None]
        tables += [t for one in made for t in (one.gain, one.previous, one.bias)]
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

    def compensates(self, step: int, output: Tensor, *, leads_on: bool) -> Correction | None:
        """What corrects the raw output [B, *] of a computed step; None where nothing does.

        Args:
            leads_on: whether the raw output of the step before is there.
        """
        table, key = self._profile.compensation, (step, output.device, leads_on)
        if table is None:
            return None
        if not leads_on:
            table = self._alone = self._alone or table.without_previous()
        if key not in self._corrections:
            axis = self._profile.provenance.channel_axis
            self._corrections[key] = table.correction(step, output.shape, axis, output.device)
        return self._corrections[key]

    def reads_previous(self, step: int) -> bool:
        """Whether the correction of a step reads the raw output of the step before."""
        table = self._profile.compensation
        return table is not None and step < table.T and table.reads_previous(step)
