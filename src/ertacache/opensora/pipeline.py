"""Text, image and video to video with Open-Sora 1.2."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from ertacache.errors import InvalidArgument
from ertacache.opensora.autoencoder import AutoencoderKLOpenSora
from ertacache.opensora.denoising import Denoising
from ertacache.opensora.frame_conditioning import FrameConditioning, Generators, check_given
from ertacache.opensora.given_frames import given_frames
from ertacache.opensora.inputs import Prompts, check_counts, check_encoder, check_noise, check_numbers, check_output
from ertacache.opensora.sizes import size_of
from ertacache.opensora.text import check_cleaning, check_scores, prepared
from ertacache.opensora.time_shift import as_given, noise_levels, time_shift
from ertacache.opensora.transformer import STDiT3Transformer3DModel

#: Frames per second that the model is told of a still image.
_IMAGE_FPS = 120.0


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        frames: [B, F, 3, H, W] in [0, 1] ("pt"), [B, F, H, W, 3] ("np"), B lists of F images ("pil"), or latents
            [B, 4, T, h, w] ("latent").
    """

    frames: Any


class OpenSoraPipeline(DiffusionPipeline):
    """Clips and images from a prompt, and clips that begin with an image or go on from a clip.

    Args:
        tokenizer, text_encoder: T5 v1.1 XXL's; None for a pipeline that is given embeddings.
        vae, transformer: Open-Sora 1.2's.
        scheduler: a plain one: the pipeline gives it the noise levels and the shift of every call.
        rounded_sizes: width, height and frames rounded to bfloat16 in what follows from them, as the reference does:
            the shift of the noise levels and the scale of positions. Else exact.

    Raises:
        InvalidArgument: a scheduler that shifts in a way of its own.

    Source: Open-Sora 1.2.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012  (diffusers' own form)
    _callback_tensor_inputs = ["latents", "prompt_embeds", "prompt_attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        tokenizer: T5Tokenizer,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKLOpenSora,
        transformer: STDiT3Transformer3DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        rounded_sizes: bool = True,
    ) -> None:
        super().__init__()
        config: Any = scheduler.config
        if not hasattr(scheduler, "set_shift") or config.get("use_dynamic_shifting"):
            raise InvalidArgument(
                f"scheduler is a {type(scheduler).__name__} that Open-Sora's shift cannot be set on; use "
                "FlowMatchEulerDiscreteScheduler()"
            )
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=transformer, scheduler=scheduler
        )
        self.register_to_config(rounded_sizes=rounded_sizes)
        self.video_processor = VideoProcessor(vae_scale_factor=vae.spatial_compression_ratio)
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False
        self._current_timestep: Tensor | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """`DiffusionPipeline.from_pretrained`; one dtype for all leaves out the text encoder, which is float32.

        To have it otherwise, give a dictionary, such as `dtype={"default": torch.bfloat16}`.
        """
        for name in ("dtype", "torch_dtype"):
            if isinstance(kwargs.get(name), torch.dtype):
                kwargs[name] = {"default": kwargs[name], "text_encoder": torch.float32}
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_published(
        cls,
        transformer: str = "hpcai-tech/OpenSora-STDiT-v3",
        vae: str = "hpcai-tech/OpenSora-VAE-v1.2",
        text_encoder: str = "DeepFloyd/t5-v1_1-xxl",
        *,
        torch_dtype: torch.dtype = torch.bfloat16,
        text_encoder_dtype: torch.dtype = torch.float32,
        rounded_sizes: bool = True,
    ) -> Self:
        """The pipeline from the repositories, or folders, in which Open-Sora 1.2 is published.

        Args:
            transformer, vae, text_encoder: Hub ids or folders, with a `config.json` and weights beside it.
            torch_dtype: of transformer and autoencoder.
            text_encoder_dtype: float32 in the reference.
            rounded_sizes: see the class.

        Raises:
            InvalidArgument: something that cannot be loaded, with the names of weights that are missing or unknown.
            MissingExtra: nothing there that reads the tokenizer.
        """
        from ertacache.opensora.published import published_parts

        parts = published_parts(transformer, vae, text_encoder, torch_dtype, text_encoder_dtype)
        return cls(**parts, scheduler=FlowMatchEulerDiscreteScheduler(), rounded_sizes=rounded_sizes)

    @property
    def guidance_scale(self) -> float:
        """w of u + w (c − u); a callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether each call of the transformer has an unconditional half."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """That of the step under way."""
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        """Whether the remaining steps are left out; a callback may set `_interrupt`."""
        return self._interrupt

    @torch.no_grad()
    def encode_prompt(
        self, prompt: str | list[str], *, aesthetic_score: float | None = 6.5, motion_score: float | None = None,
        camera_motion: str | None = None, clean_caption: bool = True, device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Embeddings [B, L, caption_channels] in the text encoder's dtype and their mask [B, L], L = model_max_length.

        Arguments as in a call.

        Raises:
            InvalidArgument: no text, or scores that are no numbers.
            MissingExtra: what cleaning needs is not there.
        """
        Prompts(prompt, None, None).check(self)
        check_encoder(self)
        check_scores(aesthetic_score=aesthetic_score, motion_score=motion_score, camera_motion=camera_motion)
        if clean_caption:
            check_cleaning()
        tokenizer, encoder = self.tokenizer, self.text_encoder
        texts = [
            prepared(text, aesthetic_score, motion_score, camera_motion, clean=clean_caption)
            for text in ([prompt] if isinstance(prompt, str) else prompt)
        ]
        tokens = tokenizer(
            texts, padding="max_length", max_length=self.transformer.config.model_max_length, truncation=True,
            return_attention_mask=True, add_special_tokens=True, return_tensors="pt",
        ).to(device or self._execution_device)  # fmt: skip
        return encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0], tokens.attention_mask

    @torch.no_grad()
    def __call__(
        self, prompt: str | list[str] | None = None, height: int | None = None, width: int | None = None,
        num_frames: int = 51, num_inference_steps: int = 30, guidance_scale: float = 7.0,
        num_videos_per_prompt: int = 1, generator: Generators = None, latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None, prompt_attention_mask: Tensor | None = None, image: Any = None,
        video: Any = None, strength: float = 0.0, resolution: str | None = None, aspect_ratio: str | None = None,
        fps: float = 24.0, aesthetic_score: float | None = 6.5, motion_score: float | None = None,
        camera_motion: str | None = None, clean_caption: bool = True, output_type: str = "pil",
        return_dict: bool = True, callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> OpenSoraPipelineOutput | tuple[Any]:  # fmt: skip
        """Generate.

        Args:
            prompt: B texts, or prompt_embeds [B, L, caption_channels] with prompt_attention_mask [B, L].
            height, width: pixels; or resolution ("144p" to "720p") and aspect_ratio (height : width): 480p and 9:16.
            num_frames: 1 for an image; `sizes.FRAMES` has those of the training. Every 17 are decoded for themselves.
            guidance_scale: w of u + w (c − u), where u is without text; up to 1 only c is computed.
            generator: one for all clips, or a list with one for each.
            latents: [B · num_videos_per_prompt, 4, T, h, w] noise in place of the generator's.
            image, video: what clips begin with, of the size of the call: one for all, or a list with one per prompt.
            strength: noise level below which the given frames are denoised with the others; 0: they stay.
            fps: frames per second that the model is told of a clip.
            aesthetic_score, motion_score, camera_motion: written behind prompts, see `text.prepared`.
            clean_caption: as the reference; needs `pip install 'ertacache[opensora]'`.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: called with pipeline, step, timestep and the tensors named in
                callback_on_step_end_tensor_inputs, of which it may return others.

        Raises:
            InvalidArgument, MissingExtra: before the work, naming the argument and what it may be.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        prompts = Prompts(prompt, prompt_embeds, prompt_attention_mask)
        prompts.check(self)
        check_counts(
            num_frames=num_frames, num_inference_steps=num_inference_steps, num_videos_per_prompt=num_videos_per_prompt
        )
        check_numbers(guidance_scale, fps, strength)
        check_output(output_type, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        size = size_of(height, width, resolution, aspect_ratio)
        batch = prompts.count * num_videos_per_prompt
        check_noise(latents, self._latent_shape(batch, num_frames, size), generator)
        given = self._given(image, video, size, num_frames, prompts.count)
        self._guidance_scale, self._interrupt, self._current_timestep = guidance_scale, False, None
        scores = {"aesthetic_score": aesthetic_score, "motion_score": motion_score, "camera_motion": camera_motion}
        embeds, mask = self._prompt_tensors(prompts, num_videos_per_prompt, clean_caption=clean_caption, **scores)
        known = None if given is None else self._encoded(given, batch, generator)
        noise = self._noise(latents, self._latent_shape(batch, num_frames, size), generator)
        conditioning = None if known is None else FrameConditioning(known, noise, strength, generator)
        start = noise if conditioning is None else conditioning.latents
        run = Denoising(start, embeds, mask, self._told(size, _IMAGE_FPS if num_frames == 1 else fps), conditioning)
        self._set_timesteps(num_inference_steps, size, num_frames)
        found = run.run(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        result = self._decoded(found, num_frames, output_type)
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=result) if return_dict else (result,)

    def _latent_shape(self, batch: int, frames: int, size: tuple[int, int]) -> tuple[int, ...]:
        ratio = self.vae.spatial_compression_ratio
        channels = self.transformer.config.in_channels
        return batch, channels, self.vae.latent_frames(frames), size[0] // ratio, size[1] // ratio

    def _given(self, image: Any, video: Any, size: tuple[int, int], frames: int, count: int) -> Tensor | None:
        """The given frames in pixels, checked; None where there are none."""
        given = given_frames(image, video, size, count)
        if given is not None:
            check_given(given.shape[2], frames, self.vae.config.micro_frame_size, self.vae.temporal_compression_ratio)
        return given

    def _prompt_tensors(self, prompts: Prompts, repeats: int, **text: Any) -> tuple[Tensor, Tensor]:
        """Embeddings [n B, L, C] and mask [n B, L] for the transformer, in its dtype, the unconditional half first."""
        device, dtype = self._execution_device, self.transformer.dtype
        if prompts.embeds is None or prompts.mask is None:
            embeds, mask = self.encode_prompt(cast(Any, prompts.texts), device=device, **text)
        else:
            embeds, mask = prompts.embeds, prompts.mask
        embeds = embeds.to(device, dtype).repeat_interleave(repeats, 0)
        mask = (mask != 0).to(device).repeat_interleave(repeats, 0)
        if not self.do_classifier_free_guidance:
            return embeds, mask
        null = self.transformer.null_caption(len(embeds))[:, : embeds.shape[1]].to(device, dtype)
        # The null caption is as long as its prompt.
        return torch.cat([null, embeds]), torch.cat([mask, mask])

    def _encoded(self, given: Tensor, batch: int, generator: Generators) -> Tensor:
        """Latents [B, 4, n, h, w] of given frames, drawn as the reference draws them."""
        frames = given.to(self._execution_device, self.vae.dtype).repeat_interleave(batch // len(given), 0)
        return self.vae.encode(frames).latent_dist.sample(generator).float()

    def _noise(self, latents: Tensor | None, shape: tuple[int, ...], generator: Generators) -> Tensor:
        """Drawn in the transformer's dtype, as the reference does, and float32 from there on."""
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, cast(Any, generator), device, self.transformer.dtype)
        return latents.to(device, torch.float32)

    def _told(self, size: tuple[int, int], fps: float) -> dict[str, Tensor]:
        rounded, device = self.config["rounded_sizes"], self._execution_device
        values = {"fps": fps, "height": size[0], "width": size[1]}
        return {name: torch.tensor([as_given(value, rounded=rounded)], device=device) for name, value in values.items()}

    def _set_timesteps(self, steps: int, size: tuple[int, int], frames: int) -> None:
        # Whatever shift its configuration has: the scheduler keeps none from call to call.
        base = self.transformer.config.input_sq_size
        self.scheduler.set_shift(time_shift(*size, frames, base=base, rounded=self.config["rounded_sizes"]))
        self.scheduler.set_timesteps(sigmas=noise_levels(steps), device=self._execution_device)
        self._num_timesteps = steps

    def _decoded(self, latents: Tensor, frames: int, output_type: str) -> Any:
        if output_type == "latent":
            return latents
        video = self.vae.decode(latents.to(self.vae.dtype), num_frames=frames, return_dict=False)[0]
        return self.video_processor.postprocess_video(video.float(), output_type)
