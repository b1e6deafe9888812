"""Tests of figures.py and ratios.py, which need no PyTorch: python3 -m unittest discover -s benches/peers"""

import contextlib
import copy
import io
import json
import pathlib
import re
import tempfile
import unittest

import figures
import ratios

GPU = {"device": "cuda:0", "name": "NVIDIA H200", "multiprocessors": 132, "driver": "13.0", "cache_bytes": 1 << 26}
CPU = {"device": "cpu", "name": "AVX-512", "threads": 2, "cache_bytes": 1 << 25}


def timing(median, width=0.0):
    """Quartiles `width` of the median away."""
    return {"median": median, "first_quartile": median * (1 - width), "third_quartile": median * (1 + width)}


def report(bench, rows, device=GPU, **changes):
    return {"bench": bench, "version": "1", "command": ["made", "up"], "device": device, "emulated": False, "complete": True,
            "rows": rows, **changes}


def theirs(bench, rows, device=GPU, **changes):
    return report(bench, rows, {**device, "device": device["device"].split(":")[0]}, program="pytorch", **changes)


def row(name, what, precision, seconds, **more):
    return {"name": name, "what": what, "precision": precision, "seconds": seconds, "bytes": 10, "flops": 20, **more}


def merge(what="blend", median=1.0, width=0.0, **more):
    return row(f"merge/resnet50/2 sources/{what}", what, "f32", timing(median, width), network="resnet50", **more)


def conv(layer, count, median, precision="bf16", **more):
    return row(f"conv/resnet18/224px/128/{layer}/fprop/{precision}", "fprop", precision, timing(median), network="resnet18", layer=layer,
               shape="1×2×3×4 → 5, 3×3", count=count, image_size=224, batch_size=128, **more)


def step(what, median, peak=None, share=None, **more):
    return row(f"step/resnet50/224px/128/{what}/bf16", what, "bf16", timing(median), network="resnet50", image_size=224, batch_size=128,
               step={"images_per_second": 1, "launches": None, "peak_bytes": peak, "merging_share": share}, **more)


def joined(*reports, arguments=()):
    """Exit status, table, stderr."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, content in enumerate(reports):
            paths.append(pathlib.Path(folder) / f"{number}.json")
            paths[-1].write_text(content if isinstance(content, str) else json.dumps(content))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = ratios.main([*map(str, paths), *arguments])
    return status, out.getvalue(), err.getvalue()


def cells(text, first):
    """Of the line of the table whose first column, without emphasis, is this."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return next(line for line in lines if line[0].strip("*") == first)


def column(text, first, name):
    """The cell of that line under that heading of its own table."""
    head = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        found = [cell.strip() for cell in line.strip("|").split("|")]
        head = head or found
        if found[0].strip("*") == first:
            return found[head.index(name)]
    raise AssertionError(f"no {first} in\n{text}")


