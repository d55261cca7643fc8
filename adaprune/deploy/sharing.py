"""Our models in the house of others: ``transformers.pipeline`` with their own tokenizer, and the hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, ModelCardData
from transformers import TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from adaprune.training import MINILM, Encoder


class OwnTokenizer(TextClassificationPipeline):
    """transformers' own pipeline, where the model may bring its tokenizer and ``max_length``.

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


def front_matter(base: Encoder) -> str:
    """The head of a model card of masks over ``base``, as the hub reads it."""
    name = "sentence-transformers/all-MiniLM-L6-v2" if base.id == MINILM else base.id
    return ModelCardData(
        library_name="adaprune",
        pipeline_tag="text-classification",
        base_model=None if Path(name).exists() else name,
        license=None if base.licence == "unknown" else base.licence,
    ).to_yaml()


def push(save: Callable[[str], None], repo_id: str, private: bool, token: str | None) -> str:
    """Uploads the folder that ``save`` fills to a hub repository, made if it is new; returns its address."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        api = HfApi(token=token)
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Masks of adaprune").repo_url)
