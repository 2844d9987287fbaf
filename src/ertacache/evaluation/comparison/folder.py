"""The folder of a comparison: results, times, entrants and references, complete up to the row under way."""

import json
from pathlib import Path
from typing import Any

from ertacache.errors import ErtacacheError, InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, Tuned, from_json, to_json
from ertacache.evaluation.comparison.job import check_same
from ertacache.evaluation.comparison.lines import Lines
from ertacache.files import json_object, write_atomic


class Folder:
    """Files under `path`; see docs/compare.md for what they hold.

    Args:
        header: of this comparison.

    Raises:
        InvalidArgument: the folder holds another comparison.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self._results = Lines(results_file(path))
        self._timings = Lines(path / "timings.jsonl")
        if not self._results.lines:
            self._results.append(header)
        check_same(self._results.lines[0], json.loads(json.dumps(header)), str(path))
        for number, row in enumerate(self.rows, start=2):
            if [type(row.get(key)) for key in ("entrant", "prompt", "seed")] != [str, int, int]:
                raise InvalidArgument(
                    f"{self._results.path}, line {number} is no row of a comparison (entrant, prompt and seed are "
                    "wanted); choose another folder, or delete this one"
                )
        if len(self._timings.lines) < len(self.rows):
            raise InvalidArgument(
                f"{self._timings.path} has {len(self._timings.lines)} lines where {len(self.rows)} rows are finished; "
                "choose another folder, or delete this one"
            )
        # The time of a row is written before the row: one too many is of a row that was never finished.
        self._timings.keep(len(self._results.lines) - 1)
        self._entrants = self._read_entrants()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The finished rows."""
        return self._results.lines[1:]

    def has(self, position: int, entrant: str, prompt: int, seed: int) -> bool:
        """Whether the row that belongs at a position is there.

        Raises:
            InvalidArgument: another one is, because methods were added or left out.
        """
        if position >= len(self.rows):
            return False
        row = self.rows[position]
        if (row["entrant"], row["prompt"], row["seed"]) != (entrant, prompt, seed):
            raise InvalidArgument(
                f"{self.path} holds a comparison of other methods (row {position + 1} is {row['entrant']!r}, not "
                f"{entrant!r}); choose another folder, or delete that one"
            )
        return True

    def add(self, row: dict[str, Any], times: dict[str, Any]) -> None:
        """One finished row with its times."""
        self._timings.append(times)
        self._results.append(row)

    def tuned(self, entrant: Entrant) -> Tuned | None:
        """The entrant as it was tuned before, if it was."""
        data = self._entrants.get(entrant.id)
        if data is None:
            return None
        try:
            return from_json(data, entrant, self.path)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ErtacacheError):
                raise
            raise self._damaged(repr(error)) from error

    def keep(self, tuned: Tuned) -> None:
        """Keep an entrant once it is tuned."""
        self._entrants[tuned.id] = to_json(tuned, self.path)
        text = json.dumps({"entrants": list(self._entrants.values())}, indent=1)
        write_atomic(self.path / "entrants.json", text.encode())

    def note(self, name: str, note: dict[str, Any]) -> None:
        """A file beside the results, such as TeaCache's calibration."""
        write_atomic(self.path / name, json.dumps(note).encode())

    def _read_entrants(self) -> dict[str, dict[str, Any]]:
        path = self.path / "entrants.json"
        if not path.is_file():
            return {}
        try:
            return {entrant["id"]: entrant for entrant in json_object(path.read_bytes())["entrants"]}
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(repr(error)) from error

    def _damaged(self, reason: str) -> InvalidArgument:
        path = self.path / "entrants.json"
        return InvalidArgument(f"{path} is damaged ({reason[:200]}); delete it: every method is tuned again")


def results_file(folder: Path) -> Path:
    """The file of the rows."""
    return folder / "results.jsonl"


def reference_file(folder: Path, prompt: int, seed: int) -> Path:
    """File of an uncached run."""
    return folder / "references" / f"{prompt}-{seed}.safetensors"
