"""VDGD: the model describes the image first, and then says what the description supports."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VDGD, PrefixOnly, answer
from sightline.lab import CHECKPOINT, IMAGES, truth

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = IMAGES / "yard.png"

# The lab's model knows few words: it is asked in these. Others do with the defaults.
words = dict(processor=processor, request="Describe the image.", layout="continue", tokens=96)
decoders = {
    "plain": None,
    "description first": PrefixOnly(**words),  # nothing is ranked: what the longer prompt does
    "VDGD": VDGD(**words),
    "VDGD, alpha 0.01": VDGD(**words, alpha=0.01),  # more candidates, so support decides more
    "VDGD, half": VDGD(**words, mix=0.5),  # ours: the model's own ranking counts as much
}
print("truth:", ", ".join(sorted(truth(image))))
for question in ("Describe the image.", "Is there a spoon in the image?"):
    print(question)
    for name, decoder in decoders.items():
        print(f"  {name:18} {answer(model, processor, image, question, decoder)}")
