"""What is measured: medmerge's own works, by the names that `medmerge bench` gives its rows, and what each must do at least.

Standard library only. The defaults and the names are those of medmerge's src/bench, bytes and operations those of
its `Cost`: ratios.py refuses to divide rows that count differently.

A convolution is a dictionary of n, h, w, c (input), k, r, s (filters), stride and pad, the same on both axes.
"""

NETWORKS = ("resnet8", "resnet20", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "vgg16")
PASSES = ("fprop", "dgrad", "wgrad")
BYTES = {"f32": 4, "tf32": 4, "bf16": 2, "f16": 2}

# Images up to here get a 3×3 stem of stride 1 without pooling.
LARGEST_SMALL = 64


def has_small_stem(image_size):
    return image_size <= LARGEST_SMALL


def classes(image_size):
    """As many as ImageNet has for photographs, as PathMNIST has for small images."""
    return 9 if has_small_stem(image_size) else 1000


def networks(bench):
    return ("resnet18", "resnet50", "densenet121") if bench == "conv" else ("resnet18", "resnet50")


def image_sizes(is_gpu):
    return (28, 224) if is_gpu else (28,)


def batch_size(is_gpu, image_size):
    return 128 if is_gpu or has_small_stem(image_size) else 8


def sources(bench):
    return (2, 4, 8) if bench == "merge" else (2,)


def rounds(is_gpu, bench):
    return 31 if is_gpu else 5 if bench == "step" else 11


# ---- names of rows

def merge_name(network, count, what):
    return f"merge/{network}/{count} sources/{what}"


def conv_name(network, image_size, batch, layer, which, precision):
    return f"conv/{network}/{image_size}px/{batch}/{layer}/{which}/{precision}"


def step_name(network, image_size, batch, what, precision):
    return f"step/{network}/{image_size}px/{batch}/{what}/{precision}"


# ---- convolutions

def output(conv):
    """Height and width."""
    return tuple((conv[side] + 2 * conv["pad"] - conv[taps]) // conv["stride"] + 1 for side, taps in (("h", "r"), ("w", "s")))


def elements(conv):
    """Of x, w and y."""
    n, h, w, c, k, r, s = (conv[key] for key in ("n", "h", "w", "c", "k", "r", "s"))
    p, q = output(conv)
    return n * c * h * w, k * c * r * s, n * k * p * q


def conv_flops(conv):
    """Of one pass. Padding counts."""
    return 2 * elements(conv)[2] * conv["c"] * conv["r"] * conv["s"]


def seen(outputs, taps, conv, size):
    """How many of the `size` places along an axis some output sees: a 1×1 convolution of stride 2 skips half of them."""
    places = {i * conv["stride"] + tap - conv["pad"] for i in range(outputs) for tap in range(taps)}
    return sum(0 <= place < size for place in places)


def conv_bytes(conv, which, precision):
    """Each operand once; the gradient of the filters is f32."""
    size, (x, w, y), (p, q) = BYTES[precision], elements(conv), output(conv)
    x_seen = conv["n"] * conv["c"] * seen(p, conv["r"], conv, conv["h"]) * seen(q, conv["s"], conv, conv["w"])
    return {"fprop": size * (x_seen + w + y), "dgrad": size * (y + w + x), "wgrad": size * (x_seen + y) + 4 * w}[which]


def conv_shape(conv):
    stride = f" / {conv['stride']}" if conv["stride"] > 1 else ""
    return "{n}×{h}×{w}×{c} → {k}, {r}×{s}".format(**conv) + stride


# ---- merging

def blend_cost(count, weights, alphas):
    """Bytes and operations of a blend of `count` sources."""
    return 4 * (count * (weights + alphas) + weights), (2 * count - 1) * weights


def dalpha_cost(count, weights, alphas):
    return 4 * ((count + 1) * weights + count * alphas), 2 * count * weights


# ---- steps

def step_cost(convs, precision, merging=()):
    """Of its convolutions, of which the first needs no dgrad, and of merging; the rest is not counted. A VGG's hidden
    layers are convolutions to medmerge."""
    bytes_ = flops = 0
    for index, conv in enumerate(convs):
        for which in PASSES:
            if which != "dgrad" or index > 0:
                bytes_ += conv_bytes(conv, which, precision)
                flops += conv_flops(conv)
    return bytes_ + sum(cost[0] for cost in merging), flops + sum(cost[1] for cost in merging)
