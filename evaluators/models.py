"""A live model: opened once, rewritten in place for every candidate, asked for scores.

Only inputs are kept between calls (token ids by text), never outputs: the weights change under the
model. Items are batched by length and answers come back in the order of the questions.

What repeats: the same questions in the same call give the same bits, run after run, on one machine
with one number of threads. Asked in other company an item is padded differently and its last bits
may move (about 1e-6 relative in float32), since matrix kernels sum in an order set by the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluators.checkpoints import Checkpoint, ModelError, open_checkpoint
from evaluators.decoding import accepts, batches, continue_greedily, padded
from evaluators.kinds import ModelKind
from evaluators.tokens import Row, Tokens

__all__ = ["Likelihood", "LiveModel", "ModelError", "open_model"]

BATCH_TOKENS = 2048
"""Tokens per forward pass, padding included; more is slower on a CPU, whose cache it outgrows."""

GENERATE_TOKENS = 8192
"""Tokens in the key-value cache while a batch is continued."""

LOGIT_BUDGET = 2**26
"""Logits per forward pass: a large vocabulary makes batches smaller (256 MiB in float32)."""

BATCH_IMAGES = 256


@dataclass(frozen=True)
class Likelihood:
    """How probable a continuation is.

    Attributes:
        nats: log-likelihood of the scored tokens, summed; at most 0.
        tokens: how many tokens were scored.
        greedy: whether every scored token is the most probable one at its place.
    """

    nats: float
    tokens: int
    greedy: bool


def open_model(folder: Path, dtype: str = "float32", device: str = "cpu") -> LiveModel:
    """Open a Hugging Face folder (safetensors, config, tokenizer) without network or remote code.

    Raises:
        ModelError: the folder is incomplete or broken, the architecture is unknown or has an
            encoder and a decoder, or a tensor of the checkpoint is not a tensor of the live model.
    """
    return LiveModel(open_checkpoint(Path(folder), dtype, device))


class LiveModel:
    """One model in memory whose weights are replaced in place.

    Attributes:
        tensors: live parameters and buffers under the checkpoint's own names; writing into them
            changes the model. A tied weight has the name (or names) that the checkpoint gives it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.tensors = checkpoint.tensors
        self._model = checkpoint.model
        self._kind = checkpoint.kind
        self._tokenizer = checkpoint.tokenizer

    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], batch_tokens: int = BATCH_TOKENS
    ) -> list[Likelihood]:
        """Log-likelihood of each continuation given its context.

        Context and continuation are tokenised as one text; a token that spans the border is
        scored. An empty context asks for the whole text: its first token is conditioned on BOS, or
        not scored if the tokenizer has none. A text too long for the model is cut on the left.

        Raises:
            ModelError: not a language model, or a continuation without tokens to score.
        """
        rows = self._tokens("language_model").rows(pairs)
        for row, (_, more) in zip(rows, pairs, strict=True):
            if row.scored < 1:
                raise ModelError(f"no token to score in {more[:60]!r}")
        budget = min(batch_tokens, LOGIT_BUDGET // self._model.config.vocab_size)
        answers: dict[int, Likelihood] = {}
        for batch in batches([len(row.ids) for row in rows], budget):
            scores = self._score([rows[i] for i in batch])
            for i, (nats, greedy) in zip(batch, scores, strict=True):
                answers[i] = Likelihood(nats, rows[i].scored, greedy)
        return [answers[i] for i in range(len(pairs))]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        batch_tokens: int = GENERATE_TOKENS,
    ) -> list[str]:
        """Greedy continuation of each prompt, cut before the first stop string or end token.

        A prompt that leaves no room for `max_new_tokens` loses tokens on the left.

        Raises:
            ModelError: not a language model, no room or no token to start from, or a logit that is
                not finite.
        """
        tokens = self._tokens("language_model")
        room = tokens.max_length - max_new_tokens
        if room < 1:
            asked = f"max_new_tokens = {max_new_tokens}"
            raise ModelError(f"{asked}, but the model holds {tokens.max_length} tokens in all")
        rows = tokens.prompts(prompts, room)
        if not all(rows):
            raise ModelError("empty prompt, and the tokenizer has no BOS token to start from")
        answers: dict[int, str] = {}
        for batch in batches([len(ids) + max_new_tokens for ids in rows], batch_tokens):
            texts = self._continue([rows[i] for i in batch], max_new_tokens, stop)
            answers.update(zip(batch, texts, strict=True))
        return [answers[i] for i in range(len(prompts))]

    def classify(
        self, inputs: Sequence[str] | NDArray[np.float32], batch_tokens: int = BATCH_TOKENS
    ) -> NDArray[np.float32]:
        """Logits `N x C` of N texts, or of pixels `N x C x H x W` (or `N x C·H·W`).

        Pixels go in as they are: scaling and normalising is the data's business. A text too long
        for the model is cut on the right.

        Raises:
            ModelError: the model is no classifier of such inputs.
        """
        if isinstance(inputs, np.ndarray):
            return self._classify_pixels(inputs)
        tokens = self._tokens("text_classifier")
        return self._per_text(tokens, inputs, batch_tokens, self._text_logits)

    def embed(self, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS) -> NDArray[np.float32]:
        """Last hidden states averaged over each text's tokens, `N x H`.

        Raises:
            ModelError: the model is no bare encoder.
        """
        return self._per_text(self._tokens("encoder"), texts, batch_tokens, self._mean_state)

    def _tokens(self, kind: ModelKind) -> Tokens:
        self._require(kind)
        if self._tokenizer is None:
            raise ModelError("the model folder has no tokenizer")
        return self._tokenizer

    def _require(self, kind: ModelKind) -> None:
        if self._kind != kind:
            found, needed = self._kind.replace("_", " "), kind.replace("_", " ")
            name = type(self._model).__name__
            raise ModelError(f"found {name} ({found}), the benchmark needs: {needed}")

    @torch.inference_mode()
    def _score(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """Sum each row's log-likelihood and say whether it is greedy.

        Rows are padded on the right: under a causal mask what follows never touches what precedes,
        so no attention mask is needed. Logits are computed from the first scored place on.
        """
        ids, mask = (t.to(self._model.device) for t in padded([row.ids for row in rows], 0))
        first = min(row.start for row in rows)
        logits = self._logits(ids[:, :-1], ids.shape[1] - first)
        starts = torch.tensor([row.start for row in rows], device=ids.device)[:, None]
        at = torch.arange(first, ids.shape[1], device=ids.device)
        scored = mask[:, first:] & (at >= starts)
        chosen, targets = logits[scored].float(), ids[:, first:][scored]
        nats = chosen.gather(1, targets[:, None])[:, 0] - chosen.logsumexp(1)
        borders = np.cumsum([row.scored for row in rows])[:-1]
        parts = np.split(nats.double().cpu().numpy(), borders)
        hits = np.split((chosen.argmax(1) == targets).cpu().numpy(), borders)
        return [(float(n.sum()), bool(h.all())) for n, h in zip(parts, hits, strict=True)]

    def _logits(self, ids: Tensor, last: int) -> Tensor:
        """Logits of the last places only, `rows x last x V`."""
        options = {"logits_to_keep": last} if accepts(self._model, "logits_to_keep") else {}
        logits: Tensor = self._model(ids, use_cache=False, **options).logits
        return logits[:, -last:]

    def _continue(self, rows: list[list[int]], count: int, stop: tuple[str, ...]) -> list[str]:
        tokens = self._tokens("language_model")
        # Only the tail can hold a new stop string; a character is at most four byte tokens.
        tail = 4 * max(map(len, stop), default=0) + 4

        def finished(new: list[int]) -> bool:
            ended = new[-1] in tokens.ends
            return ended or (bool(stop) and _cut(tokens.text(new[-tail:]), stop)[1])

        new = continue_greedily(self._model, rows, count, finished)
        if new is None:
            raise ModelError("a logit is not a finite number")
        return [_cut(tokens.text(ids), stop)[0] for ids in new]

    def _classify_pixels(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self._require("image_classifier")
        config = self._model.config
        shape = (len(pixels), config.num_channels, config.image_size, config.image_size)
        if pixels.size != np.prod(shape):
            found, wanted = "x".join(map(str, pixels.shape[1:])), "x".join(map(str, shape[1:]))
            raise ModelError(f"pixels of shape {found}, but the model reads {wanted}")
        images = torch.from_numpy(pixels.reshape(shape))
        with torch.inference_mode():
            firsts = range(0, len(images), BATCH_IMAGES)
            parts = [self._image_logits(images[i : i + BATCH_IMAGES]) for i in firsts]
        return np.concatenate(parts)

    def _image_logits(self, images: Tensor) -> NDArray[np.float32]:
        inputs = images.to(self._model.device, self._model.dtype)
        return _numpy(self._model(pixel_values=inputs).logits)

    @torch.inference_mode()
    def _per_text(
        self,
        tokens: Tokens,
        texts: Sequence[str],
        budget: int,
        ask: Callable[[Tensor, Tensor], Tensor],
    ) -> NDArray[np.float32]:
        """One row of numbers per text, asked for in padded batches."""
        rows = tokens.sequences(texts)
        answers: dict[int, NDArray[np.float32]] = {}
        for batch in batches([len(ids) for ids in rows], budget):
            ids, mask = padded([rows[i] for i in batch], tokens.pad)
            out = ask(ids.to(self._model.device), mask.to(self._model.device))
            answers.update(zip(batch, _numpy(out), strict=True))
        return np.stack([answers[i] for i in range(len(texts))])

    def _text_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self._model(ids, attention_mask=mask.long()).logits
        return logits

    def _mean_state(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self._model(ids, attention_mask=mask.long()).last_hidden_state.float()
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def _cut(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Cut a text before its earliest stop string, and say whether there was one."""
    places = [at for mark in stop if (at := text.find(mark)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
