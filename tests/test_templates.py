"""Chat templates of other kinds: thoughts, arguments, replies as strings, two starts, none."""

import copy
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from chat_models import CHATML, unpadded, within
from goldens import CHECKPOINTS, needs_facts
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PaliGemmaProcessor,
    SiglipImageProcessor,
)
from transformers.utils.chat_template_utils import render_jinja_template

from sightline import ICD, MVP, VDD, VDGD, PostHocDebias, answer, lab
from sightline.chat import (
    check_arguments,
    parse_arguments,
    prompt_inputs,
    templated,
    written_argument,
)
from sightline.engine.chat_prompts import PromptEditor
from sightline.engine.chat_template import Template, turn
from sightline.evaluation.asking import Preparation
from sightline.vision.images import user_turn

HEADER = "<|im_end|>\n<|im_start|>assistant\n"
OPENED = CHATML.replace(
    "{{- '<|im_start|>assistant\n' -}}",
    "{{- '<|im_start|>assistant\n<think>\n' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{- '\n</think>\n\n' -}}{%- endif -%}",
)
"""Opens a thought, or writes an empty one if it is told to."""
FORMAL = CHATML.replace(
    "'<|im_start|>' + message", "('<|im_start|>' if not formal else 'M. ') + message"
)
FORMAL = FORMAL.replace(
    "'<|im_start|>assistant\n'", "('<|im_start|>' if not formal else 'M. ') + 'assistant\n'"
)
"""An argument changes what stands around the words."""
PRINTED = CHATML.replace("message['content'] is string", "message['role'] == 'assistant'")
"""Prints a reply as it comes: a list of parts as Python writes it."""
LISTED = CHATML.replace(
    "{%- if message['content'] is string -%}{{- message['content'] -}}", "{%- if false -%}"
)
"""Takes parts alone: a reply as a string is left out."""
QUESTIONS = ["Is there a cup in the image?", "Do you see an orange?\nSay it.", "Why?"]
MODES = ({}, {"enable_thinking": True}, {"enable_thinking": False})


@pytest.fixture
def vlm(qwen_vlm):
    return qwen_vlm


def spoken(vlm, template):
    """Its processor with another template."""
    processor = copy.copy(vlm.processor)
    processor.chat_template = template
    return processor


def said(*turns):
    """A user's words about an image, a reply, the user's next words, ..."""
    roles = ("user", "assistant")
    return [turn(roles[n % 2], words, int(n == 0)) for n, words in enumerate(turns)]


def inputs_of(vlm, processor, chats, **arguments):
    prompts = [
        processor.apply_chat_template(
            chat, tokenize=False, **{"add_generation_prompt": True, **arguments}
        )
        for chat in chats
    ]
    return vlm.inputs(prompts, vlm.images[: len(prompts)])


def asking(vlm, processor, inputs, action):
    return within(vlm, inputs, lambda e, m: action(PromptEditor(processor, m), e))


def same_prompt(branch, inputs):
    mine = unpadded(branch.input_ids, branch.attention_mask)
    return mine == unpadded(inputs["input_ids"], inputs["attention_mask"])


# What a template writes


@pytest.mark.parametrize("template", [CHATML, OPENED, PRINTED, LISTED])
def test_a_reply_is_given_in_the_form_that_the_template_takes(vlm, template):
    found = Template(spoken(vlm, template))
    assert found.before_reply == HEADER
    assert found.between_turns == "<|im_end|>\n<|im_start|>user\n"


def test_the_answer_of_a_prompt_begins_after_any_thought_but_after_no_words(vlm):
    found = Template(spoken(vlm, OPENED))
    asked = "Is <b> it?"
    for thought in ("", "<think>\n", "<think>\n\n</think>\n\n", "<|end|>\n"):
        assert found.answer_start(asked + HEADER + thought) == len(asked)
    for words in ("The image", "<think>\nI see", "<think>\n</think>\nNo"):
        assert found.answer_start(asked + HEADER + words) is None
    assert found.answer_start(asked) is None


