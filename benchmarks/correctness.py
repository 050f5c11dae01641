"""Whether a decoder's logits are right on this device, asked before it is timed.

Two independent computations: plain forwards of the model for an expert whose attention nothing
edits, and the torch reference of edited attention in place of the kernel for every branch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from subjects import Subject

from sightline.attention import hook, reference

STEPS = 2  # tokens whose logits are compared: one of the prefill, one of a decode step
# Largest distance of a row's logits from the expected ones, relative to their length. Both sides
# round differently in each layer; of a wrong token or position the distance is about 1.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Forward:
    """One of two forwards in turn: its latest logits `[B, V]`, and what its next one needs.

    Args:
        offset: `[B, 1]`, from a token's place to its position, where a model has them differ
            (M-RoPE); None: they are the same.
    """

    model: Any
    logits: torch.Tensor
    cache: Any
    mask: torch.Tensor
    offset: torch.Tensor | None

    @classmethod
    def start(cls, model: Any, inputs: dict[str, Any]) -> "Forward":
        # Qwen leaves the offset of its latest prompt with images on the model.
        if hasattr(model.base_model, "rope_deltas"):
            model.base_model.rope_deltas = None
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        offset = getattr(model.base_model, "rope_deltas", None)
        mask = inputs["attention_mask"]
        return cls(model, out.logits[:, -1].float(), out.past_key_values, mask, offset)

    def next(self, token: torch.Tensor) -> "Forward":
        mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        inputs = {"attention_mask": mask}
        if hasattr(self.model.base_model, "rope_deltas"):
            places = mask.sum(dim=1, keepdim=True) - 1
            positions = places if self.offset is None else places + self.offset
            inputs["position_ids"] = positions.expand(3, -1, -1)
        out = self.model(input_ids=token, past_key_values=self.cache, use_cache=True, **inputs)
        logits = out.logits[:, -1].float()
        return Forward(self.model, logits, out.past_key_values, mask, self.offset)


@torch.no_grad()
def wrong(
    subject: Subject, decoder: Any, run: Callable[..., Any], eager: Callable[..., Any], tokens: int
) -> str:
    """What is wrong with the first logits of a greedy answer; empty if nothing is.

    Args:
        decoder: None for plain `generate`.
        run: Answers as many tokens as it is given, with further keywords of `generate`.
        eager: The same with a dynamic cache, not compiled.
        tokens: Of a timed answer, so that a compiled one is compiled for that length.
    """
    found, answer = branch_logits(run, max(tokens, STEPS))
    if decoder is not None and decoder.recipe().gate is not None:
        found = [step[:1] for step in found]  # where its gate is closed, an amateur has no logits
    limit = TOLERANCE[subject.model.dtype]
    problems = []
    if decoder is None or not decoder.recipe().attention_edits:
        expected = plain_logits(subject, answer)
        distance = farthest([step[:1] for step in found], expected)
        if not distance <= limit:
            problems.append(f"the expert is {distance:.2g} off plain forwards")
    if decoder is not None and hook.attend_for(subject.model.device) is not reference.attend:
        with patch.object(hook, "attend_for", lambda device: reference.attend):
            expected, other = branch_logits(eager, STEPS)
        steps = 1 + int(torch.equal(answer[:, 0], other[:, 0]))  # the same token, the same step
        expected = [step[: len(found[0])] for step in expected]
        distance = farthest(found[:steps], expected[:steps])
        if not distance <= limit:
            problems.append(f"branches are {distance:.2g} off the reference of edited attention")
    return "; ".join(f"{problem}, allowed {limit:.2g}" for problem in problems)


def branch_logits(run: Callable[..., Any], tokens: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of the first steps every branch's logits `[N, B, V]` float32; the answer `[B, tokens]`."""
    out = run(tokens, output_logits=True, return_dict_in_generate=True)
    logits = out.get("branch_logits") or [expert[None] for expert in out.logits]
    return [step.float() for step in logits[:STEPS]], out.sequences[:, -tokens:]


def plain_logits(subject: Subject, answer: torch.Tensor) -> list[torch.Tensor]:
    """The model's own logits `[1, B, V]` of each step, by forwards without `generate`."""
    forward = Forward.start(subject.model, subject.inputs)
    steps = [forward.logits]
    for token in answer[:, : STEPS - 1].T:
        forward = forward.next(token[:, None])
        steps.append(forward.logits)
    return [step[None] for step in steps]


def farthest(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest distance of a vector from the expected one, relative to its length.

    NaN if any is: torch's `max` keeps it, Python's may lose it.
    """
    distances = [
        (one - other).norm(dim=-1) / other.norm(dim=-1).clamp_min(1e-12)
        for one, other in zip(found, expected, strict=True)
    ]
    return float(torch.cat([each.flatten() for each in distances]).max())
