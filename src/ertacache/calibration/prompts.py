"""Calibration prompts with the seeds of their noise, and their split into fitted and held-out ones."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from ertacache.calibration.checks import check_number, check_whole
from ertacache.errors import InvalidArgument
from ertacache.pipelines.inputs import Inputs, embedded, names_of

#: What a profile can keep; torch would take twice as many.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts with the seed of their initial noise: prompt n uses seed + n, in whatever batch it runs.

    Attributes:
        texts: of prompts that are no text, names, by which reports speak of them.
        inputs: what each prompt brings along beside or in place of its text, by argument of the pipeline; empty where
            none does.
    """

    texts: tuple[str, ...]
    seed: int
    inputs: tuple[Inputs, ...] = field(default=(), compare=False, repr=False)

    @property
    def identities(self) -> tuple[str, ...]:
        """What tells each prompt from the others: its text, or its embeddings where it has some, whatever its name."""
        return tuple(names_of(self.inputs)) if embedded(self.inputs) else self.texts

    def first(self, count: int) -> "Prompts":
        """The first `count` prompts."""
        return Prompts(self.texts[:count], self.seed, self.inputs[:count])

    def batches(self, size: int | None) -> list["Prompts"]:
        """Consecutive parts of at most `size` prompts."""
        size = size or len(self.texts)
        starts = range(0, len(self.texts), size)
        return [
            Prompts(self.texts[start : start + size], self.seed + start, self.inputs[start : start + size])
            for start in starts
        ]


def split_prompts(
    prompts: Sequence[str] | None, holdout: float, seed: int, inputs: Sequence[Inputs] | None = None
) -> tuple[Prompts, Prompts]:
    """Calibration prompts and held-out prompts: the last `holdout` share, at least one of each kind.

    Args:
        prompts: texts; None where all of a prompt is in `inputs`, whose content names it then.
        inputs: one per prompt, which it stays with, or none at all.

    Raises:
        InvalidArgument: fewer than two prompts, one that is no text, another number of inputs, a share outside
            (0, 1), or no seed.
    """
    if prompts is None and inputs is not None:
        prompts = names_of(inputs)
    if not isinstance(prompts, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"prompts is {reprlib.repr(prompts)}; give a list of texts, or inputs without prompts")
    texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if len(texts) < 2:
        raise InvalidArgument(f"{len(texts)} prompt(s) given; calibrate with at least 2, since one part is held out")
    if strange := [text for text in texts if not isinstance(text, str)]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"prompt {reprlib.repr(strange[0])} is a {type(strange[0]).__name__}; give texts")
    brought = tuple(inputs or ())
    if inputs is not None and len(brought) != len(texts):
        raise InvalidArgument(f"{len(brought)} inputs for {len(texts)} prompts; give one dictionary per prompt")
    check_number("holdout", holdout, "choose a share between 0 and 1, such as 0.25", lambda x: 0 < x < 1)
    check_whole("seed", seed, 0, "prompt n starts from the noise of seed + n", most=LARGEST_SEED)
    held = min(len(texts) - 1, max(1, round(len(texts) * holdout)))
    cut = len(texts) - held
    return Prompts(texts[:cut], seed, brought[:cut]), Prompts(texts[cut:], seed + cut, brought[cut:])
