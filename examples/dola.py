"""DoLa: which layers it may contrast with, on two images at once; each row has its own layer."""

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline import DoLa, answer
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
paths = [IMAGES / "corner.png", IMAGES / "yard.png"]
content = [{"type": "image"}, {"type": "text", "text": "Describe the image."}]
prompt = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
)
images = [[Image.open(path).convert("RGB")] for path in paths]
inputs = processor(images=images, text=[prompt] * 2, padding=True, return_tensors="pt")

decoders = {
    "plain": None,
    "low": DoLa(),  # every other layer of the first half, as the paper takes for whole sentences
    "high": DoLa(layers="high"),
    "layer 1 alone": DoLa(layers=(1,)),
    "all but the last": DoLa(layers=tuple(range(model.config.text_config.num_hidden_layers))),
    "low, as their code": DoLa(divergence="code"),
}
for name, decoder in decoders.items():
    sequences = model.generate(**inputs, max_new_tokens=40, custom_generate=decoder)
    new = sequences[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    alone = [answer(model, processor, path, "Describe the image.", decoder) for path in paths]
    print(f"{name} (one by one the same: {texts == alone})")
    print("\n".join(f"  {path.stem}: {text}" for path, text in zip(paths, texts, strict=True)))
