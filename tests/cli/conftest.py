"""Folders that all tests of the command line share, and copies of them to be spoilt."""

from pathlib import Path

import pytest

from cli.folders import Folders, build, copy, run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Build everything once; tests that write take copies."""
    return build(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="session")
def fitted(folders: Folders) -> Path:
    """Return a copy of the adapter of two classes with a posterior beside it."""
    folder = copy(folders.two, folders.root / "two-fitted")
    result = run("fit", "--adapter", folder, "--data", folders.train, "--quiet")
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def adapter(folders: Folders, tmp_path: Path) -> Path:
    """Return a copy of the adapter of two classes without a posterior."""
    return copy(folders.two, tmp_path / "adapter")
