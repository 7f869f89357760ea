"""The dense oracle: the covariance of the logits under the full and the block-diagonal GGN, in float64.

It shares nothing with the library: per-example Jacobians from plain ``autograd.grad``, and the posterior in its dual
form, Cov = J D^-1 J^T - J D^-1 Phi^T (I + Phi D^-1 Phi^T)^-1 Phi D^-1 J^T, where Phi stacks R_n^T J_n over the
training data, diag(p) - p p^T = R R^T, and D = delta I is the prior precision.
"""

import argparse
from pathlib import Path

import torch
from case import PRIOR_PRECISION, Batch, centred, inputs_of, read_case, read_model
from safetensors.torch import save_file
from torch import Tensor, nn

Jacobian = dict[str, Tensor]


def jacobian(model: nn.Module, batch: Batch, row: int) -> tuple[Tensor, Jacobian]:
    """Return one example's (K,) logits and their (K, P) Jacobian by parameter."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    logits = model(**{key: tensor[row : row + 1] for key, tensor in inputs_of(batch).items()}).logits[0]
    rows = [
        torch.autograd.grad(logit, list(trained.values()), retain_graph=k + 1 < len(logits))
        for k, logit in enumerate(logits)
    ]
    return logits.detach(), {
        name: torch.stack([gradients[i].flatten() for gradients in rows]) for i, name in enumerate(trained)
    }


def ggn_rows(logits: Tensor, jacobian_: Jacobian) -> Jacobian:
    """Return R^T J. With s = sqrt(p), R = diag(s)(I - s s^T): a square root of diag(p) - p p^T."""
    s = logits.softmax(0).sqrt()
    root = s[:, None] * (torch.eye(len(s), dtype=s.dtype) - torch.outer(s, s))
    return {name: root.T @ block for name, block in jacobian_.items()}


def posterior_covariance(phi: Tensor, test: Tensor) -> Tensor:
    """Return (B, K, K) from (M, P) rows of the GGN and (B, K, P) Jacobians."""
    inner = torch.eye(len(phi), dtype=phi.dtype) + phi @ phi.T / PRIOR_PRECISION
    cross = phi @ test.flatten(0, 1).T / PRIOR_PRECISION  # (M, B K)
    seen = torch.linalg.solve_triangular(torch.linalg.cholesky(inner), cross, upper=False)
    seen = seen.reshape(len(phi), *test.shape[:2])
    return test @ test.mT / PRIOR_PRECISION - torch.einsum("mbk,mbl->bkl", seen, seen)


def covariances(train: list[Jacobian], test: list[Jacobian], names: list[str]) -> dict[str, Tensor]:
    """Return the covariance under the joint GGN of these parameters, and under its blocks, one per parameter."""
    phi = {name: torch.cat([rows[name] for rows in train]) for name in names}
    outputs = {name: torch.stack([rows[name] for rows in test]) for name in names}
    joint = posterior_covariance(torch.cat(list(phi.values()), dim=1), torch.cat(list(outputs.values()), dim=2))
    blocks = torch.stack([posterior_covariance(phi[name], outputs[name]) for name in names]).sum(0)
    return {"joint": centred(joint), "blocks": centred(blocks)}


def main() -> None:
    """Write the oracle's covariances for LoRA with the head (``all``) and for LoRA alone (``lora``)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case = read_case(options.folder, options.classes)
    model = read_model(options.folder, options.classes).double()
    train = [ggn_rows(*jacobian(model, batch, i)) for batch in case.train for i in range(len(batch["labels"]))]
    test = [jacobian(model, case.test, i)[1] for i in range(len(case.test["labels"]))]
    names = {"all": list(test[0]), "lora": [name for name in test[0] if "lora_" in name]}
    results = {
        f"{parameters}.{kind}": covariance.contiguous()
        for parameters, chosen in names.items()
        for kind, covariance in covariances(train, test, chosen).items()
    }
    save_file(results, options.out)


if __name__ == "__main__":
    main()
