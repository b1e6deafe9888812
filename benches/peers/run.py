#!/usr/bin/env python3
"""Runs every peer on the same works, in turn and several rounds, and writes the ratios as Markdown.

A round runs group by group (steps, convolutions, merging, learning, triad), and within a group one peer after another,
so that peers compared with each other are measured minutes apart. A figure is the median over the rounds of each round's
median.
Everything runs on the same cores with the same number of threads, and nothing runs beside it.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import time

from figures import duration, geometric_mean, table

HERE = pathlib.Path(__file__).resolve().parent
GROUPS = ("step", "learn", "infer", "conv", "merge", "triad")
TITLES = {
    "step": "Training step",
    "conv": "Convolution",
    "merge": "Merging ResNet-50",
    "learn": "Learning merge weights",
    "infer": "Inference",
    "triad": "Memory",
}
# The others tuned to this processor, our own code as its users build it: run.sh makes both.
BINARIES = (HERE / "target/native/release/medmerge-peers", HERE / "target/release/medmerge-peers")
BASELINES = ("ours", "torch-cl", "torch-eager", "torch")
TORCH = ("torch-cl", "torch", "torch-cl-compile")
# Groups that only these peers have, and peers that have only these groups.
ALONE = {"learn": ("ours", *TORCH), "infer": ("ours", *TORCH, "onnxruntime")}
INFERRING = ("onnxruntime",)
# Minutes per training step, or to compile a network: only where --peers names it.
ON_REQUEST = ("burn-ndarray", "torch-cl-compile")
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "MATMUL_NUM_THREADS")
TOLERANCE = 2e-3  # of checks, relative


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- what there is to run

def programs(python, binaries):
    """Peer name → command. A peer that two builds contain is taken from the first."""
    found = {peer: [python, str(HERE / "torch_peer.py"), peer] for peer in TORCH}
    if subprocess.run([python, "-c", "import torch, torchvision"], capture_output=True).returncode:
        say(f"{python} has no torch and torchvision: left out")
        found = {}
    for binary in binaries:
        if not binary.exists():
            say(f"{binary} is not built: left out")
            continue
        for peer in subprocess.run([binary, "list"], capture_output=True, text=True, check=True).stdout.split():
            found.setdefault(peer, [str(binary), peer])
    if not subprocess.run([python, "-c", "import torch, onnxruntime, onnxscript"], capture_output=True).returncode:
        found["onnxruntime"] = [python, str(HERE / "torch_peer.py"), "onnxruntime"]
    order = ("torch-cl", "torch", "onnxruntime", "ours")  # then as the binaries list them
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def measure(command, group, options, environment):
    """The JSON lines of one peer's run of one group; whatever it printed before failing still counts."""
    if options.tcmalloc and "torch_peer.py" in command[1]:
        environment = {**environment, "LD_PRELOAD": options.tcmalloc}
    command = command + ["--only", group, "--match", options.match]
    for name in ("seconds", "cap"):
        if getattr(options, name) is not None:
            command += [f"--{name}", str(getattr(options, name))]
    command += ["--quick"] if options.quick else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        say(f"failed with {done.returncode}: {' '.join(command)}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.returncode


# ---- figures

class Results:
    def __init__(self):
        self.lines = collections.defaultdict(list)  # (work, peer) → lines, one per round
        self.notes = {}  # text → None, in order, once each

    def add(self, line):
        if "note" in line:
            self.notes[f"{line['peer']}, {line['work']}: {line['note']}"] = None
        else:
            self.lines[line["work"], line["peer"]].append(line)

    def works(self, group):
        works = dict.fromkeys(work for work, _ in self.lines)
        return [work for work in works if work.split("/")[0].split("_")[0] == group]

    def peers(self, works):
        return list(dict.fromkeys(peer for work, peer in self.lines if work in works))

    def seconds(self, work, peer):
        lines = self.lines.get((work, peer))
        return statistics.median(line["seconds_median"] for line in lines) if lines else None

    def spread(self, work, peer):
        """Half the distance between the slowest and the fastest round's median, relative; of one round nothing."""
        medians = [line["seconds_median"] for line in self.lines[work, peer]]
        return f"{(max(medians) - min(medians)) / 2 / statistics.median(medians):.0%}" if len(medians) > 1 else "–"

    def peak(self, work, peer):
        """Bytes that the work added to its process at most, in the median of the rounds."""
        peaks = [line["peak_bytes"] for line in self.lines.get((work, peer), []) if line.get("peak_bytes")]
        return statistics.median(peaks) if peaks else None

    def isa(self):
        return ", ".join(dict.fromkeys(line["isa"] for lines in self.lines.values() for line in lines if line.get("isa")))

    def runs(self, work, peer):
        return sum(line["runs"] for line in self.lines[work, peer])

    def disagreements(self):
        """Peers whose check differs from that of the first peer in the table."""
        for work in dict.fromkeys(work for work, _ in self.lines):
            checks = {peer: self.lines[work, peer][0]["check"] for peer in self.peers([work])}
            checks = {peer: check for peer, check in checks.items() if check}
            if not checks:
                continue
            first, wanted = next(iter(checks.items()))
            for peer, check in checks.items():
                same = len(check) == len(wanted) and all(
                    abs(a - b) <= TOLERANCE * abs(b) for a, b in zip(check, wanted)  # false for NaN
                )
                if not same:
                    yield f"{work}: {peer} computes {rounded(check)}, {first} {rounded(wanted)}"


def rounded(numbers):
    return "[" + ", ".join(f"{number:.6g}" for number in numbers) + "]"


# ---- the table

def rate(line, seconds):
    """Memory-bound works are told in bytes, the others in operations."""
    if line["work"].split("/")[0].startswith(("merge", "learn_merge", "triad")):
        return f"{line['bytes'] / seconds / 1e9:.1f} GB/s"
    return f"{line['flops'] / seconds / 1e9:.1f} GFLOP/s"


def section(results, group, wanted_baseline):
    works = results.works(group)
    if not works:
        return None
    peers = results.peers(works)
    baseline = next((peer for peer in (wanted_baseline, *BASELINES, *peers) if peer in peers), None)
    peers.remove(baseline)
    head = ["work", baseline, "±", "rate", *peers]

    rows = []
    for work in works:
        own = results.seconds(work, baseline)
        cells = [work, duration(own), results.spread(work, baseline),
                 rate(results.lines[work, baseline][0], own)] if own else [work, "–", "–", "–"]
        for peer in peers:
            other = results.seconds(work, peer)
            cells.append("–" if not other else f"{other / own:.2f}" if own else duration(other))
        rows.append(cells)
    if group == "conv":
        rows = [*sums(results, works, baseline, peers), *rows]
    return f"## {TITLES[group]}\n\n{table(head, rows)}"


def learning(results):
    """What a learning step spends on merging, and how long it takes beside the peer's step that trains everything."""
    rows = []
    for work in (work for work in results.works("learn") if work.startswith("learn_step/")):
        setting = work.removeprefix("learn_step/")
        for peer in results.peers([work]):
            whole = results.seconds(work, peer)
            merging = results.seconds(f"learn_merge/{setting}", peer)
            training = results.seconds(f"step/{setting}", peer)
            rows.append([work, peer, duration(whole), results.spread(work, peer),
                         duration(merging) if merging else "–", f"{merging / whole:.2%}" if merging else "–",
                         f"{whole / training:.2f}" if training else "–"])
    if not rows:
        return None
    head = ["work", "peer", "learning step", "±", "blend and dα alone", "their share", "÷ training step"]
    return table(head, rows)


def sums(results, works, baseline, peers):
    """Per pass and setting: all of the network's convolutions, each as often as it occurs; and the ratios' mean.

    A peer that lacks one of the layers gets no sum; its mean is over the layers that both have.
    """
    counts = {(conv["name"], str(conv["px"])): conv["count"] for conv in json.loads((HERE / "shapes.json").read_text())["convs"]}
    settings = collections.defaultdict(list)
    for work in works:
        kind, _, px, n = work.split("/")
        settings[kind, px, n].append(work)
    for (kind, px, n), layers in settings.items():
        def total(peer):
            times = [results.seconds(work, peer) for work in layers]
            occurrences = [counts[work.split("/")[1], px] for work in layers]
            return None if None in times else sum(seconds * count for seconds, count in zip(times, occurrences))

        own = total(baseline)
        others = [total(peer) for peer in peers]
        yield [f"**{kind}, all layers, {px} px, batch {n}**", duration(own) if own else "–", "", "",
               *(f"**{other / own:.2f}**" if own and other else "–" for other in others)]

        def mean(peer):
            pairs = [(results.seconds(work, peer), results.seconds(work, baseline)) for work in layers]
            ratios = [other / own for other, own in pairs if other and own]
            return f"**{geometric_mean(ratios):.2f}**" if ratios else "–"

        yield [f"**{kind}, geometric mean, {px} px, batch {n}**", "", "", "", *map(mean, peers)]


def summary(results, baseline):
    """Of each group of whole networks: how the best form of PyTorch, or ONNX Runtime, does beside the baseline, in time and memory."""
    rows = []
    for group, rivals in (("step", TORCH), ("learn", TORCH), ("infer", TORCH), ("infer", INFERRING)):
        ratios, peaks = {}, {}
        for work in results.works(group):
            own = results.seconds(work, baseline)
            others = [seconds for peer in rivals if (seconds := results.seconds(work, peer))]
            if own and others and not work.startswith("learn_merge"):
                ratios[work] = min(others) / own
            own, others = results.peak(work, baseline), [peak for peer in rivals if (peak := results.peak(work, peer))]
            if own and others and not work.startswith("learn_merge"):
                peaks[work] = own / min(others)
        if not ratios:
            continue
        name = "ONNX Runtime" if rivals is INFERRING else "PyTorch, its fastest form of each row"
        lowest = min(ratios, key=ratios.get)
        rows.append([TITLES[group], name, str(len(ratios)), f"{geometric_mean(list(ratios.values())):.2f}",
                     f"{ratios[lowest]:.2f} ({lowest})", f"{geometric_mean(list(peaks.values())):.2f}" if peaks else "–"])
    if not rows:
        return None
    head = ["", "beside", "rows", "its time ÷ ours, geometric mean", "lowest", "our peak memory ÷ its least, geometric mean"]
    return "## Whole networks\n\n" + table(head, rows)


def missing(results, works):
    """Works of which medmerge has no figure; it has none of the triad."""
    return [f"{work}: ours has no figure" for work in works if results.seconds(work, "ours") is None and not work.startswith("triad")]


def works(command, options):
    """The names of all that is measured with these options."""
    quick = ["--quick"] if options.quick else []
    names = subprocess.run([command[0], "works", *quick], capture_output=True, text=True, check=True).stdout.split()
    groups = options.only.split(",")
    is_asked = lambda name: name.split("/")[0].split("_")[0] in groups and any(text in name for text in options.match.split(","))
    return [name for name in names if is_asked(name)]


def appendix(results):
    """Every figure behind the ratios."""
    rows = []
    for (work, peer), lines in results.lines.items():
        seconds = results.seconds(work, peer)
        low, high = min(line["seconds_min"] for line in lines), max(line["seconds_max"] for line in lines)
        rows.append([work, peer, duration(seconds), results.spread(work, peer), duration(low), duration(high),
                     str(results.runs(work, peer)), rate(lines[0], seconds),
                     f"{results.peak(work, peer) / 1e6:.0f} MB" if results.peak(work, peer) else "–"])
    rows.sort(key=lambda row: (GROUPS.index(row[0].split("/")[0].split("_")[0]), row[0]))
    head = ["work", "peer", "median", "± rounds", "fastest run", "slowest run", "runs", "rate", "peak memory"]
    return "<details><summary>All figures</summary>\n\n" + table(head, rows) + "\n\n</details>"


# ---- what it was measured on

def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def busy(seconds=2.0):
    """Share of all cores that others use right now; 0 where /proc/stat does not tell."""
    def ticks():
        numbers = [int(word) for word in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_after, idle_after = ticks()
    except OSError:
        return 0.0
    return 1 - (idle_after - idle) / (total_after - total)


def processor():
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def versions(python):
    yield from output(python, "-c", "import torch, torchvision as v; print('torch', torch.__version__); print('torchvision', v.__version__)").splitlines()
    lock = (HERE / "Cargo.lock").read_text() if (HERE / "Cargo.lock").exists() else ""
    for crate in ("candle-core", "burn"):
        yield from (f"{crate} {version}" for version in re.findall(rf'name = "{crate}"\nversion = "(.+)"', lock))
    yield output("rustc", "--version")


def header(results, options, rounds, peers, before):
    commit = output("git", "rev-parse", "--short", "HEAD") or "unknown"
    changed = " with uncommitted changes" if output("git", "status", "--porcelain") else ""
    rows = [
        ["processor", f"{processor()}, {os.cpu_count()} cores"],
        ["our instruction set", results.isa() or "unknown"],
        ["allocator", f"{pathlib.Path(options.tcmalloc).name}, preloaded for PyTorch" if options.tcmalloc else "the system's"],
        ["threads", str(options.threads)],
        ["system", f"{platform.system()} {platform.release()}"],
        ["versions", ", ".join(filter(None, versions(options.python)))],
        ["commit", commit + changed],
        ["date", datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")],
        ["rounds", f"{rounds}{', quick: a smoke test, not a measurement' if options.quick else ''}"],
        ["busy before", f"{before:.0%} of all cores"],
        ["peers", ", ".join(peers)],
    ]
    return table(["", ""], [[f"**{name}**", value] for name, value in rows]).replace("---:", "---")


def document(results, options, rounds, peers, before):
    parts = ["# medmerge and its peers", header(results, options, rounds, peers, before)]
    parts.append("The first peer of each table has its time, the spread of its rounds and its rate; every other column "
                 "is that peer's time divided by the first peer's: above 1, the first is faster.")
    parts += filter(None, [summary(results, "ours")])
    for group in GROUPS:
        parts += filter(None, [section(results, group, options.baseline), group == "learn" and learning(results)])
    wrong = list(results.disagreements())
    parts.append("Every peer that computes a work computes the same." if not wrong else
                 "**Peers that compute something else:**\n\n" + "\n".join(f"* {line}" for line in wrong))
    if results.notes:
        parts.append("Notes:\n\n" + "\n".join(f"* {note}" for note in results.notes))
    parts.append(appendix(results))
    return "\n\n".join(parts) + "\n"


# ---- command line

def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GROUPS), metavar="GROUPS", help=f"of {','.join(GROUPS)}")
    parser.add_argument("--match", default="", metavar="TEXTS", help="only works whose name contains one of these")
    parser.add_argument("--peers", metavar="NAMES", help="only these programs, as `torch,torch-cl,ours,candle`")
    parser.add_argument("--baseline", default="ours", help="the peer that the others are divided by (default: ours)")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--seconds", type=float, help="least time per work and round (default 1.5, with --quick 0.1)")
    parser.add_argument("--cap", type=float, help="most time per work and round (default 20, with --quick 2)")
    parser.add_argument("--quick", "--smoke", action="store_true", help="small works, one round: does everything run?")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE", help="write the table here too")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every JSON line here")
    parser.add_argument("--binary", type=pathlib.Path, action="append", metavar="FILE", help="a build of the Rust peers; default: those of run.sh")
    parser.add_argument("--tcmalloc", metavar="FILE", help="libtcmalloc, to be preloaded for PyTorch")
    parser.add_argument("--python", default=sys.executable, help="an interpreter with torch and torchvision")
    options = parser.parse_args()
    unknown = set(options.only.split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"--only knows {', '.join(GROUPS)}, not {', '.join(sorted(unknown))}")
    if options.quick:
        options.seconds = 0.1 if options.seconds is None else options.seconds
        options.cap = 2.0 if options.cap is None else options.cap
    return options


