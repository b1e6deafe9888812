"""Tests of works.py, which need no PyTorch, and of pytorch.py, which are skipped where there is none."""

import contextlib
import copy
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import works

try:
    import torch
    import torchvision

    import pytorch
    import torch_learning
    import torch_merging
    import torch_networks
    from torch_merging import BLEND, DALPHA, Sources
except ImportError:
    torch = None

# Families, each by a network of the benchmarks: see small_network.
SMALL = ("resnet18", "densenet121", "vgg16")

CONV = {"n": 1, "h": 28, "w": 28, "c": 64, "k": 64, "r": 3, "s": 3, "stride": 1, "pad": 1}


def setUpModule():
    if torch:
        torch.set_num_threads(1)  # small works; and others may use this machine


class Works(unittest.TestCase):
    def test_names_are_those_of_medmerge_bench(self):
        self.assertEqual(works.merge_name("resnet50", 8, "dalpha"), "merge/resnet50/8 sources/dalpha")
        conv = works.conv_name("resnet18", 28, 4, "layer1.0.conv1", "wgrad", "bf16")
        self.assertEqual(conv, "conv/resnet18/28px/4/layer1.0.conv1/wgrad/bf16")
        self.assertEqual(works.step_name("resnet50", 224, 32, "training", "f16"), "step/resnet50/224px/32/training/f16")

    def test_what_a_convolution_costs(self):
        """The numbers of medmerge's own test of this name, by hand."""
        x, w, y = 28 * 28 * 64, 64 * 9 * 64, 28 * 28 * 64
        self.assertEqual(works.conv_flops(CONV), 2 * 28 * 28 * 64 * 576)
        self.assertEqual(works.conv_bytes(CONV, "fprop", "f32"), 4 * (x + w + y))
        self.assertEqual(works.conv_bytes(CONV, "dgrad", "bf16"), 2 * (y + w + x))
        self.assertEqual(works.conv_bytes(CONV, "wgrad", "bf16"), 2 * (x + y) + 4 * w)

    def test_a_stride_skips_what_no_output_sees(self):
        conv = {"n": 2, "h": 9, "w": 8, "c": 4, "k": 8, "r": 1, "s": 1, "stride": 2, "pad": 0}
        seen, x, w, y = 2 * 5 * 4 * 4, 2 * 9 * 8 * 4, 8 * 4, 2 * 5 * 4 * 8
        self.assertEqual(works.output(conv), (5, 4))
        self.assertEqual(works.conv_bytes(conv, "fprop", "f32"), 4 * (seen + w + y))
        self.assertEqual(works.conv_bytes(conv, "dgrad", "f32"), 4 * (y + w + x))
        self.assertEqual(works.conv_bytes(conv, "wgrad", "f32"), 4 * (seen + y + w))
        self.assertEqual(works.conv_shape(conv), "2×9×8×4 → 8, 1×1 / 2")

    def test_what_a_merge_costs(self):
        # Three sources: six weights and two α of each.
        self.assertEqual(works.blend_cost(3, 6, 2), (4 * (3 * (6 + 2) + 6), 30))
        self.assertEqual(works.dalpha_cost(3, 6, 2), (4 * (4 * 6 + 3 * 2), 36))

    def test_the_first_convolution_has_no_dgrad(self):
        one, flops = works.conv_bytes(CONV, "fprop", "f32"), works.conv_flops(CONV)
        bytes_, operations = works.step_cost([CONV, CONV], "f32", [(7, 5)])
        self.assertEqual((bytes_, operations), (5 * one + 7, 5 * flops + 5))

    def test_defaults_are_those_of_medmerge_bench(self):
        self.assertEqual([works.batch_size(False, 224), works.batch_size(False, 28), works.batch_size(True, 224)], [8, 128, 128])
        self.assertEqual([works.classes(size) for size in (28, 64, 65, 224)], [9, 9, 1000, 1000])


class FakeGpu(contextlib.ExitStack):
    """Stands in for the parts of torch.cuda that pytorch.py calls, on the CPU: that its way through a GPU runs is tested
    where there is none. What it records is run at once; a replay does nothing but be counted."""

    def __init__(self):
        super().__init__()
        self.replays = self.captures = 0
        self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                self.at = None

            def record(self):
                gpu.now += 1.0
                self.at = gpu.now

            def elapsed_time(self, other):
                return other.at - self.at

        class Graph:
            def replay(self):
                gpu.replays += 1

        @contextlib.contextmanager
        def capture(graph):
            gpu.captures += 1
            yield

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        nothing = lambda *_: None
        fakes = {
            "Event": Event, "CUDAGraph": Graph, "graph": capture, "Stream": lambda: stream, "current_stream": lambda: stream,
            "stream": lambda _: contextlib.nullcontext(), "synchronize": nothing, "empty_cache": nothing,
            "reset_peak_memory_stats": nothing, "max_memory_allocated": lambda: 123,
        }
        for name, fake in fakes.items():
            self.enter_context(mock.patch.object(torch.cuda, name, fake))
        self.machine = pytorch.Machine("cpu")
        self.machine.is_gpu = True


