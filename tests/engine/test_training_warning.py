"""Evidence tuning warns where it makes a sound adapter under-confident, and not where it mends an over-fitted one.

Small adapters are really trained on six classes, as many as TREC has: sound ones on clean labels and stopped early,
over-fitted ones on noisy labels until they interpolate them. Which of the two an adapter is, held-out data say.
"""

import dataclasses
import functools
import types
import warnings

import peft
import pytest
import torch
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA, Predictive
from tiny_models import Batch

CLASSES, LENGTH, WORDS_EACH, WIDTH = 6, 10, 8, 64
VOCAB = 1 + 15 * WORDS_EACH
REMEDY = "tune_prior('validation', loader)"


class _Network(nn.Module):
    """Averaged word vectors, two layers to adapt, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids: Tensor) -> types.SimpleNamespace:
        hidden = self.embed(input_ids).mean(1)
        for layer in (self.first, self.second):
            hidden = torch.tanh(1.5 * layer(hidden))
        return types.SimpleNamespace(logits=self.head(hidden))


def _draw(count: int, seed: int, clear: int, noise: float) -> Batch:
    """Draw sentences with ``clear`` of ten words from their class's own, and labels, some of them drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    ids = torch.randint(1, VOCAB, (count, LENGTH), generator=generator)
    own = 1 + labels[:, None] * WORDS_EACH + torch.randint(WORDS_EACH, (count, LENGTH), generator=generator)
    places = torch.rand(count, LENGTH, generator=generator).argsort(1) < clear
    drawn = torch.randint(CLASSES, (count,), generator=generator)
    noisy = torch.rand(count, generator=generator) < noise
    return {"input_ids": torch.where(places, own, ids), "labels": torch.where(noisy, drawn, labels)}


def _train(data: Batch, stop_below: float, seed: int) -> peft.PeftModel:
    """Train an adapter until its training NLL is below a value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = peft.LoraConfig(target_modules=["first", "second"], modules_to_save=["head"], r=8, lora_alpha=16)
        model = peft.get_peft_model(_Network(), settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(400):
        for rows in torch.randperm(len(data["labels"]), generator=generator).split(32):
            loss = nn.functional.cross_entropy(model(input_ids=data["input_ids"][rows]).logits, data["labels"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits = model(input_ids=data["input_ids"]).logits
        if float(nn.functional.cross_entropy(logits, data["labels"])) < stop_below:
            return model.eval()
    raise AssertionError("training did not get there")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What evidence tuning did to an adapter: NLL and accuracy, and the warnings it gave."""

    train_map: tuple[float, float]
    test_map: tuple[float, float]
    test_tuned: tuple[float, float]
    said: tuple[str, ...]


def _quality(p: Predictive, labels: Tensor, which: str) -> tuple[float, float]:
    chosen = getattr(p, which)
    nll = -chosen.gather(1, labels[:, None]).log().mean()
    return float(nll), float((chosen.argmax(1) == labels).double().mean())


