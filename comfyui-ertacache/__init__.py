"""ERTACache for ComfyUI: calibrate a step cache for the model of a workflow, and sample with it."""

from .nodes import comfy_entrypoint

#: ComfyUI serves this folder; the pages in its docs/ are the help of the nodes.
WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
