"""Messages of the library in the words of the command line: `compute_steps=K` is `--compute-steps K` there."""

import re
from collections.abc import Iterable

_VALUE = r"(?:'[^']*'|\[[^\]]*\]|[^\s,;:()]+)"

#: How a value that was given begins in a message: as a path does not, which may have any name.
_SHOWN = r"(?:['\"\[\d.+-]|nan\b|inf\b|None\b)"


def in_options(message: str, options: Iterable[str]) -> str:
    """The message with every argument of Python that is an option here under the option's name.

    An argument is recognised where only an argument can be meant: before `=`, at the beginning before `is` and a value,
    and, where its name has an underscore, as a word of its own. Paths, quoted text and lists of a pipeline's own
    arguments stay as they are.

    Args:
        options: long options such as "--compute-steps".
    """
    names = {option.removeprefix("--").replace("-", "_"): option for option in options}
    any_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    lone = "|".join(sorted((re.escape(name) for name in names if "_" in name), key=len, reverse=True)) or "(?!)"
    pattern = re.compile(
        rf"(?P<start>\A)(?P<first>{any_name})(?= is {_SHOWN})"
        rf"|(?<![\w/.'\"-])(?P<given>{any_name})=(?P<value>{_VALUE})"
        rf"|(?<![\w/.'\"-])(?<!, )(?P<word>{lone})(?![\w/.,'\"=-])"
    )

    def option(found: re.Match[str]) -> str:
        if found["given"]:
            value = found["value"]
            bare = value[1:-1] if value[0] == value[-1] == "'" else value
            return names[found["given"]] if value == "True" else f"{names[found['given']]} {bare}"
        return names[found["first"] or found["word"]]

    return pattern.sub(option, message)
