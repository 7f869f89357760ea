"""Weight sampling: class probabilities averaged over drawn adapters, run through the network as it is.

The posterior's own predictive linearises the network around the trained weights. This does not: it draws adapters from
the same Gaussian and averages their probabilities. It is a baseline and no rule of ``LaplaceConfig.predictive``, since
every draw takes a forward pass of the model over the data, where a rule needs the Gaussian logits alone.
"""

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Probabilities
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.methods.forward import Loader, adapters, member_probabilities


def weight_sampling(la: LaplaceLoRA, loader: Loader, samples: int, seed: int = 0) -> Probabilities:
    """Average the probabilities of adapters drawn from the posterior, without linearising the network.

    Takes ``samples`` forward passes per batch, and memory for as many adapters. Probabilities are averaged, not
    logits; the standard error of one near one half is up to 0.5 / sqrt(samples).

    Args:
        la: A fitted posterior over an adapter whose outputs are classes. Its model is left bit by bit as it was found.
        loader: Batches, as for ``la.predict_dataset``; read once. Labels in them are ignored.
        samples: Adapters to draw.
        seed: Fixes the draw; all batches see the same adapters.

    Returns:
        (N, K) mean probabilities, all examples in order; 0 for options that an example lacks.

    Raises:
        LaplaceLoRAError: Outputs are no classes, ``samples`` is not positive, the posterior is not fitted, or the
            loader gave no batch.
    """
    kind = la.readout.likelihood
    if (la.config.likelihood if kind == "configured" else kind) != "categorical":
        raise LaplaceLoRAError(
            f"weight_sampling averages probabilities of classes, and {la.readout!r} reads none; use la.sample(n) and "
            "run the adapters yourself."
        )
    states = la.sample(samples, seed)
    members = member_probabilities(la.model, la.readout, loader, adapters(la.model, states))
    return Probabilities(members.mean(axis=0))
