"""The guidance weight of a two-branch run, read off what the pipeline does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ertacache.pipelines.branches import two_branches

#: Relative distance of g from what u and c can give above which something else made it.
_UNEXPLAINED = 0.05
#: The same, above which another kind of guidance did; what lies between may be either.
_FOREIGN = 0.1
#: Share of w that rounding may leave open: branches that hardly differ name no weight.
_OPEN = 0.002
#: A freer model must leave this many times less unexplained to be preferred.
_BETTER = 3.0


@dataclass(frozen=True, slots=True)
class Weighed:
    """What explains a guided output, still on its device.

    Attributes:
        fits: [models, 3] the relative error of each model, its w, and what rounding leaves open of w.
    """

    fits: Tensor

    def read(self) -> float | None:
        """w of the simplest model that explains it as well as any. Waits for the device.

        Returns:
            None where the branches hardly differ, or hold NaN; NaN where they do differ and no w explains it.
        """
        rows = [row for row in self.fits.tolist() if row[0] == row[0] and row[1] == row[1]]  # not NaN
        known = [(error, weight) for error, weight, open_ in rows if open_ < _OPEN * max(1.0, abs(weight))]
        if not known:
            return None
        least = min(error for error, _ in known)
        if least < _UNEXPLAINED:
            return next(weight for error, weight in known if error <= _BETTER * least)
        return math.nan if least > _FOREIGN else None


class TwoBranchGuidance:
    """Infers w of g = a (u + w (c − u)) from the calls of one computed step; pipelines keep w in a local variable.

    `a` is 1 in most pipelines, −1 where the solver wants the other sign (HiDream, Z-Image), and a norm where guidance
    is rescaled: one for each sample (Stable Diffusion's `guidance_rescale`) or for each row of the last axis (Lumina 2
    and Qwen-Image).
    """

    def __init__(self, contexts: Sequence[str]) -> None:
        self._wanted = tuple(contexts) if len(contexts) <= 2 else ()
        self._seen: dict[str, Tensor] = {}

    def observe(self, context: str, output: Tensor) -> None:
        """Keep the output [B, *] of one call of this step."""
        if context in self._wanted:
            self._seen[context] = output

    def weigh(self, guided: Tensor) -> Weighed | None:
        """w, by least squares on u and c − u. None where there are not two branches that could make up g.

        A pipeline that has the branches the other way round than `two_branches` takes them gives 1 − w instead, which
        still names one guidance weight.

        Args:
            guided: [B, *], what the pipeline made of the calls.
        """
        branches = two_branches({name: self._seen[name] for name in self._wanted if name in self._seen}, guided)
        self._seen.clear()
        if branches is None:
            return None
        rounding = max(torch.finfo(branch.dtype).eps for branch in (*branches, guided.float()))
        cond, uncond = (branch.float() for branch in branches)
        return Weighed(_fits(guided.float(), uncond, cond - uncond, rounding))

    def weight(self, guided: Tensor) -> float | None:
        """`weigh`, read at once; None where no w explains it."""
        weighed = self.weigh(guided)
        found = None if weighed is None else weighed.read()
        return None if found is None or math.isnan(found) else found


def _fits(guided: Tensor, uncond: Tensor, difference: Tensor, rounding: float) -> Tensor:
    """`Weighed.fits`, from the simplest model on: a = 1, one a a sample, one a row."""
    fits = [_fit(guided.flatten(), uncond.flatten(), difference.flatten(), scaled=False)]
    for first in (1, -1):
        rows = [x.flatten(first) if first == 1 else x for x in (guided, uncond, difference)]
        if rows[0].shape[-1] > 2:
            fits.append(_fit(*rows, scaled=True))
    # Each entry of g is off by up to that share of itself, and w by as much along c − u, of which the mean remains.
    left_open = rounding * guided.norm() / (difference.norm() * math.sqrt(guided.numel()))
    return torch.cat([torch.stack(fits), left_open.expand(len(fits), 1)], 1)


def _fit(guided: Tensor, uncond: Tensor, difference: Tensor, *, scaled: bool) -> Tensor:
    """Least squares along the last axis: the relative error left, and the middle weight of all rows or NaN."""

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(-1)

    uu, ud, dd = dot(uncond, uncond), dot(uncond, difference), dot(difference, difference)
    gu, gd = dot(guided, uncond), dot(guided, difference)
    if scaled:
        determinant = uu * dd - ud * ud
        a, b = (gu * dd - gd * ud) / determinant, (gd * uu - gu * ud) / determinant
    else:
        a, b = torch.ones_like(gu), (gd - ud) / dd
    weights = torch.where((b / a).isfinite(), b / a, torch.nan)
    left = guided - a.unsqueeze(-1) * uncond - b.unsqueeze(-1) * difference
    return torch.stack([left.nan_to_num().norm() / guided.norm(), weights.flatten().nanmedian()])
