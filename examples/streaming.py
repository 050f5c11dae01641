"""Tokens as they come. With a decoder the argument is `token_streamer`, not `streamer`:
transformers drops `streamer=` when `custom_generate` is a callable."""

from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

from sightline import VDD
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, PICTURES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, PICTURES / "crossing.png", "Describe the image.")

streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
model.generate(**inputs, max_new_tokens=64, custom_generate=VDD(), token_streamer=streamer)
