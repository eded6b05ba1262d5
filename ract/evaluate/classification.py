"""How well a classifier does: accuracy, macro-F1, calibration; and the classical baseline that it must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ract.data.batches import by_length, padded
from ract.errors import BadInput
from ract.evaluate.loading import check_vocabulary

Progress = Callable[[str, int, int], None]
Labels = Sequence[int]
_ECE_BINS = 15
_BASELINE_C = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def evaluate_classifier(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    labels: Labels,
    *,
    max_tokens: int | None = None,
    batch_size: int = 32,
    domains: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure *model* on *texts*, whose classes are *labels* (numbers of the model's ``id2label``).

    Returns what :func:`figures` does, and how many texts were ``truncated`` to *max_tokens* tokens (None: what the
    model can look at). With *domains* (one name a text) the same by domain.
    """
    probabilities, truncated = predict(model, tokenizer, texts, max_tokens=max_tokens, batch_size=batch_size,
                                       progress=progress)  # fmt: skip
    names = [str(model.config.id2label[i]) for i in range(probabilities.shape[1])]  # type: ignore[union-attr,index]
    return figures(probabilities, labels, names, domains) | {"truncated": int(truncated.sum())}


def predict(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The probability of every class for every text, ``(texts, classes)``, and which texts were cut.

    Texts of like length share a batch, so that little is padding; the order of the result is that of *texts*.
    """
    limit = max_tokens or positions(model, tokenizer)
    encoded = [encode(tokenizer, text, limit) for text in texts]
    rows = [numbers for numbers, _ in encoded]
    found = probabilities_of(model, tokenizer, rows, batch_size=batch_size, progress=progress)
    return found, np.array([cut for _, cut in encoded], dtype=bool)


@torch.inference_mode()
def probabilities_of(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> npt.NDArray[np.float64]:
    """The probability of every class for texts given as token numbers: ``(texts, classes)``, in the order of *rows*."""
    padding = getattr(model.config, "pad_token_id", None)  # a decoder finds a text's end, RoBERTa its positions by it
    if padding is None or tokenizer.pad_token_id is None:
        batch_size = 1  # without padding only texts of equal length could share a batch
    found: list[npt.NDArray[np.float64]] = [np.zeros(0)] * len(rows)
    model.eval()
    device = next(model.parameters()).device
    done = 0
    for chosen in by_length(rows, batch_size):
        inputs, mask = map(torch.from_numpy, padded([rows[i] for i in chosen], padding or 0))
        check_vocabulary(int(inputs.max()), model, tokenizer.name_or_path)
        logits = model(input_ids=inputs.to(device), attention_mask=mask.to(device)).logits.double()
        for i, row in zip(chosen, torch.softmax(logits, -1).cpu().numpy(), strict=True):
            found[i] = row
        done += len(chosen)
        if progress:
            progress("classify", done, len(rows))
    return np.stack(found)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> tuple[list[int], bool]:
    """The token numbers of *text*, framed as the model reads it, at most *limit*; and whether it was cut.

    As in training, a text that spells out a special token, such as [SEP], is text like any other.
    """
    encoded = tokenizer(
        text,
        truncation=limit is not None,
        max_length=limit,
        return_overflowing_tokens=limit is not None,
        split_special_tokens=True,
        verbose=False,  # it remarks on every text that is longer than the model can look at
    )
    numbers = encoded["input_ids"]
    if limit is None:
        return numbers, False
    return numbers[0], len(numbers) > 1


def positions(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many tokens *model* can look at, or None where neither it nor its tokenizer sets a limit."""
    own = getattr(model.config, "max_position_embeddings", None)
    if isinstance(own, int) and getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert"):
        own -= 2  # their first position has the number after the padding's
    limits = [own, tokenizer.model_max_length]
    return min((limit for limit in limits if isinstance(limit, int) and 0 < limit < 10**9), default=None)


def figures(
    probabilities: npt.NDArray[np.float64],
    labels: Labels,
    names: Sequence[str],
    domains: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What *probabilities* ``(texts, classes)`` are worth against *labels*; *names* are the classes'.

    ``accuracy``, ``macro_f1`` (over the classes that occur in either), ``nats`` (mean cross-entropy), ``ece`` (expected
    calibration error in 15 bins, Guo et al., 1706.04599), ``confusion`` (rows: true, columns: predicted), ``per_class``
    and ``examples``; with *domains*, ``by_domain``.
    """
    from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

    if not len(labels):
        raise BadInput("there are no texts to evaluate on", "Give more held-out data")
    true = np.asarray(labels)
    predicted = probabilities.argmax(1)
    numbers = list(range(len(names)))
    parts = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0.0)
    right = np.take_along_axis(probabilities, true[:, None], 1)[:, 0]
    found: dict[str, Any] = {
        "accuracy": float((predicted == true).mean()),
        "macro_f1": float(f1_score(true, predicted, average="macro", zero_division=0.0)),
        "nats": float(-np.log(np.maximum(right, 1e-12)).mean()),
        "ece": calibration_error(probabilities, true),
        "confusion": confusion_matrix(true, predicted, labels=numbers).tolist(),
        "per_class": [
            {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(n)}
            for name, p, r, f, n in zip(names, *parts, strict=True)
        ],
        "examples": len(true),
    }
    if domains is not None:
        found["by_domain"] = {}
        for domain in dict.fromkeys(domains):
            own = np.array([one == domain for one in domains])
            part = figures(probabilities[own], true[own].tolist(), names)
            found["by_domain"][domain] = {key: part[key] for key in ("accuracy", "macro_f1", "examples")}
    return found


def calibration_error(probabilities: npt.NDArray[np.float64], true: npt.NDArray[np.int64]) -> float:
    """Expected calibration error: |confidence − accuracy| in 15 equal bins of confidence, weighted by their texts."""
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    bins = np.minimum((confidence * _ECE_BINS).astype(int), _ECE_BINS - 1)
    gaps = 0.0
    for number in np.unique(bins):
        own = bins == number
        gaps += own.sum() * abs(confidence[own].mean() - (predicted[own] == true[own]).mean())
    return float(gaps / len(true))


def tfidf_baseline(
    train: tuple[Sequence[str], Labels],
    valid: tuple[Sequence[str], Labels],
    test: tuple[Sequence[str], Labels],
    names: Sequence[str],
    *,
    domains: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """TF-IDF with logistic regression (scikit-learn), tuned on *valid*, measured on *test*: as :func:`figures`.

    Tried: words (1–2-grams), characters within words (1–4-grams) and, for text without spaces, characters (1–3-grams);
    each with six strengths of regularisation. ``chosen`` says which was best, ``tried`` what each gave on *valid*.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    spaced = sum(text.count(" ") for text in train[0][:1000]) > 0.05 * sum(map(len, train[0][:1000]))
    kinds: dict[str, dict[str, Any]] = (
        {"words": {"ngram_range": (1, 2)}, "characters": {"analyzer": "char_wb", "ngram_range": (1, 4)}}
        if spaced
        else {"characters": {"analyzer": "char", "ngram_range": (1, 3)}}
    )
    best: tuple[float, Any, Any] | None = None
    tried: dict[str, float] = {}
    done, total = 0, len(kinds) * len(_BASELINE_C)
    for kind, options in kinds.items():
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, **options)
        try:
            features = vectorizer.fit_transform(train[0])
        except ValueError as error:  # no term is left: the texts are too few or too short
            raise BadInput(
                f"the TF-IDF baseline finds no terms in the train texts ({error})", "Give more text"
            ) from error
        held_out = vectorizer.transform(valid[0])
        for strength in _BASELINE_C:
            model = LogisticRegression(C=strength, max_iter=1000).fit(features, train[1])
            score = float(model.score(held_out, valid[1]))
            tried[f"{kind}, C = {strength:g}"] = score
            if best is None or score > best[0]:
                best = (score, vectorizer, model)
                chosen = f"{kind}, C = {strength:g}"
            done += 1
            if progress:
                progress("TF-IDF baseline", done, total)
    assert best is not None
    _, vectorizer, model = best
    some = model.predict_proba(vectorizer.transform(test[0]))
    probabilities = np.zeros((len(test[0]), len(names)))
    probabilities[:, model.classes_] = some
    return figures(probabilities, test[1], names, domains) | {"chosen": chosen, "tried": tried}
