"""Messages of the library in the words of the command line, exactly where an argument is meant."""

import pytest

from ertacache.cli.messages import in_options

OPTIONS = [
    "--compute-steps",
    "--threshold",
    "--schedule",
    "--basis",
    "--aim",
    "--retarget",
    "--seed",
    "--out",
    "--device",
]


@pytest.mark.parametrize(
    ("python", "options"),
    [
        ("compute_steps is 11; choose 2 to 10", "--compute-steps is 11; choose 2 to 10"),
        ("give threshold=λ, compute_steps=K or a schedule", "give --threshold λ, --compute-steps K or a schedule"),
        ("use basis='fitted', not aim='step'; or else", "use --basis fitted, not --aim step; or else"),
        ("basis is 'magic'; choose 'fitted'", "--basis is 'magic'; choose 'fitted'"),
        ("apply it with retarget=True, which fits it", "apply it with --retarget, which fits it"),
        ("schedule='#.#' computes 2 (compute_steps=3)", "--schedule #.# computes 2 (--compute-steps 3)"),
        ("device is 'qpu', which torch lacks", "--device is 'qpu', which torch lacks"),
        # What is no argument stays: prose, paths, quotations, options, arguments that are no options.
        ("the schedule is empty, the basis is old", "the schedule is empty, the basis is old"),
        ("out is in use by process 1", "out is in use by process 1"),
        ("seed is a folder; name a file", "seed is a folder; name a file"),
        ("it takes prompt, compute_steps, width", "it takes prompt, compute_steps, width"),
        ("/a/compute_steps/x.json is damaged", "/a/compute_steps/x.json is damaged"),
        ("no model 'compute_steps'", "no model 'compute_steps'"),
        ("--compute-steps is 1", "--compute-steps is 1"),
        ("mycompute_steps and compute_steps_x", "mycompute_steps and compute_steps_x"),
        ("ridge=0.1, my.seed=1 and /seed=2", "ridge=0.1, my.seed=1 and /seed=2"),
    ],
)
def test_arguments_become_options_and_nothing_else(python: str, options: str):
    assert in_options(python, OPTIONS) == options
