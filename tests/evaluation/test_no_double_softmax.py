"""A probability cannot be soft-maxed again, on any path of the evaluation: by type, by file, in the source."""

import ast
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.special import softmax as scipy_softmax

import laplace_lora
from cli.folders import rows, write_jsonl
from evaluation.conftest import Split
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import (
    Logits,
    Outputs,
    Predictions,
    Probabilities,
    WrongKindError,
    compare,
    load_outputs,
    metrics,
    ood_scores,
    save_outputs,
    score,
    selective,
)
from laplace_lora.evaluation.ranking import rank
from laplace_lora.methods import fit_temperature

RNG = np.random.default_rng(0)
RAW = 3.0 * RNG.normal(size=(40, 3))
LOGITS, PROBABILITIES = Logits(RAW), Logits(RAW).softmax()
LABELS = RNG.integers(0, 3, 40)

# --- by type -------------------------------------------------------------------------------------------------

#: Everything public that takes logits.
TAKES_LOGITS = {
    "softmax": metrics.softmax,
    "fit_temperature": lambda given: fit_temperature(given, LABELS),
    "Outputs": lambda given: Outputs({"map": PROBABILITIES}, {"map": given}),
}
#: Everything public that takes probabilities.
TAKES_PROBABILITIES = {
    "score": lambda given: score(given, LABELS),
    "score, truth": lambda given: score(PROBABILITIES, LABELS, given),
    "compare": lambda given: compare({"map": given}, LABELS, resamples=5),
    "compare, truth": lambda given: compare({"map": PROBABILITIES}, LABELS, given, resamples=5),
    "ood_scores": lambda given: ood_scores({"map": given}, {"map": PROBABILITIES}, resamples=5),
    "ood_scores, outside": lambda given: ood_scores({"map": PROBABILITIES}, {"map": given}, resamples=5),
    "Predictions": lambda given: Predictions(LABELS, {"map": given}, "abc"),
    "Predictions, truth": lambda given: Predictions(LABELS, {"map": PROBABILITIES}, "abc", truth=given),
    "Probabilities": Probabilities,
    "correct": lambda given: metrics.correct(given, LABELS),
    "log_losses": lambda given: metrics.log_losses(given, LABELS),
    "brier_scores": lambda given: metrics.brier_scores(given, LABELS),
    "kl_divergences": lambda given: metrics.kl_divergences(given, PROBABILITIES),
    "kl": lambda given: metrics.kl(PROBABILITIES, given),
    "entropies": metrics.entropies,
    "accuracy": lambda given: metrics.accuracy(given, LABELS),
    "nll": lambda given: metrics.nll(given, LABELS),
    "brier": lambda given: metrics.brier(given, LABELS),
    "bin_gaps": lambda given: metrics.bin_gaps(given, LABELS),
    "ece": lambda given: metrics.ece(given, LABELS),
    "reliability": lambda given: metrics.reliability(given, LABELS),
    "ece_floor": metrics.ece_floor,
    "calibrated_band": metrics.calibrated_band,
    "error_auroc": lambda given: selective.error_auroc(given, LABELS),
    "aurc": lambda given: selective.aurc(given, LABELS),
    "ece_equal_mass": lambda given: selective.ece_equal_mass(given, LABELS),
    "ece_equal_mass_floor": selective.ece_equal_mass_floor,
    "risk_coverage": lambda given: selective.risk_coverage(given, LABELS),
    "rank": lambda given: rank(given, LABELS),
}


@pytest.mark.parametrize("function", TAKES_LOGITS.values(), ids=TAKES_LOGITS)
def test_what_takes_logits_takes_nothing_else(function: Any) -> None:
    function(LOGITS)
    for given in (PROBABILITIES, PROBABILITIES.values, RAW, RAW.tolist()):
        with pytest.raises(WrongKindError, match=r"^[^\n]*;[^;\n]*\.$") as caught:
            function(given)
        assert isinstance(caught.value, LaplaceLoRAError)
        assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("function", TAKES_PROBABILITIES.values(), ids=TAKES_PROBABILITIES)
