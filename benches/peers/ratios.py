#!/usr/bin/env python3
"""Joins reports of `medmerge bench … --json` with reports of pytorch.py into a Markdown table of ratios.

    ratios.py OURS.json… PYTORCH.json… [--out table.md]

Any number of reports in any order: each says whose it is, and rows are joined by their names. A figure is PyTorch's
median time by medmerge's: above 1, medmerge is faster. Standard library only.

What would make a ratio meaningless is said on stderr and at the top of the table, and makes the exit status 1: another
device, driver or number of threads, the emulator, a report that is incomplete, a row on one side only, a wrong result. Exit status 2:
not such reports.
"""

import argparse
import json
import pathlib
import sys

from figures import duration, geometric_mean, spread, table

# PERFORMANCE.md §4, of a GPU: PyTorch's time by ours, at least. By benchmark, form and precision.
MERGE_TARGETS = {"eager": 10, "autograd": 10, "compile": 3, "compile graph": 3}
CONV_TARGETS = {"channels_last": 1.0}
CONV_LAYER_TARGETS = {"channels_last": 0.8}
CONV_PRECISIONS = ("bf16", "tf32")
STEP_TARGETS = {"eager channels_last": 1.5, "compile channels_last": 1.2}
STEP_PRECISIONS = ("bf16", "f16")  # those that AMP knows
TRAINED = ("resnet18", "resnet50")
BATCHES = (32, 128)
MEMORY_TARGET = 1 / 0.8  # our peak is at most 0.8 × PyTorch's
# Of ours alone.
SHARE_TARGET = 0.95
MERGING_SHARE_TARGETS = {32: 0.03, 128: 0.01}
# A ratio that the quartiles leave open by more than this comes from a machine that was not quiet.
QUIET = 0.25

TITLES = {"merge": "Merging", "conv": "Convolutions", "step": "Steps"}
# What must be alike for a ratio to mean anything.
ALIKE = ("name", "multiprocessors", "driver", "threads")


class Unusable(Exception):
    pass


# ---- reports

def read(path):
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Unusable(f"{path}: not JSON: {error}") from None
    if not isinstance(report, dict) or report.get("bench") not in TITLES or not isinstance(report.get("rows"), list):
        raise Unusable(f"{path}: not what `medmerge bench --json` or pytorch.py wrote")
    return {**report, "path": str(path), "is_ours": report.get("program") != "pytorch"}


class Joined:
    """All rows by name; of PyTorch's each form's."""

    def __init__(self, reports):
        self.ours, self.theirs = {}, {}
        self.reports = reports
        for report in reports:
            for row in report["rows"]:
                if report["is_ours"]:
                    known, key = self.ours, row["name"]
                else:
                    known, key = self.theirs.setdefault(row["name"], {}), row["form"]
                if key in known:
                    raise Unusable(f"{report['path']}: {row['name']}{'' if report['is_ours'] else ', ' + key} is in another report too")
                known[key] = {**row, "bench": report["bench"]}

    def is_gpu(self):
        return any(report["device"]["device"].startswith("cuda") for report in self.reports)

    def rows(self, bench, precision):
        """Rows that both have, ours first."""
        return [
            (row, self.theirs[name]) for name, row in self.ours.items()
            if (row["bench"], row["precision"]) == (bench, precision) and name in self.theirs
        ]

    def precisions(self, bench):
        return list(dict.fromkeys(row["precision"] for row in self.ours.values() if row["bench"] == bench))

    def warnings(self):
        for report in self.reports:
            if report.get("emulated"):
                yield f"{report['path']}: EMULATED: its times mean nothing"
            if not report.get("complete"):
                yield f"{report['path']}: incomplete: the run ended before its last row"
        for ours in (report for report in self.reports if report["is_ours"]):
            for theirs in (report for report in self.reports if not report["is_ours"]):
                for difference in differences(ours["device"], theirs["device"]):
                    yield f"another device: {difference}: {ours['path']}, {theirs['path']}"
        for names, having, lacking in ((self.ours, self.theirs, "PyTorch"), (self.theirs, self.ours, "medmerge")):
            alone = [name for name in names if name not in having]
            if alone:
                yield f"{len(alone)} rows without one of {lacking}'s: {', '.join(alone[:4])}{', …' if alone[4:] else ''}"
        for name, row in self.ours.items():
            for form, other in self.theirs.get(name, {}).items():
                if "wrong" in other:
                    yield f"WRONG: {name}, {form}: {other['wrong']}"
                for count in ("bytes", "flops"):
                    if row[count] != other[count]:
                        yield f"not the same work: {name}, {form}: {other[count]:,} {count}, medmerge counts {row[count]:,}"

        pairs = [(row, other) for name, row in self.ours.items() for other in self.theirs.get(name, {}).values()]
        found = list(filter(None, (ratio(*pair) for pair in pairs)))
        loose = sum(plus_minus > QUIET for _, plus_minus in found)
        if loose:
            yield f"{loose} of {len(found)} ratios are open by more than ± {QUIET:.0%}: was the machine busy?"

    def notes(self):
        """Why a form has no time, each reason once."""
        reasons = {}
        for name, forms in self.theirs.items():
            for form, row in forms.items():
                if not row.get("seconds"):
                    reasons.setdefault((form, row.get("note", "no time")), []).append(name)
        for (form, note), names in reasons.items():
            yield f"{form}: {note} ({names[0]}{f' and {len(names) - 1} more rows' if names[1:] else ''})"


