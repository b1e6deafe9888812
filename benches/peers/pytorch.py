#!/usr/bin/env python3
"""The works of `medmerge bench` in PyTorch, on a GPU or the CPU, as JSON of the same form for ratios.py.

    pytorch.py merge|conv|step [--device cuda] [--precision bf16] [--out FILE.json] [options as of `medmerge bench`]

A row has the name that medmerge gives the same work, and says in which `form` PyTorch did it; README.md lists the forms.
Every row that was asked for is in the report: a form that failed, or was not reached, has a note instead of
`seconds`. Results are checked: merges and convolutions against their definition in f64, steps against an eager f32 step. Progress
goes to stderr. With --out the file is complete after every row, so that a run that is stopped keeps what it has.

Exit status: 0 every row is measured or says why not; 1 a result is wrong, or the run was stopped; 2 wrong use.
"""

import argparse
import ctypes
import difflib
import functools
import gc
import json
import math
import os
import pathlib
import platform
import signal
import sys
import time

import torch
import torchvision

import figures
import torch_networks
import works
from torch_data import hashes, random_bytes, relative_error, uniform
from torch_learning import Merged, Trained
from torch_merging import BLEND, DALPHA, dots, mixed

FORMATS = {"channels_last": torch.channels_last, "default": torch.contiguous_format}
DTYPES = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# What medmerge's steps learn with (src/bench/step.rs): so slowly that no run of steps on random labels diverges.
LEARNING_RATE, WEIGHT_DECAY = 1e-7, 1e-4
# Of |result − expected| by |expected|. Merges and f32 convolutions are told from TF32, which errs by some 3e-4.
MERGE_TOLERANCE = 1e-5
CONV_TOLERANCE = {"f32": 5e-5, "tf32": 2e-3, "bf16": 1e-2, "f16": 2e-3}
# Of a step's loss and gradients. In f32, of all gradients together: a ReLU whose input rounds to the other side of zero takes its
# part of them along. In less, such flips grow through the layers until gradients far from the loss have little but their size
# in common: there it is the head's gradients, and the size of the others'. A term that is missing or doubled errs by 0.5 or more.
LOSS_TOLERANCE = {"f32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "f16": 1e-2}
GRADIENT_TOLERANCE = {"f32": 0.1, "tf32": 0.15, "bf16": 0.3, "f16": 0.15}
# Gradients are checked at this multiple of the loss: some would fall below what f16 holds.
SCALE = 1024.0
# Images of a batch whose convolution is computed in f64 too.
CHECKED_IMAGES = 2


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- the machine

class Machine:
    """Where everything runs, and how it is timed. Nothing else here asks whether there is a GPU."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.is_gpu = self.device.type == "cuda"

    def cache(self):
        return figures.GPU_CACHE if self.is_gpu else figures.cpu_cache()

    def synchronize(self):
        if self.is_gpu:
            torch.cuda.synchronize()

    def release(self):
        """Buffers and compiled code of one row are of no use to the next."""
        gc.collect()
        torch._dynamo.reset()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def start_peak(self):
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.is_gpu else None

    def event(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def describe(self):
        if not self.is_gpu:
            name = torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX-512")
            return {"device": "cpu", "name": name, "threads": torch.get_num_threads(), "cache_bytes": self.cache()}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "device": str(self.device), "name": properties.name, "architecture": f"sm_{properties.major}{properties.minor}",
            "multiprocessors": properties.multi_processor_count, "memory_bytes": properties.total_memory,
            "driver": driver(), "cache_bytes": self.cache(),
        }


def driver():
    """The version of CUDA that the driver speaks, as medmerge tells it; None where nobody knows."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return None
    return None if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"


def versions():
    return {
        "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    }


def set_precision(precision, is_tuned=True):
    """What PyTorch does with f32; and whether cuDNN tries its algorithms first. Returns what is in force."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = is_tuned
    return {
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32, "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark, "cudnn_benchmark_limit": torch.backends.cudnn.benchmark_limit,
    }


# ---- time

class Clock:
    """Times work that is told the set of buffers to use, as src/bench/measure.rs does: each timing covers as many launches as
    make it long beside the clock's grain, and these walk over sets of buffers that do not fit into the last-level cache."""

    WARM_UP = 3

    def __init__(self, machine, rounds):
        self.machine, self.rounds = machine, rounds

    def time(self, sets, work, is_replayed=False):
        """`is_replayed`: the launches of a timing are recorded as one CUDA graph, and Python is no part of what is timed."""
        if not self.machine.is_gpu:
            return self.on_cpu(sets, work)
        return self.replayed(sets, work) if is_replayed else self.launched(sets, work)

    def walk(self, sets, work, times=1):
        for _ in range(times):
            for set_ in range(sets):
                work(set_)

    def warm_up(self, sets, work):
        """Compiles, lets cuDNN choose, lets CUDA graphs of torch.compile be recorded, fills pools: nothing of that is timed."""
        self.walk(sets, work, max(1, math.ceil(self.WARM_UP / sets)))
        self.machine.synchronize()

    def on_cpu(self, sets, work):
        self.warm_up(sets, work)
        start = time.perf_counter()
        work(0)
        launches = figures.repeats(time.perf_counter() - start, figures.LONG_ENOUGH["cpu"])
        seconds, set_ = [], 0
        for _ in range(self.rounds):
            start = time.perf_counter()
            for _ in range(launches):
                set_ = (set_ + 1) % sets
                work(set_)
            seconds.append((time.perf_counter() - start) / launches)
        return figures.timing(seconds, launches, sets)

    def launched(self, sets, work):
        self.warm_up(sets, work)
        repeats = self.repeats(sets, work)
        return self.rounds_of(lambda: self.walk(sets, work, repeats), sets, repeats)

    def replayed(self, sets, work):
        # On a stream beside the default one, as PyTorch asks for before a capture.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.warm_up(sets, work)
            repeats = self.repeats(sets, work)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.walk(sets, work, repeats)
        return self.rounds_of(graph.replay, sets, repeats)

    def repeats(self, sets, work):
        before = self.machine.event()
        self.walk(sets, work)
        after = self.machine.event()
        self.machine.synchronize()
        return figures.repeats(before.elapsed_time(after) / 1e3, figures.LONG_ENOUGH["cuda"], sets)

    def rounds_of(self, run, sets, repeats):
        """All rounds are queued at once."""
        run()
        events = [self.machine.event()]
        for _ in range(self.rounds):
            run()
            events.append(self.machine.event())
        self.machine.synchronize()
        launches = sets * repeats
        seconds = [before.elapsed_time(after) / 1e3 / launches for before, after in zip(events, events[1:])]
        return figures.timing(seconds, launches, sets)


# ---- merging

class Merge:
    """The blend, or dα, of a whole network: each form launched by Python and, on a GPU, replayed as a CUDA graph."""

    def __init__(self, network, count, what):
        self.network, self.count, self.what = network, count, what
        with torch.device("meta"):
            counts = torch_networks.merge_counts(torch_networks.build(network, 224, 1000))
        self.bytes, self.flops = (works.blend_cost if what == "blend" else works.dalpha_cost)(count, *counts)
        self.name = works.merge_name(network, count, what)
        self.row = {"network": network, "what": what, "precision": "f32", "sources": count}

    def forms(self, machine):
        known = BLEND if self.what == "blend" else DALPHA
        names = [name for name in known if name != "lerp"]  # of two sources alone, and α that sum to one
        # Autograd computes on the stream of the forward pass, which is not the one that a graph is recorded on.
        graphs = [f"{name} graph" for name in names if name != "autograd"]
        return names + (graphs if machine.is_gpu else [])

    def measure(self, form, machine, clock):
        name = form.removesuffix(" graph")
        sets = figures.buffer_sets(self.bytes, machine.cache())
        sources = [torch_networks.sources(self.network, self.count, machine.device, set_) for set_ in range(sets)]
        prepare = (BLEND if self.what == "blend" else DALPHA)[name]
        with torch.no_grad():
            runs = [prepare(s) for s in sources]
            error = self.error(runs[0](), sources[0])
            # A result lives until its set's next turn: else one buffer, still in the cache, would take them all.
            results = [None] * sets

            def work(set_):
                results[set_] = runs[set_]()

            seconds = clock.time(sets, work, is_replayed=form.endswith(" graph"))
        return {"seconds": seconds, "error": error, **judged(error, MERGE_TOLERANCE)}

    def error(self, results, s):
        """Of all tensors of a blend, or of dα, beside f64."""
        sources = [[w.double() for w in tensors] for tensors in s.tensors]
        if self.what == "blend":
            expected = mixed(sources, [[a.double() for a in alphas] for alphas in s.alpha])
            return relative_error([r.reshape(t.shape) for r, t in zip(results, s.gradient, strict=True)], expected)
        # One vector for each source, or one matrix for all.
        dalpha = results[0].T if results[0].dim() == 2 else torch.stack(list(results))
        return relative_error([dalpha], [torch.stack(dots([d.double() for d in s.gradient], sources, s.feeds))])


def merges(options, machine):
    return [
        Merge(network, count, what)
        for network in options.network or works.networks("merge")
        for count in options.sources or works.sources("merge")
        for what in ("blend", "dalpha")
    ]


# ---- convolutions

class Convolution:
    """One pass by itself, in both memory formats; on a GPU replayed as a CUDA graph, so that Python's share is not timed."""

    def __init__(self, network, image_size, batch, precision, layer, conv, count, which):
        self.conv, self.which, self.precision = conv, which, precision
        self.bytes, self.flops = works.conv_bytes(conv, which, precision), works.conv_flops(conv)
        self.name = works.conv_name(network, image_size, batch, layer, which, precision)
        self.row = {
            "network": network, "what": which, "precision": precision, "layer": layer, "shape": works.conv_shape(conv),
            "count": count, "image_size": image_size, "batch_size": batch,
        }

    def forms(self, _):
        return list(FORMATS)

    def measure(self, form, machine, clock):
        conv, dtype, memory_format = self.conv, DTYPES[self.precision], FORMATS[form]
        sets = figures.buffer_sets(self.bytes, machine.cache())
        p, q = works.output(conv)
        shapes = {
            "x": (conv["n"], conv["c"], conv["h"], conv["w"]), "w": (conv["k"], conv["c"], conv["r"], conv["s"]),
            "dy": (conv["n"], conv["k"], p, q),
        }

        def operand(name, seed):
            """One for each set; of what a pass takes only the shape from, one for all."""
            if name not in USED[self.which]:
                return [torch.empty(shapes[name], dtype=dtype, device=machine.device, memory_format=memory_format)] * sets
            return [
                uniform(seed + 3 * set_, *shapes[name], device=machine.device).to(dtype, memory_format=memory_format)
                for set_ in range(sets)
            ]

        operands = list(zip(*(operand(name, seed) for seed, name in enumerate(shapes)), strict=True))
        with torch.no_grad():
            run = functools.partial(convolve, conv, self.which)
            error = self.error(run(*operands[0]), *operands[0])
            # As for a merge, a result lives until its set's next turn.
            results = [None] * sets

            def work(set_):
                results[set_] = run(*operands[set_])

            seconds = clock.time(sets, work, is_replayed=True)
        return {"seconds": seconds, "error": error, **judged(error, CONV_TOLERANCE[self.precision])}

    def error(self, result, x, w, dy):
        """Beside f64 on the same numbers; of a pass whose result has images, for some of them."""
        some = slice(None) if self.which == "wgrad" else slice(CHECKED_IMAGES)
        expected = convolve(self.conv, self.which, x[some].double(), w.double(), dy[some].double())
        return relative_error([result if self.which == "wgrad" else result[some]], [expected])


USED = {"fprop": ("x", "w"), "dgrad": ("w", "dy"), "wgrad": ("x", "dy")}


def convolve(conv, which, x, w, dy):
    stride, pad = [conv["stride"]] * 2, [conv["pad"]] * 2
    if which == "fprop":
        return torch.nn.functional.conv2d(x, w, None, stride, pad)
    mask = [which == "dgrad", which == "wgrad", False]
    results = torch.ops.aten.convolution_backward(dy, x, w, None, stride, pad, [1, 1], False, [0, 0], 1, mask)
    return results[mask.index(True)]


def convolutions(options, machine):
    return [
        Convolution(network, image_size, batch, options.precision, layer, conv, count, which)
        for network in options.network or works.networks("conv")
        for image_size in options.image_size or works.image_sizes(machine.is_gpu)
        for batch in [options.batch_size or works.batch_size(machine.is_gpu, image_size)]
        for layer, conv, count, is_first in torch_networks.distinct(torch_networks.convolutions(network, image_size, batch))
        for which in options.passes or works.PASSES
        # Nobody needs the gradient of the images.
        if not (which == "dgrad" and is_first)
    ]


# ---- steps

class Loss(torch.nn.Module):
    """From images on the device to the loss: on a GPU from their bytes (N, H, W, 3), as medmerge's steps."""

    def __init__(self, learner, dtype, memory_format):
        super().__init__()
        self.learner, self.dtype, self.memory_format = learner, dtype, memory_format

    def forward(self, images, labels):
        if images.dtype == torch.uint8:
            images = images.permute(0, 3, 1, 2).to(self.dtype, memory_format=self.memory_format) / 127.5 - 1
        return torch.nn.functional.cross_entropy(self.learner(images), labels)


class Step:
    """A training step, or a learning step of merge weights: forward, backward, fused AdamW; one batch, no dropout."""

    def __init__(self, network, image_size, batch, precision, count):
        self.network, self.image_size, self.batch, self.precision, self.count = network, image_size, batch, precision, count
        what = f"learning, {count} sources" if count else "training"
        self.name = works.step_name(network, image_size, batch, what, precision)
        merging = []
        if count:
            with torch.device("meta"):
                counts = torch_networks.merge_counts(torch_networks.build(network, image_size, works.classes(image_size)))
            merging = [works.blend_cost(count, *counts), works.dalpha_cost(count, *counts)]
        convs = torch_networks.convolutions(network, image_size, batch) + torch_networks.hidden_layers(network, batch)
        self.bytes, self.flops = works.step_cost([conv for _, conv in convs], precision, merging)
        self.row = {"network": network, "what": what, "precision": precision, "image_size": image_size, "batch_size": batch}
        if count:
            self.row["sources"] = count
        self.expected = None

    def forms(self, machine):
        ways = ["eager", "compile"] + (["graph"] if machine.is_gpu else [])
        return [f"{way} {memory_format}" for way in ways for memory_format in FORMATS]

    def model(self, seed, device, memory_format):
        torch.manual_seed(seed)
        model = torch_networks.build(self.network, self.image_size, works.classes(self.image_size))
        return model.to(device, memory_format=memory_format).train()

    def learner(self, machine, memory_format):
        models = [self.model(seed, machine.device, memory_format) for seed in range(max(self.count, 1))]
        return (Merged(models) if self.count else Trained(models[0])).to(machine.device)

    def data(self, machine, memory_format):
        n, size = self.batch, self.image_size
        labels = (hashes(1, n) % works.classes(size)).to(machine.device)
        if machine.is_gpu:
            return random_bytes(2, n, size, size, 3, device=machine.device), labels
        return uniform(2, n, 3, size, size).contiguous(memory_format=memory_format), labels

    def expect(self, machine):
        """The losses and gradients that all forms are checked against: an eager step in f32."""
        set_precision("f32", is_tuned=False)
        loss = Loss(self.learner(machine, torch.contiguous_format), torch.float32, torch.contiguous_format)
        data = self.data(machine, torch.contiguous_format)
        self.expected = loss_and_gradients(loss, loss.learner, data, autocast(machine, "f32"))
        set_precision(self.precision)
        machine.release()

    def measure(self, form, machine, clock):
        if self.expected is None:
            self.expect(machine)
        way, memory_format = form.split(" ")
        running = Running(self, way, machine, FORMATS[memory_format])
        error_of_loss, error = running.errors(self.expected)
        # Compiling and tuning, which take memory of their own, are done.
        machine.start_peak()
        seconds = clock.time(1, lambda _: running.step(), is_replayed=way == "graph")
        running.check()
        return {
            "seconds": seconds, "error": error, "error_of_loss": error_of_loss,
            "step": {
                "images_per_second": self.batch / seconds["median"], "launches": None, "peak_bytes": machine.peak(),
                "merging_share": None,
            },
            **judged(error_of_loss, LOSS_TOLERANCE[self.precision]), **judged(error, GRADIENT_TOLERANCE[self.precision]),
        }


class Running:
    """A step that can be run again and again."""

    def __init__(self, step, way, machine, memory_format):
        self.is_compiled, self.machine, self.precision = way == "compile", machine, step.precision
        precision = step.precision
        loss = Loss(step.learner(machine, memory_format), DTYPES[precision], memory_format)
        self.learner = loss.learner
        # As its CUDA graphs: what torch.compile calls reduced overhead.
        mode = "reduce-overhead" if machine.is_gpu else None
        self.compute = torch.compile(loss, mode=mode) if self.is_compiled else loss
        self.data = step.data(machine, memory_format)
        groups = loss.learner.parameter_groups(WEIGHT_DECAY)
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True, capturable=way == "graph")
        self.scaler = torch.amp.GradScaler(machine.device.type, init_scale=SCALE) if precision == "f16" else None
        # Copies of the weights that autocast keeps must not outlive the recording of a graph.
        self.autocast = functools.partial(autocast, machine, precision, cache_enabled=way != "graph")
        self.loss = None

    def begin(self):
        if self.is_compiled and self.machine.is_gpu:
            torch.compiler.cudagraph_mark_step_begin()

    def step(self):
        self.begin()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.compute(*self.data)
        if self.scaler:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.optimizer.step()
        # A copy: CUDA graphs of torch.compile write the next loss into the same place.
        self.loss = loss.detach().clone()

    def errors(self, expected):
        """Of the loss, and of the gradients."""
        self.begin()
        loss, gradients = loss_and_gradients(self.compute, self.learner, self.data, self.autocast())
        return relative_error([loss], [expected[0]]), gradient_error(gradients, expected[1], self.precision)

    def check(self):
        """A step that diverged, or overflowed, updates nothing, and takes less time than one that learns."""
        if not math.isfinite(self.loss.item()):
            raise ValueError(f"the loss became {self.loss.item()}")
        if self.scaler and self.scaler.get_scale() < SCALE:
            raise ValueError("gradients overflowed f16")


def autocast(machine, precision, cache_enabled=True):
    is_half = precision in ("bf16", "f16")
    dtype = DTYPES[precision] if is_half else None
    return torch.autocast(machine.device.type, dtype=dtype, enabled=is_half, cache_enabled=cache_enabled)


def loss_and_gradients(compute, learner, data, autocast):
    """On the CPU, where they are no part of any peak; gradients by name."""
    with autocast:
        loss = compute(*data)
    learned = learner.learned()
    gradients = torch.autograd.grad(loss * SCALE, list(learned.values()))
    return loss.detach().cpu(), {name: gradient.cpu() / SCALE for name, gradient in zip(learned, gradients, strict=True)}


def gradient_error(gradients, expected, precision):
    """By the rule of GRADIENT_TOLERANCE."""
    def chosen(of, choice):
        return [gradient for name, gradient in of.items() if choice(name)]

    if precision == "f32":
        return relative_error(gradients.values(), expected.values())
    head = relative_error(*(chosen(of, torch_networks.is_head) for of in (gradients, expected)))
    size, wanted = (
        math.sqrt(sum(gradient.double().square().sum().item() for gradient in chosen(of, lambda name: not torch_networks.is_head(name))))
        for of in (gradients, expected)
    )
    return max(head, abs(size / wanted - 1), key=lambda error: (math.isnan(error), error))


def steps(options, machine):
    return [
        Step(network, image_size, options.batch_size or works.batch_size(machine.is_gpu, image_size), options.precision, count)
        for network in options.network or works.networks("step")
        for image_size in options.image_size or works.image_sizes(machine.is_gpu)
        for count in (0, *(options.sources or works.sources("step")))
    ]


# ---- all of them

CASES = {"merge": merges, "conv": convolutions, "step": steps}
NOT_REACHED = "not measured: the run ended before it"


def judged(error, tolerance):
    """Nothing, or what is wrong; NaN is."""
    return {} if error <= tolerance else {"wrong": f"off by {error:.1e} of its size; at most {tolerance:.0e} is rounding"}


def measured(case, form, machine, clock):
    """What a row says of one form. Whatever goes wrong becomes its note: the other rows still count."""
    try:
        if case.row["precision"] == "tf32" and not (machine.is_gpu and torch.cuda.get_device_capability()[0] >= 8):
            raise ValueError("this device has no TF32")
        figures_ = case.measure(form, machine, clock)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        return {"note": f"failed: {reason}"}
    median = figures_["seconds"]["median"]
    return {**figures_, "bytes_per_second": case.bytes / median, "flops_per_second": case.flops / median}


def measure_all(report, cases, machine, clock, keep):
    """Fills the report row by row, and has `keep` keep it after each. What compiles comes last: it takes minutes."""
    rows = {}
    for case, form in cases:
        rows[case.name, form] = {
            "name": case.name, **case.row, "form": form, "seconds": None, "note": NOT_REACHED,
            "bytes": case.bytes, "flops": case.flops,
        }
    report["rows"] = list(rows.values())
    keep(report)
    for number, (case, form) in enumerate(sorted(cases, key=lambda pair: "compile" in pair[1]), 1):
        row = rows[case.name, form]
        figures_ = measured(case, form, machine, clock)
        if "note" not in figures_:
            del row["note"]
        row.update(figures_)
        machine.release()
        keep(report)
        told = row.get("note") or figures.duration(row["seconds"]["median"])
        say(f"{number}/{len(cases)} {case.name}, {form}: {told}{', WRONG: ' + row['wrong'] if 'wrong' in row else ''}")
    report["complete"] = True
    keep(report)


def write(path, report):
    """Complete or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=CASES)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    parser.add_argument("--precision", choices=DTYPES, default="f32", help="of activations; bf16 and f16 steps run under autocast")
    numbers = {"type": lambda text: [int(word) for word in text.split(",")]}
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("--network", metavar="NAME", **names, help=f"several are separated by commas; of {', '.join(works.NETWORKS)}")
    parser.add_argument("--image-size", metavar="PIXELS", **numbers)
    parser.add_argument("--batch-size", metavar="N", type=int)
    parser.add_argument("--sources", metavar="M", **numbers)
    parser.add_argument("--pass", dest="passes", metavar="PASS", **names)
    parser.add_argument("--filter", metavar="TEXT", default="", help="only rows whose name contains this")
    parser.add_argument("--form", metavar="TEXT", **names, help="only forms whose name contains one of these")
    parser.add_argument("--rounds", type=int, help="timings of each row [default: 31 on a GPU, 11 on the CPU, 5 for its steps]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU [default: all cores]")
    parser.add_argument("--quick", action="store_true", help="ResNet-18, 8 images of 28 pixels, two sources, three timings: does everything run?")
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE.json", help="write here instead of stdout, anew after every row")
    options = parser.parse_args()
    if options.quick:
        quick = {"network": ["resnet18"], "image_size": [28], "batch_size": 8, "sources": [2], "rounds": 3}
        for name, value in quick.items():
            setattr(options, name, getattr(options, name) or value)
    for given, known, what in ((options.network, works.NETWORKS, "network"), (options.passes, works.PASSES, "pass")):
        for name in given or ():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
                parser.error(f"unknown {what} '{name}'; {hint}")
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    if options.bench == "merge" and options.precision != "f32":
        parser.error("merging is f32; leave --precision out, it is the precision of activations")
    if min([2, *(options.sources or ())]) < 2:
        parser.error("--sources: a merge has at least two")
    return options, parser


def main():
    options, parser = arguments()
    torch.set_num_threads(options.threads)
    machine = Machine(options.device)
    if machine.is_gpu:
        torch.cuda.set_device(machine.device)
    settings = set_precision(options.precision)
    cases = [
        (case, form) for case in CASES[options.bench](options, machine) if options.filter in case.name
        for form in case.forms(machine) if any(text in form for text in options.form or [""])
    ]
    if not cases:
        parser.error("no row is left: see --filter and --form")
    report = {
        "bench": options.bench, "program": "pytorch", "version": torch.__version__, "command": sys.argv,
        "device": machine.describe(), "versions": versions(), "settings": settings,
        "emulated": False, "limits": None, "complete": False, "rows": [],
    }
    keep = functools.partial(write, options.out) if options.out else lambda _: None
    clock = Clock(machine, options.rounds or works.rounds(machine.is_gpu, options.bench))
    # `timeout` and `kill` stop it as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        measure_all(report, cases, machine, clock, keep)
    except KeyboardInterrupt:
        say("stopped: the rows that were not reached say so")
    if not options.out:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    wrong = [row for row in report["rows"] if "wrong" in row]
    for row in wrong:
        say(f"WRONG: {row['name']}, {row['form']}: {row['wrong']}")
    sys.exit(1 if wrong or not report["complete"] else 0)


if __name__ == "__main__":
    main()