@functools.cache
def _outcome(kind: str, seed: int) -> Outcome:
    clear, noise, stop_below = {"sound": (6, 0.0, 0.3), "over-fitted": (4, 0.4, 0.01)}[kind]
    train, test = _draw(200, seed, clear, noise), _draw(150, 1_000 + seed, clear, noise)
    model = _train(train, stop_below, seed)
    la = LaplaceLoRA(model, LaplaceConfig(progress=False, integration_points=64)).fit([train])
    with torch.no_grad():
        logits = model(input_ids=train["input_ids"]).logits
    at_map = Predictive.from_gaussian(logits, torch.zeros(200, CLASSES, CLASSES), points=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        la.tune_prior("evidence")
    assert all(issubclass(warning.category, UserWarning) for warning in caught)
    p = la.predict(test)
    return Outcome(
        train_map=_quality(at_map, train["labels"], "map_probabilities"),
        test_map=_quality(p, test["labels"], "map_probabilities"),
        test_tuned=_quality(p, test["labels"], "probabilities"),
        said=tuple(str(warning.message) for warning in caught),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_adapter(seed: int) -> None:
    outcome = _outcome("sound", seed)
    # Sound: held-out data are explained nearly as well as the training data, and tuning by evidence spoils that.
    assert outcome.test_map[0] < outcome.train_map[0] + 0.2
    assert outcome.test_map[1] > 0.9
    assert outcome.test_tuned[0] > outcome.test_map[0] + 0.1
    assert len(outcome.said) == 1
    assert "evidence tuning" in outcome.said[0]
    assert REMEDY in outcome.said[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_an_over_fitted_adapter(seed: int) -> None:
    outcome = _outcome("over-fitted", seed)
    # Over-fitted: every training label is known by heart, few held-out ones are, and tuning by evidence helps.
    assert outcome.train_map[1] > 0.99
    assert outcome.test_map[0] > outcome.train_map[0] + 1.0
    assert outcome.test_tuned[0] < outcome.test_map[0] - 0.5
    assert outcome.said == ()


def test_a_warning_points_at_the_caller() -> None:
    """The line that the user sees is the one that called tune_prior."""
    train = _draw(200, 0, 6, 0.0)
    la = LaplaceLoRA(_train(train, 0.3, 0), LaplaceConfig(progress=False, integration_points=64)).fit([train])
    with pytest.warns(UserWarning, match="tune on held-out data") as caught:
        la.tune_prior("evidence")
    assert caught[0].filename == __file__


def test_nothing_is_said_without_a_comparison() -> None:
    """With a budget of no bytes nothing is stored to compare with."""
    train = _draw(200, 0, 6, 0.0)
    settings = LaplaceConfig(progress=False, integration_points=64, train_check_bytes=0)
    la = LaplaceLoRA(_train(train, 0.3, 0), settings).fit([train])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.tune_prior("evidence")


@pytest.mark.parametrize("structure", ["kron", "exact"])
@pytest.mark.parametrize("seed", [0, 1])
def test_auto_does_a_sound_adapter_no_harm(seed: int, structure: str) -> None:
    """Where the evidence costs a tenth of a nat and more (above), what is left of that is a hundredth or two."""
    train, test = _draw(200, seed, 6, 0.0), _draw(150, 1_000 + seed, 6, 0.0)
    settings = LaplaceConfig(progress=False, integration_points=64, structure=structure)
    la = LaplaceLoRA(_train(train, 0.3, seed), settings).fit([train])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.tune_prior()
    p = la.predict(test)
    assert la.prior_raised > 10.0
    assert _quality(p, test["labels"], "probabilities")[0] <= _quality(p, test["labels"], "map_probabilities")[0] + 0.02
    raised = float(la.prior_precision)
    with pytest.warns(UserWarning, match="less certain"):
        la.tune_prior("evidence")
    assert float(la.prior_precision) < raised / 10.0


@pytest.mark.parametrize("structure", ["kron", "exact", "low_rank", "kron_low_rank"])
def test_auto_leaves_the_evidence_of_an_over_fitted_adapter_alone(structure: str) -> None:
    train = _draw(200, 0, 4, 0.4)
    settings = LaplaceConfig(progress=False, integration_points=64, structure=structure)  # type: ignore[arg-type]
    la = LaplaceLoRA(_train(train, 0.01, 0), settings).fit([train])
    la.tune_prior("auto")
    found = float(la.prior_precision)
    assert la.prior_raised == 1.0
    la.tune_prior("evidence")
    assert float(la.prior_precision) == pytest.approx(found, rel=1e-8)


def test_auto_says_so_where_it_cannot_compare() -> None:
    train = _draw(200, 0, 6, 0.0)
    settings = LaplaceConfig(progress=False, integration_points=64, train_check_bytes=0)
    la = LaplaceLoRA(_train(train, 0.3, 0), settings).fit([train])
    with pytest.warns(UserWarning, match="plain evidence"):
        la.tune_prior("auto")
