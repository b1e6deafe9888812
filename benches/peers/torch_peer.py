"""PyTorch's side of the comparison: the works of shapes.json, one JSON line for each on stdout.

    torch_peer.py {torch,torch-cl,torch-cl-compile,onnxruntime} [--only step,conv,merge,learn,infer,triad] [--match TEXT,TEXT]
                  [--threads N] [--seconds S] [--cap S] [--quick]

Each work runs in a process of its own. `onnxruntime` has the logits of torch's networks as ONNX Runtime computes them.
`torch` uses the default memory format, `torch-cl` channels_last; `torch-cl-compile` is the latter's steps under
torch.compile. Merging by itself knows no such formats: `torch` measures it in every form that a PyTorch user might
write, each as a peer of its own. The rules of timing, the numbers and the names are those of src/measure.rs,
src/numbers.rs and src/works.rs.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import torch

from torch_data import hashes, mean_abs, uniform
from torch_learning import Merged, Trained
from torch_merging import BLEND, DALPHA, Sources, blend_lerp
from torch_networks import build, is_head
from works import conv_flops, elements

SHAPES = json.loads((pathlib.Path(__file__).parent / "shapes.json").read_text())
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.001, 0.9, 5e-4
X, W, DY, LABELS, STEP, ALPHA, SOURCE, GRADIENT = 1, 2, 3, 4, 100, 500, 1000, 100
TRIAD = 64 << 20
LEARN_SOURCES, START = 2, 0.1
FORMS = {"merge": BLEND, "merge_backward": DALPHA}


# ---- timing

def measure(run, options):
    start = time.perf_counter()
    for _ in range(3):
        run()
        if time.perf_counter() - start > options.cap / 4:
            break
    seconds, start = [], time.perf_counter()
    while True:
        before = time.perf_counter()
        run()
        after = time.perf_counter()
        seconds.append(after - before)
        elapsed = after - start
        if elapsed >= options.cap or (elapsed >= options.seconds and len(seconds) >= 7):
            return seconds


def report(peer, work, options, prepare, flops, bytes_):
    """`prepare` returns (run, check). A form that does not work here becomes a note instead of a figure."""
    if not is_chosen(work, options):
        return
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        report_alone(peer, work, options, prepare, flops, bytes_)
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps({"peer": peer, "work": work, "note": f"failed: ended with status {status}"}), flush=True)


def report_alone(peer, work, options, prepare, flops, bytes_):
    print(f"{peer}: {work}", file=sys.stderr)
    before = memory("VmRSS")
    try:
        run, check = prepare()
        seconds = measure(run, options)
    except Exception as error:  # whatever it is, the other works still count
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        print(json.dumps({"peer": peer, "work": work, "note": f"failed: {reason}"}), flush=True)
        return
    print(json.dumps({
        "peer": peer, "work": work,
        "seconds_median": statistics.median(seconds), "seconds_min": min(seconds), "seconds_max": max(seconds),
        "runs": len(seconds), "flops": flops, "bytes": bytes_, "peak_bytes": max(memory("VmHWM") - before, 0),
        "check": check(), "threads": torch.get_num_threads(),
    }), flush=True)


def memory(field):
    """Bytes of this process, as Linux counts them."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:"))


def is_chosen(work, options):
    return any(text in work for text in options.match.split(","))


# ---- training and learning steps

def random_network(shape, first, memory_format):
    """Weights from stream `first` on, one stream for each layer, and no biases."""
    model = build(shape["network"], shape["px"], shape["classes"])
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]
    with torch.no_grad():
        for stream, (name, layer) in enumerate(layers, first):
            bound = ((1 if is_head(f"{name}.weight") else 6) / layer.weight[0].numel()) ** 0.5
            layer.weight.copy_(uniform(stream, *layer.weight.shape, bound=bound))
            if layer.bias is not None:
                layer.bias.zero_()
    return model.to(memory_format=memory_format).train()


def learner(shape, is_learning, memory_format):
    count = LEARN_SOURCES if is_learning else 1
    models = [random_network(shape, STEP * (m + 1), memory_format) for m in range(count)]
    return Merged(models, START) if is_learning else Trained(models[0])


