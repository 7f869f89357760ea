"""Tables of time and memory."""

from rendering.common import load, mib, origin, ratio, table

READOUTS = {"class_logits": "classes", "option_scores": "options, one row each"}


def passes() -> str:
    """Ratios of fit and predict to passes."""
    document = load("passes")
    keys = ("predict", "fit_exact", "fit_one_pass", "exact_structure_predict", "exact_structure_fit")
    rows = [
        [
            result["model"],
            result["adapted"],
            READOUTS[result["readout"]],
            str(result["classes"]),
            f"{result['bar']:.2f}",
            *(ratio(result["ratios"][key]) if key in result["ratios"] else "" for key in keys),
        ]
        for result in document["results"]["passes"]
    ]
    head = [
        "model",
        "LoRA on",
        "readout",
        "K",
        "bar",
        "predict / passes",
        "fit, exact Fisher / passes",
        "fit, one-pass Fisher / training step",
        "`exact`: predict / passes",
        "`exact`: fit / passes",
    ]
    repeats = document["results"]["passes"][0]["repeats"]
    note = (
        f"Passes: 1 F + (K-1) B; of options, 1 F + 1 B. Median of {repeats} paired ratios, quartiles in brackets; "
        "B=8, T=96, r=8, dropout 0, factor rank 64."
    )
    return f"{table(head, rows)}\n\n{note}\n\nMade by {origin(document)}"


def end_of_fit() -> str:
    """What comes once per data set: decomposing the statistics; and the bytes that are stored."""
    document = load("passes")
    rows = [
        [
            result["model"],
            result["adapted"],
            str(result["classes"]),
            f"{result['weights']:,}",
            f"{result['finalise_seconds']:.3f}",
            mib(result["posterior_bytes"]["kron"]),
            mib(result["posterior_bytes"]["exact"]),
        ]
        for result in document["results"]["passes"]
        if result["readout"] == "class_logits"
    ]
    head = ["model", "LoRA on", "K", "weights", "end of fit, s", "`kron` stored, MiB", "`exact` of 8 examples, MiB"]
    return table(head, rows)


