"""Prompts of real checkpoints: what decoders make of their templates, tokens and processors."""

import re
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers
from goldens import CHECKPOINTS, facts, needs_facts
from packaging.version import Version

if Version(transformers.__version__) < Version("5.23"):
    pytest.skip("the records are written for transformers 5.23", allow_module_level=True)
pytest.importorskip("torchvision", reason="make build/vision/ready, then PYTHONPATH=build/vision")

from checkpoints.records import RECORDS
from families import REAL, cell, real_template
from prompts import PAGE, page_of
from test_families import TABLE

from checkpoints import chat, load, names, random_image, template_of
from sightline import AGLA, ICD, VDD, PromptCached
from sightline.decoders.carve.carve import beside, instead
from sightline.decoders.vdd import unknown_tokens
from sightline.engine.branch import Call
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.image_spans import rows_of
from sightline.engine.prefill import forward_prompt, last_logits, read_images
from sightline.engine.prompt_edits import image_columns

QUESTIONS = ("Is there a cup in the image?", "Do you see an orange or a vase?\nSay it.", "Why?")
SIZES = ((200, 120), (90, 140), (56, 56), (300, 60))
WIDE, TALL = random_image(200, 120), random_image(90, 140)

REFUSED = {"mllama": "placeholder tokens"}  # cross-attention
UNTEMPLATED = [name for name, record in RECORDS.items() if not record.has_template]
TEMPLATED = [name for name in names() if name not in UNTEMPLATED]
ANSWERED = [name for name in names() if name not in REFUSED]


def part(words):
    return {"type": "text", "text": words}


def image(shown):
    return {"type": "image", "image": shown}


def user(*content):
    return {"role": "user", "content": list(content)}


def conversations(shown, second):
    """Conversations with images, which end in one question."""
    question = QUESTIONS[0]
    return {
        "one image": chat([shown], question),
        "two images": chat([shown, second], question),
        "two turns": chat([shown], "Describe the image.", "A cup.", question),
        "words around": [user(part("Look: "), image(shown), part(question))],
        "second turn": [
            *chat([shown], "What is it?", "A cup."),
            user(image(second), part(question)),
        ],
    }


def without_images(messages):
    return [
        {**message, "content": [p for p in message["content"] if p["type"] == "text"]}
        for message in messages
    ]


def taken(name):
    """The conversations that a checkpoint takes."""
    made = conversations(WIDE, TALL)
    return list(made) if name in TEMPLATED else ["one image", "two images"]


def unspaced(text):
    return "".join(text.split())


# Published templates

SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = {
    **conversations(WIDE, TALL),
    "no image": chat([], "Hello"),
    "words alone": [{"role": "user", "content": " Hello there\n"}],
    "string replies": [
        *chat([WIDE], "What is it?"),
        {"role": "assistant", "content": "A cup."},
        user(part("Sure?")),
    ],
    "thought replies": [
        *chat([WIDE], "What is it?"),
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nA cup."},
        user(part("Sure?")),
        {"role": "assistant", "content": "<|channel>thought\nHm.<channel|>Yes."},
    ],
    "system": [SYSTEM, *chat([WIDE], "What is it?")],
    "system list": [{**SYSTEM, "content": [part("Be brief.")]}, *chat([WIDE], "What is it?")],
    "system, no image": [SYSTEM, *chat([], "Hello", "Hi", "Why?")],
    "roles in disorder": [*chat([], "Hello"), *chat([WIDE], "What is it?")],
}
ARGUMENTS = [
    {},
    {"add_generation_prompt": False},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"preserve_thinking": True},
    {"add_vision_id": True},
]
NAMED = {  # tokens that the facts give by the config's names
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
    "image_token_index": "<image>",
    "video_token_index": "<video>",
    "pad": "<pad>",
}
ARGUED = [
    name
    for name in TEMPLATED
    if any(argument in template_of(name) for chosen in ARGUMENTS[2:] for argument in chosen)
]
PUBLISHED = [name for name in TEMPLATED if RECORDS[name].facts]


