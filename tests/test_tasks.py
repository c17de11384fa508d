"""Which auto class a model belongs to is read off its config."""

import pytest
import transformers as tf
from transformers import AutoConfig

from graphprune.errors import CheckpointError
from graphprune.tasks import TASKS, auto_class, check_task, loader_name, predicts_next_token, task_of, tasks_for
from tests.decoders import tiny
from tests.encoders import image_classifier, seeing_decoder, text_classifier, translator


def test_every_task_has_its_auto_class():
    assert {task: auto_class(task).__name__ for task in TASKS} == dict(TASKS)


@pytest.mark.parametrize(
    ("build", "task"),
    [
        (lambda: tiny("llama"), "causal-lm"),
        (text_classifier, "sequence-classification"),
        (image_classifier, "image-classification"),
        (translator, "seq2seq-lm"),
        (seeing_decoder, "image-text-to-text"),
    ],
)
def test_the_class_that_a_config_names_decides(build, task, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert task_of(config) == task
    assert loader_name(type(model).__name__, config.model_type) == TASKS[task]
    assert type(auto_class(task).from_config(config)) is type(model)


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (tf.LlamaConfig(architectures=["LlamaForSequenceClassification"]), "sequence-classification"),
        (tf.LlamaConfig(architectures=["LlamaModel"]), "feature-extraction"),
        (tf.BertConfig(architectures=["BertForMaskedLM"]), "masked-lm"),
        (tf.LlamaConfig(), "causal-lm"),
        (tf.BertConfig(), "causal-lm"),
        (tf.GPT2Config(architectures=["SomethingOfMyOwn"]), "causal-lm"),
        (tf.LlamaConfig(architectures=["Mine"], auto_map={"AutoModelForMaskedLM": "mine.Mine"}), "masked-lm"),
    ],
)
def test_other_heads_and_no_head_at_all(config, task):
    assert task_of(config) == task


def test_a_config_that_does_not_say_is_refused_with_what_it_could_be():
    with pytest.raises(CheckpointError, match=r"names no class.* with --task .* made for: image-classification, feat"):
        task_of(tf.ViTConfig())
    with pytest.raises(CheckpointError, match="names the class 'ViTForMaskedImageModeling', which no auto class here"):
        task_of(tf.ViTConfig(architectures=["ViTForMaskedImageModeling"]))
    assert tasks_for(tf.ViTConfig()) == ["image-classification", "feature-extraction"]


def test_an_unknown_task_is_refused_with_the_nearest():
    assert check_task("masked-lm") == "masked-lm"
    with pytest.raises(
        CheckpointError, match=r"expected one of causal-lm, .* got 'causal'. Did you mean 'causal-lm'\?"
    ):
        check_task("causal")


def test_a_class_without_an_auto_class_loads_by_its_own_name():
    assert loader_name("BertForPreTraining", "bert") == "BertForPreTraining"
    assert loader_name("Mine", "mine") == "AutoModelForCausalLM"


def test_who_predicts_the_next_token():
    assert predicts_next_token(tiny("llama")) and predicts_next_token(seeing_decoder())
    assert not any(predicts_next_token(build()) for build in (text_classifier, image_classifier, translator))
    assert predicts_next_token(object())
