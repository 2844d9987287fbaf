"""The fenced blocks of a page, and what can be checked of one that cannot run here."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: `<!-- not run: why -->` on the line before a fence keeps its block from running; `wrong_arguments` is asked instead.
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>\w+)[^\n]*\n(?P<text>.*?)^(?P=fence)$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of its first line of text, from 1.
        why: it cannot run here; None where it runs.
    """

    language: str
    text: str
    line: int
    why: str | None


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], text[: found.start("text")].count("\n") + 1, found["why"])
        for found in _BLOCK.finditer(text)
        if found["language"] == language
    ]


def compiled(page: Path, block: Block) -> Any:
    """The code of a Python block, with its place in the page for tracebacks."""
    return compile("\n" * (block.line - 1) + block.text, str(page), "exec")


def wrong_arguments(source: str, namespace: dict[str, Any]) -> list[str]:
    """Names of arguments that the functions of a block do not take, after its imports were made in `namespace`.

    A variable that `SomePipeline.from_pretrained` gave stands for that class. Arguments that `calibrate` hands on have
    to be arguments of the call of such a pipeline.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            _import(node, namespace)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = node.value.func
            if isinstance(made, ast.Attribute) and made.attr == "from_pretrained":
                namespace[ast.unparse(node.targets[0])] = _Instance(_value(made.value, namespace))
    classes = [value.of if isinstance(value, _Instance) else type(value) for value in namespace.values()]
    pipelines = [kind for kind in classes if hasattr(kind, "from_pretrained")]
    return [
        f"{ast.unparse(node.func)}({keyword.arg}=...)"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg is not None and not _takes(_value(node.func, namespace), keyword.arg, pipelines)
    ]


def _import(node: ast.stmt, namespace: dict[str, Any]) -> None:
    """What is not installed stays unknown, unless it is ours or what we stand on."""
    try:
        exec(compile(ast.Module([node], []), "imports", "exec"), namespace)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("ertacache", "ertacache_zoo", "diffusers", "torch"):
            raise


@dataclass(frozen=True)
class _Instance:
    """Something of a class that is not made."""

    of: Any


def _value(expression: ast.expr, namespace: dict[str, Any]) -> Any:
    """What a dotted name stands for; None where that is not known."""
    if isinstance(expression, ast.Name):
        return namespace.get(expression.id)
    if isinstance(expression, ast.Attribute):
        value = _value(expression.value, namespace)
        return getattr(value.of if isinstance(value, _Instance) else value, expression.attr, None)
    return None


def _takes(function: Any, name: str, pipelines: list[Any]) -> bool:
    if function is None:
        return True
    if isinstance(function, _Instance):
        function = function.of.__call__
    parameters = inspect.signature(function).parameters
    if name in parameters:
        return True
    if getattr(function, "__module__", "").startswith("ertacache.calibration"):
        return any(name in inspect.signature(pipeline.__call__).parameters for pipeline in pipelines)
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def wrong_command(words: list[str], root: Path) -> str | None:
    """What is wrong with a command of this project, or None; other programs are theirs to know."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["ertacache", *arguments]:
            return _wrong_options(arguments)
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (root / "Makefile").read_text(), re.MULTILINE)
            missing = [target for target in targets if "=" not in target and target not in known]
            return f"no make target {missing}" if missing else None
        case ["python", script, *_] if script.endswith(".py"):
            return None if (root / script).is_file() else f"no {script}"
        case ["pip", "install", *names]:
            wanted = [extra for name in names for extra in re.findall(r"^ertacache\[(.*)\]$", name)]
            known = (root / "pyproject.toml").read_text()
            missing = [e for extras in wanted for e in extras.split(",") if not re.search(rf"^{e} = \[", known, re.M)]
            return f"no extra {missing}" if missing else None
        case _:
            return None


def _wrong_options(arguments: list[str]) -> str | None:
    import typer

    from ertacache.cli.app import app

    command: Any = typer.main.get_command(app)
    try:
        while hasattr(command, "commands"):
            if not arguments or arguments[0].startswith("-"):
                return None
            if arguments[0] not in command.commands:
                return f"no command {arguments[0]!r}"
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(command.name, list(arguments))
    except Exception as error:  # of the click that typer brings along, or of the installed one
        if type(error).__name__ == "Exit":
            return None  # --help, --version
        return error.format_message() if hasattr(error, "format_message") else repr(error)
    return None
