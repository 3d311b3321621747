"""Keys and values in buffers are those that transformers' own layer holds, whatever is done."""

import torch
from transformers import GPT2Config
from transformers.cache_utils import DynamicCache, DynamicLayer

from raysft.model.roomy_cache import ROOM, RoomyLayer, roomy_cache


def test_it_holds_what_a_plain_layer_holds() -> None:
    """Tokens one by one and many at once, rows repeated and left out in between, past the room."""
    source = torch.Generator().manual_seed(0)
    own, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for number in range(3 * ROOM):
        length = 5 if number % 50 == 0 else 1
        keys, values = torch.randn(2, rows, 2, length, 4, generator=source)
        found, wanted = own.update(keys, values), plain.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert own.get_seq_length() == plain.get_seq_length()
        if number == 7:
            for layer in (own, plain):
                layer.batch_repeat_interleave(4)
            rows *= 4
        if number in (40, 41, 100):
            going = torch.randperm(rows, generator=source)[: rows - 2].sort().values
            for layer in (own, plain):
                layer.batch_select_indices(going)
            rows -= 2


def test_a_token_copies_nothing_of_those_before_it() -> None:
    layer, one = RoomyLayer(), torch.ones(2, 2, 1, 4)
    layer.update(one.expand(2, 2, 9, 4), one.expand(2, 2, 9, 4))
    places = {layer.update(one, one)[0].data_ptr() for _ in range(ROOM)}
    assert len(places) == 1


def test_layers_with_a_window_stay_as_they_are() -> None:
    from transformers import Gemma3TextConfig

    kinds = {type(layer) for layer in roomy_cache(GPT2Config(n_layer=2)).layers}
    assert kinds == {RoomyLayer}
    config = Gemma3TextConfig(
        num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"]
    )
    kinds = [type(layer) for layer in roomy_cache(config).layers]
    plain = [type(layer) for layer in DynamicCache(config=config).layers]
    assert kinds[1] is RoomyLayer
    assert kinds[0] is plain[0]
    assert kinds[0] not in (RoomyLayer, DynamicLayer)
