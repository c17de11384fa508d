"""Classes that may stand in for another one: what the file says of them is true."""

import pytest
import torch
import transformers

from graphprune.reshape.siblings import known_siblings, siblings_of
from tests.decoders import tiny, tokens


@pytest.mark.parametrize("entry", known_siblings(), ids=lambda entry: f"{entry.known_as}-{entry.sibling}")
def test_a_sibling_computes_the_same(entry):
    name = entry.known_as.removesuffix("ForCausalLM").lower()
    model = tiny(name, num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    ((kind, values),) = siblings_of(entry.known_as, model.config.to_dict())
    assert kind is getattr(transformers, entry.sibling)
    other = kind(kind.config_class.from_dict(values)).eval()
    other.load_state_dict(model.state_dict())
    long = tokens(length=60)  # a window would cut this off
    with torch.no_grad():
        assert torch.equal(other(long).logits, model(long).logits)
    mine, theirs = (m.generate(long[:1, :9], max_new_tokens=8, do_sample=False) for m in (model, other))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("entry", known_siblings(), ids=lambda entry: f"{entry.known_as}-{entry.sibling}")
def test_conditions_count(entry):
    config = tiny(entry.known_as.removesuffix("ForCausalLM").lower()).config.to_dict()
    for name, value in entry.when.items():
        assert list(siblings_of(entry.known_as, {**config, name: not value})) == []
    assert list(siblings_of("NoSuchModel", config)) == []
    (((_, values)),) = siblings_of(entry.known_as, config)
    assert values["hidden_size"] == config["hidden_size"]
    assert (values["architectures"], values["model_type"]) != (config["architectures"], config["model_type"])
