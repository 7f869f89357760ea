"""Dense fp64 oracles: the mathematics of the posterior as plain loops, independent of the library's code.

One unpadded example at a time, one logit at a time, every matrix in full. Nothing here is fast, and nothing here
imports ``laplace_lora``. Conventions: K logits f; a *block* is one weight matrix (out x in), its bias, where it has
one, as a last column; weights are listed row by row, block after block; P is the number of weights.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tiny_models import Example

Deltas = float | Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Block:
    """One weight matrix of the adapter; ``name`` is that of its layer, ``module`` that of the layer it adapts."""

    name: str
    module: str
    layer: str
    weight: str
    bias: str | None
    head: bool


def blocks(model: nn.Module, include_head: bool = True) -> list[Block]:
    """List every trainable matrix in the order of the model's parameters.

    Args:
        model: A PEFT model with trainable LoRA factors and, perhaps, fully trained linear layers.
        include_head: Whether to list the fully trained layers.

    Returns:
        The blocks. Every trainable parameter is in exactly one.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = []
    for name in trainable:
        if name.endswith(".bias"):
            continue
        layer, bias = name.removesuffix(".weight"), name.removesuffix(".weight") + ".bias"
        short = layer.removesuffix(".default").removesuffix(".modules_to_save")
        module = short.removesuffix(".lora_A").removesuffix(".lora_B")
        head = ".modules_to_save." in name
        found.append(Block(short, module, layer, name, bias if bias in trainable else None, head))
    assert sum(1 + (block.bias is not None) for block in found) == len(trainable)
    return [block for block in found if include_head or not block.head]


def weights(model: nn.Module, block: Block) -> Tensor:
    """Return a block's values, (out, in) with the bias as last column."""
    parameters = dict(model.named_parameters())
    matrix = parameters[block.weight].detach().double()
    if block.bias is None:
        return matrix
    return torch.cat([matrix, parameters[block.bias].detach().double()[:, None]], dim=1)


# --- Jacobians -------------------------------------------------------------------------------------------------


