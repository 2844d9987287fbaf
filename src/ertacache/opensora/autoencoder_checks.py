"""What an autoencoder refuses before it works: a configuration, clips and latents that do not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ertacache.errors import InvalidArgument

_COUNTS = (
    "latent_channels",
    "layers_per_block",
    "norm_num_groups",
    "sample_size",
    "temporal_filters",
    "temporal_res_blocks",
    "temporal_norm_num_groups",
    "micro_frame_size",
    "micro_batch_size",
)
_LISTS = ("block_out_channels", "temporal_multipliers")
_VALUES = ("latents_mean", "latents_std")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse values that do not fit each other in the configuration of `AutoencoderKLOpenSora`.

    Raises:
        InvalidArgument: naming the value and what would fit.
    """
    for name in _COUNTS:
        _check_count(name, config[name])
    for name in _LISTS:
        if not config[name]:
            raise InvalidArgument(f"{name} is empty; name at least one level")
        for value in config[name]:
            _check_count(f"each of {name}", value)
    _check_groups("norm_num_groups", config["norm_num_groups"], "block_out_channels", config["block_out_channels"])
    widths = [config["temporal_filters"] * multiplier for multiplier in config["temporal_multipliers"]]
    groups = config["temporal_norm_num_groups"]
    _check_groups("temporal_norm_num_groups", groups, "temporal_filters × temporal_multipliers", widths)
    given, levels = len(config["time_downsample"]), len(widths)
    if given != levels - 1:
        raise InvalidArgument(
            f"time_downsample has {given} values for {levels} temporal levels; give {levels - 1}, one for each level "
            "but the last"
        )
    channels = config["latent_channels"]
    for name in _VALUES:
        if len(config[name]) != channels:
            raise InvalidArgument(
                f"{name} has {len(config[name])} values for {channels} latent channels; give one for each"
            )
    if not all(value > 0 for value in config["latents_std"]):
        raise InvalidArgument(
            f"latents_std is {list(config['latents_std'])}; latents are divided by it: give values above 0"
        )
    if not config["spatial_scaling_factor"] > 0:
        raise InvalidArgument(
            f"spatial_scaling_factor is {config['spatial_scaling_factor']!r}; give one above 0, as 0.18215"
        )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"{name} is {value!r}; give a whole number from 1")


def _check_groups(name: str, groups: int, of: str, widths: Sequence[int]) -> None:
    odd = [width for width in widths if width % groups]
    if odd:
        raise InvalidArgument(
            f"{name} is {groups}, which does not divide {odd[0]} of {of}; give a divisor of all of them"
        )


def frame_count(num_frames: object) -> int:
    """`num_frames`.

    Raises:
        InvalidArgument: no whole number, or less than one.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 1:
        raise InvalidArgument(
            f"num_frames is {num_frames!r}; a clip has at least one frame: give a whole number from 1"
        )
    return num_frames


def check_clip(x: Tensor, ratio: int) -> None:
    """Refuse what is no clip of at least one frame and one latent.

    Raises:
        InvalidArgument: naming the shape or the dtype.
    """
    _check_tensor("clips", x, 3, "frames, height, width")
    if x.shape[2] < 1:
        raise InvalidArgument(f"clips of shape {_shape(x)} have no frame; give at least one")
    if min(x.shape[3:]) < ratio:
        raise InvalidArgument(
            f"clips of shape {_shape(x)} have less than {ratio} pixels of height or width, which make one latent; give "
            "larger ones"
        )


def check_latents(z: Tensor, channels: int) -> None:
    """Refuse what are no latents of a clip.

    Raises:
        InvalidArgument: naming the shape or the dtype.
    """
    _check_tensor("latents", z, channels, "latent frames, height, width")
    if min(z.shape[2:]) < 1:
        raise InvalidArgument(f"latents of shape {_shape(z)} hold nothing; give at least one frame, row and column")


def wrong_frames(num_frames: int | None, latents: int, fits: tuple[int, int]) -> InvalidArgument:
    """The error of `num_frames` that `latents` latent frames do not hold; they hold the numbers from and to `fits`."""
    least, most = fits
    hold = f"{least} to {most} frames" if most > least else f"{least} frame{'s' if least > 1 else ''}"
    if num_frames is None:
        return InvalidArgument(f"num_frames is missing; {latents} latent frames hold {hold}: say how many there were")
    return InvalidArgument(
        f"num_frames is {num_frames}, but {latents} latent frames hold {hold}; give such a number, or the latents of "
        "all frames"
    )


def _check_tensor(what: str, x: Tensor, channels: int, rest: str) -> None:
    if x.ndim != 5 or x.shape[1] != channels or not x.shape[0]:
        raise InvalidArgument(f"{what} have shape {_shape(x)}; give [batch, {channels}, {rest}]")
    if not x.is_floating_point():
        raise InvalidArgument(f"{what} are {str(x.dtype).removeprefix('torch.')}; give floating-point values")


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)
