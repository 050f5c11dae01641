"""MVP: votes counted by hand over paths run one by one, and its captions."""

import pytest
import torch
from chat_answers import ASKED, QUESTIONS, ended, full, generate, plain, shown
from transformers.generation import BaseStreamer

from sightline import MVP
from sightline.decoders.closed_set import LabelProbabilities
from sightline.decoders.mvp.mvp import Drawn
from sightline.vision.noise import generator

LABELS = ("orange", "vase")


def mvp(vlm, **settings):
    given = dict(k=3, labels=LABELS, tokens=20, caption_tokens=12, temperature=0, dedup=False)
    return MVP(processor=vlm.processor, **{**given, **settings})


class Counted(LabelProbabilities):
    """Makes `generate` return the votes of MVP."""

    needs_images = True

    def run(self, model, call):
        return self.decoder._votes(model, self.decoder.expert(model, call))


def votes_of(vlm, decoder, questions=QUESTIONS, images=None):
    given = list(images or shown(vlm))
    return generate(vlm, Counted(decoder), questions, given)[0]


def paths_by_hand(vlm, decoder, question, image):
    """By view, (probability of the first token, all tokens, logits of each), path by path."""
    found = []
    for request in decoder.requests:
        said, _ = plain(vlm, vlm.chat(request), [image], decoder.caption_tokens)
        caption = vlm.processor.decode(said, skip_special_tokens=True).strip()
        text = decoder.template.format(caption=caption, question=question.lower())
        prompt = vlm.chat(text)
        first = full(vlm, prompt, [image]).logits[-1]
        best = first.softmax(-1).topk(decoder.k)
        found.append([])
        for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            inputs = vlm.inputs([prompt], [image])
            for name, new in (
                ("input_ids", token),
                ("attention_mask", 1),
                ("mm_token_type_ids", 0),
            ):
                if name in inputs:
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[new]])], dim=1)
            tokens, logits = [token], [first]
            if token not in vlm.eos:
                out = vlm.model.generate(
                    **inputs, max_new_tokens=decoder.tokens, do_sample=False, **ASKED
                )
                rest = ended(vlm, out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
                tokens, logits = tokens + rest, [first, *(step[0] for step in out.logits)]
            found[-1].append((p, tokens, logits))
    return found


def vote_by_hand(vlm, labels, p, tokens, logits):
    """(label, vote), labels being words of one token that begin with a space or the answer."""
    for place, token in enumerate(tokens):
        word = vlm.processor.decode([token]).strip().lower()
        if word in labels:
            if place == 0:
                return word, p
            best, second = logits[place].double().softmax(-1).topk(2).values.tolist()
            return word, p * (best - second)
    return None, 0.0


@pytest.mark.parametrize("k", [1, 3])
def test_mvp_counts_the_votes_of_paths_run_one_by_one(lab_vlm, k):
    vlm = lab_vlm
    decoder = mvp(vlm, k=k)
    votes = votes_of(vlm, decoder)
    images = list(shown(vlm))
    inputs = vlm.asked(QUESTIONS, images)
    shares = decoder.probabilities(vlm.model, images=images, **inputs)
    out, _ = generate(vlm, decoder, steps=21)
    for row, question in enumerate(QUESTIONS):
        totals = dict.fromkeys(LABELS, 0.0)
        spoken = []
        for weight, paths in zip(
            decoder.weights,
            paths_by_hand(vlm, decoder, question, images[row]),
            strict=True,
        ):
            for p, tokens, logits in paths:
                label, vote = vote_by_hand(vlm, LABELS, p, tokens, logits)
                if label and p >= 0.001:
                    totals[label] += weight * vote
                    spoken.append((weight * vote, label, tokens))
        assert votes[row].totals == pytest.approx(totals, abs=2e-4)
        assert any(totals.values())
        share = [total / sum(totals.values()) for total in totals.values()]
        assert shares[row].tolist() == pytest.approx(share, abs=1e-3)
        winner = max(totals, key=totals.get)
        assert votes[row].label == winner
        _, _, tokens = max((v for v in spoken if v[1] == winner), key=lambda v: v[0])
        answer = votes[row].tokens
        assert answer == tokens[: len(answer)] and winner in vlm.processor.decode(answer)
        assert out[row, inputs["input_ids"].shape[1] :][: len(answer)].tolist() == answer


def test_mvps_paths_are_what_generate_says_after_the_scored_token(vlm):
    """The authors tokenise path and prompt anew: another token than the one that was scored."""
    decoder = mvp(vlm, labels=("zebra", "yak"), threshold=0, tokens=6)
    for row, votes in enumerate(votes_of(vlm, decoder)):
        expected = [
            (view, p, vlm.processor.decode(tokens[:7], skip_special_tokens=True))
            for view, paths in enumerate(
                paths_by_hand(vlm, decoder, QUESTIONS[row], vlm.images[row])
            )
            for p, tokens, _ in paths
        ]
        found = [(path.view, path.first_probability, path.text) for path in votes.paths]
        for (view, p, text), (own, q, words) in zip(found, expected, strict=True):
            assert (view, text) == (own, words)
            assert p == pytest.approx(q, abs=1e-4)
        assert votes.label is None and not any(votes.totals.values())
        _, tokens, _ = paths_by_hand(vlm, decoder, QUESTIONS[row], vlm.images[row])[-1][0]
        assert votes.tokens == tokens[:7]  # what the last view says greedily


def test_unresolved_paths_may_count_as_affirmative(qwen_vlm):
    """The first label, with the whole probability of the first token, unless they deny."""
    vlm = qwen_vlm
    skip, affirmative = (
        votes_of(vlm, mvp(vlm, labels=("zebra", "yak"), tokens=4, unresolved=policy))
        for policy in ("skip", "affirmative")
    )
    for unheard, heard in zip(skip, affirmative, strict=True):
        assert not any(unheard.totals.values()) and unheard.label is None
        total = sum((0.4, 0.4, 0.2)[path.view] * path.first_probability for path in heard.paths)
        assert heard.totals == pytest.approx({"zebra": total, "yak": 0.0})
        assert heard.label == "zebra"


def test_captions_are_asked_once_for_each_image(vlm, monkeypatch):
    from sightline.decoders.mvp import mvp as module

    calls = []
    own = module.generate_text

    def spy(model, branch, tokens, **kwargs):
        calls.append((len(branch.input_ids), tokens))
        return own(model, branch, tokens, **kwargs)

    monkeypatch.setattr(module, "generate_text", spy)
    decoder = mvp(vlm, tokens=4, caption_tokens=5)
    image, other = vlm.images[:2]
    generate(vlm, decoder, QUESTIONS, [image, image])
    generate(vlm, decoder, ["Is there a cup in the image?"], [image.copy()])
    generate(vlm, decoder, QUESTIONS, [other, image])
    assert calls == [(3, 5), (6, 5), (3, 5), (3, 5), (6, 5)]


def beside_a_video(vlm, video, image, question):
    """A prompt in which one image is a video of a single frame."""
    inputs = vlm.inputs([vlm.chat([None, None, question])], [video, image])
    ids, grid = inputs["input_ids"], inputs["image_grid_thw"]
    frame, is_image = int(grid[0].prod()), ids == vlm.image
    is_video = is_image & (is_image.cumsum(1) <= frame // 4)  # 2 x 2 patches a token
    pixels = inputs["pixel_values"]
    return inputs | {
        "input_ids": ids.masked_fill(is_video, vlm.model.config.video_token_id),
        "mm_token_type_ids": is_image.long() + is_video.long(),
        "pixel_values": pixels[frame:],
        "pixel_values_videos": pixels[:frame],
        "image_grid_thw": grid[1:],
        "video_grid_thw": grid[:1],
    }


def test_a_caption_beside_another_video_is_asked_anew(qwen_vlm):
    vlm, decoder = qwen_vlm, mvp(qwen_vlm, tokens=4, caption_tokens=5)
    first, other = vlm.images[0], vlm.images[0].rotate(180)
    known = []
    for video in (first, first, other):
        inputs = beside_a_video(vlm, video, vlm.images[1], QUESTIONS[0])
        asked = dict(images=[vlm.images[1]], max_new_tokens=4)
        vlm.model.generate(**inputs, custom_generate=decoder, **asked)
        known.append(len(captions_of(vlm, decoder)))
    assert known == [3, 3, 6]


def captions_of(vlm, decoder):
    (known,) = decoder._known.by_owner.values()
    return {key: caption for (_, key), caption in known.items()}


def test_captions_at_temperature_0_are_greedy(vlm):
    decoder = mvp(vlm)
    generate(vlm, decoder)
    expected = [
        vlm.processor.decode(
            plain(vlm, vlm.chat(request), [image], 12)[0], skip_special_tokens=True
        ).strip()
        for image in shown(vlm)
        for request in decoder.requests
    ]
    assert list(captions_of(vlm, decoder).values()) == expected


def test_a_drawn_caption_does_not_depend_on_the_batch(vlm):
    def drawn(questions, images, seed=0):
        decoder = mvp(vlm, temperature=1.5, top_p=0.95, seed=seed, tokens=2)
        before = torch.get_rng_state()
        inputs = vlm.asked(questions, images)
        vlm.model.generate(**inputs, images=list(images), custom_generate=decoder, max_new_tokens=2)
        assert torch.equal(torch.get_rng_state(), before)
        return captions_of(vlm, decoder)

    together = drawn(QUESTIONS, shown(vlm))
    alone = drawn(QUESTIONS[1:], shown(vlm)[1:])
    assert len(together) == 6 and len(alone) == 3
    assert all(together[key] == caption for key, caption in alone.items())
    others = drawn(QUESTIONS, shown(vlm), seed=1)
    assert list(others.values()) != list(together.values())
    greedy = mvp(vlm)
    generate(vlm, greedy)
    assert list(captions_of(vlm, greedy).values()) != list(together.values())


def test_views_of_one_request_are_drawn_one_by_one(vlm):
    """Three drawn captions of one image are three, at 0 they are one; each again when asked."""

    def captions(temperature):
        same = ("Describe the image.",) * 3
        decoder = mvp(vlm, temperature=temperature, top_p=1.0, requests=same)
        generate(vlm, decoder)
        said = list(captions_of(vlm, decoder).values())
        return [said[:3], said[3:]]

    for drawn, greedy in zip(captions(5.0), captions(0), strict=True):
        assert len(set(drawn)) == 3 and len(set(greedy)) == 1
    assert captions(5.0) == captions(5.0)


def test_drawn_rows_have_the_frequencies_of_the_distribution():
    """Of 4,000 rows with noise of their own: p at temperature 2, over the nucleus of 0.9."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = [generator(0, view, b"image") for view in range(4000)]
    drawn = Drawn(2.0, 0.9, draws)(None, p.log().expand(4000, 4)).argmax(dim=-1)
    # Roots of p: .7071 .5477 .3873 .2236; shares .3790 .2936 .2076 .1198. All are needed for 0.9.
    shares = torch.bincount(drawn, minlength=4) / 4000
    wanted = torch.tensor([0.3790, 0.2936, 0.2076, 0.1198])
    torch.testing.assert_close(shares, wanted, atol=0.025, rtol=0)  # three standard deviations
    narrow = Drawn(1.0, 0.6, draws)(None, p.log().expand(4000, 4)).argmax(dim=-1)
    shares = torch.bincount(narrow, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.625, 0.375, 0, 0]), atol=0.025, rtol=0)


def test_a_caption_after_earlier_turns_is_not_that_of_the_first(vlm):
    """What was said before stands before the request, so it is another caption."""
    prompts = [
        vlm.chat("Is there a cow?"),
        vlm.chat("Is there a cow?", "No", "Is there a dog?"),
        vlm.chat("Is there a cow?", "Yes", "Is there a dog?"),
    ]
    image = vlm.images[0]
    decoder = mvp(vlm, tokens=2, caption_tokens=5)
    for prompt in prompts:
        inputs = vlm.inputs([prompt], [image])
        vlm.model.generate(**inputs, images=image, custom_generate=decoder, max_new_tokens=2)
    turns = [(), ("Is there a cow?", "No"), ("Is there a cow?", "Yes")]
    expected = [
        vlm.processor.decode(
            plain(vlm, vlm.chat(*before, request), [image], 5)[0],
            skip_special_tokens=True,
        ).strip()
        for before in turns
        for request in decoder.requests
    ]
    assert list(captions_of(vlm, decoder).values()) == expected


def test_views_without_a_likely_beginning_answer_greedily(qwen_vlm):
    vlm = qwen_vlm
    decoder = mvp(vlm, labels=("zebra", "yak"), threshold=1.0, tokens=3)
    first = mvp(vlm, labels=("zebra", "yak"), threshold=0, tokens=3)
    out, own = (votes_of(vlm, one) for one in (decoder, first))
    for votes, greedy in zip(out, own, strict=True):
        assert votes.label is None and votes.tokens == greedy.tokens


def test_mvp_streams_the_path_that_speaks(lab_vlm):
    class Heard(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens.append(value.tolist())

        def end(self):
            self.ended = True

    heard = Heard()
    decoder = mvp(lab_vlm)
    out, inputs = generate(lab_vlm, decoder, QUESTIONS[:1], steps=21, token_streamer=heard)
    prompt, *tokens = heard.tokens
    assert prompt == inputs["input_ids"].tolist() and heard.ended
    assert [*prompt[0], *(t for token in tokens for t in token)] == out[0].tolist()


@pytest.mark.parametrize("mode", [dict(num_beams=2), dict(do_sample=True, num_return_sequences=2)])
def test_mvp_gives_one_answer(lab_vlm, mode):
    with pytest.raises(ValueError, match="MVP gives one answer"):
        generate(lab_vlm, mvp(lab_vlm), **mode)
