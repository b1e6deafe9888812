#!/usr/bin/env python3
"""What benches/on_gpu/call.sh brought back, as Markdown: results.py OUT… (the folders of any of its calls)

Whether all was right, each target of speed with met or missed, and what the model of the machine (docs/performance.md) predicted
beside what was measured. Exit status 1 where something was not right, 2 where a folder holds no results. Standard library only.
"""

import argparse
import json
import pathlib
import re
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "peers"))
import ratios  # noqa: E402
from figures import geometric_mean, table  # noqa: E402

# The model of the machine: a launch takes as long as its bytes or its operations, whichever is longer, at shares of what the
# vendor states that well-made kernels reach, and a gap to the next. Bytes/s, tensor cores' FLOP/s in 16 bits, f32's.
CARDS = {"H100": (3.35e12, 989e12, 67e12), "H200": (4.8e12, 989e12, 67e12)}
SHARE_OF_BYTES, GAP = 0.83, 2e-6
# Of operations: those of tensor cores by instructions of warpgroups, by those of a warp, and all others.
SHARE_OF_OPERATIONS = {"conv2d_hopper_": 0.80, "conv2d_tensor_": 0.60, "": 0.60}
FIRST_STEP = {"warm": 1.0, "cold": 15.0}  # seconds


class Unusable(Exception):
    pass


