"""A dense float64 oracle for any PEFT model: plain loops, and autograd through the model itself.

One unpadded example at a time, one logit at a time, every trainable parameter in full. Nothing is assumed of names but
that ``x.bias`` belongs to ``x.weight`` where both are trained. Nothing here imports ``laplace_lora``.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tiny_models import Example

#: One unpadded example to its K logits, with their graph.
Logits = Callable[[nn.Module, Example], Tensor]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One trained matrix, (out, in), a vector as (out, 1): the parameters that lie in its memory, and its bias.

    Attributes:
        names: Names of the parameters.
        turned: For each, whether it is the transposed matrix.
        bias: Name of the bias that is its last column, or None.
    """

    names: tuple[str, ...]
    turned: tuple[bool, ...]
    bias: str | None


def matrices(model: nn.Module, output: Tensor) -> list[Matrix]:
    """List every trained matrix once, in the order of the model's parameters.

    PEFT marks weights as trained that nothing uses (what ``modules_to_save`` replaced): an output of the model tells.

    Args:
        model: The model.
        output: A number that depends on every matrix that is used.

    Returns:
        The matrices.
    """
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    gradients = torch.autograd.grad(output, list(trained.values()), allow_unused=True)
    used = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None]
    trained = {name: trained[name] for name in used}
    columns = {f"{name.removesuffix('.weight')}.bias" for name in trained if name.endswith(".weight")} & set(trained)
    memory: dict[int, list[str]] = {}
    for name, parameter in trained.items():
        if name not in columns:
            memory.setdefault(parameter.data_ptr(), []).append(name)
    found = []
    for names in memory.values():
        first = trained[names[0]]
        turned = tuple(trained[name].shape != first.shape for name in names)
        bias = f"{names[0].removesuffix('.weight')}.bias"
        found.append(Matrix(tuple(names), turned, bias if bias in columns else None))
    return found


def values(model: nn.Module, matrix: Matrix) -> Tensor:
    """Return a matrix's trained values, the bias as its last column."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    weight = parameters[matrix.names[0]].detach().double()
    weight = weight if weight.dim() == 2 else weight[:, None]
    if matrix.bias is None:
        return weight
    return torch.cat([weight, parameters[matrix.bias].detach().double()[:, None]], dim=1)


def jacobian(model: nn.Module, example: Example, among: Sequence[Matrix], logits: Logits) -> list[Tensor]:
    """Return one example's Jacobian by every matrix, (K, out, in)."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    # A parameter that two modules share is one leaf: its gradient is the sum already, and must be taken once.
    names = [name for m in among for name in dict.fromkeys((*m.names, m.bias)) if name is not None]
    output = logits(model, example)
    rows = []
    for logit in output:
        gradients = torch.autograd.grad(
            logit, [parameters[name] for name in names], retain_graph=True, materialize_grads=True
        )
        rows.append({name: gradient.double() for name, gradient in zip(names, gradients, strict=True)})
    result = []
    for matrix in among:
        leaves = {
            id(parameters[name]): (name, turned) for name, turned in zip(matrix.names, matrix.turned, strict=True)
        }
        columns = []
        for row in rows:
            total = sum(row[name].T if turned else row[name] for name, turned in leaves.values())
            total = total if total.dim() == 2 else total[:, None]
            columns.append(total if matrix.bias is None else torch.cat([total, row[matrix.bias][:, None]], dim=1))
        result.append(torch.stack(columns))
    return result


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Jacobians and logits of training and test examples, every example's in full.

    Attributes:
        matrices: The trained matrices.
        shapes: Their shapes.
        theta: (P,) their values.
        train: Per training example, its Jacobian (K, P).
        test: Per test example, its Jacobian (K, P).
        train_logits: Per training example, its logits (K,).
        test_logits: Per test example, its logits (K,).
        labels: The training examples' labels.
        covered: (P,) True at weights that the posterior covers: rows of output embeddings that are never read aren't.
    """

    matrices: tuple[Matrix, ...]
    shapes: tuple[tuple[int, int], ...]
    theta: Tensor
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    train_logits: tuple[Tensor, ...]
    test_logits: tuple[Tensor, ...]
    labels: tuple[int, ...]
    covered: Tensor

    def precision(self, structure: str, delta: float) -> Tensor:
        """Return the posterior's precision P, dense: ``exact``, ``diag`` or ``kron`` (fitted factors)."""
        size = len(self.theta)
        total = torch.zeros(size, size, dtype=torch.float64)
        if structure == "kron":
            total = torch.block_diag(*(torch.kron(*self._factors(index)) for index in range(len(self.shapes))))
        else:
            for j, logits in zip(self.train, self.train_logits, strict=True):
                term = j.T @ hessian(logits) @ j
                total += term if structure == "exact" else torch.diag(term.diagonal())
        return total + delta * torch.eye(size, dtype=torch.float64)

    def covariance(self, structure: str, delta: float) -> Tensor:
        """Return (n, K, K) covariances of the test examples' centred logits, H J P^-1 J^T H."""
        factor = torch.linalg.cholesky(self.precision(structure, delta))
        found = []
        for j in self.test:
            centred = j - j.mean(0, keepdim=True)
            found.append(centred @ torch.cholesky_solve(centred.T, factor))
        return torch.stack(found)

    def log_evidence(self, delta: float) -> float:
        """Return log p(D | theta*) - 1/2 delta |theta|^2 - 1/2 log det(P / delta) of ``exact``."""
        likelihood = sum(float(f.log_softmax(0)[y]) for f, y in zip(self.train_logits, self.labels, strict=True))
        determinant = torch.linalg.slogdet(self.precision("exact", delta) / delta)[1]
        norm = self.theta[self.covered].square().sum()
        return likelihood - 0.5 * delta * float(norm) - 0.5 * float(determinant)

    def _factors(self, index: int) -> tuple[Tensor, Tensor]:
        """Return L and R of a matrix, fitted to the Jacobians of the root's columns."""
        start = sum(out * inner for out, inner in self.shapes[:index])
        out, inner = self.shapes[index]
        left = torch.zeros(out, out, dtype=torch.float64)
        right = torch.zeros(inner, inner, dtype=torch.float64)
        for j, logits in zip(self.train, self.train_logits, strict=True):
            spectrum, vectors = torch.linalg.eigh(hessian(logits))
            for row in (vectors * spectrum.clamp(min=0).sqrt()).T @ j[:, start : start + out * inner]:
                matrix = row.view(out, inner)
                left += matrix @ matrix.T
                right += matrix.T @ matrix
        trace = float(left.trace())
        return left, right / trace if trace > 0 else right


