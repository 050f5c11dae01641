"""What classes say of themselves: papers, descriptions, and the meanings of their arguments."""

import inspect
import re
import sys


def read_arguments(docstring: str) -> dict[str, str]:
    """The meanings of the arguments in a docstring's `Args`, by name, each on one line."""
    meanings: dict[str, str] = {}
    _, _, section = docstring.partition("\nArgs:\n")
    name = ""
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        if entry := re.match(r" {4}(\w+): (.*)", line):
            name, meanings[entry[1]] = entry[1], entry[2]
        elif name:
            meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    return meanings


def paper(kind: type) -> str:
    """The first line of the docstring of the module that defines a decoder: method and paper."""
    return (inspect.getdoc(sys.modules[kind.__module__]) or "").partition("\n")[0].rstrip(".")


def about(kind: type) -> str:
    """What a class's docstring says of it, but for the arguments."""
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "\n\n".join(text for text in paragraphs if not text.startswith("Args:"))
