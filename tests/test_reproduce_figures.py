"""The printed figures and the models' settings: nothing is run."""

import json
import re
from pathlib import Path

import pytest

from ertacache.baselines import catalogue
from ertacache.errors import InvalidArgument
from ertacache.evaluation.reproduce import memory, settings
from ertacache.evaluation.reproduce.memory import check_memory, free_gib, needed
from ertacache.evaluation.reproduce.paper_figures import (
    COLUMNS,
    NOTES,
    TABLE1,
    TABLE2,
    TABLE3,
    TABLE4,
    TABLES,
    TITLES,
    columns,
    full_method,
    printed_rows,
    teacache,
)
from ertacache.evaluation.reproduce.settings import COGVIDEOX, FIGURES, FLUX, OPEN_SORA, SETTINGS, TINY, WAN, setting_of
from ertacache.pipelines.loading import DTYPES

ROWS = (*TABLE1, *TABLE2, *TABLE3, *TABLE4)
GIB = 2**30


def row(table: str, model: str, name: str):
    return next(row for row in printed_rows(table, model) if row.id == name)


@pytest.mark.parametrize(
    "table, model, name, figures",
    [
        ("table1", "open-sora-1.2", "ertacache-fast",
         {"speedup": 2.47, "latency": 18.04, "vbench": 78.64, "lpips": 0.1659, "ssim": 0.8170, "psnr": 22.34}),
        ("table1", "cogvideox-2b", "fastercache",
         {"speedup": 1.62, "latency": 48.44, "vbench": 79.83, "lpips": 0.0766, "ssim": 0.9066, "psnr": 28.93}),
        ("table1", "wan2.1-1.3b", "teacache",
         {"speedup": 2.00, "latency": 99.5, "vbench": 76.04, "lpips": 0.2913, "ssim": 0.5685, "psnr": 16.17}),
        ("table2", "flux.1-dev", "ertacache",
         {"speedup": 1.86, "latency": 14.01, "clip": 0.9534, "lpips": 0.3029, "ssim": 0.8962, "psnr": 20.5146}),
        ("table3", "wan2.1-1.3b", "uniform", {"vbench": 79.35, "lpips": 0.5041, "ssim": 0.4058, "psnr": 13.7640}),
        ("table4", "flux.1-dev", "ertacache-timesteps", {"memory": 27020, "latency": 13.41}),
        ("table4", "open-sora-1.2", "no-cache", {"memory": 21558, "latency": 44.56}),
    ],
)  # fmt: skip
def test_rows_hold_what_the_paper_prints(table: str, model: str, name: str, figures: dict[str, float]):
    assert row(table, model, name).figures == figures


def test_every_row_names_a_method_known_notes_and_a_lambda_for_ours():
    assert {row.table for row in ROWS} == set(TABLES)
    keys = [(row.table, row.model, row.id) for row in ROWS]
    assert len(set(keys)) == len(keys)
    for row in ROWS:
        assert set(row.notes) <= set(NOTES) and set(row.figures) <= set(COLUMNS)
        if row.method == "no-cache":
            assert (row.speedup, row.id) == (1, "no-cache")
            continue
        assert row.speedup > 1
        if row.published:
            setting = type(catalogue.method(row.method)).published()
            assert any(row.published in names for names in setting.values())
        if row.method.startswith("ertacache"):
            assert row.threshold is not None
        else:
            assert row.threshold is None
            # As printed, as the authors say, or tuned: exactly one of the three.
            known = row.method == "uniform" or "gate" in row.notes
            assert [known, {"official", "authors"} & set(row.notes) != set(), row.tuned].count(True) == 1
            assert row.tuned or row.method == "uniform" or row.published
    assert {note for row in ROWS for note in row.notes} == set(NOTES)


def test_printed_speedups_are_those_of_the_printed_latencies():
    for table, model in {(row.table, row.model) for row in ROWS}:
        rows = printed_rows(table, model)
        if "latency" not in rows[0].figures:
            continue
        for other in rows:
            if "latency" in other.figures:
                assert rows[0].figures["latency"] / other.figures["latency"] == pytest.approx(other.speedup, abs=0.1)


