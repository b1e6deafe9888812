"""Checks what merging methods make of two networks by what mergekit and fusion_bench make of them.

Usage: python tests/golden/check_methods.py MEDMERGE [METHOD…]

MEDMERGE is the program; without methods, all are checked. A ResNet-18 of torchvision with random weights is the base,
and two others are it with noise of their own, so that many of their changes conflict in sign. Each method runs with
several numbers, and a line gives the worst relative difference over convolutions and batch norms' weights and biases:
the largest difference of a tensor by its largest number. Heads and running statistics go by rules of this program. The
exit status is 1 if a difference is above its tolerance.

Where definitions differ, the other side is asked for what this program does, and the lines behind `differs` show by
how much its own choice is another:

* linear: mergekit divides by the sum of the weights unless `normalize` is off; here nothing is normalised.
* task-arithmetic: all are one. fusion_bench has no coefficients.
* ties: this program and mergekit trim tensor by tensor. fusion_bench trims what it is given, which in use is the whole
  network as one vector, as the method's authors do; it keeps the k-th number and all above it, one more than asked for
  (`int(d·K) + 1`). Of changes that are equal at the edge the first ones stay here, any in mergekit, all in
  fusion_bench. Where changes cancel out exactly, nothing is elected here, mergekit elects plus and fusion_bench the
  sign of most of the network. mergekit and this program weigh means by the coefficients of those that agree;
  fusion_bench has none, and adds unless it is asked for means.
* dare: what stays is divided by the density here and in fusion_bench; mergekit scales each tensor until the sum of its
  magnitudes is what it was, which is nearly the same for large ones. Its `dare_ties` adds where this program and its own `ties`
  take the mean, unless `normalize` is on; fusion_bench's also trims what was not dropped. What is dropped is drawn from
  other generators.
* slerp: all three go tensor by tensor, and along the chord beyond a cosine of 0.9995. For a tensor of zeros, such as
  the biases of a new batch norm, the other two take a right angle, this program the chord.
* regmean: fusion_bench has linear layers and no coefficients; patches make convolutions linear, and products take
  coefficients. What is left off the diagonal is a setting of it, 0.9 here. It has no floor on the diagonal, and cannot
  invert where some number of a patch is always zero; what no source reads is the average here.
"""

import contextlib
import io
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
import torchvision
from fusion_bench.method.dare.utils import param_random_drop_
from fusion_bench.method.regmean.regmean import merging_with_regmean_weights
from fusion_bench.method.slerp.slerp_utils import slerp as fusion_bench_slerp
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
from mergekit.merge_methods import merge_tensors
from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

import networks

ULP = 2.0**-24  # what one operation in float32 rounds away of its result, at most
# Up to eight operations make a number (two changes, two products, a sum, a division, λ times that and the base), here
# and there, and what is between may be somewhat larger than the result.
TOLERANCE = 16 * ULP
NOISE = (0.2, 0.5)  # of a tensor's own standard deviation
SIGMAS = 5  # a share of what is drawn lies farther off once in a million
REGMEAN_TOLERANCE = 1e-4  # what float32 costs regmean is measured; it may not cost more
MEAN, STD = 0.3, 0.25


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program, names = sys.argv[1], sys.argv[2:] or list(METHODS)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bench = Bench(program, Path(folder))
        failed = [name for name in names if not METHODS[name](bench)]
    print(f"{len(names)} methods; " + (f"these failed: {', '.join(failed)}" if failed else "all agree"))
    sys.exit(1 if failed else 0)


