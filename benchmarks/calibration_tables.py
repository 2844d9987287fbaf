"""Tables of what calibrations are worth, for docs/choosing-a-plan.md, from the results of the scripts named in each."""

from typing import Any


def prompts_table(result: dict[str, Any]) -> str:
    """Judged PSNR and price by the number of calibration prompts (benchmarks/calibration_prompts.py)."""
    rows = result["rows"]
    counts = list(dict.fromkeys(row["prompts"] for row in rows))
    lines = [f"| | {' | '.join(f'{count} prompts' for count in counts)} |", "|---|" + "---:|" * len(counts)]
    for model, K in dict.fromkeys((row["model"], row["K"]) for row in rows):
        own = {row["prompts"]: row for row in rows if (row["model"], row["K"]) == (model, K)}
        quality = [f"{own[count]['psnr']:.1f} ± {own[count]['standard_error']:.1f} dB" for count in counts]
        price = [f"{own[count]['uncached_runs']:.0f} runs" for count in counts]
        cells = [f"{dB}, {runs}" for dB, runs in zip(quality, price, strict=True)]
        lines.append(f"| {model}, K = {K} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bias_table(result: dict[str, Any]) -> str:
    """Reported minus fresh PSNR over the draws (benchmarks/judged_bias.py)."""
    lines = ["| | reported − fresh, dB | of single draws | within its standard error |", "|---|---:|---:|---|"]
    for found in result["models"]:
        for what, key, one in (("PSNR", "bias", found), ("gain over fewer steps", "gain_bias", found["gain"])):
            biases = [row[key] for row in found["rows"]]
            cells = [
                f"{found['model']}, K = {found['K']}, {len(biases)} draws: {what}",
                f"{one['bias']:+.2f} ± {one['standard_error']:.2f}",
                f"{min(biases):+.1f} to {max(biases):+.1f}",
                "yes" if one["within"] else "no",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_table(result: dict[str, Any]) -> str:
    """PSNR on the same judged prompts by the seed of the calibration (benchmarks/seeds.py)."""
    lines = ["| | PSNR by seed, dB | spread (std), dB | again from the first seed |", "|---|---|---:|---|"]
    for found in result["models"]:
        values = ", ".join(f"{row['psnr']:.1f}" for row in found["rows"])
        again = "byte-equal" if found["byte_equal"] else "another profile"
        lines.append(f"| {found['model']}, K = {found['K']} | {values} | {found['std']:.2f} | {again} |")
    return "\n".join(lines)
