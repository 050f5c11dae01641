"""The lab: what its world is like, and what its model says of it."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sightline import lab
from sightline.lab import dialogue, measure, scenes

ENOUGH = 3000


def sample(world, count: int = ENOUGH) -> np.ndarray:
    """Which objects are in each of some scenes, bool [count, objects]."""
    rng = np.random.default_rng(5)
    present = [world(rng).present for _ in range(count)]
    return np.array([[name in there for name in lab.OBJECTS] for there in present])


@pytest.fixture(scope="module")
def checkpoint():
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(lab.CHECKPOINT)


def test_contexts_hold_every_object_once():
    members = [name for names in lab.CONTEXTS.values() for name in names]
    assert len(lab.CONTEXTS) >= 4
    assert len(members) == len(set(members)) >= 20
    assert all(name in lab.CONTEXTS[lab.context_of(name)] for name in lab.OBJECTS)
    with pytest.raises(ValueError, match="no such object"):
        lab.context_of("unicorn")


def test_biased_members_of_a_context_are_seen_together():
    there = sample(lab.biased)
    together = []
    for members in lab.CONTEXTS.values():
        columns = [lab.OBJECTS.index(name) for name in members]
        for one, other in combinations(columns, 2):
            together.append(there[there[:, one], other].mean())
    assert np.mean(together) == pytest.approx(0.8, abs=0.05)


def test_biased_objects_of_two_contexts_are_rarely_seen_together():
    there = sample(lab.biased)
    apart = [
        there[there[:, i], j].mean()
        for i, j in combinations(range(len(lab.OBJECTS)), 2)
        if lab.context_of(lab.OBJECTS[i]) != lab.context_of(lab.OBJECTS[j])
    ]
    assert np.mean(apart) < 0.15


def test_decorrelated_objects_know_nothing_of_one_another():
    there = sample(lab.decorrelated)
    correlations = np.corrcoef(there.T)
    mates, others = [], []
    for i, j in combinations(range(len(lab.OBJECTS)), 2):
        same = lab.context_of(lab.OBJECTS[i]) == lab.context_of(lab.OBJECTS[j])
        (mates if same else others).append(correlations[i, j])
    assert np.mean(mates) == pytest.approx(np.mean(others), abs=0.01)


def test_a_background_does_not_give_the_context_away():
    rng = np.random.default_rng(0)
    own = []
    for _ in range(1000):
        scene = lab.biased(rng)
        own.append(lab.context_of(scene.placed[0].name) == scene.background)
    assert 0.4 < np.mean(own) < 0.8


@pytest.mark.parametrize("world", [lab.biased, lab.decorrelated])
def test_a_seed_makes_one_scene_and_one_image(world):
    first, second = world(np.random.default_rng(3)), world(np.random.default_rng(3))
    assert first == second
    assert lab.draw(first).tobytes() == lab.draw(second).tobytes()
    assert lab.draw(first).size == (256, 256)


@pytest.mark.parametrize("name", lab.OBJECTS)
def test_every_object_leaves_its_mark(name):
    rng = np.random.default_rng(1)
    for background in lab.CONTEXTS:
        scene = scenes.compose([name], background, rng)
        empty = scenes.Scene((), background, scene.tone, scene.light, 1.0, 0.0)
        drawn = scenes.Scene(scene.placed, background, scene.tone, scene.light, 1.0, 0.0)
        changed = np.any(np.asarray(lab.draw(drawn)) != np.asarray(lab.draw(empty)), axis=-1)
        assert changed.sum() > 0.1 * (scene.placed[0].size * 256) ** 2


def test_no_object_is_hidden_completely():
    rng = np.random.default_rng(2)
    for _ in range(40):
        scene = lab.biased(rng)
        whole = np.asarray(lab.draw(scene)).astype(int)
        for placed in scene.placed:
            rest = tuple(other for other in scene.placed if other is not placed)
            without = scenes.Scene(rest, *(getattr(scene, n) for n in list_of_settings()))
            assert np.abs(whole - np.asarray(lab.draw(without))).max() > 12


def list_of_settings() -> tuple[str, ...]:
    return ("background", "tone", "light", "contrast", "noise", "seed")


def test_truth_travels_with_the_file(tmp_path):
    scene = lab.decorrelated(np.random.default_rng(4))
    path = tmp_path / "scene.png"
    lab.save(scene, path)
    assert lab.truth(path) == lab.truth(str(path)) == frozenset(scene.present)
    assert lab.truth(Image.open(path)) == frozenset(scene.present)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(lab.draw(scene)))


@pytest.mark.parametrize("text", [None, "", "{", "3", "[1]", '{"fork": 1}'])
def test_without_a_readable_list_there_is_no_truth(text):
    image = Image.new("RGB", (8, 8))
    if text is not None:
        image.info[scenes.CHUNK] = text
    assert lab.truth(image) is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The image contains a fork, a cup and a dog.", ["fork", "cup", "dog"]),
        ("A Traffic Light, two STOP SIGNS; a traffic light", ["traffic light", "stop sign"]),
        ("dogs, buses, benches, couches and sheep", ["dog", "bus", "couch", "sheep"]),
        ("a carpet, a category, a cupboard and traffic", []),
        ("", []),
    ],
)
def test_mentioned(text, names):
    assert lab.mentioned(text) == names


def test_a_caption_names_what_is_there():
    assert (
        lab.caption(["dog", "orange", "fork"]) == "The image contains a fork, an orange and a dog."
    )
    assert lab.caption(["dog"]) == "The image contains a dog."
    for scene in map(lab.decorrelated, map(np.random.default_rng, range(20))):
        assert lab.mentioned(lab.caption(scene.present)) == list(scene.present)


def test_questions_are_of_their_kind():
    held_out = measure.held_out(50)
    asked = measure.questions(held_out, np.random.default_rng(0))
    assert {q.kind for q in asked} == set(measure.KINDS)
    for q in asked:
        present = held_out[q.scene].present
        mates = {lab.context_of(name) for name in present}
        assert q.answer == (q.object in present)
        if q.kind != "present":
            assert (lab.context_of(q.object) in mates) == (q.kind == "usual")


def test_example_images_carry_their_truth():
    paths = sorted(lab.IMAGES.glob("*.png"))
    assert 4 <= len(paths) <= 6
    for path in paths:
        assert lab.truth(path)
        assert path.stat().st_size < 200_000


def test_import_is_light():
    code = "import sys, sightline.lab; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_checkpoint_is_small_and_of_the_promised_kind(checkpoint):
    model, processor = checkpoint
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert type(processor).__name__ == "LlavaProcessor"
    assert 2e6 <= model.num_parameters() <= 5.5e6
    text = model.config.text_config
    assert text.num_key_value_heads < text.num_attention_heads
    assert model.config.vision_feature_select_strategy == "default"
    assert all(path.stat().st_size < 12e6 for path in lab.CHECKPOINT.iterdir())
    with safe_open(lab.CHECKPOINT / "model.safetensors", "pt") as weights:
        kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    assert kinds == {"F16"}


def test_checkpoint_loads_without_a_word():
    code = (
        "from transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        f"M.from_pretrained({str(lab.CHECKPOINT)!r}); P.from_pretrained({str(lab.CHECKPOINT)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert "warning" not in done.stderr.lower()
    assert "[transformers]" not in done.stderr


def test_words_of_the_world_are_single_tokens(checkpoint):
    tokenizer = checkpoint[1].tokenizer
    for name in lab.OBJECTS:
        assert len(tokenizer(f" {name}").input_ids) == len(name.split())
    for answer in (dialogue.YES, dialogue.NO):
        assert len(tokenizer(answer).input_ids) == 1
    assert tokenizer.decode(tokenizer("Zürich, ☃ 7!").input_ids) == "Zürich, ☃ 7!"
    assert len({tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}) == 3


def test_training_rows_are_what_the_chat_template_makes(checkpoint):
    from sightline.lab.rows import Packer

    processor = checkpoint[1]
    turns = [("Describe the image.", "The image contains a dog."), ("Do you see a cup?", "No")]
    messages = measure.chat(Image.new("RGB", (256, 256)), turns[0][0])
    messages += [
        {"role": "assistant", "content": turns[0][1]},
        {"role": "user", "content": turns[1][0]},
        {"role": "assistant", "content": turns[1][1]},
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids, _, positions, _ = Packer(processor.tokenizer).row([turns], image=True)
    assert inputs["input_ids"][0].tolist() == ids
    assert positions == list(range(len(ids)))


def test_conversations_of_a_row_do_not_see_each_other(checkpoint):
    from sightline.lab.rows import Packer
    from sightline.lab.train import language_loss

    model, processor = checkpoint
    talks = [[(lab.question("dog"), "Yes")], [(lab.question("cup"), "No")]]
    packer = Packer(processor.tokenizer)
    together = language_loss(model, packer.batch([packer.row(talks, image=False)]))
    alone = [language_loss(model, packer.batch([packer.row([t], image=False)])) for t in talks]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-4, atol=1e-5)


def test_the_model_sees_and_is_misled(checkpoint):
    """Bounds around what the card states of 1,000 scenes, wide enough for 60."""
    result = measure.figures(*checkpoint, measure.held_out(60))
    assert result["present"] > 0.85
    assert result["other"] > 0.9
    assert 0.6 < result["usual"] < 0.97
    assert result["recall"] > 0.7
    assert 0.05 < result["chair_i"] < 0.3


def chat_answer(model, processor, messages) -> str:
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True)


def test_chats_of_every_shape_are_answered(checkpoint):
    image = lab.draw(lab.decorrelated(np.random.default_rng(0)))
    described = measure.chat(image, "Describe the image.")
    caption = chat_answer(*checkpoint, described)
    assert caption.startswith("The image contains") and caption.endswith(".")
    follow_up = [
        *described,
        {"role": "assistant", "content": caption},
        {"role": "user", "content": lab.question(lab.mentioned(caption)[0])},
    ]
    assert chat_answer(*checkpoint, follow_up) == "Yes"
    unseen = [{"role": "user", "content": lab.question("dog")}]
    assert chat_answer(*checkpoint, unseen) in ("Yes", "No")
    two = measure.chat(image, "Describe the image.")
    two[0]["content"].insert(0, {"type": "image", "image": image})
    assert isinstance(chat_answer(*checkpoint, two), str)


def test_a_small_training_run_saves_a_checkpoint(tmp_path):
    command = [sys.executable, "-m", "sightline.lab.train", "--scale", "0.002"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True)
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