def objects(text):
    """All JSON objects of a text, one behind the other."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while (start := text.find("{", at)) >= 0:
        value, at = decoder.raw_decode(text, start)
        found.append(value)
    return found


class Results:
    def __init__(self, folders):
        self.about, self.files, self.reports = {}, {}, []
        for folder in map(pathlib.Path, folders):
            if not (folder / "about.txt").is_file():
                raise Unusable(f"{folder}: no about.txt, which benches/on_gpu/call.sh writes")
            about = dict(line.split(": ", 1) for line in (folder / "about.txt").read_text().splitlines() if ": " in line)
            for key in ("card", "commit"):
                if self.about.get(key, about.get(key)) != about.get(key):
                    raise Unusable(f"{folder}: another {key}: {about.get(key)}, not {self.about[key]}")
            self.about.update(about)
            for path in folder.iterdir():
                if path.suffix == ".tgz":
                    self.unpack(path)
                elif path.suffix in (".txt", ".json", ".md"):
                    before = self.files.get(path.name, "") if path.name == "stages.txt" else ""
                    self.files[path.name] = before + path.read_text(errors="replace")

    def unpack(self, path):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".json") and member.isfile():
                    report = json.loads(archive.extractfile(member).read())
                    self.reports.append({**report, "path": member.name, "is_ours": report.get("program") != "pytorch"})

    # ---- is it right?

    def right(self):
        """(lines, faults)"""
        lines, faults = [], []
        for report in objects(self.files.get("selftest.json", "")):
            for op in report["ops"]:
                errors = op.get("errors", {})
                cells = [f"{errors[dtype]['error']:.1e}" if dtype in errors else "–" for dtype in ("f32", "tf32", "bf16", "f16")]
                outcome = op["outcome"]
                if outcome != "passed":
                    details = " ".join(str(op[key]) for key in ("wrong", "failures") if op.get(key))
                    faults.append(f"selftest {op['op']}: {outcome}{': ' if details else ''}{details}")
                lines.append([op["op"], *cells, outcome])
        tests = self.files.get("tests.txt")
        summary = []
        if tests is not None:
            for name, status in re.findall(r"^== (\S+): exit status (\d+)$", tests, re.M):
                if status != "0":
                    faults.append(f"tests of {name}: exit status {status}")
            summary += [f"* tests: {line}" for line in re.findall(r"^test result: .*$", tests, re.M)]
            faults += [f"test {name}" for name in re.findall(r"^test (\S+) \.\.\. FAILED$", tests, re.M)]
        sanitizer = self.files.get("sanitizer.txt")
        if sanitizer:
            for name, status in re.findall(r"^== (\S+): exit status (\d+)$", sanitizer, re.M):
                if status != "0":
                    faults.append(f"{name}: exit status {status}")
            summary += [f"* {line}" for line in re.findall(r"^========= (ERROR SUMMARY: .*|RACECHECK SUMMARY: .*)$", sanitizer, re.M)]
        elif sanitizer is not None:
            summary.append("* memcheck, racecheck: not run")
        parts = []
        if lines:
            parts.append(table(["op", "f32", "tf32", "bf16", "f16", "outcome"], lines))
        return "\n\n".join(filter(None, [*parts, "\n".join(summary)])) or "Not run.", faults

    # ---- is it fast?

    def targets(self):
        """Rows of: target, wanted, found, met or missed."""
        joined = ratios.Joined(self.reports)
        rows = []

        def add(what, wanted, values, is_met, show=ratios.number):
            known = [value for value in values if value is not None]
            if not known:
                rows.append([what, wanted, "not measured", "–"])
                return
            rows.append([what, wanted, show(known[0]) if len(known) == 1 else f"{show(min(known))} to {show(max(known))}",
                         "met" if all(map(is_met, known)) else "**missed**"])

        def against(pairs, form):
            found = [ratios.ratio(ours, others.get(form)) for ours, others in pairs]
            return [value[0] for value in filter(None, found)]

        percent = lambda value: f"{value:.1%}"
        merges = joined.rows("merge", "f32") or [(row, {}) for row in joined.ours.values() if row["bench"] == "merge"]
        add("merge and dα, share of the bandwidth of their mix", f"≥ {ratios.SHARE_TARGET:.0%}",
            [row.get("share") for row, _ in merges], lambda value: value >= ratios.SHARE_TARGET, percent)
        for form, least in (("eager", 10), ("compile", 3)):
            add(f"merge and dα beside PyTorch, {form}", f"≥ {least}", against(merges, form), lambda value, least=least: value >= least)
        for precision in ratios.CONV_PRECISIONS:
            layers = against(joined.rows("conv", precision), "channels_last")
            mean = [geometric_mean(layers, [1] * len(layers))] if layers else []
            add(f"convolutions beside cuDNN, {precision}, geometric mean", "≥ 1", mean, lambda value: value >= 1)
            add(f"convolutions beside cuDNN, {precision}, each layer", "≥ 0.8", layers, lambda value: value >= 0.8)
        steps = [(row, joined.theirs.get(name, {})) for name, row in joined.ours.items() if row["bench"] == "step"]
        meant = [
            (row, forms) for row, forms in steps
            if row["what"] == "training" and row["network"] in ratios.TRAINED and row["batch_size"] in ratios.BATCHES
            and row["precision"] in ratios.STEP_PRECISIONS
        ]
        for form, least in ratios.STEP_TARGETS.items():
            add(f"training steps of ResNet-18 and 50 beside PyTorch, {form}", f"≥ {least:g}", against(meant, form),
                lambda value, least=least: value >= least)
        ours = dict(joined.ours)
        learning = []
        for name, row in ours.items():
            trained = ours.get(name.replace(f"/{row['what']}/", "/training/")) if row["bench"] == "step" else None
            if trained and row["what"] != "training":
                learning.append(row["seconds"]["median"] / trained["seconds"]["median"])
        add("learning step by training step", "< 1", learning, lambda value: value < 1)
        for batch, most in ratios.MERGING_SHARE_TARGETS.items():
            shares = [row["step"]["merging_share"] for row, _ in steps if row["batch_size"] == batch and row.get("step")]
            add(f"merging's share of a learning step, batch {batch}", f"≤ {most:.0%}", shares, lambda value, most=most: value <= most, percent)
        peaks = [
            ratios.peak(row) / ratios.peak(forms[form])
            for row, forms in meant for form in ("eager channels_last",)
            if ratios.peak(row) and ratios.peak(forms.get(form))
        ]
        add("peak memory of a step by PyTorch's", "≤ 0.8", peaks, lambda value: value <= 0.8)
        seconds = dict(re.findall(r"^(cold|warm): ([\d.]+) s$", self.files.get("first-step.txt", ""), re.M))
        for cache, most in FIRST_STEP.items():
            add(f"one step of training as a program, {cache} cache", f"≤ {most:g} s", [float(seconds[cache])] if cache in seconds else [],
                lambda value, most=most: value <= most, lambda value: f"{value:.1f} s")
        return rows

    # ---- what was expected?

    def card(self):
        return next((name for name in CARDS if name in self.about.get("card", "")), "H200")

    def predictions(self):
        rows = []
        for report in self.reports + [{**report, "is_ours": True} for name in ("step.json", "step-tuned.json")
                                      for report in objects(self.files.get(name, ""))]:
            for row in report.get("rows", []) if report["is_ours"] and report.get("bench") == "step" else []:
                predicted, found = predict(row["step"]["kernels"], row["precision"], self.card()), row["seconds"]["median"]
                rows.append([row["name"].removeprefix("step/"), f"{1e3 * predicted:.2f}", f"{1e3 * found:.2f}", f"{found / predicted:.2f}"])
        return rows


def predict(kernels, precision, card):
    """Seconds of a step whose kernels read, write and compute so much."""
    bytes_per_second, tensor, plain = CARDS[card]
    seconds = 0.0
    for kernel in kernels:
        family, share = next(of for of in SHARE_OF_OPERATIONS.items() if kernel["name"].startswith(of[0]))
        operations = (tensor if precision != "tf32" else tensor / 2) if family else plain
        moving = (kernel["read"] + kernel["written"]) / (SHARE_OF_BYTES * bytes_per_second)
        seconds += max(moving, kernel["flops"] / (share * operations)) + kernel["launches"] * GAP
    return seconds


def document(results):
    text, faults = results.right()
    is_emulated = results.about.get("device", "").startswith("emulator")
    lines = ["# On a GPU", "", *(f"* {key}: {value}" for key, value in results.about.items()), ""]
    if is_emulated:
        lines += ["**EMULATED: no time below means anything.**", ""]
    lines += ["## Is it right?", "", text, ""]
    lines += [f"* **{fault}**" for fault in faults] + [""] if faults else []
    lines += ["## Targets", "", table(["", "target", "found", ""], results.targets()), ""]
    predictions = results.predictions()
    if predictions:
        bytes_per_second, tensor, _ = CARDS[results.card()]
        lines += [
            "## The model of the machine", "",
            f"{SHARE_OF_BYTES:.0%} of {bytes_per_second / 1e12:g} TB/s, {SHARE_OF_OPERATIONS['conv2d_tensor_']:.0%} of {tensor / 1e12:g} TFLOP/s "
            f"in 16 bits, {SHARE_OF_OPERATIONS['conv2d_hopper_']:.0%} by warpgroups, "
            f"{1e6 * GAP:g} µs from launch to launch ({results.card()}).", "",
            table(["step", "predicted ms", "measured ms", "measured by predicted"], predictions), "",
        ]
    if "stages.txt" in results.files:
        lines += ["## Stages", "", "```", results.files["stages.txt"].rstrip(), "```", ""]
    if "table.md" in results.files:
        lines += [results.files["table.md"].rstrip(), ""]
    return "\n".join(lines), faults


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="OUT")
    try:
        text, faults = document(Results(parser.parse_args(arguments).folders))
    except (Unusable, ratios.Unusable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
