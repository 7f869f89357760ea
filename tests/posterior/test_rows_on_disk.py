"""Rows of the exact posterior in a file: against dense float64, with the number of times that they are read."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from laplace_lora import streaming
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import RowCurvature
from laplace_lora.curvature.row_stores import RowsInMemory, RowsOnDisk
from laplace_lora.errors import LaplaceLoRAError, MemoryLimitError, OutputError
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior import ExactPosterior
from laplace_lora.posterior.row_products import Rows
from posterior.cases import SHAPES, close, dense_covariance, fold, posterior_of, random_data, split

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SIZES = [shape.size for shape in SHAPES]
GROUPS = (0, 0, 1, 1, 2)
DELTAS = (0.4, 0.4, 1.0, 1.0, 2.5)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _stored(folder: Path, rows: Tensor, dtype: torch.dtype, batches: tuple[int, ...] = (5, 1, 8)) -> Rows:
    """Write (M, P) rows matrix by matrix and batch by batch, and read them back."""
    store = RowsOnDisk(str(folder), SIZES)
    for batch in rows.to(dtype).split(batches):
        for index, part in enumerate(batch.split(SIZES, dim=1)):
            store.append(index, part)
    return Rows(store.finished(), on_disk=True)


# --- the file ------------------------------------------------------------------------------------------------


@by_dtype
def test_what_is_written_is_read_and_the_file_has_no_name(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = _random(14, sum(SIZES))
    found = _stored(tmp_path, rows, dtype)
    assert list(tmp_path.iterdir()) == []
    assert all(part.dtype == dtype for part in found.tensors)
    assert torch.equal(torch.cat(found.tensors, dim=1), rows.to(dtype))


def test_the_space_is_free_as_soon_as_the_rows_are_let_go_of(tmp_path: Path) -> None:
    def held() -> list[str]:
        links = Path("/proc/self/maps").read_text().splitlines()
        return [line for line in links if str(tmp_path) in line]

    if not Path("/proc/self/maps").exists():
        pytest.skip("says what is mapped on Linux only")
    found = _stored(tmp_path, _random(14, sum(SIZES)), torch.float32)
    assert held()
    del found
    assert not held()


def test_only_what_is_written_takes_space(tmp_path: Path) -> None:
    """Regions are as long as the disk could fill."""
    store = RowsOnDisk(str(tmp_path), SIZES)
    for index, size in enumerate(SIZES):
        store.append(index, torch.ones(2, size))
    status = os.fstat(store._file.fileno())
    assert status.st_size > 1 << 20
    assert 512 * status.st_blocks < 1 << 18


def test_stores_extend_each_other(tmp_path: Path) -> None:
    rows, stores = _random(6, sum(SIZES)), []
    for part in (rows[:2], rows[2:]):
        store = RowsOnDisk(str(tmp_path), SIZES)
        for index, piece in enumerate(part.split(SIZES, dim=1)):
            store.append(index, piece)
        stores.append(store)
    stores[0].extend(stores[1])
    assert torch.equal(torch.cat(stores[0].finished(), dim=1), rows)
    assert torch.equal(torch.cat(stores[1].finished(), dim=1), rows[2:])


def test_a_folder_that_is_missing_or_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(
            OutputError, match=r"^the rows .* cannot be written in .*; nothing was left.*fewer examples\.$"
        ):
            RowsOnDisk(str(folder), SIZES)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class _Full:
    """A file on a disk with room for so many bytes; it takes a few at a time."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def seek(self, position: int) -> None:
        self.file.seek(position)

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(data[: min(self.room, 7)])
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.file.fileno()


def test_a_disk_that_fills_up_gives_one_line(tmp_path: Path) -> None:
    store = RowsOnDisk(str(tmp_path), SIZES)
    store._file = _Full(store._file, 8 * 2 * SIZES[0] + 10)
    store.append(0, torch.ones(2, SIZES[0], dtype=torch.float64))  # in pieces of seven bytes
    assert (store._mapped()[0] == 1).all()
    with pytest.raises(
        OutputError, match=r"No space left on device\); nothing was left there\. Give rows_folder"
    ) as caught:
        store.append(1, torch.ones(2, SIZES[1], dtype=torch.float64))
    assert "\n" not in str(caught.value)


def test_more_rows_than_the_disk_has_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 4 * 3 * sum(SIZES)))
    store = RowsOnDisk(str(tmp_path), SIZES)
    store.append(0, torch.ones(4, SIZES[0]))
    with pytest.raises(OutputError, match="no space left there"):
        store.append(0, torch.ones(1, SIZES[0]))


# --- products ------------------------------------------------------------------------------------------------


