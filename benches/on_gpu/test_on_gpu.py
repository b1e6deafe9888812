"""Tests of call.sh and results.py with a stand-in for the program: python3 -m unittest discover -s benches/on_gpu"""

import contextlib
import io
import json
import os
import pathlib
import stat
import subprocess
import tempfile
import unittest

import results
from results import HERE

# Knows two ops, of which one fails and one takes the process with it, and reports of every benchmark.
PROGRAM = """#!/usr/bin/env bash
case "$*" in
  "selftest --op ?") echo "hint: known: good, bad, gone" >&2; exit 2 ;;
  *"--op good"*) echo '{"ops": [{"op": "good", "outcome": "passed", "errors": {"f32": {"error": 1e-7}}}]}' ;;
  *"--op bad"*) echo '{"ops": [{"op": "bad", "outcome": "failed", "wrong": "it is wrong", "failures": {"bf16": 2}}]}'; exit 1 ;;
  *"--op gone"*) kill -9 $$ ;;
  devices*) echo "cuda:0" ;;
  kernels*) echo '{"modules": []}' ;;
  synth*) exit 0 ;;
  train*) exit 0 ;;
  "bench step"*) cat "$(dirname "$0")/step.json" ;;
  "bench conv"*--tune*) echo '{}' > "${@: -2:1}"; echo "tuned" ;;
  *) exit 3 ;;
esac
"""


def kernel(name, read, written, flops, launches=1):
    return {"name": name, "read": read, "written": written, "flops": flops, "launches": launches}


def step(what, median, share=None, program=None, form=None):
    row = {
        "name": f"step/resnet50/224px/128/{what}/bf16", "what": what, "precision": "bf16", "network": "resnet50", "image_size": 224,
        "batch_size": 128, "bytes": 1, "flops": 1,
        "seconds": {"median": median, "first_quartile": median, "third_quartile": median},
        "step": {"kernels": [kernel("x_bf16", 10**9, 10**9, 0)], "merging_share": share, "peak_bytes": 100},
    }
    return {**row, "form": form} if program else row


def report(rows, **more):
    return {"bench": "step", "complete": True, "device": {"device": "cuda:0"}, "rows": rows, **more}