def differences(ours, theirs):
    if ours["device"].split(":")[0] != theirs["device"].split(":")[0]:
        yield f"{ours['device']} and {theirs['device']}"
        return
    for key in ALIKE:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            yield f"{key} {ours[key]} and {theirs[key]}"


# ---- ratios

def ratio(ours, other):
    """(PyTorch's median by ours, half of what the quartiles leave open, relative); None where there is no time."""
    if not other or not other.get("seconds"):
        return None
    a, b = ours["seconds"], other["seconds"]
    value = b["median"] / a["median"]
    low, high = b["first_quartile"] / a["third_quartile"], b["third_quartile"] / a["first_quartile"]
    return value, (high - low) / 2 / value


def cell(found, target=None):
    if found is None:
        return "–"
    value, plus_minus = found
    return f"{number(value)} ± {plus_minus:.0%}{verdict(value, target)}"


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def verdict(value, target):
    return "" if target is None else " ✓" if value >= target else " ✗"


def fastest(ours, forms):
    """Beside whichever form of PyTorch is fastest."""
    timed = [(form, row) for form, row in forms.items() if row.get("seconds")]
    if not timed:
        return "–"
    form, row = min(timed, key=lambda pair: pair[1]["seconds"]["median"])
    return f"{number(ratio(ours, row)[0])} {form}"


def forms_of(rows):
    return list(dict.fromkeys(form for _, forms in rows for form in forms))


def ours_cells(row, target=None):
    seconds = row["seconds"]
    share = f"{row['share']:.0%}{verdict(row['share'], target)}" if row.get("share") else "–"
    return [duration(seconds["median"]), f"{spread(seconds):.0%}", share]


def headline(columns, forms):
    return [*columns, "medmerge", "±", "of limit", *forms, "fastest"]


def targets_row(label, empty, forms, targets):
    if not any(form in targets for form in forms):
        return []
    return [[label, *[""] * empty, *(f"**≥ {targets[form]:g}**" if form in targets else "" for form in forms), ""]]


def means(rows, forms, label, empty, targets, weight):
    """The geometric mean of the ratios, each weighed; where a form lacks some rows, over those that it has."""
    cells = []
    for form in forms:
        found = [(ratio(ours, others.get(form)), weight(ours)) for ours, others in rows]
        known = [(value[0], weight_) for value, weight_ in found if value]
        if not known:
            cells.append("–")
            continue
        mean = geometric_mean(*zip(*known))
        part = "" if len(known) == len(rows) else f" ({len(known)} of {len(rows)})"
        cells.append(f"**{number(mean)}**{verdict(mean, targets.get(form))}{part}")
    return [f"**{label}**", *[""] * empty, *cells, ""]


# ---- sections

def merging(rows, is_gpu, _):
    forms, targets = forms_of(rows), MERGE_TARGETS if is_gpu else {}
    lines = targets_row("target (PERFORMANCE.md §4)", 3, forms, targets)
    for what in ("blend", "dalpha"):
        of_what = [pair for pair in rows if pair[0]["what"] == what]
        if of_what:
            lines.append(means(of_what, forms, f"geometric mean, {what}", 3, {}, lambda _: 1))
    lines.append(means(rows, forms, "geometric mean, all", 3, {}, lambda _: 1))
    for ours, others in rows:
        lines.append([
            ours["name"].removeprefix("merge/"), *ours_cells(ours, SHARE_TARGET if is_gpu else None),
            *(cell(ratio(ours, others.get(form)), targets.get(form)) for form in forms), fastest(ours, others),
        ])
    return table(headline(["work"], forms), lines)


