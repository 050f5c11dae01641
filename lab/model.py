"""The lab's model before training: a small LLaVA and its processor, built from nothing."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sightline.lab.dialogue import world_text

SIDE = 64  # the image as the tower sees it, in pixels
PATCH = 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
ROPE_THETA = 1e6  # most of a head's pairs turn so slowly that distance does not matter to them
EMBEDDING_STD, MATCHING = 0.3, 2.5  # of the first weights, see `ease_matching`
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT = range(len(SPECIAL))
VOCABULARY = 512  # at most: it ends where every word of the world is one token

CHAT_TEMPLATE = """\
{{- '<s>' -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '<user>' -}}
{%- elif message['role'] == 'assistant' -%}{{- '<assistant>' -}}
{%- endif -%}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- '</s>' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each word of the world is one token and any text encodes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(world_text(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor() -> LlavaProcessor:
    """Images become 64 x 64 pixels, whatever their shape; a chat becomes one prompt."""
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(vocabulary: int) -> LlavaForConditionalGeneration:
    """A CLIP tower of 0.7 M parameters before a Llama of 1.9 M, at random."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        pad_token_id=PAD,  # type: ignore[call-arg]  # a keyword that its signature leaves out
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    ease_matching(model)
    settings = model.generation_config
    settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = BOS, EOS, PAD
    settings.do_sample, settings.max_new_tokens = False, 96
    return model


@torch.no_grad()
def ease_matching(model: LlavaForConditionalGeneration) -> None:
    """First weights under which a word attends to the same word, and to patches that show it.

    Queries begin as their keys, and embeddings far enough apart to be told from one another. Meant
    to make looking objects up easier to learn; its share in that has not been measured alone.
    """
    language = model.model.language_model
    nn.init.normal_(language.embed_tokens.weight, std=EMBEDDING_STD)
    for layer in language.layers:
        attention = layer.self_attn
        heads = attention.k_proj.weight.view(-1, attention.head_dim, attention.k_proj.in_features)
        heads.mul_(MATCHING)
        queries = heads.repeat_interleave(attention.num_key_value_groups, dim=0)
        attention.q_proj.weight.copy_(queries.flatten(0, 1))