def logits(model: nn.Module, example: Example) -> Tensor:
    """Return the K logits of one unpadded example, with their graph."""
    ids = example["input_ids"][None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


def jacobian(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """Return d logits / d parameter for every trainable parameter: name -> (K, *parameter.shape)."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    output = logits(model, example)
    rows = [torch.autograd.grad(logit, list(trainable.values()), retain_graph=True) for logit in output]
    return {name: torch.stack(columns) for name, columns in zip(trainable, zip(*rows, strict=True), strict=True)}


def block_jacobian(jacobians: Mapping[str, Tensor], block: Block) -> Tensor:
    """Return one block's Jacobian (K, out, in), the bias as last column."""
    weight = jacobians[block.weight]
    if block.bias is None:
        return weight.double()
    return torch.cat([weight, jacobians[block.bias][:, :, None]], dim=2).double()


def joint_jacobian(model: nn.Module, example: Example, among: Sequence[Block]) -> Tensor:
    """Return the Jacobian (K, P) of one example with respect to the listed blocks."""
    jacobians = jacobian(model, example)
    return torch.cat([block_jacobian(jacobians, block).flatten(1) for block in among], dim=1)


# --- likelihoods -----------------------------------------------------------------------------------------------


def hessian(logits: Tensor, noise_variance: float | None = None) -> Tensor:
    """Return Lambda (K, K): diag(p) - p p^T, or I / sigma^2 where a noise variance is given."""
    if noise_variance is not None:
        return torch.eye(len(logits), dtype=torch.float64) / noise_variance
    p = logits.double().softmax(0)
    return torch.diag(p) - torch.outer(p, p)


def root_symmetric(logits: Tensor, noise_variance: float | None = None) -> Tensor:
    """Return the symmetric square root of Lambda, K columns."""
    values, vectors = torch.linalg.eigh(hessian(logits, noise_variance))
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def root_labels(logits: Tensor) -> Tensor:
    """Return the softmax root by labels: column y is sqrt(p_y) (e_y - p), K columns."""
    p = logits.double().softmax(0)
    return (torch.eye(len(p), dtype=p.dtype) - p[:, None]) * p.sqrt()


def root_complement(logits: Tensor) -> Tensor:
    """Return the softmax root diag(sqrt p) Q, K-1 columns, Q an orthonormal complement of sqrt p."""
    s = logits.double().softmax(0).sqrt()
    frame = torch.cat([s[:, None], torch.eye(len(s), dtype=s.dtype)[:, :-1]], dim=1)
    return s[:, None] * torch.linalg.qr(frame).Q[:, 1:]


def log_likelihood(logits: Tensor, label: Tensor, noise_variance: float | None = None) -> Tensor:
    """Return log p(y | f): categorical, or Gaussian where a noise variance is given."""
    if noise_variance is None:
        return logits.double().log_softmax(0)[label]
    residual = label.double() - logits.double()
    normaliser = torch.log(torch.tensor(2 * torch.pi * noise_variance, dtype=torch.float64))
    return -0.5 * (residual.square() / noise_variance + normaliser).sum()


# --- Kronecker factors -----------------------------------------------------------------------------------------

# One example's part in a block: inputs (T, in) and, for each of the root's columns, output gradients (T, out).
Part = tuple[Tensor, Tensor]


def layer_parts(model: nn.Module, example: Example, among: Sequence[Block]) -> dict[str, Part]:
    """Return, for one unpadded example, each block's inputs (T, in) and logit gradients (K, T, out).

    A head that is applied at every position but read at one has only that position: the outputs elsewhere do not
    enter any logit, as if they had not been computed.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(block: Block) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert block.name not in seen, "the layer ran twice"
            seen[block.name] = (inputs[0], output)

        return hook

    handles = [model.get_submodule(block.layer).register_forward_hook(keep(block)) for block in among]
    try:
        output = logits(model, example)
    finally:
        for handle in handles:
            handle.remove()
    outputs = [seen[block.name][1] for block in among]
    per_logit = [torch.autograd.grad(logit, outputs, retain_graph=True) for logit in output]
    parts = {}
    for index, block in enumerate(among):
        x = seen[block.name][0].detach().double().flatten(0, -2)
        g = torch.stack([gradients[index].double().flatten(0, -2) for gradients in per_logit])
        if block.head:
            used = g.abs().amax(dim=(0, 2)) > 0
            x, g = x[used], g[:, used]
        if block.bias is not None:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        parts[block.name] = (x, g)
    return parts


def kronecker_factors(parts: Sequence[Part], rule: str) -> tuple[Tensor, Tensor]:
    """Return L (out x out) and R (in x in) from inputs and root gradients, by the definition of ``rule``.

    Args:
        parts: Per example, x (T, in) and g (columns of the root, T, out).
        rule: ``expand``, ``reduce``, ``fitted`` or ``official``.

    Returns:
        The two factors; the block is approximated by kron(L, R) on row-major weights.
    """
    x, g = parts[0]
    left = torch.zeros(g.shape[-1], g.shape[-1], dtype=torch.float64)
    right = torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64)
    tokens = 0
    for x, g in parts:
        tokens += len(x)
        for column in g:
            per_example = column.T @ x
            if rule in ("expand", "official"):
                for gradient in column:
                    left += torch.outer(gradient, gradient)
            elif rule == "reduce":
                left += torch.outer(column.sum(0), column.sum(0))
            else:
                left += per_example @ per_example.T
                right += per_example.T @ per_example
        if rule in ("expand", "official"):
            for token in x:
                right += torch.outer(token, token)
        elif rule == "reduce":
            right += torch.outer(x.mean(0), x.mean(0))
    count = {"expand": tokens, "reduce": len(parts), "official": len(parts), "fitted": float(left.trace())}[rule]
    # A fitted block without any gradient (the queries of a one-token example) is zero, whatever R is.
    return left, right / count if count else right


def exact_block(parts: Sequence[Part]) -> Tensor:
    """Return the exact block: the sum over examples and root columns of vec(J) vec(J)^T."""
    x, g = parts[0]
    block = torch.zeros(g.shape[-1] * x.shape[-1], g.shape[-1] * x.shape[-1], dtype=torch.float64)
    for x, g in parts:
        for column in g:
            row = (column.T @ x).flatten()
            block += torch.outer(row, row)
    return block


def kronecker_block(parts: Sequence[Part], rule: str) -> Tensor:
    """Return kron(L, R)."""
    return torch.kron(*kronecker_factors(parts, rule))


def corrected_block(parts: Sequence[Part], rule: str) -> Tensor:
    """Return Q diag(Q^T F Q) Q^T, F the exact block and Q the eigenvectors of kron(L, R)."""
    basis = torch.kron(*(torch.linalg.eigh(factor).eigenvectors for factor in kronecker_factors(parts, rule)))
    return basis @ torch.diag((basis.T @ exact_block(parts) @ basis).diagonal()) @ basis.T


def root_parts(
    model: nn.Module,
    examples: Sequence[Example],
    among: Sequence[Block],
    root: Callable[[Tensor], Tensor] = root_symmetric,
) -> dict[str, list[Part]]:
    """Return every example's parts with the logit gradients combined into the columns of ``root(logits)``."""
    collected: dict[str, list[Part]] = {block.name: [] for block in among}
    for example in examples:
        columns = root(logits(model, example).detach())
        for name, (x, g) in layer_parts(model, example, among).items():
            collected[name].append((x, torch.einsum("kr,kto->rto", columns, g)))
    return collected


# --- posteriors ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DensePosterior:
    """A Gaussian over the weights of ``blocks`` with every matrix held in full.

    Attributes:
        blocks: The matrices covered, in order.
        sizes: Their numbers of weights.
        likelihood: The likelihood's part of the precision, (P, P).
        mean: The trained weights, (P,).
        log_likelihood: Sum over the data of log p(y | theta*); 0 where there are no labels.
    """

    blocks: tuple[Block, ...]
    sizes: tuple[int, ...]
    likelihood: Tensor
    mean: Tensor
    log_likelihood: float

    def prior(self, deltas: Deltas) -> Tensor:
        """Return the prior precision of every weight, (P,)."""
        if not isinstance(deltas, Mapping):
            deltas = {block.name: deltas for block in self.blocks}
        pairs = zip(self.blocks, self.sizes, strict=True)
        return torch.cat([torch.full((size,), float(deltas[b.name]), dtype=torch.float64) for b, size in pairs])

    def precision(self, deltas: Deltas) -> Tensor:
        """Return P = likelihood part + Delta."""
        return self.likelihood + torch.diag(self.prior(deltas))

    def covariance(self, deltas: Deltas) -> Tensor:
        """Return P^-1."""
        return torch.cholesky_inverse(torch.linalg.cholesky(self.precision(deltas)))

    def functional(self, model: nn.Module, example: Example, deltas: Deltas, centred: bool = True) -> Tensor:
        """Return J P^-1 J^T of one example's logits, or its centred form H J P^-1 J^T H."""
        j = joint_jacobian(model, example, self.blocks)
        if centred:
            j = j - j.mean(0, keepdim=True)
        return j @ self.covariance(deltas) @ j.T

    def log_evidence(self, deltas: Deltas) -> float:
        """Return log p(D | theta*) - 1/2 sum delta |theta|^2 - 1/2 log det(P Delta^-1)."""
        prior = self.prior(deltas)
        log_determinant = torch.linalg.slogdet(self.precision(deltas))[1] - prior.log().sum()
        return float(self.log_likelihood - 0.5 * (prior * self.mean.square()).sum() - 0.5 * log_determinant)

    def effective_parameters(self, deltas: Deltas) -> dict[str, float]:
        """Return gamma of every block: the sum over its weights of 1 - delta (P^-1)_ii."""
        shares = 1.0 - self.prior(deltas) * self.covariance(deltas).diagonal()
        return {b.name: float(part.sum()) for b, part in zip(self.blocks, shares.split(self.sizes), strict=True)}

    def squared_norms(self) -> dict[str, float]:
        """Return |theta|^2 of every block."""
        parts = self.mean.split(self.sizes)
        return {b.name: float(part.square().sum()) for b, part in zip(self.blocks, parts, strict=True)}

    def evidence_gradient(self, deltas: Mapping[str, float]) -> dict[str, float]:
        """Return the derivative of the log evidence by the log of every block's precision."""
        gamma, norms = self.effective_parameters(deltas), self.squared_norms()
        return {b.name: 0.5 * (gamma[b.name] - deltas[b.name] * norms[b.name]) for b in self.blocks}


def dense_posterior(
    model: nn.Module,
    examples: Sequence[Example],
    structure: str,
    kfac: str = "fitted",
    include_head: bool = True,
    noise_variance: float | None = None,
) -> DensePosterior:
    """Build the dense posterior of one of the library's structures.

    Args:
        model: The PEFT model, with trainable adapter.
        examples: The training data.
        structure: ``exact`` (all blocks jointly; ``low_rank`` and ``kron_low_rank`` equal it where the data have no
            more rows than they have directions, and are taken for it here), ``block`` (exact within each block),
            ``diag``, ``isotropic``, ``kron``, ``ekfac`` (the diagonal of each exact block in the eigenbasis of
            ``kron``'s factors), or ``last_layer`` (``kron`` on the head alone).
        kfac: The rule of the Kronecker factors.
        include_head: Whether fully trained layers belong to it.
        noise_variance: Of a Gaussian likelihood; None for the categorical.

    Returns:
        The posterior.
    """
    among = [block for block in blocks(model, include_head) if structure != "last_layer" or block.head]
    values = [weights(model, block).flatten() for block in among]
    if structure in ("kron", "ekfac", "last_layer"):
        parts = root_parts(model, examples, among, lambda f: root_symmetric(f, noise_variance))
        block_of = corrected_block if structure == "ekfac" else kronecker_block
        likelihood = torch.block_diag(*(block_of(parts[b.name], kfac) for b in among))
    else:
        likelihood = dense_ggn(model, examples, among, noise_variance)
        if structure == "block":
            likelihood = block_diagonal(likelihood, [len(value) for value in values])
        elif structure == "diag":
            likelihood = torch.diag(likelihood.diagonal())
        elif structure == "isotropic":
            means = [part.mean().expand(len(part)) for part in likelihood.diagonal().split([len(v) for v in values])]
            likelihood = torch.diag(torch.cat(means))
    total = 0.0
    for example in examples:
        if "labels" in example:
            total += float(log_likelihood(logits(model, example).detach(), example["labels"], noise_variance))
    sizes = tuple(len(value) for value in values)
    return DensePosterior(tuple(among), sizes, likelihood, torch.cat(values), total)


def dense_ggn(
    model: nn.Module, examples: Sequence[Example], among: Sequence[Block], noise_variance: float | None = None
) -> Tensor:
    """Return the generalised Gauss-Newton matrix sum_n J_n^T Lambda_n J_n, (P, P)."""
    total = None
    for example in examples:
        j = joint_jacobian(model, example, among)
        term = j.T @ hessian(logits(model, example).detach(), noise_variance) @ j
        total = term if total is None else total + term
    assert total is not None
    return total


def block_diagonal(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the matrix with everything outside its diagonal blocks set to zero."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(matrix[start : start + size, start : start + size])
        start += size
    return torch.block_diag(*pieces)


def by_group(values: Mapping[str, float], groups: Mapping[str, str]) -> dict[str, float]:
    """Add up per-block values by group, ``groups`` naming every block's."""
    totals: dict[str, float] = {}
    for name, value in values.items():
        totals[groups[name]] = totals.get(groups[name], 0.0) + value
    return totals


def prior_groups(among: Sequence[Block], kind: str) -> dict[str, str]:
    """Return block name -> group name for one of ``global``, ``module`` and ``matrix``."""
    return {b.name: {"global": "all", "module": b.module, "matrix": b.name}[kind] for b in among}
