"""Which filters feed which channels: for every tensor with a number per channel, the layers that make those channels.

Written from the definition of each family, in the order of the channels, and not from how the crate finds it out. Each
function takes a model and the names of its layers with filters, and returns lists of such names by name of tensor.
"""


def of_resnet(model, layers):
    """`conv2` is followed by `bn2`, `downsample.0` by `downsample.1`."""
    feeds = {}
    for layer in layers:
        norm = layer[:-1] + "1" if layer.endswith("downsample.0") else layer.replace("conv", "bn")
        feeds |= of_norm(norm, [layer])
    return feeds


def of_vgg(model, layers):
    """Without batch norms there are only biases."""
    return {f"{layer}.bias": [layer] for layer in layers}


def of_densenet(model, layers):
    """`reads` are the layers whose outputs are lined up at that place; a transition makes one layer's of them."""
    reads = ["features.conv0"]
    feeds = of_norm("features.norm0", reads)
    for name, module in model.features.named_children():
        if name.startswith("denseblock"):
            for layer in module:
                prefix = f"features.{name}.{layer}"
                feeds |= of_norm(f"{prefix}.norm1", reads) | of_norm(f"{prefix}.norm2", [f"{prefix}.conv1"])
                reads = reads + [f"{prefix}.conv2"]
        elif name.startswith("transition"):
            feeds |= of_norm(f"features.{name}.norm", reads)
            reads = [f"features.{name}.conv"]
    return feeds | of_norm("features.norm5", reads)


def of_norm(norm, layers):
    return {f"{norm}.weight": layers, f"{norm}.bias": layers}
