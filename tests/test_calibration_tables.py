"""The tables of what calibrations are worth, from made-up results of the scripts that measure it."""

from typing import Any

from benchmark_scripts import load

tables: Any = load("calibration_tables")


def test_prompts_across_models_and_steps_down() -> None:
    rows = [
        {"model": "a", "K": K, "prompts": n, "psnr": K + n / 10, "standard_error": 0.25, "uncached_runs": 10.6 * n}
        for K in (15, 10)
        for n in (8, 16)
    ]
    assert tables.prompts_table({"rows": rows}).splitlines() == [
        "| | 8 prompts | 16 prompts |",
        "|---|---:|---:|",
        "| a, K = 15 | 15.8 ± 0.2 dB, 85 runs | 16.6 ± 0.2 dB, 170 runs |",
        "| a, K = 10 | 10.8 ± 0.2 dB, 85 runs | 11.6 ± 0.2 dB, 170 runs |",
    ]


def test_the_bias_with_its_error_and_the_range_of_the_draws() -> None:
    rows = [{"bias": bias, "gain_bias": bias / 2} for bias in (-1.0, 2.0, 0.5)]
    gain = {"bias": 0.25, "standard_error": 0.433, "within": True}
    model = {"model": "a", "K": 10, "bias": 0.5, "standard_error": 0.87, "within": False, "gain": gain, "rows": rows}
    assert tables.bias_table({"models": [model]}).splitlines()[2:] == [
        "| a, K = 10, 3 draws: PSNR | +0.50 ± 0.87 | -1.0 to +2.0 | no |",
        "| a, K = 10, 3 draws: gain over fewer steps | +0.25 ± 0.43 | -0.5 to +1.0 | yes |",
    ]


def test_every_seed_and_whether_the_first_one_gives_the_same_again() -> None:
    rows = [{"psnr": value} for value in (46.54, 46.31)]
    model = {"model": "a", "K": 10, "std": 0.163, "byte_equal": True, "rows": rows}
    text = tables.seeds_table({"models": [model, {**model, "byte_equal": False}]}).splitlines()
    assert text[2:] == [
        "| a, K = 10 | 46.5, 46.3 | 0.16 | byte-equal |",
        "| a, K = 10 | 46.5, 46.3 | 0.16 | another profile |",
    ]
