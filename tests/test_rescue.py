"""Logits processors that ban all that a rule left. Single bans are in test_engine.py."""

import math

import pytest
import torch
from models import PROMPTS
from transformers import LogitsProcessor

from sightline import VDD


class NotTheBest(LogitsProcessor):
    """Bans whatever is best among the scores it gets, so that a lone candidate never stays."""

    def __call__(self, input_ids, scores):
        best = scores.argmax(dim=-1, keepdim=True)
        return scores.scatter(1, best, -math.inf)


@pytest.mark.parametrize("asked", [{}, dict(num_beams=2)], ids=["greedy", "beams"])
def test_the_cut_is_dropped_where_a_new_one_leaves_nothing(llava, asked):
    """beta = 1 leaves one token, which is banned; so is the one that a second cut leaves."""
    model, make_inputs = llava
    out = model.generate(
        **make_inputs(PROMPTS),
        custom_generate=VDD(alpha=1.0, beta=1.0),
        logits_processor=[NotTheBest()],
        max_new_tokens=1,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
        **asked,
    )
    expert, amateur = out.branch_logits[0]
    second = (2 * expert - amateur).topk(2, dim=-1).indices[:, 1]
    assert (out.scores[0].isfinite().sum(dim=-1) == expert.shape[-1] - 1).all()
    assert torch.equal(out.scores[0].argmax(dim=-1), second)