def test_a_thought_is_open_until_it_is_closed(vlm):
    found = Template(spoken(vlm, OPENED))
    assert found.open_thought("Is it?" + HEADER + "<think>\n") == "<think>"
    assert found.open_thought("Is it?" + HEADER + "<think>\n\n</think>\n\n") is None
    assert found.open_thought("Is it?" + HEADER) is None


def test_a_marker_before_every_answer_opens_no_thought(vlm):
    reply = CHATML.replace("assistant\n'", "assistant\n<reply>'")
    reply = reply.replace(
        "message['role'] + '\n'",
        "message['role'] + ('\n<reply>' if message['role'] == 'assistant' else '\n')",
    )
    assert Template(spoken(vlm, reply)).open_thought("Is it?" + HEADER + "<reply>") is None


# Prompts of templates with thoughts


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("template", [OPENED, PRINTED, LISTED])
def test_prompts_are_recognised_whatever_the_template_was_told(vlm, template, arguments):
    processor = spoken(vlm, template)
    inputs = inputs_of(vlm, processor, [said(q) for q in QUESTIONS], **arguments)

    def ask(chat, expert):
        assert [asked.question for asked in chat.asked(expert)] == QUESTIONS
        return chat.ask(expert, range(3), QUESTIONS)

    assert same_prompt(asking(vlm, processor, inputs, ask), inputs)


@pytest.mark.parametrize("arguments", MODES)
@pytest.mark.parametrize("template", [OPENED, PRINTED, LISTED])
def test_a_reply_and_more_words_give_the_processors_prompt(vlm, template, arguments):
    """A thought before an earlier reply is left out, as the template leaves it out."""
    processor = spoken(vlm, template)
    inputs = inputs_of(vlm, processor, [said(q) for q in QUESTIONS], **arguments)
    made = asking(
        vlm, processor, inputs, lambda chat, e: chat.go_on(e, ["No", "x", "A cat."], QUESTIONS)
    )
    chats = [said(q, r, q) for q, r in zip(QUESTIONS, ["No", "x", "A cat."], strict=True)]
    if template == PRINTED:
        for chat in chats:
            chat[1]["content"] = chat[1]["content"][0]["text"]
    assert same_prompt(made, inputs_of(vlm, processor, chats, **arguments))


def closed_set(processor):
    return [
        PostHocDebias(processor=processor),
        MVP(processor=processor, caption_tokens=2, tokens=2),
        VDGD(processor=processor, tokens=2),
    ]


def generated(vlm, decoder, inputs, **given):
    if getattr(decoder, "needs_images", False):
        given["images"] = list(vlm.images[:1])
    return vlm.model.generate(**inputs, **given, custom_generate=decoder, max_new_tokens=2)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_no_answer_is_taken_out_of_an_open_thought(vlm, which):
    processor = spoken(vlm, OPENED)
    decoder = closed_set(processor)[which]
    for arguments in MODES[:2]:
        inputs = inputs_of(vlm, processor, [said(QUESTIONS[0])], **arguments)
        with pytest.raises(ValueError, match=r"opens a thought \(<think>\).*enable_thinking=False"):
            generated(vlm, decoder, inputs)
    inputs = inputs_of(vlm, processor, [said(QUESTIONS[0])], **MODES[2])
    assert generated(vlm, decoder, inputs).shape[0] == 1


def test_an_instruction_may_stand_before_an_open_thought(vlm):
    processor = spoken(vlm, OPENED)
    inputs = inputs_of(vlm, processor, [said(QUESTIONS[0])])
    assert generated(vlm, ICD(processor=processor), inputs).shape[0] == 1


def test_arguments_that_change_the_words_are_passed_on(vlm):
    processor = spoken(vlm, FORMAL)
    inputs = inputs_of(vlm, processor, [said(QUESTIONS[0])], formal=True)
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        generated(vlm, ICD(processor=processor), inputs)
    for decoder in (
        ICD(processor=processor),
        VDGD(processor=processor, tokens=2),
        MVP(processor=processor, caption_tokens=2),
    ):
        given = {"chat_template_kwargs": {"formal": True}}
        assert generated(vlm, decoder, inputs, **given).shape[0] == 1


