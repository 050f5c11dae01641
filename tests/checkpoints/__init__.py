"""Tiny random models with the processors, special tokens and prompts of real checkpoints.

    from checkpoints import load, names, random_image, template_of

    pixtral = load("pixtral")
    inputs = pixtral.chat([random_image(200, 120)], "Is there a cup?")
    pixtral.model.generate(**inputs, custom_generate=VDD())

Their image processors need torchvision: `make build/vision/ready` puts what they need of it in a
folder, and PYTHONPATH=build/vision finds it.
"""

from .loading import Checkpoint, chat, load, names, random_image, template_of

__all__ = ["Checkpoint", "chat", "load", "names", "random_image", "template_of"]
