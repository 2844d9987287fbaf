"""Pictures and clips of a dataset's prompts, under a profile: Ray Data, with one pipeline in each actor."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ertacache.calibration.checks import check_whole
from ertacache.calibration.pipeline_run import call_pipeline, check_call
from ertacache.calibration.prompts import LARGEST_SEED, Prompts
from ertacache.errors import InvalidArgument
from ertacache.evaluation.sample_files import eight_bit
from ertacache.profile.profile import Profile
from ertacache.ray.source import Pipeline, Source, check_sendable, check_shares, needs_ray, ray_module, source_of
from ertacache.runtime.apply import ProfileSource, enable, read_profile
from ertacache.runtime.plain_run import OnMismatch, check_on_mismatch

#: Columns that are added: pictures or clips, denoiser calls of the row's pipeline call, and why it was not cached.
ADDED = ("image", "frames", "computed", "predicted", "reason")


def generate(
    dataset: Any,
    pipeline: Pipeline,
    profile: ProfileSource,
    *,
    prompt_column: str = "prompt",
    seed_column: str | None = None,
    seed: int = 0,
    call: Mapping[str, Any] | None = None,
    batch_size: int = 1,
    num_gpus: float = 1,
    num_cpus: float = 1,
    concurrency: int | tuple[int, int] = 1,
    dtype: str | None = None,
    on_mismatch: OnMismatch = "refuse",
) -> Any:
    """A Ray dataset with a picture or clip for each row's prompt.

    Nothing is run before the dataset that this returns is read. A row's picture depends on its prompt and seed alone,
    on the CPU also on the number of threads, and with `batch_size` above 1, to rounding, on the rows beside it.

    Args:
        dataset: a `ray.data.Dataset`.
        pipeline: a bundled model, a folder or a Hub id, or a function without arguments that makes it, in each actor.
        profile: from `calibrate` or `Profile.load`, or the path or Hub id to load it from. Each actor applies it once.
        prompt_column: texts. seed_column: whole numbers, the seed of each row's noise; None for `seed` in all rows.
        call: further arguments of the pipeline call.
        batch_size: prompts per pipeline call.
        num_gpus, num_cpus: of each actor; without a GPU the pipeline runs on the CPU.
        concurrency: actors, or the fewest and the most.
        dtype: as `load_pipeline`; of a pipeline that is loaded.
        on_mismatch: see `enable`; "compute" makes rows that the profile does not suit without it.

    Returns:
        The dataset with the columns `image` uint8 [H, W, 3], of clips `frames` uint8 [F, H, W, 3], `computed` and
        `predicted` (denoiser calls of the row's pipeline call) and `reason` (why it was computed, null if it was not).

    Raises:
        MissingExtra: Ray is not installed.
        InvalidArgument: a column that is not there or that would be overwritten, an argument that cannot be sent, or a
            number that is none. Arguments that the pipeline does not take show when the first actor starts.
        ProfileInvalid: no sound profile.
    """
    needs_ray("ertacache.ray.generate")
    check_shares(num_gpus, num_cpus)
    source = source_of(pipeline, num_gpus, dtype)
    _check_columns(dataset, prompt_column, seed_column)
    least, most = _checked_numbers(seed, batch_size, concurrency)
    check_on_mismatch(on_mismatch)
    loaded, given = read_profile(profile), dict(call or {})
    check_sendable("call", given)
    return dataset.map_batches(
        Generator,
        fn_constructor_args=(source, loaded.to_bytes(), given, (prompt_column, seed_column, seed), on_mismatch),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray_module("data").ActorPoolStrategy(min_size=least, max_size=most),
        num_gpus=num_gpus,
        num_cpus=num_cpus,
    )


def _checked_numbers(seed: int, batch_size: int, concurrency: int | tuple[int, int]) -> tuple[int, int]:
    """The fewest and the most actors."""
    check_whole("seed", seed, 0, "the noise of every row starts from it, unless seed_column is given", LARGEST_SEED)
    check_whole("batch_size", batch_size, 1, "prompts per pipeline call")
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    check_whole("concurrency", least, 1, "actors, or the fewest and the most of them")
    check_whole("concurrency", most, least, "actors, or the fewest and the most of them")
    return least, most


def _check_columns(dataset: Any, prompt_column: str, seed_column: str | None) -> None:
    """Refuse a dataset that is none, or that lacks a column or has one that would be overwritten."""
    if not hasattr(dataset, "map_batches"):
        raise InvalidArgument(f"dataset is a {type(dataset).__name__}; give a ray.data.Dataset, as ray.data.from_items")
    names: list[str] | None = dataset.columns()
    if names is None:  # it has no rows, or nothing is known of them yet
        return
    for argument, column in (("prompt_column", prompt_column), ("seed_column", seed_column)):
        if column is not None and column not in names:
            raise InvalidArgument(f"{argument} is {column!r}, and the dataset has {', '.join(names)}; name one of them")
    if taken := [name for name in ADDED if name in names]:
        raise InvalidArgument(
            f"the dataset has a column {taken[0]!r}, which the result would overwrite; rename it: rename_columns"
        )


class Generator:
    """What an actor does with a batch of rows; see `generate`.

    Args:
        columns: of the prompts, of the seeds or None, and the seed where there is no such column.
    """

    def __init__(
        self,
        source: Source,
        profile: bytes,
        call: dict[str, Any],
        columns: tuple[str, str | None, int],
        on_mismatch: OnMismatch,
    ) -> None:
        self._pipe, self._call, self._columns = source.load(), call, columns
        check_call(self._pipe, call)
        self._stats = enable(self._pipe, Profile.from_bytes(profile), on_mismatch=on_mismatch)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        prompt, column, seed = self._columns
        texts: list[Any] = batch[prompt].tolist()
        seeds: list[Any] = [seed] * len(texts) if column is None else batch[column].tolist()
        made = eight_bit_samples(call_pipeline(self._pipe, _prompts(texts, seeds), self._call))
        stats, count = self._stats, len(texts)
        return {
            **batch,
            "image" if made.ndim == 4 else "frames": made,
            "computed": np.full(count, stats.computed.total()),
            "predicted": np.full(count, stats.predicted.total()),
            "reason": np.array([stats.reason] * count, dtype=object),
        }


def _prompts(texts: Sequence[Any], seeds: Sequence[Any]) -> Prompts:
    """The rows of a batch, each with noise of its own."""
    for text in texts:
        if not isinstance(text, str):
            raise InvalidArgument(f"prompt {reprlib.repr(text)} is a {type(text).__name__}; give texts")
    for seed in seeds:
        check_whole("seed", seed, 0, "the noise of a row starts from it", LARGEST_SEED)
    return Prompts(tuple(texts), 0, tuple({"generator": torch.Generator("cpu").manual_seed(seed)} for seed in seeds))


def eight_bit_samples(made: torch.Tensor) -> np.ndarray:
    """Images [B, 3, H, W] or clips [B, F, 3, H, W] in [0, 1] as uint8 [B, H, W, 3] or [B, F, H, W, 3]."""
    if made.ndim == 4:
        return eight_bit(made).numpy()
    return np.stack([eight_bit(frames).numpy() for frames in made])