class Figures(unittest.TestCase):
    def test_median_and_quartiles_are_medmerges(self):
        of = lambda seconds: [figures.timing(seconds, 7, 2)[key] for key in ("first_quartile", "median", "third_quartile")]
        self.assertEqual(of([5.0, 1.0, 3.0, 2.0, 4.0]), [2, 3, 4])
        self.assertEqual(of([4.0, 2.0, 1.0, 3.0]), [1.75, 2.5, 3.25])
        self.assertEqual(of([2.0]), [2, 2, 2])
        self.assertAlmostEqual(figures.spread(figures.timing([5.0, 1.0, 3.0, 2.0, 4.0], 1, 1)), 1 / 3)

    def test_buffers_exceed_the_cache(self):
        for bytes_ in (1 << 16, 1 << 20, 100 << 20):
            sets = figures.buffer_sets(bytes_, 64 << 20)
            self.assertGreater(sets * bytes_, 2 * (64 << 20))
            self.assertLessEqual((sets - 1) * bytes_, 2 * (64 << 20))
        self.assertEqual(figures.buffer_sets(1 << 40, 64 << 20), 1)
        self.assertEqual(figures.buffer_sets(1, 64 << 20), figures.MOST_LAUNCHES)

    def test_a_timing_is_long_enough(self):
        self.assertEqual(figures.repeats(1e-3, 5e-3), 5)
        self.assertEqual(figures.repeats(1.0, 5e-3), 1)
        self.assertEqual(figures.repeats(0.0, 5e-3, 1000), figures.MOST_LAUNCHES // 1000)

    def test_means_and_durations(self):
        self.assertAlmostEqual(figures.geometric_mean([2, 8]), 4)
        self.assertAlmostEqual(figures.geometric_mean([2, 16], [3, 1]), 2 * 2 ** 0.75)
        told = [figures.duration(seconds) for seconds in (2.5, 0.0125, 123e-6, 5e-9)]
        self.assertEqual(told, ["2.50 s", "12.5 ms", "123 µs", "5.00 ns"])


class Ratios(unittest.TestCase):
    def test_a_ratio_its_spread_and_its_target(self):
        status, text, err = joined(
            report("merge", [merge(width=0.01, share=0.96)]),
            theirs("merge", [merge(median=12.0, width=0.02, form="eager"), merge(median=2.5, form="compile"), merge(median=2.0, form="foreach")]),
        )
        self.assertEqual((status, err), (0, ""))
        self.assertNotIn("WARNING", text)
        work = "resnet50/2 sources/blend"
        # From 12·0.98/1.01 to 12·1.02/0.99: half of their distance is 3.0 % of 12.
        self.assertEqual(column(text, work, "eager"), "12.0 ± 3% ✓")
        self.assertEqual(column(text, work, "compile"), "2.50 ± 1% ✗")
        self.assertEqual(column(text, work, "foreach"), "2.00 ± 1%")
        self.assertEqual(column(text, work, "fastest"), "2.00 foreach")
        self.assertEqual(column(text, work, "of limit"), "96% ✓")
        self.assertEqual(column(text, "target (PERFORMANCE.md §4)", "eager"), "**≥ 10**")

    def test_the_cpu_has_no_targets(self):
        _, text, err = joined(report("merge", [merge()], CPU), theirs("merge", [merge(median=12.0, form="eager")], CPU))
        self.assertEqual(err, "")
        self.assertEqual(column(text, "resnet50/2 sources/blend", "eager"), "12.0 ± 0%")
        self.assertNotIn("**target", text)

    def test_layers_weigh_as_often_as_they_occur(self):
        ours = [conv("layer1.0.conv1", 3, 1.0), conv("layer2.0.conv1", 1, 2.0)]
        other = [conv("layer1.0.conv1", 3, 0.7, form="channels_last"), conv("layer2.0.conv1", 1, 8.0, form="channels_last")]
        status, text, _ = joined(report("conv", ours), theirs("conv", other))
        self.assertEqual(status, 0)
        expected = (0.7 ** 3 * 4) ** 0.25
        self.assertEqual(column(text, "geometric mean, all", "channels_last"), f"**{expected:.2f}** ✓")
        self.assertEqual(column(text, "geometric mean, fprop", "channels_last"), f"**{expected:.2f}** ✓")
        # 3 × 0.7 + 8 by 3 × 1 + 2.
        together = "all layers, resnet18, 224 px, batch 128, fprop"
        self.assertEqual(column(text, together, "channels_last"), "**2.02**")
        self.assertEqual(column(text, together, "medmerge"), "5.00 s")
        self.assertEqual(column(text, "resnet18/224px/128/layer1.0.conv1/fprop/bf16", "channels_last"), "0.70 ± 0% ✗")

    def test_convolutions_in_f32_have_no_target(self):
        _, text, _ = joined(report("conv", [conv("a", 1, 1.0, "f32")]), theirs("conv", [conv("a", 1, 2.0, "f32", form="channels_last")]))
        self.assertEqual(column(text, "geometric mean, all", "channels_last"), "**2.00**")

    def test_steps_their_memory_and_learning(self):
        ours = [step("training", 1.0, peak=100), step("learning, 2 sources", 0.9, peak=100, share=0.02)]
        other = [step("training", 1.4, peak=130, form="eager channels_last"), step("learning, 2 sources", 2.7, peak=110, form="eager channels_last")]
        status, text, _ = joined(report("step", ours), theirs("step", other))
        self.assertEqual(status, 0)
        training, learning = "resnet50/224px/128/training/bf16", "resnet50/224px/128/learning, 2 sources/bf16"
        self.assertEqual(column(text, training, "eager channels_last"), "1.40 ± 0% ✗")
        self.assertEqual(column(text, learning, "eager channels_last"), "3.00 ± 0%")
        self.assertEqual(column(text, "geometric mean, all", "eager channels_last"), f"**{4.2 ** 0.5:.2f}**")
        peaks, alone = text[text.index("Peak device memory"):].split("medmerge's learning steps")
        self.assertEqual(cells(peaks, training)[2], "1.30 ✓")
        self.assertEqual(cells(peaks, learning)[2], "1.10 ✗")
        self.assertEqual(cells(alone, learning)[1:], ["0.90 ✓", "2.0% ✗ (target: ≤ 1%)"])

    def test_a_form_that_failed_is_a_note(self):
        failed = {**merge("dalpha", form="compile"), "seconds": None, "note": "failed: no compiler"}
        ours = [merge(), merge("dalpha")]
        other = [merge(median=4.0, form="compile"), failed, merge(median=2.0, form="eager"), merge("dalpha", 2.0, form="eager")]
        status, text, _ = joined(report("merge", ours), theirs("merge", other))
        self.assertEqual(status, 0)
        self.assertEqual(column(text, "resnet50/2 sources/dalpha", "compile"), "–")
        self.assertEqual(column(text, "geometric mean, all", "compile"), "**4.00** (1 of 2)")
        self.assertIn("* compile: failed: no compiler (merge/resnet50/2 sources/dalpha)", text)


class Warnings(unittest.TestCase):
    def warned(self, ours, other, *texts):
        status, text, err = joined(ours, other)
        self.assertEqual(status, 1)
        self.assertIn("**WARNING: some of these figures may mean nothing.**", text)
        for expected in texts:
            self.assertRegex(text, f"(?m)^\\* \\*\\*.*{re.escape(expected)}")
            self.assertIn(expected, err)

    def setUp(self):
        self.ours, self.theirs = report("merge", [merge()]), theirs("merge", [merge(median=2.0, form="eager")])

    def test_nothing_to_warn_of(self):
        status, text, err = joined(self.ours, self.theirs)
        self.assertEqual((status, err), (0, ""))
        self.assertNotIn("WARNING", text)

    def test_devices_that_differ(self):
        for changes, told in (
            ({"name": "NVIDIA H100"}, "name NVIDIA H200 and NVIDIA H100"),
            ({"multiprocessors": 114}, "multiprocessors 132 and 114"),
            ({"driver": "12.8"}, "driver 13.0 and 12.8"),
            ({"device": "cpu"}, "cuda:0 and cpu"),
        ):
            other = copy.deepcopy(self.theirs)
            other["device"].update(changes)
            self.warned(self.ours, other, "another device", told)
        threads = theirs("merge", [merge(median=2.0, form="eager")], {**CPU, "threads": 1})
        self.warned(report("merge", [merge()], CPU), threads, "threads 2 and 1")

    def test_emulated_and_incomplete(self):
        self.warned({**self.ours, "emulated": True}, self.theirs, "EMULATED: its times mean nothing")
        self.warned({**self.ours, "complete": False}, self.theirs, "0.json: incomplete")
        self.warned(self.ours, {**self.theirs, "complete": False}, "1.json: incomplete")

    def test_rows_on_one_side_only(self):
        more = report("merge", [merge(), merge("dalpha")])
        self.warned(more, self.theirs, "1 rows without one of PyTorch's: merge/resnet50/2 sources/dalpha")
        self.theirs["rows"].append(merge("dalpha", form="eager"))
        self.warned(self.ours, self.theirs, "1 rows without one of medmerge's: merge/resnet50/2 sources/dalpha")

    def test_wrong_results_and_other_work(self):
        self.warned(self.ours, theirs("merge", [merge(form="eager", wrong="off by half")]), "WRONG: merge/resnet50/2 sources/blend, eager: off by half")
        other = theirs("merge", [{**merge(form="eager"), "bytes": 11}])
        self.warned(self.ours, other, "not the same work", "11 bytes, medmerge counts 10")

    def test_a_machine_that_is_not_quiet(self):
        self.warned(self.ours, theirs("merge", [merge(median=2.0, width=0.3, form="eager")]), "1 of 1 ratios are open by more than ± 25%")

    def test_what_cannot_be_joined(self):
        for ours, other, told in (
            ("no json", self.theirs, "not JSON"),
            ("{}", self.theirs, "not what"),
            (self.theirs, self.theirs, "is in another report too"),
            (self.ours, self.ours, "no report of PyTorch's"),
        ):
            if ours is self.theirs:
                status, text, err = joined(self.ours, ours, other)
            else:
                status, text, err = joined(ours, other)
            self.assertEqual((status, text), (2, ""))
            self.assertIn(told, err)


if __name__ == "__main__":
    unittest.main()