def test_the_ablation_ends_at_the_full_method_of_the_other_tables():
    for table, model in (("table1", "wan2.1-1.3b"), ("table2", "flux.1-dev")):
        full, ablated = row(table, model, "ertacache"), row("table3", model, "ertacache")
        assert ablated.speedup == full.speedup and ablated.threshold == full.threshold is not None
        for name in ("lpips", "ssim", "psnr"):
            assert ablated.figures[name] == pytest.approx(full.figures[name], abs=0.003)


def test_the_full_method_is_the_faster_one_of_tables_1_and_2():
    rows = {model: (full_method(model), teacache(model)) for model in ("flux.1-dev", "wan2.1-1.3b", "open-sora-1.2")}
    found = {model: (full.speedup, full.threshold, tea.speedup) for model, (full, tea) in rows.items()}
    assert found == {
        "flux.1-dev": (1.86, 0.6, 1.84),
        "wan2.1-1.3b": (2.17, 0.08, 2.0),
        "open-sora-1.2": (2.47, 0.18, 2.25),
    }


def test_columns_are_those_with_figures_in_their_order():
    assert columns(printed_rows("table3", "flux.1-dev")) == ("clip", "lpips", "ssim", "psnr")
    assert columns(printed_rows("table4", "flux.1-dev")) == ("latency", "memory")
    assert printed_rows("table2", "wan2.1-1.3b") == ()


def test_settings_serve_the_tables_that_the_paper_has():
    for setting in SETTINGS:
        for table, model in setting.tables.items():
            assert table in TITLES and (table in FIGURES or printed_rows(table, model))
            assert setting_of(table, setting.model) is setting
        assert set(FIGURES) <= set(setting.tables)
    assert {s.model for s in SETTINGS if "table3" in s.tables} == {
        FLUX.model, WAN.model, OPEN_SORA.model, *(s.model for s in TINY if s.model != "tiny-cogvideox"),
    }  # fmt: skip
    assert all(setting.bundled for setting in TINY)
    assert not any(setting.bundled for setting in (FLUX, WAN, COGVIDEOX, OPEN_SORA))
    assert all(setting.dtype in DTYPES for setting in SETTINGS)
    assert (FLUX.call["num_inference_steps"], WAN.call["num_inference_steps"]) == (30, 50)
    assert WAN.seeds == COGVIDEOX.seeds == OPEN_SORA.seeds == {"table1": 5}


@pytest.mark.parametrize(
    "table, model, message",
    [
        (
            "table5",
            "tiny-flux",
            r"'table5' is nothing .* choose table1, table2, table3, table4, figure2, figure3, figure4, fi",
        ),
        ("table1", "sdxl", r"'sdxl' has no settings here; choose flux.1-dev, wan2.1-1.3b"),
        ("table2", "wan2.1-1.3b", r"the paper has no table2 for wan2.1-1.3b; choose flux.1-dev, tiny-flux, tiny-flux-"),
    ],
)
def test_what_the_paper_does_not_have_is_refused(table: str, model: str, message: str):
    with pytest.raises(InvalidArgument, match=message):
        setting_of(table, model)


def test_memory_is_the_weights_of_all_parts_and_the_largest_activations():
    need = needed(FLUX, "cuda", "bfloat16")
    weights = (11901.4 + 4762.3 + 123.1 + 83.8) * 1e6 * 2 / GIB
    assert need.device == pytest.approx(weights + 3.5 + 0.1)
    assert need.host == pytest.approx(weights)
    assert [name for name, _ in need.parts][-2:] == ["activations", "caches of the methods"]
    wide = needed(FLUX, "cpu", "float32", batch_size=2)
    assert wide.device == pytest.approx(2 * weights + 4 * (3.5 + 0.1)) and wide.host == 0


