"""The oracles agree with each other and with cases that can be solved by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import oracles
from tiny_models import MODELS, batches, collate, random_examples, tiny_bert, tiny_llama

RULES = ("fitted", "expand", "reduce")


def close(left: Tensor, right: Tensor, rtol: float = 1e-9) -> None:
    """Assert equality relative to the largest entry."""
    assert (left - right).abs().max() <= rtol * right.abs().max()


# --- the tiny models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_model_is_deterministic_and_has_an_active_adapter(name: str) -> None:
    model, example = MODELS[name](), random_examples(1)[0]
    first, second = oracles.logits(model, example), oracles.logits(model, example)
    assert torch.equal(first, second)
    with model.disable_adapter():
        assert (oracles.logits(model, example) - first).abs().max() > 1e-2
    assert first.dtype == torch.float64


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_model(name: str) -> None:
    state, again = MODELS[name]().state_dict(), MODELS[name]().state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "side"), [("bert", "right"), ("llama", "right"), ("llama", "left"), ("gpt2", "right")]
)
def test_padding_does_not_change_the_logits(name: str, side: str) -> None:
    model, examples = MODELS[name](), random_examples(5)
    batch = collate(examples, side)
    del batch["labels"]
    with torch.no_grad():
        together = model(**batch).logits
        alone = torch.stack([oracles.logits(model, example) for example in examples])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


def test_left_padding_needs_positions_for_absolute_embeddings() -> None:
    model, examples = MODELS["gpt2"](), random_examples(5)
    batch = collate(examples, "left")
    del batch["labels"]
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        alone = torch.stack([oracles.logits(model, example) for example in examples])
        wrong = model(**batch).logits
        right = model(**batch, position_ids=positions).logits
    assert (wrong - alone).abs().max() > 1e-2
    torch.testing.assert_close(right, alone, rtol=1e-10, atol=1e-12)


def test_batches_hold_every_example_once() -> None:
    examples = random_examples(7)
    sizes = [batch["attention_mask"].sum(1).tolist() for batch in batches(examples, 3, "left")]
    assert [length for rows in sizes for length in rows] == [len(example["input_ids"]) for example in examples]


# --- Jacobians and roots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_jacobian_predicts_a_small_step(name: str) -> None:
    model, example = MODELS[name](), random_examples(1)[0]
    among = oracles.blocks(model)
    j = oracles.joint_jacobian(model, example, among)
    step = torch.randn(j.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved(size: float) -> Tensor:
        start = 0
        parameters = dict(model.named_parameters())
        for block in among:
            count = oracles.weights(model, block).numel()
            change = size * step[start : start + count].view(len(parameters[block.weight]), -1)
            start += count
            if block.bias is not None:
                parameters[block.bias].data += change[:, -1]
                change = change[:, :-1]
            parameters[block.weight].data += change
        return oracles.logits(model, example).detach()

    h = 1e-5
    up, down = moved(h), moved(-2 * h)
    moved(h)
    close((up - down) / (2 * h), j @ step, 1e-6)


@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("name", MODELS)
def test_captured_tokens_add_up_to_the_jacobian(name: str, targets: str | None) -> None:
    model = MODELS[name](**({} if targets is None else {"targets": targets}))
    example = random_examples(1, seed=3)[0]
    among = oracles.blocks(model)
    jacobians = oracles.jacobian(model, example)
    for block, (x, g) in zip(among, oracles.layer_parts(model, example, among).values(), strict=True):
        close(torch.einsum("kto,ti->koi", g, x), oracles.block_jacobian(jacobians, block), 1e-10)


def test_head_block_is_known_by_hand() -> None:
    """Logit k of a linear head depends on row k alone: J = e_k [pooled; 1]^T."""
    model, example = tiny_bert(), random_examples(1)[0]
    (head,) = [block for block in oracles.blocks(model) if block.head]
    x, g = oracles.layer_parts(model, example, [head])[head.name]
    assert x.shape == (1, 17)
    assert x[0, -1] == 1
    assert torch.equal(g[:, 0], torch.eye(3, dtype=torch.float64))
    (score,) = [block for block in oracles.blocks(tiny_llama()) if block.head]
    x, g = oracles.layer_parts(tiny_llama(), example, [score])[score.name]
    assert x.shape == (1, 16)
    assert torch.equal(g[:, 0], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_roots_square_to_the_hessian(k: int) -> None:
    f = 3 * torch.randn(k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    f[0] = 30.0  # one nearly certain class: the Hessian is almost zero
    for values in (f, f / 10):
        for root in (oracles.root_symmetric, oracles.root_labels, oracles.root_complement):
            columns = root(values)
            torch.testing.assert_close(columns @ columns.T, oracles.hessian(values), rtol=1e-9, atol=1e-15)
    assert oracles.root_complement(f).shape == (k, k - 1)


def test_hessian_is_that_of_the_log_likelihood() -> None:
    f = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for variance in (None, 0.3):
        label = torch.tensor(2) if variance is None else torch.randn(4)
        numeric = torch.autograd.functional.hessian(lambda x, y=label, v=variance: -oracles.log_likelihood(x, y, v), f)
        close(oracles.hessian(f, variance), numeric)


# --- GGN, Kronecker factors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_root_rows_add_up_to_the_ggn(name: str) -> None:
    model, examples = MODELS[name](4), random_examples(4, 4)
    among = oracles.blocks(model)
    ggn = oracles.dense_ggn(model, examples, among)
    rows = []
    for example in examples:
        j = oracles.joint_jacobian(model, example, among)
        rows.append(oracles.root_complement(oracles.logits(model, example).detach()).T @ j)
    phi = torch.cat(rows)
    assert phi.shape[0] == 4 * 3
    close(phi.T @ phi, ggn)
    parts = oracles.root_parts(model, examples, among)
    sizes = [oracles.weights(model, block).numel() for block in among]
    close(torch.block_diag(*map(oracles.exact_block, parts.values())), oracles.block_diagonal(ggn, sizes))


@pytest.mark.parametrize("rule", RULES)
def test_factors_do_not_depend_on_the_root(rule: str) -> None:
    model, examples = tiny_bert(4), random_examples(3, 4)
    among = oracles.blocks(model)
    reference = oracles.root_parts(model, examples, among, oracles.root_symmetric)
    for root in (oracles.root_labels, oracles.root_complement):
        for name, parts in oracles.root_parts(model, examples, among, root).items():
            for factor, expected in zip(
                oracles.kronecker_factors(parts, rule), oracles.kronecker_factors(reference[name], rule), strict=True
            ):
                close(factor, expected)


def test_fitted_has_the_trace_and_the_partial_traces_of_the_exact_block() -> None:
    model, examples = tiny_llama(), random_examples(4)
    for parts in oracles.root_parts(model, examples, oracles.blocks(model)).values():
        left, right = oracles.kronecker_factors(parts, "fitted")
        block = oracles.exact_block(parts)
        out, inner = len(left), len(right)
        four = block.view(out, inner, out, inner)
        close(left.trace() * right.trace(), block.trace())
        close(left * right.trace(), torch.einsum("ajbj->ab", four))
        close(left.trace() * right, torch.einsum("iaib->ab", four))


@pytest.mark.parametrize("rule", RULES)
def test_doubling_the_data_doubles_the_block(rule: str) -> None:
    model, examples = tiny_bert(), random_examples(3)
    one = oracles.dense_posterior(model, examples, "kron", rule)
    two = oracles.dense_posterior(model, examples + examples[::-1], "kron", rule)
    close(two.likelihood, 2 * one.likelihood)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_one_token_two_classes_one_example_is_exact(rule: str, build: object) -> None:
    model, examples = build(2), random_examples(1, 2, shortest=1, longest=1)
    kron = oracles.dense_posterior(model, examples, "kron", rule)
    close(kron.likelihood, oracles.dense_posterior(model, examples, "block").likelihood)


def _deep_linear(lengths: Sequence[int], seed: int) -> list[list[oracles.Part]]:
    """Parts of both layers of f = mean_t W2 W1 x_t under a Gaussian likelihood, by autograd."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    second = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    root = oracles.root_symmetric(torch.zeros(3), noise_variance=0.4)
    collected: list[list[oracles.Part]] = [[], []]
    for length in lengths:
        x = torch.randn(length, 5, dtype=torch.float64, generator=generator)
        hidden = x @ first.T
        output = hidden @ second.T
        logits = output.mean(0)
        per_logit = [torch.autograd.grad(logit, [hidden, output], retain_graph=True) for logit in logits]
        weights = [torch.autograd.grad(logit, [first, second], retain_graph=True) for logit in logits]
        for layer, inputs in enumerate((x, hidden.detach())):
            g = torch.stack([gradients[layer] for gradients in per_logit])
            close(torch.einsum("kto,ti->koi", g, inputs), torch.stack([pair[layer] for pair in weights]))
            collected[layer].append((inputs, torch.einsum("kr,kto->rto", root, g)))
    return collected


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rule", ["fitted", "reduce"])
def test_fitted_and_reduce_are_exact_on_a_linear_network(rule: str, layer: int) -> None:
    parts = _deep_linear([1, 3, 7, 4], seed=0)[layer]
    close(torch.kron(*oracles.kronecker_factors(parts, rule)), oracles.exact_block(parts))


