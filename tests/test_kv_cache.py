"""The layer with room behind its keys: what `DynamicLayer` holds, without its copies."""

import pytest
import torch
from models import PROMPTS
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sightline import VDD
from sightline.engine.kv_cache import ROOM, RoomyLayer, make_room


def drawn(tokens, rows=3):
    return torch.randn(rows, 2, tokens, 4), torch.randn(rows, 2, tokens, 6)


def check_same(one, other):
    assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
    assert one.get_seq_length() == other.get_seq_length()
    assert one.get_mask_sizes(1) == other.get_mask_sizes(1)


def test_it_holds_what_a_dynamic_layer_holds():
    """Through growth, beams, and keys that somebody else has set."""
    torch.manual_seed(0)
    roomy, dynamic = RoomyLayer(3), DynamicLayer()
    index = torch.tensor([2, 0, 0])

    def both(act):
        for layer in (roomy, dynamic):
            act(layer)
        check_same(roomy, dynamic)

    def cut(layer):
        layer.keys, layer.values = layer.keys[:, :, ::2], layer.values[:, :, ::2]

    for layer in (roomy, dynamic):
        layer.reorder_cache(index)
        assert layer.get_seq_length() == 0
    for tokens in (7, 1, 1, 1, 1, 4, 9):
        new = drawn(tokens)
        both(lambda layer: layer.update(*new))  # noqa: B023
    both(lambda layer: layer.reorder_cache(index))
    both(cut)
    both(lambda layer: layer.reorder_cache(index))
    for _ in range(5):
        new = drawn(1)
        both(lambda layer: layer.update(*new))  # noqa: B023
        both(lambda layer: layer.reorder_cache(index))


def test_a_token_is_written_behind_the_others():
    """Six tokens, room for two: the third that follows makes new room, which holds two more."""
    layer = RoomyLayer(2)
    layer.update(*drawn(6))
    places = [layer.keys.data_ptr()]
    for _ in range(6):
        layer.update(*drawn(1))
        places.append(layer.keys.data_ptr())
    assert places[0] == places[1] == places[2] != places[3]
    assert places[3] == places[4] == places[5] != places[6]


def test_the_room_is_no_larger_than_the_answer():
    for most, room in ((0, 1), (5, 5), (10**6, ROOM)):
        layer = RoomyLayer(most)
        layer.update(*drawn(6))
        assert layer.keys.untyped_storage().nbytes() == 3 * 2 * (6 + room) * 4 * 4  # float32


@pytest.mark.parametrize("mode", [{}, dict(num_beams=3)], ids=["greedy", "beams"])
def test_decoders_decode_with_it(llava, mode, monkeypatch):
    model, make_inputs = llava
    seen = []
    update = RoomyLayer.update

    def spied(layer, keys, values, *args, **kwargs):
        seen.append(keys.shape[-2])
        return update(layer, keys, values, *args, **kwargs)

    monkeypatch.setattr(RoomyLayer, "update", spied)
    asked = dict(make_inputs(PROMPTS), max_new_tokens=4, do_sample=False, **mode)
    model.generate(**asked, custom_generate=VDD(alpha=1.5, beta=0.05))
    assert seen.count(1) == 3 * 3  # layers, tokens after the first
    assert set(seen) == {1}  # prompts are written to the room that was opened, not copied there


def test_other_layers_stay_as_they_are():
    caches = [DynamicCache(), DynamicCache()]
    caches[0].layers = [RoomyLayer(4)]
    caches[1].layers = [kept := torch.nn.Identity(), DynamicLayer()]
    for cache in caches:
        make_room(cache, 8, 16)
    assert caches[0].layers[0].room == 4
    assert caches[1].layers[0] is kept and type(caches[1].layers[1]) is RoomyLayer
