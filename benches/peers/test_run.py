"""Tests of run.py's figures. Standard library only."""

import unittest

import run


def line(peer, work, seconds, peak=None):
    return {"peer": peer, "work": work, "seconds_median": seconds, "seconds_min": seconds, "seconds_max": seconds,
            "runs": 7, "flops": 1, "bytes": None, "peak_bytes": peak, "check": [1.0], "threads": 2}


class Summary(unittest.TestCase):
    def results(self, lines):
        results = run.Results()
        for one in lines:
            results.add(one)
        return results

    def test_the_fastest_form_of_each_row_counts(self):
        results = self.results([
            line("ours", "step/a/1", 1.0, 60), line("torch", "step/a/1", 4.0, 100), line("torch-cl", "step/a/1", 2.0, 120),
            line("ours", "step/b/1", 1.0, 50), line("torch", "step/b/1", 8.0, 50), line("torch-cl", "step/b/1", 9.0, 100),
        ])
        text = run.summary(results, "ours")
        # √(2 · 8), and √(0.6 · 1).
        self.assertIn("4.00", text)
        self.assertIn("2.00 (step/a/1)", text)
        self.assertIn("0.77", text)

    def test_merging_alone_is_no_network(self):
        results = self.results([line("ours", "learn_merge/a/1", 1.0), line("torch", "learn_merge/a/1", 2.0)])
        self.assertIsNone(run.summary(results, "ours"))

    def test_onnx_runtime_is_apart(self):
        results = self.results([
            line("ours", "infer/a/1", 2.0), line("torch", "infer/a/1", 6.0), line("onnxruntime", "infer/a/1", 1.0),
        ])
        text = run.summary(results, "ours")
        self.assertIn("3.00 (infer/a/1)", text)
        self.assertIn("0.50 (infer/a/1)", text)

    def test_a_row_that_ours_lacks_is_told(self):
        results = self.results([line("torch", "step/a/1", 1.0), line("ours", "step/b/1", 1.0)])
        works = ["step/a/1", "step/b/1", "triad/1Mi"]
        self.assertEqual(run.missing(results, works), ["step/a/1: ours has no figure"])


if __name__ == "__main__":
    unittest.main()
