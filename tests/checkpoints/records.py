"""Which checkpoints there are: their tokens, how their processors are set up, their sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers as hf

from .vocabulary import byte_level, pieces


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
        ends: Tokens that end an answer, where the tokenizer's end is not the only one.
        generation: Further settings that it comes with.
        facts: The file of facts beside the repository, without its suffix.
    """

    family: str
    processor: Callable[[], Any]
    tokens: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""
    has_template: bool = True
    ends: tuple[str, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    facts: str = ""


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def vision(**values: Any) -> dict[str, Any]:
    return {f"vision_config.{name}": value for name, value in values.items()}


TOWER = vision(image_size=56, patch_size=14)  # 4 x 4 patches


def pixtral_tokenizer() -> Any:
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
    return hf.PixtralProcessor(images, pixtral_tokenizer(), patch_size=16)


def mistral_processor() -> Any:
    images = hf.PixtralImageProcessor(size={"longest_edge": 224}, patch_size=square(14))
    return hf.PixtralProcessor(images, pixtral_tokenizer(), patch_size=14, spatial_merge_size=2)


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


SPLIT_IMAGE = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
SPLIT_IMAGE += ["<global-img>"]


def idefics3_tokenizer() -> Any:
    last = ("<|begin_of_text|>", "<|end_of_text|>", *SPLIT_IMAGE)
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


def smolvlm_processor() -> Any:
    tokenizer = byte_level(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        (*SPLIT_IMAGE, "<fake_token_around_image>", "<image>", "<end_of_utterance>"),
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
    )
    size = {"longest_edge": 4 * 56}
    images = hf.SmolVLMImageProcessor(size=size, max_image_size={"longest_edge": 56})
    videos = hf.SmolVLMVideoProcessor(size=size, max_image_size={"longest_edge": 56})
    return hf.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4)


def mistral_tokenizer(*last: str, **settings: Any) -> Any:
    return pieces(
        ("<unk>", "<s>", "</s>"),
        last,
        bos="<s>",
        eos="</s>",
        unk="<unk>",
        newlines=False,
        leading_space=True,
        **settings,
    )


def idefics2_processor() -> Any:
    tokenizer = mistral_tokenizer(
        "<fake_token_around_image>", "<image>", "<end_of_utterance>", pad="<unk>"
    )
    images = hf.Idefics2ImageProcessor(
        size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=True
    )
    return hf.Idefics2Processor(images, tokenizer, image_seq_len=4)


