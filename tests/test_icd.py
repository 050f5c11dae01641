"""ICD and M3ID against full forwards of prompts that the processor builds."""

import pytest
from views import check_scores, contrastive, growing

from sightline import ICD, M3ID
from sightline.decoders.icd import INSTRUCTIONS
from sightline.specs import STAND_IN


@pytest.mark.parametrize("instruction", [None, "confused", "Lie about it."])
def test_icd_takes_off_what_is_said_after_an_instruction_that_disturbs(talker, instruction):
    words = INSTRUCTIONS.get(instruction or "careless", instruction)

    def prompts(row, question, picture):
        return [
            (talker.chat(question), [picture]),
            (talker.chat(f"{words} {question}"), [picture]),
        ]

    given = {} if instruction is None else dict(instruction=instruction)
    decoder = ICD(processor=talker.processor, alpha=1.5, beta=0.05, **given)
    check_scores(talker, decoder, prompts, contrastive(1.5, 0.05))


def test_icd_offers_what_the_authors_try():
    assert len(INSTRUCTIONS) == 6 and len(set(INSTRUCTIONS.values())) == 6
    for name in INSTRUCTIONS:
        ICD(processor=STAND_IN, instruction=name)
    assert (ICD(processor=STAND_IN).alpha, ICD(processor=STAND_IN).beta) == (1.0, 0.1)
    for wrong in (" ", "confussed", "detecter"):
        with pytest.raises(ValueError, match="words that disturb, or one of careless, detector"):
            ICD(processor=STAND_IN, instruction=wrong)


def test_m3id_adds_what_the_picture_adds_the_more_the_later(talker):
    def prompts(row, question, picture):
        return [(talker.chat(question), [picture]), (talker.chat([question]), [])]

    decoder = M3ID(rate=0.4, beta=0.05)
    check_scores(talker, decoder, prompts, growing(0.4, 0.05), steps=9)
