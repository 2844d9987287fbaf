"""The commands, on a saved pipeline with random weights."""

import json
import logging
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

import ertacache.cli.app as cli
from dummy_pipeline import untimed
from ertacache.baselines.catalogue import METHODS
from ertacache.calibration.defaults import DEFAULTS, Aim, Basis
from ertacache.cli.calibrate import calibrate
from ertacache.cli.options import GROUPS, Placement
from ertacache.core.rectify import Granularity
from ertacache.pipelines.loading import Offload, load_pipeline
from ertacache.profile.profile import Activation, Profile, Site
from pipelines import CALL, PROMPTS, flux
from profile_maker import make
from spreading import Pickled

RUN = CliRunner()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with call.json, and prompt files beside it."""
    folder = tmp_path_factory.mktemp("model")
    flux().save_pretrained(folder)
    (folder / "call.json").write_text(json.dumps(CALL))
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "heldout.txt").write_text("a small red ring at the top left\na large cyan cross at the top right\n")
    return folder


@pytest.fixture(scope="module")
def profile(model: Path) -> Path:
    path = model / "profile.safetensors"
    invoke("calibrate", model, "--out", path, "--prompts", model / "prompts.txt", "--speedup", 2,
           "--effort", "fast", "--json")  # fmt: skip
    return path


def invoke(*arguments: object) -> Any:
    """Run a command that must succeed; its JSON where it printed some."""
    result = RUN.invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1]) if "--json" in arguments else result.stdout


def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2
) -> str:
    """Run the entry point; it must exit with a code and explain itself on one line of standard error."""
    monkeypatch.setattr(sys, "argv", ["ertacache", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    return capsys.readouterr().err


def test_calibrate_writes_a_profile_that_inspect_describes(model: Path, profile: Path):
    loaded = Profile.load(profile)
    assert (loaded.schedule.K, loaded.site) == (5, "guided")
    facts = invoke("inspect", profile, "--json")
    assert facts["schedule"] == str(loaded.schedule)
    assert facts["heldout"]["psnr"]["mean"] == loaded.provenance.heldout["psnr"]["mean"]
    text = invoke("inspect", profile, "--picture", model / "profile.png")
    assert str(loaded.schedule) in text and "judged on 1 prompt" in text
    assert (model / "profile.png").read_bytes().startswith(b"\x89PNG")


class Actors(Pickled):
    """Stands for `ertacache.ray.map`: what it was called with, and whether its actors were ended."""

    def __init__(self, pipeline: str, **options: Any) -> None:
        super().__init__(lambda: load_pipeline(pipeline))
        self.asked, self.closed = (pipeline, options), False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> list[Actors]:
    """The actors that were asked for, without Ray."""
    made: list[Actors] = []

    def actors(pipeline: str, **options: Any) -> Actors:
        made.append(Actors(pipeline, **options))
        return made[-1]

    monkeypatch.setattr("ertacache.ray.actors.map", actors)
    monkeypatch.setattr("ertacache.cli.spread.require", lambda *given: None)
    return made


def test_a_calibration_over_actors_writes_the_same_profile(
    model: Path, profile: Path, ray: list[Actors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(model.parent)
    invoke("calibrate", model.name, "--out", tmp_path / "p", "--prompts", model / "prompts.txt", "--speedup", 2,
           "--effort", "fast", "--ray-actors", 2, "--num-gpus", "0.5", "--json")  # fmt: skip
    assert untimed(Profile.load(tmp_path / "p")).to_bytes() == untimed(Profile.load(profile)).to_bytes()
    (actors,) = ray
    assert actors.asked == (str(model), {"num_gpus": 0.5, "actors": 2})  # they work in other folders
    assert actors.units and actors.closed


def test_a_comparison_over_actors_has_the_same_rows(model: Path, ray: list[Actors], tmp_path: Path):
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    arguments = ("compare", "--model", model, *files, "--methods", "uniform", "--match-cost", ".5", "--samples", 1)
    invoke(*arguments, "--out", tmp_path / "alone")
    invoke(*arguments, "--out", tmp_path / "spread", "--ray-actors", 3)
    alone, spread = ((tmp_path / name / "results.jsonl").read_bytes() for name in ("alone", "spread"))
    assert spread == alone
    (actors,) = ray
    assert actors.asked == (str(model), {"num_gpus": 1.0, "actors": 3})
    assert actors.units and actors.closed


def test_generate_with_and_without_a_profile(model: Path, profile: Path):
    plain = invoke("generate", model, "--prompt", PROMPTS[0], "--out", model / "plain.png", "--json")
    assert plain["computed"] == {}
    cached = invoke("generate", model, "--prompt", PROMPTS[0], "--profile", profile, "--out", model / "c.png", "--json")
    assert cached["computed"] == {"cond": 5} and cached["predicted"] == {"cond": 5}
    assert (model / "plain.png").read_bytes() != (model / "c.png").read_bytes()
    other = ("--profile", profile, "--num-inference-steps", 6, "--retarget", "--out", model / "r.png", "--json")
    with pytest.warns(UserWarning, match="calibrated at 10 steps and is retargeted to 6"):
        assert invoke("generate", model, "--prompt", PROMPTS[0], *other)["computed"] == {"cond": 3}


def test_generate_at_a_speedup_without_a_profile(model: Path):
    half = invoke("generate", model, "--prompt", PROMPTS[0], "--speedup", "2", "--out", model / "s.png", "--json")
    assert half["computed"] == {"cond": 5} and half["predicted"] == {"cond": 5}


def test_ablation_prints_a_table_and_writes_a_report(model: Path):
    arguments = ("ablation", model, "--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    result = invoke(*arguments, "--budgets", "5", "--no-full", "--out", model / "out", "--json")
    assert Path(result["report"]).is_file()
    assert result["rows"][0]["label"] == "no cache"


def test_compare_measures_methods_at_a_cost_and_writes_a_report(model: Path, tmp_path: Path):
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    arguments = ("compare", "--model", model, *files, "--methods", "fewer-steps,uniform,t-gate", "--match-cost", ".5")
    result = invoke(*arguments, "--out", tmp_path, "--samples", "1", "--json")
    assert Path(result["report"]).is_file()
    fewer, uniform, gate = result["rows"]
    assert (fewer["id"], fewer["cost"], fewer["denoiser_calls"]) == ("fewer-steps@0.5", 0.5, 5)
    assert (uniform["id"], uniform["cost"]) == ("uniform@0.5", 0.5) and uniform["psnr"] < 100
    assert gate["id"] == "t-gate@0.5" and "joint" in gate["refusal"]
    text = invoke(*arguments, "--out", tmp_path, "--samples", "1")
    assert "uniform, residual reuse" in text and "not run: its attention is joint" in text


def test_compare_takes_published_settings(model: Path, tmp_path: Path):
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    arguments = ("compare", "--model", model, *files, "--methods", "pab", "--match-cost", "published")
    assert [row["id"] for row in invoke(*arguments, "--out", tmp_path, "--json")["rows"]] == ["pab:diffusers"]


def test_compare_lists_its_methods():
    listed = [row["method"] for row in invoke("compare", "--list", "--json")["methods"]]
    assert listed == [method.key for method in METHODS]


def test_zoo_lists_the_bundled_models():
    names = {"tiny-flux", "tiny-flux-base", "tiny-wan", "tiny-cogvideox", "tiny-open-sora", "nano-flux"}
    assert set(invoke("zoo", "list", "--json")) == names


def test_a_number_of_steps_that_the_pipeline_lacks_is_named_in_options(model: Path, profile: Path, monkeypatch, capsys):
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--basis", "residual", "--out", model / "x")
    text = fails(monkeypatch, capsys, *given, "--compute-steps", 11)
    assert text.splitlines()[-1] == "ertacache: --compute-steps is 11; choose 2 to 10 of 10 steps"
    text = fails(
        monkeypatch, capsys, "generate", model, "--prompt", "x", "--profile", profile, "--num-inference-steps", 8
    )
    assert "ertacache: --num-inference-steps: the profile has 10, this pipeline 8" in text
    assert "or apply the profile with --retarget, which fits it" in text


def test_several_prompts_make_several_files_and_calibrate_together(model: Path, tmp_path: Path):
    asked = ("generate", model, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--num-inference-steps", 2)
    result = invoke(*asked, "--out", tmp_path / "new" / "x.png", "--seed", 7, "--json")
    assert [one["image"] for one in result["images"]] == [str(tmp_path / "new" / f"x-{n}.png") for n in range(2)]
    invoke(
        "generate", model, "--prompt", PROMPTS[1], "--num-inference-steps", 2, "--seed", 8, "--out", tmp_path / "1.png"
    )
    assert (tmp_path / "new" / "x-1.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    shown = invoke(*asked, "--out", tmp_path / "x.png")
    assert [line.partition(":")[0] for line in shown.splitlines()] == [str(tmp_path / f"x-{n}.png") for n in range(2)]
    given = [part for text in PROMPTS for part in ("--prompt", text)]
    out = ("--out", tmp_path / "folder" / "p.safetensors", "--compute-steps", 4, "--num-inference-steps", 8)
    facts = invoke("calibrate", model, *given, *out, "--schedule", "uniform", "--json")
    assert facts["prompts"] == {"fitted": 3, "heldout": 1, "chosen_on": 0, "judged": 1, "seed": 0}
    assert Path(facts["profile"]).is_file()


def test_several_budgets_are_a_file_each(model: Path, tmp_path: Path):
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--effort", "fast", "--out", tmp_path / "p.st")
    folder = ("--checkpoint", tmp_path / "c")
    found = invoke(*given, *folder, "--compute-steps", 5, "--compute-steps", 4, "--json")["profiles"]
    assert [(Path(one["profile"]).name, one["K"]) for one in found] == [("p-5steps.st", 5), ("p-4steps.st", 4)]
    for one in found:
        assert str(Profile.load(one["profile"]).schedule) == one["schedule"]
    text = invoke(*given, *folder, "--speedup", 2.5, "--speedup", 2, "-q")
    assert [Path(line.split()[2]).name for line in text.splitlines() if line.startswith("written to ")] == [
        "p-2.5x.st", "p-2x.st"
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "c", "p-2.5x.st", "p-2x.st", "p-4steps.st", "p-5steps.st"
    ]  # fmt: skip
    assert Profile.load(tmp_path / "p-2x.st").schedule == Profile.load(tmp_path / "p-5steps.st").schedule


def test_sizes_and_guidance_scales_are_in_one_file(model: Path, tmp_path: Path):
    """In place of the size and guidance that the model's call.json has."""
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--effort", "fast", "--speedup", 2)
    several = ("--size", "32x32", "--size", "64x64", "--guidance-scale", "3,5", "--out", tmp_path / "p")
    facts = invoke(*given, *several, "--json")
    calls = [one["call"] for one in (facts, *facts["others"])]
    assert [(call["height"], call["width"], call["guidance_scale"]) for call in calls] == [
        (32, 32, 3.0), (64, 64, 3.0), (32, 32, 5.0), (64, 64, 5.0)
    ]  # fmt: skip
    assert all(call["max_sequence_length"] == CALL["max_sequence_length"] for call in calls)


