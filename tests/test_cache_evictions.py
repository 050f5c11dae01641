"""Which keys leave the cache, by the worked numbers of the method's note."""

import pytest
import torch
from models import PROMPTS, lfm2, lfm2_inputs, llava, llava_inputs

from sightline import Recipe, VASparse
from sightline.attention.base import CacheEviction
from sightline.attention.eviction import WeakAnswerKeys, thinned, worth
from sightline.attention.recorder import AttentionRecorder

ATTENTION = torch.tensor([0.040, 0.010, 0.060, 0.005, 0.020])
LOOKS = torch.tensor([0.30, 0.70, 0.20, 0.45, 0.10])
WORKED = dict(atol=1e-6, rtol=1e-5)  # the note prints six decimals; float32


@pytest.mark.parametrize(
    "weight, expected, dropped",
    [
        (0.1, [0.020197, 0.027843, 0.020427, 0.021632, 0.015626], 4),
        (0.0, [0.001600, 0.000100, 0.003600, 0.000025, 0.000400], 3),
    ],
)
def test_worth_worked_numbers(weight, expected, dropped):
    found = worth(ATTENTION, LOOKS, weight)
    torch.testing.assert_close(found, torch.tensor(expected), **WORKED)
    assert int(found.argmin()) == dropped


def recorder(answered, every=None, heads=1):
    """After `answered` tokens behind a prompt of 2 keys, one row and layer."""
    made = AttentionRecorder(
        image_mask=torch.tensor([[False, True]]),
        mask=torch.ones(1, 2, dtype=torch.bool),
        layers=1,
        kv_heads=heads,
    )
    made.begin(answered, 1)
    made.groups[0] = torch.rand(1, heads, 2 + answered)
    made.image_mass[0] = torch.rand(1, heads, answered)
    return made


def test_thirty_two_keys_become_twenty_nine():
    keep = WeakAnswerKeys(keep=0.9, every=32)(0, recorder(32, heads=2))
    assert keep.shape == (1, 2, 34) and keep[..., :2].all()
    assert keep[..., 2:].sum(dim=-1).tolist() == [[28, 28]]
    assert thinned(torch.rand(1, 2, 34, 4), keep, merges=True).shape == (1, 2, 2 + 29, 4)


@pytest.mark.parametrize("answered", [1, 31, 33])
def test_nothing_leaves_between_times(answered):
    assert WeakAnswerKeys(keep=0.5, every=32)(0, recorder(answered)) is None


def test_a_single_key_is_not_merged_with_itself():
    assert WeakAnswerKeys(keep=0.9, every=1)(0, recorder(5)) is None


def test_merged_entry_is_the_mean_in_the_oldest_place():
    """The note's keys [1,2], [3,0], [5,4] give [3,2]."""
    keys = torch.tensor([[9.0, 9], [1, 2], [8, 8], [3, 0], [5, 4], [7, 7]])[None, None]
    keep = torch.tensor([True, False, True, False, False, True])[None, None]
    merged = thinned(keys, keep, merges=True)[0, 0].tolist()
    assert merged == [[9, 9], [3, 2], [8, 8], [7, 7]]
    assert thinned(keys, keep, merges=False)[0, 0].tolist() == [[9, 9], [8, 8], [7, 7]]


def cache_of(decoder, tokens=20, **kwargs):
    """Key shapes of the cache when the last token has been fed."""
    model, shapes = llava(), []
    model.register_forward_hook(
        lambda module, given, out: shapes.append(
            [layer.keys.shape[2] for layer in out.past_key_values.layers]
        )
    )
    length = dict(max_new_tokens=tokens, min_new_tokens=tokens)
    model.generate(**llava_inputs(PROMPTS), custom_generate=decoder, **length, **kwargs)
    return shapes


@pytest.mark.parametrize("beams", [1, 3])
def test_all_layers_hold_equally_many_keys(beams):
    """10 answered keys, of which 6 stay and 4 become one: three are missing from then on."""
    shapes = cache_of(VASparse(keep=0.6, every=10), num_beams=beams)
    assert all(len(set(layers)) == 1 for layers in shapes)
    lengths = [layers[0] for layers in shapes]
    prompt = lengths[0]
    # before a forward's own cut: 10 keys at step 10, then 7 and one more each step
    assert [n - prompt for n in lengths[1:]] == [*range(1, 11), *range(8, 17)]


def test_positions_go_on_from_the_true_length():
    model, positions = llava(), []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, given: positions.append(given["position_ids"][:, -1].tolist()),
        with_kwargs=True,
    )
    length = dict(max_new_tokens=14, min_new_tokens=14)
    inputs = llava_inputs(PROMPTS)
    model.generate(**inputs, custom_generate=VASparse(keep=0.5, every=4), **length)
    last = (inputs["attention_mask"].sum(dim=1) - 1).tolist()
    assert positions == [[p + step for p in last] for step in range(14)]


class Uneven(CacheEviction):
    def __call__(self, layer, recorder):
        keep = torch.ones(len(recorder.mask), recorder.kv_heads, recorder.total, dtype=torch.bool)
        if not recorder.reads_prompt:
            keep[0, 0, -1] = False
        return keep


def test_uneven_selection_is_an_error():
    with pytest.raises(ValueError, match="different numbers of keys"):
        cache_of(Recipe(cache_evictions=(Uneven(),)))


@pytest.mark.parametrize("cache", ["static", "offloaded_static"])
def test_caches_that_cannot_be_cut_are_refused(cache):
    with pytest.raises(ValueError, match="keys can only leave a DynamicCache"):
        llava().generate(
            **llava_inputs(PROMPTS),
            custom_generate=VASparse(),
            cache_implementation=cache,
            max_new_tokens=3,
        )


def test_hybrid_models_are_refused():
    with pytest.raises(ValueError, match="do not keep every key"):
        lfm2().generate(**lfm2_inputs(PROMPTS), custom_generate=VASparse(), max_new_tokens=3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: VASparse(keep=0), r"keep must be in \(0, 1\]"),
        (lambda: VASparse(every=0), "every must be a whole number from 1 to"),
        (lambda: VASparse(weight=-1), "weight must be a finite number >= 0"),
        (lambda: VASparse(sink=-0.1), "sink must be a finite number >= 0"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()
