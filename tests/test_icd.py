"""ICD and M3ID against full forwards of prompts that the processor builds."""

import pytest
from chat_answers import check_scores, contrastive, growing

from sightline import ICD, M3ID
from sightline.decoders.icd import INSTRUCTIONS
from sightline.setting_text import STAND_IN


@pytest.mark.parametrize("instruction", [None, "confused", "Lie about it."])
def test_icd_subtracts_what_is_said_after_an_instruction_that_disturbs(vlm, instruction):
    words = INSTRUCTIONS.get(instruction or "careless", instruction)

    def prompts(row, question, image):
        return [
            (vlm.chat(question), [image]),
            (vlm.chat(f"{words} {question}"), [image]),
        ]

    given = {} if instruction is None else dict(instruction=instruction)
    decoder = ICD(processor=vlm.processor, alpha=1.5, beta=0.05, **given)
    check_scores(vlm, decoder, prompts, contrastive(1.5, 0.05))


def test_icd_offers_what_the_authors_try():
    assert len(INSTRUCTIONS) == 6 and len(set(INSTRUCTIONS.values())) == 6
    for name in INSTRUCTIONS:
        ICD(processor=STAND_IN, instruction=name)
    assert (ICD(processor=STAND_IN).alpha, ICD(processor=STAND_IN).beta) == (1.0, 0.1)
    for wrong in (" ", "confussed", "detecter"):
        with pytest.raises(ValueError, match="words that disturb, or one of careless, detector"):
            ICD(processor=STAND_IN, instruction=wrong)


def test_m3id_adds_what_the_image_adds_the_more_the_later(vlm):
    def prompts(row, question, image):
        return [(vlm.chat(question), [image]), (vlm.chat([question]), [])]

    decoder = M3ID(rate=0.4, beta=0.05)
    check_scores(vlm, decoder, prompts, growing(0.4, 0.05), steps=9)
