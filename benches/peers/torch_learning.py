"""Networks that learn: all of their parameters, or merge weights and the head."""

import torch

import torch_networks
from torch_merging import Feeds, mixed, shaped


class Trained(torch.nn.Module):
    """A network whose parameters all learn."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def learned(self):
        return dict(self.model.named_parameters())

    def parameter_groups(self, weight_decay):
        return [{"params": list(self.learned().values()), "weight_decay": weight_decay}]

    def forward(self, images):
        return self.model(images)


class Merged(torch.nn.Module):
    """A network whose filters are blends of frozen sources: w (M − 1 numbers for each filter) and the head learn.

    α of the first source, the anchor, is 1 − Σ w; w begins at `start`, or where all α are alike. The sources are
    buffers, which torch.compile's CUDA graphs do not copy.
    """

    def __init__(self, models, start=None):
        super().__init__()
        self.model, self.count = models[0], len(models)
        merged = torch_networks.merged_parameters(self.model)
        self.names = list(merged)
        filters = torch_networks.filters(self.model)
        self.feeds = Feeds.of(list(merged.values()), filters)
        self.register_buffer("index", self.feeds.index)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(torch_networks.is_head(name))
        for m, model in enumerate(models):
            for i, name in enumerate(self.names):
                source = model.get_parameter(name).detach().clone(memory_format=torch.preserve_format)
                self.register_buffer(f"source{m}_{i}", source)
        self.w = torch.nn.Parameter(torch.full((self.count - 1, sum(filters)), start or 1 / self.count))

    def head(self):
        return {name: parameter for name, parameter in self.model.named_parameters() if torch_networks.is_head(name)}

    def learned(self):
        return {**self.head(), "w": self.w}

    def parameter_groups(self, weight_decay):
        # Decay would pull merge weights towards the anchor.
        return [
            {"params": list(self.head().values()), "weight_decay": weight_decay},
            {"params": [self.w], "weight_decay": 0.0},
        ]

    def forward(self, images):
        sources = [[getattr(self, f"source{m}_{i}") for i in range(len(self.names))] for m in range(self.count)]
        alpha = torch.cat([1 - self.w.sum(0, keepdim=True), self.w])
        feeds = self.feeds._replace(index=self.index)
        alphas = [shaped(row, feeds, sources[0]) for row in alpha.unbind()]
        blend = dict(zip(self.names, mixed(sources, alphas)))
        return torch.func.functional_call(self.model, blend, (images,))
