"""The sizes and lengths that Open-Sora 1.2 was trained on, by the names that its reference has for them."""

from ertacache.errors import InvalidArgument, meant

#: Height and width in pixels, by resolution and aspect ratio. A ratio is height : width, so 9:16 lies.
SIZES = {
    "144p": {
        "9:16": (144, 256), "16:9": (256, 144), "1:1": (192, 192), "3:4": (166, 221), "4:3": (221, 165),
        "9:21": (125, 291),
    },
    "240p": {
        "9:16": (240, 426), "16:9": (426, 240), "1:1": (320, 320), "3:4": (276, 368), "4:3": (370, 278),
        "9:21": (210, 490),
    },
    "360p": {
        "9:16": (360, 640), "16:9": (640, 360), "1:1": (480, 480), "3:4": (416, 554), "4:3": (554, 416),
        "9:21": (314, 732),
    },
    "480p": {
        "9:16": (480, 854), "16:9": (854, 480), "1:1": (640, 640), "3:4": (554, 738), "4:3": (740, 555),
        "9:21": (420, 980),
    },
    "720p": {
        "9:16": (720, 1280), "16:9": (1280, 720), "1:1": (960, 960), "3:4": (832, 1110), "4:3": (1108, 832),
        "9:21": (628, 1466),
    },
}  # fmt: skip
#: Frames, by the length that the reference calls them: `num_frames=FRAMES["2s"]`.
FRAMES = {"image": 1, "2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816}
_DEFAULT = ("480p", "9:16")
#: Pixels of a side that one token of the transformer covers.
_SMALLEST = 16


def size_of(
    height: int | None, width: int | None, resolution: str | None = None, aspect_ratio: str | None = None
) -> tuple[int, int]:
    """Height and width in pixels, given as such or by name; 480p and 9:16 where nothing is given.

    Args:
        height, width: any from 16 on; the decoder gives the multiple of 8 below.
        resolution: "144p" to "720p".
        aspect_ratio: height : width.

    Raises:
        InvalidArgument: a name that is not in the table, half a size, both kinds at once, or too small a side.
    """
    if height is None and width is None:
        return _named(resolution or _DEFAULT[0], aspect_ratio or _DEFAULT[1])
    if resolution is not None or aspect_ratio is not None:
        raise InvalidArgument(
            f"height={height} and width={width} exclude resolution={resolution!r} and aspect_ratio={aspect_ratio!r}; "
            "give one of the two"
        )
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int) or isinstance(side, bool) or side < _SMALLEST:
            raise InvalidArgument(f"{name} is {side!r}; give height and width in whole pixels, {_SMALLEST} or more")
    return int(height or 0), int(width or 0)


def _named(resolution: str, aspect_ratio: str) -> tuple[int, int]:
    if resolution not in SIZES:
        raise InvalidArgument(
            f"resolution is {resolution!r}; choose one of {', '.join(SIZES)}{meant(str(resolution), SIZES)}, or give "
            "height and width"
        )
    if aspect_ratio not in SIZES[resolution]:
        raise InvalidArgument(
            f"aspect_ratio is {aspect_ratio!r}, height : width; choose one of {', '.join(SIZES[resolution])}, or give "
            "height and width"
        )
    return SIZES[resolution][aspect_ratio]
