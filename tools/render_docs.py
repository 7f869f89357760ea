"""Write the figures of README and docs/ from the committed JSON, between markers.

    python tools/render_docs.py           rewrite the files
    python tools/render_docs.py --check   exit 1 if a file does not say what the JSON says

A marker pair `<!-- begin NAME -->` ... `<!-- end NAME -->` holds the output of the renderer NAME.
"""

import argparse
import re
import sys
from collections.abc import Callable

from rendering import acquisition, bench, costs, demo, integrators, quality, side_by_side, structures, tasks, tuning
from rendering.common import ROOT

FILES = (
    "README.md",
    "docs/kfac_conventions.md",
    "docs/real_data.md",
    "docs/costs.md",
    "docs/exact.md",
    "docs/demo.md",
    "docs/integrals.md",
    "docs/command_line.md",
    "docs/readouts.md",
    "docs/sketch.md",
    "docs/joint.md",
    "docs/peers.md",
    "docs/gpu.md",
    "docs/tasks.md",
    "docs/tuning.md",
    "docs/structures.md",
    "docs/ood.md",
    "docs/acquisition.md",
    "docs/bench.md",
    "docs/bench_small.md",
)


RENDERERS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        demo.demo_seeds,
        demo.demo_calibration,
        demo.demo_readme,
        quality.kfac_summary,
        quality.kfac_each,
        quality.sst2,
        quality.command_line,
        quality.command_line_each,
        quality.breadth,
        quality.breadth_each,
        quality.sketch_ranks,
        quality.joint_directions,
        costs.passes,
        costs.end_of_fit,
        costs.evidence,
        costs.memory,
        costs.checkpointing,
        costs.exact_steps,
        costs.exact_bfloat16,
        costs.spectrum,
        integrators.integrators,
        integrators.integrators_by_deviation,
        integrators.weight_sampling,
        side_by_side.peers,
        side_by_side.peers_ratios,
        side_by_side.peers_raised,
        side_by_side.growth,
        side_by_side.gpu,
        side_by_side.gpu_skipped,
        side_by_side.gpu_tiny,
        tasks.tasks_table,
        tasks.presets_table,
        tasks.openbookqa,
        tasks.openbookqa_each,
        tuning.tuning_state,
        tuning.tuning_nll,
        tuning.tuning_figures,
        tuning.tuning_harm,
        tuning.tuning_answers,
        tuning.tuning_few,
        bench.bench_methods,
        bench.bench_state,
        bench.bench_verdict,
        bench.bench_share,
        bench.bench_tables,
        bench.bench_outside,
        bench.bench_shifted,
        bench.bench_bounds,
        bench.bench_costs,
        bench.bench_twice,
        bench.bench_twice_measured,
        structures.structures_state,
        structures.structures_distance,
        structures.structures_quality,
        structures.structures_each,
        structures.structure_costs,
        structures.top_layers,
        structures.selections_distance,
        structures.selections_quality,
        structures.ood,
        structures.ood_summary,
        tuning.tuning_refit,
        tuning.tuning_refit_ece,
        costs.grid_search,
        acquisition.acquisition,
        acquisition.acquisition_each,
    )
}


def render(text: str) -> str:
    """Fill every marker pair of a page."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- begin {name} -->\n{RENDERERS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    options = parser.parse_args()
    stale = []
    for name in FILES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        rendered = render(text)
        if rendered != text:
            stale.append(name)
            if not options.check:
                path.write_text(rendered, encoding="utf-8")
    if options.check and stale:
        print(f"not what benchmarks/results says: {', '.join(stale)}; run python tools/render_docs.py", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