def main():
    options = arguments()
    chosen = programs(options.python, options.binary or BINARIES)
    if options.peers:
        unknown = set(options.peers.split(",")) - set(chosen)
        if unknown:
            sys.exit(f"error: no peer {', '.join(sorted(unknown))} here; there are {', '.join(chosen)}")
        chosen = {peer: command for peer, command in chosen.items() if peer in options.peers.split(",")}
    else:
        chosen = {peer: command for peer, command in chosen.items() if peer not in ON_REQUEST}
    if not chosen:
        sys.exit("error: nothing to measure\nhint: run.sh builds the peers first")

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # inherited by the peers
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(options.threads))}
    before = busy()
    if before > 0.05:
        say(f"warning: others use {before:.0%} of this machine: the figures will be worthless")

    results, log, failures, rounds = Results(), [], [], options.rounds or (1 if options.quick else 3)
    for number in range(1, rounds + 1):
        for group in (group for group in GROUPS if group in options.only.split(",")):
            for peer, command in chosen.items():
                if peer not in ALONE.get(group, chosen) or (peer in INFERRING and group != "infer"):
                    continue
                say(f"== round {number} of {rounds}: {group}, {peer}")
                lines, status = measure(command, group, options, environment)
                if status:
                    results.notes[f"{peer}, {group}: ended with status {status}"] = None
                    failures.append(f"{peer}, {group}: ended with status {status}")
                for line in lines:
                    results.add(line)
                    log.append({**line, "round": number})

    text = document(results, options, rounds, list(chosen), before)
    print(text, end="")
    if options.out:
        options.out.write_text(text)
    if options.json:
        options.json.write_text("".join(json.dumps(line) + "\n" for line in log))
    faults = [*failures, *(missing(results, works(chosen["ours"], options)) if "ours" in chosen else [])]
    if faults:
        sys.exit("error: " + "\nerror: ".join(faults))


if __name__ == "__main__":
    main()