def convolutions(rows, is_gpu, precision):
    forms = forms_of(rows)
    has_target = is_gpu and precision in CONV_PRECISIONS
    targets, of_layers = (CONV_TARGETS, CONV_LAYER_TARGETS) if has_target else ({}, {})
    groups = {}
    for ours, others in rows:
        groups.setdefault((ours["network"], ours["image_size"], ours["batch_size"], ours["what"]), []).append((ours, others))
    count = lambda ours: ours["count"]
    lines = targets_row("target, geometric mean (PERFORMANCE.md §4)", 5, forms, targets)
    lines += targets_row("target, each layer", 5, forms, of_layers)
    for which in dict.fromkeys(ours["what"] for ours, _ in rows):
        lines.append(means([pair for pair in rows if pair[0]["what"] == which], forms, f"geometric mean, {which}", 5, targets, count))
    lines.append(means(rows, forms, "geometric mean, all", 5, targets, count))
    for (network, image_size, batch, which), layers in groups.items():
        label = f"{network}, {image_size} px, batch {batch}, {which}"
        if len(layers) < sum(ours["what"] == which for ours, _ in rows):
            lines.append(means(layers, forms, f"geometric mean, {label}", 5, targets, count))
        lines.append(all_layers(layers, forms, label))
    for ours, others in rows:
        lines.append([
            ours["name"].removeprefix("conv/"), ours["shape"], str(ours["count"]), *ours_cells(ours),
            *(cell(ratio(ours, others.get(form)), of_layers.get(form)) for form in forms), fastest(ours, others),
        ])
    return table(headline(["layer", "shape", "times"], forms), lines)


def all_layers(layers, forms, label):
    """What a network's convolutions take together; a form that lacks one has no such sum."""
    def total(rows):
        return sum(ours["count"] * row["seconds"]["median"] for ours, row in rows)

    own = total([(ours, ours) for ours, _ in layers])
    cells = []
    for form in forms:
        rows = [(ours, others.get(form)) for ours, others in layers]
        cells.append(f"**{number(total(rows) / own)}**" if all(row and row.get("seconds") for _, row in rows) else "–")
    return [f"**all layers, {label}**", "", "", duration(own), "", "", *cells, ""]


def steps(rows, is_gpu, precision):
    forms = forms_of(rows)
    targets = STEP_TARGETS if is_gpu and precision in STEP_PRECISIONS else {}
    lines = targets_row("target, training of ResNet-18 and 50, batch 32 and 128 (PERFORMANCE.md §4)", 3, forms, targets)
    for kind in ("training", "learning"):
        of_kind = [pair for pair in rows if pair[0]["what"].startswith(kind)]
        if of_kind:
            lines.append(means(of_kind, forms, f"geometric mean, {kind}", 3, {}, lambda _: 1))
    lines.append(means(rows, forms, "geometric mean, all", 3, {}, lambda _: 1))
    for ours, others in rows:
        is_meant = ours["what"] == "training" and ours["network"] in TRAINED and ours["batch_size"] in BATCHES
        of_row = targets if is_meant else {}
        lines.append([
            ours["name"].removeprefix("step/"), *ours_cells(ours),
            *(cell(ratio(ours, others.get(form)), of_row.get(form)) for form in forms), fastest(ours, others),
        ])
    parts = [table(headline(["step"], forms), lines), memory(rows, forms, is_gpu), learning(rows, is_gpu)]
    return "\n\n".join(filter(None, parts))


def peak(row):
    return ((row or {}).get("step") or {}).get("peak_bytes")


def memory(rows, forms, is_gpu):
    """PyTorch's peak by ours."""
    known = [(ours, others) for ours, others in rows if peak(ours)]
    if not known:
        return None
    target = MEMORY_TARGET if is_gpu else None
    lines = targets_row("target (PERFORMANCE.md §4)", 1, forms, dict.fromkeys(forms, target) if target else {})
    for ours, others in known:
        ratios = [peak(others.get(form)) and peak(others[form]) / peak(ours) for form in forms]
        cells = [f"{number(value)}{verdict(value, target)}" if value else "–" for value in ratios]
        lines.append([ours["name"].removeprefix("step/"), f"{peak(ours) / 1e6:.0f} MB", *cells])
    lines = [line[: 2 + len(forms)] for line in lines]
    return "Peak device memory: PyTorch's by medmerge's.\n\n" + table(["step", "medmerge", *forms], lines)


