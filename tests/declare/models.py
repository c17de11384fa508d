"""Networks that the tracer cannot see through: attention in an operation without a rule, experts reached in Python."""

from __future__ import annotations

import torch
from torch import nn

HIDDEN, HEADS, SIZE, LAYERS, VOCABULARY = 12, 6, 4, 3, 23


@torch.library.custom_op("declared::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Causal attention of (batch, time, heads · size) tensors."""
    return _attention(q, k, v, heads).contiguous()


def _attention(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2).flatten(2)


@attend.register_fake
def _(q, k, v, heads):
    return torch.empty_like(v)


def _remember(ctx, inputs, output):
    *tensors, ctx.heads = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient):
    tensors = [t.detach().requires_grad_() for t in ctx.saved_tensors]
    with torch.enable_grad():
        out = _attention(*tensors, ctx.heads)
    return (*torch.autograd.grad(out, tensors, gradient), None)


attend.register_autograd(_backward, setup_context=_remember)


class Opaque(nn.Module):
    """Attention whose products happen inside one operation; ``n_heads`` is its own name for the number of heads."""

    def __init__(self, bias=True):
        super().__init__()
        self.n_heads = HEADS
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HEADS * SIZE, bias=bias) for _ in range(3))
        self.back = nn.Linear(HEADS * SIZE, HIDDEN)

    def forward(self, x):
        return self.back(attend(self.query(x), self.key(x), self.value(x), self.n_heads))


class Fused(nn.Module):
    """The same with one projection: queries, keys and values of all heads one after the other."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS
        self.qkv, self.back = nn.Linear(HIDDEN, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, HIDDEN)

    def forward(self, x):
        qkv = self.qkv(x)
        return self.back(attend(*qkv.chunk(3, -1), self.heads))


class Experts(nn.Module):
    """A router's choice, gone through in Python; the experts' matrices are stacked along their rows."""

    count, width, top = 5, 8, 2

    def __init__(self):
        super().__init__()
        self.number = self.count
        self.router = nn.Linear(HIDDEN, self.count)
        self.up = nn.Parameter(torch.randn(self.count * self.width, HIDDEN) * 0.4)
        self.down = nn.Parameter(torch.randn(self.count * self.width, HIDDEN) * 0.4)

    def forward(self, x):
        flat = x.reshape(-1, HIDDEN)
        best = self.router(flat).softmax(-1).topk(self.top)
        out = torch.zeros_like(flat)
        for e in best.indices.unique().tolist():
            token, slot = torch.where(best.indices == e)
            out.index_add_(0, token, self.expert(flat[token], e) * best.values[token, slot, None])
        return out.view(x.shape)

    def expert(self, x, e):
        up, down = (w.view(self.number, -1, HIDDEN)[e] for w in (self.up, self.down))
        return (x @ up.T).relu() @ down


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 10), nn.Linear(10, HIDDEN)

    def forward(self, x):
        return self.down(self.up(x).relu())


class Decoder(nn.Module):
    """A decoder that is not from transformers: no config, token ids in, logits out."""

    def __init__(self, attention=Opaque, feed_forward=Plain):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(HIDDEN, VOCABULARY)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(HIDDEN), "attention": attention(), "ffn": feed_forward()})
            for _ in range(LAYERS)
        )

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = x + block["attention"](block["norm"](x))
            x = x + block["ffn"](x)
        return self.head(x)


def decoder(attention=Opaque, feed_forward=Plain, seed=0):
    """A decoder in evaluation mode with random weights, biases included."""
    torch.manual_seed(seed)
    return Decoder(attention, feed_forward).eval()


def ids(batch=2, length=9):
    """Random token ids."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(3))


class Listed(nn.Module):
    """Experts that are modules of their own in a list, reached by the numbers of those that were chosen.

    Every expert knows its own number; ``per_token`` of them work on a token.
    """

    count, per_token = 5, 2

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(HIDDEN, self.count, bias=False)
        self.experts = nn.ModuleList(Numbered(n) for n in range(self.count))

    def forward(self, x):
        flat = x.flatten(0, 1)
        best = self.gate(flat).softmax(-1).topk(self.per_token)
        out = torch.zeros_like(flat)
        for e in best.indices.unique().tolist():
            expert = self.experts[e]
            token, slot = torch.where(best.indices == expert.number)
            out = out.index_add(0, token, expert(flat[token]) * best.values[token, slot, None])
        return out.view(x.shape)


class Numbered(Plain):
    def __init__(self, number):
        super().__init__()
        self.number = number
