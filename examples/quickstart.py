"""One image, one question, without and with a decoder."""

from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import VDD, answer
from sightline.lab import CHECKPOINT, IMAGES, truth

checkpoint = CHECKPOINT  # or any image-text-to-text model: "llava-hf/llava-1.5-7b-hf"
model = AutoModelForImageTextToText.from_pretrained(checkpoint)
processor = AutoProcessor.from_pretrained(checkpoint)
image = IMAGES / "corner.png"

print("plain:", answer(model, processor, image, "Describe the image."))
print("VDD:  ", answer(model, processor, image, "Describe the image.", decoder=VDD()))
print("truth:", ", ".join(sorted(truth(image))))

# The same without `answer`: one argument of the stock generate.
content = [{"type": "image", "path": str(image)}, {"type": "text", "text": "Describe the image."}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
sequences = model.generate(**inputs, max_new_tokens=64, custom_generate=VDD(alpha=1.0, beta=0.1))
new = sequences[:, inputs["input_ids"].shape[1] :]
print("again:", processor.batch_decode(new, skip_special_tokens=True)[0].strip())
