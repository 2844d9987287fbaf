"""The folder of a figure: whose results it holds, and what was measured already."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ertacache.errors import CalibrationError, InvalidArgument
from ertacache.files import json_object, write_atomic
from ertacache.profile.profile import Profile


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a figure of other settings; otherwise write down whose it is.

    Raises:
        InvalidArgument: it is another's.
    """
    own = json.dumps(facts, indent=1).encode()
    path = folder / "setting.json"
    if path.is_file() and path.read_bytes() != own:
        raise InvalidArgument(f"{folder} holds a figure of other settings; choose another folder with --out")
    write_atomic(path, own)


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON object in the file, which is made first where there is none.

    Raises:
        InvalidArgument: the file is damaged.
        CalibrationError: what was made holds NaN or infinity.
    """
    if not path.is_file():
        made = make()
        try:
            text = json.dumps(made, allow_nan=False)
        except ValueError as error:
            raise CalibrationError(
                f"{path.name} would hold NaN or infinity: a run diverged; take more steps, or a wider dtype"
            ) from error
        write_atomic(path, f"{text}\n".encode())
    try:
        return json_object(path.read_bytes())
    except ValueError as error:
        raise InvalidArgument(f"{path} is damaged ({error}); delete it: it is measured again") from error


def kept_profile(path: Path, make: Callable[[], Profile]) -> Profile:
    """The profile in the file, which is calibrated first where there is none.

    Raises:
        ProfileInvalid: the file is damaged.
    """
    if not path.is_file():
        make().save(path)
    return Profile.load(path)
