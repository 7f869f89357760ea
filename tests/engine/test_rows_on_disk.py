"""``exact`` with its rows in a file: what it says, how often the rows are read, and what is left behind."""

import dataclasses
import errno
import functools
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.support import close, expected_covariance, oracle, setting, spread
from engine.support import fitted as fitted_by
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.curvature.row_stores import RowsOnDisk
from laplace_lora.errors import MemoryLimitError, OutputError, PosteriorFileError
from laplace_lora.persistence import files
from laplace_lora.posterior import ExactPosterior
from laplace_lora.streaming import working_bytes
from tiny_models import Batch, batches, collate, random_examples, tiny_bert, tiny_llama

TRAIN, TEST = random_examples(6), random_examples(9, seed=77)
TENSORS = "posterior.safetensors"
# Batches that hold no more than the six examples, so that what is refused beforehand is what is held in the end.
fitted = functools.partial(fitted_by, size=2)


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("laplace_lora.streaming.SLAB_BYTES", 8 * 12 * 5)


def _posterior(la: LaplaceLoRA) -> ExactPosterior:
    assert isinstance(la.posterior, ExactPosterior)
    return la.posterior


def _limit(la: LaplaceLoRA, examples: float) -> int:
    """Bytes with which so many examples of three classes are predicted together."""
    shapes, rows = la.posterior.shapes, len(_posterior(la).rows)
    each = 2 * 8 * (sum(shape.size for shape in shapes) + rows)
    return working_bytes(rows, 1, max(shape.size for shape in shapes)) + int(each * examples)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_covariances_are_the_oracles(name: str, tmp_path: Path) -> None:
    model, train, test = setting(name)
    by_group, by_block = spread(oracle(name, 3, "exact").blocks, "matrix")
    la = fitted(
        model, train, structure="exact", rows_folder=str(tmp_path), prior_groups="matrix", prior_precision=by_group
    )
    assert _posterior(la).rows.on_disk
    close(la.predict(collate(test)).covariance, expected_covariance(by_block, name, 3, "exact"))
    close(la.predict_dataset(batches(test, 1)).covariance, expected_covariance(by_block, name, 3, "exact"))


@pytest.mark.filterwarnings("ignore:evidence tuning:UserWarning")
@pytest.mark.parametrize("groups", ["global", "module"])
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_everything_is_as_in_memory(build: object, groups: str, tmp_path: Path) -> None:
    model = build()  # type: ignore[operator]
    there = fitted(model, TRAIN, structure="exact", prior_groups=groups)
    here = fitted(model, TRAIN, structure="exact", prior_groups=groups, rows_folder=tmp_path)
    for method, data in (("auto", None), ("evidence", None), ("validation", batches(TEST, 2))):
        for la in (there, here):
            la.tune_prior(method, data)  # type: ignore[arg-type]
        close(here._precision, there._precision, 1e-7)
        assert math.isclose(here.log_marginal_likelihood(), there.log_marginal_likelihood(), rel_tol=1e-9)
    close(here.predict_dataset(batches(TEST, 4)).covariance, there.predict_dataset(batches(TEST, 4)).covariance, 1e-6)
    for ours, its in zip(here.sample(2, seed=3), there.sample(2, seed=3), strict=True):
        for key, value in ours.items():
            close(value, its[key], 1e-6)
    assert here.summary().splitlines()[:4] == there.summary().splitlines()[:4]


@pytest.mark.parametrize(
    ("together", "size", "streams"), [(10, 2, 1), (9, 2, 2), (9, 3, 1), (4, 2, 3), (4.9, 1, 3), (2, 3, 3), (0, 2, 5)]
)
def test_a_test_set_takes_as_many_streams_as_its_jacobians_fill_the_memory(
    together: float, size: int, streams: int, tmp_path: Path
) -> None:
    """Nine examples, of which so many fit: as many whole batches as do, and a batch that is too large alone."""
    model = tiny_bert()
    plain = fitted(model, TRAIN, structure="exact", rows_folder=tmp_path)
    expected = plain.predict_dataset(batches(TEST, size))
    limit = max(_limit(plain, together), working_bytes(12, 1, 0))
    la = fitted(model, TRAIN, structure="exact", rows_folder=tmp_path, memory_limit_bytes=limit)
    _posterior(la).grams()
    before = _posterior(la).rows.passes
    found = la.predict_dataset(batches(TEST, size))
    assert _posterior(la).rows.passes - before == streams
    for name, value in found.numpy().items():
        np.testing.assert_allclose(value, expected.numpy()[name], rtol=1e-8, atol=1e-10)


