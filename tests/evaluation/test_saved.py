"""Saved outputs say what every tensor holds; see also test_no_double_softmax.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from evaluation.test_no_double_softmax import LABELS, LOGITS, PROBABILITIES, outputs
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Logits, Probabilities, WrongKindError, load_outputs, metrics, save_outputs


def test_a_round_trip_keeps_kinds_and_values(tmp_path: Path) -> None:
    path = tmp_path / "outputs.safetensors"
    others = {"/data/a b.jsonl": outputs(labels=None, mutual_information={}), "arc:test": outputs(logits={})}
    save_outputs(path, outputs(), others)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    found = load_outputs(path)
    assert set(found.ood) == set(others)
    for before, after in ((outputs(), found.data), *((others[name], found.ood[name]) for name in others)):
        for kind, group in ((Logits, "logits"), (Probabilities, "probabilities")):
            assert set(getattr(after, group)) == set(getattr(before, group))
            for name, value in getattr(after, group).items():
                assert type(value) is kind
                assert np.array_equal(value.values, getattr(before, group)[name].values)
        assert (before.labels is None) == (after.labels is None)
        assert set(after.mutual_information) == set(before.mutual_information)
    assert np.array_equal(found.data.labels, LABELS)  # type: ignore[arg-type]
    with safe_open(path, framework="np") as file:
        kinds = json.loads(file.metadata()["kinds"])
        assert file.metadata()["format_version"] == "1"
        assert set(kinds) == set(file.keys())
    assert kinds["logits/map"] == "logits"
    assert kinds["probabilities/laplace"] == kinds["ood/arc:test/probabilities/map"] == "probabilities"
    assert kinds["mutual_information/laplace"] == "nats"
    assert kinds["labels"] == "labels"
    with pytest.raises(WrongKindError):
        metrics.softmax(found.data.probabilities["map"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": None}, "does not say what its tensors hold"),
        ({"kinds": "[]"}, "does not say what its tensors hold"),
        ({"kinds": "{}"}, "do not say what the tensor"),
        ({"kinds": {"logits/map": None}}, "do not say what the tensor 'logits/map' holds"),
        ({"kinds": {"logits/map": "probabilities"}}, "said to hold probabilities, which is not its name"),
        ({"kinds": {"probabilities/map": "logits"}}, "said to hold logits, which is not its name"),
        ({"kinds": {"labels": "nats"}}, "said to hold nats, which is not its name"),
        ({"format_version": "2"}, "version 1"),
        ({"format": None}, "version 1"),
    ],
)
def test_a_file_that_does_not_say_what_it_holds_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "outputs.safetensors"
    save_outputs(path, outputs())
    with safe_open(path, framework="np") as file:
        held, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for key, value in changes.items():
        if isinstance(value, dict):
            kinds = {**json.loads(metadata[key]), **value}
            metadata[key] = json.dumps({name: kind for name, kind in kinds.items() if kind is not None})
        elif value is None:
            del metadata[key]
        else:
            metadata[key] = value
    save_file(held, path, metadata=metadata)
    with pytest.raises(LaplaceLoRAError, match=message) as caught:
        load_outputs(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("evaluate again.")


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", None])
def test_what_is_no_such_file(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "outputs.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LaplaceLoRAError, match=r"cannot be read .*; evaluate again\.$"):
        load_outputs(path)


def test_outputs_refuse_what_is_of_the_wrong_kind() -> None:
    with pytest.raises(WrongKindError, match="of type Logits where Probabilities are wanted"):
        outputs(probabilities={"map": LOGITS})
    with pytest.raises(WrongKindError, match="not the softmax"):
        outputs(probabilities={"map": LOGITS.softmax(1.1)})
    with pytest.raises(LaplaceLoRAError, match="nats per row"):
        outputs(mutual_information={"laplace": PROBABILITIES})
    with pytest.raises(LaplaceLoRAError, match="slash"):
        save_outputs("/nowhere", outputs(probabilities={"a/b": PROBABILITIES}))
