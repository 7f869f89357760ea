"""PairwiseReward: rewards of chosen and rejected texts, in every layout that preference data come in."""

import functools
import math

import pytest
import torch
from scipy import integrate

import oracles
from engine.support import close
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from laplace_lora.readouts import ClassLogits, PairwiseReward, Scalar
from readouts import dense
from readouts.models import language_model, pad, regression, tiny_regression
from readouts.support import fit, same
from tiny_models import PAD, Batch, random_examples, tiny_bert

Pair = tuple[torch.Tensor, torch.Tensor]
DELTA = 0.6
LAYOUTS = ["halves", "keys", "table"]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Draw pairs of texts of different lengths."""
    ids = [example["input_ids"] for example in random_examples(2 * count, 1, seed=40 + seed)]
    return list(zip(ids[::2], ids[1::2], strict=True))


def _block(texts: list[torch.Tensor], side: str, fill: int) -> Batch:
    return {"input_ids": pad(texts, side, fill), "attention_mask": pad([torch.ones_like(t) for t in texts], side, 0)}


def collate(examples: list[Pair], layout: str = "halves", side: str = "right", fill: int = PAD) -> Batch:
    """Lay pairs out: the first half chosen; entries of both names; or (pairs, 2, tokens)."""
    chosen, rejected = [c for c, _ in examples], [r for _, r in examples]
    if layout == "halves":
        return _block(chosen + rejected, side, fill)
    if layout == "table":
        table = _block([text for pair in examples for text in pair], side, fill)
        return {key: value.view(len(examples), 2, -1) for key, value in table.items()}
    parts = {"chosen": _block(chosen, side, fill), "rejected": _block(rejected, side, fill)}
    return {f"{key}_{name}": value for name, part in parts.items() for key, value in part.items()}


def batches(examples: list[Pair], size: int, layout: str = "halves", side: str = "right") -> list[Batch]:
    return [collate(examples[i : i + size], layout, side) for i in range(0, len(examples), size)]


@functools.cache
def data() -> tuple[list[Pair], list[Pair]]:
    return pairs(5), pairs(4, seed=1)


@functools.cache
def oracle(kind: str, structure: str, kfac: str = "fitted") -> oracles.DensePosterior:
    first = lambda _: torch.tensor(0)  # noqa: E731
    return dense.posterior(regression(kind), data()[0], dense.rewards, structure, kfac=kfac, label=first)


@functools.cache
def jacobians(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = regression(kind)
    found = [dense.jacobian(model, pair, dense.rewards, oracles.blocks(model)) for pair in data()[1]]
    return torch.stack([f for f, _ in found]), torch.stack([j for _, j in found])


def expected(kind: str, posterior: oracles.DensePosterior, delta: float = DELTA) -> tuple[torch.Tensor, torch.Tensor]:
    mean, j = jacobians(kind)
    return mean, j @ posterior.covariance(delta) @ j.mT


def preference(mean: float, deviation: float) -> float:
    """Return E sigmoid(m + s Z) by adaptive quadrature."""

    def integrand(z: float) -> float:
        return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) / (1 + math.exp(-(mean + deviation * z)))

    centre = -mean / deviation
    points = [centre] if abs(centre) < 9.9 else None
    return integrate.quad(integrand, -10, 10, epsabs=1e-12, epsrel=1e-12, limit=500, points=points)[0]


@pytest.mark.parametrize("structure", ["kron", "ekfac", "diag", "exact", "low_rank", "kron_low_rank", "isotropic"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_equals_the_oracle(kind: str, layout: str, structure: str) -> None:
    readout, side = PairwiseReward(), "mixed" if kind == "llama" else "right"
    settings = {"structure": structure, "prior_precision": DELTA}
    la = fit(regression(kind), readout, batches(data()[0], 2, layout, side), **settings)
    mean, covariance = expected(kind, oracle(kind, structure))
    p = la.predict(collate(data()[1], layout, side))
    close(p.mean, mean, 1e-10)
    close(p.covariance, covariance)
    evidence = oracle(kind, structure).log_evidence(DELTA)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)
    for row in range(4):
        c = covariance[row]
        deviation = math.sqrt(float(c[0, 0] + c[1, 1] - 2 * c[0, 1]))
        chosen = preference(float(mean[row, 0] - mean[row, 1]), deviation)
        assert abs(float(p.probabilities[row, 0]) - chosen) < 1e-7
        assert abs(float(p.probabilities[row, 1]) - (1 - chosen)) < 1e-7
    torch.testing.assert_close(p.map_probabilities[:, 0], (mean[:, 0] - mean[:, 1]).sigmoid(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kfac", ["expand"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_rules_of_the_factors(kind: str, kfac: str) -> None:
    la = fit(regression(kind), PairwiseReward(), batches(data()[0], 2), kfac=kfac, prior_precision=DELTA)
    close(la.predict(collate(data()[1])).covariance, expected(kind, oracle(kind, "kron", kfac))[1])


@pytest.mark.parametrize("fisher", ["exact", "rademacher", "mc", "empirical"])
def test_layout_batch_size_and_order_change_nothing(fisher: str) -> None:
    model, (train, test) = regression("llama"), data()
    reference = fit(model, PairwiseReward(), batches(train, 5), fisher=fisher)
    for layout in LAYOUTS:
        for examples, size, side in ((train[::-1], 2, "right"), (train, 1, "left")):
            la = fit(model, PairwiseReward(), batches(examples, size, layout, side), fisher=fisher)
            same(la, reference, collate(test))
            same(reference, reference, collate(test, layout, side))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_passes(layout: str, passes: object) -> None:
    model, forward = regression("bert"), []
    handle = model.get_base_model().register_forward_pre_hook(lambda *_: forward.append(1))
    try:
        la = fit(model, PairwiseReward(), batches(data()[0], 2, layout))
        assert (len(forward), passes.backward) == (3, 3)
        la.predict(collate(data()[1], layout))
        assert (len(forward), passes.backward) == (4, 4)
    finally:
        handle.remove()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_padding_token_other_than_zero(layout: str) -> None:
    """Decoders find a text's end by it. Joining halves of different lengths pads one of them once more."""
    model = tiny_regression("llama")
    model.get_base_model().config.pad_token_id = 1
    test = data()[1]
    la = fit(model, PairwiseReward(), [collate(data()[0], layout, fill=1)])
    mean = torch.stack([dense.rewards(model, pair) for pair in test])
    close(la.predict(collate(test, layout, fill=1)).mean, mean.detach(), 1e-10)


