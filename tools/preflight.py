"""Checks made before anything is installed: interpreter, venv and ensurepip, free disk.

Each failure is one line that ends with the remedy. Written so that any Python, however old, can parse it and
say that it is too old. Run as a script, it makes the checks that need no free disk: ``python tools/preflight.py``.
"""

from __future__ import print_function

import os
import shutil
import sys
import tempfile

OLDEST = (3, 11)
NEWEST = (3, 14)
GB = 10**9
# Measured on Linux x86_64, Python 3.11: a CPU build downloads 0.5 GB and .venv holds 1.9 GB; a CUDA build (Python
# 3.12) 3.0 GB and 5.9 GB. pip unpacks downloads under the temporary folder and keeps them in its cache, often on the
# same disk. The limits leave room for both and for caches and reports.
DISK_BYTES = 6 * GB
CUDA_DISK_BYTES = 14 * GB
TEMPORARY_BYTES = 1 * GB


class PreflightError(Exception):
    """A check that failed; the message is one line and ends with the remedy."""


def check_version(version):
    """Refuse an interpreter outside the supported range.

    Args:
        version: The interpreter's version, at least (major, minor, micro).

    Raises:
        PreflightError: The version is too old, too new, or a known bad one.
    """
    found = ".".join(str(part) for part in version[:3])
    remedy = "use Python 3.11 to 3.14: make PYTHON=python3.12 ..."
    if tuple(version[:2]) < OLDEST:
        raise PreflightError("Python %s is too old; %s" % (found, remedy))
    if tuple(version[:2]) > NEWEST:
        raise PreflightError("Python %s is newer than what the pinned versions support; %s" % (found, remedy))
    if tuple(version[:3]) == (3, 14, 1):
        raise PreflightError("Python 3.14.1 is refused by networkx, which torch needs; %s" % remedy)


def check_venv(import_module=__import__):
    """Refuse an interpreter that cannot make a virtual environment with pip in it.

    Args:
        import_module: What imports a module by its name.

    Raises:
        PreflightError: The standard library lacks venv or ensurepip.
    """
    for name in ("venv", "ensurepip"):
        try:
            import_module(name)
            missing = False
        except ImportError:
            missing = True
        if missing:
            raise PreflightError(
                "%s has no '%s' module; choose another interpreter with make PYTHON=python3.12 ..., or install it, on "
                "Debian or Ubuntu: apt install python3-venv (for a version of its own: apt install python%d.%d-venv)"
                % (sys.executable, name, sys.version_info[0], sys.version_info[1])
            )


def check_disk(folder, reclaimed=0, needed=DISK_BYTES, disk_usage=None):
    """Refuse to start an installation that would fill the disk.

    Args:
        folder: Where the environment is made.
        reclaimed: Bytes that the installation frees first, by removing an old environment.
        needed: Bytes that the installation may take.
        disk_usage: Replacement of :func:`shutil.disk_usage`, for tests.

    Returns:
        A note where a CUDA build would not fit although a CPU build does, else None.

    Raises:
        PreflightError: Too little is free in ``folder`` or in the temporary folder.
    """
    disk_usage = disk_usage or shutil.disk_usage
    free = disk_usage(folder).free + reclaimed
    if free < needed:
        raise PreflightError(
            "%.1f GB free in %s, but the set-up needs about %.0f GB; free some space there, or move the checkout "
            "to a larger disk" % (free / GB, os.path.abspath(folder), needed / GB)
        )
    temporary = tempfile.gettempdir()
    free_temporary = disk_usage(temporary).free
    if free_temporary < TEMPORARY_BYTES:
        raise PreflightError(
            "%.1f GB free in %s, where pip unpacks its downloads, but they need about %.0f GB; name a larger folder: "
            "make TMPDIR=/some/folder ..." % (free_temporary / GB, temporary, TEMPORARY_BYTES / GB)
        )
    if free < CUDA_DISK_BYTES:
        return (
            "note: %.1f GB free is enough for a CPU build of torch, not for a CUDA build (about %.0f GB); "
            "README says how to choose one with PIP_ARGS=" % (free / GB, CUDA_DISK_BYTES / GB)
        )
    return None


def main():
    """Check interpreter, venv and ensurepip.

    Returns:
        The exit status: 0 where all is well, 1 after one line that says what is not.
    """
    try:
        check_version(sys.version_info)
        check_venv()
    except PreflightError as error:
        print("set-up: " + str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