def test_what_takes_probabilities_takes_no_logits(function: Any) -> None:
    function(PROBABILITIES)
    function(PROBABILITIES.values)
    with pytest.raises(
        WrongKindError, match=r"are Logits, where probabilities are wanted; pass logits\.softmax\(\)\.$"
    ):
        function(LOGITS)
    with pytest.raises(LaplaceLoRAError, match=r"pass Logits\(array\)\.softmax\(\)\.$"):
        function(RAW)


def test_the_lists_above_name_all_that_is_public() -> None:
    taken = {"logits": set(), "probabilities": set()}
    for module in (metrics, selective):
        for name, function in vars(module).items():
            if callable(function) and not name.startswith("_") and function.__module__ == module.__name__:
                annotations = getattr(function, "__annotations__", {})
                taken["logits"] |= {name} if Logits in annotations.values() else set()
                named = {key for key in annotations if key.endswith("probabilities")}
                taken["probabilities"] |= {name} if named else set()
    assert taken["logits"] <= set(TAKES_LOGITS)
    assert taken["probabilities"] <= set(TAKES_PROBABILITIES)
    assert taken["logits"] == {"softmax"}
    assert len(taken["probabilities"]) > 15


def test_probabilities_have_no_softmax_and_do_not_become_arrays_unasked() -> None:
    assert not [name for name in dir(PROBABILITIES) if "softmax" in name]
    for value in (PROBABILITIES, LOGITS):
        with pytest.raises(TypeError):
            scipy_softmax(value)
        with pytest.raises((TypeError, ValueError)):
            np.asarray(value, dtype=np.float64)
        with pytest.raises(ValueError, match="read-only"):
            value.values[0] = 0.0


