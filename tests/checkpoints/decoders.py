"""Every decoder beside a checkpoint's own processor and template."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from conformance import clause, is_refusal

from sightline import DAMRO, VDD, answer
from sightline.decoders import DECODERS

from .loading import load, random_image

QUESTION = "Is there a cup in the image?"
SMALL = {  # for models of three layers, and answers that are read by nobody
    "carve": {"tokens": 3},
    "mvp": {"tokens": 3, "caption_tokens": 4},
    "sid": {"start": 1},
    "vdgd": {"tokens": 3},
}


def decoders(processor: Any) -> dict[str, Any]:
    """By name, each with the processor if it takes one."""
    made = {"damro norm": DAMRO(score="norm"), "vdd unk": VDD(variant="unk", processor=processor)}
    for name, kind in DECODERS.items():
        takes = any(field.name == "processor" for field in fields(kind))
        given = {"processor": processor} if takes else {}
        made[name] = kind(**given, **SMALL.get(name, {}))
    return dict(sorted(made.items()))


def answers(name: str) -> Mapping[str, str]:
    """By decoder, "" if it answers a question about an image, or why it does not."""
    checkpoint = load(name)
    template = checkpoint.processor.chat_template or ""
    # A thought that is open would be taken for the answer, which some decoders refuse.
    arguments = {"enable_thinking": False} if "enable_thinking" in template else None
    found = {}
    for method, decoder in decoders(checkpoint.processor).items():
        try:
            answer(
                checkpoint.model,
                checkpoint.processor,
                random_image(200, 120),
                QUESTION,
                decoder,
                chat_template_kwargs=arguments,
                max_new_tokens=2,
            )
            found[method] = ""
        except Exception as error:
            kind = "refused" if is_refusal(error, "greedy") else f"FAILS: {type(error).__name__}"
            found[method] = f"{kind}: {clause(error)}"
    return found