class Bench:
    """The program and three networks that it merges: `base`, and sources 0 and 1."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.base = torchvision.models.resnet18(num_classes=4)
        networks.randomise_norms(self.base)
        self.sources = [noisy(self.base, noise) for noise in NOISE]
        self.names = trunk(self.base)
        self.write("base", self.base)
        self.write("a", self.sources[0])
        # The other format.
        torch.save(self.sources[1].state_dict(), folder / "b.pth")
        self.paths = [folder / "a.safetensors", folder / "b.pth"]

    def write(self, name, model):
        path = self.folder / f"{name}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
        return path

    def merge(self, method, *flags, paths=None, needs_base=True):
        out = self.folder / "merged.safetensors"
        base = ["--base", self.folder / "base.safetensors"] if needs_base else []
        models = ["--models", *(paths or self.paths)]
        command = [self.program, "--quiet", "--device", "cpu", "merge", *models, "--method", method, *base, *flags]
        result = subprocess.run([*map(str, command), "--out", str(out), "--force"], capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"error: {method}: {result.stderr.strip() or result.stdout.strip()}")
        return load_file(out)

    def tensors(self, name):
        """Of the base and the sources."""
        return [model.state_dict()[name] for model in (self.base, *self.sources)]


def noisy(model, noise):
    """A copy with noise on its floating-point tensors."""
    state = networks.copy_of(model.state_dict())
    for name in trunk(model):
        state[name] += noise * state[name].std() * torch.randn_like(state[name])
    return network_of(state)


def network_of(state):
    model = networks.from_state(state)
    model.load_state_dict(state)
    return model


def trunk(model):
    return [name for name, _ in model.named_parameters() if not name.startswith("fc.")]


def coefficients(*numbers):
    # A minus sign in front would be taken for a flag.
    return "--coefficients=" + ",".join(map(str, numbers))


class Worst:
    """The largest relative difference so far, and in which tensor of which run."""

    def __init__(self):
        self.value, self.where, self.left_out = 0.0, "bit for bit", 0

    def add(self, actual, expected, where, leave_out=None):
        actual, expected = actual.double(), expected.double()
        difference = (actual - expected).abs()
        if leave_out is not None:
            self.left_out += int(leave_out.sum())
            difference[leave_out] = 0
        value = float(difference.max() / expected.abs().max())
        # A NaN has to fail, and no comparison is true of one.
        if not value <= self.value:
            self.value, self.where = (value if math.isfinite(value) else math.inf), where

    def report(self, method, tolerance=TOLERANCE, good=True, more=""):
        good = good and self.value <= tolerance
        left_out = f"; {self.left_out} numbers at an edge left out" if self.left_out else ""
        verdict = "PASS" if good else "FAIL"
        print(f"{verdict} {method}: worst {self.value:.2e} (at most {tolerance:.1e}), {self.where}{left_out}{more}")
        return good


def differs(text):
    print(f"     differs: {text}")


def linear(bench):
    worst = Worst()
    for numbers in [(0.5, 0.5), (0.3, 0.7), (0.9, 0.6), (1.3, -0.4)]:
        merged = bench.merge("linear", coefficients(*numbers), needs_base=False)
        for name in bench.names:
            parameters = {"weight": list(numbers), "normalize": False}
            expected = merge_tensors(bench.tensors(name)[1:], "linear", parameters=parameters)
            worst.add(merged[name], expected, f"{name} by {numbers}")
    return worst.report("linear")


def task_arithmetic(bench):
    worst = Worst()
    for scale, numbers in [(1, (1, 1)), (0.3, (1, 1)), (0.8, (0.5, 1.2)), (1.5, (1, -0.4))]:
        merged = bench.merge("task-arithmetic", "--scale", scale, coefficients(*numbers))
        pool = {"_pretrained_": bench.base, "a": bench.sources[0], "b": bench.sources[1]}
        theirs = quietly(TaskArithmeticAlgorithm(scaling_factor=scale, inplace=False).run, pool).state_dict()
        for name in bench.names:
            where = f"{name} by {scale} and {numbers}"
            worst.add(merged[name], of_mergekit("task_arithmetic", bench, name, numbers, {"lambda": scale}), where)
            if numbers == (1, 1):
                worst.add(merged[name], theirs[name], f"{where}, fusion_bench")
    return worst.report("task-arithmetic")


def of_mergekit(method, bench, name, numbers, parameters):
    parameters = {"weight": {1: numbers[0], 2: numbers[1]}, **parameters}
    return merge_tensors(bench.tensors(name), method, parameters=parameters, ids=[0, 1, 2], base_index=0)


def ties(bench):
    worst, whole, one_more = Worst(), Worst(), 0
    for density, scale, numbers in [(0.2, 1, (1, 1)), (0.5, 0.7, (0.3, 0.9)), (1, 0.4, (1, 1)), (0.35, 1, (1, -0.4))]:
        merged = bench.merge("ties", "--density", density, "--scale", scale, coefficients(*numbers))
        for name in bench.names:
            where = f"{name} by {density}, {scale} and {numbers}"
            base, *sources = bench.tensors(name)
            changes = torch.stack([(source - base).flatten() for source in sources])
            edge = at_edge(changes, numbers, density).reshape(base.shape)
            parameters = {"density": density, "lambda": scale}
            worst.add(merged[name], of_mergekit("ties", bench, name, numbers, parameters), where, edge)
            kept = max(1, int(density * base.numel()))
            if numbers == (1, 1) and kept < base.numel():
                # Its count is one more than that of the share, so that half a number less keeps as many.
                change = quietly(ties_merging, changes, (kept - 0.5) / base.numel(), "mean")
                worst.add(merged[name], base + scale * change.reshape(base.shape), f"{where}, fusion_bench", edge)
                more = quietly(ties_merging, changes, density, "mean").reshape(base.shape)
                one_more += int((((base + scale * more) - merged[name]).abs() > TOLERANCE * base.abs().max()).sum())
        if numbers == (1, 1) and density < 1:
            compare_whole(bench, merged, density, scale, whole)
    good = worst.report("ties")
    differs(f"by fusion_bench's own count {one_more} numbers are others, of at most {2 * len(bench.names)}")
    differs(f"trimmed as one vector, as its authors do, the worst is {whole.value:.2e}, {whole.where}")
    # Changes of +1 and -1 cancel out: what is elected?
    changes = torch.tensor([[1.0, 3.0, 2.0, 0.0], [-1.0, 0.0, 0.0, -4.0]])
    parts = [torch.zeros(4), *changes]
    parameters = {"weight": {1: 1.0, 2: 1.0}, "density": 1.0}
    theirs = merge_tensors(parts, "ties", parameters=parameters, ids=[0, 1, 2], base_index=0)
    also = quietly(ties_merging, changes, 0.75, "mean")
    differs(f"of changes of +1 and -1, mergekit makes {theirs[0]:+.0f}, fusion_bench {also[0]:+.0f}, this program 0")
    return good


def quietly(function, *arguments):
    """Without the steps that it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments)