def test_logits_are_soft_maxed_once_and_right() -> None:
    np.testing.assert_allclose(PROBABILITIES.values, scipy_softmax(RAW, axis=1), rtol=1e-13)
    np.testing.assert_allclose(LOGITS.softmax(2.5).values, scipy_softmax(RAW / 2.5, axis=1), rtol=1e-13)
    ragged = Logits(np.array([[1.0, 2.0, -np.inf], [0.0, -1e4, 1e4]]))
    assert ragged.softmax().values.tolist() == [[*scipy_softmax([1.0, 2.0]), 0.0], [0.0, 0.0, 1.0]]
    wide = PROBABILITIES.widened(5).values
    assert wide.shape == (40, 5)
    assert (wide[:, 3:] == 0.0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_values_that_are_probabilities_are_no_logits(dtype: Any) -> None:
    with pytest.raises(WrongKindError, match="every row of these logits is a probability distribution already"):
        Logits(PROBABILITIES.values.astype(dtype))
    Logits(np.log(PROBABILITIES.values))  # normalised logits are logits
    Logits(np.ones((4, 1)))  # of a single option there is nothing to tell


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[np.nan, 0.0]], "NaN or infinite"),
        ([[np.inf, 0.0]], "NaN or infinite"),
        ([[-np.inf, -np.inf]], "NaN or infinite"),
        ([1.0, 2.0], "non-empty matrix"),
        (np.zeros((0, 2)), "non-empty matrix"),
    ],
)
def test_what_cannot_be_logits(values: Any, message: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        Logits(np.array(values))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_a_positive_number(temperature: float) -> None:
    with pytest.raises(LaplaceLoRAError, match="give a positive number"):
        LOGITS.softmax(temperature)


# --- by file -------------------------------------------------------------------------------------------------


def outputs(**changes: Any) -> Outputs:
    given: dict[str, Any] = {
        "probabilities": {"map": PROBABILITIES, "laplace": LOGITS.softmax(2.0)},
        "logits": {"map": LOGITS},
        "mutual_information": {"laplace": np.linspace(0.0, 0.5, 40)},
        "labels": LABELS,
    }
    return Outputs(**{**given, **changes})


TWICE = scipy_softmax(PROBABILITIES.values, axis=1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        # The published mistake: what is called logits holds probabilities, soft-maxed again to be "probabilities".
        ({"logits/map": PROBABILITIES.values, "probabilities/map": TWICE}, "is a probability distribution already"),
        ({"logits/map": PROBABILITIES.values}, "is a probability distribution already"),
        ({"probabilities/map": TWICE}, "not the softmax of logits/map"),
        ({"logits/map": RAW[::-1].copy()}, "not the softmax of logits/map"),
        ({"probabilities/laplace": RAW}, "is no probability distribution"),
        ({"ood/x/logits/map": PROBABILITIES.values}, "is a probability distribution already"),
        ({"labels": np.full(40, 3)}, "must lie in 0 .. 2"),
        ({"labels": np.zeros(40)}, "as integers"),
        ({"labels": np.zeros(39, np.int64)}, "one label for each"),
        ({"mutual_information/laplace": np.zeros(39)}, "not one finite number"),
        ({"probabilities/laplace": PROBABILITIES.values[:5]}, "have the shapes"),
    ],
)
def test_a_mislabelled_file_is_refused(tensors: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "outputs.safetensors"
    save_outputs(path, outputs(), {"x": outputs()})
    with safe_open(path, framework="np") as file:
        held, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file({**held, **tensors}, path, metadata=metadata)
    with pytest.raises(LaplaceLoRAError, match=rf"outputs\.safetensors: .*{message}"):
        load_outputs(path)


# --- from the model to metrics.json --------------------------------------------------------------------------


def nll_by_loop(probabilities: Any, labels: Any) -> float:
    return sum(-math.log(row[label]) for row, label in zip(probabilities, labels, strict=True)) / len(labels)


def ece_by_loop(probabilities: Any, labels: Any) -> float:
    total = 0.0
    for number in range(15):
        members = [
            (max(row), float(list(row).index(max(row)) == label))
            for row, label in zip(probabilities, labels, strict=True)
            if number / 15 < max(row) <= (number + 1) / 15
        ]
        total += abs(sum(hit - confidence for confidence, hit in members))
    return total / len(labels)


def test_what_the_model_gave_is_what_was_scored(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "held_out.jsonl", rows(30, 2, seed=4))
    items, other = rows(40, 2, seed=1), Split(rows(20, 2, seed=9), "elsewhere")
    found = evaluate(other, data=Split(items), validation=held_out)
    saved = load_outputs(found.out / "outputs.safetensors")
    assert saved.data.labels.tolist() == [item["label"] for item in items]  # type: ignore[union-attr]
    # The estimator itself, from Python.
    model, tokenizer, _ = laplace_lora.load_adapter(folder / "fitted")
    la = laplace_lora.LaplaceLoRA.from_pretrained(model, folder / "fitted")
    for held, given in ((saved.data, items), (saved.ood["elsewhere:test"], other.items)):
        texts = [item["text"] for item in given]
        p = la.predict(dict(tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=24)))
        close: dict[str, Any] = {"rtol": 0, "atol": 1e-5}  # float32 passes in batches of another size
        np.testing.assert_allclose(held.probabilities["map"].values, p.map_probabilities.numpy(), **close)
        np.testing.assert_allclose(held.probabilities["laplace"].values, p.probabilities.numpy(), **close)
        np.testing.assert_allclose(held.logits["map"].values, p.mean.numpy(), **close)
        warm = scipy_softmax(held.logits["map"].values / found.metrics["temperature"], axis=1)
        np.testing.assert_allclose(held.probabilities["temperature"].values, warm, rtol=1e-12)
    documents = ((saved.data, found.metrics), (saved.ood["elsewhere:test"], found.metrics["ood"]["elsewhere:test"]))
    for held, document in documents:
        methods = document["methods"] if "methods" in document else document["comparison"]["methods"]
        assert set(methods) == set(held.probabilities) == {"map", "temperature", "laplace"}
        for name, probabilities in held.probabilities.items():
            values, labels = probabilities.values.tolist(), held.labels.tolist()  # type: ignore[union-attr]
            assert methods[name]["nll"] == pytest.approx(nll_by_loop(values, labels), rel=1e-12)
            assert methods[name]["ece"] == pytest.approx(ece_by_loop(values, labels), rel=1e-9)
            # Had they been soft-maxed again, this would be the figure.
            again = nll_by_loop(scipy_softmax(values, axis=1).tolist(), labels)
            assert abs(methods[name]["nll"] - again) > 1e-7  # T may be near 100, and all near one half


