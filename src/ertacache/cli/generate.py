"""`ertacache generate`: pictures or clips, with a profile or without."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli import options as given


def generate(
    model: given.Model,
    prompt: Annotated[list[str], typer.Option(help="What to draw; give it again for each further picture or clip.")],
    profile: Annotated[str | None, typer.Option(help="Profile file or Hub id; without one nothing is cached.")] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="Instead of a profile: compute the steps by this factor less, nothing measured. Above 1."),
    ] = None,
    offload_history: given.History = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture (.png, .jpg, .webp: image.png) or clip (.mp4, .gif, .webp: clip.mp4); of several prompts "
            "image-0.png, image-1.png and so on."
        ),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of a clip; the model's own by default.")] = None,
    retarget: Annotated[bool, typer.Option(help="Fit the profile to other steps or sizes than its own.")] = False,
    seed: given.Seed = 0,
    *,
    call: dict[str, Any],
    placement: given.Placement,
) -> dict[str, Any]:
    """Draw a picture or clip for each prompt, with a profile or without."""
    drawing = Drawing(model, profile, speedup, offload_history, out, fps, retarget, seed)
    drawn = drawing.draw(prompt, call, placement)
    text = "\n".join(one["text"] for one in drawn)
    return drawn[0] if len(drawn) == 1 else {"images": [{**one, "text": None} for one in drawn], "text": text}


@dataclass(frozen=True)
class Drawing:
    """What is drawn of one model; the attributes are the command's options."""

    model: str
    profile: str | None = None
    speedup: float | None = None
    offload_history: str | None = None
    out: Path | None = None
    fps: float | None = None
    retarget: bool = False
    seed: int = 0

    def draw(self, prompts: Sequence[str], call: dict[str, Any], placement: given.Placement) -> list[dict[str, Any]]:
        """Draw each prompt from the noise of its seed; returns times and counts of each.

        Raises:
            InvalidArgument, ProfileInvalid, ProfileMismatch: before the first run.
        """
        from ertacache.calibration.pipeline_run import check_call
        from ertacache.cli.model import load
        from ertacache.evaluation.sample_files import FPS, check_kind, makes_clips, trained_fps
        from ertacache.pipelines import bundled
        from ertacache.pipelines.loading import call_arguments
        from ertacache.runtime.identity import check_pipeline

        loaded = self._checked(prompts, placement)
        pipe, arguments = load(self.model, placement), call_arguments(self.model, call)
        check_call(pipe, arguments)
        clip = makes_clips(pipe, arguments)
        fps = self.fps or (FPS if self.model in bundled.NAMES else trained_fps(pipe))
        files = self._files(Path("clip.mp4" if clip else "image.png"), len(prompts))
        for file in files:
            check_kind(file, clip=clip, fps=fps)
        if loaded is not None:
            check_pipeline(loaded, pipe)
        return [
            self._drawn(pipe, loaded, text, self.seed + n, arguments, file, fps)
            for n, (text, file) in enumerate(zip(prompts, files, strict=True))
        ]

    def _checked(self, prompts: Sequence[str], placement: given.Placement) -> Any:
        """The profile; everything that can be wrong without the model is refused."""
        from ertacache.cli.model import check
        from ertacache.errors import InvalidArgument
        from ertacache.evaluation.sample_files import check_format
        from ertacache.files import check_output
        from ertacache.runtime.uncalibrated import check_speedup

        if any(not text.strip() for text in prompts):
            raise InvalidArgument("--prompt is empty; say what to draw")
        if self.profile is None and self.retarget:
            raise InvalidArgument("--retarget is for a profile; give one with --profile")
        if self.profile is None and self.speedup is None and self.offload_history is not None:
            raise InvalidArgument("--offload-history is for a profile or a speed-up; give --profile or --speedup")
        if self.profile is not None and self.speedup is not None:
            raise InvalidArgument("--profile and --speedup are both given; a profile has its own speed-up: give one")
        if self.speedup is not None:
            check_speedup(self.speedup)
        for file in self._files(Path("image.png"), len(prompts)):
            check_format(file, 1 if self.fps is None else self.fps)
            check_output(file, "picture")
        check(self.model, placement)
        if self.profile is None:
            return None
        from ertacache.profile.profile import Profile

        return Profile.load(self.profile)

    def _files(self, default: Path, count: int) -> list[Path]:
        out = self.out or default
        return [out] if count == 1 else [out.with_stem(f"{out.stem}-{n}") for n in range(count)]

    def _drawn(
        self, pipe: Any, profile: Any, prompt: str, seed: int, call: dict[str, Any], file: Path, fps: float
    ) -> dict[str, Any]:
        from ertacache.calibration.pipeline_run import run_pipeline
        from ertacache.calibration.prompts import Prompts
        from ertacache.evaluation.evaluate import Timed
        from ertacache.evaluation.sample_files import write_sample
        from ertacache.files import rescued
        from ertacache.runtime.run_stats import RunStats
        from ertacache.runtime.watch import now

        stats, plain = RunStats(), profile is None and self.speedup is None
        timed, hidden = Timed(self._controller(profile, stats)), profile is not None and profile.site == "hidden"
        start = now()
        images = run_pipeline(pipe, Prompts((prompt,), seed), timed, call, hidden=hidden)
        seconds = now() - start
        rescued(file, lambda path: write_sample(images[0], path, fps=fps))
        counts: dict[str, Counter[str]] = {"computed": stats.computed, "predicted": stats.predicted}
        facts = {name: dict(count) for name, count in counts.items()}
        counted = "" if plain else f"; computed {facts['computed']}, predicted {facts['predicted']}"
        return {
            "image": str(file),
            "denoise_seconds": timed.seconds,
            "image_seconds": seconds,
            **facts,
            "extra_bytes": stats.extra_bytes,
            "host_bytes": stats.host_bytes,
            "text": f"{file}: denoising {timed.seconds:.2f} s, whole call {seconds:.2f} s{counted}",
        }

    def _controller(self, profile: Any, stats: Any) -> Any:
        from ertacache.core.offload import check_offload
        from ertacache.runtime.even_run import EvenPlayer
        from ertacache.runtime.player import Player
        from ertacache.runtime.run import Controller

        offload = check_offload(self.offload_history)
        if self.speedup is not None:
            return EvenPlayer(self.speedup, stats, offload)
        return Controller() if profile is None else Player(profile, stats, offload, retarget=self.retarget)