class Calls(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.packed = self.folder / "packed"
        (self.packed / "tests").mkdir(parents=True)
        self.script(self.packed / "medmerge", PROGRAM)
        self.script(self.packed / "tests/device", '#!/bin/sh\necho "test result: ok. 3 passed"\n')
        self.script(self.packed / "tests/golden", '#!/bin/sh\necho "test a::b ... FAILED"\nexit 101\n')
        (self.packed / "commit").write_text("0123abc\n")
        rows = [step("training", 0.02), step("learning, 2 sources", 0.018, 0.008)]
        (self.packed / "step.json").write_text(json.dumps(report(rows)))

    def script(self, path, text):
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def call(self, number, **environment):
        out = self.folder / f"out{number}"
        # No GPU's tools, whatever this machine has; and no PyTorch.
        tools = {"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false", "MEDMERGE_NVRTC": "/nowhere"}
        command = ["bash", str(HERE / "call.sh"), str(number), str(out), str(self.packed)]
        run = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env={**os.environ, **tools, **environment})
        self.assertLessEqual(len(list(out.iterdir())), 8, "at most eight files")
        return run.returncode, (out / "stages.txt").read_text(), out

    def read(self, *folders):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = results.main([str(folder) for folder in folders])
        return status, out.getvalue(), err.getvalue()

    def test_what_fails_keeps_nothing_else_from_running(self):
        status, stages, out = self.call(1)
        self.assertEqual(status, 1)
        for line in ("devices: done", "selftest-good: done", "selftest-bad: failed with 1", "selftest-gone: stopped", "tests-device: done",
                     "tests-golden: failed with 101", "memcheck: left out, there is no compute-sanitizer"):
            self.assertIn(line, stages)
        status, text, _ = self.read(out)
        self.assertEqual(status, 1)
        for line in ("| good | 1.0e-07 |", "**selftest bad: failed: it is wrong {'bf16': 2}**", "**selftest gone: stopped**", "ok. 3 passed",
                     "**tests of golden: exit status 101**", "**test a::b**", "memcheck, racecheck: not run", "* commit: 0123abc"):
            self.assertIn(line, text)

    def test_what_finds_no_time_is_left_out_and_said(self):
        status, stages, _ = self.call(1, BUDGET="10")
        self.assertEqual(status, 1)
        self.assertIn("selftest-good: left out, no time", stages)
        self.assertNotIn("done", stages)

    def test_reports_travel_and_are_judged(self):
        status, stages, out = self.call(2, STAGES="step", BATCHES="128", PRECISIONS="bf16")
        self.assertIn("step-bf16-128-medmerge: done", stages)
        self.assertIn("first-step-warm: done", stages)
        self.assertEqual(status, 1, "without PyTorch there is no table")
        _, text, _ = self.read(out)
        self.assertIn("| learning step by training step | < 1 | 0.90 | met |", text)
        self.assertIn("| merging's share of a learning step, batch 128 | ≤ 1% | 0.8% | met |", text)
        self.assertIn("beside PyTorch, eager channels_last | ≥ 1.5 | not measured | – |", text)
        self.assertRegex(text, r"cold cache \| ≤ 15 s \| \d")

    def test_the_third_call_tunes_and_measures_again(self):
        status, stages, out = self.call(3, BATCHES="128", PRECISIONS="bf16")
        self.assertEqual(status, 0, stages)
        for line in ("ncu: left out", "tune: done", "step-tuned: done"):
            self.assertIn(line, stages)
        status, text, _ = self.read(out)
        self.assertEqual(status, 0)
        # 2 GB at 83 % of 4.8 TB/s, and a launch: 0.504 ms.
        self.assertIn("| resnet50/224px/128/training/bf16 | 0.50 | 20.00 | 39.68 |", text)

    def test_folders_of_two_runs_are_not_joined(self):
        _, _, first = self.call(1, OPS="good", TESTS="device")
        (self.packed / "commit").write_text("fedc\n")
        _, _, second = self.call(3, BATCHES="128")
        status, _, said = self.read(first, second)
        self.assertEqual((status, "another commit: fedc, not 0123abc" in said), (2, True), said)
        self.assertEqual(self.read(self.folder)[0], 2)

    def test_nonsense_is_refused(self):
        run = subprocess.run(["bash", str(HERE / "call.sh"), "4", str(self.folder / "o"), str(self.packed)], capture_output=True, text=True)
        self.assertEqual((run.returncode, "give 1, 2 or 3" in run.stderr), (2, True), run.stderr)
        run = subprocess.run(["bash", str(HERE / "call.sh"), "1", str(self.folder / "o"), "/nowhere"], capture_output=True, text=True)
        self.assertEqual((run.returncode, "pack.sh makes the folder" in run.stderr), (2, True), run.stderr)


class Verdicts(unittest.TestCase):
    def targets(self, ours, theirs):
        found = results.Results([])
        found.reports = [{**report(ours), "path": "ours", "is_ours": True}, {**report(theirs), "path": "theirs", "is_ours": False}]
        return {row[0]: row[1:] for row in found.targets()}

    def test_met_and_missed(self):
        for theirs, verdict in ((0.031, "met"), (0.029, "**missed**")):
            rows = self.targets([step("training", 0.02)], [step("training", theirs, program="pytorch", form="eager channels_last")])
            name = "training steps of ResNet-18 and 50 beside PyTorch, eager channels_last"
            self.assertEqual(rows[name][2], verdict)
            self.assertEqual(rows["peak memory of a step by PyTorch's"][1:], ["1.00", "**missed**"])

    def test_the_model(self):
        # Operations that take longer than the bytes, at 60 % of 989 TFLOP/s; tf32 is half as fast; and a µs for each launch twice.
        kernels = [kernel("conv2d_tensor_x_bf16", 10, 10, 5.934e12, 3)]
        self.assertAlmostEqual(results.predict(kernels, "bf16", "H200"), 0.01 + 6e-6)
        self.assertAlmostEqual(results.predict(kernels, "tf32", "H200"), 0.02 + 6e-6)
        # Those of warpgroups at 80 %.
        self.assertAlmostEqual(results.predict([kernel("conv2d_hopper_x_bf16", 10, 10, 7.912e12)], "bf16", "H200"), 0.01 + 2e-6)
        self.assertAlmostEqual(results.predict([kernel("add_f32", 3.35e9, 0, 0)], "f32", "H100"), 1e-3 / 0.83 + 2e-6)


if __name__ == "__main__":
    unittest.main()