# --- in the source -------------------------------------------------------------------------------------------

#: Where something is exponentiated or a softmax is called. Whoever adds a place has to say here why it sees logits.
ALLOWED = {
    ("evaluation/outputs.py", "Logits.softmax"),  # the softmax itself
    ("evaluation/metrics.py", "softmax"),  # of Logits, by name
    ("evaluation/saved.py", "Outputs.__post_init__"),  # of Logits, to hold saved probabilities against them
    ("methods/temperature.py", "fit_temperature.slope"),  # of Logits
    ("methods/temperature.py", "_Scaled.answer"),  # of Logits, at the fitted temperature
    ("methods/trained.py", "_Trained.answer"),  # of Logits
    ("methods/blob.py", "_Mean.answer"),  # of Logits
    ("methods/tfb.py", "Tfb.fit"),  # of Logits
    ("methods/forward.py", "member_probabilities"),  # of the logits that a readout has just read from the model
    ("methods/laplace.py", "_Twice.answer"),  # of probabilities: the error that softmax_twice is there to show
    ("methods/table.py", ""),  # that error's name
    ("methods/variational.py", "kl_step"),  # powers of standard deviations
    ("commands/methods.py", "methods_of"),  # of Logits, at the fitted temperature
}
_SUSPICIOUS = {"exp", "exp2", "expm1", "expit", "sigmoid", "softmin", "logsumexp", "logaddexp", "pow", "float_power"}


def softmaxes(source: str) -> set[str]:
    """Return the functions of a module that exponentiate, or name a softmax that is not this evaluation's."""
    found = set()

    def suspicious(name: str) -> bool:
        return "softmax" in name.lower() or name in _SUSPICIOUS

    def visit(node: ast.AST, where: tuple[str, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            where = (*where, node.name)
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            names = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            base = node.left
            euler = isinstance(base, ast.Constant) and abs(float(base.value) - math.e) < 0.01  # type: ignore[arg-type]
            names = ["exp"] if euler or getattr(base, "attr", getattr(base, "id", "")) == "e" else []
        if any(suspicious(name) for name in names):
            found.add(".".join(where))
        for child in ast.iter_child_nodes(node):
            visit(child, where)

    visit(ast.parse(source), ())
    return found


@pytest.mark.parametrize(
    "body",
    [
        "torch.softmax(x, -1)",
        "x.log_softmax(-1)",
        "torch.nn.functional.softmax(x)",
        "np.exp(x) / np.exp(x).sum()",
        "getattr(torch, 'softmax')(x)",
        "np.e ** x",
        "2.71828 ** x",
        "apply(softmax, x)",
        "scipy.special.expit(x)",
    ],
)
def test_the_scan_sees(body: str) -> None:
    assert softmaxes(f"class A:\n    def f(self, x):\n        return {body}\n") == {"A.f"}
    assert softmaxes("from scipy.special import softmax as once_more\n") == {""}
    assert softmaxes("def f(x):\n    return 10.0 ** x + np.log(x)\n") == set()


def test_there_is_one_softmax_in_the_source() -> None:
    root = Path(laplace_lora.__file__).parent
    found = set()
    for floor in ("evaluation", "methods", "commands", "bench"):
        for path in sorted((root / floor).rglob("*.py")):
            names = softmaxes(path.read_text(encoding="utf-8"))
            found |= {(str(path.relative_to(root).as_posix()), name) for name in names}
    assert found == ALLOWED
