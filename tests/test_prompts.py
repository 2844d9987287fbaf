"""Prompts in three parts: fitted, chosen on, judged on; none has two uses."""

from typing import Any

import pytest
import torch

from dummy_pipeline import mixture_pipeline
from ertacache.calibration.calibrate import calibrate
from ertacache.calibration.prompts import split_prompts
from ertacache.errors import InvalidArgument

#: Few judged prompts, which is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*judged prompts cannot tell")


def texts(count: int) -> list[str]:
    return [f"prompt {n} of class {n * 7 % 4}" for n in range(count)]


def sizes(count: int, choose: float, judge: float) -> tuple[int, int, int]:
    """How many are fitted, chosen on and judged, said once more."""
    least = 4 if count >= 12 else 1
    judging = min(count - 1, max(least, round(count * judge))) if judge else 0
    choosing = min(count - 1 - judging, max(least, round(count * choose))) if choose else 0
    return count - choosing - judging, choosing, judging


@pytest.mark.parametrize(
    ("choose", "judge"), [(0.2, 0.2), (0.0, 0.2), (0.2, 0.0), (0.01, 0.01), (0.3, 0.5), (0.0, 0.99)]
)
@pytest.mark.parametrize("count", range(2, 41))
def test_every_prompt_has_one_use(count: int, choose: float, judge: float):
    parts = split_prompts(texts(count), choose, judge, 40)
    assert parts.fitted.texts + parts.chosen.texts + parts.judged.texts == tuple(texts(count))
    assert [part.seed for part in parts] == [
        40, 40 + len(parts.fitted.texts), 40 + len(parts.fitted.texts) + len(parts.chosen.texts)
    ]  # fmt: skip
    assert tuple(len(part.texts) for part in parts) == sizes(count, choose, judge)
    assert len(parts.fitted.texts) >= 1 and (choose > 0 or not parts.chosen.texts)


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (8, (4, 2, 2)),
        (11, (7, 2, 2)),
        (12, (4, 4, 4)),
        (20, (12, 4, 4)),
        (40, (24, 8, 8)),
    ],
)
def test_the_default_shares(count: int, found: tuple[int, int, int]):
    assert tuple(len(part.texts) for part in split_prompts(texts(count), 0.2, 0.2, 0)) == found


@pytest.mark.parametrize(
    ("twice", "message"),
    [
        (
            (0, 11),
            "prompt 'prompt 0 of class 0' is given twice, as number 1, which is fitted to, and number 12, whi",
        ),
        (
            (3, 4),
            "prompt 'prompt 3 of class 1' is given twice, as number 4, which is fitted to, and number 5, which c",
        ),
        (
            (7, 8),
            "prompt 'prompt 7 of class 1' is given twice, as number 8, which chooses, and number 9, which judges",
        ),
    ],
)
def test_a_prompt_of_two_parts_is_refused_before_any_run(twice: tuple[int, int], message: str):
    prompts, pipe = texts(12), mixture_pipeline()
    prompts[twice[1]] = prompts[twice[0]]
    with pytest.raises(InvalidArgument, match=message):
        calibrate(pipe, prompts, speedup=2, show_progress=False)
    assert pipe.calls == 0
    beside = texts(12)
    beside[1] = beside[0]  # both are fitted to
    assert split_prompts(beside, 0.2, 0.2, 0).fitted.texts[:2] == (beside[0], beside[0])


def test_what_tells_prompts_of_two_parts_apart_is_all_that_they_bring():
    same = ["one text"] * 3
    with pytest.raises(InvalidArgument, match="prompt 'one text' is given twice, as number 1, which is fitted to, and"):
        split_prompts(same, 0.2, 0.2, 0, [{"image": torch.zeros(2)}] * 3)
    images = [{"image": torch.full((2,), float(n))} for n in range(3)]
    assert len(split_prompts(same, 0.2, 0.2, 0, images).judged.texts) == 1
    with pytest.raises(InvalidArgument, match="as number 2, which chooses, and number 3, which judges"):
        split_prompts(same, 0.2, 0.2, 0, [images[0], images[1], images[1]])
    strange = [{"image": object()} for _ in range(3)]  # which nobody can compare
    assert len(split_prompts(same, 0.2, 0.2, 0, strange).judged.texts) == 1
    embeddings = [{"prompt_embeds": torch.full((1, 2, 3), float(n % 2))} for n in range(3)]
    for names in (None, ["a", "b", "c"]):
        with pytest.raises(InvalidArgument, match=r"prompt 'embeddings .*' is given twice, as number 1, .* number 3"):
            split_prompts(names, 0.2, 0.2, 0, embeddings)
    for alike in ({"class_labels": 3}, {}):  # whose samples differ by their noise alone
        assert len(split_prompts(None, 0.2, 0.2, 0, [alike] * 3).judged.texts) == 1


def test_prompts_that_cannot_be_split_are_refused():
    for prompts in ([], ["one"], "one text"):
        with pytest.raises(InvalidArgument, match="calibrate with at least 2, since one part is held out"):
            split_prompts(prompts, 0.2, 0.2, 0)
    with pytest.raises(InvalidArgument, match="prompt None is a NoneType; give texts"):
        split_prompts(["a", None], 0.2, 0.2, 0)  # pyright: ignore[reportArgumentType]
    for share in (1, -0.5, float("nan"), True, "half"):
        for name, given in (("choose", (share, 0.2)), ("holdout", (0.2, share))):
            with pytest.raises(InvalidArgument, match=f"{name} is {share!r}; choose a share from 0 to below 1"):
                split_prompts(["a", "b"], *given, 0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArgument, match=r"choose=0\.5 and holdout=0\.5 leave nothing to fit; their sum must be"):
        split_prompts(["a", "b"], 0.5, 0.5, 0)


def test_what_judges_takes_no_part_in_fitting_and_choosing():
    """Other judged prompts change the judged figures and nothing else."""
    call: dict[str, Any] = {"num_inference_steps": 10, "guidance_scale": 5.0, "seed": 5, "show_progress": False}
    pipe = mixture_pipeline()
    first = calibrate(pipe, texts(12), compute_steps=4, **call)
    parts = split_prompts(texts(12), 0.2, 0.2, 5)
    for seen in pipe.seen:  # no call mixes prompts of two uses, and each has its own noise
        assert any(set(seen["prompt"]) <= set(part.texts) for part in parts)
        assert seen["seeds"] == [5 + texts(12).index(text) for text in seen["prompt"]]
    other = calibrate(
        mixture_pipeline(), [*texts(12)[:8], *(f"other {n} of class 0" for n in range(4))], compute_steps=4, **call
    )
    assert first.schedule == other.schedule and torch.equal(first.predictor.a, other.predictor.a)
    held, found = first.provenance.heldout, other.provenance.heldout
    assert held["chosen_on"] == found["chosen_on"] and held["chosen_on"]["prompts"] == held["prompts"] == 4
    assert held["psnr"] != found["psnr"] and first.provenance.method["prompts"] == {
        "fitted": 4, "chosen_on": 4, "judged": 4
    }  # fmt: skip
