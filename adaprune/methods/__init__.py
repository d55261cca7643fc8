"""The methods: each finds a mask, or a model, for one job. One file, one function, one name each."""

from adaprune.methods.adaprune import adaprune
from adaprune.methods.features import features
from adaprune.methods.finetune import finetune
from adaprune.methods.magnitude import magnitude
from adaprune.methods.random import random

METHODS = {method.__name__: method for method in (adaprune, finetune, features, random, magnitude)}
