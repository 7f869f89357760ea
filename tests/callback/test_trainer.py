"""The callback under transformers' own Trainer: what it logs and saves, and that training does not notice it."""

import random
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMultipleChoice, DataCollatorForMultipleChoice, Trainer

from callback.scenes import (
    EVALUATION,
    FILES,
    QUIET,
    TRAIN,
    Examples,
    Recorder,
    arguments,
    by_hand,
    classifier,
    loader,
    logged,
    loss_of_all,
    same_posterior,
    same_weights,
    trainer,
    weights,
)
from cli.folders import bert_tokenizer
from laplace_lora import LaplaceCallback, LaplaceConfig, LaplaceLoRA, OptionScores, Scalar
from laplace_lora.evaluation.metrics import ece, nll
from tiny_models import collate, tiny_bert

MEASURES = {
    "log_evidence",
    "effective_parameters",
    "prior_precision",
    "eval_nll_map",
    "eval_nll",
    "eval_ece_map",
    "eval_ece",
    "forward_passes",
    "backward_passes",
    "seconds",
    "epoch",
    "step",
}


def test_the_end_of_training_is_fitted_logged_and_saved(tmp_path: Path) -> None:
    callback, recorder = LaplaceCallback(QUIET), Recorder()
    run = trainer(tmp_path, [recorder, callback])
    start = weights(run.model)
    run.train()
    run.save_model()

    mine = by_hand(run.model, loader(Examples(TRAIN)), start)
    same_posterior(callback.laplace, mine)
    assert callback.laplace.training.examples == len(TRAIN) == 11  # though the Trainer drops the last batch

    (entry,) = logged(run.state.log_history)
    assert set(entry) == MEASURES
    assert entry["step"] == 5
    assert entry["log_evidence"] == mine.log_marginal_likelihood()
    assert entry["prior_precision"] == mine.prior_precision
    assert f"{entry['effective_parameters']:.1f}" in mine.summary()
    p = mine.predict_dataset(loader(Examples(EVALUATION), size=3))
    labels = torch.stack([example["labels"] for example in EVALUATION]).numpy()
    assert entry["eval_nll"] == pytest.approx(nll(p.probabilities, labels), rel=1e-9)
    assert entry["eval_ece"] == pytest.approx(ece(p.probabilities, labels), rel=1e-9)
    assert entry["eval_ece_map"] == pytest.approx(ece(p.map_probabilities, labels), rel=1e-9)
    assert entry["eval_nll_map"] == pytest.approx(loss_of_all(run), rel=1e-5)
    # 3 batches to fit to and 3 to evaluate, two contrasts of three classes each.
    assert (entry["forward_passes"], entry["backward_passes"]) == (6, 12)
    # Reporters see it, and before they hear that training has ended.
    assert logged(recorder.logs)[0] == {name: entry[name] for name in MEASURES - {"step"}}

    fresh = peft.PeftModel.from_pretrained(classifier().get_base_model(), tmp_path)
    same_posterior(LaplaceLoRA.from_pretrained(fresh.eval(), tmp_path), mine)


