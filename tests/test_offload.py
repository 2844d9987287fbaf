"""Histories that wait in the host's memory: the same pictures, and buffers reused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ertacache.cli.app as cli
import ertacache.runtime.apply as ertacache
import pipelines
from cached import CHANNELS, SITES, TOKENS, fitted, latents, profile
from ertacache.baselines import profile_method
from ertacache.baselines.uniform import Uniform
from ertacache.core.history import History
from ertacache.core.offload import HostHistory
from ertacache.core.predictor import Predictor
from ertacache.core.schedule import Schedule
from ertacache.errors import InvalidArgument
from ertacache.evaluation.comparison.entrant import Entrant, from_json
from ertacache.profile.profile import Site
from ertacache.runtime.hooks import attachment_of
from ertacache.runtime.player import Player
from ertacache.runtime.run_stats import RunStats

ONE = TOKENS * CHANNELS * 4


@pytest.mark.parametrize(
    ("make", "site"), [*((profile, site) for site in SITES), (fitted, "output"), (fitted, "guided")]
)
def test_the_same_latents_bit_for_bit(flux_cfg: Any, site: Site, make: Any) -> None:
    wanted = make(flux_cfg, site)
    with ertacache.apply(flux_cfg, wanted) as stats:
        expected = latents(flux_cfg)
    with ertacache.apply(flux_cfg, wanted, offload_history="cpu") as moved:
        assert torch.equal(latents(flux_cfg), expected)
        assert torch.equal(latents(flux_cfg), expected)  # with the buffers of the first run
    assert (moved.computed, moved.predicted) == (stats.computed, stats.predicted)


def test_bytes_are_counted_where_they_are(flux_cfg: Any) -> None:
    # Outputs of both branches; of the input two, because the newest comes before the one it replaces is let go.
    for site, wanted in (("output", 2 * ONE + 2 * ONE), ("guided", 2 * ONE), ("hidden", 2 * TOKENS * 128 * 4)):
        with ertacache.apply(flux_cfg, profile(flux_cfg, site), offload_history="cpu") as stats:
            latents(flux_cfg)
        assert (stats.extra_bytes, stats.host_bytes) == (0, wanted), site
    with ertacache.apply(flux_cfg, fitted(flux_cfg, "guided"), offload_history="cpu") as stats:
        latents(flux_cfg)
    tables = 5 * (3 * 2 + 2) * CHANNELS * 4  # steps; two levels of three sources, d and b
    assert (stats.extra_bytes, stats.host_bytes) == (tables, (3 * 2 + 1) * ONE)
    with ertacache.apply(flux_cfg, profile(flux_cfg, "output")) as stats:
        latents(flux_cfg)
    assert (stats.extra_bytes, stats.host_bytes) == (3 * ONE, 0)


def test_buffers_are_allocated_once(flux_cfg: Any) -> None:
    with ertacache.apply(flux_cfg, fitted(flux_cfg, "output"), offload_history="cpu"):
        player: Any = attachment_of(flux_cfg).controller
        seen: list[set[int]] = []
        for _ in range(3):
            latents(flux_cfg)
            ((_, history),) = player._spare
            seen.append({buffer.data_ptr() for buffer in history._buffers})
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 2 * 2 + 2  # two levels of both branches; two inputs


@pytest.mark.parametrize("value", ["gpu", "disk", True, ""])
def test_another_place_is_refused(flux: Any, value: Any) -> None:
    message = rf"offload_history is {re.escape(repr(value))}; choose 'cpu', or None to keep histories on the device"
    for attach in (ertacache.enable, lambda *a, **k: ertacache.apply(*a, **k).__enter__()):
        with pytest.raises(InvalidArgument, match=message):
            attach(flux, profile(flux, "output"), offload_history=value)
    with pytest.raises(InvalidArgument, match=message):
        Player(profile(flux, "output"), RunStats(), value)
    assert attachment_of(flux) is None


def test_enable_moves_histories_as_well(flux: Any) -> None:
    stats = ertacache.enable(flux, profile(flux, "guided"), offload_history="cpu")
    latents(flux)
    ertacache.disable(flux)
    assert (stats.extra_bytes, stats.host_bytes) == (0, 2 * ONE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with call.json, prompts and a profile."""
    folder, pipe = tmp_path_factory.mktemp("model"), pipelines.flux()
    pipe.save_pretrained(folder)
    (folder / "call.json").write_text(json.dumps(pipelines.CALL))
    (folder / "prompts.txt").write_text("\n".join(pipelines.PROMPTS))
    (folder / "heldout.txt").write_text("a small red ring at the top left\n")
    profile(pipe, "guided").save(folder / "profile.safetensors")
    return folder


def invoke(*arguments: object) -> Any:
    found = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
    if found.exception is not None:
        raise found.exception
    return json.loads(found.stdout.splitlines()[-1])


def test_generate_takes_the_option(model: Path) -> None:
    profiled = ("generate", model, "--prompt", "x", "--profile", model / "profile.safetensors")
    plain = invoke(*profiled, "--out", model / "plain.png")
    moved = invoke(*profiled, "--out", model / "moved.png", "--offload-history", "cpu")
    assert (plain["extra_bytes"], plain["host_bytes"]) == (2 * ONE, 0)
    assert (moved["extra_bytes"], moved["host_bytes"]) == (0, 2 * ONE)
    assert (model / "plain.png").read_bytes() == (model / "moved.png").read_bytes()


def test_ablation_takes_the_option(model: Path, tmp_path: Path) -> None:
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt")
    out = ("--budgets", 5, "--no-full", "--out", tmp_path, "--offload-history", "cpu")
    rows = invoke("ablation", model, *files, *out)["rows"]
    assert len(rows) > 3 and max(row["extra_bytes"] for row in rows) < ONE  # a rectifier's coefficients, no history


