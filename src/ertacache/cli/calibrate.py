"""`ertacache calibrate`: from a model and a few prompts to a profile, or one for each of several budgets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ertacache.calibration.defaults import CHOOSE, HOLDOUT, METHOD
from ertacache.cli import options as given
from ertacache.cli.command import shows_progress

if TYPE_CHECKING:
    from ertacache.profile.profile import Profile

#: What the files of several budgets are named after, by the option that gives them.
_UNITS = {"speedup": "x", "compute_steps": "steps", "target_psnr": "dB", "max_seconds": "s"}


def _budget(what: str) -> Any:
    return typer.Option(callback=given.each(given.finite), help=f"{what} Several: give it again; one profile for each.")


def calibrate(
    model: given.Model,
    out: Annotated[
        Path, typer.Option(help="Profile to write. Of several budgets each is named after it: profile-2x.safetensors.")
    ] = Path("profile.safetensors"),
    prompt: given.SeveralPrompts = None,
    prompts: given.PromptFile = None,
    speedup: Annotated[list[float] | None, _budget("Times fewer steps to compute, such as 2.")] = None,
    compute_steps: Annotated[
        list[int] | None, typer.Option(callback=given.each(given.whole(2)), help="K, steps to compute. Several too.")
    ] = None,
    target_psnr: Annotated[list[float] | None, _budget("dB to keep with as few steps as can be.")] = None,
    max_seconds: Annotated[list[float] | None, _budget("What a call for one prompt may take here.")] = None,
    effort: Annotated[
        Literal["fast", "balanced", "thorough"] | None,
        typer.Option(help="How far to search: one plan, the best of eight (the default), or of more."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(callback=given.sizes, help="HEIGHTxWIDTH[xFRAMES]; again for each further one in the same file."),
    ] = None,
    method: Annotated[
        Literal["fitted", "ertacache"], typer.Option(help="The plan that measured best, or the paper's.")
    ] = METHOD,  # pyright: ignore[reportArgumentType]
    threshold: Annotated[
        float | None, typer.Option(callback=given.finite, help="λ of the paper, instead of a budget.")
    ] = None,
    *,
    expert: dict[str, Any],
    choose: Annotated[
        float, typer.Option(callback=given.share, help="Share of the prompts that plans are compared on.")
    ] = CHOOSE,
    holdout: Annotated[
        float, typer.Option(callback=given.share, help="Share of the prompts that only judge the chosen plan.")
    ] = HOLDOUT,
    seed: given.Seed = 0,
    batch_size: given.BatchSize = None,
    checkpoint: given.Checkpoint = None,
    teacher_steps: Annotated[
        int | None,
        typer.Option(callback=given.whole(2), help="Steps of a finer run to aim at, such as 4 times the own."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Of a quantised model, the one in full precision, whose runs are aimed at.")
    ] = None,
    correct_only: Annotated[
        bool, typer.Option(help="Compute every step of a quantised model, and correct it: no budget.")
    ] = False,
    calls: dict[str, Any],
    placement: given.Placement,
    spread: given.Spread,
) -> dict[str, Any]:
    """Watch a pipeline on a few prompts and write a profile."""
    budgets: dict[str, Any] = {"speedup": speedup, "compute_steps": compute_steps, "target_psnr": target_psnr}
    budgets |= {"max_seconds": max_seconds, "threshold": threshold}
    more: dict[str, Any] = {"choose": choose, "holdout": holdout, "seed": seed, "batch_size": batch_size}
    more |= {"checkpoint": checkpoint, "teacher_steps": teacher_steps}
    asked = _Asked(model, out, budgets, method, effort, expert, more, size, calls, spread, reference, correct_only)
    return asked.run(prompt or [], prompts, placement)


@dataclass
class _Asked:
    """What the options ask for.

    Attributes:
        budgets: of each option its values, None where it was not given.
        expert: the choices that fix a plan. more: further arguments of `calibrate`.
        call: the options that are the pipeline's; `guidance_scale` may be several.
        spread: over which processes. reference: the model in full precision. correct_only: nothing is predicted.
    """

    model: str
    out: Path
    budgets: dict[str, Any]
    method: Any
    effort: Any
    expert: dict[str, Any]
    more: dict[str, Any]
    sizes: Any
    call: dict[str, Any]
    spread: given.Spread
    reference: str | None = None
    correct_only: bool = False

    def run(self, texts: list[str], file: Path | None, placement: given.Placement) -> dict[str, Any]:
        """Check, load, calibrate, save."""
        from ertacache.cli.model import check, load, prompts_of
        from ertacache.cli.spread import check_spread, spread_over
        from ertacache.pipelines import bundled

        check_spread(self.spread, placement, self.reference)
        check(self.model, placement)
        prompts = prompts_of(self.model, file, bundled.calibration_prompts, "--prompts", texts)
        budgets, paths = self._checked(prompts), self._paths()
        if self.reference is not None:
            check(self.reference, placement)
        pipe = load(self.model, placement)
        full = None if self.reference is None else load(self.reference, placement)
        if self.correct_only:
            return _saved(paths, [self._corrected(pipe, prompts, full)])
        from ertacache.calibration.calibrate import calibrate as run

        asked: dict[str, Any] = {**budgets, **self.expert, **self.more, "method": self.method, "effort": self.effort}
        asked |= {"reference": full, "sizes": self.sizes, "show_progress": shows_progress()}
        with spread_over(self.model, self.spread) as actors:
            found: Any = run(pipe, prompts, map=actors, **asked, **self._arguments(pipe))
        return _saved(paths, found if len(paths) > 1 else [found])

    def _corrected(self, pipe: Any, prompts: list[str], full: Any) -> "Profile":
        """The profile that corrects every step of a quantised model."""
        from ertacache.quantization.calibrate import calibrate_quantized

        own = {name: value for name, value in self.more.items() if name != "teacher_steps"}
        return calibrate_quantized(
            pipe, prompts, reference=full, show_progress=shows_progress(), **own, **self._arguments(pipe)
        )

    def _check_correction(self) -> None:
        """Refuse what no correction of every step can have.

        Raises:
            InvalidArgument: naming the option.
        """
        from ertacache.errors import InvalidArgument

        if self.reference is None:
            raise InvalidArgument("--correct-only needs --reference, the model in full precision")
        given: dict[str, Any] = {**self.budgets, **self.expert, "effort": self.effort, "size": self.sizes}
        given |= {"teacher_steps": self.more["teacher_steps"], "method": None if self.method == METHOD else self.method}
        given |= {"guidance_scale": len(self.call.get("guidance_scale", ())) > 1 or None}
        if named := [name for name, value in given.items() if value is not None]:
            option = named[0].replace("_", "-")
            raise InvalidArgument(f"--correct-only computes every step, of one size and scale; leave --{option} out")

    def _checked(self, prompts: list[str]) -> dict[str, Any]:
        """The budgets, a number or a list of them each; what is wrong by itself is said before anything is loaded."""
        from ertacache.calibration.budget import budgets_of
        from ertacache.calibration.choices import settle
        from ertacache.calibration.defaults import RIDGE
        from ertacache.calibration.prompts import split_prompts
        from ertacache.calibration.request import check_request
        from ertacache.calibration.target import check_target

        parts = split_prompts(prompts, self.more["choose"], self.more["holdout"], self.more["seed"])
        if self.correct_only:
            self._check_correction()
            return {}
        values = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for name, value in self.budgets.items()
        }
        budgets, _ = budgets_of(values)
        check_request(self.method, self.effort, budgets, self.expert, RIDGE)
        for budget in budgets:
            check_target(budget.target_psnr, len(parts.chosen.texts))
            settle(self.method, budget, self.expert)
        return values

    def _paths(self) -> list[Path]:
        """A file for each budget, which can be written.

        Raises:
            InvalidArgument: one that cannot, one of two budgets, or one where the checkpoint is.
        """
        from ertacache.errors import InvalidArgument
        from ertacache.files import check_output

        name, values = next(((n, v) for n, v in self.budgets.items() if isinstance(v, list)), ("", []))
        paths = [self.out]
        if len(values) > 1:
            named = (f"{self.out.stem}-{value:g}{_UNITS[name]}{self.out.suffix}" for value in values)
            paths = [self.out.with_name(file) for file in named]
        folder = self.more["checkpoint"]
        for n, path in enumerate(paths):
            if path in paths[:n]:
                raise InvalidArgument(
                    f"{name}={values[paths.index(path)]} and {name}={values[n]} would both be written to {path}; "
                    "give one of them"
                )
            check_output(path, "profile")
            if folder is not None and folder.resolve() == path.resolve():
                raise InvalidArgument(f"--checkpoint and --out are both {path}; name a folder and a file")
        if folder is not None:
            check_output(folder, "folder")
        return paths

    def _arguments(self, pipe: Any) -> dict[str, Any]:
        """The arguments of the pipeline call; of those that sizes or scales stand for, the model's own say nothing."""
        from ertacache.calibration.guidance_scales import argument_of
        from ertacache.pipelines.loading import call_arguments

        own = {name: value for name, value in self.call.items() if name != "guidance_scale"}
        scales = self.call.get("guidance_scale", ())
        if len(scales) == 1:
            own["guidance_scale"] = scales[0]
        call = call_arguments(self.model, own)
        replaced = ["height", "width", "num_frames"][: max(map(len, self.sizes))] if self.sizes else []
        if len(scales) > 1:
            replaced.append(argument_of(pipe, call))
        call = {name: value for name, value in call.items() if name not in replaced or name in own}
        return {**call, "guidance_scales": list(scales)} if len(scales) > 1 else call


def _saved(paths: Sequence[Path], profiles: Sequence["Profile"]) -> dict[str, Any]:
    """What is said of the profiles once they are written; the facts of one are the result, several stand in a list."""
    from ertacache.files import rescued
    from ertacache.profile.profile_summary import summary_facts

    lines, facts = list[str](), list[dict[str, Any]]()
    for path, profile in zip(paths, profiles, strict=True):
        rescued(path, profile.save)
        # With progress on, the calibration has said what came of it.
        lines += [] if shows_progress() else [profile.summary()]
        lines.append(f"written to {path} ({path.stat().st_size} bytes)")
        facts.append({"profile": str(path), **summary_facts(profile)})
    return {**(facts[0] if len(facts) == 1 else {"profiles": facts}), "text": "\n".join(lines)}
