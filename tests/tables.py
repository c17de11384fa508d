"""Small models that add a table of positions which is no parameter and not in the checkpoint."""

import torch
from torch import nn


class Positions(nn.Module):
    """A table that is made anew for texts that are longer than it is."""

    def __init__(self, rows=16, width=12):
        super().__init__()
        self.width = width
        self.make(rows)

    def make(self, rows):
        table = torch.cos(torch.arange(rows)[:, None] * torch.linspace(0.1, 2.0, self.width))
        self.register_buffer("table", table, persistent=False)

    def forward(self, positions):
        if positions.shape[-1] > self.table.shape[0]:
            self.make(positions.shape[-1])
        return self.table[positions].view(*positions.shape, self.table.shape[-1])


class Layer(nn.Module):
    def __init__(self, norm, width=12):
        super().__init__()
        self.norm = norm
        self.up = nn.Linear(width, 20)
        self.down = nn.Linear(20, width)

    def forward(self, hidden):
        return hidden + self.down(torch.relu(self.up(self.norm(hidden))))


class Tabled(nn.Module):
    """Two layers after token and position embeddings; ``where`` says how the table is kept."""

    def __init__(self, where="buffer", *, inline_norm=False):
        super().__init__()
        self.embed = nn.Embedding(50, 12)
        self.positions = Positions()
        if where == "attribute":
            table = self.positions._buffers.pop("table")
            self.positions._non_persistent_buffers_set.clear()
            self.positions.table = table
        self.layers = nn.ModuleList(Layer(nn.Identity() if inline_norm else nn.LayerNorm(12)) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(12)) if inline_norm else None
        self.eps = 1e-6
        self.head = nn.Linear(12, 50)

    def forward(self, input_ids):
        hidden = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        if self.scale is not None:
            hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


def tabled(*args, **kwargs):
    torch.manual_seed(0)
    return Tabled(*args, **kwargs).eval()