def llava_next_processor() -> Any:
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 56}, crop_size=square(56), image_grid_pinpoints=NEXT_TILES
    )
    return hf.LlavaNextProcessor(
        images,
        mistral_tokenizer("<image>", "<pad>", pad="<pad>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


NEXT_TILES = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
COHERE = ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>")
COHERE_TURNS = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>")
COHERE_TURNS += ("<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>")
COHERE_IMAGE = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>")


def cohere_tokenizer(*last: str, **settings: Any) -> Any:
    return byte_level(
        COHERE,
        (*COHERE_TURNS, *last),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        unk="<UNK>",
        adds_bos=True,
        **settings,
    )


def aya_vision_processor() -> Any:
    tiles = [f"TILE_{number}" for number in range(1, 13)]
    tokenizer = cohere_tokenizer(
        *("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<image>", *tiles, "TILE_GLOBAL"),
        *COHERE_IMAGE,
    )
    images = hf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=True)
    return hf.AyaVisionProcessor(images, tokenizer, 14, 56, downsample_factor=2)


def cohere2_vision_processor() -> Any:
    names = {
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "image_token": "<|IMG_PATCH|>",
    }
    tokenizer = cohere_tokenizer(
        "<|START_TEXT|>", "<|END_TEXT|>", *COHERE_IMAGE, extra_special_tokens=names
    )
    images = hf.Cohere2VisionImageProcessor(size=square(32), patch_size=4)
    return hf.Cohere2VisionProcessor(images, tokenizer)


LLAMA4 = ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>")
LLAMA4 += ("<|eot|>", "<|finetune_right_pad|>", "<|image_start|>", "<|image_end|>")
LLAMA4 += ("<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|patch|>")


def llama4_processor() -> Any:
    tokenizer = byte_level(
        last=LLAMA4,
        bos="<|begin_of_text|>",
        eos="<|eot|>",
        pad="<|finetune_right_pad|>",
        adds_bos=True,
    )
    images = hf.Llama4ImageProcessor(size=square(56))
    return hf.Llama4Processor(images, tokenizer, patch_size=14)


OVIS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def ovis2_processor() -> Any:
    tokenizer = qwen_tokenizer((*CHATML, "<IMG_ATOM>", *OVIS, "<image>"))
    images = hf.Ovis2ImageProcessor(size=square(56), crop_to_patches=True, max_patches=9)
    return hf.Ovis2Processor(images, tokenizer, image_seq_length=4)


def deepseek_tokenizer(*last: str, **settings: Any) -> Any:
    bar, space = "\N{FULLWIDTH VERTICAL LINE}", "▁"
    named = ("begin of sentence", "end of sentence", " pad ")
    ends = [f"<{bar}{name.replace(' ', space)}{bar}>" for name in named]
    return byte_level(
        last=(*ends, *last), bos=ends[0], eos=ends[1], pad=ends[2], adds_bos=True, **settings
    )


def janus_processor() -> Any:
    names = {
        "image_token": "<image_placeholder>",
        "boi_token": "<begin_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = deepseek_tokenizer(
        *("<|User|>", "<|Assistant|>"),
        *("<begin_of_image>", "<image_placeholder>", "<end_of_image>"),
        extra_special_tokens=names,
    )
    images = hf.JanusImageProcessor(size=square(56))
    return hf.JanusProcessor(images, tokenizer, num_image_tokens=16)


def deepseek_vl_processor() -> Any:
    names = {"image_token": "<image_placeholder>"}
    tokenizer = deepseek_tokenizer("<image_placeholder>", extra_special_tokens=names)
    images = hf.DeepseekVLImageProcessor(size=square(56))
    return hf.DeepseekVLProcessor(images, tokenizer, num_image_tokens=16)


def lfm2_vl_processor() -> Any:
    ends = ("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    tokenizer = byte_level(
        (*ends, "<image>", *tiles, "<|img_thumbnail|>", "<|image_start|>", "<|image_end|>"),
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<|pad|>",
        adds_bos=True,
    )
    images = hf.Lfm2VlImageProcessor(
        tile_size=32,
        encoder_patch_size=8,
        min_image_tokens=4,
        max_image_tokens=8,
        max_tiles=6,
        return_row_col_info=True,
    )
    return hf.Lfm2VlProcessor(images, tokenizer)


CODES = [f"<|visual token {number:06}|>" for number in range(8)]


def emu3_processor() -> Any:
    names = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    tokenizer = byte_level(
        last=(
            *("<|extra_203|>", "<|extra_204|>", "<|endoftext|>", "<|image start|>"),
            *("<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", *CODES),
            "<image>",
        ),
        bos="<|extra_203|>",
        eos="<|extra_204|>",
        pad="<|endoftext|>",
        extra_special_tokens=names,
    )
    images = hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64)
    return hf.Emu3Processor(images, tokenizer)


def emu3_vocabulary(tokenizer: Any) -> dict[str, int]:
    return {
        token: tokenizer.convert_tokens_to_ids(token)
        for token in ("<image>", "<|extra_200|>", *CODES)
    }


def minicpmv46_processor() -> Any:
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    more = [*names.values()][2:]
    tokenizer = qwen_tokenizer((*QWEN, "<think>", "</think>", *more), extra_special_tokens=names)
    sizes = dict(scale_resolution=112, patch_size=14)
    images = hf.MiniCPMV4_6ImageProcessor(**sizes)
    return hf.MiniCPMV4_6Processor(images, hf.MiniCPMV4_6VideoProcessor(**sizes), tokenizer)


KIMI = ("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>")
KIMI += ("<|im_middle|>", "<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>")
KIMI += ("<think>", "</think>", "[UNK]", "[PAD]", "<|kimi_k25_video_placeholder|>")


