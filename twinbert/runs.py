"""How texts become runs of a tower's graph: which are computed together, and in what arrays.

A graph takes texts *padded* to the longest of a run, or *packed* one behind another (`twinbert.model.packed`). Of what
is computed at most a tenth is padding.

Shapes: N texts, B of them in a run, L tokens, S tokens of a run in all, W places of a text, T trigrams of a token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from twinbert.tokenizer import TokenBatch

Ints = npt.NDArray[np.int64]
Run = tuple[Ints, dict[str, npt.NDArray[np.integer]]]
"""Which texts, and a graph's inputs."""

PADDED, PACKED = {"input_ids", "attention_mask"}, {"input_ids", "positions", "places", "mask", "slots"}
"""The inputs of either kind of graph, by which they are told apart."""

MAX_PADDING = 0.1  # share of the tokens that a call computes
MAX_RUN_TOKENS = 1024  # more is no faster on a CPU
# Another padded run costs as much as so many tokens (MiniLM on one thread: 2.5 ms a run and 0.21 ms a token).
RUN_TOKENS = 12
# Places of a packed text: its tokens, rounded up to a multiple. Only attention and pooling compute all of them, 4 % of
# what a text of one token costs at a width of 512; and most queries' lengths then share a run.
PLACES = 8


def padded(tokens: TokenBatch) -> Iterator[Run]:
    """Runs of texts of like length, shortest first."""
    for texts in padded_runs(tokens.lengths):
        input_ids, attention_mask_BL = tokens.take(texts).padded()
        yield texts, {"input_ids": input_ids, "attention_mask": attention_mask_BL}


def packed(tokens: TokenBatch) -> Iterator[Run]:
    """Runs of texts with as many places; within a run, in their order."""
    lengths_N = tokens.lengths
    places_N = -(-lengths_N // PLACES) * PLACES
    for width in np.unique(places_N).tolist():
        texts_N = np.flatnonzero(places_N == width)
        most = max(1, MAX_RUN_TOKENS // width)
        for start in range(0, len(texts_N), most):
            texts = texts_N[start : start + most]
            yield texts, _pack([tokens.ids[text] for text in texts], lengths_N[texts], width)


def padded_runs(lengths_N: Ints) -> list[Ints]:
    """Splits texts into runs: the positions of texts of like length, shortest first.

    Starts from texts of equal length, and joins the neighbours that it costs the least, while a run less saves more and
    the padding of all runs stays a tenth.
    """
    order_N = np.argsort(lengths_N, kind="stable")
    runs: list[Ints] = []
    lengths, starts, counts = np.unique(lengths_N[order_N], return_index=True, return_counts=True)
    for length, begin, count in zip(lengths.tolist(), starts.tolist(), counts.tolist(), strict=True):
        most = max(1, MAX_RUN_TOKENS // length)
        runs += [order_N[start : min(start + most, begin + count)] for start in range(begin, begin + count, most)]
    longest = [int(lengths_N[run[-1]]) for run in runs]
    tokens, padding = int(lengths_N.sum()), 0

    def joined(run: int) -> float:
        """Tokens of padding that joining a run with the next adds; infinite where they are too many for one."""
        fits = (len(runs[run]) + len(runs[run + 1])) * longest[run + 1] <= MAX_RUN_TOKENS
        return len(runs[run]) * (longest[run + 1] - longest[run]) if fits else np.inf

    while len(runs) > 1:
        run = min(range(len(runs) - 1), key=joined)
        added = joined(run)
        if added >= RUN_TOKENS or padding + added > MAX_PADDING * (tokens + padding + added):
            break
        padding += int(added)
        runs[run : run + 2] = [np.concatenate(runs[run : run + 2])]
        del longest[run]
    return runs


def _pack(ids: list[Ints], lengths_B: Ints, width: int) -> dict[str, npt.NDArray[np.integer]]:
    place_W = np.arange(width)
    real_BW = place_W < lengths_B[:, None]
    starts_B = np.cumsum(lengths_B) - lengths_B
    slots_S = np.flatnonzero(real_BW)
    if ids[0].ndim > 1:
        trigrams = max(word_LT.shape[1] for word_LT in ids)
        ids = [np.pad(word_LT, ((0, 0), (0, trigrams - word_LT.shape[1]))) for word_LT in ids]
    return {
        "input_ids": np.concatenate(ids),
        "positions": slots_S % width,
        "places": starts_B[:, None] + np.where(real_BW, place_W, 0),
        "mask": real_BW.astype(np.int32),
        "slots": slots_S,
    }
