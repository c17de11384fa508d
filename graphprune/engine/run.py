"""``gp.prune``: the whole run, from a model and a spec to a smaller model, its report, and a folder that is proved."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphprune import processes, validate
from graphprune.checkpoint import check_output_folder, save, verify_folder
from graphprune.checkpoint.manifest import library_versions
from graphprune.checkpoint.tiers import best_tier, load_line
from graphprune.checkpoint.verify import Answer, without_adapter
from graphprune.declare import declare
from graphprune.engine import given
from graphprune.engine.base import QuantisedBase
from graphprune.engine.data import Blocks, example, fingerprint
from graphprune.engine.documents import TrainData
from graphprune.engine.identity import Identity, spec_fingerprint
from graphprune.engine.modes import Job, Outcome, run_mode
from graphprune.engine.original import Source, as_source
from graphprune.engine.parallel import check_launch
from graphprune.engine.places import check_places
from graphprune.engine.prepare import Sequences, check_fits, check_purpose, positions, prepare
from graphprune.engine.pruner import PruneEvent
from graphprune.engine.shared_folder import SharedFolder
from graphprune.engine.training import shared_out
from graphprune.errors import CheckpointError, DistributedError, NonFiniteError, SpecError
from graphprune.evaluate import SegmentLosses, segment_losses
from graphprune.export.fit import Fit, fit
from graphprune.export.limits import Limits
from graphprune.files import flush_all
from graphprune.graph import DependencyGraph
from graphprune.names import bare
from graphprune.placement import input_device
from graphprune.plan import PrunePlan
from graphprune.report import Report, StageClock, measure
from graphprune.sample import sample_inputs
from graphprune.schema import PruneSpec
from graphprune.specfile import load_spec
from graphprune.trace import trace

#: Tokens of the sequence by which a written folder is compared with the model in memory.
_PROOF_TOKENS = 64


@dataclass(frozen=True)
class PruneResult:
    """What :func:`prune` gives back.

    Attributes:
        model: the smaller model, in evaluation mode.
        plan: the units that are gone, in terms of ``graph``.
        graph: the dependency graph of the model as it came.
        report: sizes, perplexities, times, and everything to repeat the run.
        scores: what the units were chosen by; float32 of shape ``(size,)`` by group name.
        events: when units went, in a joint run.
        log: the Trainer's log lines.
        losses: what the report's perplexities are of, segment by segment: ``before``, ``pruned`` and ``tuned``, where
            they exist.
    """

    model: nn.Module
    plan: PrunePlan
    graph: DependencyGraph
    report: Report
    scores: dict[str, torch.Tensor] = field(repr=False)
    events: tuple[PruneEvent, ...] = ()
    log: tuple[dict[str, float], ...] = field(default=(), repr=False)
    losses: Mapping[str, SegmentLosses] = field(default_factory=dict, repr=False)


def prune(
    model: nn.Module | str | os.PathLike[str] | Source,
    spec: PruneSpec | Mapping[str, Any] | str | os.PathLike[str],
    *,
    original: str | os.PathLike[str] | Source | None = None,
    train_data: TrainData | None = None,
    tokenizer: Any = None,
    evaluation: TrainData | None = None,
    output: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    graph: DependencyGraph | None = None,
    scores: Mapping[str, torch.Tensor] | None = None,
    progress: bool = True,
) -> PruneResult:
    """Prunes a model as a spec says: trace, score and train, cut, merge, measure, save, verify.

    What can be refused is refused before anything is computed. The same call on the same machine gives the same plan.
    Checkpoints given as a name are only read. ``output`` appears whole or not at all, whenever the run is broken off.
    Until then, a run that trains keeps its state in a folder of its own, and with ``resume`` it continues from there
    to the same result, whatever ended it.

    Of several processes, started by torchrun or ``accelerate launch``, each makes this call and gets the result. They
    share out the batches of a training; one of them writes.

    Args:
        model: a transformers model, changed in place; or a folder or Hub id, loaded to the accelerator if there is
            one. With ``quantization`` in the spec it is quantised for scoring and tuning, a model that is given in a
            copy, and the result is cut from the weights in their own precision.
        spec: a spec, its file, a recipe, or a dictionary.
        original: of a model that is quantised already, the folder or Hub id of its full-precision weights, which are
            what is cut; where it was loaded from by default.
        train_data: text or token ids to train and calibrate on, instead of the spec's ``data``: a file, a list of
            documents, a list of lists of token ids, or a torch data set of examples with ``input_ids``.
        tokenizer: for text; that of the checkpoint by default, where ``model`` is a name.
        evaluation: text or token ids to measure perplexity on, instead of the spec's ``data.evaluation``; by default
            a part of the training text that is held out.
        output: a new folder for the pruned model, its tokenizer, plan and report. A fresh process loads it and
            compares logits before it takes its name.
        checkpoints: the folder for the state of the unfinished run; by default ``output`` with ``.run`` after its name,
            and none where there is no ``output``. It goes when the run is done.
        resume: continue an unfinished run. Where there is none, the run begins.
        graph: the model's dependency graph, if it is at hand; the spec's declared groups are added to it.
        scores: in modes none and separate, what to choose the units by, as :func:`graphprune.score` computes it: by
            group name float32 of shape ``(size,)``, higher = keep. Nothing is scored then. Those that an earlier run
            gives back (:attr:`PruneResult.scores`) serve other ratios, scopes and modes.
        progress: whether to draw progress on the standard error stream.

    Raises:
        SpecError: the spec is malformed, or does not fit the model, or scores are given to a joint run or for several
            rounds.
        PlanError: scores are given, but not those of all groups that the targets select.
        DataError: text is missing, or too short for one batch.
        NonFiniteError: training diverged; names the group and the step. Or the pruned model's logits, or given scores,
            are no numbers.
        CheckpointError: the model cannot be read, ``output`` is not empty, or what was written fails its proof. Or
            there is an unfinished run and ``resume`` is off, or it was begun with another spec, model or data.
        DistributedError: the processes of the run differ in what they were given, or another one has failed.
        Interrupted: a KeyboardInterrupt that says where the state is, after Ctrl-C or SIGTERM in a run that can be
            continued.
    """
    spec = load_spec(spec)
    if scores is not None:
        given.check_mode(spec)
    check_launch()
    processes.join()
    place = processes.from_main(lambda: check_places(spec, output, checkpoints, resume=resume))
    folder = SharedFolder(place) if place is not None else None
    run = _Run(spec, tokenizer, progress)
    with processes.together():
        if spec.training.mode != "none":
            shared_out(spec.training)
        run.open(model, original)
        run.read(train_data, evaluation, graph, scores)
    with run.holding(folder):
        outcome = run.compute(folder)
        if output is not None:
            run.write(outcome, output)
    if folder is not None:
        if output is not None and processes.is_main():
            flush_all(Path(output).expanduser())  # before what it could be made from again is gone
        folder.remove()
    assert run.graph is not None
    return PruneResult(
        outcome.model, outcome.plan, run.graph, run.report(), outcome.scores, outcome.events, outcome.log, run.losses
    )


class _Run:
    """The state of one call of :func:`prune`; its methods are the parts of the run, in order."""

    def __init__(self, spec: PruneSpec, tokenizer: Any, progress: bool) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.progress = progress
        self.clock = StageClock()
        self.graph: DependencyGraph | None = None
        self.sequences = Sequences(None, None)
        self.fit = Fit(spec, Limits(), "hf")
        self.losses: dict[str, SegmentLosses] = {}
        self._scores: dict[str, torch.Tensor] | None = None
        self._model: nn.Module | None = None
        self._facts: dict[str, Any] = {}
        self._notes: list[str] = []

    @property
    def model(self) -> nn.Module:
        assert self._model is not None, "open() comes first"
        return self._model

    def open(
        self, model: nn.Module | str | os.PathLike[str] | Source, original: str | os.PathLike[str] | Source | None
    ) -> None:
        source = None if isinstance(model, nn.Module) else as_source(model)
        self.base = QuantisedBase(self.spec.quantization, source)
        if isinstance(model, nn.Module):
            self._model = model
            config = getattr(model, "config", None)
            self._facts["model"] = getattr(config, "_name_or_path", "") or type(model).__name__
        else:
            with self.clock.stage("load"):
                assert source is not None
                # What is going to be quantised is read to the CPU, and only its codes need room on the device.
                self._model, found = source.load(self.base.device if self.spec.quantization is None else None)
            self.tokenizer = self.tokenizer if self.tokenizer is not None else found
            self._facts["model"] = source.name
        if bare(self.model) is not self.model:
            raise SpecError(
                f"model: expected a bare model, got a {type(self.model).__name__} around one. "
                "Merge its adapters first (merge_and_unload); the run attaches and merges its own."
            )
        self.base.check(self.model, original)

    def read(
        self,
        train_data: TrainData | None,
        evaluation: TrainData | None,
        graph: DependencyGraph | None,
        scores: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Everything that can be found out before computing, and the measures of the model as it came."""
        check_purpose(self.model, self.spec, evaluation)
        with self.clock.stage("trace"):
            found = graph if graph is not None else trace(self.model)
            self.graph = declare(found, self.spec, self.model)
            self._facts["graph_fingerprint"] = self.graph.fingerprint
            self._notes += validate.check(self.spec, self.graph)
            self.fit = fit(self.spec, self.graph, self.model)
            self._notes += self.fit.notes
            if scores is not None:
                self._scores = given.checked(scores, self.fit.spec, self.graph)
        with self.clock.stage("read text"):
            self.sequences = prepare(self.spec, self.tokenizer, train_data, evaluation, scored=scores is not None)
            check_fits(self.sequences, self.model, self.spec)
        if self.sequences.train is not None:
            self._facts["data_fingerprint"] = fingerprint(self.sequences.train)
        if not self.base.packed:
            self._before(self.model)

    def _before(self, model: nn.Module) -> None:
        self._facts["before"] = measure(model)
        with self.base.visiting(model):
            self._judge("before", model)

    def holding(self, folder: SharedFolder | None) -> AbstractContextManager[None]:
        """Keeps the run's folder for the time of a ``with`` block."""
        if folder is None and processes.count() == 1:
            return nullcontext()
        assert self.graph is not None
        data, scores = self._facts.get("data_fingerprint", ""), given.fingerprint(self._scores)
        identity = Identity.of_run(self.spec, self.graph, self.model, data, scores)
        if not processes.same(identity.model_dump_json()):
            raise DistributedError(
                f"the {processes.count()} processes of this run differ in the spec, the model, the data or the "
                "versions of libraries; expected the same in each. Give every process the same arguments."
            )
        return nullcontext() if folder is None else folder.held(identity, self.spec.training.steps)

    def compute(self, folder: SharedFolder | None = None) -> Outcome:
        if folder is not None and folder.worth:
            self._notes.append(f"interrupted and continued {folder.state_of()}; the times are those of the last part")
        if processes.count() > 1:
            self._notes.append(f"computed by {processes.count()} processes; times and memory are those of one")
        assert self.graph is not None
        original = self.base.original(self.model, self.graph, self._before)
        if original is not None and not self.base.packed:
            with self.clock.stage("quantise"):
                self._model = original.quantised(self.model, self.graph)
        job = Job(
            model=self.model,
            graph=self.graph,
            spec=self.fit.spec,
            limits=self.fit.limits,
            data=self.sequences.train,
            stage=self.clock.stage,
            measure=lambda pruned: self._judge("pruned", pruned),
            progress=self.progress,
            original=original,
            folder=folder,
            scores=self._scores,
        )
        outcome = run_mode(job)
        self._model = bare(outcome.model)  # a quantised base is gone by now
        outcome.model.eval()
        if self.spec.training.mode != "none":
            self._judge("tuned", outcome.model)
        self._facts["after"] = measure(outcome.model)
        self._facts["plan"] = outcome.plan.summary()
        self._tier = tier = best_tier(outcome.model, self._targets)
        self._facts["tier"] = tier.name
        self._notes += [*outcome.plan.notes, *outcome.notes, *self.base.notes]
        self._notes += [f"not of tier {name}: {reason}" for name, reason in tier.why_not.items()]
        return outcome

    def write(self, outcome: Outcome, output: str | os.PathLike[str]) -> None:
        """Writes the result, in the main process; the others wait, and take over what the report says of it."""

        def written() -> tuple[dict[str, Any], list[str]]:
            self._write(outcome, output)
            return self._facts, self._notes

        self._facts, self._notes = processes.from_main(written)

    def _write(self, outcome: Outcome, output: str | os.PathLike[str]) -> None:
        folder = check_output_folder(output)
        adapter = bare(outcome.model) is not outcome.model
        self._facts["load"] = load_line(outcome.model, folder, self._tier, adapter=adapter)
        with without_adapter(outcome.model) as base:
            answer = self._answer(base)
        adapted = self._answer(outcome.model) if adapter else None

        def prove(written: Path) -> None:
            with self.clock.stage("verify"):
                try:
                    distance = verify_folder(written, answer.inputs, answer.logits, answer.text)
                    notes = [f"a fresh process loads the folder; {answer.told(distance)}"]
                    if adapted is not None:
                        distance = verify_folder(written, adapted.inputs, adapted.logits, adapted.text, adapter=True)
                        told = "with the adapter beside it, which stock PEFT puts on the loaded model, "
                        notes.append(f"{told}{adapted.told(distance)}")
                except CheckpointError as error:
                    raise CheckpointError(f"{error}".replace(f"{written}", f"{folder}")) from None
            self._notes += notes

        with self.clock.stage("save"):
            save(
                outcome.model,
                folder,
                tokenizer=self.tokenizer,
                plan=outcome.plan,
                report=_LastReport(self),
                merge_lora=self.spec.export.merge_lora,
                targets=self._targets,
                proof=prove,
            )

    @property
    def _targets(self) -> tuple[str, ...]:
        """What may be written: where none of what was asked for is possible, the work of a run is kept all the same."""
        return (*self.spec.export.targets, "graphprune")

    def _answer(self, model: nn.Module) -> Answer:
        answer = Answer.of(model, self._proof_inputs())
        if not answer.logits.isfinite().all():
            raise NonFiniteError(
                f"the pruned model's logits are NaN or infinite for {_shown(answer.inputs)}, so nothing was written. "
                "Look for NaN in the weights it came with, or load it in float32 or bfloat16."
            )
        return answer

    def report(self) -> Report:
        """The report as far as the run has come."""
        return Report(
            **self._facts,
            evaluation=self._evaluation_note(),
            stages=self.clock.stages,
            spec=self.spec.model_dump(mode="json"),
            spec_fingerprint=spec_fingerprint(self.spec),
            versions=library_versions(),
            seed=self.spec.seed,
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _judge(self, name: str, model: nn.Module) -> None:
        if self.sequences.evaluation is None:
            return
        with self.clock.stage("evaluate"):
            self.losses[name] = segment_losses(
                model,
                None,
                self.sequences.evaluation.ids,
                length=self.spec.training.sequence_length,
                batch_size=self.spec.training.micro_batch,
            )
        self._facts[f"perplexity_{name}"] = self.losses[name].perplexity

    def _evaluation_note(self) -> str:
        length = self.spec.training.sequence_length
        return f"{self.sequences.note}, segments of {length} tokens" if self.sequences.evaluation is not None else ""

    def _proof_inputs(self) -> dict[str, Any]:
        """Real tokens where there are some, of shape (1, up to 64); else what the model reads."""
        data = self.sequences.evaluation if self.sequences.evaluation is not None else self.sequences.train
        base = bare(self.model)
        if data is None:
            most = positions(base)
            return sample_inputs(base, _PROOF_TOKENS if most is None else min(_PROOF_TOKENS, most))
        row = data.ids[0] if isinstance(data, Blocks) else example(data[0])["input_ids"]
        return {"input_ids": row[None, :_PROOF_TOKENS].to(input_device(base))}


class _LastReport:
    """The report of a run as far as it has come when it is written."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def save(self, folder: Path) -> None:
        self._run.report().save(folder)


def _shown(inputs: Mapping[str, Any]) -> str:
    ids = inputs.get("input_ids")
    return f"the tokens {ids.flatten()[:4].tolist()} …" if ids is not None else f"some random {next(iter(inputs))}"
