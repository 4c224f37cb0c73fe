"""Terminal output as plain text for a file."""

import io

from rich.console import Console, RenderableType


def plain_text(content: RenderableType, width: int) -> str:
    """Return what a terminal of `width` columns shows, without colours and blank edges.

    Args:
        content: what is shown.
        width: columns.
    """
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(content)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"
