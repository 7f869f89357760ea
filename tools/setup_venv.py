"""Make ``.venv`` hold what pyproject.toml and constraints.txt say, whatever state it is in.

``.venv/.stamp`` marks a complete environment and says how it was made. Without it the environment is a half-made
one and is made anew; older than pyproject.toml or constraints.txt, it is brought up to date; made by another
interpreter or with other pip arguments than those now asked for, it is made anew as well.
Runs under the interpreter that the environment is to have. Standard library only.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import preflight

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "constraints.txt")
# Variables that would send packages or imports elsewhere than into the environment.
FOREIGN = (
    "PIP_CONSTRAINT",
    "PIP_PREFIX",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "PYTHONHOME",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)
UPDATE_BYTES = 2 * preflight.GB


class SetupError(Exception):
    """The set-up stopped; the message is one line and ends with the remedy."""


def made_by() -> str:
    """Name the interpreter that an environment made now would stand on.

    Returns:
        Its version and the folder of its installation (not of a virtual environment around it).
    """
    return f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} {sys.base_prefix}"


def base_executable() -> str:
    """Find the interpreter itself, which stays when the environment it may run in is removed.

    Returns:
        Its path.
    """
    return getattr(sys, "_base_executable", None) or sys.executable


def environment_python(venv: Path) -> Path:
    """Find an environment's interpreter.

    Args:
        venv: The environment's folder.

    Returns:
        The path it has, present or not.
    """
    return venv / "bin" / "python"


def decide(root: Path, python_asked_for: bool, pip_args: str) -> tuple[str, str]:
    """Say what the environment needs.

    Args:
        root: The checkout.
        python_asked_for: Whether this interpreter was named by the user, not just found.
        pip_args: Extra pip arguments that the user gave; empty means no opinion.

    Returns:
        ``"keep"``, ``"update"`` or ``"rebuild"``, and the reason.
    """
    venv = root / ".venv"
    stamp = venv / ".stamp"
    if not venv.exists():
        return "rebuild", "there is no .venv yet"
    try:
        made = json.loads(stamp.read_text(encoding="utf-8"))
        stamp_time = stamp.stat().st_mtime
        interpreter, arguments = made["interpreter"], made["pip_args"]
    except (OSError, ValueError, KeyError, TypeError):
        return "rebuild", ".venv was never completed"
    if not os.access(environment_python(venv), os.X_OK):
        return "rebuild", "the interpreter of .venv is gone"
    if made.get("root") != str(root):
        return "rebuild", "the checkout was moved"
    if python_asked_for and interpreter != made_by():
        return "rebuild", f".venv was made by Python {interpreter.split()[0]}, another one is asked for"
    if pip_args and pip_args != arguments:
        return "rebuild", "PIP_ARGS changed"
    if any((root / name).stat().st_mtime >= stamp_time for name in INPUTS):
        return "update", "pyproject.toml or constraints.txt changed"
    return "keep", "complete"


def requirements(root: Path) -> list[str]:
    """List what the package needs to be built, used in full and tested.

    Args:
        root: The checkout.

    Returns:
        Requirements: of the build, of the package and of all its extras.
    """
    with open(root / "pyproject.toml", "rb") as file:
        metadata = tomllib.load(file)
    needs = [*metadata["build-system"]["requires"], "editables", *metadata["project"]["dependencies"]]
    for extra in metadata["project"]["optional-dependencies"].values():
        needs.extend(extra)
    return sorted(set(needs))


def folder_bytes(folder: Path) -> int:
    """Measure a folder.

    Args:
        folder: The folder, which may be absent.

    Returns:
        The bytes its files take.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(parent, name)).st_size
    return total


def run(command: list[str], root: Path, failure: str) -> None:
    """Run one step of the set-up.

    Args:
        command: The command and its arguments.
        root: The checkout, where it runs.
        failure: What to say if it fails, ending with the remedy.

    Raises:
        SetupError: The step failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    if subprocess.run(command, cwd=root, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
        raise SetupError(failure)


def install(root: Path, pip_args: str) -> None:
    """Install everything at the pinned versions, then the package itself as a link to ``src``.

    The package comes second and without build isolation, so that its build tool is the pinned one too.

    Args:
        root: The checkout.
        pip_args: Extra pip arguments, as a shell would split them.
    """
    extra = shlex.split(pip_args)
    pip = [str(environment_python(root / ".venv")), "-m", "pip", "install"]
    if not sys.stdout.isatty():
        pip.append("--quiet")
    failure = (
        "pip could not install the pinned versions (see its message above); run the same command again once the "
        "package index answers, or choose another with PIP_ARGS='--index-url ...'"
    )
    run([*pip, "-c", "constraints.txt", *extra, *requirements(root)], root, failure)
    failure = "pip could not install the package itself; mend what its message above names, then run make again"
    run([*pip, "--no-deps", "--no-build-isolation", "--no-index", "-e", "."], root, failure)


def set_up(root: Path, python_asked_for: bool, pip_args: str) -> None:
    """Bring ``.venv`` to the state asked for, doing nothing where it has it.

    Args:
        root: The checkout.
        python_asked_for: Whether this interpreter was named by the user.
        pip_args: Extra pip arguments that the user gave.
    """
    started = time.time()
    action, reason = decide(root, python_asked_for, pip_args)
    if action == "keep":
        return
    venv = root / ".venv"
    stamp = venv / ".stamp"
    if action == "rebuild":
        made = {"interpreter": made_by(), "pip_args": pip_args, "root": str(root)}
        preflight.check_venv()
        note = preflight.check_disk(str(root), reclaimed=folder_bytes(venv))
        print(f"set-up: making .venv with Python {made_by()}: {reason}; this takes minutes", flush=True)
    else:
        made = json.loads(stamp.read_text(encoding="utf-8"))
        note = preflight.check_disk(str(root), needed=UPDATE_BYTES)
        print(f"set-up: bringing .venv up to date: {reason}", flush=True)
    if note:
        print(f"set-up: {note}", flush=True)
    # From here until the last line the environment counts as half-made.
    stamp.unlink(missing_ok=True)
    if action == "rebuild":
        if venv.is_symlink() or venv.is_file():
            venv.unlink()
        elif venv.exists():
            shutil.rmtree(venv)
        remedy = "mend what the message above names, or choose another interpreter: make PYTHON=python3.12 ..."
        run([base_executable(), "-m", "venv", str(venv)], root, f"python -m venv failed; {remedy}")
    install(root, made["pip_args"])
    unfinished = venv / ".stamp.new"
    unfinished.write_text(json.dumps(made) + "\n", encoding="utf-8")
    os.utime(unfinished, (started, started))  # an input edited meanwhile is newer
    os.replace(unfinished, stamp)
    print(f"set-up: done, .venv holds {folder_bytes(venv) / preflight.GB:.1f} GB", flush=True)


def main() -> int:
    """Check the interpreter, then set up.

    Returns:
        The exit status: 0 where all is well, 1 after one line that says what is not.
    """
    parser = argparse.ArgumentParser(description="Make or mend .venv.")
    parser.add_argument("--asked-for", action="store_true", help="the user named this interpreter")
    parser.add_argument("--pip-args", default="", help="extra arguments of pip install, in one string")
    options = parser.parse_args()
    try:
        preflight.check_version(sys.version_info)
        set_up(ROOT, options.asked_for, options.pip_args.strip())
    except (preflight.PreflightError, SetupError) as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; the next make starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
