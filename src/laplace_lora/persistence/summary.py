"""What is in a posterior, in words."""

from collections.abc import Sequence

from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import FitResult
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.posterior import Posterior
from laplace_lora.prior import TailCheck


def describe(
    config: LaplaceConfig,
    matrices: Sequence[MatrixShape],
    held_at_map: Sequence[str],
    precision: Tensor,
    tuned_by: str | None,
    fitted: FitResult | None,
    posterior: Posterior | None,
    readout: str = "class_logits",
    noise: float | None = None,
    temperature: float = 1.0,
    keeps_answers: bool = False,
) -> str:
    """Say what a posterior covers, what it does not, and how it was tuned.

    Args:
        config: Its settings.
        matrices: Its weight matrices.
        held_at_map: Trained layers outside it.
        precision: (G,) prior precision of each group.
        tuned_by: ``auto``, ``evidence``, ``validation``, ``cross_fit`` or None.
        fitted: What the pass over the training data left, or None before it.
        posterior: The Gaussian, or None before the pass.
        readout: Name of the readout.
        noise: Noise variance in use, where the likelihood has one that was tuned.
        temperature: Divides the mean logits of classes.
        keeps_answers: Whether the classes' order in predictions is that of their mean logits.

    Returns:
        Several lines of text.
    """
    weights = sum(shape.size for shape in matrices)
    full = [shape.name for shape in matrices if shape.trained_in_full]
    lines = [
        f"Laplace posterior, structure {config.structure}, over {weights:,} weights in {len(matrices)} matrices",
        f"  trained in full, in the posterior: {', '.join(full) or 'none'}",
        f"  held at their trained values: {', '.join(held_at_map) or 'none'}",
    ]
    if posterior is None or fitted is None:
        return "\n".join([*lines, "  not fitted"])
    lines.append(
        f"  fitted to {fitted.examples:,} examples with {fitted.classes} logits ({readout}), Fisher "
        f"{config.fisher_for(fitted.classes, readout)}; {posterior.nbytes:,} bytes"
    )
    if fitted.nll is not None:
        accuracy = "" if fitted.accuracy is None else f", accuracy {fitted.accuracy:.3f}"
        if fitted.targets is not None:
            per_token = fitted.nll * fitted.examples / fitted.targets
            accuracy = f", {per_token:.4f} a token of {fitted.targets:,}{accuracy}"
        lines.append(f"  trained adapter on those examples: NLL {fitted.nll:.4f} nats{accuracy}")
    if noise is not None:
        lines.append(f"  noise variance: {noise:.4g}")
    if temperature != 1.0:
        lines.append(f"  temperature of the mean logits: {temperature:.4g}")
    if keeps_answers and fitted.classes > 2:
        lines.append("  answers are the trained adapter's: variance is spread evenly over the contrasts of its logits")
    scale = 1.0 if noise is None else noise / config.noise_variance
    gamma = posterior.effective_parameters(precision * scale).tolist()
    how = f"tuned by {tuned_by.replace('_', '-')}" if tuned_by else "as configured"
    lines.append(f"  prior precision ({how}), effective parameters:")
    check = TailCheck.of(posterior, precision * scale)
    if check is not None:
        lines.insert(
            -1,
            f"  wide factors are sketched (rank {config.sketch_rank}): {check.with_tail:.1f} effective parameters with "
            f"what the sketches missed spread evenly, {check.without_tail:.1f} without",
        )
    elif config.structure == "kron_svd":
        lines.insert(
            -1, f"  factors wider than {config.sketch_rank} are cut to as many directions, the rest is left out"
        )
    names = Groups.of(matrices, config.prior_groups).names
    lines += [
        f"    {name}: {delta:.4g}, {value:.1f}"
        for name, delta, value in zip(names, precision.tolist(), gamma, strict=True)
    ]
    return "\n".join(lines)
