"""Calibration prompts with the seeds of their noise, and their split in three: fitted, chosen on, judged on."""

import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from ertacache.calibration.checks import check_number, check_whole
from ertacache.errors import InvalidArgument
from ertacache.pipelines.inputs import Inputs, check_inputs, digest, embedded, names_of

#: What a profile can keep; torch would take twice as many.
LARGEST_SEED = 2**63 - 1
#: Prompts of each part where there are three times as many: fewer are no measurement.
_LEAST = 4
#: What the prompts of each part do.
_USES = ("is fitted to", "chooses", "judges")


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
        return self.part(0, count)

    def part(self, start: int, end: int) -> "Prompts":
        """The prompts from `start` on, before `end`."""
        return Prompts(self.texts[start:end], self.seed + start, self.inputs[start:end])

    def batches(self, size: int | None) -> list["Prompts"]:
        """Consecutive parts of at most `size` prompts."""
        size = size or max(1, len(self.texts))
        return [self.part(start, start + size) for start in range(0, len(self.texts), size)]


class Parts(NamedTuple):
    """Prompts by their use; none has two.

    Attributes:
        fitted: the coefficients are fitted to.
        chosen: candidates are compared on; there may be none.
        judged: the figures of the profile are measured on; there may be none.
    """

    fitted: Prompts
    chosen: Prompts
    judged: Prompts


def three_parts(
    prompts: Sequence[str] | None,
    choose: float,
    holdout: float,
    seed: int,
    inputs: Sequence[Inputs] | None,
    chosen: str,
) -> tuple[dict[str, Any], Parts]:
    """`split_prompts` where none of the parts may be empty; with its arguments, which a recording takes too.

    Args:
        chosen: what the second part is to choose.

    Raises:
        InvalidArgument: as `split_prompts`, a share of 0, or prompts for two parts only.
    """
    check_inputs(inputs)
    for name, share in (("choose", choose), ("holdout", holdout)):
        check_number(name, share, "choose a share between 0 and 1, such as 0.2", lambda x: 0 < x < 1)
    shares: dict[str, Any] = {"choose": choose, "judge": holdout, "seed": seed, "inputs": inputs}
    parts = split_prompts(prompts, **shares)
    if not parts.chosen.texts:
        raise InvalidArgument(f"2 prompts leave none to choose {chosen} on; give 3 or more")
    return shares, parts


def split_prompts(
    prompts: Sequence[str] | None,
    choose: float,
    judge: float,
    seed: int,
    inputs: Sequence[Inputs] | None = None,
) -> Parts:
    """Calibration prompts by their use: the last `judge` share judges, the `choose` share before it chooses.

    Each of the three parts has at least four prompts where there are twelve, and one where there are three. Of two
    prompts the second judges, or chooses where nothing judges.

    Args:
        prompts: texts; None where all of a prompt is in `inputs`, whose content names it then.
        choose, judge: shares; of a part with share 0 there is none.
        inputs: one per prompt, which it stays with, or none at all.

    Raises:
        InvalidArgument: fewer than two prompts, one that is no text or in two parts, another number of inputs, shares
            outside [0, 1) or of 1 and more together, or no seed.
    """
    said = prompts is not None or embedded(inputs or ())  # of labels, and of noise alone, every sample is another
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
    check_number("choose", choose, "choose a share from 0 to below 1, such as 0.2", lambda x: 0 <= x < 1)
    check_number("holdout", judge, "choose a share from 0 to below 1, such as 0.2", lambda x: 0 <= x < 1)
    if choose + judge >= 1:
        raise InvalidArgument(
            f"choose={choose:g} and holdout={judge:g} leave nothing to fit; their sum must be below 1"
        )
    check_whole("seed", seed, 0, "prompt n starts from the noise of seed + n", most=LARGEST_SEED)
    judging = _count(len(texts), judge, room=len(texts) - 1)
    choosing = _count(len(texts), choose, room=len(texts) - 1 - judging)
    whole, cut = Prompts(texts, seed, brought), len(texts) - judging
    parts = Parts(whole.part(0, cut - choosing), whole.part(cut - choosing, cut), whole.part(cut, len(texts)))
    if said:
        _check_apart(parts)
    return parts


def _check_apart(parts: Parts) -> None:
    """Refuse a prompt of two parts: fitted to or chosen on, it would flatter the plan where it judges.

    Raises:
        InvalidArgument: naming the prompt, where it stands and what it does there.
    """
    whole = list(chain.from_iterable(part.identities for part in parts))
    uses = [use for part, use in zip(parts, _USES, strict=True) for _ in part.texts]
    given = list(chain.from_iterable(part.inputs for part in parts))
    times, first = Counter(whole), dict[tuple[str, str], int]()
    for n, identity in enumerate(whole):
        if times[identity] == 1:
            continue
        m = first.setdefault((identity, _content(given[n], n) if given else ""), n)
        if uses[m] != uses[n]:
            raise InvalidArgument(
                f"prompt {reprlib.repr(identity)} is given twice, as number {m + 1}, which {uses[m]}, and number "
                f"{n + 1}, which {uses[n]}; give each prompt once"
            )


def _content(given: Inputs, n: int) -> str:
    """What tells what the n-th prompt brings from what others bring."""
    try:
        return digest([given])
    except InvalidArgument:  # of a kind that nobody can compare
        return str(n)


def _count(prompts: int, share: float, room: int) -> int:
    """How many of all prompts a share is, where `room` are left."""
    least = _LEAST if prompts >= 3 * _LEAST else 1
    return min(room, max(least, round(prompts * share))) if share else 0
