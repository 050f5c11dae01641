"""Which checkpoints there are: their tokens, how their processors are set up, their sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers as hf

from checkpoints.vocabulary import byte_level, pieces


@dataclass(frozen=True)
class Record:
    """A checkpoint.

    Args:
        family: transformers' model type.
        processor: Makes it, with its tokenizer.
        tokens: The tokens that the config names, by the config's names; all of them.
        changes: Config values, by dotted name; a function is asked with the tokenizer.
        written: The template's file, where it is not the checkpoint's name.
        has_template: Whether it can be talked to.
        facts: The file of facts beside the repository, without its suffix.
        seed: Of the weights.
    """

    family: str
    processor: Callable[[], Any]
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""
    has_template: bool = True
    facts: str = ""
    seed: int = 0


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def vision(**values: Any) -> dict[str, Any]:
    return {f"vision_config.{name}": value for name, value in values.items()}


TOWER = vision(image_size=56, patch_size=14)  # 4 x 4 patches


def pixtral() -> Any:
    special = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]")
    special += ("[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]")
    special += ("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]")
    return byte_level(
        (*special, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        adds_bos=True,
    )


def pixtral_processor() -> Any:
    images = hf.PixtralImageProcessor(size={"longest_edge": 128}, patch_size=square(16))
    return hf.PixtralProcessor(images, pixtral(), patch_size=16)


def mistral_processor() -> Any:
    images = hf.PixtralImageProcessor(size={"longest_edge": 224}, patch_size=square(14))
    return hf.PixtralProcessor(images, pixtral(), patch_size=14, spatial_merge_size=2)


def llava_processor() -> Any:
    tokenizer = pieces(
        ("<unk>", "<s>", "</s>"),
        ("<image>", "<pad>"),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        newlines=False,
        leading_space=True,
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=square(56))
    return hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN = (
    *CHATML,
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
QWEN_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def qwen_tokenizer(last: tuple[str, ...] = QWEN, **settings: Any) -> Any:
    return byte_level(last=last, eos="<|im_end|>", pad="<|endoftext|>", **settings)


def qwen_processor(kind: Any, video: Any, patch: int = 14, more: tuple = ()) -> Callable[[], Any]:
    def make() -> Any:
        size = {"shortest_edge": 16 * patch**2, "longest_edge": 4096 * patch**2}
        images = hf.Qwen2VLImageProcessor(size=size, patch_size=patch)
        videos = video(size=size, patch_size=patch)
        return kind(images, qwen_tokenizer((*QWEN, *more)), videos)

    return make


def idefics3_tokenizer() -> Any:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    last = ("<|begin_of_text|>", "<|end_of_text|>", *tiles, "<global-img>")
    return byte_level(
        last=(*last, "<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        bos="<|begin_of_text|>",
        eos="<end_of_utterance>",
        pad="<|end_of_text|>",
        adds_bos=True,
    )


def idefics3_processor() -> Any:
    images = hf.Idefics3ImageProcessor(
        size={"longest_edge": 4 * 56}, max_image_size={"longest_edge": 56}
    )
    return hf.Idefics3Processor(images, idefics3_tokenizer(), image_seq_len=4)


def internvl_processor() -> Any:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = (*CHATML, *QWEN[3:7], "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    tokenizer = qwen_tokenizer(special, extra_special_tokens=names)
    images = hf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=False)
    videos = hf.InternVLVideoProcessor(size=square(56))
    return hf.InternVLProcessor(images, tokenizer, videos, image_seq_length=4)


TILES = [[56 * rows, 56 * columns] for rows in range(1, 4) for columns in range(1, 4)]


def llava_ov_processor() -> Any:
    tokenizer = qwen_tokenizer((*CHATML, "<image>", "<video>"))
    images = hf.LlavaOnevisionImageProcessor(size=square(56), image_grid_pinpoints=TILES)
    videos = hf.LlavaOnevisionVideoProcessor(size=square(56))
    return hf.LlavaOnevisionProcessor(
        images, tokenizer, videos, num_image_tokens=16, vision_feature_select_strategy="full"
    )


GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


def gemma_tokenizer(first: tuple = (), last: tuple = (), **settings: Any) -> Any:
    return pieces(
        (*GEMMA, *first), last, bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>", **settings
    )


def gemma3_processor() -> Any:
    tokenizer = gemma_tokenizer(
        ("<start_of_turn>", "<end_of_turn>"),
        ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    images = hf.Gemma3ImageProcessor(size=square(56))
    return hf.Gemma3Processor(images, tokenizer, image_seq_length=4)


def gemma4_processor() -> Any:
    names = {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    }
    tokenizer = gemma_tokenizer(
        ("<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>"),
        ("<|image>", "<|audio>", "<|image|>", "<|audio|>", "<image|>", "<audio|>", "<|video|>"),
        extra_special_tokens=names,
    )
    return hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(),
        tokenizer,
        hf.Gemma4VideoProcessor(),
    )


GLM = ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>")
GLM += ("<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>")
GLM += ("<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>")


def glm4v_processor() -> Any:
    tokenizer = byte_level(last=GLM, eos="<|endoftext|>", pad="<|endoftext|>")
    size = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000}
    images = hf.Glm4vImageProcessor(size=size)
    return hf.Glm4vProcessor(images, tokenizer, hf.Glm4vVideoProcessor(size=size))


LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|step_id|>")
LLAMA3 += ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")


def llama3_tokenizer(*last: str, pad: str = "<|finetune_right_pad_id|>") -> Any:
    return byte_level(
        last=(*LLAMA3, *last), bos="<|begin_of_text|>", eos="<|eot_id|>", pad=pad, adds_bos=True
    )


def mllama_processor() -> Any:
    images = hf.MllamaImageProcessor(size=square(56), max_image_tiles=4)
    return hf.MllamaProcessor(images, llama3_tokenizer("<|image|>"))


def paligemma_processor() -> Any:
    images = hf.SiglipImageProcessor(size=square(56))
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, gemma_tokenizer(last=("<image>",)))


RECORDS: dict[str, Record] = {
    "gemma3": Record(
        "gemma3",
        gemma3_processor,
        {
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
        {**TOWER, "mm_tokens_per_image": 4},
        facts="gemma3",
    ),
    "gemma4": Record(
        "gemma4",
        gemma4_processor,
        {
            "boi_token_id": "<|image>",
            "eoi_token_id": "<image|>",
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "boa_token_id": "<|audio>",
            "eoa_token_index": "<audio|>",
            "audio_token_id": "<|audio|>",
        },
        vision(patch_size=16, pooling_kernel_size=3, position_embedding_size=128),
        facts="gemma4",
    ),
    "glm41v": Record(
        "glm4v",
        glm4v_processor,
        {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
            "video_start_token_id": "<|begin_of_video|>",
            "video_end_token_id": "<|end_of_video|>",
        },
        vision(patch_size=14),
        facts="glm41v",
    ),
    "idefics3": Record(
        "idefics3",
        idefics3_processor,
        {"image_token_id": "<image>"},
        {**TOWER, "scale_factor": 2},
        facts="idefics3",
    ),
    "internvl3": Record(
        "internvl",
        internvl_processor,
        {"image_token_id": "<IMG_CONTEXT>"},
        vision(image_size=[56, 56], patch_size=[14, 14]),
        facts="internvl3",
    ),
    "llava15": Record(
        "llava", llava_processor, {"image_token_index": "<image>"}, TOWER, facts="llava15"
    ),
    "llava_ov": Record(
        "llava_onevision",
        llava_ov_processor,
        {"image_token_index": "<image>", "video_token_index": "<video>"},
        {**TOWER, "image_grid_pinpoints": TILES},
        facts="llava_ov",
    ),
    "mistral31": Record(
        "mistral3",
        mistral_processor,
        {"image_token_index": "[IMG]"},
        vision(image_size=224, patch_size=14),
        facts="mistral31",
    ),
    "mllama": Record(
        "mllama",
        mllama_processor,
        {"image_token_index": "<|image|>"},
        {
            **TOWER,
            **vision(
                max_num_tiles=4,
                supported_aspect_ratios=[
                    *([1, 1], [1, 2], [1, 3], [1, 4]),
                    *([2, 1], [2, 2], [3, 1], [4, 1]),
                ],
            ),
            "text_config.vocab_size": lambda t: t.convert_tokens_to_ids("<|image|>"),
        },
        facts="mllama",
    ),
    "paligemma": Record(
        "paligemma",
        paligemma_processor,
        {"image_token_index": "<image>"},
        TOWER,
        has_template=False,
        facts="paligemma2",
    ),
    "pixtral": Record(
        "llava",
        pixtral_processor,
        {"image_token_index": "[IMG]"},
        {
            "vision_config": dict(
                model_type="pixtral",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=128,
                patch_size=16,
            ),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        facts="pixtral",
    ),
    "qwen2vl": Record(
        "qwen2_vl",
        qwen_processor(hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor),
        QWEN_TOKENS,
        vision(patch_size=14),
        facts="qwen2vl",
    ),
    "qwen25vl": Record(
        "qwen2_5_vl",
        qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        QWEN_TOKENS,
        vision(patch_size=14, window_size=112),
        written="qwen2vl",
        facts="qwen25vl",
    ),
    "qwen3vl": Record(
        "qwen3_vl",
        qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, 16),
        QWEN_TOKENS,
        vision(patch_size=16),
        facts="qwen3vl",
    ),
    "qwen35": Record(
        "qwen3_5",
        qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, 16, ("<think>", "</think>")),
        QWEN_TOKENS,
        vision(patch_size=16),
        facts="qwen35",
    ),
}
