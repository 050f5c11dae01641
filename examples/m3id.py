"""M3ID: the image counts for more with every token, and how much more."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import M3ID, VDD
from sightline.chat import prompt_inputs, reply
from sightline.lab import CHECKPOINT, IMAGES, mentioned, truth

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = IMAGES / "corner.png"
inputs = prompt_inputs(model, processor, image, "Describe the image.")

decoders = {
    "plain": None,
    "M3ID": M3ID(),  # made for long captions: the lab's have a dozen tokens
    "M3ID, faster": M3ID(rate=0.1),
    "M3ID, faster, capped": M3ID(rate=0.1, cap=0.5),
    "VDD": VDD(),  # the same comparison at one strength throughout
}
for name, decoder in decoders.items():
    text = reply(model, processor, inputs, decoder)
    invented = sorted(set(mentioned(text)) - truth(image)) or ["nothing"]
    print(f"{name}: {text} Invented: {', '.join(invented)}.")
    if isinstance(decoder, M3ID):
        rule = decoder.recipe().rule
        grown = ", ".join(f"{rule.strength(step):.2f}" for step in (0, 4, 8, 12, 50))
        print(f"  strength at tokens 0, 4, 8, 12, 50: {grown}")
