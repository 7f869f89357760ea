"""What is saved of inputs with the training and the posterior: taken up again, or refused where it is damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.folders import TRAINING_CONFIG, Folders, copy, edit_json
from laplace_lora import load_adapter
from laplace_lora.errors import AdapterFileError


def _form(**changes: Any) -> dict[str, Any]:
    form = {"label_names": ["no", "yes"], "template": None, "max_length": 9, "padding_side": None}
    return {**form, "pair_template": None, **changes}


def test_names_from_the_training_and_from_the_base(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    base = copy(folders.bert, tmp_path / "base")
    edit_json(base / "config.json", id2label={"0": "minus", "1": "plus"}, label2id={"minus": 0, "plus": 1})
    assert load_adapter(adapter, base=base)[2] == ("minus", "plus")
    (adapter / TRAINING_CONFIG).write_text(json.dumps({"input_format": _form()}))
    assert load_adapter(adapter, base=base)[2] == ("no", "yes")
    (adapter / TRAINING_CONFIG).write_text(json.dumps({"input_format": _form(label_names=None)}))
    assert load_adapter(adapter, base=base)[2] is None  # the base's are another task's
    (adapter / TRAINING_CONFIG).write_text('{"learning_rate": 1}')  # somebody else's file
    assert load_adapter(adapter, base=base)[2] == ("minus", "plus")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "[" * 100_000, '{"input_format": 3}', '{"input_format": {}}']
    + [
        json.dumps({"input_format": _form(**change)})
        for change in (
            {"label_names": ["a", 3]},
            {"label_names": ["a", "a"]},
            {"max_length": 0},
            {"max_length": True},
            {"padding_side": "top"},
            {"template": 5},
            {"more": 1},
        )
    ],
)
def test_a_damaged_training_config(content: str, adapter: Path) -> None:
    (adapter / TRAINING_CONFIG).write_text(content)
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(adapter)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert str(adapter / TRAINING_CONFIG) in message
    assert "--labels" in message


def test_a_damaged_posterior_is_reported_and_not_used(adapter: Path) -> None:
    (adapter / "posterior_config.json").write_text('{"input_format": {"label_names": ["no", "yes"]}}')
    with pytest.warns(UserWarning, match=r"posterior_config.json is damaged"):
        assert load_adapter(adapter)[2] is None