def test_a_prompt_within_an_answer_is_for_decoders_that_ask_nothing(vlm):
    inputs = inputs_of(
        vlm,
        vlm.processor,
        [said(QUESTIONS[0], "There is")],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert vlm.processor.decode(inputs["input_ids"][0]).endswith("There is")
    for decoder in (
        ICD(processor=vlm.processor),
        VDGD(processor=vlm.processor),
        MVP(processor=vlm.processor),
    ):
        with pytest.raises(ValueError, match="continue_final_message"):
            generated(vlm, decoder, inputs)
    assert generated(vlm, VDD(), inputs).shape[1] == inputs["input_ids"].shape[1] + 2


# `answer`, `prompt_inputs`, the command line, evaluation


@pytest.mark.parametrize("decoder", [None, VDD(), ICD])
def test_answer_takes_arguments_of_the_template(vlm, decoder):
    processor = spoken(vlm, OPENED)
    decoder = decoder(processor=processor) if isinstance(decoder, type) else decoder
    image, arguments = vlm.images[0], {"enable_thinking": False}
    inputs = inputs_of(vlm, processor, [said("What?")], **arguments)
    told = {"chat_template_kwargs": arguments}
    made = prompt_inputs(vlm.model, processor, image, "What?", **told)
    assert torch.equal(made["input_ids"], inputs["input_ids"])
    tokens = vlm.model.generate(**inputs, custom_generate=decoder, max_new_tokens=6)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    text = answer(
        vlm.model,
        processor,
        image,
        "What?",
        decoder,
        chat_template_kwargs=arguments,
        max_new_tokens=6,
    )
    assert text == expected.strip()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"enable_thinkin": False}, ValueError, "takes no argument 'enable_thinkin'"),
        ({"add_generation_prompt": False}, ValueError, "takes no argument 'add_generation_prompt'"),
        ("enable_thinking=false", TypeError, "must be a mapping"),
    ],
)
def test_arguments_that_the_template_does_not_know_are_refused(vlm, arguments, error, message):
    with pytest.raises(error, match=message):
        check_arguments(spoken(vlm, OPENED), arguments)


