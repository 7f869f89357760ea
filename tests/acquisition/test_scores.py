"""Entropy, BALD and BatchBALD against brute force: plain loops, enumeration, and very many random draws."""

import itertools
import math
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from laplace_lora import LaplaceLoRAError, Predictive
from laplace_lora.acquisition import METHODS, bald, batch_bald, entropy, find_method
from laplace_lora.predictive import JointPredictive
from laplace_lora.predictive.even import evened


def _gaussian(examples: int, classes: int, seed: int = 0, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw (n, K) means and (n, K, n, K) covariances, of low rank if asked for: examples that share directions."""
    generator = torch.Generator().manual_seed(seed)
    size = examples * classes
    root = torch.randn(size, rank or size, generator=generator, dtype=torch.float64)
    root *= 1.5 * math.sqrt(2.0 / root.shape[1])
    mean = torch.randn(examples, classes, generator=generator, dtype=torch.float64)
    return mean, (root @ root.T).view(2 * (examples, classes))


def _independent(examples: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    mean, covariance = _gaussian(examples, classes, seed)
    own = torch.arange(examples)
    alone = torch.zeros_like(covariance)
    alone[own, :, own] = covariance[own, :, own]
    return mean, alone


def _own(covariance: Tensor) -> Tensor:
    index = torch.arange(len(covariance))
    return covariance[index, :, index]


def _brute_force(mean: Tensor, covariance: Tensor, batch: list[int], draws: int = 300_000) -> float:
    """Return I(y_batch ; theta) by random draws of the joint logits and a loop over every labelling."""
    examples, classes = mean.shape
    size = examples * classes
    values, vectors = torch.linalg.eigh(covariance.reshape(size, size))
    noise = torch.randn(draws, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    f = mean.reshape(-1) + (noise * values.clamp(min=0.0).sqrt()) @ vectors.T
    p = f.view(draws, examples, classes).softmax(dim=2)[:, batch]
    joint = 0.0
    for labels in itertools.product(range(classes), repeat=len(batch)):
        product = torch.ones(draws, dtype=torch.float64)
        for position, label in enumerate(labels):
            product = product * p[:, position, label]
        probability = float(product.mean())
        joint -= probability * math.log(probability)
    expected = sum(float(-(p[:, i] * p[:, i].log()).sum(dim=1).mean()) for i in range(len(batch)))
    return joint - expected


@pytest.mark.parametrize(("classes", "examples", "rank"), [(2, 5, None), (2, 6, 3), (3, 4, None), (3, 4, 2)])
def test_information_equals_brute_force(classes: int, examples: int, rank: int | None) -> None:
    mean, covariance = _gaussian(examples, classes, seed=classes + examples, rank=rank)
    found = batch_bald(JointPredictive(mean, covariance), 3)
    for size in (1, 2, 3):
        expected = _brute_force(mean, covariance, found.index[:size])
        assert sum(found.gains[:size]) == pytest.approx(expected, abs=4e-3)


def test_every_step_is_the_greedy_one() -> None:
    mean, covariance = _gaussian(6, 2, seed=3, rank=3)
    found = batch_bald(JointPredictive(mean, covariance), 4)
    for size in range(4):
        chosen = found.index[:size]
        others = [i for i in range(6) if i not in chosen]
        informations = {i: _brute_force(mean, covariance, [*chosen, i], 100_000) for i in others}
        # Within the error of both kinds of draws.
        assert informations[found.index[size]] >= max(informations.values()) - 5e-3


@pytest.mark.parametrize("classes", [2, 3])
def test_of_independent_examples_it_is_the_sum_of_bald(classes: int) -> None:
    mean, covariance = _independent(7, classes, seed=1)
    scores = bald(Predictive.from_gaussian(mean, _own(covariance)))
    found = batch_bald(JointPredictive(mean, covariance), 4, points=16_384)
    order = scores.argsort(descending=True)
    assert found.index == order[:4].tolist()
    torch.testing.assert_close(torch.tensor(found.gains), scores[order[:4]].float(), atol=2e-3, rtol=0.0)


def test_of_duplicates_it_takes_one_and_bald_takes_both() -> None:
    """Examples 0 and 1 are the same and the most informative; 2 is another, told less of by its label."""
    mean = torch.zeros(3, 2, dtype=torch.float64)
    contrast = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2.0
    shared = torch.tensor([[9.0, 9.0, 0.0], [9.0, 9.0, 0.0], [0.0, 0.0, 6.0]], dtype=torch.float64)
    covariance = torch.einsum("ij,a,b->iajb", shared, contrast, contrast)
    scores = bald(Predictive.from_gaussian(mean, _own(covariance)))
    assert set(scores.topk(2).indices.tolist()) == {0, 1}
    found = batch_bald(JointPredictive(mean, covariance), 3)
    assert found.index[:2] == [0, 2]
    # The second of the pair still tells something: labels are noisy. But less.
    assert found.gains[2] < 0.7 * found.gains[0]
    assert found.gains[2] == pytest.approx(
        _brute_force(mean, covariance, [0, 1]) - _brute_force(mean, covariance, [0]), abs=3e-3
    )


def test_sampled_configurations_agree_with_all_of_them() -> None:
    mean, covariance = _gaussian(10, 2, seed=5, rank=4)
    joint = JointPredictive(mean, covariance)
    whole = batch_bald(joint, 8, 4096, configurations=2**10)
    sampled = batch_bald(joint, 8, 4096, configurations=64)
    assert sampled.index[:6] == whole.index[:6]
    assert sampled.information == pytest.approx(whole.information, abs=0.03)


def test_gains_fall_and_are_reproducible() -> None:
    mean, covariance = _gaussian(12, 2, seed=8, rank=5)
    joint = JointPredictive(mean, covariance)
    state = torch.get_rng_state()
    found = batch_bald(joint, 6)
    assert torch.equal(torch.get_rng_state(), state)
    # Submodular: with all labellings enumerated, no gain exceeds the one before it.
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(found.gains))
    assert batch_bald(joint, 6) == found
    assert found.draws == 16_384
    assert len(batch_bald(joint, 50).index) == 12


class _Held(TorchDispatchMode):
    """Counts the bytes of tensors that are made, as long as they live, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in given | self._known:
                self._add(one.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        self._known.add(place)
        self.now += size
        self.most = max(self.most, self.now)

        def forget() -> None:
            self._known.discard(place)
            self.now -= size

        weakref.finalize(storage, forget)


@pytest.mark.parametrize(
    ("examples", "classes", "points", "configurations", "count"),
    [(40, 2, 8192, 16, 6), (10, 2, 8192, 256, 10), (20, 10, 4096, 32, 3), (80, 5, 64, 64, 3)],
)
def test_no_more_memory_is_held_than_is_counted(
    examples: int, classes: int, points: int, configurations: int, count: int
) -> None:
    """The limit is compared with a count of bytes, which is no smaller than what is held, and no idle talk."""
    joint = JointPredictive(*_gaussian(examples, classes))
    with pytest.raises(LaplaceLoRAError, match=r"take [0-9]+ bytes") as refused:
        batch_bald(joint, count, points, configurations, memory_limit_bytes=1)
    counted = int(re.findall("take ([0-9]+) bytes", str(refused.value))[0])
    with _Held() as held:
        batch_bald(joint, count, points, configurations)
    assert 0.3 * counted < held.most <= counted


def test_options_that_an_example_lacks_count_for_nothing() -> None:
    mean, covariance = _gaussian(4, 3, seed=2)
    mean[1, 2], covariance[1, 2], covariance[:, :, 1, 2] = -math.inf, 0.0, 0.0
    found = batch_bald(JointPredictive(mean, covariance), 4, points=16_384)
    own = Predictive.from_gaussian(mean[1:2, :2], _own(covariance)[1:2, :2, :2])
    assert sorted(found.index) == [0, 1, 2, 3]
    alone = batch_bald(JointPredictive(mean[1:2], covariance[1:2, :, 1:2]), 1, points=16_384)
    assert alone.gains[0] == pytest.approx(float(bald(own)[0]), abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kept_answers_and_temperature_are_those_of_predictions(temperature: float) -> None:
    mean, covariance = _gaussian(4, 3, seed=4)
    joint = JointPredictive(mean, covariance, None, temperature, True)
    averaged, even = joint.averaged()
    torch.testing.assert_close(_own(even), evened(_own(covariance)), rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.eigvalsh(even.reshape(12, 12)).min()) > -1e-12
    torch.testing.assert_close(averaged, mean / temperature)
    scores = bald(Predictive.from_gaussian(mean, _own(covariance), temperature=temperature, keeps_answers=True))
    found = batch_bald(joint, 1, points=16_384)
    assert found.gains[0] == pytest.approx(float(scores.max()), abs=1e-3)


def test_evened_blocks_of_ragged_options_are_positive() -> None:
    mean, covariance = _gaussian(4, 4, seed=6)
    mean[0, 3], covariance[0, 3], covariance[:, :, 0, 3] = -math.inf, 0.0, 0.0
    _, even = JointPredictive(mean, covariance, keeps_answers=True).averaged()
    assert float(torch.linalg.eigvalsh(even.reshape(16, 16)).min()) > -1e-12
    torch.testing.assert_close(_own(even)[:1, :3, :3], evened(_own(covariance)[:1, :3, :3]), rtol=1e-12, atol=1e-12)
    assert float(even[0, 3].abs().max()) == 0.0


def test_of_real_numbers_it_is_a_log_determinant() -> None:
    mean, covariance = _gaussian(6, 1, seed=7, rank=3)
    noise = 0.3
    found = batch_bald(JointPredictive(mean, covariance, noise), 4)
    matrix = covariance.reshape(6, 6)
    for size in range(1, 5):
        part = matrix[found.index[:size]][:, found.index[:size]]
        expected = 0.5 * float(torch.linalg.slogdet(torch.eye(size, dtype=torch.float64) + part / noise).logabsdet)
        assert sum(found.gains[:size]) == pytest.approx(expected, rel=1e-10)
    best = max(itertools.combinations(range(6), 1), key=lambda batch: matrix[batch[0], batch[0]])
    assert found.index[0] == best[0]
    assert found.draws is None


def test_scores_of_single_examples() -> None:
    mean, covariance = _gaussian(5, 3, seed=9)
    p = Predictive.from_gaussian(mean, _own(covariance))
    by_hand = torch.stack([-(row * row.log()).sum() for row in p.probabilities])
    torch.testing.assert_close(entropy(p), by_hand)
    for i in range(5):
        expected = _brute_force(mean, covariance, [i], 200_000)
        assert float(bald(p)[i]) == pytest.approx(expected, abs=3e-3)


def test_what_cannot_be_scored_is_refused() -> None:
    outputs = Predictive.of_outputs(torch.zeros(3, 1), torch.ones(3, 1, 1))
    for score in (bald, entropy):
        with pytest.raises(LaplaceLoRAError, match="Rank those by predict's sd"):
            score(outputs)
    joint = JointPredictive(torch.zeros(3, 1), torch.eye(3)[:, None, :, None])
    with pytest.raises(LaplaceLoRAError, match="rank by predict's sd"):
        batch_bald(joint, 1)
    with pytest.raises(LaplaceLoRAError, match="at least 1"):
        batch_bald(joint, 0)
    with pytest.raises(LaplaceLoRAError, match="fewer candidates or points"):
        batch_bald(JointPredictive(*_gaussian(4, 2)), 2, memory_limit_bytes=100_000)
    with pytest.raises(LaplaceLoRAError, match="bald, batch_bald, entropy"):
        find_method("guess")
    assert sorted(METHODS) == ["bald", "batch_bald", "entropy"]
