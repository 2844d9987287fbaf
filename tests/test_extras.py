"""Without an extra: its pip command, before any work; with none of them, calibrate and apply."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

import ertacache
import ertacache.ray
from entry_point import refused
from ertacache.baselines import catalogue
from ertacache.baselines.db_cache import DBCache
from ertacache.errors import MissingExtra
from ertacache.evaluation.ablation_run import AblationRun
from ertacache.extras import _NAMES, _SOURCES, present, require
from ertacache.pipelines import bundled
from ertacache.pipelines.loading import call_arguments, load_pipeline
from pipelines import CALL

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
ZOO = "install it with: pip install ertacache-zoo"
REPORT = "install it with: pip install 'ertacache[report]'"
VIDEO = "install it with: pip install 'ertacache[video]'"
CACHE_DIT = "install it with: pip install 'ertacache[cache-dit]'"
RAY = "install it with: pip install 'ertacache[ray]'"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes modules missing, and any pipeline that is loaded all the same a failure."""

    def block(*modules: str) -> None:
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    def load(*_: Any, **__: Any) -> None:
        pytest.fail("the work has begun")

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", load)
    return block


def test_nothing_is_imported_that_nothing_brings():
    sources = [path.read_text(encoding="utf-8") for path in Path(ertacache.__file__).parent.rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    tops = {name.partition(".")[0] for name in names}
    hard = {re.split("[>=]", line)[0] for line in PROJECT["dependencies"]}
    assert hard == {
        "accelerate", "diffusers", "numpy", "rich", "safetensors", "torch", "torchmetrics", "transformers", "typer",
    }  # fmt: skip
    # diffusers itself depends on the first two.
    assert tops - sys.stdlib_module_names - {"PIL", "huggingface_hub", "ertacache"} <= hard | set(_SOURCES)


@pytest.mark.parametrize("package", ["ertacache", "ertacache_zoo"])
def test_the_version_is_written_in_one_place(package: str):
    assert metadata.version(package) == import_module(package).__version__


@pytest.mark.parametrize("module", _SOURCES)
def test_each_module_comes_with_what_its_message_names(module: str, without: Any):
    # Every process that imports diffusers would import two of these, and Ray is large: they are installed elsewhere.
    assert present(module) or module in ("peft", "ray", "torchao")
    without(module)
    assert not present(module)
    name = _NAMES.get(module, module.replace("_", "-"))
    with pytest.raises(MissingExtra) as missing:
        require("the moon", module)
    assert str(missing.value) == f"the moon needs {name}; install it with: pip install {_SOURCES[module]}"
    if module != "ertacache_zoo":
        extra = _SOURCES[module].removeprefix("'ertacache[").removesuffix("]'")
        lines = PROJECT["optional-dependencies"][extra]
        assert any(re.match(rf"{name}(\[[\w,]+\])?>=", line) for line in lines)


def test_of_several_the_first_that_is_missing_is_named(without: Any):
    without("matplotlib", "imageio_ffmpeg")
    with pytest.raises(MissingExtra) as missing:
        require("the moon", "jinja2", "imageio_ffmpeg", "matplotlib", instead="or look at the sun")
    assert str(missing.value) == f"the moon needs imageio-ffmpeg; {VIDEO}, or look at the sun"


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("jinja2", ("demo",), f"the report of the demo needs jinja2; {REPORT}"),
        ("imageio_ffmpeg", ("demo", "tiny-wan"), f"the mp4 file of the demo needs imageio-ffmpeg; {VIDEO}"),
        ("jinja2", ("compare",), f"the report of a comparison needs jinja2; {REPORT}"),
        ("ray", ("calibrate", "tiny-flux", "--speedup", "2", "--ray-actors", "2"), f"--ray-actors needs ray; {RAY}"),
        ("ray", ("compare", "--ray-actors", "2"), f"--ray-actors needs ray; {RAY}"),
        ("cache_dit", ("compare", "--methods", "dbcache"), f"DBCache (cache-dit) needs cache-dit; {CACHE_DIT}"),
        ("matplotlib", ("reproduce", "figure2"), f"Figure 2 needs matplotlib; {REPORT}"),
        ("matplotlib", ("reproduce", "figure5"), f"Figure 5 needs matplotlib; {REPORT}"),
        ("ertacache_zoo", ("demo",), f"the bundled model 'tiny-flux' needs ertacache-zoo; {ZOO}"),
        ("ertacache_zoo", ("compare",), f"the bundled model 'tiny-flux' needs ertacache-zoo; {ZOO}"),
        (
            "ertacache_zoo",
            ("calibrate", "tiny-wan", "--compute-steps", "5"),
            f"the bundled model 'tiny-wan' needs ertacache-zoo; {ZOO}",
        ),
    ],
)
def test_a_command_says_so_before_it_loads_anything(
    module: str, arguments: tuple[str, ...], message: str, without: Any, monkeypatch, capsys, tmp_path: Path
):
    without(module)
    monkeypatch.chdir(tmp_path)
    assert refused(monkeypatch, capsys, *arguments) == f"ertacache: {message}\n"


def test_an_ablation_says_so_before_its_first_run(without: Any, tmp_path: Path):
    without("jinja2")
    with pytest.raises(MissingExtra) as missing:
        AblationRun(tmp_path, ["a cat"])
    assert str(missing.value) == f"the report of an ablation needs jinja2; {REPORT}"


def test_all_methods_are_compared_without_those_that_are_missing(without: Any):
    without("cache_dit")
    assert catalogue.methods("all") == catalogue.METHODS
    assert DBCache().refusal(None, CALL) == f"DBCache needs cache-dit; {CACHE_DIT}"


@pytest.mark.parametrize(
    "use",
    [
        lambda: load_pipeline("tiny-flux"),
        lambda: call_arguments("tiny-flux", {}),
        lambda: bundled.calibration_prompts(2, "tiny-flux"),
        lambda: bundled.heldout_prompts(2, "tiny-flux"),
    ],
)
def test_bundled_names_without_the_zoo(use: Any, without: Any):
    without("ertacache_zoo")
    with pytest.raises(MissingExtra) as missing:
        use()
    assert str(missing.value) == f"the bundled model 'tiny-flux' needs ertacache-zoo; {ZOO}"


@pytest.mark.parametrize("arguments", [["list"], ["check", "tiny-flux", "--captions", "3"]])
def test_the_commands_of_the_zoo_without_the_zoo(arguments: list[str]):
    code = (
        "import sys; sys.modules['ertacache_zoo'] = None; "
        f"sys.argv = ['ertacache', 'zoo', *{arguments}]; from ertacache.cli.app import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ertacache: `ertacache zoo` needs ertacache-zoo; {ZOO}\n"


@pytest.mark.parametrize(
    ("use", "name"),
    [(lambda: ertacache.ray.map(), "map"), (lambda: ertacache.ray.generate(None, "tiny-flux", "p"), "generate")],
)
def test_ray_is_asked_for_before_anything_else(use: Any, name: str, without: Any):
    without("ray")
    with pytest.raises(MissingExtra) as missing:
        use()
    assert str(missing.value) == f"ertacache.ray.{name} needs ray; install it with: pip install 'ertacache[ray]'"
