"""The language model in a config that transformers has for text and images together."""

from typing import Any

from raysft.errors import UserError

# The names of its weights in such a model's files, and in its own.
KEY_MAPPING = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^(model\.)?language_model\.(model\.)?": "model.",
}


def text_part(hf_config: Any, path: str) -> Any:
    """The config itself, or that of the text in it: what is left out sees or hears.

    Raises UserError where transformers has no causal language model for it.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    text = hf_config.get_text_config(decoder=True) if "text_config" in vars(hf_config) else None
    found = hf_config if text is None else text
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        part = "" if text is None else f", and its text of type {found.model_type!r}"
        raise UserError(
            f"model.path: {path} is of type {hf_config.model_type!r}{part}, for which transformers "
            "has no causal language model (AutoModelForCausalLM): take another model"
        )
    if not isinstance(getattr(found, "vocab_size", None), int):
        raise UserError(
            f"model.path: {path} is of type {found.model_type!r}, whose config does not say its "
            "vocab_size: raysft trains language models whose vocabulary is known"
        )
    return found


def use_own_names(model: Any) -> None:
    """Else transformers would save the weights under the names that it found them by."""
    used = getattr(model, "_weight_conversions", None) or []
    own = [one for one in used if not KEY_MAPPING.keys() & set(one.source_patterns)]
    if len(own) < len(used):
        model._weight_conversions = own