def step(shape, is_learning, memory_format, is_compiled):
    network = learner(shape, is_learning, memory_format)
    loss_of = lambda x, labels: torch.nn.functional.cross_entropy(network(x), labels)
    compute = torch.compile(loss_of) if is_compiled else loss_of
    groups = network.parameter_groups(WEIGHT_DECAY)
    optimizer = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    x = uniform(X, shape["n"], 3, shape["px"], shape["px"]).contiguous(memory_format=memory_format)
    labels = hashes(LABELS, shape["n"]) % shape["classes"]
    losses = []

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = compute(x, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return run, lambda: losses[:2]


def steps(peer, options, is_learning, memory_format):
    for shape in SHAPES["steps"]:
        flops = shape["n"] * shape["flops"] + (2 * 2 * LEARN_SOURCES * shape["merged"] if is_learning else 0)
        work = f"{'learn_step' if is_learning else 'step'}/{shape['network']}/{shape['px']}px/{shape['n']}"
        prepare = lambda: step(shape, is_learning, memory_format, peer.endswith("compile"))
        report(peer, work, options, prepare, flops, None)


# ---- inference

def inferences():
    """Each network and image size once, with the batches that logits are computed of."""
    settings = {}
    for shape in SHAPES["steps"]:
        settings.setdefault((shape["network"], shape["px"]), shape)
    return [{**shape, "n": n} for shape in settings.values() for n in SHAPES["infer"]]


def inference(shape, memory_format, is_compiled):
    network = random_network(shape, STEP, memory_format).eval()
    compute = torch.compile(network) if is_compiled else network
    x = uniform(X, shape["n"], 3, shape["px"], shape["px"]).contiguous(memory_format=memory_format)
    results = []

    def run():
        with torch.inference_mode():
            results[:] = [compute(x)]

    return run, lambda: [mean_abs(*results)]


def onnx_inference(shape):
    """By ONNX Runtime: the same network, exported, with all that it does to a graph before it runs it."""
    import onnxruntime

    network = random_network(shape, STEP, torch.contiguous_format).eval()
    x = uniform(X, shape["n"], 3, shape["px"], shape["px"])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "network.onnx")
        torch.onnx.export(network, (x,), path, input_names=["x"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, results = {"x": x.numpy()}, []

    def run():
        results[:] = [torch.from_numpy(session.run(None, inputs)[0])]

    return run, lambda: [mean_abs(*results)]


def infers(peer, options, memory_format):
    for shape in inferences():
        work = f"infer/{shape['network']}/{shape['px']}px/{shape['n']}"
        prepare = lambda: onnx_inference(shape) if peer == "onnxruntime" else inference(shape, memory_format, peer.endswith("compile"))
        report(peer, work, options, prepare, shape["n"] * shape["forward"], None)


# ---- convolution

def is_stem(conv):
    return conv["c"] == 3


def passes(conv):
    return 2 if is_stem(conv) else 3


def convolution(conv, which, memory_format):
    stride, pad = [conv["stride"]] * 2, [conv["pad"]] * 2
    x = uniform(X, conv["n"], conv["c"], conv["h"], conv["w"]).contiguous(memory_format=memory_format)
    w = uniform(W, conv["k"], conv["c"], conv["r"], conv["s"]).contiguous(memory_format=memory_format)
    y = torch.nn.functional.conv2d(x, w, None, stride, pad)
    dy = uniform(DY, *y.shape).contiguous(memory_format=memory_format)
    ones = torch.ones_like(y)
    x.requires_grad_(which == "all" and not is_stem(conv))
    w.requires_grad_(which == "all")
    results = []

    def backward(mask):
        gradients = torch.ops.aten.convolution_backward(dy, x, w, None, stride, pad, [1, 1], False, [0, 0], 1, mask)
        results[:] = [gradient for gradient in gradients if gradient is not None]

    def fprop():
        results[:] = [torch.nn.functional.conv2d(x, w, None, stride, pad)]

    def everything():
        y = torch.nn.functional.conv2d(x, w, None, stride, pad)
        inputs = [w] if is_stem(conv) else [x, w]
        results[:] = [y, *torch.autograd.grad(y, inputs, ones)]

    run = {
        "fprop": fprop,
        "dgrad": lambda: backward([True, False, False]),
        "wgrad": lambda: backward([False, True, False]),
        "all": everything,
    }[which]
    return run, lambda: [mean_abs(result) for result in results]


def convs(peer, options, memory_format):
    for which in ("fprop", "dgrad", "wgrad", "all"):
        for conv in SHAPES["convs"]:
            if which == "dgrad" and is_stem(conv):
                continue
            times = passes(conv) if which == "all" else 1
            work = f"conv_{which}/{conv['name']}/{conv['px']}/{conv['n']}"
            prepare = lambda: convolution(conv, which, memory_format)
            report(peer, work, options, prepare, conv_flops(conv) * times, 4 * sum(elements(conv)) * times)


# ---- merging

def sources(count):
    """M sources of ResNet-50."""
    filters = [layer["k"] for layer in SHAPES["resnet50_filters"]]
    alpha = [uniform(ALPHA + m, sum(filters)) for m in range(count)]
    fed = [(number,) for number in range(len(filters)) for _ in ("W", "γ", "β")]
    return Sources([network(m + 1) for m in range(count)], network(GRADIENT), alpha, fed, filters)


@functools.cache
def network(number):
    tensors = []
    for i, layer in enumerate(SHAPES["resnet50_filters"]):
        seed, k = SOURCE * number + 3 * i, layer["k"]
        tensors += [uniform(seed, k, layer["c"], layer["r"], layer["s"]), uniform(seed + 1, k), uniform(seed + 2, k)]
    return tensors


def merge(form, sources):
    run, results = form(sources), []

    def keep():
        results[:] = run()

    return keep, lambda: [] if form is blend_lerp else [mean_abs(*results)]


def merges(options):
    for kind, forms in FORMS.items():
        for count in (2,) if options.quick else (2, 4, 8):
            for name, form in forms.items():
                work = f"{kind}/resnet50/{count}"
                if not is_chosen(work, options) or (form is blend_lerp and count != 2):
                    continue
                parameters = sum(layer["k"] * (layer["c"] * layer["r"] * layer["s"] + 2) for layer in SHAPES["resnet50_filters"])
                flops, bytes_ = 2 * count * parameters, 4 * (count + 1) * parameters
                report(f"torch-{name}", work, options, lambda: merge(form, sources(count)), flops, bytes_)


# ---- triad

def triad():
    a, b, c = torch.empty(TRIAD), torch.full((TRIAD,), 0.5), torch.full((TRIAD,), 2.0)
    return lambda: torch.add(b, c, alpha=3.0, out=a), lambda: []


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("torch", "torch-cl", "torch-cl-compile", "onnxruntime"))
    parser.add_argument("--only", default="step,conv,merge,learn,infer,triad")
    parser.add_argument("--match", default="")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--cap", type=float, default=20.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        SHAPES["convs"] = [{**conv, "n": 8} for conv in SHAPES["convs"] if conv["px"] == 28]
        kept = [shape for shape in SHAPES["steps"] if shape["px"] == 28 or shape["network"] != "resnet18"]
        SHAPES["steps"] = [{**shape, "n": 8} for shape in kept]
        SHAPES["infer"] = [1]

    memory_format = torch.contiguous_format if options.peer == "torch" else torch.channels_last
    only = options.only.split(",")
    if "infer" in only:
        infers(options.peer, options, memory_format)
    if options.peer == "onnxruntime":
        return
    if "step" in only:
        steps(options.peer, options, False, memory_format)
    if "conv" in only and options.peer != "torch-cl-compile":
        convs(options.peer, options, memory_format)
    if "merge" in only and options.peer == "torch":
        with torch.no_grad():
            merges(options)
    if "learn" in only:
        steps(options.peer, options, True, memory_format)
    if "triad" in only and options.peer == "torch":
        report("torch", f"triad/{TRIAD >> 20}Mi", options, triad, 2 * TRIAD, 12 * TRIAD)


if __name__ == "__main__":
    main()
