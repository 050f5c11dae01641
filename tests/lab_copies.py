"""The lab's checkpoint with random weights, or with a file left out or changed."""

import shutil

import torch
from models import sharpen
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from sightline import lab


def random_lab():
    """A model that says something else of every prompt, and never ends."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(lab.CHECKPOINT)
    model = sharpen(AutoModelForImageTextToText.from_config(config).float())
    model.generation_config.eos_token_id = None
    return model


def random_checkpoint(folder):
    random_lab().save_pretrained(folder)
    AutoProcessor.from_pretrained(lab.CHECKPOINT).save_pretrained(folder)
    return str(folder)


def copied(folder, *, without=()):
    """The lab's checkpoint in a folder, without some of its files."""
    shutil.copytree(lab.CHECKPOINT, folder, dirs_exist_ok=True)
    for name in without:
        (folder / name).unlink()
    return str(folder)


def with_argument(folder):
    """One whose chat template takes `asks`, which it writes in place of the user's words."""
    copied(folder)
    words, instead = "{{- part['text'] -}}", "{{- asks | default(part['text']) -}}"
    file = folder / "chat_template.jinja"
    template = file.read_text()
    assert words in template
    file.write_text(template.replace(words, instead))
    return str(folder)
