"""Our models in ``transformers.pipeline``. Imported where it is used, as transformers takes seconds to load that."""

from transformers import TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY


class OwnTokenizer(TextClassificationPipeline):
    """transformers' own pipeline, except that the model may bring its tokenizer and ``max_length``.

    For other models nothing changes: a missing tokenizer is an error, and the list of models is checked.
    """

    _load_tokenizer = None  # not refused before the model was asked

    def __init__(self, model, tokenizer=None, **settings):
        if hasattr(model, "max_length"):
            settings = {"truncation": True, "max_length": model.max_length, **settings}
        tokenizer = tokenizer or getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("the model brings no tokenizer: give one, pipeline(..., tokenizer=...)")
        super().__init__(model=model, tokenizer=tokenizer, **settings)

    def check_model_type(self, supported_models) -> None:
        if not hasattr(self.model, "tokenizer"):  # our models are on no list
            super().check_model_type(supported_models)

    def preprocess(self, inputs, **settings):
        columns, given = getattr(self.model, "columns", ()), ("text",) if isinstance(inputs, str) else inputs
        if isinstance(given, (tuple, dict)) and columns and ("text_pair" in given) != ("text_pair" in columns):
            asked = '{"text": ..., "text_pair": ...}' if "text_pair" in columns else "one text"
            raise ValueError(f"this task reads {asked}, got {str(inputs)[:80]!r}")
        return super().preprocess(inputs, **settings)


def serve_in_pipelines() -> None:
    """Lets ``pipeline("text-classification", model=ours)`` find the tokenizer; other models are not affected."""
    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = OwnTokenizer
