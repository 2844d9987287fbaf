"""The append-only file: whatever a kill leaves of it can be gone on with."""

import json

import pytest

from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.lines import Lines


def test_lines_are_on_the_disk_when_append_returns_and_come_back(tmp_path):
    file = Lines(tmp_path / "folder" / "a.jsonl")
    for n in range(3):
        file.append({"n": n})
    assert Lines(file.path).lines == [{"n": 0}, {"n": 1}, {"n": 2}] == file.lines


@pytest.mark.parametrize("half", ['{"n": 2', '{"n": 2}', ""])
def test_half_a_line_at_the_end_is_cut_off(tmp_path, half):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 0}\n{"n": 1}\n' + half)
    file = Lines(path)
    assert file.lines == [{"n": 0}, {"n": 1}]
    file.append({"n": 2})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_lines_beyond_a_count_are_dropped_from_the_file_too(tmp_path):
    file = Lines(tmp_path / "a.jsonl")
    for n in range(3):
        file.append({"n": n})
    file.keep(5)
    assert len(file.lines) == 3
    file.keep(1)
    assert file.lines == Lines(file.path).lines == [{"n": 0}]


def test_a_damaged_line_is_refused_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 0}\nnonsense\n')
    with pytest.raises(InvalidArgument, match=r"a\.jsonl, line 2 is no JSON object"):
        Lines(path)
