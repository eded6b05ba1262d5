"""The tokens of a model by number, for formats that keep the vocabulary themselves."""

from __future__ import annotations

from ract.errors import BadInput
from ract.export.source import Source


def token_names(source: Source) -> list[str | None]:
    """The token of every row of the embeddings; None for a row that the tokenizer does not use.

    Raises BadInput when the tokenizer has numbers that the embeddings have not.
    """
    rows = source.model.get_input_embeddings().weight.shape[0]
    known = {number: token for token, number in source.tokenizer.get_vocab().items()}
    if max(known) >= rows:
        raise BadInput(
            f"the tokenizer of {source.directory} has more tokens ({max(known) + 1}) than the model ({rows})",
            "Use the tokenizer that the model was trained with",
        )
    return [known.get(number) for number in range(rows)]
