"""Choosing prior precision and noise of a fitted posterior: what ``tune_prior`` does, as functions."""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora import prior as priors
from laplace_lora.config import LaplaceConfig, PredictiveRule, Score
from laplace_lora.curvature import FitResult, TrainCheckExamples
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.posterior import Posterior
from laplace_lora.predictive import Predictive, of_options

# Points of the integral where only a mean over examples is wanted: errors of 1e-3 per example do not matter.
CHECK_POINTS = 512
# A mean over examples asks for such a temperature only where it says next to nothing.
HOTTEST_CREDIBLE = 20.0


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A choice of prior and noise.

    Attributes:
        precision: (G,) prior precisions, in 1 / weight^2.
        noise_variance: Noise variance of a Gaussian likelihood, in squared units of the output.
        warning: What the user should know, or None.
        temperature: Divides the mean logits of classes.
        raised: Factor on the evidence's precisions, so that an adapter that is not over-fitted takes no harm.
        keeps_answers: Whether the classes' order in predictions is to be that of their mean logits.
    """

    precision: Tensor
    noise_variance: float
    warning: str | None = None
    temperature: float = 1.0
    raised: float = 1.0
    keeps_answers: bool = False


def mean_predictive(mean: Tensor, covariance: Tensor, config: LaplaceConfig, keeps_answers: bool = False) -> Predictive:
    """Average the softmax as far as a mean over examples needs it.

    Args:
        mean: (N, K) logits.
        covariance: (N, K, K).
        config: Says the rule, and the most points of it.
        keeps_answers: Whether the classes' order is to be that of their mean logits.

    Returns:
        The predictive, at no more than 512 points per class (8 K for many classes); by the integral where the rule is
        ``mc``, whose limit it is.
    """
    # So few draws err by 0.02 in a probability, and alike in all examples: a mean over them would err as much.
    rule: PredictiveRule = "integral" if config.predictive == "mc" else config.predictive
    points = min(config.integration_points, max(CHECK_POINTS, 8 * mean.shape[-1]))
    return of_options(mean, covariance, rule, points, keeps_answers=keeps_answers)


def by_evidence(
    posterior: Posterior,
    fitted: FitResult,
    precision: Tensor,
    squared_norms: Tensor,
    config: LaplaceConfig,
    noise_variance: float,
    tunes_noise: bool,
    check: TrainCheckExamples | None,
    harmless: bool = False,
) -> Tuned:
    """Maximise the log marginal likelihood, without any model pass.

    Args:
        posterior: The Gaussian without its prior.
        fitted: What the pass over the training data left, labels included.
        precision: (G,) precisions to start from.
        squared_norms: (G,) |theta_g|^2.
        config: Settings.
        noise_variance: Noise variance in use.
        tunes_noise: Whether to choose it too.
        check: Training examples to compare predictions on.
        harmless: Whether to raise the precisions of an adapter that is not over-fitted until its training data lose
            next to nothing, and to keep its answers.

    Returns:
        The maximum, or what is above it.
    """
    if tunes_noise:
        outputs = fitted.examples * fitted.classes
        result = priors.tune_noise(
            posterior,
            precision,
            squared_norms,
            squared_error(fitted, config.noise_variance),
            outputs,
            config.noise_variance,
        )
        gamma = float(posterior.effective_parameters(result.precision * result.scale).sum())
        warning = None
        if gamma > 0.5 * outputs:
            warning = (
                f"the evidence takes {gamma:.0f} effective parameters to explain {outputs} targets, and the noise "
                "variance "
                "RSS / (N - gamma) is then too large, the more so as structures other than 'exact' overstate gamma; "
                "tune on held-out data instead: tune_prior('validation', loader)."
            )
        return Tuned(result.precision, result.scale * config.noise_variance, warning)
    scale = noise_variance / config.noise_variance
    scaled = priors.fixed_point(posterior, precision * scale, squared_norms / scale).precision
    warning, raised = None, 1.0
    if check is None:
        if harmless and fitted.targets is None:
            warning = (
                "no training examples are at hand to see what the evidence does to them (they are kept from fit to "
                "tune_prior, within train_check_bytes), so that 'auto' is the plain evidence here; fit again before "
                "tuning."
            )
        return Tuned(scaled / scale, noise_variance, warning, keeps_answers=harmless)
    gamma = float(posterior.effective_parameters(scaled).sum())

    def at(multiple: float) -> Predictive:
        fit = priors.training_fit(posterior, scaled * multiple, check)
        return mean_predictive(fit.mean, fit.covariance, config, keeps_answers=harmless)

    if not harmless:
        warning = priors.training_warning(at(1.0), check.labels, check.total, gamma, posterior.joint)
    elif not priors.over_fitted(gamma, check.total, fitted.classes, posterior.joint):
        raised = priors.harmless_multiple(at, check.labels)
    return Tuned(raised * scaled / scale, noise_variance, warning, raised=raised, keeps_answers=harmless)


def by_held_out(
    folds: Sequence[priors.HeldOut],
    precision: Tensor,
    noise_variance: float,
    score: Score,
    tune_temperature: bool,
    common: bool,
) -> Tuned:
    """Choose precisions and a temperature on held-out data, without any model pass.

    Args:
        folds: Held-out examples, of this adapter or of others trained alike.
        precision: (G,) precisions to start from.
        noise_variance: Noise variance in use, which stays.
        score: What is minimised.
        tune_temperature: Whether the temperature is chosen; 1 if not.
        common: Whether only a common factor on all precisions can be chosen, as ``folds`` are at multiples of them.

    Returns:
        The minimum.
    """
    start = torch.ones(1, dtype=torch.float64) if common else precision
    chosen = priors.choose_jointly(folds, start, score, tune_temperature)
    found = precision * chosen.precision if common else chosen.precision
    return Tuned(found, noise_variance, held_out_warning(chosen, sum(map(len, folds))), chosen.temperature)


def held_out_warning(chosen: priors.JointChoice, examples: int) -> str | None:
    """Say so where held-out data ask for the extreme.

    Args:
        chosen: The choice.
        examples: Their number.

    Returns:
        The warning, or None.
    """
    if chosen.temperature < HOTTEST_CREDIBLE:
        return None
    return (
        f"the {examples} held-out examples ask for a temperature of {chosen.temperature:.3g}, which says that the "
        "adapter's answers tell them little; check their labels, and the template."
    )


def noise_by_validation(
    mean: Tensor, covariances: Tensor, targets: Tensor, precision: Tensor, config: LaplaceConfig
) -> Tuned:
    """Minimise the negative log-likelihood of held-out real outputs over a factor on all precisions, and the noise.

    Args:
        mean: (N, 1) outputs.
        covariances: (S, N, 1, 1) at the multiples ``prior.SCALES``, at the configured noise variance.
        targets: (N,) real numbers.
        precision: (G,) precisions that the multiples are of.
        config: Settings.

    Returns:
        The minimum.
    """
    noise = config.noise_variance
    result = priors.validate_noise(mean.cpu(), covariances.cpu(), targets.cpu(), priors.SCALES, noise)
    multiple = float(result.precision * result.scale)
    at_edge = not float(priors.SCALES[0]) * 1.01 < multiple < float(priors.SCALES[-1]) * 0.99
    return Tuned(precision * result.precision, noise * result.scale, _edge_warning(multiple) if at_edge else None)


def _edge_warning(scale: float) -> str:
    return (
        f"the validation data prefer a prior precision at the edge of what was tried (factor {scale:g}): a high one "
        "says "
        "that the trained adapter's own predictions are best, a low one that they say little; check the labels."
    )


def log_marginal_likelihood(
    posterior: Posterior,
    fitted: FitResult,
    precision: Tensor,
    squared_norms: Tensor,
    config: LaplaceConfig,
    noise_variance: float | None,
) -> float:
    """Return the evidence log p(D) at a prior and noise.

    Args:
        posterior: The Gaussian without its prior.
        fitted: What the pass over the training data left, labels included.
        precision: (G,) prior precisions.
        squared_norms: (G,) |theta_g|^2.
        config: Settings.
        noise_variance: Of a Gaussian likelihood; None for others.

    Returns:
        The evidence, in nats.
    """
    assert fitted.log_likelihood is not None
    if noise_variance is None:
        return priors.log_evidence(posterior, precision, squared_norms, fitted.log_likelihood)
    log_likelihood = log_likelihood_at(fitted, config.noise_variance, noise_variance)
    # delta |theta|^2 = (s delta) |theta|^2 / s: the posterior knows precisions times s only.
    scale = noise_variance / config.noise_variance
    return priors.log_evidence(posterior, precision * scale, squared_norms / scale, log_likelihood)


def squared_error(fitted: FitResult, noise_variance: float) -> float:
    """Return the sum of squared residuals that a Gaussian log-likelihood comes from.

    Args:
        fitted: N examples, K outputs, and their log-likelihood.
        noise_variance: At which it was computed.

    Returns:
        RSS, in squared units of the output.
    """
    assert fitted.log_likelihood is not None
    constant = fitted.examples * fitted.classes * math.log(2.0 * math.pi * noise_variance)
    return max(0.0, -noise_variance * (2.0 * fitted.log_likelihood + constant))


def log_likelihood_at(fitted: FitResult, collected_at: float, noise_variance: float) -> float:
    """Move a Gaussian log-likelihood to another noise variance.

    Args:
        fitted: N examples, K outputs, and their log-likelihood.
        collected_at: Noise variance at which it was computed.
        noise_variance: The other one.

    Returns:
        log p(D | theta*) there, in nats.
    """
    outputs = fitted.examples * fitted.classes
    residuals = squared_error(fitted, collected_at)
    return -0.5 * (residuals / noise_variance + outputs * math.log(2.0 * math.pi * noise_variance))


def check_request(method: str, has_data: bool, score: str, temperature: bool, has_start: bool) -> None:
    """Refuse a way of tuning that is not known, or options that are not its own.

    Args:
        method: Name of the way.
        has_data: Whether data are given.
        score: What held-out data are scored by.
        temperature: Whether a temperature may be chosen on them.
        has_start: Whether a starting point is given.

    Raises:
        LaplaceLoRAError: It is not.
    """
    if (method, has_data) not in (("auto", False), ("evidence", False), ("validation", True), ("cross_fit", True)):
        raise LaplaceLoRAError(
            f"tune_prior({method!r}) with{'' if has_data else 'out'} data is not known; use tune_prior('auto'), "
            "tune_prior('evidence'), tune_prior('validation', loader) or tune_prior('cross_fit', folds)."
        )
    if score not in priors.SCORES:
        raise LaplaceLoRAError(f"score={score!r} is not known; choose one of {', '.join(priors.SCORES)}.")
    if not has_data and (score != "nll" or not temperature):
        raise LaplaceLoRAError("the evidence has no score and no temperature to choose; leave out both.")
    if has_data and has_start:
        raise LaplaceLoRAError(
            f"starting_point is the prior's mean in the evidence, and tune_prior({method!r}) does not read it; leave "
            "it out."
        )


def require_folds(count: int) -> None:
    """Refuse to cross-fit on a single fold, or none.

    Args:
        count: Number of folds.

    Raises:
        LaplaceLoRAError: It is below two.
    """
    if count < 2:
        raise LaplaceLoRAError(f"cross-fitting needs two folds or more, got {count}; give (estimator, loader) pairs.")


def require_known_start(start: str | None) -> None:
    """Refuse the evidence where an adapter's zero is not the pretrained model.

    Args:
        start: The initialisation, from :func:`laplace_lora.adapters.altered_start`.

    Raises:
        LaplaceLoRAError: It moved weights of the base into the adapter.
    """
    if start is not None:
        raise LaplaceLoRAError(
            f"the adapter was initialised by {start!r}, which moves a part of the base's weights into it: |theta|^2 "
            "then says nothing of what was learnt, and the evidence would be misled. Tune on held-out data: "
            "tune_prior('validation', loader); or convert the adapter to plain LoRA (PEFT: "
            "path_initial_model_for_weight_conversion)."
        )