def rendered(checkpoint, messages, template, arguments):
    """A prompt, or that the template refuses the messages."""
    arguments = {"add_generation_prompt": True, **arguments}
    try:
        prompt = checkpoint.processor.apply_chat_template(
            messages, chat_template=template, tokenize=False, **arguments
        )
    except Exception as refusal:
        return f"refused: {type(refusal).__name__}"
    # Mistral's own default for a system message is not in the repository.
    return re.sub(r"(?<=\[SYSTEM_PROMPT\]).*\d{4}-\d\d-\d\d.*(?=\[/SYSTEM)", "", prompt, flags=re.S)


@needs_facts
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_template_writes_the_published_ones_prompts(name):
    checkpoint = load(name)
    published = (facts(RECORDS[name].facts)["chat_template"] or {}).get("text")
    if published is None:
        pytest.skip("its template is published with a model that asks for a licence")
    own = checkpoint.processor.chat_template
    for kind, messages in CHATS.items():
        for arguments in ARGUMENTS:
            ours, theirs = (
                rendered(checkpoint, messages, template, arguments) for template in (own, published)
            )
            assert ours == theirs, (kind, arguments)


@needs_facts
@pytest.mark.parametrize("name", [name for name in names() if RECORDS[name].facts])
def test_an_image_stands_in_the_prompt_as_the_facts_say(name):
    checkpoint, known = load(name), facts(RECORDS[name].facts)
    if "tiny_prompt_of_a_200x120_image" not in known:
        pytest.skip("no prompt is known")
    ids = checkpoint.chat([WIDE], "Describe the image.")["input_ids"][0]
    tokens = checkpoint.tokenizer.convert_ids_to_tokens(ids)
    listed = known["tiny_prompt_of_a_200x120_image"].split(" ")
    runs = [re.fullmatch(r"(.+?)(?:\*(\d+))?", token) for token in listed]
    wanted = [run[1] for run in runs for _ in range(int(run[2] or 1))]
    assert spelled(tokens) == spelled(wanted)


def spelled(tokens):
    text = "".join(tokens)
    for token, plain in (("Ġ", " "), ("▁", " "), ("Ċ", "\n"), ("<0x0A>", "\n"), ("\\n", "\n")):
        text = text.replace(token, plain)
    text = text.removeprefix("<s>").strip()  # LLaVA's is not in the facts
    return re.sub(r"(?<=\[SYSTEM_PROMPT\]).*(?=\[/SYSTEM)", "", text, flags=re.S)


@needs_facts
def test_every_checkpoint_with_facts_is_here():
    assert {path.stem for path in CHECKPOINTS.glob("*.json")} == {
        record.facts for record in RECORDS.values() if record.facts
    }


@needs_facts
@pytest.mark.parametrize("name", [name for name in names() if RECORDS[name].facts])
def test_classes_and_image_tokens_are_the_real_ones(name):
    checkpoint, known = load(name), facts(RECORDS[name].facts)
    assert type(checkpoint.processor).__name__ == known["processor_class"]
    assert type(checkpoint.model).__name__ == known["model_class"]
    assert checkpoint.processor.image_token == known["processor_image_token"]
    image = checkpoint.tokenizer.convert_ids_to_tokens(checkpoint.model.config.image_token_id)
    assert image == known["model_image_token_in_tiny"]


@needs_facts
@pytest.mark.parametrize("name", [name for name in names() if RECORDS[name].facts])
def test_special_tokens_follow_each_other_as_the_real_ones(name):
    """Neighbours are neighbours: what looks like a marker by its id does so here too."""
    tokenizer, known = load(name).tokenizer, facts(RECORDS[name].facts)
    ours, special = tokenizer.get_vocab(), r"<\S+>|\[\S+\]"
    real = {}
    for label, number in known["ids"].items():
        token = re.search(special, label) or NAMED.get(label)
        token = token[0] if isinstance(token, re.Match) else token
        if token in ours:
            real[token] = number
    for first, second in pairwise(sorted(real, key=real.get)):
        distance = ours[second] - ours[first]
        assert (distance == 1) if real[second] - real[first] == 1 else distance > 0, (first, second)


