"""Image-free prompts that earlier calls have read: last logits, keys and values."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sightline.engine.kv_cache import begin
from sightline.model_protocol import Model

if TYPE_CHECKING:
    from sightline.engine.branch import Branch
from sightline.weak_lru import Memory


class PromptCache(Memory[tuple, tuple[Tensor, ...]]):
    """Prompts without images as a model read them: logits of the last position, then keys and
    values of each layer, one row of each.

    Entries are found by text, padding, positions and types.
    """

    def read(
        self, model: Model, branch: "Branch", cache: Any, read: Callable[["Branch"], Any]
    ) -> Tensor:
        """Fills an empty cache of keys alone with a branch's rows; logits `[B, 1, V]`.

        Args:
            read: Reads rows that are not known: `(branch) -> (logits [B, 1, V], cache)`.
        """

        texts = branch.texts()
        row_of = {text: row for row, text in enumerate(texts)}

        def found(missing: list[tuple]) -> Iterable[tuple[Tensor, ...]]:
            rows = [row_of[text] for text in missing]
            index = torch.tensor(rows, device=branch.input_ids.device)
            logits, made = read(branch.rows(index, model.config))
            tensors = [logits, *(x for layer in made.layers for x in (layer.keys, layer.values))]
            for row in range(len(missing)):
                yield tuple(x[row : row + 1].clone() for x in tensors)

        rows = self.recall(model, texts, found)
        logits, *layers = (torch.cat(values) for values in zip(*rows, strict=True))
        begin(cache, list(zip(layers[::2], layers[1::2], strict=True)))
        return logits
