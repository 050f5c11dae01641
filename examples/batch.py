"""Several images with questions of different lengths in one batch, in three modes."""

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VCD
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
questions = ["Describe the image.", "Is there a dog in the image?", "Is there a fork in the image?"]
paths = sorted(IMAGES.glob("*.png"))[: len(questions)]

conversations = [
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    for question in questions
]
texts = processor.apply_chat_template(conversations, add_generation_prompt=True, tokenize=False)
images = [[Image.open(path).convert("RGB")] for path in paths]
inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")

modes = {
    "greedy": {},
    "sampling": dict(do_sample=True, temperature=0.7),
    "3 beams": dict(num_beams=3),
}
for name, mode in modes.items():
    sequences = model.generate(**inputs, max_new_tokens=40, custom_generate=VCD(), **mode)
    new = sequences[:, inputs["input_ids"].shape[1] :]
    print(name)
    texts = processor.batch_decode(new, skip_special_tokens=True)
    for question, text in zip(questions, texts, strict=True):
        print(f"  {question} -> {text.strip()}")
