"""Makes the lab's checkpoint again from a seed, in the stages in which larger models are made.

python -m sightline.lab.train --seed 0 --out DIR

The seed is of the first weights and of the order of the rows.

1. The vision tower learns which objects are there, on decorrelated scenes: honest features.
2. The language model learns the text of the biased world without images: its prior.
3. The projector is aligned: a patch is to look like the word for what it shows.
4. Projector and language model are joined to the tower on biased pairs: first looking, with
   questions whose answer expectation does not give away, then the world as it is, with a share of
   rows that have no image, so that the model still knows what to expect without looking.
   The tower is held fixed, and its features are computed once.
"""

import argparse
import copy
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from sightline.json_text import json_text
from sightline.lab import measure
from sightline.lab.dialogue import conversation, described, description, follow_up, presence
from sightline.lab.model import IMAGE, PATCH, SIDE, build_model, build_processor
from sightline.lab.rows import IGNORED, Packer, TrainingBatch
from sightline.lab.scenes import OBJECTS, Scene, biased, decorrelated, draw

WORLDS = (decorrelated, biased)
WORLD = 0  # the scenes are the same for every seed


@dataclass(frozen=True)
class Round:
    """A part of the joined stage.

    Args:
        steps: Optimiser steps.
        batch: Rows per step.
        questions: Separate questions about each image of a row.
        rate: Learning rate, which then falls along a cosine.
        looking: Ask what expectation does not answer, of images only; else the world as it is.
    """

    steps: int
    batch: int
    questions: int
    rate: float
    looking: bool = False


@dataclass(frozen=True)
class TrainingPlan:
    """How much of everything; `scaled` makes all of it smaller.

    Args:
        scenes: Images of each world.
        tower, text, aligned: Optimiser steps of the first three stages.
        rounds: The fourth.
        tower_batch, text_batch, aligned_batch: Images or rows per step.
        text_only: Share of rows without an image, once the world is as it is.
        probe: Steps between two looks at the greedy figures, each followed by a save.
    """

    scenes: int = 12_000
    tower: int = 700
    text: int = 100
    aligned: int = 600
    rounds: tuple[Round, ...] = (
        Round(900, 8, 20, 1.5e-3, looking=True),
        Round(600, 8, 14, 1e-3),
        Round(2400, 12, 3, 1.2e-3),
    )
    tower_batch: int = 96
    text_batch: int = 8
    aligned_batch: int = 48
    text_only: float = 0.3
    probe: int = 400
    probe_scenes: int = 100

    def scaled(self, scale: float) -> "TrainingPlan":
        def part(count: int) -> int:
            return max(2, round(count * scale))

        return replace(
            self,
            scenes=max(self.tower_batch, part(self.scenes)),
            tower=part(self.tower),
            text=part(self.text),
            aligned=part(self.aligned),
            rounds=tuple(replace(r, steps=part(r.steps)) for r in self.rounds),
            probe=part(self.probe),
            probe_scenes=max(4, part(self.probe_scenes)),
        )


