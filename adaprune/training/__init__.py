"""Encoders, heads and their training: thin over transformers.Trainer, with checkpoints, stages and teachers.

Take from here `load_encoder`, `AdaptedModel`, `Job` and `Outcome`, and the training of a head, of weights or of theta.
Imports `data`, `masks` and `runs`.
"""

from adaprune.training.checkpoints import (
    Result,
    alone,
    check_origin,
    check_unchanged,
    last_whole,
    read_tensors,
    sources_of,
    stage,
    write_tensors,
)
from adaprune.training.encoders import (
    MINILM_NOTE,
    Encoder,
    load_encoder,
    most_tokens,
    set_dropout,
    tensor_hash,
    tensor_hashes,
)
from adaprune.training.fitting import fit, fit_added, fit_weights, predict, put_zeros, score
from adaprune.training.frozen import fit_head, read
from adaprune.training.heads import AdaptationHead, AdaptedModel, pooled
from adaprune.training.job import (
    Fit,
    Job,
    Outcome,
    Sentences,
    Settings,
    add_fits,
    bar,
    batches_in,
    card_of,
    check_machine,
    cost_of,
    is_intact,
    prepare,
    steps_in,
)
from adaprune.training.model_files import MINILM, place_of, weights_in
from adaprune.training.teachers import lessons_of, read_logits, read_teacher, with_teacher, write_logits
