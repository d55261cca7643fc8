"""Our models in ``transformers.pipeline``. Imported by `sharing.serve_in_pipelines`, as it takes seconds to load."""

from transformers import TextClassificationPipeline


class OwnTokenizer(TextClassificationPipeline):
    """transformers' own pipeline, except that the model may bring its tokenizer and ``max_length``.

    For other models nothing changes: a missing tokenizer is an error, and the list of models is checked.
    """

    _load_tokenizer = None  # not refused before the model was asked

    def __init__(self, model, tokenizer=None, **settings):
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
        if hasattr(self.model, "max_length"):  # which changes with the active task of a `MaskedEncoder`
            settings = {"truncation": True, "max_length": self.model.max_length, **settings}
        return super().preprocess(inputs, **settings)
