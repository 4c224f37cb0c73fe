"""The step that makes several networks of one, and answers with the mean of their answers."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from pbd import blocks
from pbd.compression.chain import Chain
from pbd.compression.members import keep_busy, make_side_by_side
from pbd.compression.step import Step, StepResult, check, check_config, check_data, check_target, uses_target
from pbd.config.values import as_kind, at_least
from pbd.errors import UsageError
from pbd.learning.distillation import logits_model
from pbd.learning.metrics import outputs_probabilities
from pbd.networks import graph, heads
from pbd.run_dir.journal import Journal
from pbd.run_dir.steps import FAILED_BLOCKS, failed_blocks

if TYPE_CHECKING:
    from pbd.compression.context import Context
    from pbd.config import RunConfig
    from pbd.data import Dataset
    from pbd.deploy.targets import Target

PROBABILITIES, LOGITS = "probabilities", "logits"


@dataclass(frozen=True)
class Ensemble:
    """Several networks on the same image, each made of the network before the step by steps of its own.

    Each member has a seed, for its initial weights and for the order and the augmentation of its images, as in deep
    ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474); training and validation images are the same for all.
    Copies that are the same network nonetheless are reported.

    With several workers, members are made side by side, each on one worker, if this keeps more than half of the workers
    busy: members / (ceil(members / workers) * workers) > 1/2, and if no step depends on the target: such steps may
    measure latencies, which other members on the same host would disturb. Otherwise the members are made one after the
    other, each on all workers.

    Args:
        members: the steps of each member.
        copies: of each member, with different seeds; their steps should train something.
        mean: of the `probabilities`, or of the `logits`; networks with a single output, or
            with sigmoid outputs, have the mean of their logits.

    Raises:
        UsageError: there are fewer than two members, or an object is not a step.

    Example:
        >>> Ensemble([[DistillInto("conv4_dense1", epochs=30)]], copies=3)
    """

    members: Sequence[Sequence[Step]]
    copies: int = 1
    mean: str = PROBABILITIES

    def __post_init__(self) -> None:
        if not all(isinstance(each, list | tuple) for each in (self.members, *_listed(self.members))):
            raise UsageError(f"members are lists of steps. Received: {self.members!r}. Give [[FineTune()], ...].")
        object.__setattr__(self, "members", tuple(tuple(steps) for steps in self.members))
        object.__setattr__(self, "copies", as_kind("copies", int, self.copies))
        at_least("copies", self.copies, 1)
        if self.mean not in (PROBABILITIES, LOGITS):
            raise UsageError(f"mean is {PROBABILITIES} or {LOGITS}. Received: {self.mean!r}. Give one of them.")
        if len(self.members) * self.copies < 2:
            raise UsageError(f"an ensemble needs two members. Received: {len(self.members)}. Add one, or give copies.")
        if not all(self.members):
            raise UsageError("each member needs steps. Received: one without. Add a step, such as FineTune().")
        for step in (step for steps in self.members for step in steps):
            check(step)

    def check_config(self, config: "RunConfig") -> None:
        check_config(itertools.chain(*self.members), config)

    def check_data(self, dataset: "Dataset") -> None:
        check_data(itertools.chain(*self.members), dataset)

    def check_target(self, target: "Target") -> None:
        check_target(itertools.chain(*self.members), target)

    @property
    def uses_target(self) -> bool:
        """Whether a step of a member depends on the target of the recipe."""
        return any(map(uses_target, itertools.chain(*self.members)))

    def apply(self, model: keras.Model, context: "Context") -> StepResult:
        networks, rows, zeros, failed = list[keras.Model](), [], [], list[str]()
        chains, workers = self._chains(context), context.executor.collective_size
        if keep_busy(len(chains), workers) and not self.uses_target:
            context.display.phase(f"{len(chains)} members side by side on {workers} workers")
            make_side_by_side(chains, model, context)  # what follows finds their steps complete
        for number, chain in enumerate(chains, start=1):
            context.display.phase(f"member {number} of {len(chains)}")
            for name, last in chain.networks(model):
                failed += [f"member {number}, step {name}: {failure}" for failure in failed_blocks(last.result.details)]
            networks.append(last.result.model)
            zeros.append(last.result.keeps_zeros)
            rows.append({"validation_score": last.metrics.score, "parameters": last.result.model.count_params()})
        events = (*_equal_copies(networks, len(self.members)), *(f"{block} failed" for block in failed))
        details = {"members": rows, FAILED_BLOCKS: failed}
        images, _ = next(iter(context.dataset.batches("validation", limit=context.dataset.batch_size)))
        return StepResult(joined(networks, self.mean, images), details, events, any(zeros))

    def _chains(self, context: "Context") -> list[Chain]:
        """Return the steps of each member, with its seed and its folder."""
        chains = []
        for number, steps in enumerate([*self.members] * self.copies, start=1):
            seed = blocks.derive_seed(context.seed, f"ensemble member {number}")
            folder = Journal(context.journal.file(f"member-{number:02d}"))
            chains.append(Chain(replace(context.with_seed(seed), journal=folder), steps))
        return chains


def _listed(members: Any) -> Sequence[Any]:
    return members if isinstance(members, list | tuple) else ()


def _equal_copies(networks: Sequence[keras.Model], kinds: int) -> Iterator[str]:
    """Yield a sentence for each network that has the weights of an earlier copy.

    Args:
        networks: the networks of all members.
        kinds: number of different members; each network is a copy of the one so many places before.
    """
    for number, network in enumerate(networks):
        for copy in range(number % kinds, number, kinds):
            if _same_weights(network, networks[copy]):
                yield (
                    f"members {copy + 1} and {number + 1} are the same network: their steps use no random numbers, or "
                    "no epoch is better than the start; give copies 1, or steps that train"
                )
                break


def _same_weights(network: keras.Model, other: keras.Model) -> bool:
    weights, others = network.get_weights(), other.get_weights()
    return len(weights) == len(others) and all(map(np.array_equal, weights, others))


def joined(networks: Sequence[keras.Model], mean: str, images: Any) -> keras.Model:
    """Return one network that answers with the mean of the answers of several.

    Args:
        networks: flat, for the same images and classes.
        mean: `probabilities` or `logits`.
        images: a batch, which tells whether outputs without a head, such as those of an ensemble, are probabilities.

    Raises:
        UsageError: their inputs or outputs differ.
    """
    if {network.outputs[0].shape[-1] for network in networks} == {1, 2}:  # two forms of the answers on two classes
        networks = [_with_two_outputs(network, images) for network in networks]
    shapes = {(network.inputs[0].shape, network.outputs[0].shape) for network in networks}
    if len(shapes) > 1:
        raise UsageError(f"members have the same images and classes. Received: {shapes}. Leave out the others.")
    inputs = keras.Input(networks[0].inputs[0].shape[1:], name="images")
    single = networks[0].outputs[0].shape[-1] == 1
    ends = [heads.head_of(network) for network in networks]
    of_logits = single or heads.Head.SIGMOID in ends or mean == LOGITS
    named = [
        keras.Model(network.inputs[0], network.outputs[0], name=f"member{n}")
        for n, network in enumerate(networks, start=1)
    ]
    are_probabilities = [_outputs_probabilities(network, images) for network in named]
    answers = [
        _answers(network, inputs, of_logits, is_distribution, images)
        for network, is_distribution in zip(named, are_probabilities, strict=True)
    ]
    outputs = keras.layers.Average(name="ensemble", dtype="float32")(answers)
    if of_logits and are_probabilities[0]:
        activation = "sigmoid" if single or ends[0] is heads.Head.SIGMOID else "softmax"
        outputs = keras.layers.Activation(activation, name=activation, dtype="float32")(outputs)
    return graph.flatten(keras.Model(inputs, outputs, name="ensemble"))


def _with_two_outputs(network: keras.Model, images: Any) -> keras.Model:
    """Return a network with two outputs as it is, one with a single output with the logits of both classes."""
    return network if network.outputs[0].shape[-1] == 2 else logits_model(network, images)


def _outputs_probabilities(network: keras.Model, images: Any) -> bool:
    if heads.head_of(network) is not heads.Head.NONE:
        return True
    return not heads.ends_in_logits(network) and outputs_probabilities(network, images)


def _answers(network: keras.Model, inputs: Any, of_logits: bool, are_probabilities: bool, images: Any) -> Any:
    """Return the logits or the probabilities of a member for Keras inputs."""
    if of_logits:
        is_single = network.outputs[0].shape[-1] == 1  # whose logit stays one
        return (heads.remove(network) if is_single else logits_model(network, images))(inputs)
    outputs = network(inputs)
    return outputs if are_probabilities else keras.layers.Softmax(dtype="float32")(outputs)