def test_one_batch_takes_one_stream_and_validation_of_a_whole_set_one(tmp_path: Path) -> None:
    la = fitted(tiny_bert(), TRAIN, structure="exact", rows_folder=tmp_path)
    rows = _posterior(la).rows
    assert rows.passes == 0
    la.predict(collate(TEST))
    assert rows.passes == 2  # the Gram matrix, and the batch
    la.predict(collate(TEST))
    assert rows.passes == 3
    la.tune_prior("validation", batches(TEST, 2))
    assert rows.passes == 4
    la.tune_prior("evidence")
    la.log_marginal_likelihood()
    la.summary()
    assert rows.passes == 5  # what evidence tuning asks of the training examples that were kept
    la.sample(4)
    assert rows.passes == 7


# --- what is left behind -------------------------------------------------------------------------------------


def test_nothing_has_a_name_in_the_folder_while_fitting_and_afterwards(tmp_path: Path) -> None:
    seen: list[int] = []

    def loader() -> Iterator[Batch]:
        for batch in batches(TRAIN, 2):
            yield batch
            seen.append(len(list(tmp_path.iterdir())))

    LaplaceLoRA(tiny_bert(), LaplaceConfig(structure="exact", rows_folder=str(tmp_path), progress=False)).fit(loader())
    assert seen == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_fit_lets_go_of_its_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[RowsOnDisk] = []
    real = RowsOnDisk.__init__

    def noted(self: RowsOnDisk, *args: object) -> None:
        real(self, *args)  # type: ignore[arg-type]
        opened.append(self)

    monkeypatch.setattr(RowsOnDisk, "__init__", noted)

    def loader() -> Iterator[Batch]:
        yield batches(TRAIN, 2)[0]
        raise KeyboardInterrupt

    la = LaplaceLoRA(tiny_bert(), LaplaceConfig(structure="exact", rows_folder=str(tmp_path), progress=False))
    with pytest.raises(KeyboardInterrupt) as caught:
        la.fit(loader())
    assert caught.tb is not None  # its frames, and what they hold, are still there
    (store,) = opened
    assert store._file.closed
    assert list(tmp_path.iterdir()) == []
    la.fit(batches(TRAIN, 2))
    assert len(_posterior(la).rows) == 12


def test_a_full_disk_is_refused_after_one_batch_and_one_that_fills_up_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    la = LaplaceLoRA(tiny_bert(), LaplaceConfig(structure="exact", rows_folder=str(tmp_path), progress=False))
    weights = sum(shape.size for shape in fitted(tiny_bert(), TRAIN, structure="exact").posterior.shapes)
    read = []

    class Loader(list[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                read.append(batch)
                yield batch

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 12 * 8 * weights - 1))
        with pytest.raises(OutputError, match=rf"writes {12 * 8 * weights} bytes of rows"):
            la.fit(Loader(batches(TRAIN, 2)))
    assert len(read) == 1
    calls = []

    def full(self: RowsOnDisk, position: int, rows: torch.Tensor) -> None:
        calls.append(position)
        if len(calls) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RowsOnDisk, "_write", full)
    with pytest.raises(
        OutputError, match=r"No space left on device\); nothing was left there\..*fewer examples\.$"
    ) as caught:
        la.fit(batches(TRAIN, 2))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_limit_is_that_of_gram_matrices(tmp_path: Path) -> None:
    shapes = fitted(tiny_bert(), TRAIN, structure="exact").posterior.shapes
    needed = working_bytes(12, 1, max(shape.size for shape in shapes))
    settings = {"structure": "exact", "rows_folder": tmp_path}
    fitted(tiny_bert(), TRAIN, memory_limit_bytes=needed, **settings)
    with pytest.raises(MemoryLimitError, match=rf"needs {needed} bytes for 12 rows"):
        fitted(tiny_bert(), TRAIN, memory_limit_bytes=needed - 1, **settings)