def test_a_finer_run_is_aimed_at(model: Path, tmp_path: Path):
    steps = CALL["num_inference_steps"]
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--effort", "fast", "--speedup", 2)
    facts = invoke(*given, "--teacher-steps", 2 * steps, "--out", tmp_path / "p", "--json")
    assert facts["heldout"]["teacher"]["steps"] == 2 * steps


def test_a_quantised_model_is_corrected(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def kept(pipe: Any, prompts: list[str], **options: Any) -> Profile:
        asked.update(options, pipe=pipe, prompts=prompts)
        return make()

    monkeypatch.setattr("ertacache.quantization.calibrate.calibrate_quantized", kept)
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--out", tmp_path / "p", "--seed", 3, "--json")
    invoke(*given, "--reference", model, "--correct-only")
    assert Profile.load(tmp_path / "p") == make()
    assert asked["reference"] is not asked["pipe"] and asked["seed"] == 3 and len(asked["prompts"]) == len(PROMPTS)
    assert asked["num_inference_steps"] == CALL["num_inference_steps"] and "teacher_steps" not in asked


def test_what_a_correction_contradicts_is_refused(model: Path, monkeypatch, capsys, tmp_path: Path):
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--out", tmp_path / "p", "--correct-only")
    said = fails(monkeypatch, capsys, *given)
    assert said.startswith("ertacache: --correct-only needs --reference, the model in full precision")
    for option, value in (
        ("speedup", 2),
        ("basis", "reuse"),
        ("teacher-steps", 20),
        ("effort", "fast"),
        ("size", "64x64"),
    ):
        said = fails(monkeypatch, capsys, *given, "--reference", model, f"--{option}", value)
        assert said.startswith(
            f"ertacache: --correct-only computes every step, of one size and scale; leave --{option} out"
        )


def test_what_sizes_and_scales_contradict_is_refused(model: Path, monkeypatch, capsys, tmp_path: Path):
    given = ("calibrate", model, "--prompts", model / "prompts.txt", "--speedup", 2, "--out", tmp_path / "p")
    for options, words in (
        (("--size", "64x64", "--height", 64), "'height' is given in sizes and for all calls; give it once"),
        (("--size", "64x64x5"), "no argument 'num_frames'"),
        (("--size", "64x64", "--size", "64x64"), "sizes has (64, 64) twice; give each once"),
        (("--teacher-steps", 2), "--teacher-steps is 2; give a whole multiple of the call's"),
        (("--guidance-scale", "3,3"), "guidance_scales has 3 and 3, which are one guidance to a run"),
        (("--guidance-scale", "3,0"), "guidance_scales is 0.0; give positive numbers"),
        (
            ("--guidance-scale", "3,5", "--true-cfg-scale", 2, "--negative-prompt", ""),
            "'true_cfg_scale' is given in guidance_scales and for all calls; give it once",
        ),
    ):
        text = fails(monkeypatch, capsys, *given, *options)
        assert text.splitlines()[-1].startswith(f"ertacache: {words}"), text


def test_help_and_version_load_no_torch():
    for words in (["--help"], ["--version"], *([name, "--help"] for name in ("calibrate", "compare", "reproduce"))):
        code = (
            f"import sys; sys.argv = ['ertacache', *{words}]; from ertacache.cli.app import main\n"
            "try: main()\n"
            "except SystemExit as stop: assert not stop.code\n"
            "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules); assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.startswith("ertacache 0.1.0\n" if words == ["--version"] else "Usage: ertacache")


def test_the_defaults_that_help_shows_are_those_of_the_methods():
    shown = re.sub(r"\s+", " ", invoke("calibrate", "--help"))
    for name in ("schedule", "basis", "site", "history", "aim", "timesteps", "rectifier", "activation"):
        rows = ", of ".join(
            f"{m}: {getattr(row, name)}" for m, row in DEFAULTS.items() if getattr(row, name) is not None
        )
        assert f"Default of {rows}." in shown


def test_the_words_of_the_options_are_those_of_the_library():
    hints = {name: hint for name, (hint, _) in GROUPS["expert"][1].items()}
    for name, words in (("basis", Basis), ("site", Site), ("aim", Aim), ("activation", Activation)):
        assert set(typing.get_args(words)) | {None} == set(_literals(hints[name]))
    assert set(_literals(hints["rectifier"])) == {None, "none", *typing.get_args(Granularity)}
    assert set(_literals(typing.get_type_hints(calibrate, include_extras=True)["method"])) == set(DEFAULTS)
    assert set(_literals(typing.get_type_hints(Placement)["offload"])) == set(typing.get_args(Offload))


def _literals(hint: Any) -> list[Any]:
    """Every value that the literals of an annotation allow."""
    if hint is type(None):
        return [None]
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) if not isinstance(part, OptionInfo) for value in _literals(part)]


def test_quiet_and_verbose_say_less_and_more(model: Path, tmp_path: Path, capfd):
    given = ("generate", model, "--prompt", "x", "--num-inference-steps", 2, "--out", tmp_path / "x.png")
    level = logging.getLogger("ertacache")
    for words, expected in (((), logging.INFO), (("-q",), logging.WARNING), (("--verbose",), logging.DEBUG)):
        invoke(*given, *words)
        assert level.level == expected
    invoke("-q", "inspect", "--help")
    assert level.level == logging.WARNING