def test_labels_say_which_was_preferred() -> None:
    model, (train, test) = regression("bert"), data()
    turned = [(rejected, chosen) for chosen, rejected in train]
    for layout in ("keys", "table"):
        batch = collate(turned, layout) | {"labels": torch.ones(5, dtype=torch.long)}
        la = fit(model, PairwiseReward(), [batch])
        same(la, fit(model, PairwiseReward(), batches(train, 5)), collate(test))
    assert la.train_accuracy == fit(model, PairwiseReward(), batches(train, 5)).train_accuracy


def test_tuning_without_labels(tmp_path: object) -> None:
    model, (train, test) = regression("llama"), data()
    la = fit(model, PairwiseReward(), batches(train, 2)).tune_prior("evidence")
    posterior, delta = oracle("llama", "kron"), la.prior_precision
    assert math.isclose(la.log_marginal_likelihood(), posterior.log_evidence(delta), rel_tol=1e-9)
    for factor in (0.99, 1.01):
        assert posterior.log_evidence(delta * factor) < posterior.log_evidence(delta)
    la.tune_prior("validation", batches(test, 2, "keys"))
    close(la.predict(collate(test)).covariance, expected("llama", posterior, la.prior_precision)[1])
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert isinstance(again.readout, PairwiseReward)
    same(again, la, collate(test), 1e-12)
    assert again.seen_in_fit(collate([train[3], test[0]], "table")).tolist() == [True, False]


def test_a_named_output_can_be_saved_and_loaded(tmp_path: object) -> None:
    """A reward model's one name is no pair of classes."""
    model = tiny_regression("bert")
    model.get_base_model().config.id2label = {0: "reward"}
    fit(model, PairwiseReward(), batches(data()[0], 5)).save_pretrained(tmp_path)
    assert LaplaceLoRA.from_pretrained(model, tmp_path).predict(collate(data()[1])).mean.shape == (4, 2)


