"""Tokens as they come. With a decoder the argument is `token_streamer`, not `streamer`:
transformers drops `streamer=` when `custom_generate` is a callable."""

from threading import Thread

from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    TextIteratorStreamer,
    TextStreamer,
)

from sightline import VDD
from sightline.chat import prompt_inputs
from sightline.lab import CHECKPOINT, IMAGES

model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
processor = AutoProcessor.from_pretrained(CHECKPOINT)
inputs = prompt_inputs(model, processor, IMAGES / "corner.png", "Describe the image.")
settings = dict(max_new_tokens=64, custom_generate=VDD())

# Printed by transformers itself.
streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
model.generate(**inputs, **settings, token_streamer=streamer)

# As an iterator, for a page or a server: generate runs in a thread of its own.
words = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
thread = Thread(target=model.generate, kwargs=dict(inputs, **settings, token_streamer=words))
thread.start()
print("|".join(words))
thread.join()
