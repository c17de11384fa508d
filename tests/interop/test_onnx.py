"""A saved model is exported to ONNX, and onnxruntime gives the same logits."""

import pytest
import torch

from tests.interop.folders import ids, load, logits

pytest.importorskip("onnx", reason="needs the package onnx")
pytest.importorskip("onnxscript", reason="needs the package onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")


class Logits(torch.nn.Module):
    """Token ids in, logits out: without a cache, which a graph of fixed inputs does not have."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids, use_cache=False).logits


def test_the_exported_graph_gives_the_same_logits(folder, tmp_path):
    model, tokens = load(folder), ids(folder)
    length = torch.export.Dim("length", min=2, max=256)
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        Logits(model).eval(), (tokens,), file, dynamo=True, dynamic_shapes={"input_ids": {1: length}}, verbose=False
    )
    session = onnxruntime.InferenceSession(file)
    (name,) = (given.name for given in session.get_inputs())
    for piece in (tokens, tokens[:, :7]):
        (found,) = session.run(None, {name: piece.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(model, piece), rtol=0, atol=1e-3)