@pytest.mark.parametrize("layer", [0, 1])
def test_expand_is_exact_on_a_linear_network_at_one_token_only(layer: int) -> None:
    parts = _deep_linear([1, 1, 1, 1], seed=1)[layer]
    close(torch.kron(*oracles.kronecker_factors(parts, "expand")), oracles.exact_block(parts))
    parts = _deep_linear([3, 5, 4, 6], seed=1)[layer]
    block = oracles.exact_block(parts)
    assert (torch.kron(*oracles.kronecker_factors(parts, "expand")) - block).norm() > 0.1 * block.norm()


# --- posterior, evidence ---------------------------------------------------------------------------------------


def _posteriors() -> list[oracles.DensePosterior]:
    model, examples = tiny_bert(), random_examples(5)
    return [oracles.dense_posterior(model, examples, name) for name in ("exact", "block", "diag", "kron", "last_layer")]


def test_covariance_in_primal_and_dual_form() -> None:
    model, examples, test = tiny_bert(), random_examples(5), random_examples(1, seed=9)[0]
    posterior = oracles.dense_posterior(model, examples, "exact")
    deltas = {block.name: 0.5 + 0.3 * index for index, block in enumerate(posterior.blocks)}
    rows = []
    for example in examples:
        root = oracles.root_complement(oracles.logits(model, example).detach())
        rows.append(root.T @ oracles.joint_jacobian(model, example, posterior.blocks))
    phi, j = torch.cat(rows), oracles.joint_jacobian(model, test, posterior.blocks)
    weighted = phi / posterior.prior(deltas)
    inner = torch.eye(len(phi), dtype=torch.float64) + weighted @ phi.T
    cross = (j / posterior.prior(deltas)) @ phi.T
    dual = (j / posterior.prior(deltas)) @ j.T - cross @ torch.linalg.solve(inner, cross.T)
    close(dual, posterior.functional(model, test, deltas, centred=False))
    centring = torch.eye(3, dtype=torch.float64) - 1 / 3
    close(centring @ dual @ centring, posterior.functional(model, test, deltas))
    determinant = posterior.log_evidence(deltas) - posterior.log_likelihood
    determinant += 0.5 * float((posterior.prior(deltas) * posterior.mean.square()).sum())
    assert math.isclose(determinant, -0.5 * float(torch.linalg.slogdet(inner)[1]), rel_tol=1e-9)