@needs_facts
@pytest.mark.parametrize("name", [name for name in names() if RECORDS[name].facts])
def test_answers_are_generated_with_the_real_settings(name):
    checkpoint, known = load(name), facts(RECORDS[name].facts).get("generation_config", {})
    ids = {"eos_token_id", "pad_token_id", "bos_token_id"}
    for setting in known.keys() - ids - {"confidence", "cache_implementation"}:
        assert getattr(checkpoint.model.generation_config, setting) == known[setting], setting
    ends = known.get("eos_token_id", [])
    assert not ends or len(checkpoint.model.generation_config.eos_token_id) == len(ends)


# A1: the prompt without its images


@pytest.mark.parametrize("name", ANSWERED)
def test_the_image_free_prompt_is_the_chat_without_images(name):
    """Whatever the processor wrote for them, and whatever their sizes."""
    checkpoint = load(name)
    decoder = VDD(processor=checkpoint.processor)
    for kind in taken(name):
        wanted = None
        for size in SIZES if kind == "one image" else SIZES[:2]:
            messages = conversations(random_image(*size), TALL)[kind]
            (amateur,) = checkpoint.amateurs(checkpoint.inputs(messages), decoder)
            if wanted is None:
                wanted = checkpoint.tokenizer.decode(
                    checkpoint.inputs(without_images(messages))["input_ids"][0]
                )
            assert unspaced(checkpoint.text(amateur)) == unspaced(wanted), (kind, size)


@pytest.mark.parametrize("name", ARGUED)
def test_the_image_free_prompt_keeps_to_the_arguments_of_the_template(name):
    """A thought stays open or closed; a number that the template gives an image goes with it."""
    checkpoint = load(name)
    decoder = VDD(processor=checkpoint.processor)
    messages = conversations(WIDE, TALL)["two images"]
    for arguments in ARGUMENTS:
        if any(argument in template_of(name) for argument in arguments):
            inputs = checkpoint.inputs(messages, **arguments)
            (amateur,) = checkpoint.amateurs(inputs, decoder, chat_template_kwargs=arguments)
            wanted = checkpoint.prompt(without_images(messages), **arguments)
            assert unspaced(checkpoint.text(amateur)) == unspaced(wanted), arguments


@pytest.mark.parametrize("name", ANSWERED)
def test_one_stand_in_for_each_image(name):
    checkpoint = load(name)
    decoder = VDD(variant="unk", processor=checkpoint.processor)
    stand_in = checkpoint.tokenizer.decode(unknown_tokens(checkpoint.processor))
    for kind in taken(name):
        messages = conversations(WIDE, TALL)[kind]
        shown = sum(part["type"] == "image" for m in messages for part in m["content"])
        (amateur,) = checkpoint.amateurs(checkpoint.inputs(messages), decoder)
        text = checkpoint.text(amateur)
        wanted = checkpoint.inputs(without_images(messages))["input_ids"][0]
        assert text.count(stand_in) == shown, kind
        assert unspaced(text.replace(stand_in, "")) == unspaced(
            checkpoint.tokenizer.decode(wanted)
        ), kind


@pytest.mark.parametrize("name", ["idefics2", "idefics3", "smolvlm"])
def test_a_turn_that_begins_with_words_then_begins_as_the_template_has_it(name):
    """After "User:" these put a space before words, and none before an image."""
    checkpoint = load(name)
    (plain,) = checkpoint.amateurs(
        checkpoint.chat([WIDE, TALL], "Why?"), VDD(processor=checkpoint.processor)
    )
    assert ids_of(plain) == checkpoint.chat([], "Why?")["input_ids"][0].tolist()
    decoder = VDD(variant="unk", processor=checkpoint.processor)
    (unknown,) = checkpoint.amateurs(checkpoint.chat([WIDE], "Why?"), decoder)
    stand_in = checkpoint.tokenizer.decode(unknown_tokens(checkpoint.processor))
    wanted = checkpoint.prompt(chat([], f"{stand_in}Why?"))
    assert checkpoint.text(unknown).endswith(wanted[-40:])
    made = made_by(
        checkpoint, chat([WIDE], "Why?"), lambda expert, c: c.put_before(expert, ["Look."])
    )
    again = checkpoint.inputs([user(part("Look.\n"), image(WIDE), part("Why?"))])
    assert ids_of(made) == again["input_ids"][0].tolist()
    between = [user(part("See: "), image(WIDE), part("Why?"))]
    (kept,) = checkpoint.amateurs(checkpoint.inputs(between), VDD(processor=checkpoint.processor))
    assert checkpoint.text(kept).endswith(checkpoint.prompt(without_images(between))[-40:])


