"""What the callback refuses before training, and what it does about a fit that fails later."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from callback.scenes import (
    EVALUATION,
    QUIET,
    TRAIN,
    Examples,
    arguments,
    by_hand,
    classifier,
    language_model,
    loader,
    logged,
    lora,
    same_posterior,
    trainer,
    weights,
)
from laplace_lora import AnswerTokens, LaplaceCallback, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.callback.trainers import peft_model
from laplace_lora.errors import MemoryLimitError, NotFittedError, UnsupportedAdapterError
from tiny_models import collate, tiny_bert


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from TRAIN


def _refused(run: Trainer, what: str, kind: type[Exception] = LaplaceLoRAError) -> None:
    with pytest.raises(kind, match=what) as caught:
        run.train()
    assert str(caught.value).endswith(".")
    assert run.state.global_step == 0


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"prior": "evidenz"}, "choose auto, evidence, validation or a prior precision"),
        ({"prior": 0.0}, "above 0"),
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"train_dataloader": iter([])}, "DataLoader or a list"),
        ({"eval_dataloader": (batch for batch in [])}, "DataLoader or a list"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=what):
        LaplaceCallback(**settings)


def test_a_stream_of_training_data(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LaplaceCallback(QUIET)])
    run.train_dataset = _Stream()
    _refused(run, r"_Stream.* every example once.*train_dataloader=")


def test_a_stream_can_be_evaluated_and_fitted_where_it_is_given(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET, train_dataloader=loader(Examples(TRAIN)))
    run = trainer(tmp_path, [callback])
    run.train_dataset = run.eval_dataset = _Stream()
    start = weights(run.model)
    run.train()
    same_posterior(callback.laplace, by_hand(run.model, loader(Examples(TRAIN)), start))
    assert "eval_nll" in logged(run.state.log_history)[0]


def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = LaplaceCallback(QUIET)
    run = trainer(tmp_path, [callback])
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    begin = {"model": run.model, "train_dataloader": loader(Examples(TRAIN))}
    with pytest.raises(LaplaceLoRAError, match=r"one process, and 2 are training; .* laplace-lora fit\."):
        callback.on_train_begin(run.args, run.state, run.control, **begin)


def test_a_model_without_an_adapter(tmp_path: Path) -> None:
    base = tiny_bert(dtype=torch.float32).unload()
    run = trainer(tmp_path, [LaplaceCallback(QUIET)], base.requires_grad_(True))
    _refused(run, r"needs a peft.PeftModel, and the Trainer trains a BertForSequenceClassification")


def test_an_adapter_that_is_no_lora(tmp_path: Path) -> None:
    base = tiny_bert(dtype=torch.float32).unload()
    model = peft.get_peft_model(base, peft.IA3Config(target_modules=["query"], feedforward_modules=[]))
    _refused(trainer(tmp_path, [LaplaceCallback(QUIET)], model), "train a LoRA adapter", UnsupportedAdapterError)


def test_an_initialisation_that_misleads_the_evidence(tmp_path: Path) -> None:
    """Centred on zero it would, and is where the adapter began before the training did."""

    def run(prior: str, **options: Any) -> Trainer:
        callback = LaplaceCallback(QUIET, prior=prior)
        return trainer(tmp_path, [callback], tiny_bert(dtype=torch.float32, init_lora_weights="pissa"), **options)

    run("evidence", save_strategy="steps", save_steps=2, max_steps=2).train()
    with pytest.raises(LaplaceLoRAError, match="'pissa'"):
        run("auto").train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    run("validation").train()


def test_validation_without_one_evaluation_set(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LaplaceCallback(QUIET, prior="validation")])
    run.eval_dataset = None
    _refused(run, "needs one evaluation set, and there are 0")
    run.eval_dataset = {"a": Examples(EVALUATION), "b": Examples(EVALUATION)}
    _refused(run, "needs one evaluation set, and there are 2")


def test_labels_missing_from_the_evaluation_set(tmp_path: Path) -> None:
    run = trainer(tmp_path, [LaplaceCallback(QUIET)])
    run.eval_dataset = Examples([{"input_ids": example["input_ids"]} for example in EVALUATION])
    _refused(run, "evaluation data have no labels")


def test_a_language_model_that_can_be_read_in_several_ways(tmp_path: Path) -> None:
    class Prompted(Trainer):
        """A loss of its own, on the logits of two answers."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            logits = model(input_ids=inputs["input_ids"]).logits[:, -1, [4, 5]]
            return nn.functional.cross_entropy(logits, inputs["labels"])

    items = [{"input_ids": torch.arange(2 + index % 2, 7), "labels": torch.tensor(index % 2)} for index in range(6)]

    def run(callback: LaplaceCallback) -> Trainer:
        return Prompted(
            model=peft.get_peft_model(language_model(), lora("CAUSAL_LM")),
            args=arguments(tmp_path),
            train_dataset=Examples(items),
            data_collator=lambda rows: collate(rows, side="left"),
            callbacks=[callback],
        )

    _refused(run(LaplaceCallback(QUIET)), "give the tokens of the answers")
    callback = LaplaceCallback(QUIET, readout=AnswerTokens([4, 5]))
    trained = run(callback)
    start = weights(trained.model)
    trained.train()
    left = loader(items, lambda rows: collate(rows, side="left"))
    same_posterior(callback.laplace, by_hand(trained.model, left, start, AnswerTokens([4, 5])))


