"""AGLA: a second look at what the question is about, and a matcher that tells where that is."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import AGLA, SelfMatcher, answer
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = IMAGES / "corner.png"


class Telling(SelfMatcher):
    """Says where in the image it finds what the question is about.

    `BlipMatcher(model, processor)`, the published one, asks a second model instead.
    """

    def __call__(self, images, questions, attention_maps=()):
        relevances = super().__call__(images, questions, attention_maps)
        for relevance in relevances:
            row, column = divmod(int(relevance.values.argmax()), relevance.values.shape[1])
            print(f"  looks at ({column}, {row}) most, {relevance.masked:.0%} is blacked out")
        return relevances


for question in ("Is there an orange in the image?", "Describe the image."):
    print(question)
    print("  plain:", answer(model, processor, image, question))
    for masked in (0.15, 0.6, None):  # None: the more peaked the map the more
        decoder = AGLA(Telling(masked=masked), processor=processor)
        print("  AGLA: ", answer(model, processor, image, question, decoder))