def evidence() -> str:
    """Evidence tuning beside the fit."""
    document = load("evidence")
    rows = [
        [
            e["model"],
            str(e["classes"]),
            str(e["examples"]),
            f"{e['fit_seconds']:.1f}",
            f"{e['evidence_seconds']:.3f}",
            f"{100 * e['evidence_over_fit']:.2f} %",
        ]
        for e in document["results"]
    ]
    head = ["model", "K", "N", "fit, s", "evidence tuning, s", "share"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def memory() -> str:
    """Peak memory beside a training step, and over its bound."""
    document = load("memory")
    rows = []
    for result in document["results"]:
        row = [result["model"], result["adapted"], str(result["classes"]), mib(result["training_step"]["peak_bytes"])]
        for step in ("fit_exact", "fit_one_pass", "predict"):
            found = result[step]
            row.append(f"{mib(found['peak_bytes'])} ({found['peak_bytes'] / found['bound_bytes']:.2f})")
        row += [mib(result[step]["peak_bytes"]) for step in ("exact_structure_fit", "exact_structure_predict")]
        found = result["fit_exact"]
        row += [
            mib(found["stored_posterior_bytes"]),
            mib(found["sums_bytes"]),
            mib(result["predict"]["jacobian_bytes"]),
        ]
        rows.append(row)
    head = [
        "model",
        "LoRA on",
        "K",
        "training step",
        "fit, exact Fisher (over its bound)",
        "fit, one-pass (over its bound)",
        "predict (over its bound)",
        "`exact`: fit",
        "`exact`: predict",
        "stored posterior",
        "sums of fit",
        "4 B (K-1) P",
    ]
    return f"{table(head, rows)}\n\nIn MiB. Made by {origin(document)}"


def checkpointing() -> str:
    """Peak memory and time with gradient checkpointing."""
    document = load("checkpointing")
    names = {
        "training_step": "training step",
        "training_step_checkpointed": "the same, gradient checkpointing",
        "fit": "fit, exact Fisher (3 backward passes)",
        "fit_checkpointed": "the same, gradient checkpointing",
    }
    rows = [[names[r["step"]], mib(r["peak_bytes"]), f"{r['seconds']:.1f}"] for r in document["results"]]
    batch = document["results"][0]["batch"]
    head = [f"llama_30m, K = 4, {batch[0]} texts of {batch[1]} tokens", "peak, MiB", "seconds"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def exact_steps() -> str:
    """What every step of the exact posterior takes with its rows on disk."""
    document = load("exact_out_of_memory")
    found = document["results"]["out_of_memory"]
    streams = {
        "Gram matrix": 1,
        "test set": found["test_streams"],
        "one batch": 1,
        "two samples": 2,
        "save": 1,
        "load": 2,
    }
    names = {
        "test set": f"predict {found['test_sentences']} sentences",
        "one batch": f"predict one batch of {found['batch_sentences']}",
        "evidence": "evidence tuning",
        "load": "load, memory-mapped",
    }
    before = found["steps"]["fit"]["anonymous_before_bytes"]
    rows = [
        [
            names.get(name, name),
            f"{step['seconds']:,.1f}",
            str(streams.get(name, 0)),
            f"{step['from_disk_bytes'] / 1e9:.1f}",
            f"{(step['anonymous_peak_bytes'] - before) / 2**20:,.0f}",
            f"{step['resident_peak_bytes'] / 2**20:,.0f}",
        ]
        for name, step in found["steps"].items()
    ]
    head = [
        "step",
        "seconds",
        "streams over the rows",
        "read from the disk, GB",
        "peak of the process's own memory above the start, MiB",
        "peak resident with mapped pages, MiB",
    ]
    difference = found["largest_difference"]
    agree = f"within {difference:.0e}" if difference else "to the last bit"
    note = (
        f"{found['rows']:,} rows of {found['weights']:,} weights ({found['model']}, r={found['rank']}; SST-2, K=2) in "
        f"{found['rows_dtype']}: {found['row_bytes'] / 1e9:.1f} GB on disk, {found['saved_bytes'] / 1e9:.1f} GB saved. "
        f"Before the fit the process held {before / 2**20:,.0f} MiB of its own. The limit, `memory_limit_bytes`, was "
        f"{found['memory_limit_bytes'] / 2**20:,.0f} MiB: {found['working_bytes'] / 2**20:,.0f} for Gram matrix and "
        f"slabs, {found['shared_bytes'] / 2**20:,.0f} for test Jacobians, of which {found['test_sentences']} sentences "
        f"have {found['test_jacobian_bytes'] / 2**20:,.0f}. One thread. Covariances of one batch agree with those of "
        f"the whole set {agree}."
    )
    return f"{table(head, rows)}\n\n{note}\n\nMade by {origin(document)}"


def exact_bfloat16() -> str:
    """What rows in bfloat16 do to variances."""
    document = load("exact_out_of_memory")
    rows = [
        [
            f"{found['prior_precision']:g}",
            f"{found['narrowed_rows']:,.0f}",
            f"{100 * found['training_median_error']:.2g} ({100 * found['training_largest_error']:.2g})",
            f"{found['test_narrowed']:,.0f}",
            f"{100 * found['test_median_error']:.2g} ({100 * found['test_largest_error']:.2g})",
            "yes" if found["warned"] else "no",
        ]
        for found in document["results"]["bfloat16"]
    ]
    head = [
        "prior precision",
        "training rows: narrowed up to",
        "error of variances, %: median (largest)",
        "test sentences: narrowed up to",
        "error of variances, %: median (largest)",
        "`fit` warns",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def grid_search() -> str:
    """laplace-torch's grid search beside the spectrum."""
    document = load("grid_search")
    rows = []
    for result in document["results"]:
        theirs, ours, values = result["laplace_torch"], result["ours"], result["values"]
        rows.append(
            [
                str(result["classes"]),
                f"{theirs['seconds'] / values:.1f}",
                f"{1e3 * ours['seconds'] / values:.1f}",
                f"{result['a_value_of_theirs_over_one_of_ours']:,.0f}",
                f"{ours['seconds_of_the_pass'] + ours['seconds_of_precision_and_temperature']:.1f}",
                f"{theirs['seconds']:.0f}",
            ]
        )
    head = [
        "K",
        "laplace-torch: one precision, s",
        "ours: one precision, ms",
        "their one over our one",
        "ours: the pass, and precision and temperature chosen, s",
        f"laplace-torch: {document['results'][0]['values']} precisions, s",
    ]
    case = document["results"][0]
    where = f"llama_30m, {case['validation_examples']} held-out texts of {case['tokens']} tokens, one thread."
    return f"{table(head, rows)}\n\n{where}\n\nMade by {origin(document)}"


def spectrum() -> str:
    """What a value of the prior costs from the spectrum, beside a pass for every value."""
    document = load("spectrum")
    rows = [
        [
            result["model"],
            result["structure"],
            str(result["classes"]),
            f"{result['seconds']['pass at one prior']:.2f}",
            f"{result['collecting_over_pass']:.2f}",
            f"{1e3 * result['seconds']['one prior and temperature from it']:.1f}",
            f"{result['values_per_pass']:,.0f}",
            f"{result['choice_over_pass']:.3f} ({result['scores_in_the_choice']})",
            f"{result['bytes_per_example']:,.0f}",
        ]
        for result in document["results"]
    ]
    head = [
        "model",
        "structure",
        "K",
        "one pass at one prior, s",
        "the pass that gathers / that pass",
        "one prior and temperature after it, ms",
        "of these in the time of a pass",
        "the whole choice, in passes (scores)",
        "bytes per row",
    ]
    examples = document["results"][0]["examples"]
    where = f"Medians over {examples} rows of 32 tokens; r=8 on query and value."
    return f"{table(head, rows)}\n\n{where}\n\nMade by {origin(document)}"