def test_memory_of_the_whole_data_set_is_known_before_training(tmp_path: Path) -> None:
    weights = sum(parameter.numel() for parameter in classifier().parameters() if parameter.requires_grad)
    rows = 8 * weights * 8  # two rows of each of four examples, and their Gram matrix
    config = LaplaceConfig(structure="exact", progress=False, memory_limit_bytes=rows)
    LaplaceLoRA(classifier(), config).fit([collate(TRAIN[:4])])
    _refused(trainer(tmp_path, [LaplaceCallback(config)]), "memory", MemoryLimitError)


def test_a_fit_that_fails_later_warns_and_spares_the_training(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET, every_n_steps=2)
    run = trainer(tmp_path, [callback], save_strategy="steps", save_steps=1)
    run.add_callback(_Spoil())
    with pytest.warns(UserWarning, match=r"no posterior at step [45]: .*\.$") as caught:
        run.train()
    assert run.state.global_step == 5
    assert len([warning for warning in caught if "no posterior" in str(warning.message)]) == 2
    assert [entry["step"] for entry in logged(run.state.log_history)] == [2]
    with pytest.raises(LaplaceLoRAError, match="finite"):
        _ = callback.laplace
    assert [path.parent.name for path in tmp_path.rglob("posterior_config.json")] == ["checkpoint-2"]


class _Spoil(TrainerCallback):
    """Makes the third step's weights infinite."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                for parameter in kwargs["model"].parameters():
                    if parameter.requires_grad:
                        parameter.fill_(float("inf"))


def test_out_of_memory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = LaplaceCallback(QUIET)
    run = trainer(tmp_path, [callback])

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    monkeypatch.setattr("laplace_lora.callback.measures.fit_measures", full)
    with pytest.warns(UserWarning, match=r"ran out of memory.*batch_size=\.\.\."):
        run.train()


def test_nothing_is_there_before_training() -> None:
    with pytest.raises(NotFittedError, match=r"trainer\.train\(\)"):
        _ = LaplaceCallback().laplace


def test_without_a_trainer_the_history_has_the_log_and_a_warning_says_so(tmp_path: Path) -> None:
    callback, state, control = LaplaceCallback(QUIET), TrainerState(), TrainerControl()
    kwargs = {"model": classifier(), "train_dataloader": loader(Examples(TRAIN))}
    with pytest.warns(UserWarning, match=r"callback\.attach\(trainer\)"):
        callback.on_train_begin(arguments(tmp_path), state, control, **kwargs)
    # The Trainer shows its evaluation set to callbacks once it has used it.
    kwargs["eval_dataloader"] = loader(Examples(EVALUATION))
    callback.on_train_end(arguments(tmp_path), state, control, **kwargs)
    assert "eval_nll" in logged(state.log_history)[0]


def test_wrapped_models_are_unwrapped() -> None:
    model = classifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = nn.DataParallel(torch.compile(model))
    assert peft_model(wrapped) is model
