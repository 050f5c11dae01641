"""AMBER, MME and HallusionBench from the command line to the table, on the lab's model.

Images are the lab's scenes, laid out as each benchmark publishes its own; what is asked of them
is made up here. Greedy answers must be those that the model gives to the same prompts by itself.
"""

import json

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from sightline import answer, cli
from sightline.lab import CHECKPOINT, OBJECTS, decorrelated, draw
from sightline.lab.dialogue import DESCRIBE, question

SCENES = 3


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(5)
    scenes = [decorrelated(rng) for _ in range(SCENES)]
    return [(scene, draw(scene)) for scene in scenes]


@pytest.fixture(scope="module")
def say():
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    return lambda image, text, length: answer(model, processor, image, text, max_new_tokens=length)


def present(scene):
    return sorted(scene.present)[0]


def absent(scene):
    return next(name for name in OBJECTS if name not in scene.present)


def evaluated(folder, *arguments):
    """Runs a benchmark; its summary, and its answers by task, decoder and id."""
    out = folder / "run"
    given = ["evaluate", *map(str, arguments), "--decoder", "vdd", "--no-controls", "--out", out]
    result = CliRunner().invoke(cli.app, [*map(str, given), "--batch-size", "4"])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    answers = {(a["task"], a["decoder"], a["id"]): a["answer"] for a in lines}
    assert len(answers) == len(lines)
    assert (out / "table.md").read_text()
    return json.loads((out / "summary.json").read_text()), answers


def value(summary, task, metric, decoder="greedy"):
    return summary["tasks"][task]["rows"][decoder][metric]["value"]


def test_mme(tmp_path, drawn, say):
    folder = tmp_path / "mme" / "existence"
    folder.mkdir(parents=True)
    right = []
    for number, (scene, image) in enumerate(drawn):
        asked = {question(present(scene)): "Yes", question(absent(scene)): "No"}
        lines = "".join(f"{text}\t{label}\n" for text, label in asked.items())
        (folder / f"{number}.txt").write_text(lines)
        image.save(folder / f"{number}.png")
        said = {text: say(image, text, 16) for text in asked}
        right.append([said[text].lower().startswith(asked[text].lower()) for text in asked])
    summary, answers = evaluated(
        tmp_path, "mme", "--folder", tmp_path / "mme", "--task", "existence"
    )
    assert len(answers) == 2 * 2 * SCENES
    accuracy, plus = np.mean(right), np.mean([all(pair) for pair in right])
    assert value(summary, "existence", "score") == pytest.approx(100 * (accuracy + plus))


def test_hallusionbench(tmp_path, drawn, say):
    rows, right = [], {}
    for number, (scene, image) in enumerate(drawn):
        image.save(tmp_path / f"{number}.png")
        for place, (name, truth) in enumerate(((present(scene), "1"), (absent(scene), "0"))):
            rows.append(
                {
                    "category": "VD",
                    "subcategory": "figure",
                    "set_id": str(number),
                    "figure_id": "0",
                    "question_id": str(place),
                    "visual_input": "1",
                    "filename": f"./hallusion_bench/{number}.png",
                    "gt_answer": truth,
                    "gt_answer_details": "",
                    "question": question(name),
                }
            )
            said = say(image, question(name), 64).lower()
            right[number, place] = said.startswith("yes" if truth == "1" else "no")
    file = tmp_path / "HallusionBench.json"
    file.write_text(json.dumps(rows))
    summary, answers = evaluated(
        tmp_path, "hallusionbench", "--questions", file, "--images", tmp_path
    )
    assert len(answers) == 2 * 2 * SCENES
    [task] = summary["tasks"]
    figures = [right[number, 0] and right[number, 1] for number in range(SCENES)]
    assert value(summary, task, "aAcc") == pytest.approx(np.mean(list(right.values())))
    assert value(summary, task, "fAcc") == pytest.approx(np.mean(figures))


def test_amber(tmp_path, drawn, say):
    images = tmp_path / "images"
    images.mkdir()
    queries, annotations, hits = [], [], []
    for number, (scene, image) in enumerate(drawn, start=1):
        name = f"AMBER_{number}.jpg"
        image.save(images / name, quality=95, subsampling=0)
        truth = sorted(scene.present)
        queries.append({"id": number, "image": name, "query": DESCRIBE[0]})
        annotations.append({"id": number, "type": "generative", "truth": truth, "hallu": []})
        asked = question(absent(scene))
        queries.append({"id": number + 100, "image": name, "query": asked})
        kind = "discriminative-hallucination"
        annotations.append({"id": number + 100, "type": kind, "truth": "no"})
        hits.append(say(images / name, asked, 16).lower().startswith("no"))
    files = {
        "queries": queries,
        "annotations": annotations,
        "relation": {name: [] for name in OBJECTS},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "safe.txt").write_text("image\n")
    options = [part for n in files for part in (f"--{n}", tmp_path / f"{n}.json")]
    summary, answers = evaluated(
        tmp_path, "amber", "--images", images, "--safe-words", tmp_path / "safe.txt", *options
    )
    assert len(answers) == 2 * 2 * SCENES
    assert value(summary, "existence", "accuracy") == pytest.approx(np.mean(hits))
    captions = [
        (answers["generative", "greedy", str(n)], set(scene.present))
        for n, (scene, _) in enumerate(drawn, start=1)
    ]
    named = [{o for o in OBJECTS if f" {o}" in text and " " not in o} for text, _ in captions]
    there = [{o for o in truth if " " not in o} for _, truth in captions]
    covered = sum(len(n & t) for n, t in zip(named, there, strict=True))
    assert value(summary, "generative", "cover") == pytest.approx(
        covered / sum(len(truth) for _, truth in captions)
    )
