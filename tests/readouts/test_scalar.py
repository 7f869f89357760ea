"""Scalar: one real output with Gaussian noise, whose variance is tuned with the prior."""

import functools
import math

import pytest
import torch
from scipy import optimize

import oracles
from engine.support import close
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from laplace_lora.errors import NotFittedError
from laplace_lora.readouts import Scalar
from readouts import dense
from readouts.models import language_model, regression, tiny_regression
from readouts.support import fit, same
from tiny_models import Example, batches, collate, random_examples, tiny_bert

STRUCTURES = ["kron", "ekfac", "diag", "exact", "low_rank", "kron_low_rank", "isotropic", "last_layer"]
SIZE = 14


def noisy(kind: str, count: int, seed: int, noise: float = 0.4) -> list[Example]:
    """Draw texts whose targets are the model's outputs and noise."""
    generator = torch.Generator().manual_seed(seed)
    model, drawn = regression(kind), random_examples(count, 1, seed=seed)
    for example in drawn:
        error = noise * torch.randn((), generator=generator, dtype=torch.float64)
        example["labels"] = dense.scalar(model, example).detach()[0] + error
    return drawn


@functools.cache
def data(kind: str = "bert") -> tuple[list[Example], list[Example]]:
    return noisy(kind, SIZE, 11), noisy(kind, 6, 12)


def label(example: Example) -> torch.Tensor:
    return example["labels"]


@functools.cache
def oracle(kind: str, structure: str, noise_variance: float) -> oracles.DensePosterior:
    model = regression(kind)
    among = [block for block in oracles.blocks(model) if structure != "last_layer" or block.head]
    name = "kron" if structure == "last_layer" else structure
    settings = {"noise_variance": noise_variance, "label": label, "among": among}
    return dense.posterior(model, data(kind)[0], dense.scalar, name, **settings)