def at_edge(changes, numbers, density):
    """Where equal changes compete for the last places, or where those that stay cancel out exactly."""
    length = changes.shape[1]
    kept = max(1, int(density * length))
    last = changes.abs().sort(dim=1, descending=True).values[:, kept - 1 : kept]
    stays = changes.abs() >= last
    competes = (changes.abs() == last) & (stays.sum(dim=1, keepdim=True) > kept)
    weighted = changes * stays * torch.tensor(numbers)[:, None]
    cancels = (weighted.sum(dim=0) == 0) & (weighted != 0).any(dim=0)
    return competes.any(dim=0) | cancels


def compare_whole(bench, merged, density, scale, worst):
    parts = [bench.tensors(name) for name in bench.names]
    flat = torch.stack([torch.cat([(part[m] - part[0]).flatten() for part in parts]) for m in (1, 2)])
    change, at = quietly(ties_merging, flat, density, "mean"), 0
    for name, (base, *_) in zip(bench.names, parts):
        worst.add(merged[name], base + scale * change[at : at + base.numel()].reshape(base.shape), name)
        at += base.numel()


def dare(method):
    """At density 1 all is decided; below it each number is one of four, as each source's change stays or not."""
    elects = method == "dare-ties"

    def check(bench):
        worst = Worst()
        for scale, numbers in [(1, (1, 1)), (0.6, (0.3, 0.9))]:
            merged = bench.merge(method, "--density", 1, "--scale", scale, coefficients(*numbers))
            parameters = {"lambda": scale, "normalize": elects}
            for name in bench.names:
                expected = of_mergekit(method.replace("-", "_"), bench, name, numbers, parameters)
                edge = None
                if elects:
                    base, *sources = bench.tensors(name)
                    changes = torch.stack([(source - base).flatten() for source in sources])
                    edge = at_edge(changes, numbers, 1).reshape(base.shape)
                worst.add(merged[name], expected, f"{name} by {scale} and {numbers}", edge)
        good, texts = True, []
        for density, seed, scale, numbers in [(0.5, 0, 1, (1, 1)), (0.2, 7, 0.5, (0.4, 0.9))]:
            flags = ["--density", density, "--scale", scale, coefficients(*numbers)]
            merged = bench.merge(method, *flags, "--seed", seed)
            counts, told = numpy.zeros(3), 0
            for name in bench.names:
                nearest, known = nearest_of_four(bench, name, merged[name], density, scale, numbers, elects, worst)
                counts += [int((known & (nearest & bits == bits)).sum()) for bits in (1, 2, 3)]
                told += int(known.sum())
            for count, share in zip(counts, (density, density, density**2)):
                good &= abs(count / told - share) <= SIGMAS * math.sqrt(share * (1 - share) / told)
            shares = ", ".join(f"{count / told:.4f}" for count in counts)
            texts.append(f"of {told} numbers at density {density} stay {shares}")
        good = worst.report(method, good=good, more="".join(f"; {text}" for text in texts) + " of a, b, both")
        change = bench.tensors("layer1.0.bn1.weight")[1] - bench.tensors("layer1.0.bn1.weight")[0]
        kept = sparsify(change, 0.5, SparsificationMethod.random, rescale_norm=RescaleNorm.l1)
        factor = float((kept / change)[kept != 0].mean())
        differs(f"at density 0.5, mergekit once multiplied 64 changes by {factor:.3f}, others by 2")
        return good

    return check


