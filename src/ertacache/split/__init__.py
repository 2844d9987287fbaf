"""One run by several models: the first steps by one, the last by another, in one process or over a wire (Hybrid SD)."""

from ertacache.split.calibrate import calibrate_split
from ertacache.split.client import SplitClient
from ertacache.split.handover import Handover
from ertacache.split.in_process import SplitStats, split
from ertacache.split.parts import first_part, second_part
from ertacache.split.profile import SplitProfile

__all__ = [
    "Handover", "SplitClient", "SplitProfile", "SplitStats", "calibrate_split", "first_part", "second_part", "split",
]  # fmt: skip
