"""Rows of token ids: grouped into batches by length, padded, continued greedily."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group row indices, longest first, into batches of at most `budget` tokens with padding.

    A row longer than the budget makes a batch of its own.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids and mask (True where a token is), both `rows x longest row`."""
    width = max(map(len, rows))
    fill = [[pad] * (width - len(row)) for row in rows]
    pairs = zip(rows, fill, strict=True)
    ids = torch.tensor([[*f, *row] if left else [*row, *f] for row, f in pairs])
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    at = torch.arange(width)
    return ids, (at >= width - lengths) if left else (at < lengths)


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward pass has that argument."""
    return argument in inspect.signature(model.forward).parameters


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    count: int,
    finished: Callable[[list[int]], bool],
) -> list[list[int]] | None:
    """Up to `count` most probable next tokens of each row, with a key-value cache.

    Rows are padded on the left, and masked only if their lengths differ. A row stops when
    `finished(its new tokens)`; the batch goes on until all rows have stopped. As fast as
    transformers' `generate`, and deaf to a folder's generation settings (sampling, penalties).

    Returns:
        The new tokens of each row, or None if a logit was not a finite number.
    """
    ids, mask = (t.to(model.device) for t in padded(rows, 0, left=True))
    ragged = not bool(mask.all())
    options: dict[str, Tensor | int] = {}
    if accepts(model, "logits_to_keep"):
        options["logits_to_keep"] = 1
    new: list[list[int]] = [[] for _ in rows]
    running = list(range(len(rows)))
    cache, best = None, []
    for _ in range(count):
        if ragged:
            options |= {"attention_mask": mask.long()}
            if accepts(model, "position_ids"):
                positions = (mask.cumsum(1) - 1).clamp_min(0)
                options |= {"position_ids": positions[:, -ids.shape[1] :]}
        out = model(ids, past_key_values=cache, use_cache=True, **options)
        cache = out.past_key_values
        logit, chosen = out.logits[:, -1].max(1)
        best.append(logit.isfinite().all())
        tokens = chosen.tolist()
        for i in running:
            new[i].append(tokens[i])
        running = [i for i in running if not finished(new[i])]
        if not running:
            break
        ids = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
    return new if bool(torch.stack(best).all()) else None