@by_dtype
def test_gram_matrices_from_one_pass(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = _stored(tmp_path, _random(14, sum(SIZES)), dtype)
    expected = torch.zeros(3, 14, 14, dtype=torch.float64)
    for part, group in zip(rows.tensors, GROUPS, strict=True):
        for i in range(14):
            for j in range(14):
                expected[group, i, j] += sum(a * b for a, b in zip(part[i].tolist(), part[j].tolist(), strict=True))
    close(torch.stack(rows.grams(GROUPS)), expected, 1e-14)
    assert rows.passes == 1
    slabs = list(rows.slabs())
    assert len(slabs) >= sum(-(-size // 3) for size in SIZES)
    assert all(slab.numel() <= 14 * 3 for _, _, slab in slabs)


@by_dtype
def test_products_of_many_batches_from_one_pass(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = _stored(tmp_path, _random(14, sum(SIZES)), dtype)
    flat = torch.cat(rows.tensors, dim=1).double()
    weights = torch.tensor(DELTAS, dtype=torch.float64).repeat_interleave(torch.tensor(SIZES))
    jacobians = [_random(size, 2, sum(SIZES), seed=size) for size in (1, 3, 2, 7, 4)]
    batches = [{i: list(p.unbind(1)) for i, p in enumerate(j.split(SIZES, dim=2))} for j in jacobians]
    found = rows.products(batches, DELTAS)
    assert rows.passes == 1
    for (own, cross), j in zip(found, jacobians, strict=True):
        close(own, (j / weights) @ j.mT, 1e-13)
        close(cross, (j / weights) @ flat.T, 1e-13)


@by_dtype
def test_the_posterior_is_the_dense_one_of_the_rows_as_they_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = _stored(tmp_path, _random(14, sum(SIZES)), dtype)
    posterior = ExactPosterior(SHAPES, rows.tensors, on_disk=True)
    posterior.assign_groups(GROUPS)
    precision = torch.tensor([0.4, 1.0, 2.5], dtype=torch.float64)
    flat = torch.cat(rows.tensors, dim=1).double()
    prior = torch.tensor(DELTAS, dtype=torch.float64).repeat_interleave(torch.tensor(SIZES))
    dense = flat.T @ flat + prior.diag()
    covariance = torch.linalg.inv(dense)
    close(dense_covariance(posterior, precision), covariance, 1e-12)
    sign, logdet = torch.linalg.slogdet(dense / prior)
    assert abs(posterior.log_determinant(precision) - float(sign * logdet)) < 1e-11 * float(logdet)
    passes = posterior.rows.passes
    posterior.log_determinant(2.0 * precision)
    posterior.effective_parameters(precision)
    assert posterior.rows.passes == passes  # from the Gram matrices
    posterior.sample(precision, 3, torch.Generator().manual_seed(0))
    assert posterior.rows.passes == passes + 2


def test_accumulators_end_together_in_one_pass(tmp_path: Path) -> None:
    config = LaplaceConfig(structure="exact", rows_folder=str(tmp_path))
    posterior, precision = posterior_of(config, random_data(), "shared")
    jacobians = [split(_random(size, 2, sum(SIZES), seed=size), SHAPES) for size in (3, 1, 4)]
    grid = posterior.grid()
    makers = {
        "covariance": lambda: posterior.accumulator(precision, torch.tensor([1.0, 3.0], dtype=torch.float64)),
        "spectrum": lambda: posterior.spectral_accumulator(grid),
    }
    for make in makers.values():
        waiting, alone = [], []
        for parts in jacobians:
            for target in (waiting, alone):
                target.append(make())
                for row in range(2):
                    for index, part in enumerate(parts):
                        target[-1].add(index, row, part[:, row])
        examples = sum(len(parts[0]) for parts in jacobians)
        # 8 bytes for every weight and every row of the data, for two logits of every example.
        assert sum(each.nbytes for each in waiting) == 2 * examples * 8 * (sum(SIZES) + 14)
        before = posterior.rows.passes
        together = type(waiting[0]).covariances(waiting)
        assert posterior.rows.passes == before + 1
        for found, each in zip(together, alone, strict=True):
            close(found, each.covariance(), 1e-13)


# --- memory --------------------------------------------------------------------------------------------------


def test_bytes_are_as_stated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(streaming, "SLAB_BYTES", 1 << 27)
    assert streaming.working_bytes(5000, 1, 10**6) == 8 * 5000**2 * 5 + 2 * 2**27
    assert streaming.working_bytes(10, 3, 20) == 8 * 100 * 7 + 2 * 8 * 10 * 20
    rows = _stored(tmp_path, _random(14, sum(SIZES)), torch.float32)
    posterior = ExactPosterior(SHAPES, rows.tensors, on_disk=True)
    posterior.assign_groups(GROUPS)
    working = streaming.working_bytes(14, 3, max(SIZES))
    assert posterior.shared_bytes(working + 1000) == 1000
    assert posterior.shared_bytes(working - 1) == 0
    assert ExactPosterior(SHAPES, rows.tensors).shared_bytes(1 << 40) == 0  # in memory nothing is won by waiting


def test_fold_refuses_what_memory_or_disk_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = streaming.working_bytes(30, 1, max(SIZES))
    config = LaplaceConfig(structure="exact", rows_folder=str(tmp_path), memory_limit_bytes=needed)
    RowCurvature(SHAPES, config).check_memory(2, 15)
    with pytest.raises(
        MemoryLimitError, match=r"bytes for 32 rows .*; fit fewer examples, use structure='kron', or raise"
    ):
        RowCurvature(SHAPES, config).check_memory(2, 16)
    with pytest.raises(
        MemoryLimitError, match=r"keep the rows on disk with LaplaceConfig\(rows_folder=...\), fit fewer"
    ):
        RowCurvature(SHAPES, LaplaceConfig(structure="exact", memory_limit_bytes=1)).check_memory(2, 16)
    usage = shutil._ntuple_diskusage(0, 0, 4 * 30 * sum(SIZES) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        OutputError, match=rf"writes {4 * 30 * sum(SIZES)} bytes .* has room for {usage.free}; give rows"
    ):
        RowCurvature(SHAPES, config).check_memory(2, 15)
    half = LaplaceConfig(structure="exact", rows_folder=str(tmp_path), rows_dtype="bfloat16")
    RowCurvature(SHAPES, half).check_memory(2, 15)


# --- dtypes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("given", "kept"), [("auto", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_rows_are_kept_as_they_are_asked_for(given: str, kept: torch.dtype, on_disk: bool, tmp_path: Path) -> None:
    folder = str(tmp_path) if on_disk else None
    config = LaplaceConfig(structure="exact", rows_dtype=given, rows_folder=folder)  # type: ignore[arg-type]
    curvature = fold(config, random_data())
    assert isinstance(curvature._store, RowsOnDisk if on_disk else RowsInMemory)
    (rows,) = curvature.finalise().values()
    expected = fold(LaplaceConfig(structure="exact"), random_data()).finalise()["rows"]
    assert all(torch.equal(mine, theirs.to(kept)) for mine, theirs in zip(rows, expected, strict=True))


def _wide(dtype: torch.dtype, rows: Tensor) -> ExactPosterior:
    posterior = ExactPosterior((MatrixShape("wide", "wide", 1, rows.shape[1]),), [rows.to(dtype)])
    posterior.assign_groups((0,))
    return posterior


@pytest.mark.parametrize("exponent", [-1.0, 1.0, 3.0, 4.0])
def test_what_bfloat16_does_to_variances_is_what_the_warning_says(
    exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along rows of 4,000 weights, of numbers of every mantissa: no less than half of what is said to be the most."""
    monkeypatch.setattr(streaming, "SLAB_BYTES", 1 << 22)
    rows = _random(20, 4000)
    delta = torch.tensor([float((rows[0] @ rows[0]) / 10.0**exponent)], dtype=torch.float64)
    exact, rounded = _wide(torch.float64, rows), _wide(torch.bfloat16, rows)
    variances = []
    for posterior in (exact, rounded):
        accumulator = posterior.accumulator(delta)
        accumulator.add(0, 0, rows[:, None, :])
        variances.append(accumulator.covariance()[0, :, 0, 0])
    narrowed = ((rows * rows).sum(dim=1) / delta / variances[0]).max()
    assert abs(exact.largest_narrowing(delta) / float(narrowed) - 1.0) < 1e-6
    error = float(((variances[1] - variances[0]) / variances[0]).abs().max())
    stated = 2.0**-14 / 12.0 / 2.164 * float(narrowed)
    assert error < 2.0 * stated + 2e-4
    assert exponent < 3.0 or error > 0.5 * stated
    assert (rounded.storage_warning(delta) is not None) == (stated > 0.01)
    assert exact.storage_warning(delta) is None
    if exponent == 4.0:
        assert str(rounded.storage_warning(delta)).endswith("or take a larger prior precision.")


def test_settings_that_make_no_sense() -> None:
    for settings in ({"rows_folder": "rows"}, {"rows_dtype": "bfloat16"}):
        with pytest.raises(LaplaceLoRAError, match=r"is for the rows that structure='exact' keeps.*; leave it out\.$"):
            LaplaceConfig(**settings)  # type: ignore[arg-type]
    for folder in ("", 3):
        with pytest.raises(LaplaceLoRAError, match=r"is no folder; give its path, or leave it out\.$"):
            LaplaceConfig(structure="exact", rows_folder=folder)  # type: ignore[arg-type]
    with pytest.raises(LaplaceLoRAError, match="rows_dtype='float16' is not known"):
        LaplaceConfig(structure="exact", rows_dtype="float16")  # type: ignore[arg-type]
    assert LaplaceConfig(structure="exact", rows_folder=Path("rows")).rows_folder == "rows"  # type: ignore[arg-type]