def nearest_of_four(bench, name, merged, density, scale, numbers, elects, worst):
    """Which of the four each number is, as bits of the sources, and where they are far enough apart to tell."""
    base, *sources = bench.tensors(name)
    factor = rescaled_by(density)
    four = []
    for which in range(4):
        kept = [(source - base) * (factor if which >> m & 1 else 0) for m, source in enumerate(sources)]
        # From zeros, so that changes reach the election as they are.
        parameters = {"weight": {1: numbers[0], 2: numbers[1]}, "lambda": scale, "density": 1.0}
        method = "ties" if elects else "task_arithmetic"
        change = merge_tensors(
            [torch.zeros_like(base), *kept], method, parameters=parameters, ids=[0, 1, 2], base_index=0
        )
        four.append(base + change)
    four = torch.stack(four)
    distance, nearest = (four - merged).abs().min(dim=0)
    worst.add(merged, merged + distance, f"{name} by {density}, {scale} and {numbers}")
    pairs = torch.stack([(four[i] - four[j]).abs() for i in range(4) for j in range(i)])
    return nearest, pairs.amin(dim=0) > 10 * TOLERANCE * four.abs().max()


def rescaled_by(density):
    """What fusion_bench multiplies by what it keeps."""
    ones = torch.nn.Parameter(torch.ones(1000))
    param_random_drop_(ones, 1 - density, True)
    return float(ones.data.max())