def clip(frames):
    """A video of four frames a second, as processors take it."""
    pixels = np.random.default_rng(1).integers(0, 256, (frames, 56, 84, 3), dtype=np.uint8)
    places = list(range(0, 6 * frames, 6))
    known = dict(fps=24.0, total_num_frames=6 * frames, duration=frames / 4, frames_indices=places)
    return pixels, known


@pytest.mark.parametrize("name", [n for n in TEMPLATED if n not in REFUSED])
def test_the_whole_video_goes_with_the_words_between_its_frames(name):
    checkpoint = load(name)
    processor, tokenizer = checkpoint.processor, checkpoint.tokenizer
    if getattr(processor, "video_processor", None) is None:
        pytest.skip("its processor takes no videos")

    def prompt(*content):
        written = checkpoint.prompt([user(*content)])
        if "video" in dict(content[1]).values() and processor.video_token not in written:
            words = [each.get("text", processor.video_token) for each in content]
            return checkpoint.prompt([user(part("".join(words)))])
        return written

    def row(text, *lengths):
        clips, known = zip(*map(clip, lengths), strict=True) if lengths else ((), ())
        shown = dict(videos=list(clips), video_metadata=list(known), do_sample_frames=False)
        made = processor(text=[text], **(shown if lengths else {}), return_tensors="pt")
        (row,) = rows_of(
            made["input_ids"], made["attention_mask"], None, checkpoint.model, processor
        )
        return row

    def left(row, replacement=()):
        entries = row.without_images(replacement)
        return tokenizer.decode([row.ids[n] if t is None else t for n, t in entries])

    video, (see, and_then, why) = {"type": "video"}, map(part, ("Look:", "and\nthis.", "Why 1?"))
    wanted = unspaced(tokenizer.decode(row(prompt(see, why)).ids))
    for frames in (6, 10):
        assert unspaced(left(row(prompt(see, video, why), frames))) == wanted
    stand_in = unknown_tokens(processor)
    try:
        shown = row(prompt(see, video, and_then, video, why), 6, 6)
    except ValueError as refusal:
        assert "At most one video" in str(refusal)
        return
    two = left(shown, stand_in)
    assert two.count(tokenizer.decode(stand_in)) == 2
    wanted = unspaced(tokenizer.decode(row(prompt(see, and_then, why)).ids))
    assert unspaced(two.replace(tokenizer.decode(stand_in), "")) == wanted


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_image_tokens_is_refused_in_words(name):
    checkpoint = load(name)
    with pytest.raises(ValueError, match=REFUSED[name]):
        checkpoint.amateurs(checkpoint.chat([WIDE], QUESTIONS[0]), VDD())


