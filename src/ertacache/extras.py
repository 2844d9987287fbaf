"""Modules that are there only where an extra, or the zoo, was installed."""

from importlib.util import find_spec

from ertacache.errors import MissingExtra

#: What pip is to install for each of them.
_SOURCES = {
    "bs4": "'ertacache[opensora]'",
    "cache_dit": "'ertacache[cache-dit]'",
    "ertacache_zoo": "ertacache-zoo",
    "fastapi": "'ertacache[serve]'",
    "ftfy": "'ertacache[opensora]'",
    "google.protobuf": "'ertacache[opensora]'",
    "imageio_ffmpeg": "'ertacache[video]'",
    "jinja2": "'ertacache[report]'",
    "matplotlib": "'ertacache[report]'",
    "peft": "'ertacache[lora]'",
    "prometheus_client": "'ertacache[serve]'",
    "ray": "'ertacache[ray]'",
    "sentencepiece": "'ertacache[opensora]'",
    "torchao": "'ertacache[torchao]'",
    "uvicorn": "'ertacache[serve]'",
}
#: What pip calls those that are imported under another name.
_NAMES = {"bs4": "beautifulsoup4", "google.protobuf": "protobuf"}


def present(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    package, _, inner = module.partition(".")
    # To look into a package is to import it; `google` is but a name that several share.
    return find_spec(package) is not None and (not inner or find_spec(module) is not None)


def require(purpose: str, *modules: str, instead: str = "") -> None:
    """Refuse work that needs modules which are not there. Called before the work starts, not where they are used.

    Args:
        purpose: what needs them, as the subject of a sentence.
        modules: names as imported.
        instead: what else can be done, after a comma.

    Raises:
        MissingExtra: with the pip command of the first that is missing.
    """
    for module in modules:
        if not present(module):
            name = _NAMES.get(module, module.replace("_", "-"))
            remedy = f"install it with: pip install {_SOURCES[module]}{instead and f', {instead}'}"
            raise MissingExtra(f"{purpose} needs {name}; {remedy}")
