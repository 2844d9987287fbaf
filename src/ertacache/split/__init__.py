"""One run by several models: the first steps by one, the last by another, in one process or over a wire (Hybrid SD)."""

from ertacache.split.client import SplitClient
from ertacache.split.handover import Handover
from ertacache.split.in_process import SplitStats, split
from ertacache.split.parts import first_part, second_part

__all__ = ["Handover", "SplitClient", "SplitStats", "first_part", "second_part", "split"]