def hessian(logits: Tensor) -> Tensor:
    """Return Lambda = diag(p) - p p^T."""
    p = logits.double().softmax(0)
    return torch.diag(p) - torch.outer(p, p)


def oracle(
    model: nn.Module,
    train: Sequence[Example],
    test: Sequence[Example],
    logits: Logits,
    read_rows: tuple[str, Sequence[int]] | None = None,
) -> Oracle:
    """Compute every Jacobian of a model.

    Args:
        model: A PEFT model whose covered weights are trainable, and no others.
        train: Training examples with labels.
        test: Test examples.
        logits: Example to logits.
        read_rows: A part of the output embeddings' names, and the rows of their matrices that logits depend on.

    Returns:
        The oracle.
    """
    among = matrices(model, sum(logits(model, example).sum() for example in train))
    found = [values(model, matrix) for matrix in among]

    def rows(examples: Sequence[Example]) -> tuple[Tensor, ...]:
        parts = ([j.flatten(1) for j in jacobian(model, example, among, logits)] for example in examples)
        return tuple(torch.cat(part, dim=1) for part in parts)

    def outputs(examples: Sequence[Example]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(logits(model, example).double() for example in examples)

    covered = []
    for matrix, weight in zip(among, found, strict=True):
        mask = torch.ones_like(weight, dtype=torch.bool)
        at_head = read_rows is not None and len(matrix.names) == 1 and read_rows[0] in matrix.names[0]
        if at_head and len(weight) > max(read_rows[1]):
            mask[:] = False
            mask[list(read_rows[1])] = True
        covered.append(mask.flatten())
    return Oracle(
        tuple(among),
        tuple((weight.shape[0], weight.shape[1]) for weight in found),
        torch.cat([weight.flatten() for weight in found]),
        rows(train),
        rows(test),
        outputs(train),
        outputs(test),
        tuple(int(example["labels"]) for example in train),
        torch.cat(covered),
    )
