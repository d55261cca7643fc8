"""movement: removes connections that training pushes towards 0 (Sanh, Wolf, Rush 2020); weights frozen or trained."""

from adaprune.methods.learning import LEARNED, SCORES, learn, start
from adaprune.runs import Method
from adaprune.training import Job, Outcome


def movement(job: Job) -> Outcome:
    """Keeps the connections of each matrix that gradient descent would have moved away from 0. Weights intact.

        S_t = S_{t-1} - lr dL/dW W,   S_0 = 0,   m = 1[S among the v_t largest of its matrix]

    (Sanh et al. 2020, Eq. 4 and section 4, except that W does not change; dL/dm = W dL/dW.) v_t falls by the cubic
    schedule. The rule is SGD, as derived; its rate does not affect the order.
    """
    return learn(job, start(job))


def soft_movement(job: Job) -> Outcome:
    """Movement with one threshold for all matrices and a penalty on the scores (Sanh et al. 2020). Weights intact.

        m = 1[sigmoid(S) > tau_t],   loss + lambda_t sum sigmoid(S) / n_0,   S_0 = 0

    over all scores, with n_0 = 84,934,656 weights, BERT-base's, for every encoder. lambda_t rises to 400 by the cubic
    schedule. In the paper tau rises to 0.1 and determines the sparsity; here tau_t is set so that the sparsity follows
    the schedule, and the rule is Adam. (In the paper, each matrix also keeps 0.5 %.)
    """
    return learn(job, start(job))


def movement_finetune(job: Job) -> Outcome:
    """Movement as published: W, biases and the rest are trained together with S. The weights do NOT stay intact.

    dL/dW is that of the masked product, so pruned weights do not change until they return. The weights use Adam without
    weight decay, the scores SGD as in `movement`.
    """
    return learn(job, start(job))


_SGD = {**SCORES, "learning_rate": 1e-2, "step_rule": "sgd", "allocation": "equal"}
_SOFT = {**SCORES, "learning_rate": 1e-2, "penalty": 400.0}
_TRAINED = {**_SGD, "weight_learning_rate": 3e-5}  # movement's published rate for weights

MOVEMENT = Method(
    movement, line="scores add up -dL/dw w, and the top of each matrix stays", source="Sanh, Wolf, Rush 2020",
    tuned=_SGD, reads=LEARNED, colour="#C7023F", marker="<",
)  # fmt: skip
SOFT_MOVEMENT = Method(
    soft_movement, line="movement by one threshold for all matrices and a penalty on the scores",
    source="Sanh, Wolf, Rush 2020", tuned=_SOFT, reads=LEARNED, colour="#0DB25D", marker=">",
)  # fmt: skip
MOVEMENT_FINETUNE = Method(
    movement_finetune, line="movement with the weights trained too", source="Sanh, Wolf, Rush 2020",
    weights_intact=False, tuned=_TRAINED, reads=LEARNED, colour="#590422", marker=(3, 1, 0),
)  # fmt: skip
