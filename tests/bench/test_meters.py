"""Memory beyond what was there before."""

import time

import torch

from laplace_lora.bench.costs import Spent
from laplace_lora.bench.meters import Memory

MIB = 2**20


def test_what_is_taken_and_given_back_counts() -> None:
    memory = Memory()
    with memory.watched(torch.device("cpu")):
        block = torch.ones(64 * MIB // 4)
        time.sleep(0.3)  # memory is looked at a hundred times a second, by a thread that has to get its turn
        del block
    assert 60 * MIB <= memory.peak <= 100 * MIB


def test_what_was_freed_before_hides_nothing() -> None:
    """Small blocks stay with the allocator until it is asked: without that the second time would cost nothing."""
    for _ in range(2):
        memory = Memory()
        with memory.watched(torch.device("cpu")):
            blocks = [bytearray(50_000) for _ in range(1_000)]
            time.sleep(0.3)
            blocks.clear()
        assert memory.peak >= 30 * MIB


def test_the_most_of_what_was_made_before() -> None:
    spent = Spent(1.0)
    assert spent.peak == 0
    spent.add_training(1.0, 1.0, 7)
    spent.add_training(1.0, 1.0)
    assert spent.peak == 7