@pytest.mark.parametrize("name", ANSWERED)
def test_without_a_processor_what_stays_is_warned_of(name):
    """Of any size the same stays, and all that the user wrote."""
    checkpoint, told, texts = load(name), [], []
    for size in SIZES[:2]:
        shown = random_image(*size)
        messages = chat([shown], QUESTIONS[0])
        if name in TEMPLATED:
            messages = [user(image(shown), part("One."), image(TALL), part(QUESTIONS[0]))]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (amateur,) = checkpoint.amateurs(checkpoint.inputs(messages), VDD())
        told += [str(w.message) for w in caught if "like its markers" in str(w.message)]
        texts.append(checkpoint.text(amateur))
        assert not amateur.image_mask.any()
        assert "One." in texts[-1] or name not in TEMPLATED
        assert QUESTIONS[0] in texts[-1]
    assert len(set(texts)) == 1 or told  # a size in words is among what stays
    wanted = checkpoint.inputs(without_images(messages))["input_ids"][0]
    wanted = checkpoint.tokenizer.decode(wanted)
    if unspaced(texts[0]) == unspaced(wanted):
        assert not told
    elif told:
        assert "processor=" in told[0] and "markers=" in told[0]
    assert name not in ("llava15", "llava_ov", "qwen2vl", "qwen25vl", "qwen3vl") or not told


@pytest.mark.parametrize("name", ANSWERED)
def test_an_image_free_prompt_is_read_once_for_images_of_any_size(name):
    checkpoint, read = load(name), []

    def count(module, args, kwargs):
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        read.append((embeds if ids is None else ids).shape[1] > 1)

    decoder = PromptCached(VDD(processor=checkpoint.processor))
    hook = checkpoint.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    counts = []
    try:
        for size in SIZES:
            read.clear()
            inputs = checkpoint.chat([random_image(*size)], QUESTIONS[0])
            checkpoint.model.generate(**inputs, custom_generate=decoder, max_new_tokens=2)
            counts.append(sum(read))
    except ValueError as refusal:
        if "keep more than keys and values" not in str(refusal):
            raise
        return  # layers that keep a state, which decoders say
    finally:
        hook.remove()
    assert counts == [2, 1, 1, 1]


@pytest.mark.parametrize("name", ANSWERED)
def test_images_are_counted_and_not_their_tiles(name):
    checkpoint = load(name)
    for kind in taken(name):
        messages = conversations(WIDE, TALL)[kind]
        shown = sum(part["type"] == "image" for m in messages for part in m["content"])
        (own,) = checkpoint.within(
            checkpoint.inputs(messages), lambda e, m: image_columns(e, m, checkpoint.processor)
        )
        assert len(own) == shown, kind


# A3: the question


@pytest.mark.parametrize("name", [n for n in TEMPLATED if n not in REFUSED])
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_question_is_the_users_and_asked_again_gives_the_same_prompt(name, question):
    checkpoint = load(name)
    chats = {
        "one image": chat([WIDE], question),
        "two images": chat([WIDE, TALL], question),
        "two turns": chat([WIDE], "Describe the image.", "A cup.", question),
    }

    def asked(expert, model):
        conversation = PromptEditor(checkpoint.processor, model)
        (found,) = conversation.asked(expert)
        return found.question, expert, conversation.ask(expert, [0], [question])

    for kind, messages in chats.items():
        inputs = checkpoint.inputs(messages)
        found, expert, again = checkpoint.within(inputs, asked)
        assert found == question, kind
        assert torch.equal(again.input_ids, inputs["input_ids"]), kind
        assert torch.equal(again.position_ids, expert.position_ids), kind
        for name, values in expert.aligned.items():
            assert torch.equal(again.aligned[name], values), (kind, name)


# Images that are read once, and rows without one


@pytest.mark.parametrize("name", [n for n in TEMPLATED if n not in REFUSED])
def test_another_question_is_read_behind_a_shared_image_as_from_the_start(name):
    """Markers behind the image are part of it to some models."""
    checkpoint = load(name)

    def logits(expert, model):
        for shared in (read_images(expert, model), expert):
            asked = PromptEditor(checkpoint.processor, model).ask(shared, [0], [QUESTIONS[1]])
            cache = asked.cache(model)
            yield forward_prompt(model, asked, cache, last_logits(model)).logits[0, -1]

    inputs = checkpoint.chat([WIDE], QUESTIONS[0])
    with torch.no_grad():
        behind, whole = checkpoint.within(inputs, lambda e, m: list(logits(e, m)))
    torch.testing.assert_close(behind, whole, atol=1e-3, rtol=1e-3)  # float32, logits up to 50


