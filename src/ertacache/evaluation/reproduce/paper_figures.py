"""What the paper (arXiv 2508.21091) prints in Tables 1 to 4, row by row, with what has to be known to read it."""

from collections.abc import Mapping
from dataclasses import dataclass

TABLES = ("table1", "table2", "table3", "table4")

TITLES: Mapping[str, str] = {
    "table1": "Table 1: video models",
    "table2": "Table 2: image model",
    "table3": "Table 3: ablation",
    "table4": "Table 4: memory and latency",
    "figure2": "Figure 2: predicted changes and trajectories",
    "figure3": "Figure 3: methods side by side",
    "figure4": "Figure 4: the parts of the method side by side",
    "figure5": "Figure 5: number of calibration prompts",
    "figure6": "Figure 6: cache error of single channels",
}

#: What the paper's figures show, which are pictures only.
_SHOWN: Mapping[str, str] = {
    "figure2": "Figure 2 of the paper shows (a) the relative l1 distance between cached and computed features of each "
    "step, true and as TeaCache predicts it, over prompts, and (b) trajectories with and without the adjusted "
    "timesteps. It names no model.",
    "figure3": "Figure 3 of the paper shows the first and last frames of clips of Open-Sora 1.2, CogVideoX and Wan2.1, "
    "and pictures of FLUX.1-dev: without cache, with TeaCache and with ERTACache.",
    "figure4": "Figure 4 of the paper shows what Uniform Cache, the offline policy, the adjusted timesteps and the "
    "error rectification make of the same prompts.",
    "figure5": "Figure 5 of the paper shows PSNR, SSIM and CLIP of FLUX.1-dev on 1000 captions of MS COCO 2014, "
    "calibrated on 20, 30 and 1000 prompts, and calls them stable.",
    "figure6": "Figure 6 of the paper shows the cache error of three channels of the first frame, on different models.",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a row.

    Attributes:
        title: with its unit and the better direction.
        digits: after the point.
        metric: its name in a comparison's rows; empty where it comes from times, or from nowhere.
    """

    title: str
    digits: int
    metric: str = ""


COLUMNS: Mapping[str, Column] = {
    "speedup": Column("speed-up × ↑", 2),
    "latency": Column("latency (s) ↓", 2),
    "memory": Column("memory (MiB) ↓", 0),
    "vbench": Column("VBench (%) ↑", 2),
    "clip": Column("CLIP ↑", 4, "clip_image"),
    "lpips": Column("LPIPS ↓", 4, "lpips"),
    "ssim": Column("SSIM ↑", 4, "ssim"),
    "psnr": Column("PSNR (dB) ↑", 2, "psnr"),
}

#: Notes on printed figures, by the names that rows carry. Their order is that of the marks.
NOTES: Mapping[str, str] = {
    "sign": "the code that this row came from adds input − output to the skipped blocks, the wrong sign; the method "
    "itself is better than this row",
    "wan-quoted": "the quality figures equal, digit by digit, those of ProfilingDiT's own table, whose published "
    "command runs the 14B model (TeaCache threshold 0.2) and whose uncached VBench is 75.82, not 81.30; the loss "
    "against 81.30 is not the method's",
    "wan-latency": "the latency is the 199 s of the uncached run divided by the quoted speed-up",
    "no-setting": "the paper does not state the settings; here the method runs at the one whose cost, counted in "
    "operations on calibration prompts, is nearest to 1 / the printed speed-up",
    "official": "the paper says official defaults; measured at the settings that the method's authors give for this "
    "model",
    "authors": "the paper does not state the settings, and has the rows of Open-Sora from earlier papers; measured at "
    "those that the authors of PAB (for Δ-DiT, T-GATE and PAB) and of TeaCache published for this model",
    "gated": "to drop one branch of guidance from step 12 of 30 on, as the method does, is by itself a speed-up of "
    "30 / 21 = 1.43, so this row was made without; here it is dropped",
    "pab": "which of the three published sets of ranges is meant is not said; taken for slow are 3, 5 and 7 steps of "
    "spatial, temporal and cross-attention, for fast 5, 7 and 9. The broadcast of MLPs is left out",
    "gate": "the gate b is not printed; measured with b = T/2",
    "fastercache": "published with the SAT code, a DPM++ 2M solver and dynamic guidance; its latency equals that of "
    "ERTACache-slow to the last digit",
    "clip": "not a text-image score, whose cosines are near 0.3: it can only be the cosine between the CLIP embeddings "
    "of image and uncached image; the encoder is not named",
    "flux-ssim": "an SSIM of 0.8962 is odd beside a PSNR of 20.51 dB; a later paper (GCache, arXiv 2608.13043) "
    "measured 0.7863 at 20.60 dB",
    "uniform": "not defined in the paper; measured with evenly spaced steps, the first and the last among them, at the "
    "share of steps that the speed-up of the same model in Tables 1 and 2 implies",
    "rows-equal": "equals the full method's row in Tables 1 and 2",
    "memory": "on an A800 with 40 GB; FLUX's text encoder cannot have been on the GPU: transformer, text encoders and "
    "autoencoder alone are about 32,200 MiB in 16 bits",
}


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """One row of a table.

    Attributes:
        table, model: where it stands.
        id: of the entrant that measures it, unique in its table and model.
        label: as printed.
        method: key in `ertacache.baselines.catalogue`, or "no-cache".
        speedup: printed; where the table prints none, that of the same method and model elsewhere. 1 / speedup is
            the share of computed steps, or of operations, that it implies.
        figures: by column, in the units of `COLUMNS`.
        threshold: λ, on rows of ours.
        published: name of the setting in the method's `published()` for this model that the run starts from.
        notes: names in `NOTES`.
    """

    table: str
    model: str
    id: str
    label: str
    method: str
    speedup: float
    figures: Mapping[str, float]
    threshold: float | None = None
    published: str = ""
    notes: tuple[str, ...] = ()

    @property
    def tuned(self) -> bool:
        """Whether the setting is found by the cost that the speed-up implies."""
        return "no-setting" in self.notes


def _row(
    place: str,
    row_id: str,
    label: str,
    method: str,
    figures: str,
    *notes: str,
    speedup: float = 0,
    published: str = "",
    threshold: float | None = None,
) -> PrintedRow:
    """A row from text: `figures` is "name value name value ..."."""
    table, model = place.split()
    words = figures.split()
    values = {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    implied = speedup or values.get("speedup", 1.0)
    return PrintedRow(table, model, row_id, label, method, implied, values, threshold, published, notes)


_SORA = "table1 open-sora-1.2"
_COG = "table1 cogvideox-2b"
_WAN = "table1 wan2.1-1.3b"
_FLUX = "table2 flux.1-dev"
_ABLATED_WAN, _ABLATED_FLUX = "table3 wan2.1-1.3b", "table3 flux.1-dev"
_MEMORY_FLUX, _MEMORY_SORA = "table4 flux.1-dev", "table4 open-sora-1.2"

# fmt: off
TABLE1 = (
    _row(_SORA, "no-cache", "Open-Sora 1.2 (T = 30)", "no-cache", "speedup 1 latency 44.56 vbench 79.22"),
    _row(_SORA, "delta-dit", "Δ-DiT", "delta-dit", "speedup 1.03 vbench 78.21 lpips .5692 ssim .4811 psnr 11.91",
         "sign", "authors", published="videosys"),
    _row(_SORA, "t-gate", "T-GATE", "t-gate", "speedup 1.19 vbench 77.61 lpips .3495 ssim .6760 psnr 15.50",
         "authors", "gated", published="videosys"),
    _row(_SORA, "pab-slow", "PAB-slow", "pab",
         "speedup 1.33 latency 33.40 vbench 77.64 lpips .1471 ssim .8405 psnr 24.50", "authors", "pab",
         published="3/5/7"),
    _row(_SORA, "pab-fast", "PAB-fast", "pab",
         "speedup 1.40 latency 31.85 vbench 76.95 lpips .1743 ssim .8220 psnr 23.58", "authors", "pab",
         published="5/7/9"),
    _row(_SORA, "teacache-slow", "TeaCache-slow", "teacache",
         "speedup 1.55 latency 28.78 vbench 79.28 lpips .1316 ssim .8415 psnr 23.62", "authors",
         published="slow"),
    _row(_SORA, "teacache-fast", "TeaCache-fast", "teacache",
         "speedup 2.25 latency 19.84 vbench 78.48 lpips .2511 ssim .7477 psnr 19.10", "authors",
         published="fast"),
    _row(_SORA, "ertacache-slow", "ERTACache-slow (λ = 0.1)", "ertacache",
         "speedup 1.55 latency 28.75 vbench 79.36 lpips .1006 ssim .8706 psnr 25.45", threshold=0.1),
    _row(_SORA, "ertacache-fast", "ERTACache-fast (λ = 0.18)", "ertacache",
         "speedup 2.47 latency 18.04 vbench 78.64 lpips .1659 ssim .8170 psnr 22.34", threshold=0.18),

    _row(_COG, "no-cache", "CogVideoX (T = 50)", "no-cache", "speedup 1 latency 78.48 vbench 80.18"),
    _row(_COG, "delta-dit-4", "Δ-DiT (N_c = 4, N = 2)", "delta-dit",
         "speedup 1.08 latency 72.72 vbench 79.61 lpips .3319 ssim .6612 psnr 17.93", "gate", published="N_c=4, N=2"),
    _row(_COG, "delta-dit-8", "Δ-DiT (N_c = 8, N = 2)", "delta-dit",
         "speedup 1.15 latency 68.19 vbench 79.31 lpips .3822 ssim .6277 psnr 16.69", "gate", published="N_c=8, N=2"),
    _row(_COG, "delta-dit-12", "Δ-DiT (N_c = 12, N = 2)", "delta-dit",
         "speedup 1.26 latency 62.50 vbench 79.09 lpips .4053 ssim .6126 psnr 16.15", "gate", published="N_c=12, N=2"),
    _row(_COG, "pab", "PAB", "pab",
         "speedup 1.35 latency 57.98 vbench 79.76 lpips .0860 ssim .8978 psnr 28.04", "official",
         published="videosys"),
    _row(_COG, "fastercache", "FasterCache", "fastercache",
         "speedup 1.62 latency 48.44 vbench 79.83 lpips .0766 ssim .9066 psnr 28.93", "fastercache", "official",
         published="authors"),
    _row(_COG, "teacache", "TeaCache", "teacache",
         "speedup 2.92 latency 26.88 vbench 79.00 lpips .2057 ssim .7614 psnr 20.97", "no-setting",
         published="fast"),
    _row(_COG, "ertacache-slow", "ERTACache-slow (λ = 0.08)", "ertacache",
         "speedup 1.62 latency 48.44 vbench 79.30 lpips .0368 ssim .9394 psnr 32.77", threshold=0.08),
    _row(_COG, "ertacache-fast", "ERTACache-fast (λ = 0.3)", "ertacache",
         "speedup 2.93 latency 26.78 vbench 78.79 lpips .1012 ssim .8702 psnr 26.44", threshold=0.3),

    _row(_WAN, "no-cache", "Wan2.1-1.3B (T = 50)", "no-cache", "speedup 1 latency 199 vbench 81.30"),
    _row(_WAN, "teacache", "TeaCache", "teacache",
         "speedup 2.00 latency 99.5 vbench 76.04 lpips .2913 ssim .5685 psnr 16.17",
         "wan-quoted", "wan-latency", "no-setting", published="fast"),
    _row(_WAN, "profiling-dit", "ProfilingDiT", "profiling-dit",
         "speedup 2.01 latency 99 vbench 76.15 lpips .1256 ssim .7899 psnr 22.02",
         "wan-quoted", "wan-latency", "no-setting"),
    _row(_WAN, "ertacache", "ERTACache (λ = 0.08)", "ertacache",
         "speedup 2.17 latency 91.7 vbench 80.73 lpips .1095 ssim .8200 psnr 23.77", threshold=0.08),
)

TABLE2 = (
    _row(_FLUX, "no-cache", "Flux-dev 1.0 (T = 30)", "no-cache", "speedup 1 latency 26.14"),
    _row(_FLUX, "teacache", "TeaCache", "teacache",
         "speedup 1.84 latency 14.21 clip .9065 lpips .4427 ssim .7445 psnr 16.4771", "clip", "no-setting",
         published="fast"),
    _row(_FLUX, "ertacache", "ERTACache (λ = 0.6)", "ertacache",
         "speedup 1.86 latency 14.01 clip .9534 lpips .3029 ssim .8962 psnr 20.5146", "clip", "flux-ssim",
         threshold=0.6),
)

TABLE3 = (
    _row(_ABLATED_WAN, "uniform", "Uniform Cache", "uniform", "vbench 79.35 lpips .5041 ssim .4058 psnr 13.7640",
         "uniform", speedup=2.17),
    _row(_ABLATED_WAN, "ertacache-policy", "Offline Policy", "ertacache-policy",
         "vbench 80.59 lpips .1477 ssim .7738 psnr 22.0920", speedup=2.17, threshold=0.08),
    _row(_ABLATED_WAN, "ertacache-timesteps", "+ Time Adjustment", "ertacache-timesteps",
         "vbench 80.89 lpips .1267 ssim .7988 psnr 22.9413", speedup=2.17, threshold=0.08),
    _row(_ABLATED_WAN, "ertacache", "+ Error Rectification", "ertacache",
         "vbench 80.73 lpips .1095 ssim .8200 psnr 23.7680", "rows-equal", speedup=2.17, threshold=0.08),

    _row(_ABLATED_FLUX, "uniform", "Uniform Cache", "uniform", "clip .9066 lpips .4424 ssim .7105 psnr 15.9428",
         "clip", "uniform", speedup=1.86),
    _row(_ABLATED_FLUX, "ertacache-policy", "Offline Policy", "ertacache-policy",
         "clip .9433 lpips .3469 ssim .8693 psnr 19.4069", "clip", "flux-ssim", speedup=1.86, threshold=0.6),
    _row(_ABLATED_FLUX, "ertacache-timesteps", "+ Time Adjustment", "ertacache-timesteps",
         "clip .9510 lpips .3268 ssim .8921 psnr 20.3586", "clip", "flux-ssim", speedup=1.86, threshold=0.6),
    _row(_ABLATED_FLUX, "ertacache", "+ Error Rectification", "ertacache",
         "clip .9534 lpips .3029 ssim .8962 psnr 20.5146", "clip", "flux-ssim", "rows-equal", speedup=1.86,
         threshold=0.6),
)

TABLE4 = (
    _row(_MEMORY_FLUX, "no-cache", "Baseline", "no-cache", "memory 26988 latency 26.14", "memory"),
    _row(_MEMORY_FLUX, "teacache", "TeaCache", "teacache", "memory 27056 latency 14.21", "no-setting", speedup=1.84,
         published="fast"),
    _row(_MEMORY_FLUX, "ertacache-timesteps", "ERTACache offline policy + time adjustment", "ertacache-timesteps",
         "memory 27020 latency 13.41", speedup=1.86, threshold=0.6),
    _row(_MEMORY_FLUX, "ertacache", "ERTACache offline policy + error rectification", "ertacache",
         "memory 27022 latency 14.01", speedup=1.86, threshold=0.6),

    _row(_MEMORY_SORA, "no-cache", "Baseline", "no-cache", "memory 21558 latency 44.56"),
    _row(_MEMORY_SORA, "teacache", "TeaCache", "teacache", "memory 21558 latency 19.84", "authors", speedup=2.25,
         published="fast"),
    _row(_MEMORY_SORA, "ertacache-timesteps", "ERTACache offline policy + time adjustment", "ertacache-timesteps",
         "memory 21346 latency 17.79", speedup=2.47, threshold=0.18),
    _row(_MEMORY_SORA, "ertacache", "ERTACache offline policy + error rectification", "ertacache",
         "memory 21346 latency 18.04", speedup=2.47, threshold=0.18),
)
# fmt: on


def printed_rows(table: str, model: str) -> tuple[PrintedRow, ...]:
    """The rows of one table for one of the paper's models, in order; empty where it prints none."""
    return tuple(row for row in (*TABLE1, *TABLE2, *TABLE3, *TABLE4) if (row.table, row.model) == (table, model))


def printed_figure(figure: str) -> str:
    """What the paper shows in a figure."""
    return f"{_SHOWN[figure]} Its values are in a picture only: there are none to print here."


def full_method(model: str) -> PrintedRow:
    """The paper's whole method on one of its models, the faster one where Tables 1 and 2 have two."""
    return _last("ertacache", model)


def teacache(model: str) -> PrintedRow:
    """TeaCache beside it."""
    return _last("teacache", model)


def _last(method: str, model: str) -> PrintedRow:
    return [row for row in (*TABLE2, *TABLE1) if (row.method, row.model) == (method, model)][-1]


def columns(rows: tuple[PrintedRow, ...]) -> tuple[str, ...]:
    """The columns that these rows have figures in, in the order of `COLUMNS`."""
    return tuple(name for name in COLUMNS if any(name in row.figures for row in rows))
