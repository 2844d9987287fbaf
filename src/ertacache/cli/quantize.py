"""`ertacache quantize`: a quantised model as a folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ertacache.cli import options as given


def quantize(
    model: given.Model,
    scheme: Annotated[
        str, typer.Option(help="w4a4, w4a8, w8a8 and so on, simulated; or torchao's int8wo, int8dq, fp8wo, int4wo, ...")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; every command takes it as a model from then on.")],
    skip: Annotated[
        list[str] | None,
        typer.Option(help="Names of layers that stay as they are, such as '*.attn.to_q'; beside norms and embedders."),
    ] = None,
    dtype: given.Dtype = None,
) -> dict[str, Any]:
    """Quantise a model's denoisers and save the pipeline."""
    from ertacache.cli.model import check, load
    from ertacache.pipelines.quantizers.layers import DEFAULT_SKIP
    from ertacache.pipelines.quantizers.saved import check_new, save_quantized
    from ertacache.pipelines.quantizers.scheme import Scheme

    kind, placement = Scheme.parse(scheme), given.Placement("cpu", dtype, "none")
    kind.check_here()
    check(model, placement)
    check_new(out)
    patterns = (*DEFAULT_SKIP, *(skip or ()))
    layers = save_quantized(load(model, placement), kind, out, model=model, skip=patterns)
    text = f"{model} as {kind} is in {out}: {layers} layers quantised"
    return {"folder": str(out), "scheme": kind.name, "skip": list(patterns), "layers": layers, "text": text}