@pytest.mark.parametrize("kind", ["icd", "agla"])
@pytest.mark.parametrize("name", [n for n in TEMPLATED if n not in REFUSED])
def test_a_row_without_an_image_changes_no_other_and_is_answered_as_alone(name, kind):
    checkpoint = load(name)
    decoder = {"icd": ICD, "agla": AGLA}[kind](processor=checkpoint.processor, beta=0.05)
    chats = [chat([WIDE], QUESTIONS[0]), chat([], "Hello, who are you?"), chat([TALL], "Why?")]

    def answers(*rows, decoder=decoder):
        shown = [[p["image"] for p in chats[row][0]["content"] if "image" in p] for row in rows]
        made = checkpoint.processor(
            text=[checkpoint.prompt(chats[row]) for row in rows],
            images=shown if any(shown) else None,
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(checkpoint.model.dtype)
        given = dict(images=shown) if kind == "agla" and decoder else {}
        asked = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
        said = checkpoint.model.generate(**made, **given, custom_generate=decoder, **asked)
        return said[:, -3:].tolist()

    try:
        first, last = answers(0, 2)
    except ValueError as refusal:
        assert kind == "agla", refusal
        return  # as the table of families says
    (text,) = answers(1, decoder=None)
    assert answers(0, 1, 2) == [first, text, last]


# A5: other images and texts in a prompt


def made_by(checkpoint, messages, action):
    """What `action(expert, chat)` makes of a prompt of the first message's first image."""

    def make(expert, model):
        expert = replace(expert, call=Call(((WIDE,),), expert.call.generation_config))
        return action(read_images(expert, model), PromptEditor(checkpoint.processor, model))

    return checkpoint.within(checkpoint.inputs(messages), make)


def ids_of(branch):
    return branch.input_ids[0][branch.attention_mask[0].bool()].tolist()


OTHERS = {
    "another image": (lambda e, c: instead(e, [TALL], c), [image(TALL)]),
    "a second image": (lambda e, c: beside(e, [TALL], c), [image(WIDE), image(TALL)]),
    "the same again": (lambda e, c: beside(e, [WIDE], c), [image(WIDE), image(WIDE)]),
    "words before": (lambda e, c: c.put_before(e, ["Look."]), [part("Look.\n"), image(WIDE)]),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", [n for n in TEMPLATED if n not in REFUSED])
def test_prompts_with_other_images_and_texts_are_the_processors(name, kind):
    checkpoint, (action, shown) = load(name), OTHERS[kind]
    made = made_by(checkpoint, chat([WIDE], QUESTIONS[0]), action)
    wanted = checkpoint.inputs([user(*shown, part(QUESTIONS[0]))])
    ids = wanted["input_ids"][0].tolist()
    image_token = checkpoint.model.config.image_token_id
    if kind == "words before":
        texts = [checkpoint.tokenizer.decode(tokens) for tokens in (ids_of(made), ids)]
        name_of = checkpoint.tokenizer.convert_ids_to_tokens(image_token)
        before, first = (text.index("Look.") < text.index(name_of) for text in texts)
        assert before
        # A template may put images first, wherever they are in a turn.
        assert unspaced(texts[0]) == unspaced(texts[1]) or not first
        return
    assert ids_of(made) == ids
    assert torch.equal(made.image_mask, made.input_ids == image_token)


# Every decoder


@pytest.mark.parametrize("family", sorted({record.family for record in RECORDS.values()}))
def test_decoders_answer_as_the_table_of_families_says(family):
    found = real_template(family)
    assert not [outcome for outcome in found.values() if "FAILS" in outcome]
    assert cell(found) == TABLE.cells[family][REAL]


# Everybody's prompts


@pytest.mark.parametrize("name", names())
def test_prompts_are_those_of_the_page(name):
    """tests/checkpoints/prompts.txt; where a change is meant, `python -m tests.prompts --write`."""
    parts = dict(zip(names(), PAGE.read_text(encoding="utf-8").split("\n\n== ")[1:], strict=True))
    assert f"== {parts[name].rstrip()}" == page_of(name).rstrip()
