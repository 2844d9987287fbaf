"""`ertacache convert-open-sora`: the published parts of Open-Sora 1.2 as one folder of diffusers."""

from pathlib import Path
from typing import Annotated, Any

import typer


def convert_open_sora(
    transformer: Annotated[str, typer.Argument(help="Hub id or folder.")] = "hpcai-tech/OpenSora-STDiT-v3",
    vae: Annotated[str, typer.Argument(help="Hub id or folder.")] = "hpcai-tech/OpenSora-VAE-v1.2",
    text_encoder: Annotated[str, typer.Argument(help="Hub id or folder.")] = "DeepFloyd/t5-v1_1-xxl",
    out: Annotated[Path, typer.Option(help="Folder to write; --model takes it from then on.")] = Path("open-sora-1.2"),
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16, of transformer and autoencoder.")
    ] = "bfloat16",
    text_encoder_dtype: Annotated[str, typer.Option(help="The same for the text encoder.")] = "float32",
) -> dict[str, Any]:
    """Convert the published weights of Open-Sora 1.2 to a diffusers folder."""
    from ertacache.files import check_output
    from ertacache.pipelines.loading import check_placement

    kinds = [check_placement("cpu", name)[1] for name in (dtype, text_encoder_dtype)]
    check_output(out, "folder")
    from ertacache.opensora import OpenSoraPipeline

    pipe = OpenSoraPipeline.from_published(
        transformer, vae, text_encoder, torch_dtype=kinds[0], text_encoder_dtype=kinds[1]
    )
    pipe.save_pretrained(out)
    return {"folder": str(out), "text": f"Open-Sora 1.2 is in {out}"}