def test_arguments_are_read_from_text():
    given = ["enable_thinking=False", "depth=3", "style = brief", "none=None", 'tools=["a"]']
    assert parse_arguments(given) == {
        "enable_thinking": False,
        "depth": 3,
        "style": "brief",
        "none": None,
        "tools": ["a"],
    }
    values = parse_arguments(given) | {"text": "3", "word": "true"}
    assert parse_arguments([written_argument(*item) for item in values.items()]) == values
    for wrong in (["enable_thinking"], ["=3"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match=r"NAME=VALUE|given twice"):
            parse_arguments(wrong)


def test_an_evaluation_asks_with_the_templates_arguments(vlm):
    processor = spoken(vlm, OPENED)
    preparation = Preparation(None, processor, chat_template_kwargs={"enable_thinking": False})
    made = preparation.encode(vlm.images, QUESTIONS)
    wanted = inputs_of(vlm, processor, [said(q) for q in QUESTIONS], enable_thinking=False)
    assert torch.equal(torch.from_numpy(made["input_ids"]), wanted["input_ids"])


# Two starts, and no template


@pytest.fixture
def processor():
    return AutoProcessor.from_pretrained(lab.CHECKPOINT)


@pytest.fixture
def starting(processor):
    """The processor with a tokenizer that puts <s> before every text."""
    tokenizer = processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    assert processor.chat_template.count("<s>") == 1
    return processor


@pytest.mark.parametrize("before", ["", "{{ '\\n' }}", "{{ ' \\n' }}"])
def test_a_sequence_begins_once(starting, before):
    starting.chat_template = before + starting.chat_template
    chat = user_turn([lab_image()], "What?")
    for messages in (chat, [chat]):
        ids = templated(starting, messages, {})["input_ids"][0].tolist()
        assert ids.count(starting.tokenizer.bos_token_id) == 1


def test_a_start_that_the_template_does_not_write_is_added(starting):
    starting.chat_template = starting.chat_template.replace("<s>", "")
    ids = templated(starting, user_turn([lab_image()], "What?"), {})["input_ids"][0].tolist()
    assert ids[0] == starting.tokenizer.bos_token_id
    assert ids.count(ids[0]) == 1


def test_two_starts_of_the_callers_own_are_warned_of(starting):
    model = AutoModelForImageTextToText.from_pretrained(lab.CHECKPOINT, dtype=torch.float32)
    text = starting.apply_chat_template(
        user_turn([lab_image()], "What?"), add_generation_prompt=True, tokenize=False
    )
    for added, warns in ((True, True), (False, False)):
        inputs = starting(
            images=[lab_image()] * 2,
            text=[text, text.replace("What?", "What is there?")],
            add_special_tokens=added,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.generate(**inputs, custom_generate=VDD(), max_new_tokens=1)
        about = [w for w in caught if "begins with two tokens" in str(w.message)]
        assert len(about) == int(warns)


def lab_image():
    return lab.draw(lab.decorrelated(np.random.default_rng(0)))


def test_a_processor_without_a_template_writes_its_own_prompt(processor):
    """PaliGemma's puts images, the start, text and a newline into a prompt."""
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 4
    own = PaliGemmaProcessor(images, processor.tokenizer)
    assert own.chat_template is None
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16)
    made = prompt_inputs(model, own, [lab_image()], "a cup")
    assert "labels" not in made
    assert made["pixel_values"].dtype == torch.bfloat16
    assert int((made["input_ids"] == own.image_token_id).sum()) == 4
    assert "a cup" in own.decode(made["input_ids"][0])
    with pytest.raises(ValueError, match="no chat template that would take thinking"):
        prompt_inputs(model, own, [lab_image()], "a cup", chat_template_kwargs={"thinking": True})
    with pytest.raises(ValueError, match="no chat template, in which this decoder would ask"):
        PromptEditor(own, model)
    batch = Preparation(None, own).encode([lab_image()] * 2, ["a cup", "a cup and a dog"])
    assert (batch["input_ids"] == own.image_token_id).sum(axis=1).tolist() == [4, 4]
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


# Published templates, where they lie beside the repository


class Rendering:
    """A processor that renders a published template and does nothing else."""

    tokenizer = SimpleNamespace(get_added_vocab=lambda: {"<think>": 0, "</think>": 1})

    def __init__(self, template):
        self.chat_template = template

    def apply_chat_template(self, turns, add_generation_prompt, tokenize, **arguments):
        texts, _ = render_jinja_template(
            [turns],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **{"bos_token": "<bos>", "eos_token": "<eos>", **arguments},
        )
        return texts[0]


@needs_facts
def test_published_templates_are_recognised_with_any_argument():
    opens = set()
    paths = sorted(CHECKPOINTS.glob("*.json"))
    found = [(path.stem, json.loads(path.read_text())["chat_template"]) for path in paths]
    templates = [(name, entry["text"]) for name, entry in found if entry]
    assert len(templates) > 8
    for name, text in templates:
        template = Template(Rendering(text))
        chats = [said("WORDS"), said("Is <b> it?", "No", "WORDS")]
        if "'type': 'text'" in template.rendered(said("a", "REPLY", "b")):
            chats[1][1]["content"] = "No"
        for chat in chats:
            for arguments in MODES:
                prompt = template.processor.apply_chat_template(chat, True, False, **arguments)
                start = template.answer_start(prompt)
                assert start is not None and prompt[:start].rstrip().endswith("WORDS"), name
                assert template.answer_start(prompt + "There is") is None, name
                if template.open_thought(prompt):
                    opens.add((name, arguments.get("enable_thinking")))
        assert "REPLY" not in template.before_reply + template.between_turns
        assert template.before_reply.strip() and template.between_turns.strip()
    assert opens == {("qwen35", None), ("qwen35", True)}
