"""Writes docs/messages.md from the errors and warnings in the source: `python benchmarks/messages_page.py`."""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ertacache import errors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "messages.md"
SOURCES = (ROOT / "src", ROOT / "zoo" / "src", ROOT / "comfyui-ertacache")
HEAD = """# Messages explained

Every error that is raised on purpose is an `ertacache.ErtacacheError`. Its text has two halves: what was found, with
the value, and what to do. On the command line it is one line on stderr, and the exit code is 2. Anything else that
comes up, a `TypeError` say, is a fault of ours: please report it.

```python
import ertacache

try:
    ertacache.Profile.load("nowhere.safetensors")
except ertacache.ErtacacheError as error:
    print(type(error).__name__, error)  # InvalidArgument there is no profile at 'nowhere.safetensors' ...
```

## What they come from

| it begins with | and usually comes from |
|---|---|
| `num_inference_steps: the profile has` | another number of steps: use the profile's, or `retarget=True` |
| `time grid: at step` | another size on FLUX or Qwen-Image, whose grid follows it, or `sigmas=` |
| `embedded guidance:`, `guidance weight:` | another `guidance_scale` than in calibration |
| `call names:` | guidance switched on or off: `true_cfg_scale` without a `negative_prompt`, `guidance_scale` 1 |
| `model config:` | a pruned or other model than the calibrated one |
| `these are other weights of` | a fine-tune, a LoRA or an IP-Adapter: a warning, since the profile may do |
| `scheduler class:`, `scheduler config:` | a scheduler that was swapped or set up anew after calibration |
| `a profile is already applied` | `enable` twice, or `apply` inside of `apply` |
| `another cache is enabled` | `enable_cache` or cache-dit on the same denoiser |
| `... ran a step without passing by the profile` | compiled, copied or replaced after the profile was applied |
| `held-out runs end in NaN` | too few computed steps, or float16 where the model needs bfloat16 |

All messages follow, by class and by the part of the package that raises them; words in ‹ › stand for the values. This
page is written by `python benchmarks/messages_page.py`.
"""
MEANING = {
    "InvalidArgument": "It is also a `ValueError`. Nothing has been run or written yet.",
    "ScheduleInvalid": "It comes up where a schedule is given as text or as steps.",
    "PredictorInvalid": "Coefficients made by hand, or a profile that was put together wrongly.",
    "CalibrationError": "The runs were made, or begun; a `checkpoint` keeps those that were finished.",
    "ProfileInvalid": "The file was not used: nothing of it reached the pipeline. Fetch it again, or calibrate. "
    "The text names the file and the field of [the format](profile-format.md).",
    "ProfileMismatch": "The profile is sound and belongs to something else. "
    "[Sizes, steps, guidance](sizes-steps-guidance.md) has the whole list of what is compared, and when.",
    "HandoverInvalid": "Nothing of the bytes reached a pipeline. [The format](split.md#what-is-handed-over).",
    "SplitMismatch": "The two sides of [a split run](split.md) must share latents, text and solver.",
    "SplitFailed": "The server's part of [a run over a network](split.md#over-a-network); the device can make it all.",
    "ServerUnreachable": "A `SplitFailed`: the request may be repeated.",
    "DeadlineExceeded": "A `SplitFailed`: the server was told to stop.",
    "ServerRefused": "A `SplitFailed`: what follows the status are the server's own words.",
    "AnswerInvalid": "A `SplitFailed`: nothing of the answer was used.",
    "UnsupportedPipeline": "[Supported pipelines](supported-pipelines.md), [Solvers](solvers.md): what is served.",
    "CacheConflict": "Two things want to answer for one denoiser: "
    "[one at a time](compile-quantise-lora-offload.md#another-cache).",
    "MissingExtra": "Install the extra that the message names.",
    "VBenchFailed": "[VBench](vbench.md) runs in an environment of its own; the message ends with its last words.",
    "UserWarning": "A warning: the work goes on. `warnings.filterwarnings` silences it.",
}
AREAS = {
    "core": "mathematics", "metrics": "metrics", "profile": "profile files", "pipelines": "pipelines and solvers",
    "runtime": "runs under a profile", "calibration": "calibration", "baselines": "compared methods",
    "evaluation": "comparisons and reports", "split": "split runs", "serving": "server", "cli": "command line",
    "opensora": "Open-Sora", "ertacache_zoo": "bundled models", "comfyui-ertacache": "ComfyUI nodes",
}  # fmt: skip


def raised(tree: ast.AST, unsound: str) -> Iterator[tuple[str, str]]:
    """Class and text of every message that a module makes; `unsound` is the class of those that `invalid` makes."""
    known = {*MEANING, "invalid"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = {"warn": "UserWarning", "invalid": unsound}.get(name, name)
        parts = [text for text in map(template, node.args) if text]
        if name in known and parts and len(" ".join(parts)) > 3:
            yield name, ": ".join(parts)


def template(node: ast.expr) -> str:
    """A text of the source, with ‹names› where values stand."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            value.value if isinstance(value, ast.Constant) else f"‹{short(value.value)}›"
            for value in node.values
            if isinstance(value, ast.Constant | ast.FormattedValue)
        )
    return ""


def short(node: ast.expr) -> str:
    """The last name in an expression that is one; else three dots."""
    while isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.Attribute):
        return "class" if node.attr == "__name__" else node.attr
    return node.id if isinstance(node, ast.Name) else "…"


def row(text: str) -> str:
    """A table row: what was found, and what to do."""
    found, _, remedy = text.partition("; ")
    return "| " + " | ".join(half.replace("|", "\\|").replace("\n", " ").strip() for half in (found, remedy)) + " |"


def messages() -> dict[str, dict[str, list[str]]]:
    """Messages by class and area, each once."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for folder in SOURCES:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).parts
            own = folder.name if len(parts) == 1 else parts[0]
            area = AREAS.get(parts[1] if own == "ertacache" else own, "all parts")
            blob = area == AREAS["split"] and path.name != "profile.py"
            unsound = "HandoverInvalid" if blob else "ProfileInvalid"
            unsound = "InvalidArgument" if path.name == "request.py" else unsound
            for name, text in raised(ast.parse(path.read_text(encoding="utf-8")), unsound):
                if text not in found[name][area]:
                    found[name][area].append(text)
    return found


def heading(name: str) -> str:
    kind: Any = getattr(errors, name, UserWarning)
    about = (inspect.getdoc(kind) or "").splitlines()[0] + " " if name != "UserWarning" else ""
    return f"\n## {name}\n\n{about}{MEANING[name]}\n"


def page() -> str:
    """The whole page."""
    found, lines = messages(), [HEAD]
    for name in MEANING:
        lines.append(heading(name))
        for area in (*AREAS.values(), "all parts"):
            if texts := found[name].get(area):
                lines.append(f"\n### {name}: {area}\n\n| it says | what to do |\n|---|---|\n")
                lines.append("\n".join(map(row, texts)) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
