"""Decoding for others, on the wire of diffusers' `remote_decode` (Hybrid Inference, diffusers 0.42)."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Self

import torch
from fastapi import Request
from torch import Tensor

from ertacache.errors import InvalidArgument
from ertacache.profile.sealed import short
from ertacache.serving import encoded
from ertacache.serving.order import Limits, Order

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "bfloat16": torch.bfloat16}
_FORMATS = {"jpg": "jpeg", "png": "png"}


@dataclass(frozen=True)
class Decoding:
    """What the query of a request asks for.

    Attributes:
        shape, dtype: of the latents in its body. size: height and width of packed ones.
        scale, shift: what they are divided by and then moved by; None for as they are.
        output: "pil" for the file of a picture, "pt" for a tensor, "floats" for one in [0, 1].
        kind: of the file. bytes_: whether the tensor is [B, H, W, 3] uint8.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    size: tuple[int, int]
    scale: float | None
    shift: float | None
    output: str
    kind: str
    bytes_: bool

    @classmethod
    def read(cls, request: Request, pipe: Any, limits: Limits) -> Self:
        """The query of a request for this pipeline.

        Raises:
            InvalidArgument: naming the parameter.
        """
        query, vae = request.query_params, getattr(pipe, "vae", None)
        if vae is None:
            raise InvalidArgument("this server has no autoencoder; decode on the device")
        shape = tuple(int(n) for n in query.getlist("shape") if re.fullmatch(r"[1-9]\d{0,5}", n, re.ASCII))
        if len(shape) != len(query.getlist("shape")) or not 3 <= len(shape) <= 5:
            raise InvalidArgument(f"shape is {short(query.getlist('shape'))}; give the 3 to 5 sizes of the latents")
        dtype = _one(query.get("dtype", "float32"), "dtype", tuple(_DTYPES))
        output = _one(query.get("output_type", "pil"), "output_type", ("pil", "pt"))
        kind = _FORMATS[_one(query.get("image_format", "jpg"), "image_format", tuple(_FORMATS))]
        partial = _one(query.get("partial_postprocess", "False"), "partial_postprocess", ("False", "True"))
        scale, shift = (_number(query.get(name), name) for name in ("scaling_factor", "shift_factor"))
        if scale is None and query.get("do_scaling", "False") == "True":  # as its old clients ask for ours
            scale, shift = vae.config.get("scaling_factor"), vae.config.get("shift_factor")
        if output == "pil" and request.headers.get("accept") == "tensor/binary":  # the client has a processor
            output = "floats"
        if output == "pil" and (shape[0] > 1 or len(shape) == 5):
            raise InvalidArgument(f"shape is {list(shape)}, and a file holds one picture; use output_type=pt")
        sides = [_number(query.get(name), name) or 0 for name in ("height", "width")]
        size = (int(sides[0]), int(sides[1]))
        found = cls(shape, _DTYPES[dtype], size, scale, shift, output, kind, partial == "True")
        found._check_size(pipe, limits)
        return found

    @property
    def order(self) -> Order:
        """For the queue: what it takes is learnt by size."""
        return Order("", {"num_inference_steps": 1, "height": math.prod(self.shape), "width": 1})

    def latents(self, data: bytes) -> Tensor:
        """The body as a tensor.

        Raises:
            InvalidArgument: of another length, or with NaN or infinity.
        """
        length = math.prod(self.shape) * self.dtype.itemsize
        if len(data) != length:
            raise InvalidArgument(f"shape is {list(self.shape)} in {self.dtype}, {length} bytes, and {len(data)} came")
        found = torch.frombuffer(bytearray(data), dtype=self.dtype).reshape(self.shape)
        if not torch.isfinite(found).all():
            raise InvalidArgument("latents hold NaN or infinity; send those of a sound run")
        return found

    @torch.no_grad()
    def decoded(self, pipe: Any, latents: Tensor, fields: dict[str, str]) -> bytes:
        """The answer's bytes; what is said of them goes into `fields`."""
        vae = pipe.vae
        found = latents.to(pipe._execution_device)
        if found.ndim == 3:
            found = pipe._unpack_latents(found, *self.size, pipe.vae_scale_factor)
        found = found / self.scale if self.scale is not None else found
        found = found + self.shift if self.shift is not None else found
        image: Tensor = vae.decode(found.to(vae.dtype), return_dict=False)[0].cpu()
        if self.output == "pil":
            fields["Content-Type"] = f"image/{self.kind}"
            return encoded.picture((image[0].float() / 2 + 0.5).clamp(0, 1), self.kind, 95)
        if self.bytes_ or self.output == "floats":
            image = (image.float() / 2 + 0.5).clamp(0, 1)
        if self.bytes_:
            image = (image.movedim(1, -1) * 255).round().to(torch.uint8)
        fields["shape"], fields["dtype"] = json.dumps(list(image.shape)), str(image.dtype).removeprefix("torch.")
        fields["Content-Type"] = "tensor/binary"
        return image.contiguous().view(torch.uint8).numpy().tobytes()

    def _check_size(self, pipe: Any, limits: Limits) -> None:
        config, shape, batch = pipe.vae.config, self.shape, self.shape[0]
        channels = config.get("latent_channels") or config.get("z_dim")
        scale = getattr(pipe, "vae_scale_factor", None) or getattr(pipe, "vae_scale_factor_spatial", 8)
        sides, wanted = [n * scale for n in shape[-2:]], channels
        frames = shape[2] * getattr(pipe, "vae_scale_factor_temporal", 1) if len(shape) == 5 else 1
        if len(shape) == 3:
            sides, wanted = list(self.size), 4 * channels
            cells = (self.size[0] // (2 * scale)) * (self.size[1] // (2 * scale))
            if not hasattr(pipe, "_unpack_latents") or cells != shape[1]:
                raise InvalidArgument(
                    f"height, width: {list(self.size)} have {cells} packed cells and the latents {shape[1]}; give the "
                    "picture's, or latents [B, C, H, W]"
                )
        elif (len(shape) == 5) != hasattr(pipe, "vae_scale_factor_temporal"):
            raise InvalidArgument(f"shape is {list(shape)}, which is not how {type(pipe).__name__} has its latents")
        if wanted != shape[1 if len(shape) > 3 else 2]:
            raise InvalidArgument(f"shape is {list(shape)}, and this autoencoder's latents have {wanted} channels")
        if (pixels := math.prod(sides) * frames) > limits.pixels or batch > limits.images:
            raise InvalidArgument(
                f"shape is {list(shape)}: {batch} of {pixels} pixels; this server takes {limits.images} of at most "
                f"{limits.pixels}"
            )


def _one(value: str, name: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InvalidArgument(f"{name} is {short(value)}; choose one of {', '.join(known)}")
    return value


def _number(value: str | None, name: str) -> float | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,6}(\.\d{1,12})?", value, re.ASCII):
        raise InvalidArgument(f"{name} is {short(value)}; give a number such as 0.18215")
    return float(value)
