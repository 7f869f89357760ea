"""The callback under TRL's trainers, on data that TRL prepares itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from callback.scenes import (
    FILES,
    QUIET,
    Recorder,
    arguments,
    by_hand,
    language_model,
    logged,
    lora,
    loss_of_all,
    reward_model,
    same_posterior,
    same_weights,
    weights,
)
from cli.folders import WORDS, llama_tokenizer
from laplace_lora import LaplaceCallback, LaplaceLoRA, LaplaceLoRAError, NextToken, PairwiseReward

datasets = pytest.importorskip("datasets", reason="TRL's trainers read datasets")
trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'laplace-lora[trl]'")
peft = pytest.importorskip("peft")

#: Columns that RewardTrainer makes; the longer names are older TRL's.
TOKENS = ("chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids")


def _texts(count: int, seed: int, blank: str = "") -> list[str]:
    generator = torch.Generator().manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    return [blank + " ".join(WORDS[below(len(WORDS))] for _ in range(2 + below(5))) for _ in range(count)]


def _tokenizer() -> Any:
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = "<s>"
    return tokenizer


def sft(folder: Path, callbacks: list[Any], **options: Any) -> Any:
    """An SFTTrainer on prompts and completions."""

    def rows(count: int, seed: int) -> Any:
        columns = {"prompt": _texts(count, seed), "completion": _texts(count, seed + 1, " ")}
        return datasets.Dataset.from_dict({**columns, "source": ["a column that no model knows"] * count})

    return trl.SFTTrainer(
        model=language_model(),
        args=arguments(folder, trl.SFTConfig, **({"max_length": 32} | options)),
        train_dataset=rows(9, 1),
        eval_dataset=rows(5, 3),
        processing_class=_tokenizer(),
        peft_config=lora("CAUSAL_LM"),
        callbacks=callbacks,
    )


def reward(folder: Path, callbacks: list[Any], margin: bool = False, **options: Any) -> Any:
    """A RewardTrainer on chosen and rejected texts."""

    def rows(count: int, seed: int) -> Any:
        columns: dict[str, Any] = {"chosen": _texts(count, seed), "rejected": _texts(count, seed + 1)}
        return datasets.Dataset.from_dict(columns | ({"margin": [0.5] * count} if margin else {}))

    return trl.RewardTrainer(
        model=reward_model(),
        args=arguments(folder, trl.RewardConfig, **({"max_length": 32} | options)),
        train_dataset=rows(9, 1),
        eval_dataset=rows(5, 3),
        processing_class=_tokenizer(),
        peft_config=lora("SEQ_CLS"),
        callbacks=callbacks,
    )


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def _mask(rows: list[list[int]]) -> torch.Tensor:
    return _padded([[1] * len(row) for row in rows], 0)


def _saved(base: Any, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(base, folder).eval()


def test_sft_is_read_by_next_tokens(tmp_path: Path) -> None:
    callback, recorder = LaplaceCallback(QUIET, every_n_steps=4), Recorder()
    run = sft(tmp_path, [callback, recorder], save_strategy="steps", save_steps=2)
    start = weights(run.model)
    run.train()
    assert isinstance(callback.laplace.readout, NextToken)

    def batches(data: Any) -> list[dict[str, torch.Tensor]]:
        kept = []
        for row in data:  # one by one, and padded by hand
            ids = [row["input_ids"]]
            kept.append({"input_ids": _padded(ids, 0), "attention_mask": _mask(ids), "labels": _labels(row)})
        return kept

    def _labels(row: Any) -> torch.Tensor:
        prompt = len(_tokenizer()(row["prompt"])["input_ids"])
        return torch.tensor([[-100] * prompt + row["input_ids"][prompt:]])

    run.save_model()
    mine = by_hand(_saved(language_model(), tmp_path), batches(run.train_dataset), start)
    la = LaplaceLoRA.from_pretrained(mine.model, tmp_path)
    same_posterior(la, callback.laplace)
    assert la.log_marginal_likelihood() == pytest.approx(mine.log_marginal_likelihood(), rel=1e-4)
    assert la.prior_precision == pytest.approx(mine.prior_precision, rel=1e-3)
    for name, tensor in mine.posterior.tensors().items():
        if "values" in name:  # eigenvalues; of eigenvectors the signs are free
            torch.testing.assert_close(la.posterior.tensors()[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.max()))

    entries = logged(run.state.log_history)
    assert [entry["step"] for entry in entries] == [4, 5]
    assert len(logged(recorder.logs)) == 2
    evaluation = batches(run.eval_dataset)
    p = la.predict_dataset(evaluation)
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in evaluation)
    assert entries[-1]["eval_nll_map"] == pytest.approx(float(-p.mean.sum()) / tokens, rel=1e-5)
    assert entries[-1]["eval_log_prob_std"] == pytest.approx(float(p.covariance.flatten().sqrt().mean()), rel=1e-4)
    assert not {"eval_nll", "eval_ece"} & set(entries[-1])
    folders = {path.parent.name for path in tmp_path.glob("checkpoint-*/posterior_config.json")}
    assert folders == {"checkpoint-4", "checkpoint-5"}
    same_posterior(
        LaplaceLoRA.from_pretrained(_saved(language_model(), tmp_path / "checkpoint-5"), tmp_path / "checkpoint-5"), la
    )


def test_rewards_are_read_in_pairs(tmp_path: Path) -> None:
    callback = LaplaceCallback(QUIET)
    run = reward(tmp_path, [callback], save_strategy="epoch", bf16=False)
    start = weights(run.model)
    run.train()
    assert isinstance(callback.laplace.readout, PairwiseReward)

    def batches(data: Any) -> list[dict[str, torch.Tensor]]:
        kept = []
        for row in data:
            ids = [row[name] for name in row if name in TOKENS]
            kept.append({"input_ids": _padded(ids, 0)[None], "attention_mask": _mask(ids)[None]})
        return kept

    run.save_model()
    mine = by_hand(_saved(reward_model(), tmp_path), batches(run.train_dataset), start, PairwiseReward())
    la = LaplaceLoRA.from_pretrained(mine.model, tmp_path)
    same_posterior(la, callback.laplace)
    assert la.training.examples == 9
    p, q = mine.predict_dataset(batches(run.eval_dataset)), la.predict_dataset(batches(run.eval_dataset))
    torch.testing.assert_close(p.probabilities, q.probabilities, rtol=1e-3, atol=1e-4)
    (entry,) = logged(run.state.log_history)
    assert entry["log_evidence"] == pytest.approx(mine.log_marginal_likelihood(), rel=1e-4)
    assert entry["eval_nll"] == pytest.approx(float(-q.probabilities[:, 0].log().mean()), rel=1e-5)
    assert entry["eval_nll_map"] == pytest.approx(loss_of_all(run), rel=1e-4)
    assert (entry["forward_passes"], entry["backward_passes"]) == (3 + 2, 3 + 2)
    assert all((tmp_path / "checkpoint-5" / name).exists() for name in FILES)


@pytest.mark.parametrize("make", [sft, reward], ids=["sft", "reward"])
def test_trl_notices_nothing(tmp_path: Path, make: Any) -> None:
    runs = []
    for callbacks in ([], [LaplaceCallback(QUIET, every_n_steps=1)]):
        run = make(tmp_path, callbacks, eval_strategy="steps", eval_steps=2)
        run.train()
        own = [entry for entry in run.state.log_history if "laplace/seconds" not in entry]
        timed = ("runtime", "per_second")
        runs.append((weights(run.model), [{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in own]))
    assert same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]  # TRL averages since the last log


def test_packed_rows_are_refused_before_training(tmp_path: Path) -> None:
    for options, name in (
        ({"packing": True, "packing_strategy": "wrapped"}, "packing"),
        ({"packing": True}, "packing"),
        ({"padding_free": True, "max_length": None}, "padding_free"),
        ({"eval_packing": True}, "eval_packing"),
    ):
        run = sft(tmp_path, [LaplaceCallback(QUIET)], **options)
        with pytest.raises(LaplaceLoRAError, match=rf"{name}=True .* set {name}=False, or give .* of unpacked texts\."):
            run.train()
        assert run.state.global_step == 0


def test_packed_training_can_be_fitted_to_unpacked_texts(tmp_path: Path) -> None:
    ids = [[5, 6, 7, 8], [9, 10, 11, 12]]
    text = {"input_ids": torch.tensor(ids), "attention_mask": _mask(ids), "labels": torch.tensor(ids)}
    callback = LaplaceCallback(QUIET, train_dataloader=[text])
    run = sft(tmp_path, [callback], packing=True, packing_strategy="wrapped", eval_packing=False, bf16=False)
    start = weights(run.model)
    run.train()
    same_posterior(callback.laplace, by_hand(run.model, [text], start))


def test_margins_are_refused_before_training(tmp_path: Path) -> None:
    run = reward(tmp_path, [LaplaceCallback(QUIET)], margin=True)
    with pytest.raises(LaplaceLoRAError, match="margin"):
        run.train()
    assert run.state.global_step == 0
