"""PostHocDebias: yes/no answers, divided by what the model answers without the image."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import PostHocDebias, answer
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES, truth
from sightline.vision.images import open_image

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
image = open_image(IMAGES / "corner.png")
debias = PostHocDebias(processor=processor)

print(answer(model, processor, image, "Describe the image."))
print("truth:", ", ".join(sorted(truth(image))))
for name in ("a bus", "a chair", "an orange", "a fork"):
    question = f"Is there {name} in the image?"
    inputs = prompt_inputs(model, processor, image, question)
    shares = zip(debias.labels, debias.probabilities(model, **inputs)[0].tolist(), strict=True)
    print(
        f"{question:32} plain: {answer(model, processor, image, question):4}",
        "debiased:",
        answer(model, processor, image, question, debias),
        ", ".join(f"{label} {share:.0%}" for label, share in shares),
    )