@unittest.skipIf(torch is None, "no PyTorch here")
class Networks(unittest.TestCase):
    def test_distinct_convolutions_of_resnet18(self):
        """Those of medmerge's own test of this name."""
        expected = [
            ("conv1", 1), ("layer1.0.conv1", 4), ("layer2.0.conv1", 1), ("layer2.0.conv2", 3), ("layer2.0.downsample.0", 1),
            ("layer3.0.conv1", 1), ("layer3.0.conv2", 3), ("layer3.0.downsample.0", 1), ("layer4.0.conv1", 1),
            ("layer4.0.conv2", 3), ("layer4.0.downsample.0", 1),
        ]
        for image_size in (28, 224):
            distinct = torch_networks.distinct(torch_networks.convolutions("resnet18", image_size, 2))
            self.assertEqual([(name, count) for name, _, count, _ in distinct], expected)
            self.assertEqual([is_first for *_, is_first in distinct], [True] + 10 * [False])
        whole = sum(works.conv_flops(conv) for _, conv in torch_networks.convolutions("resnet18", 224, 1))
        self.assertEqual(whole, 2 * 1_813_561_344)

    def test_parameters_that_share_weights(self):
        """Layers, parameters that have an α, α: all but the head, as medmerge counts them."""
        for name, layers, counts in (
            ("resnet18", 20, (11_176_512, 4_800)), ("resnet50", 53, (23_508_032, 26_560)),
            ("densenet121", 120, (6_953_856, 10_240)), ("vgg16", 15, (134_260_544, 12_416)),
        ):
            with torch.device("meta"):
                model = torch_networks.build(name, 224, 1000)
            self.assertEqual(len(torch_networks.layers(model)), layers)
            self.assertEqual(torch_networks.merge_counts(model), counts)
            by_channel = {name: len(numbers) for name, numbers in channels(model).items()}
            self.assertEqual(by_channel, {name: len(model.get_parameter(name)) for name in by_channel})

    def test_what_shapes_json_says_of_steps(self):
        """Operations for an image, and parameters that a merge blends."""
        shapes = json.loads((pathlib.Path(works.__file__).parent / "shapes.json").read_text())
        for step in shapes["steps"]:
            name, image_size, classes = step["network"], step["px"], step["classes"]
            with torch.device("meta"):
                model = torch_networks.build(name, image_size, classes)
            *_, head = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
            convs = torch_networks.convolutions(name, image_size, 1) + torch_networks.hidden_layers(name, 1)
            flops = works.step_cost([conv for _, conv in convs], "f32")[1] + 3 * 2 * head.in_features * classes
            self.assertEqual((step["flops"], step["merged"]), (flops, torch_networks.merge_counts(model)[0]), name)

    def test_whose_filters_make_a_channel(self):
        def makers(network, *parameters):
            model = small_network(network)
            names, merged = list(torch_networks.layers(model)), torch_networks.merged_parameters(model)
            return [[names[number] for number in merged[parameter]] for parameter in parameters]

        block = "layer2.0."
        self.assertEqual(makers("resnet18", "bn1.bias", f"{block}bn2.weight", f"{block}downsample.1.weight"),
                         [["conv1"], [f"{block}conv2"], [f"{block}downsample.0"]])
        self.assertEqual(makers("vgg16", "features.3.bias", "classifier.0.weight", "classifier.3.bias"),
                         [["features.3"], ["classifier.0"], ["classifier.3"]])
        stem, block = "features.conv0", "features.denseblock2.denselayer"
        joint = ["features.transition1.conv", f"{block}1.conv2", f"{block}2.conv2"]
        norms = ("features.norm0.weight", "features.denseblock1.denselayer1.norm1.bias", f"{block}3.norm1.weight",
                 f"{block}3.norm2.bias", "features.transition2.norm.weight", "features.norm5.weight")
        self.assertEqual(makers("densenet121", *norms), [
            [stem], [stem], joint, [f"{block}3.conv1"], [*joint, f"{block}3.conv2"],
            ["features.transition2.conv", "features.denseblock3.denselayer1.conv2"],
        ])

    def test_hidden_layers_are_convolutions(self):
        hidden = torch_networks.hidden_layers("vgg16", 2)
        shapes = [(name, conv["h"], conv["c"], conv["k"], conv["r"]) for name, conv in hidden]
        self.assertEqual(shapes, [("classifier.0", 7, 512, 4096, 7), ("classifier.3", 1, 4096, 4096, 1)])
        self.assertEqual(torch_networks.hidden_layers("resnet50", 2), [])
        self.assertEqual(len(torch_networks.convolutions("vgg16", 224, 1)), 13)


