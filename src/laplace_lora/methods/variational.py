"""Training of BLoB's variational posterior: Flipout noise in the forward pass, and a step on the KL after each step.

The posterior of lora_A's elements is N(M, Omega^2) with Omega = G o G, independent; everything else that is trained is
deterministic. The prior is N(0, beta^2).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.methods.base import Retrain, State
from laplace_lora.methods.pairs import Pair, exact, generator

#: What is appended to the key of a lora_A's weight for the key of its G.
ROOT = ".root_of_deviation"
# Numbers that keep apart what is drawn from one seed.
_START, _NOISE, _DRAW = 0, 1, 2


def train(
    model: PeftModel,
    pairs: Sequence[Pair],
    retrain: Retrain,
    *,
    epsilon: float,
    beta: float,
    kl_rate: float,
    gamma: float,
    seed: int,
) -> State:
    """Train the posterior from the start of the adapter's training; the model is left as it was found.

    Args:
        model: The PEFT model.
        pairs: Its adapter's, all of them.
        retrain: Trains anew.
        epsilon: G starts uniformly in [epsilon / sqrt(2), epsilon].
        beta: The prior's standard deviation.
        kl_rate: Peak rate of the steps on the KL.
        gamma: Says how long a cycle of KL weights is; see :func:`cycle_length`.
        seed: Of G's start and of the noise.

    Returns:
        The adapter at the posterior's mean, and for every lora_A its G under the weight's key followed by ``ROOT``.

    Raises:
        LaplaceLoRAError: Training diverged.
    """
    roots = [_start(pair, index, epsilon, seed) for index, pair in enumerate(pairs)]
    noise = Noise(pairs, roots, seed)
    steps = KLSteps(pairs, roots, noise, beta=beta, kl_rate=kl_rate, gamma=gamma)
    with noise.added():
        mean = retrain(trained=False, callbacks=[steps], parameters=roots)
    posterior = dict(mean)
    for pair, root in zip(pairs, roots, strict=True):
        posterior[pair.key + ROOT] = root.detach().clone()
    if not all(bool(value.isfinite().all()) for value in posterior.values()):
        raise LaplaceLoRAError(
            f"BLoB's training diverged (epsilon {epsilon:g}, beta {beta:g}, kl_rate {kl_rate:g}); give a smaller "
            "kl_rate, or a larger epsilon."
        )
    return posterior


def _start(pair: Pair, index: int, epsilon: float, seed: int) -> nn.Parameter:
    weight = pair.first.weight
    random = generator(torch.device("cpu"), seed, _START, index)
    uniform = torch.rand(weight.shape, generator=random, dtype=exact(weight))
    low = epsilon / math.sqrt(2.0)
    return nn.Parameter((low + (epsilon - low) * uniform).to(weight.device))


def draw(posterior: State, samples: int, seed: int) -> list[dict[str, Tensor]]:
    """Draw adapters.

    Args:
        posterior: From :func:`train`.
        samples: How many.
        seed: Fixes the draw, whatever the device.

    Returns:
        Weights under PEFT's keys, lora_A's in float32 at least.
    """
    # In an order that does not depend on how the state was kept meanwhile.
    roots = sorted(key for key in posterior if key.endswith(ROOT))
    fixed = {key: value for key, value in posterior.items() if not key.endswith(ROOT)}
    states = []
    for sample in range(samples):
        state = dict(fixed)
        for index, name in enumerate(roots):
            root, key = posterior[name], name.removesuffix(ROOT)
            random = generator(torch.device("cpu"), seed, _DRAW, sample, index)
            normal = torch.randn(root.shape, generator=random, dtype=root.dtype).to(root.device)
            state[key] = fixed[key].to(root) + root.square() * normal
        states.append(state)
    return states


def flipout(x: Tensor, deviation: Tensor, normal: Tensor, signs_in: Tensor, signs_out: Tensor) -> Tensor:
    """Return ``((x o r) (Omega o E)^T) o s`` (Wen et al., "Flipout", ICLR 2018, equation 4).

    Every row of the inputs sees a deviation of its own, ``s r^T o Omega o E``, of the right distribution; those of two
    rows are uncorrelated.

    Args:
        x: (..., in).
        deviation: Omega, (out, in).
        normal: E, (out, in) of N(0, 1), shared by all rows.
        signs_in: r, (..., in).
        signs_out: s, (..., out).

    Returns:
        (..., out): what the deviations add to the outputs.
    """
    return ((x * signs_in) @ (deviation * normal).T) * signs_out


class Noise:
    """Flipout noise at every lora_A, in training.

    What is drawn depends on seed, step and site alone: the generators that the order of examples and dropout come from
    stay untouched, and activation checkpointing, which runs a layer twice, sees the same noise twice.

    Attributes:
        step: Of the training, from 1.
    """

    def __init__(self, pairs: Sequence[Pair], roots: Sequence[nn.Parameter], seed: int) -> None:
        self.step = 0
        self._pairs, self._roots, self._seed = pairs, roots, seed

    def drawn(self, index: int, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw this step's noise of one site.

        Args:
            index: Of the site.
            x: (..., in), for shape, type and device.
            outputs: (..., out), for the shape.

        Returns:
            E, r and s of :func:`flipout`, in the inputs' type.
        """
        random = generator(x.device, self._seed, _NOISE, self.step, index)

        def signs(shape: torch.Size) -> Tensor:
            return torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(0.5, generator=random).mul_(2).sub_(1)

        shape = self._roots[index].shape
        normal = torch.randn(shape, generator=random, dtype=x.dtype, device=x.device)
        return normal, signs(x.shape), signs(outputs.shape)

    @contextlib.contextmanager
    def added(self) -> Iterator[None]:
        """Add the noise to all outputs of lora_A for a while.

        Yields:
            Nothing. The hooks are removed whatever happens.
        """

        def hook(index: int) -> Any:
            def add(module: nn.Module, args: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
                x = args[0]
                deviation = self._roots[index].square().to(x)
                return outputs + flipout(x, deviation, *self.drawn(index, x, outputs)).to(outputs.dtype)

            return add

        with contextlib.ExitStack() as stack:
            for index, pair in enumerate(self._pairs):
                stack.callback(pair.first.register_forward_hook(hook(index)).remove)
            yield


def kl_divergence(mean: Tensor, root: Tensor, beta: float) -> Tensor:
    """Return KL(N(M, Omega^2) || N(0, beta^2)), the elements independent and Omega = G o G.

    ``sum log(beta / omega) + (omega^2 + m^2) / (2 beta^2) - 1/2``.

    Args:
        mean: M.
        root: G.
        beta: The prior's standard deviation.

    Returns:
        A scalar, in nats.
    """
    deviation = root.square()
    return (math.log(beta) - deviation.log() + (deviation.square() + mean.square()) / (2.0 * beta**2) - 0.5).sum()


def kl_step(mean: Tensor, root: Tensor, beta: float, rate: float) -> None:
    """Move M and G by a step of gradient descent on :func:`kl_divergence`, in place.

    ``dKL/dm = m / beta^2`` and ``dKL/dg = 2 (g^3 / beta^2 - 1 / g)``.

    Args:
        mean: M.
        root: G.
        beta: The prior's standard deviation.
        rate: Length of the step, the KL's weight included.
    """
    mean.sub_(mean, alpha=rate / beta**2)
    root.sub_(root.pow(3) / beta**2 - root.reciprocal(), alpha=2.0 * rate)


def cycle_length(examples: int, batch_size: int, gamma: float) -> int:
    """Return over how many mini-batches the KL is spread: ``int(100 N^(pi / gamma) / batch size)``, at least 1.

    As in the published code (Wang-ML-Lab/bayesian-peft, modelwrappers/blob.py), where it may be 0. It grows slower
    than the data: a cycle is no epoch.

    Args:
        examples: N, of the training data.
        batch_size: Examples per step.
        gamma: 8 in the published runs.

    Returns:
        Mini-batches.
    """
    return max(1, int(100.0 * examples ** (math.pi / gamma) / batch_size))


def kl_weight(step: int, cycle: int) -> float:
    """Return the weight ``pi_i = 2^i / (2^(M + 1) - 1)`` of the KL after a step, where i = 1..M in each cycle of M.

    Half of a cycle's KL comes with its last step. As in the published code; the sum over a cycle is
    ``1 - 1 / (2^(M + 1) - 1)``, not quite 1. (Blundell et al., "Weight uncertainty in neural networks", ICML 2015,
    have the opposite order, 2^(M - i) / (2^M - 1), which does sum to 1.)

    Args:
        step: From 1, over all cycles.
        cycle: M.

    Returns:
        The weight.
    """
    place = (step - 1) % cycle + 1
    # Not 2**cycle, which overflows where M is above 1023.
    return 2.0 ** (place - cycle - 1) / (1.0 - 2.0 ** (-cycle - 1))


class KLSteps(TrainerCallback):
    """After every step of the optimizer one step of gradient descent on the weighted KL, by the same schedule."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        roots: Sequence[nn.Parameter],
        noise: Noise,
        *,
        beta: float,
        kl_rate: float,
        gamma: float,
    ) -> None:
        self._pairs, self._roots, self._noise = pairs, roots, noise
        self._beta, self._kl_rate, self._gamma = beta, kl_rate, gamma
        self._cycle = 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read off how long a cycle is.

        Args:
            args: Have the batch size.
            state: Not used.
            control: Not used.
            **kwargs: Have the training data.
        """
        examples = len(kwargs["train_dataloader"].dataset)
        self._cycle = cycle_length(examples, args.train_batch_size * args.world_size, self._gamma)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the noise of the next step drawn.

        Args:
            args: Not used.
            state: Says which step it is.
            control: Not used.
            **kwargs: Not used.
        """
        self._noise.step = state.global_step + 1

    @torch.no_grad()
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the step on the KL.

        Args:
            args: Not used.
            state: Not used.
            control: Not used.
            **kwargs: Have the optimizer, at the rate that it has just used.
        """
        group = kwargs["optimizer"].param_groups[0]
        weight = kl_weight(self._noise.step, self._cycle)
        rate = self._kl_rate * group["lr"] / group["initial_lr"]
        for pair, root in zip(self._pairs, self._roots, strict=True):
            # The Trainer empties the gradients of the model's own parameters only.
            root.grad = None
            kl_step(pair.first.weight, root, self._beta, weight * rate)
