"""docs/models.md says what raysft does with every causal type of transformers. Takes a minute."""

from pathlib import Path

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.model_types import Row, page, row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_causal_type_is_exact_or_refused_and_the_page_says_which() -> None:
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row(model_type) for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    finally:
        torch.set_num_threads(threads)
    wrong = [one for one in rows if not exact(one)]
    assert wrong == []
    assert PAGE.read_text() == page(rows), (
        "docs/models.md is stale: python -m tests.model_types > docs/models.md"
    )


def exact(one: Row) -> bool:
    return one.records in ("refused", "not tried") or (one.nats < 1e-4 and one.gradient < 1e-3)