@unittest.skipIf(torch is None, "no PyTorch here")
class Checks(unittest.TestCase):
    """A check that cannot fail is none."""

    def case(self, what):
        return pytorch.Merge("resnet18", 2, what)

    def setUp(self):
        self.sources = small_sources(3)

    def test_every_form_merges_alike(self):
        for what, forms in (("blend", BLEND), ("dalpha", DALPHA)):
            for name, form in forms.items():
                if name in ("lerp", "compile"):  # lerp merges two; compiling is --quick's to test
                    continue
                with self.subTest(what=what, form=name), torch.no_grad():
                    self.assertLess(self.case(what).error(form(self.sources)(), self.sources), 1e-6)

    def test_what_a_tensor_takes_of_alpha_and_what_it_gives_back(self):
        alpha, feeds = torch.arange(15.0), self.sources.feeds
        taken = torch_merging.shaped(alpha, feeds, self.sources.gradient)
        self.assertEqual([t.dim() for t in taken], [t.dim() for t in self.sources.gradient])
        ranges = [(0, 4), (0, 4), (0, 4), (4, 10), (4, 10), (0, 10), (0, 10), (10, 15), (10, 15)]
        self.assertEqual([t.flatten().tolist() for t in taken], [list(map(float, range(*ends))) for ends in ranges])
        given = torch_merging.joined([torch.ones(end - first) for first, end in ranges], feeds)
        self.assertEqual(given.tolist(), 4 * [5.0] + 6 * [4.0] + 5 * [2.0])

    def test_a_wrong_merge_is_seen(self):
        for what, forms in (("blend", BLEND), ("dalpha", DALPHA)):
            with torch.no_grad():
                results = forms["eager"](self.sources)()
            results = list(results)
            results[0] = results[0] * 1.01
            self.assertIn("wrong", pytorch.judged(self.case(what).error(results, self.sources), pytorch.MERGE_TOLERANCE))
            results[0] = results[0] * math.nan
            self.assertIn("wrong", pytorch.judged(self.case(what).error(results, self.sources), pytorch.MERGE_TOLERANCE))

    def test_wrong_gradients_of_a_step_are_seen(self):
        torch.manual_seed(3)
        expected = {"layer.weight": torch.rand(50), "fc.weight": torch.rand(20)}
        for precision, tolerance in pytorch.GRADIENT_TOLERANCE.items():
            def judged(**changes):
                gradients = {name: gradient * changes.get(name.partition(".")[0], 1) for name, gradient in expected.items()}
                return pytorch.judged(pytorch.gradient_error(gradients, expected, precision), tolerance)

            self.assertEqual(judged(), {})
            for changes in ({"layer": 2}, {"layer": 0.5}, {"layer": 0}, {"fc": -1}, {"fc": 0}, {"fc": math.nan}, {"layer": math.nan}):
                self.assertIn("wrong", judged(**changes), (precision, changes))

    def test_rounding_to_tf32_is_no_f32(self):
        conv = {**CONV, "h": 9, "w": 9, "c": 8, "k": 8}
        for which in works.PASSES:
            case = pytorch.Convolution("resnet18", 28, 1, "f32", "layer", conv, 1, which)
            torch.manual_seed(0)
            x, w, dy = torch.rand(1, 8, 9, 9) - 0.5, torch.rand(8, 8, 3, 3) - 0.5, torch.rand(1, 8, 9, 9) - 0.5
            result = pytorch.convolve(conv, which, x, w, dy)
            self.assertEqual(pytorch.judged(case.error(result, x, w, dy), pytorch.CONV_TOLERANCE["f32"]), {})
            # TF32 keeps ten bits, as f16 does.
            rounded = pytorch.convolve(conv, which, *(t.half().float() for t in (x, w, dy)))
            self.assertIn("wrong", pytorch.judged(case.error(rounded, x, w, dy), pytorch.CONV_TOLERANCE["f32"]))

    def test_blending_inside_a_step_is_the_blend(self):
        """A learning step's network beside a plain one with the blend's parameters, and gradients of w beside dα."""
        for name in SMALL:
            with self.subTest(network=name):
                torch.manual_seed(1)
                models = [small_network(name).double() for _ in range(3)]
                merged, images = torch_learning.Merged(models).double(), torch.rand(4, 3, 32, 32, dtype=torch.float64)
                with torch.no_grad():
                    merged.w.copy_(torch.rand_like(merged.w))
                alpha = torch.cat([1 - merged.w.sum(0, keepdim=True), merged.w]).detach()
                plain = blended(models, alpha)
                logits, expected = merged(images), plain(images)
                torch.testing.assert_close(logits, expected)
                self.assertEqual(sum(p.requires_grad for p in merged.parameters()), 3)  # w, and the head's two
                logits.square().sum().backward()
                expected.square().sum().backward()
                dalpha = dalpha_of(plain, models)
                torch.testing.assert_close(merged.w.grad, dalpha[1:] - dalpha[0])


