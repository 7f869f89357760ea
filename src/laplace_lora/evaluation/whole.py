"""One file, written whole or not at all."""

import os
import pathlib
import tempfile


def write_whole(path: str | os.PathLike[str], content: bytes) -> pathlib.Path:
    """Write a file under a temporary name beside its own, and rename it.

    Args:
        path: Where to; its folder is made where it is missing.
        content: What to write.

    Returns:
        The path.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:64]}.")
    staged = pathlib.Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        staged.chmod(0o644)  # mkstemp makes files private; these are to be passed around
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)
    return target