def test_rows_in_bfloat16_warn_where_they_are_too_coarse(tmp_path: Path) -> None:
    model = tiny_bert(dtype=torch.float32)
    settings = {"structure": "exact", "rows_folder": tmp_path, "rows_dtype": "bfloat16"}
    with pytest.warns(
        UserWarning, match=r"^rows are kept in bfloat16, .* err by up to about .* %; fit with rows_dtype"
    ):
        fitted(model, TRAIN, prior_precision=1e-9, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="rows are kept")
        la = fitted(model, TRAIN, prior_precision=1e3, **settings)
    exact = fitted(model, TRAIN, prior_precision=1e3, structure="exact")
    assert 2 * la.posterior.nbytes == exact.posterior.nbytes
    close(la.predict(collate(TEST)).covariance, exact.predict(collate(TEST)).covariance, 1e-2)


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_saved_posterior_stays_in_its_file_where_it_exceeds_the_memory_limit(dtype: str, tmp_path: Path) -> None:
    model, folder = tiny_bert(), tmp_path / "saved"
    plain = fitted(model, TRAIN, structure="exact")
    limit = _limit(plain, 2)
    la = fitted(model, TRAIN, structure="exact", rows_folder=tmp_path, rows_dtype=dtype, memory_limit_bytes=limit)
    la.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == [TENSORS, "posterior_config.json"]
    assert str(tmp_path) not in (folder / "posterior_config.json").read_text()
    again = LaplaceLoRA.from_pretrained(model, folder)
    assert again.config == dataclasses.replace(la.config, rows_folder=None)
    size = (folder / TENSORS).stat().st_size
    assert _posterior(again).rows.on_disk == (size > limit)
    assert size > limit or dtype != "auto"
    ours, its = la.predict_dataset(batches(TEST, 2)), again.predict_dataset(batches(TEST, 2))
    assert torch.equal(ours.covariance, its.covariance)
    assert la.log_marginal_likelihood() == again.log_marginal_likelihood()
    # Saved anew into the same folder, while its own file is mapped.
    again.save_pretrained(folder)
    third = LaplaceLoRA.from_pretrained(model, folder)
    assert torch.equal(third.predict(collate(TEST)).covariance, again.predict(collate(TEST)).covariance)
    stored = load_file(folder / TENSORS)
    assert all(torch.equal(stored[name], tensor) for name, tensor in la.posterior.tensors().items())


def test_below_the_limit_it_is_read_into_memory(tmp_path: Path) -> None:
    model = tiny_bert()
    fitted(model, TRAIN, structure="exact", rows_folder=tmp_path).save_pretrained(tmp_path / "saved")
    again = LaplaceLoRA.from_pretrained(model, tmp_path / "saved")
    assert not _posterior(again).rows.on_disk


def _damaged(folder: Path, change: object) -> None:
    """Change a saved file and make its checksums fit."""
    document = json.loads((folder / "posterior_config.json").read_text())
    tensors = load_file(folder / TENSORS)
    change(document, tensors)  # type: ignore[operator]
    save_file(tensors, folder / TENSORS)
    document["tensors_sha256"] = files.file_digest(folder / TENSORS)
    document.pop("config_sha256")
    document["config_sha256"] = files._document_digest(document)
    (folder / "posterior_config.json").write_text(json.dumps(document))


def _nan(document: dict, tensors: dict) -> None:
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[-1] = float("nan")


def _infinite(document: dict, tensors: dict) -> None:
    next(tensor for tensor in tensors.values() if tensor.is_floating_point()).view(-1)[0] = -float("inf")


def _elsewhere(document: dict, tensors: dict) -> None:
    document["config"]["rows_folder"] = "/somewhere"


def _whole_numbers(document: dict, tensors: dict) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = tensors[name].to(torch.int8)


def _shorter(document: dict, tensors: dict) -> None:
    name = [name for name, tensor in tensors.items() if tensor.is_floating_point()][-1]
    tensors[name] = tensors[name][:-1].contiguous()


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("change", [_nan, _infinite, _elsewhere, _whole_numbers, _shorter])
def test_files_that_were_made_to_fit_are_refused(change: object, limited: bool, tmp_path: Path) -> None:
    model, folder = tiny_bert(), tmp_path / "saved"
    plain = fitted(model, TRAIN, structure="exact", rows_folder=tmp_path)
    limit = {"memory_limit_bytes": _limit(plain, 0)} if limited else {}
    fitted(model, TRAIN, structure="exact", rows_folder=tmp_path, **limit).save_pretrained(folder)
    _damaged(folder, change)
    with pytest.raises(PosteriorFileError, match=r"fit and save the posterior again\.$"):
        LaplaceLoRA.from_pretrained(model, folder)
