"""Many classes: one-pass Fisher by default, and predictions of the likeliest classes alone."""

import math

import pytest
import torch

from engine.counting import Passes, counted_model
from engine.support import fitted
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, Predictive
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import SiteGradient
from tiny_models import MODELS, batches, collate, random_examples


@pytest.mark.parametrize(("classes", "structure", "fisher"), [
    (2, "kron", "exact"), (16, "kron", "exact"), (17, "kron", "rademacher"), (17, "diag", "rademacher"),
    (17, "kron_low_rank", "rademacher"), (17, "exact", "exact"), (17, "last_layer", "exact"),
])  # fmt: skip
def test_what_auto_comes_to(classes: int, structure: str, fisher: str) -> None:
    assert LaplaceConfig(structure=structure).fisher_for(classes) == fisher
    assert LaplaceConfig(structure=structure, fisher="mc").fisher_for(classes) == "mc"


@pytest.mark.parametrize("classes", [16, 17, 150])
def test_auto_is_the_fisher_it_names(classes: int, passes: Passes) -> None:
    model = MODELS["bert"](num_labels=classes)
    train = random_examples(6, num_labels=classes)
    named = fitted(model, train, fisher=LaplaceConfig().fisher_for(classes))
    passes.take()
    automatic = fitted(counted_model(model, passes), train, size=3)
    assert passes.take() == (2, 2 * (classes - 1 if classes <= 16 else 1))
    batch = collate(random_examples(2, num_labels=classes, seed=3))
    top_k = min(classes, 6)
    expected = named.predict(batch, top_k=top_k).covariance
    torch.testing.assert_close(automatic.predict(batch, top_k=top_k).covariance, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "last_layer"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_all_classes_at_the_top_are_all_classes(name: str, structure: str) -> None:
    model = MODELS[name](num_labels=5)
    la = fitted(model, random_examples(6, num_labels=5), structure=structure, prior_precision=0.5)
    batch = collate(random_examples(4, num_labels=5, seed=3))
    whole, top = la.predict(batch), la.predict(batch, top_k=5)
    for field, value in whole.numpy().items():
        torch.testing.assert_close(torch.as_tensor(top.numpy()[field]), torch.as_tensor(value), rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("structure", ["kron", "exact"])
@pytest.mark.parametrize("top_k", [2, 3, 4])
def test_top_classes_against_the_whole_covariance(structure: str, top_k: int, passes: Passes) -> None:
    """Among the top classes, differences of logits have the covariance that they have among all."""
    model = MODELS["bert"](num_labels=6)
    la = fitted(model, random_examples(6, num_labels=6), structure=structure, prior_precision=0.5)
    batch = collate(random_examples(4, num_labels=6, seed=3))
    whole = la.predict(batch)
    counted_model(model, passes)
    passes.take()
    top = la.predict(batch, top_k=top_k)
    assert passes.take() == (1, top_k - 1)
    for i in range(4):
        index = whole.mean[i].topk(top_k).indices
        centre = torch.eye(top_k, dtype=torch.float64) - 1.0 / top_k
        expected = centre @ whole.covariance[i][index][:, index] @ centre
        found = top.covariance[i][index][:, index]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        assert float(top.covariance[i].abs().sum()) == pytest.approx(float(found.abs().sum()))
        # By definition: the softmax among the top classes, averaged, times their share; the rest is MAP's.
        among = Predictive.from_gaussian(whole.mean[i][index][None], expected[None]).probabilities[0]
        share = whole.map_probabilities[i][index].sum()
        torch.testing.assert_close(top.probabilities[i][index], share * among, rtol=1e-7, atol=1e-9)
        others = torch.ones(6, dtype=torch.bool).scatter(0, index, False)
        torch.testing.assert_close(top.probabilities[i][others], whole.map_probabilities[i][others])
        torch.testing.assert_close(top.neglected_mass[i], 1.0 - share, rtol=0, atol=1e-12)
    assert torch.equal(la.predict_dataset([batch], top_k=top_k).probabilities, top.probabilities)


def test_entropies_of_top_classes_against_random_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = 2.0 * torch.randn(1, 7, generator=generator, dtype=torch.float64)
    root = 2.0 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
    p = Predictive.of_top_classes(mean, (root @ root.T)[None], points=2**14)
    assert float(p.total_entropy) == pytest.approx(float(torch.special.entr(p.probabilities).sum()), abs=1e-10)
    values, index = mean[0].topk(3)
    draws = values + torch.randn(400_000, 3, generator=generator, dtype=torch.float64) @ root.T
    share = 1.0 - p.neglected_mass
    full = p.map_probabilities.expand(len(draws), -1).clone()
    full[:, index] = share * draws.softmax(dim=-1)
    entropies = torch.special.entr(full).sum(dim=-1)
    error = 4.0 * float(entropies.std()) / math.sqrt(len(draws))
    assert float(p.aleatoric_entropy) == pytest.approx(float(entropies.mean()), abs=error + 4e-4)
    assert float(p.mutual_information) == pytest.approx(float(p.total_entropy - p.aleatoric_entropy), abs=1e-10)
    torch.testing.assert_close(p.probabilities[0], full.mean(dim=0), rtol=0, atol=4e-3)


@pytest.mark.parametrize("top_k", [0, 1, 4])
def test_an_impossible_number_of_classes(top_k: int) -> None:
    la = fitted(MODELS["bert"](num_labels=3), random_examples(4, num_labels=3))
    with pytest.raises(LaplaceLoRAError, match=f"top_k={top_k} is out of range; give a number from 2 to the 3 classes"):
        la.predict(collate(random_examples(2, num_labels=3)), top_k=top_k)


def test_training_inputs_are_known_again(tmp_path) -> None:
    model = MODELS["llama"](num_labels=3)
    train, other = random_examples(6, num_labels=3), random_examples(3, num_labels=3, seed=9)
    la = fitted(model, train, side="left")
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    for estimator in (la, again):
        # Padded otherwise, among others, and in another order.
        seen = estimator.seen_in_fit(collate([train[4], other[0], train[1], other[2]], side="right"))
        assert seen.tolist() == [True, False, True, False]


def test_held_out_inputs_that_were_tuned_on_are_known_again(tmp_path) -> None:
    model = MODELS["llama"](num_labels=3)
    train, held, other = (random_examples(n, num_labels=3, seed=n) for n in (6, 5, 3))
    la = fitted(model, train, side="left")
    batch = collate([held[4], other[0], train[1], held[2]], side="right")
    assert not la.seen_in_tuning(batch).any()
    la.tune_prior(("validation", batches(held, 2)))
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    for estimator in (la, again):
        assert estimator.seen_in_tuning(batch).tolist() == [True, False, False, True]
        assert estimator.seen_in_fit(batch).tolist() == [False, False, True, False]
    # Another tuning, or another fit, forgets them.
    assert not again.tune_prior("evidence").seen_in_tuning(batch).any()
    assert not la.fit(batches(train, 2)).seen_in_tuning(batch).any()


def test_the_module_that_makes_infinity_is_named() -> None:
    model = MODELS["bert"](num_labels=3)
    la = LaplaceLoRA(model, LaplaceConfig(progress=False))
    layer = model.get_base_model().bert.encoder.layer[1].intermediate
    handle = layer.dense.register_forward_hook(lambda module, args, output: output * math.inf)
    name = r"bert\.encoder\.layer\.1\.intermediate\.dense turns finite inputs into NaN or infinity"
    with pytest.raises(LaplaceLoRAError, match=name):
        la.fit(batches(random_examples(4, num_labels=3), 2))
    handle.remove()
    la.fit(batches(random_examples(4, num_labels=3), 2))
    layer.dense.register_forward_hook(lambda module, args, output: output * math.nan)
    with pytest.raises(LaplaceLoRAError, match=name):
        la.predict(collate(random_examples(2, num_labels=3)))


@pytest.mark.parametrize("structure", ["kron", "kron_svd", "diag", "last_layer"])
def test_curvature_that_overflows_is_refused(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits may be finite where the squares of their gradients are not."""
    model = MODELS["bert"](num_labels=3, dtype=torch.float32)
    plain = SiteGradient.jacobian
    monkeypatch.setattr(SiteGradient, "jacobian", lambda self: 1e30 * plain(self))
    la = LaplaceLoRA(model, LaplaceConfig(progress=False, structure=structure))
    with pytest.raises(LaplaceLoRAError, match=r"the curvature of .* is NaN or infinite, .* lower learning rate\.$"):
        la.fit(batches(random_examples(4, num_labels=3), 2))


def test_validation_data_beyond_the_memory_limit() -> None:
    model = MODELS["bert"](num_labels=5)
    train, held_out = random_examples(6, num_labels=5), random_examples(8, num_labels=5, seed=4)
    needed = 2 * 49 * 8 * 8 * 5 * 5
    settings = {"progress": False, "train_check_bytes": 0}
    for limit in (needed, needed - 1):
        la = LaplaceLoRA(model, LaplaceConfig(memory_limit_bytes=limit, **settings)).fit(batches(train, 3))
        if limit == needed:
            la.tune_prior("validation", batches(held_out, 4))
            continue
        before = la.prior_precision
        with pytest.raises(MemoryLimitError, match=f"holds {needed} bytes after 8 examples, .* use tune_prior"):
            la.tune_prior("validation", batches(held_out, 4))
        assert la.prior_precision == before
