"""A posterior goes through its two files bit for bit, whole or not at all, and onto no other model."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.support import STRUCTURES, fitted
from laplace_lora import ClassLogits, InputFormat, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, Predictive
from laplace_lora.errors import NotFittedError, PosteriorFileError
from laplace_lora.persistence import files
from tiny_models import batches, collate, random_examples, tiny_bert, tiny_llama

CONFIG, TENSORS = "posterior_config.json", "posterior.safetensors"
BOTH = {CONFIG, TENSORS}
TRAIN, TEST = random_examples(6), random_examples(4, seed=77)


def _tensors(p: Predictive) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in p.numpy().items()}


def _assert_same(left: LaplaceLoRA, right: LaplaceLoRA) -> None:
    first, second = (_tensors(la.predict(collate(TEST))) for la in (left, right))
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert left.prior_precision == right.prior_precision
    assert left.log_marginal_likelihood() == right.log_marginal_likelihood()
    assert left.summary() == right.summary()
    ours, its = left.sample(1, seed=3)[0], right.sample(1, seed=3)[0]
    assert all(torch.equal(ours[name], its[name]) for name in ours)


def _save_adapter(model: peft.PeftModel, directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT cannot look the base model's name up
        model.save_pretrained(directory)


def _digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LaplaceLoRA, Path]:
    """Return a posterior and the folder that it was saved to."""
    la = fitted(tiny_bert(), TRAIN)
    la.save_pretrained(tmp_path / "posterior")
    return la, tmp_path / "posterior"


# --- there and back ------------------------------------------------------------------------------------------


def test_files_of_before_wide_factors_were_sketched_are_read_whole(tmp_path: Path) -> None:
    """They hold eigenvectors of every width and neither a rank nor tails."""
    model = tiny_bert()
    la = fitted(model, TRAIN, factor_rank=16)
    la.save_pretrained(tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    del document["config"]["factor_rank"], document["effective_parameters"], document["config_sha256"]
    del document["format_version"]
    tensors = load_file(tmp_path / TENSORS)
    assert not any(name.endswith("tail") for name in tensors)
    assert any(tensor.shape == (16, 16) for tensor in tensors.values())
    files.write_posterior(tmp_path, document, tensors)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert torch.equal(again.predict(collate(TEST)).covariance, la.predict(collate(TEST)).covariance)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_bit_for_bit(build: Callable[..., peft.PeftModel], structure: str, tmp_path: Path) -> None:
    model = build()
    la = fitted(model, TRAIN, structure=structure, prior_precision=0.3)
    la.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == BOTH
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert again.config == la.config
    _assert_same(la, again)


@pytest.mark.filterwarnings("ignore:evidence tuning:UserWarning", "ignore:the validation data:UserWarning")
@pytest.mark.parametrize("method", ["evidence", "validation"])
@pytest.mark.parametrize("groups", ["global", "module", "matrix"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_tuned_prior_comes_along(structure: str, groups: str, method: str, tmp_path: Path) -> None:
    model = tiny_bert(dtype=torch.float32)
    la = fitted(model, TRAIN, structure=structure, prior_groups=groups)
    la.tune_prior(method, batches(TEST, 4) if method == "validation" else None)
    la.save_pretrained(str(tmp_path))
    again = LaplaceLoRA.from_pretrained(model, str(tmp_path))
    _assert_same(la, again)
    assert f"tuned by {method}" in again.summary()
    # It can be tuned further, and fitted anew.
    assert again.tune_prior("evidence").prior_precision == la.tune_prior("evidence").prior_precision
    _assert_same(again.fit(batches(TRAIN, 4)), la.fit(batches(TRAIN, 4)))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_onto_a_frozen_copy_of_base_and_adapter(
    build: Callable[..., peft.PeftModel], structure: str, tmp_path: Path
) -> None:
    model = build()
    la = fitted(model, TRAIN, structure=structure)
    _save_adapter(model, tmp_path)
    before = _digests(tmp_path)
    la.save_pretrained(tmp_path)
    assert {name: digest for name, digest in _digests(tmp_path).items() if name in before} == before
    frozen = peft.PeftModel.from_pretrained(build().unload(), tmp_path).eval()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    _assert_same(la, LaplaceLoRA.from_pretrained(frozen, tmp_path))
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_input_format_comes_along(tmp_path: Path) -> None:
    model = tiny_bert()
    form = InputFormat(("bad", "fair", "gut ✓"), "Review: {text}\nAnswer:", 64, "right")
    la = LaplaceLoRA(model, LaplaceConfig(progress=False), ClassLogits(), form).fit(batches(TRAIN, 4))
    la.save_pretrained(tmp_path)
    assert LaplaceLoRA.from_pretrained(model, tmp_path).input_format == form


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_is_seen_and_kept(side: str, tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    fitted(model, TRAIN, side=side).save_pretrained(tmp_path)
    form = LaplaceLoRA.from_pretrained(model, tmp_path).input_format
    assert form == InputFormat(label_names=("no", "maybe", "yes"), padding_side=side)


def test_files_hold_plain_json_and_tensors(saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert document["format_version"] == 1
    assert document["config"]["structure"] == "kron"
    assert document["tensors_sha256"] == hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    assert set(load_file(folder / TENSORS)) == {*la.posterior.tensors(), "training_inputs"}
    # Neither file is a pickle, or an archive that could hold one, or says where it was written.
    for path in (folder / CONFIG, folder / TENSORS):
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        assert str(folder).encode() not in content


def test_saving_again_replaces_both_files(saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    other = fitted(la.model, TRAIN, structure="diag", prior_precision=5.0)
    other.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == BOTH
    _assert_same(other, LaplaceLoRA.from_pretrained(la.model, folder))


def test_saving_twice_gives_the_same_bytes(saved: tuple[LaplaceLoRA, Path], tmp_path: Path) -> None:
    la, folder = saved
    la.save_pretrained(tmp_path / "again")
    assert _digests(tmp_path / "again") == _digests(folder)


def test_nothing_is_saved_before_fit(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        LaplaceLoRA(tiny_bert(), LaplaceConfig(progress=False)).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- damaged files -------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, folder: Path) -> str:
    with pytest.raises(PosteriorFileError) as caught:
        LaplaceLoRA.from_pretrained(model, folder)
    message = str(caught.value)
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("where", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_a_flipped_byte_is_refused(name: str, where: float, saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    content = bytearray((folder / name).read_bytes())
    content[int(where * len(content))] ^= 0x01
    (folder / name).write_bytes(content)
    assert "again" in _refusal(la.model, folder)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_truncated_or_missing_file_is_refused(name: str, saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    assert name in _refusal(la.model, folder)
    (folder / name).unlink()
    assert name in _refusal(la.model, folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_format_version_is_refused(version: object, saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    document = json.loads((folder / CONFIG).read_text())
    document["format_version"] = version
    (folder / CONFIG).write_text(json.dumps(document))
    assert f"format version {version}" in _refusal(la.model, folder)


@pytest.mark.parametrize("content", ["[]", "null", '"text"', "{}", '{"format_version": 1}'])
def test_json_of_another_kind_is_refused(content: str, saved: tuple[LaplaceLoRA, Path]) -> None:
    la, folder = saved
    (folder / CONFIG).write_text(content)
    _refusal(la.model, folder)


def test_files_of_two_fits_are_refused(saved: tuple[LaplaceLoRA, Path], tmp_path: Path) -> None:
    la, folder = saved
    fitted(la.model, TRAIN[:4]).save_pretrained(tmp_path / "other")
    (folder / TENSORS).write_bytes((tmp_path / "other" / TENSORS).read_bytes())
    assert "another fit" in _refusal(la.model, folder)


def test_a_missing_folder_is_refused_without_asking_a_server(tmp_path: Path) -> None:
    for source in (tmp_path / "none", str(tmp_path / "none"), Path("no/where"), "nowhere"):
        with pytest.raises(PosteriorFileError, match=r"is not a folder; give the folder that save_pretrained wrote\.$"):
            LaplaceLoRA.from_pretrained(tiny_bert(), source)
    assert CONFIG in _refusal(tiny_bert(), tmp_path)


# --- other models --------------------------------------------------------------------------------------------


def _other_adapter() -> peft.PeftModel:
    model = tiny_bert()
    weight = next(p for name, p in model.named_parameters() if ".lora_B." in name)
    weight.data.view(-1)[-1] += 1e-6
    return model


def _other_head() -> peft.PeftModel:
    model = tiny_bert()
    next(p for name, p in model.named_parameters() if ".modules_to_save." in name).data[0, 0] += 1e-6
    return model


def _other_base() -> peft.PeftModel:
    model = tiny_bert()
    model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense").weight.data += 0.01
    return model


OTHERS: dict[str, tuple[Callable[[], peft.PeftModel], tuple[str, ...]]] = {
    "adapter weights": (_other_adapter, ("adapter weights",)),
    "head": (_other_head, ("adapter weights",)),
    "base weights": (_other_base, ("base model weights",)),
    "base dtype": (lambda: tiny_bert(dtype=torch.float32), ("base model dtype",)),
    "rank": (lambda: tiny_bert(r=4), ("query.lora_A has shape (4, 16), fitted was (3, 16)",)),
    "classes": (lambda: tiny_bert(num_labels=4), ("classifier has shape (4, 17), fitted was (3, 17)",)),
    "fewer modules": (lambda: tiny_bert(targets=["query"]), ("value.lora_A is missing here",)),
    "more modules": (lambda: tiny_bert(targets=["query", "key", "value"]), ("key.lora_A is not in the posterior",)),
    "architecture": (tiny_llama, ("is missing here", "more differences")),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_model_is_refused_with_what_differs(kind: str, saved: tuple[LaplaceLoRA, Path]) -> None:
    build, phrases = OTHERS[kind]
    message = _refusal(build(), saved[1])
    assert "fitted to another model" in message
    assert all(phrase in message for phrase in phrases), message


# --- crashes in the middle of writing ------------------------------------------------------------------------


class _Crash(RuntimeError):
    pass


def _crash_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int) -> None:
    """Let the ``call``-th call of a function fail after a real function would have begun."""
    real, calls = getattr(owner, name), []

    def failing(*args: object, **kwargs: object) -> object:
        calls.append(name)
        if len(calls) == call:
            raise _Crash(f"{name} failed")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


CRASHES = {
    "writing tensors": (files, "save_file", 1),
    "syncing tensors": (os, "fsync", 1),
    "writing the description": (Path, "write_text", 1),
    "syncing the description": (os, "fsync", 2),
    "first rename": (os, "replace", 1),
    "second rename": (os, "replace", 2),
}


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_leaves_the_old_posterior_and_no_litter(
    kind: str, saved: tuple[LaplaceLoRA, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    la, folder = saved
    before = _digests(folder)
    other = fitted(la.model, TRAIN, prior_precision=9.0, structure="diag")
    with monkeypatch.context() as patch:
        _crash_at(patch, *CRASHES[kind])
        with pytest.raises(_Crash):
            other.save_pretrained(folder)
    assert _digests(folder) == before
    _assert_same(la, LaplaceLoRA.from_pretrained(la.model, folder))


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_of_the_first_save_leaves_nothing_that_could_be_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    la = fitted(tiny_bert(), TRAIN)
    with monkeypatch.context() as patch:
        _crash_at(patch, *CRASHES[kind])
        with pytest.raises(_Crash):
            la.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LaplaceLoRAError, match="does not exist"):
        LaplaceLoRA.from_pretrained(la.model, tmp_path)


def test_files_of_before_there_were_other_readouts(tmp_path: Path) -> None:
    """They lack three entries, and are read as what they are."""
    model = tiny_bert()
    la = fitted(model, TRAIN)
    la.save_pretrained(tmp_path)
    document = json.loads((tmp_path / CONFIG).read_text())
    for name in ("readout_settings", "noise_variance", "targets", "config_sha256"):
        del document[name]
    document["config_sha256"] = files._document_digest(document)
    (tmp_path / CONFIG).write_text(json.dumps(document))
    _assert_same(LaplaceLoRA.from_pretrained(model, tmp_path), la)