def kimi_processor() -> Any:
    tokenizer = byte_level(last=KIMI, bos="[BOS]", eos="<|im_end|>", pad="[PAD]", unk="[UNK]")
    images = hf.Kimi_K25ImageProcessor()
    return hf.Kimi_K25Processor(images, tokenizer, hf.Kimi_K25VideoProcessor())


def aria_processor() -> Any:
    special = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<fim_prefix>")
    tokenizer = pieces(
        (*special, "<fim_middle>", "<fim_suffix>", "<|reserved|>", "<|img|>"),
        bos="<s>",
        eos="<|im_end|>",
        pad="<unk>",
        unk="<unk>",
        adds_bos=False,
        extra_special_tokens={"image_token": "<|img|>"},
    )
    return hf.AriaProcessor(hf.AriaImageProcessor(), tokenizer, size_conversion={980: 4})


MOLMO = ("<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>")
MOLMO += ("<im_low>", "<frame_start>", "<frame_end>", "<|video|>")


def molmo2_processor() -> Any:
    sizes = {"size": square(56), "patch_size": 14}
    images = hf.Molmo2ImageProcessor(**sizes, overlap_margins=[0, 0])
    videos = hf.Molmo2VideoProcessor(**sizes)
    return hf.Molmo2Processor(images, videos, qwen_tokenizer((*CHATML, *MOLMO)))


def minimax_processor() -> Any:
    marks = ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")
    tokenizer = byte_level(last=("]!p~[", "]~b]", "[e~[", *marks), eos="[e~[", pad="]!p~[")
    images = hf.MiniMaxM3VLImageProcessor()
    return hf.MiniMaxM3VLProcessor(images, tokenizer, hf.MiniMaxM3VLVideoProcessor())


