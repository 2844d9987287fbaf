"""The fingerprint of a denoiser's weights: a few entries of every tensor, as they come in any floating dtype."""

import base64
import binascii
import re
from dataclasses import dataclass
from reprlib import repr as short  # values from a file may be long
from typing import Self

import torch
from torch import Tensor

from ertacache.errors import InvalidArgument

#: Entries of each tensor.
ENTRIES = 2
# Rounded to bfloat16 once or by way of float16, two copies of one number are at most one unit in the last place apart.
_RELATIVE = 2.0**-7
_ABSOLUTE = 2.0**-24  # the smallest number of float16
_TEXT = re.compile(r"[0-9a-f]{16}:[A-Za-z0-9+/]+={0,2}")


@dataclass(frozen=True, eq=False, slots=True)
class Fingerprint:
    """What tells the weights of one checkpoint from those of another, whichever floating dtype either is loaded in.

    Args:
        names: 16 hexadecimal digits for the names of the tensors.
        entries: bfloat16 CPU tensor [tensors, ENTRIES] in the order of the names; NaN where a tensor is packed
            (quantised) or elsewhere (on a disk), so that nothing can be said of it.
    """

    names: str
    entries: Tensor

    def __str__(self) -> str:
        """The names, a colon, and the base64 of the entries, two little-endian bytes each."""
        return (
            f"{self.names}:{base64.b64encode(self.entries.contiguous().view(torch.uint8).numpy().tobytes()).decode()}"
        )

    @classmethod
    def parse(cls, text: str, key: str) -> Self:
        """Inverse of `str`.

        Raises:
            InvalidArgument: another text; names the key.
        """
        try:
            content = base64.b64decode(text.partition(":")[2], validate=True) if _TEXT.fullmatch(text) else b""
        except binascii.Error:
            content = b""
        if not content or len(content) % (2 * ENTRIES):
            raise InvalidArgument(
                f"{key} is {short(text)}; it must be 16 hexadecimal digits, a colon and the base64 of {ENTRIES} "
                "bfloat16 numbers for each tensor, or empty: calibrate again"
            )
        entries = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(torch.bfloat16)
        return cls(text[:16], entries.view(-1, ENTRIES))

    def difference(self, other: Self) -> str:
        """In words, how far the `other` weights are others than these; empty where nothing tells them apart."""
        known = self.entries.isfinite().all(1), other.entries.isfinite().all(1)
        if self.names != other.names:
            # Packing may add tensors and rename them: that says nothing of the weights.
            return "its tensors have other names" if bool(known[0].all() and known[1].all()) else ""
        before, after = self.entries.float(), other.entries.float()
        apart = (before - after).abs() > _RELATIVE * torch.maximum(before.abs(), after.abs()) + _ABSOLUTE
        changed = int((apart.any(1) & known[0] & known[1]).sum())
        return f"{changed} of {int((known[0] & known[1]).sum())} tensors differ" if changed else ""