def test_compare_takes_the_option(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Any] = []
    real = profile_method.Player

    def player(profile: Any, stats: Any, offload_history: Any, **kwargs: Any) -> Any:
        places.append(offload_history)
        return real(profile, stats, offload_history, **kwargs)

    monkeypatch.setattr(profile_method, "Player", player)
    files = ("--prompts", model / "heldout.txt", "--calibration-prompts", model / "prompts.txt", "--out", tmp_path)
    job = ("compare", "--model", model, *files, "--methods", "uniform", "--match-cost", ".5", "--metrics", "psnr")
    invoke(*job, "--offload-history", "cpu")
    assert len(places) > 1 and set(places) == {"cpu"}
    (entrant,) = [
        e for e in json.loads((tmp_path / "entrants.json").read_text())["entrants"] if e["method"] == "uniform"
    ]
    assert "offload_history" not in entrant["settings"]
    invoke(*job)  # goes on in the same folder, where it is not written how histories waited
    read = from_json(entrant, Entrant(entrant["id"], Uniform(offload_history="cpu"), 0.5), tmp_path)
    assert isinstance(read.method, Uniform) and read.method.offload_history == "cpu" and read.method.profile is not None


@pytest.mark.parametrize(
    "command", [("generate", "x", "--prompt", "x", "--profile", "y"), ("ablation", "x"), ("compare",)]
)
def test_commands_refuse_another_place_before_they_load_anything(command: tuple[str, ...]) -> None:
    refused = CliRunner().invoke(cli.app, [*command, "--offload-history", "disk"])
    assert refused.exit_code == 2 and "'disk' is not one of 'cpu'" in refused.stderr


def test_generate_without_a_profile_has_nothing_to_move() -> None:
    with pytest.raises(InvalidArgument, match="--offload-history is for a profile or a speed-up; give"):
        invoke("generate", "x", "--prompt", "x", "--offload-history", "cpu")


def test_a_host_history_is_a_history() -> None:
    """Whatever is pushed, in whatever order, comes back as from a history on the device."""
    levels = {"cond": 3, "uncond": 1, "guided": 2}
    device, host = History(levels), HostHistory(levels)
    generator = torch.Generator().manual_seed(0)
    latent, pushed = torch.randn(1, 4, generator=generator), 0
    for turn in range(40):
        source = ["cond", "uncond", "guided"][int(torch.randint(3, (), generator=generator))]
        output = torch.randn(1, 4, generator=generator)
        latent = torch.randn(1, 4, generator=generator) if turn % 3 else latent  # some are shared by several calls
        x = latent if turn % 4 else None
        kept = output.clone()
        device.push(source, kept, x)
        host.push(source, output, x)
        output.fill_(torch.nan)
        pushed += 1
        assert host.depth(source) == device.depth(source) <= levels[source]
        for name in levels:
            for ours, theirs in zip(host.outputs(name), device.outputs(name), strict=True):
                assert torch.equal(ours, theirs)
        assert (host.x is None) == (device.x is None)
        assert host.x is None or (device.x is not None and torch.equal(host.x, device.x))
    assert pushed == 40 and device.depth("cond") == 3 and device.depth("uncond") == 1


def test_an_input_that_two_calls_share_is_kept_once() -> None:
    history, x = HostHistory(1), torch.ones(1, 4)
    history.push("cond", torch.zeros(1, 4), x)
    history.push("uncond", torch.zeros(1, 4), x)
    assert history.host_nbytes == 3 * 16
    # The same latent again, at the next step: its buffer was let go and may hold something else by now.
    history.push("cond", torch.zeros(1, 4))
    history.push("uncond", torch.full((1, 4), 7.0))
    history.push("cond", torch.full((1, 4), 8.0), x)
    assert torch.equal(history.input("cond"), x)
    assert torch.equal(history.output("uncond", 0), torch.full((1, 4), 7.0))


def test_a_run_of_another_size_frees_the_buffers_of_the_last() -> None:
    history = HostHistory(2)
    for size in (4, 4):
        history.push("cond", torch.zeros(1, size), torch.zeros(1, size))
    assert history.host_nbytes == 3 * 16
    history.clear()
    assert history.host_nbytes == 3 * 16  # kept for the next run
    history.push("cond", torch.zeros(1, 8))
    assert history.host_nbytes == 32
    history.push("cond", torch.zeros(1, 8, dtype=torch.float64))
    assert history.host_nbytes == 32 + 64


def test_buffers_serve_runs_inside_and_outside_of_inference_mode() -> None:
    history = HostHistory(1)
    for inside in (True, False, True):
        with torch.inference_mode(inside):
            history.push("cond", torch.ones(1, 4), torch.ones(1, 4))
        history.clear()
    history.push("cond", torch.ones(1, 4, requires_grad=True))
    assert not history.output("cond", 0).requires_grad


def test_a_prediction_fetches_what_it_needs_and_no_more() -> None:
    fetched: list[torch.Tensor] = []

    class Watched(HostHistory):
        def _fetch(self, kept: torch.Tensor) -> torch.Tensor:
            fetched.append(kept)
            return super()._fetch(kept)

    history = Watched(3)
    for n in range(3):
        history.push("cond", torch.full((1, 4), float(n)), torch.full((1, 4), 10.0 + n))
        history.push("uncond", torch.zeros(1, 4))
    terms = Predictor.residual_reuse(Schedule.from_mask("###."), ["cond", "uncond"]).terms(3, "cond")
    assert torch.equal(terms(history, torch.full((1, 4), 20.0)), torch.full((1, 4), 2.0 + 20 - 12))
    assert [float(kept[0, 0]) for kept in fetched] == [2.0, 12.0]