def learning(rows, is_gpu):
    """Of ours alone: a learning step beside the training step of the same images, and its share of merging."""
    ours = {row["name"]: row for row, _ in rows}
    lines = []
    for name, row in ours.items():
        trained = ours.get(name.replace(f"/{row['what']}/", "/training/"))
        if row["what"] == "training" or not trained:
            continue
        value = row["seconds"]["median"] / trained["seconds"]["median"]
        share, most = row["step"]["merging_share"], MERGING_SHARE_TARGETS.get(row["batch_size"]) if is_gpu else None
        mark = lambda is_met: (" ✓" if is_met else " ✗") if is_gpu else ""
        lines.append([
            name.removeprefix("step/"), f"{value:.2f}{mark(value < 1)}",
            "–" if share is None else f"{share:.1%}" + (f"{mark(share <= most)} (target: ≤ {most:.0%})" if most else ""),
        ])
    if not lines:
        return None
    of_training = "÷ our training step" + (" (target: < 1)" if is_gpu else "")
    return "medmerge's learning steps by themselves.\n\n" + table(["step", of_training, "merging's share"], lines)


SECTIONS = {"merge": merging, "conv": convolutions, "step": steps}


# ---- the document

def header(reports):
    lines = []
    for report in reports:
        device, versions = report["device"], report.get("versions", {})
        of_device = ", ".join(
            f"{device[key]} {unit}".strip() for key, unit in (("device", ""), ("name", ""), ("architecture", ""), ("threads", "threads"))
            if device.get(key)
        )
        whose = "medmerge" if report["is_ours"] else "PyTorch"
        made_by = [f"{whose} {report['version']}", *(f"{name} {value}" for name, value in versions.items() if value and name != "torch")]
        driver = f", driver {device['driver']}" if device.get("driver") else ""
        program, *options = report["command"]
        command = " ".join([pathlib.PurePath(program).name, *options])
        lines.append([pathlib.PurePath(report["path"]).name, ", ".join(made_by), of_device + driver, f"`{command}`"])
    return table(["report", "made by", "device", "command"], lines).replace("---:", "---")


def document(joined, warnings):
    is_gpu = joined.is_gpu()
    parts = ["# medmerge and PyTorch"]
    if warnings:
        parts.append("\n".join(["**WARNING: some of these figures may mean nothing.**", "", *(f"* **{text}**" for text in warnings)]))
    parts += [
        header(joined.reports),
        "The column medmerge is a median time, ± half the distance between its quartiles, and the share of the limit "
        "measured in the same run. Every other column is *PyTorch's median ÷ medmerge's*, for one form of PyTorch: above 1, "
        "medmerge is faster. Its ± is half of what the quartiles of both leave open. *fastest*: beside whichever form is "
        "fastest for the row. Geometric means of convolutions weigh a layer by how often the network has it. "
        + ("✓ meets the target, ✗ misses it." if is_gpu else "The targets of PERFORMANCE.md §4 are a GPU's, and are not quoted."),
    ]
    for bench, section in SECTIONS.items():
        for precision in joined.precisions(bench):
            rows = joined.rows(bench, precision)
            if rows:
                amp = ", PyTorch under autocast" if bench == "step" and precision in STEP_PRECISIONS else ""
                parts.append(f"## {TITLES[bench]}, {precision}{amp}\n\n{section(rows, is_gpu, precision)}")
    notes = list(joined.notes())
    if notes:
        parts.append("Forms without a time:\n\n" + "\n".join(f"* {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=pathlib.Path, metavar="REPORT.json")
    parser.add_argument("--out", type=pathlib.Path, metavar="table.md", help="write the table here instead of stdout")
    options = parser.parse_args(arguments)
    try:
        reports = [read(path) for path in options.reports]
        for is_ours, whose in ((True, "medmerge"), (False, "PyTorch")):
            if not any(report["is_ours"] == is_ours for report in reports):
                raise Unusable(f"no report of {whose}'s among {', '.join(map(str, options.reports))}")
        joined = Joined(reports)
        warnings = list(dict.fromkeys(joined.warnings()))
        text = document(joined, warnings)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
