"""Copies of the lab's checkpoint with a file left out or changed."""

import shutil

from sightline import lab


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