def test_offloaded_parts_take_turns():
    need = needed(FLUX, "cuda", "bfloat16", offload=True)
    assert need.device == pytest.approx(11901.4e6 * 2 / GIB + 0.6 + 0.1)
    assert need.host == needed(FLUX, "cuda", "bfloat16").host
    # Wan's text encoder is larger than its transformer.
    assert needed(WAN, "cuda", "bfloat16", offload=True).parts[0][0] == "UMT5-XXL encoder"


def test_a_part_may_keep_its_own_width():
    assert dict(needed(WAN, "cuda", "bfloat16").parts)["VAE"] == pytest.approx(126.9e6 * 4 / GIB)
    sora = dict(needed(OPEN_SORA, "cuda", "bfloat16").parts)
    assert (sora["T5-XXL encoder"], sora["transformer"]) == (
        pytest.approx(4762.3e6 * 4 / GIB), pytest.approx(1208.9e6 * 2 / GIB),
    )  # fmt: skip


def test_too_little_memory_names_the_need_what_is_there_and_the_remedies(monkeypatch: pytest.MonkeyPatch):
    free = {"cuda": 24.0, "cpu": 100.0}
    monkeypatch.setattr(memory, "free_gib", lambda device: free[device])
    with pytest.raises(InvalidArgument) as refused:
        check_memory(FLUX, "cuda")
    assert re.search(
        r"flux.1-dev in bfloat16 needs about 35.0 GiB on cuda \(transformer 22.2, T5-XXL encoder 8.9, .*activations "
        r"3.5, .*\), and 24.0 GiB are free; add --offload \(22.9 GiB there, 31.4 GiB in the host\), or free memory, "
        r"or take a bundled model \(--model tiny-flux\), or see the printed figures with --show",
        str(refused.value),
    )
    check_memory(FLUX, "cuda", offload=True)
    free["cpu"] = 16.0
    with pytest.raises(InvalidArgument, match=r"31.4 GiB in the host's memory to load its weights, and 16.0 GiB"):
        check_memory(FLUX, "cuda", offload=True)
    with pytest.raises(InvalidArgument, match=r"on cpu .* 16.0 GiB are free; free memory"):
        check_memory(FLUX, "cpu")
    for setting in TINY:
        check_memory(setting, "cpu")


def test_memory_checks_refuse_what_they_cannot_tell(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InvalidArgument, match=r"cannot tell how much memory is free on mps, .* --no-memory-check"):
        check_memory(FLUX, "mps")
    with pytest.raises(InvalidArgument, match="dtype is 'int8'; choose one of float32, float16, bfloat16"):
        check_memory(FLUX, "cpu", "int8")
    with pytest.raises(InvalidArgument, match=r"--offload moves components .* leave it out on a CPU"):
        check_memory(FLUX, "cpu", offload=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="device is 'cuda:0', but torch sees no CUDA GPU; choose --device cpu"):
        check_memory(FLUX, "cuda:0")


def test_free_memory_of_the_host_is_what_the_kernel_calls_available(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {2**24} kB\nMemFree: 1 kB\nMemAvailable: {3 * 2**20} kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    assert free_gib("cpu") == 3
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr("os.sysconf_names", {"SC_AVPHYS_PAGES": 1, "SC_PAGE_SIZE": 2})
    monkeypatch.setattr("os.sysconf", {"SC_AVPHYS_PAGES": 2**18, "SC_PAGE_SIZE": 2**13}.__getitem__)
    assert free_gib("cpu") == 2
    monkeypatch.setattr("os.sysconf_names", {})
    assert free_gib("cpu") is None


def test_free_memory_of_a_gpu_is_what_cuda_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (5 * GIB, 80 * GIB))
    assert free_gib("cuda:1") == 5


def test_calls_can_be_written_as_json():
    for setting in SETTINGS:
        assert json.loads(json.dumps(dict(setting.call))) == dict(setting.call)
    assert settings.FIGURE5 == "figure5" and set(settings.PICTURES) < set(FIGURES)