def slerp(bench):
    worst, chords, arcs = Worst(), 0, 0
    close = noisy(bench.sources[0], 0.01)
    near = [bench.paths[0], bench.write("near", close)]
    runs = [(t, bench.sources, bench.paths) for t in (0, 0.25, 0.5, 0.9, 1)]
    runs.append((0.3, [bench.sources[0], close], near))
    for t, sources, paths in runs:
        merged = bench.merge("slerp", "--t", t, paths=paths, needs_base=False)
        for name in bench.names:
            # In float64, since angles and not their rounding are compared.
            a, b = [source.state_dict()[name].double() for source in sources]
            expected = merge_tensors([a, b], "slerp", parameters={"t": t}, base_index=0)
            worst.add(merged[name], expected, f"{name} by {t}")
            worst.add(merged[name], fusion_bench_slerp(t, a, b), f"{name} by {t}, fusion_bench")
            is_chord = functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9995
            chords, arcs = chords + int(is_chord), arcs + int(not is_chord)
    good = worst.report("slerp", more=f"; {arcs} arcs, {chords} chords", good=chords > 0 and arcs > 0)
    zeros = networks.copy_of(bench.sources[0].state_dict())
    zeros["bn1.bias"].zero_()
    paths = [bench.write("zeros", network_of(zeros)), bench.paths[1]]
    b = bench.sources[1].state_dict()["bn1.bias"]
    ours = bench.merge("slerp", "--t", 0.5, paths=paths, needs_base=False)["bn1.bias"]
    theirs = merge_tensors([torch.zeros_like(b), b], "slerp", parameters={"t": 0.5}, base_index=0)
    also = fusion_bench_slerp(0.5, torch.zeros_like(b), b)
    shares = [float((of @ b) / (b @ b)) for of in (ours, theirs, also)]
    differs("half way from zeros to b is {:.4f}·b here, {:.4f}·b of mergekit, {:.4f}·b of fusion_bench".format(*shares))
    return good


def regmean(bench):
    """On a ResNet-18 of fewer filters, whose normal equations take seconds, all by fusion_bench's formula:

    * with products that PyTorch sums up in float64, and this program's floor on their diagonal. The tolerance is ten
      times what float32 changes of that, networks and sums of PyTorch's, since rounding depends on the order of sums.
    * without the floor. With A the sum of c·G, f the floor, w the least squares and w̄ the average, the floor moves w by
      f·(A + f)⁻¹·(w̄ − w), and no eigenvalue of A is below a tenth of its least diagonal number, off which 0.9 are left:
      so that length, over w's largest number, is added to the tolerance.
    * batch norms, which are averaged, by fusion_bench without coefficients.
    """
    data = images(bench)
    base = networks.ResizedResNet(BasicBlock, [2, 2, 2, 2], [16, 32, 64, 128], stem=3, channels=1, classes=4)
    networks.randomise_norms(base)
    sources = [noisy(base, noise) for noise in NOISE]
    seen = torch.from_numpy(numpy.load(data)["train_images"])[:, None]
    for source in sources:
        estimate_statistics(source, seen)
    paths = [bench.write(f"narrow{m}", source) for m, source in enumerate(sources)]
    exact = [products(source.double(), seen.double()) for source in sources]
    single = [products(source.float(), seen.float()) for source in sources]
    worst, bare, norms = Worst(), Worst(), Worst()
    tolerance, bare_tolerance = 0.0, 0.0
    good, average = True, Worst()
    for numbers in [(0.5, 0.5), (0.3, 0.7)]:
        flags = ["--data", data, "--mean", MEAN, "--std", STD, "--statistics", "anchor", coefficients(*numbers)]
        merged = bench.merge("regmean", *flags, paths=paths, needs_base=False)
        weights = {name: [source.state_dict()[name] for source in sources] for name in trunk(base)}
        for name in trunk(base):
            where, both = f"{name} by {numbers}", weights[name]
            if both[0].dim() != 4:
                if numbers == (0.5, 0.5):
                    expected = merging_with_regmean_weights({name: both}, [{}, {}], 0.9)[name]
                    norms.add(merged[name], expected, where)
                continue
            theirs = regmean_of(name, both, exact, numbers, True)
            cost = Worst()
            cost.add(regmean_of(name, both, single, numbers, True), theirs, name)
            allowed = 10 * cost.value + 16 * ULP
            tolerance = max(tolerance, allowed)
            one = Worst()
            one.add(merged[name], theirs, where)
            good &= one.value <= allowed <= REGMEAN_TOLERANCE
            worst.add(merged[name], theirs, where)
            without = regmean_of(name, both, exact, numbers, False)
            moved = floor_moves(name, both, exact, numbers, without)
            one = Worst()
            one.add(merged[name], without, where)
            good &= one.value <= moved + allowed
            bare.add(merged[name], without, where)
            bare_tolerance = max(bare_tolerance, moved + allowed)
            average.add(sum(c * w.double() for c, w in zip(numbers, both)), theirs, where)
    more = f"; without floor {bare.value:.2e} (at most {bare_tolerance:.1e}), norms {norms.value:.2e}"
    good = worst.report("regmean", tolerance, good and norms.value <= TOLERANCE, more)
    differs(f"the plain average is up to {average.value:.2e} from it")
    return good


