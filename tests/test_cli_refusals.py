"""Bad input exits with 2 and says why, before a model is loaded."""

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ertacache.cli.model
from ertacache.runtime.folder_lock import locked
from pipelines import PROMPTS
from test_cli import fails

CUDA = "torch.cuda.is_available"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prompt files, a folder that looks like a model's, and no way to load it."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model_index.json").write_text("{}")
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "h.txt").write_text("a ring\n")
    (tmp_path / "one.txt").write_text("a ring\n")
    (tmp_path / "twice.txt").write_text("a ring\na cross\na ring\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ertacache.cli.model, "load", lambda *given: pytest.fail("a model was loaded"))
    monkeypatch.setattr(CUDA, lambda: False)
    return tmp_path


#: Of actors that are not there, a share that is none, and what actors do not have; before Ray is looked for.
SPREAD = (
    ("--num-gpus 1", "ertacache: --num-gpus is 1, of each actor; say how many with --ray-actors"),
    ("--ray-actors 0", "Error: Invalid value for '--ray-actors': 0; give 1 or more."),
    ("--ray-actors 2 --num-gpus -1", "ertacache: --num-gpus is -1.0; give the GPUs of each actor: 1, a share such as"),
    ("--ray-actors 2 --num-gpus nan", "Error: Invalid value for '--num-gpus': nan is no finite number."),
    (
        "--ray-actors 2 --offload group",
        "ertacache: --offload is group, and actors hold a whole model; leave one of both out",
    ),
)

BARE = "calibrate m --prompts p.txt"
CALIBRATE = "calibrate m --prompts p.txt --compute-steps 5"
ABLATION = "ablation m --prompts h.txt --calibration-prompts p.txt"
COMPARE = "compare --model m --prompts h.txt --calibration-prompts p.txt"
DRAW = "generate m --prompt x"
SEEDS = "give a number from 0 to 9223372036854775807."

REFUSALS = [
    *((f"{command} {options}", words) for command in (CALIBRATE, COMPARE) for options, words in SPREAD),
    (
        f"{CALIBRATE} --ray-actors 2 --reference m",
        "ertacache: --reference is m, which actors do not have; leave --ray-actors out",
    ),
    ("calibrate m --prompts empty.txt --compute-steps 5", "ertacache: empty.txt holds no prompts; write one a line"),
    ("calibrate m --prompts binary.txt --compute-steps 5", "ertacache: cannot read prompts from binary.txt ("),
    ("calibrate m --prompts m --compute-steps 5", "ertacache: cannot read prompts from m ([Errno 21] Is a directory"),
    ("calibrate m --prompts none.txt --compute-steps 5", "ertacache: cannot read prompts from none.txt ([Errno 2]"),
    ("calibrate m --compute-steps 5", "ertacache: 'm' has no bundled prompts; give a file with --prompts"),
    ("calibrate m --prompts one.txt --compute-steps 5", "ertacache: 1 prompt(s) given; calibrate with at least 2"),
    (f"{CALIBRATE} --prompt ' '", "ertacache: --prompt is empty; say what to draw"),
    ("calibrate m --prompts p.txt --compute-steps 1", "Error: Invalid value for '--compute-steps': 1; give 2 or more."),
    ("calibrate m --prompts p.txt --threshold nan", "Error: Invalid value for '--threshold': nan is no finite number."),
    (f"{CALIBRATE} --threshold 0.1", "ertacache: --threshold 0.1 excludes --compute-steps 5; give one of them"),
    (f"{CALIBRATE} --holdout nan", "Error: Invalid value for '--holdout': nan is no share between 0 and 1"),
    (f"{CALIBRATE} --holdout 1.5", "Error: Invalid value for '--holdout': 1.5 is no share between 0 and 1"),
    (f"{CALIBRATE} --seed -1", f"Error: Invalid value for '--seed': -1; {SEEDS}"),
    (f"{CALIBRATE} --seed {2**64}", f"Error: Invalid value for '--seed': {2**64}; {SEEDS}"),
    (f"{CALIBRATE} --batch-size 0", "Error: Invalid value for '--batch-size': 0; give 1 or more."),
    (f"{CALIBRATE} --num-inference-steps 0", "Error: Invalid value for '--num-inference-steps': 0; give 1 or more."),
    (f"{CALIBRATE} --num-inference-steps -3", "Error: Invalid value for '--num-inference-steps': -3; give 1 or more."),
    (f"{CALIBRATE} --height -64", "Error: Invalid value for '--height': -64; give 16 or more."),
    (f"{CALIBRATE} --width 0", "Error: Invalid value for '--width': 0; give 16 or more."),
    (f"{CALIBRATE} --num-frames 0", "Error: Invalid value for '--num-frames': 0; give 1 or more."),
    (f"{CALIBRATE} --guidance-scale inf", "Error: Invalid value for '--guidance-scale': inf is no finite number."),
    (
        f"{CALIBRATE} --basis magic",
        "Error: Invalid value for '--basis': 'magic' is not one of 'reuse', 'residual', 'fitted'.",
    ),
    (
        f"{CALIBRATE} --method magic",
        "Error: Invalid value for '--method': 'magic' is not one of 'fitted', 'ertacache'.",
    ),
    (
        f"{CALIBRATE} --dtype int7",
        "Error: Invalid value for '--dtype': 'int7' is not one of 'float32', 'float16', 'bfloat16'.",
    ),
    (
        f"{CALIBRATE} --device cuda",
        "ertacache: --device is 'cuda', and this machine has no cuda that torch can use; use cpu",
    ),
    (f"{CALIBRATE} --device qpu", "ertacache: --device is 'qpu', which torch does not know; use cpu, cuda or mps"),
    (f"{CALIBRATE} --device meta", "ertacache: --device is 'meta', and this machine has no meta that torch can use"),
    (
        f"{CALIBRATE} --offload model",
        "ertacache: --offload is 'model', which needs an accelerator to move the weights to",
    ),
    (f"{CALIBRATE} --offload sequential", "ertacache: --offload is 'sequential', which needs an accelerator"),
    (f"{CALIBRATE} --out m", "ertacache: m is a folder; name a file for the profile"),
    (f"{CALIBRATE} --out h.txt/p", "ertacache: cannot write the profile h.txt/p: a file is where one of its folders"),
    (f"{CALIBRATE} --out /proc/p", "ertacache: cannot write the profile /proc/p ("),
    (f"{CALIBRATE} --checkpoint h.txt", "ertacache: h.txt is a file; name a folder"),
    (
        f"{CALIBRATE} --out new/p --checkpoint new/../new/p",
        "ertacache: --checkpoint and --out are both new/p; name a folder and a file",
    ),
    (f"{CALIBRATE} --speedup 2", "ertacache: --speedup 2.0 excludes --compute-steps 5; give one of them"),
    (f"{CALIBRATE} --speedup 2 --speedup 3", "ertacache: --speedup 2.0 excludes --compute-steps 5; give one of them"),
    (f"{CALIBRATE} --compute-steps 5", "ertacache: --compute-steps is [5, 5]; give each budget once, and no None"),
    (
        f"{CALIBRATE} --compute-steps 4 --threshold 0.1",
        "ertacache: --threshold 0.1 excludes --compute-steps 5; give one of them",
    ),
    (f"{BARE} --speedup nan", "Error: Invalid value for '--speedup': nan is no finite number."),
    (f"{BARE} --speedup 1", "ertacache: --speedup is 1.0; choose a number above 1, such as 2.0"),
    (f"{BARE} --target-psnr 30 --target-psnr 0", "ertacache: --target-psnr is 0.0; choose dB above 0, such as 30"),
    (
        f"{BARE} --target-psnr 30",
        "ertacache: --target-psnr is 30, and 1 prompt(s) to choose on give no confidence bound",
    ),
    (
        "calibrate m --prompts twice.txt --compute-steps 5",
        "ertacache: prompt 'a ring' is given twice, as number 1, which is fitted to, and number 3, which judges; give",
    ),
    (f"{BARE} --max-seconds -1", "ertacache: --max-seconds is -1.0; choose seconds above 0"),
    (f"{BARE} --compute-steps 6 --compute-steps 1", "Error: Invalid value for '--compute-steps': 1; give 2 or more."),
    (
        f"{BARE} --speedup 2 --speedup 2.0000001",
        "ertacache: --speedup 2.0 and --speedup 2.0000001 would both be written to profile-2x.safetensors; give one of",
    ),
    (
        f"{BARE} --speedup 2 --speedup 3 --out new/p --checkpoint new/p-3x",
        "ertacache: --checkpoint and --out are both new/p-3x; name a folder and a file",
    ),
    (f"{BARE} --speedup 2 --speedup 3 --out h.txt/p", "ertacache: cannot write the profile h.txt/p-2x: a file is"),
    (f"{CALIBRATE} --effort quick", "Error: Invalid value for '--effort': 'quick' is not one of 'fast', 'balanced'"),
    (
        f"{CALIBRATE} --effort fast --basis residual",
        "ertacache: --effort fast searches for what --basis residual fixes; give one of them",
    ),
    (
        f"{CALIBRATE} --choose 0.6 --holdout 0.5",
        "ertacache: --choose 0.6 and --holdout 0.5 leave nothing to fit; their",
    ),
    (f"{CALIBRATE} --choose 1", "Error: Invalid value for '--choose': 1.0 is no share between 0 and 1"),
    *(
        (
            f"{CALIBRATE} --size 64x64 --size {size}",
            f"Error: Invalid value for '--size': '{size}'; give HEIGHTxWIDTH, of",
        )
        for size in ("64", "64x", "64x64x9x1", "axb", "64,64", "-64x64")
    ),
    *(
        (
            f"{CALIBRATE} --guidance-scale {scales}",
            f"Error: Invalid value for '--guidance-scale': '{scales}'; give a number, or several separated by commas",
        )
        for scales in ("3,,5", "3;5", "x")
    ),
    (f"{CALIBRATE} --guidance-scale 3,nan", "Error: Invalid value for '--guidance-scale': nan is no finite number."),
    (f"{CALIBRATE} --height 1", "Error: Invalid value for '--height': 1; give 16 or more."),
    (f"{CALIBRATE} --history 0", "ertacache: --history is 0; choose a whole number of 1 or more: a depth, or 'auto'"),
    (f"{CALIBRATE} --timesteps 7", "ertacache: --timesteps is 7.0; choose 'none', 'paper', 'auto' or a strength from"),
    (
        f"{CALIBRATE} --basis residual --aim step",
        "ertacache: --aim step is of the fitted basis and contradicts --basis",
    ),
    (f"{CALIBRATE} --schedule ?", "ertacache: '?' has ['?']; write '#' for computed, '.' for predicted"),
    (
        "calibrate m --prompts p.txt",
        "ertacache: say how much to compute: --speedup 2.0, --compute-steps K or a schedule such as '#.#.##'",
    ),
    ("calibrate tiny-flx --compute-steps 5", "ertacache: no model 'tiny-flx'; did you mean tiny-flux?"),
    ("calibrate none --compute-steps 5", "ertacache: no model 'none'; there are tiny-flux, tiny-flux-base, tiny-wan, "),
    ("calibrate . --compute-steps 5", "ertacache: the folder . holds no model_index.json; give a diffusers pipeline's"),
    (f"{DRAW} --out m", "ertacache: cannot write a picture to m, whose kind is unknown; name a .png file"),
    (f"{DRAW} --out x.txt", "ertacache: cannot write a picture to x.txt, whose kind is unknown; name a .png file"),
    (
        f"{DRAW} --out h.txt/x.png",
        "ertacache: cannot write the picture h.txt/x.png: a file is where one of its folders",
    ),
    (f"{DRAW} --out /proc/x.png", "ertacache: cannot write the picture /proc/x.png ("),
    (f"{DRAW} --out x.gif --fps 0", "ertacache: --fps is 0; choose frames per second above 0 and up to 60"),
    (f"{DRAW} --out x.gif --fps nan", "ertacache: --fps is nan; choose frames per second above 0 and up to 60"),
    (f"{DRAW} --seed -1", f"Error: Invalid value for '--seed': -1; {SEEDS}"),
    (f"{DRAW} --profile h.txt", "ertacache: h.txt: file: has 7 bytes, too few for a header"),
    (f"{DRAW} --profile none.safetensors", "ertacache: there is no profile at 'none.safetensors'"),
    (f"{DRAW} --retarget", "ertacache: --retarget is for a profile; give one with --profile"),
    (f"{DRAW} --offload-history cpu", "ertacache: --offload-history is for a profile or a speed-up; give --profile or"),
    (f"{DRAW} --speedup 1", "ertacache: --speedup is 1.0; give a number above 1, such as 2.0, which computes half of"),
    (f"{DRAW} --speedup nan", "ertacache: --speedup is nan; give a number above 1, such as 2.0"),
    (f"{DRAW} --speedup 2 --profile p", "ertacache: --profile and --speedup are both given; a profile has its own"),
    (f"{DRAW} --offload-history gpu", "Error: Invalid value for '--offload-history': 'gpu' is not one of 'cpu'."),
    ("generate m --prompt ''", "ertacache: --prompt is empty; say what to draw"),
    ("generate tiny-flx --prompt x", "ertacache: no model 'tiny-flx'; did you mean tiny-flux?"),
    (
        f"{ABLATION} --budgets 15,,x",
        "ertacache: --budgets is '15,,x'; give whole numbers separated by commas, such as 15,10,6",
    ),
    (f"{ABLATION} --budgets 5,1", "ertacache: --budgets is '5,1'; compute 2 steps or more, and give each number once"),
    (f"{ABLATION} --budgets 5,5", "ertacache: --budgets is '5,5'; compute 2 steps or more, and give each number once"),
    (f"{ABLATION} --out h.txt", "ertacache: h.txt is a file; name a folder"),
    (f"{ABLATION} --prompts p.txt", "ertacache: 4 prompt(s) are calibrated and measured on, such as 'a large green"),
    (
        f"{COMPARE} --match-cost half",
        "ertacache: --match-cost is 'half'; give shares of the uncached run separated by commas",
    ),
    (
        f"{COMPARE} --match-cost nan",
        "ertacache: --match-cost is nan; choose shares of the uncached run between 0 and 1",
    ),
    (f"{COMPARE} --match-cost 0", "ertacache: --match-cost is 0; choose shares of the uncached run between 0 and 1"),
    (f"{COMPARE} --match-cost .5,.5", "ertacache: --match-cost is 0.5, 0.5; give each share once"),
    (f"{COMPARE} --seeds 0", "Error: Invalid value for '--seeds': 0; give 1 or more."),
    (f"{COMPARE} --samples -1", "Error: Invalid value for '--samples': -1; give 0 or more."),
    (f"{COMPARE} --metrics nonsense", "ertacache: 'nonsense' is no metric; choose from psnr, ssim"),
    (f"{COMPARE} --methods magic", "ertacache: no method 'magic'; there are fewer-steps"),
    (f"{COMPARE} --methods ''", "ertacache: --methods is ''; name different methods separated by commas, or all"),
    (f"{COMPARE} --out p.txt", "ertacache: p.txt is a file; name a folder"),
    (f"{COMPARE} --out /proc/x", "ertacache: cannot write the folder /proc/x ("),
    (
        "demo tiny-flx",
        "ertacache: no bundled model 'tiny-flx'; there are tiny-flux, tiny-flux-base, tiny-wan, tiny-cogvideox, "
        "tiny-open-sora, nano-flux; did you mean tiny-flux?",
    ),
    (
        "reproduce table1 --model tiny-flx",
        "ertacache: 'tiny-flx' has no settings here; choose flux.1-dev, wan2.1-1.3b, cogvideox-2b, open-sora-1.2, "
        "tiny-flux, tiny-flux-base, tiny-wan, tiny-cogvideox, tiny-open-sora; did you mean tiny-flux?",
    ),
    ("demo none", "ertacache: no bundled model 'none'; there are tiny-flux, "),
    ("demo --out h.txt", "ertacache: h.txt is a file; name a folder"),
    ("inspect none.safetensors", "ertacache: there is no profile at 'none.safetensors'"),
    ("inspect h.txt --picture /proc/x.png", "ertacache: cannot write the picture /proc/x.png ("),
    ("reproduce table9", "ertacache: 'table9' is nothing that can be reproduced; choose table1, "),
    ("reproduce table1 --count 0", "Error: Invalid value for '--count': 0; give 1 or more."),
    ("reproduce table1 --seeds 0", "Error: Invalid value for '--seeds': 0; give 1 or more."),
    ("reproduce table1 --samples -1", "Error: Invalid value for '--samples': -1; give 0 or more."),
    ("reproduce table1 --batch-size 0", "Error: Invalid value for '--batch-size': 0; give 1 or more."),
    (
        "reproduce figure2 --num-inference-steps 0",
        "Error: Invalid value for '--num-inference-steps': 0; give 1 or more.",
    ),
    (
        "reproduce figure6 --num-inference-steps 2",
        "ertacache: --num-inference-steps is 2, of which 2 would be computed: nothing is left to predict; take more",
    ),
    ("reproduce figure4 --samples 0", "ertacache: --samples is 0, and figure4 shows pictures; keep 1 or more"),
    ("reproduce table1 --out h.txt", "ertacache: h.txt is a file; name a folder"),
    (
        "reproduce table1 --device cuda",
        "ertacache: --device is 'cuda', and this machine has no cuda that torch can use; use cpu",
    ),
    ("vbench run m --out m", "ertacache: m is a folder; name a file for the JSON file"),
    ("vbench setup --folder /proc/x", "ertacache: cannot write the folder /proc/x ("),
]


@pytest.mark.parametrize(("command", "message"), REFUSALS, ids=[command for command, _ in REFUSALS])
def test_it_is_refused_before_a_model_is_loaded(command: str, message: str, folder: Path, monkeypatch, capsys):
    import shlex

    before = sorted(folder.rglob("*"))
    said = fails(monkeypatch, capsys, *shlex.split(command)).splitlines()
    # Some releases of typer say of which kind an error is.
    assert said[-1].replace("Value error, ", "").startswith(message)
    assert len([line for line in said if "ertacache: " in line]) == message.startswith("ertacache")
    assert [path for path in sorted(folder.rglob("*")) if path.is_file()] == [path for path in before if path.is_file()]


@pytest.mark.parametrize("command", [ABLATION, COMPARE, "demo", "reproduce table1"])
def test_a_folder_that_is_in_use_is_refused(command: str, folder: Path, monkeypatch, capsys):
    with locked(folder / "out"):
        said = fails(monkeypatch, capsys, *command.split(), "--out", "out")
    assert re.search(rf"^ertacache: out is in use by process {os.getpid()} on \S+ since 20\S+ \S+; wait until", said)


def test_what_the_system_refuses_is_one_line_and_an_interruption_130(folder: Path, monkeypatch, capsys):
    def broken(*given: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "weights.safetensors")

    monkeypatch.setattr(ertacache.cli.model, "load", broken)
    assert fails(monkeypatch, capsys, *DRAW.split()) == "ertacache: weights.safetensors: Input/output error\n"

    class OutOfMemoryError(RuntimeError):
        pass

    def full(*given: Any) -> None:
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ertacache.cli.model, "load", full)
    assert "ertacache: out of memory; use --offload" in fails(monkeypatch, capsys, *DRAW.split())

    def too_many(*given: Any) -> None:
        torch.empty(2**48)

    monkeypatch.setattr(ertacache.cli.model, "load", too_many)
    assert "ertacache: out of memory; use --offload" in fails(monkeypatch, capsys, *DRAW.split())

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ertacache.cli.model, "load", interrupted)
    assert fails(monkeypatch, capsys, *DRAW.split(), code=130) == "ertacache: interrupted\n"


def test_an_error_that_nobody_expected_is_not_hidden(folder: Path, monkeypatch, capsys):
    def wrong(*given: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ertacache.cli.model, "load", wrong)
    with pytest.raises(RuntimeError, match="a bug"):
        fails(monkeypatch, capsys, *DRAW.split())