@functools.cache
def jacobians(kind: str, structure: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs (6, 1) and Jacobians (6, 1, P) of the test examples."""
    among = oracle(kind, structure, 1.0).blocks
    pairs = [dense.jacobian(regression(kind), example, dense.scalar, among) for example in data(kind)[1]]
    return torch.stack([f for f, _ in pairs]), torch.stack([j for _, j in pairs])


def expected(
    kind: str, structure: str, deltas: oracles.Deltas, noise_variance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, j = jacobians(kind, structure)
    return mean, j @ oracle(kind, structure, noise_variance).covariance(deltas) @ j.mT


def fitted(kind: str = "bert", structure: str = "kron", **settings: object) -> LaplaceLoRA:
    side = "left" if kind == "llama" else "right"
    return fit(regression(kind), Scalar(), batches(data(kind)[0], 4, side), structure=structure, **settings)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_equals_the_oracle(kind: str, structure: str) -> None:
    la = fitted(kind, structure, noise_variance=0.3, prior_precision=0.7)
    mean, covariance = expected(kind, structure, 0.7, 0.3)
    p = la.predict(collate(data(kind)[1]))
    close(p.covariance, covariance)
    close(p.mean, mean, 1e-10)
    evidence = oracle(kind, structure, 0.3).log_evidence(0.7)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)
    assert p.probabilities.shape == (6, 0)
    whole = la.predict_dataset(batches(data(kind)[1], 4))
    close(whole.covariance, covariance)
    assert whole.total_entropy.shape == (6,)
    with pytest.raises(LaplaceLoRAError, match="read mean and covariance"):
        _ = p.confidence


def test_entropies_are_those_of_what_is_observed() -> None:
    la = fitted(noise_variance=0.3)
    p = la.predict(collate(data()[1]))
    variance = p.covariance[:, 0, 0]
    both = 0.5 * (2 * math.pi * math.e * (variance + 0.3)).log()
    torch.testing.assert_close(p.total_entropy, both, rtol=1e-12, atol=1e-12)
    noise = torch.full_like(both, 0.5 * math.log(2 * math.pi * math.e * 0.3))
    torch.testing.assert_close(p.aleatoric_entropy, noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(p.mutual_information, 0.5 * (1 + variance / 0.3).log(), rtol=1e-9, atol=1e-12)


# --- the evidence ---------------------------------------------------------------------------------------------------


def brute_force_evidence(posterior: oracles.DensePosterior, residuals: float) -> tuple[float, float, float]:
    """Maximise the dense log evidence over (log delta, log sigma^2); ``posterior`` is that at sigma^2 = 1."""
    values = torch.linalg.eigvalsh(posterior.likelihood).clamp(min=0)
    norm = float(posterior.mean.square().sum())

    def negative(at: list[float]) -> float:
        delta, variance = math.exp(at[0]), math.exp(at[1])
        fit_term = -0.5 * residuals / variance - 0.5 * SIZE * math.log(2 * math.pi * variance)
        return -(fit_term - 0.5 * delta * norm - 0.5 * float(torch.log1p(values / (variance * delta)).sum()))

    settings = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
    starts = [(0.0, 0.0), (4.0, -3.0), (-2.0, 1.0)]
    ends = [optimize.minimize(negative, start, method="Nelder-Mead", options=settings) for start in starts]
    best = min(ends, key=lambda end: end.fun)
    return math.exp(best.x[0]), math.exp(best.x[1]), -best.fun


def squared_residuals(kind: str) -> float:
    model = regression(kind)
    return sum(float((dense.scalar(model, e).detach()[0] - e["labels"]).square()) for e in data(kind)[0])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_evidence_chooses_prior_and_noise(kind: str, structure: str) -> None:
    delta, variance, evidence = brute_force_evidence(oracle(kind, structure, 1.0), squared_residuals(kind))
    for start in (1.0, 0.02):
        la = fitted(kind, structure, noise_variance=start).tune_prior("evidence")
        assert math.isclose(la.prior_precision, delta, rel_tol=1e-5)
        assert math.isclose(la.noise_variance, variance, rel_tol=1e-5)
        assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)
        # The evidence and the covariance at the tuned values, by an oracle at that noise variance.
        at_noise = oracle(kind, structure, la.noise_variance).log_evidence(la.prior_precision)
        assert math.isclose(la.log_marginal_likelihood(), at_noise, rel_tol=1e-9)
        _, covariance = expected(kind, structure, la.prior_precision, la.noise_variance)
        close(la.predict(collate(data(kind)[1])).covariance, covariance)


def test_evidence_chooses_a_precision_per_matrix() -> None:
    """At the maximum every derivative is 0: of each precision by the oracle, of the noise by differences."""
    la = fitted(structure="exact", prior_groups="matrix").tune_prior("evidence")
    deltas = {name: float(value) for name, value in la.prior_precision.items()}
    posterior = oracle("bert", "exact", la.noise_variance)
    evidence = posterior.log_evidence(deltas)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-8)
    gradient = posterior.evidence_gradient(deltas)
    assert max(abs(value) for value in gradient.values()) < 1e-6
    for factor in (0.98, 1.02):
        moved = oracle("bert", "exact", la.noise_variance * factor).log_evidence(deltas)
        assert moved < evidence


def test_tuning_again_and_fitting_again() -> None:
    la = fitted().tune_prior("evidence")
    first = (la.prior_precision, la.noise_variance)
    la.tune_prior("evidence")
    assert math.isclose(la.prior_precision, first[0], rel_tol=1e-7)
    assert math.isclose(la.noise_variance, first[1], rel_tol=1e-7)
    la.fit(batches(data()[0], 4))
    assert (la.prior_precision, la.noise_variance) == (1.0, 1.0)


@pytest.mark.parametrize("noise_variance", [1.0, 0.3, 7.0])
def test_targets_fitted_exactly_have_no_evidence_of_noise(noise_variance: float) -> None:
    examples = noisy("bert", 5, 21, noise=0.0)
    la = fit(regression(), Scalar(), batches(examples, 5), noise_variance=noise_variance)
    with pytest.raises(
        LaplaceLoRAError, match=r"fits its training targets exactly.*tune_prior\('validation', loader\)"
    ):
        la.tune_prior("evidence")
    la.tune_prior("validation", batches(data()[1], 3))
    assert la.noise_variance < 10.0


# --- held-out data --------------------------------------------------------------------------------------------------


def gaussian_nll(spread: torch.Tensor, squared: torch.Tensor) -> float:
    return float(0.5 * ((2 * math.pi * spread).log() + squared / spread).mean())


@functools.cache
def spectrum(structure: str, noise_variance: float) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(oracle("bert", structure, noise_variance).likelihood)
    return values.clamp(min=0), (jacobians("bert", structure)[1][:, 0] @ vectors).square()


def variances(structure: str, delta: float, noise_variance: float) -> torch.Tensor:
    """The oracle's variances of the test examples, for many prior precisions."""
    values, squares = spectrum(structure, noise_variance)
    return (squares / (values + delta)).sum(1)


@pytest.mark.parametrize(("structure", "start"), [("kron", 0.1), ("exact", 1.0)])
def test_validation_chooses_prior_and_noise(structure: str, start: float) -> None:
    la = fitted(structure=structure, noise_variance=start, prior_precision=2.0)
    la.tune_prior("evidence")  # what was tuned before is only a start
    before = la.prior_precision * la.noise_variance / start
    la.tune_prior("validation", batches(data()[1], 4))
    targets = torch.stack([example["labels"] for example in data()[1]])
    mean, covariance = expected("bert", structure, la.prior_precision, la.noise_variance)
    close(la.predict(collate(data()[1])).covariance, covariance)
    squared = (targets - mean[:, 0]).square()
    found = gaussian_nll(covariance[:, 0, 0] + la.noise_variance, squared)

    # By the definition of the search: multiples a of the curvature's precision, and for each the best noise.
    ends = []
    for multiple in torch.logspace(-4, 8, 49, dtype=torch.float64).tolist():
        spread = variances(structure, before * multiple, start) + start

        def nll(log_scale: float, spread: torch.Tensor = spread) -> float:
            return gaussian_nll(math.exp(log_scale) * spread, squared)

        end = optimize.minimize_scalar(nll, bounds=(-40, 40), method="bounded", options={"xatol": 1e-9})
        ends.append((end.fun, before * multiple / math.exp(end.x), start * math.exp(end.x)))
    least = min(ends)
    assert math.isclose(found, least[0], rel_tol=1e-7, abs_tol=1e-9)
    assert any(
        math.isclose(la.prior_precision, delta, rel_tol=1e-4) and math.isclose(la.noise_variance, noise, rel_tol=1e-4)
        for nll, delta, noise in ends
        if nll < least[0] + 1e-9
    )

    # No point of a grid over both is better by more than the search's own step costs.
    values = torch.logspace(-3, 3, 13, dtype=torch.float64).tolist()
    for noise in torch.logspace(-2, 1, 10, dtype=torch.float64).tolist():
        # The oracle at noise s^2 is that at 1 with precisions times s^2, its covariance times s^2.
        for delta in values:
            spread = noise * variances(structure, delta * noise, 1.0) + noise
            assert found <= gaussian_nll(spread, squared) + 5e-3


def test_a_loader_that_fails_leaves_the_tuned_values() -> None:
    la = fitted().tune_prior("evidence")
    before = (la.prior_precision, la.noise_variance, la.log_marginal_likelihood())
    unlabelled = {key: value for key, value in collate(data()[1]).items() if key != "labels"}
    with pytest.raises(LaplaceLoRAError, match="give labelled data"):
        la.tune_prior("validation", [unlabelled])
    assert (la.prior_precision, la.noise_variance, la.log_marginal_likelihood()) == before


# --- samples and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["kron", "exact"])
def test_samples_have_the_posterior_s_variance(structure: str) -> None:
    """300 draws: a variance's standard error is 8.2 %; six of them stay within 5 standard errors."""
    la = fitted(structure=structure, noise_variance=20.0).tune_prior("evidence")
    assert la.noise_variance < 10.0  # where the curvature's own would be off by more than the bound
    covariance = expected("bert", structure, la.prior_precision, la.noise_variance)[1][:, 0, 0]
    among = oracle("bert", structure, 1.0).blocks
    mean = torch.cat([oracles.weights(regression(), block).flatten() for block in among])
    drawn = []
    for state in la.sample(300, seed=1):
        parts = []
        for block in among:
            key = block.weight.replace(".default", "").replace(".modules_to_save", "")
            matrix = state[key].double()
            if block.bias is not None:
                bias = state[key.removesuffix(".weight") + ".bias"].double()
                matrix = torch.cat([matrix, bias[:, None]], dim=1)
            parts.append(matrix.flatten())
        drawn.append(torch.cat(parts) - mean)
    deviations = torch.stack(drawn)
    for row, j in enumerate(jacobians("bert", structure)[1]):
        ratio = float((deviations @ j[0]).square().mean() / covariance[row])
        assert abs(ratio - 1.0) < 5 * math.sqrt(2 / 300)


def test_saved_and_loaded(tmp_path: object) -> None:
    la = fitted().tune_prior("evidence")
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(regression(), tmp_path)
    assert isinstance(again.readout, Scalar)
    assert (again.noise_variance, again.prior_precision) == (la.noise_variance, la.prior_precision)
    same(again, la, collate(data()[1]), 1e-12)
    again.tune_prior("evidence")
    assert math.isclose(again.noise_variance, la.noise_variance, rel_tol=1e-7)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batch_size_and_order_change_nothing(structure: str) -> None:
    train, test = data("llama")
    reference = fit(regression("llama"), Scalar(), batches(train, SIZE), structure=structure)
    for examples, size, side in ((train, 1, "right"), (train[::-1], 3, "left")):
        la = fit(regression("llama"), Scalar(), batches(examples, size, side), structure=structure)
        same(la, reference, collate(test))


def test_passes(passes: object) -> None:
    la = fitted()
    assert passes.backward == 4
    la.predict(collate(data()[1]))
    assert passes.backward == 5
    fitted(structure="last_layer").predict(collate(data()[1]))
    assert passes.backward == 5


def test_one_output_s_row_has_no_sign() -> None:
    """A random sign leaves the exact posterior as it is; a sampled target does not, and is refused."""
    same(fitted(structure="exact", fisher="rademacher"), fitted(structure="exact"), collate(data()[1]))
    with pytest.raises(LaplaceLoRAError, match="use fisher='exact' or structure='kron'"):
        fitted(structure="exact", fisher="mc")


# --- labels and models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda y: y[:, None], lambda y: y.float().double()])
def test_shapes_of_targets(change: object) -> None:
    batch = collate(data()[0])
    la = fit(regression(), Scalar(), [batch | {"labels": change(batch["labels"])}])
    assert math.isclose(la.log_marginal_likelihood(), fitted().log_marginal_likelihood(), rel_tol=1e-6)
    held_out = collate(data()[1])
    la.tune_prior("validation", [held_out | {"labels": change(held_out["labels"])}])


def test_whole_numbers_are_targets() -> None:
    batch = collate(data()[0]) | {"labels": torch.arange(SIZE)}
    assert math.isfinite(fit(regression(), Scalar(), [batch]).tune_prior("evidence").log_marginal_likelihood())


def test_no_targets_no_evidence() -> None:
    unlabelled = {key: value for key, value in collate(data()[0]).items() if key != "labels"}
    la = fit(regression(), Scalar(), [unlabelled])
    with pytest.raises(NotFittedError, match="fit with labels"):
        la.tune_prior("evidence")


def test_several_targets_per_output() -> None:
    with pytest.raises(LaplaceLoRAError, match="give one per output"):
        fit(regression(), Scalar(), [collate(data()[0]) | {"labels": torch.zeros(SIZE, 2)}])


def test_models_with_other_outputs() -> None:
    for model in (tiny_bert(3), language_model("llama")):
        with pytest.raises(LaplaceLoRAError, match="num_labels=1, or use ClassLogits"):
            LaplaceLoRA(model, readout=Scalar())


def test_batches_of_a_model_without_a_padding_token() -> None:
    model = tiny_regression("llama")
    model.get_base_model().config.pad_token_id = None
    with pytest.raises(LaplaceLoRAError, match=r"model\.config\.pad_token_id = tokenizer\.pad_token_id"):
        fit(model, Scalar(), batches(data("llama")[0], 4))
    fit(model, Scalar(), batches(data("llama")[0][:3], 1))