def test_evidence_gradient_is_the_difference_quotient() -> None:
    for posterior in _posteriors():
        deltas = {block.name: 0.4 + 0.2 * index for index, block in enumerate(posterior.blocks)}
        gradient = posterior.evidence_gradient(deltas)
        for name in deltas:
            h = 1e-4
            up, down = ({**deltas, name: deltas[name] * math.exp(sign * h)} for sign in (1, -1))
            quotient = (posterior.log_evidence(up) - posterior.log_evidence(down)) / (2 * h)
            assert math.isclose(quotient, gradient[name], rel_tol=1e-6, abs_tol=1e-7)


def test_effective_parameters_are_between_none_and_all() -> None:
    for posterior in _posteriors():
        few, many = posterior.effective_parameters(1e6), posterior.effective_parameters(1e-6)
        for block, size in zip(posterior.blocks, posterior.sizes, strict=True):
            assert -1e-9 <= few[block.name] <= many[block.name] <= size + 1e-6


def test_no_data_leaves_the_prior() -> None:
    model, test = tiny_bert(), random_examples(1)[0]
    posterior = oracles.dense_posterior(model, random_examples(1), "exact")
    prior = oracles.DensePosterior(
        posterior.blocks, posterior.sizes, torch.zeros_like(posterior.likelihood), posterior.mean, 0.0
    )
    j = oracles.joint_jacobian(model, test, posterior.blocks)
    close(prior.functional(model, test, 4.0, centred=False), j @ j.T / 4)
    expected = -2.0 * float(posterior.mean.square().sum())
    assert math.isclose(prior.log_evidence(4.0), expected, rel_tol=1e-12)


def test_groups_partition_the_blocks() -> None:
    model = tiny_bert()
    among = oracles.blocks(model)
    counts = {kind: len(set(oracles.prior_groups(among, kind).values())) for kind in ("global", "module", "matrix")}
    assert counts == {"global": 1, "module": 5, "matrix": 9}
    assert len(oracles.blocks(model, include_head=False)) == 8
