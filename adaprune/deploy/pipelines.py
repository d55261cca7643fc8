"""Our models in ``transformers.pipeline``: it takes their own tokenizer, and cuts texts as training did."""

from __future__ import annotations

from transformers import TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY


class OwnTokenizer(TextClassificationPipeline):
    """transformers' own pipeline, where the model may bring ``tokenizer`` and ``max_length``.

    For other models it is what it was: the tokenizer's absence is an error, and the list of models is checked.
    """

    _load_tokenizer = None  # not refused before the model can be asked

    def __init__(self, model, tokenizer=None, **settings):
        if hasattr(model, "max_length"):
            settings = {"truncation": True, "max_length": model.max_length, **settings}
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("the model brings no tokenizer: give one, pipeline(..., tokenizer=...)")
        super().__init__(model=model, tokenizer=tokenizer, **settings)

    def check_model_type(self, supported_models) -> None:
        if not hasattr(self.model, "tokenizer"):  # ours are on no list
            super().check_model_type(supported_models)


def serve_in_pipelines() -> None:
    """Lets ``pipeline("text-classification", model=ours)`` find the tokenizer; what it does for others stays."""
    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = OwnTokenizer
