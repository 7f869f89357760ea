"""Predictions for the evaluation's tests."""

import numpy as np


def sharpened(probabilities, power):
    values = probabilities**power
    return values / values.sum(1, keepdims=True)


def example(n=300, classes=2, seed=0):
    """Truth is calibrated; MAP is the truth, sharpened. Returns MAP, truth, labels."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(classes, 1.5), n)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    return sharpened(truth, 6.0), truth, labels


def tied_predictions(n=90, classes=3, levels=5, seed=0):
    """Probabilities with only a few different confidences, so that most examples are tied."""
    rng = np.random.default_rng(seed)
    confidence = rng.choice(np.linspace(1 / classes + 0.1, 1.0, levels), n)
    probabilities = np.repeat(((1.0 - confidence) / (classes - 1))[:, None], classes, axis=1)
    probabilities[np.arange(n), rng.integers(0, classes, n)] = confidence
    labels = np.where(rng.random(n) < 0.6, probabilities.argmax(1), rng.integers(0, classes, n))
    return probabilities, labels
