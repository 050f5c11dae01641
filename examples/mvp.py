"""MVP: captions from several points of view vote on a yes/no question."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import MVP, answer
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES, truth
from sightline.vision.images import open_image

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = open_image(IMAGES / "corner.png")

# The lab's model knows few words: it is asked in these. Others do with the defaults.
views = ("Describe the image.", "Describe this picture.", "What is in the image?")
words = dict(template="{caption} {question}", caption_tokens=96, tokens=8)
three = MVP(processor=processor, requests=views, **words)
one = MVP(processor=processor, requests=views[:1], weights=(1.0,), **words)

for view in views:
    print(f"{view:24}", answer(model, processor, image, view))
print("truth:", ", ".join(sorted(truth(image))))
for name in ("a bus", "a chair", "an orange", "a fork"):
    question = f"Is there {name} in the image?"
    print(f"{question:32} plain: {answer(model, processor, image, question):4}", end="")
    inputs = prompt_inputs(model, processor, image, question)
    for label, decoder in (("one view", one), ("three", three)):
        # Captions do not depend on the question: the second one does not pay for them again.
        votes = decoder.probabilities(model, images=image, **inputs)[0]
        shares = zip(decoder.labels, votes.tolist(), strict=True)
        print(f" {label}:", ", ".join(f"{said} {share:.0%}" for said, share in shares), end="")
    print(" MVP says", answer(model, processor, image, question, three))