def qianfan_processor() -> Any:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    special = (*CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<image>")
    tokenizer = qwen_tokenizer(special, extra_special_tokens=names)
    images = hf.GotOcr2ImageProcessor(size=square(56), crop_to_patches=True)
    return hf.QianfanOCRProcessor(images, tokenizer, image_seq_length=4)


STEP = ("<im_start>", "<im_end>", "<im_patch>", "<patch_start>", "<patch_end>", "<patch_newline>")


def step3p7_processor() -> Any:
    images = hf.Step3p7ImageProcessor(
        size=square(112), patch_size=56, vision_patch_size=14, downsampler_stride=4
    )
    return hf.Step3p7Processor(images, qwen_tokenizer((*CHATML, *STEP)))


RECORDS: dict[str, Record] = {
    "gemma3": Record(
        "gemma3",
        gemma3_processor,
        {
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
        {**TOWER, "mm_tokens_per_image": 4, "text_config.sliding_window": 1024},
        ends=("<eos>", "<end_of_turn>"),
        generation={"do_sample": True, "top_k": 64, "top_p": 0.95},
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
        {
            **vision(patch_size=16, pooling_kernel_size=3, position_embedding_size=128),
            "text_config.sliding_window": 512,
        },
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
        ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
        generation={"do_sample": True, "top_p": 0.6, "top_k": 2, "temperature": 0.8},
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
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
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
        ends=("<|im_end|>", "<|endoftext|>"),
        generation={"do_sample": True, "temperature": 0.01, "top_p": 0.001, "top_k": 1},
        facts="qwen2vl",
    ),
    "qwen25vl": Record(
        "qwen2_5_vl",
        qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor),
        QWEN_TOKENS,
        vision(patch_size=14, window_size=112),
        written="qwen2vl",
        ends=("<|im_end|>", "<|endoftext|>"),
        generation={"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06},
        facts="qwen25vl",
    ),
    "qwen3vl": Record(
        "qwen3_vl",
        qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, 16),
        QWEN_TOKENS,
        vision(patch_size=16),
        ends=("<|im_end|>", "<|endoftext|>"),
        generation={
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "repetition_penalty": 1.0,
        },
        facts="qwen3vl",
    ),
    "qwen35": Record(
        "qwen3_5",
        qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, 16, ("<think>", "</think>")),
        QWEN_TOKENS,
        vision(patch_size=16),
        facts="qwen35",
    ),
    # Made of transformers' processors and configs and of what is publicly known of their prompts.
    "aria": Record(
        "aria",
        aria_processor,
        {"image_token_index": "<|img|>"},
        vision(image_size=980, patch_size=245),
    ),
    "aya_vision": Record(
        "aya_vision",
        aya_vision_processor,
        {"image_token_index": "<|IMG_PATCH|>"},
        {**TOWER, "text_config.sliding_window": 4096},
    ),
    "cohere2_vision": Record(
        "cohere2_vision",
        cohere2_vision_processor,
        {"image_token_id": "<|IMG_PATCH|>"},
        {**vision(image_size=32, patch_size=4), "text_config.sliding_window": 4096},
    ),
    "deepseek_vl": Record(
        "deepseek_vl", deepseek_vl_processor, {"image_token_id": "<image_placeholder>"}, TOWER
    ),
    "emu3": Record(
        "emu3", emu3_processor, {"image_token_id": "<image>"}, {"vocabulary_map": emu3_vocabulary}
    ),
    "idefics2": Record(
        "idefics2",
        idefics2_processor,
        {"image_token_id": "<image>"},
        {**TOWER, "text_config.sliding_window": 4096},
    ),
    "janus": Record("janus", janus_processor, {"image_token_id": "<image_placeholder>"}, TOWER),
    "kimi_k25": Record(
        "kimi_k25",
        kimi_processor,
        {
            "image_token_id": "<|media_pad|>",
            "video_token_id": "<|kimi_k25_video_placeholder|>",
            "vision_start_token_id": "<|media_begin|>",
            "vision_end_token_id": "<|media_end|>",
        },
        vision(patch_size=14),
    ),
    "lfm2_vl": Record("lfm2_vl", lfm2_vl_processor, {"image_token_id": "<image>"}),
    "llama4": Record(
        "llama4",
        llama4_processor,
        {
            "boi_token_index": "<|image_start|>",
            "eoi_token_index": "<|image_end|>",
            "image_token_index": "<|patch|>",
        },
        TOWER,
    ),
    "llava_next": Record(
        "llava_next",
        llava_next_processor,
        {"image_token_index": "<image>"},
        {**TOWER, "image_grid_pinpoints": NEXT_TILES},
    ),
    "minicpmv46": Record(
        "minicpmv4_6",
        minicpmv46_processor,
        {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"},
        vision(patch_size=14, image_size=112),
    ),
    "ovis2": Record(
        "ovis2",
        ovis2_processor,
        {"image_token_id": "<IMG_ATOM>", "visual_indicator_token_ids": OVIS},
        {**TOWER, **vision(hidden_stride=2)},
    ),
    "smolvlm": Record(
        "smolvlm",
        smolvlm_processor,
        {"image_token_id": "<image>"},
        {**TOWER, "scale_factor": 2},
        written="idefics3",
    ),
    "molmo2": Record(
        "molmo2",
        molmo2_processor,
        {
            "image_patch_id": "<im_patch>",
            "image_start_token_id": "<im_start>",
            "low_res_image_start_token_id": "<low_res_im_start>",
            "image_end_token_id": "<im_end>",
            "frame_start_token_id": "<frame_start>",
            "frame_end_token_id": "<frame_end>",
        },
        vision(image_size=[56, 56], patch_size=14),
    ),
    "minimax_m3": Record(
        "minimax_m3_vl",
        minimax_processor,
        {"image_token_index": "]<]image[>[", "video_token_index": "]<]video[>["},
        vision(patch_size=14),
    ),
    "qianfan_ocr": Record(
        "qianfan_ocr",
        qianfan_processor,
        {"image_token_id": "<IMG_CONTEXT>"},
        vision(image_size=[56, 56], patch_size=[14, 14]),
    ),
    "step3p7": Record(
        "step3p7",
        step3p7_processor,
        {"image_token_id": "<im_patch>"},
        vision(image_size=112, patch_size=14),
    ),
}
