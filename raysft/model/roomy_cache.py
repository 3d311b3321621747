"""Keys and values with room for the tokens to come, so that a token copies nothing of those before
it: transformers' own dynamic cache copies all of them for every token, which takes longer than the
model does where many answers are written together."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens that a buffer is made longer by


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """As its parent; what it holds is a view of a buffer."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[Tensor] = []  # of keys and values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        before = self.get_seq_length()
        length = before + keys.shape[-2]
        if not self.fits(keys, length):
            self.buffers = [
                roomier(kept, new, before, length + ROOM)
                for kept, new in ((self.keys, keys), (self.values, values))
            ]
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[..., before:length, :] = new
        self.keys, self.values = (buffer[..., :length, :] for buffer in self.buffers)
        return self.keys, self.values

    def fits(self, keys: Tensor, length: int) -> bool:
        """Whether what it holds is still the buffer's, and may grow to this length."""
        if not self.buffers:
            return False
        buffer = self.buffers[0]
        own = self.keys.data_ptr() == buffer.data_ptr() and len(buffer) == len(keys)
        return own and length <= buffer.shape[-2]


def roomier(kept: Tensor, new: Tensor, before: int, room: int) -> Tensor:
    """[B, heads, room, d] that begins with what is kept."""
    buffer = new.new_empty(*new.shape[:-2], room, new.shape[-1])
    if before:
        buffer[..., :before, :] = kept
    return buffer


def roomy_cache(hf_config: Any) -> Any:
    """For a model of this config: layers that look at all tokens are roomy, and the others, whose
    windows or states stay small, as transformers has them."""
    cache = DynamicCache(config=hf_config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache
