"""Texts to judge a model on: the literature's corpora by name, and files of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from graphprune.engine.documents import rows_of
from graphprune.errors import DataError, MissingExtraError
from graphprune.schema import Data


class Corpus(NamedTuple):
    """A data set on the hub, and what stands between its rows when they become one text."""

    dataset: str
    subset: str
    split: str
    field: str
    between: str = "\n\n"


CORPORA: Mapping[str, Corpus] = {
    "wikitext2": Corpus("Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text"),
    "ptb": Corpus("ptb-text-only/ptb_text_only", "penn_treebank", "validation", "sentence"),
}
"""What pruning papers evaluate on: the test rows of WikiText-2 raw and the validation sentences of PTB, joined by blank
lines as LLM-Pruner (https://arxiv.org/abs/2305.11627) joins them."""


def read_corpus(name: str) -> str:
    """The text that ``name`` stands for.

    Args:
        name: a corpus of :data:`CORPORA`; a UTF-8 text file; or a ``.jsonl`` file, whose rows (field ``text``) are
            joined by blank lines like those of a corpus.

    Raises:
        DataError: if there is no such file or corpus, it cannot be reached, or it is malformed.
    """
    if name in CORPORA:
        return _download(name, CORPORA[name])
    path = Path(name)
    if not path.is_file():
        raise DataError(
            f"expected a text file or one of {', '.join(CORPORA)}, got '{name}': no such file "
            f"(relative paths start at the working directory {Path.cwd()})"
        )
    return "\n\n".join(rows_of(path))


def _download(name: str, corpus: Corpus) -> str:
    data = Data(dataset=corpus.dataset, subset=corpus.subset, split=corpus.split, field=corpus.field)
    try:
        return corpus.between.join(rows_of(data))
    except (DataError, MissingExtraError):
        raise
    except Exception as error:  # offline, every layer below raises something else
        raise DataError(
            f"corpus '{name}' (data set '{corpus.dataset}', {corpus.subset}, {corpus.split}) cannot be reached: "
            f"{' '.join(str(error).split())[:200]}. Give its rows as a local .jsonl file with the field 'text', "
            "or any text file."
        ) from error