def small_network(name, *_):
    """A network of the family, with what distinguishes it: blocks and transitions, or hidden layers and biases."""
    if name == "densenet121":
        return torchvision.models.DenseNet(4, block_config=(2, 3, 1), num_init_features=8, bn_size=2, num_classes=9)
    if name == "vgg16":
        features = torchvision.models.vgg.make_layers([4, "M", 8, 6, "M"])
        model = torchvision.models.VGG(features, num_classes=9, dropout=0.0)
        for place, (inputs, outputs) in {0: (6 * 49, 16), 3: (16, 12), 6: (12, 9)}.items():
            model.classifier[place] = torch.nn.Linear(inputs, outputs)
        return model
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=9)


def channels(model):
    """By parameter the number of each channel's α, one by one."""
    first, numbers = 0, {}
    for number, count in enumerate(torch_networks.filters(model)):
        numbers[number] = range(first, first + count)
        first += count
    merged = torch_networks.merged_parameters(model)
    return {name: [k for layer in by for k in numbers[layer]] for name, by in merged.items()}


def blended(models, alpha):
    """The first of the models with every row of every merged parameter blended by itself."""
    plain = copy.deepcopy(models[0]).requires_grad_(True).train()
    with torch.no_grad():
        for name, numbers in channels(plain).items():
            for row, number in enumerate(numbers):
                rows = [weight * model.get_parameter(name)[row] for weight, model in zip(alpha[:, number], models)]
                plain.get_parameter(name)[row] = sum(rows)
    return plain


def dalpha_of(plain, models):
    dalpha = torch.zeros(len(models), sum(torch_networks.filters(plain)), dtype=torch.float64)
    for name, numbers in channels(plain).items():
        gradient = plain.get_parameter(name).grad
        for m, model in enumerate(models):
            source = model.get_parameter(name).detach()
            for row, number in enumerate(numbers):
                dalpha[m, number] += (gradient[row] * source[row]).sum()
    return dalpha


def small_sources(count):
    """A convolution with batch norm behind, one with a bias, a batch norm behind the two joined, and a hidden layer."""
    torch.manual_seed(2)
    shapes = [(4, 3, 3, 3), (4,), (4,), (6, 4, 1, 1), (6,), (10,), (10,), (5, 60), (5,)]
    fed = [(0,), (0,), (0,), (1,), (1,), (0, 1), (0, 1), (2,), (2,)]
    network = lambda: [torch.rand(shape) - 0.5 for shape in shapes]
    return Sources([network() for _ in range(count)], network(), [torch.rand(15) for _ in range(count)], fed, [4, 6, 5])


@unittest.skipIf(torch is None, "no PyTorch here")
class Timing(unittest.TestCase):
    def test_every_set_has_its_turn(self):
        seen = [0] * 4
        clock = pytorch.Clock(pytorch.Machine("cpu"), 3)
        timing = clock.time(4, lambda set_: seen.__setitem__(set_, seen[set_] + 1))
        self.assertGreater(min(seen), 1)
        self.assertEqual(timing["timings"], 3)

    def test_launches_on_a_gpu(self):
        with FakeGpu() as gpu:
            seen = [0] * 4
            timing = pytorch.Clock(gpu.machine, 5).time(4, lambda set_: seen.__setitem__(set_, seen[set_] + 1))
        # A walk over the sets took 1 ms of this clock: two make a timing long enough. One to warm up, one to see how
        # long it takes, one timing that does not count, five that do.
        self.assertEqual(seen, [1 + 1 + 2 * 6] * 4)
        self.assertEqual((gpu.captures, timing["timings"], timing["launches_per_timing"]), (0, 5, 8))
        self.assertAlmostEqual(timing["median"], 1e-3 / 8)

    def test_replays_on_a_gpu(self):
        with FakeGpu() as gpu:
            seen = [0] * 4
            timing = pytorch.Clock(gpu.machine, 5).time(4, lambda set_: seen.__setitem__(set_, seen[set_] + 1), is_replayed=True)
        self.assertEqual(seen, [1 + 1 + 2] * 4)
        self.assertEqual((gpu.captures, gpu.replays, timing["launches_per_timing"]), (1, 6, 8))


