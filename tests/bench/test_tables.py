"""Tables of a benchmark, held against NumPy and against what was written out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from laplace_lora.bench.along import along, along_figures
from laplace_lora.bench.costs import Spent
from laplace_lora.bench.grids import Cell, Grid, html, latex, markdown
from laplace_lora.bench.lines import cost_of, kind_of_warning
from laplace_lora.bench.notes import notes
from laplace_lora.bench.tables import (
    METRICS,
    best,
    cost_grid,
    metric_grid,
    metric_grids,
    outside_grids,
    per_row,
    shifted_grids,
)

ACCURACY, ECE, NLL = METRICS[:3]


def line(method: str, task: str = "sst2", seed: int = 0, **figures: float) -> dict[str, Any]:
    known = {metric.name: 0.5 for metric in METRICS} | figures
    return {
        "task": task,
        "seed": seed,
        "checkpoint": "last",
        "step": None,
        "total_steps": 8,
        "method": method,
        "title": method.upper(),
        "figures": known,
        "ood": {},
        "cut": {},
        "rows": {"train": 10, "test": 4},
        "stored_bytes": 2**20,
        "cost": {
            "seconds": {"train": 5.0, "fit": 1.0, "tune": 0.0, "predict": 2.0},
            "forward_passes": {"train": 50.0, "fit": 10.0, "tune": 0.0, "predict": 20.0},
            "peak_memory_bytes": 3 * 2**20,
        },
    }


def test_mean_and_standard_deviation() -> None:
    values = [0.31, 0.42, 0.56]
    lines = [line("map", seed=seed, nll=value) for seed, value in enumerate(values)]
    grid = metric_grid(lines, NLL)
    assert grid.rows == [("MAP", [Cell(f"{np.mean(values):.3f}", f"{np.std(values, ddof=1):.3f}", True)])]
    assert metric_grid(lines[:1], NLL).rows[0][1] == [Cell("0.310", "", True)]
    percent = metric_grid([line("map", accuracy=0.875)], ACCURACY)
    assert percent.rows[0][1][0].mean == "87.5"


@pytest.mark.parametrize("more_is_better", [True, False])
def test_ties_by_the_standard_error_of_paired_differences(more_is_better: bool) -> None:
    generator = np.random.default_rng(0)
    metric = ACCURACY if more_is_better else NLL
    for _ in range(200):
        table = generator.normal(size=(4, 3)) + 0.4 * generator.normal(size=(4, 1))
        column = {str(m): dict(enumerate(row)) for m, row in enumerate(table)}
        means = table.mean(axis=1)
        first = table[means.argmax() if more_is_better else means.argmin()]
        expected = set()
        for m, row in enumerate(table):
            gap = row - first
            if abs(gap.mean()) <= gap.std(ddof=1) / math.sqrt(3):
                expected.add(str(m))
        assert best(column, metric) == expected


def test_one_seed_has_one_best_unless_equal() -> None:
    assert best({"a": {0: 1.0}, "b": {0: 2.0}, "c": {0: 1.0}}, NLL) == {"a", "c"}
    assert best({"a": {0: 1.0}, "b": {0: 2.0}}, ACCURACY) == {"b"}


def test_errors_and_unfinished_methods_are_never_best() -> None:
    column = {"softmax_twice": {0: 0.1, 1: 0.1}, "map": {0: 0.5, 1: 0.6}, "half": {0: 0.2}}
    assert best(column, NLL) == {"map"}
    assert best({"softmax_twice": {0: 0.1}}, NLL) == set()
    assert best({}, NLL) == set()


def test_what_was_not_measured_is_empty() -> None:
    lines = [line("map"), line("map", "rte"), line("swag", "rte")]
    lines[2]["figures"]["auroc"] = None
    assert metric_grid(lines, NLL).rows[1] == ("SWAG", [Cell(), Cell("0.500", "", True)])
    assert [name for name, _ in metric_grid(lines, METRICS[4]).rows] == ["MAP"]


def test_fewer_seeds_than_others_are_said() -> None:
    lines = [line("map", seed=seed, nll=1.0) for seed in (0, 1, 2)] + [line("swag", seed=1, nll=0.5)]
    grid = metric_grid(lines, NLL)
    assert grid.rows[1] == ("SWAG", [Cell("0.500", "", False, "1 of 3 seeds")])
    assert "| SWAG | 0.500 (1 of 3 seeds) |" in markdown(grid)
    assert "SWAG & $0.500$ (1 of 3 seeds)" in latex(grid)
    assert "<td>0.500 <small>(1 of 3 seeds)</small></td>" in html(grid)


def test_scores_that_no_method_knows_have_no_table() -> None:
    lines = [line("map") | {"ood": {"rte": {"detection": {"entropy": {"auroc": 0.5, "fpr95": 0.9}}}}}]
    assert [grid.title for grid in outside_grids(lines)] == [
        "AUROC of telling other data from sst2, by entropy",
        "FPR95 of telling other data from sst2, by entropy",
    ]


def test_powers_of_ten_in_latex() -> None:
    grid = Grid("small", ["method", "one"], [("MAP", [Cell("1.2e-05", "", True)])])
    assert r"$\mathbf{1.2 \times 10^{-5}}$" in latex(grid)
    assert "resizebox" not in latex(grid)
    wide = Grid("wide", ["method", *"abcdefgh"], [("MAP", [Cell("1.0")] * 8)])
    assert r"\resizebox{\textwidth}{!}{%" in latex(wide)


def test_what_readers_have_to_know() -> None:
    lines = [line("map", seed=seed) | {"own_split": True} for seed in (0, 1)] + [
        line("map", "rte") | {"own_split": False}
    ]
    said = notes(lines)
    assert said[0].startswith("Rows of sst2 are no published split")
    assert said[1] == "Rows of training and test: sst2 10 and 4; rte 10 and 4."
    assert "(0, 1)" in said[2]
    lines[0]["cut"] = {"rte:validation": 3}
    assert "Cut to the most tokens: 3 of rte:validation." in notes(lines)
    assert not any("published" in sentence for sentence in notes(lines[2:]))


def test_one_task_is_one_table() -> None:
    lines = [line("map", nll=1.0, accuracy=0.5), line("swag", nll=0.5, accuracy=0.25)]
    lines[1]["figures"]["accuracy"] = None
    (grid,) = metric_grids(lines, (ACCURACY, NLL))
    assert (grid.title, grid.columns) == ("sst2", ["method", ACCURACY.title, NLL.title])
    assert grid.rows == [("MAP", [Cell("50.0", "", True), Cell("1.000")]), ("SWAG", [Cell(), Cell("0.500", "", True)])]
    assert metric_grids([*lines, line("map", "rte")], (NLL,)) == [metric_grid([*lines, line("map", "rte")], NLL)]


def test_an_infinite_nll_is_not_left_out() -> None:
    """JSON has no number for it; the mean of the other seeds would be no mean."""
    lines = [line("map", seed=seed, nll=1.0) for seed in (0, 1)] + [line("swag", seed=seed, nll=0.5) for seed in (0, 1)]
    lines[3]["figures"] |= {"nll": None, "impossible": 1}
    assert metric_grid(lines, NLL).rows == [("MAP", [Cell("1.000", "0.000", True)]), ("SWAG", [Cell("infinite")])]


def test_checkpoints_are_left_to_the_curves() -> None:
    early = line("map", nll=9.0) | {"checkpoint": "checkpoint-2", "step": 2}
    lines = [early, line("map", nll=1.0), line("map", seed=1, nll=2.0), line("llla")]
    assert metric_grid(lines, NLL).rows[0][1][0].mean == "1.500"
    assert along(lines, NLL) == {"MAP": [(2, 9.0), (8, 1.5)]}
    assert along([early, line("map", accuracy=0.25)], ACCURACY)["MAP"][-1] == (8, 25.0)


def test_a_training_that_stopped_early_ends_at_its_own_step() -> None:
    early = [line("map", seed=seed) | {"checkpoint": "checkpoint-2", "step": 2} for seed in (0, 1)]
    ends = [line("map", nll=1.0), line("map", seed=1, nll=3.0) | {"total_steps": 4}]
    assert along([*early, *ends], NLL) == {"MAP": [(2, 0.5), (4, 3.0), (8, 1.0)]}
    assert along_figures([*early, *ends]).count(">8</text>") == 3
    assert along_figures(ends) == ""


def test_other_data() -> None:
    rates = {"confidence": {"auroc": 0.75, "fpr95": 0.5}, "entropy": {"auroc": 0.7, "fpr95": 0.6}}
    told = line("map") | {"ood": {"rte": {"detection": rates, "figures": {"accuracy": 0.5, "ece": 0.1, "nll": 0.7}}}}
    known = {**rates, "mutual_information": {"auroc": 0.9, "fpr95": 0.1}}
    more = line("laplace") | {"ood": {"rte": {"detection": known}}}
    grids = {grid.title: grid for grid in outside_grids([told, more])}
    by_entropy = grids["AUROC of telling other data from sst2, by entropy"]
    assert by_entropy.rows == [("MAP", [Cell("0.700", "", True)]), ("LAPLACE", [Cell("0.700", "", True)])]
    by_information = grids["FPR95 of telling other data from sst2, by mutual information"]
    assert by_information.rows == [("LAPLACE", [Cell("0.100", "", True)])]
    assert len(grids) == 6
    shifted = shifted_grids([told, more])
    assert [grid.title for grid in shifted] == [f"{metric.title} of adapters trained on sst2" for metric in METRICS[:3]]
    assert shifted[0].rows == [("MAP", [Cell("50.0", "", True)])]
    assert outside_grids([line("map")]) == shifted_grids([line("map")]) == []


def test_costs() -> None:
    spent = Spent(0.05)
    spent.stopwatch.add("fit", 1.0)
    spent.stopwatch.add("predict", 2.0)
    spent.stopwatch.add("train", 0.5)
    spent.add_training(10.0, 0.1)
    spent.add_training(6.0, 0.02)
    entry = spent.to_dict() | {"rows": {"train": 20, "test": 8}, "peak_memory_bytes": 7, "machine": {}}
    found = cost_of(entry)
    assert found["seconds"] == {"train": 16.5, "fit": 1.0, "tune": 0.0, "predict": 2.0}
    assert found["forward_passes"] == pytest.approx({"train": 410.0, "fit": 20.0, "tune": 0.0, "predict": 40.0})
    assert found["predict_per_row"] == pytest.approx(5.0)
    assert per_row(line("map"), "train", "seconds") == 0.5
    assert per_row(line("map"), "predict", "forward_passes") == 5.0
    grid = cost_grid([line("map"), line("map", "rte")])
    assert [cell.mean for cell in grid.rows[0][1]] == ["0.5", "0.1", "0", "0.5", "5", "1", "0", "5", "80", "3", "1"]
    assert len(grid.columns) == 1 + len(grid.rows[0][1])


def test_costs_are_of_what_all_methods_were_measured_on() -> None:
    lines = [line("map"), line("map", "rte"), line("swag", "rte")]
    lines[0]["stored_bytes"] = 0
    grid = cost_grid(lines)
    assert grid.title == "What methods cost, on what all were measured on: rte"
    assert [cells[-1].mean for _, cells in grid.rows] == ["1", "1"]
    assert cost_grid(lines[1:]).title == "What methods cost"
    apart = cost_grid([lines[0], lines[2]])
    assert "not comparable" in apart.title
    assert [name for name, _ in apart.rows] == ["MAP", "SWAG"]


GRID = Grid("A & B", ["method", "a_b", "c"], [("M, 5 %", [Cell("1.0", "0.2", True), Cell()])])


def test_markdown() -> None:
    assert markdown(GRID) == "| method | a_b | c |\n| --- | --- | --- |\n| M, 5 % | **1.0 ± 0.2** |  |"


def test_latex() -> None:
    written = latex(GRID)
    assert r"\begin{tabular}{lcc}" in written
    assert r"\caption{A \& B}" in written
    assert r"method & a\_b & c \\" in written
    assert r"M, 5 \% & $\mathbf{1.0}_{\pm 0.2}$ &  \\" in written
    assert all(
        written.count(rf"\begin{{{name}}}") == written.count(rf"\end{{{name}}}") == 1 for name in ("table", "tabular")
    )


def test_html() -> None:
    written = html(Grid("t", ["method", "<x>"], [("<b>", [Cell("1.0", "0.2", True)])]))
    assert "&lt;x&gt;" in written
    assert "<td>&lt;b&gt;</td><td><b>1.0</b> <small>± 0.2</small></td>" in written


def test_an_infinite_nll_breaks_the_curve_and_is_named() -> None:
    early = [line("map", nll=1.0) | {"checkpoint": f"checkpoint-{step}", "step": step} for step in (1, 2, 4, 6)]
    early[1]["figures"] |= {"nll": None, "impossible": 1}
    lines = [*early, line("map", nll=2.0)]
    assert along(lines, NLL) == {"MAP": [(1, 1.0), (2, math.inf), (4, 1.0), (6, 1.0), (8, 2.0)]}
    page = along_figures(lines)
    assert page.count("<polyline") == 1 + 1 + 2
    assert "<span>infinite: MAP at 2</span>" in page
    everywhere = [one | {"figures": one["figures"] | {"nll": None, "impossible": 1}} for one in lines]
    assert along_figures(everywhere).count("<polyline") == 2


def test_warnings_that_differ_in_numbers_are_of_a_kind() -> None:
    one, two = "sketches miss 2.45e+03 of 3,830 at rank 64.", "sketches miss 3.08 of 13 at rank 64."
    assert kind_of_warning(one) == kind_of_warning(two) != kind_of_warning("sketches miss none.")