def images(bench):
    folder = bench.folder / "images"
    sizes = ["--source-train", 8, "--target-train", 48, "--val", 8, "--test", 8]
    command = [bench.program, "--quiet", "synth", "--out", folder, *sizes]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return folder / "target.npz"


def normalised(pixels):
    return (pixels / 255 - MEAN) / STD


def estimate_statistics(model, pixels):
    """So that every channel says something to some image, as after training: fusion_bench cannot invert zeros."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()(normalised(pixels.float()))


def products(model, pixels):
    """Σ x·xᵀ over the patches that each convolution reads, one for each of its outputs, in the model's precision."""
    sums, hooks = {}, []

    def hook(name):
        def add(module, inputs, _):
            window = dict(kernel_size=module.kernel_size, padding=module.padding, stride=module.stride)
            patches = functional.unfold(inputs[0], **window)
            patches = patches.transpose(1, 2).reshape(-1, patches.shape[1])
            sums[name] = sums.get(name, 0) + patches.T @ patches

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(hook(name)))
    for batch in normalised(pixels).split(16):
        model.eval()(batch)
    for handle in hooks:
        handle.remove()
    return sums


def regmean_of(name, weights, sums, numbers, with_floor):
    """fusion_bench's, of a convolution; coefficients and the floor go into the products, whose diagonals it keeps."""
    layer = name.removesuffix(".weight")
    grams = [c * of[layer].double() for c, of in zip(numbers, sums)]
    if with_floor:
        floor = floor_of(grams)
        # It pulls to the average by coefficients.
        grams = [gram + floor * c / sum(numbers) * torch.eye(len(gram)) for c, gram in zip(numbers, grams)]
    rows = [weight.double().flatten(1) for weight in weights]
    merged = merging_with_regmean_weights({name: rows}, [{layer: gram} for gram in grams], 0.9)[name]
    return merged.reshape(weights[0].shape)


def floor_of(grams):
    return 1e-6 * float(sum(grams).diagonal().mean())


def floor_moves(name, weights, sums, numbers, without):
    """By how much of its largest number the floor moves the result, at most."""
    layer = name.removesuffix(".weight")
    grams = [c * of[layer] for c, of in zip(numbers, sums)]
    average = sum(c * weight.double() for c, weight in zip(numbers, weights)) / sum(numbers)
    least = 0.1 * float(sum(grams).diagonal().min())
    longest = (average - without).flatten(1).norm(dim=1).max()
    return floor_of(grams) / least * float(longest / without.abs().max())


METHODS = {
    "linear": linear,
    "task-arithmetic": task_arithmetic,
    "ties": ties,
    "dare-linear": dare("dare-linear"),
    "dare-ties": dare("dare-ties"),
    "slerp": slerp,
    "regmean": regmean,
}

if __name__ == "__main__":
    main()