@unittest.skipIf(torch is None, "no PyTorch here")
class OnAGpu(unittest.TestCase):
    """Every form but those that compile, on the way that a GPU takes."""

    def measured(self, case, left_out="compile"):
        pytorch.set_precision(case.row["precision"])
        with FakeGpu() as gpu, mock.patch.object(pytorch.figures, "buffer_sets", lambda *_: 2):
            for form in case.forms(gpu.machine):
                if left_out not in form:
                    with self.subTest(name=case.name, form=form):
                        row = pytorch.measured(case, form, gpu.machine, pytorch.Clock(gpu.machine, 1))
                        self.assertNotIn("note", row)
                        self.assertNotIn("wrong", row)
                        yield form, row

    def test_merges(self):
        for what in ("blend", "dalpha"):
            with mock.patch.object(torch_networks, "sources", lambda network, count, device, set_: small_sources(count)):
                forms = [form for form, _ in self.measured(pytorch.Merge("resnet18", 2, what))]
            self.assertIn("eager", forms)
            self.assertIn("eager graph", forms)
            self.assertNotIn("autograd graph", forms)

    def test_convolutions(self):
        for precision in ("f32", "bf16"):
            for which in works.PASSES:
                case = pytorch.Convolution("resnet18", 28, 1, precision, "layer", {**CONV, "stride": 2}, 1, which)
                self.assertEqual([form for form, _ in self.measured(case)], ["channels_last", "default"])

    def test_steps(self):
        for network in SMALL:
            for precision, count in (("f32", 0), ("f32", 2), ("bf16", 2), ("f16", 2)):
                with mock.patch.object(torch_networks, "build", small_network):
                    found = dict(self.measured(pytorch.Step(network, 32, 4, precision, count)))
                forms = ["eager channels_last", "eager default", "graph channels_last", "graph default"]
                self.assertEqual(list(found), forms)
                self.assertEqual(found["graph default"]["step"]["peak_bytes"], 123)


@unittest.skipIf(torch is None, "no PyTorch here")
class Reports(unittest.TestCase):
    def test_a_form_that_fails_is_a_note_and_the_rest_counts(self):
        def fails(_):
            raise RuntimeError("out of\nluck")

        case, kept = pytorch.Merge("resnet18", 2, "blend"), []
        machine, report = pytorch.Machine("cpu"), {"complete": False}
        with mock.patch.dict(BLEND, {"out": fails}):
            pytorch.measure_all(report, [(case, "out"), (case, "foreach")], machine, pytorch.Clock(machine, 1),
                                lambda report: kept.append(json.loads(json.dumps(report))))
        out, foreach = report["rows"]
        self.assertEqual((out["note"], out["seconds"]), ("failed: out of", None))
        self.assertGreater(foreach["seconds"]["median"], 0)
        self.assertNotIn("note", foreach)
        self.assertEqual([row["note"] for row in kept[0]["rows"]], [pytorch.NOT_REACHED] * 2)
        self.assertEqual([report["complete"] for report in kept], [False, False, False, True])

    def test_the_command(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "conv.json"
            script = str(pathlib.Path(pytorch.__file__))
            command = [sys.executable, script, "conv", "--device", "cpu", "--quick", "--rounds", "1", "--threads", "1", "--filter", "layer4.0.down"]
            subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
            report = json.loads(out.read_text())
            self.assertTrue(report["complete"])
            self.assertEqual({(row["what"], row["form"]) for row in report["rows"]},
                             {(which, form) for which in works.PASSES for form in ("channels_last", "default")})
            wrong = subprocess.run([*command, "--network", "resnet81"], capture_output=True, text=True)
            self.assertEqual(wrong.returncode, 2)
            self.assertIn("did you mean 'resnet18'?", wrong.stderr)


if __name__ == "__main__":
    unittest.main()