def _random_collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Drops a token now and then, by the numbers of every generator there is."""
    shortened = []
    for example in examples:
        drawn = float(torch.rand(())) + random.random() + np.random.rand()  # noqa: NPY002
        keep = max(2, len(example["input_ids"]) - int(drawn))
        shortened.append({**example, "input_ids": example["input_ids"][:keep]})
    return collate(shortened)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        {"bf16": True, "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=["plain", "accumulation and checkpointing", "bf16 and evaluation"],
)
def test_training_is_the_same_to_the_last_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    assert any(isinstance(module, nn.Dropout) and module.p > 0.0 for module in classifier().modules())
    ends = []
    for callbacks in ([], [LaplaceCallback(QUIET, every_n_steps=1)]):
        run = trainer(tmp_path, callbacks, **options)
        run.data_collator = _random_collate
        run.train()
        modes = [module.training for module in run.model.modules()]
        trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
        state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        ends.append((weights(run.model), modes, trained, state, losses))
    (alone, *rest_alone, state_alone, losses_alone), (watched, *rest, state, losses) = ends
    assert same_weights(alone, watched)
    assert rest_alone == rest
    assert losses_alone == losses
    assert torch.equal(state_alone[0], state[0])
    assert state_alone[1:] == state[1:]


def test_checkpoints_of_fitted_steps_and_the_last_one_get_a_posterior(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET, every_n_steps=2)
    run = trainer(tmp_path, [callback], save_strategy="steps", save_steps=1)
    start = weights(run.model)
    run.train()
    assert [entry["step"] for entry in logged(run.state.log_history)] == [2, 4, 5]
    for step in range(1, 6):
        folder = tmp_path / f"checkpoint-{step}"
        assert folder.is_dir()
        assert [(folder / name).exists() for name in FILES] == [step in (2, 4, 5)] * 2, step
        if step in (2, 4, 5):
            model = peft.PeftModel.from_pretrained(classifier().get_base_model(), folder).eval()
            same_posterior(LaplaceLoRA.from_pretrained(model, folder), by_hand(model, loader(Examples(TRAIN)), start))
    assert all((tmp_path / name).exists() for name in FILES)


def test_a_fit_at_the_last_step_is_not_repeated(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET, every_n_steps=5)
    run = trainer(tmp_path, [callback], save_strategy="epoch")
    run.train()
    assert len(logged(run.state.log_history)) == 1
    assert [path.parent.name for path in sorted(tmp_path.glob("*/posterior_config.json"))] == ["checkpoint-5"]


def test_the_best_weights_are_fitted_where_they_are_loaded(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET, output_dir=tmp_path / "posterior")
    run = trainer(
        tmp_path,
        [callback],
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,  # the first step is the worst, and so the "best"
    )
    start = weights(run.model)
    run.train()
    assert run.state.best_global_step == 1
    folder = tmp_path / "checkpoint-1"
    model = peft.PeftModel.from_pretrained(classifier().get_base_model(), folder).eval()
    assert same_weights(weights(model), weights(run.model))
    mine = by_hand(model, loader(Examples(TRAIN)), start)
    same_posterior(callback.laplace, mine)
    for place in (folder, tmp_path / "posterior"):
        same_posterior(LaplaceLoRA.from_pretrained(model, place), mine)
    assert len(list(tmp_path.rglob("posterior_config.json"))) == 2


def test_training_goes_on_from_a_checkpoint_with_a_posterior(tmp_path: Path) -> None:
    first = trainer(tmp_path, [LaplaceCallback(QUIET)], save_strategy="steps", save_steps=2, max_steps=2)
    first.train()
    callback = LaplaceCallback(QUIET)
    second = trainer(tmp_path, [callback], max_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.global_step == 4
    same_posterior(callback.laplace, by_hand(second.model, loader(Examples(TRAIN)), None))


def test_mixed_precision_is_fitted_in_the_precision_of_the_weights(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET)
    run = trainer(tmp_path, [callback], bf16=True)
    start = weights(run.model)
    run.train()
    run.save_model()
    fresh = peft.PeftModel.from_pretrained(classifier().get_base_model(), tmp_path).eval()
    assert next(fresh.parameters()).dtype == torch.float32
    same_posterior(callback.laplace, by_hand(fresh, loader(Examples(TRAIN)), start))


@pytest.mark.filterwarnings("ignore:the validation data prefer")
def test_the_prior_can_be_given_or_tuned_on_the_evaluation_set(tmp_path: Path) -> None:
    given, tuned = LaplaceCallback(QUIET, prior=3.5), LaplaceCallback(QUIET, prior="validation", batch_size=2)
    run = trainer(tmp_path, [given])
    run.train()
    assert given.laplace.prior_precision == 3.5
    run = trainer(tmp_path, [tuned])
    run.train()
    mine = LaplaceLoRA(run.model, QUIET).fit(loader(Examples(TRAIN), size=2))
    mine.tune_prior("validation", loader(Examples(EVALUATION), size=2))
    same_posterior(tuned.laplace, mine)
    (entry,) = logged(run.state.log_history)
    # 6 batches to fit to; 4 to tune on, and again to measure.
    assert (entry["forward_passes"], entry["backward_passes"]) == (6 + 8, 12 + 16)


def test_groups_have_one_number_and_evaluation_sets_their_own(tmp_path: Path) -> None:
    callback = LaplaceCallback(LaplaceConfig(progress=False, prior_groups="module"))
    run = trainer(tmp_path, [callback])
    run.eval_dataset = {"near": Examples(EVALUATION[:4]), "far": Examples(EVALUATION[4:])}
    run.train()
    (entry,) = logged(run.state.log_history)
    assert {"eval_near_nll", "eval_far_nll_map"} <= set(entry)
    precisions = torch.tensor(list(callback.laplace.prior_precision.values()))
    assert len(precisions) > 1
    assert entry["prior_precision"] == pytest.approx(float(precisions.log().mean().exp()), rel=1e-6)


def test_without_an_evaluation_set_only_the_evidence_is_logged(tmp_path: Path) -> None:
    callback = LaplaceCallback(LaplaceConfig(progress=False, structure="last_layer"))
    run = trainer(tmp_path, [callback])
    run.eval_dataset = None
    run.train()
    (entry,) = logged(run.state.log_history)
    assert set(entry) == {name for name in MEASURES if not name.startswith("eval_")}
    assert (entry["forward_passes"], entry["backward_passes"]) == (3, 0)


def test_regression_has_the_gaussian_nll_with_and_without_the_posterior(tmp_path: Path) -> None:
    model = tiny_bert(num_labels=1, dtype=torch.float32)
    model.get_base_model().config.problem_type = "regression"
    items = [{**example, "labels": example["labels"].float() - 1.0} for example in TRAIN + EVALUATION]
    callback = LaplaceCallback(QUIET)
    run = trainer(tmp_path, [callback], model)
    run.train_dataset, run.eval_dataset = Examples(items[:11]), Examples(items[11:])
    start = weights(run.model)
    run.train()
    la = callback.laplace
    assert isinstance(la.readout, Scalar)
    same_posterior(la, by_hand(run.model, loader(Examples(items[:11])), start))
    (entry,) = logged(run.state.log_history)
    assert entry["noise_variance"] == la.noise_variance
    p = la.predict_dataset(loader(Examples(items[11:]), size=3))
    targets = torch.stack([item["labels"] for item in items[11:]]).double()
    for name, variance in (("eval_nll_map", 0.0), ("eval_nll", p.covariance[:, 0, 0])):
        density = torch.distributions.Normal(p.mean[:, 0], (variance + torch.tensor(la.noise_variance)).sqrt())
        assert entry[name] == pytest.approx(float(-density.log_prob(targets).mean()), rel=1e-6)
    assert "eval_ece" not in entry
    assert f"{entry['effective_parameters']:.1f}" in la.summary()


def test_multiple_choice_is_read_by_options(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.25,
    )
    lora = peft.LoraConfig(target_modules=["query", "value"], modules_to_save=["classifier"], r=3, lora_dropout=0.1)
    model = peft.get_peft_model(BertForMultipleChoice(config), lora)
    items = []
    for index in range(9):
        texts = [["film good"] * 3, ["yes", f"no {'very ' * (index % 3)} bad", "slow"]]
        items.append({**tokenizer(*texts), "labels": index % 3})
    callback = LaplaceCallback(QUIET)
    run = Trainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=datasets.Dataset.from_list(items).add_column("a text", ["unused"] * 9),
        eval_dataset=datasets.Dataset.from_list(items[:5]),
        data_collator=DataCollatorForMultipleChoice(tokenizer),
        callbacks=[callback],
    )
    start = weights(run.model)
    run.train()
    assert isinstance(callback.laplace.readout, OptionScores)
    same_posterior(callback.laplace, by_hand(run.model, loader(items, DataCollatorForMultipleChoice(tokenizer)), start))
    (entry,) = logged(run.state.log_history)
    assert entry["eval_nll_map"] == pytest.approx(loss_of_all(run), rel=1e-5)
    assert (entry["forward_passes"], entry["backward_passes"]) == (3 + 2, 3 + 2)


def test_given_batches_take_the_place_of_the_trainers_data(tmp_path: Path) -> None:
    train, evaluation = [collate(TRAIN[:6]), collate(TRAIN[6:8])], [collate(EVALUATION[:2])]
    callback = LaplaceCallback(QUIET, train_dataloader=train, eval_dataloader=evaluation)
    run = trainer(tmp_path)
    run.add_callback(callback)
    start = weights(run.model)
    run.train()
    same_posterior(callback.laplace, by_hand(run.model, train, start))
    (entry,) = logged(run.state.log_history)
    assert entry["forward_passes"] == 3


def test_a_named_trainer_reports_too(tmp_path: Path) -> None:
    run, recorder = trainer(tmp_path), Recorder()
    run.add_callback(recorder)
    callback = LaplaceCallback(QUIET).attach(run)
    assert callback.attach(run).attach(run) is callback
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.train()
    assert len(logged(recorder.logs)) == len(logged(run.state.log_history)) == 1