@pytest.mark.parametrize("structure", ["kron", "exact"])
def test_rewards_of_single_texts(structure: str) -> None:
    """Variances of the same posterior, without noise: rewards are observed in pairs only."""
    model, (train, test) = regression("llama"), data()
    la = fit(model, PairwiseReward(), batches(train, 2), structure=structure, prior_precision=DELTA)
    mean, covariance = expected("llama", oracle("llama", structure))
    p = la.predict(_block([chosen for chosen, _ in test], "left", PAD), readout=Scalar())
    close(p.mean, mean[:, :1], 1e-10)
    close(p.covariance, covariance[:, :1, :1])
    assert (p.probabilities.shape, p.total_entropy.shape) == ((4, 0), (4, 0))
    assert isinstance(la.readout, PairwiseReward)
    close(la.predict(collate(test)).covariance, covariance)


def test_batches_of_trl() -> None:
    trainer = pytest.importorskip("trl.trainer.reward_trainer", reason="TRL is not installed")
    model, (train, test) = regression("llama"), data()
    rows = [{"chosen_ids": chosen.tolist(), "rejected_ids": rejected.tolist()} for chosen, rejected in train]
    batch = dict(trainer.DataCollatorForPreference(pad_token_id=PAD)(rows))
    same(fit(model, PairwiseReward(), [batch]), fit(model, PairwiseReward(), batches(train, 5)), collate(test))


# --- what is refused ------------------------------------------------------------------------------------------------


def _refused(batch: Batch, message: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        fit(regression("bert"), PairwiseReward(), [batch])


def test_rows_that_are_no_pairs() -> None:
    halves, keys, table = (collate(data()[0], layout) for layout in LAYOUTS)
    _refused({key: value[:-1] for key, value in halves.items()}, r"got 9 rows; give pairs.*readout=Scalar\(\)")
    _refused({key: value[:, :1] for key, value in table.items()}, "expects two texts per example; give pairs")
    _refused({key: value.repeat(1, 2, 1) for key, value in table.items()}, "expects two texts per example; give pairs")
    gone = table["attention_mask"].clone()
    gone[2, 1] = 0
    _refused(table | {"attention_mask": gone}, "expects two texts per example; give pairs")
    for missing in keys:
        _refused({key: value for key, value in keys.items() if key != missing}, "each with _chosen and _rejected")
    masks = {key: value for key, value in keys.items() if key.startswith("attention_mask")}
    _refused(masks, "each with _chosen and _rejected")
    _refused(keys | {"extra": torch.zeros(5)}, "each with _chosen and _rejected")


def test_a_sampled_preference_is_not_exact() -> None:
    settings = {"structure": "exact", "fisher": "rademacher"}
    la = fit(regression("bert"), PairwiseReward(), batches(data()[0], 2), **settings)
    same(la, fit(regression("bert"), PairwiseReward(), batches(data()[0], 2), structure="exact"), collate(data()[1]))
    with pytest.raises(LaplaceLoRAError, match="use fisher='exact' or structure='kron'"):
        fit(regression("bert"), PairwiseReward(), batches(data()[0], 2), structure="exact", fisher="mc")


def test_margins() -> None:
    _refused(collate(data()[0]) | {"margin": torch.ones(5)}, "remove that column, and train without margins")


def test_labels() -> None:
    keys = collate(data()[0], "keys")
    _refused(keys | {"labels": torch.full((5,), 2)}, "whole numbers from 0 to 1")
    _refused(collate(data()[0]) | {"labels": torch.zeros(10, dtype=torch.long)}, "must be 5 whole numbers")


def test_models_with_other_outputs() -> None:
    for model in (tiny_bert(2), language_model("llama")):
        with pytest.raises(LaplaceLoRAError, match="num_labels=1, or use ClassLogits"):
            LaplaceLoRA(model, readout=PairwiseReward())
    with pytest.raises(LaplaceLoRAError, match="leave it out"):
        fit(regression("bert"), PairwiseReward(), batches(data()[0], 5), likelihood="gaussian")
    with pytest.raises(LaplaceLoRAError, match="one logit"):
        fit(regression("bert"), ClassLogits(), [_block([c for c, _ in data()[0]], "right", PAD)])