def rng_of(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


def outlined(scene: Scene) -> np.ndarray:
    """Which object is in front at each pixel, by its number in `OBJECTS` from 1, uint8."""
    canvas = Image.new("L", (SIDE, SIDE))
    brush = ImageDraw.Draw(canvas)
    for placed in scene.placed:
        left, top, size = (share * SIDE for share in (placed.left, placed.top, placed.size))
        box = (left, top, left + size, top + size)
        brush.ellipse(box, fill=OBJECTS.index(placed.name) + 1)
    return np.asarray(canvas)


def render(job: tuple[int, int]) -> tuple[Scene, np.ndarray]:
    """Scene number `index` of a world, and its image as the processor resizes it.

    The fourth channel says what is where, for the tower's teacher: uint8 [4, SIDE, SIDE].
    """
    world, index = job
    scene = WORLDS[world](rng_of(WORLD, world, index))
    image = np.asarray(draw(scene).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return scene, np.concatenate([image.transpose(2, 0, 1), outlined(scene)[None]])


def render_all(world: int, count: int) -> tuple[list[Scene], Tensor]:
    """Scenes of one world and their rendered images, uint8 [N, 4, SIDE, SIDE]."""
    jobs = [(world, index) for index in range(count)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        scenes, images = zip(*pool.imap(render, jobs, chunksize=64), strict=True)
    return list(scenes), torch.from_numpy(np.stack(images))


def normalised(pixels: Tensor) -> Tensor:
    """What the image processor makes of the colours: -1 to 1, [N, 3, SIDE, SIDE]."""
    return pixels[:, :3].float() / 127.5 - 1


def shifted(pixels: Tensor, rng: np.random.Generator, reach: int = 3) -> Tensor:
    """Each image [4, SIDE, SIDE] moved by a few pixels, its edge repeated."""
    padded = nn.functional.pad(pixels.float(), [reach] * 4, mode="replicate").to(pixels.dtype)
    moves = rng.integers(0, 2 * reach + 1, size=(len(pixels), 2))
    return torch.stack(
        [p[:, y : y + SIDE, x : x + SIDE] for p, (y, x) in zip(padded, moves, strict=True)]
    )


def fit(
    name: str,
    parameters: Sequence[nn.Parameter],
    steps: int,
    rate: float,
    loss_of: Callable[[], Tensor],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW under a cosine schedule with a warm-up; `after` sees the number of steps done."""
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=0.05, betas=(0.9, 0.98))
    warm = min(50, steps // 4 + 1)
    started, losses = time.time(), []
    for step in range(steps):
        share = min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49 or step == steps - 1:
            mean, seconds = np.mean(losses[-50:]), time.time() - started
            print(f"{name} {step + 1}/{steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
        after(step + 1)


def presence_targets(scenes: Sequence[Scene]) -> Tensor:
    """Which objects are there, [N, objects], 0 or 1."""
    return torch.tensor([[float(n in scene.present) for n in OBJECTS] for scene in scenes])


def patch_targets(pixels: Tensor, least: float = 0.2) -> Tensor:
    """Which objects cover at least a share of each patch, [N, patches, objects], 0 or 1."""
    kinds, side = len(OBJECTS) + 1, SIDE // PATCH
    tiles = pixels[:, 3].long().unflatten(2, (side, PATCH)).unflatten(1, (side, PATCH))
    tiles = tiles.transpose(2, 3).reshape(-1, PATCH * PATCH)
    first = kinds * torch.arange(len(tiles), device=tiles.device)[:, None]
    counts = torch.bincount((tiles + first).flatten(), minlength=kinds * len(tiles))
    covered = counts.view(len(pixels), side * side, kinds)[..., 1:]
    return (covered >= least * PATCH * PATCH).float()


def learn_objects(
    model: Any,
    scenes: Sequence[Scene],
    pixels: Tensor,
    plan: TrainingPlan,
    rng: np.random.Generator,
) -> None:
    """First stage: patches learn what they show, and CLS what the whole image shows.

    The best patch speaks for each object. CLS learns too, so that its attention says where the
    objects are, as in CLIP.
    """
    tower = model.model.vision_tower
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, len(OBJECTS)) for _ in range(2)]).to(model.device)
    truth = presence_targets(scenes).to(model.device)
    score = nn.functional.binary_cross_entropy_with_logits

    def loss() -> Tensor:
        chosen = rng.integers(len(pixels), size=plan.tower_batch)
        seen = shifted(pixels[chosen], rng).to(model.device)
        out = tower(pixel_values=normalised(seen))
        by_patch = heads[0](out.last_hidden_state[:, 1:])
        by_best, by_cls = by_patch.amax(1), heads[1](out.pooler_output)
        whole = score(by_best, truth[chosen]) + score(by_cls, truth[chosen])
        return 5 * score(by_patch, patch_targets(seen)) + 0.5 * whole

    fit("tower", [*tower.parameters(), *heads.parameters()], plan.tower, 2e-3, loss)


@torch.no_grad()
def encode(model: Any, pixels: Tensor, batch: int = 256) -> Tensor:
    """The tower's patch features as the projector gets them, fp16 [N, IMAGE_TOKENS, width]."""
    parts = [
        model.model.vision_tower(pixel_values=normalised(some).to(model.device))
        .last_hidden_state[:, 1:]
        .half()
        for some in pixels.split(batch)
    ]
    return torch.cat(parts)


def language_loss(model: Any, batch: TrainingBatch, features: Tensor | None = None) -> Tensor:
    """Cross-entropy of the tokens to learn; `features` fill the image tokens in row order."""
    device = model.device
    ids = batch.ids.to(device)
    embedded = model.get_input_embeddings()(ids)
    if features is not None:
        projected = model.model.multi_modal_projector(features.float().to(device))
        embedded = embedded.masked_scatter((ids == IMAGE)[..., None], projected.to(embedded))
    hidden = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=batch.mask().to(device),
        position_ids=batch.positions.to(device),
        use_cache=False,
    ).last_hidden_state
    targets = batch.targets.to(device)
    learned = targets != IGNORED
    return nn.functional.cross_entropy(model.lm_head(hidden[learned]).float(), targets[learned])


def in_bf16(model: Any, loss_of: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same loss with products in bf16: twice as fast on a CPU that knows it."""

    def loss() -> Tensor:
        with torch.autocast(model.device.type, torch.bfloat16):
            return loss_of()

    return loss


def learn_text(
    model: Any,
    processor: Any,
    plan: TrainingPlan,
    rng: np.random.Generator,
) -> None:
    """Second stage: long conversations about scenes of the biased world that nobody sees."""
    packer = Packer(processor.tokenizer, questions=True)

    def loss() -> Tensor:
        rows = []
        for _ in range(plan.text_batch):
            scene = biased(rng)
            talks = [described(scene, rng, 9), conversation(scene, rng, 3)]
            rows.append(packer.row(talks, image=False))
        return language_loss(model, packer.batch(rows))

    language = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    fit("text", language, plan.text, 1.5e-3, in_bf16(model, loss))


def align(
    model: Any,
    processor: Any,
    pixels: Tensor,
    features: Tensor,
    plan: TrainingPlan,
    rng: np.random.Generator,
) -> None:
    """Third stage: each patch is projected near the word's embedding of what it shows.

    A direction of their own tells patches from words; a patch that shows nothing gets only that.
    """
    table = model.get_input_embeddings().weight.detach()
    ids = [processor.tokenizer(f" {name}").input_ids for name in OBJECTS]
    words = torch.stack([table[i].mean(dim=0) for i in ids])
    scale = words.std()
    kind = scale * torch.from_numpy(rng.normal(size=words.shape[1])).to(words)
    projector = model.model.multi_modal_projector

    def loss() -> Tensor:
        chosen = rng.integers(len(pixels), size=plan.aligned_batch)
        shown = patch_targets(pixels[chosen]).to(words)
        count = shown.sum(dim=-1, keepdim=True)
        word = (shown @ words) / count.clamp_min(1) + 0.5 * kind
        wanted = torch.where(count > 0, word, kind)
        weight = torch.where(count > 0, 4.0, 1.0)
        found = projector(features[chosen].float().to(words.device))
        return (weight * ((found - wanted) / scale) ** 2).mean()

    fit("aligned", [*projector.parameters()], plan.aligned, 4e-3, loss)


def join(
    model: Any,
    processor: Any,
    scenes: Sequence[Scene],
    features: Tensor,
    plan: TrainingPlan,
    rng: np.random.Generator,
    after: Callable[[int], None],
) -> None:
    """Fourth stage: biased pairs and a fixed tower; `after` counts the steps of all rounds."""
    packer = Packer(processor.tokenizer)
    trained = [p for n, p in model.named_parameters() if "vision_tower" not in n]

    def loss(part: Round) -> Tensor:
        rows, seen = [], []
        for index in rng.integers(len(scenes), size=part.batch):
            scene, image = scenes[index], part.looking or rng.random() >= plan.text_only
            talks = [[description(scene, rng)]]
            ask = follow_up if part.looking else presence
            if not part.looking:
                talks += [described(scene, rng, 3), conversation(scene, rng, 2)]
            talks += [[ask(scene, rng)] for _ in range(part.questions)]
            rows.append(packer.row(talks, image))
            if image:
                seen.append(features[index].float())
        return language_loss(model, packer.batch(rows), torch.stack(seen) if seen else None)

    def counted(step: int, before: int) -> None:
        after(before + step)

    done = 0
    for number, part in enumerate(plan.rounds, start=1):
        name, loss_of = f"joined {number}", in_bf16(model, partial(loss, part))
        fit(name, trained, part.steps, part.rate, loss_of, partial(counted, before=done))
        done += part.steps


def write(model: Any, processor: Any, out: Path) -> None:
    """Saves both as any checkpoint is saved, the weights in fp16."""
    copy.deepcopy(model).half().save_pretrained(out)
    processor.save_pretrained(out)


def train(seed: int, out: Path, device: str = "cpu", plan: TrainingPlan | None = None) -> dict:
    """Runs the four stages, saves to `out`, returns the greedy figures of the last probe."""
    plan = plan or TrainingPlan()
    torch.manual_seed(seed)
    processor = build_processor()
    model: Any = build_model(len(processor.tokenizer))
    model.to(device)
    started = time.time()

    scenes, pixels = render_all(0, plan.scenes)
    print(f"drew {len(scenes)} decorrelated scenes {time.time() - started:.0f} s", flush=True)
    learn_objects(model, scenes, pixels, plan, rng_of(seed, 2))
    learn_text(model, processor, plan, rng_of(seed, 3))

    scenes, pixels = render_all(1, plan.scenes)
    features = encode(model, pixels)
    align(model, processor, pixels, features, plan, rng_of(seed, 5))
    print(f"drew {len(scenes)} biased scenes {time.time() - started:.0f} s", flush=True)
    held_out = measure.held_out(plan.probe_scenes)
    last = sum(part.steps for part in plan.rounds)
    result: dict = {}

    def probe(step: int) -> None:
        if step % plan.probe and step != last:
            return
        model.eval()
        result.update(measure.figures(model, processor, held_out))
        model.train()
        write(model, processor, out)
        shown = {name: round(value, 3) for name, value in result.items()}
        print(f"probe {step} {json_text(shown)} {time.time() - started:.0f} s", flush=True)

    join(model, processor, scenes, features, plan, rng_of(seed, 4), probe)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="share of scenes and steps")
    options = parser.parse_args()
    plan = TrainingPlan() if options.scale == 1 else TrainingPlan().scaled(options.scale)
    train(options.seed, options.out, options.device, plan)


if __name__ == "__main__":
    main()
